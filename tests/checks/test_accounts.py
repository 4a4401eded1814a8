"""accounts beyond its cases: real forms of the files, who sudo lets become root, and what no record may hold."""

from __future__ import annotations

import json
from typing import Any

import pytest

from compliance_agent.checks import registry
from compliance_agent.checks.accounts import Parameters
from compliance_agent.core.passwd import read_passwd, read_shadow, scheme_of, usable
from compliance_agent.core.sudoers import read_sudoers, resolved
from compliance_agent.errors import CannotTell, StepFailed
from compliance_agent.lab.clinic import healthy_host
from compliance_agent.lab.host import FakeHost
from compliance_agent.lab.programs import accounts
from compliance_agent.models import DriftResult, Result
from compliance_agent.remedies import actions
from tests.checks.contract import seen_by

CHECK = registry()["accounts"]
LOCK = actions()["lock_empty_passwords"]
GOOD: dict[str, Any] = {"people": ("a",), "admins": ("a",)}


async def look(host: FakeHost, **parameters: Any) -> DriftResult:
    return await seen_by(CHECK, host, **parameters)


def with_account(
    name: str, uid: int, *, shell: str = "/bin/bash", hashed: str = "!", gid: int | None = None
) -> FakeHost:
    host = healthy_host()
    accounts.add(host, "/etc/passwd", f"{name}:x:{uid}:{uid if gid is None else gid}::/home/{name}:{shell}")
    accounts.add(host, "/etc/shadow", f"{name}:{hashed}:{accounts.DAY}:0:99999:7:::")
    return host


@pytest.mark.parametrize(
    ("hashed", "scheme"),
    [
        (accounts.HASH, "yescrypt"),
        ("$6$rounds=5000$abc$def", "sha512"),
        ("$5$abc$def", "sha256"),
        ("$1$abc$def", "md5"),
        ("$2b$12$abcdef", "bcrypt"),
        ("$7$CU..../....x$y", "scrypt"),
        ("$gy$j9T$a$b", "gost_yescrypt"),
        ("abJnggxhB/yWI", "other"),
        ("_J9..K0AyUubU5", "other"),
    ],
)
async def test_hashes_are_told_apart(hashed: str, scheme: str) -> None:
    assert scheme_of(hashed) == scheme
    seen = await look(with_account("x1", 500, shell="/usr/sbin/nologin", hashed=hashed))
    assert (seen.reason == "weak_hashes") == (scheme not in {"yescrypt", "sha512"})


@pytest.mark.parametrize("hashed", ["!", "*", "!!", f"!{accounts.HASH}", "!$1$abc$def", "*LK*"])
async def test_a_locked_password_is_no_password(hashed: str) -> None:
    assert not usable(hashed)
    assert (await look(with_account("x1", 500, hashed=hashed))).result is Result.PASS


@pytest.mark.parametrize(
    ("rule", "others"),
    [
        ("frontdesk ALL=(ALL) ALL", 1),
        ("frontdesk,www-data ALL = NOPASSWD: /bin/ls", 2),
        ("%users ALL=(ALL) ALL", 0),
        ("%www-data ALL=(ALL) ALL", 1),
        ("%nobodys-group ALL=(ALL) ALL", 1),
        ("ALL ALL=(ALL) ALL", 1),
        ("#1001 ALL=(ALL) ALL", 1),
        ("+netgroup ALL=(ALL) ALL", 1),
        ("User_Alias CREW = frontdesk, www-data\nCREW ALL=(ALL) ALL", 2),
        ("User_Alias A = B : B = frontdesk\nA ALL=(ALL) ALL", 1),
        ("User_Alias UNUSED = frontdesk", 0),
        ("msp ALL=(ALL) NOPASSWD: \\\n  /usr/bin/apt, \\\n  /usr/bin/dnf", 0),
        ("Defaults:frontdesk !requiretty\nCmnd_Alias LS = /bin/ls", 0),
        ("frontdesk h1 = /bin/a : h2 = /bin/b  # for now", 1),
        ("root, msp ALL=(ALL) ALL, !frontdesk ALL=(ALL) ALL", 0),
    ],
)
async def test_whoever_a_rule_names_may_become_root(rule: str, others: int) -> None:
    host = healthy_host()
    host.put("/etc/sudoers.d/10-rule", f"# a comment\n{rule}\n")
    seen = await look(host)
    assert seen.pre_state["other_admins"] == others, seen.verdict
    assert (seen.reason == "unlisted_admins") == (others > 0)


