"""The words between agent and server, pure: requests as bytes, replies as values that were checked whole.

Nothing of a reply is believed before it has passed here: strict JSON, known fields of the right type, and for an acknowledgement
the server's signature over the very bundle that was sent. `docs/protocol.md` has the same for people.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import field
from typing import Any

from compliance_agent import __version__
from compliance_agent.core.leases import LONGEST_S as MOST_LEASE_S
from compliance_agent.core.leases import REASONS as LEASES
from compliance_agent.core.receipt import ORIGIN
from compliance_agent.dataclass import dataclass
from compliance_agent.documents import read_json
from compliance_agent.entries.rotation import read as read_rotation
from compliance_agent.errors import BadReply, DocumentError, ServerRefused
from compliance_agent.evidence.canonical import canonical
from compliance_agent.facts import LARGEST_INT, SHA256, TOKEN, is_timestamp
from compliance_agent.ports import HttpReply

PROTOCOL = 1
ACK_SCHEMA = "compliance-agent/ack/v2"
SIGNATURE_BYTES = 64
ENROL_CONTEXT = b"compliance-agent/enrol/v1\n"
CERTIFICATE_CONTEXT = b"compliance-agent/certificate/v1\n"
REPLY_CONTEXT = b"compliance-agent/reply/v1\n"
NONCE, REPLY_SIGNATURE = "x-nonce", "x-reply-signature"  # headers: of a question, and of its answer
API_KEY_CONTEXT = b"compliance-agent/api-key/v1\n"
MAX_RETRY_AFTER_S = 3_600.0
_WORD = re.compile(r"[!-~]{1,256}")  # no space, no control character: it goes into headers and configurations
MAX_LOGS = 64  # of one site: one a year
MAX_RECEIPTS = 100  # that one request may ask for
MAX_ORDERS = 64  # that one reply may bring
MAX_BATCH_BYTES = 700_000  # of bundles in one request, before base64: the server takes a body of at most 1 MiB

Verify = Callable[[bytes, bytes, bytes], bool]  # public key, signature, message


@dataclass(frozen=True)
class Sent:
    """A bundle as it goes out: its exact bytes, its signature and what identifies it."""

    bundle_id: str
    epoch: int
    seq: int
    body: bytes
    signature: bytes
    traceparent: str | None = None

    @property
    def sha256(self) -> str:
        """SHA-256 of the exact bytes, in hex."""
        return hashlib.sha256(self.body).hexdigest()


@dataclass(frozen=True)
class OfferedReceipt:
    """What the server says is a bundle's entry and its proof (tlog-proof); nothing of it is believed yet."""

    bundle_id: str
    leaf: bytes
    proof: bytes


@dataclass(frozen=True)
class Acknowledged:
    """The server's verified word that it holds this bundle durably.

    Attributes:
        ack: kept as proof: the server's signature and, after its 64 bytes, the document that it signed, which names this
            bundle and every other that the same answer acknowledges.
        receipt: what the server offered with it; None when the bundle was not in the log yet.
        received_at: the server's time, which it signed.
    """

    bundle_id: str
    epoch: int
    seq: int
    ack: bytes
    receipt: OfferedReceipt | None = None
    received_at: str = ""


@dataclass(frozen=True)
class Expected:
    """The chain position the server wants next, with the digest of the bundle before it (None when it has none)."""

    epoch: int
    seq: int
    prev: str | None


@dataclass(frozen=True)
class EvidenceReply:
    """What became of a batch: acknowledged from its beginning up to the bundle where the server stopped, if it did."""

    acknowledged: tuple[Acknowledged, ...]
    stopped: ServerRefused | None
    min_interval_s: int | None


@dataclass(frozen=True)
class CheckinReply:
    """The server's view of this host.

    Attributes:
        known: (epoch, seq, digest) of the newest bundle the server holds of this key, None when it holds none.
        min_interval_s: seconds the server asks to leave between check-ins.
        server_time: the server's clock, as a claim.
        durable: by origin of a log, how many of its entries a backup of the server holds, as a claim; empty from an older server.
        orders: envelopes that the server forwards; nothing of them is believed.
        order_trust: envelopes that say whose orders count, newer than what the host said it has; nothing of them is believed.
    """

    known: tuple[int, int, str] | None
    min_interval_s: int
    server_time: str
    durable: Mapping[str, int] = field(default_factory=dict)
    orders: tuple[bytes, ...] = ()
    order_trust: tuple[bytes, ...] = ()


