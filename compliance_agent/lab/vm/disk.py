"""A disk that forgets at a power cut what it was not told to keep: a drive with a volatile cache, or a hypervisor's.

qemu records every write and every flush of a boot beside the layer that the guest works on. At the cut the layer is thrown away
and the record replayed on what the disk held when it was switched on: all that came before the last flush, and of the rest each
write as chance has it: whole, not at all, or torn at a sector. What relies on order without asking for it breaks on that.

The record is that of Linux's dm-log-writes, which qemu's `blklogwrites` writes. What it cannot show: a disk that loses what it was
told to keep, and a write that was under way while the guest asked for a flush counts as kept when it ended before the flush did.
"""

from __future__ import annotations

import random
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from compliance_agent.errors import Unavailable
from compliance_agent.lab.real.shell import must

SECTOR = 512
_MAGIC = 0x6A736677736872  # dm-log-writes
_SUPER = struct.Struct("<QQQI")
_ENTRY = struct.Struct("<QQQQ")  # sector, sectors, what it is, length of what follows
_FLUSH, _FUA, _DISCARD = 1, 2, 4


@dataclass(frozen=True)
class Write:
    """Where in the record its bytes are, and where on the disk they belong."""

    at: int
    offset: int
    size: int


@dataclass(frozen=True)
class Loss:
    """What a power cut did: writes since the last flush, and how many of them are lost or torn."""

    pending: int
    lost: int


class Disk:
    """The root disk of a virtual machine, as it is when it is switched off.

    Args:
        image: what it begins as; it is not changed.
        directory: for its content, and for the layer and the record of a boot.
    """

    def __init__(self, image: Path, directory: Path) -> None:
        self._image = image
        self.content = directory / "root.img"
        self._layer, self._record = directory / "root.qcow2", directory / "root.writes"

    def prepare(self) -> None:
        """Its own copy of the image."""
        must("cp", "--sparse=always", "--reflink=auto", str(self._image), str(self.content), timeout_s=120)

    def switched_on(self) -> list[str]:
        """A new layer and a new record; what qemu is told of them."""
        self._layer.unlink(missing_ok=True)
        self._record.write_bytes(b"")
        must(
            "qemu-img",
            "create",
            "-q",
            "-f",
            "qcow2",
            "-F",
            "raw",
            "-b",
            str(self.content),
            str(self._layer),
            timeout_s=60,
        )
        # This machine need not flush: what is lost is decided by the record.
        return [
            "-blockdev", f"driver=file,node-name=layer-file,filename={self._layer},cache.no-flush=on",
            "-blockdev", "driver=qcow2,node-name=layer,file=layer-file,cache.no-flush=on",
            "-blockdev", f"driver=file,node-name=record,filename={self._record},cache.no-flush=on",
            "-blockdev", f"driver=blklogwrites,node-name=root,file=layer,log=record,log-sector-size={SECTOR}",
            "-device", "virtio-blk-pci,drive=root,serial=root,write-cache=on,discard=off,write-zeroes=off",
        ]  # fmt: skip

    def cut_off(self, toss: random.Random) -> Loss:
        """Keep what was flushed, and what chance leaves of the rest."""
        with self._record.open("rb") as record, self.content.open("r+b") as content:
            durable, pending = recorded(record)
            kept = [left for write in pending for left in remains(write, toss)]
            for write in (*durable, *kept):
                record.seek(write.at)
                content.seek(write.offset)
                content.write(record.read(write.size))
        self._layer.unlink()
        self._record.unlink()
        return Loss(len(pending), len(pending) - sum(write in pending for write in kept))


def recorded(record: BinaryIO) -> tuple[list[Write], list[Write]]:
    """The writes that a flush came after, and those that none came after.

    Raises:
        Unavailable: it is no such record.
    """
    durable: list[Write] = []
    pending: list[Write] = []
    for what, write in _entries(record):
        if write.size and not what & _DISCARD:
            pending.append(write)
        if what & (_FLUSH | _FUA):
            durable += pending
            pending = []
    return durable, pending


def remains(write: Write, toss: random.Random) -> list[Write]:
    """What is left of one write that nobody asked to be kept."""
    fate = toss.choice(("whole", "nothing", "torn"))
    if fate == "whole":
        return [write]
    sectors = toss.randrange(write.size // SECTOR) if fate == "torn" else 0
    return [Write(write.at, write.offset, sectors * SECTOR)] if sectors else []


def _entries(record: BinaryIO) -> Iterator[tuple[int, Write]]:
    end = record.seek(0, 2)
    record.seek(0)
    head = record.read(_SUPER.size)
    if not any(head):
        return  # nothing was flushed yet
    magic, version, _, sector = _SUPER.unpack(head)
    if (magic, version, sector) != (_MAGIC, 1, SECTOR):
        raise Unavailable(
            f"record of a disk's writes: expected dm-log-writes 1 in {SECTOR}, got {magic:x} {version} in {sector}"
        )
    at = SECTOR
    while at + SECTOR <= end:
        record.seek(at)
        first, sectors, what, _ = _ENTRY.unpack(record.read(_ENTRY.size))
        size = 0 if what & _DISCARD else sectors * SECTOR
        if at + SECTOR + size > end or not (sectors or what):
            return  # the power went while this was written, so the guest was never told that it was done
        yield what, Write(at + SECTOR, first * SECTOR, size)
        at += SECTOR + size
