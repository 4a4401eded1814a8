"""Records go only under a verified receipt, a backup and their age; whatever stops it, the directory tells the truth."""

from __future__ import annotations

import contextlib
import functools
import shutil
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from compliance_agent.adapters import durable, shed_store
from compliance_agent.adapters.agent_view import looking
from compliance_agent.adapters.shed_store import ShedStore
from compliance_agent.agent import ComplianceAgent
from compliance_agent.cli.status import as_document
from compliance_agent.core import shedding as core
from compliance_agent.core.shedding import Candidate, Mark, Terms, may_go
from compliance_agent.evidence import directory, table
from compliance_agent.evidence.verify import Report, verify_paths
from compliance_agent.models import BundleKind
from compliance_agent.shedding import Shedding
from compliance_agent.transport.protocol import CheckinReply
from tests.agent_scene import Scene
from tests.test_receipts import log_of, record, rows, turn

pytestmark = pytest.mark.anyio
COUNT, KEEP, DAYS = 20, 5, 30
FEW = 8  # for tests that stop at every write


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
async def scene(tmp_path: Path) -> AsyncIterator[Scene]:
    made = Scene(tmp_path, settings={"keep_days": DAYS})
    yield made
    await made.close()


async def grown(scene: Scene, count: int = COUNT) -> ComplianceAgent:
    """So many receipted records, a while ago."""
    agent = scene.agent()
    await record(scene, agent, count)
    scene.clock.advance((DAYS + 1) * 86_400)
    return agent


def answer(scene: Scene, covered: int = 10_000, **changes: Any) -> CheckinReply:
    """What a server says that holds everything, and has a backup of so many entries."""
    held = scene.server.stored()[-1]
    now = scene.clock.now().astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    said = CheckinReply((held.epoch, held.seq, held.sha256), 60, now, {log_of(scene).origin: covered})
    return replace(said, **changes)


async def shed(scene: Scene, agent: ComplianceAgent, said: CheckinReply | None, days: int = DAYS) -> int:
    desk = Shedding(ShedStore(agent._log_store), "clinic-1", scene.clock, days, keep_last=KEEP)
    return await desk.turn(agent.mcp_client, said)


def here(scene: Scene) -> list[int]:
    """Numbers of the records whose directories are there."""
    found = [path.parent.name for path in scene.config.evidence_dir.glob("*/*/*/[!.]*/bundle.json")]
    numbers = {item["bundle_id"]: item["seq"] for item in scene.documents()}
    return sorted(numbers[name] for name in found)


def held(agent: ComplianceAgent) -> list[int]:
    """Numbers of the records that have rows."""
    return [row[0] for row in rows(agent, "SELECT seq FROM evidence ORDER BY seq")]


def verified(scene: Scene, *, log_key: bool = True) -> Report:
    keys: dict[str, bytes] = {scene.signer.key_id: scene.signer.public_bytes}
    return verify_paths([scene.config.evidence_dir], keys, log_keys=[log_of(scene).vkey] if log_key else [])


def codes(report: Report) -> set[str]:
    return {problem.code for problem in report.problems}


# What goes


async def test_what_is_covered_and_old_goes_and_is_told_as_such(
    scene: Scene, capsys: pytest.CaptureFixture[str]
) -> None:
    agent = await grown(scene)
    assert await shed(scene, agent, answer(scene)) == COUNT - KEEP
    assert here(scene) == held(agent) == list(range(COUNT - KEEP + 1, COUNT + 1))
    assert rows(agent, "SELECT count(*) FROM receipts") == [(KEEP,)]
    report = verified(scene)
    assert (report.problems, report.chains[0].shed, report.found) == ([], (0, COUNT - KEEP), KEEP)
    assert await shed(scene, agent, answer(scene)) == 0
    await record(scene, agent, 3)  # the chain goes on as if nothing had gone
    assert (verified(scene).ok, held(agent)[-1]) == (True, COUNT + 3)
    assert capsys.readouterr().out.count("evidence.shed") == 1
    await agent.close()
    scene.live = None
    with looking(scene.config.database_path) as view:
        assert as_document(scene.config, view, datetime.now(UTC))["log"]["shed"] == COUNT - KEEP


