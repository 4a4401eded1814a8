"""lsblk, findmnt, cryptsetup, /proc/swaps and mountinfo (util-linux 2.38, cryptsetup 2.6): block devices and what lies on them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from compliance_agent.lab.host import Call, FakeHost, Node, said
from compliance_agent.ports import Ran

GIB = 1 << 30


@dataclass
class Device:
    """One block device. `luks` is its LUKS2 metadata when it holds a container, or `{"version": 1}` with what `luks1`
    gives.

    A `crypt` device on one without `luks` has a key that is made anew at each start (`plain`).
    """

    name: str
    type: str  # disk | part | crypt | lvm | raid1 | rom
    size: int
    fstype: str | None = None
    mountpoints: list[str] = field(default_factory=list)
    children: list[Device] = field(default_factory=list)
    luks: dict[str, Any] | None = None

    @property
    def path(self) -> str:
        """The device file."""
        return f"/dev/mapper/{self.name}" if self.type in {"crypt", "lvm"} else f"/dev/{self.name}"

    def walk(self) -> Iterator[Device]:
        """This device and everything on it."""
        yield self
        for child in self.children:
            yield from child.walk()


@dataclass
class Disks:
    """All block devices of the host. `over` are mounts without one, as (mount point, file system), over those of devices."""

    devices: list[Device] = field(default_factory=list)
    swap_files: list[str] = field(default_factory=list)
    over: list[tuple[str, str]] = field(default_factory=list)

    def walk(self) -> Iterator[Device]:
        """Every device, parents first."""
        for device in self.devices:
            yield from device.walk()

    def kname(self, device: Device) -> str:
        """The kernel's name: device mapper ones are numbered."""
        mapped = [other for other in self.walk() if other.type in {"crypt", "lvm"}]
        return f"dm-{mapped.index(device)}" if device in mapped else device.name

    def numbers(self, device: Device) -> str:
        """Its `major:minor`."""
        return f"{253 if self.kname(device).startswith('dm-') else 8}:{list(self.walk()).index(device)}"

    def find(self, name: str) -> Device | None:
        """The device of this name or path."""
        return next((one for one in self.walk() if name in {one.name, one.path, f"/dev/{self.kname(one)}"}), None)

    def parent_of(self, child: Device) -> Device | None:
        """The device another one lies on."""
        return next((device for device in self.walk() if child in device.children), None)


