"""Each kind of damage is refused and named, in a directory, a log by its address, records against a log, and a packet.

The tables are the page to read: a damage, where it is done, and the code that names it. Below them every check that refuses is
taken out once, and then its damage goes unnamed: so a check that is gone makes this file fail.
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from compliance_agent import crypto
from compliance_agent.entries.leaf import fork_leaf, key_leaf
from compliance_agent.errors import BadEvidence
from compliance_agent.evidence import book, chains, logged, served, stamped, times, verify
from compliance_agent.evidence.forest import Forest
from compliance_agent.evidence.verify import load_keys, verify_paths
from compliance_agent.log.note import Note, VerifierKey
from compliance_agent.log.policy import Policy
from compliance_agent.log.tiles import ENTRIES, Tile, encode_entries, written
from compliance_agent.packet.verify import verify_files
from tests.evidence.world import ORIGIN, POLICY, RECORDS, World, other_key, posix
from tests.packet import test_verify as packets
from tests.packet.scene import Files, Made
from tests.server.builder import START, FakeHost, stamp

Codes = set[str]
LIVED = World.live()


@pytest.fixture
def world() -> World:
    return LIVED.copy()


def flip(raw: bytes, at: int = 700) -> bytes:
    return raw[:at] + bytes([raw[at] ^ 1]) + raw[at + 1 :]


def place(root: Path, world: World, number: int) -> Path:
    return root / "evidence" / "2026" / "11" / "22" / str(world.records[number].document["bundle_id"])


def swapped(first: Path, second: Path) -> None:
    one, two = first.read_bytes(), second.read_bytes()
    first.write_bytes(two)
    second.write_bytes(one)


def remove(directory: Path) -> None:
    for file in directory.iterdir():
        file.unlink()
    directory.rmdir()


def rewrite(path: Path, raw: bytes) -> None:
    path.write_bytes(raw)


# --- a directory --------------------------------------------------------------------------------------------


def swap_records(root: Path, world: World) -> None:
    for name in ("bundle.json", "bundle.sig"):
        swapped(place(root, world, 2) / name, place(root, world, 3) / name)


def insert_stranger(root: Path, world: World) -> None:
    """A record of a key nobody named, in the middle of the others."""
    stranger = FakeHost()
    made = stranger.next()
    there = place(root, world, 0).with_name(made.document["bundle_id"])
    there.mkdir()
    rewrite(there / "bundle.json", made.body)
    rewrite(there / "bundle.sig", made.sig)


def insert_twin(root: Path, world: World) -> None:
    """With the host's key, for a place that is taken."""
    made = world.host.sign({**world.records[3].document, "bundle_id": "11111111-2222-4333-8444-555555555555"})
    there = place(root, world, 0).with_name(made.document["bundle_id"])
    there.mkdir()
    rewrite(there / "bundle.json", made.body)
    rewrite(there / "bundle.sig", made.sig)


def signed_again(root: Path, world: World, number: int, **changes: Any) -> None:
    """With the host's key; the receipt of the old one is thrown away."""
    made = world.host.sign({**world.records[number].document, **changes})
    there = place(root, world, number)
    rewrite(there / "bundle.json", made.body)
    rewrite(there / "bundle.sig", made.sig)
    (there / "leaf.json").unlink()
    (there / "bundle.tlog-proof").unlink()


def renumber(root: Path, world: World) -> None:
    signed_again(root, world, 2, seq=4)
    signed_again(root, world, 3, seq=3)


def clock(ns: int) -> dict[str, Any]:
    return {"source": "chrony", "synchronized": True, "offset_us": 1, "stratum": 3, "monotonic_ns": ns,
            "boot_id": "0b1e7c9a-3c5d-4e6f-8a9b-0c1d2e3f4a5b"}  # fmt: skip


def clock_back(root: Path, world: World) -> None:
    signed_again(root, world, 2, clock=clock(9))
    signed_again(root, world, 3, clock=clock(5))


