"""People log in over SSH with keys, never with passwords, and over sound cryptography.

What is judged is what is in force: `sshd -T` with every drop-in resolved, `sshd -T -C` for the accounts the baseline names,
what any `Match` block loosens, and whether the running daemon has read its files since they were changed. The cure is a
drop-in file; where no account could log in by key afterwards there is none, because it would lock everybody out.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Mapping, Sequence
from dataclasses import field, replace
from datetime import UTC, datetime, timedelta

from compliance_agent.checks.files import read_whole, stats_of
from compliance_agent.checks.spec import (
    UNREADABLE,
    Case,
    CheckSpec,
    Citation,
    Permits,
    Proposal,
    failed,
    not_applicable,
    passed,
    unknown,
)
from compliance_agent.checks.units import UNIT, unit_word
from compliance_agent.core import sshd
from compliance_agent.core.passwd import may_log_in, read_passwd
from compliance_agent.core.sshd import Effective
from compliance_agent.core.tools import answered
from compliance_agent.dataclass import dataclass
from compliance_agent.errors import CannotTell
from compliance_agent.facts import Bool, Choice, Int, Many, Name, fact
from compliance_agent.models import Plan, Result, Severity, Step, Verdict
from compliance_agent.ports import Host

STAMP = "%a %Y-%m-%d %H:%M:%S UTC"
MOST_ACCOUNTS = 256
LOOKS = 3  # until what is in force is the same before and after a look at the rest
POLICY = (
    "empty_passwords",
    "password_login",
    "host_based_login",
    "root_login",
    "modes_ignored",
    "weak_ciphers",
    "weak_macs",
    "weak_kex",
)
CIPHERS = ("chacha20-poly1305@openssh.com", "aes256-gcm@openssh.com", "aes128-gcm@openssh.com")
CTR = ("aes256-ctr", "aes192-ctr", "aes128-ctr")
MACS = ("hmac-sha2-512-etm@openssh.com", "hmac-sha2-256-etm@openssh.com", "umac-128-etm@openssh.com")
KEX = (
    "mlkem768x25519-sha256",
    "sntrup761x25519-sha512",
    "sntrup761x25519-sha512@openssh.com",
    "curve25519-sha256",
    "curve25519-sha256@libssh.org",
    "ecdh-sha2-nistp256",
    "ecdh-sha2-nistp384",
    "ecdh-sha2-nistp521",
    "diffie-hellman-group16-sha512",
    "diffie-hellman-group18-sha512",
)
HOST_KEYS = tuple(f"/etc/ssh/ssh_host_{kind}_key" for kind in ("rsa", "ecdsa", "ed25519"))


@dataclass(frozen=True)
class Parameters:
    unit: str = field(
        default="ssh.service",
        metadata={"doc": "The daemon's unit; ssh.socket where each login starts one.", "unit": "needed"},
    )
    allow_passwords: bool = field(default=False, metadata={"doc": "A password alone may be enough to log in."})
    root_login: str = field(default=sshd.NEVER, metadata={"doc": "How root may log in: never or by_key."})
    ciphers: tuple[str, ...] = field(default=CIPHERS + CTR, metadata={"doc": "Ciphers that are good enough."})
    macs: tuple[str, ...] = field(default=MACS, metadata={"doc": "Integrity algorithms that are good enough."})
    kex: tuple[str, ...] = field(default=KEX, metadata={"doc": "Key exchanges that are good enough."})
    host_keys: tuple[str, ...] = field(default=HOST_KEYS, metadata={"doc": "Files of the daemon's own private keys."})
    match_users: tuple[str, ...] = field(
        default=("root",), metadata={"doc": "Accounts for which the daemon is asked by name what holds for them."}
    )
    drop_in: str = field(
        default="/etc/ssh/sshd_config.d/00-compliance.conf",
        metadata={"doc": "File that the cure writes; the daemon must include it before anything that contradicts it."},
    )

    def __post_init__(self) -> None:
        if self.root_login not in sshd.ALLOWED_ROOT:
            raise ValueError(f"root_login: expected never or by_key, found {self.root_login!r}")
        for name in ("ciphers", "macs", "kex", "host_keys", "match_users"):
            if not getattr(self, name):
                raise ValueError(f"{name}: is empty; nothing would be compared")
        if any("," in user for user in self.match_users):
            raise ValueError("match_users: expected names of accounts")
        if not self.unit or not self.drop_in.startswith("/") or not self.drop_in.endswith(".conf"):
            raise ValueError("unit, drop_in: expected a unit, and an absolute path that ends in .conf")


@dataclass(frozen=True)
class Observation:
    unit: str | None = fact(UNIT, "State of the daemon's unit.")
    installed: bool | None = fact(Bool(), "The daemon's program is on this host.")
    passwords: bool | None = fact(Bool(), "A password alone is enough to log in.")
    key_required: bool | None = fact(Bool(), "Every way in needs a key, whatever is asked for beside it.")
    empty_passwords: bool | None = fact(Bool(), "Accounts without a password may log in.")
    root_login: str | None = fact(Choice(sshd.ROOT_LOGIN), "How root may log in.")
    host_based: bool | None = fact(Bool(), "Another host's word for who its user is may be enough to log in.")
    strict_modes: bool | None = fact(Bool(), "Keys of an account count only where nobody else may write them.")
    ciphers: tuple[str, ...] | None = fact(Many(Name("ciphers")), "Accepted ciphers that are offered.")
    other_ciphers: int | None = fact(Int(0, 1000), "Offered ciphers that are not accepted.")
    macs: tuple[str, ...] | None = fact(Many(Name("macs")), "Accepted integrity algorithms that are offered.")
    other_macs: int | None = fact(Int(0, 1000), "Offered integrity algorithms that are not accepted.")
    kex: tuple[str, ...] | None = fact(Many(Name("kex")), "Accepted key exchanges that are offered.")
    other_kex: int | None = fact(Int(0, 1000), "Offered key exchanges that are not accepted.")
    lax_users: tuple[str, ...] | None = fact(Many(Name("match_users")), "Named accounts for which less holds.")
    lax_matches: int | None = fact(Int(0, 100_000), "Match blocks that allow what the baseline does not.")
    host_keys: int | None = fact(Int(0, 1000), "Private keys of the daemon that are there.")
    keys_exposed: tuple[str, ...] | None = fact(Many(Name("host_keys")), "Of these, open to group or others.")
    other_keys_exposed: int | None = fact(Int(0, 1000), "Open ones that the baseline does not name.")
    reload_needed: bool | None = fact(Bool(), "The files were changed after the daemon last read them.")
    key_accounts: int | None = fact(
        Int(0, 100_000), "Accounts that could log in by key under the baseline; only counted before a cure."
    )


CHECK = CheckSpec(
    id="ssh_access",
    title="Logging in over SSH needs a key and sound cryptography",
    severity=Severity.HIGH,
    rationale="Passwords on a reachable port are guessed; a key says which person, or at least which device, it was.",
    citations=(
        Citation(
            "164.312(d)",
            rationale="The daemon in force admits nobody on a password alone, so who logs in holds a registered key.",
            does_not_prove="That each key is held by one person only, or that lost keys were withdrawn.",
            primary=True,
        ),
        Citation(
            "164.312(a)(1)",
            rationale="Root cannot log in directly and empty passwords open nothing: access is granted to accounts.",
            does_not_prove="That the accounts with access are the right ones; see accounts.",
        ),
        Citation(
            "164.312(e)(2)(i)",
            rationale="Only message authentication codes of the baseline's list are offered for sessions.",
            does_not_prove="That other protocols on this host protect the integrity of what they carry.",
        ),
        Citation(
            "164.312(e)(2)(ii)",
            rationale="Only ciphers and key exchanges of the baseline's list are offered for sessions.",
            does_not_prove="That records are sent over SSH only; see transmission.",
        ),
    ),
    parameters=Parameters,
    observation=Observation,
    reasons={
        "daemon_missing": "The daemon is installed, and there is no such unit.",
        "daemon_down": "The daemon's unit is not active.",
        "no_ssh": "This host has neither the daemon nor its unit.",
        "empty_passwords": "Accounts without a password may log in.",
        "password_login": "A password alone is enough to log in.",
        "host_based_login": "Another host's word for who its user is may be enough to log in.",
        "root_login": "Root may log in in a way that the baseline does not allow.",
        "modes_ignored": "Keys of an account count although others may write its files, so they can add their own.",
        "weak_ciphers": "Ciphers are offered that are not accepted.",
        "weak_macs": "Integrity algorithms are offered that are not accepted.",
        "weak_kex": "Key exchanges are offered that are not accepted.",
        "host_key_exposed": "A private key of the daemon is open to group or others, so it may have been copied.",
        "reload_needed": "The files were changed after the daemon last read them, so something else is in force.",
        "match_relaxes": "A Match block allows some connections what the baseline does not.",
    },
    for_people=("match_relaxes",),
    needs=(
        "sshd (its -T needs the right to read host keys)",
        "systemd",
        "the cure also ssh and ssh-keyscan over loopback",
    ),
    reads=(
        "unit:{unit}",
        "path:/etc/ssh/sshd_config",
        "path:/etc/ssh/sshd_config.d",
        "path:{drop_in}",
        "path:{host_keys}",
        "path:/etc/passwd",
    ),
    optional={
        "list:/etc/ssh/sshd_config.d not_found": "sshd passes over an include that matches nothing",
        "list:/etc/ssh/sshd_config.d empty": "what drop-ins set shows in sshd -T; without any there is no block in them",
    },
    interval_s=300,
    deadline_s=30.0,
)


async def propose(host: Host) -> Proposal:
    """The unit that answers logins here."""
    units = ("ssh.service", "sshd.service", "ssh.socket", "sshd.socket")
    states = await host.units(units)
    return next(({"unit": unit} for unit in units if unit_word(states[unit]) == "active"), {})


async def observe(host: Host, baseline: Parameters) -> Observation:
    seen = Observation(unit_word((await host.units((baseline.unit,)))[baseline.unit]))
    if seen.unit == "missing":
        return replace(seen, installed=await _installed(host))
    if seen.unit != "active":
        return seen
    for _ in range(LOOKS):
        ran = await host.run(sshd.EFFECTIVE)
        if ran.exit_status != 0 and (exposed := await _open_keys(host, baseline.host_keys)):
            # The daemon passes over keys that others may read, and without any it says nothing: this much was seen.
            return replace(seen, installed=True, keys_exposed=exposed, other_keys_exposed=0)
        effective = sshd.read_effective(answered(ran, "sshd").text)
        found = await _in_force(host, baseline, seen, effective)
        if sshd.read_effective(answered(await host.run(sshd.EFFECTIVE), "sshd").text) == effective:
            break
    else:
        raise CannotTell("unparsable", "sshd -T: what is in force changed while it was looked at")
    if judge(baseline, found).reason in POLICY:
        found = replace(found, key_accounts=await _key_accounts(host, baseline, effective))
    return found


async def _in_force(host: Host, baseline: Parameters, seen: Observation, effective: Effective) -> Observation:
    changed_at, lax_matches = await _files(host, baseline)
    exposed = await _open_keys(host, effective.host_keys)
    return replace(
        _with_algorithms(seen, baseline, effective),
        installed=True,
        passwords=effective.passwords,
        key_required=effective.key_required,
        empty_passwords=effective.empty_passwords,
        root_login=effective.root_login,
        host_based=effective.host_based,
        strict_modes=effective.strict_modes,
        lax_users=await _lax_users(host, baseline),
        lax_matches=lax_matches,
        host_keys=len(effective.host_keys),
        keys_exposed=tuple(path for path in baseline.host_keys if path in exposed),
        other_keys_exposed=len(set(exposed) - set(baseline.host_keys)),
        reload_needed=await _stale(host, baseline.unit, changed_at),
    )


async def _installed(host: Host) -> bool:
    try:
        await host.run(("sshd", "-t"))
    except CannotTell as error:
        if error.reason == "tool_missing":
            return False
        raise
    return True


def _with_algorithms(seen: Observation, baseline: Parameters, effective: Effective) -> Observation:
    """Offered algorithms of each kind: the accepted ones by name, the others counted."""
    return replace(
        seen,
        ciphers=_both(effective.ciphers, baseline.ciphers),
        other_ciphers=len(set(effective.ciphers) - set(baseline.ciphers)),
        macs=_both(effective.macs, baseline.macs),
        other_macs=len(set(effective.macs) - set(baseline.macs)),
        kex=_both(effective.kex, baseline.kex),
        other_kex=len(set(effective.kex) - set(baseline.kex)),
    )


def _both(offered: tuple[str, ...], accepted: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(name for name in accepted if name in offered)


async def _lax_users(host: Host, baseline: Parameters) -> tuple[str, ...]:
    lax = []
    for user in baseline.match_users:
        theirs = sshd.read_effective(answered(await host.run(sshd.for_user(user)), "sshd").text)
        if theirs.host_based or _too_lax(baseline, theirs.passwords, theirs.empty_passwords, theirs.root_login):
            lax.append(user)
    return tuple(lax)


def _too_lax(baseline: Parameters, passwords: bool, empty_passwords: bool, root_login: str) -> bool:
    allowed_root = sshd.ALLOWED_ROOT[baseline.root_login]
    return empty_passwords or (passwords and not baseline.allow_passwords) or root_login not in allowed_root


async def _files(host: Host, baseline: Parameters) -> tuple[datetime, int]:
    """When the newest file of the configuration was changed, and how many Match blocks are too lax."""
    waiting, read = [sshd.CONFIG], set[str]()
    changed_at, lax = datetime.fromtimestamp(0, UTC), 0
    while waiting:
        path = waiting.pop()
        if path in read:
            continue
        read.add(path)
        if len(read) > sshd.MOST_FILES:
            raise CannotTell("output_too_large", f"sshd's configuration has more than {sshd.MOST_FILES} files")
        stat, raw = await read_whole(host, path)
        file = sshd.read_file(raw.decode("utf-8", "replace"))
        lax += file.loosened(passwords=baseline.allow_passwords, root_login=baseline.root_login)
        changed_at = max(changed_at, stat.modified_at)
        for pattern in file.includes:
            waiting += await _included(host, pattern)
    return changed_at, lax


async def _included(host: Host, pattern: str) -> list[str]:
    """Paths that an Include means, as sshd expands them; one that matches nothing includes nothing."""
    directory, _, name = (pattern if pattern.startswith("/") else f"/etc/ssh/{pattern}").rpartition("/")
    if set("*?[") & set(directory):
        raise CannotTell("unparsable", "an Include with a pattern for directories is not understood")
    try:
        names = await host.list(directory)
    except CannotTell as error:
        if error.reason == "not_found":
            return []
        raise
    return [f"{directory}/{found}" for found in names if fnmatch.fnmatchcase(found, name)]


async def _open_keys(host: Host, paths: Sequence[str]) -> tuple[str, ...]:
    """Those of these files that group or others may use. Every one of them must be there."""
    stats = await stats_of(host, paths)
    return tuple(path for path, stat in stats.items() if stat.kind == "file" and stat.mode & 0o077)


async def _stale(host: Host, unit: str, changed_at: datetime) -> bool:
    """Whether the files are newer than what the daemon read. Behind a socket each login reads them anew."""
    if unit.endswith(".socket"):
        return False
    ran = await host.run(("systemctl", "show", "--property=StateChangeTimestamp", "--", unit))
    text = answered(ran, "systemctl").text
    try:
        read_at = datetime.strptime(text.removeprefix("StateChangeTimestamp=").strip(), STAMP).replace(tzinfo=UTC)
    except ValueError as error:
        raise CannotTell("unparsable", "systemctl show: expected one StateChangeTimestamp in UTC") from error
    return changed_at >= read_at + timedelta(seconds=1)  # the manager's stamp has no fractions


async def _key_accounts(host: Host, baseline: Parameters, effective: Effective) -> int:
    """Accounts with a key file that holds a key, and one more where keys also come from elsewhere."""
    accounts = read_passwd((await host.read("/etc/passwd")).decode("utf-8", "replace"))
    usable = [
        account for account in accounts if may_log_in(account) and (account.uid or baseline.root_login == sshd.BY_KEY)
    ]
    count = int(effective.keys_elsewhere)
    for account in usable[:MOST_ACCOUNTS]:
        places = {"%h": account.home, "%u": account.name, "%%": "%"}
        count += any([await _holds_a_key(host, _expand(file, places)) for file in effective.key_files])
    return count


def _expand(pattern: str, places: Mapping[str, str]) -> str:
    for place, value in places.items():
        pattern = pattern.replace(place, value)
    return pattern if pattern.startswith("/") else f"{places['%h']}/{pattern}"


async def _holds_a_key(host: Host, path: str) -> bool:
    try:
        raw = await host.read(path)
    except CannotTell:
        return False  # not counted on: the cure has then one account less to rely on
    return any(line.strip() and not line.lstrip().startswith(b"#") for line in raw.splitlines())


def judge(baseline: Parameters, seen: Observation) -> Verdict:
    if seen.unit is None:
        return unknown("unparsable", "whether the SSH daemon runs could not be told")
    if seen.unit == "missing":
        if seen.installed is None:
            return unknown("unparsable", f"found no {baseline.unit}; whether sshd is installed could not be told")
        if not seen.installed:
            return not_applicable("no_ssh", f"neither {baseline.unit} nor sshd is on this host")
        return failed("daemon_missing", f"expected {baseline.unit}, found sshd without such a unit")
    if seen.unit != "active":
        return failed("daemon_down", f"expected {baseline.unit} active, found it {seen.unit}")
    if seen.passwords is None and seen.keys_exposed:
        return _judge_keys(seen)
    return _judge_policy(baseline, seen) or _judge_algorithms(seen) or _judge_rest(baseline, seen)


def _judge_policy(baseline: Parameters, seen: Observation) -> Verdict | None:
    if None in (seen.passwords, seen.empty_passwords, seen.root_login, seen.host_based, seen.strict_modes):
        return unknown("unparsable", "how people may log in could not be told")
    if seen.empty_passwords:
        return failed("empty_passwords", "expected that empty passwords open nothing, found that they do")
    if seen.passwords and not baseline.allow_passwords:
        locked = "" if seen.key_accounts else "; no account could log in by key, so a person must install one first"
        return failed("password_login", f"expected that a key is needed, found that a password is enough{locked}")
    if seen.host_based:
        return failed("host_based_login", "expected that no other host vouches for its users, found that one may")
    if seen.root_login not in sshd.ALLOWED_ROOT[baseline.root_login]:
        return failed("root_login", f"expected root to log in {baseline.root_login}, found {seen.root_login}")
    if not seen.strict_modes:
        return failed("modes_ignored", "expected keys that others may write refused, found StrictModes off")
    return None


def _judge_algorithms(seen: Observation) -> Verdict | None:
    for kind, word in (("ciphers", "ciphers"), ("macs", "integrity algorithms"), ("kex", "key exchanges")):
        others = getattr(seen, f"other_{kind}")
        if others is None or getattr(seen, kind) is None:
            return unknown("unparsable", f"which {word} are offered could not be told")
        if others:
            return failed(f"weak_{kind}", f"expected only listed {word}, found {others} that are not")
    return None


def _judge_rest(baseline: Parameters, seen: Observation) -> Verdict:
    if seen.keys_exposed is None or seen.other_keys_exposed is None or not seen.host_keys:
        return unknown("unparsable", "who may read the daemon's private keys could not be told")
    if seen.keys_exposed or seen.other_keys_exposed:
        return _judge_keys(seen)
    if seen.reload_needed is None:
        return unknown("unparsable", "whether the daemon has read its files could not be told")
    if seen.reload_needed:
        return failed("reload_needed", f"expected {baseline.unit} to have read its files, found them newer")
    if seen.lax_users is None or seen.lax_matches is None:
        return unknown("unparsable", "what Match blocks change could not be told")
    if seen.lax_users or seen.lax_matches:
        who = f" (also for {', '.join(seen.lax_users)})" if seen.lax_users else ""
        return failed("match_relaxes", f"expected no Match block to allow more, found {seen.lax_matches} that do{who}")
    return passed(f"keys only, root {seen.root_login}, {len(seen.ciphers or ())} ciphers offered, all listed")


def _judge_keys(seen: Observation) -> Verdict:
    found = ", ".join(seen.keys_exposed or ()) or f"{seen.other_keys_exposed} that the baseline does not name"
    return failed("host_key_exposed", f"expected private keys that root alone reads, found {found} open")


def plan(baseline: Parameters, seen: Observation) -> Plan | None:
    """Write the policy unless that locks everybody out; close private keys; have changed files read. Sessions stay."""
    reason = judge(baseline, seen).reason
    if reason == "daemon_down":
        return Plan(CHECK.id, (Step("ensure_unit_active", {"unit": baseline.unit}),))
    closing = tuple(Step("set_mode", {"path": path, "mode": "0600"}) for path in seen.keys_exposed or ())
    if reason in POLICY and seen.key_accounts:
        policy: dict[str, str | int | bool] = {
            "path": baseline.drop_in,
            "unit": baseline.unit,
            "passwords": baseline.allow_passwords or bool(seen.key_required),
            "root_login": baseline.root_login,
            **{kind: ",".join(getattr(baseline, kind)) for kind in ("ciphers", "macs", "kex")},
        }
        return Plan(CHECK.id, (Step("set_sshd_policy", policy), *closing))
    reloading = (Step("reload_sshd", {"unit": baseline.unit}),) if seen.reload_needed else ()
    if reason == "host_key_exposed" and closing:
        return Plan(CHECK.id, (*closing, *reloading))
    return Plan(CHECK.id, reloading) if reason == "reload_needed" else None


def permits(baseline: Parameters) -> Permits:
    """The policy, with those of its algorithms that this host's OpenSSH knows; and private keys that root alone reads."""
    policy = {kind: getattr(baseline, kind) for kind in ("ciphers", "macs", "kex")}
    content = sshd.drop_in(passwords=baseline.allow_passwords, root_login=baseline.root_login, **policy)
    return {
        "files": {baseline.drop_in: [_permitted(line) for line in content.decode("ascii").splitlines()]},
        "modes": dict.fromkeys(baseline.host_keys, 0o600),
    }


