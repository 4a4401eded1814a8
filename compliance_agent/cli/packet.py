"""`compliance-agent packet`: build an auditor's packet from a server's data directory, verify one, and show what is in it."""

from __future__ import annotations

import asyncio
import json
import secrets
import zipfile
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import click

from compliance_agent.adapters.durable import read_file
from compliance_agent.cli.common import Whole, json_option, print_json, printable, table
from compliance_agent.cli.intervals import authority, show_times
from compliance_agent.cli.packet_sample import ENTRIES
from compliance_agent.cli.packet_sample import command as sample_command
from compliance_agent.cli.verify import spread
from compliance_agent.errors import BadEvidence
from compliance_agent.packet.content import section
from compliance_agent.packet.report import Report
from compliance_agent.packet.sample import MOST, USUAL
from compliance_agent.packet.sampled import FILE as SAMPLE_FILE
from compliance_agent.packet.sampled import Drawing
from compliance_agent.packet.verify import records_of_file, verify_file

QUORUM = {
    "met": "the quorum of the policy cosigned the checkpoint",
    "unwitnessed": "unwitnessed, the checkpoint lacks the quorum of the policy",
    "not_asked": "unwitnessed, the policy asks for none",
}
SHOWN = 20  # problems in the text form; all of them are in the JSON
_PATH = click.Path(path_type=Path)
_DAY = click.DateTime(formats=["%Y-%m-%d"])
_HOST_DAYS = Whole(1, MOST, next_step=f"give --sample {USUAL}, or leave it out for every record of the period")


@click.group()
def command() -> None:
    """Evidence of one site and period for an auditor: one zip file that openssl and sha256sum can check."""


@command.command("build")
@click.option("--data-dir", type=_PATH, required=True, help="The server's data directory; it may be running.")
@click.option("--site", required=True, help="The clinic.")
@click.option("--from", "since", type=_DAY, required=True, help="First day, UTC: 2026-11-01.")
@click.option("--to", "until", type=_DAY, required=True, help="Last day, UTC: 2026-11-30.")
@click.option("--control", help="Only what concerns this section of 45 CFR, such as 164.312(b).")
@click.option("--host", help="Only the host with this label.")
@click.option("--log-year", type=click.IntRange(2020, 9999), help="Log the records are in [the year of --to].")
@click.option(
    "--sample", type=_HOST_DAYS, metavar="NUMBER", help=f"Only the records of so many host-days, 1 to {MOST}."
)
@click.option("--seed", help="With --sample: what puts the host-days in order [random, and printed].")
@click.option("--size", type=ENTRIES, help="With --sample: what the log held at so many entries [all of it].")
@click.option("--out", type=_PATH, required=True, help="The zip file; one that is there is replaced.")
@json_option
@click.pass_context
def build(
    ctx: click.Context, /, data_dir: Path, since: datetime, until: datetime, out: Path, as_json: bool, **asked: Any
) -> None:
    """Write the packet of a site and a period; with --sample, of exactly a sample of it.

    Built twice from the same data it is the same bytes; a sample, with the same seed and size.
    Exit status: 0 written; 1 written, and its own verifier names something,
    such as a fork; 66 there is no evidence of the period.
    """
    if since > until:
        raise click.BadParameter("--from: is after --to")
    site, asked = asked.pop("site"), _with_drawing(asked)
    report, facts = _built(data_dir.absolute(), site, since.date(), until.date(), out, asked)
    if as_json:
        print_json(facts)
    else:
        click.echo(f"{out}: {facts['records']} record(s), {facts['bytes']} bytes, sha256 {facts['sha256']}")
        if drawn := facts["sample"]:
            click.echo(
                f"a sample: at most {drawn['number']} host-days, seed {drawn['seed']}, log of {drawn['size']} entries"
            )
        for word in ("pending", "elsewhere", "destroyed"):
            if facts[word]:
                click.echo(f"not in it, {word}: {facts[word]}", err=True)
        _limits(report)
        _name(report)
    ctx.exit(0 if report.ok else 1)


def _with_drawing(asked: dict[str, Any]) -> dict[str, Any]:
    """The same, with how a sample is drawn where one is asked for: from the one host that was named, or from all."""
    number, seed, size = (asked.pop(name) for name in ("sample", "seed", "size"))
    if number is None:
        if seed is not None or size is not None:
            raise click.UsageError("--seed and --size: of a sample; --sample NUMBER makes it one")
        return asked
    if asked["log_year"] is not None:
        raise click.UsageError("--log-year: a sample is drawn from the log of the year of --to")
    host = asked.pop("host")
    return {**asked, "drawing": Drawing((host,) if host else (), number, seed or secrets.token_hex(8), size)}


