"""Every account stands for one person who is listed, and only listed ones may become root.

The baseline's names are compared with the host's own files (passwd, shadow, group, sudoers with all it includes). The host's other
names are counted and never recorded. Accounts that a directory service adds are not seen.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import field, replace

from compliance_agent.checks.files import read_whole
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
from compliance_agent.core import sudoers
from compliance_agent.core.passwd import (
    Account,
    Group,
    Shadow,
    may_log_in,
    read_group,
    read_passwd,
    read_shadow,
    scheme_of,
    usable,
)
from compliance_agent.dataclass import dataclass
from compliance_agent.errors import CannotTell
from compliance_agent.facts import SHA256, Digest, Int, Many, Name, fact
from compliance_agent.models import Plan, Result, Severity, Step, Verdict
from compliance_agent.ports import Host

MOST = 1_000_000
MOST_FILES = 256
SCHEMES = ("yescrypt", "gost_yescrypt", "scrypt", "bcrypt", "sha512", "sha256", "md5", "other")
FIRST_PERSON, LAST_PERSON = 1000, 60_000
COUNT = Int(0, MOST)


ADMIN_GROUPS = ("sudo", "wheel", "admin")


@dataclass(frozen=True)
class Parameters:
    people: tuple[str, ...] = field(metadata={"doc": "Accounts that people log in with."})
    admins: tuple[str, ...] = field(metadata={"doc": "Accounts that may become root, besides root itself."})
    expected: tuple[str, ...] = field(
        default=("root",), metadata={"doc": "Accounts that must exist, such as one sealed for emergencies."}
    )
    admin_groups: tuple[str, ...] = field(
        default=ADMIN_GROUPS, metadata={"doc": "Groups whose members may become root."}
    )
    hash_schemes: tuple[str, ...] = field(
        default=("yescrypt", "sha512"), metadata={"doc": "Ways to hash a password that are good enough."}
    )
    max_password_age_d: int = field(
        default=0, metadata={"doc": "Most days a password may be used, where that is asked for; 0: it is not."}
    )
    sudoers_sha256: str | None = field(
        default=None, metadata={"doc": "Digest of all sudoers files, as this check's fact gives it, to pin them."}
    )

    def __post_init__(self) -> None:
        for name in ("people", "admins", "expected", "admin_groups", "hash_schemes"):
            if not getattr(self, name):
                raise ValueError(f"{name}: is empty; nothing would be compared")
        if set(self.hash_schemes) - set(SCHEMES[:-1]):
            raise ValueError(f"hash_schemes: expected some of {', '.join(SCHEMES[:-1])}")
        if not 0 <= self.max_password_age_d <= 36_500:
            raise ValueError("max_password_age_d: expected 0 to 36500")
        if self.sudoers_sha256 is not None and not SHA256.fullmatch(self.sudoers_sha256):
            raise ValueError("sudoers_sha256: expected 64 digits of lower-case hex")


@dataclass(frozen=True)
class Observation:
    accounts: int | None = fact(COUNT, "Accounts in the host's own file.")
    people: tuple[str, ...] | None = fact(Many(Name("people"), 256), "Listed people who have an account.")
    other_people: int | None = fact(COUNT, "Accounts that a person could log in with and that are not listed.")
    missing: tuple[str, ...] | None = fact(Many(Name("expected")), "Expected accounts that are not there.")
    duplicate_uids: int | None = fact(COUNT, "User ids that several accounts share.")
    other_roots: int | None = fact(COUNT, "Accounts besides root with root's user id.")
    empty_passwords: int | None = fact(COUNT, "Accounts that need no password.")
    weak_hashes: int | None = fact(COUNT, "Passwords hashed in a way that is not good enough.")
    old_passwords: int | None = fact(COUNT, "Passwords that may be used for longer than asked; 0 where nothing is.")
    admins: tuple[str, ...] | None = fact(Many(Name("admins")), "Listed accounts that may become root.")
    other_admins: int | None = fact(COUNT, "Further users, groups or rules by which somebody may become root.")
    sudoers_files: int | None = fact(COUNT, "Files that sudo reads.")
    sudoers_sha256: str | None = fact(Digest(), "Digest of their names and contents.")
    stray_keys: int | None = fact(COUNT, "Key files in homes of accounts that are not listed.")


CHECK = CheckSpec(
    id="accounts",
    title="Accounts are those of listed people, and only listed ones may become root",
    severity=Severity.HIGH,
    rationale="What an account does can be laid to a person only when no two people share it and nobody has one unseen.",
    citations=(
        Citation(
            "164.312(a)(2)(i)",
            rationale="No user id is shared, no second account has root's, and each account for a person is listed.",
            does_not_prove="That the people do not tell each other their passwords.",
            primary=True,
        ),
        Citation(
            "164.312(d)",
            rationale="No account opens without a password, and passwords are hashed in a way that resists guessing.",
            does_not_prove="That whoever types a password is the person it belongs to.",
        ),
        Citation(
            "164.308(a)(3)(ii)(A)",
            rationale="Who may become root is compared with the list of those who were authorized.",
            does_not_prove="That the list was approved, or that work done as root is supervised.",
        ),
        Citation(
            "164.308(a)(3)(ii)(C)",
            rationale="An account or a key that stays after its owner was taken off the list is found.",
            does_not_prove="That the list follows the end of employment in time.",
        ),
        Citation(
            "164.308(a)(4)(ii)(B)",
            rationale="Accounts on the host are compared with those for which access was authorized.",
            does_not_prove="That access was authorized for good reasons, or what applications grant.",
        ),
        Citation(
            "164.308(a)(5)(ii)(D)",
            rationale="Empty passwords, weak hashes and, where asked, passwords without an end are found.",
            does_not_prove="That passwords are chosen and kept well.",
        ),
    ),
    parameters=Parameters,
    observation=Observation,
    example={"people": ("msp", "frontdesk"), "admins": ("msp",)},
    reasons={
        "empty_passwords": "An account needs no password.",
        "other_roots": "An account besides root has root's user id.",
        "duplicate_uids": "Several accounts share a user id.",
        "unlisted_admins": "Somebody may become root who is not listed.",
        "unlisted_people": "A person could log in with an account that is not listed.",
        "stray_keys": "An account that is not listed has a file of keys for logging in.",
        "account_missing": "An expected account does not exist.",
        "weak_hashes": "A password is hashed in a way that is not good enough.",
        "old_passwords": "A password may be used for longer than asked.",
        "sudoers_changed": "The sudoers files are not those that the baseline pins.",
    },
    for_people=(
        "other_roots",
        "duplicate_uids",
        "unlisted_admins",
        "unlisted_people",
        "stray_keys",
        "account_missing",
        "weak_hashes",
        "old_passwords",
        "sudoers_changed",
    ),
    needs=("the right to read /etc/shadow and /etc/sudoers", "the cure also usermod and chage"),
    reads=("path:/etc/passwd", "path:/etc/shadow", "path:/etc/group", "path:/etc/sudoers", "path:/etc/sudoers.d"),
    untold={"stat:*/.ssh/authorized_keys*": "people's own directories may be anywhere, and are theirs"},
    optional={
        "stat:*/.ssh/authorized_keys* not_found": "an account without keys is what is hoped for",
        "stat:/etc/sudoers not_found": "without sudo nobody becomes root through it",
        "list:/etc/sudoers.d not_found": "nothing there grants anything",
        "list:/etc/sudoers.d empty": "nothing there grants anything",
    },
    interval_s=300,
    deadline_s=20.0,
)


async def observe(host: Host, baseline: Parameters) -> Observation:
    accounts = read_passwd(await _text(host, "/etc/passwd"))
    shadows = {shadow.name: shadow for shadow in read_shadow(await _text(host, "/etc/shadow"))}
    if any(account.hash == "x" and account.name not in shadows for account in accounts):
        raise CannotTell("unparsable", "an account has no line in the shadow file")
    groups = read_group(await _text(host, "/etc/group"))
    uids = Counter(account.uid for account in accounts)
    hashes = [_hash_of(account, shadows) for account in accounts]
    people = [account for account, hashed in zip(accounts, hashes, strict=True) if _opens(account, hashed)]
    seen = Observation(
        accounts=len(accounts),
        people=tuple(name for name in baseline.people if name in {account.name for account in accounts}),
        other_people=sum(account.name not in baseline.people for account in people),
        missing=tuple(name for name in baseline.expected if name not in {account.name for account in accounts}),
        duplicate_uids=sum(count > 1 for uid, count in uids.items() if uid != 0),
        other_roots=uids[0] - 1,
        empty_passwords=sum(not hashed for hashed in hashes),
        weak_hashes=sum(usable(hashed) and scheme_of(hashed) not in baseline.hash_schemes for hashed in hashes),
        old_passwords=sum(_too_long(shadow, baseline.max_password_age_d) for shadow in shadows.values()),
        stray_keys=await _stray_keys(host, accounts, (*baseline.people, *baseline.admins)),
    )
    return await _with_admins(host, baseline, seen, accounts, groups)


async def propose(host: Host) -> Proposal:
    """The people who have an account now, and those of them who may become root: to be read by somebody who knows them."""
    accounts = read_passwd(await _text(host, "/etc/passwd"))
    groups = read_group(await _text(host, "/etc/group"))
    people = tuple(sorted(account.name for account in accounts if _is_person(account)))
    able = {name for group in groups if group.name in ADMIN_GROUPS for name in _members(group, accounts)}
    admins = tuple(name for name in people if name in able)
    found = {"people": people, "admins": admins, "expected": ("root", *admins)}
    return {name: names for name, names in found.items() if names}


async def _text(host: Host, path: str) -> str:
    return (await read_whole(host, path))[1].decode("utf-8", "replace")


def _hash_of(account: Account, shadows: dict[str, Shadow]) -> str:
    return shadows[account.name].hash if account.hash == "x" else account.hash


def _is_person(account: Account) -> bool:
    return FIRST_PERSON <= account.uid <= LAST_PERSON and may_log_in(account)


def _opens(account: Account, hashed: str) -> bool:
    """Whether somebody could log in with it: a person's account, or any other with a shell and a password that is not locked."""
    return _is_person(account) or (account.uid != 0 and may_log_in(account) and usable(hashed))


