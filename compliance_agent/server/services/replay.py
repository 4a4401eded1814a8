"""A transcript of calls, held against the log and asked again: does the store still give the answers that programs were given?

Each line of the audit table must be what an entry of a log says that it was (`not_in_log` otherwise). Then the same call is made
again, as of its time, for the same person and as narrow as the token was, and the SHA-256 of the answer is compared. What is about
records that do not change must be the same (`differs` otherwise, a finding); what is about how things stand may have `changed`.
Refused calls and proposals are not made a second time, and nothing here is recorded as a call.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from compliance_agent.errors import Refusal
from compliance_agent.server.records import Audited, User
from compliance_agent.server.services.acts import Act
from compliance_agent.server.services.calls import CALL_SCHEMA, run
from compliance_agent.server.services.operator_tokens import narrowed
from compliance_agent.server.services.tools import TOOLS, Tier
from compliance_agent.server.services.tools.scene import Scene

if TYPE_CHECKING:
    from compliance_agent.server.desks import Services

ACTS = (str(Act.TOOL_CALLED), str(Act.TOOL_PROPOSED))
FINDINGS = frozenset({"differs", "not_in_log", "unreadable"})
AT_ONCE = 1_000
_KEYS = {"schema", "tool", "arguments", "client", "outcome", "answer_sha256"}


@dataclass(frozen=True)
class Replayed:
    """One call and what became of asking again; `call` is its line, empty when that is not one."""

    audited: Audited
    call: Mapping[str, Any]
    found: str


async def transcript(services: Services, after: int, at_most: int) -> list[Audited]:
    """The calls after this number, in order."""
    return await services.store.audited(ACTS, after, at_most)


async def replayed(services: Services, calls: Sequence[Audited]) -> list[Replayed]:
    """Every call, held against the logs and asked again."""
    logged = await _logged(services) if calls else frozenset()
    return [await _one(services, item, logged) for item in calls]


async def _logged(services: Services) -> frozenset[tuple[str, str]]:
    """(act, subject) of every entry about a call, in any log."""
    reader = services.store.for_sites(await services.store.all_sites())
    found = set()
    for shard in await reader.shards():
        for start in range(0, shard.size, AT_ONCE):
            stop = min(start + AT_ONCE, shard.size)
            for leaf in await reader.leaves(shard.site_id, shard.year, start, stop):
                if b'"act":"tool_' in leaf:
                    entry = json.loads(leaf)
                    found.add((str(entry["act"]), str(entry["subject"])))
    return frozenset(found)


async def _one(services: Services, item: Audited, logged: frozenset[tuple[str, str]]) -> Replayed:
    call = _read(item.subject)
    if call is None:
        return Replayed(item, {}, "unreadable")
    if (item.action, hashlib.sha256(item.subject.encode()).hexdigest()) not in logged:
        return Replayed(item, call, "not_in_log")
    tool = TOOLS.get(call["tool"])
    if tool is None or tool.tier is not Tier.READ or call["outcome"] != "ok":
        return Replayed(item, call, "not_repeated")
    user = await _caller(services, item.actor, call["client"])
    if user is None:
        return Replayed(item, call, "no_caller")
    scene = Scene(services, user, await services.users.reader(user), item.at)
    try:
        arguments = tool.parsed(call["arguments"])
        answered = await run(tool, scene, arguments)
    except Refusal:
        return Replayed(item, call, "refused_now")
    if answered.sha256 == call["answer_sha256"]:
        return Replayed(item, call, "same")
    return Replayed(item, call, "differs" if tool.lasting else "changed")


def _read(line: str) -> dict[str, Any] | None:
    try:
        call = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(call, dict) or call.keys() != _KEYS or call["schema"] != CALL_SCHEMA:
        return None
    texts = all(isinstance(call[name], str) for name in _KEYS - {"arguments"})
    return call if texts and isinstance(call["arguments"], dict) else None


async def _caller(services: Services, name: str, client: str) -> User | None:
    """The person with the token's limits, whether or not the token is still good."""
    tokens = await services.users.tokens.all(name)
    found = next((token for token in tokens if token.id == client), None)
    return None if found is None else narrowed(found)
