"""The JSON of the API as types: what agents send (strict, no unknown field), and what people read."""

from __future__ import annotations

import base64
import binascii
from datetime import date, datetime
from typing import Annotated, Any, Literal, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError
from starlette.requests import Request

from compliance_agent.documents import read_json
from compliance_agent.errors import Refusal
from compliance_agent.facts import LARGEST_INT
from compliance_agent.server.api.edge import MOST_BODY_BYTES
from compliance_agent.server.api.problems import first_error


def decoded(text: str, length: int | None) -> bytes:
    """The bytes in standard base64 with padding; raises ValueError unless there are exactly `length` (None: however many)."""
    try:
        raw = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise ValueError("not base64") from error
    if length is not None and len(raw) != length:
        raise ValueError(f"expected {length} bytes in base64")
    return raw


def _holds(length: int | None) -> AfterValidator:
    def check(text: str) -> str:
        decoded(text, length)
        return text

    return AfterValidator(check)


class Sent(BaseModel):
    """What agents send: no unknown field, no conversion."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


Key = Annotated[str, Field(max_length=64, description="32 bytes in base64"), _holds(32)]
Signature = Annotated[str, Field(max_length=96, description="64 bytes in base64"), _holds(64)]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$", min_length=64, max_length=64)]
Label = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$", max_length=63)]
Version = Annotated[str, Field(pattern=r"^[0-9A-Za-z][0-9A-Za-z.+~:_-]{0,39}$", max_length=40)]
BundleId = Annotated[str, Field(pattern=r"^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$", min_length=36, max_length=36)]
Word = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]{0,39}$", max_length=40)]
OrderNonce = Annotated[str, Field(pattern=r"^[0-9a-f]{32}$", min_length=32, max_length=32)]
Protocol = Annotated[int, Field(ge=1, le=1)]  # not Literal[1], which takes `true` for 1
Natural = Annotated[int, Field(ge=0, le=LARGEST_INT)]


class ChallengeRequest(Sent):
    """The public key that wants to enrol."""

    protocol: Protocol
    public_key: Key


class EnrolRequest(Sent):
    """A one-time token, the key, its label, and the proof of possession."""

    protocol: Protocol
    token: str = Field(min_length=8, max_length=4096, pattern=r"^[A-Za-z0-9._-]+$")
    public_key: Key
    host_id: Label
    nonce: Key
    proof: Signature


class RotateRequest(Sent):
    """A statement about this host's key, and the signatures of the old and the new key over its exact bytes."""

    protocol: Protocol
    statement: Annotated[str, Field(min_length=4, max_length=4096), _holds(None)]
    old_sig: Signature
    new_sig: Signature


class CertificateRequest(Sent):
    """A signing request (DER) for this host's TLS key, and the signature of the host's own key over nonce and request."""

    protocol: Protocol
    csr: Annotated[str, Field(min_length=4, max_length=4096), _holds(None)]
    nonce: Key
    proof: Signature


class HeadSaid(Sent):
    """The newest bundle of the host's chain; seq 0 before the first."""

    epoch: Natural
    seq: Natural
    digest: Sha256


class BaselineSaid(Sent):
    """The baseline the host holds itself against; empty texts when it has none."""

    version: Version | Literal[""]
    sha256: Sha256 | Literal[""]


class CheckSaid(Sent):
    """A verdict as the host sees it; not evidence."""

    result: Literal["pass", "fail", "unknown", "not_applicable", "exception"]
    reason: Word


class LeaseRequest(Sent):
    """A lease for one cure is wanted (`take`, also to renew it), or given back (`release`, with its fencing token)."""

    protocol: Protocol
    act: Literal["take", "release"]
    check: Word
    target: Sha256
    life_s: Annotated[int, Field(ge=1, le=86_400)]
    fence: Natural | None


class ApiKeyRequest(Sent):
    """SHA-256 of the host's next API key, and the host's own key's signature over it and the present one's."""

    protocol: Protocol
    sha256: Sha256
    sig: Signature


class ApiKeyReply(BaseModel):
    """Both keys count until the new one is used."""

    sha256: str


class OrderTrustSaid(Sent):
    """The root that a host is pinned to, and the versions of root and list of order keys that it has (0: none)."""

    pin: Sha256
    root: Natural
    keys: Natural


class CheckinRequest(Sent):
    """A host's word that it lives."""

    protocol: Protocol
    key_id: Sha256
    head: HeadSaid
    pending: Natural
    agent_version: Version
    baseline: BaselineSaid
    checks: dict[Word, CheckSaid] = Field(max_length=256)
    order_nonce: OrderNonce | None = None
    order_trust: OrderTrustSaid | None = None


class OrderDraft(Sent):
    """What is wanted of one host; `life_s` runs from when it is prepared for signing."""

    host: Sha256
    kind: Word
    parameters: dict[Word, Any] = Field(default={}, max_length=8)
    life_s: int = Field(default=900, ge=60, le=86_400)


class OrderSigners(Sent):
    """Key ids of everybody who is going to sign."""

    signers: list[Sha256] = Field(min_length=1, max_length=4)


