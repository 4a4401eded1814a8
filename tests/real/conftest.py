"""Tests in this directory start real processes on this machine; nothing in them needs root."""

from __future__ import annotations

import pytest


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"
