"""P7, inside the booted host of `BENCH=agent`: from a drift to its cure and a durable record of it, told by events.

    /usr/lib/compliance-agent/bin/python3 -I -m compliance_agent.lab.bench_heal FILE PLACE ROUNDS

A real agent runs at its shipped settings but for cooldown, budget and flap limit, its state in PLACE, a file system that syncs.
The clock starts just before the drift is made by a call of the kernel, and stops when another connection to the agent's database
sees the record of the cure: with WAL and `synchronous=FULL` that is after the commit was synced. Each round has an agent started
anew, so that every drift is the first of its check: where drifts follow soon on each other, the rest between two wakes of a check
grows, by design. A cure that did not come counts as WITHIN_S. The seconds of each cure go to FILE as one JSON object, which is
written anew after each round.

Two services are killed, each in rounds of its own: one that says when it is ready (`Type=notify`), and one that says nothing, of
which a cure is believed a second after its start (`remedies/staying_up.py`).
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sqlite3
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import yaml

from compliance_agent.core import nftables

SHELL_FILE = Path("/etc/profile.d/00-compliance-tmout.sh")
UNIT, SILENT = "p7.service", "p7-silent.service"
READY = "/bin/sh -c 'systemd-notify --ready; exec sleep infinity'"
SETTLE_S, APART_S, WITHIN_S, LOOK_S = 4.0, 0.5, 30.0, 0.0003
SILENT_ROUNDS = 5
CHECKS: dict[str, dict[str, Any]] = {
    "auto_logoff": {"parameters": {"logind": False, "screen_lock": False}},
    "firewall": {"parameters": {"allow_tcp": ["22", "443"], "allow_udp": ["546"]}},
    "services": {"parameters": {"active": [UNIT, SILENT]}},
}
SETTINGS = {
    "CLIENT_ID": "bench", "SITE_ID": "bench", "HOST_ID": "bench", "HEALING_COOLDOWN_SEC": "0",
    "HEALING_BUDGET_PER_HOUR": "1000", "FLAP_LIMIT": "100",
}  # fmt: skip
_NETFILTER, _NFTABLES, _ACKNOWLEDGED = (
    12,
    10,
    5,
)  # linux/netlink.h, linux/netfilter/nfnetlink.h; NLM_F_REQUEST | NLM_F_ACK
_BEGIN, _END, _DELETE_TABLE, _NAME = 16, 17, 2, 1  # of a batch; NFT_MSG_DELTABLE, NFTA_TABLE_NAME
_FAMILIES = {"inet": 1, "ip": 2, "ip6": 10}


def delete_table(family: str, name: str) -> None:
    """What `nft delete table` does, in one transaction and without its start-up.

    Raises:
        OSError: the kernel refused.
    """
    raw = name.encode("ascii") + b"\0"
    attribute = struct.pack("=HH", 4 + len(raw), _NAME) + raw + b"\0" * (-len(raw) % 4)
    batch = (
        _message(_BEGIN, 1, 0, _NFTABLES)
        + _message(_NFTABLES << 8 | _DELETE_TABLE, _ACKNOWLEDGED, _FAMILIES[family], 0, attribute)
        + _message(_END, 1, 0, _NFTABLES)
    )
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETFILTER) as kernel:
        kernel.bind((0, 0))
        kernel.send(batch)
        code = -int.from_bytes(kernel.recv(4096)[16:20], sys.byteorder, signed=True)
    if code:
        raise OSError(code, os.strerror(code))


def _message(kind: int, flags: int, family: int, resource: int, rest: bytes = b"") -> bytes:
    return struct.pack("=IHHII", 20 + len(rest), kind, flags, 0, 0) + struct.pack(">BBH", family, 0, resource) + rest


def write_other() -> None:
    """The file that ends idle shells ends none any more."""
    SHELL_FILE.write_bytes(b"# nothing\n")


def kill_service(unit: str) -> Callable[[], None]:
    """Kill the service's program when called, which is found beforehand."""
    shown = subprocess.run(("systemctl", "show", "-P", "MainPID", unit), check=True, capture_output=True, text=True)
    return lambda: os.kill(int(shown.stdout), signal.SIGKILL)


