"""The table: what may be changed on this machine, row by row.

Every row has a check (is there leave: towards the baseline by `permits`, or back to what this cure `found`), what it keeps before
it changes anything, what it does, what it looks at afterwards, and how it is taken back. A row that only takes back has no leave of
its own: without something that was found, it is refused. For what users would notice (`DISTURBS`) an approval is used first, where
root waits for people (`approvals`).
"""

from __future__ import annotations

import base64
import functools
import json
import re
import stat
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any

from compliance_agent.heal import permits as form
from compliance_agent.heal.approvals import Approvals
from compliance_agent.heal.found import Found
from compliance_agent.heal.machine import Machine, Ran
from compliance_agent.heal.permits import Permits
from compliance_agent.heal.trouble import Failed, Refused, Unclear

RULES_TABLE = ("inet", "compliance")
CREATING = "create table {} {}\n".format(*RULES_TABLE)
REPLACING = "add table {0} {1}\ndelete table {0} {1}\n".format(*RULES_TABLE)
AUDIT_FILES = ("/etc/audit/audit.rules", "/etc/audit/audit.rules.prev")
PROFILE = "/nix/var/nix/profiles/system"
LOCK_WAIT_S = 60
SYSTEMCTL = ("systemctl", "--no-pager", "--no-ask-password", "--quiet")
LOGIND = ("systemctl", "kill", "--kill-whom=main", "--signal=HUP", "--", "systemd-logind.service")
APT_LOCK = ("-o", f"DPkg::Lock::Timeout={LOCK_WAIT_S}")
APT_KEEP = ("-o", "Dpkg::Options::=--force-confdef", "-o", "Dpkg::Options::=--force-confold")
DNF = ("dnf", "-q", "-y", "--setopt=exit_on_lock=True", "--setopt=*.skip_if_unavailable=0")
REFRESH = {
    "apt": ("apt-get", "-q", "-o", "APT::Update::Error-Mode=any", *APT_LOCK, "update"),
    "dnf": (*DNF, "makecache", "--refresh"),
}
UPGRADE = {
    "apt": ("apt-get", "-q", "-y", "--only-upgrade", "--no-remove", *APT_KEEP, *APT_LOCK, "install"),
    "dnf": (*DNF, "upgrade", "--security"),
}
FINISH = ("dpkg", "--force-confdef", "--force-confold", "--configure", "-a")
TRANSIENT = ("systemd-run", "--collect", "--wait", "--quiet", "--unit=compliance-agent-switch-to-configuration")
AUDIT = {
    "on": ("auditctl", "-e", "1"),
    "off": ("auditctl", "-e", "0"),
    "load": ("augenrules", "--load"),
    "clear": ("auditctl", "-D"),
}


def masked(state: Mapping[str, Any]) -> bool:
    """Whether the unit is masked."""
    return "masked" in (state["load"], state["enabled"])


Noticed = tuple[str, dict[str, str], bool]
UP = ("active", "reloading", "refreshing", "activating")
TOWARDS = {"needed": ("unmask", "enable", "start", "restart", "reload"), "forbidden": ("stop", "mask")}
BACK: Mapping[str, Callable[[Mapping[str, Any]], bool]] = {
    "start": lambda was: was["active"] in UP,
    "stop": lambda was: was["active"] not in UP,
    "enable": lambda was: was["enabled"] == "enabled",
    "disable": lambda was: was["enabled"] == "disabled",
    "mask": masked,
    "unmask": lambda was: not masked(was),
}
AFTER: Mapping[str, Callable[[Mapping[str, Any]], bool]] = {
    "stop": lambda now: now["active"] not in UP,
    "enable": lambda now: now["enabled"] != "disabled",
    "disable": lambda now: now["enabled"] != "enabled",
    "mask": masked,
    "unmask": lambda now: not masked(now),
}


@dataclass
class Work:
    """One question: its fields and blob, and what it is done with."""

    machine: Machine
    permits: Permits
    found: Found
    approvals: Approvals
    kind: str
    args: Mapping[str, Any]
    blob: bytes

    def refuse_unless(self, leave: object, code: str = "not_permitted_here") -> None:
        """Raises `Refused` unless there is leave."""
        if not leave:
            raise Refused(code)


