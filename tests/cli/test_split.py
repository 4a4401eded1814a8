"""A split that is half made is named, whatever half is missing; a whole one is not."""

from __future__ import annotations

import dataclasses
import json
import os
import pwd
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from compliance_agent.baseline import parse
from compliance_agent.cli import root_trust
from compliance_agent.cli.split import NAME, UNITS, Here, findings
from compliance_agent.config import ADOPT_SOCKET, HEAL_SOCKET, AgentConfig
from compliance_agent.crypto import Ed25519Signer
from compliance_agent.errors import NotPermitted
from compliance_agent.permits import written
from tests.cli.command import configured, run

BASELINE = parse(b'version: "1"\nmode: enforce\nchecks:\n  time_sync: {mode: audit}\n')
RUN, UPLINK = 901, 902
UNIT_DIR = Path("/usr/lib/systemd/system")
SOCKET, FILE, DIRECTORY = stat.S_IFSOCK | 0o660, stat.S_IFREG | 0o600, stat.S_IFDIR | 0o700


def entry(mode: int, uid: int = 0, gid: int = 0) -> os.stat_result:
    return os.stat_result((mode, 0, 0, 1, uid, gid, 0, 0, 0, 0))


class Machine:
    """A host on which everything is as the page says; tests take something away."""

    def __init__(self, tmp_path: Path) -> None:
        self.permits = tmp_path / "permits.json"
        self.permits.write_bytes(written(BASELINE))
        self.config = AgentConfig(client_id="c", site_id="s", host_id="h", privileges="split", state_dir=Path("/state"))
        self.users = {self.config.run_user: RUN, self.config.uplink_user: UPLINK}
        self.entries = {UNIT_DIR / unit: entry(FILE) for unit in UNITS}
        self.entries |= {path: entry(SOCKET, 0, RUN) for path in (HEAL_SOCKET, ADOPT_SOCKET, self.config.uplink_socket)}
        self.entries |= {path: entry(FILE, RUN) for path in (self.config.state_dir, self.config.signing_key_file)}
        self.entries[self.config.uplink_dir] = entry(DIRECTORY, UPLINK)
        assert self.config.mcp_api_key_file is not None
        self.entries[self.config.mcp_api_key_file] = entry(FILE, UPLINK)
        self.entries[self.permits] = entry(stat.S_IFREG | 0o644)
        self.hidden: set[Path] = set()

    def found(self) -> list[str]:
        here = Here(
            permits=self.permits, wanted=Path("/wants"), lstat=self.lstat, user=self.user, units=(Path("/etc"), UNIT_DIR)
        )  # fmt: skip
        return findings(self.config, BASELINE.sha256, here)

    def lstat(self, path: Path) -> os.stat_result:
        if path in self.hidden:
            raise PermissionError(path)
        if path not in self.entries:
            raise FileNotFoundError(path)
        return self.entries[path]

    def user(self, name: str) -> pwd.struct_passwd:
        uid = self.users[name]
        return pwd.struct_passwd((name, "x", uid, uid, "", "/", "/bin/false"))

    def set(self, **settings: Any) -> None:
        self.config = dataclasses.replace(self.config, **settings)


def without(path: Path) -> Callable[[Machine], object]:
    return lambda machine: machine.entries.pop(path)


def belongs(path: Path, mode: int, uid: int, gid: int = 0) -> Callable[[Machine], object]:
    return lambda machine: machine.entries.update({path: entry(mode, uid, gid)})


