"""What a file system or swap space stands on: lsblk's tree, swap spaces and encryption headers, as values.

A device may stand on several others (RAID, LVM), and then it is listed once under each. It is encrypted when every way down
to a disk passes a dm-crypt device; one way in the clear is enough to read part of it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any

from compliance_agent.core.tools import json_answer, unparsable
from compliance_agent.dataclass import dataclass

LUKS = "crypto_LUKS"
_DEEPEST = 24
_STATUS = re.compile(r"^\s*(type|cipher|keysize):\s+(\S+)", re.MULTILINE)
_BITS = re.compile(r"[0-9]{1,5}")
_LUKS1 = re.compile(r"^(Cipher name|Cipher mode|MK bits):\s+(\S+)\s*$", re.MULTILINE)
_SLOT_ENABLED = re.compile(r"^Key Slot [0-9]+: ENABLED\s*$", re.MULTILINE)


@dataclass(frozen=True)
class Device:
    """A block device as lsblk names it. `name` is the mapper's name for a dm-crypt device, `kname` the kernel's, `numbers` its
    `major:minor`.
    """

    name: str
    kname: str
    numbers: str
    type: str
    fstype: str | None
    mounts: tuple[str, ...]


@dataclass(frozen=True)
class Way:
    """A device and what it stands on, from the disk up to the device itself."""

    devices: tuple[Device, ...]

    @property
    def top(self) -> Device:
        """The device that the way leads to."""
        return self.devices[-1]

    @property
    def crypts(self) -> tuple[tuple[Device, Device], ...]:
        """Each dm-crypt device on the way, with the device that holds its encrypted bytes."""
        pairs = zip(self.devices, self.devices[1:], strict=False)
        return tuple((below, device) for below, device in pairs if device.type == "crypt")


@dataclass(frozen=True)
class Header:
    """How a dm-crypt device encrypts. `slots` is None where there are no key slots (a key made at each start)."""

    cipher: str
    key_bits: int
    slots: int | None


@dataclass(frozen=True)
class Swap:
    """A swap space in use: a device by its kernel name, or a file by its path."""

    name: str
    is_file: bool


def read_lsblk(raw: bytes) -> tuple[Way, ...]:
    """Every way to every device, from `lsblk -J -o NAME,KNAME,MAJ:MIN,TYPE,FSTYPE,MOUNTPOINTS`.

    Raises:
        CannotTell: `unparsable`; also when no device is listed at all.
    """
    document = json_answer(raw, "lsblk", max_depth=2 * _DEEPEST)
    top = document.get("blockdevices") if isinstance(document, dict) else None
    if not isinstance(top, list) or not top:
        raise unparsable("lsblk", "at least one block device")
    return tuple(way for item in top for way in _ways(item, ()))


def _ways(item: Any, below: tuple[Device, ...]) -> Iterator[Way]:
    match item:
        case {
            "name": str(name),
            "kname": str(kname),
            "maj:min": str(numbers),
            "type": str(kind),
            "fstype": fstype,
            "mountpoints": [*points],
        }:
            mounts = tuple(point for point in points if isinstance(point, str))
            device = Device(name, kname, numbers, kind, fstype if isinstance(fstype, str) else None, mounts)
        case _:
            raise unparsable("lsblk", "name, kname, maj:min, type, fstype and mountpoints")
    way = Way((*below, device))
    yield way
    children = item.get("children", [])
    if not isinstance(children, list):
        raise unparsable("lsblk", "a list of children")
    for child in children:
        yield from _ways(child, way.devices)


def read_swaps(text: str) -> tuple[Swap, ...]:
    """Swap spaces in use, from `/proc/swaps`.

    Raises:
        CannotTell: `unparsable`; also without the heading.
    """
    lines = text.splitlines()
    if not lines or lines[0].split() != ["Filename", "Type", "Size", "Used", "Priority"]:
        raise unparsable("/proc/swaps", "its heading")
    found = []
    for line in lines[1:]:
        words = line.split()
        if len(words) < 5 or words[1] not in {"partition", "file"} or not words[0].startswith("/"):
            raise unparsable("/proc/swaps", "path, type, size, used and priority")
        is_file = words[1] == "file"
        found.append(Swap(words[0] if is_file else words[0].rpartition("/")[2], is_file))
    return tuple(found)


def holding(path: str, ways: Sequence[Way]) -> tuple[Way, ...]:
    """The ways to the file system that a path lies on: that of the longest mount point above it."""
    points = {mount for way in ways for mount in way.top.mounts if mount.startswith("/")}
    above = [point for point in points if path == point or path.startswith(point.rstrip("/") + "/")]
    longest = max(above, key=len, default=None)
    return tuple(way for way in ways if longest is not None and longest in way.top.mounts)


def read_luks2(raw: bytes) -> Header:
    """A LUKS2 header from `cryptsetup luksDump --dump-json-metadata`; the weakest segment and key decide.

    Raises:
        CannotTell: `unparsable`.
    """
    document = json_answer(raw, "cryptsetup")
    match document:
        case {"keyslots": {**keyslots}, "segments": {**segments}} if keyslots and segments:
            ciphers = {_cipher(segment) for segment in segments.values()}
            bits = [_key_bits(slot) for slot in keyslots.values()]
            # While it is re-encrypted a header has several segments; a linear one is in the clear.
            cipher = ciphers.pop() if len(ciphers) == 1 else "mixed"
            return Header(cipher, min(bits), len(keyslots))
    raise unparsable("cryptsetup", "key slots and segments")


def _cipher(segment: Any) -> str:
    match segment:
        case {"type": "crypt", "encryption": str(cipher)}:
            return cipher
        case {"type": "linear"}:
            return "none"
    raise unparsable("cryptsetup", "a segment with its encryption")


def _key_bits(slot: Any) -> int:
    match slot:
        case {"key_size": int(size)} if 0 < size <= 512:
            return size * 8
    raise unparsable("cryptsetup", "a key slot with its key size")


def read_luks1(text: str) -> Header:
    """A LUKS1 header from `cryptsetup luksDump`.

    Raises:
        CannotTell: `unparsable`.
    """
    fields = dict(_LUKS1.findall(text))
    if set(fields) != {"Cipher name", "Cipher mode", "MK bits"} or not _BITS.fullmatch(fields["MK bits"]):
        raise unparsable("cryptsetup", "cipher name, cipher mode and MK bits")
    cipher = f"{fields['Cipher name']}-{fields['Cipher mode']}"
    return Header(cipher, int(fields["MK bits"]), len(_SLOT_ENABLED.findall(text)))


def read_status(text: str) -> Header:
    """A mapping without a LUKS header (swap with a key made at each start) from `cryptsetup status`.

    Raises:
        CannotTell: `unparsable`.
    """
    fields = dict(_STATUS.findall(text))
    if not {"cipher", "keysize"} <= set(fields) or not _BITS.fullmatch(fields["keysize"]):
        raise unparsable("cryptsetup", "cipher and keysize")
    return Header(fields["cipher"], int(fields["keysize"]), None)
