"""What may leave a host: the bundle document as a schema in which no string is open, shared by agent and server.

Every leaf is a truth, a bounded number, a word of a closed list, a time, a digest, an id, a version, or a name that the
baseline or the configuration gave. Facts are held against what their check declares in `registry.json`, which is
generated from the checks (`python -m compliance_agent.lab.golden`), so that the server needs no check's code. A bundle
that fits cannot hold what a host calls its users, files or patients (RELIABILITY 3.5).

`build` makes the document from an `EvidenceBundle`, `check_document` judges any parsed document; both are pure.
"""

from __future__ import annotations

import functools
import json
import pkgutil
import re
from collections.abc import Callable, Collection, Container, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from compliance_agent import facts
from compliance_agent.core.receipt import ORIGIN, read_note
from compliance_agent.dataclass import dataclass
from compliance_agent.errors import BadEvidence
from compliance_agent.facts import Bool, Choice, Digest, FactType, Int, Many, Name, Timestamp
from compliance_agent.log.fields import from_base64
from compliance_agent.models import (
    STATS,
    ActionTaken,
    BundleKind,
    ClockState,
    EvidenceBundle,
    Outcome,
    Result,
    Severity,
)

SCHEMA = "compliance-agent/bundle/v1"
NO_PREV = "0" * 64
UNDECLARED = "undeclared"
TRIGGERS = ("schedule", "event", "manual", "order", "start")
CLOCK_SOURCES = ("chrony", "ntpd", "timesyncd", "kernel", "none", "unknown")
ACTION_RESULTS = ("ok", "failed", "skipped", "undone", "undo_failed")
COUNTS = (
    *STATS,
    *Result,
    "pending",
    "failed",
    "uploaded",
    "damaged",
    "gaps",
    "skipped_ticks",
    "rows_saved",
    "uid",
    "paused_s",
    UNDECLARED,
)
MAX_LIST = 64
MAX_NOTE_TEXT = 8_192

Names = Mapping[str, Mapping[str, Collection[str]]]


@dataclass(frozen=True)
class Pattern(FactType):
    """A string that one bounded regular expression without spaces matches whole, such as a UUID."""

    label: str
    regex: str

    def accepts(self, value: object, names: Mapping[str, Collection[str]]) -> bool:
        return isinstance(value, str) and re.fullmatch(self.regex, value, re.ASCII) is not None

    def schema(self) -> dict[str, Any]:
        return {"type": self.label, "regex": self.regex}


@dataclass(frozen=True)
class SignedNote(FactType):
    """Base64 of a checkpoint as a log's server signed it, at most 8 KiB; the host adds no word of its own to it."""

    def accepts(self, value: object, names: Mapping[str, Collection[str]]) -> bool:
        return isinstance(value, str) and len(value) <= MAX_NOTE_TEXT and _noted(value) is not None

    def schema(self) -> dict[str, Any]:
        return {"type": "signed_note"}


def _noted(text: str) -> str | None:
    """The origin of a checkpoint in base64, None when it is none."""
    try:
        return read_note(from_base64(text, "note", "bad_schema")).origin
    except BadEvidence:
        return None


@dataclass(frozen=True)
class Maybe:
    """The value, or null for "none" and "could not tell"."""

    of: Any


@dataclass(frozen=True)
class Rows:
    """A list of at most `at_most` objects or leaves."""

    of: Any
    at_most: int = MAX_LIST


@dataclass(frozen=True)
class ByWord:
    """An object whose keys are words of a closed list."""

    words: tuple[str, ...]
    of: Any


@dataclass(frozen=True)
class Facts:
    """The declared facts of the bundle's check."""


