"""Files and directories by inotify: a change of content or mode, and another object in a watched place.

For each path every directory on the way is watched for names, so that a file which is missing, replaced by a rename or reached
through a link is told of; what stands at its end is watched for content, and of a directory the files in it as well. A path that
leads elsewhere than before is followed anew first, and told of then, so that no change falls between. /proc and /sys tell
nothing and are not asked.

Watches are made on a thread with a deadline: a dead mount must not hold the loop. There are at most MOST_WATCHES of them.
"""

from __future__ import annotations

import asyncio
import errno
import os
import stat
from collections.abc import Callable, Collection, Iterator
from dataclasses import field
from pathlib import Path

from compliance_agent.adapters.events import inotify
from compliance_agent.adapters.events.inotify import Event, Inotify
from compliance_agent.adapters.offload import Offload
from compliance_agent.core.waking import Breath
from compliance_agent.dataclass import dataclass
from compliance_agent.errors import CannotTell

MOST_WATCHES = 4_096
MOST_LINKS = 40
FOLLOW_TIMEOUT_S = 3.0
FOLLOW_GAP_S = 0.25  # a path that changes all the time is followed anew no more often
UNTOLD = ("/proc/", "/sys/")
_CODES = {errno.ENOSPC: "no_watches_left", errno.EMFILE: "no_watches_left", errno.ENFILE: "no_watches_left"}


@dataclass
class _Ways:
    """Who is concerned by a watch: (name in the directory, or None for any and for the object itself; path; on the way)."""

    of: dict[int, set[tuple[str | None, str, bool]]] = field(default_factory=dict)
    codes: dict[str, str] = field(default_factory=dict)  # paths that are not watched to their end, and why

    def without(self, paths: Collection[str]) -> _Ways:
        kept = {watch: {one for one in ones if one[1] not in paths} for watch, ones in self.of.items()}
        codes = {path: code for path, code in self.codes.items() if path not in paths}
        return _Ways({watch: ones for watch, ones in kept.items() if ones}, codes)

    def joined(self, other: _Ways) -> _Ways:
        of = {watch: set(ones) for watch, ones in self.of.items()}
        for watch, ones in other.of.items():
            of.setdefault(watch, set()).update(ones)
        return _Ways(of, self.codes | other.codes)


