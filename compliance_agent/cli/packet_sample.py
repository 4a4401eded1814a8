"""`compliance-agent packet sample`: draw a sample from a packet, offline; whoever has the packet and the seed draws the same."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import click

from compliance_agent.adapters.durable import read_file
from compliance_agent.cli.common import Whole, json_option, print_json, printable, table
from compliance_agent.cli.verify import spread
from compliance_agent.errors import BadEvidence
from compliance_agent.log.checkpoint import Checkpoint
from compliance_agent.log.note import Note
from compliance_agent.packet import sample as sampling
from compliance_agent.packet.content import Scope, section
from compliance_agent.packet.report import Report
from compliance_agent.packet.sampled import lives

_PATH = click.Path(path_type=Path)
_DAY = click.DateTime(formats=["%Y-%m-%d"])
_NUMBER = Whole(1, sampling.MOST, next_step="give --every for each of them")
ENTRIES = Whole(1, next_step="leave it out for what the log holds now")
MOST_BYTES = 2**31


@click.command("sample")
@click.argument("file", type=_PATH)
@click.option("--control", help="Section of 45 CFR, such as 164.312(b) [the packet's, or all].")
@click.option("--host", "hosts", multiple=True, help="A host by its label; may be given again [all of the packet].")
@click.option("--from", "since", type=_DAY, help="First day, UTC [the packet's].")
@click.option("--to", "until", type=_DAY, help="Last day, UTC [the packet's].")
@click.option("--day", "days", type=_DAY, multiple=True, help="A day, in place of --from and --to; may be given again.")
@click.option("--number", type=_NUMBER, default=sampling.USUAL, show_default=True)
@click.option("--every", is_flag=True, help="Every instance, in place of --number.")
@click.option(
    "--seed", help="Letters, digits, dots, dashes, underscores; the same seed draws the same [random, and printed]."
)
@click.option("--size", type=ENTRIES, help="Only what the log held at this many entries [all of them].")
@click.option("--policy", type=_PATH, help="Whom to trust for the log (C2SP tlog-policy), from a source you trust.")
@json_option
@click.pass_context
def command(
    ctx: click.Context,
    file: Path,
    control: str | None,
    hosts: tuple[str, ...],
    since: datetime | None,
    until: datetime | None,
    days: tuple[datetime, ...],
    number: int,
    every: bool,
    seed: str | None,
    size: int | None,
    policy: Path | None,
    as_json: bool,
) -> None:
    """Draw a sample of hosts and days from a packet, and show the record and the place in the log of each.

    The packet is verified first. An instance without a record stays in the sample and is named. Exit status: 0 each has a record;
    1 some have none; 65 the packet does not verify.
    """
    from compliance_agent.packet.verify import verify_file

    trusted = read_file(policy, limit_bytes=65_536) if policy else None
    report = verify_file(file, trusted, spread=spread, now=datetime.now(UTC))
    if report.scope is None:
        raise BadEvidence(f"{file}: cannot be read as a packet", code="bad_scope")
    chosen = _days(report.scope, since, until, days)
    asked = sampling.Asked(
        report.scope.site_id, _control(report.scope, control), tuple(sorted(set(hosts))), chosen, None if every else number,
        seed or secrets.token_hex(8),
    )  # fmt: skip
    pulled = _pulled(file, report.scope, asked, size)
    document = pulled.as_document() | {"verified": report.ok, "problems": report.as_document()["problems"]}
    if as_json:
        print_json(document)
    else:
        _show(pulled, document, report)
    ctx.exit(report.exit_status or (1 if pulled.missing else 0))


def _control(scope: Scope, asked: str | None) -> str | None:
    control = section(asked) if asked else scope.control
    if scope.control is not None and control != scope.control:
        raise click.BadParameter(f"--control: the packet is of {scope.control} alone")
    return control


def _days(scope: Scope, since: datetime | None, until: datetime | None, days: Sequence[datetime]) -> tuple[date, ...]:
    if days and (since or until):
        raise click.BadParameter("--day: stands in place of --from and --to")
    first, last = scope.start.date(), date.fromisoformat(scope.until)
    if days:
        found = tuple(sorted({one.date() for one in days}))
    else:
        found = sampling.span_of(since.date() if since else first, until.date() if until else last)
    if not found or found[0] < first or found[-1] > last:
        raise click.BadParameter(f"days: the packet is of {first} to {last}")
    return found


def _pulled(file: Path, scope: Scope, asked: sampling.Asked, size: int | None) -> sampling.Sample:
    """The sample of what stands in the packet."""
    from compliance_agent.packet import archive
    from compliance_agent.packet.logbook import CHECKPOINT
    from compliance_agent.packet.verify import records_of

    files = archive.unpack(read_file(file, limit_bytes=MOST_BYTES))
    newest = Checkpoint.parse(Note.parse(files.get(CHECKPOINT, b"")).text)
    log = sampling.checkpoint_at(newest, size, sampling.tile_reader(lambda path: files[f"log/{path}"]))
    found = (
        sampling.item_of(record.document, record.digest, record.index, asked.control) for record in records_of(files)
    )
    among = sampling.population(lives(scope), asked)
    return sampling.pull(asked, log, among, (item for item in found if item is not None))


def _show(pulled: sampling.Sample, document: dict[str, Any], report: Report) -> None:
    log, among, drawn = document["log"], document["population"], document["sample"]
    what = document["control"] or "all sections"
    days = document["days"]
    click.echo(printable(f"{document['site_id']}, {what}, {days[0]} to {days[-1]} ({len(days)} day(s))"))
    click.echo(printable(f"log: {log['origin']} of {log['size']} entries, root {log['root']}"))
    click.echo(f"drawn from: {among['instances']} host-days, sha256 {among['sha256']}")
    if among["not_enrolled"]:
        click.echo(f"not among them: {among['not_enrolled']} host-days on which the host was not enrolled")
    click.echo(f"method: {document['method']}, seed {document['seed']}")
    rows = [
        [one.instance.host, one.instance.day.isoformat(), str(len(one.items)), *_said(one)] for one in pulled.pulled
    ]
    table(("host", "day", "records", "shown", "entry", "sha256"), rows, title="the sample")
    for one in pulled.pulled:
        if one.shown is None:
            click.echo(f"no record on that date: {one.instance.host} {one.instance.day}")
            for item in one.earlier:
                click.echo(f"  an earlier instance, not in the sample: {item.day} {item.directory}")
    click.echo(f"{drawn['instances']} drawn, {drawn['missing']} without a record; sample sha256 {drawn['sha256']}")
    for problem in report.problems[:20]:
        click.echo(printable(f"{problem.code}: {problem.where}"))
    if report.problems:
        click.echo(f"the packet does not verify: {len(report.problems)} problem(s)", err=True)


def _said(one: sampling.Pulled) -> list[str]:
    if one.shown is None:
        return ["no record on that date", "-", "-"]
    said = " ".join(f"{word}={count}" for word, count in one.counts.items() if count)
    return [f"{one.shown.kind} {said}", str(one.shown.index), one.shown.sha256[:16]]
