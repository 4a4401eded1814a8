"""The rules by nft's library: what the program says, never an answer that is in doubt, and never a second crash."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from compliance_agent.adapters.nft_library import NftLibrary
from compliance_agent.adapters.ruleset import KeptRuleset
from compliance_agent.adapters.subprocess_host import RealHost
from compliance_agent.errors import CannotTell
from compliance_agent.ports import Ran

RULES = b'{"nftables": []}\n'
MANY = 1 << 20
CRASHES = """
import os, sys
from pathlib import Path
from compliance_agent.adapters.nft_library import NftLibrary

class Library:
    def nft_ctx_new(self, flags):
        os._exit(77)

NftLibrary(Path(sys.argv[1]), Library).list_ruleset(99)
"""
SAME_AS_THE_PROGRAM = """
import asyncio, subprocess, sys
from pathlib import Path
from compliance_agent.adapters.nft_library import NftLibrary
from compliance_agent.adapters.subprocess_host import RealHost
from compliance_agent.core import nftables

async def main():
    programs = Path(sys.argv[1]).parent / "programs"
    programs.mkdir()
    (programs / "nft").write_text("#!/bin/sh\\nexit 1\\n", "ascii")  # what is asked says nothing
    (programs / "nft").chmod(0o755)
    host = RealHost(directories=(str(programs),), nft=NftLibrary(Path(sys.argv[1])))
    for rules in (nftables.generate(("22", "443"), ("546",)), "add table ip nat", "flush ruleset"):
        subprocess.run(("nft", "-f", "-"), input=rules.encode(), check=True)
        found = await host.ruleset()
        assert found.out == subprocess.run(nftables.LIST, check=True, capture_output=True).stdout, found
    print("same")

