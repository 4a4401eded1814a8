"""One scene for each test."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.adopt.scene import Scene


@pytest.fixture
def scene(tmp_path: Path) -> Scene:
    (tmp_path / "root").mkdir(mode=0o755)
    return Scene(tmp_path / "root")
