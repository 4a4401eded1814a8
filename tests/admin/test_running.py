"""The admin API of a real agent, asked with curl and with the product's own commands."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as read_open
from prometheus_client.parser import text_string_to_metric_families as read_plain

from compliance_agent.core.exposition import OPEN
from compliance_agent.installed import agent_digest
from tests.cli.command import configured, run
from tests.cli.test_json import documented, flat, problems
from tests.test_agent_process import agent, ended, wait_for

pytestmark = [
    pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed here"),
    pytest.mark.xdist_group("admin"),
]
BASELINE = 'version: "1"\nchecks:\n  time_sync: {mode: audit, interval_s: 3600}\n'


@dataclass
class Host:
    """A running agent."""

    root: Path
    config: Path
    process: subprocess.Popen[str]

    @property
    def socket(self) -> Path:
        return self.root / "state" / "agent.sock"

    def curl(self, page: str, *words: str) -> tuple[int, str]:
        """Status and body, as a person at the host sees them."""
        done = subprocess.run(
            ["curl", "-sS", "--unix-socket", self.socket, "-w", "\n%{http_code}", *words, f"http://agent{page}"],
            capture_output=True, text=True, timeout=30, check=True,
        )  # fmt: skip
        body, _, status = done.stdout.rpartition("\n")
        return int(status), body

    def get(self, page: str) -> dict[str, Any]:
        status, body = self.curl(page)
        assert status == 200, body
        return dict(json.loads(body))

    def post(self, page: str, document: Any = None) -> tuple[int, dict[str, Any]]:
        status, body = self.curl(page, "-X", "POST", "-d", json.dumps(document) if document is not None else "")
        return status, dict(json.loads(body))

    def figures(self, *, accept: str = "") -> dict[tuple[str, ...], float]:
        _, text = self.curl("/metrics", *(["-H", f"Accept: {accept}"] if accept else []))
        read = read_open if accept else read_plain
        return {
            (item.name, *sorted(item.labels.values())): item.value for family in read(text) for item in family.samples
        }


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Host]:
    root = tmp_path_factory.mktemp("host")
    path = configured(root, baseline=BASELINE, mcp_poll_interval_sec=3_600)
    with agent("compliance_agent", "run", "--config", str(path)) as process:
        wait_for(process, "cycle.completed")
        yield Host(root, path, process)
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=20)
    assert process.returncode == 0
    assert not (root / "state" / "agent.sock").exists()


def test_it_lives_and_does_its_work(host: Host) -> None:
    assert (host.get("/healthz")["status"], host.get("/healthz")["breaker"]) == ("ok", None)
    assert host.get("/healthz")["code_sha256"] == host.get("/status")["code_sha256"] == agent_digest()
    assert host.get("/readyz") == {"status": "ready", "reasons": []}
    status = host.get("/status")
    assert (status["source"], status["running"], status["host_id"]) == ("agent", True, "srv-1")
    live = status["live"]
    assert live["ready"] and live["loop"]["last_cycle"] and live["breaker"] is None
    assert [item["check"] for item in live["checks"]] == ["time_sync"]
    command = json.loads(run("status", "--json", "--config", host.config).out)
    assert (command["source"], command["live"]["ready"]) == ("agent", True)
    assert "said by the agent" in run("status", "--config", host.config).out
    assert problems(status) == [] and {key for key, _ in flat(status)} >= {
        key for key in documented(status["schema"]) if key.startswith("live.loop.")
    }
    why = json.loads(run("why", "time_sync", "--json", "--config", host.config).out)
    assert why["source"] == "agent" and why["latest"]["check"] == "time_sync"


def test_the_figures_are_read_by_prometheus_own_parsers(host: Host) -> None:
    plain, opened = host.figures(), host.figures(accept=OPEN)
    assert plain.keys() == opened.keys()
    assert plain["compliance_agent_ready",] == 1
    assert plain["compliance_agent_cycle_seconds_count",] >= 1
    assert plain["compliance_agent_queue_records",] >= 2
    assert plain["compliance_agent_evidence_generated_total",] >= 2
    assert sum(value for key, value in plain.items() if key[0] == "compliance_agent_verdicts_total") >= 1
    assert all(name.startswith(("compliance_agent_", "process_")) for name, *_ in plain)
    assert not any("srv-1" in label or "clinic-1" in label for key in plain for label in key), (
        "a host's name in a label"
    )


def test_a_pause_is_evidence_of_who_and_why_and_outlives_the_process(host: Host, tmp_path: Path) -> None:
    assert host.post("/pause", {"reason": "because"})[0] == 400
    assert host.post("/pause", {"reason": "testing", "seconds": 73 * 3_600})[0] == 400
    assert host.post("/pause", {"reason": "testing", "host": "x"})[0] == 400
    paused = json.loads(run("pause", "maintenance", "--hours", "2", "--json", "--config", host.config).out)
    assert (paused["uid"], paused["reason"]) == (os.geteuid(), "maintenance")
    bundle = next(host.root.rglob(f"{paused['bundle_id']}/bundle.json"))
    record = json.loads(bundle.read_text())
    assert (record["kind"], record["trigger"], record["reason"]) == ("order", "manual", "maintenance")
    assert record["counts"] == {"uid": os.geteuid(), "paused_s": 7_200}
    public = tmp_path / "host.pub.pem"
    public.write_text(run("config", "public-key", "--config", host.config).out)
    assert run("verify", host.root / "state" / "evidence", "--key", public).status == 0
    status = host.get("/status")
    assert problems(status) == [], "every key is documented"
    assert status["healing_paused"] and status["pause"]["until"] == paused["until"]
    assert host.figures()["compliance_agent_healing_paused", "person"] == 1

    elsewhere = tmp_path / "copy"  # as after a kill: what is on the disk is all that is left
    shutil.copytree(host.root, elsewhere, ignore=shutil.ignore_patterns("agent.sock"))
    left = json.loads(run("status", "--json", "--config", elsewhere / "agent.yaml").out)
    assert (left["source"], left["running"], left["pause"]["until"]) == ("records", False, paused["until"])

    resumed = json.loads(run("resume", "--json", "--config", host.config).out)
    assert resumed["paused"] is False and resumed["bundle_id"]
    assert host.get("/status")["pause"] is None
    assert host.post("/resume")[1]["bundle_id"] is None, "nothing to end is nothing to record"


def test_a_look_now(host: Host) -> None:
    before = host.figures()
    status, found = host.post("/check", {"checks": ["time_sync"]})
    assert (status, found["not_back"], len(found["checks"])) == (200, [], 1)
    ended = run("check", "--now", "--json", "--config", host.config)
    assert json.loads(ended.out)["source"] == "agent" and ended.status in {0, 1}
    after = host.figures()
    name = ("compliance_agent_verdicts_total", "time_sync", found["checks"][0]["result"])
    assert after[name] == before[name] + 2, "each look is counted once"
    assert host.post("/check", {"checks": ["no_such"]})[0] == 400
    unknown = run("check", "--now", "no_such", "--config", host.config)
    assert unknown.status == 2 and "its baseline has time_sync" in unknown.err
    assert host.post("/check", {"checks": [["time_sync"]]})[0] == 400


@pytest.mark.parametrize(
    "words", [["pause", "maintenance"], ["resume"], ["reload"], ["check", "--now"], ["loglevel", "INFO"]]
)
def test_where_nobody_answers_the_place_is_named(words: list[str], tmp_path: Path) -> None:
    """So that who gave another configuration sees which."""
    said = run(*words, "--config", configured(tmp_path, baseline=BASELINE))
    assert said.status == 69 and str(tmp_path / "state" / "agent.sock") in said.err


def test_a_pause_of_no_number_of_hours_is_refused(tmp_path: Path) -> None:
    said = run("pause", "maintenance", "--hours", "nan", "--config", configured(tmp_path, baseline=BASELINE))
    assert said.status == 2 and "expected a number" in said.err


def test_the_log_level_for_a_while(host: Host) -> None:
    assert host.post("/loglevel", {"level": "LOUD"})[0] == 400
    assert "DEBUG for 1 min, then INFO" in run("loglevel", "debug", "--minutes", "1", "--config", host.config).out
    live = host.get("/status")["live"]
    assert live["log_level"] == "DEBUG" and 0 < live["log_level_left_s"] <= 60
    assert host.post("/loglevel", {"level": "INFO", "seconds": 1})[0] == 200


def test_files_that_cannot_be_used_are_refused_and_others_taken(host: Host) -> None:
    former = host.config.read_text()
    host.config.write_text(former + "nonsense: 1\n")
    refused = run("reload", "--config", host.config)
    assert refused.status == 78
    status, problem = host.post("/reload")
    assert (status, problem["code"]) == (422, "bad_config")
    host.config.write_text(former)
    (host.root / "baseline.yaml").write_text(BASELINE + "  no_such: {}\n")
    refused = run("reload", "--config", host.config)
    assert refused.status == 78 and "compliance-agent config check says what is wrong" in refused.err
    (host.root / "baseline.yaml").write_text(BASELINE)
    host.config.write_text(former.replace("3600", "1800", 1) if "3600" in former else former)
    assert host.post("/reload") == (200, {"reloaded": True})
    wait_for(host.process, "config.reloaded")
    wait_for(host.process, "cycle.completed")
    assert host.get("/readyz")["status"] == "ready"
    assert host.figures()["compliance_agent_cycle_seconds_count",] >= 2, "counts go on in the next life"


def test_a_profile_on_demand(host: Host, tmp_path: Path) -> None:
    """As text, and as a page; one at a time."""
    config, text, page = host.config, tmp_path / "p.txt", tmp_path / "p.html"
    done = run("profile", "--seconds", "1", "--output", text, "--config", config)
    assert done.status == 0 and "asyncio/base_events.py" in text.read_text()
    assert run("profile", "--seconds", "1", "--output", page, "--config", config).status == 0
    assert "<html" in page.read_text()
    assert host.post("/profile", {"seconds": 61})[0] == 400
    assert host.post("/profile", {"format": "pdf"})[0] == 400


@pytest.mark.skipif(os.geteuid() != 0 or shutil.which("setpriv") is None, reason="only root can be somebody else")
def test_another_user_is_kept_out_by_the_kernel_and_a_member_may_only_read(host: Host) -> None:
    """The directories on the way are opened for this test; the socket itself stays as the agent made it."""
    for directory in (host.root, host.root / "state", *host.root.parents[:3]):
        if directory.is_dir() and directory != Path("/"):
            directory.chmod(directory.stat().st_mode | 0o011)
    code = (
        "import socket, sys; s = socket.socket(socket.AF_UNIX); s.connect(sys.argv[1]);"
        " s.send(sys.argv[2].encode()); print(s.recv(99))"
    )
    for groups, method, page, expected in [
        ("--clear-groups", "GET", "/healthz", "PermissionError"),
        ("--groups=0", "GET", "/healthz", "200 "),
        ("--groups=0", "POST", "/pause", "403 "),
    ]:
        asked = f"{method} {page} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n"
        words = [
            "setpriv",
            "--reuid=4321",
            "--regid=4321",
            groups,
            "/usr/bin/python3",
            "-c",
            code,
            str(host.socket),
            asked,
        ]
        done = subprocess.run(words, capture_output=True, text=True, timeout=20, check=False)
        assert expected in done.stdout + done.stderr, (groups, page, done.stdout, done.stderr)


def test_counts_and_a_pause_survive_a_kill(tmp_path: Path) -> None:
    """Statistics cost no sync of their own, and a process that is killed loses none."""
    path = configured(tmp_path, baseline=BASELINE, mcp_poll_interval_sec=3_600)
    with agent("compliance_agent", "run", "--config", str(path)) as process:
        wait_for(process, "cycle.completed")
        first = Host(tmp_path, path, process)
        assert first.post("/check", {"checks": ["time_sync"]})[0] == 200
        assert first.post("/pause", {"reason": "testing"})[0] == 200
        wait_until_saved(tmp_path)
        process.kill()
        process.wait(timeout=10)
    assert (tmp_path / "state" / "agent.sock").exists(), "left behind"
    with agent("compliance_agent", "run", "--config", str(path)) as process:
        wait_for(process, "cycle.completed")
        second = Host(tmp_path, path, process)
        figures = second.figures()
        verdicts = sum(value for key, value in figures.items() if key[0] == "compliance_agent_verdicts_total")
        assert verdicts == 3, "two looks before, one after"
        assert figures["compliance_agent_healing_paused", "person"] == 1
        status, _, _ = ended(process, signal.SIGTERM)
    assert status == 0


def wait_until_saved(root: Path) -> None:
    """The look by hand is saved with the turn that took it in."""
    import sqlite3
    import time

    for _ in range(200):
        with sqlite3.connect(f"file:{root}/state/agent.db?mode=ro", uri=True) as connection:
            if connection.execute("SELECT sum(value) FROM counts WHERE name = 'verdicts'").fetchone()[0] == 2:
                return
        time.sleep(0.02)  # another process writes, and tells nobody
    raise AssertionError("not saved")
