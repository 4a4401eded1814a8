"""What apt, dnf and Nix print, as numbers and names: pure readers that refuse what they do not know.

An empty answer is never taken for "nothing to update": each reader asks for the line that the tool always prints, and
the state of the package lists (how old, and whether they know of security updates at all) is read beside it.
"""

from __future__ import annotations

import contextlib
import hashlib
import re
from collections.abc import Collection, Iterable, Sequence
from datetime import UTC, datetime

from compliance_agent.core.tools import json_answer, unparsable
from compliance_agent.dataclass import dataclass
from compliance_agent.facts import REVISION

APT_LISTS = "/var/lib/apt/lists"
APT_STAMP = "/var/lib/apt/periodic/compliance-agent-update-stamp"
APT_LOCKS = (
    "/var/lib/dpkg/lock-frontend",
    "/var/lib/dpkg/lock",
    "/var/lib/apt/lists/lock",
    "/var/cache/apt/archives/lock",
)
# `list --upgradable` compares installed with offered versions without solving dependencies: three times faster than a
# simulated dist-upgrade, and packages that are held or kept back are still in it.
APT_UPGRADABLE = ("apt", "-o", "Debug::NoLocking=1", "list", "--upgradable")
# apt lists no update for a package that an earlier run unpacked and could not set up: only dpkg knows of it.
DPKG_INFO = "/var/lib/dpkg/info"  # holds `<package>.list` of each one whose files are here
DPKG_STATES = ("dpkg-query", "-W", "-f=${db:Status-Abbrev}\n")

DNF_CACHE = "/var/cache/dnf"
DNF_LOCKS = (f"{DNF_CACHE}/metadata_lock.pid", f"{DNF_CACHE}/download_lock.pid", "/var/lib/dnf/rpmdb_lock.pid")
# `-C` looks at what is here already; the directory is root's also for another user, who has one of his own. A lock ends the
# look at once: dnf would wait for it without an end.
DNF_ADVISORIES = (
    *("dnf", "-q", "-C", f"--setopt=cachedir={DNF_CACHE}", "--setopt=exit_on_lock=True"),
    *("updateinfo", "list", "--security"),
)

_DPKG_STATE = re.compile(r"[uihrp](?P<state>[ncHUFWti])(?P<error>[R ])")
_APT_LINE = re.compile(
    r"(?P<name>[a-z0-9][a-z0-9+.-]*)/(?P<suites>\S+) (?P<version>[0-9][A-Za-z0-9.+~:-]*) \S+"
    r" \[upgradable from: (?P<installed>[^\]\s]+)\]"
)
# dnf 4: ADVISORY SEVERITY/Sec. PACKAGE; dnf 5: ADVISORY security SEVERITY PACKAGE ISSUED
_DNF_LINE = re.compile(r"(\S+)\s+(?:(?:[A-Za-z]+/)?Sec\.|security\s+\S+)\s+(\S+)(?:\s+.*)?")
_KERNEL = re.compile(r"(?P<numbers>[0-9]{1,9}(?:[.-][0-9]{1,9})*)(?P<flavour>.*)")
_AS_APT_WRITES = re.compile(  # `Sat, 29 Nov 2025 10:20:30 UTC`
    r"[A-Z][a-z]{2}, ([0-9]{1,2}) ([A-Z][a-z]{2}) ([12][0-9]{3}) ([0-9]{2}):([0-9]{2}):([0-9]{2}) (?:UTC|GMT|\+0000)",
    re.ASCII,
)
_MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")
_GENERATION = re.compile(r"system-([0-9]{1,9})-link")
_NIXPKGS_DATE = re.compile(r"[0-9]{2}\.[0-9]{2}\.(20[0-9]{6})\.[0-9a-f]{6,}")
_NAR_HASH = re.compile(r"sha256:[0-9a-z]{52}")
_STORE_PATH = re.compile(r"/nix/store/[0-9a-z]{32}-[0-9A-Za-z+._?=-]{1,200}")


@dataclass(frozen=True)
class Upgrade:
    """One installed package for which a newer version is offered."""

    name: str
    version: str
    security: bool