async def test_a_member_of_an_admin_group_by_primary_group_counts() -> None:
    seen = await look(with_account("x1", 500, gid=27))
    assert (seen.reason, seen.pre_state["other_admins"]) == ("unlisted_admins", 1)


async def test_a_file_that_sudo_passes_over_is_passed_over() -> None:
    host = healthy_host()
    host.put("/etc/sudoers.d/rule.bak", "frontdesk ALL=(ALL) ALL\n")
    host.put("/etc/sudoers.d/rule~", "frontdesk ALL=(ALL) ALL\n")
    assert (await look(host)).result is Result.PASS


@pytest.mark.parametrize("line", ["frontdesk", "User_Alias crew = a", "frontdesk ALL", "<<<<<<< HEAD", "\x00"])
def test_a_line_that_is_not_understood_is_not_passed_over(line: str) -> None:
    with pytest.raises(CannotTell):
        read_sudoers(f"root ALL=(ALL) ALL\n{line}\n")


def test_an_alias_that_names_itself_ends() -> None:
    assert resolved(("A",), {"A": ("B", "x"), "B": ("A",)}) >= {"x"}


async def test_a_pin_finds_what_rules_do_not_show() -> None:
    host = healthy_host()
    pin = (await look(host)).pre_state["sudoers_sha256"]
    assert (await look(host, sudoers_sha256=pin)).result is Result.PASS
    host.put("/etc/sudoers.d/20-defaults", "Defaults !authenticate\n")
    assert (await look(host)).result is Result.PASS
    assert (await look(host, sudoers_sha256=pin)).reason == "sudoers_changed"


async def test_a_host_without_sudo_has_no_admins_by_it() -> None:
    host = healthy_host()
    host.delete("/etc/sudoers")
    seen = await look(host)
    assert (seen.result, seen.pre_state["sudoers_files"], seen.pre_state["admins"]) == (Result.PASS, 0, ["msp"])


@pytest.mark.parametrize(
    ("uid", "shell", "counted"), [(1002, "/bin/bash", 1), (1002, "/usr/sbin/nologin", 0), (999, "/bin/sh", 0)]
)
async def test_accounts_for_people_are_those_with_a_shell(uid: int, shell: str, counted: int) -> None:
    assert (await look(with_account("x1", uid, shell=shell))).pre_state["other_people"] == counted


@pytest.mark.parametrize(
    ("shell", "hashed", "counted"),
    [("/bin/bash", accounts.HASH, 1), ("/bin/bash", "!", 0), ("/usr/sbin/nologin", accounts.HASH, 0)],
)
async def test_an_account_of_a_service_with_a_shell_and_a_password_is_one_to_log_in_with(
    shell: str, hashed: str, counted: int
) -> None:
    """Its id is none of a person's, and whoever knows the password gets in all the same."""
    seen = await look(with_account("backupd", 998, shell=shell, hashed=hashed))
    assert (seen.pre_state["other_people"], seen.reason) == (counted, "unlisted_people" if counted else "as_expected")


async def test_a_lock_that_was_never_put_on_is_not_taken_back() -> None:
    """Where usermod could not change the files, an undo that tried would fail, and say that the host is not as it was."""
    host = with_account("x1", 1002, hashed="")
    captured = await LOCK.capture(host, {})
    await LOCK.undo(host, {}, captured)
    assert host.changed == []


async def test_a_key_left_in_an_unlisted_home_is_found() -> None:
    host = with_account("gone", 1500, shell="/usr/sbin/nologin")
    host.put("/home/gone/.ssh/authorized_keys", accounts.KEY)
    assert (await look(host)).reason == "stray_keys"
    host.put("/home/gone/.ssh/authorized_keys", "")
    assert (await look(host)).result is Result.PASS


