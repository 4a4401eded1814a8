"""What is said to be proven of a record: all of it when nothing is damaged, and the right line of it for each kind of damage."""

from __future__ import annotations

import asyncio
import shutil
import sqlite3
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from compliance_agent.errors import Refusal
from compliance_agent.log.checkpoint import Checkpoint
from compliance_agent.log.merkle import RootHash
from compliance_agent.log.note import KeyType, Note, VerifierKey
from compliance_agent.log.policy import Policy
from compliance_agent.log.tiles import FULL, decode_entries, encode_entries
from compliance_agent.server.opening import opened
from compliance_agent.server.services.checkpoints import State, Witness, witnessed
from compliance_agent.server.services.logbook import NEWEST, Logbook
from compliance_agent.server.services.proving import Proven, Prover
from compliance_agent.server.settings import ServerSettings
from compliance_agent.server.store.packing import packed, unpacked
from tests.server.builder import Server, serving, unwalled
from tests.server.test_sequencer import settled

pytestmark = pytest.mark.anyio
LOG = Path("log/clinic-1/2026")
ORIGIN = "compliance-server/clinic-1/2026"
SIZE = 302  # the year's first entry, the enrolment, 300 records
Damage = Callable[[Path, str], None]


@dataclass(frozen=True)
class Sound:
    """A data directory with nothing wrong, and its records in order."""

    directory: Path
    bundle_ids: tuple[str, ...]


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Sound:
    directory = tmp_path_factory.mktemp("proven") / "data"
    bundle_ids: list[str] = []

    async def fill() -> None:
        async with serving(directory) as server:
            host = await server.enrolled()
            for _ in range(3):
                bundles = [host.next() for _ in range(100)]
                bundle_ids.extend(bundle.document["bundle_id"] for bundle in bundles)
                await server.deliver(host, *bundles)
            await settled(server)

    asyncio.run(fill())
    return Sound(directory, tuple(bundle_ids))


async def proven(directory: Path, bundle_id: str, policy: Policy | None = None) -> Proven:
    """Proven anew, over the directory as it is."""
    async with opened(ServerSettings(data_dir=directory)) as services:
        reader = services.store.for_sites({"clinic-1"})
        return await Prover(reader, services.log_files, services.log_keys, policy).prove(bundle_id)


def said(found: Proven) -> dict[str, tuple[str, str]]:
    """State and code of each line."""
    return {line.name: (str(line.state), line.code) for line in found.lines}


GOOD = {
    "signature": ("verified", "host_signed"),
    "before": ("verified", "linked"),
    "after": ("verified", "linked"),
    "entry": ("verified", "same_entry"),
    "inclusion": ("verified", "included"),
    "checkpoint": ("verified", "log_signed"),
    "witnesses": ("could not tell", "no_policy"),
}


@pytest.mark.parametrize("seq", [2, 100, 254, 255, 256, 299], ids=lambda seq: f"entry {seq + 1}")
async def test_a_sound_record_is_proven(sound: Sound, seq: int) -> None:
    found = await proven(sound.directory, sound.bundle_ids[seq - 1])
    assert said(found) == GOOD
    assert found.state is State.UNTOLD, "no witness is configured, and that is said"
    figures = next(dict(line.figures) for line in found.lines if line.name == "inclusion")
    assert (figures["index"], figures["tree size"]) == (str(seq + 1), str(SIZE))


async def test_the_ends_of_a_chain(sound: Sound) -> None:
    first, last = said(await proven(sound.directory, sound.bundle_ids[0])), sound.bundle_ids[-1]
    assert first == {**GOOD, "before": ("verified", "first")}
    assert said(await proven(sound.directory, last)) == {**GOOD, "after": ("could not tell", "newest")}


# Damage


def sql(statement: str) -> Damage:
    """Change rows behind the server's back; `:id` is the record."""

    def act(directory: Path, bundle_id: str) -> None:
        with closing(sqlite3.connect(directory / "server.db")) as connection, connection:
            unwalled(connection)
            connection.create_function("changed", 1, lambda kept: packed(changed(unpacked(kept))))
            assert connection.execute(statement, {"id": bundle_id}).rowcount == 1

    return act


def changed(body: bytes) -> bytes:
    """The same with another policy version, of its length and form."""
    return body.replace(b'"policy_version":"1.0"', b'"policy_version":"1.1"')


def flip(path: str, at: int) -> Damage:
    """Turn one bit of a file of the log."""

    def act(directory: Path, _bundle_id: str) -> None:
        file = directory / LOG / path
        raw = bytearray(file.read_bytes())
        raw[at] ^= 1
        file.write_bytes(raw)

    return act


