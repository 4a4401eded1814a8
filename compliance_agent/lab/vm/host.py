"""The virtual host under watch: what its agent records, read through its port; faults done to it, cures cut off, evidence verified.

Its clock is part of what is tested, so times in the table are the lab's own: when a record was first seen there.
"""

from __future__ import annotations

import base64
import io
import json
import tarfile
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from compliance_agent.errors import Unavailable
from compliance_agent.lab.real.install import baseline
from compliance_agent.lab.real.judge import Bundle, Judged, Observed, expected, judge
from compliance_agent.lab.real.network import Network
from compliance_agent.lab.real.proof import proven
from compliance_agent.lab.real.row import Row, Table
from compliance_agent.lab.real.shell import until
from compliance_agent.lab.vm.matrix import TABLES
from compliance_agent.lab.vm.place import install_on, put
from compliance_agent.lab.vm.row import CLOCK, POINT, Cut, Outage
from compliance_agent.lab.vm.virtual import Virtual

EVIDENCE = "/var/lib/compliance-agent/evidence"
WAIT_S = 150.0  # for every record: the processor is emulated, and often shared
SETTLE_S = 120.0
SCRIPT_S = 120.0
PANIC_S = 60.0
CLOCK_S = 1.0
HEAL, LOOK = "enforce", "audit"


