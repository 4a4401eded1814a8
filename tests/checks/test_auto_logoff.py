"""auto_logoff beyond its cases: real shells reading the file that the cure writes, an old logind, and desktops."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pytest

from compliance_agent.checks import registry
from compliance_agent.checks.auto_logoff import DESKTOPS, Parameters
from compliance_agent.core import idle
from compliance_agent.errors import CannotTell, StepFailed
from compliance_agent.lab.clinic import healthy_host
from compliance_agent.lab.host import FakeHost
from compliance_agent.lab.programs import sessions
from compliance_agent.models import DriftResult, Result
from compliance_agent.remedies import actions
from tests.checks.contract import seen_by

CHECK = registry()["auto_logoff"]


async def look(host: FakeHost, **parameters: Any) -> DriftResult:
    return await seen_by(CHECK, host, **parameters)


def with_desktop(**dconf: str) -> FakeHost:
    host = healthy_host()
    host.put(f"{DESKTOPS[1]}/gnome.desktop", "[Desktop Entry]\n")
    keys = {"delay": "/org/gnome/desktop/session/idle-delay", "lock": "/org/gnome/desktop/screensaver/lock-enabled"}
    host.part(sessions.Sessions).dconf = {keys[name]: value for name, value in dconf.items()}
    return host


def shell(program: str, script: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([program, "-c", script], capture_output=True, text=True, timeout=20, check=False)


def test_bash_itself_says_what_the_file_does(tmp_path: Path) -> None:
    """Read twice, as nested logins do, and still without complaint; bash's own word is what the check reads."""
    file = tmp_path / "tmout.sh"
    file.write_bytes(idle.shell_file(900))
    ran = shell("bash", f". {file}; . {file}; declare -p TMOUT || echo unset")
    assert (idle.read_tmout(ran.stdout), ran.stderr) == ((900, True), "")
    assert "readonly" in shell("bash", f". {file}; TMOUT=0; echo still $TMOUT").stderr


def test_other_shells_take_the_file_as_well(tmp_path: Path) -> None:
    file = tmp_path / "tmout.sh"
    file.write_bytes(idle.shell_file(900))
    ran = shell("sh", f"set -eu; . {file}; . {file}; echo $TMOUT")
    assert (ran.stdout, ran.stderr) == ("900\n", "")


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("unset\n", (0, False)),
        ('declare -- TMOUT="60"\n', (60, False)),
        ('declare -rx TMOUT="0"\n', (0, True)),
        ('declare -ir TMOUT="5"\n', (5, True)),
    ],
)
def test_words_of_bash(text: str, found: tuple[int, bool]) -> None:
    assert idle.read_tmout(text) == found


@pytest.mark.parametrize("text", ["", "unset", 'declare -x TMOUT="1h"\n', 'declare -x TMOUT="5"', "declare -x TMOUT\n"])
def test_other_words_are_not_guessed(text: str) -> None:
    with pytest.raises(CannotTell):
        idle.read_tmout(text)


@pytest.mark.parametrize(
    ("text", "seconds"), [("t 900000000\n", 900), ("t 18446744073709551615\n", 0), ("t 0\n", 0), ("t 1\n", 1)]
)
def test_spans_of_logind(text: str, seconds: int) -> None:
    assert idle.read_usec(text) == seconds


async def test_a_file_that_is_read_later_does_not_win() -> None:
    """The cure's file comes first and is read-only, so what somebody adds later has no effect."""
    host = healthy_host()
    host.put("/etc/profile.d/zz-mine.sh", "TMOUT=0\n")
    assert (await look(host)).result is Result.PASS


async def test_a_file_that_comes_first_is_noticed() -> None:
    host = healthy_host()
    host.put("/etc/profile.d/00-aaa.sh", "TMOUT=7200\nreadonly TMOUT\n")
    seen = await look(host)
    assert (seen.reason, seen.pre_state["shell_idle_s"]) == ("shell_not_ended", 7200)


async def test_keep_alives_of_ssh_are_no_logoff() -> None:
    host = healthy_host()
    host.delete(sessions.SHELL_FILE)
    host.put("/etc/ssh/sshd_config.d/10-alive.conf", "ClientAliveInterval 300\n")
    assert (await look(host)).reason == "shell_not_ended"


async def test_an_old_logind_is_named_and_cannot_be_cured() -> None:
    host = healthy_host()
    host.part(sessions.Sessions).knows_idle = False
    seen = await look(host)
    assert (seen.reason, seen.plan) == ("logind_too_old", None)
    assert (await look(host, logind=False)).result is Result.PASS


async def test_an_old_logind_does_not_keep_shells_from_being_cured() -> None:
    host = healthy_host()
    host.part(sessions.Sessions).knows_idle = False
    host.delete(sessions.SHELL_FILE)
    plan = (await look(host)).plan
    assert plan is not None and [step.action for step in plan.steps] == ["set_shell_timeout"]


@pytest.mark.parametrize(
    ("dconf", "reason"),
    [
        ({}, "as_expected"),
        ({"delay": "uint32 600", "lock": "true"}, "as_expected"),
        ({"delay": "uint32 0"}, "screen_not_locked"),
        ({"delay": "uint32 3600"}, "screen_not_locked"),
        ({"lock": "false"}, "screen_not_locked"),
        ({"lock": "@mb nothing"}, "unparsable"),
        ({"delay": "uint32 many"}, "unparsable"),
    ],
)
async def test_desktops(dconf: dict[str, str], reason: str) -> None:
    assert (await look(with_desktop(**dconf))).reason == reason


async def test_a_desktop_that_cannot_be_asked_is_unknown() -> None:
    host = with_desktop()
    del host.installed["dconf"]
    assert (await look(host)).reason == "tool_missing"
    assert (await look(host, screen_lock=False)).result is Result.PASS


async def test_what_fails_already_is_said_though_the_rest_cannot_be_told() -> None:
    host = healthy_host()
    host.unit(sessions.LOGIND).active = False
    assert (await look(host)).reason == "tool_failed"
    host.delete(sessions.SHELL_FILE)
    seen = await look(host)
    assert (seen.reason, seen.pre_state["session_idle_s"]) == ("shell_not_ended", None)


async def test_logind_that_cannot_be_told_is_a_failed_step() -> None:
    host = healthy_host()
    host.unit(sessions.LOGIND).active = False
    with pytest.raises(StepFailed) as caught:
        await actions()["set_idle_logout"].apply(host, {"path": sessions.LOGIND_FILE, "seconds": 900})
    assert caught.value.code == "logind_not_told"


@pytest.mark.parametrize(
    "wrong", [{"max_idle_s": 0}, {"max_idle_s": 100_000}, {"shell_file": "x.sh"}, {"logind_file": "/etc/x"}]
)
def test_parameters_that_would_check_nothing_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Parameters(**wrong)