def luks2(*, cipher: str = "aes-xts-plain64", key_bits: int = 512, slots: int = 2) -> dict[str, Any]:
    """LUKS2 metadata as `cryptsetup luksDump --dump-json-metadata` prints it."""
    slot = {
        "type": "luks2",
        "key_size": key_bits // 8,
        "af": {"type": "luks1", "stripes": 4000, "hash": "sha256"},
        "area": {"type": "raw", "offset": "32768", "size": "258048", "encryption": cipher, "key_size": key_bits // 8},
        "kdf": {"type": "argon2id", "time": 6, "memory": 1048576, "cpus": 2, "salt": "c2FsdA=="},
    }
    segment = {"type": "crypt", "offset": "16777216", "size": "dynamic", "iv_tweak": "0", "encryption": cipher}
    return {
        "keyslots": {str(number): slot for number in range(slots)},
        "tokens": {},
        "segments": {"0": segment | {"sector_size": 512}},
        "digests": {"0": {"type": "pbkdf2", "keyslots": [str(number) for number in range(slots)], "segments": ["0"]}},
        "config": {"json_size": "12288", "keyslots_size": "16744448"},
    }


def luks1(*, cipher: str = "aes", mode: str = "xts-plain64", key_bits: int = 512, slots: int = 1) -> dict[str, Any]:
    """A LUKS1 header."""
    return {"version": 1, "cipher": cipher, "mode": mode, "bits": key_bits, "slots": slots}


def provide(host: FakeHost) -> None:
    """Have one disk: an EFI and a boot partition in the clear, root, data and swap on LVM inside LUKS2."""
    volumes = [
        Device("clinic-root", "lvm", 60 * GIB, "ext4", ["/"]),
        Device("clinic-srv", "lvm", 160 * GIB, "ext4", ["/srv"]),
        Device("clinic-swap", "lvm", 8 * GIB, "swap", ["[SWAP]"]),
    ]
    crypt = Device("sda3_crypt", "crypt", 237 * GIB, "LVM2_member", [], volumes)
    host.part(Disks).devices = [
        Device(
            "sda",
            "disk",
            238 * GIB,
            children=[
                Device("sda1", "part", GIB // 2, "vfat", ["/boot/efi"]),
                Device("sda2", "part", GIB // 2, "ext4", ["/boot"]),
                Device("sda3", "part", 237 * GIB, "crypto_LUKS", [], [crypt], luks=luks2()),
            ],
        )
    ]
    host.install("lsblk", "findmnt", "cryptsetup")
    host.place("/proc/swaps", Node(source=lambda: swaps(host)))
    host.place("/proc/self/mountinfo", Node(source=lambda: mountinfo(host)))
    host.put("/etc/crypttab", "sda3_crypt UUID=2f1c6b0e-6d0f-4a1c-9d3e-6f3f6f0a51aa none luks,discard\n")


def write_swaps(host: FakeHost, *files: str) -> None:
    """Have these files as swap spaces, beside the partitions that the devices say."""
    host.part(Disks).swap_files = list(files)


def swaps(host: FakeHost) -> bytes:
    """/proc/swaps: swap partitions by their kernel names, and swap files."""
    disks = host.part(Disks)
    lines = [f"Filename{'':32}Type{'':12}Size{'':12}Used{'':12}Priority"]
    spaces = [f"/dev/{disks.kname(one)}" for one in disks.walk() if "[SWAP]" in one.mountpoints]
    for number, (name, kind) in enumerate([(n, "partition") for n in spaces] + [(n, "file") for n in disks.swap_files]):
        lines.append(f"{name:<40}{kind:<16}{8 * GIB // 1024 - 4:<16}{0:<16}{-2 - number}")
    return ("\n".join(lines) + "\n").encode()


def mountinfo(host: FakeHost) -> bytes:
    """/proc/self/mountinfo: every mount, each over what was at its place before."""
    disks = host.part(Disks)
    mounts = [
        (point, disks.numbers(device), str(device.fstype))
        for device in disks.walk()
        for point in device.mountpoints
        if point.startswith("/")
    ]
    mounts.sort()
    mounts += [(point, f"0:{70 + number}", fstype) for number, (point, fstype) in enumerate(disks.over)]
    if not any(point == "/" for point, _, _ in mounts):
        mounts.insert(0, ("/", "0:2", "rootfs"))
    lines, last = [], {"": 1}  # the mount on top of each place
    for number, (point, numbers, fstype) in enumerate(mounts, start=20):
        above = max((place for place in last if f"{point}/".startswith(f"{place.rstrip('/')}/") or not place), key=len)
        lines.append(f"{number} {last[above]} {numbers} / {point} rw,relatime shared:{number} - {fstype} none rw")
        last[point] = number
    return ("\n".join(lines) + "\n").encode()


def lsblk(call: Call) -> Ran:
    """`lsblk -J -b -o COLUMNS`: a tree in JSON with the columns that were asked for."""
    columns = _option(call.argv, "-o", "--output") or "NAME,MAJ:MIN,RM,SIZE,RO,TYPE,MOUNTPOINTS"
    if not {"-J", "--json"} & call.flags:
        return said("", 1, err="lsblk: this simulation prints JSON only\n")
    names = [column.strip().lower() for column in columns.split(",")]
    disks = call.host.part(Disks)
    if unknown := [name for name in names if name not in _COLUMNS]:
        return said("", 1, err=f"lsblk: unknown column: {unknown[0]}\n")
    tree = [_row(disks, device, names) for device in disks.devices]
    return said(json.dumps({"blockdevices": tree}, indent=3) + "\n")


_COLUMNS = {
    "name",
    "kname",
    "maj:min",
    "path",
    "type",
    "fstype",
    "mountpoint",
    "mountpoints",
    "size",
    "pkname",
    "uuid",
    "ro",
    "rm",
}


def _row(disks: Disks, device: Device, names: list[str]) -> dict[str, Any]:
    parent = disks.parent_of(device)
    known: dict[str, Any] = {
        "name": device.name,
        "kname": disks.kname(device),
        "maj:min": disks.numbers(device),
        "path": device.path,
        "type": device.type,
        "fstype": device.fstype,
        "mountpoint": device.mountpoints[0] if device.mountpoints else None,
        "mountpoints": device.mountpoints or [None],
        "size": device.size,
        "pkname": parent.name if parent else None,
        "uuid": None,
        "ro": False,
        "rm": False,
    }
    row = {name: known[name] for name in names}
    if device.children:
        row["children"] = [_row(disks, child, names) for child in device.children]
    return row


def findmnt(call: Call) -> Ran:
    """`findmnt -J [-o COLUMNS] [--real] [TARGET]`."""
    mounts = [
        {"target": point, "source": device.path, "fstype": device.fstype, "options": "rw,relatime"}
        for device in call.host.part(Disks).walk()
        for point in device.mountpoints
        if point.startswith("/")
    ]
    columns = _option(call.argv, "-o", "--output")
    if columns:
        mounts = [{name: row[name] for name in columns.lower().split(",")} for row in mounts]
    mounts.sort(key=lambda row: str(row.get("target")))
    return said(json.dumps({"filesystems": mounts}, indent=3) + "\n", 0 if mounts else 1)


def cryptsetup(call: Call) -> Ran:
    """`cryptsetup luksDump [--dump-json-metadata] DEVICE | status NAME | isLuks DEVICE`."""
    command, name = [*call.words, "", ""][:2]
    device = call.host.part(Disks).find(name)
    if call.host.uid != 0:
        return said("", 1, err=f"Device {name} does not exist or access denied.\n")
    if command == "status":
        return _status(call.host, device, name)
    if device is None:
        return said("", 4, err=f"Device {name} does not exist or access denied.\n")
    if command == "isLuks":
        return said("", 0 if device.luks else 1)
    if command != "luksDump":
        return said("", 1, err=f"cryptsetup: unknown action {command}\n")
    if device.luks is None:
        return said("", 1, err=f"Device {name} is not a valid LUKS device.\n")
    if "--dump-json-metadata" in call.flags and "keyslots" in device.luks:
        return said(json.dumps(device.luks, indent=2) + "\n")
    if "--dump-json-metadata" in call.flags:
        return said("", 1, err="Dump operation is not supported for this device type.\n")
    return said(_dump(name, device.luks))


def _dump(name: str, luks: dict[str, Any]) -> str:
    if "keyslots" in luks:
        return "LUKS header information\nVersion:       \t2\nKeyslots area: \t16744448 [bytes]\n"
    slots = "".join(f"Key Slot {n}: {'ENABLED' if n < luks['slots'] else 'DISABLED'}\n" for n in range(8))
    return (
        f"LUKS header information for {name}\n\nVersion:       \t1\nCipher name:   \t{luks['cipher']}\n"
        f"Cipher mode:   \t{luks['mode']}\nHash spec:     \tsha256\nPayload offset:\t4096\n"
        f"MK bits:       \t{luks['bits']}\n\n{slots}"
    )


def _status(host: FakeHost, device: Device | None, name: str) -> Ran:
    parent = host.part(Disks).parent_of(device) if device else None
    if device is None or device.type != "crypt" or parent is None:
        return said(f"{name} is inactive.\n", 4)
    cipher = (parent.luks or {}).get("segments", {}).get("0", {}).get("encryption", "aes-xts-plain64")
    slot = (parent.luks or {}).get("keyslots", {}).get("0", {})
    kind = "LUKS2" if parent.luks else "PLAIN"
    return said(
        f"/dev/mapper/{device.name} is active and is in use.\n  type:    {kind}\n  cipher:  {cipher}\n"
        f"  keysize: {slot.get('key_size', 64) * 8} bits\n  key location: keyring\n  device:  {parent.path}\n"
        "  sector size:  512\n  offset:  32768 sectors\n  size:    497025024 sectors\n  mode:    read/write\n"
    )


def _option(argv: tuple[str, ...], *names: str) -> str:
    for word, following in zip(argv, [*argv[1:], ""], strict=True):
        if word in names:
            return following
        for name in names:
            if name.startswith("--") and word.startswith(f"{name}="):
                return word.partition("=")[2]
    return ""


PROGRAMS = {"lsblk": lsblk, "findmnt": findmnt, "cryptsetup": cryptsetup}
