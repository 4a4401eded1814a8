"""A few programs of GNU coreutils 9.1: what checks ask of files and of the clock."""

from __future__ import annotations

from dataclasses import dataclass

from compliance_agent.errors import CannotTell
from compliance_agent.lab.host import Call, said
from compliance_agent.ports import Ran


@dataclass
class Zone:
    """The host's time zone, as a fixed offset from UTC."""

    offset: str = "+0000"


def date(call: Call) -> Ran:
    """`date +%z`."""
    if call.argv[1:] == ("+%z",):
        return said(f"{call.host.part(Zone).offset}\n")
    return said("", 1, err="date: this simulation only knows +%z\n")


def tail(call: Call) -> Ran:
    """`tail -c BYTES -- FILE`."""
    if call.argv[1] != "-c" or len(call.words) != 2:
        return said("", 1, err="tail: this simulation only knows -c BYTES -- FILE\n")
    count, path = call.words
    try:
        _, node = call.host.find(path)
    except CannotTell:
        return said("", 1, err=f"tail: cannot open '{path}' for reading: No such file or directory\n")
    if call.host.uid not in {0, node.uid} and not node.mode & 0o004:
        return said("", 1, err=f"tail: cannot open '{path}' for reading: Permission denied\n")
    return Ran(0, node.content[-int(count) :], b"")


PROGRAMS = {"date": date, "tail": tail}
