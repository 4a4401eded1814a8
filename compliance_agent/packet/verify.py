"""Is this packet what it says? Every file, signature, chain and entry, offline, from the packet alone; every wrong thing is named.

    report = verify_file(Path("packet.zip"), policy=None)

In order: the container and the manifest; the log, whose tree is rebuilt from its entries (packet/logbook.py); each record with its
signature, its entry and its proof; what should be here and is not; the exports. A later step is done though an earlier one failed,
so that one changed byte does not hide another. Keys come with the packet; `policy` is one from elsewhere, and then decides.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from compliance_agent import __version__, crypto
from compliance_agent.adapters.durable import opened_file
from compliance_agent.documents import read_json
from compliance_agent.errors import BadEvidence, DocumentError
from compliance_agent.evidence.allowlist import check_document
from compliance_agent.evidence.chains import Tagger
from compliance_agent.evidence.problems import Problem
from compliance_agent.evidence.stamped import Said, Stamps, read_times, stamps_under
from compliance_agent.evidence.times import Times
from compliance_agent.log.proof import Proof
from compliance_agent.packet import archive, dsse, ocsf, oscal, table
from compliance_agent.packet.archive import Container, Entry
from compliance_agent.packet.content import Record, Scope
from compliance_agent.packet.logbook import (
    CHECKPOINT,
    Head,
    Logbook,
    chain_problems,
    completeness,
    entry_problem,
    head_problems,
    open_head,
    open_log,
)
from compliance_agent.packet.manifest import MANIFEST, MANIFEST_SIGNATURE, differences
from compliance_agent.packet.outside import OLDER, TIME, WITNESS, Outside, outside
from compliance_agent.packet.reading import Batch, Contents, Files, Held, Kept, Marked, Part, Reader, contents, same
from compliance_agent.packet.readme import NOT_PROVEN, readme

TIME_CA = "time/ca.pem"  # where the server asks a time-stamping authority
OTHER_FILE = {OLDER: "wrong_checkpoint", TIME: "bad_token", WITNESS: "bad_key"}  # where it is not what `outside` makes
EXPORT = "export/assessment-results.json"
TOP = {"README.txt", "NOT-PROVEN.txt", "policy", "packet.json", "keys/log.pem", "keys/packet.pem", EXPORT,
       "export/assessment-results.dsse.json", "export/ocsf.jsonl", "export/evidence.csv", MANIFEST,
       MANIFEST_SIGNATURE}  # fmt: skip
Spread = Callable[[Callable[[Batch], Part], Iterable[Batch]], Iterable[Part]]
Quorum = Literal["met", "unwitnessed", "not_asked"]
_KEY = re.compile(r"keys/([0-9a-f]{64})\.pem")


@dataclass
class Report:
    """What was found. `ok` means: records were there, and nothing was wrong with the packet.

    Attributes:
        own_policy: whom to trust for the log came with the packet.
        own_authority: time stamps were checked under the certificates that came with the packet.
        quorum: of the policy's witnesses, under the checkpoint; None where that does not verify.
    """

    scope: Scope | None = None
    found: int = 0
    verified: int = 0
    own_policy: bool = True
    own_authority: bool = False
    quorum: Quorum | None = None
    times: Times = field(default_factory=lambda: Times({}))
    said: Said = field(default_factory=Said)
    problems: list[Problem] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Every record verified and nothing is wrong."""
        return self.found > 0 and not self.problems

    @property
    def exit_status(self) -> int:
        """0 all verified, 65 something is wrong."""
        return 0 if self.ok else BadEvidence.exit_status

    def as_document(self) -> dict[str, Any]:
        """The report as the JSON of `packet verify --json`."""
        return {
            "schema": "compliance-agent/packet-verify/v1",
            "ok": self.ok,
            "site_id": self.scope.site_id if self.scope else None,
            "log": {"origin": self.scope.origin, "size": self.scope.size} if self.scope else None,
            "found": self.found,
            "verified": self.verified,
            "keys_from_packet": self.own_policy,
            "time_ca_from_packet": self.own_authority,
            "quorum": self.quorum,
            "cosignatures": self.said.cosignatures,
            "tokens": self.said.tokens,
            "tokens_unchecked": self.said.tokens_unchecked,
            "times": self.times.as_document(),
            "problems": [{"code": item.code, "where": item.where, "detail": item.detail} for item in self.problems],
        }