@pytest.mark.parametrize(("days", "old"), [("99999", 2), ("90", 0), ("91", 2), ("", 2)])
async def test_password_age_is_judged_where_it_is_asked(days: str, old: int) -> None:
    host = healthy_host()
    accounts.replace(
        host, "/etc/shadow", f"{accounts.HASH}:{accounts.DAY}:0:99999:", f"{accounts.HASH}:{accounts.DAY}:0:{days}:"
    )
    assert (await look(host)).result is Result.PASS
    assert (await look(host, max_password_age_d=90)).pre_state["old_passwords"] == old


async def test_an_expected_account_that_is_gone() -> None:
    seen = await look(healthy_host(), expected=("root", "breakglass"))
    assert (seen.reason, seen.pre_state["missing"]) == ("account_missing", ["breakglass"])


async def test_an_empty_password_in_passwd_itself_is_found() -> None:
    host = healthy_host()
    accounts.replace(host, "/etc/passwd", "frontdesk:x:", "frontdesk::")
    assert (await look(host)).reason == "empty_passwords"


async def test_an_account_without_a_shadow_line_is_unknown() -> None:
    host = healthy_host()
    accounts.add(host, "/etc/passwd", "x1:x:500:500::/home/x1:/bin/bash")
    assert (await look(host)).result is Result.UNKNOWN


@pytest.mark.parametrize(
    "text",
    [
        "",
        "root:x:0:0:root:/root",
        "x:x:1:1::/:/bin/sh\n",
        "root:x:0:0:::/bin/sh:\n",
        "root:x:-1:0:::\n",
        "root:x:\uff11:0:::\n",
    ],
)
def test_a_passwd_that_makes_no_sense_is_refused(text: str) -> None:
    with pytest.raises(CannotTell):
        read_passwd(text)


@pytest.mark.parametrize("text", ["", "root:!:1", "root:!:x:0:1:7:::\n", "root:!:-:0:1:7:::\n"])
def test_a_shadow_that_makes_no_sense_is_refused(text: str) -> None:
    with pytest.raises(CannotTell):
        read_shadow(text)


async def test_names_of_the_host_are_never_recorded() -> None:
    host = with_account("jane.roe", 1002, hashed="")
    accounts.add(host, "/etc/group", "jane.roe-friends:x:2000:jane.roe")
    host.put("/etc/sudoers.d/jane", "jane.roe ALL=(ALL) ALL\n")
    host.put("/home/jane.roe/.ssh/authorized_keys", accounts.KEY)
    seen = await look(host)
    assert seen.result is Result.FAIL and seen.plan is not None
    assert "jane" not in json.dumps(
        [dict(seen.pre_state), seen.reason, seen.plan.target, [dict(s.args) for s in seen.plan.steps]]
    )
    assert seen.verdict is not None and "jane" not in seen.verdict.sentence


async def test_locking_waits_for_the_window() -> None:
    plan = (await look(with_account("x1", 1002, hashed=""))).plan
    assert plan is not None and (plan.disruptive, plan.disturbs) == (True, "locks_accounts")


async def test_the_lock_is_taken_back_exactly() -> None:
    """The day of the last change too, though `usermod -p` sets it to today; an account that was locked stays so."""
    host = with_account("x1", 1002, hashed="")
    accounts.replace(host, "/etc/shadow", f"x1::{accounts.DAY}:", "x1:::")
    accounts.replace(host, "/etc/shadow", f"frontdesk:{accounts.HASH}", "frontdesk:")
    former = host.files["/etc/shadow"].content
    captured = await LOCK.capture(host, {})
    await LOCK.apply(host, {})
    assert b"x1:!:" in host.files["/etc/shadow"].content
    await LOCK.undo(host, {}, captured)
    assert host.files["/etc/shadow"].content == former


async def test_a_name_that_is_no_argument_is_not_handed_on() -> None:
    host = healthy_host()
    accounts.add(host, "/etc/shadow", "two words::1:0:99999:7:::")
    with pytest.raises(StepFailed):
        await LOCK.apply(host, {})
    assert host.changed == []


@pytest.mark.parametrize(
    "wrong",
    [
        {"people": ()},
        {"admins": ()},
        {"expected": ()},
        {"admin_groups": ()},
        {"hash_schemes": ()},
        {"hash_schemes": ("md5", "rot13")},
        {"max_password_age_d": -1},
        {"sudoers_sha256": "abc"},
    ],
)
def test_parameters_that_would_check_nothing_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Parameters(**{**GOOD, **wrong})
