"""One trace from drift to receipt, as a real collector gets it; and nothing of it anywhere that counts."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from compliance_agent import traces, tracing
from compliance_agent.agent import ComplianceAgent
from compliance_agent.errors import BadReply, ConfigError, Unavailable
from compliance_agent.lab.clock import FakeClock
from compliance_agent.models import EvidenceBundle
from compliance_agent.otlp import PATH, Otlp
from compliance_agent.transport.http import HttpTransport
from compliance_agent.uplink.link import Link, UplinkTransport
from tests.agent_scene import Scene
from tests.collector import Collector, Got, collecting
from tests.server.builder import Server, serving
from tests.server.test_sequencer import settled
from tests.test_receipts import rows
from tests.test_shedding_server import Wire, connected, enrolled
from tests.uplink.scene import Beside

pytestmark = pytest.mark.anyio
AT_HOST, AT_SERVER = {*traces.AT_HOST}, {*traces.AT_SERVER}


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
async def collector() -> AsyncIterator[Collector]:
    async with collecting() as made:
        yield made


def scene_with(tmp_path: Path, collector: Collector | None, **settings: Any) -> Scene:
    url = {"otlp_url": collector.url} if collector is not None else {}
    return Scene(tmp_path / "host", settings={**url, **settings})


async def healed(scene: Scene, server: Server, agent: ComplianceAgent) -> None:
    """A drift that is healed, and iterations until every record has its receipt."""
    if not scene.healer.cured:
        scene.detector.drift("time_sync")
    for _ in range(10):
        await scene.cycle(agent)
        await scene.delivered(agent)
        await settled(server)
        if rows(agent, "SELECT count(*) FROM evidence") == rows(agent, "SELECT count(*) FROM receipts"):
            break
    assert scene.healer.cured == ["time_sync"]
    assert agent.otlp is not None
    await agent.otlp.flush()


def whole(spans: list[Got], *, without: frozenset[str] = frozenset()) -> None:
    """These are one trace: one root, and every other span under one of them."""
    assert len({span.trace_id for span in spans}) == 1
    assert sorted(span.name for span in spans) == sorted((AT_HOST | AT_SERVER) - without)
    by_id = {span.span_id: span for span in spans}
    assert [span.name for span in spans if not span.parent] == ["drift"]
    above = {span.name: by_id[span.parent].name for span in spans if span.parent}
    expected = dict.fromkeys(("look", "heal", "record", "deliver", "prove"), "drift")
    expected |= {"ingest": "deliver"} | dict.fromkeys(("verify", "commit", "sequence", "receipt"), "ingest")
    assert above == {name: parent for name, parent in expected.items() if name not in without}


def closed(collector: Collector) -> None:
    """No word in it is a host's."""
    words = traces.closed()
    assert {span.name for span in collector.spans} <= AT_HOST | AT_SERVER
    for span in collector.spans:
        assert all(value in words[key] for key, value in span.attributes.items()), span
        assert span.start <= span.end
    assert {key for about in collector.resources for key in about} == {"service.name", "service.version"}


