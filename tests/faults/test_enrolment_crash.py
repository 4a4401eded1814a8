"""E7 of RELIABILITY 3.3: killed (SIGKILL) anywhere in an enrolment and tried again, there is one host, and it works."""

from __future__ import annotations

import asyncio
import os
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import httpx2
import pytest

from compliance_agent.crypto import Ed25519Signer
from compliance_agent.evidence.canonical import canonical
from compliance_agent.server.records import Host
from tests.faults.driver import Call, Ran, calls, inject, run, sample
from tests.web.serving import Served, on_loopback

POINTS = int(os.environ.get("CRASH_POINTS", "30")) // 2
NETWORK = "sendto,recvfrom,connect"


@dataclass
class Bench:
    """A real server, and a host that enrols with it, again and again as another one."""

    root: Path
    url: str
    served: Served
    number: int = 0

    @property
    def state(self) -> Path:
        return self.root / "state"

    @property
    def log(self) -> Path:
        return self.root / "strace.log"

    def fresh(self, program: tuple[str, ...] = ("-m", "compliance_agent")) -> list[str]:
        """The command of a host that was never here, with a token of its own site."""
        shutil.rmtree(self.state, ignore_errors=True)
        self.number += 1
        desk, site = self.served.services.enrolment, f"clinic-{self.number}"
        made = asyncio.run(desk.new_token(site, "msp", timedelta(days=1), ca_sha256=None, actor="test"))
        token = self.root / "token"
        token.write_text(made[0])
        token.chmod(0o600)
        words = ["enrol", "--server", self.url, "--token-file", str(token), "--host-id", "ws-01"]
        return [sys.executable, *program, *words, "--state-dir", str(self.state)]

    def points(self) -> list[Call]:
        """Every write of the state, and every message to or from the server, of one whole enrolment."""
        ran, writes = calls(self.fresh(), self.log, self.state)
        assert ran.status == 0, ran.errors
        run(["strace", "-f", "-qq", "-o", str(self.log), "-e", f"trace={NETWORK}", *self.fresh()])
        lines = self.log.read_text().splitlines()
        seen = [name for line in lines for name in NETWORK.split(",") if f" {name}(" in line]
        return [*writes, *(Call(name, seen[: at + 1].count(name)) for at, name in enumerate(seen))]

    def hosts(self) -> list[Host]:
        """What the server has made of the present one."""
        return asyncio.run(self.served.services.store.for_sites({f"clinic-{self.number}"}).hosts())

    def judge(self, argv: list[str], ran: Ran) -> list[str]:
        """Try again, as whoever enrols does; what is wrong then."""
        again = run(argv)
        if again.status not in {0, 77}:  # 77: it was done, and only the telling was cut off
            return [f"does not go on: exit {again.status}, {again.errors[-300:]}"]
        hosts = self.hosts()
        if [host.host_id for host in hosts] != ["ws-01"]:
            return [f"{len(hosts)} hosts"]
        signer = Ed25519Signer(self.state / "keys" / "signing-key.pem")
        wrong = [] if signer.key_id == hosts[0].key_id else ["host and server hold different keys"]
        api_key = (self.state / "keys" / "api-key").read_text().strip()
        body = {
            "protocol": 1, "key_id": signer.key_id, "head": {"epoch": 0, "seq": 0, "digest": "0" * 64}, "pending": 0,
            "agent_version": "0.1.0", "baseline": {"version": "", "sha256": ""}, "checks": {},
        }  # fmt: skip
        headers = {"authorization": f"Bearer {api_key}"}
        reply = httpx2.post(f"{self.url}/api/v1/checkin", content=canonical(body), headers=headers)
        return wrong + ([] if reply.status_code == 200 else [f"check-in: {reply.status_code} {reply.text}"])


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    root = tmp_path_factory.mktemp("enrolment")
    with on_loopback(root, seeded=False) as (url, served):
        yield Bench(root, url, served)


def test_killed_anywhere_in_an_enrolment(bench: Bench) -> None:
    found, killed, enrolled = sample(bench.points(), POINTS), 0, set()
    for call in found:
        ran = inject(argv := bench.fresh(), call, "signal=KILL", bench.log)
        killed += ran.status == 137
        enrolled.add(bool(bench.hosts()))
        assert bench.judge(argv, ran) == [], (call, ran.errors[-300:])
    assert killed >= 0.9 * len(found), killed
    assert enrolled == {True, False}, "some before the server had made the host, some after"


MUTANT = """
from compliance_agent import enrolment
save = enrolment.save
def api_key_first(enrolled, api_key_file, server_key_file, log_key_file=None):
    from compliance_agent.adapters.durable import make_directory, write_file
    make_directory(api_key_file.parent)
    write_file(api_key_file, b"cak1.lost\\n", 0o600)
    save(enrolled, api_key_file, server_key_file, log_key_file)
from compliance_agent.cli import enrol, main
enrol.save = api_key_first
main()
"""


def test_an_api_key_that_is_written_before_the_rest_would_be_found(bench: Bench) -> None:
    """The planted fault: what makes the host enrolled is there first, and it is cut off before the right one is."""
    ran, writes = calls(bench.fresh(("-c", MUTANT)), bench.log, bench.state)
    assert ran.status == 0, ran.errors
    renames = [call for call in writes if call.name == "rename"]
    argv = bench.fresh(("-c", MUTANT))
    ran = inject(argv, renames[-2], "signal=KILL", bench.log)
    assert ran.status == 137
    assert bench.judge([argv[0], "-m", "compliance_agent", *argv[3:]], ran) != []
