"""What apt, dnf and Nix print. The apt fixtures come from a Debian 12 host with updates waiting."""

from __future__ import annotations

from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from compliance_agent.core import packages
from compliance_agent.core.packages import Upgrade
from compliance_agent.errors import CannotTell
from compliance_agent.lab.faults import GARBAGE

FIXTURES = Path(__file__).parent.parent / "fixtures" / "checks" / "patching"


def fixture(name: str) -> str:
    return (FIXTURES / name).read_text()


def test_apt_upgrades_by_the_suite_that_offers_them() -> None:
    upgrades = packages.read_apt_upgradable(fixture("apt_upgradable.txt"))
    assert len(upgrades) == 39
    assert Upgrade("apt", "2.6.2", security=True) in upgrades
    assert Upgrade("base-files", "12.4+deb12u15", security=False) in upgrades
    assert sum(upgrade.security for upgrade in upgrades) == fixture("apt_upgradable.txt").count("-security")


def test_a_security_suite_among_others_is_security() -> None:
    """On Ubuntu an update is in -updates and -security, and a package may have an epoch."""
    text = (
        "Listing...\nlogin/jammy-updates,jammy-security 1:4.8.1-2ubuntu2.2 amd64 [upgradable from: 1:4.8.1-2ubuntu2]\n"
    )
    assert packages.read_apt_upgradable(text) == (Upgrade("login", "1:4.8.1-2ubuntu2.2", security=True),)


def test_nothing_to_upgrade_still_has_its_heading() -> None:
    assert packages.read_apt_upgradable("Listing...\n") == ()
    assert packages.read_apt_upgradable("Listing... Done\n") == ()


@pytest.mark.parametrize(
    "text",
    [
        *(raw.decode("utf-8", "replace") for raw in GARBAGE),
        "Listi",
        "apt/oldstable-security 2.6.2 amd64 [upgradable from: 2.6.1]\n",
        "Listing...\napt/oldstable-security 2.6.2 amd64\n",
        "Listing...\napt/oldstable-security 2.6.2 amd64 [installed,automatic]\n",
        "Listing...\n--allow-remove/x-security 1 amd64 [upgradable from: 0]\n",
    ],
)
def test_apt_answers_of_another_form_are_refused(text: str) -> None:
    with pytest.raises(CannotTell, match="apt"):
        packages.read_apt_upgradable(text)


@given(st.text(max_size=200))
def test_no_text_becomes_a_package_with_an_odd_name(text: str) -> None:
    """Names go into an argument list: none may look like an option or hold a blank."""
    try:
        upgrades = packages.read_apt_upgradable(f"Listing...\n{text}")
    except CannotTell:
        return
    assert all(upgrade.name[0].isalnum() and " " not in upgrade.name for upgrade in upgrades)


def test_release_files() -> None:
    release = packages.read_release(fixture("InRelease_security"))
    assert release.security
    assert release.made_at == datetime(2026, 11, 21, 0, 53, 2, tzinfo=UTC)
    assert release.valid_until == datetime(2026, 11, 28, 0, 53, 2, tzinfo=UTC)
    main = packages.read_release(fixture("InRelease_main"))
    assert (main.security, main.valid_until) == (False, None)


def test_a_release_file_names_its_security_suite_in_one_of_three_ways() -> None:
    for head in ("Label: Debian-Security\nSuite: x", "Suite: noble-security", "Codename: bookworm-security"):
        assert packages.read_release(f"Origin: X\n{head}\nDate: Sat, 21 Nov 2026 00:53:02 UTC\n").security
    assert not packages.read_release("Label: Debian\nSuite: oldstable\nDescription: security fixes\n").security


@pytest.mark.parametrize("date", ["", "tomorrow", "Sat, 99 Nov 2026 00:00:00 UTC", "Sat, 21 Nov 99999 00:00:00 UTC"])
def test_a_date_that_is_none_is_not_known(date: str) -> None:
    assert packages.read_release(f"Suite: a-security\nDate: {date}\n").made_at is None


@given(
    st.integers(0, 10**11),
    st.sampled_from(["UTC", "GMT", "+0000", "+0200", "EST", "-0000"]),
)
def test_a_date_is_read_as_the_library_for_mail_reads_it(seconds: int, zone: str) -> None:
    """By hand in the form that apt writes, by that library in any other: the same time."""
    text = f"{datetime.fromtimestamp(seconds, UTC):%a, %d %b %Y %H:%M:%S} {zone}"
    expected = parsedate_to_datetime(text)
    expected = expected if expected.tzinfo else expected.replace(tzinfo=UTC)
    assert packages.read_release(f"Suite: x\nDate: {text}\n").made_at == expected


@pytest.mark.parametrize("cut", [0, 20, 300, 600])
def test_a_signed_release_file_that_was_cut_is_refused(cut: int) -> None:
    with pytest.raises(CannotTell):
        packages.read_release(fixture("InRelease_security")[:cut])