async def test_the_whole_way_through_the_agents_own_turn(scene: Scene) -> None:
    """Check-in, receipts, shedding: as the agent does it, with the server's own words."""
    agent = await grown(scene, 130)
    scene.server.durable = {log_of(scene).origin: 8}
    scene.server.time = answer(scene).server_time
    await record(scene, agent, 1)
    assert held(agent)[0] == 8
    assert (verified(scene).problems, verified(scene).chains[0].shed) == ([], (0, 7))
    agent = await scene.restart()
    await record(scene, agent, 1)
    assert (held(agent)[0], verified(scene).ok) == (8, True)


async def test_an_older_server_says_nothing_and_nothing_goes(scene: Scene) -> None:
    agent = await grown(scene)
    await record(scene, agent, 1)
    assert len(held(agent)) == COUNT + 1
    assert not (scene.config.evidence_dir / "shed.json").exists()


async def nothing(_scene: Scene, _agent: ComplianceAgent) -> None:
    """Left as it is."""


def run(statement: str) -> Callable[[Scene, ComplianceAgent], Any]:
    async def act(_scene: Scene, agent: ComplianceAgent) -> None:
        assert agent._database.write(lambda connection: connection.execute(statement).rowcount) == 1

    return act


OTHER_INDEX = "UPDATE receipts SET proof = CAST(replace(proof, 'index 6', 'index 4') AS BLOB) WHERE bundle = 6"
OTHER_LEAF = "UPDATE receipts SET leaf = (SELECT leaf FROM receipts WHERE bundle = 7) WHERE bundle = 6"

# name -> (what is done first, what the server says, days, the first record that must stay)
STAYS: dict[str, tuple[Callable[[Scene, ComplianceAgent], Any], dict[str, Any], int, int]] = {
    "never, by default": (nothing, {}, 0, 1),
    "not old enough": (nothing, {}, DAYS + 5, 1),
    "the server's clock says it is not old": (nothing, {"server_time": "2026-11-22T00:00:00Z"}, DAYS, 1),
    "no backup": (nothing, {"durable": {}}, DAYS, 1),
    "a backup of another log": (nothing, {"durable": {"fake/clinic-1/2025": 10_000}}, DAYS, 1),
    "a backup that ends at its index": (nothing, {"covered": 6}, DAYS, 6),
    "the server does not hold it": (nothing, {"known": (0, 5, "a" * 64)}, DAYS, 6),
    "the server holds nothing": (nothing, {"known": None}, DAYS, 1),
    "no receipt": (run("DELETE FROM receipts WHERE bundle = 6"), {}, DAYS, 6),
    "a receipt that does not verify": (run(OTHER_INDEX), {}, DAYS, 6),
    "a receipt of another record": (run(OTHER_LEAF), {}, DAYS, 6),
    "pending": (run("UPDATE evidence SET state = 'pending' WHERE id = 6"), {}, DAYS, 6),
    "damaged": (run("UPDATE evidence SET state = 'damaged', epoch = NULL, seq = NULL WHERE id = 6"), {}, DAYS, 6),
    "its bytes are not those it had": (run("UPDATE evidence SET body = x'7b7d' WHERE id = 6"), {}, DAYS, 6),
    "acknowledged lately": (run("UPDATE evidence SET uploaded_at = '2099-01-01T00:00:00+00:00' WHERE id = 6"), {}, DAYS, 6),
    "acknowledged nobody knows when": (run("UPDATE evidence SET uploaded_at = NULL WHERE id = 6"), {}, DAYS, 6),
    "a log that contradicted itself": (run("UPDATE log_heads SET code = 'log_forked', theirs = x'00'"), {}, DAYS, 1),
}  # fmt: skip


@pytest.mark.parametrize("name", STAYS)
async def test_what_stays(scene: Scene, name: str) -> None:
    act, said, days, first = STAYS[name]
    agent = await grown(scene)
    await act(scene, agent)
    before = here(scene)
    await shed(scene, agent, answer(scene, **said), days)
    assert here(scene) == [number for number in before if number >= first]
    assert [number for number in held(agent) if number] == [
        n for n in range(first, COUNT + 1) if name != "damaged" or n != 6
    ]


