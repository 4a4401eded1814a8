"""What a packet is about: its scope (`packet.json`), its records, and what each record says. Pure.

The scope names what was asked for and whom it concerns; every number about it is counted from the records.
"""

from __future__ import annotations

import functools
import hashlib
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, date, datetime, time, timedelta
from typing import Any

from compliance_agent.core.citations import SECTIONS
from compliance_agent.documents import read_json
from compliance_agent.errors import BadEvidence, ConfigError, DocumentError
from compliance_agent.evidence.allowlist import registry
from compliance_agent.evidence.canonical import canonical
from compliance_agent.packet.register import Accepted

SCHEMA = "compliance-agent/packet/v1"
RESULTS = ("pass", "fail", "unknown", "not_applicable", "exception")
_LABEL = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")
_DIGEST = re.compile(r"[0-9a-f]{64}")
_STAMP = "%Y-%m-%dT%H:%M:%S.%fZ"


@dataclass(frozen=True)
class PacketHost:
    """A host of the scope, with or without evidence in it."""

    host_id: str
    key_id: str
    enrolled_at: str
    revoked_at: str | None


@dataclass(frozen=True)
class BaselineUse:
    """Until when a baseline version was in effect on the hosts of one label, as the server knows it.

    Attributes:
        last_day: of the last record that names it, those that are not in the packet included.
        in_effect: it is in effect still, so that what is kept for it has no last day yet.
    """

    host_id: str
    version: str
    last_day: str
    in_effect: bool


@dataclass(frozen=True)
class Limits:
    """The days, UTC, that whoever the packet was built for may see: it has no record of another day.

    Attributes:
        first, last: both included.
    """

    first: str
    last: str


@dataclass(frozen=True)
class Scope:
    """What was asked for, and what the packet can therefore be held to.

    Attributes:
        since, until: first and last day, UTC, by the start of what a record is about.
        control: the one section of 45 CFR that was asked for, or None for all.
        host: label of the one host that was asked for, or None for all.
        origin, size: of the log; `signed_at`: when its checkpoint was signed, by the server's clock.
        hosts: whom the packet concerns.
        pending: records of the period that were not in the log yet.
        elsewhere: records of the period that are in the logs of other years, by year.
        minimum: of the log; records below it were destroyed when their time was over.
        destroyed: such records of the period, by when they were made, of whatever log.
        baselines: of these hosts, by label and version; with them follows how long each record is kept.
        held: labels of the hosts whose records are under a hold.
        sample: SHA-256 of `sample.json`, where the packet is a sample; None, and no word in `packet.json`, where it is not.
        exceptions: that people recorded at the server, in the order in which they did; None of a packet that was built before.
        limits: of whoever it was built for; None, and no word in `packet.json`, where there are none.
    """

    site_id: str
    since: str
    until: str
    control: str | None
    host: str | None
    origin: str
    size: int
    signed_at: str
    hosts: tuple[PacketHost, ...]
    pending: int
    elsewhere: Mapping[str, int]
    minimum: int = 0
    destroyed: int = 0
    baselines: tuple[BaselineUse, ...] = ()
    held: tuple[str, ...] = ()
    limits: Limits | None = None
    sample: str | None = None
    exceptions: tuple[Accepted, ...] | None = None

    @property
    def filtered(self) -> bool:
        """Whether it was asked for less than all of the site on these days, or is for an account that may not see all."""
        return any(one is not None for one in (self.control, self.host, self.sample, self.limits))

    @property
    def start(self) -> datetime:
        """The first moment of the period."""
        return first_moment(self.since)

    @property
    def end(self) -> datetime:
        """The first moment after the period."""
        return first_moment(self.until) + timedelta(days=1)

    def holds(self, document: Mapping[str, Any]) -> bool:
        """Whether a record is of the period."""
        return self.since <= day_of(document) <= self.until

    def encode(self) -> bytes:
        """`packet.json`."""
        named = [name for name in ("hosts", "baselines", "exceptions") if getattr(self, name) is not None]
        lists = {name: [asdict(item) for item in getattr(self, name)] for name in named}
        said = {"schema": SCHEMA, **asdict(self), **lists, "held": list(self.held)}
        unsaid = {name for name in ("limits", "sample", "exceptions") if said[name] is None}
        return canonical({name: said[name] for name in said if name not in unsaid})

    @classmethod
    def parse(cls, raw: bytes) -> Scope:
        """The scope of exactly these bytes; code `bad_scope`."""
        try:
            found = read_json(raw)
            if not isinstance(found, dict) or found.pop("schema", None) != SCHEMA:
                raise ValueError
            hosts = tuple(PacketHost(**host) for host in found.pop("hosts"))
            baselines = tuple(BaselineUse(**use) for use in found.pop("baselines"))
            limits = Limits(**found.pop("limits")) if "limits" in found else None
            accepted = tuple(Accepted(**one) for one in found.pop("exceptions")) if "exceptions" in found else None
            held = tuple(found.pop("held"))
            scope = cls(hosts=hosts, baselines=baselines, held=held, limits=limits, exceptions=accepted, **found)
            _check(scope)
            if scope.encode() != raw:
                raise ValueError
        except (
            DocumentError,
            BadEvidence,
            ConfigError,
            TypeError,
            ValueError,
            KeyError,
            AttributeError,
            OverflowError,
        ) as error:
            raise BadEvidence("packet.json is not the scope of a packet", code="bad_scope") from error
        return scope


