"""The auditor's side, offline: do these bundles verify, and is the chain whole?

Each bundle is checked alone (strict signature over the exact bytes, canonical form, schema, key id), then each host's bundles
together: `seq` without a gap, `prev` the digest of the bundle before, epochs in order, the clock of one boot never running
back. Where a receipt stands beside a bundle and the log's key is known, it is checked too (`logged`). Every problem is named by
bundle and code. Trusted are only the public keys, which come from the caller or stand beside the evidence as `keys/*.pub.pem` and
`keys/*.vkey`; then the report says so, because whoever can change both proves nothing.
"""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from compliance_agent import crypto
from compliance_agent.adapters.durable import read_file
from compliance_agent.core import receipt
from compliance_agent.documents import read_json
from compliance_agent.errors import AgentError, BadEvidence, DocumentError, NoInput, NotPermitted
from compliance_agent.evidence.allowlist import NO_PREV, check_document
from compliance_agent.evidence.canonical import is_canonical
from compliance_agent.evidence.logged import Logs, log_keys_beside
from compliance_agent.log.note import VerifierKey

BUNDLE, SIGNATURE = "bundle.json", "bundle.sig"
MAX_BUNDLE_BYTES = 65_535

CODES = {
    "unreadable": "a file is missing, too long or cannot be read",
    "no_key": "no public key with the id that the bundle names was given",
    "bad_signature": "the signature does not verify over the exact bytes",
    "not_json": "not strict JSON",
    "not_canonical": "another spelling than the canonical one",
    "bad_schema": "a field is not what the schema allows",
    "misplaced": "the directory is not named after the bundle",
    "missing": "numbers of the chain that no bundle has",
    "duplicate": "two different bundles have the same place in the chain",
    "broken_link": "prev is not the digest of the bundle before",
    "missing_start": "the chain does not begin here: earlier bundles are elsewhere, or lost",
    "clock_ran_back": "the monotonic clock ran back within one boot",
    **receipt.CODES,
    "unknown_log": "the receipt is of a log whose key was not given",
}
PARENTS_WITH_KEYS = 6  # from a bundle's directory over its day, month and year up to the host's


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong, with the bundle or host it is wrong with."""

    code: str
    where: str
    detail: str = ""


@dataclass(frozen=True)
class Checked:
    """A bundle that verified on its own."""

    path: str
    digest: str
    document: Mapping[str, Any]
    signature: bytes = b""

    @property
    def place(self) -> tuple[int, int]:
        """Epoch and number."""
        return int(self.document["epoch"]), int(self.document["seq"])


@dataclass
class Chain:
    """All bundles of one key.

    Attributes:
        key_id: SHA-256 of the public key.
        host: label of the host, as its bundles say.
        bundles: how many verified on their own.
        first: lowest place, last: highest.
        epochs: how many.
        head: digest of the last bundle.
        receipted: how many have a receipt that verified.
    """

    key_id: str
    host: str = ""
    bundles: int = 0
    first: tuple[int, int] = (0, 0)
    last: tuple[int, int] = (0, 0)
    epochs: int = 0
    head: str = ""
    receipted: int = 0


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

    @property
    def ok(self) -> bool:
        """Every bundle verified and every chain is whole."""
        return self.found > 0 and not self.problems

    @property
    def exit_status(self) -> int:
        """0 all verified, 65 something is wrong, 66 nothing was found."""
        if self.found == 0:
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
                }
                for chain in self.chains
            ],
            "problems": [{"code": item.code, "where": item.where, "detail": item.detail} for item in self.problems],
        }


def verify_paths(
    paths: Sequence[Path],
    keys: Mapping[str, bytes] | None = None,
    *,
    log_keys: Collection[VerifierKey] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Report:
    """Verify every bundle under these paths.

    Args:
        paths: bundle directories, bundle.json files, evidence directories, or a host's directory with `keys/` in it.
        keys: raw public keys by key id; None takes `keys/*.pub.pem` in or beside the paths.
        log_keys: of the logs; None takes `keys/*.vkey` in or beside the paths.
        progress: told how many of how many bundles are done.

    Raises:
        NoInput: a path is not there.
        BadEvidence: a key file beside the evidence is not a usable public key.
    """
    report = Report(keys_beside_evidence=keys is None)
    known = dict(keys) if keys is not None else keys_beside(paths)
    bundles = find(paths)
    report.found = len(bundles)
    by_key: dict[str, list[Checked]] = defaultdict(list)
    logs = Logs(log_keys_beside(paths, PARENTS_WITH_KEYS) if log_keys is None else log_keys)
    receipted: Counter[str] = Counter()
    for number, path in enumerate(bundles, start=1):
        try:
            checked = check_bundle(path, known)
            by_key[checked.document["host"]["key_id"]].append(checked)
            if logs.check(path, checked.document, checked.digest, checked.signature):
                receipted[checked.document["host"]["key_id"]] += 1
        except BadEvidence as error:
            report.problems.append(Problem(error.code, str(path.parent.name), str(error)))
        if progress is not None:
            progress(number, report.found)
    report.verified = sum(map(len, by_key.values()))
    report.receipts_unchecked = logs.unchecked
    whole = not all(_is_single(path) for path in paths)
    for key_id, items in sorted(by_key.items()):
        chain, problems = check_chain(key_id, items)
        chain.receipted = receipted[key_id]
        problems += [_forked(item) for item in items if logs.contradicted(item.document)]
        report.chains.append(chain)
        report.problems += [item for item in problems if whole or item.code not in {"missing", "missing_start"}]
    return report


def _forked(item: Checked) -> Problem:
    detail = "the checkpoint it names is another than the log showed elsewhere"
    return Problem("log_forked", str(item.document["bundle_id"]), detail)


def _is_single(path: Path) -> bool:
    """A bundle named by itself makes no claim about the bundles before and after it."""
    return path.is_file() or (path / BUNDLE).is_file()


def find(paths: Iterable[Path]) -> list[Path]:
    """Every bundle.json under the paths, hidden directories left out, in a stable order.

    Raises:
        NoInput: a path is not there.
    """
    found: set[Path] = set()
    for path in paths:
        if path.is_file():
            found.add(path)
        elif path.is_dir():
            for name in (BUNDLE, SIGNATURE):  # a signature without its bundle is a bundle that was removed
                found |= {file.with_name(BUNDLE) for file in path.rglob(name) if not _hidden(file, path)}
        else:
            raise NoInput(f"{path}: not there")
    return sorted(found)


def _hidden(path: Path, root: Path) -> bool:
    return any(part.startswith(".") for part in path.relative_to(root).parts)


def keys_beside(paths: Iterable[Path]) -> dict[str, bytes]:
    """Public keys that stand with the evidence: `keys/*.pub.pem` in a path, or in one of the directories above it."""
    keys: dict[str, bytes] = {}
    for path in paths:
        for directory in (path, *list(path.absolute().parents)[:PARENTS_WITH_KEYS]):
            files = sorted((directory / "keys").glob("*.pub.pem"))
            for file in files:
                keys |= read_key(file)
            if files:
                break
        else:
            for file in sorted(path.rglob("keys/*.pub.pem")):
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


def check_bundle(path: Path, keys: Mapping[str, bytes]) -> Checked:
    """One bundle on its own.

    Raises:
        BadEvidence: `code` is one of CODES.
    """
    try:
        body = read_file(path, limit_bytes=MAX_BUNDLE_BYTES)
        signature = read_file(path.with_name(SIGNATURE), limit_bytes=crypto.SIGNATURE_BYTES)
    except (NoInput, NotPermitted) as error:
        raise BadEvidence(f"{path.parent.name}: {CODES['unreadable']}", code="unreadable") from error
    document = check_bytes(body, signature, keys)
    if path.name == BUNDLE and path.parent.name != document["bundle_id"]:
        raise BadEvidence(f"bundle {document['bundle_id']}: {CODES['misplaced']}", code="misplaced")
    return Checked(str(path), hashlib.sha256(body).hexdigest(), document, signature)


def check_bytes(body: bytes, signature: bytes, keys: Mapping[str, bytes]) -> dict[str, Any]:
    """The document of one bundle, after its bytes, signature, form and schema were checked.

    Raises:
        BadEvidence: `code` is one of CODES.
    """
    try:
        document = read_json(body, limit_bytes=MAX_BUNDLE_BYTES)
    except DocumentError as error:
        raise BadEvidence(f"bundle: {error}", code="not_json") from error
    if not is_canonical(body):
        raise BadEvidence(f"bundle: {CODES['not_canonical']}", code="not_canonical")
    match document:
        case {"host": {"key_id": str(named)}}:
            public = keys.get(named)
        case _:
            public = None
    if public is None:
        raise BadEvidence(f"bundle: {CODES['no_key']}", code="no_key")
    if not crypto.verify(public, signature, body):
        raise BadEvidence(f"bundle: {CODES['bad_signature']}", code="bad_signature")
    check_document(document)
    return dict(document)


def check_chain(key_id: str, items: Sequence[Checked]) -> tuple[Chain, list[Problem]]:
    """One host's bundles together; all of them verified on their own before."""
    problems: list[Problem] = []
    by_place: dict[tuple[int, int], Checked] = {}
    digests: dict[tuple[int, int], set[str]] = defaultdict(set)
    for item in items:
        other = by_place.setdefault(item.place, item)
        digests[item.place].add(item.digest)
        if other.digest != item.digest:
            detail = f"{other.document['bundle_id']} and {item.document['bundle_id']} are both {_name(item.place)}"
            problems.append(Problem("duplicate", str(item.document["bundle_id"]), detail))
    ordered = [by_place[place] for place in sorted(by_place)]
    for before, item in zip([None, *ordered[:-1]], ordered, strict=True):
        problems += _link_problems(before, item, digests)
    problems += _clock_problems(ordered)
    first, last = ordered[0], ordered[-1]
    epochs = len({item.place[0] for item in ordered})
    host = str(last.document["host"]["id"])
    return Chain(key_id, host, len(items), first.place, last.place, epochs, last.digest), problems