@dataclass(frozen=True)
class ReleaseFile:
    """The head of a signed package list: whether it is of security updates, when it was made, until when it is good."""

    security: bool
    made_at: datetime | None
    valid_until: datetime | None


def read_apt_upgradable(text: str) -> tuple[Upgrade, ...]:
    """Upgrades from `apt list --upgradable`.

    Raises:
        CannotTell: `unparsable`; the heading is missing, or a line is of another form.
    """
    lines = [line for line in text.splitlines() if line.strip()]
    if not lines or not lines[0].startswith("Listing..."):
        raise unparsable("apt", "its heading")
    return tuple(_apt_upgrade(line) for line in lines[1:])


def _apt_upgrade(line: str) -> Upgrade:
    found = _APT_LINE.fullmatch(line.strip())
    if found is None:
        raise unparsable("apt", "name/suite version architecture [upgradable from: version]")
    security = any(suite.endswith("-security") for suite in found["suites"].split(","))
    return Upgrade(found["name"], found["version"], security)


def read_half_installed(text: str, info: Collection[str]) -> int:
    """How many packages are unpacked and not set up, wait for a trigger, or must be installed again (dpkg-query(1), Status-Abbrev).

    Raises:
        CannotTell: `unparsable`; a line of another form, or fewer lines than `info` (the names in DPKG_INFO) shows packages.
    """
    packages = sum(name.endswith(".list") for name in info)
    found = [_DPKG_STATE.fullmatch(line) for line in text.splitlines()]
    states = [state for state in found if state is not None]
    if len(states) != len(found) or not 0 < packages <= len(states):
        raise unparsable("dpkg-query", "the state of each package in three letters")
    return sum(state["state"] not in "nci" or state["error"] == "R" for state in states)


def read_release(text: str) -> ReleaseFile:
    """The fields of a Debian `InRelease` or `Release` file that matter here; checksums are not looked at.

    Raises:
        CannotTell: `unparsable`; neither suite nor codename, or a signed file whose end is missing.
    """
    fields: dict[str, str] = {}
    for line in text.splitlines()[:60]:
        name, colon, value = line.partition(": ")
        if colon and not line.startswith(" "):
            fields.setdefault(name.lower(), value.strip())
    suites = [fields[name] for name in ("suite", "codename") if name in fields]
    whole = not text.startswith("-----BEGIN PGP") or text.rstrip().endswith("-----END PGP SIGNATURE-----")
    if not suites or not whole:
        raise unparsable("release file", "a suite or codename, and the end of the signature")
    security = fields.get("label") == "Debian-Security" or any(suite.endswith("-security") for suite in suites)
    return ReleaseFile(security, _rfc2822(fields.get("date")), _rfc2822(fields.get("valid-until")))


def _rfc2822(value: str | None) -> datetime | None:
    if not value:
        return None
    if found := _AS_APT_WRITES.fullmatch(value):
        with contextlib.suppress(ValueError):
            day, month, *rest = found.groups()
            year, hour, minute, second = map(int, rest)
            return datetime(year, _MONTHS.index(month) + 1, int(day), hour, minute, second, tzinfo=UTC)
    from email.utils import parsedate_to_datetime  # ten modules, for what no archive of Debian writes

    try:
        moment = parsedate_to_datetime(value)
    except (ValueError, TypeError, IndexError, OverflowError):
        return None
    return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment


def read_dnf_advisories(text: str) -> dict[str, tuple[str, ...]]:
    """The security advisories that `dnf updateinfo list --security` names (dnf 4 and 5), each with its packages, sorted.

    Raises:
        CannotTell: `unparsable`; a line is of another form.
    """
    advisories: dict[str, set[str]] = {}
    for line in text.splitlines():
        if not line.strip() or line.startswith(("Name ", "Last metadata expiration check:")):
            continue
        found = _DNF_LINE.fullmatch(line.strip())
        if found is None:
            raise unparsable("dnf", "advisory, severity and package on each line")
        advisories.setdefault(found[1], set()).add(found[2])
    return {name: tuple(sorted(packages)) for name, packages in sorted(advisories.items())}