@dataclass(frozen=True)
class Row:
    """One row of the table.

    Attributes:
        check: raises `Refused` when there is no leave.
        do: changes the machine; what a program said.
        undo: how it is taken back, or why it is not.
        keep: makes durable what it is about to change, where root names it.
        verify: whether the machine is now as it should be; asked when `do` went well.
        deadline_s: of the whole.
    """

    check: Callable[[Work], None]
    do: Callable[[Work, float], Ran | None]
    undo: str
    keep: Callable[[Work], None] = field(default=lambda work: None)
    verify: Callable[[Work], bool] = field(default=lambda work: True)
    deadline_s: float = 30.0


def act(row: Row, work: Work) -> Ran:
    """Keep, check, use an approval, do, verify. It looks first, so that to leave things as they are counts as a way back.

    Raises:
        Refused, Failed, Unclear: and then nothing, or not all, was changed.
    """
    row.keep(work)
    row.check(work)
    if noticed := work.kind in DISTURBS and DISTURBS[work.kind](work):
        wanted = {"check": noticed[0], "baseline": work.permits.baseline, **noticed[1]}
        work.approvals.use(wanted, work.args["cure"], ends=noticed[2])
    ran = row.do(work, row.deadline_s) or Ran(0, b"", b"")
    if ran.exit == 0 and not row.verify(work):
        raise Failed("not_verified")
    return ran


# Files


def _file(work: Work, path: str) -> dict[str, Any]:
    seen = work.machine.read(path)
    if seen is None:
        return {"content": None, "mode": 0, "uid": 0, "gid": 0}
    content, info = seen
    text = base64.b64encode(content).decode("ascii")
    return {"content": text, "mode": stat.S_IMODE(info.st_mode), "uid": info.st_uid, "gid": info.st_gid}


def _goes_back(work: Work) -> bool:
    was = work.found.get("files", work.args["path"])
    if was is None or was["content"] is None:
        return False
    return bool(base64.b64decode(was["content"]) == work.blob and was["mode"] == work.args["mode"])


def _may_write(work: Work) -> None:
    if _goes_back(work):
        return
    specs = work.permits.files.get(work.args["path"])
    work.refuse_unless(specs is not None)
    fits = work.args["mode"] == form.FILE_MODE and form.fits(work.blob, specs or ())
    work.refuse_unless(fits, "other_content")


def _write(work: Work, _deadline_s: float) -> None:
    was = work.found.get("files", work.args["path"])
    owner = (was["uid"], was["gid"]) if was is not None and was["content"] is not None else None
    work.machine.write(work.args["path"], work.blob, work.args["mode"], owner)


def _is_written(work: Work) -> bool:
    now = _file(work, work.args["path"])
    return bool(now["content"] == base64.b64encode(work.blob).decode("ascii") and now["mode"] == work.args["mode"])


def _may_remove(work: Work) -> None:
    was = work.found.get("files", work.args["path"])
    absent = work.machine.stat(work.args["path"]) is None
    work.refuse_unless(absent or (was is not None and was["content"] is None))


def _keep_file(work: Work) -> None:
    if work.args["path"] in work.permits.files:
        work.found.keep("files", work.args["path"], lambda: _file(work, work.args["path"]))


def _mode(work: Work) -> int:
    info = work.machine.stat(work.args["path"])
    if info is None:
        raise Failed("not_found")
    return stat.S_IMODE(info.st_mode)


def _may_chmod(work: Work) -> None:
    path, mode = work.args["path"], work.args["mode"]
    work.refuse_unless(mode in (work.permits.modes.get(path), work.found.get("modes", path)))


def _keep_mode(work: Work) -> None:
    if work.args["path"] in work.permits.modes:
        work.found.keep("modes", work.args["path"], lambda: _mode(work))


def _may_make(work: Work) -> None:
    parents = {str(PurePosixPath(path).parent) for path in work.permits.files}
    work.refuse_unless(work.args["path"] in parents and _gone(work))


def _keep_made(work: Work) -> None:
    work.found.keep("made", work.args["path"], lambda: _gone(work))


# Units


def unit_state(work: Work, unit: str) -> dict[str, Any]:
    """The unit in the manager's words, and which of those that would start it are up."""
    properties = "LoadState,ActiveState,UnitFileState,TriggeredBy"
    ran = work.machine.run(("systemctl", "show", "--no-pager", f"--property={properties}", "--", unit))
    said = dict(line.split("=", 1) for line in ran.text.splitlines() if "=" in line)
    if ran.exit != 0 or not {"LoadState", "ActiveState"} <= said.keys():
        raise Unclear("tool_failed" if work.machine.has_manager else "tool_missing")
    triggers = said.get("TriggeredBy", "").split()
    state = {"load": said["LoadState"], "active": said["ActiveState"], "enabled": said.get("UnitFileState", "")}
    return {**state, "triggers": triggers}


