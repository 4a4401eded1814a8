"""file_integrity beyond its cases: links and devices, limits, unreadable files, manifests, and a real dpkg database."""

from __future__ import annotations

import dataclasses
import hashlib
import subprocess
from pathlib import Path
from typing import Any

import pytest

from compliance_agent.adapters.subprocess_host import RealHost
from compliance_agent.checks import registry
from compliance_agent.checks.file_integrity import _LIST, _MANIFEST, _ONE, Parameters
from compliance_agent.core import file_lists
from compliance_agent.core.file_lists import Verified
from compliance_agent.errors import CannotTell
from compliance_agent.lab.clinic import healthy_host
from compliance_agent.lab.drift import FAULTS
from compliance_agent.lab.host import FakeHost, Node
from compliance_agent.lab.programs import apt
from compliance_agent.models import DriftResult, Result
from tests.checks.contract import seen_by

CHECK = registry()["file_integrity"]
NOTHING_ELSE = {"manifest": None, "manifest_sha256": None, "directories": None, "packages": False}
DIGEST = hashlib.sha256(b"").hexdigest()
CONTROL = "Package: toy\nVersion: 1\nArchitecture: all\nMaintainer: t <t@example.org>\nDescription: t\n"


async def look(host: FakeHost, **parameters: Any) -> DriftResult:
    return await seen_by(CHECK, host, **parameters)


@pytest.mark.parametrize("name", [name for name, fault in FAULTS.items() if fault.check == "file_integrity"])
async def test_every_fault_is_found_for_its_reason(name: str) -> None:
    host = healthy_host()
    FAULTS[name].inject(host)
    result = await look(host)
    assert (result.result, result.reason, result.plan) == (Result.FAIL, FAULTS[name].reason, None)


@pytest.mark.parametrize("kind", ["symlink", "fifo", "device", "directory"])
async def test_what_is_no_regular_file_is_neither_followed_nor_opened(kind: str) -> None:
    """The link leads to a file with the very bytes that are expected, and still is not the file."""
    host = healthy_host()
    host.place("/tmp/same", host.files[_ONE])
    host.place(_ONE, Node(kind, target="/tmp/same"))
    result = await look(host, **NOTHING_ELSE)
    assert (result.reason, result.pre_state["special"]) == ("file_replaced", [_ONE])
    assert f"path:{_ONE}" not in host.looked


@pytest.mark.parametrize(
    ("mode", "reason"), [(0o755, "as_expected"), (0o600, "as_expected"), (0o757, "file_open"), (0o775, "file_open")]
)
async def test_a_listed_file_that_others_may_write_need_not_stay_what_it_is(mode: int, reason: str) -> None:
    host = healthy_host()
    host.files[_ONE].mode = mode
    result = await look(host, **NOTHING_ELSE)
    assert (result.reason, result.pre_state["writable"]) == (reason, int(reason == "file_open"))


@pytest.mark.parametrize("reason", ["not_permitted", "io_error", "timed_out"])
async def test_a_file_that_cannot_be_read_is_unknown(reason: str) -> None:
    host = healthy_host()
    host.faults.blind(f"path:{_ONE}", reason)
    result = await look(host)
    assert (result.result, result.reason) == (Result.UNKNOWN, reason)


async def test_a_file_that_cannot_be_read_hides_no_other() -> None:
    host = healthy_host()
    host.faults.blind(f"path:{_ONE}", "not_permitted")
    host.append("/usr/local/sbin/clinic-print", "x")
    result = await look(host)
    assert (result.reason, result.pre_state["unread"]) == ("file_changed", 2)  # it stands on both lists


@pytest.mark.parametrize(("one", "total"), [(1, 8), (2, 2)])
async def test_more_than_may_be_read_is_unknown(one: int, total: int) -> None:
    host, big = healthy_host(), b"x" * 1_100_000
    names = ("/srv/a", "/srv/b")
    for number, name in enumerate(names):
        host.put(name, big + bytes([number]))
    digests = tuple(hashlib.sha256(host.files[name].content).hexdigest() for name in names)
    listed = {**NOTHING_ELSE, "files": names, "digests": digests}
    assert (await look(host, **listed)).result is Result.PASS
    assert (await look(host, **listed, max_file_mib=one, max_total_mib=total)).reason == "output_too_large"


async def test_a_link_put_in_place_while_it_is_read_is_noticed() -> None:
    host = healthy_host()
    node = host.files[_ONE]

    def swapped() -> bytes:
        host.files[_ONE] = Node("symlink", target="/tmp/same")
        return node.content

    host.files[_ONE] = dataclasses.replace(node, source=swapped)
    assert (await look(host, **NOTHING_ELSE)).reason == "unparsable"


async def test_a_manifest_that_was_changed_with_its_files_is_noticed() -> None:
    host = healthy_host()
    host.put(_ONE, "#!/bin/sh\n")
    host.put(_LIST, _MANIFEST.replace(_MANIFEST[:64], hashlib.sha256(b"#!/bin/sh\n").hexdigest()))
    assert (await look(host, files=None, digests=None)).reason == "manifest_changed"


async def test_a_directory_is_looked_through() -> None:
    host = healthy_host()
    host.put("/usr/local/sbin/deep/er/new", "x")
    host.place("/usr/local/sbin/link", Node("symlink", target=_ONE))
    result = await look(host)
    assert (result.reason, result.pre_state["unlisted"]) == ("file_unlisted", 2)


async def test_configuration_is_counted_and_not_judged() -> None:
    host = healthy_host()
    host.part(apt.Packages).altered = ["??5?????? c /etc/ssh/sshd_config", "missing   c /etc/motd"]
    result = await look(host)
    assert (result.result, result.pre_state["config_changed"], result.pre_state["config_missing"]) == (
        Result.PASS,
        1,
        1,
    )


