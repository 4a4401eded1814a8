"""Security updates are installed, and the host knows of them: an old package list hides what is missing.

Three package managers, one question. apt and dnf are asked for security updates that wait, and the age of what they know
is part of the answer. NixOS is asked for its generation and the day of its package collection; a newer generation than
the baseline's is an update, not drift, and nothing here ever goes backwards. How long an update has been waiting is the
age of the finding, which the server knows from the bundles; the host keeps no such memory.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import field, replace
from datetime import datetime, timedelta

from compliance_agent.checks.files import is_there
from compliance_agent.checks.spec import (
    UNREADABLE,
    Case,
    CheckSpec,
    Citation,
    Permits,
    Proposal,
    failed,
    passed,
    unknown,
)
from compliance_agent.core import packages
from compliance_agent.core.tools import answered, unparsable
from compliance_agent.dataclass import dataclass
from compliance_agent.errors import CannotTell
from compliance_agent.facts import Bool, Choice, Digest, Int, Revision, fact
from compliance_agent.models import Plan, Result, Severity, Step, Verdict
from compliance_agent.ports import Host

MANAGERS = ("apt", "dnf", "nixos")
CLOCK_TOLERANCE = timedelta(hours=1)
PROFILE = "/nix/var/nix/profiles/system"


@dataclass(frozen=True)
class Parameters:
    manager: str = field(metadata={"doc": "Package manager: apt, dnf or nixos."})
    max_lists_age_h: int = field(default=48, metadata={"doc": "Age in hours at which a package list is stale."})
    reboot_grace_h: int = field(
        default=168, metadata={"doc": "Hours within which a needed reboot must have been done."}
    )
    max_nixpkgs_age_d: int = field(default=30, metadata={"doc": "NixOS: age in days of the package collection in use."})
    min_generation: int | None = field(
        default=None, metadata={"doc": "NixOS: lowest system generation; newer ones are never drift."}
    )

    def __post_init__(self) -> None:
        if self.manager not in MANAGERS:
            raise ValueError(f"manager: expected one of {', '.join(MANAGERS)}")
        for name, low, high in (
            ("max_lists_age_h", 1, 8_760),
            ("reboot_grace_h", 0, 8_760),
            ("max_nixpkgs_age_d", 1, 730),
        ):
            if not low <= getattr(self, name) <= high:
                raise ValueError(f"{name}: expected {low} to {high}")
        if self.min_generation is not None and (self.manager != "nixos" or not 1 <= self.min_generation < 10**9):
            raise ValueError("min_generation: expected a positive number, with manager nixos")


@dataclass(frozen=True)
class Observation:
    manager: str | None = fact(Choice(MANAGERS), "Package manager that was asked.")
    security_pending: int | None = fact(Int(0, 100_000), "Security updates that wait (apt: packages, dnf: advisories).")
    pending_sha256: str | None = fact(
        Digest(), "Digest of the waiting security updates, names and versions (apt, dnf)."
    )
    other_pending: int | None = fact(Int(0, 100_000), "Other updates that wait (apt).")
    half_installed: int | None = fact(
        Int(0, 100_000), "Packages that were unpacked and not set up, so that an update may not be in effect (apt)."
    )
    security_sources: int | None = fact(Int(0, 1_000), "Package sources that announce security updates.")
    lists_age_h: int | None = fact(Int(0, 1_000_000), "Age of the oldest security package list, full hours.")
    lists_expired: bool | None = fact(Bool(), "A security package list is past the date its maker signed.")
    reboot_needed: bool | None = fact(Bool(), "An installed update takes effect at the next start of the host.")
    reboot_waiting_h: int | None = fact(Int(0, 1_000_000), "How long that has been so, full hours.")
    generation: int | None = fact(Int(1, 10**9), "NixOS: system generation that is selected.")
    newest_generation: int | None = fact(Int(1, 10**9), "NixOS: newest system generation on the host.")
    generation_active: bool | None = fact(Bool(), "NixOS: the selected generation is the one that runs.")
    nixpkgs_age_d: int | None = fact(Int(0, 40_000), "NixOS: age of the package collection in use, full days.")
    derivation_digest: str | None = fact(
        Digest(), "NixOS: digest over every store path of the running system's closure with the hash of its content."
    )
    nixos_revision: str | None = fact(Revision(), "NixOS: revision of the package collection that it was built from.")


CHECK = CheckSpec(
    id="patching",
    title="Security updates are installed",
    severity=Severity.HIGH,
    rationale="Known holes in installed software are the likeliest way in, and the vendor's fix closes them.",
    citations=(
        Citation(
            "164.308(a)(1)(ii)(B)",
            "Installing security updates is a measure that reduces known risks to a reasonable level.",
            "That the risk analysis behind the measure exists, or that holes without a fix are treated.",
            primary=True,
        ),
        Citation(
            "164.308(a)(5)(ii)(B)",
            "Malicious software mostly uses holes for which an update exists.",
            "Detection of malicious software; see av_health.",
        ),
    ),
    parameters=Parameters,
    observation=Observation,
    reasons={
        "no_security_source": "No package source announces security updates, so none could be found.",
        "lists_stale": "What the package manager knows is too old to rely on.",
        "lists_age_unknown": "The age of the package lists cannot be told.",
        "security_pending": "Security updates wait to be installed.",
        "half_installed": "A package was unpacked and not set up, so an update may not be in effect.",
        "kernel_unknown": "The running kernel is none of those installed, so it cannot be told whether it is current.",
        "reboot_overdue": "A needed restart of the host has not been done in time.",
        "generation_behind": "The system generation is older than the baseline's.",
        "generation_not_active": "The selected system generation is not the one that runs.",
        "nixpkgs_old": "The package collection in use is too old to hold current security updates.",
        "nixpkgs_age_unknown": "The version names no date, so the age of the package collection cannot be told.",
    },
    example={"manager": "apt"},
    needs=("apt", "dpkg-query", "dnf", "nixos-version", "nix-store", "readlink"),
    reads=("path:/run/reboot-required",),
    untold={
        target: "a look in the middle of an installation would find half of it"
        for target in ("list:/var/*", "stat:/var/*", "path:/var/*", "list:/lib/modules", "stat:/nix/*", "list:/nix/*")
    }
    | {"path:/proc/*": "the kernel that runs changes with a restart alone", "stat:/run/*-system": "NixOS: likewise"},
    optional={
        f"stat:{packages.APT_STAMP} not_found": "lists that their maker dated today need no stamp of ours",
        "stat:/run/reboot-required not_found": "no update has asked for a restart",
        "list:/lib/modules not_found": "a container has no kernel of its own",
        "list:/lib/modules empty": "nor has one whose image brought the empty directory",
    },
    interval_s=3_600,
    deadline_s=60.0,
)


async def observe(host: Host, baseline: Parameters) -> Observation:
    look = {"apt": _observe_apt, "dnf": _observe_dnf, "nixos": _observe_nixos}[baseline.manager]
    return await look(host)


async def propose(host: Host) -> Proposal:
    """The package manager that keeps its books here."""
    books = {"nixos": PROFILE, "apt": packages.DPKG_INFO, "dnf": packages.DNF_CACHE}
    for manager, path in books.items():
        if await is_there(host, path):
            return {"manager": manager}
    return {}


async def _observe_apt(host: Host) -> Observation:
    listed = answered(await host.run(packages.APT_UPGRADABLE, timeout_s=45.0), "apt")
    upgrades = packages.read_apt_upgradable(listed.text)
    security = sorted(f"{upgrade.name}={upgrade.version}" for upgrade in upgrades if upgrade.security)
    states = answered(await host.run(packages.DPKG_STATES, timeout_s=15.0), "dpkg-query")
    sources, age_h, expired = await _apt_lists(host)
    reboot_needed, waiting_h = await _reboot(host)
    return Observation(
        manager="apt",
        security_pending=len(security),
        pending_sha256=_digest(security),
        other_pending=len(upgrades) - len(security),
        half_installed=packages.read_half_installed(states.text, await host.list(packages.DPKG_INFO)),
        security_sources=sources,
        lists_age_h=age_h,
        lists_expired=expired,
        reboot_needed=reboot_needed,
        reboot_waiting_h=waiting_h,
    )


def _digest(lines: Iterable[str]) -> str:
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


async def _apt_lists(host: Host) -> tuple[int, int | None, bool]:
    """How many security lists there are, the age of the oldest in hours (None: cannot be told), and if one has expired.

    A list is as old as the date its maker signed, or as the last refresh that succeeded as a whole, whichever is newer:
    the modification time of the file is the maker's as well, and other tools' stamps are set after partial failures.
    """
    names = [name for name in await host.list(packages.APT_LISTS) if name.endswith(("_InRelease", "_Release"))]
    releases = [
        release
        for name in names
        if (
            release := packages.read_release(
                (await host.read(f"{packages.APT_LISTS}/{name}")).decode("utf-8", "replace")
            )
        ).security
    ]
    now = host.now()
    refreshed = await _modified_at(host, packages.APT_STAMP)
    ages = [_age_h(now, release.made_at, refreshed) for release in releases]
    known = [age for age in ages if age is not None]
    expired = any(release.valid_until is not None and release.valid_until < now for release in releases)
    return len(releases), max(known) if known and len(known) == len(ages) else None, expired


def _age_h(now: datetime, *moments: datetime | None) -> int | None:
    """Full hours since the newest of these; a moment in the future says nothing and is left out."""
    past = [moment for moment in moments if moment is not None and moment <= now + CLOCK_TOLERANCE]
    return max(0, int((now - max(past)).total_seconds() // 3_600)) if past else None


async def _modified_at(host: Host, path: str) -> datetime | None:
    """When a file was last written; None when it is not there."""
    try:
        return (await host.stat(path)).modified_at
    except CannotTell as error:
        if error.reason == "not_found":
            return None
        raise


async def _reboot(host: Host) -> tuple[bool | None, int | None]:
    """Whether a restart is needed, and for how many hours: an update asked for one, or a newer kernel was installed.

    None when the running kernel is none of those installed, so that nothing can be said of it.
    """
    asked_at = await _modified_at(host, "/run/reboot-required")
    try:
        kernels = await host.list("/lib/modules")
    except CannotTell as error:
        if error.reason != "not_found":
            raise
        kernels = ()  # a container: its kernel is the machine's business
    running = (await host.read("/proc/sys/kernel/osrelease")).decode("ascii", "replace").strip()
    newer = packages.newer_kernels(running, kernels)
    since = [asked_at, *[await _modified_at(host, f"/lib/modules/{kernel}") for kernel in newer]]
    waiting = [moment for moment in since if moment is not None]
    if waiting:
        return True, max(0, int((host.now() - min(waiting)).total_seconds() // 3_600))
    return (None if kernels and running not in kernels else bool(newer)), None


async def _observe_dnf(host: Host) -> Observation:
    listed = answered(await host.run(packages.DNF_ADVISORIES, timeout_s=45.0), "dnf")
    advisories = packages.read_dnf_advisories(listed.text)
    sources, age_h = await _dnf_metadata(host)
    reboot_needed, waiting_h = await _reboot(host)
    return Observation(
        manager="dnf",
        security_pending=len(advisories),
        pending_sha256=_digest(f"{name}={' '.join(fixed)}" for name, fixed in advisories.items()),
        security_sources=sources,
        lists_age_h=age_h,
        lists_expired=False,
        reboot_needed=reboot_needed,
        reboot_waiting_h=waiting_h,
    )


async def _dnf_metadata(host: Host) -> tuple[int, int | None]:
    """How many cached repositories announce advisories, and the age of the newest look at one of them.

    The newest, because caches of repositories that were switched off stay behind; dnf itself fails when one that is
    switched on cannot be read. Where a look finds nothing new, dnf dates one of the files anew and leaves the others.
    """
    looked: list[datetime] = []
    for repository in await host.list(packages.DNF_CACHE):
        place = f"{packages.DNF_CACHE}/{repository}/repodata"
        index = f"{place}/repomd.xml"
        if await is_there(host, index) and b'type="updateinfo"' in await host.read(index):
            dated = [await _modified_at(host, f"{place}/{name}") for name in await host.list(place)]
            looked += sorted(moment for moment in dated if moment is not None)[-1:]
    return len(looked), _age_h(host.now(), *looked)


async def _observe_nixos(host: Host) -> Observation:
    version = packages.read_nixos_version(answered(await host.run(("nixos-version", "--json")), "nixos-version").out)
    link = answered(await host.run(("readlink", PROFILE)), "readlink").text
    known = packages.generations(await host.list(PROFILE.rpartition("/")[0]))
    selected, running, kernel, booted_kernel = await _store_paths(host)
    if not known:
        raise unparsable("profiles", "at least one generation")
    return Observation(
        manager="nixos",
        generation=packages.read_generation(link),
        newest_generation=known[-1],
        generation_active=selected == running,
        nixpkgs_age_d=None if version.day is None else max(0, (host.now() - version.day).days),
        derivation_digest=await _closure_digest(host, running),
        nixos_revision=version.revision,
        reboot_needed=kernel != booted_kernel,
    )


async def _closure_digest(host: Host, system: str) -> str:
    """What the running system is made of, to the last byte, as the store's database has it."""
    asked = await host.run(("nix-store", "--query", "--requisites", system), timeout_s=30.0)
    paths = packages.read_closure(answered(asked, "nix-store").out, system)
    hashed = answered(await host.run(("nix-store", "--query", "--hash", *paths), timeout_s=30.0), "nix-store")
    return packages.closure_digest(paths, hashed.out)


