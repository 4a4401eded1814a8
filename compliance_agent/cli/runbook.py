"""`compliance-agent runbook lint|list|show|sign`: what is done about a finding, as data that people can read before it counts."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from compliance_agent import crypto
from compliance_agent.adapters.durable import read_file
from compliance_agent.baseline import signature_path
from compliance_agent.checks import registry
from compliance_agent.cli import Suggesting
from compliance_agent.cli.baseline import signed_by_key
from compliance_agent.cli.common import PATH, json_option, print_json, table
from compliance_agent.errors import ConfigError, NoInput
from compliance_agent.remedies import actions
from compliance_agent.runbook import MAX_BYTES, Cure, ForPeople, Runbook, named, shipped
from compliance_agent.runbook_lint import REMARKS, remarks_on
from compliance_agent.words import nearest

directory_option = click.option(
    "--dir", "directory", type=PATH, help="A directory of runbooks of your own, in place of the shipped ones."
)
public_option = click.option(
    "--key", "public_path", type=PATH, help="Public key (PEM) that must have signed each of them (FILE.sig)."
)


@click.group(cls=Suggesting)
def command() -> None:
    """Look at runbooks: lint, list, show, sign."""


@command.command()
@directory_option
@public_option
@json_option
@click.pass_context
def lint(ctx: click.Context, directory: Path | None, public_path: Path | None, as_json: bool) -> None:
    """Hold runbooks against the checks and the table of actions.

    Exit status 0 without remarks, 1 with some, 78 when one cannot be used: one line names the field.
    """
    found = _runbooks(directory, public_path)
    remarks = list(remarks_on(found, registry(), actions()))
    if as_json:
        said = [{"code": code, "where": where, "text": REMARKS[code]} for code, where in remarks]
        print_json({"schema": "compliance-agent/runbook-lint/v1", "runbooks": len(found), "remarks": said})
    else:
        for code, where in remarks:
            click.echo(f"{where}: {REMARKS[code]} ({code})")
        click.echo(f"{len(found)} runbooks, {len(remarks)} remark(s)")
    ctx.exit(1 if remarks else 0)


@command.command("list")
@directory_option
@public_option
@json_option
def list_(directory: Path | None, public_path: Path | None, as_json: bool) -> None:
    """List runbooks: what each is about, and by when the finding must have ended."""
    found = _runbooks(directory, public_path)
    if as_json:
        listed = [_head(book) for book in found.values()]
        print_json({"schema": "compliance-agent/runbooks/v1", "runbooks": listed})
        return
    rows = [
        [book.id, book.version, ", ".join(book.checks), str(len(book.cures)), f"{book.sla_s // 3600} h", book.name]
        for book in found.values()
    ]
    table(("runbook", "version", "checks", "cures", "within", "about"), rows)


@command.command()
@click.argument("runbook_id")
@directory_option
@public_option
@json_option
def show(runbook_id: str, directory: Path | None, public_path: Path | None, as_json: bool) -> None:
    """Show one runbook: the agent's steps, and what is for people."""
    found = _runbooks(directory, public_path)
    book = found.get(runbook_id)
    if book is None:
        raise click.BadParameter(f"no runbook {runbook_id!r}{nearest(runbook_id, found)}", param_hint="RUNBOOK_ID")
    if as_json:
        parts = {"cures": [_cure(cure) for cure in book.cures], "people": [_people(item) for item in book.people]}
        print_json({"schema": "compliance-agent/runbook/v1", **_head(book), **parts})
        return
    click.echo(f"{book.id} {book.version}, SHA-256 {book.sha256}\n{book.name}; within {book.sla_s} s")
    for cure in book.cures:
        click.echo(f"\nthe agent, on {cure.when.check}: {', '.join(cure.when.reasons)}{_disturbs(cure)}")
        for number, step in enumerate(_steps(cure), start=1):
            click.echo(f"  {number}. {step}")
        click.echo(f"  then: {cure.verify} passes, or undo ({cure.undo} can be taken back)")
    for item in book.people:
        about = f"{item.when.check}: {', '.join(item.when.reasons)}" if item.when.check else item.when.code
        click.echo(f"\na person, on {about}\n  {item.do}")


@command.command()
@click.argument("path", type=PATH)
@click.option(
    "--key", "key_path", type=PATH, required=True, help="Private key (Ed25519, PEM, mode 0600); made when absent."
)
def sign(path: Path, key_path: Path) -> None:
    """Sign a runbook that can be used: the signature goes to PATH.sig, as a baseline's does."""
    raw = read_file(path, limit_bytes=MAX_BYTES)
    book = named(path.name, raw)
    signer = signed_by_key(path, raw, key_path)
    click.echo(f"signed runbook {book.id} {book.version} ({book.sha256[:16]}) with key {signer.key_id[:16]}")


def _runbooks(directory: Path | None, public_path: Path | None) -> Mapping[str, Runbook]:
    if directory is None:
        if public_path is not None:
            raise click.UsageError("--key is for --dir: the shipped runbooks are signed with the package")
        return shipped()
    files = sorted(directory.glob("*.yaml"))
    if not files:
        raise NoInput(f"{directory}: holds no runbook", hint="one file for each, named ID.yaml")
    public = None if public_path is None else crypto.read_public_pem(read_file(public_path, limit_bytes=MAX_BYTES))
    found = {}
    for path in files:
        raw = read_file(path, limit_bytes=MAX_BYTES)
        if public is not None:
            _check_signature(path, raw, public)
        book = named(path.name, raw)
        found[book.id] = book
    return found


def _check_signature(path: Path, raw: bytes, public: bytes) -> None:
    try:
        sig = read_file(signature_path(path), limit_bytes=MAX_BYTES)
    except NoInput as error:
        raise ConfigError(
            f"runbook {path.name}: not signed", code="runbook_unsigned", hint="compliance-agent runbook sign"
        ) from error
    if not crypto.verify(public, sig, raw):
        raise ConfigError(
            f"runbook {path.name}: not what key {crypto.key_id(public)[:16]} has signed",
            code="runbook_signature",
            hint="it was changed after it was signed, or signed by another key",
        )


def _head(book: Runbook) -> dict[str, Any]:
    return {
        "id": book.id,
        "version": book.version,
        "sha256": book.sha256,
        "name": book.name,
        "sla_s": book.sla_s,
        "citations": list(book.citations),
        "checks": list(book.checks),
    }


def _cure(cure: Cure) -> dict[str, Any]:
    return {
        "check": cure.when.check,
        "reasons": list(cure.when.reasons),
        "disruptive": cure.disruptive,
        "steps": _steps(cure),
        "verify": cure.verify,
        "undo": cure.undo,
    }


def _people(item: ForPeople) -> dict[str, Any]:
    return {"check": item.when.check, "reasons": list(item.when.reasons), "code": item.when.code, "do": item.do}


def _steps(cure: Cure) -> list[str]:
    table_of = actions()
    said = []
    for step in cure.steps:
        places = {
            name: f"<{given.source} {given.value}>" if given.source != "value" else str(given.value)
            for name, given in step.arguments.items()
        }
        row = table_of.get(step.action)
        words = row.describe(places) if row is not None and row.arguments.keys() == places.keys() else step.action
        said.append(f"{step.action}: {words}{' (for each)' if step.repeated else ''}")
    return said


def _disturbs(cure: Cure) -> str:
    return " (disruptive: in a window, one host of the site at a time)" if cure.disruptive else ""