class OrderSignature(Sent):
    """One signer's raw public key, and its signature over the payload and its type (DSSE)."""

    public_key: Key
    sig: Signature


class ExceptionSent(Sent):
    """What is to be accepted: a failing check of a host, or of every host of its site (`whole_site`), for so many days.

    Reason and measure are words of closed lists; `reference` is the id of the document that says both in full.
    """

    host: Sha256
    check: Word
    reason: Word
    measure: Word
    reference: Label
    days: Natural
    whole_site: bool = False


Day = Annotated[str, Field(pattern=r"^\d{4}-\d\d-\d\d$", min_length=10, max_length=10)]
Seed = Annotated[str, Field(pattern=r"^[A-Za-z0-9._-]{1,64}$", min_length=1, max_length=64)]


class SampleSent(Sent):
    """What a sample is drawn from: a section of the rule (null is all), hosts by label (none are all), days in UTC, both included.

    Without a seed one is made, and said in the answer. `size` is of the log as it was then; null is as it is now.
    """

    control: Annotated[str, Field(max_length=40)] | None = None
    hosts: list[Label] = Field(default=[], max_length=100)
    first: Day
    last: Day
    number: int = Field(default=25, ge=1, le=100)
    seed: Seed | None = None
    size: Annotated[int, Field(ge=1, le=LARGEST_INT)] | None = None


class BaselineSent(Sent):
    """A baseline's exact bytes and its signature, in base64, for the hosts of a site."""

    site: Label
    baseline: Annotated[str, Field(min_length=4, max_length=940_000), _holds(None)]
    sig: Signature


class SignedBundle(Sent):
    """A bundle's exact bytes and its signature, both in base64."""

    bundle: str
    sig: str


class EvidenceRequest(Sent):
    """A host's bundles in the order of its chain."""

    protocol: Protocol
    bundles: list[SignedBundle] = Field(min_length=1, max_length=100)
    gaps: list[Any] = Field(default=[], max_length=0)
    traces: Any = Field(
        default=None, description="A W3C traceparent or null for each bundle; what is nothing of the kind is ignored."
    )


class ReceiptsRequest(Sent):
    """Bundles whose receipts are wanted."""

    protocol: Protocol
    bundles: list[BundleId] = Field(min_length=1, max_length=100)


class ChallengeReply(BaseModel):
    """32 random bytes to sign within five minutes."""

    nonce: str


class EnrolReply(BaseModel):
    """What makes the host a known one. `api_key` is shown once."""

    site_id: str
    client_id: str
    host_id: str
    key_id: str
    api_key: str
    server_key: str
    log_key: str
    server_name: str
    min_interval_s: int
    waiting: bool


class CertificateReply(BaseModel):
    """A client certificate (PEM), good for 90 days."""

    certificate: str


class RotateReply(BaseModel):
    """The server's signed word that the new key has taken the old one's place."""

    rotated: str
    sig: str


class LeaseReply(BaseModel):
    """A lease with its fencing token and how long it lasts; or why there is none, and how long to wait (0: not known)."""

    fence: int | None
    for_s: int
    reason: str


class Head(BaseModel):
    """A place in a chain and the SHA-256 of the bundle there."""

    epoch: int
    seq: int
    digest: str


class DurableLog(BaseModel):
    """Entries of a log, from the first on, that a verified backup of the server holds with their records."""

    origin: str
    size: int


class CheckinReply(BaseModel):
    """What the server holds of the host's chain, how often to call, and what of the site's logs a backup holds."""

    server_time: str
    known: Head | None
    min_interval_s: int
    orders: list[str]
    order_trust: list[str]
    durable: list[DurableLog]


class SignedAck(BaseModel):
    """The exact bytes of the acknowledgement of a batch, and the server's signature over them, in base64."""

    document: str
    sig: str


class Expected(BaseModel):
    """The place in the chain that the server wants next, and the digest it must follow."""

    epoch: int
    seq: int
    prev: str


class StoppedAt(BaseModel):
    """The first bundle that was not taken, counted from 0."""

    index: int
    code: str
    expected: Expected | None


class LogReceipt(BaseModel):
    """A bundle's entry in its site's log and the proof that it is there (C2SP tlog-proof), both in base64."""

    bundle_id: str
    leaf: str
    proof: str


class ReceiptsReply(BaseModel):
    """Receipts in the order asked for; null for what is not published."""

    receipts: list[LogReceipt | None]


class EvidenceReply(BaseModel):
    """The acknowledgement, of bundles from the first on; where it stopped, if it did; the receipts that were ready, in order."""

    ack: SignedAck
    receipts: list[LogReceipt | None]
    stopped: StoppedAt | None
    min_interval_s: int | None


class Problem(BaseModel):
    """RFC 9457: what was refused and why."""

    type: str
    title: str
    status: int
    detail: str
    code: str
    trace_id: str
    expected: Expected | None = None


class SiteOut(BaseModel):
    """A clinic at a glance."""

    site_id: str
    client_id: str
    hosts: int
    silent: int
    counts: dict[str, int]
    oldest_unmet_at: datetime | None