UUID = Pattern("uuid", r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")
UUID4 = Pattern("uuid", r"[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}")
ORDER_ID = Pattern("uuid", r"[0-9a-f]{32}|" + UUID.regex)
LABEL = Pattern("label", r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")  # given by the operator in the configuration
APPROVED = Pattern("name", r"[A-Za-z0-9@._:/+-]{1,96}")  # given by the baseline
VERSION = Pattern("version", facts.VERSION.pattern)
LOG = Pattern("log_origin", ORIGIN)
NATURAL = Int(0, facts.LARGEST_INT)


class _Either(Container[str]):
    """What is in one set or in another, without a third that holds both."""

    __slots__ = ("_one", "_other")

    def __init__(self, one: frozenset[str], other: frozenset[str]) -> None:
        self._one, self._other = one, other

    def __contains__(self, word: object) -> bool:
        return word in self._one or word in self._other


@dataclass(frozen=True)
class Registry:
    """The closed word lists that the checks and actions declare; see `registry.json`."""

    checks: Mapping[str, Mapping[str, Any]]
    common_reasons: tuple[str, ...]
    actions: tuple[str, ...]
    codes: tuple[str, ...]

    @functools.cached_property
    def reasons(self) -> tuple[str, ...]:
        """Every word that may say why: of any check, and why something was not done."""
        return tuple(sorted(self._own[None] | self._common[True]))

    def may_say(self, check: str | None, gates: bool) -> Container[str]:
        """To be asked whether a word may say why: of the check (None: of any), and with `gates` also why something was not done."""
        return _Either(self._own[check], self._common[gates])

    @functools.cached_property
    def _own(self) -> dict[str | None, frozenset[str]]:
        own: dict[str | None, frozenset[str]] = {
            check: frozenset(entry["reasons"]) for check, entry in self.checks.items()
        }
        return own | {None: frozenset().union(*own.values())}

    @functools.cached_property
    def _common(self) -> tuple[frozenset[str], frozenset[str]]:
        """What every check may say, without and with why something was not done: once for all, for there are hundreds."""
        common = frozenset({*self.common_reasons, UNDECLARED})
        return common, common | {*self.codes}

    @functools.cached_property
    def citations(self) -> tuple[str, ...]:
        """Every section that some check cites."""
        return tuple(sorted({section for entry in self.checks.values() for section in entry["citations"]}))

    @functools.cached_property
    def schema(self) -> dict[str, Any]:
        """The document's schema with every word list filled in."""
        return _schema(self)

    @functools.cached_property
    def accepts(self) -> Callable[[Any], bool]:
        """The schema as one function."""
        from compliance_agent.evidence.accepting import accepting

        return accepting(self.schema)

    @functools.cached_property
    def accepts_facts(self) -> dict[str, Callable[[Any], bool]]:
        """Declared facts by check, as one function each; names of the baseline by their form alone."""
        from compliance_agent.evidence.accepting import facts_accepting

        return {check: facts_accepting(declared) for check, declared in self.facts_of.items()}

    @functools.cached_property
    def spelled(self) -> Callable[[bytes], bool]:
        """The schema and the canonical form as one expression over bytes; it may refuse what is allowed."""
        from compliance_agent.evidence.spelled import Spelling

        return Spelling(self)

    @functools.cached_property
    def facts_of(self) -> dict[str, dict[str, FactType]]:
        """Declared facts by check and name."""
        return {
            check: {name: facts.from_schema(fact["schema"]) for name, fact in entry["facts"].items()}
            for check, entry in self.checks.items()
        }


@functools.cache
def registry() -> Registry:
    """The registry that was generated with this version of the package."""
    return read_registry((pkgutil.get_data(__package__, "registry.json") or b"").decode())


def read_registry(text: str) -> Registry:
    """A registry from its JSON text."""
    data = json.loads(text)
    return Registry(data["checks"], tuple(data["common_reasons"]), tuple(data["actions"]), tuple(data["codes"]))


def _schema(known: Registry) -> dict[str, Any]:
    any_reason = Choice(known.reasons)
    code = Choice((*known.codes, UNDECLARED))
    result = Choice(tuple(Result))
    checks = tuple(known.checks)
    return {
        "schema": Choice((SCHEMA,)),
        "bundle_id": UUID4,
        "kind": Choice(tuple(BundleKind)),
        "client_id": LABEL,
        "site_id": LABEL,
        "host": {"id": LABEL, "key_id": Digest()},
        "deployment_mode": Choice(("direct", "reseller")),
        "epoch": NATURAL,
        "seq": Int(1, facts.LARGEST_INT),
        "prev": Digest(),
        "log_head": Maybe({"origin": LOG, "size": NATURAL, "root": Digest(), "witnessed_at": Maybe(Timestamp())}),
        "created_at": Timestamp(),
        "timestamp_start": Timestamp(),
        "timestamp_end": Timestamp(),
        "clock": {
            "source": Choice(CLOCK_SOURCES),
            "synchronized": Maybe(Bool()),
            "offset_us": Maybe(Int(-facts.LARGEST_INT, facts.LARGEST_INT)),
            "stratum": Maybe(Int(0, 16)),
            "boot_id": Maybe(UUID),
            "monotonic_ns": NATURAL,
        },
        "agent": {"version": VERSION, "sha256": Digest()},
        "baseline": Maybe({"version": VERSION, "sha256": Digest()}),
        "policy_version": VERSION,
        "trigger": Choice(TRIGGERS),
        "check": Maybe(Choice(checks)),
        "result": Maybe(result),
        "reason": Maybe(any_reason),
        "severity": Maybe(Choice(tuple(Severity))),
        "hipaa_controls": Rows(Choice(known.citations)),
        "exception_id": Maybe(APPROVED),
        "pre_state": Facts(),
        "post_state": Facts(),
        "post_result": Maybe(result),
        "post_reason": Maybe(any_reason),
        "outcome": Maybe(Choice(tuple(Outcome))),
        "error": Maybe(code),
        "actions": Rows(
            {
                "step": Int(1, 1_000),
                "action": Choice((*known.actions, UNDECLARED)),
                "result": Choice((*ACTION_RESULTS, UNDECLARED)),
                "exit_code": Maybe(Int(-256, 2**32 - 1)),
                "duration_ms": NATURAL,
                "code": Maybe(code),
            },
            at_most=256,
        ),
        "rollback": {"available": Bool(), "generation": Maybe(NATURAL)},
        "recovered": Bool(),
        "order_id": Maybe(ORDER_ID),
        "states": ByWord(checks, {"result": result, "reason": any_reason}),
        "counts": ByWord(COUNTS, NATURAL),
        "incident": Maybe({"origin": LOG, "ours": SignedNote(), "theirs": SignedNote(), "code": code}),
        "artifacts": Rows({"name": Choice(("order",)), "sha256": Digest(), "size": NATURAL}, at_most=1),
    }


# Judging


def check_document(
    document: Any, *, names: Names | None = None, known: Registry | None = None, spelled: bool = False
) -> None:
    """Hold a parsed bundle document against the schema, the registry and its own inner logic.

    Args:
        document: as `documents.read_json` gave it.
        names: the baseline's own words by check and parameter, where known (on the host); None checks their form only.
        known: another registry than this version's.
        spelled: its bytes are `Registry.spelled`, so that schema and facts need no other look.

    Raises:
        BadEvidence: code `bad_schema`; names the field and what was expected, never the value.
    """
    known = known or registry()
    if not spelled:
        if not known.accepts(document):
            _check(document, known.schema, "")
        _check_facts(document, names, known)
    _check_words(document, known)
    check_logic(document)
    _check_incident(document)
    if document["artifacts"] and document["kind"] != BundleKind.ORDER:
        raise _bad("artifacts", "none in a bundle of another kind than order")


def _bad(field: str, expected: str) -> BadEvidence:
    return BadEvidence(f"{field or 'document'}: expected {expected}", code="bad_schema")


def _check(value: Any, schema: Any, at: str) -> None:  # noqa: PLR0912  one branch for each kind of schema
    if isinstance(schema, Maybe):
        if value is not None:
            _check(value, schema.of, at)
    elif isinstance(schema, FactType):
        if not schema.accepts(value, {}):
            raise _bad(at, schema.schema()["type"])
        if isinstance(schema, Timestamp):
            instant(value, at)
    elif isinstance(schema, Rows):
        if not isinstance(value, list) or len(value) > schema.at_most:
            raise _bad(at, f"a list of at most {schema.at_most}")
        for number, item in enumerate(value):
            _check(item, schema.of, f"{at}[{number}]")
    elif isinstance(schema, ByWord):
        if not isinstance(value, dict) or not schema.words or any(key not in schema.words for key in value):
            raise _bad(at, "an object with declared keys only")
        for key, item in value.items():
            _check(item, schema.of, f"{at}.{key}")
    elif isinstance(schema, Facts):
        if not isinstance(value, dict):
            raise _bad(at, "an object of facts")
    else:
        if not isinstance(value, dict) or value.keys() != schema.keys():
            missing = sorted(schema.keys() - value.keys()) if isinstance(value, dict) else []
            raise _bad(at, f"exactly the declared keys{'; missing: ' + ', '.join(missing) if missing else ''}")
        for key, inner in schema.items():
            _check(value[key], inner, f"{at}.{key}".lstrip("."))


def instant(value: str, at: str) -> datetime:
    """A timestamp of a document as a time.

    Raises:
        BadEvidence: no such day or hour.
    """
    try:
        return datetime.fromisoformat(value).astimezone(UTC)
    except (ValueError, OverflowError) as error:
        raise _bad(at, "a time that exists") from error


def _check_facts(document: Mapping[str, Any], names: Names | None, known: Registry) -> None:
    check = document["check"]
    for field in ("pre_state", "post_state"):
        state = document[field]
        if check is None:
            if state:
                raise _bad(field, "no facts in a bundle of no check")
            continue
        if names is None and known.accepts_facts[check](state):
            continue
        declared = known.facts_of[check]
        for name, value in state.items():
            if name not in declared:
                raise _bad(field, f"facts that check {check} declares")
            if value is not None and not _fact_fits(
                declared[name], value, None if names is None else names.get(check, {})
            ):
                raise _bad(f"{field}.{name}", declared[name].schema()["type"])


def _fact_fits(kind: FactType, value: Any, names: Mapping[str, Collection[str]] | None) -> bool:
    if isinstance(kind, Many):
        return (
            isinstance(value, list)
            and len(value) <= kind.at_most
            and all(_fact_fits(kind.of, item, names) for item in value)
        )
    if isinstance(kind, Name) and names is None:
        return isinstance(value, str) and facts.NAME.fullmatch(value) is not None
    return kind.accepts(value, names or {})


def _check_words(document: Mapping[str, Any], known: Registry) -> None:
    """Reasons and citations must be those of the bundle's own check."""
    check = document["check"]
    if check is not None:
        for field, gates in (("reason", True), ("post_reason", False)):
            if document[field] is not None and document[field] not in known.may_say(check, gates):
                raise _bad(field, f"a reason that check {check} declares")
        if not set(document["hipaa_controls"]) <= set(known.checks[check]["citations"]):
            raise _bad("hipaa_controls", f"sections that check {check} cites")
    for name, state in document["states"].items():
        if state["reason"] not in known.may_say(name, False):
            raise _bad(f"states.{name}.reason", f"a reason that check {name} declares")


def check_logic(document: Mapping[str, Any]) -> None:
    """What its members say of each other; BadEvidence, code `bad_schema`."""
    kind = document["kind"]
    if kind in {BundleKind.DRIFT, BundleKind.REMEDIATION, BundleKind.DRILL} and document["check"] is None:
        raise _bad("check", f"a check in a bundle of kind {kind}")
    start, end = document["timestamp_start"], document["timestamp_end"]
    plainly = len(start) == len(end) and start <= end  # one spelling, so they sort as what they mean
    if not plainly and instant(end, "timestamp_end") < instant(start, "timestamp_start"):
        raise _bad("timestamp_end", "a time not before timestamp_start")
    healed = kind == BundleKind.REMEDIATION and document["outcome"] == Outcome.SUCCESS
    if healed and document["post_result"] not in {None, Result.PASS}:
        raise _bad("outcome", "no success unless the check passed again")
    if document["seq"] == 1 and document["epoch"] == 0 and document["prev"] != NO_PREV:
        raise _bad("prev", "64 zeros in the first bundle")


def _check_incident(document: Mapping[str, Any]) -> None:
    """Two notes that contradict each other are of one log."""
    incident = document["incident"]
    if incident is None:
        return
    if document["kind"] != BundleKind.INCIDENT:
        raise _bad("incident", "null in a bundle of another kind")
    for field in ("ours", "theirs"):
        if _noted(incident[field]) != incident["origin"]:
            raise _bad(f"incident.{field}", "a checkpoint of the origin that is named")
    if incident["ours"] == incident["theirs"]:
        raise _bad("incident", "two notes")


# Building


@dataclass(frozen=True)
class Place:
    """A bundle's place in its host's chain: epoch, number within it, SHA-256 of the bundle before."""

    epoch: int
    seq: int
    prev: str


@dataclass(frozen=True)
class Circumstances:
    """What a bundle says of the host beside its own content."""

    key_id: str
    created_at: datetime
    clock: ClockState
    agent: tuple[str, str]
    baseline: tuple[str, str] | None
    log_head: tuple[str, int, str, datetime | None] | None = None  # last checkpoint verified here, and when witnessed


def timestamp(value: datetime) -> str:
    """RFC 3339 in UTC with `Z` and microseconds. A time without a zone is taken as UTC."""
    aware = value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)
    return aware.strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def build(
    bundle: EvidenceBundle, place: Place, seen: Circumstances, known: Registry | None = None
) -> tuple[dict[str, Any], list[str]]:
    """The document of a bundle, and the fields whose word no list declares (they say `undeclared`; the caller logs it).

    A word that a list lacks is a mistake in this program, not on the host: losing the record would be worse.
    """
    known = known or registry()
    check = bundle.check if bundle.check in known.checks else None
    words = _Words(known)
    clock = seen.clock
    document: dict[str, Any] = {
        "schema": SCHEMA,
        "bundle_id": str(bundle.bundle_id),
        "kind": str(bundle.kind),
        "client_id": bundle.client_id,
        "site_id": str(bundle.site_id),
        "host": {"id": str(bundle.host_id), "key_id": seen.key_id},
        "deployment_mode": bundle.deployment_mode,
        "epoch": place.epoch,
        "seq": place.seq,
        "prev": place.prev,
        "log_head": _log_head(seen.log_head),
        "created_at": timestamp(seen.created_at),
        "timestamp_start": timestamp(bundle.timestamp_start),
        "timestamp_end": timestamp(bundle.timestamp_end),
        "clock": {
            "source": clock.source if clock.source in CLOCK_SOURCES else "unknown",
            "synchronized": clock.synchronized,
            "offset_us": clock.offset_us,
            "stratum": clock.stratum if clock.stratum is not None and 0 <= clock.stratum <= 16 else None,
            "boot_id": clock.boot_id if UUID.accepts(clock.boot_id, {}) else None,
            # 2^53-1 ns are 104 days of uptime; it stays there then: still never running back within a boot.
            "monotonic_ns": min(clock.monotonic_ns, facts.LARGEST_INT),
        },
        "agent": {"version": seen.agent[0], "sha256": seen.agent[1]},
        "baseline": {"version": seen.baseline[0], "sha256": seen.baseline[1]} if seen.baseline else None,
        "policy_version": bundle.policy_version,
        "trigger": str(bundle.trigger),
        "check": check,
        "result": _text(bundle.result),
        "reason": words.of("reason", bundle.reason, known.may_say(check, True)),
        "severity": _text(bundle.severity),
        "hipaa_controls": [str(section) for section in bundle.hipaa_controls or ()],
        "exception_id": bundle.exception_id,
        "pre_state": _plain(bundle.pre_state),
        "post_state": _plain(bundle.post_state),
        "post_result": _text(bundle.post_result),
        "post_reason": words.of("post_reason", bundle.post_reason, known.may_say(check, False)),
        "outcome": _text(bundle.outcome),
        "error": words.of("error", bundle.error, known.codes),
        "actions": [words.action(number, action) for number, action in enumerate(bundle.action_taken)],
        "rollback": {"available": bundle.rollback_available, "generation": bundle.rollback_generation},
        "recovered": bundle.recovered,
        "order_id": bundle.order_id,
        "states": words.states(bundle.states),
        "counts": words.counts(bundle.counts),
        "incident": dict(bundle.incident) if bundle.incident else None,
        "artifacts": [dict(item) for item in bundle.artifacts],
    }
    return document, words.undeclared


def _log_head(head: tuple[str, int, str, datetime | None] | None) -> dict[str, Any] | None:
    if head is None:
        return None
    origin, size, root, at = head
    return {"origin": origin, "size": size, "root": root, "witnessed_at": None if at is None else timestamp(at)}


def _text(value: str | None) -> str | None:
    return str(value) if value else None


def _plain(state: Mapping[str, Any]) -> dict[str, Any]:
    return {name: list(value) if isinstance(value, tuple) else value for name, value in state.items()}


class _Words:
    """Keeps words of closed lists and replaces all others, remembering in which field."""

    def __init__(self, known: Registry) -> None:
        self.known = known
        self.undeclared: list[str] = []

    def of(self, field: str, word: str | None, words: Container[str]) -> str | None:
        if not word:
            return None
        if str(word) in words:
            return str(word)
        self.undeclared.append(field)
        return UNDECLARED

    def action(self, number: int, action: ActionTaken) -> dict[str, Any]:
        at = f"actions[{number}]"
        return {
            "step": action.step,
            "action": self.of(f"{at}.action", action.action, self.known.actions) or UNDECLARED,
            "result": self.of(f"{at}.result", action.result, ACTION_RESULTS) or UNDECLARED,
            "exit_code": action.exit_code,
            "duration_ms": action.duration_ms,
            "code": self.of(f"{at}.code", action.code, self.known.codes),
        }

    def states(self, states: Mapping[str, Sequence[str]]) -> dict[str, Any]:
        found = {}
        for check, (result, reason) in states.items():
            if check not in self.known.checks:
                self.undeclared.append("states")
                continue
            said = self.of(f"states.{check}.reason", reason, self.known.may_say(check, False))
            found[check] = {"result": str(result), "reason": said or UNDECLARED}
        return found

    def counts(self, counts: Mapping[str, int]) -> dict[str, int]:
        kept = {str(name): count for name, count in counts.items() if name in COUNTS}
        if len(kept) != len(counts):
            self.undeclared.append("counts")
        return kept
