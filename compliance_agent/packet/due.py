"""How long each record of a packet is kept, by `packet.json` and by what the record says of itself. Pure.

    until, why = Due(scope).of(document)   # ("2032-12-12", "six_years")

The rule is that of the server (core/retention.py). The last day of a baseline version depends on records that need not be in the
packet, so `packet.json` says it. A record that names no version counts from its own `created_at`.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import date
from typing import Any

from compliance_agent.core.retention import SiteRules
from compliance_agent.packet.content import Scope, moment


class Due:
    """What is due to the records of a packet; the answer of each host, version and day is kept."""

    def __init__(self, scope: Scope) -> None:
        last = {(use.host_id, use.version): date.fromisoformat(use.last_day) for use in scope.baselines}
        in_effect = {(use.host_id, use.version) for use in scope.baselines if use.in_effect}
        self._rules = SiteRules(last, in_effect, {(label, "") for label in scope.held})
        self._known: dict[tuple[str, str | None, str], tuple[str, str]] = {}

    def of(self, document: Mapping[str, Any]) -> tuple[str, str]:
        """The last day on which a record must be kept, and why: `six_years`; `in_effect` or `held`, where it can be later."""
        baseline, created = document["baseline"], document["created_at"]
        day = created[:10] if created.endswith("Z") else moment(created).date().isoformat()
        asked = (document["host"]["id"], None if baseline is None else baseline["version"], day)
        found = self._known.get(asked)
        if found is None:
            keep = self._rules.keep(asked[0], asked[1], date.fromisoformat(day))
            found = self._known[asked] = (keep.until.isoformat(), keep.why)
        return found