async def test_a_package_without_digests_is_unknown() -> None:
    host = healthy_host()
    host.delete(next(path for path in host.files if path.endswith(".md5sums")))
    assert (await look(host)).reason == "packages_unverifiable"


def test_a_list_as_sha256sum_writes_it(tmp_path: Path) -> None:
    names = [tmp_path / "a", tmp_path / "with space"]
    for path in names:
        path.write_text(path.name)
    ran = subprocess.run(["sha256sum", *names], capture_output=True, text=True, check=True)
    assert file_lists.read_manifest(ran.stdout) == {
        str(path): hashlib.sha256(path.name.encode()).hexdigest() for path in names
    }


@pytest.mark.parametrize(
    "text",
    [
        "",
        "\n",
        f"{DIGEST}  relative\n",
        f"{DIGEST[:-1]}  /a\n",
        f"{DIGEST.upper()}  /a\n",
        f"\\{DIGEST}  /a\\nb\n",
        f"{DIGEST}  /a\n\n",
        f"{DIGEST}  /a\n{DIGEST} */a\n",
        f"MD5 (/a) = {DIGEST}\n",
    ],
)
def test_lists_of_another_form_are_refused(text: str) -> None:
    with pytest.raises(CannotTell):
        file_lists.read_manifest(text)


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("??5??????   /usr/bin/x\n??5", "unparsable"),
        ("??.??????   /usr/bin/x\n", "unparsable"),
        ("S.5....T.   /usr/bin/x\n", "unparsable"),
        ("??5??????   usr/bin/x\n", "unparsable"),
        ("dpkg: warning\n", "unparsable"),
        ("?????????   /usr/bin/x\n", "not_permitted"),
        ("missing     /usr/bin/x (Permission denied)\n", "not_permitted"),
    ],
)
def test_words_of_dpkg_that_are_not_guessed(line: str, reason: str) -> None:
    with pytest.raises(CannotTell) as caught:
        file_lists.read_verify(line)
    assert caught.value.reason == reason


def toy_package(place: Path) -> Path:
    """A root with one package in a database of its own, made by dpkg itself."""
    tree, root = place / "tree", place / "root"
    for path, text in {
        "DEBIAN/control": CONTROL,
        "DEBIAN/conffiles": "/etc/toy.conf\n",
        "etc/toy.conf": "a\n",
        "usr/share/toy/b": "b\n",
        "usr/share/toy/c": "c\n",
    }.items():
        (tree / path).parent.mkdir(parents=True, exist_ok=True, mode=0o755)
        (tree / path).write_text(text)
    (tree / "DEBIAN").chmod(0o755)
    (root / "var/lib/dpkg").mkdir(parents=True)
    (root / "var/lib/dpkg/status").touch()
    subprocess.run(["dpkg-deb", "-b", tree, place / "toy.deb"], check=True, capture_output=True)
    options = ["dpkg", f"--root={root}", "--force-not-root", f"--log={place}/log"]
    subprocess.run([*options, "-i", place / "toy.deb"], check=True, capture_output=True)
    return root


def verified(root: Path) -> Verified:
    ran = subprocess.run(
        [file_lists.VERIFY[0], f"--root={root}", *file_lists.VERIFY[1:]], capture_output=True, text=True, check=True
    )
    assert ran.stderr == ""
    return file_lists.read_verify(ran.stdout)


def test_dpkg_itself_says_what_is_read(tmp_path: Path) -> None:
    root = toy_package(tmp_path)
    info = root / "var/lib/dpkg/info"
    assert (verified(root), file_lists.unverifiable(path.name for path in info.iterdir())) == (Verified(), 0)
    for path in ("etc/toy.conf", "usr/share/toy/b"):
        (root / path).write_text("other\n")
    (root / "usr/share/toy/c").unlink()
    assert verified(root) == Verified(changed=1, missing=1, config_changed=1)
    (info / "toy.md5sums").unlink()
    assert verified(root).changed == 0  # silence, though the file is still another
    assert file_lists.unverifiable(path.name for path in info.iterdir()) == 1


async def test_real_files_on_a_real_disk(tmp_path: Path) -> None:
    path, host = tmp_path / "program", RealHost()
    path.write_bytes(b"right\n")
    parameters = Parameters(files=(str(path),), digests=(hashlib.sha256(b"right\n").hexdigest(),))

    async def reason() -> str:
        return CHECK.judge(parameters, await CHECK.observe(host, parameters)).reason

    assert await reason() == "as_expected"
    path.write_bytes(b"wrong\n")
    assert await reason() == "file_changed"
    path.rename(tmp_path / "elsewhere")
    assert await reason() == "file_missing"
    (tmp_path / "elsewhere").write_bytes(b"right\n")
    path.symlink_to(tmp_path / "elsewhere")
    assert await reason() == "file_replaced"


@pytest.mark.parametrize(
    "wrong",
    [
        {},
        {"files": (), "digests": ()},
        {"files": ("/a",)},
        {"files": ("/a",), "digests": ("0",)},
        {"files": ("a",), "digests": (DIGEST,)},
        {"files": ("/a/../b",), "digests": (DIGEST,)},
        {"manifest": "/a"},
        {"manifest": "/a", "manifest_sha256": "0"},
        {"packages": True, "directories": ("/a",)},
        {"packages": True, "max_file_mib": 0},
    ],
)
def test_parameters_that_would_check_nothing_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="expected"):
        Parameters(**wrong)
