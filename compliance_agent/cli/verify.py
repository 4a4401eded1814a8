"""`compliance-agent verify`: check evidence offline, trusting nothing but the public keys."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import click

from compliance_agent.adapters.durable import read_file, write_file
from compliance_agent.adapters.workers import cores, in_order
from compliance_agent.cli.common import PATH, json_option, print_json, printable, table
from compliance_agent.cli.intervals import authority, show_times
from compliance_agent.cli.progress import progress
from compliance_agent.cli.remote import Trust, for_origin, keys_as_policy, read_logs
from compliance_agent.core.receipt import MAX_NOTE_BYTES
from compliance_agent.errors import BadEvidence, NoInput
from compliance_agent.evidence import walk
from compliance_agent.evidence.chains import Tagger
from compliance_agent.evidence.logged import read_log_keys
from compliance_agent.evidence.served import ServedLog, held_to_older
from compliance_agent.evidence.verify import Report, load_keys, verify_paths
from compliance_agent.log.policy import Policy

T = TypeVar("T")
R = TypeVar("R")
MOST_WORKERS = 8  # each has some 40 MB
SHOWN = 20  # problems in the text form; all of them are in the JSON


@click.command()
@click.argument("paths", nargs=-1, required=True, metavar="PATH|URL...")
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
@click.option("--policy", "policy_file", type=PATH, help="Logs and witnesses to trust (C2SP tlog-policy).")
@click.option("--tsa-ca", type=PATH, help="Certificates (PEM) that RFC 3161 time stamps must lead to.")
@click.option(
    "--since", "since_files", multiple=True, type=PATH, help="A checkpoint kept from before; the log must extend it."
)
@click.option("--remember", type=PATH, help="Hold the log to the checkpoint in this file, and keep the new one there.")
@click.option("--ca-file", type=PATH, help="Certificate authority of the server (PEM).")
@click.option("--token-file", type=PATH, help="API key or operator token for the server (mode 600).")
@click.option("--times", "each_time", is_flag=True, help="Print the time interval of every record.")
@json_option
@click.pass_context
def command(ctx: click.Context, /, paths: tuple[str, ...], as_json: bool, **asked: Any) -> None:
    """Check evidence offline: signatures over the exact bytes, canonical form, schema, an unbroken chain, receipts and times.

    PATH is an evidence directory, a host's directory with keys/ in it, a single bundle, or a packet (.zip). URL is a log,
    https://server/log/SITE/YEAR/, or all logs of a site, https://server/log/SITE/: fetched, rebuilt, and held against the evidence
    of the PATHs where such are given. Exit status: 0 all verified, 65 something is wrong, 66 no evidence there.
    """
    if any(_is_packet(Path(path)) for path in paths if "://" not in path):
        from compliance_agent.cli.packet import verify as verify_packet

        if len(paths) > 1:
            raise click.BadParameter("a packet is checked by itself: it holds its own log")
        wanted = {name: asked[name] for name in ("tsa_ca", "each_time")}
        ctx.invoke(verify_packet, file=Path(paths[0]), policy=asked["policy_file"], as_json=as_json, **wanted)
    report = _verified(paths, Asked(**asked))
    if report.found == 0 and not report.logs:
        raise NoInput("no evidence there: no bundle.json under " + ", ".join(paths))
    if as_json:
        print_json(report.as_document())
    else:
        show(report)
    ctx.exit(report.exit_status)


def _is_packet(path: Path) -> bool:
    """By its name, or by its first bytes where it is a file."""
    if not path.is_file():
        return False
    return path.suffix == ".zip" or _start(path) == b"PK\x03\x04"


def _start(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(4)
    except OSError:
        return b""


@dataclass(frozen=True)
class Asked:
    """The options."""

    keys: tuple[Path, ...]
    log_keys: tuple[str, ...]
    policy_file: Path | None
    tsa_ca: Path | None
    since_files: tuple[Path, ...]
    remember: Path | None
    ca_file: Path | None
    token_file: Path | None
    each_time: bool


def _verified(paths: tuple[str, ...], asked: Asked) -> Report:
    trusted = load_keys(asked.keys) if asked.keys else None
    log_keys = read_log_keys(asked.log_keys) if asked.log_keys else None
    policy = Policy.parse(read_file(asked.policy_file, limit_bytes=65_536)) if asked.policy_file else None
    urls, places = [path for path in paths if "://" in path], [Path(path) for path in paths if "://" not in path]
    tags, logs = Tagger(), list[ServedLog]()
    if urls:
        policy = policy or keys_as_policy(log_keys or [])
        trust = Trust(policy, authority(asked.tsa_ca), asked.ca_file, asked.token_file)
        logs = [log for url in urls for log in read_logs(url, trust, tags)]
        for log in logs:
            policy = for_origin(policy, log.origin)
        _held_to_what_is_kept(logs, policy, asked)
    report = Report()
    if places:
        total = lambda: sum(len(batch.names) for batch in walk.batches(places))  # noqa: E731
        with progress("records", total) as update:
            report = verify_paths(
                places, trusted, log_keys=log_keys, policy=policy, logs=logs, tags=tags, each_time=asked.each_time,
                spread=spread, progress=update,
            )  # fmt: skip
    report.logs = logs
    report.problems[:0] = [problem for log in logs for problem in log.problems]
    if asked.remember and len(logs) == 1 and not logs[0].problems:
        write_file(asked.remember, logs[0].note, 0o644)
    return report


def _held_to_what_is_kept(logs: Sequence[ServedLog], policy: Policy, asked: Asked) -> None:
    """Each checkpoint that somebody kept is held against the log of its name."""
    kept = [*asked.since_files, *([asked.remember] if asked.remember and asked.remember.exists() else [])]
    for file in kept:
        note = read_file(file, limit_bytes=MAX_NOTE_BYTES)
        origin = note.partition(b"\n")[0].decode("utf-8", "replace")
        log = next((log for log in logs if log.origin == origin), None)
        if log is None:
            raise BadEvidence(f"{file}: is a checkpoint of another log than those given", code="foreign_log")
        try:
            log.problems += held_to_older(log, note, policy)
        except BadEvidence as error:
            raise BadEvidence(f"{file}: {error}", code=error.code) from error


def spread(work: Callable[[T], R], batches: Iterable[T]) -> Iterator[R]:
    """As `map`, on all cores this process may use."""
    return in_order(work, batches, count=min(cores(), MOST_WORKERS))


def show(report: Report) -> None:
    """The report as text: a line for each host, the first problems, one line of summary."""
    for log in report.logs:
        said = log.as_document()
        words = ("size", "entries"), ("keys", "key(s)"), ("cosignatures", "cosignature(s)"), ("tokens", "time stamp(s)")
        text = ", ".join(f"{said[name]} {word}" for name, word in words)
        gone = f"; entries below {log.book.first} were destroyed, their hashes are there" if log.book.first else ""
        click.echo(printable(f"log {log.origin}: {text}{gone}"))
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
    for chain in report.chains:
        if chain.shed is not None:
            text = (
                f"{chain.host}: records up to {_place(chain.shed)} may be absent: let go under a receipt that verified"
            )
            click.echo(printable(text))
    show_times(report.times, always=bool(report.logs))
    for problem in report.problems[:SHOWN]:
        click.echo(printable(f"{problem.code}: {problem.where}" + (f": {problem.detail}" if problem.detail else "")))
    if len(report.problems) > SHOWN:
        click.echo(f"... and {len(report.problems) - SHOWN} more; --json shows all")
    if report.chains or report.found:
        verdict = "every chain is whole" if report.ok else f"{len(report.problems)} problem(s)"
        click.echo(f"{report.verified} of {report.found} bundles of {len(report.chains)} host(s) verified; {verdict}")
    else:
        click.echo("nothing is wrong with the log" if report.ok else f"{len(report.problems)} problem(s)")
    if report.receipts_unchecked:
        click.echo(f"note: {report.receipts_unchecked} receipt(s) not checked; --log-key takes the log's key", err=True)
    unchecked = sum(log.said.tokens_unchecked for log in report.logs)
    if unchecked:
        click.echo(
            f"note: {unchecked} time stamp(s) not checked; --tsa-ca takes the authority's certificates", err=True
        )
    if report.keys_beside_evidence and report.found:
        click.echo(
            "note: the public keys stood beside the evidence; --key takes ones from a source you trust", err=True
        )


def _place(place: tuple[int, int]) -> str:
    return f"{place[0]}/{place[1]}"