def split_receipt(root: Path, world: World) -> None:
    """A receipt under another tree of the same size, signed by the same log."""
    other = world.copy()
    other.entries[1] = key_leaf("enrol", "ab" * 32, b"k" * 32, "2026-11-22T00:00:00Z")
    theirs = other.write(root.parent / "other")
    swapped(
        place(root, world, 5) / "bundle.tlog-proof",
        theirs.parent / place(root, world, 5).relative_to(root) / "bundle.tlog-proof",
    )


def stale_receipt(root: Path, world: World) -> None:
    """The checkpoint of its receipt is replaced by an older one, which the record is not in."""
    path = place(root, world, 5) / "bundle.tlog-proof"
    head = path.read_bytes().partition(b"\n\n")[0]
    rewrite(path, head + b"\n\n" + world.note(5))


IN_A_DIRECTORY: dict[str, tuple[Callable[[Path, World], object], str]] = {
    "flip a bit of a record": (lambda r, w: rewrite(place(r, w, 2) / "bundle.json", flip(w.records[2].body)), "bad_signature"),
    "flip a bit of a signature": (lambda r, w: rewrite(place(r, w, 2) / "bundle.sig", flip(w.records[2].sig, 9)), "bad_signature"),
    "flip a bit of a receipt": (
        lambda r, w: rewrite(p := place(r, w, 2) / "bundle.tlog-proof", p.read_bytes().replace(b"index 4", b"index 5")),
        "bad_inclusion_proof",
    ),
    "delete a record": (lambda r, w: remove(place(r, w, 2)), "missing"),
    "delete a signature": (lambda r, w: (place(r, w, 2) / "bundle.sig").unlink(), "unreadable"),
    "delete the first record": (lambda r, w: remove(place(r, w, 0)), "missing_start"),
    "insert a record of another key": (insert_stranger, "no_key"),
    "insert a second record for a place": (insert_twin, "duplicate"),
    "reorder with the host's key": (renumber, "broken_link"),
    "rewrite with the host's key": (lambda r, w: signed_again(r, w, 2, recovered=True), "broken_link"),
    "swap two signatures": (
        lambda r, w: swapped(place(r, w, 2) / "bundle.sig", place(r, w, 3) / "bundle.sig"), "bad_signature"),
    "swap two entries": (lambda r, w: swapped(place(r, w, 2) / "leaf.json", place(r, w, 3) / "leaf.json"), "wrong_leaf"),
    "swap two records under each other's name": (
        swap_records, "misplaced"),
    "truncate a record": (lambda r, w: rewrite(place(r, w, 2) / "bundle.json", w.records[2].body[:-9]), "not_json"),
    "truncate a receipt": (
        lambda r, w: rewrite(p := place(r, w, 2) / "bundle.tlog-proof", p.read_bytes()[:40]), "bad_receipt"),
    "say it in other bytes": (
        lambda r, w: rewrite(place(r, w, 2) / "bundle.json", w.records[2].body.replace(b'":', b'": ', 1)), "not_canonical"),
    "say what no schema allows": (lambda r, w: signed_again(r, w, 2, reason="Jane Doe"), "bad_schema"),
    "set the clock back within a boot": (clock_back, "clock_ran_back"),
    "split view": (split_receipt, "log_forked"),
    "stale checkpoint": (stale_receipt, "bad_inclusion_proof"),
    "postdate with the host's key": (
        lambda r, w: rewrite_logged(r, w, 6, created_at=stamp(START.replace(year=2027))), "postdated"),
}  # fmt: skip


def rewrite_logged(root: Path, world: World, number: int, **changes: Any) -> None:
    """A host that signs a wrong date from the start, and has it logged."""
    old = world.leaf(world.records[number])
    world.again(number, **changes)
    world.entries[world.entries.index(old)] = world.leaf(world.records[number])
    for made in place(root, world, number).parent.iterdir():
        remove(made)
    world.write(root)


def directory_codes(tmp_path: Path, world: World, name: str) -> Codes:
    world.write(tmp_path)
    IN_A_DIRECTORY[name][0](tmp_path, world)
    report = verify_paths([tmp_path / "evidence"], {world.host.key_id: world.host.public}, policy=POLICY)
    assert report.exit_status == (65 if report.problems else 0)
    return {problem.code for problem in report.problems}


