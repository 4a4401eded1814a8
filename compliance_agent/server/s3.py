"""Blobs in a bucket of S3, or of a store that speaks its protocol, with Object Lock.

    blobs = bucket(Place("evidence", prefix="msp"), credentials_file=Path("/etc/msp/s3-credentials"))

The bucket has Object Lock on, which is looked at before anything else. A blob that is to be kept is written with its mode and day
in the same request, under `If-None-Match: *`, so there is no moment in which it is there and free, and none is written over. In
such a bucket every writing makes a version: a blob that is replaced (a checkpoint) leaves its former versions to the bucket's
lifecycle rule, and one that is removed is removed with all of them. Nothing here ever shortens or lifts a lock.

Credentials come from a file or from the environment, a web identity among them; never from a machine's metadata service. Whatever
the store or the way to it says is one of two errors: `blobs_away` (try again) or `blobs_refused` (somebody has to look).
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from compliance_agent.adapters.durable import read_file
from compliance_agent.errors import AgentError, ConfigError, NoInput, StorageError, StorageForbidden
from compliance_agent.server.records.blobs import Lock

CONNECT_S, READ_S, ATTEMPTS = 5, 10, 3
CHANGES = 8  # tries at replacing a blob that others replace, too
CACHED, CACHED_BYTES = 4_096, 16_384  # small blobs that never change: the tiles that receipts are made from
NOT_ASKED = ("assume-role", "container-role", "custom-process", "iam-role", "login", "sso")  # for credentials
_AWAY = {
    "RequestTimeout",
    "SlowDown",
    "ServiceUnavailable",
    "InternalError",
    "Throttling",
    "ConditionalRequestConflict",
}
_ABSENT = {"NoSuchKey", "NoSuchVersion", "404"}
_TAKEN = {"PreconditionFailed", "412"}
_NO_LOCK = {"ObjectLockConfigurationNotFoundError", "NoSuchObjectLockConfiguration", "InvalidRequest"}


@dataclass(frozen=True)
class Place:
    """Which bucket, what every name begins with there, and how blobs are held (COMPLIANCE or GOVERNANCE)."""

    bucket: str
    prefix: str = ""
    endpoint: str | None = None
    region: str | None = None
    mode: str = "COMPLIANCE"


class Bucket:
    """Blobs whose names begin with `prefix`; `client` is boto3's, and safe to use from several threads."""

    remote = True
    locks = True

    def __init__(self, client: Any, place: Place, under: str = "") -> None:
        self._client = client
        self._place = place
        self._at = "".join(f"{part}/" for part in (place.prefix.strip("/"), under) if part)
        self._seen: OrderedDict[str, bytes] = OrderedDict()
        self._alone = threading.Lock()

    def under(self, name: str) -> Bucket:
        """The blobs below a name, as blobs of their own."""
        return Bucket(self._client, self._place, name)

    def check(self) -> None:
        """Refuse a bucket that holds nothing for anybody.

        Raises:
            ConfigError: Object Lock is not on.
            StorageError: it cannot be asked.
        """
        try:
            with self._asked("asking for the lock configuration", ""):
                found = self._client.get_object_lock_configuration(Bucket=self._place.bucket)
            on = found.get("ObjectLockConfiguration", {}).get("ObjectLockEnabled") == "Enabled"
        except _NoLockError:
            on = False
        if not on:
            raise ConfigError(
                f"blobs: bucket {self._place.bucket} has no Object Lock",
                hint="make a bucket with Object Lock on; it cannot be had without versions",
            )

    # --- the port -------------------------------------------------------------------------------

    def create(self, name: str, content: bytes, retain_until: datetime | None = None) -> bool:
        """As the port says. Tried again by the client, it may find its own first try there, which `False` says, too."""
        held: dict[str, Any] = {}
        if retain_until is not None:
            held = {"ObjectLockMode": self._place.mode, "ObjectLockRetainUntilDate": retain_until}
        try:
            with self._asked("writing", name):
                self._client.put_object(**self._key(name), Body=content, IfNoneMatch="*", **_CHECKED, **held)
        except _TakenError:
            return False
        if retain_until is not None:
            self._remember(name, content)
        return True

    def update(self, name: str, change: Callable[[bytes | None], bytes | None], *, limit_bytes: int) -> None:
        """As the port says, by the entity tag of what was read."""
        for _ in range(CHANGES):
            there, tag = self._read(name, limit_bytes)
            new = change(there)
            if new is None:
                return
            condition = {"IfNoneMatch": "*"} if tag is None else {"IfMatch": tag}
            try:
                with self._asked("replacing", name):
                    self._client.put_object(**self._key(name), Body=new, **condition, **_CHECKED)
            except (_TakenError, _AbsentError):
                continue
            return
        raise self._error("replacing", name, "others replace it, too", "blobs_away")

    def get(self, name: str, *, limit_bytes: int) -> bytes | None:
        """As the port says. What is held never changes, so it is asked for once."""
        with self._alone:
            seen = self._seen.get(name)
            if seen is not None:
                self._seen.move_to_end(name)
                return seen
        return self._read(name, limit_bytes)[0]

    def children(self, name: str) -> list[str]:
        """As the port says."""
        start = f"{self._at}{name}/" if name else self._at
        found = set[str]()
        with self._asked("listing", name):
            pages = self._client.get_paginator("list_objects_v2").paginate(
                Bucket=self._place.bucket, Prefix=start, Delimiter="/"
            )
            for page in pages:
                found |= {item["Prefix"][len(start) :].rstrip("/") for item in page.get("CommonPrefixes", ())}
                found |= {item["Key"][len(start) :] for item in page.get("Contents", ())}
        return sorted(found - {""})

    def delete(self, name: str) -> None:
        """As the port says; every version of it, the newest last, so that none comes to light again."""
        held = self.lock(name)
        if held is not None and held.until > datetime.now(UTC):
            raise self._retained(name, held)
        for version in reversed(self._versions(f"{self._at}{name}", exactly=True)):
            self._delete_version(name, version)
        self._forget(name)

    def delete_below(self, name: str) -> None:
        """As the port says."""
        for version in reversed(self._versions(f"{self._at}{name}/", exactly=False)):
            self._delete_version(version["Key"][len(self._at) :], version)

    def lock(self, name: str) -> Lock | None:
        """As the port says, from the store itself each time."""
        try:
            with self._asked("reading the lock of", name):
                found = self._client.head_object(**self._key(name))
        except _AbsentError:
            return None
        mode, until = found.get("ObjectLockMode"), found.get("ObjectLockRetainUntilDate")
        return Lock(str(mode), until) if mode and until else None

    # --- asking ---------------------------------------------------------------------------------

    def _key(self, name: str) -> dict[str, str]:
        return {"Bucket": self._place.bucket, "Key": f"{self._at}{name}"}

    def _read(self, name: str, limit_bytes: int) -> tuple[bytes | None, str | None]:
        """A blob and its entity tag."""
        try:
            with self._asked("reading", name):
                found = self._client.get_object(**self._key(name))
                with found["Body"] as body:
                    if found["ContentLength"] > limit_bytes:
                        raise NoInput(f"{self._at}{name}: larger than {limit_bytes} bytes")
                    content: bytes = body.read()
        except _AbsentError:
            return None, None
        if found.get("ObjectLockMode"):
            self._remember(name, content)
        return content, str(found["ETag"])

    def _versions(self, prefix: str, *, exactly: bool) -> list[dict[str, Any]]:
        """What there is under a key or a prefix, the newest of each key first."""
        found = list[dict[str, Any]]()
        with self._asked("listing versions of", prefix[len(self._at) :]):
            pages = self._client.get_paginator("list_object_versions").paginate(
                Bucket=self._place.bucket, Prefix=prefix
            )
            for page in pages:
                found += [*page.get("Versions", ()), *page.get("DeleteMarkers", ())]
        return [item for item in found if not exactly or item["Key"] == prefix]

    def _delete_version(self, name: str, version: dict[str, Any]) -> None:
        try:
            with self._asked("removing", name):
                self._client.delete_object(**self._key(name), VersionId=version["VersionId"])
        except StorageForbidden as error:
            held = self.lock(name)
            raise self._retained(name, held) if held is not None else error from error

    def _remember(self, name: str, content: bytes) -> None:
        if len(content) > CACHED_BYTES:
            return
        with self._alone:
            self._seen[name] = content
            if len(self._seen) > CACHED:
                self._seen.popitem(last=False)

    def _forget(self, name: str) -> None:
        with self._alone:
            self._seen.pop(name, None)

    def _retained(self, name: str, held: Lock) -> StorageForbidden:
        return StorageForbidden(
            f"{self._at}{name}: the store holds it until {held.until:%Y-%m-%dT%H:%M:%SZ} ({held.mode}); it stays",
            code="retained",
            hint="run the command again after that",
        )

    def _error(self, act: str, name: str, why: str, code: str) -> StorageError:
        kind = StorageForbidden if code == "blobs_refused" else StorageError
        hint = "look at credentials, policy and bucket" if code == "blobs_refused" else ""
        return kind(f"bucket {self._place.bucket}: {act} {self._at}{name}: {why}", code=code, hint=hint)

    @contextmanager
    def _asked(self, act: str, name: str) -> Iterator[None]:
        """One request: what boto3 raises becomes ours. Only codes of the answer are said, never its text."""
        from botocore.exceptions import BotoCoreError, ClientError  # type: ignore[import-untyped]  # it has no types
        from urllib3.exceptions import HTTPError

        try:
            yield
        except ClientError as error:
            code = str(error.response.get("Error", {}).get("Code", "unknown"))[:60]
            status = int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
            if code in _NO_LOCK and act.startswith("asking"):
                raise _NoLockError from error
            if code in _ABSENT:
                raise _AbsentError from error
            if code in _TAKEN:
                raise _TakenError from error
            away = code in _AWAY or status >= 500 or status == 429
            raise self._error(act, name, code, "blobs_away" if away else "blobs_refused") from error
        except (BotoCoreError, HTTPError, OSError) as error:
            kind = type(error).__name__
            refused = kind in {
                "NoCredentialsError",
                "PartialCredentialsError",
                "CredentialRetrievalError",
                "ParamValidationError",
            }
            raise self._error(act, name, kind, "blobs_refused" if refused else "blobs_away") from error