async def test_an_incident_stays_and_what_is_around_it_goes(scene: Scene) -> None:
    agent = scene.agent()
    await record(scene, agent, 4)
    await agent.recording.create(check="", outcome=None, kind=BundleKind.INCIDENT, reason="server_ahead")
    await record(scene, agent, COUNT - 5)
    scene.clock.advance((DAYS + 1) * 86_400)
    assert await shed(scene, agent, answer(scene)) == COUNT - KEEP - 1
    assert here(scene) == held(agent) == [5, *range(COUNT - KEEP + 1, COUNT + 1)]
    assert verified(scene).problems == []


# Planted: each rule taken away is noticed by the cases above


RULES: dict[str, tuple[str, Callable[[Terms], Terms]]] = {
    "age": ("not old enough", lambda terms: replace(terms, before=datetime.max.replace(tzinfo=UTC))),
    "backup": ("no backup", lambda terms: replace(terms, durable={"fake/clinic-1/2026": 10_000})),
    "known": ("the server does not hold it", lambda terms: replace(terms, known=(99, 1))),
    "distrust": ("a log that contradicted itself", lambda terms: replace(terms, distrusted=())),
}


@pytest.mark.parametrize("rule", RULES)
async def test_planted_without_a_rule_more_goes(scene: Scene, monkeypatch: pytest.MonkeyPatch, rule: str) -> None:
    name, careless = RULES[rule]
    act, said, days, _ = STAYS[name]
    agent = await grown(scene)
    await act(scene, agent)

    def without(chain: Sequence[Candidate], mark: Mark | None, terms: Terms) -> list[Candidate]:
        return may_go(chain, mark, careless(terms))

    monkeypatch.setattr("compliance_agent.shedding.may_go", without)
    said = {"durable": {"x/y/2026": 1}} if rule == "backup" else said
    assert await shed(scene, agent, answer(scene, **said), days) > 5


