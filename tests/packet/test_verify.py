"""Every changed, missing, added or swapped thing is refused and named, also when the manifest was made again over it."""

from __future__ import annotations

import base64
import json
import random
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from compliance_agent.crypto import Ed25519Signer
from compliance_agent.entries.act import CONSOLE, Act, act_leaf
from compliance_agent.evidence import book
from compliance_agent.log.checkpoint import Checkpoint
from compliance_agent.log.merkle import hash_leaf
from compliance_agent.log.note import Note, VerifierKey
from compliance_agent.log.proof import Proof
from compliance_agent.log.tiles import ENTRIES, Tile, decode_entries, encode_entries
from compliance_agent.log.tree import Edge, TileTree
from compliance_agent.packet import archive, near, verify
from compliance_agent.packet.content import Scope
from compliance_agent.packet.manifest import MANIFEST, MANIFEST_SIGNATURE
from compliance_agent.packet.report import Report
from compliance_agent.packet.verify import verify_file, verify_files
from tests.packet.scene import DAY, Files, Made, built
from tests.server.builder import START, Hands, serving

KINDS = (
    "README.txt", "NOT-PROVEN.txt", "packet.json", "policy", "keys/log.pem", "keys/packet.pem", "bundle.json",
    "bundle.sig", "leaf.json", "bundle.tlog-proof", "log/checkpoint", "tile/0/000.p/28", "tile/entries/000.p/28",
    "assessment-results.json", "assessment-results.dsse.json", "ocsf.jsonl", "evidence.csv", MANIFEST,
    MANIFEST_SIGNATURE, "host.pem",
)  # fmt: skip


def path_of(made: Made, kind: str) -> str:
    if kind == "host.pem":
        return next(path for path in sorted(made.files) if path.startswith("keys/") and len(path) > 60)
    return made.pick(kind)


def flip(content: bytes, at: int) -> bytes:
    return content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :]


