"""The server's part of a trace: whatever a request says of traces, evidence comes in as without it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from compliance_agent.server.services import tracing
from compliance_agent.server.services.tracing import Tracing
from compliance_agent.traces import Context, Span
from tests.server.builder import FakeHost, Hands, Server, Signed, acknowledged, b64, on_sqlite, serving
from tests.server.test_sequencer import settled

pytestmark = pytest.mark.anyio
GOOD = Context("ab" * 16, "cd" * 8).text

NONSENSE: list[Any] = [
    None,
    True,
    7,
    "",
    GOOD,
    {},
    [],
    [None],
    [GOOD],  # one for two bundles
    [GOOD] * 3,
    [GOOD.upper(), GOOD + "\n"],
    [f"00-{'0' * 32}-{'1' * 16}-01", f"ff-{'1' * 32}-{'1' * 16}-01"],
    [{"traceparent": GOOD}, [GOOD]],
    ["00-" + "a" * 10_000, "\x00"],
    [2**53 - 1, -1],
]


async def delivered(server: Server, host: FakeHost, bundles: list[Signed], traces: Any) -> Any:
    signed = [{"bundle": b64(item.body), "sig": b64(item.sig)} for item in bundles]
    body = {"protocol": 1, "bundles": signed, "gaps": [], "traces": traces}
    return await server.client.post("/api/v1/evidence", json=body, headers=host.headers)


def heard(server: Server) -> list[Span]:
    """From now on this server makes spans, and these are they."""
    spans: list[Span] = []
    services = server.services
    made = Tracing(services.clock, os.urandom, spans.append)
    object.__setattr__(services, "tracing", made)
    services.board.logged, services.receipts.made = made.logged, made.receipted
    return spans


@on_sqlite
@pytest.mark.parametrize("heeded", [False, True], ids=["off", "on"])
async def test_nonsense_about_traces_never_touches_evidence(server: Server, heeded: bool) -> None:
    spans = heard(server) if heeded else []
    host = await server.enrolled()
    for traces in NONSENSE:
        bundles = [host.next(), host.next()]
        reply = await delivered(server, host, bundles, traces)
        assert acknowledged(reply, host, bundles) == ["stored", "stored"], traces
    assert spans == []
    assert not server.services.tracing._under_way


@on_sqlite
async def test_each_bundle_has_its_own_trace_and_ends_it_once(server: Server) -> None:
    spans = heard(server)
    host = await server.enrolled()
    bundles = [host.next(), host.next(), host.next()]
    others = Context("12" * 16, "34" * 8).text
    await delivered(server, host, bundles, [GOOD, None, others])
    await settled(server)
    ids = [bundle.document["bundle_id"] for bundle in bundles]
    for _ in range(2):  # the second receipt belongs to nothing
        await server.post("/api/v1/receipts", {"protocol": 1, "bundles": ids}, headers=host.headers)
    for trace_id in ("ab" * 16, "12" * 16):
        names = sorted(span.name for span in spans if span.context.trace_id == trace_id)
        assert names == ["commit", "ingest", "receipt", "sequence", "verify"]
    assert len(spans) == 10
    assert not server.services.tracing._under_way
    known = await delivered(server, host, bundles, [GOOD, None, None])
    assert acknowledged(known, host, bundles) == ["known"] * 3
    assert [span.attributes["how"] for span in spans if span.name == "ingest"][2:] == ["known"]


@on_sqlite
async def test_a_refused_bundle_says_so_and_is_not_waited_for(server: Server) -> None:
    spans = heard(server)
    host = await server.enrolled()
    host.next()
    refused = await delivered(server, host, [host.next()], [GOOD])
    assert refused.status_code == 409
    assert [span.attributes["how"] for span in spans if span.name == "ingest"] == ["refused"]
    assert not server.services.tracing._under_way


def test_what_is_under_way_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """A host whose bundles never get receipts costs no memory."""
    monkeypatch.setattr(tracing, "MOST_UNDER_WAY", 10)
    made = Tracing(Hands(), os.urandom, lambda _: None)
    for seq in range(1_000):
        with made.arrives([GOOD], 1) as arrival:
            assert arrival is not None
            arrival.verified([("k", 0, seq, "time_sync")])
            arrival.committed(["stored"])
    assert [seq for _, _, seq in made._under_way] == list(range(990, 1_000))


async def test_a_collector_is_named_by_an_address_that_can_be_used(tmp_path: Path) -> None:
    from compliance_agent.errors import ConfigError

    with pytest.raises(ConfigError, match="otlp_url"):
        async with serving(tmp_path, otlp_url="collector:4318"):
            pass
