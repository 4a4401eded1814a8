"""Which file system a path leads to. Lines are a Debian 12 host's own."""

from __future__ import annotations

import pytest

from compliance_agent.core.mounts import mounted_at, read_mountinfo
from compliance_agent.errors import CannotTell

ROOT = "26 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw\n"
SRV = "275 26 253:1 / /srv rw,relatime shared:126 - ext4 /dev/mapper/records rw\n"
MEMORY = "300 275 0:44 / /srv rw,relatime shared:140 - tmpfs none rw,inode64\n"


def device_at(path: str, *lines: str) -> str | None:
    top = mounted_at(path, read_mountinfo("".join(lines)))
    return None if top is None else top.device


def test_the_mount_on_top_counts() -> None:
    assert device_at("/srv", ROOT, SRV) == "253:1"
    assert device_at("/srv", ROOT, SRV, MEMORY) == "0:44"
    assert device_at("/srv", MEMORY, SRV, ROOT) == "0:44", "whatever the order of the lines"
    assert device_at("/srv/", ROOT, SRV) == "253:1"


def test_a_mount_further_up_hides_those_below() -> None:
    inner = "280 26 253:1 / /srv/records rw - ext4 /dev/mapper/records rw\n"
    over = "281 26 0:50 / /srv rw - tmpfs none rw\n"
    assert device_at("/srv/records", ROOT, inner) == "253:1"
    assert device_at("/srv/records", ROOT, inner, over) is None
    assert device_at("/srv/records", ROOT, inner, over, inner.replace("280 26", "282 281")) == "253:1"


def test_a_path_that_is_no_mount_point() -> None:
    assert device_at("/srv", ROOT) is None
    assert device_at("/sr", ROOT, SRV) is None
    assert device_at("/", ROOT) == "254:0"


def test_a_root_that_is_its_own_parent_and_names_with_blanks() -> None:
    own = "1 1 0:2 / / rw - rootfs rootfs rw\n"
    blank = "30 26 8:1 / /media/a\\040b ro master:1 propagate_from:2 - vfat /dev/sda1 rw\n"
    assert device_at("/", own, ROOT) == "254:0"
    assert device_at("/media/a b", ROOT, blank) == "8:1"


@pytest.mark.parametrize("text", ["", "\n", "26 1 254:0 / /\n", ROOT.replace(" - ", " "), ROOT.replace("26 1", "x 1")])
def test_another_form_is_refused(text: str) -> None:
    with pytest.raises(CannotTell):
        read_mountinfo(text)
