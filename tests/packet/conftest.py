"""Two scenes for all tests that only look."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.packet.scene import Made, built, make
from tests.packet.witnessed import witnessed


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    directory: Path = tmp_path_factory.mktemp("packet")
    make(directory / "server")
    result = built(directory / "server", directory / "packet.zip")
    return Made(directory / "server", result.path.read_bytes(), result)


@pytest.fixture(scope="session")
def seen(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """With a witness and a time-stamping authority."""
    return witnessed(tmp_path_factory.mktemp("seen"))