def other_entry(index: int) -> Damage:
    """Serve another entry in place of this one, of the same length."""

    def act(directory: Path, _bundle_id: str) -> None:
        file = directory / LOG / "tile/entries/000"
        entries = decode_entries(file.read_bytes(), FULL)
        entries[index] = entries[index].replace(b'"kind":"bundle"', b'"kind":"bungle"')
        file.write_bytes(encode_entries(entries))

    return act


def remove(path: str) -> Damage:
    return lambda directory, _bundle_id: (directory / LOG / path).unlink()


def checkpoint(change: Callable[[Note], Note]) -> Damage:
    """Serve another checkpoint."""

    def act(directory: Path, _bundle_id: str) -> None:
        file = directory / LOG / "checkpoint"
        file.write_bytes(change(Note.parse(file.read_bytes())).encode())

    return act


def other_root(note: Note) -> Note:
    seen = Checkpoint.parse(note.text)
    return Note(Checkpoint(seen.origin, seen.size, RootHash(bytes(32))).text, note.signatures)


def signed_by_another(note: Note) -> Note:
    private = Ed25519PrivateKey.generate()
    key = VerifierKey(ORIGIN, KeyType.ED25519, private.public_key().public_bytes_raw())
    return Note(note.text, (key.sign(note.text, private.sign),))


SEQ = 99  # entry 100, in the full first tile
PLACE = "(SELECT key_id, epoch, seq FROM bundles WHERE bundle_id = :id)"
NEXT = "(SELECT key_id, epoch, seq + 1 FROM bundles WHERE bundle_id = :id)"
BODY = "changed(body)"

DAMAGE: dict[str, tuple[Damage, dict[str, tuple[str, str]]]] = {
    "the record's bytes": (
        sql(f"UPDATE bundles SET body = {BODY} WHERE bundle_id = :id"),
        {
            "signature": ("wrong", "bad_signature"),
            "after": ("wrong", "broken_link"),
            "entry": ("wrong", "other_entry"),
            "inclusion": ("wrong", "other_hash"),
        },
    ),
    "its signature": (
        sql("UPDATE bundles SET sig = zeroblob(64) WHERE bundle_id = :id"),
        {
            "signature": ("wrong", "bad_signature"),
            "entry": ("wrong", "other_entry"),
            "inclusion": ("wrong", "other_hash"),
        },
    ),
    "the bytes of the record before": (
        sql(
            f"UPDATE bundles SET body = {BODY} WHERE (key_id, epoch, seq) = "
            "(SELECT key_id, epoch, seq - 1 FROM bundles WHERE bundle_id = :id)"
        ),
        {"before": ("wrong", "broken_link")},
    ),
    "the record after is gone": (
        sql(f"DELETE FROM bundles WHERE (key_id, epoch, seq) = {NEXT}"),
        {"after": ("wrong", "broken_link")},
    ),
    "the host's key": (
        sql("UPDATE hosts SET public_key = randomblob(32)"),
        {
            "signature": ("wrong", "bad_signature"),
            "entry": ("wrong", "other_entry"),
            "inclusion": ("wrong", "other_hash"),
        },
    ),
    "the row of its entry": (
        sql(f"UPDATE log_entries SET leaf = CAST('{{}}' AS BLOB) WHERE (key_id, epoch, seq) = {PLACE}"),
        {"entry": ("wrong", "other_row")},
    ),
    "its entry is gone": (
        sql(f"DELETE FROM log_entries WHERE (key_id, epoch, seq) = {PLACE}"),
        {
            "entry": ("wrong", "no_entry"),
            "inclusion": ("could not tell", "no_entry"),
            "checkpoint": ("could not tell", "no_entry"),
            "witnesses": ("could not tell", "no_entry"),
        },
    ),
    "its entry has no index": (
        sql(f"UPDATE log_entries SET year = NULL, leaf_index = NULL WHERE (key_id, epoch, seq) = {PLACE}"),
        {name: ("could not tell", "pending") for name in ("entry", "inclusion", "checkpoint", "witnesses")},
    ),
    "its entry bundle": (other_entry(100), {"entry": ("wrong", "other_entry")}),
    "its own hash in the tile": (flip("tile/0/000", 100 * 32), {"inclusion": ("wrong", "other_hash")}),
    "a neighbour's hash in the tile": (flip("tile/0/000", 101 * 32), {"inclusion": ("wrong", "bad_inclusion_proof")}),
    "a hash in the partial tile": (flip("tile/0/001.p/46", 0), {"inclusion": ("wrong", "bad_inclusion_proof")}),
    "a tile is gone": (remove("tile/0/000"), {"inclusion": ("could not tell", "file_missing")}),
    "an entry bundle is gone": (remove("tile/entries/000"), {"entry": ("could not tell", "file_missing")}),
    "the root in the checkpoint": (
        checkpoint(other_root),
        {"inclusion": ("wrong", "bad_inclusion_proof"), "checkpoint": ("wrong", "bad_signature")},
    ),
    "the checkpoint's signature": (
        checkpoint(signed_by_another),
        {"checkpoint": ("wrong", "no_known_signature")},
    ),
    "no checkpoint": (
        remove("checkpoint"),
        {name: ("could not tell", "not_published") for name in ("entry", "inclusion", "checkpoint", "witnesses")},
    ),
    "an unreadable checkpoint": (
        flip("checkpoint", -2),
        {
            "entry": ("could not tell", "bad_checkpoint"),
            "inclusion": ("could not tell", "bad_checkpoint"),
            "checkpoint": ("wrong", "bad_checkpoint"),
        },
    ),
}