def _too_long(shadow: Shadow, most_days: int) -> bool:
    return bool(most_days) and usable(shadow.hash) and (shadow.max_days is None or shadow.max_days > most_days)


async def _stray_keys(host: Host, accounts: Sequence[Account], listed: Sequence[str]) -> int:
    homes = {account.home for account in accounts if account.name not in {"root", *listed}}
    listed_homes = {account.home for account in accounts if account.name in {"root", *listed}}
    found = 0
    for home in sorted(homes - listed_homes - {"", "/"}):
        for name in ("authorized_keys", "authorized_keys2"):
            found += await _has_content(host, f"{home.rstrip('/')}/.ssh/{name}")
    return found


async def _has_content(host: Host, path: str) -> bool:
    try:
        stat = await host.stat(path)
    except CannotTell as error:
        if error.reason == "not_found":
            return False
        raise
    return stat.kind != "file" or stat.size_bytes > 0


async def _with_admins(
    host: Host, baseline: Parameters, seen: Observation, accounts: Sequence[Account], groups: Sequence[Group]
) -> Observation:
    """Who may become root: members of the groups that are known for it, and whoever a rule of sudo names."""
    files = await _sudoers(host)
    read = [sudoers.read_sudoers(raw.decode("utf-8", "replace")) for raw in files.values()]
    aliases = {name: members for file in read for name, members in file.aliases}
    subjects = sudoers.resolved(tuple(subject for file in read for subject in file.subjects), aliases)
    by_group = {group.name: _members(group, accounts) for group in groups}
    able = {name for group in baseline.admin_groups for name in by_group.get(group, set())}
    for subject in subjects:
        able |= by_group.get(subject[1:], set()) if subject.startswith("%") and subject[1:] in by_group else {subject}
    able -= {"root", "#0"} | {f"%{group}" for group in baseline.admin_groups}
    digest = hashlib.sha256()
    for path, raw in sorted(files.items()):
        digest.update(f"{len(path)}:{path}:{len(raw)}:".encode() + raw)
    return replace(
        seen,
        admins=tuple(name for name in baseline.admins if name in able),
        other_admins=len(able - set(baseline.admins)),
        sudoers_files=len(files),
        sudoers_sha256=digest.hexdigest(),
    )


