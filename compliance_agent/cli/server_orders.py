"""`compliance-agent server order`: draft, approve, sign, list, show and cancel signed orders to hosts; publish who may sign.

Everything but `sign --url` works on the data directory. The key that signs stays where the signer is: `sign --url` fetches what is
to be signed from the server, shows it, signs it here and sends the signature; the key itself goes nowhere.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from compliance_agent import crypto
from compliance_agent.adapters.durable import read_file
from compliance_agent.cli.common import PATH, json_option, print_json, table, utc
from compliance_agent.cli.server_common import data_dir_option, duration, existing, settings_of, with_services
from compliance_agent.core import order_roots, orders
from compliance_agent.core.order_keys import KINDS
from compliance_agent.documents import MAX_BYTES, read_json
from compliance_agent.errors import AgentError, BadReply, DocumentError, NoInput, NotPermitted, ServerRefused
from compliance_agent.log.fields import from_base64, to_base64

if TYPE_CHECKING:
    from compliance_agent.server.desks import Services
    from compliance_agent.server.records import SiteReader, User
    from compliance_agent.server.records.orders import OrderRow

SCHEMA = "compliance-agent/server-orders/v1"
Act = Callable[["Services", "User", "SiteReader"], Awaitable["OrderRow"]]


@click.group("order")
def order() -> None:
    """Signed orders to hosts: draft, approve, sign, list, show, cancel."""


def by_option(function: Callable[..., Any]) -> Callable[..., Any]:
    """`--by NAME`: who does it."""
    return click.option(
        "--by", required=True, metavar="NAME", help="The person who does this, as the server knows them."
    )(function)


@order.command("draft")
@click.argument("kind", type=click.Choice(KINDS))
@click.option("--host", required=True, metavar="KEY_ID", help="The host: 12 or more first characters of its key id.")
@click.option(
    "--check", "checks", multiple=True, help="A check it is about; may be given more than once for kind check."
)
@click.option("--target", help="Of approve: the plan, as `plan --json` shows it.")
@click.option("--baseline", "baseline", metavar="VERSION SHA256", nargs=2, help="Of adopt_baseline: which.")
@click.option(
    "--life", default="15m", show_default=True, help="How long it is good for, from when it is signed: 15m, 24h."
)
@by_option
@json_option
@data_dir_option
@click.pass_context
def draft(
    ctx: click.Context, kind: str, host: str, checks: tuple[str, ...], target: str | None,
    baseline: tuple[str, str] | None, life: str, by: str, as_json: bool,
) -> None:  # fmt: skip
    """Write down what is wanted of one host; nothing happens before it is approved and signed."""
    from compliance_agent.server.services.orders import Wanted

    parameters = _parameters(kind, checks, target, baseline)
    seconds = int(duration(life).total_seconds())

    async def act(services: Services, user: User, reader: SiteReader) -> OrderRow:
        wanted = Wanted(await host_named(reader, host), kind, parameters, seconds)
        return await services.orders.draft(user, reader, wanted)

    _act(ctx, by, as_json, act)


def _parameters(
    kind: str, checks: tuple[str, ...], target: str | None, baseline: tuple[str, str] | None
) -> dict[str, Any]:
    given: dict[str, Any] = {}
    if kind == "check":
        given["checks"] = list(checks)
    elif checks:
        given["check"] = checks[0] if len(checks) == 1 else list(checks)
    if target is not None:
        given["target"] = target
    if baseline is not None:
        given |= {"version": baseline[0], "sha256": baseline[1]}
    if given.keys() != orders.FORMS[kind].parameters.keys():
        wanted = ", ".join(orders.FORMS[kind].parameters) or "no parameters"
        raise click.UsageError(f"{kind}: expected {wanted}, found {', '.join(given) or 'none'}")
    return given


@order.command("approve")
@click.argument("order_id")
@by_option
@json_option
@data_dir_option
@click.pass_context
def approve(ctx: click.Context, order_id: str, by: str, as_json: bool) -> None:
    """Say yes to a draft. Kinds that need two people need two who say so."""
    _act(ctx, by, as_json, lambda services, user, reader: services.orders.approve(user, reader, order_id))


@order.command("cancel")
@click.argument("order_id")
@by_option
@json_option
@data_dir_option
@click.pass_context
def cancel(ctx: click.Context, order_id: str, by: str, as_json: bool) -> None:
    """Forward it no more. What a host has taken already is taken."""
    _act(ctx, by, as_json, lambda services, user, reader: services.orders.cancel(user, reader, order_id))


@order.command("sign")
@click.argument("order_id")
@click.option(
    "--key", "key_path", type=PATH, required=True, help="Private key of the signer (Ed25519, PEM, mode 0600)."
)
@click.option("--cosigner", "cosigners", multiple=True, metavar="KEY_ID", help="Who else is going to sign it.")
@click.option("--by", metavar="NAME", help="The person who does this; not with --url, where the token says it.")
@click.option("--url", help="The server, when the key is on another machine than it, as it should be.")
@click.option("--token-file", type=PATH, help="With --url: file with an operator token.")
@click.option("--ca-file", type=PATH, help="With --url: certificate authority of the server (PEM).")
@click.option("--yes", is_flag=True, help="Do not ask after showing what is signed.")
@json_option
@data_dir_option
@click.pass_context
def sign(
    ctx: click.Context, order_id: str, key_path: Path, cosigners: tuple[str, ...], by: str | None, url: str | None,
    token_file: Path | None, ca_file: Path | None, yes: bool, as_json: bool,
) -> None:  # fmt: skip
    """Sign an approved order. The first signer names the others with --cosigner; each signs the same bytes."""
    there = _there(ctx, by, url, token_file, ca_file)
    if not key_path.exists():
        raise NoInput(f"{key_path}: no such key", hint="compliance-agent server order key FILE makes one")
    signer = crypto.Ed25519Signer(key_path)
    names = sorted({signer.key_id, *cosigners})
    shown = there.show(order_id)
    if shown["payload"] is None or signer.key_id not in shown["signers"]:
        shown = there.prepare(order_id, names)
    body = _checked(shown, order_id)
    _show_payload(body)
    if not yes:
        click.confirm("sign exactly this?", abort=True, err=True)
    say(there.add_signature(order_id, signer.public_bytes, orders.sign(body, signer)), as_json)


@order.command("key")
@click.argument("path", type=PATH)
@click.option("--name", required=True, help="Of the signer, as hosts are to know them.")
def key(path: Path, name: str) -> None:
    """Make a signer's key (or read it), and print its entry for the hosts' order_keys_file."""
    signer = crypto.Ed25519Signer(path)
    click.echo(f"key id {signer.key_id}", err=True)
    click.echo(json.dumps({"name": name, "key": to_base64(signer.public_bytes), "kinds": None}))


@order.command("baseline")
@click.argument("path", type=PATH)
@click.option("--site", required=True, help="The clinic whose hosts may be told to adopt it.")
@by_option
@data_dir_option
@click.pass_context
def baseline(ctx: click.Context, path: Path, site: str, by: str) -> None:
    """Bring a signed baseline (PATH and PATH.sig, as `baseline sign` leaves them); prints what adopt_baseline names."""
    from compliance_agent.baseline import signature_path

    settings = settings_of(ctx)
    existing(settings)
    body = read_file(path, limit_bytes=MAX_BYTES)
    sig = read_file(signature_path(path), limit_bytes=64)

    async def work(services: Services) -> tuple[str, str]:
        user = await person(services, by)
        made = await services.orders.add_baseline(user, await services.users.reader(user), site, body, sig)
        return made.version, made.sha256

    click.echo(" ".join(with_services(settings, work)))


@order.command("publish")
@click.argument("path", type=PATH)
@click.option(
    "--site", "sites", multiple=True, help="A clinic whose hosts are to get it; all of its client's when not given."
)
@click.option(
    "--anew",
    is_flag=True,
    help="A first root in place of all that is published; hosts have to be pinned to it by hand.",
)
@by_option
@data_dir_option
@click.pass_context
def publish(ctx: click.Context, path: Path, sites: tuple[str, ...], anew: bool, by: str) -> None:
    """Carry a root or a list of order keys, signed offline (`compliance-agent order-root`), to hosts."""
    settings = settings_of(ctx)
    existing(settings)
    raw = read_file(path, limit_bytes=order_roots.MAX_BYTES)

    async def work(services: Services) -> list[tuple[str, order_roots.Trust]]:
        user = await person(services, by)
        reader = await services.users.reader(user)
        meant = sites or tuple(site.site_id for site in await reader.site_rows() if site.client_id == _tenant_of(raw))
        return [(site, await services.order_trust.publish(user, reader, site, raw, anew=anew)) for site in meant]

    found = with_services(settings, work)
    if not found:
        raise NoInput(f"{path}: no site of {_tenant_of(raw) or 'any client'} is here", hint="give --site")
    for site, trust in found:
        listed = (
            f"list {trust.keys.version}"
            if trust.keys is not None
            else "no list: publish one that this root's keys sign"
        )
        click.echo(f"{site}: root {trust.root.version} ({trust.root.sha256}), {listed}")


def _tenant_of(raw: bytes) -> str:
    """The client that a document says it is for, to find its sites by; nothing is believed."""
    try:
        payload = read_json(from_base64(str(read_json(raw)["payload"]), "payload", "trust_unreadable"))
        return str(payload["tenant"])
    except (AgentError, KeyError, TypeError):
        return ""


@order.command("list")
@click.option("--host", metavar="KEY_ID", help="Only of this host.")
@json_option
@data_dir_option
@click.pass_context
def list_orders(ctx: click.Context, host: str | None, as_json: bool) -> None:
    """List orders, newest first, at most a hundred."""

    async def look(services: Services) -> list[dict[str, Any]]:
        reader = await whole_reader(services)
        key_id = None if host is None else await host_named(reader, host)
        return [await shown_row(services, reader, row) for row in await reader.orders(key_id)]

    found = with_services(settings_of(ctx), look)
    if as_json:
        print_json({"schema": SCHEMA, "orders": found})
        return
    rows = [
        [item["order_id"], item["kind"], item["key_id"][:16], item["state"],
         f"{item['outcome'] or ''} {item['error'] or ''}".strip(), item["drafted_by"], item["drafted_at"] or ""]
        for item in found
    ]  # fmt: skip
    table(("order", "kind", "host", "state", "ended", "drafted by", "at"), rows)


@order.command("show")
@click.argument("order_id")
@json_option
@data_dir_option
@click.pass_context
def show(ctx: click.Context, order_id: str, as_json: bool) -> None:
    """Show one order: what it asks for, who approved and signed it, how it ended."""
    say(_shown_of(ctx, order_id), as_json)


# What the subcommands share


async def whole_reader(services: Services) -> SiteReader:
    """All that is there, for whoever has the data directory."""
    return services.store.for_sites(await services.store.all_sites())


async def host_named(reader: SiteReader, begins: str) -> str:
    """The one host whose key id begins so.

    Raises:
        NoInput: there is none, or more than one.
    """
    found = [host.key_id for host in await reader.hosts() if host.key_id.startswith(begins) and not host.revoked_at]
    if len(begins) < 12 or len(found) != 1:
        raise NoInput(
            f"--host: {len(found)} hosts have a key that begins so; expected one, by at least 12 characters",
            hint="compliance-agent server hosts",
        )
    return found[0]


def _shown_of(ctx: click.Context, order_id: str) -> dict[str, Any]:
    async def look(services: Services) -> dict[str, Any]:
        reader = await whole_reader(services)
        return await shown_row(services, reader, await services.orders.find(reader, order_id))

    return with_services(settings_of(ctx), look)


async def person(services: Services, by: str) -> User:
    """The person of this name.

    Raises:
        NotPermitted: there is none.
    """
    user = await services.store.user(by)
    if user is None:
        raise NotPermitted(f"--by: no user {by}", hint="compliance-agent server user list")
    return user


def _local(ctx: click.Context, by: str, act: Act) -> dict[str, Any]:
    async def work(services: Services) -> dict[str, Any]:
        user = await person(services, by)
        reader = await services.users.reader(user)
        return await shown_row(services, reader, await act(services, user, reader))

    return with_services(settings_of(ctx), work)


def _act(ctx: click.Context, by: str, as_json: bool, act: Act) -> None:
    say(_local(ctx, by, act), as_json)


async def shown_row(services: Services, reader: SiteReader, row: OrderRow) -> dict[str, Any]:
    """An order with its marks, as `--json` shows it."""
    from compliance_agent.server.services.orders import standing

    marks = await reader.order_marks(row.order_id)
    shown = {name: utc(value) if isinstance(value, datetime) else value for name, value in vars(row).items()}
    return {
        **shown,
        "state": standing(row, services.clock()),
        "parameters": json.loads(row.parameters),
        "signers": row.signers.split(),
        "payload": None if row.payload is None else to_base64(row.payload),
        "envelope": None if row.envelope is None else to_base64(row.envelope),
        "marks": [{"what": mark.what.partition(":")[0], "who": mark.who, "at": utc(mark.at)} for mark in marks],
    }


def say(shown: dict[str, Any], as_json: bool) -> None:
    """Print one order."""
    if as_json:
        print_json({"schema": SCHEMA, "orders": [shown]})
        return
    click.echo(f"order {shown['order_id']}: {shown['kind']} {json.dumps(shown['parameters'], sort_keys=True)}")
    click.echo(
        f"  host {shown['key_id'][:16]} of {shown['site_id']}, {shown['state']}, drafted by {shown['drafted_by']}"
    )
    if shown["expires"]:
        click.echo(f"  good from {shown['not_before']} until {shown['expires']}, number {shown['counter'] or 'none'}")
    for mark in shown["marks"]:
        click.echo(f"  {mark['what']} by {mark['who']} at {mark['at']}")
    if shown["outcome"]:
        click.echo(f"  ended {shown['outcome']} {shown['error'] or ''}".rstrip() + f", evidence {shown['bundle_id']}")


def _checked(shown: dict[str, Any], order_id: str) -> bytes:
    """The payload, when it is what was asked to be signed."""
    try:
        body = from_base64(str(shown["payload"]), "payload", "bad_order")
        found = orders.read_payload(body)
    except AgentError as error:
        raise BadReply(f"order: what is to be signed is not an order: {error}") from error
    said = (shown["order_id"], shown["kind"], shown["key_id"], shown["parameters"])
    if found.order_id != order_id or said != (found.order_id, found.kind, found.host, dict(found.parameters)):
        raise BadReply("order: what is to be signed says something else than the order that is shown")
    return body


def _show_payload(body: bytes) -> None:
    for name, value in sorted(json.loads(body).items()):
        click.echo(f"  {name:16} {json.dumps(value)}", err=True)


def _there(
    ctx: click.Context, by: str | None, url: str | None, token_file: Path | None, ca_file: Path | None
) -> _Here | _Remote:
    if url is None:
        if by is None:
            raise click.UsageError("--by: required without --url")
        existing(settings_of(ctx))
        return _Here(ctx, by)
    if token_file is None:
        raise click.UsageError("--url: needs --token-file")
    return _Remote(url, token_file, ca_file)


class _Here:
    """The orders of the data directory."""

    def __init__(self, ctx: click.Context, by: str) -> None:
        self._ctx, self._by = ctx, by

    def show(self, order_id: str) -> dict[str, Any]:
        """The order."""
        return _shown_of(self._ctx, order_id)

    def prepare(self, order_id: str, signers: list[str]) -> dict[str, Any]:
        """Have the bytes made that these are to sign."""
        return _local(self._ctx, self._by, lambda s, user, reader: s.orders.prepare(user, reader, order_id, signers))

    def add_signature(self, order_id: str, public: bytes, signature: bytes) -> dict[str, Any]:
        """Bring a signature."""
        return _local(
            self._ctx,
            self._by,
            lambda s, user, reader: s.orders.add_signature(user, reader, order_id, public, signature),
        )


class _Remote:
    """The orders of a server elsewhere, with an operator token.

    Raises (each method):
        ServerRefused, Unavailable, BadReply: it was not done, or that cannot be told.
    """

    def __init__(self, url: str, token_file: Path, ca_file: Path | None) -> None:
        self._url, self._ca_file = url.rstrip("/"), ca_file
        raw = read_file(token_file, limit_bytes=1_024, secret=True).decode("ascii", "replace").strip()
        self._headers = {"authorization": f"Bearer {raw}", "content-type": "application/json"}

    def show(self, order_id: str) -> dict[str, Any]:
        """The order."""
        return asyncio.run(self._call("GET", order_id))

    def prepare(self, order_id: str, signers: list[str]) -> dict[str, Any]:
        """Have the bytes made that these are to sign."""
        return asyncio.run(self._call("POST", f"{order_id}/prepare", {"signers": signers}))

    def add_signature(self, order_id: str, public: bytes, signature: bytes) -> dict[str, Any]:
        """Send a signature."""
        sent = {"public_key": to_base64(public), "sig": to_base64(signature)}
        return asyncio.run(self._call("POST", f"{order_id}/signatures", sent))

    async def _call(self, method: str, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        from compliance_agent.transport.http import HttpTransport

        transport = HttpTransport(self._url, ca_file=self._ca_file)
        try:
            raw = b"" if body is None else json.dumps(body).encode()
            reply = await transport.request(method, f"/api/v1/orders/{path}", headers=self._headers, body=raw)
        finally:
            await transport.close()
        try:
            document = read_json(reply.body)
        except DocumentError as error:
            raise BadReply(f"reply to {method} {path}: {error}") from error
        if not isinstance(document, dict):
            raise BadReply(f"reply to {method} {path}: expected an object")
        if reply.status not in {200, 201}:
            code = str(document.get("code", "refused"))
            raise ServerRefused(f"the server refused: {document.get('detail', code)}", code=code, status=reply.status)
        return document
