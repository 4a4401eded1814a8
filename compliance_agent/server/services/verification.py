"""Is this a bundle of this host? The same points, in the same order, when it arrives and whenever someone looks at it.

signature   strict Ed25519 by the enrolled key, over the exact bytes
canonical   the bytes are the canonical form of what they say: no duplicate keys, no second spelling
schema      only declared fields and typed facts (evidence/allowlist.py)
identity    it names this host's key, label, site and client

Most bundles are plainly spelled (evidence/spelled.py): one expression over their bytes says that form and schema are right. What it
does not match is looked at the long way, which decides.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Protocol

import orjson

from compliance_agent import crypto
from compliance_agent.errors import AgentError, Refusal
from compliance_agent.evidence.allowlist import check_document, registry
from compliance_agent.server.records import Host

Verify = Callable[[bytes, bytes, bytes], bool]  # public key, signature, message


class CheckDocument(Protocol):
    """Raises AgentError; see `allowlist.check_document`."""

    def __call__(self, document: Any, /, *, spelled: bool = False) -> None: ...


def plainly_spelled(body: bytes) -> bool:
    """Whether the bytes are of this version's schema, in canonical form; what is refused may be both all the same."""
    return registry().spelled(body)


@dataclass(frozen=True)
class Verifier:
    """The checks, replaceable one by one so that tests can plant a fault in each."""

    verify: Verify = crypto.verify
    check_document: CheckDocument = check_document
    spelled: Callable[[bytes], bool] = plainly_spelled

    def signature(self, public_key: bytes, body: bytes, sig: bytes) -> None:
        """Raises Refusal `bad_signature`."""
        if not self.verify(public_key, sig, body):
            raise Refusal(
                "bundle: the signature does not verify under this host's key", code="bad_signature", status=422
            )

    def parsed(self, body: bytes) -> dict[str, Any]:
        """The document in canonical bytes; raises Refusal `not_canonical`."""
        try:
            document = orjson.loads(body)
            same = orjson.dumps(document, option=orjson.OPT_SORT_KEYS | orjson.OPT_STRICT_INTEGER) == body
        except (orjson.JSONDecodeError, orjson.JSONEncodeError, RecursionError):
            same, document = False, None
        if not same or not isinstance(document, dict):
            raise Refusal(
                "bundle: the bytes are not a canonical JSON object (RFC 8785)", code="not_canonical", status=422
            )
        return document

    def schema(self, document: dict[str, Any], *, spelled: bool = False) -> None:
        """Raises Refusal `bad_schema`; the message names the field and holds no value."""
        field = "document"
        try:
            self.check_document(document, spelled=spelled)
            for field in () if spelled else ("created_at", "timestamp_start", "timestamp_end"):
                datetime.fromisoformat(document[field])  # 30 February has the form of a time
        except AgentError as error:
            raise Refusal(f"bundle: {error}", code="bad_schema", status=422) from error
        except (TypeError, ValueError, KeyError) as error:
            raise Refusal(f"bundle: {field} is not a time", code="bad_schema", status=422) from error

    def identity(self, document: dict[str, Any], host: Host) -> None:
        """Raises Refusal `wrong_host` or `wrong_site`."""
        if document.get("host") != {"id": host.host_id, "key_id": host.key_id}:
            raise Refusal("bundle: host.id or host.key_id is not the enrolled host's", code="wrong_host", status=422)
        for field, ours in (("site_id", host.site_id), ("client_id", host.client_id)):
            if document.get(field) != ours:
                raise Refusal(
                    f"bundle: {field} is not the one this host was enrolled to", code="wrong_site", status=422
                )

    def all(self, host: Host, body: bytes, sig: bytes) -> dict[str, Any]:
        """The bundle's document, once every point holds; raises Refusal."""
        self.signature(host.public_key, body, sig)
        spelled = self.spelled(body)
        document: dict[str, Any] = orjson.loads(body) if spelled else self.parsed(body)
        self.schema(document, spelled=spelled)
        self.identity(document, host)
        return document
