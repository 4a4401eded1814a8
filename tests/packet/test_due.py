"""The table says of each record until when it is kept, as the server does; who changes either is named."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from compliance_agent.errors import BadEvidence
from compliance_agent.packet import archive
from compliance_agent.packet.build import build
from compliance_agent.packet.content import BaselineUse, Scope
from compliance_agent.packet.due import Due
from compliance_agent.packet.manifest import MANIFEST, MANIFEST_SIGNATURE
from compliance_agent.packet.verify import verify_files
from tests.packet.scene import SITE, Made
from tests.packet.test_retold import CSV, resigned
from tests.server.builder import ZEROS, FakeHost, Server, Signed, serving

pytestmark = pytest.mark.anyio
DAY_S = 86_400


def naming(host: FakeHost, version: str) -> Signed:
    return host.next(baseline={"version": version, "sha256": ZEROS})


def cells(files: dict[str, bytes]) -> dict[str, tuple[str, str]]:
    """What the table says, by bundle."""
    lines = csv.DictReader(io.StringIO(files[CSV].decode(), newline=""))
    return {line["bundle_id"]: (line["retain_until"], line["retain_why"]) for line in lines}


async def said(server: Server, bundle: Signed, headers: dict[str, str]) -> tuple[str, str]:
    """What the API says."""
    reply = await server.client.get(f"/api/v1/bundles/{bundle.document['bundle_id']}", headers=headers)
    found = reply.json()["retention"]
    return found["retain_until"], "held" if found["holds"] else "in_effect" if found["in_effect"] else "six_years"


async def test_the_table_says_what_the_server_says(tmp_path: Path) -> None:
    async with serving(tmp_path / "server") as server:
        one, two = await server.enrolled("ws-01", SITE), await server.enrolled("ws-02", SITE)
        first, plain, held = naming(one, "1"), one.next(), naming(two, "1")
        await server.deliver(one, first, plain)
        await server.deliver(two, held)
        server.clock.move(10 * DAY_S)
        one.now = server.clock()
        late, newer = naming(one, "1"), naming(one, "2")
        assert all((await server.deliver(one, late, newer)).json()["receipts"])
        server.clock.move(DAY_S)
        one.now = server.clock()
        assert all((await server.deliver(one, naming(one, "2"))).json()["receipts"])
        await server.services.holds.add(SITE, "ws-02", "case-1")
        headers = await server.operator()
        expected = {item.document["bundle_id"]: await said(server, item, headers) for item in (first, plain, held)}
        day = server.clock().date() - timedelta(days=11)
        made = await build(tmp_path / "server", SITE, day, day, tmp_path / "packet.zip")
    assert made.report.problems == []
    found = cells(archive.unpack(made.path.read_bytes()))
    assert found == expected
    assert found[first.document["bundle_id"]] == (
        "2032-12-02",
        "six_years",
    )  # a later record, not of the period, named it
    assert found[plain.document["bundle_id"]] == ("2032-11-22", "six_years")
    assert found[held.document["bundle_id"]][1] == "held"
    assert b"case-1" not in made.path.read_bytes()  # an id from somebody's own books


def document(version: str | None, created: str = "2026-11-22T12:00:00.000000Z", host: str = "ws-01") -> dict[str, Any]:
    baseline = None if version is None else {"version": version, "sha256": ZEROS}
    return {"baseline": baseline, "created_at": created, "host": {"id": host}}


@pytest.fixture
def scope(made: Made) -> Scope:
    uses = (
        BaselineUse("ws-01", "1", "2026-12-02", False),
        BaselineUse("ws-01", "2", "2026-12-31", True),
        BaselineUse("ws-02", "1", "2027-05-01", False),
    )
    return replace(Scope.parse(made.files["packet.json"]), baselines=uses, held=("ws-03",))


@pytest.mark.parametrize(
    ("record", "expected"),
    [
        (document("1"), ("2032-12-02", "six_years")),
        (document("1", host="ws-02"), ("2033-05-01", "six_years")),
        (document("1", "2026-12-24T00:00:00.000000Z"), ("2032-12-24", "six_years")),  # whatever packet.json says
        (document("2"), ("2032-12-31", "in_effect")),
        (document(None), ("2032-11-22", "six_years")),
        (document(None, "2026-11-22T23:30:00.000000-01:00"), ("2032-11-23", "six_years")),
        (document("unknown"), ("9999-12-31", "six_years")),  # nothing says that it ended
        (document("1", host="ws-03"), ("9999-12-31", "held")),
    ],
)
def test_how_long(scope: Scope, record: dict[str, Any], expected: tuple[str, str]) -> None:
    due = Due(scope)
    assert due.of(record) == due.of(record) == expected


def test_the_scope_reads_back(scope: Scope) -> None:
    assert Scope.parse(scope.encode()) == scope


@pytest.mark.parametrize(
    "change",
    [
        lambda said: said["baselines"].reverse(),
        lambda said: said["baselines"].append(said["baselines"][-1]),
        lambda said: said["baselines"][0].update(last_day="2026-12-2"),
        lambda said: said["baselines"][0].update(last_day="soon"),
        lambda said: said["baselines"][0].update(in_effect=1),
        lambda said: said["baselines"][0].pop("in_effect"),
        lambda said: said.update(held=["ws-03", "ws-03"]),
        lambda said: said.update(held=["=1+1"]),
        lambda said: said.pop("held"),
    ],
)
def test_a_scope_that_says_it_otherwise_is_none(scope: Scope, change: Callable[[dict[str, Any]], Any]) -> None:
    said = json.loads(scope.encode())
    change(said)
    with pytest.raises(BadEvidence, match="not the scope"):
        Scope.parse(json.dumps(said, separators=(",", ":"), sort_keys=True).encode())


@pytest.mark.parametrize("column", ["retain_until", "retain_why"])
def test_a_table_that_says_less_is_named(made: Made, column: str) -> None:
    """A day less, or another reason, though the packet's own key signs it."""
    less = {"retain_until": (b",2032-11-2", b",2031-11-2"), "retain_why": (b",in_effect\r", b",six_years\r")}[column]
    changed = made.files[CSV].replace(*less, 1)
    assert changed != made.files[CSV]
    problems = verify_files(resigned(made, CSV, changed)).problems
    assert [(problem.code, problem.where) for problem in problems] == [("wrong_export", CSV)]


def test_another_word_of_a_baseline_does_not_fit_the_table(made: Made) -> None:
    """The two say the same, or one of them is wrong."""
    scope = Scope.parse(made.files["packet.json"])
    other = replace(scope, held=("ws-01",)).encode()
    report = verify_files(made.signed_again({**made.files, "packet.json": other}))
    assert CSV in [problem.where for problem in report.problems if problem.code == "wrong_export"]
    assert {MANIFEST, MANIFEST_SIGNATURE}.isdisjoint(problem.where for problem in report.problems)