async def _store_paths(host: Host) -> tuple[str, str, str, str]:
    places = (PROFILE, "/run/current-system", "/run/current-system/kernel", "/run/booted-system/kernel")
    found = [answered(await host.run(("readlink", "-f", place)), "readlink").text.strip() for place in places]
    for path in found[:2]:
        packages.read_store_path(path)
    return found[0], found[1], found[2], found[3]


def judge(baseline: Parameters, seen: Observation) -> Verdict:
    return _judge_nixos(baseline, seen) if baseline.manager == "nixos" else _judge_lists(baseline, seen)


def _judge_lists(baseline: Parameters, seen: Observation) -> Verdict:
    if seen.security_pending is None or seen.security_sources is None:
        return unknown("unparsable", "could not tell which updates wait")
    if seen.security_sources == 0:
        return failed("no_security_source", "expected a package source with security updates, found none")
    if seen.security_pending > 0:
        return failed("security_pending", f"expected no waiting security updates, found {seen.security_pending}")
    if seen.manager != "dnf" and seen.half_installed is None:
        return unknown("unparsable", "could not tell whether every package is set up")
    if seen.half_installed:
        return failed(
            "half_installed", f"expected every package to be set up, found {seen.half_installed} that are not"
        )
    if seen.lists_expired:
        return failed("lists_stale", "expected current package lists, found one past its signed date")
    if seen.lists_age_h is None or seen.lists_expired is None:
        return unknown("lists_age_unknown", "the date of the package lists is missing or in the future")
    if seen.lists_age_h > baseline.max_lists_age_h:
        return failed(
            "lists_stale", f"expected package lists of at most {baseline.max_lists_age_h} h, found {seen.lists_age_h} h"
        )
    return _judge_reboot(baseline, seen)


