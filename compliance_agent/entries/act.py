"""What a person did, as an entry of the log of each site that it concerned: who, what, about whom or what, when. Pure.

Who and about whom are ids that say nothing outside the server: a person's (`p` and 16 hex digits), the SHA-256 of a key or a
document, or `console` for whoever has the server's data directory at hand. What is a word of a closed list. No text has room.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from enum import StrEnum
from typing import Any

from compliance_agent.entries.leaf import canonical, entry
from compliance_agent.errors import BadEvidence
from compliance_agent.facts import is_timestamp

KIND = "act"
CONSOLE = "console"
_ID = re.compile(r"p[0-9a-f]{16}|[0-9a-f]{64}")
_FIELDS = {"v", "kind", "act", "actor", "subject", "at"}


class Act(StrEnum):
    """Every act that a log may have."""

    LOGIN = "login"
    LOGOUT = "logout"
    SESSION_ENDED = "session_ended"
    STEP_UP = "step_up"
    FACTOR_SET = "factor_set"
    FACTOR_RESET = "factor_reset"
    USER_ADDED = "user_added"
    USER_ROLE = "user_role"
    USER_SITES = "user_sites"
    USER_DISABLED = "user_disabled"
    USER_ENABLED = "user_enabled"
    USER_PASSWORD = "user_password"  # noqa: S105  the name of an act
    USER_TOKEN = "user_token"  # noqa: S105  the same
    TOKEN_ROTATED = "token_rotated"  # noqa: S105  the same
    TOKEN_REVOKED = "token_revoked"  # noqa: S105  the same
    IDENTITY_LINKED = "identity_linked"
    IDENTITY_UNLINKED = "identity_unlinked"
    HOLD_ADDED = "hold_added"
    HOLD_RELEASED = "hold_released"
    PRUNED = "pruned"
    SAMPLE_DRAWN = "sample_drawn"
    PACKET_ASKED = "packet_asked"
    PACKET_BUILT = "packet_built"
    PACKET_TAKEN = "packet_taken"
    PACKET_REMOVED = "packet_removed"
    ORDER_DRAFTED = "order_drafted"
    ORDER_APPROVED = "order_approved"
    ORDER_REFUSED = "order_refused"
    ORDER_WITHDRAWN = "order_withdrawn"
    EXCEPTION_RECORDED = "exception_recorded"
    EXCEPTION_WITHDRAWN = "exception_withdrawn"
    EXCEPTION_APPROVED = "exception_approved"
    EXCEPTION_RULE = "exception_rule"
    RULE_PROMOTED = "rule_promoted"
    RULE_DEMOTED = "rule_demoted"
    MODEL_ANSWERED = "model_answered"
    MODEL_REFUSED = "model_refused"
    ORDER_SIGNED = "order_signed"
    BASELINE_ADDED = "baseline_added"
    TOOL_CALLED = "tool_called"  # what a program asked for a person; the subject is the SHA-256 of the call's line
    TOOL_PROPOSED = "tool_proposed"  # the same, and something was drafted


ABOUT_EXCEPTIONS = frozenset({Act.EXCEPTION_RECORDED, Act.EXCEPTION_APPROVED, Act.EXCEPTION_WITHDRAWN})


def act_leaf(act: Act, actor: str, subject: str | None, at: str) -> bytes:
    """The entry of an act; `at` is the server's time, a claim like every time in a log."""
    leaf = entry(KIND, act=str(act), actor=actor, subject=subject, at=at)
    check({"v": 1, "kind": KIND, "act": str(act), "actor": actor, "subject": subject, "at": at})
    return leaf


def digest_of(document: Mapping[str, str | int | None]) -> str:
    """The subject of an act about a document: who holds the document can show that it was this one."""
    return hashlib.sha256(canonical(document)).hexdigest()


def check(leaf: Mapping[str, Any]) -> None:
    """Raises BadEvidence (`bad_entry`) when an entry of this kind says anything but the above."""
    actor, subject = leaf.get("actor"), leaf.get("subject")
    if leaf.keys() != _FIELDS:
        raise _bad("has other fields")
    if leaf["act"] not in set(Act):
        raise _bad("is none of the list")
    if not isinstance(actor, str) or (actor != CONSOLE and not _ID.fullmatch(actor)):
        raise _bad("names nobody by an id")
    if subject is not None and not (isinstance(subject, str) and _ID.fullmatch(subject)):
        raise _bad("is about what is no id")
    if not is_timestamp(leaf["at"]):
        raise _bad("has no time")


def _bad(what: str) -> BadEvidence:
    return BadEvidence(f"act {what}", code="bad_entry")