ADOPT_STATE = Path("/var/lib/compliance-agent-adopt")
KEY, API_KEY = Path("/state/keys/signing-key.pem"), Path("/var/lib/compliance-agent-uplink/api-key")
HALVES: dict[str, tuple[Callable[[Machine], object], tuple[str, ...]]] = {
    "no user of run": (lambda m: m.users.pop("compliance-agent"), ("run_user", "no user compliance-agent")),
    "no user of uplink": (lambda m: m.users.pop("compliance-agent-uplink"), ("uplink_user", "compliance-agent-uplink")),
    **{f"no {unit}": (without(UNIT_DIR / unit), (unit, "no such unit")) for unit in UNITS},
    "the one process too": (belongs(Path("/wants") / f"{NAME}.service", FILE, 0), ("conflicts", "disable --now")),
    "key of root's": (belongs(KEY, FILE, 0), (str(KEY), "uid 0", "expected compliance-agent (901)", "chown")),
    "no key": (without(KEY), (str(KEY), "not there", "enrol")),
    "API key of the agent's": (belongs(API_KEY, FILE, RUN), (str(API_KEY), "uid 901", "compliance-agent-uplink (902)")),
    "no permits": (lambda m: m.entries.pop(m.permits), ("permits.json", "baseline permit")),
    "permits of somebody's": (lambda m: m.entries.update({m.permits: entry(FILE, RUN)}), ("root's file",)),
    "permits that all may write": (
        lambda m: m.entries.update({m.permits: entry(stat.S_IFREG | 0o666)}), ("root's file",),
    ),
    "permits of another baseline": (
        lambda m: m.permits.write_bytes(m.permits.read_bytes().replace(BASELINE.sha256.encode(), b"0" * 64)),
        ("another baseline", "baseline permit"),
    ),
    "permits that are none": (lambda m: m.permits.write_text("{}"), ("not of its form",)),
    "no socket of uplink": (without(AgentConfig.uplink_socket), ("uplink_socket", "not there", "enable --now")),
    "no socket of heal": (without(HEAL_SOCKET), ("heal_socket", "not there", "enable --now")),
    "no socket of adopt": (without(ADOPT_SOCKET), ("adopt_socket", "not there", "enable --now")),
    "adopt's numbers open to others": (
        belongs(ADOPT_STATE, stat.S_IFDIR | 0o755, 0), (str(ADOPT_STATE), "0755", "root's alone"),
    ),
    "adopt's numbers of run's": (belongs(ADOPT_STATE, DIRECTORY, RUN), (str(ADOPT_STATE), "uid 901", "chown root:")),
    "a file for a socket": (belongs(HEAL_SOCKET, FILE, 0, RUN), ("heal_socket", "is no socket")),
    "a socket of run's": (belongs(HEAL_SOCKET, SOCKET, RUN, RUN), ("heal_socket", "uid 901", "expected 0")),
    "a socket for all": (belongs(HEAL_SOCKET, SOCKET | 0o006, 0, RUN), ("0666", "0660")),
    "a socket of another group": (belongs(HEAL_SOCKET, SOCKET, 0, 0), ("gid 0",)),
    "one process, root side": (lambda m: m.set(privileges="single"), ("heal_socket is set and privileges is single",)),
}  # fmt: skip


def test_a_whole_one_has_nothing_to_say(tmp_path: Path) -> None:
    assert Machine(tmp_path).found() == []


@pytest.mark.parametrize("name", HALVES)
def test_what_is_missing_is_named(tmp_path: Path, name: str) -> None:
    machine = Machine(tmp_path)
    take_away, said = HALVES[name]
    take_away(machine)
    (line,) = machine.found()
    assert all(word in line for word in said), line


class Ordered(Machine):
    """One that takes a baseline by order: root has said whose."""

    def __init__(self, tmp_path: Path) -> None:
        super().__init__(tmp_path)
        self.key = Ed25519Signer(tmp_path / "state/keys/signing-key.pem")
        baseline_key = tmp_path / "baseline.pub.pem"
        baseline_key.write_text(Ed25519Signer(tmp_path / "baseline.pem").public_pem())
        keys = tmp_path / "order-keys.json"
        self.set(signing_key_file=self.key.path, baseline_key_file=baseline_key, order_keys_file=keys)
        self.entries[self.key.path] = entry(FILE, RUN)
        self.trust = tmp_path / root_trust.FILE_NAME
        self.trust.write_bytes(root_trust.made(self.config)[0])
        self.entries[self.trust] = entry(stat.S_IFREG | 0o644)

    def says(self, **changes: Any) -> None:
        self.trust.write_text(json.dumps(json.loads(self.trust.read_text()) | changes))


def _rotated(machine: Ordered) -> None:
    machine.key.path.unlink()
    Ed25519Signer(machine.key.path)


def _no_orders(machine: Ordered) -> None:
    machine.set(order_keys_file=None)


TRUSTS: dict[str, tuple[Callable[[Ordered], object], tuple[str, ...]]] = {
    "not there": (lambda m: m.entries.pop(m.trust), ("not there", "baseline permit")),
    "of somebody's": (lambda m: m.entries.update({m.trust: entry(FILE, RUN)}), ("not root's file", "baseline permit")),
    "that all may write": (
        lambda m: m.entries.update({m.trust: entry(stat.S_IFREG | 0o666)}), ("not root's file", "baseline permit"),
    ),
    "of no form": (lambda m: m.trust.write_text("{}"), ("not of its form", "baseline permit")),
    "after a rotation": (_rotated, ("this host's key, as after a rotation", "refused", "baseline permit")),
    "of another site": (lambda m: m.says(site="elsewhere"), ("site_id", "refused", "baseline permit")),
    "of another client, another pin": (
        lambda m: m.says(tenant="msp-9", order_root="0" * 64), ("client_id; order_root_file", "baseline permit"),
    ),
    "that nobody asks for": (_no_orders, ("names no signer", "baseline permit removes it")),
    "whose key is gone": (lambda m: m.key.path.unlink(), ("cannot be told", "signing-key.pem")),
}  # fmt: skip


