"""Files are byte for byte what they should be: listed ones by digest, those of Debian packages by what dpkg knows of them.

There is no cure: right bytes can only come from a copy that is trusted, which the host itself is not once a file of it has changed.
A symbolic link or a device in place of a file is not followed or opened. A file that could not be read is never taken for intact.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping
from dataclasses import field, replace
from weakref import WeakKeyDictionary

from compliance_agent.checks.files import read_whole, stats_of
from compliance_agent.checks.spec import UNREADABLE, Case, CheckSpec, Citation, Scene, failed, passed, unknown
from compliance_agent.core import file_lists, packages
from compliance_agent.core.tools import answered
from compliance_agent.dataclass import dataclass
from compliance_agent.errors import CannotTell
from compliance_agent.facts import SHA256, Bool, Int, Many, Name, fact
from compliance_agent.models import Plan, Result, Severity, Verdict
from compliance_agent.ports import FileDigest, Host

MIB = 1_048_576
COUNT = Int(0, 1_000_000)
FILES = Many(Name("files"))


@dataclass(frozen=True)
class Parameters:
    files: tuple[str, ...] | None = field(default=None, metadata={"doc": "Files whose digest stands in `digests`."})
    digests: tuple[str, ...] | None = field(default=None, metadata={"doc": "SHA-256 of each of `files`, in its order."})
    manifest: str | None = field(default=None, metadata={"doc": "A file on the host as `sha256sum` writes it."})
    manifest_sha256: str | None = field(default=None, metadata={"doc": "SHA-256 of that file as it was approved."})
    directories: tuple[str, ...] | None = field(
        default=None, metadata={"doc": "Directories that may hold, at any depth, only files that are listed."}
    )
    packages: bool = field(default=False, metadata={"doc": "Files of Debian packages must be as dpkg knows them."})
    max_file_mib: int = field(default=64, metadata={"doc": "Largest file that is read; a larger one is unknown."})
    max_total_mib: int = field(default=512, metadata={"doc": "Most that is read in one look; more is unknown."})

    def __post_init__(self) -> None:
        if self.files is None and self.manifest is None and not self.packages:
            raise ValueError("files, manifest, packages: expected at least one; nothing would be compared")
        for name in ("files", "digests", "directories"):
            if getattr(self, name) is not None and not 1 <= len(getattr(self, name)) <= 64:
                raise ValueError(f"{name}: expected 1 to 64, or leave it out")
        if len(self.files or ()) != len(self.digests or ()):
            raise ValueError("files, digests: expected one digest for each file")
        if not all(SHA256.fullmatch(digest) for digest in self.digests or ()):
            raise ValueError("digests: expected 64 lower-case hexadecimal digits each")
        if (self.manifest is None) != (self.manifest_sha256 is None):
            raise ValueError("manifest, manifest_sha256: expected both; a list that nobody pinned proves nothing")
        if self.manifest_sha256 is not None and not SHA256.fullmatch(self.manifest_sha256):
            raise ValueError("manifest_sha256: expected 64 lower-case hexadecimal digits")
        if self.directories is not None and self.files is None and self.manifest is None:
            raise ValueError("directories: expected files or a manifest beside them")
        for path in (*(self.files or ()), *(self.directories or ()), self.manifest or "/"):
            if not path.startswith("/") or ".." in path.split("/"):
                raise ValueError("files, directories, manifest: expected absolute paths")
        if not 1 <= self.max_file_mib <= 1024 or not self.max_file_mib <= self.max_total_mib <= 65_536:
            raise ValueError("max_file_mib, max_total_mib: expected 1 to 1024, and at least as much in total")


@dataclass(frozen=True)
class Observation:
    changed: tuple[str, ...] | None = fact(FILES, "Listed files with another digest.")
    missing: tuple[str, ...] | None = fact(FILES, "Listed files that are not there.")
    special: tuple[str, ...] | None = fact(FILES, "Listed files in whose place something else stands, such as a link.")
    manifest_as_pinned: bool | None = fact(Bool(), "The manifest has the digest that the baseline pins.")
    manifest_files: int | None = fact(COUNT, "Files in the manifest.")
    manifest_changed: int | None = fact(COUNT, "Of these, with another digest.")
    manifest_missing: int | None = fact(COUNT, "Of these, not there.")
    manifest_special: int | None = fact(COUNT, "Of these, something else in their place.")
    unlisted: int | None = fact(COUNT, "Files in the listed directories that are on no list.")
    unread: int | None = fact(COUNT, "Files that could not be read.")
    writable: int | None = fact(COUNT, "Listed files as approved that group or others may write.")
    read_bytes: int | None = fact(Int(0, 2**40), "Bytes that were compared.")
    kept_bytes: int | None = fact(
        Int(0, 2**40),
        "Of these, not read again: nothing has touched the file since its digest was taken, at most 15 minutes before.",
    )
    packages: int | None = fact(COUNT, "Packages whose files are on this host.")
    packages_unverifiable: int | None = fact(COUNT, "Packages of which dpkg has no digests.")
    package_files_changed: int | None = fact(COUNT, "Files of packages with other bytes, without configuration.")
    package_files_missing: int | None = fact(COUNT, "Files of packages that are not there, without configuration.")
    config_changed: int | None = fact(COUNT, "Configuration files of packages that were changed; not judged.")
    config_missing: int | None = fact(COUNT, "Configuration files of packages that were removed; not judged.")


_EXAMPLE = {"/usr/local/sbin/clinic-sync": "#!/bin/sh\nexec true\n", "/usr/local/sbin/clinic-print": "#!/bin/sh\n"}
_ONE = "/usr/local/sbin/clinic-sync"
_LIST = "/etc/compliance-agent/files.sha256"


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


_MANIFEST = "".join(f"{_digest(text)}  {path}\n" for path, text in _EXAMPLE.items())

CHECK = CheckSpec(
    id="file_integrity",
    title="Listed files, and those of packages, are byte for byte what they should be",
    severity=Severity.HIGH,
    rationale="A program that was changed does what somebody else wants, under the name that everybody trusts.",
    citations=(
        Citation(
            "164.312(c)(1)",
            rationale="Changes to the programs and files that hold or handle records are noticed.",
            does_not_prove="That records themselves were not altered by those who may alter them, or that the lists are"
            " complete; whoever is root can change what dpkg compares with.",
            primary=True,
        ),
        Citation(
            "164.312(c)(2)",
            rationale="Files that are pinned by digest are shown to be the very ones that were approved.",
            does_not_prove="That electronic records which change every day were not altered without authorization.",
        ),
    ),
    parameters=Parameters,
    observation=Observation,
    example={
        "files": (_ONE,),
        "digests": (_digest(_EXAMPLE[_ONE]),),
        "manifest": _LIST,
        "manifest_sha256": _digest(_MANIFEST),
        "directories": ("/usr/local/sbin",),
        "packages": True,
    },
    reasons={
        "file_changed": "A listed file has other bytes.",
        "file_replaced": "In the place of a listed file stands a link or something else.",
        "file_missing": "A listed file is not there.",
        "manifest_changed": "The manifest is not the one that was approved.",
        "file_open": "Group or others may write to a listed file, so it need not stay what it is.",
        "file_unlisted": "A listed directory holds a file that is on no list.",
        "package_file_changed": "A file of a package has other bytes.",
        "package_file_missing": "A file of a package is not there.",
        "packages_unverifiable": "dpkg has no digests of a package, so it says nothing of its files.",
    },
    needs=("dpkg where packages are compared", "root: only it can read every file"),
    reads=("path:{files}", "path:{manifest}", "path:{directories}"),
    untold={
        "path:/*": "what a manifest lists may be a whole system, and waits for the next look",
        "stat:/*": "likewise, as does what is deeper in a directory",
        "list:/*": "likewise",
    },
    optional={
        "program:dpkg garbage_0": "silence is what dpkg says when all is well; packages and digests are counted beside it"
    },
    interval_s=21_600,
    deadline_s=300.0,
)


async def observe(host: Host, baseline: Parameters) -> Observation:
    look = _Look(host, baseline)
    seen = Observation()
    own = dict(zip(baseline.files or (), baseline.digests or (), strict=True))
    known = _LISTED.get(host)
    if known is not None and known[0] == baseline.manifest_sha256:
        await look.ahead((*own, *known[1], *([baseline.manifest] if baseline.manifest else ())))
    if own:
        words = await look.words(own)
        seen = replace(
            seen,
            changed=tuple(path for path, word in words.items() if word == "changed"),
            missing=tuple(path for path, word in words.items() if word == "missing"),
            special=tuple(path for path, word in words.items() if word == "special"),
        )
    listed = await _manifest(host, baseline, look)
    if baseline.manifest is not None:
        seen = replace(seen, manifest_as_pinned=listed is not None)
    if listed:
        found = list((await look.words(listed)).values())
        seen = replace(
            seen,
            manifest_files=len(listed),
            manifest_changed=found.count("changed"),
            manifest_missing=found.count("missing"),
            manifest_special=found.count("special"),
        )
    if baseline.directories and (listed is not None or baseline.manifest is None):
        every = own.keys() | (listed or {}).keys()
        seen = replace(seen, unlisted=await _unlisted(host, baseline.directories, every, look.present))
    if baseline.packages:
        seen = await _with_packages(host, seen)
    seen = replace(seen, unread=len(look.errors), writable=len(look.writable))
    seen = replace(seen, read_bytes=look.read_bytes, kept_bytes=look.kept_bytes)
    if look.errors and judge(baseline, replace(seen, unread=0)).result is not Result.FAIL:
        raise look.errors[0]
    return seen


class _Look:
    """One look at files, within the baseline's limits."""

    def __init__(self, host: Host, baseline: Parameters) -> None:
        self.host = host
        self.most = baseline.max_file_mib * MIB
        self.left = baseline.max_total_mib * MIB
        self.read_bytes = self.kept_bytes = 0
        self.found: dict[str, FileDigest | CannotTell] = {}
        self.errors: list[CannotTell] = []
        self.present: set[str] = set()
        self.writable: set[str] = set()

    async def ahead(self, paths: Collection[str]) -> None:
        """Look at all of these at once. The last of them has what the limit leaves."""
        self.found.update(await self.host.digests(tuple(paths), most_bytes=self.most, total_bytes=self.left))

    async def words(self, listed: Mapping[str, str]) -> Mapping[str, str]:
        """For each path one of same, changed, missing, special, unread."""
        if not self.found.keys() >= listed.keys():
            await self.ahead(listed)
        found = self.found
        words, read, kept = dict[str, str](), 0, 0
        for path, digest in listed.items():  # thousands, each minute: no call for each
            one = found[path]
            if isinstance(one, CannotTell):
                words[path] = self._refused(one)
            elif one.sha256 is None:
                words[path] = "special"
            else:
                read += one.size_bytes
                kept += one.size_bytes if one.kept else 0
                self.present.add(path)
                if one.mode & 0o022:
                    self.writable.add(path)
                words[path] = "same" if one.sha256 == digest else "changed"
        self.left, self.read_bytes, self.kept_bytes = self.left - read, self.read_bytes + read, self.kept_bytes + kept
        return words

    def _refused(self, found: CannotTell) -> str:
        if found.reason == "not_found":
            return "missing"
        self.errors.append(found)
        return "unread"


