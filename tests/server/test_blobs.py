"""One contract for blobs, over a directory and over a bucket; then what only a bucket can do, and how it fails."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from botocore.exceptions import ClientError  # type: ignore[import-untyped]  # it has no types

from compliance_agent.errors import ConfigError, NoInput, StorageError, StorageForbidden
from compliance_agent.server import s3
from compliance_agent.server.blobs import Directory
from compliance_agent.server.records.blobs import Blobs
from compliance_agent.server.s3 import Bucket, Place, bucket
from tests.server.buckets import ObjectStore, object_store

LATER = datetime(2099, 1, 1, tzinfo=UTC)
NAME = "clinic-1/2026/tile/0/000"


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ObjectStore]:
    with object_store(tmp_path_factory.mktemp("store")) as running:
        yield running


@pytest.fixture(params=["directory", "bucket"])
def blobs(request: pytest.FixtureRequest, tmp_path: Path, store: ObjectStore) -> Blobs:
    return Directory(tmp_path / "log") if request.param == "directory" else store.opened(store.new())


def size_of(_there: bytes | None) -> bytes:
    return b"new"


# --- the contract ---------------------------------------------------------------------------------


def test_what_was_created_is_there_and_is_never_replaced(blobs: Blobs) -> None:
    assert blobs.get(NAME, limit_bytes=10) is None
    assert blobs.create(NAME, b"first", LATER)
    assert not blobs.create(NAME, b"second", LATER)
    assert not blobs.create(NAME, b"second")
    assert blobs.get(NAME, limit_bytes=10) == b"first"


def test_what_is_too_large_is_refused(blobs: Blobs) -> None:
    blobs.create(NAME, b"x" * 11)
    with pytest.raises(NoInput, match="larger than 10 bytes"):
        blobs.get(NAME, limit_bytes=10)
    assert blobs.get(NAME, limit_bytes=11) == b"x" * 11


def test_an_empty_blob_is_a_blob(blobs: Blobs) -> None:
    assert blobs.create(NAME, b"")
    assert blobs.get(NAME, limit_bytes=10) == b""
    assert not blobs.create(NAME, b"more")


def test_an_update_sees_what_is_there(blobs: Blobs) -> None:
    seen = list[bytes | None]()

    def change(there: bytes | None) -> bytes | None:
        seen.append(there)
        return None if there == b"two" else {None: b"one", b"one": b"two"}[there]

    for _ in range(4):
        blobs.update("heads/a", change, limit_bytes=10)
    assert seen == [None, b"one", b"two", b"two"]
    assert blobs.get("heads/a", limit_bytes=10) == b"two"


def test_an_error_while_deciding_changes_nothing(blobs: Blobs) -> None:
    blobs.update("a", size_of, limit_bytes=10)

    def no(_there: bytes | None) -> bytes:
        raise NoInput("planted")

    with pytest.raises(NoInput, match="planted"):
        blobs.update("a", no, limit_bytes=10)
    assert blobs.get("a", limit_bytes=10) == b"new"
    blobs.update("a", lambda there: (there or b"") + b"er", limit_bytes=10)  # nothing is held any more
    assert blobs.get("a", limit_bytes=10) == b"newer"


def test_updates_at_once_lose_nothing(blobs: Blobs) -> None:
    """Six that add one each, from threads that begin together."""
    together = threading.Barrier(6)

    def add(_number: int) -> None:
        together.wait()
        while True:
            try:
                blobs.update("count", lambda there: b"%d" % (int(there or b"0") + 1), limit_bytes=10)
            except StorageError:  # too many others at once, which is said and leaves nothing half done
                continue
            return

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(add, range(6)))
    assert blobs.get("count", limit_bytes=10) == b"6"


def test_one_of_many_creates(blobs: Blobs) -> None:
    together = threading.Barrier(6)

    def create(number: int) -> bool:
        together.wait()
        return blobs.create(NAME, b"%d" % number)

    with ThreadPoolExecutor(6) as pool:
        done = list(pool.map(create, range(6)))
    assert done.count(True) == 1
    assert blobs.get(NAME, limit_bytes=10) == b"%d" % done.index(True)


def test_children_are_the_next_part_of_each_name(blobs: Blobs) -> None:
    assert blobs.children("") == []
    for name in ("b/2026/checkpoint", "a/2026/tile/0/000", "a/2026/checkpoint", "a/2027/checkpoint", "ab/x"):
        blobs.create(name, b"x")
    assert blobs.children("") == ["a", "ab", "b"]
    assert blobs.children("a") == ["2026", "2027"]
    assert blobs.children("a/2026") == ["checkpoint", "tile"]
    assert blobs.children("nothing") == []


def test_what_was_deleted_is_gone_with_its_past(blobs: Blobs) -> None:
    blobs.update("a", lambda _there: b"one", limit_bytes=10)
    blobs.update("a", lambda _there: b"two", limit_bytes=10)
    blobs.create("ab", b"stays")
    blobs.delete("a")
    blobs.delete("a")
    assert (blobs.get("a", limit_bytes=10), blobs.children("")) == (None, ["ab"])
    assert blobs.create("a", b"again")


def test_everything_below_a_name(blobs: Blobs) -> None:
    for name in ("t/000.p/1", "t/000.p/2", "t/000", "t/000.px"):
        blobs.create(name, b"x")
    blobs.delete_below("t/000.p")
    blobs.delete_below("nothing")
    assert blobs.children("t") == ["000", "000.px"]


def test_what_is_held_is_not_removed_where_the_store_locks(blobs: Blobs) -> None:
    """A directory says that it holds nothing; a bucket says until when, and refuses."""
    blobs.create(NAME, b"x", LATER)
    held = blobs.lock(NAME)
    assert blobs.locks == (held is not None)
    assert blobs.lock("nothing") is None
    if held is None:
        blobs.delete(NAME)
        return
    assert (held.mode, held.until) == ("COMPLIANCE", LATER)
    with pytest.raises(StorageForbidden, match="until 2099-01-01") as caught:
        blobs.delete(NAME)
    assert caught.value.code == "retained"
    with pytest.raises(StorageForbidden, match="until 2099-01-01"):
        blobs.delete_below("clinic-1")
    assert blobs.get(NAME, limit_bytes=10) == b"x"


# --- buckets --------------------------------------------------------------------------------------


def test_the_store_itself_refuses_what_we_would_not_ask(store: ObjectStore) -> None:
    """As the bucket's owner, past our code: each version is held, in both modes, and a delete marker hides nothing for long."""
    for mode in ("COMPLIANCE", "GOVERNANCE"):
        name = store.new()
        blobs = store.opened(name, mode)
        blobs.create(NAME, b"x", LATER)
        [version] = store.client.list_object_versions(Bucket=name)["Versions"]
        with pytest.raises(ClientError, match="AccessDenied"):
            store.client.delete_object(Bucket=name, Key=version["Key"], VersionId=version["VersionId"])
        store.client.delete_object(Bucket=name, Key=version["Key"])  # a marker
        assert store.opened(name).get(NAME, limit_bytes=10) is None
        with pytest.raises(StorageForbidden):
            blobs.delete(NAME)
        versions = store.client.list_object_versions(Bucket=name)["Versions"]
        assert [item["VersionId"] for item in versions] == [version["VersionId"]]