@pytest.mark.parametrize("name", DAMAGE)
async def test_each_damage_shows_on_its_own_line(sound: Sound, tmp_path: Path, name: str) -> None:
    damage, wrong = DAMAGE[name]
    shutil.copytree(sound.directory, tmp_path / "data")
    damage(tmp_path / "data", sound.bundle_ids[SEQ - 1])
    found = await proven(tmp_path / "data", sound.bundle_ids[SEQ - 1])
    assert said(found) == {**GOOD, **wrong}
    assert found.state is not State.VERIFIED


async def test_what_was_never_published_is_not_proven(sound: Sound, tmp_path: Path) -> None:
    """An older checkpoint, truly signed, does not cover a newer record."""
    shutil.copytree(sound.directory, tmp_path / "data")
    async with opened(ServerSettings(data_dir=tmp_path / "data")) as services:
        older = services.log_keys.note(Checkpoint(ORIGIN, 50, RootHash(bytes(32))), datetime.now(UTC))
    (tmp_path / "data" / LOG / "checkpoint").write_bytes(older)
    found = said(await proven(tmp_path / "data", sound.bundle_ids[SEQ - 1]))
    assert found["entry"] == found["inclusion"] == ("could not tell", "not_published")


async def test_a_checkpoint_of_another_log_is_wrong_though_our_key_signed_it(sound: Sound, tmp_path: Path) -> None:
    """One key pair signs for every log of the server, under its name."""
    shutil.copytree(sound.directory, tmp_path / "data")
    async with opened(ServerSettings(data_dir=tmp_path / "data")) as services:
        note = services.log_files.published("clinic-1", 2026)
        assert note is not None
        seen = Checkpoint.parse(Note.parse(note).text)
        key, other = services.log_keys.verifier(ORIGIN), Checkpoint("elsewhere", seen.size, seen.root)
        line = Note.parse(services.log_keys.note(other, datetime.now(UTC))).signatures[0]
        (tmp_path / "data" / LOG / "checkpoint").write_bytes(
            Note(other.text, (replace(line, name=key.name, key_id=key.id),)).encode()
        )
    found = said(await proven(tmp_path / "data", sound.bundle_ids[SEQ - 1]))
    assert found == {**GOOD, "checkpoint": ("wrong", "other_log")}


# Witnesses


@dataclass
class Cosigner:
    """A witness that signs what it is given."""

    name: str
    private: Ed25519PrivateKey

    @classmethod
    def made(cls, name: str) -> Cosigner:
        return cls(name, Ed25519PrivateKey.generate())

    @property
    def key(self) -> VerifierKey:
        return VerifierKey(f"{self.name}.example", KeyType.COSIGNATURE, self.private.public_key().public_bytes_raw())


def policy_of(witnesses: list[Cosigner], quorum: str) -> Policy:
    lines = [f"witness {one.name} {one.key}" for one in witnesses]
    names = " ".join(one.name for one in witnesses)
    return Policy.parse("\n".join([*lines, f"group two 2 {names}", f"quorum {quorum}", ""]).encode())