def _found_unit(work: Work) -> dict[str, Any]:
    state = unit_state(work, work.args["unit"])
    return {**state, "up": [name for name in state["triggers"] if unit_state(work, name)["active"] in UP]}


def _may_act(work: Work) -> None:
    verb, unit = work.args["verb"], work.args["unit"]
    was, want = work.found.get("units", unit), work.permits.units.get(unit, "")
    towards = verb in TOWARDS.get(want, ())
    back = was is not None and verb in BACK and BACK[verb](was)
    # What came up with a unit that was started goes down with it: it would start the unit again.
    came_up = verb == "stop" and any(
        unit in other["triggers"] and unit not in other["up"] for other in work.found.all("units").values()
    )
    work.refuse_unless(towards or back or came_up)


def _keep_unit(work: Work) -> None:
    if work.args["unit"] in work.permits.units:
        work.found.keep("units", work.args["unit"], lambda: _found_unit(work))


def _act(work: Work, deadline_s: float) -> None:
    verb = work.args["verb"]
    ran = work.machine.run((*SYSTEMCTL, verb, "--", work.args["unit"]), timeout_s=deadline_s)
    if ran.exit != 0 and not work.machine.has_manager:
        raise Unclear("tool_missing")
    if ran.exit != 0:
        raise Failed(f"unit_{verb}_failed", ran.exit)


def _has_acted(work: Work) -> bool:
    after = AFTER.get(work.args["verb"])
    if after is None or after(unit_state(work, work.args["unit"])):
        return True
    raise Failed(f"unit_{work.args['verb']}_failed")


# The firewall


def _may_load(work: Work) -> None:
    was = work.found.get("ruleset", "table")
    back = was is not None and work.blob == (REPLACING + was["text"]).encode()
    text = work.permits.ruleset or ""
    forms = {text, CREATING + text.removeprefix(REPLACING)} if text else set()  # the latter where there is no table
    work.refuse_unless(back or work.blob in {form.encode() for form in forms}, "other_content")


def _rules(work: Work) -> dict[str, str]:
    """Our table as text, empty when it is not there."""
    listed = _answer(work, ("nft", "-s", "-j", "list", "ruleset")).text
    try:
        tables = [item["table"] for item in json.loads(listed)["nftables"] if "table" in item]
        there = any((table["family"], table["name"]) == RULES_TABLE for table in tables)
    except (ValueError, KeyError, TypeError) as error:
        raise Unclear("unparsable") from error
    return {"text": _answer(work, ("nft", "-s", "list", "table", *RULES_TABLE)).text if there else ""}


def _keep_rules(work: Work) -> None:
    if work.permits.ruleset is not None:
        work.found.keep("ruleset", "table", lambda: _rules(work))


def _load(work: Work, deadline_s: float) -> Ran:
    check = ("-c",) if work.args["how"] == "check" else ()
    return work.machine.run(("nft", *check, "-f", "-"), timeout_s=deadline_s, stdin=work.blob)


def _is_loaded(work: Work) -> bool:
    wanted = work.blob != REPLACING.encode()
    return work.args["how"] == "check" or bool(_rules(work)["text"]) == wanted


# Packages, audit, accounts, clock, generations


def _may_use_manager(work: Work) -> None:
    packages = work.args.get("packages", ["one=1"] if work.args["manager"] == "apt" else [])
    work.refuse_unless(work.args["manager"] in work.permits.may)
    work.refuse_unless(bool(packages) == (work.args["manager"] == "apt"), "other_content")


def _upgrade(work: Work, deadline_s: float) -> Ran:
    return work.machine.run_apart((*UPGRADE[work.args["manager"]], *work.args["packages"]), timeout_s=deadline_s)


def _audit_enabled(work: Work) -> int:
    found = re.search(r"^enabled (\d)$", _answer(work, ("auditctl", "-s")).text, re.MULTILINE)
    if found is None:
        raise Unclear("unparsable")
    return int(found[1])


def _audit_rules(work: Work) -> list[str]:
    lines = _answer(work, ("auditctl", "-l")).text.splitlines()
    return [] if lines == ["No rules"] else lines


