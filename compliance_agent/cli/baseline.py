"""`compliance-agent baseline lint|show|diff|init|sign|permit`: what a baseline says, whether it can be used, whose word it is."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, BinaryIO

import click

from compliance_agent import permits
from compliance_agent.adapters import runner
from compliance_agent.adapters.clock import SystemClock
from compliance_agent.adapters.durable import read_file, remove_file, write_file
from compliance_agent.adapters.subprocess_host import RealHost
from compliance_agent.baseline import (
    Baseline,
    Entry,
    checked_version,
    load,
    parse,
    signature_path,
    wanted_units,
)
from compliance_agent.checks import registry
from compliance_agent.cli import Suggesting, root_trust
from compliance_agent.cli.common import PATH, config_option, json_option, print_json, shipped_baseline, table
from compliance_agent.cli.places import load_config
from compliance_agent.config import AgentConfig
from compliance_agent.crypto import Ed25519Signer
from compliance_agent.documents import MAX_BYTES
from compliance_agent.errors import AgentError, NoInput
from compliance_agent.heal import approvals
from compliance_agent.heal.permits import MOST_PERMITS_BYTES
from compliance_agent.heal.trouble import Refused
from compliance_agent.logs import configure
from compliance_agent.models import Mode, Result
from compliance_agent.proposal import propose, text_of
from compliance_agent.words import nearest

PERMITS = Path("/etc/msp/permits.json")
LONGEST_EXCEPTION = timedelta(days=366)
SOON = timedelta(days=30)

REMARKS = {
    "all_audit": "mode: audit at the top holds the whole host back: nothing is put back",
    "audit": "only looked at, though there is a cure",
    "not_listed": "not looked at on this host",
    "watched_twice": "another check starts this unit too; each would claim the other's cure",
    "exception_expired": "expired; the check fails again",
    "exception_expires_soon": "expires within 30 days",
    "exception_too_long": "runs for more than a year; review it sooner",
}


@click.group(cls=Suggesting)
def command() -> None:
    """Look at a baseline: lint, show, compare, propose, sign, permit."""


@command.command()
@click.argument("path", required=False, type=PATH)
@config_option
@json_option
@click.pass_context
def lint(ctx: click.Context, path: Path | None, config_path: Path | None, as_json: bool) -> None:
    """Read a baseline whole (PATH, else this host's) and remark on what its author may not have meant.

    Exit status 0 without remarks, 1 with some, 78 when it cannot be used: one line names the field.
    """
    baseline = _baseline(path, config_path)
    remarks = list(remarks_on(baseline, datetime.now(UTC)))
    if as_json:
        found = [{"code": code, "where": where, "text": REMARKS[code]} for code, where in remarks]
        print_json({"schema": "compliance-agent/baseline-lint/v1", "baseline": _named(baseline), "remarks": found})
    else:
        for code, where in remarks:
            click.echo(f"{where}: {REMARKS[code]} ({code})")
        click.echo(f"baseline {baseline.version}: usable, {len(baseline.entries)} checks, {len(remarks)} remark(s)")
    ctx.exit(1 if remarks else 0)


def remarks_on(baseline: Baseline, now: datetime) -> Iterator[tuple[str, str]]:
    """What is usable and may still not be meant: a code of `REMARKS`, and where."""
    if baseline.mode is Mode.AUDIT:
        yield "all_audit", "mode"
    for name, check in registry().items():
        entry = baseline.entries.get(name)
        if entry is None:
            yield "not_listed", f"checks.{name}"
        elif baseline.mode is Mode.ENFORCE and entry.mode is Mode.AUDIT and any(case.heals for case in check.cases):
            yield "audit", f"checks.{name}.mode"
    for fields in wanted_units(baseline.entries, "needed").values():
        if len({field.split(".")[1] for field in fields}) > 1:
            yield "watched_twice", fields[-1]
    for item in baseline.exceptions:
        where = f"exceptions.{item.id}"
        if item.expires <= now:
            yield "exception_expired", where
        elif item.expires <= now + SOON:
            yield "exception_expires_soon", where
        elif item.expires > now + LONGEST_EXCEPTION:
            yield "exception_too_long", where


@command.command()
@click.argument("checks", nargs=-1)
@click.option("--file", "path", type=PATH, help="The baseline file; this host's when not given.")
@config_option
@json_option
def show(checks: tuple[str, ...], path: Path | None, config_path: Path | None, as_json: bool) -> None:
    """Show what a host is held to, defaults included; with CHECKS every parameter of these checks.

    Without a configuration and without --file it is the baseline that comes with the product.
    """
    baseline = _baseline(path, config_path)
    for name in checks:
        if name not in baseline.entries:
            known = nearest(name, baseline.entries)
            raise click.BadParameter(f"no check {name!r} in the baseline{known}", param_hint="CHECKS")
    entries = [entry for name, entry in baseline.entries.items() if not checks or name in checks]
    if as_json:
        shown = [_entry(baseline, entry) for entry in entries]
        print_json({"schema": "compliance-agent/baseline/v1", "baseline": _named(baseline), "checks": shown})
        return
    click.echo(f"baseline {baseline.version}, SHA-256 {baseline.sha256}")
    rows = [
        [e.check.id, str(baseline.mode_of(e.check.id)), f"{e.interval_s} s", f"{e.deadline_s} s", _primary(e)]
        for e in entries
    ]
    table(("check", "mode", "every", "given up after", "for"), rows)
    for entry in entries if checks else ():
        click.echo(f"\n{entry.check.id}: {entry.check.spec.title}")
        table(("parameter", "value", "default", "meaning"), [list(row) for row in _parameters(entry)])


@command.command()
@click.argument("old", type=PATH)
@click.argument("new", type=PATH)
@json_option
@click.pass_context
def diff(ctx: click.Context, old: Path, new: Path, as_json: bool) -> None:
    """Compare two baselines by what they mean, defaults included. Exit status 0 when they ask for the same, 1 otherwise."""
    before, after = (parse(read_file(path, limit_bytes=MAX_BYTES)) for path in (old, new))
    changes = list(differences(before, after))
    if as_json:
        found = [{"where": where, "old": was, "new": becomes} for where, was, becomes in changes]
        ends = {"old": _named(before), "new": _named(after)}
        print_json({"schema": "compliance-agent/baseline-diff/v1", **ends, "changes": found})
    else:
        for where, was, becomes in changes:
            click.echo(f"{where}: {_text(was)} -> {_text(becomes)}")
        if not changes:
            click.echo(f"{before.version} and {after.version} ask for the same")
    ctx.exit(1 if changes else 0)


def differences(before: Baseline, after: Baseline) -> Iterator[tuple[str, Any, Any]]:
    """Where two baselines ask for something else, with both values; None where one of them says nothing."""
    old, new = _flat(before), _flat(after)
    for where in sorted(old.keys() | new.keys()):
        if old.get(where) != new.get(where):
            yield where, old.get(where), new.get(where)


@command.command()
@click.argument("out", required=False, type=PATH)
@click.option("--version", "version", metavar="VERSION", help="Of the new baseline; today's date when not given.")
@click.option("--force", is_flag=True, help="Write over OUT.")
@json_option
@click.pass_context
def init(ctx: click.Context, out: Path | None, version: str | None, force: bool, as_json: bool) -> None:
    """Propose a baseline from this host, which should be well, to OUT or to standard output; nothing is changed.

    What passes is enforced as in the shipped baseline; what fails or could not be told is only looked at, with the reason beside
    it. Run as root, else much cannot be told. Exit status 0 when everything passes, 1 otherwise.
    """
    configure("CRITICAL")
    now = datetime.now(UTC)
    version = checked_version(f"{now:%Y.%m.%d}" if version is None else version)
    if out is not None and out.exists() and not force:
        raise click.UsageError(f"{out} is there already; --force writes over it")
    base = load(shipped_baseline(), trusted=False)
    proposed = runner.run(propose(base, RealHost(), SystemClock()))
    text = text_of(proposed, version, f"{now:%Y-%m-%dT%H:%M:%SZ}")
    made = parse(text.encode())
    if out is not None:
        write_file(out, text.encode(), 0o644)
    lacking = [item for item in proposed if item.entry.mode is Mode.AUDIT or item.result.result is not Result.PASS]
    if as_json:
        found = [
            {
                "check": item.entry.check.id, "mode": str(item.entry.mode), "result": str(item.result.result),
                "reason": item.result.reason, "from_host": list(item.seen), "not_told": item.untold or None,
            }
            for item in proposed
        ]  # fmt: skip
        print_json({"schema": "compliance-agent/baseline-init/v1", "baseline": _named(made), "checks": found})
    elif out is None:
        click.echo(text, nl=False)
    else:
        rows = [
            [item.entry.check.id, str(item.result.result), str(item.entry.mode), ", ".join(item.seen)]
            for item in proposed
        ]
        table(("check", "now", "proposed", "taken from this host"), rows)
        click.echo(f"wrote {out}: read it, then compliance-agent baseline lint {out}")
    ctx.exit(1 if any(item.result.result is not Result.PASS or item.untold for item in lacking) else 0)


@command.command()
@click.argument("path", type=PATH)
@click.option(
    "--key", "key_path", type=PATH, required=True, help="Private key (Ed25519, PEM, mode 0600); made when absent."
)
def sign(path: Path, key_path: Path) -> None:
    """Sign a baseline that can be used: the signature goes to PATH.sig, and `openssl pkeyutl -rawin` verifies it.

    Hosts whose `baseline_key_file` is the public half take no other baseline. Keep the key off the hosts.
    """
    raw = read_file(path, limit_bytes=MAX_BYTES)
    baseline = parse(raw)
    signer = signed_by_key(path, raw, key_path)
    click.echo(f"signed baseline {baseline.version} ({baseline.sha256[:16]}) with key {signer.key_id[:16]}")


def signed_by_key(path: Path, raw: bytes, key_path: Path) -> Ed25519Signer:
    """Write the signature of a file's bytes beside it; the key, which is made with its public half when it is not there."""
    fresh = not key_path.exists()
    signer = Ed25519Signer(key_path)
    public = key_path.with_name(f"{key_path.stem}.pub.pem")
    if fresh:
        write_file(public, signer.public_pem().encode(), 0o644)
        click.echo(f"made a key: {key_path}; its public half for the hosts: {public}", err=True)
    write_file(signature_path(path), signer.sign(raw), 0o644)
    return signer


@command.command()
@click.argument("out", required=False, type=PATH, default=PERMITS)
@click.option(
    "--made-of", type=click.File("rb"), metavar="BASELINE", help="Of these bytes alone (- for standard input)."
)
@config_option
def permit(out: Path, made_of: BinaryIO | None, config_path: Path | None) -> None:
    """Write what the root side may do under the host's baseline to OUT, or to /etc/msp/permits.json.

    Run it as root, after each change of the baseline, of the key that signs it, and of whose orders count: it also writes
    adopt.json beside OUT, which says whose orders root takes. Where the configuration says approval_for_disruptive it makes
    approvals.json there, and from then on the root side waits for people's approval of what users would notice.

    Only what the baseline enforces is permitted. The root side takes the files only when they are root's, in directories of root's.
    With --made-of nothing but the permissions is written, and OUT may be - for standard output.
    """
    if made_of is not None:
        content = permits.written(parse(made_of.read(MAX_BYTES + 1)))
        if out == Path("-"):
            sys.stdout.buffer.write(content)
        else:
            write_file(out, content, 0o644)
        return
    baseline = _baseline(None, config_path)
    write_file(out, permits.written(baseline), 0o644)
    found = permits.permits_of(baseline)
    click.echo(
        f"permitted under baseline {baseline.version} ({baseline.sha256[:16]}): {len(found['units'])} units, "
        f"{len(found['files'])} files, {len(found['modes'])} modes, {', '.join(found['may']) or 'nothing else'}"
    )
    config = load_config(config_path)
    click.echo(_write_trust(config, out.with_name(root_trust.FILE_NAME)))
    click.echo(_write_approvals(config, out.with_name(root_trust.APPROVALS_NAME)))


def _write_trust(config: AgentConfig | None, path: Path) -> str:
    """Write whose orders for a baseline root takes, or take that back; what was done, in a sentence."""
    try:
        content, by = root_trust.made(config)
    except NoInput as error:
        remove_file(path)
        return f"root takes no baseline by order: {error}"
    write_file(path, content, 0o644)
    what = (
        "a baseline" if config is not None and config.baseline_key_file is not None else "approvals, and no baseline,"
    )
    return f"root takes {what} by order under {by}"


def _write_approvals(config: AgentConfig | None, path: Path) -> str:
    """Have root wait for approvals, or no longer; what was done, in a sentence. What was approved stays."""
    if config is None or not config.approval_for_disruptive:
        remove_file(path)
        return "root waits for no approval of what users would notice: approval_for_disruptive is not set"
    try:
        approvals.read(read_file(path, limit_bytes=MOST_PERMITS_BYTES))
    except (AgentError, Refused):
        write_file(path, permits.APPROVALS, 0o644)
    return "root waits for people's approval of what users would notice"


def _baseline(path: Path | None, config_path: Path | None) -> Baseline:
    if path is not None:
        return load(path)
    config: AgentConfig | None = load_config(config_path)
    if config is None:
        return load(shipped_baseline(), trusted=False)
    return load(config.baseline_path, signed_by=config.baseline_key_file)


def _named(baseline: Baseline) -> dict[str, str]:
    return {"version": baseline.version, "sha256": baseline.sha256, "mode": str(baseline.mode)}


def _entry(baseline: Baseline, entry: Entry) -> dict[str, Any]:
    return {
        "check": entry.check.id,
        "mode": str(baseline.mode_of(entry.check.id)),
        "interval_s": entry.interval_s,
        "deadline_s": entry.deadline_s,
        "citations": [citation.section for citation in entry.check.spec.citations],
        "parameters": _values(entry.parameters),
    }


def _values(parameters: Any) -> dict[str, Any]:
    return {
        field.name: list(value) if isinstance(value := getattr(parameters, field.name), tuple) else value
        for field in dataclasses.fields(parameters)
    }


def _parameters(entry: Entry) -> Iterator[tuple[str, str, str, str]]:
    for field in dataclasses.fields(entry.parameters):
        required = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        default = field.default if field.default is not dataclasses.MISSING else ()
        yield (
            field.name,
            _text(getattr(entry.parameters, field.name)),
            "required" if required else _text(default),
            field.metadata["doc"],
        )


def _flat(baseline: Baseline) -> Mapping[str, Any]:
    flat: dict[str, Any] = {"version": baseline.version, "mode": str(baseline.mode)}
    for name, entry in baseline.entries.items():
        at = f"checks.{name}"
        flat[f"{at}.mode"] = str(entry.mode)
        flat[f"{at}.interval_s"], flat[f"{at}.deadline_s"] = entry.interval_s, entry.deadline_s
        flat.update({f"{at}.parameters.{key}": value for key, value in _values(entry.parameters).items()})
    for item in baseline.exceptions:
        flat[f"exceptions.{item.id}"] = [item.check, *item.reasons, item.approver, f"{item.expires:%Y-%m-%dT%H:%M:%SZ}"]
    return flat


def _primary(entry: Entry) -> str:
    return next(citation.section for citation in entry.check.spec.citations if citation.primary)


def _text(value: Any) -> str:
    if isinstance(value, list | tuple):
        return ", ".join(map(str, value)) or "none"
    return "nothing" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