def test_one_that_takes_a_baseline_by_order_has_nothing_to_say(tmp_path: Path) -> None:
    assert Ordered(tmp_path).found() == []


class Waiting(Ordered):
    """One whose root waits for approvals."""

    def __init__(self, tmp_path: Path) -> None:
        super().__init__(tmp_path)
        self.set(approval_for_disruptive=True)
        self.approvals = tmp_path / root_trust.APPROVALS_NAME
        self.entries[self.approvals] = entry(stat.S_IFREG | 0o644)


def _nobody(machine: Waiting) -> None:
    machine.set(order_keys_file=None)
    machine.entries.pop(machine.trust)


APPROVALS: dict[str, tuple[Callable[[Waiting], object], tuple[str, ...]]] = {
    "not there": (lambda m: m.entries.pop(m.approvals), ("agent's word", "baseline permit")),
    "that all may write": (
        lambda m: m.entries.update({m.approvals: entry(stat.S_IFREG | 0o666)}), ("not root's file", "baseline permit"),
    ),
    "that nobody asks for": (lambda m: m.set(approval_for_disruptive=False), ("not set", "baseline permit removes it")),
    "of nobody": (_nobody, ("order_root_file", "whose count")),
}  # fmt: skip


@pytest.mark.parametrize("name", APPROVALS)
def test_whether_root_waits_for_approvals_is_held_against_the_configuration(tmp_path: Path, name: str) -> None:
    machine = Waiting(tmp_path)
    assert machine.found() == []
    happen, said = APPROVALS[name]
    happen(machine)
    (line,) = machine.found()
    assert line.startswith(f"{machine.approvals}: ") and all(word in line for word in said), line


@pytest.mark.parametrize("name", TRUSTS)
def test_what_root_says_of_orders_is_held_against_the_configuration(tmp_path: Path, name: str) -> None:
    machine = Ordered(tmp_path)
    happen, said = TRUSTS[name]
    happen(machine)
    (line,) = machine.found()
    assert line.startswith(f"{machine.trust}: ") and all(word in line for word in said), line


def test_who_may_not_look_is_told_so(tmp_path: Path) -> None:
    """What could not be looked at is neither there nor missing."""
    machine = Machine(tmp_path)
    machine.hidden.add(KEY)
    with pytest.raises(NotPermitted, match="this user may not look") as refused:
        machine.found()
    assert refused.value.hint == "run config check as root"


def test_one_process_is_not_asked_for_more(tmp_path: Path) -> None:
    machine = Machine(tmp_path)
    machine.entries.clear()
    machine.set(privileges="single", heal_socket=None)
    assert machine.found() == []
    machine.entries[Path("/wants") / f"{NAME}-run.service"] = entry(FILE)
    (line,) = machine.found()
    assert "privileges is single" in line and "say split" in line


def test_nothing_of_it_is_there(tmp_path: Path) -> None:
    """On this machine, as the command says it: exit status 1, and each thing in a line of its own."""
    path = configured(tmp_path, privileges="split", run_user="lab-nobody-a", uplink_user="lab-nobody-b")
    ended = run("config", "check", "--config", path)
    assert (ended.status, ended.err) == (1, "")
    first, *lines = ended.out.splitlines()
    assert first.startswith("not yet: srv-1 at clinic-1")
    assert sum("lab-nobody" in line for line in lines) >= 2 and any("uplink_socket" in line for line in lines)
    told = run("config", "check", "--json", "--config", path)
    assert told.status == 1
    assert [f"  {line}" for line in json.loads(told.out)["findings"]] == lines


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be somebody else")
def test_root_may_ask_for_the_public_key_of_the_agents_user(tmp_path: Path) -> None:
    """As that user, who must be able to come there; where one process does all, a key of another's is refused as before."""
    nobody = pwd.getpwnam("nobody")
    for mode, status in (("split", 0), ("single", 78)):
        place = tmp_path / mode
        (place / "state/keys").mkdir(parents=True)
        path = configured(place, privileges=mode, run_user="nobody", state_dir=str(place / "state"))
        signer = Ed25519Signer(place / "state/keys/signing-key.pem")
        signer.sign(b"")
        for part in (place / "state", place / "state/keys", *(place / "state/keys").iterdir()):
            os.chown(part, nobody.pw_uid, nobody.pw_gid)
        for part in (tmp_path, *tmp_path.parents):
            if part.stat().st_uid == 0 and not part.stat().st_mode & 0o001:
                part.chmod(0o711)
        ended = run("config", "public-key", "--config", path)
        assert ended.status == status, ended
        assert (ended.out == signer.public_pem()) == (status == 0)