@pytest.mark.parametrize("name", IN_A_DIRECTORY)
def test_in_a_directory(tmp_path: Path, world: World, name: str) -> None:
    assert IN_A_DIRECTORY[name][1] in directory_codes(tmp_path, world, name)


def test_an_honest_directory_is_fine(tmp_path: Path, world: World) -> None:
    report = world.directory(tmp_path)
    assert report.ok, report.problems
    assert report.chains[0].receipted == RECORDS


# --- a log by its address -----------------------------------------------------------------------------------


def fork(world: World) -> None:
    world.entries.append(fork_leaf(world.host.key_id, 0, 3, "a" * 64, "b" * 64, b"s" * 64))


def exchange(world: World) -> None:
    world.entries[4], world.entries[3] = world.entries[3], world.entries[4]


def alter(world: World) -> None:
    """The digest of one record is another one."""
    world.entries[3] = b'{"bundle_sha256":"' + b"0" * 64 + world.entries[3][82:]


def exchange_under_the_old_checkpoint(world: World) -> None:
    """Entries and tiles fit each other, and are not what was signed."""
    world.files["checkpoint"] = world.note()
    world.entries[-1] = key_leaf("enrol", "ab" * 32, b"k" * 32, "2026-11-22T00:00:00Z")


def revoke_early(world: World) -> None:
    world.entries.insert(6, key_leaf("revoke", world.host.key_id, world.host.public, "2026-11-22T12:00:00Z"))


def truncated(world: World) -> None:
    path = Tile(ENTRIES, 0, len(world.entries)).path
    world.files[path] = encode_entries(world.entries)[:-9]


def bit_of_an_entry(world: World) -> None:
    path = Tile(ENTRIES, 0, len(world.entries)).path
    world.files[path] = flip(encode_entries(world.entries), 900)


def bit_of_a_tile(world: World) -> None:
    path = Tile(0, 0, len(world.entries)).path
    world.files[path] = flip(world.served()[path], 40)


def bit_of_the_checkpoint(world: World) -> None:
    note = world.note()
    world.files["checkpoint"] = note.replace(b"\n%d\n" % len(world.entries), b"\n%d\n" % (len(world.entries) - 1))


def lie_about_time(world: World) -> None:
    """Its checkpoint is one that this log never had."""
    other = world.copy()
    other.entries[1] = other.entries[1].replace(b"enrol", b"rotat")
    at = next(at for at, entry in enumerate(world.entries) if b'"kind":"time"' in entry)
    other.entries = other.entries[:at]
    world.entries[at] = other.time_entry(posix(2))


IN_A_LOG: dict[str, tuple[Callable[[World], object], str]] = {
    "flip a bit of an entry": (bit_of_an_entry, "bad_tile"),
    "flip a bit of a tile": (bit_of_a_tile, "bad_tile"),
    "flip a bit of the checkpoint": (bit_of_the_checkpoint, "bad_signature"),
    "truncate a file of entries": (truncated, "bad_entry_bundle"),
    "delete an entry, with the log's key": (lambda w: w.entries.pop(4), "missing"),
    "delete the first record, with the log's key": (lambda w: w.entries.pop(2), "missing_start"),
    "insert an entry, with the log's key": (lambda w: w.entries.insert(4, w.entries[2]), "missing"),
    "insert what is no entry": (lambda w: w.entries.append(b"{}"), "bad_entry"),
    "reorder, with the log's key": (exchange, "missing"),
    "alter an entry, with the log's key": (alter, "broken_link"),
    "exchange an entry and its tiles, under the old checkpoint": (exchange_under_the_old_checkpoint, "bad_tile"),
    "fork": (fork, "fork"),
    "sign after the key was revoked": (revoke_early, "key_not_valid"),
    "a time over a checkpoint of another log": (lie_about_time, "split_view"),
    "no checkpoint": (lambda w: w.files.update(checkpoint=b""), "bad_note"),
}  # fmt: skip


def log_codes(world: World, name: str) -> Codes:
    IN_A_LOG[name][0](world)
    try:
        return {problem.code for problem in world.url()}
    except BadEvidence as error:
        return {error.code}


