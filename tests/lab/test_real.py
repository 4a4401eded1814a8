"""The pure parts of `make lab`: the table leaves no check out, and the judge lets nothing false through."""

from __future__ import annotations

import io
import os
import struct
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, cast

import pytest

from compliance_agent.checks import registry
from compliance_agent.checks.spec import COMMON_REASONS
from compliance_agent.healing import CODES
from compliance_agent.lab.real import apart, enclosure, install, network, recipe, signatures, skewed
from compliance_agent.lab.real.host import Host
from compliance_agent.lab.real.judge import Observed, judge
from compliance_agent.lab.real.matrix import ROWS, TABLES, chosen, spread
from compliance_agent.lab.real.report import Progress, document, show
from compliance_agent.lab.real.row import PUBLISH, Row
from compliance_agent.lab.real.run import WALLS, different
from compliance_agent.lab.real.step import NotSo, lines
from compliance_agent.lab.real.stranger import Stranger
from compliance_agent.models import Outcome
from compliance_agent.remedies import actions

SEVEN = {"patching", "av_health", "backup", "logging", "firewall", "encryption", "time_sync"}
AT = datetime(2026, 11, 28, 12, 0, tzinfo=UTC)
ROW = Row("firewall", "flushed", "nft flush ruleset", "fail", "no_firewall", "success")
LOOK = Row("firewall", "unreadable", "mv nft away", "unknown", "tool_missing")
UNDONE = replace(ROW, outcome="reverted", error="load_failed")


class Terminal(io.StringIO):
    """Text that takes itself for a terminal."""

    def isatty(self) -> bool:
        return True


def bundle(**more: Any) -> dict[str, Any]:
    """A record as the agent makes it, as far as the judge reads it."""
    return {
        "bundle_id": "b-1", "result": "fail", "reason": "no_firewall", "outcome": "success", "error": None, "post_result": "pass",
        "timestamp_start": "2026-11-28T12:00:01.500000Z", "timestamp_end": "2026-11-28T12:00:02.000000Z", **more,
    }  # fmt: skip


def seen(*bundles: dict[str, Any], truth: bool | None = True, former: bool | None = None) -> Observed:
    return Observed(AT, bundles, truth, former)


def test_every_check_has_a_fault_and_one_that_takes_its_sight() -> None:
    assert set(SEVEN) <= {table.check for table in TABLES}
    assert [table.check for table in TABLES if not any(row.result == "unknown" for row in table.rows)] == []
    assert len({row.name for row in ROWS}) == len(ROWS)


def test_every_check_with_a_cure_has_one_that_works_and_one_that_fails() -> None:
    healing = {check for check, found in registry().items() if any(case.heals for case in found.cases)}
    for table in TABLES:
        outcomes = {row.outcome for row in table.rows}
        seen = "success" in outcomes and bool(outcomes & {"reverted", "failed"})
        assert seen == (table.check in healing and not table.no_cure), table.check


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_the_table_uses_the_words_of_the_product(row: Row) -> None:
    spec = registry()[row.check].spec
    assert row.reason in {*spec.reasons, *COMMON_REASONS}
    assert row.outcome in {None, *(str(word) for word in Outcome)}
    codes = {code for action in actions().values() for code in action.codes}
    assert row.error in {None, "no_cure", "blocked", "rejected_target", "step_failed", *CODES, *codes, *COMMON_REASONS}


@pytest.mark.parametrize("row", [row for row in ROWS if row.outcome == "success"], ids=lambda row: row.name)
def test_the_machine_is_asked_whether_a_cure_worked(row: Row) -> None:
    assert row.truth != "true"


def test_a_healed_host_is_as_it_must_be() -> None:
    line = judge(ROW, seen(bundle()))
    assert (line.differences, line.detect_s, line.heal_s, line.bundle_id) == ((), 1.5, 2.0, "b-1")


@pytest.mark.parametrize(
    ("row", "observed", "said"),
    [
        (ROW, seen(bundle(), truth=False), "said healed, and the machine says otherwise"),
        (ROW, seen(bundle(), truth=None), "healed, and the machine did not confirm it"),
        (ROW, seen(bundle(post_result="fail")), "healed without a pass of the check: fail"),
        (ROW, seen(), "expected fail no_firewall success, found nothing"),
        (ROW, seen(bundle(reason="policy_accepts")), "expected fail no_firewall success, found fail policy_accepts success"),
        (UNDONE, seen(bundle(outcome="reverted", error="load_failed"), former=False),
         "the cure failed, and the host is not in its former state"),
        (UNDONE, seen(bundle(outcome="reverted", error="check_fail"), former=True),
         "expected fail no_firewall reverted load_failed, found fail no_firewall reverted check_fail"),
        (UNDONE, seen(bundle()), "said healed, and the machine says otherwise"),
        (LOOK, seen(bundle(result="pass", reason="as_expected", outcome=None)), "passed where the probe could not look"),
        (LOOK, seen(bundle(result="unknown", reason="tool_missing", outcome=None), bundle()),
         "passed where the probe could not look"),
    ],
)  # fmt: skip
def test_the_judge_names_what_is_false(row: Row, observed: Observed, said: str) -> None:
    assert said in judge(row, observed).differences