@dataclass(frozen=True)
class Enrolled:
    """What enrolment gave this host.

    Attributes:
        log_key: None where the server keeps no transparency log.
        waiting: nothing is accepted from this host before an operator approved it.
    """

    client_id: str
    site_id: str
    host_id: str
    key_id: str
    api_key: str
    server_key: bytes
    server_name: str
    log_key: bytes | None = None
    waiting: bool = False


def headers(api_key: str | None, *, hurried: bool = False) -> dict[str, str]:
    """The headers of every request; `hurried` when an acknowledgement is not to wait for receipts."""
    common = {"content-type": "application/json", "accept": "application/json", "x-agent-version": __version__}
    if hurried:
        common["prefer"] = "wait=0"
    return common if api_key is None else {**common, "authorization": f"Bearer {api_key}"}


def reply_message(path: str, nonce: str, body: bytes, answer: bytes) -> bytes:
    """What the server signs of an answer that decides something by itself: to what it is one, and all that it says."""
    asked = hashlib.sha256(body).hexdigest()
    return REPLY_CONTEXT + f"{path}\n{nonce}\n{asked}\n".encode("ascii") + answer


def check_signed(reply: HttpReply, message: bytes, server_key: bytes, verify: Verify) -> None:
    """Hold an answer against the server's signature, where another process fetched it. A refusal needs none.

    Raises:
        BadReply: it is not signed with the pinned key, or not as an answer to this very question.
    """
    if reply.status != 200:
        return
    try:
        sig = base64.b64decode(reply.headers.get(REPLY_SIGNATURE, ""), validate=True)
    except (binascii.Error, ValueError):
        sig = b""
    if len(sig) != SIGNATURE_BYTES or not verify(server_key, sig, message):
        raise BadReply("reply: not the server's signed word about what was asked", code="unsigned_reply")


def evidence_request(bundles: Sequence[Sent]) -> bytes:
    """The body of `POST /api/v1/evidence`."""
    items = [{"bundle": _b64(item.body), "sig": _b64(item.signature)} for item in bundles]
    traced = [item.traceparent for item in bundles]
    traces = {"traces": traced} if any(traced) else {}  # a record that nobody traces costs nothing
    return canonical({"protocol": PROTOCOL, "bundles": items, "gaps": [], **traces})


def read_evidence_reply(
    reply: HttpReply, sent: Sequence[Sent], key_id: str, server_key: bytes, verify: Verify
) -> EvidenceReply:
    """What became of `sent`; its acknowledgement verifies under the pinned key and names our bundles, from the first on.

    Raises:
        ServerRefused: nothing of the batch was taken.
        BadReply: the reply cannot be believed; nothing may be forgotten because of it.
    """
    document = _document(reply, {200})
    ack, count, received_at = _ack(_field(document, "ack", dict), sent, key_id, server_key, verify)
    receipts = _offered(document.get("receipts"), [bundle.bundle_id for bundle in sent[:count]])
    acknowledged = tuple(
        Acknowledged(bundle.bundle_id, bundle.epoch, bundle.seq, ack, receipt, received_at)
        for bundle, receipt in zip(sent, receipts, strict=False)
    )
    stopped = document.get("stopped")
    if (stopped is None) != (count == len(sent)):
        raise BadReply("reply to evidence: bundles are neither or both acknowledged and refused", code="bad_ack")
    interval = document.get("min_interval_s")
    return EvidenceReply(
        acknowledged,
        None if stopped is None else _stopped(stopped, count),
        None if interval is None else _whole(document, "min_interval_s", 1, 86_400),
    )