asyncio.run(main())
"""


class Library:
    """libnftables as far as it is used, with faults."""

    def __init__(self, **says: Any) -> None:
        self.says: dict[str, Any] = {
            "new": 1,
            "buffer_output": 0,
            "buffer_error": 0,
            "error": b"",
            "output": RULES,
            "status": 0,
        } | says
        self.freed = 0
        self.given_back = threading.Event()

    def nft_ctx_new(self, _: int) -> Any:
        return self.says["new"]

    def nft_ctx_buffer_output(self, _: int) -> Any:
        return self.says["buffer_output"]

    def nft_ctx_buffer_error(self, _: int) -> Any:
        return self.says["buffer_error"]

    def nft_ctx_output_set_flags(self, _: int, flags: int) -> None:
        assert flags == 0x14

    def nft_run_cmd_from_buffer(self, _: int, command: bytes) -> Any:
        assert command == b"list ruleset"
        return self.says["status"]

    def nft_ctx_get_output_buffer(self, _: int) -> Any:
        return self.says["output"]

    def nft_ctx_get_error_buffer(self, _: int) -> Any:
        return self.says["error"]

    def nft_ctx_free(self, _: int) -> None:
        self.freed += 1
        self.given_back.set()


def test_an_answer_is_the_librarys_own(tmp_path: Path) -> None:
    library = Library()
    nft = NftLibrary(tmp_path / "mark", lambda: library)
    assert [nft.list_ruleset(MANY) for _ in range(2)] == [Ran(0, RULES, b"")] * 2
    assert library.freed == 1  # its socket's end may have to be waited for, so not before its answer
    for _ in range(2):
        nft.tidy()
    assert library.freed == 2
    nft.close()
    nft.tidy()
    assert library.freed == 2


async def test_what_was_made_for_an_answer_is_given_back_after_it(tmp_path: Path) -> None:
    """The kernel may keep that waiting, and nobody waits with it; a question that comes meanwhile waits a moment."""
    library, program = Library(), tmp_path / "nft"
    program.write_text("#!/bin/sh\nexit 1\n", "ascii")
    program.chmod(0o755)
    may_end = threading.Event()

    class Slow(NftLibrary):
        def tidy(self) -> None:
            may_end.wait(10)
            super().tidy()

    host = RealHost(
        directories=(str(tmp_path),), ruleset=KeptRuleset(lambda: 5), nft=Slow(tmp_path / "mark", lambda: library)
    )
    assert (await host.ruleset()).out == RULES and library.freed == 0
    may_end.set()
    assert await asyncio.to_thread(library.given_back.wait, 10)


@pytest.mark.parametrize(
    "says",
    [
        {"new": 0},
        {"status": -1},
        {"error": b"warning"},
        {"output": None},
        {"output": b""},
        {"buffer_error": -1},
        {"buffer_output": -1},
    ],
    ids=str,
)
def test_whatever_is_in_doubt_is_asked_of_the_program(tmp_path: Path, says: dict[str, Any]) -> None:
    assert NftLibrary(tmp_path / "mark", lambda: Library(**says)).list_ruleset(MANY) is None


def test_a_longer_answer_than_allowed_is_the_programs_to_refuse(tmp_path: Path) -> None:
    nft = NftLibrary(tmp_path / "mark", Library)
    assert nft.list_ruleset(len(RULES)) is not None
    assert nft.list_ruleset(len(RULES) - 1) is None


def _missing() -> None:
    raise OSError("no such library")


def test_without_a_library_or_a_mark_the_program_is_asked(tmp_path: Path) -> None:
    assert NftLibrary(tmp_path / "mark", _missing).list_ruleset(MANY) is None
    assert NftLibrary(tmp_path / "none" / "mark", Library).list_ruleset(MANY) is None
    (tmp_path / "link").symlink_to(tmp_path / "mark")
    assert NftLibrary(tmp_path / "link", Library).list_ruleset(MANY) is None
    assert NftLibrary(tmp_path / "mark", Library, tmp_path / "no-boot").list_ruleset(MANY) is None


def test_a_library_that_ended_its_process_is_not_used_until_the_next_boot(tmp_path: Path) -> None:
    mark, boot = tmp_path / "mark", tmp_path / "boot"
    NftLibrary(mark, Library).close()
    assert NftLibrary(mark, Library).list_ruleset(MANY) is not None  # an orderly end is no crash
    done = subprocess.run((sys.executable, "-c", CRASHES, str(mark)), check=False, timeout=60)
    assert done.returncode == 77
    for _ in range(2):
        assert NftLibrary(mark, Library).list_ruleset(MANY) is None
    boot.write_text("00000000-0000-4000-8000-000000000000\n", "ascii")
    assert NftLibrary(mark, Library, boot).list_ruleset(MANY) is not None


def test_two_processes_do_not_share_a_mark(tmp_path: Path) -> None:
    first, second = (NftLibrary(tmp_path / "mark", Library) for _ in range(2))
    assert first.list_ruleset(MANY) is not None
    assert second.list_ruleset(MANY) is None
    first.close()
    assert first.list_ruleset(MANY) is None
    assert NftLibrary(tmp_path / "mark", Library).list_ruleset(MANY) is not None


class Hanging(NftLibrary):
    def list_ruleset(self, limit_bytes: int) -> Ran | None:
        raise CannotTell("timed_out", f"library:nft, of {limit_bytes}")


@pytest.mark.parametrize("known", [True, False])
async def test_a_library_that_hangs_or_may_have_no_socket_gives_way_to_the_program(tmp_path: Path, known: bool) -> None:
    def generation() -> int:
        if known:
            return 5
        raise PermissionError

    program = tmp_path / "nft"
    program.write_text("#!/bin/sh\necho from the program\n", "ascii")
    program.chmod(0o755)
    nft = Hanging(tmp_path / "mark") if known else NftLibrary(tmp_path / "mark", Library)
    host = RealHost(directories=(str(tmp_path),), ruleset=KeptRuleset(generation), nft=nft)
    assert (await host.ruleset()).out == b"from the program\n"


async def test_a_library_whose_program_is_gone_is_not_asked(tmp_path: Path) -> None:
    """It would go on to answer from memory, on a host where no rule can be put back."""
    nft = NftLibrary(tmp_path / "mark", Library)
    host = RealHost(directories=(str(tmp_path),), ruleset=KeptRuleset(lambda: 5), nft=nft)
    with pytest.raises(CannotTell) as caught:
        await host.ruleset()
    assert caught.value.reason == "tool_missing"
    program = tmp_path / "nft"
    program.write_text("#!/bin/sh\nexit 1\n", "ascii")
    program.chmod(0o755)
    assert (await host.ruleset()).out == RULES


@pytest.mark.skipif(os.geteuid() != 0 or shutil.which("nft") is None, reason="needs root's namespaces and nft")
def test_the_real_library_says_what_the_real_program_says(tmp_path: Path) -> None:
    argv = ("unshare", "--net", sys.executable, "-c", SAME_AS_THE_PROGRAM, str(tmp_path / "mark"))
    done = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=60)
    assert (done.returncode, done.stdout) == (0, "same\n"), done.stderr