def _judge_reboot(baseline: Parameters, seen: Observation) -> Verdict:
    if seen.reboot_needed is None:
        return unknown("kernel_unknown", "the running kernel is none of those installed")
    if seen.reboot_needed and (seen.reboot_waiting_h is None or seen.reboot_waiting_h > baseline.reboot_grace_h):
        return failed("reboot_overdue", f"expected a restart within {baseline.reboot_grace_h} h of the update")
    return passed("no security update waits" + (", a restart is due" if seen.reboot_needed else ""))


def _judge_nixos(baseline: Parameters, seen: Observation) -> Verdict:
    if seen.generation is None or seen.generation_active is None:
        return unknown("unparsable", "could not tell the system generation")
    if baseline.min_generation is not None and seen.generation < baseline.min_generation:
        return failed(
            "generation_behind", f"expected generation {baseline.min_generation} or newer, found {seen.generation}"
        )
    if not seen.generation_active:
        return failed("generation_not_active", f"expected generation {seen.generation} to run, found another system")
    if seen.nixpkgs_age_d is None:
        return unknown("nixpkgs_age_unknown", "the version names no date of the package collection")
    if seen.nixpkgs_age_d > baseline.max_nixpkgs_age_d:
        return failed(
            "nixpkgs_old", f"expected packages of at most {baseline.max_nixpkgs_age_d} d, found {seen.nixpkgs_age_d} d"
        )
    return passed(f"generation {seen.generation} runs" + (", a restart is due" if seen.reboot_needed else ""))


