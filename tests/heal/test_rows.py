"""The table of the root side: towards the baseline, back to what it found, and nothing else."""

from __future__ import annotations

import os
from typing import Any

import pytest

from compliance_agent.core import nftables
from compliance_agent.frames import Side
from compliance_agent.heal import rows
from compliance_agent.heal.protocol import TABLE
from compliance_agent.heal.rows import ROWS
from compliance_agent.heal.trouble import Unclear
from tests.heal.scene import APART, CONF, FOUND, KEY, RULESET, Scene

OURS = b"# ours\nCiphers a,c\n"
GONE = "table inet compliance {\n\tchain old {\n\t}\n}\n"


def test_every_row_of_the_protocol_has_one_action_and_says_how_it_is_undone() -> None:
    """No question without a row, and no row that nobody can ask for."""
    assert {kind.name for kind in TABLE.kinds.values() if kind.by is Side.ASKS} == set(ROWS)
    assert all(len(row.undo) > 3 for row in ROWS.values())


def test_the_table_of_rules_is_the_one_that_the_check_looks_at() -> None:
    """The root side repeats what it needs, because it may import nothing."""
    assert nftables.TABLE == rows.RULES_TABLE
    assert nftables.replacing() == rows.REPLACING


# Files


@pytest.mark.parametrize("content", [OURS, b"# ours\nPasswords no\nCiphers a,b,c\n", b"# ours\nCiphers b\n"])
def test_a_file_of_the_permitted_form_is_written(scene: Scene, content: bytes) -> None:
    scene.does("write", path=CONF, mode=0o644, blob=content)
    assert scene.path(CONF).read_bytes() == content
    assert scene.path(CONF).stat().st_mode & 0o7777 == 0o644


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"# ours\n",
        b"# ours\nCiphers a,c",
        b"# ours\nCiphers a,c\n\n",
        b"# ours\nCiphers c,a\n",
        b"# ours\nCiphers a,a\n",
        b"# ours\nCiphers \n",
        b"# ours\nCiphers a,d\n",
        b"# ours\nCiphers a\nAuthorizedKeysCommand /tmp/x\n",
        b"# ours\r\nCiphers a\n",
        b"Ciphers a\n# ours\n",
        "# ours\nCiphers \uff41\n".encode(),
    ],
)
def test_other_content_is_refused(scene: Scene, content: bytes) -> None:
    """Not a line more, not a word that is not listed: a policy file decides who may become root."""
    scene.refuses("write", "other_content", path=CONF, mode=0o644, blob=content)
    assert not scene.path(CONF).exists()


@pytest.mark.parametrize("mode", [0o666, 0o4755, 0o600])
def test_another_mode_is_refused(scene: Scene, mode: int) -> None:
    scene.refuses("write", "other_content", path=CONF, mode=mode, blob=OURS)


@pytest.mark.parametrize(
    "path", ["/etc/passwd", "/etc/app/app.conf2", "/etc/app/x/app.conf", KEY, "/etc/msp/permits.json", FOUND]
)
def test_a_path_that_root_does_not_name_is_refused(scene: Scene, path: str) -> None:
    """Its own permissions and its own memory above all."""
    scene.refuses("write", path=path, mode=0o644, blob=OURS)
    if scene.path(path).exists():
        scene.refuses("remove", path=path)


def test_what_was_found_comes_back_and_nothing_else(scene: Scene) -> None:
    """Byte for byte, mode and all; and only after the root side itself saw it there."""
    former = b"# the owner's own\nPermitRootLogin yes\n"
    scene.refuses("write", "other_content", path=CONF, mode=0o600, blob=former, cure="before")
    scene.put(CONF, former, 0o600)
    scene.does("write", path=CONF, mode=0o644, blob=OURS)
    scene.refuses("write", "other_content", path=CONF, mode=0o644, blob=former)
    scene.refuses("write", "other_content", path=CONF, mode=0o600, blob=former + b"x")
    scene.does("write", path=CONF, mode=0o600, blob=former)
    assert scene.path(CONF).read_bytes() == former
    assert scene.path(CONF).stat().st_mode & 0o7777 == 0o600


