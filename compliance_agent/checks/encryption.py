"""Every data file system and every swap space stands on dm-crypt, with a strong cipher and few keys.

lsblk tells what each mount stands on, down to the disks; one unencrypted way down is enough to fail. What counts is the file
system that the path leads to: memory or a network share mounted over an encrypted disk is not encrypted. Swap in a file counts
as its file system; zram never leaves memory. Ciphers, key lengths and key slots come from the headers, which only root
may read: without that the check is `unknown`, also when the tree looks right. There is no automatic cure: encrypting moves
all data, and that is for people.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import field, replace

from compliance_agent.checks.spec import UNREADABLE, Case, CheckSpec, Citation, failed, passed, unknown
from compliance_agent.core import block_devices
from compliance_agent.core.block_devices import Device, Header, Swap, Way
from compliance_agent.core.mounts import MOUNTINFO, Mount, mounted_at, read_mountinfo
from compliance_agent.core.tools import answered
from compliance_agent.dataclass import dataclass
from compliance_agent.errors import CannotTell
from compliance_agent.facts import Int, Many, Name, fact
from compliance_agent.models import Plan, Result, Severity, Verdict
from compliance_agent.ports import Host

LIST = ("lsblk", "-J", "-b", "-o", "NAME,KNAME,MAJ:MIN,TYPE,FSTYPE,MOUNTPOINTS")
NOT_ON_DISK = {"tmpfs", "ramfs", "nfs", "nfs4", "cifs", "smb3", "9p", "ceph", "fuse.sshfs"}


@dataclass(frozen=True)
class Parameters:
    mounts: tuple[str, ...] = field(metadata={"doc": "Mount points of file systems with patient records."})
    require_swap: bool = field(default=True, metadata={"doc": "Swap spaces must be encrypted as well."})
    ciphers: tuple[str, ...] = field(default=("aes-xts-plain64",), metadata={"doc": "Ciphers that are good enough."})
    min_key_bits: int = field(
        default=256, metadata={"doc": "Least key length; XTS splits it in two, so 512 is AES-256."}
    )
    max_key_slots: int = field(default=4, metadata={"doc": "Most keys that may open one device."})

    def __post_init__(self) -> None:
        if not self.mounts or not all(mount.startswith("/") for mount in self.mounts):
            raise ValueError("mounts: expected at least one absolute path; nothing encrypted proves nothing")
        if not self.ciphers:
            raise ValueError("ciphers: expected at least one")
        if not 128 <= self.min_key_bits <= 4_096 or not 1 <= self.max_key_slots <= 32:
            raise ValueError("min_key_bits, max_key_slots: expected 128 to 4096 and 1 to 32")


@dataclass(frozen=True)
class Observation:
    mounts_missing: tuple[str, ...] | None = fact(Many(Name("mounts")), "Listed mounts that are not mounted.")
    mounts_clear: tuple[str, ...] | None = fact(Many(Name("mounts")), "Listed mounts that are not encrypted.")
    swaps: int | None = fact(Int(0, 1_000), "Swap spaces in use on disks or in files.")
    swaps_clear: int | None = fact(Int(0, 1_000), "Of these, not encrypted.")
    devices: int | None = fact(Int(0, 1_000), "Encrypted devices that listed mounts and swap stand on.")
    ciphers: tuple[str, ...] | None = fact(Many(Name("ciphers")), "Accepted ciphers that are in use.")
    other_ciphers: int | None = fact(Int(0, 1_000), "Devices with a cipher that is not accepted.")
    least_key_bits: int | None = fact(Int(0, 4_096), "Shortest key of these devices.")
    most_key_slots: int | None = fact(
        Int(0, 64), "Most key slots in use on one of them; 0 where a key is made at start."
    )


CHECK = CheckSpec(
    id="encryption",
    title="Patient records are encrypted on disk",
    severity=Severity.HIGH,
    rationale="A disk that is lost, stolen or sent back must not give away what is on it.",
    citations=(
        Citation(
            "164.312(a)(2)(iv)",
            "File systems with records, and swap, stand on block devices that are encrypted with an accepted cipher.",
            "That keys are kept apart from the host, or that records lie on the listed mounts only.",
            primary=True,
        ),
    ),
    parameters=Parameters,
    observation=Observation,
    reasons={
        "mount_missing": "A listed mount is not mounted, so records may be written somewhere else.",
        "mount_not_encrypted": "A listed mount stands on a device that is not encrypted.",
        "swap_not_encrypted": "A swap space is not encrypted.",
        "weak_cipher": "A device is encrypted with a cipher that is not accepted.",
        "short_key": "A device's key is shorter than required.",
        "too_many_key_slots": "More keys open a device than the baseline allows.",
    },
    example={"mounts": ("/srv",)},
    needs=("lsblk", "cryptsetup", "/proc/swaps", "/proc/self/mountinfo"),
    reads=("mounts:",),
    untold={"path:/proc/*": "the mount table is watched as such; of swap spaces nobody is told"},
    interval_s=900,
    deadline_s=30.0,
)


async def observe(host: Host, baseline: Parameters) -> Observation:
    ways = block_devices.read_lsblk(answered(await host.run(LIST), "lsblk").out)
    swaps = block_devices.read_swaps((await host.read("/proc/swaps")).decode("utf-8", "replace"))
    on_disk = [swap for swap in swaps if not swap.name.startswith("zram")]
    mounts = read_mountinfo((await host.read(MOUNTINFO)).decode("utf-8", "replace"))
    on_top = {mount: mounted_at(mount, mounts) for mount in baseline.mounts}
    mounted = {mount: _ways_to(mount, ways) for mount in baseline.mounts}
    swapped = [_ways_of(swap, ways) for swap in on_disk]
    seen = Observation(
        mounts_missing=tuple(mount for mount, top in on_top.items() if top is None),
        mounts_clear=tuple(
            mount
            for mount, top in on_top.items()
            if top is not None and not (_leads_to(top, mounted[mount]) and _encrypted(mounted[mount]))
        ),
        swaps=len(on_disk),
        swaps_clear=sum(not _encrypted(found) for found in swapped),
    )
    if _judge_tree(baseline, seen) is not None:
        return seen  # a failure already, and one that shows without the right to read headers
    used = [way for found in (*mounted.values(), *(swapped if baseline.require_swap else ())) for way in found]
    return await _with_headers(host, baseline, seen, used)


async def _with_headers(host: Host, baseline: Parameters, seen: Observation, used: Sequence[Way]) -> Observation:
    pairs = {device.kname: (below, device) for way in used for below, device in way.crypts}
    headers = [await _header(host, below, device) for below, device in pairs.values()]
    return replace(
        seen,
        devices=len(headers),
        ciphers=tuple(sorted({header.cipher for header in headers} & set(baseline.ciphers))),
        other_ciphers=sum(header.cipher not in baseline.ciphers for header in headers),
        least_key_bits=min((header.key_bits for header in headers), default=None),
        most_key_slots=max((header.slots or 0 for header in headers), default=None),
    )


def _ways_to(mount: str, ways: Sequence[Way]) -> tuple[Way, ...]:
    return tuple(way for way in ways if mount in way.top.mounts)


def _leads_to(top: Mount, ways: Sequence[Way]) -> bool:
    """Whether the mount on top is on one of these devices.

    Raises:
        CannotTell: its file system keeps its disks to itself (zfs), or lies on another (overlay).
    """
    if top.on_device:
        return any(way.top.numbers == top.device for way in ways)
    if any(way.top.fstype == top.fstype for way in ways):  # btrfs has device numbers of its own
        return True
    if top.fstype in NOT_ON_DISK:
        return False
    raise CannotTell("unparsable", f"what a file system of type {top.fstype} stands on cannot be told")


def _ways_of(swap: Swap, ways: Sequence[Way]) -> tuple[Way, ...]:
    if swap.is_file:
        return block_devices.holding(swap.name, ways)
    return tuple(way for way in ways if swap.name in {way.top.kname, way.top.name})


def _encrypted(ways: Sequence[Way]) -> bool:
    """Whether every way down passes dm-crypt; what is found nowhere in the tree is not known to."""
    return bool(ways) and all(way.crypts for way in ways)


async def _header(host: Host, below: Device, device: Device) -> Header:
    """How a device encrypts: its LUKS header, of version 2 or else 1, or without one what the kernel was told."""
    if below.fstype != block_devices.LUKS:
        return block_devices.read_status(
            answered(await host.run(("cryptsetup", "status", device.name)), "cryptsetup").text
        )
    path = f"/dev/{below.kname}"
    dumped = await host.run(("cryptsetup", "luksDump", "--dump-json-metadata", path))
    if dumped.exit_status == 0:
        return block_devices.read_luks2(dumped.out)
    return block_devices.read_luks1(answered(await host.run(("cryptsetup", "luksDump", path)), "cryptsetup").text)


def judge(baseline: Parameters, seen: Observation) -> Verdict:
    return _judge_tree(baseline, seen) or _judge_headers(baseline, seen)


def _judge_tree(baseline: Parameters, seen: Observation) -> Verdict | None:
    if seen.mounts_missing is None or seen.mounts_clear is None or seen.swaps_clear is None:
        return unknown("unparsable", "could not tell what the mounts stand on")
    if seen.mounts_clear:
        return failed("mount_not_encrypted", f"expected {', '.join(seen.mounts_clear)} on encrypted devices only")
    if seen.mounts_missing:
        return failed("mount_missing", f"expected {', '.join(seen.mounts_missing)} to be mounted")
    if baseline.require_swap and seen.swaps_clear:
        return failed("swap_not_encrypted", f"expected all swap encrypted, found {seen.swaps_clear} that is not")
    return None


def _judge_headers(baseline: Parameters, seen: Observation) -> Verdict:
    if not seen.devices or seen.other_ciphers is None or seen.least_key_bits is None or seen.most_key_slots is None:
        return unknown("unparsable", "could not tell how the devices are encrypted")
    if seen.other_ciphers:
        return failed("weak_cipher", f"expected {', '.join(baseline.ciphers)}, found {seen.other_ciphers} with another")
    if seen.least_key_bits < baseline.min_key_bits:
        return failed("short_key", f"expected keys of {baseline.min_key_bits} bits, found {seen.least_key_bits}")
    if seen.most_key_slots > baseline.max_key_slots:
        return failed(
            "too_many_key_slots", f"expected at most {baseline.max_key_slots} keys, found {seen.most_key_slots}"
        )
    return passed(f"{len(baseline.mounts)} mounts and {seen.swaps} swap spaces are encrypted")


def plan(baseline: Parameters, seen: Observation) -> Plan | None:
    """None: nothing here can be put right without moving data or touching keys."""
    return None


_GOOD = Observation(
    mounts_missing=(),
    mounts_clear=(),
    swaps=1,
    swaps_clear=0,
    devices=1,
    ciphers=("aes-xts-plain64",),
    other_ciphers=0,
    least_key_bits=512,
    most_key_slots=2,
)

CASES = (
    Case("encrypted", _GOOD, Result.PASS, "as_expected"),
    Case("no swap at all", replace(_GOOD, swaps=0), Result.PASS),
    Case("mount in the clear", replace(_GOOD, mounts_clear=("/srv",)), Result.FAIL, "mount_not_encrypted"),
    Case("not mounted", replace(_GOOD, mounts_missing=("/srv",)), Result.FAIL, "mount_missing"),
    Case("swap in the clear", replace(_GOOD, swaps_clear=1), Result.FAIL, "swap_not_encrypted"),
    Case("swap is not asked for", replace(_GOOD, swaps_clear=1), Result.PASS, parameters={"require_swap": False}),
    Case("another cipher", replace(_GOOD, ciphers=(), other_ciphers=1), Result.FAIL, "weak_cipher"),
    Case("short key", replace(_GOOD, least_key_bits=128), Result.FAIL, "short_key"),
    Case("many keys", replace(_GOOD, most_key_slots=9), Result.FAIL, "too_many_key_slots"),
    Case("headers not read", replace(_GOOD, devices=0, least_key_bits=None), Result.UNKNOWN),
    Case("nothing seen", Observation(), Result.UNKNOWN),
    Case("cannot ask lsblk", UNREADABLE, Result.UNKNOWN),
)