class Records:
    """Cures as another process sees them in the agent's database."""

    def __init__(self, path: Path) -> None:
        self._database = sqlite3.connect(f"file:{path}?mode=ro", uri=True, isolation_level=None)
        self._last = self._newest()

    def until_cured(self, check: str) -> float | None:
        """When a successful cure of this check was seen to be committed, by `time.perf_counter`; None when none was."""
        version, ends = -1, time.perf_counter() + WITHIN_S
        while (now := time.perf_counter()) < ends:
            if (found := self._version()) != version:
                version = found
                if self._cured(check):
                    return now
            time.sleep(LOOK_S)  # another process commits, in real time
        return None

    def _version(self) -> int:
        return int(self._database.execute("PRAGMA data_version").fetchone()[0])

    def _newest(self) -> int:
        return int(self._database.execute("SELECT coalesce(max(id), 0) FROM evidence").fetchone()[0])

    def _cured(self, check: str) -> bool:
        rows = self._database.execute(
            "SELECT id, body FROM evidence WHERE id > ? ORDER BY id", (self._last,)
        ).fetchall()
        self._last = rows[-1][0] if rows else self._last
        bodies = [json.loads(body) for _, body in rows]
        return any(body["check"] == check and body.get("outcome") == "success" for body in bodies)


def furnish(place: Path) -> dict[str, str]:
    """Everything as the baseline asks, and the environment of the agent that keeps it so."""
    for name, how in (
        (UNIT, f"Type=notify\nNotifyAccess=all\nExecStart={READY}"),
        (SILENT, "ExecStart=/bin/sleep infinity"),
    ):
        unit = f"[Service]\n{how}\n[Install]\nWantedBy=multi-user.target\n"
        Path("/etc/systemd/system", name).write_text(unit, "ascii")
    subprocess.run(("systemctl", "daemon-reload"), check=True)
    subprocess.run(("systemctl", "enable", "--now", UNIT, SILENT), check=True, capture_output=True)
    subprocess.run(("nft", "-f", "-"), input=nftables.generate(("22", "443"), ("546",)).encode(), check=True)
    baseline = place / "baseline.yaml"
    checks = {name: {"mode": "enforce", "interval_s": 60, **entry} for name, entry in CHECKS.items()}
    baseline.write_text(yaml.safe_dump({"version": "2026.11.1", "mode": "enforce", "checks": checks}), "utf-8")
    own = SETTINGS | {"BASELINE_PATH": str(baseline), "STATE_DIR": str(place / "state")}
    return {**os.environ, **{f"MSP_{name}": value for name, value in own.items()}}


def put(file: Path, figures: dict[str, Any]) -> None:
    """Replace the file as a whole, for whoever reads it meanwhile."""
    beside = file.with_suffix(".new")
    beside.write_text(json.dumps(figures), "ascii")
    beside.rename(file)


def measured(place: Path, rounds: int, found: dict[str, list[float]]) -> Iterator[None]:
    """Adds the seconds of each cure to `found`, by kind of drift; gives way after each round."""
    environment = furnish(place)
    words = (sys.executable, "-I", "-m", "compliance_agent", "run")
    for number in range(rounds):
        for silent in (False, True) if number < SILENT_ROUNDS else (False,):
            agent = subprocess.Popen(words, env=environment, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
            try:
                time.sleep(SETTLE_S)  # its first look at everything
                for kind, seconds in _round(Records(place / "state" / "agent.db"), silent=silent):
                    found.setdefault(kind, []).append(seconds)
            finally:
                agent.terminate()
                agent.wait(30)
        yield


def _round(records: Records, *, silent: bool) -> Iterator[tuple[str, float]]:
    drifts: tuple[tuple[str, str, Callable[[], None]], ...] = (
        ("file", "auto_logoff", write_other),
        ("ruleset", "firewall", lambda: delete_table(*nftables.TABLE)),
        ("service", "services", kill_service(UNIT)),
    )
    for kind, check, drift in (("silent service", "services", kill_service(SILENT)),) if silent else drifts:
        started = time.perf_counter()
        drift()
        ended = records.until_cured(check)
        yield kind, WITHIN_S if ended is None else ended - started
        time.sleep(APART_S)  # real time is what is measured


if __name__ == "__main__":
    figures: dict[str, list[float]] = {}
    for _ in measured(Path(sys.argv[2]), int(sys.argv[3]), figures):
        put(Path(sys.argv[1]), figures)
