"""Whose orders count on a host: keys with names, kinds and thresholds, from one file that root wrote. Pure.

    {"schema": "compliance-agent/order-keys/v1", "version": 1, "tenant": "msp-1", "expires": "2027-11-30T00:00:00Z",
     "signers": [{"name": "a.meyer", "key": "<base64>", "kinds": null},
                 {"name": "night", "key": "<base64>", "kinds": ["check", "pause", "stop_all"]}],
     "thresholds": {"remediate": 2}}

A threshold counts names, not keys: two devices of one person are one signer. What needs two signers by itself (`TWO_SIGNERS`)
cannot be set lower. An expired file lets no order through; checks and cures go on.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from datetime import UTC, datetime
from typing import Any

from compliance_agent import crypto
from compliance_agent.dataclass import dataclass
from compliance_agent.documents import read_json
from compliance_agent.errors import BadEvidence, ConfigError, DocumentError
from compliance_agent.facts import is_timestamp
from compliance_agent.log.fields import from_base64

SCHEMA = "compliance-agent/order-keys/v1"
KINDS = ("check", "remediate", "approve", "pause", "resume", "adopt_baseline", "rotate_key", "stop_all")
TWO_SIGNERS = frozenset({"adopt_baseline", "rotate_key", "approve"})
MAX_BYTES = 65_536
MAX_SIGNERS = 64
MOST_SIGNATURES = 4
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")


@dataclass(frozen=True)
class Signer:
    """Who may sign orders: a name, a raw public key, and the kinds it may sign."""

    name: str
    public: bytes
    kinds: frozenset[str]


@dataclass(frozen=True)
class OrderKeys:
    """The file's content, checked whole.

    Attributes:
        signers: by key id.
        thresholds: how many names must have signed, for the kinds where it is more than usual.
    """

    version: int
    tenant: str
    expires: datetime
    signers: Mapping[str, Signer]
    thresholds: Mapping[str, int]

    def needed(self, kind: str) -> int:
        """How many people must have signed an order of this kind."""
        return max(self.thresholds.get(kind, 1), least(kind))


def least(kind: str) -> int:
    """How many people must sign an order of this kind whatever a file says."""
    return 2 if kind in TWO_SIGNERS else 1


def parse(raw: bytes) -> OrderKeys:
    """The keys from the bytes of their file.

    Raises:
        ConfigError: names the field and what was expected.
    """
    try:
        document = read_json(raw, limit_bytes=MAX_BYTES, max_depth=8)
    except DocumentError as error:
        raise ConfigError(f"{error}", code="bad_order_keys") from error
    _keys(document, "document", {"schema", "version", "tenant", "expires", "signers", "thresholds"})
    if document["schema"] != SCHEMA:
        raise _bad("schema", SCHEMA)
    if type(document["version"]) is not int or document["version"] < 1:
        raise _bad("version", "a whole number from 1")
    if not _is_name(document["tenant"]):
        raise _bad("tenant", "the client's id")
    if not is_timestamp(document["expires"]):
        raise _bad("expires", "a time such as 2027-12-31T00:00:00Z")
    signers = _signers(document["signers"])
    return OrderKeys(
        document["version"],
        document["tenant"],
        datetime.fromisoformat(document["expires"]).astimezone(UTC),
        signers,
        _thresholds(document["thresholds"], {signer.name for signer in signers.values()}),
    )


def _signers(value: Any) -> dict[str, Signer]:
    if not isinstance(value, list) or not 1 <= len(value) <= MAX_SIGNERS:
        raise _bad("signers", f"a list of 1 to {MAX_SIGNERS}")
    found: dict[str, Signer] = {}
    for number, item in enumerate(value):
        at = f"signers[{number}]"
        _keys(item, at, {"name", "key", "kinds"})
        if not _is_name(item["name"]):
            raise _bad(f"{at}.name", "letters, digits and ._-, at most 63")
        try:
            public = from_base64(item["key"], f"{at}.key", "bad_order_keys") if isinstance(item["key"], str) else b""
            crypto.check_public_key(public)
        except BadEvidence as error:
            raise _bad(f"{at}.key", "a raw Ed25519 public key in base64") from error
        kinds = KINDS if item["kinds"] is None else item["kinds"]
        if not isinstance(kinds, list | tuple) or not kinds or not all(kind in KINDS for kind in kinds):
            raise _bad(f"{at}.kinds", f"null or some of {', '.join(KINDS)}")
        if (name := crypto.key_id(public)) in found:
            raise _bad(f"{at}.key", "a key that no other signer has")
        found[name] = Signer(item["name"], public, frozenset(kinds))
    return found


def _thresholds(value: Any, names: Collection[str]) -> dict[str, int]:
    if not isinstance(value, dict) or not all(kind in KINDS for kind in value):
        raise _bad("thresholds", f"an object with keys of {', '.join(KINDS)}")
    for kind, number in value.items():
        if type(number) is not int or not least(kind) <= number <= MOST_SIGNATURES:
            raise _bad(f"thresholds.{kind}", f"a whole number from {least(kind)} to {MOST_SIGNATURES}")
        if number > len(names):
            raise _bad(f"thresholds.{kind}", f"no more than the {len(names)} names that signers has")
    return value


def _keys(value: Any, at: str, wanted: set[str]) -> None:
    if not isinstance(value, dict) or value.keys() != wanted:
        raise _bad(at, f"exactly the keys {', '.join(sorted(wanted))}")


def _is_name(value: Any) -> bool:
    return isinstance(value, str) and _NAME.fullmatch(value) is not None


def _bad(field: str, expected: str) -> ConfigError:
    return ConfigError(f"{field}: expected {expected}", code="bad_order_keys")