class VirtualHost:
    """One virtual machine, its agent, and what is done to it.

    Args:
        virtual: the machine, prepared and not started.
        network: where the server is.
        say: tells a person.
    """

    def __init__(self, virtual: Virtual, network: Network, say: Callable[[str], None]) -> None:
        self.virtual = virtual
        self.name = virtual.name
        self._network, self._say = network, say
        self._read: dict[str, Bundle] = {}  # by directory
        self._seen_at: dict[str, datetime] = {}
        self._watched = TABLES[0]  # the table whose entry is the baseline now
        self._mode = HEAL

    def start(self) -> None:
        """Boot, encrypt, install."""
        started = time.monotonic()
        booted = self.virtual.boot()
        install_on(self.virtual, self._network, self._watched)
        self._say(f"{self.name} booted in {booted} s, agent running after {time.monotonic() - started:.1f} s")

    def turn_to(self, table: Table) -> None:
        """Have the agent watch this check, and see it as it is before any fault."""
        if table.check != self._watched.check:
            self._adopt(next(first for first in TABLES if first.check == table.check), HEAL)
        until(lambda: table.check in self.verdicts(), SETTLE_S)

    def do(self, table: Table, row: Row) -> list[Judged]:
        """Make the fault, wait for the record that must come of it, ask the machine, put the host back."""
        self.bundles()
        known = set() if row.standing else set(self._read)
        if isinstance(row, Cut):
            return self._cut(table, row, known)
        self._script(row.inject)
        injected = datetime.now(UTC)
        self._adopt(table, HEAL)
        line = self._judged(row, known, injected)
        self._script(row.restore)
        if table.rests[0] == "pass" and not until(lambda: self.verdicts().get(row.check) == "pass", SETTLE_S):
            line = line.but("put back, and does not pass again")
        if isinstance(row, Outage) and not until(lambda: self._holds(row.through), WAIT_S):
            line = line.but("put back, and what was held up did not come through")
        return [line]

    def trail(self, row: Row, since: datetime) -> str:
        """What somebody needs who asks why a row differs: the records of its check and the host's journal."""
        fields = (
            "timestamp_end",
            "kind",
            "result",
            "reason",
            "outcome",
            "error",
            "post_result",
            "recovered",
            "bundle_id",
        )
        told = [bundle for bundle in self.bundles().values() if bundle["check"] == row.check]
        records = "\n".join(" ".join(str(bundle[name]) for name in fields) for bundle in told)
        journal = self.virtual.sh(f"journalctl --no-pager -o short-precise --since @{since.timestamp() - 600:.0f}")
        return f"{row}\n\nrecorded:\n{records}\n\njournal:\n{journal}\n\nconsole:\n{self.virtual.console()}"

    # A cure that is cut off

    def _cut(self, table: Table, row: Cut, known: set[str]) -> list[Judged]:
        self.virtual.must("touch /run/lab-hold && rm -f /run/lab-held && sync")
        self._script(row.inject)
        injected = datetime.now(UTC)
        self._adopt(table, HEAL)
        reached = until(lambda: self._at(row), WAIT_S)
        point = not row.held or self.virtual.run(POINT).returncode == 0
        if reached and row.held:
            self.bundles()
        self.virtual.cut()
        alive = False
        if row.dead_boot:
            self.virtual.start()
            alive = not until(self._panicked, PANIC_S)
            self.virtual.cut()
        took = self.virtual.boot(*row.boot)
        left = self.virtual.run(row.left).returncode == 0 and self.virtual.run(POINT).returncode == 0
        self._adopt(table, HEAL if row.outcome == "success" else LOOK, restart=True)
        line = self._judged(row, known, injected)
        self._say(f"{self.name} up again after {took} s, cut off in the middle of {row.name}")
        for wrong, text in (
            (not reached, "the cure never came to the place where the power was to be cut"),
            (not point, "no rollback point stood open when the power was cut"),
            (alive, "the host came up with what had taken it down"),
            (not left, "the cut did not leave what it was meant to leave"),
            (not self._recovered(known, row), "the record does not say that it is of a cure that was cut off"),
        ):
            line = line.but(text) if wrong else line
        lines = [line]
        if row.then is not None:
            since, at = set(self._read), datetime.now(UTC)
            self._adopt(table, HEAL, restart=True)
            lines.append(self._judged(row.then, since, at))
        self._adopt(table, HEAL)
        return lines

    def _at(self, row: Cut) -> bool:
        if not row.held:
            return self._panicked()
        try:
            return self.virtual.run(row.held, timeout_s=10.0).returncode == 0
        except Unavailable:
            return False

    def _panicked(self) -> bool:
        return "Kernel panic" in self.virtual.console()

    def _recovered(self, known: set[str], row: Cut) -> bool:
        return any(bundle["recovered"] and expected(row, bundle) for bundle in self._since(known, row.check))

    # What is asked of the machine

    def _judged(self, row: Row, known: set[str], injected: datetime) -> Judged:
        until(lambda: any(expected(row, bundle) for bundle in self._since(known, row.check)), WAIT_S)
        if row.result == "unknown":
            time.sleep(6.0)  # further looks, none of which may say more than the first
        said = self._since(known, row.check)
        truth = self._holds(row.truth) if row.outcome == "success" or row.result == "pass" else None
        former = self._holds(row.former) if row.outcome in {"reverted", "failed", "rejected"} else None
        line = judge(row, Observed(injected, tuple(said), truth, former))
        if row.result == "pass" and truth is not True:
            line = line.but("passed, and the machine did not confirm it")
        if row.outcome == "rejected" and former is not True:
            line = line.but("refused, and the host is not as it was")
        return line

    def _holds(self, script: str) -> bool:
        if script != CLOCK:
            return self.virtual.run(script).returncode == 0
        before = time.time()
        told = float(self.virtual.must("date +%s.%N"))
        return before - CLOCK_S <= told <= time.time() + CLOCK_S

    def _script(self, script: str) -> None:
        self.virtual.run(self._network.published(self.name, script), timeout_s=SCRIPT_S)

    def _adopt(self, table: Table, mode: str, *, restart: bool = False) -> None:
        """Have the agent run under a baseline of this table's entry alone: other checks would slow it down."""
        same = (self._watched.check, self._watched.entry, self._mode) == (table.check, table.entry, mode)
        if same and not restart:
            self.virtual.must("systemctl start compliance-agent")
            return
        self._watched, self._mode = table, mode
        text = baseline((table,))
        put(self.virtual, "/etc/msp/baseline.yaml", text.replace("\nmode: enforce", f"\nmode: {mode}"))
        self.virtual.must("systemctl restart compliance-agent", timeout_s=SCRIPT_S)

    # What was recorded

    def _since(self, known: set[str], check: str) -> list[Bundle]:
        return [
            {
                **bundle,
                "timestamp_start": self._seen_at[name].isoformat(),
                "timestamp_end": self._seen_at[name].isoformat(),
            }
            for name, bundle in self.bundles().items()
            if name not in known and bundle["check"] == check
        ]

    def bundles(self) -> dict[str, Bundle]:
        """What the agent recorded, in order, by directory; each file is read once, and a hidden directory is not whole yet."""
        listed = self.virtual.names(f"{EVIDENCE}/*/*/*/[!.]*/bundle.json")
        new = [path for path in (name.removeprefix(f"{EVIDENCE}/") for name in listed) if path not in self._read]
        if new:
            told = self.virtual.sh(f"cd {EVIDENCE} && for path in {' '.join(new)}; do cat $path; echo; done")
            now = datetime.now(UTC)
            for path, line in zip(new, (line for line in told.splitlines() if line), strict=True):
                self._read[path] = json.loads(line)
                self._seen_at[path] = now
        return dict(sorted(self._read.items(), key=lambda item: (item[1]["epoch"], item[1]["seq"])))

    def verdicts(self) -> dict[str, str]:
        """The last recorded verdict of each check."""
        return {b["check"]: str(b["post_result"] or b["result"]) for b in self.bundles().values() if b["check"]}

    def verified(self) -> dict[str, Any]:
        """All evidence of the host: delivered, logged, and verified offline. What was once seen has to be among it."""
        missing = f"cd {EVIDENCE} && for path in */*/*/*/bundle.json; do [ -e ${{path%.json}}.tlog-proof ] || echo $path; done"
        if not until(lambda: not self.virtual.sh(missing).split(), 30.0):
            self.virtual.run("systemctl restart compliance-agent", timeout_s=SCRIPT_S)  # it delivers what waits at once
            until(lambda: not self.virtual.sh(missing).split(), 30.0)
        self.virtual.run("systemctl stop compliance-agent")
        packed = base64.b64decode(self.virtual.must(f"tar -C {EVIDENCE}/.. -cz evidence | base64", timeout_s=SCRIPT_S))
        copied = self.virtual.directory / "copy"
        with tarfile.open(fileobj=io.BytesIO(packed)) as tar:
            tar.extractall(copied, filter="data")
        public = copied / "host.pub.pem"
        public.write_text(self.virtual.must("compliance-agent config public-key", timeout_s=SCRIPT_S), "utf-8")
        lost = [path for path in self._read if not (copied / "evidence" / path).exists()]
        return proven(self.name, copied / "evidence", (public,), self._network.log_keys(), lost)
