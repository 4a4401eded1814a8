"""ssh_access beyond its cases: what sshd really prints, whom Match blocks let in, and a cure that never locks anybody out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from compliance_agent.adapters.subprocess_host import RealHost
from compliance_agent.checks import registry
from compliance_agent.checks.ssh_access import Parameters
from compliance_agent.core import sshd as words
from compliance_agent.errors import CannotTell, StepFailed
from compliance_agent.lab.clinic import healthy_host
from compliance_agent.lab.host import Call, FakeHost
from compliance_agent.lab.programs import accounts, sshd
from compliance_agent.models import DriftResult, Plan, Result
from compliance_agent.ports import Ran
from compliance_agent.remedies import actions
from tests.checks.contract import seen_by

CHECK = registry()["ssh_access"]
PRINTED = (Path(__file__).parents[1] / "fixtures" / "checks" / "ssh_access" / "sshd-9.2p1-T.txt").read_text("ascii")
BRANCH = "/etc/ssh/sshd_config.d/50-branch.conf"


async def look(host: FakeHost, **parameters: Any) -> DriftResult:
    return await seen_by(CHECK, host, **parameters)


def changed(old: str, new: str) -> FakeHost:
    """The healthy host, a setting of its drop-in changed and read."""
    host = healthy_host()
    host.put(sshd.DROP_IN, host.files[sshd.DROP_IN].content.decode().replace(old, new))
    reread(host)
    return host


def reread(host: FakeHost) -> None:
    assert sshd.read_files(host)
    host.unit(sshd.UNIT).changed_at = host.now()


async def carry_out(host: FakeHost, plan: Plan) -> None:
    for step in plan.steps:
        await actions()[step.action].apply(host, step.args)


def test_what_sshd_prints_is_read() -> None:
    seen = words.read_effective(PRINTED)
    assert (seen.passwords, seen.root_login, seen.key_required) == (True, "prohibit-password", False)
    assert "hmac-sha1" in seen.macs and len(seen.host_keys) == 3
    assert words.listens(PRINTED) == ("::1", "22")


@pytest.mark.parametrize(
    "word",
    ["ciphers", "passwordauthentication", "hostbasedauthentication", "strictmodes", "hostkey", "authorizedkeysfile"],
)
def test_a_line_that_is_missing_is_not_guessed(word: str) -> None:
    with pytest.raises(CannotTell):
        words.read_effective("".join(f"{line}\n" for line in PRINTED.splitlines() if not line.startswith(f"{word} ")))


@pytest.mark.parametrize(
    ("methods", "passwords"),
    [
        ("any", True),
        ("publickey,keyboard-interactive:pam", False),
        ("publickey,password publickey,keyboard-interactive", False),
        ("publickey keyboard-interactive", True),
    ],
)
def test_a_second_factor_beside_a_key_is_no_password_login(methods: str, passwords: bool) -> None:
    text = PRINTED.replace("authenticationmethods any", f"authenticationmethods {methods}")
    assert words.read_effective(text).passwords is passwords


@pytest.mark.parametrize(
    ("block", "loosened"),
    [
        ("Match Address 10.0.0.0/8\n  PasswordAuthentication yes\n", 1),
        ("Match Group staff\n\tKbdInteractiveAuthentication=yes\n", 1),
        ('match user backup\npermitrootlogin without-password\nMatch all\nPermitEmptyPasswords "yes"\n', 2),
        ("Match Host branch.invalid\n  HostbasedAuthentication yes\n", 1),
        ("Match Address 10.0.0.0/8\n  PasswordAuthentication no\n  X11Forwarding yes\n", 0),
        ("PasswordAuthentication yes\n# Match all\n", 0),
    ],
)
def test_match_blocks_are_counted_by_what_they_loosen(block: str, loosened: int) -> None:
    assert words.read_file(block).loosened(passwords=False, root_login=words.NEVER) == loosened


async def test_a_match_block_for_an_address_is_found_though_sshd_does_not_show_it() -> None:
    host = healthy_host()
    host.put(BRANCH, "Match Address 10.0.0.0/8\n  PasswordAuthentication yes\n")
    reread(host)
    seen = await look(host)
    assert (seen.reason, seen.plan, seen.pre_state["passwords"]) == ("match_relaxes", None, False)


async def test_what_holds_for_a_named_account_is_asked() -> None:
    host = healthy_host()
    host.put(BRANCH, "Match User msp\n  PasswordAuthentication yes\n")
    reread(host)
    seen = await look(host, match_users=("root", "msp"))
    assert (seen.reason, seen.pre_state["lax_users"]) == ("match_relaxes", ["msp"])


async def test_another_host_that_vouches_for_a_named_account_is_found() -> None:
    host = healthy_host()
    host.put(BRANCH, "Match User msp\n  HostbasedAuthentication yes\n")
    reread(host)
    seen = await look(host, match_users=("root", "msp"))
    assert (seen.reason, seen.pre_state["lax_users"], seen.pre_state["host_based"]) == ("match_relaxes", ["msp"], False)


def test_another_hosts_word_beside_a_key_is_not_enough() -> None:
    text = PRINTED.replace("hostbasedauthentication no", "hostbasedauthentication yes")
    assert words.read_effective(text).host_based
    with_key = text.replace("authenticationmethods any", "authenticationmethods publickey,hostbased")
    assert not words.read_effective(with_key).host_based


async def test_no_key_anywhere_no_cure() -> None:
    """Turning passwords off where nobody has a key would lock everybody out."""
    host = changed("PasswordAuthentication no", "PasswordAuthentication yes")
    host.put(f"/home/{accounts.ADMIN}/.ssh/authorized_keys", "# none yet\n\n")
    seen = await look(host)
    assert (seen.reason, seen.plan, seen.pre_state["key_accounts"]) == ("password_login", None, 0)
    host.put("/root/.ssh/authorized_keys", accounts.KEY)  # of no use: root may not log in
    assert (await look(host)).plan is None
    assert (await look(host, root_login="by_key")).plan is not None


async def test_a_key_in_the_second_place_counts() -> None:
    host = changed("PasswordAuthentication no", "PasswordAuthentication yes")
    host.delete(f"/home/{accounts.ADMIN}/.ssh/authorized_keys")
    host.put(f"/home/{accounts.ADMIN}/.ssh/authorized_keys2", accounts.KEY)
    assert (await look(host)).pre_state["key_accounts"] == 1


async def test_a_second_factor_is_left_alone_by_the_cure() -> None:
    """With a key required anyway, the policy must not switch off what asks for the second factor."""
    both = "KbdInteractiveAuthentication yes\nAuthenticationMethods publickey,keyboard-interactive:pam"
    host = changed("KbdInteractiveAuthentication no", both)
    host.put(sshd.CONFIG, sshd.DEBIAN.replace("KbdInteractiveAuthentication no", both))
    host.put(sshd.DROP_IN, host.files[sshd.DROP_IN].content.decode().replace("MACs ", "MACs hmac-sha1,"))
    reread(host)
    seen = await look(host)
    assert seen.reason == "weak_macs" and seen.plan is not None
    await carry_out(host, seen.plan)
    assert (await look(host)).result is Result.PASS
    assert b"KbdInteractive" not in host.files[sshd.DROP_IN].content


async def test_the_cure_is_taken_back_when_the_daemon_stops_answering() -> None:
    """The files are as before, and so is what the daemon goes by."""
    host = changed("MACs ", "MACs hmac-sha1,")
    plan = (await look(host)).plan
    assert plan is not None
    step, action = plan.steps[0], actions()["set_sshd_policy"]
    former, policy = host.files[sshd.DROP_IN].content, dict(host.part(sshd.Daemon).policy)
    captured = await action.capture(host, step.args)
    unit = host.unit(sshd.UNIT)

    def goes_mute() -> None:
        sshd.read_files(host)
        host.part(sshd.Daemon).mute = True

    unit.reloaded = goes_mute
    with pytest.raises(StepFailed) as caught:
        await action.apply(host, step.args)
    assert caught.value.code == "no_handshake_after"
    unit.reloaded = lambda: sshd.read_files(host)
    await action.undo(host, step.args, captured)
    assert host.files[sshd.DROP_IN].content == former
    assert host.part(sshd.Daemon).policy == policy
    assert not host.part(sshd.Daemon).mute, "a daemon that answered before answers again"
    assert action.restored(captured, await action.capture(host, step.args))


async def test_an_undo_after_which_the_daemon_is_silent_is_no_former_state() -> None:
    host = changed("MACs ", "MACs hmac-sha1,")
    step = (await look(host)).plan.steps[0]  # type: ignore[union-attr]
    action = actions()["set_sshd_policy"]
    captured = await action.capture(host, step.args)
    host.part(sshd.Daemon).mute = True
    assert not action.restored(captured, await action.capture(host, step.args))
    host.unit(sshd.UNIT).started = lambda: True  # started anew, it stays silent
    with pytest.raises(StepFailed) as caught:
        await action.undo(host, step.args, captured)
    assert caught.value.code == "no_handshake_after"


async def test_a_daemon_that_ended_under_the_policy_is_started_again() -> None:
    host = changed("MACs ", "MACs hmac-sha1,")
    plan = (await look(host)).plan
    assert plan is not None
    step, action = plan.steps[0], actions()["set_sshd_policy"]
    captured = await action.capture(host, step.args)
    host.unit(sshd.UNIT).reloaded = lambda: False
    with pytest.raises(StepFailed):
        await action.apply(host, step.args)
    assert not host.is_active(sshd.UNIT)
    await action.undo(host, step.args, captured)
    assert host.is_active(sshd.UNIT)


async def test_nothing_is_changed_where_no_handshake_can_prove_it() -> None:
    host = changed("MACs ", "MACs hmac-sha1,")
    plan = (await look(host)).plan
    assert plan is not None
    host.part(sshd.Daemon).mute = True
    step, action = plan.steps[0], actions()["set_sshd_policy"]
    captured = await action.capture(host, step.args)
    with pytest.raises(StepFailed) as caught:
        await carry_out(host, plan)
    await action.undo(host, step.args, captured)
    assert (caught.value.code, host.changed) == ("no_handshake_before", [])


async def test_a_daemon_is_not_told_to_listen_where_nothing_answers() -> None:
    """Told to read an address that this host does not have, it would end, and nobody could log in any more."""
    host, action, args = healthy_host(), actions()["reload_sshd"], {"unit": sshd.UNIT}
    host.put(BRANCH, "Port 2222\n")
    captured = await action.capture(host, args)
    with pytest.raises(StepFailed) as caught:
        await action.apply(host, args)
    await action.undo(host, args, captured)
    assert (caught.value.code, host.changed) == ("no_handshake_before", [])


async def test_a_daemon_that_a_reload_ended_is_started_again() -> None:
    host, action, args = healthy_host(), actions()["reload_sshd"], {"unit": sshd.UNIT}
    captured = await action.capture(host, args)
    host.unit(sshd.UNIT).reloaded = lambda: False
    with pytest.raises(StepFailed):
        await action.apply(host, args)
    assert not host.is_active(sshd.UNIT)
    await action.undo(host, args, captured)
    assert host.is_active(sshd.UNIT)
    assert action.restored(captured, await action.capture(host, args))


@pytest.mark.parametrize(
    "notices", ["the service manager", "the look after it", "a look that cannot be taken any more"]
)
@pytest.mark.parametrize("cure", ["set_sshd_policy", "reload_sshd"])
async def test_a_daemon_that_its_reload_ends_is_called_that_whoever_notices(cure: str, notices: str) -> None:
    host = changed("MACs ", "MACs hmac-sha1,")
    step = (await look(host)).plan.steps[0]  # type: ignore[union-attr]
    args = step.args if cure == step.action else {"unit": sshd.UNIT}
    unit = host.unit(sshd.UNIT)

    def ends() -> bool:
        unit.active = False
        if notices == "the service manager":
            raise StepFailed("ssh.service: reload failed", code="unit_reload_failed")
        if notices == "a look that cannot be taken any more":
            host.put(BRANCH, "PasswordAuthentication maybe\n")
        return False

    unit.reloaded = ends
    with pytest.raises(StepFailed) as caught:
        await actions()[cure].apply(host, args)
    assert caught.value.code == "daemon_ended"


async def test_a_reload_that_failed_and_ended_nothing_is_a_reload_that_failed() -> None:
    host = healthy_host()

    def refuses() -> bool:
        raise StepFailed("ssh.service: reload failed", code="unit_reload_failed")

    host.unit(sshd.UNIT).reloaded = refuses
    with pytest.raises(StepFailed) as caught:
        await actions()["reload_sshd"].apply(host, {"unit": sshd.UNIT})
    assert caught.value.code == "unit_reload_failed"


async def test_a_bad_file_is_never_read_by_the_daemon() -> None:
    """`sshd -t` comes first: a daemon told to read a bad file ends."""
    host = healthy_host()
    host.put(BRANCH, "PasswordAuthentication maybe\n")
    with pytest.raises(StepFailed) as caught:
        await actions()["reload_sshd"].apply(host, {"unit": sshd.UNIT})
    assert (caught.value.code, host.changed) == ("config_refused", [])


async def test_algorithms_this_openssh_does_not_know_are_left_out_of_the_file() -> None:
    """The list holds names of newer versions; one of them in the file would make sshd refuse all of it."""
    host = changed("MACs ", "MACs hmac-sha1,")
    plan = (await look(host)).plan
    assert plan is not None
    await carry_out(host, plan)
    assert b"mlkem768x25519" not in host.files[sshd.DROP_IN].content
    assert "mlkem768x25519" in str(plan.steps[0].args["kex"])


async def test_a_drop_in_that_comes_too_late_is_noticed() -> None:
    """The cure wrote its file, and another one still wins: the check says so, so the transaction undoes it."""
    host = healthy_host()
    host.put("/etc/ssh/sshd_config.d/00-aaa.conf", "PasswordAuthentication yes\n")
    reread(host)
    seen = await look(host)
    assert seen.reason == "password_login" and seen.plan is not None
    await carry_out(host, seen.plan)
    assert (await look(host)).reason == "password_login"


async def test_a_host_without_ssh_is_told_from_a_wrong_unit() -> None:
    host = healthy_host()
    assert (await look(host, unit="sshd-2.service")).reason == "daemon_missing"
    del host.installed["sshd"]
    seen = await look(host, unit="sshd-2.service")
    assert (seen.result, seen.reason) == (Result.NOT_APPLICABLE, "no_ssh")


async def test_behind_a_socket_files_are_never_stale() -> None:
    host = healthy_host()
    host.service("ssh.socket")
    host.files[sshd.CONFIG].modified_at = host.now()
    assert (await look(host, unit="ssh.socket")).result is Result.PASS
    assert (await look(host)).result is Result.PASS  # changed in the very second in which it was read
    host.unit(sshd.UNIT).changed_at = host.now().replace(minute=0, second=0) if host.now().minute else None
    host.files[sshd.CONFIG].modified_at = host.now().replace(year=host.now().year + 1)
    assert (await look(host)).reason == "reload_needed"


async def test_a_symbolic_link_as_drop_in_is_left_alone(tmp_path: Path) -> None:
    """On a real file system: neither followed nor replaced."""
    host, aim = RealHost(), tmp_path / "shadow"
    aim.write_text("secret\n")
    aim.chmod(0o600)
    link = tmp_path / "00-compliance.conf"
    link.symlink_to(aim)
    action = actions()["set_sshd_policy"]
    with pytest.raises(CannotTell):
        await action.capture(host, {"path": str(link)})
    with pytest.raises(StepFailed):
        await actions()["set_mode"].apply(host, {"path": str(link), "mode": "0644"})
    assert (aim.read_text(), aim.stat().st_mode & 0o777, link.is_symlink()) == ("secret\n", 0o600, True)


@pytest.mark.parametrize(
    "wrong",
    [
        {"root_login": "yes"},
        {"ciphers": ()},
        {"host_keys": ()},
        {"match_users": ()},
        {"match_users": ("root,addr=10.0.0.1",)},
        {"drop_in": "sshd.conf"},
        {"unit": ""},
    ],
)
def test_parameters_that_would_check_nothing_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Parameters(**wrong)


async def test_when_all_host_keys_are_open_sshd_says_nothing_and_the_fault_is_still_named() -> None:
    """A daemon with no key left refuses `sshd -T` and every connection; what it cannot be asked is not what is wrong."""
    host = healthy_host()
    for path in sshd.HOST_KEYS:
        host.files[path].mode = 0o640
    seen = await look(host)
    assert (seen.result, seen.reason) == (Result.FAIL, "host_key_exposed")
    assert seen.plan is not None and len(seen.plan.steps) == len(sshd.HOST_KEYS)
    await carry_out(host, seen.plan)
    assert (await look(host)).result is Result.PASS


async def test_a_configuration_that_changes_during_the_look_is_looked_at_again() -> None:
    """Half of the look before a change and half after it would lay the policy's fault to a Match block."""
    host = healthy_host()
    program, calls = host.installed["sshd"], 0

    def changed_after_the_first_answer(call: Call) -> Ran:
        nonlocal calls
        calls, answer = calls + 1, program(call)
        if calls == 1:
            host.delete(sshd.DROP_IN)
            reread(host)
        return answer

    host.installed["sshd"] = changed_after_the_first_answer
    assert (await look(host)).reason == "password_login"


async def test_a_configuration_that_never_stands_still_is_unknown() -> None:
    host = healthy_host()
    program, calls = host.installed["sshd"], 0
    lists = (b"ciphers ", b"ciphers 3des-cbc,")

    def other_each_time(call: Call) -> Ran:
        nonlocal calls
        answer = program(call)
        if "-C" in call.argv:
            return answer
        calls += 1
        return Ran(answer.exit_status, answer.out.replace(b"ciphers ", lists[calls % 2]), b"")

    host.installed["sshd"] = other_each_time
    seen = await look(host)
    assert (seen.result, seen.reason) == (Result.UNKNOWN, "unparsable")
