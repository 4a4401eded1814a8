"""Orders on a host in three processes, as root takes them: a baseline, which nobody but root may write; and approvals."""

from __future__ import annotations

import hashlib
import json
import shlex
import sqlite3
from collections.abc import Callable
from contextlib import closing
from datetime import UTC, datetime, timedelta
from typing import Any

import yaml

from compliance_agent import crypto
from compliance_agent.core import order_keys, orders
from compliance_agent.core.orders import Order
from compliance_agent.crypto import Ed25519Signer
from compliance_agent.entries.rotation import statement
from compliance_agent.lab.real.cut_off import copied
from compliance_agent.lab.real.host import Host
from compliance_agent.lab.real.network import SITE
from compliance_agent.lab.real.shell import until
from compliance_agent.lab.real.step import NotSo
from compliance_agent.log.fields import to_base64

ETC = "etc/msp"
PEOPLE = ("anna", "ben")
SETTINGS = "baseline_key_file: /etc/msp/baseline.pub.pem\norder_keys_file: /etc/msp/order-keys.json\n"
# What the agent does, as its user: a nonce; or an order, an approval alone, and others with a baseline. Says how it was answered.
ASK = """
import asyncio, base64, json, pathlib, sys
from compliance_agent.adapters.adopt_root import AdoptRoot
from compliance_agent.errors import ConfigError
root = AdoptRoot(pathlib.Path("/run/compliance-agent/adopt.sock"))
if len(sys.argv) == 1:
    print(root.nonce())
else:
    order, *with_it = map(base64.b64decode, json.loads(pathlib.Path(sys.argv[1]).read_text()))
    try:
        if with_it:
            asyncio.run(root.take(order, ((), None), *with_it))
            print("taken")
        else:
            print("noted" if asyncio.run(root.approve(order, ((), None))) else "not_asked")
    except ConfigError as error:
        print(error.code)
"""
# Brings root a rotation.
FOLLOW = """
import base64, json, pathlib, sys
from compliance_agent.adapters.adopt_root import AdoptRoot
from compliance_agent.errors import ConfigError
try:
    print(AdoptRoot(pathlib.Path("/run/compliance-agent/adopt.sock")).follow(
        *map(base64.b64decode, json.loads(pathlib.Path(sys.argv[1]).read_text()))))
except ConfigError as error:
    print(error.code)
"""
FOLLOWS_S = 60.0
Signers = dict[str, Ed25519Signer]


def ordered(host: Host, as_run: str) -> bool:
    """Refused: signed by one, other bytes, a second time. Taken: the file, its signature and what heal may do, together."""
    etc, machine = host.machine.root / ETC, host.machine
    keys = _keys(host)
    present = (etc / "baseline.yaml").read_bytes()
    document = yaml.safe_load(present)
    document["version"] = f"{document['version']}.1"
    newer = yaml.safe_dump(document).encode()
    _trust(host, keys, present)
    written = machine.run(f"{as_run} sh -c 'echo >> /etc/msp/baseline.yaml'")
    nonce = _ask(host, as_run)

    def take(number: int, by: tuple[str, ...] = PEOPLE, body: bytes = newer) -> str:
        return _ask(host, as_run, _brought(host, keys, nonce, number, newer, body, by))

    said = take(1, ("anna",)), take(2, body=newer + b"\n"), take(3), take(3)
    permits = json.loads((etc / "permits.json").read_text("utf-8"))
    whole = (etc / "baseline.yaml").read_bytes() == newer and (etc / "baseline.yaml.sig").read_bytes() == keys[
        "baseline"
    ].sign(newer)
    machine.must("systemctl restart compliance-agent-run", timeout_s=120)
    return (
        written.returncode != 0
        and said == ("too_few_signers", "other_baseline", "taken", "replayed")
        and whole
        and permits["baseline"] == hashlib.sha256(newer).hexdigest()
    )


