"""What a witness remembers is never behind what it has said: restarts, kills, failed writes, restored files, lost state."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from compliance_agent.adapters import durable, witness_store
from compliance_agent.adapters.witness_keys import KEY_FILE, MLDSA44_FILE, WitnessKeys
from compliance_agent.adapters.witness_store import WitnessStore
from compliance_agent.core.witness import Seen
from compliance_agent.errors import AgentError, ConfigError, NoInput, StateInUse, StorageDamaged, StorageError
from compliance_agent.log.checkpoint import Checkpoint
from compliance_agent.log.note import Note
from tests.cli.command import environment
from tests.log.builder import LOG, NOW, ORIGIN, WITNESSES, MemoryLog, signer
from tests.witness.builder import HASH, NAME, Local, body_of, checkpoint_of, fork_of, local, note_of, step, tree_of

LOG_600 = MemoryLog(600)
ROOT = Path(__file__).resolve().parents[2]


async def test_a_restart_changes_nothing(tmp_path: Path) -> None:
    one = Local(tmp_path)
    await one.add(step(LOG_600, 0, 300))
    said = await one.latest()
    one = one.again()
    assert await one.latest() == said
    assert (await one.add(step(LOG_600, 0, 400))).body == b"300\n"
    assert (await one.add(step(LOG_600, 300, 400))).status == 200
    one.store.close()


def test_one_process_at_a_time(tmp_path: Path) -> None:
    with local(tmp_path) as one:
        with pytest.raises(StateInUse) as refused:
            WitnessStore(tmp_path, one.keys.keys)
        assert refused.value.exit_status == 75
    Local(tmp_path).store.close()


async def test_the_note_is_put_back(tmp_path: Path) -> None:
    """An older note under a newer mark, a removed one, one of another root: stopped, for reading too, and no other log is."""
    other = signer("evidence.example/clinic-b/2026")
    one = Local(tmp_path)
    one.logs[other.key.name] = [other.key]
    path = tmp_path / "checkpoint" / HASH
    await one.add(step(LOG_600, 0, 300))
    older = path.read_bytes()
    await one.add(step(LOG_600, 300, 400))
    newer = path.read_bytes()
    for content in (older, None):
        path.write_bytes(content) if content else path.unlink()
        one = one.again()
        for reply in (await one.add(step(LOG_600, 300, 500)), await one.add(step(LOG_600, 0, 500)), await one.latest()):
            assert (reply.status, reply.body.decode().partition(":")[0]) == (503, "rolled_back")
        elsewhere = Checkpoint(other.key.name, 7, tree_of(LOG_600, 7).root())
        assert (await one.add(body_of(0, [], note_of(elsewhere, other)))).status in {200, 409}
    path.write_bytes(newer)
    one = one.again()
    assert (await one.add(step(LOG_600, 400, 500))).status == 200
    one.store.close()


async def test_a_witness_that_ignores_its_marks_is_caught(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Planted fault: it would cosign from the older note, which the test above sees."""
    one = Local(tmp_path)
    await one.add(step(LOG_600, 0, 300))
    older = (tmp_path / "checkpoint" / HASH).read_bytes()
    await one.add(step(LOG_600, 300, 400))
    (tmp_path / "checkpoint" / HASH).write_bytes(older)
    monkeypatch.setattr(Seen, "contradicts", lambda *_: False)
    one = one.again()
    assert (await one.add(body_of(300, [], note_of(checkpoint_of(LOG_600, 300))))).status == 200
    one.store.close()


async def test_a_proof_that_cannot_be_kept_changes_no_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with local(tmp_path) as one:
        await one.add(step(LOG_600, 0, 300))

        def failing(path: Path, content: bytes) -> bool:
            raise StorageError("planted")

        monkeypatch.setattr(witness_store, "create_file", failing)
        assert (await one.add(body_of(300, [], note_of(fork_of(300))))).status == 422


def test_a_state_that_cannot_be_opened(tmp_path: Path) -> None:
    keys = WitnessKeys(tmp_path, NAME)
    (tmp_path / "lock").mkdir()
    with pytest.raises(StorageError):
        WitnessStore(tmp_path, keys.keys)


@pytest.mark.parametrize("content", [b"", b"x", b"flipped", b"of others", b"of another origin"])
async def test_a_note_that_is_not_ours_is_not_believed(tmp_path: Path, content: bytes) -> None:
    one = Local(tmp_path)
    await one.add(step(LOG_600, 0, 300))
    path = tmp_path / "checkpoint" / HASH
    text = checkpoint_of(LOG_600, 300).text
    elsewhere = Checkpoint("evidence.example/other", 300, tree_of(LOG_600, 300).root()).text
    path.write_bytes(
        {
            b"flipped": path.read_bytes().replace(b"\n300\n", b"\n301\n"),
            b"of others": Note(text, (LOG.line(text), WITNESSES[0].line(text))).encode(),
            b"of another origin": Note(elsewhere, tuple(one.keys.lines(elsewhere, NOW))).encode(),
        }.get(content, content)
    )
    one = one.again()
    assert (await one.add(step(LOG_600, 300, 400))).status == 503
    assert (await one.latest()).status == 503
    one.store.close()