def _permitted(line: str) -> dict[str, str | list[str]]:
    keyword, _, rest = line.partition(" ")
    if keyword in {"Ciphers", "MACs", "KexAlgorithms"}:
        return {"key": f"{keyword} ", "of": rest.split(",")}
    # Where every way in needs a key anyway, the plan leaves passwords as they are.
    return {"maybe" if keyword in {"PasswordAuthentication", "KbdInteractiveAuthentication"} else "line": line}


GOOD = Observation(
    unit="active",
    installed=True,
    passwords=False,
    key_required=False,
    empty_passwords=False,
    root_login="no",
    host_based=False,
    strict_modes=True,
    ciphers=CIPHERS + CTR,
    other_ciphers=0,
    macs=MACS,
    other_macs=0,
    kex=KEX[1:],
    other_kex=0,
    lax_users=(),
    lax_matches=0,
    host_keys=3,
    keys_exposed=(),
    other_keys_exposed=0,
    reload_needed=False,
)
_LAX = replace(GOOD, key_accounts=1)
CASES = (
    Case("keys only", GOOD, Result.PASS, "as_expected"),
    Case("a password is enough", replace(_LAX, passwords=True), Result.FAIL, "password_login", heals=True),
    Case("a password, and nobody has a key", replace(GOOD, passwords=True, key_accounts=0), Result.FAIL),
    Case("passwords are allowed", replace(GOOD, passwords=True), Result.PASS, parameters={"allow_passwords": True}),
    Case("empty passwords", replace(_LAX, empty_passwords=True), Result.FAIL, "empty_passwords", heals=True),
    Case("root by password", replace(_LAX, root_login="yes"), Result.FAIL, "root_login", heals=True),
    Case("root by key", replace(_LAX, root_login="prohibit-password"), Result.FAIL, "root_login", heals=True),
    Case(
        "root by key is allowed",
        replace(GOOD, root_login="prohibit-password"),
        Result.PASS,
        parameters={"root_login": "by_key"},
    ),
    Case("another host vouches", replace(_LAX, host_based=True), Result.FAIL, "host_based_login", heals=True),
    Case("modes of key files ignored", replace(_LAX, strict_modes=False), Result.FAIL, "modes_ignored", heals=True),
    Case("modes not told", replace(GOOD, strict_modes=None), Result.UNKNOWN),
    Case("an old cipher", replace(_LAX, other_ciphers=1), Result.FAIL, "weak_ciphers", heals=True),
    Case("SHA-1 codes", replace(_LAX, other_macs=2), Result.FAIL, "weak_macs", heals=True),
    Case("an old key exchange", replace(_LAX, other_kex=1), Result.FAIL, "weak_kex", heals=True),
    Case("host key open", replace(GOOD, keys_exposed=HOST_KEYS[:1]), Result.FAIL, "host_key_exposed", heals=True),
    Case(
        "all host keys open, so that sshd says nothing",
        Observation("active", installed=True, keys_exposed=HOST_KEYS, other_keys_exposed=0),
        Result.FAIL,
        "host_key_exposed",
        heals=True,
    ),
    Case("another host key open", replace(GOOD, other_keys_exposed=1), Result.FAIL, "host_key_exposed"),
    Case("no host key found", replace(GOOD, host_keys=0), Result.UNKNOWN),
    Case("files newer than the daemon", replace(GOOD, reload_needed=True), Result.FAIL, "reload_needed", heals=True),
    Case("loosened for an address", replace(GOOD, lax_matches=1), Result.FAIL, "match_relaxes"),
    Case("loosened for root", replace(GOOD, lax_users=("root",)), Result.FAIL, "match_relaxes"),
    Case("Match not read", replace(GOOD, lax_matches=None), Result.UNKNOWN),
    Case("daemon stopped", Observation("stopped"), Result.FAIL, "daemon_down", heals=True),
    Case("unit missing", Observation("missing", installed=True), Result.FAIL, "daemon_missing"),
    Case("no SSH at all", Observation("missing", installed=False), Result.NOT_APPLICABLE, "no_ssh"),
    Case("unit missing, program not looked for", Observation("missing"), Result.UNKNOWN),
    Case("runs, not asked", Observation("active"), Result.UNKNOWN),
    Case("nothing was seen", Observation(), Result.UNKNOWN),
    Case("could not look", UNREADABLE, Result.UNKNOWN, "tool_failed"),
)
