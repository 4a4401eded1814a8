"""A host under watch: it boots, its agent is installed, and what that agent records is read from its disk."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from compliance_agent.crypto import key_id, read_public_pem
from compliance_agent.lab.real.install import furnish, install
from compliance_agent.lab.real.judge import Bundle, Judged, Observed, expected, judge, rest
from compliance_agent.lab.real.machine import Machine
from compliance_agent.lab.real.network import Network
from compliance_agent.lab.real.proof import proven
from compliance_agent.lab.real.row import Row, Table
from compliance_agent.lab.real.shell import until

SETTLE_S = 60.0
SCRIPT_S = 120.0


class Host:
    """One machine, its agent, and the tables whose faults are done to it."""

    def __init__(self, machine: Machine, network: Network, tables: Sequence[Table], as_user: str = "") -> None:
        self.machine = machine
        self._as_user = as_user  # of the agent, in front of a command, where that is not root
        self.name = machine.name
        self._network = network
        self._tables = {table.check: table for table in tables}
        self._watched = ""
        self._read: dict[str, Bundle] = {}

    def start(self, settings: dict[str, str]) -> str:
        """Boot, join, install; how long that took, in words."""
        started = time.monotonic()
        self.machine.mount()
        self.machine.boot()
        self._network.join(self.machine)
        booted = time.monotonic() - started
        first = next(iter(self._tables.values()))
        install(self.machine, self._network, first, settings)
        self._watched = first.check
        return f"booted in {booted:.1f} s, agent running after {time.monotonic() - started:.1f} s"

    def again(self) -> None:
        """Boot it after it was cut off, and join."""
        self.machine.boot()
        self._network.join(self.machine)

    def turn_to(self, table: Table) -> None:
        """Have the agent watch this check."""
        if table.check != self._watched:
            furnish(self.machine, table)
            self.machine.must("systemctl restart compliance-agent", timeout_s=120)
            self._watched = table.check

    def do(self, row: Row) -> Judged:
        """Make the fault, wait for the record that must come of it, ask the machine, put the host back until it is as before."""
        table = self._tables[row.check]
        self.machine.run("systemctl reset-failed")  # a unit may be started only so often, and rows must not add up
        begun = _stamp(datetime.now(UTC))
        self._script(row.inject)
        injected = datetime.now(UTC)

        def seen() -> list[Bundle]:
            return [b for b in self.bundles(row.check) if row.standing or b["timestamp_end"] >= begun]

        until(lambda: any(expected(row, bundle) for bundle in seen()), SETTLE_S if row.standing else row.wait_s)
        if row.result == "unknown":
            time.sleep(2 * table.interval_s)  # two more looks, none of which may say more than the first
        truth = self.machine.run(row.truth).returncode == 0 if row.outcome == "success" else None
        former = self.machine.run(row.former).returncode == 0 if row.outcome in {"reverted", "failed"} else None
        line = judge(row, Observed(injected, tuple(seen()), truth, former))
        self._script(row.restore)
        if self._rests(row.check):
            return line
        return line.but(f"put back, and is not {' '.join(table.rests)} again")

    def trail(self, row: Row, since: datetime) -> str:
        """What somebody needs who asks why a row differs: the records of its check and the host's journal."""
        fields = ("timestamp_end", "kind", "result", "reason", "outcome", "error", "post_result", "bundle_id")
        told = [b for b in self.bundles(row.check) if row.standing or b["timestamp_end"] >= _stamp(since)]
        records = "\n".join(" ".join(str(bundle[name]) for name in fields) for bundle in told)
        journal = self.machine.sh(f"journalctl --no-pager -o short-precise --since @{since.timestamp():.0f}")
        return f"{row}\n\nrecorded:\n{records}\n\njournal:\n{journal}"

    def bundles(self, check: str | None = None) -> list[Bundle]:
        """What the agent recorded, in order; each file is read once."""
        for path in self.paths():
            if path.parent.name not in self._read:
                self._read[path.parent.name] = json.loads(path.read_bytes())
        found = [bundle for bundle in self._read.values() if check in {None, bundle["check"]}]
        return sorted(found, key=lambda bundle: (bundle["epoch"], bundle["seq"]))

    def verified(self) -> dict[str, Any]:
        """Everything the host recorded: delivered, logged, and verified offline."""

        def delivered() -> bool:
            return all((path.parent / "bundle.tlog-proof").exists() for path in self.paths())

        if not until(delivered, 20.0):
            self.machine.run("systemctl restart compliance-agent")  # it delivers what waits at once
            until(delivered, 30.0)
        self.machine.run("systemctl stop compliance-agent")
        until(delivered, 5.0)
        self.keep_key()
        evidence = self.machine.root / "var/lib/compliance-agent/evidence"
        keys = sorted(self.machine.directory.glob("host-*.pub.pem"))
        return proven(self.name, evidence, keys, self._network.log_keys())

    def keep_key(self) -> str:
        """Keep the key that the host signs with now, for what verifies its records; its id."""
        pem = self.machine.must(f"{self._as_user} compliance-agent config public-key")
        key = key_id(read_public_pem(pem.encode("ascii")))
        (self.machine.directory / f"host-{key[:16]}.pub.pem").write_text(pem, "utf-8")
        return key

    def _rests(self, check: str) -> bool:
        """Whether the last word on it comes to be that of a host without a fault."""
        return until(
            lambda: any(rest(last) == self._tables[check].rests for last in self.bundles(check)[-1:]), SETTLE_S
        )

    def _script(self, script: str) -> None:
        self.machine.run(self._network.published(self.name, script), timeout_s=SCRIPT_S)

    def paths(self) -> list[Path]:
        """Bundles on the host's disk; a directory with a hidden name is not whole yet."""
        return sorted((self.machine.root / "var/lib/compliance-agent/evidence").glob("*/*/*/[!.]*/bundle.json"))


def _stamp(moment: datetime) -> str:
    return moment.strftime("%Y-%m-%dT%H:%M:%S.%fZ")