def test_false_words_are_counted() -> None:
    assert judge(ROW, seen(bundle(), truth=False)).false_healed
    assert judge(LOOK, seen(bundle(result="pass", outcome=None))).blind_pass
    assert not judge(ROW, seen(bundle())).false_healed


def test_rows_are_chosen_by_check_or_by_fault() -> None:
    assert [table.check for table in chosen(("firewall",))] == ["firewall"]
    assert [row.name for table in chosen(("firewall:flushed",)) for row in table.rows] == ["firewall:flushed"]
    assert chosen(()) == TABLES
    with pytest.raises(ValueError, match="no row 'firewal'"):
        chosen(("firewal",))


def test_checks_are_spread_so_that_hosts_end_together() -> None:
    tables = tuple(replace(TABLES[0], rows=(replace(ROW, check=str(cost)),), cost_s=cost) for cost in (10, 60, 30, 20))
    shares = spread(tables, 2)
    assert [sum(table.cost_s for table in share) for share in shares] == [60, 60]
    assert sorted(table.check for share in shares for table in share) == ["10", "20", "30", "60"]
    assert len(spread(tables[:1], 3)) == 1


def test_a_host_that_was_put_back_and_does_not_pass_differs() -> None:
    line = judge(ROW, seen(bundle())).but("put back, and does not pass again")
    assert line.differences == ("put back, and does not pass again",)


def test_every_check_is_looked_at_before_any_fault() -> None:
    assert [table.check for table in TABLES if not table.rows[0].standing] == []
    assert [table.check for table in TABLES if (table.rows[0].result, table.rows[0].reason) != table.rests] == []


def test_health_is_a_pass_or_a_cure_that_ended_in_one() -> None:
    health = next(row for row in ROWS if row.name == "firewall:none")
    assert judge(health, seen(bundle())).differences == ()
    assert judge(health, seen(bundle(result="pass", outcome=None, post_result=None))).differences == ()
    assert judge(health, seen(bundle(post_result="fail"))).differences != ()


def test_the_lab_holds_hosts_against_the_shipped_baseline() -> None:
    from compliance_agent.baseline import parse

    baseline = parse(install.baseline(TABLES).encode())
    assert set(baseline.entries) == {table.check for table in TABLES}
    assert [entry.interval_s for entry in baseline.entries.values()] == [table.interval_s for table in TABLES]
    assert baseline.entries["firewall"].parameters.allow_tcp == ("22", "443")


def test_what_is_published_for_a_host_is_offered_to_it_alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    published: list[tuple[Path, dict[str, str], str]] = []
    monkeypatch.setattr(
        network.Repository,
        "publish",
        lambda self, versions, kind="": published.append((self._directory, versions, kind)),
    )
    made = network.Network(tmp_path, tmp_path)
    assert made.source("one") != made.source("two")
    assert made.published("one", f"{PUBLISH}1.1 broken\napt-get update") == "apt-get update"
    assert made.published("two", "apt-get update") == "apt-get update"
    one, two = (made.repositories / name for name in ("one", "two"))
    assert published == [
        (one, {"lab-widget": "1.0"}, ""),
        (two, {"lab-widget": "1.0"}, ""),
        (one, {"lab-widget": "1.1"}, "broken"),
    ]


def test_a_root_file_system_is_kept_under_what_it_was_made_from(monkeypatch: pytest.MonkeyPatch) -> None:
    before = recipe.recipe_hash("bookworm")
    assert before != recipe.recipe_hash("trixie")
    monkeypatch.setattr(recipe, "PACKAGES", (*recipe.PACKAGES, "one-more"))
    assert recipe.recipe_hash("bookworm") != before


def test_signatures_carry_their_date_and_the_digest_of_what_is_in_them() -> None:
    made = signatures.made(5, signatures.EICAR)
    assert made.startswith(b"ClamAV-VDB:")
    assert made[512:514] == b"\x1f\x8b"


def test_the_second_time_source_is_off_by_what_it_is_told() -> None:
    request = bytes((0x23, 0, 6, 0xEC)) + bytes(36) + b"sentthen"
    reply = skewed.answer(request, 1_000_000_000.5)
    seconds, fraction = struct.unpack(">II", reply[40:48])
    assert (reply[0], reply[1], reply[24:32]) == (0x24, 3, b"sentthen")  # version 4, server; stratum; echoed
    assert (seconds - 2_208_988_800, fraction) == (1_000_000_000, 2**31)