def test_every_state_of_the_witnesses_is_said() -> None:
    log = Ed25519PrivateKey.generate()
    key = VerifierKey(ORIGIN, KeyType.ED25519, log.public_key().public_bytes_raw())
    text = Checkpoint(ORIGIN, 1, RootHash(bytes(32))).text
    one, two, three = (Cosigner.made(name) for name in ("north", "south", "west"))
    first, second = (who.key.sign(text, who.private.sign, 1_790_000_000) for who in (one, two))
    signed = Note(text, (key.sign(text, log.sign),))
    policy = policy_of([one, two, three], "two")

    def found(*lines: object, policy: Policy | None = policy) -> tuple[str, str, dict[str, str]]:
        line, witnesses = witnessed(Note(text, (*signed.signatures, *lines)).encode(), policy)  # type: ignore[arg-type]
        return str(line.state), line.code, {item.name: item.code for item in witnesses}

    absent = dict.fromkeys(("north", "south", "west"), "absent")
    assert found(policy=None) == ("could not tell", "no_policy", {})
    assert found() == ("could not tell", "unwitnessed", absent)
    assert found(first) == ("could not tell", "unwitnessed", {**absent, "north": "cosigned"})
    both = {**absent, "north": "cosigned", "south": "cosigned"}
    assert found(first, second) == ("verified", "quorum_met", both)
    forged = two.key.sign(text, three.private.sign, 1_790_000_000)
    assert found(first, forged) == ("wrong", "bad_cosignature", {**absent, "north": "cosigned", "south": "wrong"})
    assert found(policy=policy_of([one, two, three], "none"))[:2] == ("could not tell", "no_quorum_asked")
    _, witnesses = witnessed(Note(text, (*signed.signatures, first)).encode(), policy)
    assert witnesses[0] == Witness("north", "cosigned", datetime.fromtimestamp(1_790_000_000, UTC))


# The log as a whole, and who may see what


async def test_the_log_of_a_site(sound: Sound) -> None:
    async with opened(ServerSettings(data_dir=sound.directory)) as services:
        reader = services.store.for_sites({"clinic-1"})
        book = Logbook(reader, services.log_files, services.log_keys, services.board)
        log = await book.log("clinic-1")
        assert (log.years, log.checkpoint and log.checkpoint.size, log.unlogged, log.backlog.count) == (
            (2026,),
            SIZE,
            0,
            0,
        )
        assert [line.code for line in log.lines] == ["log_signed", "no_policy"]
        assert [(entry.index, entry.kind) for entry in log.entries] == [
            (SIZE - 1 - at, "bundle") for at in range(NEWEST)
        ]
        assert log.note == services.log_files.published("clinic-1", 2026)
        assert log.vkeys == (await book.vkey("clinic-1", 2026),)
        assert log.still == "not_sequencing", "this is a command beside the server"
        services.board.sequencing = True
        assert (await book.log("clinic-1")).still == ""
        services.board.paused[""] = "storage_full"
        assert ((await book.log("clinic-1")).still, (await book.log("clinic-1")).passing) == ("storage_full", True)
        services.board.stopped["clinic-1"] = "log_forked"
        assert ((await book.log("clinic-1")).still, (await book.log("clinic-1")).passing) == ("log_forked", False)
        with pytest.raises(Refusal):
            await book.log("clinic-1", 2025)


async def test_records_without_a_checkpoint_are_counted_by_host(sound: Sound, tmp_path: Path) -> None:
    """Pending and unpublished ones alike; none are counted when all is published."""
    shutil.copytree(sound.directory, tmp_path / "data")
    with closing(sqlite3.connect(tmp_path / "data" / "server.db")) as connection, connection:
        unwalled(connection)
        connection.execute("UPDATE log_entries SET year = NULL, leaf_index = NULL WHERE leaf_index IN (299, 300, 301)")
        connection.execute("UPDATE log_shards SET checkpoint_size = 297")
    for directory, count in ((sound.directory, 0), (tmp_path / "data", 5)):
        async with opened(ServerSettings(data_dir=directory)) as services:
            reader = services.store.for_sites({"clinic-1"})
            [host] = await reader.hosts()
            assert await reader.unlogged() == ({host.key_id: count} if count else {})
            assert (await services.fleet(reader).host(host.key_id)).unlogged == count
            assert await services.store.for_sites({"clinic-2"}).unlogged() == {}


async def test_proofs_and_logs_of_another_clinic_do_not_exist(server: Server) -> None:
    ours, theirs = await server.enrolled(), await server.enrolled("ws-99", "clinic-2")
    mine, foreign = ours.next(), theirs.next()
    await server.deliver(ours, mine)
    await server.deliver(theirs, foreign)
    await settled(server)
    reader = server.services.store.for_sites({"clinic-1"})
    prover, book = server.services.prover(reader), server.services.logbook(reader)
    assert said(await prover.prove(mine.document["bundle_id"]))["inclusion"] == GOOD["inclusion"]
    assert (await book.log("clinic-1")).checkpoint is not None
    for asked in (
        prover.prove(foreign.document["bundle_id"]),
        prover.prove(foreign.document["bundle_id"], theirs.key_id),
        book.log("clinic-2"),
        book.log("clinic-2", 2026),
        book.vkey("clinic-2", 2026),
    ):
        with pytest.raises(Refusal) as refused:
            await asked
        assert refused.value.status == 404
