"""The auditor's side, offline: do these bundles verify, and is the chain whole?

Each bundle is checked alone (strict signature over the exact bytes, canonical form, schema, key id), then each host's bundles
together (`chains`): `seq` without a gap, `prev` the digest of the bundle before, epochs in order, the clock of one boot never
running back. Where a receipt stands beside a bundle and the log's key is known, it is checked too (`logged`). Every problem is
named by bundle and code. Trusted are only the public keys, which come from the caller or stand beside the evidence as
`keys/*.pub.pem` and `keys/*.vkey`; then the report says so, because whoever can change both proves nothing.

Records are judged in batches that `spread` may give to several processes; what is kept of each is a short row.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from compliance_agent import crypto
from compliance_agent.adapters.durable import read_file
from compliance_agent.documents import read_json
from compliance_agent.entries.interval import Timeline
from compliance_agent.errors import AgentError, BadEvidence, DocumentError, NoInput
from compliance_agent.evidence import walk
from compliance_agent.evidence.alike import Alike
from compliance_agent.evidence.allowlist import check_document, registry
from compliance_agent.evidence.canonical import is_canonical, read_canonical
from compliance_agent.evidence.chains import Chain, Chains, Row, Tagger, packed
from compliance_agent.evidence.logged import Met, Receipts, Roots, log_keys_beside
from compliance_agent.evidence.problems import CODES, Problem
from compliance_agent.evidence.served import Held, ServedLog
from compliance_agent.evidence.shed import marks_beside
from compliance_agent.evidence.times import Times
from compliance_agent.evidence.walk import BUNDLE, SIGNATURE, Batch, Place
from compliance_agent.log.note import VerifierKey
from compliance_agent.log.policy import Policy

MAX_BUNDLE_BYTES = 65_535
PARENTS_WITH_KEYS = 6  # from a bundle's directory over its day, month and year up to the host's

_PLAIN = json.JSONDecoder().raw_decode  # for what was found to be JSON, and ASCII, already

Spread = Callable[[Callable[[Batch], "Part"], Iterable[Batch]], Iterable["Part"]]


@dataclass
class Report:
    """What `verify_paths` found. `ok` means: something was there, and nothing was wrong with it.

    `receipts_unchecked` counts receipts for which no log's key was given; nothing is claimed of them.
    """

    found: int = 0
    verified: int = 0
    keys_beside_evidence: bool = False
    receipts_unchecked: int = 0
    chains: list[Chain] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    logs: list[ServedLog] = field(default_factory=list)
    times: Times = field(default_factory=lambda: Times({}))

    @property
    def ok(self) -> bool:
        """Every bundle verified and every chain is whole, and every log that was read is."""
        return (self.found > 0 or bool(self.logs)) and not self.problems

    @property
    def exit_status(self) -> int:
        """0 all verified, 65 something is wrong, 66 nothing was found."""
        if self.found == 0 and not self.logs:
            return NoInput.exit_status
        return 0 if self.ok else BadEvidence.exit_status

    def as_document(self) -> dict[str, Any]:
        """The report as the JSON of `verify --json` (schema compliance-agent/verify/v1)."""
        return {
            "schema": "compliance-agent/verify/v1",
            "ok": self.ok,
            "found": self.found,
            "verified": self.verified,
            "keys_beside_evidence": self.keys_beside_evidence,
            "receipts_unchecked": self.receipts_unchecked,
            "chains": [
                {
                    "host": chain.host,
                    "key_id": chain.key_id,
                    "bundles": chain.bundles,
                    "first": {"epoch": chain.first[0], "seq": chain.first[1]},
                    "last": {"epoch": chain.last[0], "seq": chain.last[1]},
                    "epochs": chain.epochs,
                    "head": chain.head,
                    "receipted": chain.receipted,
                    "shed": None if chain.shed is None else {"epoch": chain.shed[0], "seq": chain.shed[1]},
                }
                for chain in self.chains
            ],
            "logs": [log.as_document() for log in self.logs],
            "times": self.times.as_document(),
            "problems": [{"code": item.code, "where": item.where, "detail": item.detail} for item in self.problems],
        }


@dataclass
class Part:
    """What is found in one batch; small enough to go from one process to another.

    Attributes:
        rows: by key and epoch: the rows, and number, digest and host label of the last of them.
        receipted: verified receipts by key.
        met: the checkpoints in them.
    """

    found: int = 0
    verified: int = 0
    rows: dict[tuple[str, int], tuple[bytearray, tuple[int, str, str]]] = field(default_factory=dict)
    receipted: Counter[str] = field(default_factory=Counter)
    met: Met = field(default_factory=Met)
    problems: list[Problem] = field(default_factory=list)


class Judge:
    """Judges the records of a batch one by one; called in a process of its own, so all it needs is in here.

    Args:
        keys: raw public keys by key id.
        receipts: judges receipts.
        tags: of this run.
    """

    def __init__(self, keys: Mapping[str, bytes], receipts: Receipts, tags: Tagger) -> None:
        self._keys = keys
        self._receipts = receipts
        self._tags = tags
        self._alike = Alike(registry())

    def __call__(self, batch: Batch) -> Part:
        part = Part()
        for place in walk.places(batch):
            part.found += 1
            try:
                self._judge(place, part)
            except BadEvidence as error:
                part.problems.append(Problem(error.code, place.name, str(error)))
        return part

    def _judge(self, place: Place, part: Part) -> None:
        body = place.read(place.document, MAX_BUNDLE_BYTES)
        signature = place.read(SIGNATURE, crypto.SIGNATURE_BYTES)
        if body is None or signature is None:
            raise BadEvidence(f"{place.name}: {CODES['unreadable']}", code="unreadable")
        document = check_bytes(body, signature, self._keys, self._alike)
        if place.document == BUNDLE and place.name != document["bundle_id"]:
            raise BadEvidence(f"bundle {document['bundle_id']}: {CODES['misplaced']}", code="misplaced")
        part.verified += 1
        digest, key_id = hashlib.sha256(body).hexdigest(), document["host"]["key_id"]
        proven = None
        try:
            proven = self._receipts.check(place, document, digest, signature, part.met)
            part.receipted[key_id] += proven is not None
        finally:  # a bundle is judged without its receipt
            row = packed(document, digest, self._tags, proven)
            head = (document["seq"], digest, document["host"]["id"])
            rows, last = part.rows.get((key_id, document["epoch"]), (bytearray(), head))
            part.rows[key_id, document["epoch"]] = (rows, max(last, head))
            rows += row


def verify_paths(
    paths: Sequence[Path],
    keys: Mapping[str, bytes] | None = None,
    *,
    log_keys: Collection[VerifierKey] | None = None,
    policy: Policy | None = None,
    logs: Sequence[ServedLog] = (),
    tags: Tagger | None = None,
    each_time: bool = False,
    spread: Spread = map,
    progress: Callable[[int], None] | None = None,
) -> Report:
    """Verify every bundle under these paths.

    Args:
        paths: bundle directories, bundle.json files, evidence directories, or a host's directory with `keys/` in it.
        keys: raw public keys by key id; None takes `keys/*.pub.pem` in or beside the paths.
        log_keys: of the logs; None takes `keys/*.vkey` in or beside the paths.
        policy: the logs and witnesses to trust, instead of `log_keys`.
        logs: that were read under `policy`; every record is held against them.
        tags: those that `logs` were read with.
        each_time: keep the interval of every record.
        spread: as `map`, possibly in other processes.
        progress: told how many bundles are done.

    Raises:
        NoInput, NotPermitted: a path is not there, or cannot be listed.
        BadEvidence: a key file beside the evidence is not a usable public key.
    """
    report = Report(keys_beside_evidence=keys is None)
    known = dict(keys) if keys is not None else keys_beside(paths)
    if policy is None:
        found = log_keys_beside(paths, PARENTS_WITH_KEYS) if log_keys is None else log_keys
        policy = Policy(tuple(found), {}, {}, "none", {})
    tags = tags or Tagger()
    chains, roots = Chains(tags), Roots(tags)
    for part in spread(Judge(known, Receipts(policy), tags), walk.batches(paths)):
        report.found += part.found
        report.verified += part.verified
        report.problems += part.problems
        for (key_id, epoch), (rows, head) in part.rows.items():
            chains.add(key_id, epoch, rows, head)
        chains.receipted.update(part.receipted)
        report.receipts_unchecked += part.met.unchecked
        report.problems += roots.merge(part.met)
        if progress is not None:
            progress(report.found)
    whole = not all(_is_single(path) for path in paths)
    marks, wrong = marks_beside(paths, policy) if whole else ({}, [])
    report.problems += wrong
    held = Held(logs, tags)
    report.times = Times(_timelines(logs, roots, tags), each_time)
    for chain, problems in chains.check(_Visit(roots, held if logs else None, report.times), marks):
        report.chains.append(chain)
        report.problems += [item for item in problems if whole or item.code not in {"missing", "missing_start"}]
    if whole:
        report.problems += held.missing(marks)
    return report


def _timelines(logs: Sequence[ServedLog], roots: Roots, tags: Tagger) -> dict[bytes, Timeline]:
    read = {tags.short(log.origin): log.said for log in logs}
    return {
        log: Timeline(
            read[log].said if log in read else (), [*(read[log].shown if log in read else ()), *roots.shown[log]]
        )
        for log in read.keys() | roots.shown.keys()
    }


@dataclass(frozen=True)
class _Visit:
    """Shown every record in the order of its chain, after all of them were read."""

    roots: Roots
    held: Held | None
    times: Times

    def __call__(self, key_id: str, epoch: int, row: Row) -> Iterator[Problem]:
        yield from self.roots.visit(row)
        entry, head_holds = ((row.log, row.at) if row.at >= 0 else None), False
        if self.held is not None:
            entry, wrong = self.held.find(key_id, epoch, row)
            if wrong is not None:
                yield wrong
            holds = self.held.head(row)
            if holds is False:
                yield Problem("split_view", row.bundle_id, f"its host verified another log of size {row.head_size}")
            head_holds = holds is True
        yield from self.times.visit(key_id, epoch, row, entry, head_holds)


def _is_single(path: Path) -> bool:
    """A bundle named by itself makes no claim about the bundles before and after it."""
    return path.is_file() or (path / BUNDLE).is_file()


def keys_beside(paths: Iterable[Path]) -> dict[str, bytes]:
    """Public keys that stand with the evidence: `keys/*.pub.pem` in a path, above it, or below it."""
    keys: dict[str, bytes] = {}
    for file in walk.beside(paths, "*.pub.pem", PARENTS_WITH_KEYS):
        keys |= read_key(file)
    return keys


def read_key(path: Path) -> dict[str, bytes]:
    """The public key of a PEM file under its key id.

    Raises:
        NoInput, NotPermitted: it cannot be read.
        BadEvidence: it is no Ed25519 public key, or a weak one.
    """
    try:
        public = crypto.read_public_pem(read_file(path, limit_bytes=16_384))
    except BadEvidence as error:
        raise BadEvidence(f"key {path}: {error}", code=error.code) from error
    return {crypto.key_id(public): public}


def check_bytes(body: bytes, signature: bytes, keys: Mapping[str, bytes], alike: Alike | None = None) -> dict[str, Any]:
    """The document of one bundle, after its bytes, signature, form and schema were checked.

    Args:
        body, signature: of the bundle.
        keys: raw public keys by key id.
        alike: for whoever checks many: what was seen lately.

    Raises:
        BadEvidence: `code` is one of CODES.
    """
    seen = None if alike is None else alike.read(body)
    if seen is not None:
        return seen if _is_signed(seen, body, signature, keys) else _named(body, signature, keys)
    spelled = registry().spelled(body)
    document = _PLAIN(body.decode("ascii"))[0] if spelled else read_canonical(body)
    if isinstance(document, dict) and _verifies(document, body, signature, keys, spelled=spelled):
        if alike is not None and spelled:
            alike.learn(body, document)
        return document
    return _named(body, signature, keys)


def _verifies(
    document: dict[str, Any], body: bytes, signature: bytes, keys: Mapping[str, bytes], *, spelled: bool
) -> bool:
    """Whether all is well; the slow way says what is not."""
    try:
        if not _is_signed(document, body, signature, keys):
            return False
        check_document(document, spelled=spelled)
    except BadEvidence:
        return False
    return True


def _is_signed(document: Any, body: bytes, signature: bytes, keys: Mapping[str, bytes]) -> bool:
    return crypto.verify(_named_key(document, keys), signature, body)


def _named_key(document: Any, keys: Mapping[str, bytes]) -> bytes:
    host = document.get("host") if isinstance(document, dict) else None
    named = host.get("key_id") if isinstance(host, dict) else None
    if isinstance(named, str) and named in keys:
        return keys[named]
    raise BadEvidence(f"bundle: {CODES['no_key']}", code="no_key")


def _named(body: bytes, signature: bytes, keys: Mapping[str, bytes]) -> dict[str, Any]:
    """As `check_bytes`, one check after the other, so that the first thing that is wrong is named."""
    try:
        document = read_json(body, limit_bytes=MAX_BUNDLE_BYTES)
    except DocumentError as error:
        raise BadEvidence(f"bundle: {error}", code="not_json") from error
    if not is_canonical(body):
        raise BadEvidence(f"bundle: {CODES['not_canonical']}", code="not_canonical")
    if not _is_signed(document, body, signature, keys):
        raise BadEvidence(f"bundle: {CODES['bad_signature']}", code="bad_signature")
    check_document(document)
    return dict(document)


def load_keys(files: Iterable[Path]) -> dict[str, bytes]:
    """The public keys that an auditor names.

    Raises:
        NoInput, NotPermitted, BadEvidence: a file is no usable public key.
    """
    keys: dict[str, bytes] = {}
    for file in files:
        try:
            keys |= read_key(file)
        except AgentError as error:
            error.hint = error.hint or "a PEM file as in keys/HOST.pub.pem"
            raise
    return keys
