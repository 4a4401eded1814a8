"""Reading a configuration file whole, for every check that judges by one."""

from __future__ import annotations

from collections.abc import Sequence

from compliance_agent.errors import CannotTell
from compliance_agent.ports import FileStat, Host


async def is_there(host: Host, path: str) -> bool:
    """Whether there is anything at this path.

    Raises:
        CannotTell: it could not be looked at.
    """
    try:
        await host.stat(path)
    except CannotTell as error:
        if error.reason != "not_found":
            raise
        return False
    return True


async def stats_of(host: Host, paths: Sequence[str]) -> dict[str, FileStat]:
    """What the file system says of each of these, all of which must be there.

    Raises:
        CannotTell: the first of them that could not be looked at.
    """
    found = dict[str, FileStat]()
    for path, stat in (await host.stats(paths)).items() if paths else ():
        if isinstance(stat, CannotTell):
            raise stat
        found[path] = stat
    return found


async def read_whole(host: Host, path: str) -> tuple[FileStat, bytes]:
    """A file's bytes, as many as the file system says there are, and what it says of the path itself.

    Raises:
        CannotTell: it could not be read, or was being written.
    """
    stat, raw = await host.whole(path)
    if stat.kind == "file" and stat.size_bytes != len(raw):
        raise CannotTell("unparsable", f"{path}: not as long as the file system says; is it being written?")
    return stat, raw
