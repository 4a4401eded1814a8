"""Recorded means recorded: one number, one place, one row, one directory, whatever happens in between."""

from __future__ import annotations

import hashlib
import json
import shutil
import stat
from dataclasses import replace
from pathlib import Path

import pytest

import compliance_agent
from compliance_agent.adapters.database import Database
from compliance_agent.crypto import Ed25519Signer, verify
from compliance_agent.errors import BadEvidence, ConfigError, StorageError, StorageFull
from compliance_agent.evidence.recovery import Head
from compliance_agent.evidence.store import EvidenceStore, Stored
from compliance_agent.evidence.verify import Report, verify_paths
from compliance_agent.installed import agent_digest
from tests.evidence.conftest import Clinic, bundle, seen


def report(clinic: Clinic) -> Report:
    return verify_paths([clinic.evidence], clinic.keys)


def rows(clinic: Clinic, sql: str = "SELECT epoch, seq FROM evidence ORDER BY id") -> list[tuple[object, ...]]:
    return clinic.store.database.read(lambda connection: connection.execute(sql).fetchall())


def test_bundles_are_numbered_chained_and_signed(clinic: Clinic) -> None:
    stored = clinic.record(5)
    previous = "0" * 64
    for number, item in enumerate(stored, start=1):
        body, signature = item.bundle_path.read_bytes(), item.signature_path.read_bytes()
        document = json.loads(body)
        assert (document["epoch"], document["seq"], document["prev"]) == (0, number, previous)
        assert verify(clinic.signer.public_bytes, signature, body)
        assert hashlib.sha256(body).hexdigest() == item.digest
        previous = item.digest
    assert clinic.store.head() == Head(0, 5, previous)
    assert report(clinic).ok


def test_the_directory_is_where_the_specification_says_and_private(clinic: Clinic) -> None:
    item = clinic.record()[0]
    assert item.bundle_path == clinic.evidence / "2026" / "11" / "22" / item.bundle_id / "bundle.json"
    assert sorted(path.name for path in item.bundle_path.parent.iterdir()) == ["bundle.json", "bundle.sig"]
    assert stat.S_IMODE(item.bundle_path.stat().st_mode) == 0o600
    assert stat.S_IMODE(item.bundle_path.parent.stat().st_mode) == 0o700


def test_the_same_bundle_again_is_the_same_record(clinic: Clinic) -> None:
    """A caller that got an error after the commit tries again and finds its record."""
    made = bundle()
    first = clinic.store.record(made, seen(clinic.signer.key_id))
    assert clinic.store.record(made, seen(clinic.signer.key_id, 9)) == first
    assert rows(clinic) == [(0, 1)]


def test_the_chain_goes_on_after_a_restart(clinic: Clinic) -> None:
    clinic.record(2)
    clinic.reopen()
    assert [item.seq for item in clinic.record(2)] == [3, 4]
    assert report(clinic).ok


def test_what_may_not_leave_takes_no_number(clinic: Clinic) -> None:
    clinic.record()
    with pytest.raises(BadEvidence):
        clinic.store.record(bundle(site_id="not a site!"), seen(clinic.signer.key_id))
    assert clinic.record()[0].seq == 2


def test_another_key_is_refused_loudly(clinic: Clinic, tmp_path: Path) -> None:
    clinic.record()
    clinic.close()
    database = Database(clinic.state / "agent.db", threaded=False, reserve_kb=4)
    try:
        with pytest.raises(ConfigError, match="signing_key_file") as caught:
            EvidenceStore(database, clinic.evidence, Ed25519Signer(tmp_path / "other.pem"))
        assert caught.value.code == "key_changed"
    finally:
        database.close()


def lose(directory: Path, how: str) -> None:
    """Ways a crash or a person leaves a directory."""
    if how == "absent":
        shutil.rmtree(directory)
    elif how == "half":
        (directory / "bundle.sig").unlink()
    elif how == "short":
        (directory / "bundle.json").write_bytes(b"{")
    elif how == "temporary":
        directory.rename(directory.with_name(f".{directory.name}.tmp"))
    elif how == "a file":
        shutil.rmtree(directory)
        directory.write_text("x")


@pytest.mark.parametrize("how", ["absent", "half", "short", "temporary", "a file"])
def test_the_last_directory_is_made_again_from_its_row(clinic: Clinic, how: str) -> None:
    """Killed between commit and rename: the row is the truth."""
    clinic.record(2)
    item = clinic.record()[0]
    body = item.bundle_path.read_bytes()
    lose(item.bundle_path.parent, how)
    clinic.reopen()
    assert item.bundle_path.read_bytes() == body
    assert report(clinic).verified == 3
    assert report(clinic).ok


def test_a_directory_that_cannot_be_made_now_is_made_later(clinic: Clinic) -> None:
    """The record is promised although its directory failed; so is every later one."""
    clinic.record()
    day = clinic.evidence / "2026" / "11" / "22"
    aside = day.rename(day.with_name("aside"))
    day.write_text("in the way")
    stored = clinic.record(3)
    assert [item.seq for item in stored] == [2, 3, 4]
    assert not stored[0].bundle_path.exists()
    day.unlink()
    aside.rename(day)
    clinic.reopen()
    assert report(clinic).verified == 4
    assert report(clinic).ok