def test_to_leave_things_as_they_are_is_a_way_back(scene: Scene) -> None:
    """An undo may come for a step that was never begun: it is harmless, and is not refused."""
    scene.put(CONF, b"old\n", 0o600)
    scene.put("/table", GONE.encode())
    scene.does("write", path=CONF, mode=0o600, blob=b"old\n")
    scene.does("ruleset", how="load", blob=(rows.REPLACING + GONE).encode())


def test_another_cure_forgets_what_was_found(scene: Scene) -> None:
    """Else whoever owns the asker could bring back any state that was ever cured."""
    scene.put(CONF, b"old\n")
    scene.does("write", path=CONF, mode=0o644, blob=OURS)
    scene.does("write", path=CONF, mode=0o644, blob=OURS, cure="another")
    scene.refuses("write", "other_content", path=CONF, mode=0o644, blob=b"old\n")


def test_the_first_look_of_a_cure_counts(scene: Scene) -> None:
    scene.put(CONF, b"old\n")
    scene.does("write", path=CONF, mode=0o644, blob=OURS)
    scene.does("write", path=CONF, mode=0o644, blob=b"# ours\nCiphers b\n")
    scene.does("write", path=CONF, mode=0o644, blob=b"old\n")


def test_a_file_that_was_not_there_is_removed_and_one_that_was_is_not(scene: Scene) -> None:
    scene.does("write", path=CONF, mode=0o644, blob=OURS)
    scene.does("remove", path=CONF)
    scene.does("remove", path=CONF)
    scene.put(CONF, b"old\n")
    scene.refuses("remove", path=CONF, cure="another")
    scene.does("write", path=CONF, mode=0o644, blob=OURS, cure="another")
    scene.refuses("remove", path=CONF, cure="another")


def test_a_directory_is_made_for_a_permitted_file_alone_and_only_that_one_goes_again(scene: Scene) -> None:
    scene.refuses("mkdir", path="/etc/other")
    scene.refuses("rmdir", path="/etc/app")
    before = os.umask(0o077)  # as the root side has it
    scene.does("mkdir", path="/etc/new")
    os.umask(before)
    assert scene.path("/etc/new").stat().st_mode & 0o777 == 0o755
    scene.does("write", path="/etc/new/new.conf", mode=0o644, blob=b"x\n")
    scene.fails("rmdir", "io_error", path="/etc/new")
    scene.does("remove", path="/etc/new/new.conf")
    scene.does("rmdir", path="/etc/new")
    assert not scene.path("/etc/new").exists()


def test_a_mode_is_set_as_permitted_and_taken_back_as_found(scene: Scene) -> None:
    scene.put(KEY, b"key", 0o604)
    scene.refuses("chmod", path=KEY, mode=0o666)
    scene.refuses("chmod", path=CONF, mode=0o640)
    scene.does("chmod", path=KEY, mode=0o640)
    scene.refuses("chmod", path=KEY, mode=0o644)
    scene.does("chmod", path=KEY, mode=0o604)
    scene.path(KEY).unlink()
    scene.fails("chmod", "not_found", path=KEY, mode=0o640, cure="another")


# Units


@pytest.mark.parametrize("verb", ["start", "restart", "reload", "enable", "unmask"])
def test_a_needed_unit_is_brought_up(scene: Scene, verb: str) -> None:
    scene.unit("need.service", "inactive", "disabled")
    scene.does("unit", verb=verb, unit="need.service")
    assert scene.calls() == [f"systemctl|--no-pager|--no-ask-password|--quiet|{verb}|--|need.service|"]


@pytest.mark.parametrize(("verb", "unit"), [
    ("stop", "need.service"), ("disable", "need.service"), ("mask", "need.service"),
    ("start", "away.service"), ("restart", "away.service"), ("unmask", "away.service"), ("enable", "away.service"),
    ("start", "sshd.service"), ("stop", "systemd-journald.service"), ("mask", "auditd.service"), ("restart", "evil.service"),
])  # fmt: skip
def test_nothing_is_moved_away_from_the_baseline(scene: Scene, verb: str, unit: str) -> None:
    """The audit daemon above all: an asker that somebody else owns must not be able to stop it."""
    scene.unit(unit, *(("inactive", "masked", "masked") if unit == "away.service" else ()))
    scene.refuses("unit", verb=verb, unit=unit)