def verify_file(
    path: Path,
    policy: bytes | None = None,
    *,
    stamps: Stamps | None = None,
    each_time: bool = False,
    spread: Spread = map,
) -> Report:
    """Verify a zip file, read where it stands; NoInput when it is not there.

    Args:
        path: the packet.
        policy: whom to trust for the log, from elsewhere; None takes the packet's own.
        stamps: verifies time stamps; None leaves them unchecked, and says so.
        each_time: keep the interval of every record.
        spread: as `map`, possibly in other processes.
    """
    with opened_file(path) as (read, size):
        try:
            return _verified(archive.Container(read, size), policy, stamps, each_time, spread)
        except BadEvidence as error:
            if error.code != "bad_container":
                raise
            return Report(problems=[Problem(error.code, path.name, str(error))])


def verify_files(
    files: Mapping[str, bytes], policy: bytes | None = None, *, stamps: Stamps | None = None, each_time: bool = False
) -> Report:
    """Verify the files of a packet, by path; arguments as of `verify_file`."""
    return verify_bytes(archive.pack(files), policy, stamps=stamps, each_time=each_time)


def verify_bytes(
    raw: bytes, policy: bytes | None = None, *, stamps: Stamps | None = None, each_time: bool = False
) -> Report:
    """Verify a packet that is in memory; arguments as of `verify_file`."""
    return _verified(archive.opened(raw), policy, stamps, each_time, map)


def _verified(
    container: Container, policy: bytes | None, stamps: Stamps | None, each_time: bool, spread: Spread
) -> Report:
    work = _Verification(container, contents(container), policy, stamps, each_time)
    work.run(spread)
    return work.report


def records_of(files: Mapping[str, bytes]) -> list[Record]:
    """The records of a packet as they stand, for counting; one that cannot be read is left to `verify_files` to name."""
    found = []
    for path in sorted(files):
        if path.endswith("/bundle.json"):
            base = path.removesuffix("bundle.json")
            with contextlib.suppress(BadEvidence, DocumentError, KeyError):
                index = Proof.parse(files[f"{base}bundle.tlog-proof"]).index
                check_document(document := read_json(files[path]))
                parts = (files[path], files[f"{base}bundle.sig"], files[f"{base}leaf.json"])
                found.append(Record(document, *parts, index))
    return found