def _members(group: Group, accounts: Sequence[Account]) -> set[str]:
    return {*group.members, *(account.name for account in accounts if account.gid == group.gid)}


async def _sudoers(host: Host) -> dict[str, bytes]:
    """Every file that sudo reads, by path; none where sudo is not there."""
    files: dict[str, bytes] = {}
    waiting = [sudoers.MAIN] if await _has_content(host, sudoers.MAIN) else []
    while waiting:
        path = waiting.pop()
        if path in files:
            continue
        files[path] = (await read_whole(host, path))[1]
        if len(files) > MOST_FILES:
            raise CannotTell("output_too_large", f"sudo reads more than {MOST_FILES} files")
        file = sudoers.read_sudoers(files[path].decode("utf-8", "replace"))
        waiting += file.files
        for directory in file.directories:
            waiting += await _drop_ins(host, directory)
    return files


async def _drop_ins(host: Host, directory: str) -> list[str]:
    try:
        names = await host.list(directory)
    except CannotTell as error:
        if error.reason == "not_found":
            return []
        raise
    return [f"{directory}/{name}" for name in names if sudoers.is_read(name)]


def judge(baseline: Parameters, seen: Observation) -> Verdict:
    counts = {
        "empty_passwords": (seen.empty_passwords, "that every account needs a password", "accounts that do not"),
        "other_roots": (seen.other_roots, "root's user id for root alone", "further accounts with it"),
        "duplicate_uids": (seen.duplicate_uids, "a user id for each account", "ids that are shared"),
        "unlisted_admins": (
            seen.other_admins,
            "only listed accounts to become root",
            "others (look at groups and sudoers)",
        ),
        "unlisted_people": (seen.other_people, "only listed accounts for people", "others"),
        "stray_keys": (seen.stray_keys, "keys of listed accounts only", "files of keys elsewhere"),
        "weak_hashes": (
            seen.weak_hashes,
            f"passwords hashed by {', '.join(baseline.hash_schemes)}",
            "some by another way",
        ),
        "old_passwords": (
            seen.old_passwords,
            f"passwords to end after {baseline.max_password_age_d} days",
            "some that do not",
        ),
    }
    if seen.missing is None or seen.admins is None or any(count is None for count, _, _ in counts.values()):
        return unknown("unparsable", "who has an account could not be told")
    for reason, (count, expected, found) in counts.items():
        if count:
            return failed(reason, f"expected {expected}, found {found}: {count}")
    if seen.missing:
        return failed("account_missing", f"expected an account {', '.join(seen.missing)}, found none")
    if seen.sudoers_sha256 is None:
        return unknown("unparsable", "what sudo is told could not be read")
    if baseline.sudoers_sha256 not in {None, seen.sudoers_sha256}:
        return failed("sudoers_changed", f"expected sudoers of digest {baseline.sudoers_sha256}, found another")
    return passed(f"{seen.accounts} accounts, {len(seen.admins)} of the listed ones may become root")