def test_a_unit_goes_back_to_what_was_found(scene: Scene) -> None:
    scene.unit("need.service", "inactive", "masked", "masked")
    scene.does("unit", verb="unmask", unit="need.service")
    scene.does("unit", verb="start", unit="need.service")
    scene.refuses("unit", verb="disable", unit="need.service")
    scene.does("unit", verb="stop", unit="need.service")
    scene.does("unit", verb="mask", unit="need.service")
    assert (scene.says("need.service", "LoadState"), scene.says("need.service", "ActiveState")) == (
        "masked",
        "inactive",
    )


def test_a_unit_that_ran_is_not_stopped_after_a_restart(scene: Scene) -> None:
    scene.unit("need.service")
    scene.does("unit", verb="restart", unit="need.service")
    scene.refuses("unit", verb="stop", unit="need.service")


def test_a_forbidden_unit_comes_back_only_if_it_was_there(scene: Scene) -> None:
    scene.unit("away.service")
    scene.does("unit", verb="stop", unit="away.service")
    scene.does("unit", verb="mask", unit="away.service")
    scene.does("unit", verb="unmask", unit="away.service")
    scene.does("unit", verb="start", unit="away.service")
    scene.unit("away.service", "inactive")
    scene.does("unit", verb="mask", unit="away.service", cure="another")
    scene.refuses("unit", verb="start", unit="away.service", cure="another")


def test_a_socket_that_came_up_with_a_unit_goes_down_with_it(scene: Scene) -> None:
    """One that was up before stays, and so does one that starts something else."""
    scene.unit("need.socket", "inactive")
    scene.unit("was-up.socket", "active")
    scene.unit("need.service", "inactive", by="need.socket was-up.socket")
    scene.refuses("unit", verb="stop", unit="need.socket")
    scene.does("unit", verb="start", unit="need.service")
    scene.does("unit", verb="stop", unit="need.socket")
    scene.refuses("unit", verb="stop", unit="was-up.socket")
    scene.refuses("unit", verb="stop", unit="dbus.socket")
    scene.refuses("unit", verb="mask", unit="need.socket")


def test_a_verb_that_fails_or_did_nothing_is_said_to_have_failed(scene: Scene) -> None:
    scene.unit("away.service")
    scene.put("/fails-stop", b"")
    assert scene.ask("unit", verb="stop", unit="away.service")[:2] == (
        "failed",
        {"code": "unit_stop_failed", "exit": 3},
    )
    scene.path("/fails-stop").unlink()
    scene.put("/lies-stop", b"")
    scene.fails("unit", "unit_stop_failed", verb="stop", unit="away.service")


def test_without_a_service_manager_it_cannot_be_told(scene: Scene) -> None:
    scene.unit("need.service")
    scene.put("/fails-start", b"")
    scene.path("/booted").rmdir()
    assert scene.ask("unit", verb="start", unit="need.service")[:2] == ("unclear", {"reason": "tool_missing"})


# The firewall


def test_the_ruleset_of_the_baseline_is_loaded_and_the_former_comes_back(scene: Scene) -> None:
    scene.refuses("ruleset", "other_content", how="load", blob=(rows.REPLACING + GONE).encode(), cure="before")
    former = scene.put("/table", GONE.encode()).read_text()
    scene.does("ruleset", how="check", blob=RULESET.encode())
    scene.does("ruleset", how="load", blob=RULESET.encode())
    assert "chain input" in scene.path("/table").read_text()
    scene.does("ruleset", how="check", blob=(rows.REPLACING + former).encode())
    scene.does("ruleset", how="load", blob=(rows.REPLACING + former).encode())
    assert scene.path("/table").read_text() == former


def test_where_there_was_no_table_there_is_none_again(scene: Scene) -> None:
    scene.does("ruleset", how="load", blob=RULESET.encode())
    scene.refuses("ruleset", "other_content", how="load", blob=rows.REPLACING.encode(), cure="another")
    scene.path("/table").unlink()
    scene.does("ruleset", how="load", blob=RULESET.encode())
    scene.does("ruleset", how="load", blob=rows.REPLACING.encode())
    assert not scene.path("/table").exists()