class _Verification:
    """One packet while it is verified."""

    def __init__(
        self, container: Container, found: Contents, policy: bytes | None, stamps: Stamps | None, each_time: bool
    ) -> None:
        self._container, self._contents = container, found
        self.files = Files(container, found.others)
        self.kept = Kept(container, found.records)
        self._stamps = stamps
        self._each_time = each_time
        self.report = Report(own_policy=policy is None)
        if stamps is None and TIME_CA in self.files:
            with contextlib.suppress(BadEvidence):
                self._stamps = stamps_under(self.files[TIME_CA])
                self.report.own_authority = self._stamps is not None
        self._policy = policy if policy is not None else self.files.get("policy", b"")
        self._keys: dict[str, bytes] = {}
        self._tags = Tagger()

    def run(self, spread: Spread) -> None:
        missing = self._missing()
        self._read_scope()
        self._read_keys()
        scope = self.report.scope
        head = open_head(self.files, self._policy, self._container.directory, self.report.problems)
        self._manifest(missing, self._records(head, spread))  # before what takes memory, which workers would share
        log = None if head is None else open_log(self.files, head, self._tags, self.report.problems)
        seen = self._outside(log)
        self._extra_files(log, seen)
        if log is not None:
            if scope is not None:
                self._held_to(scope, log)
            self._times(log)
        if scope is not None:
            self._exports(scope, seen)

    def _wrong(self, code: str, where: str, detail: str = "") -> None:
        self.report.problems.append(Problem(code, where, detail))

    def _missing(self) -> list[str]:
        missing = sorted(TOP - self.files.keys())
        for path in missing:
            self._wrong("missing_file", path)
        return missing

    def _manifest(self, missing: list[str], listed: bool) -> None:
        """Held to the files where a batch did not find its lines (`listed`), and to its signature."""
        entry = self.files.entries.get(MANIFEST)
        if entry is None or not listed or entry.size != self._contents.listed:
            try:
                for code, path in differences(self._chunks(MANIFEST), self._digests()):
                    if path not in missing:
                        self._wrong(code, path)
            except BadEvidence as error:
                self._wrong(error.code, MANIFEST, str(error))
        public = self._public("keys/packet.pem")
        signature = self.files.get(MANIFEST_SIGNATURE, b"")
        if public is not None and not crypto.verify_chunks(public, signature, lambda: self._chunks(MANIFEST)):
            self._wrong("bad_signature", MANIFEST_SIGNATURE, "does not verify over the manifest with keys/packet.pem")

    def _chunks(self, path: str) -> Iterator[bytes]:
        entry = self.files.entries.get(path)
        return iter(()) if entry is None else self._container.chunks(entry)

    def _digests(self) -> Iterator[tuple[str, Callable[[], str]]]:
        for entry in self._container.entries():
            yield entry.name, functools.partial(self._digest, entry)

    def _digest(self, entry: Entry) -> str:
        digest = hashlib.sha256()
        for chunk in self._container.chunks(entry):
            digest.update(chunk)
        return digest.hexdigest()

    def _read_scope(self) -> None:
        try:
            self.report.scope = Scope.parse(self.files.get("packet.json", b""))
        except BadEvidence as error:
            self._wrong(error.code, "packet.json", str(error))

    def _read_keys(self) -> None:
        for path in self.files:
            name = _KEY.fullmatch(path)
            public = self._public(path) if name else None
            if name and public is not None:
                if crypto.key_id(public) == name[1]:
                    self._keys[name[1]] = public
                else:
                    self._wrong("bad_key", path, "is not the key that it is named after")

    def _public(self, path: str) -> bytes | None:
        if path not in self.files:
            return None
        try:
            public = crypto.read_public_pem(self.files[path])
        except BadEvidence as error:
            self._wrong(error.code, path, str(error))
            return None
        if crypto.public_pem(public).encode() != self.files[path]:
            self._wrong("bad_key", path, "holds more than a public key")
        return public

    def _records(self, head: Head | None, spread: Spread) -> bool:
        """Judge every file that stands in the packet; whether the manifest lists exactly these."""
        checkpoint = None if head is None else head.verified.checkpoint
        held = Held(self._keys, self.report.scope, b"" if head is None else head.note, checkpoint)
        reader = Reader(self._container, self.files.entries.get(MANIFEST), held, self._tags)
        listed = True
        for part in spread(reader, self._contents.batches):
            self.report.found += part.found
            self.report.verified += part.verified
            self.report.problems += part.problems
            self.kept.add(part)
            listed = listed and part.listed
        return listed

    def _outside(self, log: Logbook | None) -> Outside | None:
        """What third parties said, made again from policy, checkpoint and entries; None where these cannot be read."""
        if log is None or not log.book.whole:
            return None
        try:
            seen = outside(self.files.get("policy", b""), log.note, log.book.times)
        except BadEvidence as error:
            self._wrong(error.code, "policy", str(error))
            return None
        for path, content in sorted(seen.files.items()):
            if path not in self.files:
                self._wrong("missing_file", path)
            elif self.files[path] != content:
                code = next(code for start, code in OTHER_FILE.items() if path.startswith(start))
                self._wrong(code, path, "is not what the policy names, or what the log's entry holds")
        return seen

    def _extra_files(self, log: Logbook | None, seen: Outside | None) -> None:
        """Whatever nobody asked for: unsigned by any host or log, it could say anything."""
        scope = self.report.scope
        keys = {f"keys/{host.key_id}.pem" for host in scope.hosts} if scope else set()
        for path in sorted(keys - self.files.keys()):
            self._wrong("missing_file", path)
        expected = TOP | {TIME_CA} | keys | (log.paths if log else set()) | (seen.files.keys() if seen else set())
        unread = () if seen else ("log/", TIME, WITNESS)  # named already is why nobody can tell what belongs there
        named = {item.where for item in self.report.problems}
        for path in sorted(self.files.keys() - expected - named):
            if not path.startswith(unread):
                self._wrong("extra_file", path)

    def _held_to(self, scope: Scope, log: Logbook) -> None:
        """The log as a whole, and what should be in the packet because of it."""
        if (scope.origin, scope.size) != (log.origin, log.size):
            self._wrong("bad_scope", "packet.json", "names another log or size than the checkpoint")
        if self._public("keys/log.pem") not in log.public_keys:
            self._wrong("bad_key", "keys/log.pem", "is not the log's key in the policy")
        if log.book.whole:
            self.report.problems += chain_problems(scope, log)
            self.report.problems += completeness(scope, log, *self._indexes(log))

    def _indexes(self, log: Logbook) -> tuple[Marked, Callable[[int], str]]:
        """Which entries of the log have a record here, and when the record of an entry starts."""
        here = Marked(log.size)
        for *_, row, _, _ in self.kept.rows():
            here.mark(row.at)

        def start_of(index: int) -> str:
            number = next(number for *_, row, number, _ in self.kept.rows() if row.at == index)
            return str(self.kept.record(number).document["timestamp_start"])

        return here, start_of

    def _times(self, log: Logbook) -> None:
        """The interval of each record, by what the log holds of third parties' time, and by who cosigned its checkpoint."""
        said = read_times(log.book, log.policy, self._stamps) if log.book.whole else Said()
        said.cosigned(log.verified)
        self.report.quorum = _quorum(log)
        if not log.verified.quorum_met:
            self._wrong("no_quorum", CHECKPOINT, "it lacks the cosignatures that the policy asks for")
        name = log.tags.short(log.origin)
        self.report.said, self.report.times = said, Times({name: said.timeline}, self._each_time)
        self.report.problems += said.problems
        whole = log.book.whole
        for key, epoch, row, number, incident in self.kept.rows():
            if whole and (wrong := entry_problem(key, epoch, row, log)) is not None:
                self._about(number, wrong)
                self.report.verified -= 1
            for problem in head_problems(row, incident, log) if whole else ():
                self._about(number, problem)
            for problem in self.report.times.visit(key, epoch, row, (name, row.at), whole and log.holds(row)):
                self._about(number, problem)

    def _about(self, number: int, problem: Problem) -> None:
        self._wrong(problem.code, self.kept.directory(number), problem.detail)

    def _public_or_none(self, path: str) -> bytes | None:
        try:
            return crypto.read_public_pem(self.files.get(path, b""))
        except BadEvidence:
            return None

    def _exports(self, scope: Scope, seen: Outside | None) -> None:
        """Signed by the server, and (where this version made them) exactly what follows from the records."""
        public = self._public_or_none("keys/packet.pem")
        content = self.files.get(EXPORT, b"")
        try:
            if public is not None:
                dsse.verify(
                    self.files.get("export/assessment-results.dsse.json", b""),
                    public,
                    EXPORT.rpartition("/")[2],
                    content,
                )
        except BadEvidence as error:
            self._wrong(error.code, "export/assessment-results.dsse.json", str(error))
        if self.report.verified == self.report.found and oscal.generator(content) == __version__:
            for path, made in self._made_again(scope, self.kept.records, seen):
                if not same(self._chunks(path), made):
                    self._wrong("wrong_export", path, "is not what follows from the records")

    def _made_again(
        self, scope: Scope, records: Sequence[Record], seen: Outside | None
    ) -> Iterator[tuple[str, Iterable[bytes]]]:
        yield EXPORT, [oscal.assessment_results(scope, records)]
        yield "export/ocsf.jsonl", ocsf.pieces(scope, records)
        yield "export/evidence.csv", table.pieces(scope, records)
        yield "NOT-PROVEN.txt", [NOT_PROVEN]
        if records and seen is not None:
            yield "README.txt", [readme(scope, records, oscal.VERSION, seen, authority=bool(self.files.get(TIME_CA)))]


def _quorum(log: Logbook) -> Quorum:
    if log.policy.quorum == "none":
        return "not_asked"
    return "met" if log.verified.quorum_met else "unwitnessed"