@pytest.mark.parametrize("damage", ["gone", "torn", "text", "bad root", "bad size"])
async def test_marks_that_are_gone_or_damaged_stop_everything(tmp_path: Path, damage: str) -> None:
    one = Local(tmp_path)
    await one.add(step(LOG_600, 0, 300))
    one.store.close()
    path, whole = tmp_path / "marks", (tmp_path / "marks").read_bytes()
    if damage == "gone":
        path.unlink()
    else:
        name, size, root, at = whole.decode().split()
        path.write_text(
            {
                "torn": whole.decode()[:90],
                "text": "hello\n",
                "bad root": f"{name} {size} {root[:-5]}= {at}\n",
                "bad size": f"{name} 0{size} {root} {at}\n",
            }[damage]
        )
    with pytest.raises(StorageDamaged):
        Local(tmp_path)


async def test_all_was_put_back_and_a_log_shows_it(tmp_path: Path) -> None:
    """The whole directory restored: our own newer cosignature under a submitted checkpoint gives it away, for good."""
    one = Local(tmp_path / "w")
    await one.add(step(LOG_600, 0, 300))
    one.store.close()
    shutil.copytree(tmp_path / "w", tmp_path / "backup")
    one = Local(tmp_path / "w")
    newer = (await one.add(step(LOG_600, 300, 500))).body
    shown = body_of(300, tree_of(LOG_600, 500).consistency(300), note_of(checkpoint_of(LOG_600, 500)) + newer)
    one.store.close()
    shutil.rmtree(tmp_path / "w")
    shutil.copytree(tmp_path / "backup", tmp_path / "w")
    one = Local(tmp_path / "w")
    assert (await one.add(shown)).body.startswith(b"rolled_back")
    one = one.again()
    assert (await one.add(step(LOG_600, 300, 400))).status == 503
    assert (await one.latest()).status == 503
    one.store.close()


async def test_nobody_can_stop_a_witness_by_a_forged_line(tmp_path: Path) -> None:
    with local(tmp_path) as one:
        reply = (await one.add(step(LOG_600, 0, 300))).body
        for line in (reply, reply.replace(NAME.encode(), b"witness.example/w9")):  # true of 300, not of 400
            note = note_of(checkpoint_of(LOG_600, 400)) + line
            old = int((await one.add(body_of(0, [], note))).body)
            assert old in {300, 400}
            proof = tree_of(LOG_600, 400).consistency(old)
            assert (await one.add(body_of(old, proof, note))).status == 200


@pytest.mark.parametrize("fails_at", ["checkpoint", "marks"])
async def test_a_write_that_fails_is_not_cosigned(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails_at: str
) -> None:
    """503, nothing of the new tree is said, and what is held afterwards is the old or the new one."""
    with local(tmp_path) as one:
        await one.add(step(LOG_600, 0, 300))
        write = durable.write_file

        def failing(path: Path, content: bytes) -> None:
            if fails_at in path.parts[-2:]:
                raise StorageError("planted")
            write(path, content)

        monkeypatch.setattr(witness_store, "write_file", failing)
        reply = await one.add(step(LOG_600, 300, 400))
        assert (reply.status, reply.body.decode().partition(":")[0]) == (503, "storage_failed")
        assert (await one.latest()).status == 503  # nor is the note shown that may not be durable
        monkeypatch.setattr(witness_store, "write_file", write)
        shown = (await one.latest()).body.split(b"\n")[1]
        assert shown == {"checkpoint": b"300", "marks": b"400"}[fails_at]
        assert (await one.add(step(LOG_600, int(shown), 500))).status == 200


def test_the_mark_follows_the_note(tmp_path: Path) -> None:
    """A crash between the two writes: the note is ahead, which is right, and its mark is made good before it is shown."""
    one = Local(tmp_path)
    text = checkpoint_of(LOG_600, 300).text
    one.store.close()
    (tmp_path / "checkpoint" / HASH).write_bytes(Note(text, tuple(one.keys.lines(text, NOW))).encode())
    with local(tmp_path) as again:
        assert again.store.published(HASH) is not None
        assert (tmp_path / "marks").read_text().startswith(f"{HASH} 300 ")


DRIVER = """
import asyncio, os, signal, sys
from pathlib import Path
from compliance_agent.adapters import durable, witness_store
from tests.log.builder import MemoryLog
from tests.witness.builder import Local, step

directory, number = Path(sys.argv[1]), int(sys.argv[2])
write, left = witness_store.write_file, [number]

def killed(path, content):
    left[0] -= 1
    if left[0] == 0: os.kill(os.getpid(), signal.SIGKILL)
    write(path, content)
    left[0] -= 1
    if left[0] == 0: os.kill(os.getpid(), signal.SIGKILL)

async def main():
    log, one = MemoryLog(60), Local(directory)
    old = int((await one.add(step(log, 0, 1))).body) if (await one.latest()).status == 200 else 0
    witness_store.write_file = killed
    for size in range(old + 1, old + 4):
        reply = await one.add(step(log, size - 1, size))
        assert reply.status == 200, reply
        print("said", size, flush=True)

asyncio.run(main())
"""


