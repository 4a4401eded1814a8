"""An order: what people ask of one host, signed. Accepted, or refused with a stable reason. Pure: bytes in, a decision out.

    {"payloadType": TYPE, "payload": "<base64>", "signatures": [{"keyid": "<key id>", "sig": "<base64>"}]}

The exact payload bytes are signed with their type (DSSE), so nothing depends on how JSON is spelt. The payload is for one host, is
bound to a nonce that this host gave and to its counter, and expires; there is no "run this command", only the kinds of `KINDS` with
their typed parameters. Whatever is not exactly as described is refused, and a refusal uses up nothing: a bad copy of a good order
does not stop the good one.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

from compliance_agent import crypto
from compliance_agent.core import envelopes
from compliance_agent.core.envelopes import Envelope
from compliance_agent.core.order_keys import KINDS, MOST_SIGNATURES, OrderKeys
from compliance_agent.dataclass import dataclass
from compliance_agent.documents import read_json
from compliance_agent.errors import DocumentError
from compliance_agent.evidence.canonical import canonical
from compliance_agent.facts import LARGEST_INT, NAME, SHA256, TOKEN, VERSION, is_timestamp

TYPE = "application/vnd.compliance-agent.order.v1+json"
SCHEMA = "compliance-agent/order/v1"
MAX_BYTES = 16_384
MAX_DEPTH = 8
USUAL_LIFE = timedelta(minutes=15)
LONGEST_LIFE = timedelta(hours=24)
MOST_CHECKS = 64
_ID = re.compile(r"[0-9a-f]{32}")  # 128 bits: ids and nonces
_LABEL = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")

REASONS = {
    "order_unreadable": "it is not an envelope and a payload of exactly the agreed form",
    "unknown_kind": "this version knows no order of that kind",
    "no_order_keys": "this host knows of nobody whose orders count (order_root_file, order_keys_file)",
    "order_keys_expired": "what says whose orders count has expired, or the root that signed it; people have to sign it anew",
    "unknown_signer": "a signer is not named on this host, or not for orders of this kind",
    "order_signature": "a signature is missing, is not of these bytes, or is of somebody whom the order does not name",
    "too_few_signers": "orders of this kind need the signatures of more people",
    "other_host": "it is for another host, site or client",
    "order_too_long": "it is good for more than 24 hours, or ends before it begins",
    "not_yet": "its time has not come",
    "order_expired": "its time is over; the time that the server has signed counts where this host's clock is behind it",
    "wrong_nonce": "it was made for a nonce that this host does not know (any more): before a restart, or long ago",
    "replayed": "this host has taken an order with this number or a later one",
    "stopped": "a signed stop_all stands; only resume ends it",
    "other_baseline": "it was made for, or brought, another baseline than it names",
    "unknown_check": "the baseline of this host has no such check",
    "not_drifted": "the check does not fail, so there is nothing to put back",
    "baseline_unavailable": "the server does not have the baseline that the order names, or did not answer",
    "no_baseline_key": "this host takes no baseline from elsewhere (baseline_key_file)",
    "baseline_signature": "the baseline is not what the holder of the host's baseline key has signed",
    "baseline_unusable": "the baseline cannot be used by this version",
    "adopt_refused": "root does not take what the order brings: its journal has the code (compliance-agent-adopt)",
    "root_other_key": "root knows this host by another key than it signs with, and did not follow the rotation (status says why)",
    "adopt_failed": "root took the order and could not write its files; it goes on with that when it is asked next",
    "adopt_unreachable": "root's side of orders could not be asked, or did not answer",
    "baseline_older": "this host is held to a newer baseline, and what was fixed since stays fixed",
    "order_interrupted": "the agent was stopped in the middle of it; it is not done a second time, the checks look again",
    "order_failed": "what it asked for could not be done",
}


@dataclass(frozen=True)
class Form:
    """One kind of order.

    Attributes:
        parameters: name -> whether a value may stand there.
        bound: it says something only about the baseline that its signers saw, which must be the host's.
        numbered: it needs the host's nonce and counter; a stop works without.
    """

    parameters: Mapping[str, Callable[[Any], bool]]
    bound: bool = False
    numbered: bool = True


def _matches(pattern: re.Pattern[str]) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, str) and pattern.fullmatch(value) is not None


def _are_checks(value: Any) -> bool:
    if not isinstance(value, list) or not 1 <= len(value) <= MOST_CHECKS:
        return False
    return all(map(_matches(TOKEN), value)) and len(set(value)) == len(value)


FORMS: dict[str, Form] = {
    "check": Form({"checks": _are_checks}),
    "remediate": Form({"check": _matches(TOKEN)}, bound=True),
    "approve": Form({"check": _matches(TOKEN), "target": _matches(NAME)}, bound=True),
    "pause": Form({}),
    "resume": Form({}),
    "adopt_baseline": Form({"version": _matches(VERSION), "sha256": _matches(SHA256)}, bound=True),
    "rotate_key": Form({}),
    "stop_all": Form({}, numbered=False),
}


@dataclass(frozen=True)
class Order:
    """A payload of the agreed form. Nothing of it is believed before `judge` says so."""

    order_id: str
    tenant: str
    site: str
    host: str
    kind: str
    parameters: Mapping[str, Any]
    baseline_sha256: str | None
    counter: int | None
    nonce: str | None
    not_before: datetime
    expires: datetime
    signers: tuple[str, ...]

    @property
    def checks(self) -> tuple[str, ...]:
        """The checks that it names."""
        named = self.parameters.get("checks", [self.parameters["check"]] if "check" in self.parameters else [])
        return tuple(named)


@dataclass(frozen=True)
class Standing:
    """What a host knows when an order comes.

    Attributes:
        tenant, site, host: its client, its site, and its key id.
        keys: whose orders count; None where nobody said so.
        now: its clock, or the time that the server has signed where that is later.
        nonces: those that it gave and that are still good.
        counter: of the last order that it took.
        stopped: a stop_all stands.
        baseline_sha256: of the baseline that it is held to.
        checks: the checks of that baseline.
    """

    tenant: str
    site: str
    host: str
    keys: OrderKeys | None
    now: datetime
    nonces: Collection[str]
    counter: int
    stopped: bool
    baseline_sha256: str
    checks: Collection[str]


@dataclass(frozen=True)
class Refused:
    """Why not (a key of REASONS), and what it claimed to be, as far as that could be read."""

    reason: str
    order: Order | None = None


def judge(raw: bytes, standing: Standing) -> Order | Refused:
    """The order, if this host shall do it now; else the first reason why not. Uses up nothing either way."""
    try:
        envelope = read_envelope(raw)
        order = read_payload(envelope.payload)
    except DocumentError as error:
        return Refused("unknown_kind" if error.code == "unknown_kind" else "order_unreadable")
    for gate in (_signed, _addressed, _timely, _fresh, _fitting):
        reason = gate(order, envelope, standing)
        if reason is not None:
            return Refused(reason, order)
    return order


def _signed(order: Order, envelope: Envelope, standing: Standing) -> str | None:
    keys = standing.keys
    if keys is None:
        return "no_order_keys"
    if standing.now >= keys.expires:
        return "order_keys_expired"
    signers = {name: keys.signers.get(name) for name in order.signers}
    if any(signer is None or order.kind not in signer.kinds for signer in signers.values()):
        return "unknown_signer"
    if envelope.signatures.keys() != signers.keys():
        return "order_signature"
    message = crypto.pae(TYPE, envelope.payload)
    names = set()
    for name, signer in signers.items():
        if signer is None or not crypto.verify(signer.public, envelope.signatures[name], message):
            return "order_signature"
        names.add(signer.name)
    needed = keys.needed(order.kind)
    if order.kind == "resume" and standing.stopped:
        needed = max(needed, 2)  # what one person stopped, another one's key alone does not start again
    return "too_few_signers" if len(names) < needed else None


def _addressed(order: Order, _envelope: Envelope, standing: Standing) -> str | None:
    ours = (standing.tenant, standing.site, standing.host)
    same = (order.tenant, order.site, order.host) == ours and standing.keys is not None
    return None if same and standing.keys and standing.keys.tenant == order.tenant else "other_host"


def _timely(order: Order, _envelope: Envelope, standing: Standing) -> str | None:
    if not timedelta(0) < order.expires - order.not_before <= LONGEST_LIFE:
        return "order_too_long"
    if standing.now >= order.expires:
        return "order_expired"
    return "not_yet" if standing.now < order.not_before else None


def _fresh(order: Order, _envelope: Envelope, standing: Standing) -> str | None:
    if order.counter is not None:
        if order.nonce not in standing.nonces:
            return "wrong_nonce"
        if order.counter <= standing.counter:
            return "replayed"
    return "stopped" if standing.stopped and order.kind not in {"resume", "stop_all"} else None


def _fitting(order: Order, _envelope: Envelope, standing: Standing) -> str | None:
    if order.baseline_sha256 is not None and order.baseline_sha256 != standing.baseline_sha256:
        return "other_baseline"
    return "unknown_check" if not set(order.checks) <= set(standing.checks) else None


# Reading


def read_envelope(raw: bytes) -> Envelope:
    """An envelope of exactly the agreed form; nothing is verified.

    Raises:
        DocumentError: anything else.
    """
    try:
        return envelopes.read(raw, payload_type=TYPE, limit_bytes=MAX_BYTES, most=MOST_SIGNATURES)
    except DocumentError as error:
        raise DocumentError(f"order: {error}", code=error.code.replace("bad_envelope", "bad_order")) from error


_LEAVES: dict[str, Callable[[Any], bool]] = {
    "schema": lambda value: value == SCHEMA,
    "order_id": _matches(_ID),
    "tenant": _matches(_LABEL),
    "site": _matches(_LABEL),
    "host": _matches(SHA256),
    "kind": _matches(TOKEN),
    "parameters": lambda value: isinstance(value, dict),
    "baseline_sha256": lambda value: value is None or _matches(SHA256)(value),
    "counter": lambda value: value is None or (type(value) is int and 1 <= value <= LARGEST_INT),
    "nonce": lambda value: value is None or _matches(_ID)(value),
    "not_before": is_timestamp,
    "expires": is_timestamp,
    "signers": lambda value: (
        isinstance(value, list) and 1 <= len(value) <= MOST_SIGNATURES and all(map(_matches(SHA256), value))
    ),
}


def read_payload(raw: bytes) -> Order:
    """A payload of exactly the agreed form; nothing is believed.

    Raises:
        DocumentError: anything else; code `unknown_kind` for a kind that this version does not have.
    """
    document = read_json(raw, limit_bytes=MAX_BYTES, max_depth=MAX_DEPTH)
    _exactly(document, set(_LEAVES))
    for name, fits in _LEAVES.items():
        if not fits(document[name]):
            raise _bad(name, "another value")
    form = FORMS.get(document["kind"])
    if form is None:
        raise DocumentError(f"kind: expected one of {', '.join(KINDS)}", code="unknown_kind")
    _exactly(document["parameters"], set(form.parameters))
    for name, fits in form.parameters.items():
        if not fits(document["parameters"][name]):
            raise _bad(f"parameters.{name}", "another value")
    numbers = (document["counter"], document["nonce"])
    if any((value is None) is form.numbered for value in numbers):
        raise _bad("counter and nonce", "both, but for a stop_all, which has neither")
    if form.bound and document["baseline_sha256"] is None:
        raise _bad("baseline_sha256", "the baseline that the signers saw")
    if len(set(document["signers"])) != len(document["signers"]):
        raise _bad("signers", "each once")
    return Order(
        **{name: document[name] for name in _LEAVES if name not in {"schema", "not_before", "expires", "signers"}},
        not_before=_time(document["not_before"]),
        expires=_time(document["expires"]),
        signers=tuple(document["signers"]),
    )


def _exactly(value: Any, wanted: set[str]) -> None:
    if not isinstance(value, dict) or value.keys() != wanted:
        raise _bad("document", f"exactly the keys {', '.join(sorted(wanted)) or 'none'}")


def _time(text: str) -> datetime:
    return datetime.fromisoformat(text).astimezone(UTC)


def _bad(field: str, expected: str) -> DocumentError:
    return DocumentError(f"order: {field}: expected {expected}", code="bad_order")


# Writing


def payload(order: Order) -> bytes:
    """The bytes that are signed; what `read_payload` reads back.

    Raises:
        DocumentError: it is not an order of the agreed form.
    """
    document = {
        "schema": SCHEMA,
        **{name: getattr(order, name) for name in _LEAVES if name not in {"schema", "parameters"}},
        "parameters": dict(order.parameters),
        "not_before": _text(order.not_before),
        "expires": _text(order.expires),
        "signers": list(order.signers),
    }
    raw = canonical(document)
    read_payload(raw)
    return raw


def envelope(body: bytes, signatures: Mapping[str, bytes]) -> bytes:
    """Payload bytes with their signatures by key id."""
    return envelopes.write(TYPE, body, signatures)


def sign(body: bytes, signer: crypto.Ed25519Signer) -> bytes:
    """One signer's signature over a payload and its type."""
    return signer.sign(crypto.pae(TYPE, body))


def _text(at: datetime) -> str:
    return at.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
