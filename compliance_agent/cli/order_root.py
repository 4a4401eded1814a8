"""`compliance-agent order-root`: the offline side of orders: roots, and the lists of order keys that they sign.

Nothing here needs a server or a network. A document is one file that goes round among the holders of the root's keys: each one
looks at it, signs it where the key is, and hands it on. docs/order-roots.md has the ceremony step by step.
"""

from __future__ import annotations

import json
import os
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import click

from compliance_agent import crypto
from compliance_agent.adapters.durable import create_file, read_file, write_file
from compliance_agent.cli.common import PATH, json_option, print_json, table, utc
from compliance_agent.config import LABEL
from compliance_agent.core import envelopes, order_keys, order_roots
from compliance_agent.core.order_roots import KEYS_TYPE, MAX_BYTES, ROOT_TYPE, Holder, Root, Trust
from compliance_agent.documents import read_json
from compliance_agent.errors import BadEvidence, DocumentError, NoInput, NotPermitted
from compliance_agent.log.fields import from_base64, to_base64

SCHEMA = "compliance-agent/order-root-show/v1"
KIND = {ROOT_TYPE: "root", KEYS_TYPE: "keys"}


@click.group("order-root")
def command() -> None:
    """The offline root of orders: make it, sign with it, let a new one follow it."""


@command.command()
@click.argument("path", type=PATH)
@click.option("--name", required=True, help="Of the holder, as the root is to name them.")
def key(path: Path, name: str) -> None:
    """Make one holder's key (or read it), and print its public entry for `init` and `rotate`."""
    signer = crypto.Ed25519Signer(path)
    click.echo(f"key id {signer.key_id}", err=True)
    click.echo(json.dumps({"name": name, "key": to_base64(signer.public_bytes)}))


@command.command()
@click.argument("out", type=PATH)
@click.option("--tenant", required=True, help="The client whose hosts are to be pinned to it (client_id).")
@click.option("--key", "keys", type=PATH, multiple=True, required=True, help="A holder's public entry; once for each.")
@click.option("--threshold", default=2, show_default=True, help="How many of them must sign.")
@click.option("--days", default=1_095, show_default=True, help="Days until it expires.")
def init(out: Path, tenant: str, keys: tuple[Path, ...], threshold: int, days: int) -> None:
    """Write the first root, which nobody has signed yet, to a new file OUT."""
    holders = [_holder(path) for path in keys]
    _new(out, ROOT_TYPE, order_roots.root_payload(1, tenant, _in(days), threshold, holders))


@command.command()
@click.argument("current", type=PATH)
@click.argument("out", type=PATH)
@click.option("--add", "added", type=PATH, multiple=True, help="Public entry of a new holder.")
@click.option("--remove", "removed", multiple=True, metavar="NAME", help="A holder whose key is lost, or who has left.")
@click.option("--threshold", type=int, help="How many must sign from now on; as before when not given.")
@click.option("--days", default=1_095, show_default=True, help="Days until it expires.")
def rotate(
    current: Path, out: Path, added: tuple[Path, ...], removed: tuple[str, ...], threshold: int | None, days: int
) -> None:
    """Write the root that follows CURRENT to a new file OUT. Enough keys of both have to sign it."""
    root = _root(current)
    names = {holder.name for holder in root.keys.values()}
    if unknown := sorted(set(removed) - names):
        raise click.UsageError(
            f"--remove: {', '.join(unknown)} not in root {root.version}, which has {', '.join(names)}"
        )
    holders = [holder for holder in root.keys.values() if holder.name not in removed] + [
        _holder(path) for path in added
    ]
    needed = root.threshold if threshold is None else threshold
    body = order_roots.root_payload(root.version + 1, root.tenant, _in(days), needed, holders)
    _new(out, ROOT_TYPE, body)


@command.command()
@click.argument("root_path", metavar="ROOT", type=PATH)
@click.argument("source", metavar="LIST", type=PATH)
@click.argument("out", type=PATH)
def keys(root_path: Path, source: Path, out: Path) -> None:
    """Write a list of order keys for ROOT's holders to sign to a new file OUT.

    LIST has the form of an `order_keys_file` (docs/orders.md): who may sign which orders, a version above the last one's, and an
    expiry.
    """
    root, raw = _root(root_path), read_file(source, limit_bytes=order_keys.MAX_BYTES)
    listed = order_keys.parse(raw)
    if listed.tenant != root.tenant:
        raise DocumentError(f"{source}: tenant: expected {root.tenant}, found {listed.tenant}", code="trust_tenant")
    if not listed.signers.keys().isdisjoint(root.keys):
        raise DocumentError(f"{source}: names a key of the root, which signs no orders", code="trust_role")
    _new(out, KEYS_TYPE, raw)


@command.command()
@click.argument("path", type=PATH)
@click.option("--key", "key_path", type=PATH, required=True, help="The holder's private key (Ed25519, PEM, mode 0600).")
@click.option("--yes", is_flag=True, help="Do not ask after showing what is signed.")
def sign(path: Path, key_path: Path, yes: bool) -> None:
    """Add one holder's signature to the document PATH, after showing what it says."""
    raw, kind = _read(path)
    if not os.path.lexists(key_path):
        raise NoInput(f"{key_path}: no such key", hint="compliance-agent order-root key FILE --name NAME makes one")
    envelope = _loose(raw, kind)
    signer = crypto.Ed25519Signer(key_path)
    click.echo(json.dumps(json.loads(envelope.payload), indent=1), err=True)
    if not yes:
        click.confirm(f"sign exactly this {KIND[kind]}?", abort=True, err=True)
    signature = signer.sign(crypto.pae(kind, envelope.payload))
    write_file(path, envelopes.write(kind, envelope.payload, {**envelope.signatures, signer.key_id: signature}), 0o644)
    click.echo(f"{path}: {len({*envelope.signatures, signer.key_id})} signatures", err=True)