@pytest.mark.parametrize("name", IN_A_LOG)
def test_in_a_log_by_its_address(world: World, name: str) -> None:
    assert IN_A_LOG[name][1] in log_codes(world, name)


def test_an_honest_log_is_fine(world: World) -> None:
    assert world.url(world.note(5)) == []
    assert world.url(world.note()) == []
    log = world.read()
    assert log.said.cosignatures == 2 and len(log.book.times) == 1


def stale(world: World) -> tuple[World, bytes]:
    """It serves what it had before, and its checkpoint with it."""
    kept = world.note()
    world.entries = world.entries[:6]
    return world, kept


def split(world: World) -> tuple[World, bytes]:
    """It shows this caller another history than the one before."""
    kept = world.note(6)
    world.entries[1] = key_leaf("enrol", world.host.key_id, world.host.public, "2026-11-22T00:00:01Z")
    return world, kept


def rolled_back(world: World) -> tuple[World, bytes]:
    """A database was put back, and the log grew on from there."""
    kept = world.note()
    world.entries = world.entries[:6]
    for _ in range(8):
        world.entries.append(key_leaf("enrol", "ab" * 32, b"k" * 32, "2026-11-22T12:00:00Z"))
    return world, kept


def split_at_one_size(world: World) -> tuple[World, bytes]:
    kept = world.note()
    return split(world)[0], kept


AGAINST_A_CHECKPOINT = {
    "stale checkpoint": (stale, "log_rolled_back"),
    "split view": (split, "log_forked"),
    "split view of one size": (split_at_one_size, "log_forked"),
    "rolled-back database": (rolled_back, "log_forked"),
}


def kept_codes(world: World, name: str) -> Codes:
    changed, kept = AGAINST_A_CHECKPOINT[name][0](world)
    return {problem.code for problem in changed.url(kept)}


@pytest.mark.parametrize("name", AGAINST_A_CHECKPOINT)
def test_against_a_checkpoint_that_was_kept(world: World, name: str) -> None:
    assert AGAINST_A_CHECKPOINT[name][1] in kept_codes(world, name)


# --- records against a log ----------------------------------------------------------------------------------


def lose_tail(world: World) -> World:
    """The host's newest records are gone, and nothing after them shows it."""
    log = world.copy()
    del world.records[-2:]
    return log


def never_logged(world: World) -> World:
    log = world.copy()
    log.entries = log.entries[:-1]
    return log


def backdate(world: World) -> World:
    """Whoever has the host's key signs a record today and dates it to before; the head that it names betrays it."""
    world.record(log_head=world.head(), created_at=stamp(START.replace(hour=1)))
    return world


def other_head(world: World) -> World:
    world.record(log_head={**world.head(), "root": "ab" * 32})
    return world


def larger_head(world: World) -> World:
    world.record(log_head={**world.head(), "size": 900})
    return world


def rewritten_log(world: World) -> World:
    """The log has another record in the place of one; everything after it fits."""
    log = world.copy()
    log.entries[-1] = log.entries[-1].replace(world.records[-1].sha256.encode(), b"0" * 64)
    return log


HELD: dict[str, tuple[Callable[[World], World], str]] = {
    "truncate: the tail of the records is gone": (lose_tail, "missing_record"),
    "never logged": (never_logged, "not_logged"),
    "altered in the log": (rewritten_log, "wrong_leaf"),
    "backdate": (backdate, "backdated"),
    "split view: a head of another tree": (other_head, "split_view"),
    "split view: a head beyond the log": (larger_head, "split_view"),
}


def held_codes(tmp_path: Path, world: World, name: str) -> Codes:
    log = HELD[name][0](world)
    return {problem.code for problem in world.held(tmp_path, log).problems}


@pytest.mark.parametrize("name", HELD)
def test_records_against_their_log(tmp_path: Path, world: World, name: str) -> None:
    assert HELD[name][1] in held_codes(tmp_path, world, name)


def test_honest_records_and_their_log_are_fine(tmp_path: Path, world: World) -> None:
    report = world.held(tmp_path)
    assert report.ok, report.problems
    assert report.times.counts == {"both": RECORDS - 3, "after_only": 3}