def newer_kernels(running: str, installed: Iterable[str]) -> tuple[str, ...]:
    """Installed kernel releases of the running kernel's flavour that are newer than it. `6.1.0-28-amd64` form.

    Raises:
        CannotTell: `unparsable`; the running kernel's release has another form.
    """
    own = _KERNEL.fullmatch(running)
    if own is None:
        raise unparsable("osrelease", "a kernel release")
    found = (_KERNEL.fullmatch(name) for name in installed)
    return tuple(
        kernel[0]
        for kernel in found
        if kernel and kernel["flavour"] == own["flavour"] and _numbers(kernel["numbers"]) > _numbers(own["numbers"])
    )


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.split(r"[.-]", text))


def locked_inodes(proc_locks: str) -> frozenset[int]:
    """Inodes on which some process holds a write lock, from `/proc/locks`; waiting ones (`->`) hold nothing."""
    held: set[int] = set()
    for line in proc_locks.splitlines():
        words = line.split()
        if len(words) >= 6 and words[1] != "->" and words[3] == "WRITE":
            inode = words[5].rpartition(":")[2]
            if inode.isdigit():
                held.add(int(inode))
    return frozenset(held)


@dataclass(frozen=True)
class NixosVersion:
    """What `nixos-version` says: the day and the revision of the package collection, None where it names none."""

    day: datetime | None
    revision: str | None


def read_nixos_version(raw: bytes) -> NixosVersion:
    """Day and revision of the package collection from `nixos-version --json`.

    Raises:
        CannotTell: `unparsable`.
    """
    document = json_answer(raw, "nixos-version")
    version = document.get("nixosVersion") if isinstance(document, dict) else None
    if not isinstance(version, str):
        raise unparsable("nixos-version", "nixosVersion")
    found, revision = _NIXPKGS_DATE.fullmatch(version), document.get("nixpkgsRevision")
    try:
        day = datetime.strptime(found[1], "%Y%m%d").replace(tzinfo=UTC) if found else None
    except ValueError:
        day = None
    named = isinstance(revision, str) and REVISION.fullmatch(revision) is not None
    return NixosVersion(day, revision if named else None)


def read_closure(raw: bytes, system: str) -> tuple[str, ...]:
    """The store paths of a closure as `nix-store --query --requisites` lists them, sorted; the system itself is one of them.

    Raises:
        CannotTell: `unparsable`.
    """
    text = raw.decode("ascii", "replace")
    paths = text.removesuffix("\n").split("\n")
    if not text.endswith("\n") or system not in paths or not all(map(_STORE_PATH.fullmatch, paths)):
        raise unparsable("nix-store --requisites", "store paths, the system among them")
    return tuple(sorted(set(paths)))


def closure_digest(paths: Sequence[str], hashes: bytes) -> str:
    """SHA-256 over a line `PATH HASH` for each path, with the hashes that `nix-store --query --hash` printed for them in order.

    Raises:
        CannotTell: `unparsable`.
    """
    text = hashes.decode("ascii", "replace")
    lines = text.removesuffix("\n").split("\n")
    if not text.endswith("\n") or len(lines) != len(paths) or not all(map(_NAR_HASH.fullmatch, lines)):
        raise unparsable("nix-store --hash", "a hash for each path")
    told = "".join(f"{path} {line}\n" for path, line in zip(paths, lines, strict=True))
    return hashlib.sha256(told.encode()).hexdigest()


def read_generation(link: str) -> int:
    """The generation that the system profile's link (`system-42-link`) names.

    Raises:
        CannotTell: `unparsable`.
    """
    found = _GENERATION.fullmatch(link.strip().rpartition("/")[2])
    if found is None:
        raise unparsable("readlink", "system-NUMBER-link")
    return int(found[1])


def generations(names: Iterable[str]) -> tuple[int, ...]:
    """The numbers of the generations in a listing of the profiles directory, ascending."""
    return tuple(sorted(int(found[1]) for name in names if (found := _GENERATION.fullmatch(name))))


def read_store_path(text: str) -> str:
    """A Nix store path, alone on its line.

    Raises:
        CannotTell: `unparsable`.
    """
    path = text.strip()
    if _STORE_PATH.fullmatch(path) is None:
        raise unparsable("readlink", "a store path")
    return path