def plan(baseline: Parameters, seen: Observation) -> Plan | None:
    """Installing is disruptive (services restart). Fresh lists nearly always show new updates, so a refresh alone would
    rarely end in a pass: both are one plan. A restart, a missing source and an old collection are for a person.
    """
    reason = judge(baseline, seen).reason
    if reason in {"lists_stale", "security_pending", "half_installed"}:
        steps = [
            Step(action, {"manager": baseline.manager})
            for action in ("refresh_package_lists", "apply_security_updates")
        ]
        return Plan(CHECK.id, tuple(steps), disruptive=True, disturbs="restarts_services", target=_target_updates(seen))
    if reason in {"generation_behind", "generation_not_active"} and seen.generation is not None:
        target = _target_generation(baseline, seen.generation, seen.newest_generation)
        if target is not None:
            step = Step("switch_generation", {"generation": target})
            return Plan(CHECK.id, (step,), disruptive=True, disturbs="restarts_services", target=f"generation_{target}")
    return None


def permits(baseline: Parameters) -> Permits:
    """The one package manager, and the stamp that says when all its sources answered."""
    if baseline.manager == "apt":
        return {"may": ["apt"], "files": {packages.APT_STAMP: []}}
    return {"may": ["nix" if baseline.manager == "nixos" else baseline.manager]}