def plan(baseline: Parameters, seen: Observation) -> Plan | None:
    """Lock what opens without a password: a person who works that way notices, so it waits for the window."""
    if judge(baseline, seen).reason != "empty_passwords":
        return None
    return Plan(CHECK.id, (Step("lock_empty_passwords"),), disruptive=True, disturbs="locks_accounts")


def permits(baseline: Parameters) -> Permits:
    """Lock accounts; the root side sees for itself which of them need no password."""
    return {"may": ["accounts"]}


GOOD = Observation(
    accounts=10,
    people=("msp", "frontdesk"),
    other_people=0,
    missing=(),
    duplicate_uids=0,
    other_roots=0,
    empty_passwords=0,
    weak_hashes=0,
    old_passwords=0,
    admins=("msp",),
    other_admins=0,
    sudoers_files=2,
    sudoers_sha256="0" * 64,
    stray_keys=0,
)
CASES = (
    Case("as listed", GOOD, Result.PASS, "as_expected"),
    Case("an account needs no password", replace(GOOD, empty_passwords=1), Result.FAIL, "empty_passwords", heals=True),
    Case("a second root", replace(GOOD, other_roots=1), Result.FAIL, "other_roots"),
    Case("a shared user id", replace(GOOD, duplicate_uids=1), Result.FAIL, "duplicate_uids"),
    Case("a new sudoer", replace(GOOD, other_admins=1), Result.FAIL, "unlisted_admins"),
    Case("an account that is not listed", replace(GOOD, other_people=1), Result.FAIL, "unlisted_people"),
    Case("a key left behind", replace(GOOD, stray_keys=1), Result.FAIL, "stray_keys"),
    Case("an expected account is gone", replace(GOOD, missing=("root",)), Result.FAIL, "account_missing"),
    Case("an MD5 hash", replace(GOOD, weak_hashes=1), Result.FAIL, "weak_hashes"),
    Case("a password without an end", replace(GOOD, old_passwords=1), Result.FAIL, "old_passwords"),
    Case(
        "sudoers are pinned and others",
        GOOD,
        Result.FAIL,
        "sudoers_changed",
        parameters={"sudoers_sha256": "1" * 64},
    ),
    Case("sudoers as pinned", GOOD, Result.PASS, parameters={"sudoers_sha256": "0" * 64}),
    Case("a listed person has no account", replace(GOOD, people=("msp",)), Result.PASS),
    Case("sudoers not read", replace(GOOD, other_admins=None), Result.UNKNOWN),
    Case("shadow not read", replace(GOOD, empty_passwords=None), Result.UNKNOWN),
    Case("nothing was seen", Observation(), Result.UNKNOWN),
    Case("could not look", UNREADABLE, Result.UNKNOWN, "tool_failed"),
)