def _ack(item: Any, sent: Sequence[Sent], key_id: str, server_key: bytes, verify: Verify) -> tuple[bytes, int, str]:
    """The signature with the document that it is over, how many of `sent` that names, from the first on, and when."""
    raw, signature = _bytes(item, "document"), _bytes(item, "sig")
    if len(signature) != SIGNATURE_BYTES or not verify(server_key, signature, raw):
        raise BadReply("acknowledgement: the server's signature does not verify", code="bad_ack")
    ack = _json(raw, "acknowledgement")
    _names(ack, {"schema": ACK_SCHEMA, "key_id": key_id})
    if not is_timestamp(ack.get("received_at")):
        raise BadReply("acknowledgement: received_at is not a time", code="bad_ack")
    bundles = ack.get("bundles")
    if not isinstance(bundles, list) or not 1 <= len(bundles) <= len(sent):
        raise BadReply("acknowledgement: bundles are none, or more than were sent", code="bad_ack")
    for named, bundle in zip(bundles, sent, strict=False):
        _names(named, {"bundle_sha256": bundle.sha256, "epoch": bundle.epoch, "seq": bundle.seq})
        if named.get("status") not in ("stored", "known"):
            raise BadReply("acknowledgement: status is not as agreed", code="bad_ack")
    return signature + raw, len(bundles), ack["received_at"]


def _names(document: Any, ours: Mapping[str, str | int]) -> None:
    if not isinstance(document, dict):
        raise BadReply("acknowledgement: bundles holds something else than objects", code="bad_ack")
    for name, value in ours.items():
        if type(document.get(name)) is not type(value) or document[name] != value:
            raise BadReply(f"acknowledgement: {name} names another bundle than the one that was sent", code="bad_ack")


def _offered(items: Any, bundle_ids: Sequence[str]) -> list[OfferedReceipt | None]:
    """Receipts in the order of the bundles. One that cannot be read must not cost an acknowledgement: it is left empty."""
    given = items if isinstance(items, list) else []
    return [
        _receipt(item, bundle_id)
        for bundle_id, item in zip(bundle_ids, [*given, *[None] * len(bundle_ids)], strict=False)
    ]


def _receipt(item: Any, bundle_id: str) -> OfferedReceipt | None:
    if item is None:
        return None
    try:
        named = _field(item, "bundle_id", str)
        return OfferedReceipt(bundle_id, _bytes(item, "leaf"), _bytes(item, "proof") if named == bundle_id else b"")
    except BadReply:
        return OfferedReceipt(bundle_id, b"", b"")  # which no proof is: it is refused by name


def receipts_request(bundle_ids: Sequence[str]) -> bytes:
    """The body of `POST /api/v1/receipts`."""
    return canonical({"protocol": PROTOCOL, "bundles": list(bundle_ids)})


def read_receipts_reply(reply: HttpReply, bundle_ids: Sequence[str]) -> list[OfferedReceipt | None]:
    """Receipts of these bundles in their order, None for those that are not in the log yet.

    Raises:
        ServerRefused, BadReply: as above.
    """
    items = _field(_document(reply, {200}), "receipts", list)
    if len(items) != len(bundle_ids):
        raise BadReply("reply to receipts: not one answer for each bundle")
    return _offered(items, bundle_ids)


def log_path(origin: str, path: str) -> str:
    """Where a file of a log is served; `origin` is `<server>/<site>/<year>`."""
    return f"/log/{origin.split('/', 1)[1]}/{path}"


def read_log_file(reply: HttpReply) -> bytes:
    """A file of a log, of which nothing is believed.

    Raises:
        ServerRefused, BadReply: as above.
    """
    if reply.status != 200:
        raise _refusal(reply)
    return reply.body


def _stopped(document: Any, acknowledged: int) -> ServerRefused:
    code = _token(_field(document, "code", str))
    if _whole(document, "index", 0, LARGEST_INT) != acknowledged:
        raise BadReply("reply to evidence: index is another bundle than the first without acknowledgement")
    expected = _expected(document.get("expected"))
    return ServerRefused(
        f"the server stopped at a bundle: {code}", code=code, status=409 if expected else 422,
        expected=(expected.epoch, expected.seq) if expected else None,
    )  # fmt: skip


def _expected(document: Any) -> Expected | None:
    if document is None:
        return None
    prev = _field(document, "prev", str) if _field_or_none(document, "prev") is not None else None
    if prev is not None and not SHA256.fullmatch(prev):
        raise BadReply("reply: expected.prev is not a digest")
    return Expected(_whole(document, "epoch", 0, LARGEST_INT), _whole(document, "seq", 1, LARGEST_INT), prev)


