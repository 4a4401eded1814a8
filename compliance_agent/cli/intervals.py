"""How commands take a time-stamping authority, and show the interval in which a record came to be."""

from __future__ import annotations

from pathlib import Path

import click

from compliance_agent.adapters.durable import read_file
from compliance_agent.evidence.stamped import Stamps, stamps_under
from compliance_agent.evidence.times import Times, text_of

MAX_PEM_BYTES = 1_048_576


def authority(file: Path | None) -> Stamps | None:
    """What verifies time stamps under the certificates in this file; None without one, or where nothing can."""
    return None if file is None else stamps_under(read_file(file, limit_bytes=MAX_PEM_BYTES))


def show_times(times: Times, *, always: bool) -> None:
    """The intervals as text: each one where that was asked for, the widest, and how many records lack a bound."""
    for bundle, before, after, created in times.kept:
        ends = (text_of(before) or "unknown", text_of(after) or "unknown", text_of(created))
        click.echo(f"{bundle}  not before {ends[0]}  not after {ends[1]}  says {ends[2]}")
    if times.widest is not None:
        width, bundle = times.widest
        click.echo(
            f"times: {times.counts['both']} record(s) between two proven moments; the widest {width / 1e6:g} s: {bundle}"
        )
    partly = {"before_only": "no upper bound", "after_only": "no lower bound", "none": "neither bound"}
    known = any(count for word, count in times.counts.items() if word != "none")
    for word, text in partly.items():
        if times.counts[word] and (known or always):
            click.echo(f"times: {times.counts[word]} record(s) with {text}")
    for code, count in sorted(times.flags.items()):
        first = next(item for item in times.flagged if item.code == code)
        click.echo(f"flag {code}: {count} record(s), first {first.where}: {first.detail}")