def _may_audit(work: Work) -> None:
    work.refuse_unless("audit" in work.permits.may)
    if work.args["verb"] == "off":
        work.refuse_unless(work.found.get("audit", "enabled") == 0)
    if work.args["verb"] == "clear":
        work.refuse_unless(work.found.get("audit", "rules") is not None)


def _keep_audit(work: Work) -> None:
    if "audit" not in work.permits.may:
        return
    if work.args["verb"] == "on":
        work.found.keep("audit", "enabled", lambda: _audit_enabled(work))
    if work.args["verb"] == "load":
        work.found.keep("audit", "rules", lambda: _audit_rules(work))
        for path in AUDIT_FILES:
            work.found.keep("files", path, functools.partial(_file, work, path))


def _is_audited(work: Work) -> bool:
    wanted = {"on": (1, 2), "off": (0,)}.get(work.args["verb"])
    return wanted is None or _audit_enabled(work) in wanted


def _day_of_empty(work: Work, name: str) -> int | None:
    """The day on which an account that needs no password got none, -1 for unset; None when it needs one."""
    seen = work.machine.read("/etc/shadow", 4_194_304)
    for line in (seen[0] if seen else b"").decode("utf-8", "replace").splitlines():
        account, hashed, day, *_ = *line.split(":"), "", "", ""
        if account == name and not hashed:
            return int(day) if day.isascii() and day.isdigit() else -1
    return None


def _may_account(work: Work) -> None:
    name = work.args["name"]
    work.refuse_unless("accounts" in work.permits.may)
    was = work.found.get("accounts", name)
    if work.args.get("verb") == "lock":
        work.refuse_unless(_day_of_empty(work, name) is not None)
    else:
        work.refuse_unless(was is not None and work.args.get("day", was) == was)


def _keep_account(work: Work) -> None:
    day = _day_of_empty(work, work.args["name"]) if "accounts" in work.permits.may else None
    if day is not None and work.args["verb"] == "lock":
        work.found.keep("accounts", work.args["name"], lambda: day)


def _account(work: Work, deadline_s: float) -> Ran:
    how = ("-L",) if work.args["verb"] == "lock" else ("-p", "")
    return work.machine.run(("usermod", *how, "--", work.args["name"]), timeout_s=deadline_s)


def _is_locked(work: Work) -> bool:
    return bool((_day_of_empty(work, work.args["name"]) is None) == (work.args["verb"] == "lock"))


def _generation(work: Work) -> int:
    found = re.fullmatch(r"system-(\d{1,8})-link\n?", _answer(work, ("readlink", PROFILE)).text)
    if found is None:
        raise Unclear("unparsable")
    return int(found[1])


def _may_select(work: Work) -> None:
    wanted = work.args["generation"]
    work.refuse_unless("nix" in work.permits.may)
    work.refuse_unless(wanted >= _generation(work) or wanted == work.found.get("system", "generation"))


def _keep_system(work: Work) -> None:
    if "nix" not in work.permits.may:
        return
    running = _answer(work, ("readlink", "-f", "/run/current-system")).text.strip()
    work.found.keep("system", "generation", lambda: _generation(work))
    work.found.keep("system", "running", lambda: running)


def _may_activate(work: Work) -> None:
    asked = (work.args["system"], work.args["how"])
    allowed = asked in ((PROFILE, "switch"), (work.found.get("system", "running"), "test"))
    work.refuse_unless("nix" in work.permits.may and allowed)


# What users would notice: whose cure it is, what else the approval must say, and whether it ends or takes back what a cure began


def _stops_what_is_up(work: Work) -> Noticed | None:
    # Of one that is forbidden: so it is no way back.
    away = work.args["verb"] == "stop" and work.permits.units.get(work.args["unit"]) == "forbidden"
    return ("services", {}, False) if away and unit_state(work, work.args["unit"])["active"] in UP else None


def _moves(work: Work) -> Noticed | None:
    """To another generation, or to have the selected one run."""
    to = work.args["generation"] if work.kind == "system" else _generation(work)
    back = to == work.found.get("system", "generation") or work.args.get("how") == "test"
    return "patching", {"target": f"generation_{to}"}, back


DISTURBS: Mapping[str, Callable[[Work], Noticed | None]] = {
    "upgrade": lambda work: ("patching", {}, False),
    "finish": lambda work: ("patching", {}, True),
    "clock": lambda work: ("time_sync", {}, False),
    "account": lambda work: ("accounts", {}, False) if work.args["verb"] == "lock" else None,
    "unit": _stops_what_is_up,
    "system": _moves,
    "activate": _moves,
}


