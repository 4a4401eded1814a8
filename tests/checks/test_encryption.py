"""encryption: what mounts and swap stand on, and how it is encrypted."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from compliance_agent.checks import encryption, registry
from compliance_agent.lab.clinic import healthy_host
from compliance_agent.lab.host import FakeHost
from compliance_agent.lab.programs import disks
from compliance_agent.lab.programs.disks import GIB, Device, Disks
from compliance_agent.models import DriftResult, Result
from tests.checks import contract


async def look(host: FakeHost, **parameters: Any) -> DriftResult:
    return await contract.seen_by(registry()["encryption"], host, **parameters)


def device(host: FakeHost, name: str) -> Device:
    found = host.part(Disks).find(name)
    assert found is not None
    return found


def add(host: FakeHost, *devices: Device) -> None:
    host.part(Disks).devices.extend(devices)


def _in_the_clear(host: FakeHost) -> None:
    device(host, "clinic-srv").mountpoints.clear()
    add(host, Device("sdb", "disk", GIB, "ext4", ["/srv"]))


def _over_mounted(host: FakeHost) -> None:
    """A second device in the clear is mounted at the same place."""
    add(host, Device("sdb", "disk", GIB, "ext4", ["/srv"]))


def _over(*mounts: tuple[str, str]) -> Callable[[FakeHost], None]:
    def happen(host: FakeHost) -> None:
        host.part(Disks).over.extend(mounts)

    return happen


def _half_mirrored(host: FakeHost) -> None:
    mirror = Device("md0", "raid1", GIB, "ext4", ["/srv"])
    device(host, "clinic-srv").mountpoints.clear()
    crypt = Device("c1", "crypt", GIB, None, [], [mirror])
    encrypted = Device("sdb", "disk", GIB, "crypto_LUKS", [], [crypt], luks=disks.luks2())
    add(host, encrypted, Device("sdc", "disk", GIB, None, [], [mirror]))


def _not_mounted(host: FakeHost) -> None:
    device(host, "clinic-srv").mountpoints.clear()


def _swap_partition(host: FakeHost) -> None:
    add(host, Device("sdb", "disk", GIB, "swap", ["[SWAP]"]))


def _swap_file_in_the_clear(host: FakeHost) -> None:
    disks.write_swaps(host, "/boot/swapfile")


def _swap_file_nowhere(host: FakeHost) -> None:
    device(host, "clinic-root").mountpoints.clear()
    disks.write_swaps(host, "/swapfile")


def _weak(**header: Any) -> Callable[[FakeHost], None]:
    def happen(host: FakeHost) -> None:
        device(host, "sda3").luks = disks.luks2(**header)

    return happen


def _reencrypting(host: FakeHost) -> None:
    luks = disks.luks2()
    luks["segments"]["1"] = {"type": "linear", "offset": "0", "size": "dynamic"}
    device(host, "sda3").luks = luks


DRIFTS = [
    (_in_the_clear, "mount_not_encrypted"),
    (_over_mounted, "mount_not_encrypted"),
    (_over(("/srv", "tmpfs")), "mount_not_encrypted"),
    (_over(("/srv", "nfs4")), "mount_not_encrypted"),
    (_over(("/", "tmpfs")), "mount_missing"),
    (_half_mirrored, "mount_not_encrypted"),
    (_not_mounted, "mount_missing"),
    (_swap_partition, "swap_not_encrypted"),
    (_swap_file_in_the_clear, "swap_not_encrypted"),
    (_swap_file_nowhere, "swap_not_encrypted"),
    (_weak(cipher="cipher_null-ecb"), "weak_cipher"),
    (_weak(key_bits=128), "short_key"),
    (_weak(slots=7), "too_many_key_slots"),
    (_reencrypting, "weak_cipher"),
]


@pytest.mark.parametrize(("happen", "reason"), DRIFTS, ids=lambda item: getattr(item, "__name__", item))
async def test_what_fails_and_is_left_to_people(happen: Callable[[FakeHost], None], reason: str) -> None:
    host = healthy_host()
    happen(host)
    seen = await look(host)
    assert (seen.result, seen.reason, seen.plan) == (Result.FAIL, reason, None)


@pytest.mark.parametrize("fstype", ["zfs", "overlay"])
async def test_a_file_system_whose_disks_cannot_be_told(fstype: str) -> None:
    host = healthy_host()
    _over(("/srv", fstype))(host)
    assert (await look(host)).result is Result.UNKNOWN


async def test_a_file_system_with_device_numbers_of_its_own() -> None:
    """btrfs: the kernel names no device for it, and lsblk does."""
    host = healthy_host()
    device(host, "clinic-srv").fstype = "btrfs"
    _over(("/srv", "btrfs"))(host)
    assert (await look(host)).result is Result.PASS


async def test_swap_that_never_leaves_memory_or_has_a_key_made_at_start() -> None:
    host = healthy_host()
    device(host, "clinic-swap").mountpoints.clear()
    plain = Device("swap0", "crypt", GIB, "swap", ["[SWAP]"])
    add(host, Device("zram0", "disk", GIB, None, ["[SWAP]"]), Device("sdb", "disk", GIB, None, [], [plain]))
    seen = await look(host)
    assert (seen.result, seen.pre_state["swaps"], seen.pre_state["devices"]) == (Result.PASS, 1, 2)


async def test_swap_in_a_file_on_an_encrypted_file_system() -> None:
    host = healthy_host()
    disks.write_swaps(host, "/srv/swapfile")
    seen = await look(host)
    assert (seen.result, seen.pre_state["swaps"]) == (Result.PASS, 2)


async def test_a_header_of_version_1() -> None:
    host = healthy_host()
    device(host, "sda3").luks = disks.luks1(slots=2)
    seen = await look(host)
    assert (seen.result, seen.pre_state["least_key_bits"], seen.pre_state["most_key_slots"]) == (Result.PASS, 512, 2)


async def test_without_root_the_tree_alone_is_no_pass_but_may_fail() -> None:
    host = healthy_host()
    host.uid = 998
    seen = await look(host)
    assert (seen.result, seen.reason) == (Result.UNKNOWN, "not_permitted")
    _in_the_clear(host)
    assert (await look(host)).reason == "mount_not_encrypted"


async def test_names_only_what_the_baseline_names() -> None:
    host = healthy_host()
    add(host, Device("jane-roe-usb", "disk", GIB, "vfat", ["/media/jane-roe"]))
    assert "jane" not in repr((await look(host)).pre_state)


async def test_swap_may_be_left_out() -> None:
    host = healthy_host()
    _swap_partition(host)
    seen = await look(host, require_swap=False)
    assert (seen.result, seen.pre_state["swaps_clear"]) == (Result.PASS, 1)


@pytest.mark.parametrize(
    "wrong", [{"mounts": ()}, {"mounts": ("srv",)}, {"ciphers": ()}, {"min_key_bits": 0}, {"max_key_slots": 0}]
)
def test_parameters_that_make_no_sense(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"mounts|ciphers|min_key_bits"):
        encryption.Parameters(**{"mounts": ("/srv",), **wrong})