def _built(
    data_dir: Path, site: str, since: date, until: date, out: Path, asked: dict[str, Any]
) -> tuple[Report, dict[str, Any]]:
    from compliance_agent.logs import configure
    from compliance_agent.packet.build import checked, reading, written
    from compliance_agent.packet.choosing import Wanted
    from compliance_agent.packet.source import apart

    configure("ERROR")
    drawing: Drawing | None = asked.get("drawing")
    if drawing is not None:
        drawing.asked(
            site, section(asked["control"]) if asked["control"] else None, since, until
        )  # before anything is read
    with apart(lambda: reading(data_dir, site), out.parent) as teller:
        scope, size = asyncio.run(written(data_dir, Wanted(site, since, until, **asked), out, teller=teller))
    built = checked(out, scope, size, spread)  # after the last thread, so that it may fork
    facts = {
        "schema": "compliance-agent/packet-build/v1",
        "file": str(built.path),
        "records": built.records,
        "bytes": built.size_bytes,
        "sha256": _digest(out),
        "pending": built.scope.pending,
        "elsewhere": dict(built.scope.elsewhere),
        "destroyed": built.scope.destroyed,
        "sample": _drawn(out, drawing) if drawing is not None else None,
        "problems": built.report.as_document()["problems"],
    }
    return built.report, facts


def _drawn(out: Path, drawing: Drawing) -> dict[str, Any]:
    """How the sample was drawn, as its own document says it: who says so again draws the same."""
    with zipfile.ZipFile(out) as packed:
        said = json.loads(packed.read(SAMPLE_FILE))
    return {"seed": drawing.seed, "number": drawing.number, "size": said["log"]["size"], **said["sample"]}


def _digest(path: Path) -> str:
    import hashlib

    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@command.command("verify")
@click.argument("file", type=_PATH)
@click.option("--policy", type=_PATH, help="Whom to trust for the log (C2SP tlog-policy), from a source you trust.")
@click.option("--tsa-ca", type=_PATH, help="Certificates (PEM) that RFC 3161 time stamps must lead to.")
@click.option("--times", "each_time", is_flag=True, help="Print the time interval of every record.")
@json_option
@click.pass_context
def verify(
    ctx: click.Context, file: Path, policy: Path | None, tsa_ca: Path | None, each_time: bool, as_json: bool
) -> None:
    """Check a packet offline: every file, signature, chain, entry and proof.

    Exit status: 0 all verified, 65 something is wrong, and each wrong thing is named, 66 no such file.
    """
    trusted = read_file(policy, limit_bytes=65_536) if policy else None
    now = datetime.now(UTC)
    report = verify_file(file, trusted, stamps=authority(tsa_ca), each_time=each_time, spread=spread, now=now)
    if as_json:
        print_json(report.as_document())
    else:
        show_times(report.times, always=bool(report.said.cosignatures or report.said.tokens_unchecked))
        _name(report)
        scope = report.scope
        about = f", log {printable(scope.origin)} of {scope.size} entries" if scope else ""
        verdict = "nothing is wrong" if report.ok else f"{len(report.problems)} problem(s)"
        if report.quorum is not None:
            click.echo(f"witnesses: {QUORUM[report.quorum]}")
        click.echo(f"{report.verified} of {report.found} records verified{about}; {verdict}")
        _limits(report)
        if unchecked := report.said.tokens_unchecked:
            click.echo(f"note: {unchecked} time stamp(s) not checked; --tsa-ca takes the authority's", err=True)
        if report.own_authority and report.said.tokens:
            note = "note: time stamps were checked under certificates of the packet; --tsa-ca takes the authority's own"
            click.echo(note, err=True)
        if report.own_policy:
            click.echo("note: the keys came with the packet; --policy takes one from a source you trust", err=True)
    ctx.exit(report.exit_status)


def _limits(report: Report) -> None:
    if report.scope is None or report.scope.limits is None:
        return
    limits, ends = report.scope.limits, report.open_ends
    click.echo(
        f"limited: built for an account that sees {limits.first} to {limits.last} alone; {len(ends)} end(s) left open"
    )
    for end in ends[:SHOWN]:
        click.echo(printable(f"open: {end.host_id}: {end.detail}"))
    if len(ends) > SHOWN:
        click.echo(f"... and {len(ends) - SHOWN} more; --json shows all")