@dataclass(frozen=True)
class LeaseReply:
    """A lease's fencing token and how long it lasts; or why there is none, and how long to wait (0: not known)."""

    fence: int | None
    for_s: int
    reason: str


def lease_request(act: str, check: str, target: str, life_s: int, fence: int | None) -> bytes:
    """The body of `POST /api/v1/leases`."""
    said = {"act": act, "check": check, "target": target, "life_s": life_s, "fence": fence}
    return canonical({"protocol": PROTOCOL, **said})


def read_lease_reply(reply: HttpReply) -> LeaseReply:
    """What the server says. A reason that is not known here is said as no reason of its own.

    Raises:
        ServerRefused: the server said no.
        BadReply: the reply is not as agreed.
    """
    document = _document(reply, {200})
    fence, for_s, reason = document.get("fence"), _field(document, "for_s", int), _field(document, "reason", str)
    if fence is not None and (type(fence) is not int or fence < 1):
        raise BadReply("reply to a lease: fence is no token")
    if type(for_s) is not int or not 0 <= for_s <= LARGEST_INT or (fence is not None and not 0 < for_s <= MOST_LEASE_S):
        raise BadReply("reply to a lease: for_s is not a time that can be kept")
    return LeaseReply(fence, for_s, reason if reason in LEASES else "lease_required" if fence is None else "")


def rotate_request(statement: bytes, old_sig: bytes, new_sig: bytes) -> bytes:
    """The body of `POST /api/v1/keys/rotate`."""
    sent = {"statement": statement, "old_sig": old_sig, "new_sig": new_sig}
    return canonical({"protocol": PROTOCOL, **{name: _b64(raw) for name, raw in sent.items()}})


def read_rotate_reply(reply: HttpReply, statement: bytes, server_key: bytes, verify: Verify) -> None:
    """Hold the server's word against what it was told: signed with the pinned key, and about exactly this rotation.

    Raises:
        ServerRefused: the server said no.
        BadReply: the reply is not as agreed; the former key must not be given up on its strength.
    """
    document = _document(reply, {200})
    raw, sig = (_bytes(document, name) for name in ("rotated", "sig"))
    said = read_rotation(statement)
    expected = {
        "schema": "compliance-agent/rotated/v1",
        "old_key": said.old_key,
        "new_key": said.new_key,
        "epoch": said.epoch,
        "seq": said.seq,
        "digest": said.digest,
    }
    if raw != canonical(expected) or not verify(server_key, sig, raw):
        raise BadReply("reply to key rotation: not the server's signed word about this rotation", code="bad_ack")


def checkin_request(
    *,
    key_id: str,
    head: tuple[int, int, str],
    pending: int,
    baseline: tuple[str, str],
    checks: Mapping[str, tuple[str, str]],
    order_nonce: str | None = None,
    order_trust: Mapping[str, Any] | None = None,
) -> bytes:
    """The body of `POST /api/v1/checkin`."""
    epoch, seq, digest = head
    nonce: dict[str, Any] = {} if order_nonce is None else {"order_nonce": order_nonce}
    if order_trust is not None:
        nonce["order_trust"] = dict(order_trust)
    return canonical(
        {
            "protocol": PROTOCOL,
            "key_id": key_id,
            "head": {"epoch": epoch, "seq": seq, "digest": digest},
            "pending": pending,
            "agent_version": __version__,
            "baseline": {"version": baseline[0], "sha256": baseline[1]},
            "checks": {name: {"result": result, "reason": reason} for name, (result, reason) in checks.items()},
            **nonce,
        }
    )


def read_checkin_reply(reply: HttpReply) -> CheckinReply:
    """The server's view of this host.

    Raises:
        ServerRefused: the server said no.
        BadReply: the reply is not as agreed.
    """
    document = _document(reply, {200})
    known = document.get("known")
    if known is not None:
        digest = _field(known, "digest", str)
        if not SHA256.fullmatch(digest):
            raise BadReply("reply to check-in: known.digest is not a digest")
        known = (_whole(known, "epoch", 0, LARGEST_INT), _whole(known, "seq", 1, LARGEST_INT), digest)
    server_time = _field(document, "server_time", str)
    if not is_timestamp(server_time):
        raise BadReply("reply to check-in: server_time is not a time")
    interval = _whole(document, "min_interval_s", 1, 86_400)
    orders, trust = (_listed(document, name) for name in ("orders", "order_trust"))
    return CheckinReply(known, interval, server_time, _durable(document), orders, trust)


