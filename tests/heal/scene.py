"""A small machine below a directory of the test's own, and the root side on it: real files, scripts for programs."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from compliance_agent.frames import Message
from compliance_agent.heal import approvals
from compliance_agent.heal.approvals import Approvals
from compliance_agent.heal.machine import Machine
from compliance_agent.heal.permits import SCHEMA
from compliance_agent.heal.service import Answer, Service

BASELINE = hashlib.sha256(b"baseline").hexdigest()
CURE = "0f6fd5f6-5d1c-4e0f-8a41-2f1e9d6b0c11"
PERMITS, FOUND = "/etc/msp/permits.json", "/var/lib/heal/found.json"
APPROVALS, BOUND = "/etc/msp/approvals.json", "/var/lib/heal/bound.json"
NOW = datetime(2026, 11, 29, 12, 0, tzinfo=UTC)
APART = "systemd-run|--collect|--wait|--pipe|"
CONF, KEY = "/etc/app/app.conf", "/etc/app/app.key"
RULESET = "add table inet compliance\ndelete table inet compliance\ntable inet compliance {\n\tchain input {\n\t}\n}\n"
SYSTEMCTL = r"""
verb=; for word in "$@"; do case $word in -*) ;; *) verb=$word; break;; esac; done
while [ "$1" != -- ]; do shift; done; unit="ROOT/units/$2"
[ -e "$unit" ] || { [ $verb = show ] && printf 'LoadState=not-found\nActiveState=inactive\n'; [ $verb = show ]; exit; }
put() { sed -i "s/^$1=.*/$1=$2/" "$unit"; }
[ ! -e "ROOT/fails-$verb" ] || exit 3
[ ! -e "ROOT/lies-$verb" ] || exit 0
case $verb in
  show) cat "$unit";;
  start|restart) put ActiveState active;;
  stop) put ActiveState inactive;;
  enable) put UnitFileState enabled;;
  disable) put UnitFileState disabled;;
  mask) put LoadState masked; put UnitFileState masked;;
  unmask) put LoadState loaded; put UnitFileState enabled;;
esac
"""
NFT = r"""
case "$*" in
  "-s -j list ruleset") if [ -e ROOT/table ]
    then echo '{"nftables":[{"metainfo":{}},{"table":{"family":"inet","name":"compliance"}}]}'
    else echo '{"nftables":[{"metainfo":{}},{"table":{"family":"ip","name":"other"}}]}'; fi;;
  "-s list table inet compliance") cat ROOT/table;;
  "-c -f -") cat > ROOT/checked;;
  "-f -") tail -n +3 > ROOT/new; [ ! -e ROOT/lies-nft ] || exit 0
    if [ -s ROOT/new ]; then mv ROOT/new ROOT/table; else rm -f ROOT/table; fi;;
  *) exit 9;;
esac
"""
AUDITCTL = r"""
case "$*" in
  -s) printf 'enabled %s\nfailure 1\n' "$(cat ROOT/enabled)";;
  -l) [ -s ROOT/rules ] && cat ROOT/rules || echo "No rules";;
  "-e 0") [ -e ROOT/lies-audit ] || echo 0 > ROOT/enabled;;
  "-e 1") [ -e ROOT/lies-audit ] || echo 1 > ROOT/enabled;;
  -D) : > ROOT/rules;;
  *) [ -e ROOT/lies-audit ] || echo "$*" >> ROOT/rules;;