@pytest.mark.parametrize("number", range(1, 10))
async def test_kill_9_at_every_write(tmp_path: Path, number: int) -> None:
    """Before and after each write: what was said stays said, and the next process goes on from there or from one further."""
    said = 0
    for _ in range(2):
        done = subprocess.run(
            [sys.executable, "-c", DRIVER, str(tmp_path), str(number)],
            capture_output=True,
            text=True,
            env=environment(PYTHONPATH=str(ROOT)),
            check=False,
            timeout=60,
        )
        assert done.returncode in {0, -9}, done.stderr
        said = max([said, *map(int, re.findall(r"^said (\d+)$", done.stdout, re.MULTILINE))])
        with local(tmp_path) as one:
            latest = await one.latest()
            size = int(latest.body.split(b"\n")[1]) if latest.status == 200 else 0
            assert said <= size <= said + 1
            assert (await one.add(body_of(size, [], note_of(fork_of(size))))).status == 422
        said = size  # for it was shown
        assert not list(tmp_path.rglob(".*.tmp"))


def test_keys_and_state_belong_together(tmp_path: Path) -> None:
    with pytest.raises(NoInput):
        WitnessKeys(tmp_path / "absent")
    made = WitnessKeys(tmp_path / "w", NAME)
    assert [str(key) for key in WitnessKeys(tmp_path / "w").keys] == [str(key) for key in made.keys]
    with pytest.raises(ConfigError) as refused:
        WitnessKeys(tmp_path / "w", "witness.example/w2")
    assert refused.value.code == "bad_name"
    assert (tmp_path / "w" / KEY_FILE).stat().st_mode & 0o777 == 0o600
    (tmp_path / "w" / "marks").unlink()
    with pytest.raises(StorageDamaged):
        WitnessStore(tmp_path / "w", made.keys)
    (tmp_path / "w" / "name").unlink()  # even when it is named anew, a key does not get a fresh memory
    with pytest.raises(StorageDamaged):
        WitnessStore(tmp_path / "w", WitnessKeys(tmp_path / "w", NAME).keys)


@pytest.mark.parametrize("name", ["", "two words", "a+b", "a\nb", "x" * 256, "\udcff"])
def test_names_that_cannot_be_one(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError):
        WitnessKeys(tmp_path / "w", name)
    assert not (tmp_path / "w").exists()


def test_the_second_key_stays(tmp_path: Path) -> None:
    assert len(WitnessKeys(tmp_path, NAME).keys) == 1
    two = [str(key) for key in WitnessKeys(tmp_path, ml_dsa=True).keys]
    assert [str(key) for key in WitnessKeys(tmp_path).keys] == two and len(two) == 2
    assert (tmp_path / MLDSA44_FILE).stat().st_mode & 0o777 == 0o600
    (tmp_path / MLDSA44_FILE).write_bytes((tmp_path / KEY_FILE).read_bytes())
    with pytest.raises(ConfigError):
        WitnessKeys(tmp_path)
    (tmp_path / MLDSA44_FILE).write_bytes(b"text")
    with pytest.raises(ConfigError):
        WitnessKeys(tmp_path)
    (tmp_path / MLDSA44_FILE).chmod(0o644)
    with pytest.raises(AgentError):
        WitnessKeys(tmp_path)


def test_a_cosignature_without_a_time_is_a_bug(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError):
        WitnessKeys(tmp_path, NAME).lines(checkpoint_of(LOG_600, 7).text, 0)


def test_sigstore_reads_what_is_stored(tmp_path: Path) -> None:
    """Its reader sees the log's checkpoint and our line beside it."""
    from sigstore._internal.rekor.checkpoint import SignedCheckpoint

    with local(tmp_path, ml_dsa=True) as one:
        reply = one.witness.add(step(LOG_600, 0, 300))
        note = one.store.published(HASH)
        assert reply.status == 200 and note is not None
    theirs = SignedCheckpoint.from_text(note.decode())
    assert [line.name for line in theirs.signed_note.signatures] == [ORIGIN, NAME, NAME]
    seen = theirs.checkpoint
    assert (seen.origin, seen.log_size, seen.log_hash) == (ORIGIN, 300, tree_of(LOG_600, 300).root().hex())


def test_the_state_is_readable_by_people(tmp_path: Path) -> None:
    with local(tmp_path) as one:
        one.witness.add(step(LOG_600, 0, 300))
    found = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()}
    assert found == {"name", "marks", "lock", KEY_FILE, f"checkpoint/{HASH}"}, json.dumps(sorted(found))