def _name(place: tuple[int, int]) -> str:
    return f"epoch {place[0]} seq {place[1]}"


def _link_problems(before: Checked | None, item: Checked, digests: Mapping[tuple[int, int], set[str]]) -> list[Problem]:
    epoch, seq = item.place
    prev, where = item.document["prev"], str(item.document["bundle_id"])
    if before is None:
        if seq == 1 and prev == NO_PREV:
            return []
        return [Problem("missing_start", where, f"the first bundle here is {_name(item.place)}")]
    if before.place[0] == epoch and before.place[1] + 1 < seq:
        return [Problem("missing", where, f"epoch {epoch}: seq {before.place[1] + 1} to {seq - 1}")]
    if before.place[0] != epoch and seq != 1:
        return [Problem("missing", where, f"epoch {epoch}: seq 1 to {seq - 1}")]
    if prev not in digests[before.place]:
        return [Problem("broken_link", where, f"{_name(item.place)} does not follow {_name(before.place)}")]
    return []


def _clock_problems(ordered: Sequence[Checked]) -> list[Problem]:
    problems: list[Problem] = []
    before: dict[str, int] = {}
    for item in ordered:
        clock = item.document["clock"]
        boot = clock["boot_id"]
        if boot is None:
            continue
        if clock["monotonic_ns"] < before.get(boot, 0):
            problems.append(Problem("clock_ran_back", str(item.document["bundle_id"]), _name(item.place)))
        before[boot] = clock["monotonic_ns"]
    return problems


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