# Of each host the list that was read last, by its digest: the same bytes say the same.
_LISTED: WeakKeyDictionary[Host, tuple[str, Mapping[str, str]]] = WeakKeyDictionary()


async def _manifest(host: Host, baseline: Parameters, look: _Look) -> Mapping[str, str] | None:
    """The manifest, None when it is not the one that was pinned, or none is."""
    if baseline.manifest is None or baseline.manifest_sha256 is None:
        return None
    known, now = _LISTED.get(host), look.found.get(baseline.manifest)
    if known is not None and isinstance(now, FileDigest) and now.sha256 == known[0] == baseline.manifest_sha256:
        return known[1]
    raw = (await read_whole(host, baseline.manifest))[1]
    if hashlib.sha256(raw).hexdigest() != baseline.manifest_sha256:
        return None
    listed = file_lists.read_manifest(raw.decode("utf-8", "replace"))
    _LISTED[host] = (baseline.manifest_sha256, listed)
    return listed


async def _unlisted(host: Host, directories: Collection[str], listed: Collection[str], present: Collection[str]) -> int:
    """How many files at any depth are on no list. Those that were just read (`present`) must be among what is there."""
    tops = tuple(directory.rstrip("/") for directory in directories)
    waiting, files, entries = list(tops), set[str](), 0
    while waiting:
        directory = waiting.pop()
        names = await host.list(directory or "/")
        entries += len(names)
        if entries > file_lists.MOST_FILES:
            raise CannotTell("output_too_large", f"directories: more than {file_lists.MOST_FILES} entries")
        for path, stat in (await stats_of(host, [f"{directory}/{name}" for name in names])).items():
            if stat.kind == "directory":
                waiting.append(path)
            else:
                files.add(path)
    unlisted = len(files.difference(listed))
    below = {path for path in present if path.startswith(tuple(f"{top}/" for top in tops))}
    if not unlisted and not below <= files:
        raise CannotTell("unparsable", "a directory did not show a file that is in it")
    return unlisted