def test_a_lock_that_has_ended_holds_nothing(store: ObjectStore) -> None:
    blobs = store.opened(store.new())
    blobs.create(NAME, b"x", datetime.now(UTC) + timedelta(seconds=1.2))
    while (held := blobs.lock(NAME)) is not None and held.until > datetime.now(UTC):
        threading.Event().wait(0.1)
    blobs.delete(NAME)
    assert blobs.get(NAME, limit_bytes=10) is None


def test_nothing_ever_touches_a_lock(store: ObjectStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """moto lets a COMPLIANCE lock be shortened, real stores do not: no request that could is ever made."""
    asked = list[str]()
    blobs = store.opened(store.new())
    real = blobs._client._make_api_call

    def noted(operation: str, parameters: dict[str, Any]) -> Any:
        asked.append(operation)
        assert not any(word in parameters for word in ("BypassGovernanceRetention", "ObjectLockLegalHoldStatus"))
        return real(operation, parameters)

    monkeypatch.setattr(blobs._client, "_make_api_call", noted)
    blobs.check()
    for number, act in enumerate(CONTRACT):
        act(blobs.under(str(number)))
    assert set(asked) <= {
        "GetObjectLockConfiguration", "PutObject", "GetObject", "HeadObject", "DeleteObject", "ListObjectsV2", "ListObjectVersions",
    }  # fmt: skip


def _try_delete(blobs: Blobs) -> None:
    blobs.create(NAME, b"x", LATER)
    with pytest.raises(StorageForbidden):
        blobs.delete(NAME)


CONTRACT = (
    test_an_update_sees_what_is_there,
    test_what_was_deleted_is_gone_with_its_past,
    test_everything_below_a_name,
    _try_delete,
)


def test_a_bucket_without_a_lock_is_refused(store: ObjectStore) -> None:
    with pytest.raises(ConfigError, match="no Object Lock"):
        store.opened(store.new(locks=False)).check()
    with pytest.raises(StorageForbidden) as caught:
        store.opened("b-that-nobody-made").check()
    assert caught.value.code == "blobs_refused"


@pytest.mark.parametrize(
    ("status", "code", "ours"),
    [
        (503, "SlowDown", "blobs_away"),
        (500, "InternalError", "blobs_away"),
        (429, "TooManyRequests", "blobs_away"),
        (409, "ConditionalRequestConflict", "blobs_away"),
        (403, "AccessDenied", "blobs_refused"),
        (403, "InvalidAccessKeyId", "blobs_refused"),
        (400, "ExpiredToken", "blobs_refused"),
        (404, "NoSuchBucket", "blobs_refused"),
    ],
)
def test_every_answer_of_a_store_is_ours(
    store: ObjectStore, monkeypatch: pytest.MonkeyPatch, status: int, code: str, ours: str
) -> None:
    """Its code is said, its text is not: it may hold anything."""
    blobs = store.opened(store.new())

    def no(operation: str, _parameters: dict[str, Any]) -> Any:
        answer = {"Error": {"Code": code, "Message": "canary"}, "ResponseMetadata": {"HTTPStatusCode": status}}
        raise ClientError(answer, operation)

    monkeypatch.setattr(blobs._client, "_make_api_call", no)
    for act in (
        lambda: blobs.create(NAME, b"x"),
        lambda: blobs.get(NAME, limit_bytes=10),
        lambda: blobs.update(NAME, size_of, limit_bytes=10),
        lambda: blobs.children(""),
        lambda: blobs.delete_below("a"),
        lambda: blobs.lock(NAME),
    ):
        with pytest.raises(StorageError) as caught:
            act()
        assert (caught.value.code, code in str(caught.value)) == (ours, True)
        assert "canary" not in caught.value.line


def test_a_store_that_is_away(store: ObjectStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(s3, "ATTEMPTS", 1)
    away = bucket(Place("b", endpoint="http://127.0.0.1:9", region="us-east-1"), store.credentials)
    with pytest.raises(StorageError) as caught:
        away.create(NAME, b"x")
    assert caught.value.code == "blobs_away"


def test_credentials_are_from_a_file_or_the_environment_alone(
    store: ObjectStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    place = store.place(store.new())
    with pytest.raises(StorageForbidden, match="NoCredentialsError"):  # and at once: no metadata service is asked
        bucket(place).create(NAME, b"x")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "from-environment")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "x")
    assert _key_of(bucket(place)) == "from-environment"
    assert _key_of(bucket(place, store.credentials)) == "server"  # the file that was named wins
    store.credentials.chmod(0o644)
    try:
        with pytest.raises(ConfigError, match="lets others read it"):
            bucket(place, store.credentials)
    finally:
        store.credentials.chmod(0o600)


def _key_of(blobs: Bucket) -> str:
    return str(blobs._client._request_signer._credentials.access_key)


def test_what_is_held_is_asked_for_once_and_what_changes_every_time(
    store: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = store.new()
    writer, reader = store.opened(name), store.opened(name)
    writer.create("tile", b"x" * 32, LATER)
    writer.update("checkpoint", lambda _there: b"one", limit_bytes=10)
    assert [reader.get(item, limit_bytes=32) for item in ("tile", "checkpoint")] == [b"x" * 32, b"one"]
    writer.update("checkpoint", lambda _there: b"two", limit_bytes=10)
    asked = list[str]()
    real = reader._client._make_api_call

    def noted(operation: str, given: dict[str, Any]) -> Any:
        asked.append(given["Key"])
        return real(operation, given)

    monkeypatch.setattr(reader._client, "_make_api_call", noted)
    assert [reader.get(item, limit_bytes=32) for item in ("tile", "checkpoint")] == [b"x" * 32, b"two"]
    assert asked == ["msp/checkpoint"]