def forget(clinic: Clinic, how: str) -> None:
    """Ways to lose the database, or its newest part."""
    path = clinic.state / "agent.db"
    if how == "deleted":
        path.unlink()
    elif how == "emptied":
        path.write_bytes(b"")
    elif how == "garbage":
        path.write_bytes(b"garbage!" * 4096)
    elif how == "head row":
        database = Database(path, threaded=False, reserve_kb=4)
        database.write(lambda connection: connection.execute("DELETE FROM chain"))
        database.close()
    elif how == "last rows":
        database = Database(path, threaded=False, reserve_kb=4)

        def back(connection: object) -> None:
            connection.execute("DELETE FROM evidence WHERE seq > 2")  # type: ignore[attr-defined]
            connection.execute(  # type: ignore[attr-defined]
                "UPDATE chain SET seq = 2, digest = (SELECT sha256 FROM evidence WHERE seq = 2), materialised = 2"
            )

        database.write(back)
        database.close()
    elif how == "state directory":
        shutil.rmtree(clinic.state)


@pytest.mark.parametrize("how", ["deleted", "emptied", "garbage", "head row", "last rows", "state directory"])
def test_what_the_directories_hold_comes_back_and_no_number_is_used_twice(clinic: Clinic, how: str) -> None:
    """Nothing that is still on the disk is lost, and the server never sees two bundles in one place."""
    before = clinic.record(5)
    clinic.close()
    forget(clinic, how)
    clinic.open()
    after = clinic.record(2)
    assert rows(clinic, "SELECT bundle_id FROM evidence WHERE state = 'pending' ORDER BY epoch, seq") == [
        (item.bundle_id,) for item in [*before, *after]
    ]
    places = rows(clinic)
    assert len(set(places)) == 7
    assert (after[0].epoch, after[0].seq) == ((0, 6) if how == "last rows" else (1, 1))
    assert report(clinic).ok, report(clinic).problems


def test_after_a_total_loss_the_epoch_is_one_that_was_never_used(clinic: Clinic) -> None:
    clinic.record(3)
    clinic.close()
    forget(clinic, "deleted")
    shutil.rmtree(clinic.evidence)
    clinic.open()
    item = clinic.record()[0]
    assert item.epoch > 1_700_000_000
    assert item.seq == 1
    assert getattr(clinic.store.lost, "reason", None) == "missing"
    clinic.reopen()
    assert clinic.store.lost is None, "said once"
    assert clinic.record()[0].epoch == item.epoch


def test_a_foreign_bundle_in_the_directories_is_not_taken_in(clinic: Clinic, tmp_path: Path) -> None:
    """Whoever can write there cannot speak for this host."""
    clinic.record()
    other = Clinic(tmp_path / "other")
    stranger = other.record()[0]
    other.close()
    shutil.copytree(stranger.bundle_path.parent, clinic.evidence / "2026" / "11" / "22" / stranger.bundle_id)
    clinic.reopen()
    assert len(rows(clinic)) == 1


def test_a_new_epoch_follows_what_the_server_knows(clinic: Clinic) -> None:
    """A restored snapshot: the server has more of this key than we do, and says so."""
    clinic.record(2)
    assert clinic.store.new_epoch("e" * 64, at_least=3) == 4
    item = clinic.record()[0]
    assert (item.epoch, item.seq) == (4, 1)
    assert json.loads(item.bundle_path.read_bytes())["prev"] == "e" * 64


class Failing(Database):
    """A database whose next commits fail."""

    failures = 0

    def write(self, fn, *, drains=False):  # type: ignore[no-untyped-def]
        if self.failures and not drains:
            self.failures -= 1
            raise StorageFull("no room")
        return super().write(fn, drains=drains)


def test_a_refused_record_leaves_no_trace(tmp_path: Path) -> None:
    signer = Ed25519Signer(tmp_path / "k.pem")
    database = Failing(tmp_path / "state" / "agent.db", threaded=False, reserve_kb=4)
    store = EvidenceStore(database, tmp_path / "evidence", signer)
    store.replay()
    database.failures = 1
    with pytest.raises(StorageError):
        store.record(bundle(), seen(signer.key_id))
    assert not (tmp_path / "evidence").exists()
    assert store.record(bundle(1), seen(signer.key_id)).seq == 1
    database.close()


def test_the_agent_digest_is_what_sha256sum_says() -> None:
    package = Path(compliance_agent.__file__).parent
    lines = sorted(f"./{path.relative_to(package).as_posix()}" for path in package.rglob("*.py"))
    listing = "".join(f"{hashlib.sha256((package / line).read_bytes()).hexdigest()}  {line}\n" for line in lines)
    agent_digest.cache_clear()
    assert agent_digest() == hashlib.sha256(listing.encode()).hexdigest()


def test_stored_paths_do_not_depend_on_where_the_state_was(clinic: Clinic, tmp_path: Path) -> None:
    """A kept demo directory can be moved."""
    item: Stored = clinic.record()[0]
    clinic.close()
    moved = (tmp_path / "evidence").rename(tmp_path / "moved")
    (tmp_path / "evidence").symlink_to(moved)
    clinic.open()
    again = clinic.store.record(replace(bundle(), bundle_id=item.bundle_id), seen(clinic.signer.key_id))
    assert again == item