def _target_updates(seen: Observation) -> str:
    """Which updates, from lists of which day: an attempt that failed (a mirror was down) is worth another one a day later."""
    if seen.half_installed and not seen.security_pending:
        return f"half_installed_{seen.half_installed}"
    return f"updates_{(seen.pending_sha256 or '')[:16]}_{(seen.lists_age_h or 0) // 24}"


def _target_generation(baseline: Parameters, selected: int, newest: int | None) -> int | None:
    """The selected generation when it is new enough, else the newest one; None when none on the host is new enough."""
    wanted = max(selected, baseline.min_generation or 0)
    if wanted == selected:
        return selected
    return newest if newest is not None and newest >= wanted else None


_GOOD = Observation(
    manager="apt",
    security_pending=0,
    other_pending=4,
    half_installed=0,
    security_sources=1,
    lists_age_h=9,
    lists_expired=False,
    reboot_needed=False,
)
_NIX = {"manager": "nixos", "min_generation": 40}
_OLD = replace(_GOOD, lists_age_h=400)
_DUE = replace(_GOOD, reboot_needed=True, reboot_waiting_h=20)

CASES = (
    Case("up to date", _GOOD, Result.PASS, "as_expected"),
    Case("restart due, within its time", _DUE, Result.PASS),
    Case("updates wait", replace(_GOOD, security_pending=3), Result.FAIL, "security_pending", heals=True),
    Case("a package is not set up", replace(_GOOD, half_installed=1), Result.FAIL, "half_installed", heals=True),
    Case("whether packages are set up is not told", replace(_GOOD, half_installed=None), Result.UNKNOWN, "unparsable"),
    Case("lists are old and show nothing", _OLD, Result.FAIL, "lists_stale", heals=True),
    Case("whether they expired is not told", replace(_GOOD, lists_expired=None), Result.UNKNOWN, "lists_age_unknown"),
    Case("lists have expired", replace(_GOOD, lists_expired=True), Result.FAIL, "lists_stale", heals=True),
    Case("no security source", replace(_GOOD, security_sources=0), Result.FAIL, "no_security_source"),
    Case("lists from the future", replace(_GOOD, lists_age_h=None), Result.UNKNOWN, "lists_age_unknown"),
    Case("restart overdue", replace(_DUE, reboot_waiting_h=400), Result.FAIL, "reboot_overdue"),
    Case("running kernel not installed", replace(_GOOD, reboot_needed=None), Result.UNKNOWN, "kernel_unknown"),
    Case("nothing seen", Observation(manager="apt"), Result.UNKNOWN),
    Case("cannot ask apt", UNREADABLE, Result.UNKNOWN),
    Case(
        "dnf advisories wait",
        replace(_GOOD, manager="dnf", security_pending=2, other_pending=None, half_installed=None),
        Result.FAIL,
        "security_pending",
        {"manager": "dnf"},
        heals=True,
    ),
    Case(
        "a newer generation is no drift",
        Observation("nixos", generation=57, newest_generation=57, generation_active=True, nixpkgs_age_d=3),
        Result.PASS,
        parameters=_NIX,
    ),
    Case(
        "generation behind, the right one is there",
        Observation("nixos", generation=39, newest_generation=41, generation_active=True, nixpkgs_age_d=3),
        Result.FAIL,
        "generation_behind",
        _NIX,
        heals=True,
    ),
    Case(
        "generation behind, none is new enough",
        Observation("nixos", generation=38, newest_generation=39, generation_active=True, nixpkgs_age_d=3),
        Result.FAIL,
        "generation_behind",
        _NIX,
    ),
    Case(
        "selected generation does not run",
        Observation("nixos", generation=41, newest_generation=41, generation_active=False, nixpkgs_age_d=3),
        Result.FAIL,
        "generation_not_active",
        _NIX,
        heals=True,
    ),
    Case(
        "package collection is old",
        Observation("nixos", generation=41, newest_generation=41, generation_active=True, nixpkgs_age_d=90),
        Result.FAIL,
        "nixpkgs_old",
        _NIX,
    ),
    Case(
        "version names no day",
        Observation("nixos", generation=41, newest_generation=41, generation_active=True),
        Result.UNKNOWN,
        "nixpkgs_age_unknown",
        _NIX,
    ),
)
