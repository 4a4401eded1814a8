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
import itertools
import re
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from datetime import datetime
from pathlib import Path

from compliance_agent import __version__, crypto
from compliance_agent.adapters.durable import opened_file
from compliance_agent.documents import read_json
from compliance_agent.errors import BadEvidence, DocumentError
from compliance_agent.evidence.allowlist import check_document
from compliance_agent.evidence.chains import Tagger
from compliance_agent.evidence.problems import Problem
from compliance_agent.evidence.stamped import Stamps, stamps_under
from compliance_agent.evidence.times import Times
from compliance_agent.log.proof import Proof
from compliance_agent.packet import archive, dsse, oscal, register, sampled
from compliance_agent.packet.archive import Container, Entry, InOrder
from compliance_agent.packet.content import Record, Scope
from compliance_agent.packet.kept import Rows
from compliance_agent.packet.listing import records_in
from compliance_agent.packet.logbook import (
    CHECKPOINT,
    Head,
    Logbook,
    chain_problems,
    completeness,
    open_head,
    reading_log,
)
from compliance_agent.packet.look import Look, Seen
from compliance_agent.packet.manifest import MANIFEST, MANIFEST_SIGNATURE, differences
from compliance_agent.packet.outside import OLDER, TIME, WITNESS, Outside, outside
from compliance_agent.packet.reading import Held, Part, Reader, lines_again, read_record
from compliance_agent.packet.readme import NOT_PROVEN, Shown, readme
from compliance_agent.packet.report import Quorum, Report
from compliance_agent.packet.retold import Retold
from compliance_agent.packet.sample import MOST
from compliance_agent.packet.stretches import AFTER, Batch, add, batches, beside

TIME_CA = "time/ca.pem"  # where the server asks a time-stamping authority
OTHER_FILE = {OLDER: "wrong_checkpoint", TIME: "bad_token", WITNESS: "bad_key"}  # where it is not what `outside` makes
EXPORT, OCSF, CSV = "export/assessment-results.json", "export/ocsf.jsonl", "export/evidence.csv"
TOP = {"README.txt", "NOT-PROVEN.txt", "policy", "packet.json", "keys/log.pem", "keys/packet.pem", EXPORT,
       "export/assessment-results.dsse.json", OCSF, CSV, MANIFEST, MANIFEST_SIGNATURE}  # fmt: skip
Spread = Callable[[Callable[[Batch], Part], Iterable[Batch]], Iterable[Part]]
_STEPS = 12  # of this process's own work after each part: more than a part brings
_KEY = re.compile(r"keys/([0-9a-f]{64})\.pem")


def verify_file(
    path: Path,
    policy: bytes | None = None,
    *,
    stamps: Stamps | None = None,
    each_time: bool = False,
    spread: Spread = map,
    now: datetime | None = None,
) -> Report:
    """Verify a zip file, read where it stands; NoInput when it is not there.

    Args:
        path: the packet.
        policy: whom to trust for the log, from elsewhere; None takes the packet's own.
        stamps: verifies time stamps; None leaves them unchecked, and says so.
        each_time: keep the interval of every record.
        spread: as `map`, possibly in other processes.
        now: no log was pruned later; None believes what a packet says of that time.
    """
    with opened_file(path) as (read, size):
        try:
            return _Verification(archive.Container(read, size), policy, stamps, each_time, now).run(spread)
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
    return _Verification(archive.opened(raw), policy, stamps, each_time).run(map)


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


def records_of_file(path: Path) -> list[Record]:
    """The records of a packet, as `listing.records_in` gives them; NoInput when it is not there, BadEvidence when it is none."""
    with opened_file(path) as (read, size):
        return list(records_in(Container(read, size)))


class Files(Mapping[str, bytes]):
    """The files that are no record's, each read when it is asked for."""

    def __init__(self, container: Container, others: dict[str, Entry]) -> None:
        self._container, self.entries = container, others

    def __getitem__(self, path: str) -> bytes:
        return self._container.content(self.entries[path])

    def __contains__(self, path: object) -> bool:
        return path in self.entries

    def __iter__(self) -> Iterator[str]:
        return iter(self.entries)

    def __len__(self) -> int:
        return len(self.entries)


