"""Yesterday's backup is put back under a real server process: one alarm, then every record is there again, once, in its old place.

The agent is whole, over real HTTP; the commands are the ones of docs/retention.md.
"""

from __future__ import annotations

import json
import subprocess
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from compliance_agent.agent import ComplianceAgent
from compliance_agent.crypto import Ed25519Signer
from compliance_agent.evidence.logged import read_log_keys
from compliance_agent.evidence.verify import verify_paths
from compliance_agent.lab.clock import FakeClock
from compliance_agent.models import BundleKind
from tests.agent_scene import Detector, Healer
from tests.real.stage import (
    COMMAND,
    EnrolledHost,
    Server,
    arrived,
    command,
    end,
    enrolled,
    environment,
    rows,
    serving,
    succeed,
    troubles,
    until,
)

pytestmark = [pytest.mark.real, pytest.mark.anyio]
BEFORE, SINCE = 30, 50
TURNS = 40


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


def agent_of(host: EnrolledHost) -> ComplianceAgent:
    """The agent as it runs, but for the checks: nothing of this machine is looked at."""
    detector = Detector(FakeClock())
    return ComplianceAgent(host.config, drift_detector=detector, healing_engine=Healer(detector))


async def record(agent: ComplianceAgent, count: int) -> None:
    for number in range(count):
        await agent.recording.create(
            check="", outcome=None, kind=BundleKind.HEARTBEAT, reason="as_expected", counts={"pending": number}
        )


async def delivered(agent: ComplianceAgent, host: EnrolledHost, count: int) -> None:
    """Turns of delivery until the server has acknowledged, and shown a receipt for, so many records."""
    receipts = "SELECT count(*) FROM receipts JOIN evidence ON id = bundle AND state = 'uploaded'"
    for _ in range(TURNS):
        await agent.delivery.turn(5.0)
        if rows(host.state_dir / "agent.db", receipts) == [(count,)]:
            return
    raise AssertionError(f"{host.states()} after {TURNS} turns, expected {count} with receipts")


@contextmanager
def set_back(server: Server) -> Iterator[list[str]]:
    """A server that must not become ready; the codes that it gives instead."""
    codes: list[str] = []

    def answered() -> bool:
        try:
            urllib.request.urlopen(f"{server.url}/readyz", timeout=2).close()
        except urllib.error.HTTPError as error:
            codes.extend(reason["code"] for reason in json.loads(error.read())["reasons"])
            return True
        except OSError:
            return False
        raise AssertionError("it is ready on a database of yesterday")

    with server.data_dir.with_suffix(".log").open("ab") as output:
        process = subprocess.Popen(
            [*COMMAND, "server", "--data-dir", str(server.data_dir), "--port", str(server.port)],
            env=environment(), stdin=subprocess.DEVNULL, stdout=output, stderr=output,
        )  # fmt: skip
    try:
        until(answered, 30, "it says why it is not ready", every_s=0.05)
        yield codes
    finally:
        end(process)


async def test_yesterdays_backup(tmp_path: Path) -> None:
    with serving(tmp_path / "server") as server:
        host = enrolled(server, tmp_path / "host", "ws-01", "clinic-1")
        agent = agent_of(host)
        try:
            await record(agent, BEFORE)
            await delivered(agent, host, BEFORE)
            at = ("--data-dir", server.data_dir)
            made = json.loads(succeed("server", "backup", "--out", tmp_path / "backup", "--json", *at))
            assert [item["durable"] for item in made["logs"]] == [item["size"] for item in made["logs"]]
            await record(agent, SINCE)
            await delivered(agent, host, BEFORE + SINCE)
            place = server.data_dir / "log" / "clinic-1"
            published = next(place.glob("*/checkpoint")).read_bytes()
            before = arrived(server, host)

            server.stop()
            refused = command("server", "restore", "--from", tmp_path / "backup", *at)
            assert refused.returncode == 77
            restored = command("server", "restore", "--from", tmp_path / "backup", "--force", *at)
            assert (restored.returncode, "server readopt" in restored.stderr) == (0, True), restored.stderr
            assert arrived(server, host) == before[:BEFORE]
            with set_back(server) as codes:
                assert codes == ["log_restored"]
            assert next(place.glob("*/checkpoint")).read_bytes() == published
            succeed("server", "readopt", *at)
            server.start()

            await record(agent, 1)
            await delivered(agent, host, BEFORE + SINCE + 1)
        finally:
            await agent.close()
        assert (
            arrived(server, host) == host.recorded()
        )  # each once, in the order of the chain, what was there before included
        assert host.recorded()[: BEFORE + SINCE] == before
        assert len({epoch for epoch, _, _ in before}) == 1
        logged = "SELECT count(*), count(DISTINCT leaf_index) FROM log_entries WHERE seq IS NOT NULL"
        assert rows(server.database, logged) == [(BEFORE + SINCE + 1,) * 2]
        assert troubles(server)["forks"] == 0
        assert rows(server.database, "SELECT count(*) FROM gaps WHERE closed_at IS NULL") == [(0,)]
        assert server.data_dir.with_suffix(".log").read_text().count("log.stopped") == 1
        assert succeed("server", "fsck", *at)

        keys = read_log_keys(map(str, (server.data_dir / "keys").glob("*.vkey")))
        signer = Ed25519Signer(host.config.signing_key_file)
        report = verify_paths([host.config.evidence_dir], {str(signer.key_id): signer.public_bytes}, log_keys=keys)
        assert (report.problems, report.chains[0].receipted, report.found) == (
            [],
            BEFORE + SINCE + 1,
            BEFORE + SINCE + 1,
        )
        kinds = {json.loads(path.read_bytes())["kind"] for path in host.evidence_dir.glob("*/*/*/*/bundle.json")}
        assert kinds == {"heartbeat"}  # the host has nothing to accuse anybody of
