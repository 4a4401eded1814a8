"""load_ruleset: one transaction, one table, exactly undone; on the simulated nft and, where it is installed, the real one."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from typing import Any

import pytest

from compliance_agent.core import nftables
from compliance_agent.core.nft_openings import openings
from compliance_agent.errors import StepFailed
from compliance_agent.lab.clinic import healthy_host
from compliance_agent.lab.clock import FakeClock
from compliance_agent.lab.host import Call, FakeHost
from compliance_agent.lab.programs.nft import Ruleset
from compliance_agent.ports import Ran
from compliance_agent.remedies import actions
from compliance_agent.remedies.spec import Args

LOAD = actions()["load_ruleset"]
ARGS: Args = {"allow_tcp": "22,6000-6010", "allow_udp": "546"}
OTHER = """table ip other {
	chain forward {
		type filter hook forward priority filter; policy drop;
		iifname "br0" accept
	}
}
"""
BEFORE = {
    "nothing": "flush ruleset\n",
    "another program's table": f"flush ruleset\n{OTHER}",
    "our table, with a hole": "flush ruleset\n" + OTHER + nftables.generate(("22",), ())
    + 'add rule inet compliance input ip saddr { 203.0.113.9, 203.0.113.10 } tcp dport 23 counter accept comment "hole"\n',
}  # fmt: skip


def digest(raw: bytes) -> str:
    return nftables.read(raw).sha256


async def listing(host: FakeHost) -> bytes:
    return (await host.run(("nft", "-s", "-j", "list", "ruleset"))).out


def simulated(before: str) -> FakeHost:
    host = healthy_host()
    host.part(Ruleset).load(before)
    return host


async def loads_and_undoes(host: FakeHost) -> None:
    before = digest(await listing(host))
    captured = json.loads(json.dumps(await LOAD.capture(host, ARGS)))
    for _ in range(2):
        await LOAD.apply(host, ARGS)
        ruleset = nftables.read(await listing(host))
        assert openings(ruleset).reachable["tcp"] == nftables.port_mask(("22", "6000-6010"))
        assert openings(ruleset).reachable["udp"] == nftables.port_mask(("546",))
        assert openings(ruleset).replies
    for _ in range(2):
        await LOAD.undo(host, ARGS, captured)
        assert digest(await listing(host)) == before
        assert LOAD.restored(captured, json.loads(json.dumps(await LOAD.capture(host, ARGS))))


@pytest.mark.parametrize("name", BEFORE)
async def test_loads_and_undoes_exactly(name: str) -> None:
    await loads_and_undoes(simulated(BEFORE[name]))


async def test_other_tables_are_not_touched() -> None:
    host = simulated(BEFORE["another program's table"])
    await LOAD.apply(host, ARGS)
    assert {table["name"] for table in host.part(Ruleset).select("table")} == {"other", "compliance"}


async def test_a_ruleset_that_is_refused_changes_nothing() -> None:
    host = simulated(BEFORE["our table, with a hole"])
    before, real = digest(await listing(host)), host.installed["nft"]
    host.installed["nft"] = lambda call: Ran(1, b"", b"Error: syntax error") if "-f" in call.argv else real(call)
    with pytest.raises(StepFailed) as caught:
        await LOAD.apply(host, ARGS)
    assert (caught.value.code, caught.value.exit_status_of_step) == ("ruleset_refused", 1)
    assert digest(await listing(host)) == before
    assert set(host.changed) <= {"program:nft"}


async def test_a_ruleset_that_the_kernel_did_not_take_is_told_from_one_that_is_wrong() -> None:
    host = simulated(BEFORE["our table, with a hole"])
    before, real, asked = digest(await listing(host)), host.installed["nft"], list[tuple[str, ...]]()

    def no_room(call: Call) -> Ran:
        if "-f" in call.argv:
            asked.append(call.argv)
        return Ran(1, b"", b"Error: Could not process rule") if call.argv == ("nft", "-f", "-") else real(call)

    host.installed["nft"] = no_room  # our table is there, so nothing is tried twice
    with pytest.raises(StepFailed) as caught:
        await LOAD.apply(host, ARGS)
    assert (caught.value.code, asked) == ("load_failed", [("nft", "-f", "-"), ("nft", "-c", "-f", "-")])
    assert digest(await listing(host)) == before


async def test_a_table_that_is_gone_is_made_and_takes_none_away() -> None:
    """Also where somebody made it meanwhile: then it is put in its place as ever."""
    host = simulated(BEFORE["another program's table"])
    real, texts = host.installed["nft"], list[bytes]()

    def told(call: Call) -> Ran:
        if "-f" in call.argv:
            texts.append(call.stdin)
            if len(texts) == 2:
                host.part(Ruleset).load("add table inet compliance")
        return real(call)

    host.installed["nft"] = told
    await LOAD.apply(host, ARGS)
    assert [b"delete table" in text for text in texts] == [False]
    await LOAD.undo(host, ARGS, {"table": None})
    texts[:] = texts[:1]
    await LOAD.apply(host, ARGS)
    assert [b"delete table" in text for text in texts] == [False, False, True]
    assert openings(nftables.read(await listing(host))).reachable["udp"] == nftables.port_mask(("546",))


@pytest.mark.parametrize("ports", ["22; drop", "0", "ssh", "22,,23", "1-99999"])
async def test_ports_that_are_none_are_refused_before_anything_runs(ports: str) -> None:
    host = simulated(BEFORE["nothing"])
    with pytest.raises(StepFailed) as caught:
        await LOAD.apply(host, {"allow_tcp": ports, "allow_udp": ""})
    assert (caught.value.code, host.changed) == ("bad_arguments", [])


# -- the real one, in a network namespace of its own


NAMESPACE = ("unshare", "--user", "--map-root-user", "--net")


def _real_nft() -> str | None:
    nft = shutil.which("nft", path="/usr/sbin:/sbin:/usr/bin")
    if nft is None or shutil.which("unshare") is None or shutil.which("nsenter") is None:
        return None
    tried = subprocess.run([*NAMESPACE, nft, "list", "ruleset"], capture_output=True, check=False)
    return nft if tried.returncode == 0 else None


@pytest.fixture
def real_host() -> Iterator[FakeHost]:
    """A fake host whose nft is the machine's own, in a namespace that goes with the test."""
    nft = _real_nft()
    if nft is None:
        pytest.skip("no nft that may be used here")
    with subprocess.Popen(
        [*NAMESPACE, "sh", "-c", "echo; cat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as holder:
        assert holder.stdin is not None and holder.stdout is not None
        holder.stdout.readline()
        enter = ("nsenter", "-t", str(holder.pid), "-U", "-n", "--preserve-credentials", nft)

        def program(call: Call) -> Ran:
            return _run([*enter, *call.argv[1:]], call.stdin)

        host = FakeHost(FakeClock())
        host.installed["nft"] = program
        yield host
        holder.stdin.close()


def _run(argv: Sequence[str], stdin: bytes) -> Ran:
    done = subprocess.run(list(argv), input=stdin, capture_output=True, check=False)
    return Ran(done.returncode, done.stdout, done.stderr)


@pytest.mark.real
@pytest.mark.parametrize("name", BEFORE)
async def test_the_real_nft_loads_and_undoes_exactly(name: str, real_host: FakeHost) -> None:
    ran: Any = await real_host.change(("nft", "-f", "-"), stdin=BEFORE[name].encode())
    assert ran.exit_status == 0, ran.err
    await loads_and_undoes(real_host)