def _listed(document: Mapping[str, Any], name: str) -> tuple[bytes, ...]:
    listed = document.get(name, [])
    if not isinstance(listed, list) or len(listed) > MAX_ORDERS:
        raise BadReply(f"reply to check-in: {name} is not a list of at most {MAX_ORDERS}")
    return tuple(_bytes({name: item}, name) for item in listed)


def _durable(document: Mapping[str, Any]) -> dict[str, int]:
    logs = document.get("durable", [])
    if not isinstance(logs, list) or len(logs) > MAX_LOGS:
        raise BadReply(f"reply to check-in: durable is not a list of at most {MAX_LOGS} logs")
    found: dict[str, int] = {}
    for item in logs:
        origin = _field(item, "origin", str)
        if not re.fullmatch(ORIGIN, origin) or origin in found:
            raise BadReply("reply to check-in: durable names no log, or one twice")
        found[origin] = _whole(item, "size", 0, LARGEST_INT)
    return found


def read_baseline_reply(reply: HttpReply) -> tuple[bytes, bytes]:
    """A baseline's exact bytes and its signature; nothing of it is believed.

    Raises:
        ServerRefused, BadReply: as above.
    """
    document = _document(reply, {200})
    return _bytes(document, "baseline"), _bytes(document, "sig")


def challenge_request(public_key: bytes) -> bytes:
    """The body of `POST /api/v1/enrol/challenge`."""
    return canonical({"protocol": PROTOCOL, "public_key": _b64(public_key)})


def read_challenge_reply(reply: HttpReply) -> bytes:
    """The server's 32-byte nonce.

    Raises:
        ServerRefused, BadReply: as above.
    """
    nonce = _bytes(_document(reply, {200}), "nonce")
    if len(nonce) != 32:
        raise BadReply("reply to enrolment: nonce is not 32 bytes")
    return nonce


def proof_message(nonce: bytes, token: str) -> bytes:
    """What the host signs to show that it holds the key: bound to the server's nonce and to this token."""
    return ENROL_CONTEXT + nonce + hashlib.sha256(token.encode("ascii")).digest()


def certificate_message(nonce: bytes, csr: bytes) -> bytes:
    """What the host's own key signs to say that it wants a certificate for just this request."""
    return CERTIFICATE_CONTEXT + nonce + hashlib.sha256(csr).digest()


def api_key_message(present: str, coming: str) -> bytes:
    """What the host's own key signs to say that its API key gives way: bound to both keys by their hashes."""
    return API_KEY_CONTEXT + b"".join(hashlib.sha256(key.encode("ascii")).digest() for key in (present, coming))


def api_key_request(coming: str, sig: bytes) -> bytes:
    """The body of `POST /api/v1/api-keys`: the key itself stays here."""
    return canonical(
        {"protocol": PROTOCOL, "sha256": hashlib.sha256(coming.encode("ascii")).hexdigest(), "sig": _b64(sig)}
    )


def read_api_key_reply(reply: HttpReply, coming: str) -> None:
    """The server's word that it lets the next key count.

    Raises:
        ServerRefused, BadReply: as above; the present key must not be given up on its strength.
    """
    if _field(_document(reply, {200}), "sha256", str) != hashlib.sha256(coming.encode("ascii")).hexdigest():
        raise BadReply("reply to an API key: names another key")


def certificate_request(csr: bytes, nonce: bytes, proof: bytes) -> bytes:
    """The body of `POST /api/v1/certificates`."""
    return canonical({"protocol": PROTOCOL, "csr": _b64(csr), "nonce": _b64(nonce), "proof": _b64(proof)})


def read_certificate_reply(reply: HttpReply) -> bytes:
    """The certificate (PEM), which its caller looks at.

    Raises:
        ServerRefused, BadReply: as above.
    """
    text: str = _field(_document(reply, {200}), "certificate", str)
    if not text.isascii() or len(text) > 8_192:
        raise BadReply("reply to a certificate: not PEM")
    return text.encode("ascii")