class HostOut(BaseModel):
    """A host at a glance."""

    key_id: str
    host_id: str
    site_id: str
    client_id: str
    enrolled_at: datetime
    revoked_at: datetime | None
    last_seen_at: datetime | None
    heartbeat_at: datetime | None
    silent: bool
    broken: bool
    forks: int
    waiting_since: datetime | None
    contested_at: datetime | None
    agent_version: str
    baseline_version: str
    head: Head | None
    pending: int | None
    counts: dict[str, int]
    oldest_unmet_at: datetime | None


class CheckOut(BaseModel):
    """A check as it stands; `reported` is what the evidence said last, `result` what may be relied on now."""

    check: str
    result: str
    reason: str
    reported: str
    reported_reason: str
    since: datetime
    seen_at: datetime
    bundle_id: str


class BundleOut(BaseModel):
    """A bundle in a list. `created_at` is the host's claim."""

    bundle_id: str
    key_id: str
    site_id: str
    epoch: int
    seq: int
    sha256: str
    prev: str
    kind: str
    check: str | None
    result: str | None
    reason: str | None
    outcome: str | None
    created_at: str
    received_at: datetime


class BaselineOut(BaseModel):
    """A baseline that is held for the hosts of a site."""

    version: str
    sha256: str


class BaselineWhole(BaselineOut):
    """The same with its exact bytes and signature, in base64."""

    baseline: str
    sig: str


class ExceptionOut(BaseModel):
    """An exception: what it is about (`key_id` null is every host of the site), and whether it stands now.

    `sha256` is of its canonical JSON, which the entries of the site's log about it name.
    """

    exception_id: str
    site_id: str
    key_id: str | None
    check: str
    reason: str
    measure: str
    reference: str
    approver: str
    created_at: datetime
    expires_at: datetime
    withdrawn_at: datetime | None
    withdrawn_by: str | None
    people: int
    seconded_at: datetime | None
    seconded_by: str | None
    state: str
    sha256: str


class PacketFile(BaseModel):
    """A file of a packet that is done."""

    name: str
    size: int
    sha256: str


class PacketOut(BaseModel):
    """A packet that the caller asked for: how far it is (`at` of `total` of its stage), and what came of it.

    `sample` says how it is drawn, where it is one.
    """

    job_id: str
    site_id: str
    first: date
    last: date
    control: str | None
    host: str | None
    sample: dict[str, Any] | None
    asked_at: datetime
    state: Literal["waiting", "running", "done", "failed", "cancelled", "gone"]
    stage: str
    at: int
    total: int
    code: str
    records: int
    problems: int
    files: list[PacketFile]


class PacketListed(PacketOut):
    """A packet in a list, with the name of the person who asked for it; empty for one who is not there any more."""

    asked_by: str


class OrderMarkOut(BaseModel):
    """Who approved (a person's name) or signed (a key id) an order."""

    what: str
    who: str
    at: datetime


class OrderOut(BaseModel):
    """An order: what it asks for, where it stands, the exact bytes, and the record that says how it ended."""

    order_id: str
    site_id: str
    key_id: str
    kind: str
    parameters: dict[str, Any]
    state: str
    life_s: int
    drafted_by: str
    drafted_at: datetime
    baseline_sha256: str | None
    signers: list[str]
    counter: int | None
    not_before: datetime | None
    expires: datetime | None
    payload: str | None
    envelope: str | None
    sha256: str | None
    ended_at: datetime | None
    outcome: str | None
    error: str | None
    bundle_id: str | None
    marks: list[OrderMarkOut]


class PageOut(BaseModel):
    """Part of a list, newest first; give `next` as `before` for the following part."""

    items: list[BundleOut]
    next: int | None


class PointOut(BaseModel):
    """One thing that was verified for this answer."""

    name: str
    holds: bool
    code: str


class Retention(BaseModel):
    """How long a record is kept: `retain_until` is the last day, the earliest it can be while `in_effect`; holds beat it."""

    retain_until: date
    in_effect: bool
    holds: list[str]


class BundleWhole(BundleOut):
    """A bundle with its exact bytes, its signature, the key, and its verification, done for this answer."""

    valid: bool
    points: list[PointOut]
    retention: Retention
    bundle: str
    sig: str
    public_key: str


AGENT_MODELS: tuple[type[BaseModel], ...] = (
    ChallengeRequest,
    EnrolRequest,
    RotateRequest,
    LeaseRequest,
    CertificateRequest,
    CheckinRequest,
    EvidenceRequest,
    ReceiptsRequest,
    OrderDraft,
    OrderSigners,
    OrderSignature,
    BaselineSent,
)
M = TypeVar("M", bound=Sent)


async def strict_body(request: Request, model: type[M]) -> M:
    """The request's body as `model`.

    Raises:
        DocumentError: not strict JSON.
        Refusal: 422, names the field.
    """
    value = read_json(await request.body(), limit_bytes=MOST_BODY_BYTES)
    try:
        return model.model_validate(value)
    except ValidationError as error:
        errors = error.errors(include_url=False, include_context=False, include_input=False)
        raise Refusal(first_error(list(errors)), code="bad_request", status=422) from error