@dataclass(frozen=True)
class Record:
    """One bundle of the packet: its exact bytes, and its entry and index in the log.

    Attributes:
        sha256: of `body`, and at: `directory`, where somebody has computed them already.
    """

    document: Mapping[str, Any]
    body: bytes
    signature: bytes
    leaf: bytes
    index: int
    sha256: str = ""
    at: str = ""

    @property
    def digest(self) -> str:
        """SHA-256 of its bytes, in hex."""
        return self.sha256 or hashlib.sha256(self.body).hexdigest()

    @property
    def directory(self) -> str:
        """Where it stands in the packet."""
        return self.at or directory_of(self.document)

    @property
    def place(self) -> tuple[str, int, int]:
        """Key, epoch and number."""
        return self.document["host"]["key_id"], self.document["epoch"], self.document["seq"]


def directory_of(document: Mapping[str, Any]) -> str:
    """`evidence/<host>/YYYY/MM/DD/<bundle_id>`, the day being that of `timestamp_start` in UTC."""
    return f"evidence/{document['host']['id']}/{day_of(document).replace('-', '/')}/{document['bundle_id']}"


def day_of(document: Mapping[str, Any]) -> str:
    """The day of `timestamp_start`, which the schema has in UTC."""
    start: str = document["timestamp_start"]
    return start[:10] if start.endswith("Z") else moment(start).date().isoformat()


def in_order(records: Iterable[Record], scope: Scope) -> Sequence[Record]:
    """The records of the period, host by host, each in the order of its chain."""
    return sorted(
        (record for record in records if scope.holds(record.document)),
        key=lambda record: (record.document["host"]["id"], record.place),
    )


def first_moment(day: str) -> datetime:
    """When a day begins, in UTC."""
    return datetime.combine(date.fromisoformat(day), time(), UTC)


def moment(text: str) -> datetime:
    """A record's time, in UTC."""
    return datetime.fromisoformat(text).astimezone(UTC)


def stamp(at: datetime) -> str:
    """A time as records spell it."""
    return at.astimezone(UTC).strftime(_STAMP)


def section(control: str) -> str:
    """The section a person means by `164.312(b)` or `hipaa-164.312.b`; ConfigError for one that cannot be cited."""
    for name in SECTIONS:
        if control in {name, control_id(name)}:
            return name
    raise ConfigError(
        f"control: {control[:60]!r} is not a section of 45 CFR 164 Subpart C that is known here",
        code="unknown_control",
        hint="write it as 164.312(b)",
    )


def control_id(name: str) -> str:
    """A section as an OSCAL token: `164.312(a)(2)(iv)` is `hipaa-164.312.a.2.iv`."""
    return "hipaa-" + name.replace("(", ".").replace(")", "")


@functools.cache
def checks_of(name: str) -> tuple[str, ...]:
    """The checks that cite a section."""
    return tuple(check for check, entry in registry().checks.items() if name in entry["citations"])


def concerns(document: Mapping[str, Any], control: str | None) -> bool:
    """Whether a record says something about a section: by its own citations, or as a heartbeat that states such a check."""
    if control is None or control in document["hipaa_controls"]:
        return True
    return any(check in document["states"] for check in checks_of(control))


def statements(document: Mapping[str, Any]) -> Iterator[tuple[str, str, str]]:
    """(check, result, reason) for each verdict a record states, in order; a cure states what was before it and after."""
    for check, state in document["states"].items():
        yield check, state["result"], state["reason"]
    check = document["check"]
    if check is not None and document["result"] is not None:
        yield check, document["result"], document["reason"] or ""
    if check is not None and document["post_result"] is not None:
        yield check, document["post_result"], document["post_reason"] or ""


def counted(words: Iterable[str]) -> dict[str, int]:
    """How often each result stands there; every result is named, `unknown` too."""
    found = list(words)
    return {result: found.count(result) for result in RESULTS}


def _check(scope: Scope) -> None:
    if [scope.since, scope.until] != [
        scope.start.date().isoformat(),
        (scope.end - timedelta(days=1)).date().isoformat(),
    ]:
        raise ValueError
    if scope.limits is not None:
        days = [scope.limits.first, scope.since, scope.until, scope.limits.last]
        if days != [date.fromisoformat(day).isoformat() for day in days] or days != sorted(days):
            raise ValueError
    labels: Sequence[str] = [scope.site_id, *(host.host_id for host in scope.hosts), *scope.held]
    labels = [*labels, scope.host] if scope.host is not None else labels
    if not all(_LABEL.fullmatch(label) for label in labels) or scope.start >= scope.end:
        raise ValueError
    if not all(
        _DIGEST.fullmatch(digest) for digest in (*(host.key_id for host in scope.hosts), scope.sample or "0" * 64)
    ):
        raise ValueError
    if scope.control is not None and section(scope.control) != scope.control:
        raise ValueError
    for text in (scope.signed_at, *(host.enrolled_at for host in scope.hosts)):
        moment(text)
    for host in scope.hosts:
        moment(host.revoked_at or host.enrolled_at)
    uses = [(use.host_id, use.version) for use in scope.baselines]
    if uses != sorted(set(uses)) or list(scope.held) != sorted(set(scope.held)):
        raise ValueError
    for use in scope.baselines:
        if date.fromisoformat(use.last_day).isoformat() != use.last_day or type(use.in_effect) is not bool:
            raise ValueError
    if min(scope.size, scope.pending, scope.minimum, scope.destroyed, *scope.elsewhere.values()) < 0 or not isinstance(
        scope.origin, str
    ):
        raise ValueError