def enrol_request(*, token: str, public_key: bytes, host_id: str, nonce: bytes, proof: bytes) -> bytes:
    """The body of `POST /api/v1/enrol`."""
    return canonical(
        {
            "protocol": PROTOCOL,
            "token": token,
            "public_key": _b64(public_key),
            "host_id": host_id,
            "nonce": _b64(nonce),
            "proof": _b64(proof),
        }
    )


def read_enrol_reply(reply: HttpReply) -> Enrolled:
    """What enrolment gave.

    Raises:
        ServerRefused, BadReply: as above.
    """
    document = _document(reply, {200, 201})
    server_key = _bytes(document, "server_key")
    log_key = None if document.get("log_key") is None else _bytes(document, "log_key")
    words = {
        name: _field(document, name, str)
        for name in ("client_id", "site_id", "host_id", "key_id", "api_key", "server_name")
    }
    if len(server_key) != 32:
        raise BadReply("reply to enrolment: server_key is not 32 bytes")
    if log_key is not None and len(log_key) != 32:
        raise BadReply("reply to enrolment: log_key is not 32 bytes")
    for name, word in words.items():
        if not _WORD.fullmatch(word if name != "server_name" else word.replace(" ", "_")):
            raise BadReply(f"reply to enrolment: {name} is empty, too long or not plain text")
    waiting = document.get("waiting", False)
    if not isinstance(waiting, bool):
        raise BadReply("reply to enrolment: waiting is neither true nor false")
    return Enrolled(server_key=server_key, log_key=log_key, waiting=waiting, **words)


def _document(reply: HttpReply, wanted: set[int]) -> dict[str, Any]:
    if reply.status not in wanted:
        raise _refusal(reply)
    return _json(reply.body, "reply")


def _refusal(reply: HttpReply) -> ServerRefused | BadReply:
    """The error for any status that is not the wanted one; a body that is not a problem document adds nothing."""
    if reply.status < 400:
        return BadReply(f"reply: status {reply.status} is not as agreed; redirects are not followed")
    code, expected = f"http_{reply.status}", None
    try:
        document = _json(reply.body, "reply")
        code = _token(_field(document, "code", str))
        position = _expected(document.get("expected"))
        expected = (position.epoch, position.seq) if position else None
    except BadReply:
        pass
    return ServerRefused(
        f"the server answered {reply.status} ({code})",
        code=code,
        status=reply.status,
        retry_after_s=retry_after(reply.headers.get("retry-after")),
        expected=expected,
    )


def retry_after(value: str | None) -> float | None:
    """Seconds a `Retry-After` header asks for (RFC 9110 10.2.3, the delay form), at least 1 and at most an hour."""
    if value is None or not value.isascii() or not value.isdigit():
        return None
    return min(max(float(value), 1.0), MAX_RETRY_AFTER_S)


def _json(raw: bytes, what: str) -> dict[str, Any]:
    try:
        document = read_json(raw)
    except DocumentError as error:
        raise BadReply(f"{what}: {error}") from error
    if not isinstance(document, dict):
        raise BadReply(f"{what}: expected a JSON object")
    return document


def _field(document: Any, name: str, kind: type) -> Any:
    value = document.get(name) if isinstance(document, dict) else None
    if not isinstance(value, kind):
        raise BadReply(f"reply: field {name} is missing or not a {kind.__name__}")
    return value


def _field_or_none(document: Any, name: str) -> Any:
    if not isinstance(document, dict):
        raise BadReply("reply: expected an object")
    return document.get(name)


def _whole(document: Any, name: str, low: int, high: int) -> int:
    value = _field_or_none(document, name)
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise BadReply(f"reply: field {name} is not a whole number from {low} to {high}")
    return value


def _token(value: str) -> str:
    return value if TOKEN.fullmatch(value) else "unreadable_code"


def _b64(raw: bytes) -> str:
    return base64.b64encode(raw).decode("ascii")


def _bytes(document: Any, name: str) -> bytes:
    try:
        return base64.b64decode(_field(document, name, str), validate=True)
    except (binascii.Error, ValueError) as error:
        raise BadReply(f"reply: field {name} is not base64") from error