async def _with_packages(host: Host, seen: Observation) -> Observation:
    info = await host.list(packages.DPKG_INFO)
    packages.read_half_installed(answered(await host.run(packages.DPKG_STATES), "dpkg-query").text, info)
    ran = await host.run(file_lists.VERIFY, timeout_s=CHECK.deadline_s - 30)
    if ran.err.strip():
        raise CannotTell("tool_failed", "dpkg: complained while it verified")
    found = file_lists.read_verify(answered(ran, "dpkg").text)
    return replace(
        seen,
        packages=sum(name.endswith(".list") for name in info),
        packages_unverifiable=file_lists.unverifiable(info),
        package_files_changed=found.changed,
        package_files_missing=found.missing,
        config_changed=found.config_changed,
        config_missing=found.config_missing,
    )


def judge(baseline: Parameters, seen: Observation) -> Verdict:
    return _judge_listed(seen) or _judge_packages(baseline, seen) or _judge_complete(baseline, seen)


def _judge_listed(seen: Observation) -> Verdict | None:
    if seen.manifest_as_pinned is False:
        return failed("manifest_changed", "expected the manifest that was approved, found another")
    for reason, named, counted, what in (
        ("file_changed", seen.changed, seen.manifest_changed, "as approved, found other bytes"),
        ("file_replaced", seen.special, seen.manifest_special, "a regular file, found something else"),
        ("file_missing", seen.missing, seen.manifest_missing, "there, found nothing"),
    ):
        if named or counted:
            which = ", ".join(named or ()) or f"{counted} files of the manifest"
            return failed(reason, f"expected {which} {what}")
    if seen.writable:
        return failed("file_open", f"expected listed files that root alone writes, found {seen.writable} open")
    if seen.unlisted:
        return failed("file_unlisted", f"expected only listed files, found {seen.unlisted} more")
    return None


