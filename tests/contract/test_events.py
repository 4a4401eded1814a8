"""One contract for both sides of the Events port: this machine's inotify in a directory of the test's own, and the clinic's.

What only a real kernel or bus does (queues that overflow, watches that run out, netlink, mounts, signals) is in
test_machine_events.py.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from compliance_agent.adapters.events import MachineEvents
from compliance_agent.lab.clock import FakeClock
from compliance_agent.lab.host import FakeHost, Node
from compliance_agent.ports import Events, Source

pytestmark = pytest.mark.anyio
LONG_S, QUIET_S = 5.0, 0.05


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


class Place:
    """A directory of either kind, and what may happen in it."""

    def __init__(self, root: str, host: FakeHost | None) -> None:
        self.root, self.host = root, host
        self.events: Events = host.events() if host is not None else MachineEvents()

    def path(self, name: str) -> str:
        return f"{self.root}/{name}"

    def source(self, name: str) -> Source:
        return Source("path", self.path(name))

    def write(self, name: str, text: str) -> None:
        if self.host is not None:
            self.host.put(self.path(name), text)
            self.host.notice()
        else:
            Path(self.path(name)).parent.mkdir(parents=True, exist_ok=True)
            Path(self.path(name)).write_text(text)

    def replace(self, name: str, text: str) -> None:
        """As an editor does: another file, renamed over it."""
        if self.host is not None:
            self.write(name, text)
            return
        Path(self.path(f"{name}.new")).write_text(text)
        Path(self.path(f"{name}.new")).replace(self.path(name))

    def remove(self, name: str) -> None:
        if self.host is not None:
            self.host.delete(self.path(name))
            self.host.notice()
        else:
            Path(self.path(name)).unlink()

    def chmod(self, name: str, mode: int) -> None:
        if self.host is not None:
            self.host.files[self.path(name)].mode = mode
            self.host.notice()
        else:
            Path(self.path(name)).chmod(mode)

    def link(self, name: str, target: str) -> None:
        if self.host is not None:
            self.host.place(self.path(name), Node("symlink", target=target))
            self.host.notice()
        else:
            Path(self.path(name)).unlink(missing_ok=True)
            Path(self.path(name)).symlink_to(target)

    async def told(self, name: str) -> bool:
        """Whether this one is told of, soon."""
        try:
            async with asyncio.timeout(LONG_S):
                while self.source(name) not in await self.events.told():
                    pass
        except TimeoutError:
            return False
        return True

    async def quiet(self) -> bool:
        """Whether nothing is told of for a moment; what was told is forgotten."""
        try:
            async with asyncio.timeout(QUIET_S):
                await self.events.told()
        except TimeoutError:
            return True
        return False

    async def calm(self) -> None:
        """Until nothing more comes of what was done before."""
        while not await self.quiet():
            pass
        if self.host is None:
            await asyncio.sleep(0.3)  # a path that was followed anew is told of once more
            while not await self.quiet():
                pass


@pytest.fixture(params=["machine", "clinic"])
async def place(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Place]:
    made = Place(str(tmp_path), None) if request.param == "machine" else Place("/clinic", FakeHost(FakeClock(), uid=0))
    yield made
    await made.events.close()


HAPPENINGS: dict[str, Callable[[Place], None]] = {
    "written": lambda place: place.write("file", "other"),
    "replaced": lambda place: place.replace("file", "other"),
    "removed": lambda place: place.remove("file"),
    "opened to all": lambda place: place.chmod("file", 0o666),
    "now a link": lambda place: place.link("file", "elsewhere"),
}


@pytest.mark.parametrize("happening", HAPPENINGS.values(), ids=HAPPENINGS.keys())
async def test_a_change_of_a_file_is_told(place: Place, happening: Callable[[Place], None]) -> None:
    place.write("file", "as it was")
    await place.events.watch({place.source("file")})
    assert place.events.trouble() == {}
    assert await place.quiet()
    happening(place)
    assert await place.told("file")


async def test_a_file_that_was_replaced_is_still_watched(place: Place) -> None:
    place.write("file", "one")
    await place.events.watch({place.source("file")})
    for text in ("two", "three"):
        place.replace("file", text)
        assert await place.told("file")
        await place.calm()
        place.write("file", f"{text}, and more")
        assert await place.told("file")
        await place.calm()


async def test_a_file_that_is_not_there_is_told_when_it_comes(place: Place) -> None:
    """Nor its directory, nor the one above."""
    place.write("other", "")
    await place.events.watch({place.source("a/b/file")})
    place.write("a/b/file", "now")
    assert await place.told("a/b/file")
    await place.calm()
    place.write("a/b/file", "and again")
    assert await place.told("a/b/file")


async def test_what_a_link_leads_to_is_watched(place: Place) -> None:
    place.write("real", "one")
    place.link("link", "real")
    await place.events.watch({place.source("link")})
    place.write("real", "two")
    assert await place.told("link")
    await place.calm()
    place.write("another", "three")
    place.link("link", "another")
    assert await place.told("link")
    await place.calm()
    place.write("another", "four")
    assert await place.told("link")


async def test_a_directory_tells_of_the_files_in_it(place: Place) -> None:
    place.write("dir/one", "")
    await place.events.watch({place.source("dir")})
    happenings: tuple[Callable[[], None], ...] = (
        lambda: place.write("dir/one", "changed"), lambda: place.write("dir/two", ""), lambda: place.chmod("dir/two", 0o600),
        lambda: place.remove("dir/one"),
    )  # fmt: skip
    for happening in happenings:
        happening()
        assert await place.told("dir")
        await place.calm()


async def test_neighbours_are_not_told_of(place: Place) -> None:
    place.write("file", "")
    place.write("neighbour", "")
    await place.events.watch({place.source("file")})
    place.write("neighbour", "changed")
    place.write("third", "new")
    assert await place.quiet()


async def test_what_is_not_watched_any_more_is_not_told(place: Place) -> None:
    place.write("one", "")
    place.write("two", "")
    await place.events.watch({place.source("one")})
    await place.events.watch({place.source("two")})
    place.write("one", "changed")
    assert await place.quiet()
    place.write("two", "changed")
    assert await place.told("two")


async def test_after_close_it_may_watch_again(place: Place) -> None:
    place.write("file", "")
    await place.events.watch({place.source("file")})
    await place.events.close()
    place.write("file", "unheard")
    await place.events.watch({place.source("file")})
    assert await place.quiet()
    place.write("file", "heard")
    assert await place.told("file")
