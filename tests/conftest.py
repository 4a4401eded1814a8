"""For the whole suite: tests that share something costly stay on one worker, and sources are parsed undisturbed.

pytest-xdist 3.8 does not see its own `xdist_group` mark under pytest 9.2 (its issue 1386) and spreads such tests, so that every
worker starts the server and the browser again. Until that is mended, a file that uses the mark stays together here, and with the
files of the same group.
"""

from __future__ import annotations

import functools
import gc
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import structlog
from argon2 import PasswordHasher

ROOT = Path(__file__).resolve().parent.parent
PARSING = {"test_codes.py", "test_docs.py", "test_golden.py", "test_layers.py", "test_logs.py"}
ADVISED: tuple[Any, ...] = PasswordHasher.__init__.__defaults__ or ()  # what a server hashes passwords with
GROUP = re.compile(r"xdist_group\(\"([\w-]+)\"\)")
BROWSES = "pytestmark = MARKS"  # tests/web/browsing.py: a server and a browser for each such file
SHARED = 'scope="module"'


@pytest.fixture(autouse=True)
def parses_undisturbed(request: pytest.FixtureRequest) -> Iterator[None]:
    """No collection while sources are parsed: one that ends a greenlet which another test left confuses CPython 3.11's parser
    (`SystemError: AST constructor recursion depth mismatch`, its issue 106905)."""
    if request.path.name not in PARSING:
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


@pytest.fixture(autouse=True)
def logs_as_before() -> Iterator[None]:
    """A command that ran in this process has set where events go, and how loud; the next test hears its own."""
    before = structlog.get_config()
    yield
    structlog.configure(**before)


@pytest.fixture(autouse=True, scope="session")
def passwords_are_hashed_in_no_time() -> Iterator[None]:
    """A password costs a quarter of a second of a core, on purpose, and thousands are hashed here. What it costs in earnest is a
    test's of its own, tests/server/test_users.py."""
    least = (1, 8, 1)  # rounds, KiB, lanes
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(PasswordHasher.__init__, "__defaults__", (*least, *ADVISED[len(least) :]))
        yield


@functools.cache
def kept_together(file: str) -> str:
    """What a file's tests are kept together by: the group it names, or the file where they share a fixture; else nothing.

    All that need a browser would be too long for one worker, so each file of them is a group.
    """
    text = (ROOT / file).read_text("utf-8")
    groups = set(GROUP.findall(text)) - {"browser"}
    return next(iter(groups), file if BROWSES in text or SHARED in text else "")


def pytest_configure() -> None:
    """Reading 12,000 tests makes a million objects that all stay: collections would go over them again and again, a third of the
    time that it takes."""
    gc.disable()


def pytest_collection_finish() -> None:
    gc.collect()
    gc.freeze()
    gc.enable()


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    if config.getvalue("dist") != "loadgroup":
        return None
    from xdist.scheduler import LoadGroupScheduling  # type: ignore[import-untyped]  # it has no types

    scheduler = LoadGroupScheduling(config, log)
    usual = scheduler._split_scope

    def split(nodeid: str) -> str:
        file = nodeid.partition("::")[0]
        return kept_together(file) or str(usual(nodeid))

    scheduler._split_scope = split
    return scheduler