class _Verification:
    """One packet while it is verified.

    What workers find in its records comes in the order of its files. Between two such parts this process reads the log (`_behind`)
    and looks at the hosts that are complete, so that it neither waits for all of them nor holds all of their rows.
    """

    def __init__(
        self,
        container: Container,
        policy: bytes | None,
        stamps: Stamps | None,
        each_time: bool,
        now: datetime | None = None,
    ) -> None:
        self._container, self._now = container, now
        self.files = Files(container, beside(container))
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
        self._stated = oscal.Stated()
        self._of_long: dict[str, str] = {}
        self._signed: bool | None = None
        self._all_read = False

    def run(self, spread: Spread) -> Report:
        """Everything, in the order in which it is told."""
        missing = self._missing()
        self._read_scope()
        self._read_keys()
        head = open_head(self.files, self._policy, self._container.directory, self.report.problems)
        scope = self.report.scope
        self._rows = Rows([host.host_id for host in scope.hosts] if scope else [])
        again = functools.partial(lines_again, self._container)
        self._retold = Retold(scope, self._chunks(CSV), self._chunks(OCSF), again) if scope else None
        self._seen = Seen()
        of_log: list[Problem] = []
        behind = self._behind(head, of_log)
        listed = self._records(head, spread, behind)
        log = _drained(behind)
        self._manifest(missing, listed)
        self.report.problems += of_log
        seen = self._outside(log)
        self._extra_files(log, seen)
        if log is not None:
            if scope is not None:
                self._held_to(scope, log)
                self._sample(scope, log)
                if log.book.whole:
                    year = log.origin.rpartition("/")[2]
                    for where, detail in register.problems(scope, log.book.acts, year):
                        self._wrong("wrong_exception", where, detail)
            self._times(log)
        if scope is not None and self._retold is not None:
            self._exports(scope, self._retold, seen)
        return self.report

    def _wrong(self, code: str, where: str, detail: str = "") -> None:
        self.report.problems.append(Problem(code, where, detail))

    def _missing(self) -> list[str]:
        missing = sorted(TOP - self.files.keys())
        for path in missing:
            self._wrong("missing_file", path)
        return missing

    def _manifest(self, missing: list[str], listed: bool) -> None:
        """Held to the files where a batch did not find its lines (`listed`), and to its signature."""
        if not listed:
            try:
                for code, path in differences(self._chunks(MANIFEST), self._digests()):
                    if path not in missing:
                        self._wrong(code, path)
            except BadEvidence as error:
                self._wrong(error.code, MANIFEST, str(error))
        public = self._public("keys/packet.pem")
        signature, signed = self.files.get(MANIFEST_SIGNATURE, b""), self._signed
        if public is not None and signed is None:
            signed = crypto.verify_chunks(public, signature, lambda: self._chunks(MANIFEST))
        if public is not None and not signed:
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

    def _records(self, head: Head | None, spread: Spread, behind: Iterator[None]) -> bool:
        """Judge every file that stands in the packet; whether the manifest lists exactly these."""
        checkpoint = None if head is None else head.verified.checkpoint
        public = self._public_or_none("keys/packet.pem")
        signing = None if public is None else (public, self.files.get(MANIFEST_SIGNATURE, b""))
        held = Held(self._keys, self.report.scope, b"" if head is None else head.note, checkpoint, signing)
        entry = self.files.entries.get(MANIFEST)
        order, at = InOrder(), -1 if entry is None else entry.start
        for part in spread(Reader(self._container, entry, held, self._tags), batches(self._container)):
            if part.broken:
                raise BadEvidence(part.broken, code="bad_container")
            order.join(part.order)
            for other in part.others:
                add(self.files.entries, other)
            self.report.found += part.found
            self.report.verified += part.verified
            self.report.problems += part.problems
            self._rows.add(part)
            self._stated.join(part.stated)
            self._of_long |= part.digests
            self._signed = part.signed if part.signed is not None else self._signed
            if part.order.last >= AFTER:  # names are in order, so no record follows
                self._rows.finish()
            at = part.listed[1] if part.listed is not None and part.listed[0] == at else -1
            for _ in itertools.islice(behind, _STEPS):
                pass
        order.finish(self._container)
        self._rows.finish()
        self._all_read = True
        return entry is not None and at == entry.end

    def _behind(self, head: Head | None, problems: list[Problem]) -> Generator[None, None, Logbook | None]:
        """Read the log, then look at each host once its records are all here; in small steps."""
        log = None if head is None else (yield from reading_log(self.files, head, self._tags, problems, self._now))
        look = Look(log, self._stamps, self._each_time, self._seen, self._retold)
        while not (self._all_read and self._rows.finished):
            for line in self._rows.ready() or ():
                yield from look.at(line)
            yield
        return log

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
        sample = {sampled.FILE} if scope is not None and scope.sample is not None else set[str]()
        for path in sorted(sample - self.files.keys()):
            self._wrong("missing_file", path)
        expected = (
            TOP | {TIME_CA} | sample | keys | (log.paths if log else set()) | (seen.files.keys() if seen else set())
        )
        unread = () if seen else ("log/", TIME, WITNESS)  # named already is why nobody can tell what belongs there
        named = {item.where for item in self.report.problems}
        for path in sorted(self.files.keys() - expected - named):
            if not path.startswith(unread):
                self._wrong("extra_file", path)

    def _held_to(self, scope: Scope, log: Logbook) -> None:
        """The log as a whole, and what should be in the packet because of it."""
        if (scope.origin, scope.size, scope.minimum) != (log.origin, log.size, log.minimum):
            self._wrong("bad_scope", "packet.json", "names another log, size or minimum index than log/")
        if self._public("keys/log.pem") not in log.public_keys:
            self._wrong("bad_key", "keys/log.pem", "is not the log's key in the policy")
        if log.book.whole:
            self.report.problems += chain_problems(scope, log)
            self.report.problems += completeness(scope, log, self._seen.here, self._start_of, self.report.open_ends)

    def _sample(self, scope: Scope, log: Logbook) -> None:
        """Where it says that it is a sample: drawn again, it is this one, and it has the records of this one alone."""
        if scope.sample is None or not log.book.whole:
            return
        if self.report.found > MOST:
            self._wrong("wrong_sample", sampled.FILE, f"the packet has more than {MOST} records")
            return
        lines = (entry for entry in self._container.entries() if entry.name.endswith("/bundle.json"))
        records = []
        for entry in lines:
            with contextlib.suppress(
                BadEvidence, DocumentError, KeyError, ValueError
            ):  # which is named where it was read
                records.append(read_record(self._container, entry.line))
        raw = self.files.get(sampled.FILE, b"")
        for where, detail in sampled.problems(scope, raw, records, log.book.forest.root):
            self._wrong("wrong_sample", where, detail)

    def _start_of(self, index: int) -> str:
        record = read_record(self._container, self._seen.ends[index])
        return str(record.document["timestamp_start"])

    def _times(self, log: Logbook) -> None:
        """The interval of each record, by what the log holds of third parties' time, and by who cosigned its checkpoint."""
        seen, report = self._seen, self.report
        report.quorum = _quorum(log)
        if not log.verified.quorum_met:
            self._wrong("no_quorum", CHECKPOINT, "it lacks the cosignatures that the policy asks for")
        report.said, report.times = seen.said, Times({}, self._each_time)
        report.problems += seen.said.problems
        for _, found in sorted(seen.lines.items()):
            report.times.join(found.times)
            report.verified -= found.refused
            for line, problem in found.problems:
                entry = next(self._container.entries(line))
                self._wrong(problem.code, entry.name.rpartition("/")[0], problem.detail)

    def _public_or_none(self, path: str) -> bytes | None:
        try:
            return crypto.read_public_pem(self.files.get(path, b""))
        except BadEvidence:
            return None

    def _exports(self, scope: Scope, told: Retold, seen: Outside | None) -> None:
        """Signed by the server, and (where this version made them) exactly what follows from the records."""
        public = self._public_or_none("keys/packet.pem")
        try:
            if public is not None:
                envelope = self.files.get("export/assessment-results.dsse.json", b"")
                dsse.verify(envelope, public, EXPORT.rpartition("/")[2], self._digest_of(EXPORT))
        except BadEvidence as error:
            self._wrong(error.code, "export/assessment-results.dsse.json", str(error))
        start = next(self._chunks(EXPORT), b"")
        if self.report.verified == self.report.found and oscal.generator(start) == __version__:
            for path, right in self._made_again(scope, told, seen):
                if not right:
                    self._wrong("wrong_export", path, "is not what follows from the records")

    def _digest_of(self, path: str) -> str:
        """Of a file that is no record's; of none where there is none."""
        return self._of_long.get(path) or hashlib.sha256(self.files.get(path, b"")).hexdigest()

    def _made_again(self, scope: Scope, told: Retold, seen: Outside | None) -> Iterator[tuple[str, bool]]:
        yield EXPORT, told.oscal(self._chunks(EXPORT), self._stated)
        yield OCSF, told.ocsf()
        yield CSV, told.csv()
        yield "NOT-PROVEN.txt", self.files.get("NOT-PROVEN.txt") == NOT_PROVEN
        example = self._seen.example
        if example is not None and seen is not None:
            shown = Shown(told.count, self._seen.count - told.count, read_record(self._container, example))
            page = readme(scope, shown, oscal.VERSION, seen, authority=bool(self.files.get(TIME_CA)))
            yield "README.txt", self.files.get("README.txt") == page


def _drained(steps: Generator[None, None, Logbook | None]) -> Logbook | None:
    """What is there after the last step."""
    while True:
        try:
            next(steps)
        except StopIteration as end:
            log: Logbook | None = end.value
            return log


def _quorum(log: Logbook) -> Quorum:
    if log.policy.quorum == "none":
        return "not_asked"
    return "met" if log.verified.quorum_met else "unwitnessed"