def test_the_same_rules_may_be_made_where_there_is_no_table(scene: Scene) -> None:
    made = nftables.creating(RULESET)
    assert made.startswith("create table inet compliance\ntable inet compliance {")
    scene.does("ruleset", how="load", blob=made.encode())
    scene.does("ruleset", how="load", blob=rows.REPLACING.encode())
    for text in (
        made + "flush ruleset\n",
        f"create {RULESET}",
        rows.CREATING,
        made.replace("chain input", "chain output"),
    ):
        scene.refuses("ruleset", "other_content", how="load", blob=text.encode())


@pytest.mark.parametrize(
    "text", ["", "flush ruleset\n", RULESET + "flush ruleset\n", 'include "/etc/shadow"\n', RULESET[:-1]]
)
def test_no_other_rules_are_loaded_nor_even_checked(scene: Scene, text: str) -> None:
    """`nft` reads files that a ruleset includes."""
    for how in ("check", "load"):
        scene.refuses("ruleset", "other_content", how=how, blob=text.encode())


def test_a_ruleset_that_did_not_come_into_force_is_said_to_have_failed(scene: Scene) -> None:
    scene.put("/lies-nft", b"")
    scene.fails("ruleset", "not_verified", how="load", blob=RULESET.encode())


# Audit, accounts, packages, clock, generations


def test_auditing_is_switched_on_and_off_again_only_if_it_was_off(scene: Scene) -> None:
    scene.put("/enabled", b"0\n")
    scene.refuses("audit", verb="off")
    scene.does("audit", verb="on")
    scene.does("audit", verb="off")
    scene.put("/enabled", b"1\n")
    scene.does("audit", verb="on", cure="another")
    scene.refuses("audit", verb="off", cure="another")
    scene.put("/enabled", b"0\n")
    scene.put("/lies-audit", b"")
    scene.fails("audit", "not_verified", verb="on", cure="third")


def test_audit_rules_are_cleared_only_to_bring_back_those_that_were_found(scene: Scene) -> None:
    scene.put("/rules", b"-w /etc/a -p wa -k a\n-a always,exit -S all -F key=b\n")
    scene.put("/etc/audit/audit.rules", b"old rules\n", 0o640)
    scene.refuses("audit", verb="clear")
    scene.refuses("audit_rule", rule="-w /etc/a -p wa -k a")
    scene.does("audit", verb="load")
    scene.does("audit", verb="clear")
    scene.refuses("audit_rule", rule="-a never,task")
    for rule in ("-w /etc/a -p wa -k a", "-a always,exit -S all -F key=b"):
        scene.does("audit_rule", rule=rule)
    assert scene.path("/rules").read_text().splitlines()[0] == "-w /etc/a -p wa -k a"
    scene.put("/etc/audit/audit.rules", b"new rules\n", 0o640)
    scene.does("write", path="/etc/audit/audit.rules", mode=0o640, blob=b"old rules\n")
    scene.does("remove", path="/etc/audit/audit.rules.prev")


def test_an_account_is_locked_only_while_it_needs_no_password(scene: Scene) -> None:
    scene.put("/etc/shadow", b"root:$y$hash:19000:0:99999:7:::\nguest::19001:0:99999:7:::\nold:::0:99999:7:::\n", 0o600)
    scene.refuses("account", verb="lock", name="root")
    scene.refuses("account", verb="unlock", name="root")
    scene.refuses("account", verb="unlock", name="guest")
    scene.refuses("account", verb="lock", name="nobody")
    scene.does("account", verb="lock", name="guest")
    scene.does("account", verb="lock", name="old")
    scene.refuses("account_day", name="guest", day=19000)
    scene.refuses("account_day", name="root", day=19000)
    scene.does("account", verb="unlock", name="guest")
    scene.does("account_day", name="guest", day=19001)
    scene.does("account", verb="unlock", name="old")
    scene.does("account_day", name="old", day=-1)
    assert [call for call in scene.calls() if call.startswith("chage")] == [
        "chage|-d|19001|--|guest|",
        "chage|-d|-1|--|old|",
    ]


