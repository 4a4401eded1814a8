"""auditd beyond its cases: rules in every way of writing them, a locked configuration, containers, and the way back."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from compliance_agent.checks import registry
from compliance_agent.checks.auditd import Parameters
from compliance_agent.core import auditd as core
from compliance_agent.errors import CannotTell, StepFailed
from compliance_agent.lab.clinic import healthy_host
from compliance_agent.lab.drift import FAULTS
from compliance_agent.lab.host import FakeHost
from compliance_agent.lab.programs import auditd
from compliance_agent.models import DriftResult, Result
from compliance_agent.ports import Ran
from compliance_agent.remedies import actions
from tests.checks.contract import seen_by

FIXTURES = Path(__file__).parents[1] / "fixtures" / "checks" / "auditd"

CHECK = registry()["auditd"]

# What auditctl 3.0.9 was given, and what it then printed.
PRINTED = {
    "-w /tmp/audit/w -p wa -k ca_test": "-w /tmp/audit/w -p wa -k ca_test",
    "-w /tmp/audit/d/ -p wa -k ca_testd": "-w /tmp/audit/d -p wa -k ca_testd",
    "-a always,exit -F arch=b64 -S adjtimex,settimeofday -F key=ca_time": (
        "-a always,exit -F arch=b64 -S adjtimex,settimeofday -F key=ca_time"
    ),
    "-a always,exit -F path=/tmp/audit/w -F perm=x -F auid>=1000 -F auid!=unset -k ca_priv": (
        "-a always,exit -S all -F path=/tmp/audit/w -F perm=x -F auid>=1000 -F auid!=-1 -F key=ca_priv"
    ),
    "-a never,task": "-a never,task",
}


async def look(host: FakeHost, **parameters: Any) -> DriftResult:
    return await seen_by(CHECK, host, **parameters)


def covers(name: str, line: str) -> bool:
    rule = core.read_rule(line)
    return rule is not None and core.covered(name, [rule])


@pytest.mark.parametrize("given", PRINTED)
def test_what_is_printed_is_the_rule_that_was_given(given: str) -> None:
    first, second = core.read_rule(given), core.read_rule(PRINTED[given])
    assert first is not None and second is not None
    assert dataclasses.replace(first, calls=first.calls - {"all"}) == dataclasses.replace(
        second, calls=second.calls - {"all"}
    )
    assert core.read_rules(PRINTED[given] + "\n") == (PRINTED[given],)


@pytest.mark.parametrize(
    ("name", "line", "covered"),
    [
        ("/etc/passwd:wa", "-w /etc/passwd -p wa -k identity", True),
        ("/etc/passwd:wa", "-w /etc/passwd -p rwxa", True),
        ("/etc/passwd:wa", "-w /etc/passwd", True),
        ("/etc/passwd:wa", "-a always,exit -S all -F path=/etc/passwd -F perm=wa -F key=identity", True),
        ("/etc/sudoers.d:wa", "-w /etc/sudoers.d/ -p wa", True),
        ("/etc/passwd:wa", "-w /etc/passwd -p w", False),
        ("/etc/passwd:wa", "-w /etc/passwd- -p wa", False),
        ("/etc/passwd:wa", "-a always,exit -F path=/etc/passwd -F perm=wa -F auid>=1000", False),
        ("/etc/passwd:wa", "-a never,exit -F path=/etc/passwd -F perm=wa", False),
        ("/etc/passwd:wa", "-a always,exit -S openat -F path=/etc/passwd -F perm=wa", False),
        ("b64:settimeofday", "-a exit,always -F arch=b64 -S settimeofday -S adjtimex -k t", True),
        ("b64:settimeofday", "-a always,exit -F arch=b64 -S all", True),
        ("b64:settimeofday", "-a always,exit -F arch=b32 -S settimeofday -k t", False),
        ("b64:settimeofday", "-a always,exit -F arch=b64 -S clock_settime -F a0=0 -k t", False),
        ("b64:settimeofday", "-a always,exit -F arch=b64 -S settimeofday -F success=1", False),
        ("b64:settimeofday", "-a always,exit -F arch=b64 -S settimeofday -C auid!=uid", False),
        ("key:perm_mod", "-a always,exit -F arch=b64 -S chmod -F auid>=1000 -F key=perm_mod", True),
        ("key:perm_mod", "-a always,exit -F arch=b64 -S chmod -F auid>=1000 -F key=perm_mod2", False),
        ("key:perm_mod", "-a never,exit -F arch=b64 -S chmod -F key=perm_mod", False),
        ("key:perm_mod", "# -w /etc/passwd -k perm_mod", False),
        ("key:perm_mod", "-d always,exit -F key=perm_mod", False),
    ],
)
def test_what_a_rule_covers(name: str, line: str, covered: bool) -> None:
    assert covers(name, line) is covered


@pytest.mark.parametrize(
    "text", ["", "\n", "No rules", "No rules\nNo rules\n", "-w /etc/passwd -p wa", "The audit system is disabled\n"]
)
def test_words_that_are_no_list_of_rules(text: str) -> None:
    with pytest.raises(CannotTell):
        core.read_rules(text)


def test_no_rules_is_an_answer() -> None:
    assert core.read_rules("No rules\n") == ()


GOOD = (
    "enabled 1\nfailure 1\npid 612\nrate_limit 0\nbacklog_limit 64\nlost 3\nbacklog 1\nloginuid_immutable 0 unlocked\n"
)


def test_status_of_the_kernel() -> None:
    assert core.read_status(GOOD) == core.Status(1, 612, 3, 1, 64)


@pytest.mark.parametrize(
    "text",
    [
        "",
        GOOD[:-1],
        GOOD.replace("lost 3\n", ""),
        GOOD.replace("enabled 1", "enabled 3"),
        GOOD + "lost 3\n",
        "enabled\n",
    ],
)
def test_a_status_of_another_shape_is_no_answer(text: str) -> None:
    with pytest.raises(CannotTell):
        core.read_status(text)


@pytest.mark.parametrize("line", ["-d always,exit -F key=x", "-W /etc/passwd", "-D -k identity"])
def test_files_that_take_rules_away_are_not_read_as_if_they_did_not(line: str) -> None:
    with pytest.raises(CannotTell):
        core.rules_of_file(f"-w /etc/passwd -p wa\n{line}\n")


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("", ("ignore", "ignore")),
        ("space_left_action = SYSLOG\nmax_log_file_action = ROTATE\n", ("syslog", "rotate")),
        ("Space_Left_Action=exec /usr/local/bin/full\n", ("exec", "ignore")),
        ("#space_left_action = halt\n\n", ("ignore", "ignore")),
    ],
)
def test_settings_of_the_daemon(text: str, found: tuple[str, str]) -> None:
    config = core.read_config(text or "\n")
    assert (config.space_left_action, config.max_log_file_action) == found


@pytest.mark.parametrize(
    "text", ["space_left_action = shout\n", "write_logs = perhaps\n", "what\n", "log_file = a.log\n"]
)
def test_settings_in_unknown_words(text: str) -> None:
    with pytest.raises(CannotTell):
        core.read_config(text)


@pytest.mark.parametrize(
    ("ran", "reason"),
    [
        (Ran(0, b"", b"The audit system is disabled\n"), "unparsable"),  # seen in a user namespace, status 0
        (Ran(255, b"", b""), "tool_failed"),  # seen in a network namespace of its own
        (Ran(4, b"", b"You must be root to run this program.\n"), "not_permitted"),
        (Ran(1, b"", b"Error sending status request (Operation not permitted)\n"), "not_permitted"),
    ],
)
async def test_in_a_container_it_could_not_be_told(ran: Ran, reason: str) -> None:
    host = healthy_host()
    host.installed["auditctl"] = lambda call: ran
    result = await look(host)
    assert (result.result, result.reason) == (Result.UNKNOWN, reason)


@pytest.mark.parametrize("name", [name for name, fault in FAULTS.items() if fault.check == "auditd"])
async def test_every_fault_is_found_for_its_reason(name: str) -> None:
    host = healthy_host()
    FAULTS[name].inject(host)
    result = await look(host)
    assert (result.result, result.reason) == (Result.FAIL, FAULTS[name].reason)
    assert (result.plan is None) == (FAULTS[name].cure == "person")


async def test_a_locked_configuration_is_not_touched() -> None:
    host = healthy_host()
    kernel = host.part(auditd.Kernel)
    kernel.rules, kernel.enabled = kernel.rules[1:], 2
    result = await look(host)
    assert (result.reason, result.plan) == ("rules_locked", None)
    assert "rules_locked" in CHECK.spec.for_people
    before = dict(host.files)
    with pytest.raises(StepFailed) as caught:
        await actions()["load_audit_rules"].apply(host, {})
    assert caught.value.code == "audit_locked"
    assert host.files == before


async def test_an_undo_that_the_lock_forbids_says_so() -> None:
    """The host's own files may lock the configuration; then the former rules cannot come back before a restart."""
    host = healthy_host()
    host.put("/etc/audit/rules.d/99-finalize.rules", "-e 2\n", mode=0o640)
    host.part(auditd.Kernel).rules.clear()
    action = actions()["load_audit_rules"]
    captured = await action.capture(host, {})
    await action.apply(host, {})
    assert (await look(host)).result is Result.PASS
    with pytest.raises(StepFailed) as caught:
        await action.undo(host, {}, captured)
    assert caught.value.code == "audit_locked"