def _judge_packages(baseline: Parameters, seen: Observation) -> Verdict | None:
    if not baseline.packages:
        return None
    if seen.package_files_changed:
        return failed("package_file_changed", f"expected files as packed, found {seen.package_files_changed} changed")
    if seen.package_files_missing:
        return failed("package_file_missing", f"expected files as packed, found {seen.package_files_missing} missing")
    if seen.packages is None or seen.package_files_changed is None or seen.package_files_missing is None:
        return unknown("unparsable", "whether files of packages changed could not be told")
    if seen.packages_unverifiable != 0:
        return unknown("packages_unverifiable", "expected digests of every package, found some without")
    return None


def _judge_complete(baseline: Parameters, seen: Observation) -> Verdict:
    """Nothing wrong was seen; a pass only when everything that was asked for was seen."""
    wanted = [seen.unread, seen.read_bytes, seen.kept_bytes, seen.writable]
    if baseline.files:
        wanted += [None if names is None else len(names) for names in (seen.changed, seen.missing, seen.special)]
    if baseline.manifest:
        wanted += [seen.manifest_files, seen.manifest_changed, seen.manifest_missing, seen.manifest_special]
    if baseline.directories:
        wanted.append(seen.unlisted)
    if None in wanted or seen.unread:
        return unknown("unparsable", "whether every listed file is as it should be could not be told")
    count = len(baseline.files or ()) + (seen.manifest_files or 0)
    return passed(f"{count} listed files and {seen.packages or 0} packages are as they should be")


def plan(baseline: Parameters, seen: Observation) -> Plan | None:
    """None ever: see the head of this file."""
    return None


def _scene(host: Scene) -> None:
    for path, text in _EXAMPLE.items():
        host.put(path, text, mode=0o755)
    host.put(_LIST, _MANIFEST)


_READ = len(_EXAMPLE[_ONE]) + sum(map(len, _EXAMPLE.values()))
GOOD = Observation((), (), (), True, 2, 0, 0, 0, 0, 0, 0, _READ, 0, 10, 0, 0, 0, 0, 0)
CASES = (
    Case("as listed", GOOD, Result.PASS, "as_expected", scene=_scene),
    Case("configuration changed", replace(GOOD, config_changed=3, config_missing=1), Result.PASS),
    Case("changed", replace(GOOD, changed=(_ONE,)), Result.FAIL, "file_changed"),
    Case("one of the manifest changed", replace(GOOD, manifest_changed=1), Result.FAIL, "file_changed"),
    Case("changed, and others not read", replace(GOOD, changed=(_ONE,), unread=1), Result.FAIL, "file_changed"),
    Case("a link in its place", replace(GOOD, special=(_ONE,)), Result.FAIL, "file_replaced"),
    Case("gone", replace(GOOD, missing=(_ONE,)), Result.FAIL, "file_missing"),
    Case("another manifest", replace(GOOD, manifest_as_pinned=False), Result.FAIL, "manifest_changed"),
    Case("open to others", replace(GOOD, writable=1), Result.FAIL, "file_open"),
    Case("one more", replace(GOOD, unlisted=1), Result.FAIL, "file_unlisted"),
    Case("a program of a package", replace(GOOD, package_files_changed=1), Result.FAIL, "package_file_changed"),
    Case("a file of a package gone", replace(GOOD, package_files_missing=1), Result.FAIL, "package_file_missing"),
    Case("no digests", replace(GOOD, packages_unverifiable=1), Result.UNKNOWN, "packages_unverifiable"),
    Case("not read", replace(GOOD, unread=1), Result.UNKNOWN),
    Case("packages not asked", replace(GOOD, package_files_changed=None), Result.UNKNOWN),
    Case("directories not looked at", replace(GOOD, unlisted=None), Result.UNKNOWN),
    Case("nothing was seen", Observation(), Result.UNKNOWN),
    Case("could not look", UNREADABLE, Result.UNKNOWN, "tool_failed"),
)
