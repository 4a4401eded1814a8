"""A command that is forked from a process with the libraries at hand ends, says and is cut off as one of its own does."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli.command import WARM, environment


@pytest.mark.parametrize("words", [("server", "user", "list"), ("server", "user", "--help"), ("server", "nothing")])
def test_it_is_what_a_process_of_its_own_says(words: tuple[str, ...], tmp_path: Path) -> None:
    asked = [*words, *(("--data-dir", str(tmp_path / "none")) if words[-1] == "list" else ())]
    alone = subprocess.run(
        [sys.executable, "-m", "compliance_agent", *asked],
        env=environment(),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        check=False,
    )
    done = WARM.run(asked, environment(), 30)
    assert done is not None
    assert (done.returncode, done.stdout, done.stderr) == (alone.returncode, alone.stdout, alone.stderr)
    assert done.stdout + done.stderr


def test_what_takes_too_long_is_killed_and_the_next_one_answered() -> None:
    with pytest.raises(subprocess.TimeoutExpired):
        WARM.run(["server", "--help"], environment(), 0)
    done = WARM.run(["--version"], environment(), 30)
    assert done is not None and done.returncode == 0


def test_the_process_that_waits_is_nobodys_child() -> None:
    """Others in this process hold themselves to leaving none, and wait for any."""
    assert WARM.run(["--version"], environment(), 30) is not None
    own = [int(pid) for task in Path("/proc/self/task").iterdir() for pid in (task / "children").read_text().split()]
    assert not [pid for pid in own if b"tests.cli.warm" in Path(f"/proc/{pid}/cmdline").read_bytes()]
