"""A store that speaks S3's protocol, with Object Lock, on a loopback port: moto. No proof of a real store (docs/deploy.md)."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import boto3  # type: ignore[import-untyped]  # it has no types
from moto.server import ThreadedMotoServer

from compliance_agent.server.s3 import Bucket, Place, bucket

REGION = "us-east-1"


@dataclass(frozen=True)
class ObjectStore:
    """A store that runs, and a file with credentials for it."""

    url: str
    credentials: Path
    server: Any

    @property
    def client(self) -> Any:
        """As its owner sees it, with everything allowed."""
        return boto3.client(
            "s3",
            endpoint_url=self.url,
            region_name=REGION,
            aws_access_key_id="owner",
            aws_secret_access_key="owner",
        )

    def new(self, *, locks: bool = True) -> str:
        """A new bucket's name."""
        name = f"b-{uuid.uuid4().hex}"
        self.client.create_bucket(Bucket=name, ObjectLockEnabledForBucket=locks)
        return name

    def place(self, name: str, mode: str = "COMPLIANCE") -> Place:
        return Place(name, "msp", self.url, REGION, mode)

    def opened(self, name: str, mode: str = "COMPLIANCE") -> Bucket:
        return bucket(self.place(name, mode), self.credentials)

    def settings(self, name: str) -> dict[str, Any]:
        """What a server is told."""
        return {
            "blobs": f"s3://{name}/msp",
            "blobs_endpoint": self.url,
            "blobs_region": REGION,
            "blobs_credentials_file": self.credentials,
        }


@contextmanager
def object_store(directory: Path) -> Iterator[ObjectStore]:
    """A new, empty one."""
    credentials = directory / "s3-credentials"
    credentials.write_text("[default]\naws_access_key_id = server\naws_secret_access_key = not-a-secret\n")
    credentials.chmod(0o600)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    try:
        yield ObjectStore(f"http://{host}:{port}", credentials, server)
    finally:
        server.stop()
