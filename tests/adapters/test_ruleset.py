"""The firewall's rules that are not listed again: never after a transaction, never what may change without one, never for long."""

from __future__ import annotations

import os
import shutil
import struct
import subprocess
import sys

import pytest

from compliance_agent.adapters.ruleset import FULL_S, KeptRuleset, generation_of
from compliance_agent.adapters.subprocess_host import RealHost
from compliance_agent.ports import Ran

RULES = Ran(0, b'{"nftables": []}', b"")
IN_A_NAMESPACE = """
import asyncio, subprocess
from compliance_agent.adapters.subprocess_host import RealHost

async def main():
    host, ran = RealHost(), []
    run = host.run
    async def counted(argv, **how):
        ran.append(argv)
        return await run(argv, **how)
    host.run = counted
    for rules in ("add table inet a", "add chain inet a b", "add rule inet a b tcp dport 23 accept", "flush ruleset"):
        before = (await host.ruleset()).out
        assert (await host.ruleset()).out == before
        subprocess.run(("nft", rules), check=True)
        after = (await host.ruleset()).out
        assert after != before and after == (await run(("nft", "-s", "-j", "list", "ruleset"))).out
    print(len(ran))

asyncio.run(main())
"""


class Kernel:
    """A generation and a clock of the test's choosing."""

    def __init__(self) -> None:
        self.generation, self.boot_s, self.refuses = 7, 100.0, False
        self.kept = KeptRuleset(self._asked, lambda: self.boot_s)

    def _asked(self) -> int:
        if self.refuses:
            raise PermissionError
        return self.generation

    def look(self, ran: Ran = RULES, *, meanwhile: int = 0) -> bool:
        """Whether the rules had to be listed; `meanwhile` transactions came while they were."""
        before = self.kept.generation()
        if self.kept.same(before) is not None:
            return False
        began_s = self.kept.now_s()
        self.generation += meanwhile
        self.kept.keep(before, began_s, ran)
        return True


def test_unchanged_rules_are_listed_once_and_changed_ones_again() -> None:
    kernel = Kernel()
    assert [kernel.look() for _ in range(3)] == [True, False, False]
    kernel.generation += 1
    assert [kernel.look() for _ in range(2)] == [True, False]


def test_a_listing_during_which_there_was_a_transaction_is_not_kept() -> None:
    kernel = Kernel()
    assert kernel.look(meanwhile=1)
    assert kernel.look()


@pytest.mark.parametrize(("age_s", "listed"), [(FULL_S - 1, False), (FULL_S, True), (-1.0, True)])
def test_every_rule_is_listed_at_least_every_15_minutes(age_s: float, listed: bool) -> None:
    kernel = Kernel()
    kernel.look()
    kernel.boot_s += age_s
    assert FULL_S == 15 * 60
    assert kernel.look() is listed


@pytest.mark.parametrize("word", ["dynamic", "timeout", "iif", "oif", "iifgroup", "oifgroup"])
def test_what_changes_without_a_transaction_is_not_kept(word: str) -> None:
    kernel = Kernel()
    assert [kernel.look(Ran(0, f'{{"key": "{word}"}}'.encode(), b"")) for _ in range(2)] == [True, True]


@pytest.mark.parametrize("ran", [Ran(1, b"", b""), Ran(0, b"", b"warning")])
def test_a_listing_that_failed_is_not_kept(ran: Ran) -> None:
    kernel = Kernel()
    assert [kernel.look(ran) for _ in range(2)] == [True, True]


def test_where_the_kernel_does_not_say_rules_are_listed_each_time() -> None:
    kernel = Kernel()
    kernel.look()
    kernel.refuses = True
    assert [kernel.look() for _ in range(2)] == [True, True]
    kernel.refuses = False
    assert [kernel.look() for _ in range(2)] == [True, False]


def answer(kind: int, rest: bytes, serial: int = 5) -> bytes:
    return struct.pack("=IHHII", 16 + len(rest), kind, 0, serial, 0) + rest


def test_the_kernels_answer_is_read_and_nothing_else_is() -> None:
    good = answer(0xA0F, bytes(4) + struct.pack("=HH", 8, 2) + bytes(4) + struct.pack("=HH", 8, 1) + b"\0\0\1\2")
    assert generation_of(good, 5) == 258
    with pytest.raises(PermissionError):
        generation_of(answer(2, struct.pack("=i", -1)), 5)
    for bad in (good[:30], good[:10], answer(0xA0F, bytes(4)), answer(0xA10, good[16:]), answer(0xA0F, good[16:], 6)):
        with pytest.raises((ValueError, struct.error)):
            generation_of(bad, 5)


@pytest.mark.skipif(os.geteuid() != 0 or shutil.which("nft") is None, reason="needs root's namespaces and nft")
def test_each_real_transaction_has_the_real_rules_listed_again() -> None:
    argv = ("unshare", "--net", sys.executable, "-c", IN_A_NAMESPACE)
    done = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=60)
    assert (done.returncode, done.stdout) == (0, "5\n"), done.stderr


async def test_whoever_asks_has_the_rules_listed_anew() -> None:
    kernel = Kernel()
    host = RealHost(directories=(), ruleset=kernel.kept)
    kernel.look()
    assert await host.ruleset() is RULES
    host.read_anew()
    assert kernel.look()
