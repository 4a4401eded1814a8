"""Which file system a path really leads to, from `/proc/self/mountinfo` (proc(5)).

A mount point may have several mounts, one over the other, and a mount on a directory further up hides those below it. Only the one
on top is reached by whoever opens the path, so it is the only one that counts.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import PurePosixPath

from compliance_agent.core.tools import unparsable
from compliance_agent.dataclass import dataclass

MOUNTINFO = "/proc/self/mountinfo"
_LINE = re.compile(r"([0-9]+) ([0-9]+) ([0-9]+:[0-9]+) (\S+) (/\S*) \S+(?: \S+)*? - (\S+) \S+ \S+")
_ESCAPED = re.compile(r"\\([0-7]{3})")


@dataclass(frozen=True)
class Mount:
    """One mount.

    Attributes:
        number: names it.
        parent: the mount that its mount point lies in.
        device: `major:minor` of the device; major 0 stands for none, as memory and the network have.
        point: where it is.
        fstype: its file system.
    """

    number: int
    parent: int
    device: str
    point: str
    fstype: str

    @property
    def on_device(self) -> bool:
        """Whether the kernel names a block device for it."""
        return not self.device.startswith("0:")


def read_mountinfo(text: str) -> tuple[Mount, ...]:
    """Every mount that this process sees.

    Raises:
        CannotTell: `unparsable`; also when there is none.
    """
    found = []
    for line in text.splitlines():
        fields = _LINE.fullmatch(line)
        if fields is None:
            raise unparsable(MOUNTINFO, "number, parent, device, root, mount point and file system")
        number, parent, device, _, point, fstype = fields.groups()
        found.append(
            Mount(int(number), int(parent), device, _ESCAPED.sub(lambda code: chr(int(code[1], 8)), point), fstype)
        )
    if not found:
        raise unparsable(MOUNTINFO, "at least one mount")
    return tuple(found)


def mounted_at(path: str, mounts: Sequence[Mount]) -> Mount | None:
    """The mount that `path` leads to, None when that is no mount point (of its own, or any more)."""
    numbers = {mount.number for mount in mounts}
    reached: Mount | None = None

    def next_over(point: str) -> Mount | None:
        for mount in mounts:
            own = mount.parent == mount.number
            over = own or mount.parent not in numbers if reached is None else mount.parent == reached.number and not own
            if mount.point == point and over:
                return mount
        return None

    for point in [str(place) for place in reversed([PurePosixPath(path), *PurePosixPath(path).parents])]:
        while (over := next_over(point)) is not None:
            reached = over
    return reached if reached is not None and reached.point == str(PurePosixPath(path)) else None