@command.command()
@click.argument("path", type=PATH)
@click.argument("others", type=PATH, nargs=-1, required=True)
def join(path: Path, others: tuple[Path, ...]) -> None:
    """Bring the signatures of copies of the document PATH, which were signed elsewhere, into PATH."""
    raw, kind = _read(path)
    found = _loose(raw, kind)
    signatures = dict(found.signatures)
    for other in others:
        copy_raw, copy_kind = _read(other)
        copy = _loose(copy_raw, copy_kind)
        if (copy_kind, copy.payload) != (kind, found.payload):
            raise BadEvidence(f"{other}: another document than {path}; nothing was changed", code="trust_unreadable")
        signatures |= copy.signatures
    write_file(path, envelopes.write(kind, found.payload, signatures), 0o644)
    click.echo(f"{path}: {len(signatures)} signatures", err=True)


@command.command()
@click.argument("path", type=PATH)
@click.option(
    "--under", type=PATH, help="The root before it (of a root), or the root that must have signed it (of a list)."
)
@json_option
@click.pass_context
def show(ctx: click.Context, path: Path, under: Path | None, as_json: bool) -> None:
    """Show a document, who has signed it, and whether hosts would take it; exit status 1 when they would not."""
    said = _said(path, under, datetime.now(UTC))
    if as_json:
        print_json({"schema": SCHEMA, **said})
    else:
        _print(said)
    ctx.exit(0 if said["state"] == "good" else 1)


# What the subcommands share


def _said(path: Path, under: Path | None, now: datetime) -> dict[str, Any]:
    raw, kind = _read(path)
    payload = _loose(raw, kind).payload
    former = None if under is None else _root(under)
    if kind == ROOT_TYPE:
        root = order_roots.read_root(payload)
        named = {**(former.keys if former is not None else {}), **root.keys}
        said = {
            "tenant": root.tenant,
            "version": root.version,
            "expires": utc(root.expires),
            "threshold": root.threshold,
        }
        expires, sha256 = root.expires, root.sha256
        listed = [holder.name for holder in root.keys.values()]
        signers = [root, *([former] if former is not None else [])]
    else:
        found = order_keys.parse(payload)
        if former is None:
            raise click.UsageError("--under ROOT: a list of order keys is held to a root")
        named, expires, sha256 = dict(former.keys), found.expires, None
        said = {
            "tenant": found.tenant,
            "version": found.version,
            "expires": utc(found.expires),
            "threshold": former.threshold,
        }
        listed, signers = [signer.name for signer in found.signers.values()], [former]
    good = sorted({named[name].name for root in signers for name in order_roots.signers_of(raw, kind, root)})
    return {
        "kind": KIND[kind], **said, "sha256": sha256, "names": listed, "signed_by": good,
        "state": _state(raw, kind, former, expires, now),
    }  # fmt: skip


def _state(raw: bytes, kind: str, former: Root | None, expires: datetime, now: datetime) -> str:
    try:
        if former is not None:
            order_roots.advance(Trust(former), raw)
        else:
            order_roots.first(raw)
    except DocumentError as error:
        return error.code
    return "expired" if now >= expires else "good"


def _print(said: dict[str, Any]) -> None:
    rows = [[name, ", ".join(value) if isinstance(value, list) else str(value or "")] for name, value in said.items()]
    if said["sha256"]:
        rows.append(["words", crypto.key_words(said["sha256"])])
    table(("of this document", "it says"), rows)


def _read(path: Path) -> tuple[bytes, str]:
    raw = read_file(path, limit_bytes=MAX_BYTES)
    kind = envelopes.payload_type(raw, limit_bytes=MAX_BYTES)
    if kind not in KIND:
        raise DocumentError(f"{path}: neither a root nor a list of order keys", code="trust_unreadable")
    return raw, kind


def _loose(raw: bytes, kind: str) -> envelopes.Envelope:
    """An envelope that may not have been signed yet."""
    return envelopes.read(raw, payload_type=kind, limit_bytes=MAX_BYTES, most=order_roots.MOST_SIGNATURES, least=0)


def _root(path: Path) -> Root:
    raw, kind = _read(path)
    if kind != ROOT_TYPE:
        raise DocumentError(f"{path}: expected a root, found a list of order keys", code="trust_unreadable")
    return order_roots.read_root(_loose(raw, kind).payload)


def _holder(path: Path) -> Holder:
    entry = read_json(read_file(path, limit_bytes=1_024), limit_bytes=1_024, max_depth=2)
    if not isinstance(entry, dict) or not isinstance(entry.get("name"), str) or not isinstance(entry.get("key"), str):
        raise DocumentError(f"{path}: expected what `order-root key` prints", code="trust_unreadable")
    if not LABEL.fullmatch(entry["name"]):
        raise DocumentError(f"{path}: name: expected letters, digits and ._-, at most 63", code="trust_unreadable")
    return Holder(entry["name"], from_base64(entry["key"], f"{path}: key", "trust_unreadable"))


def _in(days: int) -> datetime:
    if not 1 <= days <= 3_660:
        raise click.UsageError("--days: expected 1 to 3660")
    return datetime.now(UTC).replace(microsecond=0) + timedelta(days=days)


def _new(out: Path, kind: str, body: bytes) -> None:
    if not create_file(out, envelopes.write(kind, body, {}), 0o644):
        raise NotPermitted(f"{out}: exists; a document is not written over anything")
    click.echo(f"{out}: written; next: compliance-agent order-root sign {out} --key KEY", err=True)