_CHECKED = {"ChecksumAlgorithm": "SHA256"}  # the store holds the body against it before it answers


class _AbsentError(Exception):
    """There is no such object."""


class _TakenError(Exception):
    """The condition of a writing did not hold."""


class _NoLockError(Exception):
    """The bucket has no lock configuration."""


def bucket(place: Place, credentials_file: Path | None = None) -> Bucket:
    """The bucket, asked for nothing yet.

    Raises:
        ConfigError: boto3 is not installed, or the credentials file cannot be used.
    """
    try:
        import botocore.session  # type: ignore[import-untyped]  # it has no types
        from botocore.config import Config  # type: ignore[import-untyped]  # it has no types
    except ImportError as error:
        raise ConfigError("blobs: boto3 is not installed", hint="pip install compliance-agent[server,s3]") from error
    session = botocore.session.Session()
    if credentials_file is not None:
        try:
            read_file(credentials_file, limit_bytes=65_536, secret=True)
        except AgentError as error:
            raise ConfigError(f"blobs_credentials_file {credentials_file}: {error}", hint=error.hint) from error
        session.set_config_variable("credentials_file", str(credentials_file))
    providers = session.get_component("credential_provider")
    for name in NOT_ASKED if credentials_file is None else (*NOT_ASKED, "env"):
        providers.remove(name)
    config = Config(
        connect_timeout=CONNECT_S,
        read_timeout=READ_S,
        retries={"mode": "standard", "total_max_attempts": ATTEMPTS},
        max_pool_connections=32,
        user_agent_extra="compliance-agent",
    )
    client = session.create_client("s3", region_name=place.region, endpoint_url=place.endpoint, config=config)
    return Bucket(client, place)