def _name(report: Report) -> None:
    for problem in report.problems[:SHOWN]:
        text = f"{problem.code}: {problem.where}" + (f": {problem.detail}" if problem.detail else "")
        click.echo(printable(text))
    if len(report.problems) > SHOWN:
        click.echo(f"... and {len(report.problems) - SHOWN} more; --json shows all")


@command.command("show")
@click.argument("file", type=_PATH)
@json_option
@click.pass_context
def show(ctx: click.Context, file: Path, as_json: bool) -> None:
    """Say what is in a packet: hosts, checks and days with counts of every result, coverage, gaps and silent spans.

    It is verified first; one that does not verify is counted all the same, named, and ends in exit status 65.
    """
    from compliance_agent.packet import grid

    report = verify_file(file, spread=spread, now=datetime.now(UTC))
    if report.scope is None:
        _name(report)
        raise BadEvidence(f"{file}: cannot be read as a packet", code="bad_scope")
    records = records_of_file(file)
    document = grid.as_document(report.scope, records)
    document |= {"schema": "compliance-agent/packet-show/v1", "verified": report.ok}
    document["problems"] = report.as_document()["problems"]
    if as_json:
        print_json(document)
    else:
        _show(document)
        _limits(report)
        _name(report)
    ctx.exit(report.exit_status)


def _show(page: dict[str, Any]) -> None:
    results = list(page["counts"])
    asked = "".join(f", {page[word]} alone" for word in ("control", "host") if page[word])
    click.echo(printable(f"{page['site_id']}, {page['from']} to {page['to']}{asked}: {page['records']} record(s)"))
    rows = [
        [row["host"], row["check"], row["day"], *(str(row["counts"][word]) for word in results)] for row in page["grid"]
    ]
    table(("host", "check", "day", *results), rows, title="what was said")
    covered = [
        [item["host"], item["key_id"][:16], str(item["records"]), f"{item['hours_covered']} of {item['hours_due']}",
         f"{item['percent']} %", str(len(item["silent"]))]
        for item in page["coverage"]
    ]  # fmt: skip
    table(("host", "key", "records", "hours covered", "coverage", "silent spans"), covered, title="how much was seen")
    for item in page["coverage"]:
        for span in item["silent"]:
            click.echo(f"silent: {item['host']} from {span['from']} to {span['to']}")
    for word in ("pending", "elsewhere", "destroyed"):
        if page[word]:
            click.echo(f"not in it, {word}: {page[word]}")


@command.command("report")
@click.argument("file", type=_PATH)
@click.option("--out", type=_PATH, required=True, help="The PDF; one that is there is replaced.")
@click.option("--policy", type=_PATH, help="Whom to trust for the log (C2SP tlog-policy), from a source you trust.")
@click.option("--tsa-ca", type=_PATH, help="Certificates (PEM) that RFC 3161 time stamps must lead to.")
@json_option
@click.pass_context
def report(ctx: click.Context, file: Path, out: Path, policy: Path | None, tsa_ca: Path | None, as_json: bool) -> None:
    """Print a packet: ten sheets for an auditor as one PDF/A, with charts, each number leading to its records.

    It is verified first; one that does not verify is printed all the same, says so on its first page, and ends in exit status 65.
    Printed twice, the file is the same bytes. Needs the extra `pdf` (typst).
    """
    from compliance_agent import __version__
    from compliance_agent.adapters.durable import write_file
    from compliance_agent.packet.content import moment
    from compliance_agent.sheets.printing import printed
    from compliance_agent.sheets.report import report_of

    trusted = read_file(policy, limit_bytes=65_536) if policy else None
    found = verify_file(file, trusted, stamps=authority(tsa_ca), spread=spread, now=datetime.now(UTC))
    if found.scope is None:
        _name(found)
        raise BadEvidence(f"{file}: cannot be read as a packet", code="bad_scope")
    records = records_of_file(file)
    made_at = int(moment(found.scope.signed_at).timestamp())
    ready = report_of(found.scope, records, found, sha256=_digest(file), version=__version__, made_at=made_at)
    pdf = printed(ready)
    write_file(out, pdf, 0o644)
    facts = {
        "schema": "compliance-agent/packet-report/v1",
        "file": str(out),
        "records": ready.document["count"],
        "bytes": len(pdf),
        "sha256": _digest(out),
        "verified": found.ok,
        "problems": found.as_document()["problems"],
    }
    if as_json:
        print_json(facts)
    else:
        click.echo(f"{out}: {facts['records']} record(s), {facts['bytes']} bytes, sha256 {facts['sha256']}")
        _name(found)
    ctx.exit(found.exit_status)


command.add_command(sample_command)