def damages(made: Made, path: str) -> Iterator[tuple[str, Files]]:
    """Each way a file can be wrong."""
    files, rng = made.files, random.Random(path)
    content = files[path]
    for at in (0, len(content) // 2, len(content) - 1, rng.randrange(len(content))):
        yield f"flip {at}", {**files, path: flip(content, at)}
    yield "truncate", {**files, path: content[:-1]}
    yield "empty", {**files, path: b""}
    yield "insert", {**files, path: content + b"\n"}
    yield "double", {**files, path: content + content}
    yield "delete", {name: held for name, held in files.items() if name != path}
    like = [name for name in files if name != path and Path(name).name == Path(path).name] or ["policy", "README.txt"]
    other = next(name for name in like if name != path and files[name] != content)
    yield "swap", {**files, path: files[other], other: content}


def named(report: Report, path: str) -> bool:
    """Whether a problem is about this file, its record, or its host."""
    about = {path, path.rpartition("/")[0], Path(path).name}
    about |= {MANIFEST_SIGNATURE} if path == MANIFEST else set()
    return any(problem.where in about or problem.where.startswith("log/tile") for problem in report.problems)


def codes(report: Report) -> set[str]:
    return {problem.code for problem in report.problems}


@pytest.mark.parametrize("kind", KINDS)
def test_damage_is_refused_and_named(made: Made, kind: str) -> None:
    path = path_of(made, kind)
    for act, files in damages(made, path):
        report = verify_files(files)
        assert not report.ok, act
        assert report.exit_status == 65
        assert named(report, path), (act, report.problems)


@pytest.mark.parametrize(
    "kind", [kind for kind in KINDS if kind not in {MANIFEST, MANIFEST_SIGNATURE, "keys/packet.pem"}]
)
def test_damage_by_whoever_holds_the_packet_key_is_refused_and_named(made: Made, kind: str) -> None:
    """The manifest is right again. What is left are the hosts' signatures, the log's, and what follows from the records."""
    path = path_of(made, kind)
    for act, files in damages(made, path):
        if (kind, act) == ("policy", "insert"):
            continue  # an empty line in it says nothing
        report = verify_files(made.signed_again(files))
        assert not report.ok, act
        assert report.problems, act


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_that_nobody_asked_for_is_named(made: Made, kind: str) -> None:
    extra = f"{path_of(made, kind)}.bak"
    report = verify_files(made.signed_again({**made.files, extra: b"?"}))
    assert ("extra_file", extra) in {(problem.code, problem.where) for problem in report.problems}


def test_every_flipped_bit_of_the_zip_file_is_refused(made: Made, tmp_path: Path) -> None:
    """Names, times, checksums, lengths and what lies between them, too."""
    rng, path = random.Random(1), tmp_path / "packet.zip"
    places = {
        *range(64),
        *(len(made.raw) - at for at in range(1, 400)),
        *(rng.randrange(len(made.raw)) for _ in range(40)),
    }
    for at in sorted(places)[::4]:
        path.write_bytes(flip(made.raw, at))
        assert verify_file(path).exit_status == 65, at
    for raw in (b"", b"PK", made.raw[:-1], made.raw + b"\0", b"\0" + made.raw, made.raw[:1000]):
        path.write_bytes(raw)
        assert codes(verify_file(path)) == {"bad_container"}


# --- lies by those who hold keys ------------------------------------------------------------------------


def without_record(made: Made, at: int) -> Files:
    """One whole record left out, the last of a host's stretch or one in its middle."""
    directory = made.pick("/bundle.json", at).rpartition("/")[0]
    return made.signed_again({path: held for path, held in made.files.items() if not path.startswith(f"{directory}/")})


def test_a_record_that_is_left_out_is_missed(made: Made) -> None:
    for at in range(12):
        report = verify_files(without_record(made, at))
        assert "missing_record" in codes(report), at


def test_a_host_that_is_left_out_is_missed(made: Made) -> None:
    """Neither its records nor its silence can be hidden: the log has its enrolment."""
    for hidden in ("ws-01", "ws-03"):
        scope = Scope.parse(made.files["packet.json"])
        gone = next(host for host in scope.hosts if host.host_id == hidden)
        kept = replace(scope, hosts=tuple(host for host in scope.hosts if host is not gone))
        files = {
            path: held for path, held in made.files.items() if f"/{hidden}/" not in path and gone.key_id not in path
        }
        report = verify_files(made.signed_again({**files, "packet.json": kept.encode()}))
        assert ("missing_host", gone.key_id) in {(problem.code, problem.where) for problem in report.problems}


def relogged(made: Made, change: Any) -> Files:
    """A packet over another log, made by whoever holds the server's keys: entries changed, tree, checkpoint and proofs anew."""
    files = made.files
    scope = Scope.parse(files["packet.json"])
    entries = decode_entries(files[f"log/{Tile(ENTRIES, 0, scope.size).path}"], scope.size)
    new = change(list(entries))
    edge, tiles = Edge().grow(map(hash_leaf, new))
    checkpoint = Checkpoint(scope.origin, edge.size, edge.root())
    key = VerifierKey.parse(files["policy"].decode().split()[1])
    note = Note(
        checkpoint.text, (key.sign(checkpoint.text, Ed25519Signer(made.data_dir / "keys" / "log.pem").sign),)
    ).encode()
    kept = {path: held for path, held in files.items() if not path.startswith("log/")}
    tree_files = {**dict(tiles), Tile(ENTRIES, 0, edge.size): encode_entries(new)}
    tree = TileTree(edge.size, lambda *tile: tree_files[Tile(*tile)])
    for path in [path for path in kept if path.endswith("leaf.json") and kept[path] in new]:
        index = new.index(kept[path])
        kept[path.replace("leaf.json", "bundle.tlog-proof")] = Proof(index, tuple(tree.inclusion(index)), note).encode()
    kept |= {f"log/{tile.path}": held for tile, held in tree_files.items()}
    kept |= {"log/checkpoint": note, "packet.json": replace(scope, size=edge.size).encode()}
    return made.signed_again(kept)


def bundle_at(entries: list[bytes], number: int) -> int:
    return [at for at, entry in enumerate(entries) if json.loads(entry)["kind"] == "bundle"][number]


def drop(entries: list[bytes]) -> list[bytes]:
    del entries[bundle_at(entries, 5)]
    return entries


def swap(entries: list[bytes]) -> list[bytes]:
    a, b = bundle_at(entries, 4), bundle_at(entries, 5)
    entries[a], entries[b] = entries[b], entries[a]
    return entries


def alter(entries: list[bytes]) -> list[bytes]:
    at = bundle_at(entries, 4)
    entries[at] = json.dumps({**json.loads(entries[at]), "bundle_sha256": "0" * 64}, sort_keys=True).encode()
    return entries


def drop_start(entries: list[bytes]) -> list[bytes]:
    del entries[bundle_at(entries, 0)]
    return entries


def revoke_early(entries: list[bytes]) -> list[bytes]:
    at = bundle_at(entries, 5)
    event = {
        "v": 1,
        "kind": "key",
        "event": "revoke",
        "key": json.loads(entries[at])["key"],
        "at": "2026-11-22T12:00:00Z",
    }
    return [*entries[:at], json.dumps(event, sort_keys=True).encode(), *entries[at:]]


def no_first(entries: list[bytes]) -> list[bytes]:
    return entries[1:]


@pytest.mark.parametrize(
    ("change", "code"),
    [(drop, "missing"), (swap, "missing"), (alter, "broken_link"), (drop_start, "missing_start"),
     (revoke_early, "key_not_valid"), (no_first, "bad_entry")],
    ids=lambda value: getattr(value, "__name__", value),
)  # fmt: skip
def test_a_log_that_was_written_again_is_named(made: Made, change: Any, code: str) -> None:
    assert code in codes(verify_files(relogged(made, change)))


@pytest.mark.parametrize(
    "entry",
    [b"", b"{", b"[]", b"1", b"\xff", b'{"kind":1}', b'{"kind":"bundle"}', b"[" * 5_000, b'{"kind":"shard","origin":"x"}',
     b'{"kind":"bundle","key":"a","epoch":"0","seq":1,"prev":"","bundle_sha256":""}',
     b'{"kind":"fork","key":"a","epoch":1.5,"seq":1}',
     b'{"kind":"key","key":"a","event":"enrol","at":"soon"}',
     b'{"kind":"key","key":["a"],"event":"enrol","at":"2026-11-22T12:00:00Z"}',
     b'{"act":"looked","actor":"console","at":"2026-11-22T12:00:00Z","kind":"act","subject":null,"v":1}',
     b'{"act":"login","actor":"j.doe","at":"2026-11-22T12:00:00Z","kind":"act","subject":null,"v":1}',
     b'{"act":"login","actor":"console","at":"2026-11-22T12:00:00Z","kind":"act","note":"text","subject":null,"v":1}'],
    ids=lambda value: value[:60].decode("latin-1"),
)  # fmt: skip
def test_a_log_with_an_entry_that_is_none_is_named(made: Made, entry: bytes) -> None:
    report = verify_files(relogged(made, lambda entries: [*entries, entry]))
    assert "bad_entry" in codes(report)


def test_an_act_of_a_person_is_an_entry(made: Made) -> None:
    """Only the exports, made for the log that was one shorter, say another size."""
    act = act_leaf(Act.LOGIN, CONSOLE, None, "2026-11-22T12:00:00.000000Z")
    assert codes(verify_files(relogged(made, lambda entries: [*entries, act]))) == {"wrong_export"}


def test_an_entry_of_a_later_kind_is_left_alone(made: Made) -> None:
    """Only the exports, made for the log that was one shorter, say another size."""
    assert codes(verify_files(relogged(made, lambda entries: [*entries, b'{"kind":"policy","v":2}']))) == {
        "wrong_export"
    }


def test_the_same_log_written_again_is_fine(made: Made) -> None:
    """So it is the change that is refused above; only the README and the export still name their old digests."""
    assert verify_files(relogged(made, lambda entries: entries)).ok


def test_an_older_checkpoint_is_named(made: Made, tmp_path: Path) -> None:
    """A stale one: its own tree is right, and what was logged after it has no place in it."""
    report = verify_files(relogged(made, lambda entries: entries[:20]))
    assert {"bad_inclusion_proof", "wrong_checkpoint"} & codes(report)


def test_a_policy_from_elsewhere_decides(made: Made, tmp_path: Path) -> None:
    assert verify_files(made.files, made.files["policy"]).ok
    other = VerifierKey(made.built.scope.origin, VerifierKey.parse(made.files["policy"].decode().split()[1]).type,
                        Ed25519Signer(tmp_path / "other.pem").public_bytes)  # fmt: skip
    report = verify_files(made.files, f"log {other}\nquorum none\n".encode())
    assert "no_known_signature" in codes(report)
    assert not report.own_policy


def test_a_weak_key_is_refused(made: Made) -> None:
    weak = base64.b64encode(bytes.fromhex("302a300506032b6570032100") + b"\x01" + bytes(31)).decode()
    pem = f"-----BEGIN PUBLIC KEY-----\n{weak}\n-----END PUBLIC KEY-----\n".encode()
    for path in ("keys/log.pem", "keys/packet.pem"):
        assert "weak_key" in codes(verify_files({**made.files, path: pem})) or path == "keys/log.pem"
        assert not verify_files({**made.files, path: pem}).ok


async def test_a_split_view_is_named(tmp_path: Path) -> None:
    """A host verified a head that is no prefix of the auditor's log, and its record says so."""
    from compliance_agent.packet.build import build

    async with serving(tmp_path / "server", clock=Hands(START)) as server:
        host = await server.enrolled()
        head = {"origin": "compliance-server/clinic-1/2026", "size": 1, "root": "ab" * 32, "witnessed_at": None}
        await server.deliver(host, host.next(), host.next(log_head=head), host.next(log_head={**head, "size": 900}))
    result = await build(tmp_path / "server", "clinic-1", DAY, DAY, tmp_path / "packet.zip")
    assert [problem.code for problem in result.report.problems] == ["split_view", "split_view"]


async def test_a_head_that_is_a_prefix_is_fine(tmp_path: Path) -> None:
    from compliance_agent.packet.build import build

    async with serving(tmp_path / "server", clock=Hands(START)) as server:
        host = await server.enrolled()
        reply = await server.deliver(host, host.next())
        note = Note.parse(Proof.parse(base64.b64decode(reply.json()["receipts"][0]["proof"])).checkpoint)
        seen = Checkpoint.parse(note.text)
        head = {"origin": seen.origin, "size": seen.size, "root": seen.root.hex(), "witnessed_at": None}
        await server.deliver(host, host.next(log_head=head), host.next())
    result = await build(tmp_path / "server", "clinic-1", DAY, DAY, tmp_path / "packet.zip")
    assert result.report.ok, result.report.problems


# --- planted faults: each check is what refuses -----------------------------------------------------------


def other_path(made: Made) -> Files:
    """A proof whose first hash is another one."""
    path = made.pick("bundle.tlog-proof", 3)
    proof = Proof.parse(made.files[path])
    return {**made.files, path: replace(proof, path=(b"\0" * 32, *proof.path[1:])).encode()}


def nothing(*_: Any) -> list[Any]:
    return []


@pytest.mark.parametrize(
    ("where", "name", "damage", "code"),
    [
        (near, "verify_inclusion", other_path, "bad_inclusion_proof"),
        (verify, "chain_problems", lambda made: relogged(made, alter), "broken_link"),
        (verify, "completeness", lambda made: without_record(made, 3), "missing_record"),
        (verify._Verification, "_extra_files", lambda made: {**made.files, "note.txt": b"?"}, "extra_file"),
    ],
    ids=["inclusion", "chain", "completeness", "extra"],
)
def test_a_verifier_that_skips_a_check_is_caught(
    made: Made, monkeypatch: pytest.MonkeyPatch, where: Any, name: str, damage: Any, code: str
) -> None:
    """With the check the damage is named; without it, it is not: so these tests can see a check that is gone."""
    files = made.signed_again(damage(made))
    assert code in codes(verify_files(files))
    monkeypatch.setattr(where, name, nothing)
    assert code not in codes(verify_files(files))


def test_a_verifier_that_believes_the_tiles_is_caught(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    files = made.signed_again({**made.files, (path := made.pick("tile/0/000.p/28")): flip(made.files[path], 9)})
    assert ("bad_tile", path) in {(problem.code, problem.where) for problem in verify_files(files).problems}
    monkeypatch.setattr(book, "written", lambda *sizes: [Tile(ENTRIES, 0, 28)])
    assert "bad_tile" not in codes(verify_files(files))


def test_the_verifier_needs_no_server(made: Made, tmp_path: Path) -> None:
    """An auditor has the packet and this package without its server extra."""
    import subprocess
    import sys

    path = tmp_path / "packet.zip"
    path.write_bytes(made.raw)
    code = (
        "import sys; from pathlib import Path; from compliance_agent.packet.verify import verify_file;"
        f"print(verify_file(Path({str(path)!r})).ok, [n for n in ('sqlalchemy', 'compliance_agent.server') if n in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["True", "[]"]


def test_an_empty_or_foreign_zip_is_refused(made: Made, tmp_path: Path) -> None:
    path = tmp_path / "packet.zip"
    for files in ({}, {"a": b"b"}, {"evidence/a/2026/11/22/x/bundle.json": b"{}"}):
        path.write_bytes(archive.pack(files))
        assert verify_file(path).exit_status == 65


def test_another_period_is_another_packet(made: Made, tmp_path: Path) -> None:
    """Records of one packet do not fit the scope of another."""
    other = built(made.data_dir, tmp_path / "other.zip", host="ws-01")
    mixed = {**made.files, "packet.json": archive.unpack(other.path.read_bytes())["packet.json"]}
    assert not verify_files(made.signed_again(mixed)).ok