esac
"""
CHAGE = r"""
[ -e ROOT/lies-chage ] || sed -i "s/^$4:\([^:]*\):[^:]*:/$4:\1:${2#-1}:/" ROOT/etc/shadow
"""
USERMOD = r"""
[ ! -e ROOT/lies-usermod ] || exit 0
hash=x; [ "$1" != -p ] || { hash=$2; shift; }
sed -i "s/^$3:[^:]*:/$3:$hash:/" ROOT/etc/shadow
"""
READLINK = r"""
case "$*" in "-f /run/current-system") cat ROOT/running;; *) echo "system-$(cat ROOT/generation)-link";; esac
"""
# As the service manager: nothing but the given environment, and then what stands after the bar.
SYSTEMD_RUN = r"""
case " $* " in *" -- "*) ;; *) exit 0;; esac
while [ "$1" != -- ]; do case $1 in --setenv=*) export "${1#--setenv=}";; esac; shift; done
shift; exec "$@"
"""
NIX_ENV = 'echo "$4" > ROOT/generation'


class Rooted(Machine):
    """This machine, its root directory elsewhere, and its programs scripts."""

    def __init__(self, root: Path) -> None:
        super().__init__((str(root / "bin"), "/usr/bin", "/bin"), str(root / "booted"))
        self.root = root

    @contextlib.contextmanager
    def _parent(self, path: str) -> Iterator[tuple[int, str]]:
        with super()._parent(f"{self.root}{path}") as found:
            yield found


class Scene:
    """The machine, root's permissions on it, and a way to ask."""

    def __init__(self, root: Path) -> None:
        self.root = root
        for name in ("bin", "etc/app", "etc/msp", "etc/audit", "var/lib/heal", "units", "booted"):
            (root / name).mkdir(parents=True, mode=0o755)
        self.now = NOW
        machine = Rooted(root)
        self.service = Service(machine, PERMITS, FOUND, Approvals(machine, APPROVALS, BOUND, lambda: self.now))
        self.permits: dict[str, Any] = {
            "schema": SCHEMA,
            "baseline": BASELINE,
            "version": "2026.11.1",
            "files": {
                CONF: [{"line": "# ours"}, {"maybe": "Passwords no"}, {"key": "Ciphers ", "of": ["a", "b", "c"]}],
                "/etc/new/new.conf": [{"line": "x"}],
            },
            "modes": {KEY: 0o640},
            "units": {"need.service": "needed", "away.service": "forbidden"},
            "ruleset": RULESET,
            "may": ["accounts", "apt", "audit", "clock", "logind", "nix"],
        }
        self.permit()
        for name in ("apt-get", "dpkg", "dnf", "chronyc"):
            self.program(name, "")
        self.program("systemd-run", SYSTEMD_RUN)
        self.program("systemctl", SYSTEMCTL)
        self.program("nft", NFT)
        self.program("auditctl", AUDITCTL)
        self.program("augenrules", ": > ROOT/rules; echo '-w /etc/x -p wa' > ROOT/rules")
        self.program("usermod", USERMOD)
        self.program("chage", CHAGE)
        self.program("readlink", READLINK)
        self.program("nix-env", NIX_ENV)

    def permit(self, **changes: Any) -> None:
        """Have root's file say this."""
        self.permits |= changes
        self.put(PERMITS, json.dumps(self.permits).encode())

    def approve(self, *changes: dict[str, Any]) -> None:
        """Have root's file of approvals say this: the first has the number 1."""
        given = [
            {
                "check": "patching", "target": "updates_0f_1", "number": number, "since": approvals.text(NOW),
                "until": approvals.text(NOW + timedelta(days=7)), "baseline": BASELINE, **one,
            }
            for number, one in enumerate(changes, start=1)
        ]  # fmt: skip
        self.put(APPROVALS, json.dumps({"schema": approvals.SCHEMA, "given": given}).encode())

    def path(self, path: str) -> Path:
        return self.root / path.lstrip("/")

    def put(self, path: str, content: bytes, mode: int = 0o644) -> Path:
        found = self.path(path)
        found.parent.mkdir(parents=True, exist_ok=True)
        found.write_bytes(content)
        found.chmod(mode)
        return found

    def program(self, name: str, text: str) -> None:
        """A script that notes how it was called."""
        note = 'printf "%s|" "${0##*/}" "$@" >> ROOT/calls; echo >> ROOT/calls\n'
        path = self.put(f"/bin/{name}", f"#!/bin/sh\n{note}{text}\n".replace("ROOT", str(self.root)).encode(), 0o755)
        assert os.access(path, os.X_OK)

    def unit(
        self, name: str, active: str = "active", enabled: str = "enabled", load: str = "loaded", by: str = ""
    ) -> None:
        said = f"LoadState={load}\nActiveState={active}\nUnitFileState={enabled}\nTriggeredBy={by}\n"
        self.put(f"/units/{name}", said.encode())

    def says(self, name: str, field: str) -> str:
        """A field of a unit, as the manager has it now."""
        lines = self.path(f"/units/{name}").read_text().splitlines()
        return dict(line.split("=", 1) for line in lines)[field]

    def calls(self) -> list[str]:
        """The programs that were run, but those that only look or start others, each as its words with a bar after each."""
        path = self.root / "calls"
        looks = ("systemctl|show|", "nft|-j|", "nft|-s|", "auditctl|-s|", "auditctl|-l|", "readlink|", APART)
        lines = path.read_text().splitlines() if path.exists() else []
        return [line for line in lines if not line.startswith(looks)]

    def ask(self, kind: str, *, blob: bytes = b"", cure: str = CURE, baseline: str = BASELINE, **args: Any) -> Answer:
        return self.service.answer(Message(kind, 1, {"cure": cure, "baseline": baseline, **args}, blob))

    def does(self, kind: str, **args: Any) -> None:
        """Ask, and expect that it is done."""
        said = self.ask(kind, **args)
        assert said[:2] == ("done", {"exit": 0}), said

    def refuses(self, kind: str, code: str = "not_permitted_here", **args: Any) -> None:
        """Ask, and expect that nothing is run and this is the reason."""
        before = self.calls()
        said = self.ask(kind, **args)
        assert said[:2] == ("refused", {"code": code}), said
        assert self.calls() == before

    def fails(self, kind: str, code: str, **args: Any) -> None:
        said = self.ask(kind, **args)
        assert (said[0], said[1]["code"]) == ("failed", code), said