class Paths:
    """The teller of paths.

    Args:
        told: called with the paths concerned, and with those of them that their writer is done with.
        make: makes the inotify instance.
    """

    def __init__(self, told: Callable[..., None], make: Callable[[], Inotify] = Inotify) -> None:
        self.trouble: str | None = None
        self._tell = told
        self._make = make
        self._inotify: Inotify | None = None
        self._offload = Offload()
        self._one = asyncio.Lock()  # one follows at a time
        self._paths: frozenset[str] = frozenset()
        self._watched: frozenset[str] = frozenset()
        self._ways = _Ways()
        self._to_follow: set[str] = set()
        self._following: asyncio.Task[None] | None = None
        self._followed_at = float("-inf")
        self._breath = Breath()
        self._rest: asyncio.TimerHandle | None = None

    async def watch(self, names: Collection[str]) -> None:
        self._paths = frozenset(name for name in names if not name.startswith(UNTOLD))
        if self._inotify is None and self._paths:
            try:
                self._inotify = self._make()
            except OSError as error:
                self.trouble = _code(error)
                return
            self._listen()
        await self._follow(self._paths)

    async def close(self) -> None:
        if self._following is not None:
            self._following.cancel()
        if self._rest is not None:
            self._rest.cancel()
        if self._inotify is not None:
            asyncio.get_running_loop().remove_reader(self._inotify.fd)
            self._inotify.close()
            self._inotify, self._ways = None, _Ways()

    def _listen(self) -> None:
        self._rest = None
        if self._inotify is not None:
            asyncio.get_running_loop().add_reader(self._inotify.fd, self._read)

    def _read(self) -> None:
        """Take what waits; in a flood, rest and let the kernel gather."""
        if self._inotify is None:
            return
        loop = asyncio.get_running_loop()
        self._heard(self._inotify.read())
        rest = self._breath.after(loop.time())
        if rest:
            loop.remove_reader(self._inotify.fd)
            self._rest = loop.call_later(rest, self._listen)

    def _heard(self, events: list[Event]) -> None:
        changed: set[str] = set()
        elsewhere: set[str] = set()
        over: set[str] = set()
        for event in events:
            if event.mask & inotify.OVERFLOW:
                elsewhere |= self._paths
            for name, path, on_the_way in self._ways.of.get(event.watch, ()):
                if event.mask & inotify.GONE or (on_the_way and name == event.name and event.mask & ~inotify.WRITTEN):
                    elsewhere.add(path)
                elif name is None or name == event.name:
                    changed.add(path)
                    (over.add if event.mask & inotify.CLOSE_WRITE else over.discard)(path)
        loop = asyncio.get_running_loop()
        if elsewhere:
            late = loop.time() - self._followed_at < FOLLOW_GAP_S  # followed later, and told of once more then
            changed = changed | elsewhere if late else changed - elsewhere
            self._to_follow |= elsewhere
            if self._following is None or self._following.done():
                self._following = loop.create_task(self._follow_again())
        if changed:
            self._tell(changed, over)

    async def _follow_again(self) -> None:
        loop = asyncio.get_running_loop()
        while self._to_follow:
            await asyncio.sleep(max(0.0, self._followed_at + FOLLOW_GAP_S - loop.time()))
            self._followed_at = loop.time()
            paths, self._to_follow = self._to_follow & self._paths, set()
            await self._follow(paths)
            self._tell(paths)

    async def _follow(self, paths: Collection[str]) -> None:
        """Watch every step on the way to these, and nothing that nobody asks for any more."""
        async with self._one:
            if self._inotify is None:
                return
            made, kept = self._inotify, self._ways.without(set(paths) | (self._watched - self._paths))
            try:
                found = await self._offload.call("inotify", FOLLOW_TIMEOUT_S, lambda: _ways_to(made, paths, kept))
            except CannotTell as error:
                self.trouble = error.reason
                return
            ways = kept.joined(found)
            if self._inotify is not made:
                return
            for watch in self._ways.of.keys() - ways.of.keys():
                made.remove(watch)
            self._ways, self._watched = ways, self._paths
            self.trouble = min(ways.codes.values(), default=None)


def _ways_to(made: Inotify, paths: Collection[str], kept: _Ways) -> _Ways:
    """On a thread: the watches made, and whom they concern."""
    ways, count = _Ways(), len(kept.of)
    for path in sorted(paths):
        for place, name, mask in steps(path):
            try:
                watch = made.add(place, mask)
            except OSError as error:
                if error.errno not in {errno.ENOENT, errno.ENOTDIR, errno.ELOOP}:  # else its directory will tell
                    ways.codes[path] = _code(error)
                continue
            if watch not in ways.of and watch not in kept.of:
                count += 1
            if count > MOST_WATCHES:
                made.remove(watch)
                count -= 1
                ways.codes[path] = "too_many"
                break
            ways.of.setdefault(watch, set()).add((name, path, mask == inotify.NAMES))
    return ways


def steps(path: str) -> Iterator[tuple[str, str | None, int]]:
    """Each directory on the way to a path with the name that leads on from it, links followed; then what stands at the end."""
    place, left, links = "/", [part for part in path.split("/") if part], 0
    while left:
        name = left.pop(0)
        yield place, name, inotify.NAMES
        following = os.path.normpath(f"{place}/{name}")
        try:
            kind = stat.S_IFMT(os.lstat(following).st_mode)
            if kind == stat.S_IFLNK:
                links += 1
                if links > MOST_LINKS:
                    return
                target = str(Path(following).readlink())
                left = [part for part in target.split("/") if part and part != "."] + left
                place = "/" if target.startswith("/") else place
                continue
        except OSError:
            return
        place = following
        if kind == stat.S_IFDIR and not left:
            yield place, None, inotify.NAMES | inotify.CONTENT
            return
    if place != "/":
        yield place, None, inotify.CONTENT


def _code(error: OSError) -> str:
    return _CODES.get(error.errno or 0, "not_permitted" if error.errno in {errno.EACCES, errno.EPERM} else "io_error")