def test_what_a_program_says_of_an_account_or_a_rule_is_not_believed(scene: Scene) -> None:
    shadow = scene.put("/etc/shadow", b"guest::19001:0:99999:7:::\n", 0o600)
    scene.put("/lies-usermod", b"")
    scene.fails("account", "not_verified", verb="lock", name="guest")
    scene.path("/lies-usermod").unlink()
    scene.does("account", verb="lock", name="guest")
    scene.put("/lies-usermod", b"")
    scene.fails("account", "not_verified", verb="unlock", name="guest")
    scene.path("/lies-usermod").unlink()
    scene.does("account", verb="unlock", name="guest")
    shadow.write_bytes(b"guest::20000:0:99999:7:::\n")  # usermod's own day
    scene.put("/lies-chage", b"")
    scene.fails("account_day", "not_verified", name="guest", day=19001)
    scene.path("/lies-chage").unlink()
    scene.does("account_day", name="guest", day=19001)
    assert shadow.read_bytes() == b"guest::19001:0:99999:7:::\n"
    scene.put("/rules", b"-w /etc/a -p wa -k a\n")
    scene.does("audit", verb="load")
    scene.does("audit", verb="clear")
    scene.put("/lies-audit", b"")
    scene.fails("audit_rule", "not_verified", rule="-w /etc/a -p wa -k a")


def test_packages_are_upgraded_and_nothing_is_removed(scene: Scene) -> None:
    scene.does("refresh", manager="apt")
    scene.does("finish")
    scene.does("upgrade", manager="apt", packages=["openssl=3.0.19-1~deb12u2", "libc6:i386=2.36-9"])
    assert "--only-upgrade|--no-remove|" in scene.calls()[-1]
    assert scene.calls()[-1].endswith("|install|openssl=3.0.19-1~deb12u2|libc6:i386=2.36-9|")
    scene.refuses("upgrade", "other_content", manager="apt", packages=[])
    scene.refuses("upgrade", manager="dnf", packages=[])
    scene.refuses("refresh", manager="dnf")
    scene.permit(may=["dnf"])
    scene.does("upgrade", manager="dnf", packages=[])
    scene.refuses("upgrade", "other_content", manager="dnf", packages=["x=1"])
    scene.refuses("finish")


def test_a_program_that_fails_is_an_answer_with_what_it_said(scene: Scene) -> None:
    scene.program("apt-get", "echo 'E: Could not get lock' >&2; exit 100")
    assert scene.ask("refresh", manager="apt") == ("done", {"exit": 100}, b"E: Could not get lock\n")


def test_generations_never_go_back_but_to_the_one_that_was_found(scene: Scene) -> None:
    running = "/nix/store/" + "a" * 32 + "-nixos-system-x-24.05"
    scene.put("/generation", b"7\n")
    scene.put("/running", f"{running}\n".encode())
    scene.refuses("activate", system=running, how="test")
    scene.refuses("system", generation=6)
    scene.does("system", generation=9)
    scene.does("activate", system="/nix/var/nix/profiles/system", how="switch")
    scene.refuses("system", generation=8)
    scene.refuses("activate", system="/nix/store/" + "b" * 32 + "-evil", how="test")
    scene.refuses("activate", system=running, how="switch")
    scene.does("system", generation=7)
    scene.does("activate", system=running, how="test")


@pytest.mark.parametrize(
    ("kind", "args"),
    [
        ("logind", {}),
        ("clock", {}),
        ("finish", {}),
        ("refresh", {"manager": "apt"}),
        ("upgrade", {"manager": "apt", "packages": ["a=1"]}),
        ("audit", {"verb": "on"}),
        ("audit", {"verb": "load"}),
        ("account", {"verb": "lock", "name": "guest"}),
        ("system", {"generation": 9}),
        ("activate", {"system": "/nix/var/nix/profiles/system", "how": "switch"}),
        ("ruleset", {"how": "load", "blob": RULESET.encode()}),
        ("write", {"path": CONF, "mode": 0o644, "blob": OURS}),
        ("chmod", {"path": KEY, "mode": 0o640}),
        ("mkdir", {"path": "/etc/new"}),
        ("unit", {"verb": "start", "unit": "need.service"}),
    ],
)
def test_a_host_that_is_only_looked_at_is_not_touched(scene: Scene, kind: str, args: dict[str, Any]) -> None:
    """Permissions of a baseline whose mode is audit are empty; each row that moves towards a baseline needs its own."""
    scene.put("/etc/shadow", b"guest::1:0:99999:7:::\n", 0o600)
    scene.put(KEY, b"", 0o604)
    scene.put("/generation", b"7\n")
    scene.unit("need.service", "inactive")
    code = "other_content" if kind == "ruleset" else "not_permitted_here"
    blob = args.get("blob", b"")
    scene.permit(files={}, modes={}, units={}, ruleset=None, may=[])
    scene.refuses(kind, code, **{**args, "blob": blob})