@pytest.mark.parametrize("privileges", ["single", "split"])
async def test_a_healed_drift_is_one_trace_from_drift_to_receipt(
    tmp_path: Path, collector: Collector, privileges: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    scene = scene_with(tmp_path, collector, privileges=privileges)
    async with serving(tmp_path / "server", otlp_url=collector.url) as server:
        await enrolled(scene, server)
        beside = Beside(Wire(server), scene.config.mcp_api_key_file)
        beside.doors.collectors = {collector.url: HttpTransport(collector.url)}
        monkeypatch.setattr(tracing, "link_of", lambda _config: Link(beside._opened))
        agent = connected(scene, server)
        if privileges == "split":
            assert agent.mcp_client is not None
            agent.mcp_client._transport = beside.transport()
        await healed(scene, server, agent)
        assert agent.otlp is not None
        assert isinstance(agent.otlp._transport, UplinkTransport) is (privileges == "split")
        assert rows(agent, "SELECT count(*) FROM traces") == [(0,)]
        await scene.close()
        await beside.doors.close()
        await beside.close()
    whole(collector.spans)
    closed(collector)
    assert {span.name for span in collector.spans if span.service == "compliance-agent"} == AT_HOST
    assert {span.name for span in collector.spans if span.service == "compliance-server"} == AT_SERVER
    said = {span.name: span.attributes for span in collector.spans}
    assert said["drift"] == {"check": "time_sync", "outcome": "success"}
    assert (said["deliver"], said["ingest"]) == ({"how": "acknowledged"}, {"check": "time_sync", "how": "stored"})
    assert not any(b"authorization" in head.lower() for head in collector.heads)
    ids = {span.trace_id for span in collector.spans} | {span.span_id for span in collector.spans}
    for path in filter(Path.is_file, scene.config.evidence_dir.rglob("*")):
        assert not any(one.encode() in path.read_bytes() for one in ids), f"{path} tells of its trace"


async def test_a_trace_outlives_a_restart_and_an_outage(tmp_path: Path, collector: Collector) -> None:
    scene = scene_with(tmp_path, collector)
    async with serving(tmp_path / "server", otlp_url=collector.url) as server:
        await enrolled(scene, server)
        agent = scene.agent()
        scene.server.down = True
        scene.detector.drift("time_sync")
        await scene.cycle(agent)
        assert agent.otlp is not None
        await agent.otlp.flush()
        assert {span.name for span in collector.spans if span.name != "deliver"} == AT_HOST - {"deliver", "prove"}
        assert {span.attributes["how"] for span in collector.spans if span.name == "deliver"} <= {"failed"}
        await scene.close()
        scene.clock.advance(3_600)
        again = connected(scene, server)
        await healed(scene, server, again)
        await scene.close()
    tried = [span for span in collector.spans if span.name == "deliver" and span.attributes["how"] == "failed"]
    whole([span for span in collector.spans if span not in tried])
    assert {span.trace_id for span in tried} <= {collector.spans[0].trace_id}


async def test_without_a_collector_a_context_goes_all_the_way_and_nothing_is_sent(tmp_path: Path) -> None:
    scene = scene_with(tmp_path, None)
    agent = scene.agent()
    bodies: list[dict[str, Any]] = []
    request = scene.server.request

    async def heard(method: str, path: str, **more: Any) -> Any:
        if path == "/api/v1/evidence":
            bodies.append(json.loads(more["body"]))
        return await request(method, path, **more)

    scene.server.request = heard  # type: ignore[method-assign]
    await scene.cycle(agent)
    assert not any("traces" in body for body in bodies)  # what no drift is costs nothing
    scene.detector.drift("time_sync")
    await scene.cycle(agent)
    scene.healer.held["logging"] = "outside_window"
    scene.detector.drift("logging")
    await scene.cycle(agent, 3)  # said once, so traced once
    sent = [text for body in bodies for text in body.get("traces", []) if text]
    assert len({traces.read(text).trace_id for text in sent if traces.read(text)}) == len(sent) == 2  # type: ignore[union-attr]
    assert agent.otlp is None
    await scene.close()


async def test_a_collector_that_is_away_costs_spans_and_nothing_else(tmp_path: Path) -> None:
    async with collecting() as gone:
        pass
    scene = scene_with(tmp_path, gone)
    agent = scene.agent()
    scene.detector.drift("time_sync")
    await scene.cycle(agent, 2)
    assert ("remediation", "time_sync", "success") in scene.kinds()
    assert agent.otlp is not None
    await agent.otlp.flush()
    assert agent.otlp.sent == 0 and agent.otlp.dropped >= 5 and not agent.otlp._held
    await scene.close()


async def test_a_collector_that_says_no_is_said_once_and_memory_is_bounded(
    collector: Collector, monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[str] = []
    monkeypatch.setattr("compliance_agent.otlp.log.warning", lambda event, **_: events.append(event))
    monkeypatch.setattr("compliance_agent.otlp.log.info", lambda event, **_: events.append(event))
    monkeypatch.setattr("compliance_agent.otlp.MOST_HELD", 100)

    async def never(_seconds: float) -> None:
        return None

    otlp = Otlp(HttpTransport(collector.url), "compliance-agent", never)
    made = traces.Tracer(FakeClock().now, lambda n: b"\1" * n, otlp.add)
    for _ in range(1_000):
        made.begin("drift").end()
    assert (len(otlp._held), otlp.dropped) == (100, 900)
    collector.status = 503
    await otlp.flush()
    made.begin("drift").end()
    await otlp.flush()
    collector.status = 200
    made.begin("drift").end()
    async with otlp.running():
        pass  # what is held goes out at its end
    assert (otlp.sent, otlp.dropped, events) == (1, 1_001, ["traces.not_sent", "traces.sent_again"])


async def test_uplink_leads_to_the_collector_and_there_to_one_place_alone(tmp_path: Path, collector: Collector) -> None:
    scene = scene_with(tmp_path, collector, privileges="split")
    beside = Beside(scene.server, scene.config.mcp_api_key_file)
    beside.doors.collectors = {collector.url: HttpTransport(collector.url)}
    way = UplinkTransport(Link(beside._opened), collector.url)
    assert (await way.request("POST", PATH, body=b"")).status == 200
    for method, path in (("GET", PATH), ("POST", "/v1/logs"), ("POST", "/")):
        with pytest.raises((BadReply, Unavailable)):
            await way.request(method, path)
    with pytest.raises((BadReply, Unavailable)):
        await UplinkTransport(way._link, "http://127.0.0.1:1").request("POST", PATH)
    assert len(collector.heads) == 1
    assert b"authorization" not in collector.heads[0].lower()
    await way.close()
    await beside.doors.close()
    await beside.close()
    await scene.close()


def test_a_collector_without_the_extra_is_refused_with_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.resources", None)
    with pytest.raises(ConfigError, match="extra `otel`") as refused:
        Otlp(HttpTransport("http://127.0.0.1:1"), "compliance-agent", lambda _: None)  # type: ignore[arg-type,return-value]
    assert refused.value.code == "no_otel"


@given(
    st.from_regex(r"00-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}", fullmatch=True),
    st.integers(0, 54),
    st.characters(),
)
def test_a_context_is_read_from_its_one_form_and_from_nothing_else(text: str, at: int, other: str) -> None:
    void = "0" * 32 in text[3:35] or text[36:52] == "0" * 16
    found = traces.read(text)
    assert (found is None) is void
    if found is not None:
        assert (found.trace_id, found.span_id, found.text[:-2]) == (text[3:35], text[36:52], text[:-2])
        assert traces.read(found.text) == found
    for bad in (text[:-1], text + "0", text + "\n", f" {text}", text.replace("-", "_"), f"ff{text[2:]}", text.encode()):
        assert traces.read(bad) is None
    if other not in "0123456789abcdef":
        assert traces.read(text[:at] + other + text[at + 1 :]) is None or text[at] == other
    assert traces.read(None) is traces.read(1) is traces.read([text]) is None


def test_words_that_no_list_has_are_left_out() -> None:
    """Planted: what a host, or a mistake of ours, would have said of a patient."""
    said: list[traces.Span] = []
    tracer = traces.Tracer(FakeClock().now, lambda n: b"\1" * n, said.append)
    tracer.begin("drift").end(check="Erika Mustermann", outcome="success", how="/home/erika", path="/home/erika")
    assert said[0].attributes == {"outcome": "success"}


def test_a_trace_is_no_part_of_what_is_signed() -> None:
    """No field of a bundle can hold one."""
    assert not [name.name for name in dataclasses.fields(EvidenceBundle) if "trac" in name.name]
