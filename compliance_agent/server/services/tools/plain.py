"""What of a host's records a model may read: numbers, truths, times, digests, and words of this program's own lists. Pure.

A record holds no open text, and yet a name of the baseline or a version is a string that the host wrote, and whoever owns the host
chooses it. Those are counted here and not shown; the viewer shows them to people.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping
from typing import Any

from compliance_agent.core.gates import REASONS as GATES
from compliance_agent.core.orders import REASONS as ORDERS
from compliance_agent.evidence.allowlist import registry
from compliance_agent.facts import Bool, Choice, Digest, FactType, Int, Many, Revision, Timestamp
from compliance_agent.models import BundleKind, Outcome, Result

_PLAIN = (Bool, Int, Choice, Timestamp, Digest, Revision)
_DIGEST = re.compile(r"[0-9a-f]{64}")
_OURS = ("silent", "stale", "revoked", "healed", "undeclared", "")


@functools.cache
def vocabulary() -> frozenset[str]:
    """Every word of a closed list that a record, a verdict or a cure may have."""
    known = registry()
    own = (*known.reasons, *known.actions, *known.codes, *known.checks)
    return frozenset({*own, *GATES, *ORDERS, *map(str, (*Result, *Outcome, *BundleKind)), *_OURS})


def known_word(value: str | None) -> str | None:
    """The same when it is a word of ours or a digest, else `undeclared`."""
    if value is None or value in vocabulary() or _DIGEST.fullmatch(value):
        return value
    return "undeclared"


def reason_of(check: str, reason: str | None) -> str | None:
    """Why a verdict is what it is, in a word that its check, or this server, has for it."""
    if reason is None or reason in _OURS:
        return reason
    known = registry()
    return reason if check in known.checks and reason in known.may_say(check, True) else "undeclared"


def facts_of(check: str, state: Any) -> dict[str, Any]:
    """What a record saw, as far as it is of a type that has no room for words of the host's; the rest is counted."""
    declared = registry().facts_of.get(check, {})
    found: dict[str, Any] = {}
    withheld = 0
    for name, value in state.items() if isinstance(state, Mapping) else ():
        kind = declared.get(name)
        if value is None and kind is not None:
            found[name] = None
        elif kind is not None and _is_plain(kind) and kind.accepts(value, {}):
            found[name] = value
        else:
            withheld += 1
    return {"facts": found, "withheld": withheld}


def _is_plain(kind: FactType) -> bool:
    return _is_plain(kind.of) if isinstance(kind, Many) else isinstance(kind, _PLAIN)