def test_dnf_advisories_are_counted_once() -> None:
    dnf4 = (
        "RHSA-2026:1001 Important/Sec. openssl-1:3.0.7-25.el9_3.x86_64\n"
        "RHSA-2026:1001 Important/Sec. openssl-libs-1:3.0.7-25.el9_3.x86_64\n"
        "RHSA-2026:1107 Moderate/Sec.  curl-7.76.1-29.el9.x86_64\n"
        "ALSA-2026:0009 Unknown/Sec.   vim-minimal-2:8.2.2637-20.el9.x86_64\n"
    )
    dnf5 = (
        "Name                   Type     Severity   Package                 Issued\n"
        "FEDORA-2026-0d9d5a8a6a security Moderate   vim-data-2:9.1.1-1.fc43 2026-11-02 01:23:45\n"
    )
    found = packages.read_dnf_advisories(dnf4)
    assert len(found) == 3
    assert found["RHSA-2026:1001"] == ("openssl-1:3.0.7-25.el9_3.x86_64", "openssl-libs-1:3.0.7-25.el9_3.x86_64")
    assert packages.read_dnf_advisories(dnf5) == {"FEDORA-2026-0d9d5a8a6a": ("vim-data-2:9.1.1-1.fc43",)}
    assert packages.read_dnf_advisories("") == {}
    with pytest.raises(CannotTell, match="dnf"):
        packages.read_dnf_advisories("Error: Failed to download metadata\n")


def test_kernels_are_compared_by_number_and_within_their_flavour() -> None:
    installed = ("6.1.0-9-amd64", "6.1.0-41-amd64", "6.1.0-42-cloud-amd64", "5.15.0-200-generic", "build", "extra")
    assert packages.newer_kernels("6.1.0-9-amd64", installed) == ("6.1.0-41-amd64",)
    assert packages.newer_kernels("6.1.0-41-amd64", installed) == ()
    assert packages.newer_kernels("6.12.5-200.fc41.x86_64", ("6.12.10-200.fc41.x86_64",)) == (
        "6.12.10-200.fc41.x86_64",
    )
    with pytest.raises(CannotTell):
        packages.newer_kernels("", installed)


def test_locks_that_are_held_and_not_those_waited_for() -> None:
    text = (
        "1: POSIX  ADVISORY  WRITE 1234 08:01:131 0 EOF\n"
        "2: POSIX  ADVISORY  READ  1234 08:01:132 0 EOF\n"
        "1: -> POSIX  ADVISORY  WRITE 99 08:01:133 0 EOF\n"
        "3: FLOCK  ADVISORY  WRITE 77 08:01:134 0 EOF\n"
        "junk\n"
    )
    assert packages.locked_inodes(text) == {131, 134}
    assert packages.locked_inodes("") == frozenset()


def test_nixos_versions_with_and_without_a_day() -> None:
    raw = b'{"configurationRevision":"x","nixosVersion":"25.11.20261102.abc1234","nixpkgsRevision":"abc1234"}'
    assert packages.read_nixos_version(raw).day == datetime(2026, 11, 2, tzinfo=UTC)
    for version in (b"25.11pre-git", b"25.11.20269999.abc1234", b"25.11.20261102"):
        assert packages.read_nixos_version(b'{"nixosVersion":"' + version + b'"}').day is None
    for raw in GARBAGE:
        with pytest.raises(CannotTell):
            packages.read_nixos_version(raw)


def test_the_revision_is_taken_when_it_is_one() -> None:
    def revision(text: str) -> str | None:
        raw = f'{{"nixosVersion":"25.11.20261102.abc1234","nixpkgsRevision":{text}}}'
        return packages.read_nixos_version(raw.encode()).revision

    assert revision(f'"{"0a" * 20}"') == "0a" * 20
    for text in ("null", '"dirty"', f'"{"0a" * 20}-dirty"', f'"{"0A" * 20}"', "7"):
        assert revision(text) is None


STORE = [f"/nix/store/{letter * 32}-thing-1.0" for letter in "ab"]


def test_a_closure_is_all_of_its_paths_with_their_hashes_in_whatever_order() -> None:
    both = "".join(f"{path}\n" for path in STORE)
    assert packages.read_closure(both.encode(), STORE[1]) == packages.read_closure(
        "".join(f"{path}\n" for path in reversed(STORE)).encode(), STORE[1]
    )
    hashes = [f"sha256:{letter * 52}\n".encode() for letter in "xy"]
    digest = packages.closure_digest(STORE, b"".join(hashes))
    assert digest != packages.closure_digest(STORE, b"".join(reversed(hashes)))
    assert digest != packages.closure_digest(STORE[:1], hashes[0])
    for raw in (b"", both.encode()[:-1], STORE[0].encode() + b"\n", b"/etc/passwd\n" + both.encode(), *GARBAGE):
        with pytest.raises(CannotTell):
            packages.read_closure(raw, STORE[1])
    for raw in (b"", hashes[0], b"".join(hashes)[:-1], b"".join([*hashes, hashes[0]]), *GARBAGE):
        with pytest.raises(CannotTell):
            packages.closure_digest(STORE, raw)


def test_generations() -> None:
    assert packages.read_generation("system-42-link\n") == 42
    assert packages.read_generation("/nix/var/nix/profiles/system-7-link\n") == 7
    assert packages.generations(["default", "system", "system-9-link", "system-42-link", "per-user"]) == (9, 42)
    for link in ("", "system-link", "system-٤٢-link", "system-42-link.drv"):
        with pytest.raises(CannotTell):
            packages.read_generation(link)


def test_store_paths() -> None:
    path = "/nix/store/" + "a1" * 16 + "-nixos-system-clinic-25.11"
    assert packages.read_store_path(path + "\n") == path
    for text in ("", "/etc/passwd", path + "/../../../etc", path.replace("/nix", "/tmp")):
        with pytest.raises(CannotTell):
            packages.read_store_path(text)
