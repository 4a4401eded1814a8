"""What stands on what, and how it is encrypted. Headers were made by cryptsetup 2.6.1."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from compliance_agent.core import block_devices
from compliance_agent.core.block_devices import Header, Swap
from compliance_agent.errors import CannotTell
from compliance_agent.lab.faults import GARBAGE

FIXTURES = Path(__file__).parent.parent / "fixtures" / "checks" / "encryption"
SWAPS = "Filename\t\t\t\tType\t\tSize\t\tUsed\t\tPriority\n"


def tree(*devices: dict[str, Any]) -> bytes:
    return json.dumps({"blockdevices": devices}).encode()


def device(name: str, kind: str = "disk", *children: Any, mounts: tuple[Any, ...] = (None,), fstype: str = "") -> Any:
    row = {
        "name": name,
        "kname": name,
        "maj:min": "8:1",
        "type": kind,
        "fstype": fstype or None,
        "mountpoints": list(mounts),
    }
    return row | ({"children": list(children)} if children else {})


def test_every_way_to_a_device_is_listed() -> None:
    """A mirror over an encrypted and a plain disk is read from the plain one."""
    mirror = device("md0", "raid1", mounts=("/srv",))
    raw = tree(device("sda", "disk", device("c0", "crypt", mirror)), device("sdb", "disk", mirror))
    ways = [way for way in block_devices.read_lsblk(raw) if way.top.name == "md0"]
    assert [bool(way.crypts) for way in ways] == [True, False]
    assert ways[0].crypts[0][0].name == "sda"


@pytest.mark.parametrize("raw", [*GARBAGE, tree(), tree({"name": "sda"}), tree(device("sda") | {"children": 7})])
def test_trees_of_another_form_are_refused(raw: bytes) -> None:
    with pytest.raises(CannotTell):
        block_devices.read_lsblk(raw)


def test_a_tree_without_end_is_refused() -> None:
    deep = device("x")
    for _ in range(60):
        deep = device("x", "part", deep)
    with pytest.raises(CannotTell):
        block_devices.read_lsblk(tree(deep))


def test_swap_spaces() -> None:
    text = SWAPS + "/dev/dm-2   partition\t8388604\t\t0\t\t-2\n/var/swap   file\t1048572\t\t0\t\t-3\n"
    assert block_devices.read_swaps(text) == (Swap("dm-2", is_file=False), Swap("/var/swap", is_file=True))
    assert block_devices.read_swaps(SWAPS) == ()


@pytest.mark.parametrize("text", ["", SWAPS[:20], SWAPS + "/dev/dm-2   part", SWAPS + "x file 1 2 3\n", "Size\n"])
def test_swap_lists_of_another_form_are_refused(text: str) -> None:
    with pytest.raises(CannotTell):
        block_devices.read_swaps(text)


def test_a_file_lies_on_the_longest_mount_above_it() -> None:
    ways = block_devices.read_lsblk(
        tree(device("sda", mounts=("/",)), device("sdb", mounts=("/var",)), device("sdc", mounts=("/var/swapper",)))
    )
    assert [way.top.name for way in block_devices.holding("/var/swap", ways)] == ["sdb"]
    assert [way.top.name for way in block_devices.holding("/swap", ways)] == ["sda"]
    assert block_devices.holding("/swap", ways[1:]) == ()


def test_headers_of_both_versions() -> None:
    expected = Header("aes-xts-plain64", 512, 1)
    assert block_devices.read_luks2((FIXTURES / "luks2.json").read_bytes()) == expected
    assert block_devices.read_luks1((FIXTURES / "luks1.txt").read_text()) == expected


def test_the_weakest_part_of_a_header_decides() -> None:
    document = json.loads((FIXTURES / "luks2.json").read_bytes())
    document["keyslots"]["1"] = {**document["keyslots"]["0"], "key_size": 16}
    document["segments"]["1"] = {"type": "linear", "offset": "0", "size": "dynamic"}
    assert block_devices.read_luks2(json.dumps(document).encode()) == Header("mixed", 128, 2)
    document["segments"] = {"0": {"type": "linear", "offset": "0", "size": "dynamic"}}
    assert block_devices.read_luks2(json.dumps(document).encode()).cipher == "none"


@pytest.mark.parametrize(
    "raw",
    [
        *GARBAGE,
        b'{"keyslots": {}, "segments": {}}',
        b'{"keyslots": {"0": {"key_size": 64}}, "segments": {"0": {}}}',
        b'{"keyslots": {"0": {"key_size": "64"}}, "segments": {"0": {"type": "crypt", "encryption": "a"}}}',
    ],
)
def test_luks2_headers_of_another_form_are_refused(raw: bytes) -> None:
    with pytest.raises(CannotTell):
        block_devices.read_luks2(raw)


def test_mappings_without_a_header() -> None:
    text = (
        "/dev/mapper/swap is active and is in use.\n  type:    PLAIN\n  cipher:  aes-xts-plain64\n  keysize: 512 bits\n"
    )
    assert block_devices.read_status(text) == Header("aes-xts-plain64", 512, None)
    for other in ("", "/dev/mapper/x is inactive.\n", text.replace("512", "many")):
        with pytest.raises(CannotTell):
            block_devices.read_status(other)
    with pytest.raises(CannotTell):
        block_devices.read_luks1("LUKS header information\nVersion: 2\n")