async def test_a_rule_exempts_every_process() -> None:
    host = healthy_host()
    host.part(auditd.Kernel).rules.insert(0, "-a never,task")
    assert (await look(host)).reason == "tasks_exempt"


async def test_a_rule_loaded_by_hand_is_gone_after_a_boot() -> None:
    host = healthy_host()
    host.part(auditd.Kernel).rules.append("-w /etc/shadow -p wa -k identity")
    rules = (*CHECK.spec.example["rules"], "/etc/shadow:wa")
    assert (await look(host, rules=rules)).reason == "rules_not_kept"
    assert (await look(host, rules=rules, rules_in_files=False)).result is Result.PASS


@pytest.mark.parametrize(("mode", "reason"), [(0o604, "logs_open"), (0o640, "as_expected")])
async def test_a_rotated_log_counts_as_well(mode: int, reason: str) -> None:
    host = healthy_host()
    host.put(f"{auditd.LOG}.3", "type=SYSCALL\n", mode=mode)
    assert (await look(host)).reason == reason


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        ("write_logs = yes", "write_logs = no", "not_written"),
        ("KEEP_LOGS", "ROTATE", "drops_silently"),
        ("KEEP_LOGS", "IGNORE", "drops_silently"),
        ("EMAIL", "SUSPEND", "drops_silently"),
        ("EMAIL", "perhaps", "unparsable"),
    ],
)
async def test_how_the_log_is_kept(old: str, new: str, reason: str) -> None:
    host = healthy_host()
    host.put(auditd.CONFIG, auditd.SETTINGS.replace(old, new), mode=0o640)
    assert (await look(host)).reason == reason