def _trust(host: Host, keys: Signers, present: bytes) -> None:
    """As root: whose baselines and whose orders count here, and what follows for the root side."""
    etc = host.machine.root / ETC
    signers = [{"name": name, "key": to_base64(keys[name].public_bytes), "kinds": None} for name in PEOPLE]
    until = datetime.now(UTC) + timedelta(days=1)
    listed: dict[str, Any] = {
        "schema": order_keys.SCHEMA, "version": 1, "tenant": "lab", "expires": f"{until:%Y-%m-%dT%H:%M:%SZ}",
        "signers": signers, "thresholds": {},
    }  # fmt: skip
    (etc / "order-keys.json").write_text(json.dumps(listed), "utf-8")
    (etc / "baseline.pub.pem").write_text(keys["baseline"].public_pem(), "utf-8")
    (etc / "baseline.yaml.sig").write_bytes(keys["baseline"].sign(present))
    with (etc / "agent.yaml").open("a", encoding="utf-8") as file:
        file.write(SETTINGS)
    host.machine.must("compliance-agent baseline permit")
    host.machine.must("systemctl restart compliance-agent-run", timeout_s=120)


def rekeyed(host: Host, as_run: str) -> bool:
    """This host's key gives way while everything runs. Before, whoever owns the agent's user has root follow no key of theirs;
    after, root follows by itself: an order under the new key is taken, one under the former refused, and the statement leads
    nowhere more.
    """
    etc, machine, keys = host.machine.root / ETC, host.machine, _keys(host)
    former, nonce, old = host.keep_key(), _ask(host, as_run), _public(host, as_run)
    mallory = Ed25519Signer(machine.directory / "order-keys" / "mallory.pem")
    said = statement(
        old, mallory.public_bytes, site_id=SITE, host_id=host.name, head=(99, 1, "0" * 64), at="2026-11-01T00:00:00Z"
    )
    stolen = [_follow(host, as_run, said, old, mallory.sign(said), mallory.sign(said))]
    stolen += [_follow(host, as_run, said, mallory.public_bytes, mallory.sign(said), mallory.sign(said))]
    machine.must("compliance-agent keys rotate")

    def known() -> str:
        return str(json.loads((etc / "adopt.json").read_text("utf-8"))["host"])

    until(lambda: known() != former, FOLLOWS_S)
    present = host.keep_key()
    document = yaml.safe_load((etc / "baseline.yaml").read_bytes())
    document["version"] = f"{document['version']}.1"
    newer = yaml.safe_dump(document).encode()

    def take(number: int, **named: str) -> str:
        return _ask(host, as_run, _brought(host, keys, nonce, number, newer, newer, PEOPLE, **named))

    found = {
        "stolen": stolen, "known": known() == present != former, "by_former": take(8, host=former), "by_present": take(9),
        "again": _follow(host, as_run, *_last_statement(host)), "adopted": (etc / "baseline.yaml").read_bytes() == newer,
    }  # fmt: skip
    machine.must("systemctl restart compliance-agent-run", timeout_s=120)
    wanted = {
        "stolen": ["bad_rotation", "bad_rotation"], "known": True, "by_former": "other_host", "by_present": "taken",
        "again": "other_host", "adopted": True,
    }  # fmt: skip
    if found != wanted:
        raise NotSo(f"{found}")
    return True


def _public(host: Host, as_run: str) -> bytes:
    return crypto.read_public_pem(host.machine.must(f"{as_run} compliance-agent config public-key").encode("ascii"))


def _follow(host: Host, as_run: str, said: bytes, old: bytes, old_sig: bytes, new_sig: bytes) -> str:
    """What root answers the agent's user who brings a rotation: the key that it knows then, or why not."""
    brought = json.dumps([to_base64(part) for part in (said, old, old_sig, new_sig)])
    return _as_agent(host, as_run, FOLLOW, brought.encode())


def _last_statement(host: Host) -> tuple[bytes, bytes, bytes, bytes]:
    """Of this host's last rotation, as its database has it."""
    with closing(sqlite3.connect(copied(host))) as connection:
        last = connection.execute(
            "SELECT statement, public, old_sig, new_sig FROM former_keys ORDER BY rowid DESC"
        ).fetchone()
    said, old, old_sig, new_sig = map(bytes, last)
    return said, old, old_sig, new_sig