# --- keys ---------------------------------------------------------------------------------------------------

WEAK = b"\x01" + bytes(31)  # its one signature is right for every message, OpenSSL says


def test_a_wrong_key_is_named(tmp_path: Path, world: World) -> None:
    other = FakeHost()
    where = world.write(tmp_path)
    report = verify_paths([where], {other.key_id: other.public}, policy=POLICY)
    assert {problem.code for problem in report.problems} == {"no_key"}
    report = verify_paths([where], {world.host.key_id: other.public}, policy=POLICY)
    assert {problem.code for problem in report.problems} == {"bad_signature"}
    strangers = Policy.parse(f"log {other_key(world.log.key)}\nquorum none\n".encode())
    with pytest.raises(BadEvidence) as refused:
        world.url(policy=strangers)
    assert refused.value.code == "no_known_signature"


def test_a_weak_key_is_refused_wherever_it_stands(tmp_path: Path, world: World) -> None:
    pem = base64.b64encode(bytes.fromhex("302a300506032b6570032100") + WEAK).decode()
    file = tmp_path / "weak.pub.pem"
    file.write_text(f"-----BEGIN PUBLIC KEY-----\n{pem}\n-----END PUBLIC KEY-----\n")
    with pytest.raises(BadEvidence) as refused:
        load_keys([file])
    assert refused.value.code == "weak_key"
    with pytest.raises(BadEvidence) as refused:
        VerifierKey(ORIGIN, world.log.key.type, WEAK)
    assert refused.value.code == "weak_key"
    forged = world.records[0]
    assert not crypto.verify(WEAK, WEAK + bytes(32), forged.body)
    where = world.write(tmp_path)
    (place(tmp_path, world, 0) / "bundle.sig").write_bytes(WEAK + bytes(32))
    report = verify_paths([where], {world.host.key_id: WEAK}, policy=POLICY)
    assert {problem.code for problem in report.problems} == {"bad_signature"}


# --- a packet -----------------------------------------------------------------------------------------------

IN_A_PACKET: dict[str, tuple[Callable[[Made], Files], str]] = {
    "flip a bit of a record": (lambda m: {**m.files, (p := m.pick("bundle.json")): flip(m.files[p])}, "bad_signature"),
    "flip a bit of a tile": (lambda m: {**m.files, (p := m.pick("tile/0/000.p/28")): flip(m.files[p], 9)}, "bad_tile"),
    "delete a record": (lambda m: packets.without_record(m, 5), "missing_record"),
    "insert a file": (lambda m: {**m.files, "evidence/more": b"?"}, "extra_file"),
    "delete an entry, with the log's key": (lambda m: packets.relogged(m, packets.drop), "missing"),
    "reorder, with the log's key": (lambda m: packets.relogged(m, packets.swap), "missing"),
    "alter an entry, with the log's key": (lambda m: packets.relogged(m, packets.alter), "broken_link"),
    "swap two signatures": (
        lambda m: {**m.files, (a := m.pick("bundle.sig")): m.files[b := m.pick("bundle.sig", 1)], b: m.files[a]}, "bad_signature"),
    "truncate the log": (lambda m: {**m.files, (p := m.pick("entries/000.p/28")): m.files[p][:-9]}, "bad_entry_bundle"),
    "sign after the key was revoked": (lambda m: packets.relogged(m, packets.revoke_early), "key_not_valid"),
    "stale checkpoint": (lambda m: packets.relogged(m, lambda entries: entries[:20]), "wrong_checkpoint"),
    "wrong key": (lambda m: {**m.files, key_path(m): other_pem()}, "bad_key"),
    "weak key": (lambda m: {**m.files, key_path(m): weak_pem()}, "weak_key"),
}  # fmt: skip


def key_path(made: Made) -> str:
    return packets.path_of(made, "host.pem")


def other_pem() -> bytes:
    return crypto.public_pem(FakeHost().public).encode()


def weak_pem() -> bytes:
    return crypto.public_pem(WEAK).encode()