def test_another_baseline_than_the_permitted_one_is_refused(scene: Scene) -> None:
    """What `run` decided by one baseline is not done under the permissions of another."""
    scene.refuses("clock", "other_baseline", baseline="0" * 64)


@pytest.mark.parametrize("damage", [b"", b"{", b"[]", b'{"cure": "x"}', b"\xff"])
def test_a_damaged_memory_stops_everything(scene: Scene, damage: bytes) -> None:
    """What was found cannot be known, so nothing more is changed until a person has looked."""
    scene.put(FOUND, damage, 0o600)
    scene.refuses("clock", "state_damaged")


def test_a_memory_that_others_may_read_is_not_used(scene: Scene) -> None:
    scene.does("write", path=CONF, mode=0o644, blob=OURS)
    assert scene.path(FOUND).stat().st_mode & 0o7777 == 0o600
    scene.path(FOUND).chmod(0o644)
    scene.refuses("clock", "state_damaged")


def test_what_was_found_is_durable_before_the_change(scene: Scene) -> None:
    """A disk on which it cannot be kept is one on which nothing is changed."""
    scene.put(CONF, b"old\n")
    scene.path("/var/lib/heal").chmod(0o777)
    said = scene.ask("write", path=CONF, mode=0o644, blob=OURS)
    assert said[0] in {"failed", "refused"}
    assert scene.path(CONF).read_bytes() == b"old\n"


APART_ROWS: dict[str, tuple[str, dict[str, Any]]] = {
    "refresh": ("apt-get", {"manager": "apt"}),
    "finish": ("dpkg", {}),
    "upgrade": ("apt-get", {"manager": "apt", "packages": ["a=1"]}),
    "clock": ("chronyc", {}),
    "system": ("nix-env", {"generation": 7}),
}


@pytest.mark.parametrize("kind", APART_ROWS)
def test_what_writes_all_over_the_host_runs_in_a_unit_of_its_own(scene: Scene, kind: str) -> None:
    """By name, so that there is one at a time; with walls and an end, whatever becomes of the root side."""
    program, args = APART_ROWS[kind]
    scene.put("/generation", b"6\n")
    scene.put("/running", b"/nix/store/x\n")
    scene.does(kind, **args)
    (apart,) = [line for line in (scene.root / "calls").read_text().splitlines() if line.startswith(APART)]
    assert "|--unit=compliance-agent-act|" in apart and "|--property=NoNewPrivileges=yes|" in apart
    assert f"|--property=RuntimeMaxSec={ROWS[kind].deadline_s:.0f}|" in apart
    assert "|--setenv=DEBIAN_FRONTEND=noninteractive|" in apart
    assert f"|--|{scene.root}/bin/{program}|" in apart


def test_one_that_is_given_up_is_ended(scene: Scene) -> None:
    """The program that waits for it is killed; the unit would go on."""
    scene.program("systemd-run", "sleep 30")
    with pytest.raises(Unclear, match="timed_out"):
        scene.service.machine.run_apart(("dpkg", "-a"), timeout_s=0.2)
    assert scene.calls() == ["systemctl|--quiet|stop|--|compliance-agent-act.service|"]


def test_without_a_service_manager_it_runs_here(scene: Scene) -> None:
    scene.path("/booted").rmdir()
    scene.does("finish")
    assert (scene.root / "calls").read_text().startswith("dpkg|")