def approved(host: Host, as_run: str, heal: Callable[[str], str]) -> bool:
    """Root waits for people from here on: the agent's word is refused, as is one signature; with two it is for one cure, also after
    the root side was killed. Then it waits for nobody again.

    Args:
        host: it takes orders by now (`ordered`).
        as_run: how a command is run as the agent's user.
        heal: asks the root side, in this cure, for something that users would notice; how it was answered.
    """
    keys, machine = _keys(host), host.machine
    agent = host.machine.root / ETC / "agent.yaml"
    before = agent.read_text("utf-8")
    agent.write_text(f"{before}approval_for_disruptive: true\n", "utf-8")
    machine.must("compliance-agent baseline permit")
    nonce = _ask(host, as_run)
    plan = {"check": "patching", "target": "half_installed_1"}

    def approve(number: int, by: tuple[str, ...] = PEOPLE, **changes: Any) -> str:
        envelope = _signed(host, keys, by, kind="approve", counter=number, nonce=nonce, parameters=plan, **changes)
        return _ask(host, as_run, json.dumps([to_base64(envelope)]).encode())

    said = [
        heal("lab-a"),
        approve(11, ("anna",)),
        approve(12, host="0" * 64),
        heal("lab-a"),
        approve(13),
        heal("lab-a"),
    ]
    machine.must("systemctl kill --signal=KILL compliance-agent-heal")
    said += [heal("lab-b"), heal("lab-a"), approve(13)]
    agent.write_text(before, "utf-8")
    machine.must("compliance-agent baseline permit")
    said += [heal("lab-b")]
    missing, used = "refused approval_missing", "refused approval_used"
    return said == [
        missing, "too_few_signers", "other_host", missing, "noted", "done 0", used, "done 0", "replayed", "done 0",
    ]  # fmt: skip


def _keys(host: Host) -> Signers:
    directory = host.machine.directory / "order-keys"
    return {name: Ed25519Signer(directory / f"{name}.pem") for name in (*PEOPLE, "baseline")}


def _brought(
    host: Host, keys: Signers, nonce: str, number: int, named: bytes, body: bytes, by: tuple[str, ...], /, **more: str
) -> bytes:
    """An order for `named`, signed by these, with a baseline."""
    wanted = {"version": yaml.safe_load(named)["version"], "sha256": hashlib.sha256(named).hexdigest()}
    envelope = _signed(host, keys, by, kind="adopt_baseline", counter=number, nonce=nonce, parameters=wanted, **more)
    return json.dumps([to_base64(raw) for raw in (envelope, body, keys["baseline"].sign(body))]).encode()


def _signed(on: Host, keys: Signers, by: tuple[str, ...], **fields: Any) -> bytes:
    """An order to this host under its baseline, signed by these."""
    etc, now = on.machine.root / ETC, datetime.now(UTC).replace(microsecond=0)
    usual: dict[str, Any] = {
        "order_id": f"{fields['counter']:032x}", "tenant": "lab", "site": SITE,
        "host": json.loads((etc / "adopt.json").read_text("utf-8"))["host"],
        "baseline_sha256": json.loads((etc / "permits.json").read_text("utf-8"))["baseline"],
        "not_before": now, "expires": now + timedelta(minutes=15), "signers": tuple(keys[name].key_id for name in by),
    }  # fmt: skip
    payload = orders.payload(Order(**(usual | fields)))
    message = crypto.pae(orders.TYPE, payload)
    return orders.envelope(payload, {keys[name].key_id: keys[name].sign(message) for name in by})


def _ask(host: Host, as_run: str, brought: bytes = b"") -> str:
    return _as_agent(host, as_run, ASK, brought)


def _as_agent(host: Host, as_run: str, program: str, brought: bytes) -> str:
    words = ""
    if brought:
        (host.machine.root / ETC / "brought.json").write_bytes(brought)
        words = f"/{ETC}/brought.json"
    asked = f"{as_run} /usr/lib/compliance-agent/bin/python3 -I -c {shlex.quote(program)} {words}"
    return host.machine.sh(asked).strip().splitlines()[-1]