async def test_a_pinned_set_of_rules() -> None:
    host = healthy_host()
    digest = (await look(host)).pre_state["loaded_sha256"]
    assert (await look(host, rules_sha256=digest)).result is Result.PASS
    host.part(auditd.Kernel).rules.append("-w /srv -p r -k looked")
    assert (await look(host, rules_sha256=digest)).reason == "rules_changed"


@pytest.mark.parametrize(
    "wrong",
    [
        {"rules": ()},
        {"rules": ("identity",)},
        {"rules": ("/etc/passwd:",)},
        {"rules": ("/etc/passwd:aw",)},
        {"rules": ("x64:open",)},
        {"unit": "auditd"},
        {"rules_sha256": "0"},
        {"space_actions": ()},
        {"log_actions": ("delete",)},
        {"max_lost": -1},
    ],
)
def test_parameters_that_would_check_nothing_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Parameters(**{"rules": ("/etc/passwd:wa",), **wrong})


def test_the_configuration_that_debian_ships_is_read() -> None:
    """One of its settings has a digit in its name (krb5_principal), and once made the check unknown on every such host."""
    config = core.read_config((FIXTURES / "auditd-3.0.9.conf").read_text("ascii"))
    assert config == core.Config("/var/log/audit/audit.log", True, "syslog", "rotate")
