"""Each wall of the root side is needed: take one away, and an attack that was refused goes through."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest

from compliance_agent.heal import found, machine, permits, rows, service
from compliance_agent.heal.rows import ROWS, Work
from tests.heal.scene import BASELINE, CONF, CURE, FOUND, KEY, PERMITS, RULESET, Scene
from tests.heal.test_service import HELLO, asked, served

EVIL = b"# ours\nCiphers a\nPermitRootLogin yes\n"
OURS = b"# ours\nCiphers a\n"


def evil_content(scene: Scene) -> bool:
    scene.ask("write", path=CONF, mode=0o644, blob=EVIL)
    return scene.path(CONF).exists()


def evil_path(scene: Scene) -> bool:
    scene.ask("write", path="/etc/cron", mode=0o644, blob=b"")
    return scene.path("/etc/cron").exists()


def set_user_id(scene: Scene) -> bool:
    scene.ask("write", path=CONF, mode=0o4755, blob=OURS)
    return scene.path(CONF).exists()


def linked_directory(scene: Scene) -> bool:
    scene.path("/etc/app").rename(scene.path("/etc/other"))
    scene.path("/etc/app").symlink_to(scene.path("/etc/other"))
    scene.ask("write", path=CONF, mode=0o644, blob=OURS)
    return scene.path("/etc/other/app.conf").exists()


def open_directory(scene: Scene) -> bool:
    scene.path("/etc/app").chmod(0o777)
    scene.ask("write", path=CONF, mode=0o644, blob=OURS)
    return scene.path(CONF).exists()


def hard_link(scene: Scene) -> bool:
    secret = scene.put("/etc/secret", b"", 0o600)
    os.link(secret, scene.path(KEY))
    scene.ask("chmod", path=KEY, mode=0o640)
    return secret.stat().st_mode & 0o777 == 0o640


def stop_the_needed(scene: Scene) -> bool:
    scene.unit("need.service")
    scene.ask("unit", verb="stop", unit="need.service")
    return scene.says("need.service", "ActiveState") == "inactive"


def other_rules(scene: Scene) -> bool:
    scene.ask("ruleset", how="load", blob=(RULESET + "flush ruleset\n").encode())
    return scene.path("/table").exists()


def empty_password(scene: Scene) -> bool:
    scene.put("/etc/shadow", b"root:x:1:0:9:7:::\n", 0o600)
    scene.ask("account", verb="unlock", name="root")
    return scene.path("/etc/shadow").read_bytes().startswith(b"root::")


def older_generation(scene: Scene) -> bool:
    scene.put("/generation", b"7\n")
    scene.put("/running", b"x\n")
    scene.ask("system", generation=3)
    return scene.path("/generation").read_text() == "3\n"


def writable_permits(scene: Scene) -> bool:
    scene.path(PERMITS).chmod(0o666)
    return scene.ask("clock")[0] == "done"


def other_baseline(scene: Scene) -> bool:
    return scene.ask("clock", baseline="0" * len(BASELINE))[0] == "done"


def former_cure(scene: Scene) -> bool:
    scene.put(CONF, EVIL)
    scene.ask("write", path=CONF, mode=0o644, blob=OURS)
    scene.ask("write", path=CONF, mode=0o644, blob=EVIL, cure="another")
    return scene.path(CONF).read_bytes() == EVIL


def own_work(scene: Scene) -> bool:
    """What the first step found is lost when the second one looks again: the undo brings back our own file."""
    scene.put(CONF, b"old\n")
    scene.ask("write", path=CONF, mode=0o644, blob=OURS)
    scene.ask("write", path=CONF, mode=0o644, blob=b"# ours\nCiphers b\n")
    scene.ask("write", path=CONF, mode=0o644, blob=b"old\n")
    return scene.path(CONF).read_bytes() != b"old\n"


def forged_memory(scene: Scene) -> bool:
    scene.put(CONF, EVIL)
    scene.ask("write", path=CONF, mode=0o644, blob=OURS)
    scene.path(FOUND).chmod(0o666)
    return scene.ask("clock")[0] == "done"


def stranger(scene: Scene) -> bool:
    with served(scene, {os.geteuid() + 1}) as connect, connect() as ours:
        try:
            ours.sendall(HELLO + asked("clock"))
            ours.shutdown(socket.SHUT_WR)
            while ours.recv(65_536):
                pass
        except OSError:
            pass
    return bool(scene.calls())


def lying_manager(scene: Scene) -> bool:
    scene.unit("away.service")
    scene.put("/lies-stop", b"")
    return scene.ask("unit", verb="stop", unit="away.service")[0] == "done"


def unkept(scene: Scene) -> bool:
    """The way back is gone: a change was made before what stood there was durable."""
    scene.put(CONF, b"old\n")
    scene.ask("write", path=CONF, mode=0o644, blob=OURS)
    return not scene.path(FOUND).exists()


@dataclass(frozen=True)
class Planted:
    """A wall that is taken away, and the attack that it stops."""

    attack: Callable[[Scene], bool]
    owner: Any
    name: str
    fault: Any


def row_without(name: str, **parts: Any) -> dict[str, rows.Row]:
    row = ROWS[name]
    whole = {field: getattr(row, field) for field in ("check", "do", "undo", "keep", "verify", "deadline_s")}
    return {**ROWS, name: rows.Row(**{**whole, **parts})}


def forgets_whose(self: found.Found, machine_: machine.Machine, path: str, cure: str) -> None:
    good_init(self, machine_, path, CURE)


def looks_each_time(self: found.Found, kind: str, name: str, look: Callable[[], Any]) -> None:
    self._state[kind].pop(name, None)
    good_keep(self, kind, name, look)


def no_check(work: Work) -> None:
    return None


class Alike(permits.Permits):
    """Permissions that count for every baseline."""

    def __getattribute__(self, name: str) -> Any:
        return Everything() if name == "baseline" else super().__getattribute__(name)


class Everything(str):
    """Equal to all."""

    __slots__ = ()

    def __ne__(self, other: object) -> bool:
        return False

    __hash__ = str.__hash__


def private(self: machine.Machine, path: str, limit: int = 1 << 20) -> Any:
    """A look that calls every file private."""
    seen = good_read(self, path, limit)
    return seen and (seen[0], os.stat_result([seen[1].st_mode & ~0o077, *seen[1][1:]]))


good_init, good_keep = found.Found.__init__, found.Found.keep
good_parse, good_read = permits.parse, machine.Machine.read
PLANTED = {
    "content": Planted(evil_content, permits, "fits", lambda content, specs: True),
    "path": Planted(evil_path, service, "ROWS", row_without("write", check=no_check)),
    "mode": Planted(set_user_id, service, "ROWS", row_without("write", check=no_check)),
    "links": Planted(linked_directory, machine, "_DIRECTORY", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC),
    "directories": Planted(open_directory, machine.Machine, "_trusted", lambda self, info, *, last: None),
    "hard links": Planted(hard_link, machine.Machine, "_one_name", staticmethod(lambda info: info)),
    "units": Planted(stop_the_needed, service, "ROWS", row_without("unit", check=no_check)),
    "rules": Planted(other_rules, service, "ROWS", row_without("ruleset", check=no_check)),
    "accounts": Planted(empty_password, service, "ROWS", row_without("account", check=no_check)),
    "generations": Planted(older_generation, service, "ROWS", row_without("system", check=no_check)),
    "permits": Planted(writable_permits, permits, "load", lambda machine, path: permits.parse(machine.read(path)[0])),
    "baseline": Planted(other_baseline, permits, "parse", lambda raw: Alike(**vars(good_parse(raw)))),
    "cure": Planted(former_cure, found.Found, "__init__", forgets_whose),
    "first look": Planted(own_work, found.Found, "keep", looks_each_time),
    "memory": Planted(forged_memory, machine.Machine, "read", private),
    "user": Planted(stranger, service, "peer_uid", lambda connection: os.geteuid() + 1),
    "verify": Planted(lying_manager, service, "ROWS", row_without("unit", verify=lambda work: True)),
    "keep": Planted(unkept, service, "ROWS", row_without("write", keep=no_check)),
}


@pytest.mark.parametrize("name", PLANTED)
def test_an_attack_is_stopped_by_the_wall_that_it_meets(
    scene: Scene, name: str, monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    planted = PLANTED[name]
    assert not planted.attack(scene)
    root = tmp_path_factory.mktemp("open") / "root"
    root.mkdir(mode=0o755)
    monkeypatch.setattr(planted.owner, planted.name, planted.fault)
    assert planted.attack(Scene(root)), f"without the wall {name!r} the attack should go through"