async def test_planted_without_the_receipt_more_goes(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """Believing a stored proof without looking at it again."""
    act, said, days, first = STAYS["a receipt of another record"]
    agent = await grown(scene)
    await act(scene, agent)
    head = (await agent.receipts._call(agent._log_store.followed))[log_of(scene).origin].head
    monkeypatch.setattr(core, "verify_receipt", lambda *_: head)
    await shed(scene, agent, answer(scene, **said), days)
    assert held(agent)[0] > first


# Stopped on the way


class Stop(BaseException):
    """The process is gone."""


class Points:
    """Counts writes of files, of directories and of the database, and stops before number `at`."""

    def __init__(self, at: int) -> None:
        self.at, self.done = at, 0

    def __call__(self, true: Callable[..., Any]) -> Callable[..., Any]:
        def act(*arguments: Any, **named: Any) -> Any:
            if self.done == self.at:
                raise Stop
            self.done += 1
            return true(*arguments, **named)

        return act


async def stopped(scene: Scene, agent: ComplianceAgent, at: int, *, reverse: bool = False) -> int:
    points = Points(at)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(shed_store, "write_file", points(durable.write_file))
        patched.setattr(shutil, "rmtree", points(shutil.rmtree))
        patched.setattr(directory, "fsync_directory", points(durable.fsync_directory))
        patched.setattr(Path, "rename", points(Path.rename))
        patched.setattr(agent._database, "write", points(agent._database.write))
        if reverse:
            patched.setattr(ShedStore, "let_go", rows_first)
        with contextlib.suppress(Stop):
            await shed(scene, agent, answer(scene))
    return points.done


def rows_first(self: ShedStore, gone: Sequence[Candidate], mark: Mark) -> None:
    """Planted: directories go before the mark is there."""
    for item in gone:
        [row] = self.database.read(functools.partial(table.select, rest="WHERE id = ?", values=(item.id,)))
        directory.remove(table.directory_of(row, self._logs.evidence_dir))
    durable.write_file(self._path, mark.encode(), 0o644)


async def test_stopped_at_every_write_it_tells_the_truth_and_goes_on(tmp_path: Path) -> None:
    """Before each write of the mark, of each directory and of the rows; then a restart, and the rest goes too."""
    whole = Scene(tmp_path / "whole", settings={"keep_days": DAYS})
    agent = await grown(whole, FEW)
    total = await stopped(whole, agent, 10_000)
    await whole.close()
    assert total > 3 * (FEW - KEEP)
    for at in range(total):
        scene = Scene(tmp_path / str(at), settings={"keep_days": DAYS})
        agent = await grown(scene, FEW)
        assert await stopped(scene, agent, at) == at
        assert verified(scene).problems == [], at
        agent = await scene.restart()
        await record(scene, agent, 1)
        assert verified(scene).problems == [], at
        assert await shed(scene, agent, answer(scene)) in {1, FEW - KEEP + 1}
        assert verified(scene).problems == [], at
        assert here(scene) == held(agent)
        assert (len(scene.server.stored()), [p for p in scene.config.evidence_dir.rglob(".*.tmp")]) == (FEW + 1, [])
        await scene.close()


def where_it_stands(path: Path) -> None:
    """Planted: a directory goes under its own name."""
    shutil.rmtree(path)


async def half_removed(scene: Scene, agent: ComplianceAgent) -> None:
    """Stopped in the middle of a directory: one of its files is gone."""
    true_rmtree = shutil.rmtree

    def half(path: Path, **options: Any) -> None:
        if not path.exists():
            return true_rmtree(path, **options)
        (path / "bundle.json").unlink()
        raise Stop

    with pytest.MonkeyPatch.context() as patched, contextlib.suppress(Stop):
        patched.setattr(shutil, "rmtree", half)
        await shed(scene, agent, answer(scene))


async def test_half_a_directory_is_never_seen(scene: Scene, tmp_path: Path) -> None:
    """It has a hidden name by then; removed where it stands, it would be evidence that was tampered with."""
    agent = await grown(scene, FEW)
    await half_removed(scene, agent)
    assert verified(scene).problems == []
    agent = await scene.restart()
    assert await shed(scene, agent, answer(scene)) == FEW - KEEP
    assert (verified(scene).problems, list(scene.config.evidence_dir.rglob(".*.tmp"))) == ([], [])
    planted = Scene(tmp_path / "planted", settings={"keep_days": DAYS})
    agent = await grown(planted, FEW)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(directory, "remove", where_it_stands)
        await half_removed(planted, agent)
    assert "unreadable" in codes(verified(planted))
    await planted.close()


async def test_planted_directories_before_the_mark_are_caught(tmp_path: Path) -> None:
    caught = set()
    for at in range(0, 12, 2):
        scene = Scene(tmp_path / str(at), settings={"keep_days": DAYS})
        agent = await grown(scene)
        await stopped(scene, agent, at, reverse=True)
        caught |= codes(verified(scene))
        await scene.close()
    assert "missing_start" in caught


async def test_a_disk_that_fails_leaves_what_can_be_done_again(
    scene: Scene, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It is said once, not at every turn."""
    agent = await grown(scene)
    desk = Shedding(ShedStore(agent._log_store), "clinic-1", scene.clock, DAYS, keep_last=KEEP)

    def broken(_path: Path) -> None:
        raise OSError(5, "broken")

    with monkeypatch.context() as patched:
        patched.setattr(directory, "fsync_directory", broken)
        for _ in range(3):
            assert await desk.turn(agent.mcp_client, answer(scene)) == 0
    assert capsys.readouterr().out.count("evidence.shed_failed") == 1
    assert (verified(scene).problems, len(held(agent))) == ([], COUNT)
    assert await desk.turn(agent.mcp_client, answer(scene)) == COUNT - KEEP
    assert verified(scene).ok


async def test_a_lost_database_goes_on_from_the_mark(scene: Scene) -> None:
    """The rows come back from the directories; the mark in the directory says what is not among them."""
    agent = await grown(scene)
    await shed(scene, agent, answer(scene))
    await agent.close()
    for path in scene.config.state_dir.glob("agent.db*"):
        path.unlink()
    agent = scene.agent()
    await record(scene, agent, 8)
    scene.clock.advance((DAYS + 1) * 86_400)
    await record(scene, agent, 1)
    assert codes(verified(scene)) <= {"broken_link"}  # the new epoch is told as ever
    assert ShedStore(agent._log_store).mark() is not None
    assert sorted(item["seq"] for item in scene.documents() if item["epoch"] == 0) == list(range(1, COUNT + 1))


# What an auditor is told


def drop(number: int) -> Callable[[Scene], None]:
    def act(scene: Scene) -> None:
        name = next(item["bundle_id"] for item in scene.documents() if item["seq"] == number)
        [found] = scene.config.evidence_dir.glob(f"*/*/*/{name}")
        shutil.rmtree(found)

    return act


def marked(**changes: Any) -> Callable[[Scene], None]:
    def act(scene: Scene) -> None:
        path = scene.config.evidence_dir / "shed.json"
        path.write_bytes(replace(Mark.parse(path.read_bytes()), **changes).encode())

    return act


def without_mark(scene: Scene) -> None:
    (scene.config.evidence_dir / "shed.json").unlink()


def no_json(scene: Scene) -> None:
    (scene.config.evidence_dir / "shed.json").write_bytes(b"{")


def mark_of(number: int) -> Callable[[Scene], None]:
    """A true mark of a record that is still here: its receipt is real, and what it says is a lie."""

    def act(scene: Scene) -> None:
        held = next(item for item in scene.server.stored() if item.seq == number)
        [found] = scene.config.evidence_dir.glob(f"*/*/*/{held.document['bundle_id']}")
        leaf, proof = (found / name for name in ("leaf.json", "bundle.tlog-proof"))
        mark = Mark(scene.signer.key_id, 0, number, held.sha256, 1, leaf.read_bytes(), proof.read_bytes())
        (scene.config.evidence_dir / "shed.json").write_bytes(mark.encode())

    return act


def both(*acts: Callable[[Scene], None]) -> Callable[[Scene], None]:
    def act(scene: Scene) -> None:
        for one in acts:
            one(scene)

    return act


LIES: dict[str, tuple[Callable[[Scene], None], str]] = {
    "a hole in the middle": (drop(18), "missing"),
    "the first one after the mark is gone": (drop(16), "missing_start"),
    "the mark is gone": (without_mark, "missing_start"),
    "the mark is no JSON": (no_json, "bad_shed"),
    "the mark names another record": (marked(sha256="f" * 64), "bad_shed"),
    "the mark names a later place": (marked(seq=17), "bad_shed"),
    "the mark is of another host": (marked(key_id="e" * 64), "bad_shed"),
    "the receipt is of another entry": (marked(leaf=b"{}"), "bad_shed"),
    "the proof is cut": (marked(proof=b"c2sp.org/tlog-proof@v1\n"), "bad_shed"),
    "a mark over everything that is here": (both(mark_of(20), drop(17)), "bad_shed"),
}


@pytest.mark.parametrize("name", LIES)
async def test_a_lie_about_what_went_is_named(scene: Scene, name: str) -> None:
    agent = await grown(scene)
    await shed(scene, agent, answer(scene))
    act, code = LIES[name]
    act(scene)
    assert code in codes(verified(scene))


async def test_without_the_logs_key_the_mark_excuses_nothing(scene: Scene) -> None:
    agent = await grown(scene)
    await shed(scene, agent, answer(scene))
    assert codes(verified(scene, log_key=False)) == {"missing_start", "bad_shed"}


async def test_a_server_that_was_set_back_to_what_went_last_is_no_break(scene: Scene) -> None:
    """Its newest record is the last that went here: the chain still leads there."""
    agent = await grown(scene)
    await shed(scene, agent, answer(scene, covered=10))
    assert held(agent)[0] == 10
    del scene.server.stored()[9:]
    await record(scene, agent, 1)
    for _ in range(3):
        await turn(scene, agent)
    assert [(item.epoch, item.seq) for item in scene.server.stored()] == [(0, n) for n in range(1, COUNT + 2)]
