"""Tests in this directory start real processes on this machine; nothing in them needs root."""

from __future__ import annotations

import re
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.real.stage import command


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@dataclass(frozen=True)
class Scene:
    """One demo that has ended, and the directory it left."""

    directory: Path
    seconds: float
    status: int
    out: str
    err: str

    def host(self, host_id: str) -> Path:
        return self.directory / "hosts" / host_id

    def drifts(self) -> list[tuple[str, str]]:
        """Host and fault of each line of the table, in its order."""
        return re.findall(r"^(\S+)  +(\w+)  +\w+  +healed, verified  ", self.out, re.MULTILINE)


def played(directory: Path) -> Scene:
    started = time.monotonic()
    done = command("demo", "--check", "--keep", directory, "--hosts", "2", "--seed", "7", timeout_s=120)
    return Scene(directory, time.monotonic() - started, done.returncode, done.stdout, done.stderr)


@pytest.fixture(scope="session")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> list[Scene]:
    """The same scene twice, at once."""
    root = tmp_path_factory.mktemp("demo")
    with ThreadPoolExecutor(2) as pool:
        return list(pool.map(played, (root / "first", root / "second")))


@pytest.fixture(scope="session")
def scene(scenes: list[Scene]) -> Scene:
    return scenes[0]
