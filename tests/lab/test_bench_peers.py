"""What `BENCH=agent` claims beside its peers: ratios of one run, and no verdict where nothing was measured."""

from __future__ import annotations

import json
from typing import Any

import pytest
from click.testing import CliRunner

from compliance_agent.errors import Unavailable
from compliance_agent.lab import bench, bench_peers


def seen(**more: Any) -> dict[str, Any]:
    return {
        "monit_w1_s": 0.008, "cf_agent_w1_s": 0.1, "cycle_s": 0.006, "cycle_wall_s": 0.01,
        "unchanged_s": 0.002, "unchanged_wall_s": 0.004,
        "verdicts": {"firewall": "pass"},
        "units_s": 0.001, "systemctl_s": 0.1, "ruleset_s": 0.001,
        "ruleset_same_s": 0.000009, "nft_s": 0.005, "upload_s": 0.0001, "httpx_s": 0.0005,
        "python_s": 0.01, "import_s": 0.05, "help_s": 0.031, "peer_import_s": 0.2,
        "idle": {}, "healed_s": {}, "repaired_s": {"agent": 0.01, "programs": 0.004, "cf-agent": 0.1},
        **more,
    }  # fmt: skip


def verdicts(found: dict[str, Any]) -> dict[str, bool | None]:
    return {name.partition(":")[0]: holds for name, _, _, _, holds in bench_peers.rows(found)}


def test_a_goal_is_held_up_to_its_ratio_and_missed_beyond() -> None:
    assert verdicts(seen()) == {
        **dict.fromkeys([name.partition(":")[0] for name, *_, holds in bench_peers.rows(seen()) if holds is None], None),
        "P1": True, "P2": False, "P4": False, "P5": True, "P6": True, "P11": True, "P12": False,
    }  # fmt: skip
    assert verdicts(seen(cycle_s=0.0061))["P1"] is True  # the last of the two ratios to P1, to cf-agent's
    assert verdicts(seen(cycle_s=0.0067))["P1"] is False
    assert verdicts(seen(units_s=0.0003))["P4"] is True
    assert verdicts(seen(repaired_s={"agent": 0.01, "programs": 0.006, "cf-agent": 0.1}))["P6"] is False


def test_work_that_was_not_found_right_is_no_measure() -> None:
    with pytest.raises(Unavailable, match="firewall"):
        bench_peers.rows(seen(verdicts={"firewall": "unknown", "services": "pass"}))


def idle(seconds: float, ours: float, **more: Any) -> dict[str, Any]:
    one = {"run": {"pss": 40e6, "cpu_s_a_minute": ours}, "monit": {"pss": 2e6, "cpu_s_a_minute": 0.007}}
    return {"idle": {**one, "checks": 15, "seconds": seconds, **more}}


def test_idle_processes_are_held_against_monit_only_after_two_cycles() -> None:
    assert verdicts(seen(**idle(130, 0.0069)))["P10"] is True
    assert verdicts(seen(**idle(130, 0.0071)))["P10"] is False
    assert "P10" not in verdicts(seen(**idle(20, 0.0)))
    assert [name for name, *_, holds in bench_peers.rows(seen(**idle(130, 0.0))) if "P8" in name and holds is False]


def test_a_peer_that_did_not_live_decides_nothing() -> None:
    found = idle(130, 0.0)
    del found["idle"]["monit"]
    assert "P10" not in verdicts(seen(**found))


def test_figures_as_one_json_object(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(bench.BENCHES, "agent", lambda: [bench.Figure(*row) for row in bench_peers.rows(seen())])
    done = CliRunner().invoke(bench.main, ["agent", "--json"])
    figures = json.loads(done.output)["agent"]
    assert {"name": "P1: ours / monit's W1", "value": 0.75, "unit": "x", "limit": "0.75 x", "holds": True} in figures


def test_cures_are_held_to_the_time_that_19_of_20_take() -> None:
    quick, slow = [0.02] * 19, [0.02] * 18
    assert verdicts(seen(healed_s={"file": [*quick, 30.0]}))["P7"] is True
    assert verdicts(seen(healed_s={"file": [*slow, 30.0, 30.0]}))["P7"] is False
    assert verdicts(seen(healed_s={"service": [0.1]}))["P7"] is True
    assert verdicts(seen(healed_s={"ruleset": [0.1]}))["P7"] is False
    assert verdicts(seen(healed_s={"silent service": [1.1]}))["P7"] is None
    assert [
        value for name, value, *_ in bench_peers.rows(seen(healed_s={"file": [0.001, 0.002, 0.003]})) if "p50" in name
    ] == [2.0]


def test_a_host_of_layers_knows_the_packages_of_all_of_them() -> None:
    below = "Package: a\nStatus: install ok installed\nArchitecture: all\n\nPackage: b\nArchitecture: all\n\n"
    peers = (
        "Package: a\nStatus: install ok triggers-pending\nArchitecture: all\n\nPackage: monit\nArchitecture: amd64\n\n"
    )
    agent = "Package: b\nArchitecture: all\n\nPackage: agent\nArchitecture: amd64\n\n"
    book = bench_peers.one_book([below, peers, agent])
    assert [line for line in book.splitlines() if line.startswith("Package")] == [
        "Package: a", "Package: b", "Package: monit", "Package: agent",
    ]  # fmt: skip
    assert "triggers-pending" in book
    assert "ok installed" not in book
