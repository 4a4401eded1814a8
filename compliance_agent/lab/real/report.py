"""What a run of the lab tells: a line as each row ends, then the table, or the same as one JSON object."""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, TextIO

import click

from compliance_agent.cli.common import table
from compliance_agent.lab.real.judge import Judged

SCHEMA = "compliance-agent/lab/v1"
_CLEAR = "\r\x1b[2K"


class Progress:
    """One line for each row that ended; on a terminal also a last line that says what is under way."""

    def __init__(self, total: int, out: TextIO = sys.stderr, now_s: Callable[[], float] = time.monotonic) -> None:
        self._total = total
        self._out = out
        self._now_s = now_s
        self._start_s = now_s()
        self._begun_s: dict[str, float] = {}
        self._live = out.isatty()
        self._done = 0
        self._now: dict[str, str] = {}
        self._lock = threading.Lock()

    def say(self, text: str) -> None:
        """A plain line."""
        with self._lock:
            self._line(f"lab: {text}")

    def begin(self, host: str, what: str) -> None:
        """This host is at it now."""
        with self._lock:
            self._now[host] = what
            self._begun_s[host] = self._now_s()
            self._last_line()

    def end(self, host: str, line: Judged) -> None:
        """A row is judged."""
        times = [
            f"{word} {value:.1f} s"
            for word, value in (("detected", line.detect_s), ("healed", line.heal_s))
            if value is not None
        ]
        with self._lock:
            self._done += 1
            self._now.pop(host, None)
            ended_s = self._now_s()
            begun_s = self._begun_s.pop(host, None)
            times += [] if begun_s is None else [f"took {ended_s - begun_s:.0f} s"]
            times.append(
                f"at {ended_s - self._start_s:.0f} s"
            )  # of the run: which host is the last to end, and with what
            said = "; ".join(
                (f"{line.verdict} -> {line.cure or '-'}", *times, *(f"DIFFERS: {text}" for text in line.differences))
            )
            self._line(f"lab: {self._done}/{self._total} {host} {line.row.name}: {said}")

    def _line(self, text: str) -> None:
        self._out.write(f"{_CLEAR if self._live else ''}{text}\n")
        self._last_line()

    def _last_line(self) -> None:
        if self._live:
            under_way = ", ".join(f"{host} {what}" for host, what in sorted(self._now.items()))
            self._out.write(f"{_CLEAR}{under_way[:100]}")
        self._out.flush()


def document(
    judged: Sequence[Judged],
    fought: dict[str, Any] | None,
    service: Sequence[dict[str, Any]] | None,
    evidence: Sequence[dict[str, Any]],
    seconds: float,
) -> dict[str, Any]:
    """The whole result."""
    false_healed, blind = sum(line.false_healed for line in judged), sum(line.blind_pass for line in judged)
    right = not any(line.differences for line in judged) and all(item["ok"] for item in (*evidence, *(service or ())))
    return {
        "schema": SCHEMA,
        "ok": right and not false_healed and not blind and (fought is None or fought["ok"]),
        "rows_total": len(judged),
        "rows_different": sum(bool(line.differences) for line in judged),
        "false_healed": false_healed,
        "blind_passes": blind,
        "seconds": round(seconds, 1),
        "opponent": fought,
        "service": None if service is None else list(service),
        "evidence": list(evidence),
        "rows": [
            {
                "check": line.row.check, "fault": line.row.fault, "verdict": line.verdict, "cure": line.cure,
                "detect_s": line.detect_s, "heal_s": line.heal_s, "bundle_id": line.bundle_id,
                "differences": list(line.differences),
            }
            for line in judged
        ],
    }  # fmt: skip


def as_text(result: dict[str, Any]) -> str:
    """The object, as it is written to files."""
    return json.dumps(result, indent=2, sort_keys=True)


def show(result: dict[str, Any]) -> None:
    """The table and what it comes to."""
    rows = [
        [
            row["check"], row["fault"], row["verdict"], row["cure"] or "-", _tenths(row["detect_s"]), _tenths(row["heal_s"]),
            row["bundle_id"], "DIFFERS" if row["differences"] else "ok",
        ]
        for row in result["rows"]
    ]  # fmt: skip
    table(("check", "fault", "verdict", "cure", "detect s", "heal s", "evidence", ""), rows)
    for host in result["evidence"]:
        problems = "".join(f"; {problem}" for problem in host["problems"])
        click.echo(
            f"{host['host']}: {host['bundles']} bundles verified offline, {host['receipts']} with the log's receipt"
            f"{'' if host['ok'] else '; NOT AS IT MUST BE'}{problems}"
        )
    if result["opponent"]:
        fought = result["opponent"]
        click.echo(
            f"opponent: undone {fought['undone']} times, {fought['heals']} cures, then {fought['alarms']} alarm(s)"
            f"{'' if fought['ok'] else '; NOT AS IT MUST BE'}"
        )
    for line in result["service"] or ():
        found = f"; {line['found']}" if "found" in line else ""
        click.echo(f"service: {line['step']}: {'ok' if line['ok'] else 'NOT AS IT MUST BE'}{found}")
    click.echo(
        f"{result['rows_total']} rows, {result['rows_different']} differ; {result['blind_passes']} passes where the probe could "
        f"not look, {result['false_healed']} false healed; {result['seconds']} s"
    )


def _tenths(value: float | None) -> str:
    return "" if value is None else f"{value:.1f}"