def test_what_a_killed_run_left_is_removed_and_what_a_live_one_uses_is_not(tmp_path: Path) -> None:
    live, dead = tmp_path / f"{enclosure.PREFIX}{os.getpid()}", tmp_path / f"{enclosure.PREFIX}{2**22 + 1}"
    for made in (live, dead, tmp_path / "0123456789abcdef"):
        (made / "upper").mkdir(parents=True)
    enclosure._remove_leftovers(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(["0123456789abcdef", live.name])


def test_progress_is_plain_lines_without_a_terminal() -> None:
    out, times = io.StringIO(), iter((100.0, 130.0, 142.0, 160.0))
    progress = Progress(2, out, lambda: next(times))
    progress.begin("clinic-01", ROW.name)
    progress.end("clinic-01", judge(ROW, seen(bundle())))
    progress.end("clinic-02", judge(UNDONE, seen()))
    first, second = out.getvalue().splitlines()
    row = "firewall:flushed: fail no_firewall -> success"
    assert first == f"lab: 1/2 clinic-01 {row}; detected 1.5 s; healed 2.0 s; took 12 s; at 42 s"
    assert second.endswith("; at 60 s; DIFFERS: expected fail no_firewall reverted load_failed, found nothing")


def test_progress_on_a_terminal_says_what_is_under_way() -> None:
    out = Terminal()
    Progress(1, out).begin("clinic-01", "firewall:flushed")
    assert out.getvalue() == "\r\x1b[2Kclinic-01 firewall:flushed"


HOST = {"host": "clinic-01", "bundles": 3, "receipts": 3, "problems": [], "ok": True}
SERVED = {"step": "killed", "ok": True}
FOUGHT = {"undone": 60, "heals": 5, "alarms": 1, "ok": True}


def test_a_run_is_right_when_everything_in_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    result = document([judge(ROW, seen(bundle()))], FOUGHT, [SERVED], [HOST], 9.0)
    assert result["ok"]
    show(result)
    assert capsys.readouterr().out.splitlines()[-1] == (
        "1 rows, 0 differ; 0 passes where the probe could not look, 0 false healed; 9.0 s"
    )


@pytest.mark.parametrize(
    ("row", "observed", "fought", "served", "host"),
    [
        (ROW, seen(), FOUGHT, SERVED, HOST),
        (ROW, seen(bundle(), truth=False), FOUGHT, SERVED, HOST),
        (ROW, seen(bundle()), {**FOUGHT, "ok": False}, SERVED, HOST),
        (ROW, seen(bundle()), FOUGHT, {**SERVED, "ok": False}, HOST),
        (ROW, seen(bundle()), FOUGHT, SERVED, {**HOST, "ok": False}),
    ],
)
def test_a_run_with_one_thing_wrong_is_wrong(
    row: Row, observed: Observed, fought: dict[str, Any], served: dict[str, Any], host: dict[str, Any]
) -> None:
    assert not document([judge(row, observed)], fought, [served], [host], 9.0)["ok"]


def told(**changed: Any) -> dict[str, Any]:
    """A report of three lines, one of which differs."""
    rows = [("patching", []), ("backup", ["expected fail, found pass"]), ("time_sync", [])]
    return {
        "rows": [{"check": check, "differences": found} for check, found in rows],
        "false_healed": 0, "blind_passes": 0, "opponent": {"ok": True}, "evidence": [{"ok": True}],
        "service": [{"step": "killed", "ok": True}, {"step": "cannot_heal_alone", "ok": True}],
    } | changed  # fmt: skip


def test_only_checks_that_differ_are_done_again() -> None:
    assert different(told()) == (("backup",), False)
    assert different(told(rows=[{"check": "time_sync", "differences": ["late"]}])) == (
        ("time_sync", "vm:time_sync"),
        False,
    )
    assert different(told(rows=[], service=[{"step": "killed", "ok": False}])) == ((), True)
    assert different(told(service=None)) == (("backup",), False)


@pytest.mark.parametrize(
    "lie",
    [{"false_healed": 1}, {"blind_passes": 1}, {"opponent": {"ok": False}}, {"evidence": [{"ok": True}, {"ok": False}]},
     {"service": [{"step": "cannot_heal_alone", "ok": False}]}, {"rows": []}],
)  # fmt: skip
def test_a_lie_is_never_tried_until_it_is_right(lie: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"lie|no line"):
        different(told(**lie))


def test_each_wall_is_a_step_of_some_host() -> None:
    by_the_page = Stranger(cast(Host, None), cast(network.Network, None), "", Path(), Path())
    assert {name for name, _ in (*apart.steps(), *by_the_page.steps())} >= WALLS


def test_a_step_that_is_not_so_says_what_was_found_and_the_next_one_is_taken(
    capsys: pytest.CaptureFixture[str],
) -> None:
    def wrong() -> bool:
        raise NotSo("finish: done 2")

    taken = lines((("first", wrong), ("second", lambda: True)))
    assert taken == [{"step": "first", "ok": False, "found": "finish: done 2"}, {"step": "second", "ok": True}]
    show(document([judge(ROW, seen(bundle()))], FOUGHT, taken, [HOST], 9.0))
    assert "service: first: NOT AS IT MUST BE; finish: done 2\n" in capsys.readouterr().out
