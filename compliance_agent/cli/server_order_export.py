"""`compliance-agent server order export`: a site's signed orders as files, for whoever holds a packet or the hosts' records.

    orders/<sha256>.json    the exact envelope; a record of kind `order` names that SHA-256
    trust/root-<n>.json     every root, and trust/keys-<n>.json every list of order keys, as they were signed
    keys/<key id>.pem       the public keys that these name
    index.json              who approved and signed each order, and which record says how it ended

The files can be checked with openssl alone (docs/orders.md). What a person approved is this server's word; what was signed is not.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from compliance_agent import crypto
from compliance_agent.adapters.durable import create_file, make_directory
from compliance_agent.cli.common import PATH, json_option, print_json, utc
from compliance_agent.cli.server_common import data_dir_option, existing, settings_of, with_services
from compliance_agent.cli.server_orders import shown_row
from compliance_agent.core import envelopes, order_keys, order_roots
from compliance_agent.errors import NoInput, NotPermitted

if TYPE_CHECKING:
    from compliance_agent.server.desks import Services
    from compliance_agent.server.records.orders import TrustDocument

SCHEMA = "compliance-agent/order-export/v1"
MOST = 200  # orders of one host that are read
TOLD = ("order_id", "kind", "key_id", "parameters", "state", "drafted_by", "drafted_at", "signers", "marks", "sha256",
        "outcome", "error", "bundle_id")  # fmt: skip


@click.command("export")
@click.argument("out", type=PATH)
@click.option("--site", required=True, help="The clinic.")
@json_option
@data_dir_option
@click.pass_context
def export(ctx: click.Context, out: Path, site: str, as_json: bool) -> None:
    """Write a site's signed orders, and the documents that say who could sign them, to a new directory OUT.

    Exit status 1 when a host has had more orders than are read; they are the newest ones then.
    """
    settings = settings_of(ctx)
    existing(settings)
    if out.exists():
        raise NotPermitted(f"{out}: exists; an export is not written over anything")
    files, index = with_services(settings, lambda services: _found(services, site))
    for name, content in files.items():
        make_directory((out / name).parent)
        create_file(out / name, content, 0o644)
    document = {"schema": SCHEMA, "site_id": site, **index}
    create_file(out / "index.json", (json.dumps(document, indent=1, sort_keys=True) + "\n").encode(), 0o644)
    if as_json:
        print_json(document)
    else:
        click.echo(f"{out}: {len(index['orders'])} orders, {len(files)} files and index.json")
    ctx.exit(0 if index["complete"] else 1)


async def _found(services: Services, site: str) -> tuple[dict[str, bytes], dict[str, Any]]:
    reader = services.store.for_sites({site})
    if not await reader.site_rows():
        raise NoInput(f"--site: no site {site}", hint="compliance-agent server hosts")
    files: dict[str, bytes] = {}
    orders: list[dict[str, Any]] = []
    complete = True
    for host in sorted(await reader.hosts(), key=lambda host: host.key_id):
        rows = await reader.orders(host.key_id, MOST)
        complete = complete and len(rows) < MOST
        for row in rows:
            shown = await shown_row(services, reader, row)
            orders.append({name: shown[name] for name in TOLD})
            if row.envelope is not None and row.sha256 is not None:
                files[f"orders/{row.sha256}.json"] = row.envelope
    trust = await services.order_trust.documents(site)
    for item in trust:
        files[f"trust/{item.role}-{item.version}.json"] = item.envelope
        files |= {f"keys/{name}.pem": crypto.public_pem(raw).encode() for name, raw in _named(item).items()}
    documents = [{"role": item.role, "version": item.version, "added_at": utc(item.added_at)} for item in trust]
    ordered = sorted(orders, key=lambda item: (item["drafted_at"], item["order_id"]))
    return dict(sorted(files.items())), {"orders": ordered, "trust": documents, "complete": complete}


def _named(item: TrustDocument) -> dict[str, bytes]:
    """The public keys that a document names, by key id."""
    kind = order_roots.ROOT_TYPE if item.role == "root" else order_roots.KEYS_TYPE
    limits = {"limit_bytes": order_roots.MAX_BYTES, "most": order_roots.MOST_SIGNATURES}
    payload = envelopes.read(item.envelope, payload_type=kind, **limits).payload
    if item.role == "root":
        return {name: holder.public for name, holder in order_roots.read_root(payload).keys.items()}
    return {name: signer.public for name, signer in order_keys.parse(payload).signers.items()}