@pytest.mark.parametrize("name", IN_A_PACKET)
def test_in_a_packet(made: Made, name: str) -> None:
    change, code = IN_A_PACKET[name]
    report = verify_files(made.signed_again(change(made)))
    assert code in packets.codes(report) and report.exit_status == 65


# --- a check that is gone -----------------------------------------------------------------------------------


def none(*_: Any, **__: Any) -> Iterator[Any]:
    return iter(())


def yes(*_: Any, **__: Any) -> bool:
    return True


def follow_blindly(self: Any, index: int, leaf: Any, tag: bytes, begins: bool) -> None:
    self.first = index if self.first < 0 else self.first
    self.last = index


def no_clock(self: Any, epoch: int, row: Any) -> bool:
    self._link((epoch, row.seq), row)
    self._place, self._here = (epoch, row.seq), {row.digest: row.bundle}
    return True


GONE: list[tuple[str, str, Any, str, Any]] = [
    ("directory", "flip a bit of a signature", crypto, "verify", yes),
    ("directory", "delete a record", chains._Links, "_link", none),
    ("directory", "rewrite with the host's key", chains._Links, "_link", none),
    ("directory", "insert a second record for a place", chains._Links, "_name", none),
    ("directory", "set the clock back within a boot", chains._Links, "follow", no_clock),
    ("directory", "flip a bit of a receipt", logged.Receipts, "check", lambda *_: None),
    ("directory", "swap two entries", logged.Receipts, "check", lambda *_: None),
    ("directory", "split view", logged.Roots, "merge", none),
    ("directory", "postdate with the host's key", times.Times, "visit", none),
    ("directory", "say what no schema allows", verify, "check_document", none),
    ("log", "exchange an entry and its tiles, under the old checkpoint", Forest, "root", lambda *_: LIVED.edge()[0].root()),
    ("log", "flip a bit of a tile", book, "written", lambda *sizes: [t for t in written(*sizes) if t.level == ENTRIES]),
    ("log", "flip a bit of the checkpoint", Note, "verify", lambda self, keys: [(key, None) for key in keys]),
    ("log", "delete an entry, with the log's key", book.KeyLine, "follow", follow_blindly),
    ("log", "alter an entry, with the log's key", book.KeyLine, "follow", follow_blindly),
    ("log", "sign after the key was revoked", book.KeyLine, "valid", True),
    ("log", "fork", book.Book, "key_problems", none),
    ("log", "a time over a checkpoint of another log", served, "read_times", lambda *_: stamped.Said()),
    ("kept", "stale checkpoint", None, "held_to_older", none),
    ("kept", "split view", None, "held_to_older", none),
    ("kept", "rolled-back database", None, "held_to_older", none),
    ("held", "truncate: the tail of the records is gone", served.Held, "missing", none),
    ("held", "never logged", served.Held, "find", lambda *_: (None, None)),
    ("held", "altered in the log", served.Held, "find", lambda *_: (None, None)),
    ("held", "backdate", times.Times, "visit", none),
    ("held", "split view: a head of another tree", served.Held, "head", lambda *_: None),
]  # fmt: skip


@pytest.mark.parametrize(
    ("form", "name", "where", "attribute", "instead"), GONE, ids=[f"{item[0]}, {item[1]}" for item in GONE]
)
def test_a_check_that_is_gone_is_noticed(
    tmp_path: Path, world: World, monkeypatch: pytest.MonkeyPatch, form: str, name: str, where: Any, attribute: str, instead: Any
) -> None:  # fmt: skip
    """With the check out of the way its damage is not named any more; so the tables above fail without it."""
    from tests.evidence import world as worlds

    monkeypatch.setattr(where or worlds, attribute, instead)
    found = {
        "directory": lambda: (directory_codes(tmp_path, world, name), IN_A_DIRECTORY[name][1]),
        "log": lambda: (log_codes(world, name), IN_A_LOG[name][1]),
        "kept": lambda: (kept_codes(world, name), AGAINST_A_CHECKPOINT[name][1]),
        "held": lambda: (held_codes(tmp_path, world, name), HELD[name][1]),
    }[form]()
    assert found[1] not in found[0]
