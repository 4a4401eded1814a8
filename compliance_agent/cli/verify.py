"""`compliance-agent verify`: check evidence offline, trusting nothing but the public keys."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TypeVar

import click

from compliance_agent.adapters.workers import in_order
from compliance_agent.cli.common import PATH, json_option, print_json, table
from compliance_agent.cli.progress import progress
from compliance_agent.errors import NoInput
from compliance_agent.evidence import walk
from compliance_agent.evidence.logged import read_log_keys
from compliance_agent.evidence.verify import Report, load_keys, verify_paths

T = TypeVar("T")
R = TypeVar("R")
MOST_WORKERS = 8  # each has some 40 MB
SHOWN = 20  # problems in the text form; all of them are in the JSON


@click.command()
@click.argument("paths", nargs=-1, required=True, type=PATH)
@click.option(
    "--key",
    "keys",
    multiple=True,
    type=PATH,
    help="A host's public key (HOST.pub.pem), from a source you trust; may be given more than once.",
)
@click.option(
    "--log-key",
    "log_keys",
    multiple=True,
    metavar="VKEY|FILE",
    help="A transparency log's verifier key, or a file of them; may be given more than once.",
)
@json_option
@click.pass_context
def command(
    ctx: click.Context, paths: tuple[Path, ...], keys: tuple[Path, ...], log_keys: tuple[str, ...], as_json: bool
) -> None:
    """Check evidence offline: signatures over the exact bytes, canonical form, schema, an unbroken chain, and receipts.

    PATH is an evidence directory, a host's directory with keys/ in it, or a single bundle. Exit status: 0 all verified,
    65 something is wrong, 66 no evidence there.
    """
    report = _verified(paths, keys, log_keys)
    if report.found == 0:
        raise NoInput("no evidence there: no bundle.json under " + ", ".join(map(str, paths)))
    if as_json:
        print_json(report.as_document())
    else:
        show(report)
    ctx.exit(report.exit_status)


def _verified(paths: tuple[Path, ...], keys: tuple[Path, ...], log_keys: tuple[str, ...]) -> Report:
    trusted = load_keys(keys) if keys else None
    logs = read_log_keys(log_keys) if log_keys else None
    total = lambda: sum(len(batch.names) for batch in walk.batches(paths))  # noqa: E731
    with progress("verifying", total) as update:
        return verify_paths(paths, trusted, log_keys=logs, spread=spread, progress=update)


def spread(work: Callable[[T], R], batches: Iterable[T]) -> Iterator[R]:
    """As `map`, on all cores this process may use."""
    return in_order(work, batches, count=min(len(os.sched_getaffinity(0)), MOST_WORKERS))


def show(report: Report) -> None:
    """The report as text: a line for each host, the first problems, one line of summary."""
    if report.chains:
        rows = [
            [
                chain.host,
                chain.key_id[:16],
                str(chain.bundles),
                _place(chain.first),
                _place(chain.last),
                chain.head[:16],
                f"{chain.receipted} of {chain.bundles}",
            ]
            for chain in report.chains
        ]
        table(("host", "key", "bundles", "first", "last", "head", "receipts"), rows)
    for problem in report.problems[:SHOWN]:
        click.echo(f"{problem.code}: {problem.where}" + (f": {problem.detail}" if problem.detail else ""))
    if len(report.problems) > SHOWN:
        click.echo(f"... and {len(report.problems) - SHOWN} more; --json shows all")
    verdict = "every chain is whole" if report.ok else f"{len(report.problems)} problem(s)"
    click.echo(f"{report.verified} of {report.found} bundles of {len(report.chains)} host(s) verified; {verdict}")
    if report.receipts_unchecked:
        click.echo(f"note: {report.receipts_unchecked} receipt(s) not checked; --log-key takes the log's key", err=True)
    if report.keys_beside_evidence:
        click.echo(
            "note: the public keys stood beside the evidence; --key takes ones from a source you trust", err=True
        )


def _place(place: tuple[int, int]) -> str:
    return f"{place[0]}/{place[1]}"