# How rows are written down


def _answer(work: Work, argv: tuple[str, ...]) -> Ran:
    ran = work.machine.run(argv)
    if ran.exit != 0:
        raise Unclear("tool_failed")
    return ran


def _may(token: str) -> Callable[[Work], None]:
    return lambda work: work.refuse_unless(token in work.permits.may)


def _runs(argv: Callable[[Mapping[str, Any]], tuple[str, ...]]) -> Callable[[Work, float], Ran]:
    return lambda work, deadline_s: work.machine.run(argv(work.args), timeout_s=deadline_s)


def _runs_apart(argv: Callable[[Mapping[str, Any]], tuple[str, ...]]) -> Callable[[Work, float], Ran]:
    return lambda work, deadline_s: work.machine.run_apart(argv(work.args), timeout_s=deadline_s)


def _calls(name: str) -> Callable[[Work, float], None]:
    """The machine's own act of this name, on the path."""
    return lambda work, _deadline_s: getattr(work.machine, name)(work.args["path"])


def _gone(work: Work) -> bool:
    return work.machine.stat(work.args["path"]) is None


ROWS: Mapping[str, Row] = {
    "write": Row(_may_write, _write, "write the bytes that were found, or remove", _keep_file, _is_written),
    "remove": Row(_may_remove, _calls("remove"), "it takes back a write; write again", verify=_gone),
    "chmod": Row(
        _may_chmod, lambda work, _deadline_s: work.machine.chmod(work.args["path"], work.args["mode"]),
        "chmod to the mode that was found", _keep_mode, lambda work: _mode(work) == work.args["mode"],
    ),
    "mkdir": Row(_may_make, _calls("make_directory"), "rmdir", _keep_made, lambda work: not _gone(work)),
    "rmdir": Row(
        lambda work: work.refuse_unless(work.found.get("made", work.args["path"])), _calls("remove_directory"),
        "it takes back a mkdir; mkdir again", verify=_gone,
    ),
    "unit": Row(_may_act, _act, "the opposite verb, if the unit was found so", _keep_unit, _has_acted, 90.0),
    "ruleset": Row(_may_load, _load, "load the table that was found", _keep_rules, _is_loaded),
    "logind": Row(_may("logind"), _runs(lambda args: LOGIND), "the same again, after its file was put back"),
    "refresh": Row(
        _may_use_manager, _runs_apart(lambda args: REFRESH[args["manager"]]),
        "newer knowledge of what exists changes nothing that is installed", deadline_s=280.0,
    ),
    "finish": Row(_may("apt"), _runs_apart(lambda args: FINISH), "a package is not left half installed", deadline_s=600.0),
    "upgrade": Row(_may_use_manager, _upgrade, "a host never goes back to known holes", deadline_s=1_770.0),
    "audit": Row(_may_audit, _runs(lambda args: AUDIT[args["verb"]]), "off; clear and audit_rule", _keep_audit, _is_audited),
    "audit_rule": Row(
        lambda work: work.refuse_unless(work.args["rule"] in (work.found.get("audit", "rules") or ())),
        _runs(lambda args: ("auditctl", *args["rule"].split(" "))), "it takes back a load",
        verify=lambda work: work.args["rule"] in _audit_rules(work),
    ),
    "account": Row(_may_account, _account, "unlock, and account_day", _keep_account, _is_locked),
    "account_day": Row(
        _may_account, _runs(lambda args: ("chage", "-d", str(args["day"]), "--", args["name"])), "it takes back a lock",
        verify=lambda work: _day_of_empty(work, work.args["name"]) == work.args["day"],
    ),
    "clock": Row(
        _may("clock"), _runs_apart(lambda args: ("chronyc", "-n", "makestep")),
        "a clock that was put right is not made wrong again",
    ),
    "system": Row(
        _may_select,
        _runs_apart(lambda args: ("nix-env", "-p", PROFILE, "--switch-generation", str(args["generation"]))),
        "select the generation that was found", _keep_system,
        lambda work: _generation(work) == work.args["generation"], 280.0,
    ),
    "activate": Row(
        _may_activate, _runs(lambda args: (*TRANSIENT, f"{args['system']}/bin/switch-to-configuration", args["how"])),
        "activate the system that was found running", deadline_s=280.0,
    ),
}  # fmt: skip
