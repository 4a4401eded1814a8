"""Read tools: what stands at sites, on hosts and for checks, and why.

Hosts are named by their keys alone. A label is what somebody typed on a host, and a version is what the host says of itself; a
model that reads either could be told something by it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Any

from compliance_agent.errors import Refusal
from compliance_agent.evidence.allowlist import registry, timestamp
from compliance_agent.runbook import Runbook, shipped
from compliance_agent.server.records import Bundle
from compliance_agent.server.services.fleet import (
    RESULTS,
    UNMET,
    CheckStanding,
    HostStanding,
    SiteStanding,
    document_of,
)
from compliance_agent.server.services.tools.plain import facts_of, known_word, reason_of
from compliance_agent.server.services.tools.scene import Scene
from compliance_agent.server.services.tools.words import (
    MOST_ITEMS,
    MOST_SKIP,
    Answer,
    Tier,
    Tool,
    number,
    page,
    text,
    word,
)

SITE = text("site", "A site's id", r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}", 63, loose=True)
HOST = text("host", "A host's key id: 64 hexadecimal digits", r"[0-9a-f]{64}", 64)
CHECK = word("check", "A check's id", registry().checks)
SKIP = number("skip", "How many of the list to leave out: `next` of the page before", 0, MOST_SKIP).optional()
LIMIT = number("limit", "How many to list at most, 25 if not given", 1, MOST_ITEMS).optional()


def at(value: datetime | None) -> str | None:
    """A time as text."""
    return None if value is None else timestamp(value)


def _site(item: SiteStanding) -> dict[str, Any]:
    return {
        "site": item.site.site_id,
        "hosts": len(item.live),
        "silent_hosts": item.silent,
        "checks": item.counts,
        "oldest_unmet_at": at(item.oldest_unmet_at),
    }


def _host(item: HostStanding) -> dict[str, Any]:
    host = item.host
    return {
        "host": host.key_id,
        "site": host.site_id,
        "enrolled_at": at(host.enrolled_at),
        "revoked": host.revoked_at is not None,
        "last_seen_at": at(host.last_seen_at),
        "silent": item.silent,
        "chain_broken": item.broken,
        "waits_for_approval": host.waiting_since is not None,
        "contested": host.contested_at is not None,
        "baseline_sha256": known_word(host.baseline_sha256),
        "checks": item.counts,
        "oldest_unmet_at": at(item.oldest_unmet_at),
    }


def check_of(item: CheckStanding) -> dict[str, Any]:
    """One check as it stands."""
    said = item.verdict
    return {
        "check": said.check if said.check in registry().checks else "undeclared",
        "result": item.result if item.result in RESULTS else "unknown",
        "reason": reason_of(said.check, item.reason),
        "since": at(said.since),
        "said_at": at(said.seen_at),
        "bundle": said.bundle_id,
    }


async def _list_sites(scene: Scene, arguments: Mapping[str, Any]) -> Answer:
    found = sorted(await scene.fleet.sites(), key=lambda item: item.site.site_id)
    answer = page([_site(item) for item in found], arguments)
    for item in answer.items or ():
        scene.about(str(item["site"]))
    return answer


async def _list_hosts(scene: Scene, arguments: Mapping[str, Any]) -> Answer:
    site_id = scene.site(arguments["site"])
    found = sorted((await scene.fleet.site(site_id)).hosts, key=lambda item: item.host.key_id)
    return page([_host(item) for item in found], arguments, site=site_id)


async def _show_host(scene: Scene, arguments: Mapping[str, Any]) -> Answer:
    await scene.host(arguments["host"])
    found = await scene.fleet.host(arguments["host"])
    return Answer(_host(found), [check_of(item) for item in found.checks])


async def _drift(scene: Scene, arguments: Mapping[str, Any]) -> Answer:
    site_id = scene.site(arguments["site"])
    site = await scene.fleet.site(site_id)
    found = [
        {"host": item.host.key_id, **check_of(check), **_runbook(check.check, check.reason)}
        for item in site.live
        for check in item.checks
        if check.result in UNMET and ("check" not in arguments or check.check == arguments["check"])
    ]
    found.sort(key=lambda item: (item["since"], item["host"], item["check"]))
    return page(found, arguments, site=site_id)


async def _why(scene: Scene, arguments: Mapping[str, Any]) -> Answer:
    host, check = await scene.host(arguments["host"]), arguments["check"]
    standing = next((item for item in (await scene.fleet.host(host.key_id)).checks if item.check == check), None)
    if standing is None:
        raise Refusal("the host has said nothing of this check", code="not_found", status=404)
    declared = registry().checks[check]
    began = await scene.reader.bundle(standing.verdict.bundle_id, host.key_id)
    cure = standing.remediation
    return Answer(
        {
            "host": host.key_id,
            "site": host.site_id,
            **check_of(standing),
            "means": declared["reasons"].get(standing.verdict.reason),
            "title": declared["title"],
            "rationale": declared["rationale"],
            "severity": declared["severity"],
            "citations": list(declared["citations"]),
            "seen": facts_of(check, document_of(began[1]).get("pre_state")) if began else {},
            "last_cure": None if cure is None else _cured(check, cure),
            **_runbook(check, standing.verdict.reason),
        }
    )


def _cured(check: str, cure: Bundle) -> dict[str, Any]:
    return {
        "bundle": cure.bundle_id,
        "outcome": known_word(cure.outcome),
        "reason": reason_of(check, cure.reason),
        "error": known_word(cure.error),
        "received_at": at(cure.received_at),
    }


def _runbook(check: str, reason: str) -> dict[str, Any]:
    """What is done about it: by the agent, by people, or what no runbook names."""
    for runbook in _about(check):
        cures, people = runbook.cures_of(check, reason), runbook.for_people(check, reason)
        if cures or people:
            return {
                "runbook": runbook.id,
                "cured_by": "agent" if cures else "people",
                "disruptive": any(cure.disruptive for cure in cures),
                "people_do": people.do if people else None,
            }
    return {"runbook": None, "cured_by": None, "disruptive": None, "people_do": None}


def _about(check: str) -> Iterable[Runbook]:
    return (runbook for runbook in shipped().values() if check in runbook.checks)


STANDING = (
    Tool(
        "list_sites",
        Tier.READ,
        "Sites that the caller sees, each with its hosts and verdicts counted. A silent host counts as unknown.",
        (SKIP, LIMIT),
        _list_sites,
    ),
    Tool(
        "list_hosts",
        Tier.READ,
        "Hosts of one site, by key id, each with its verdicts counted.",
        (SITE, SKIP, LIMIT),
        _list_hosts,
    ),
    Tool("show_host", Tier.READ, "One host, and what stands for each of its checks.", (HOST,), _show_host),
    Tool(
        "list_drift",
        Tier.READ,
        "What is not met at a site, or not known, the oldest first, and which runbook is about it.",
        (SITE, CHECK.optional(), SKIP, LIMIT),
        _drift,
    ),
    Tool(
        "why",
        Tier.READ,
        "Why a check of a host stands as it does: the record that began it, what it saw, the last cure, the rule, the runbook.",
        (HOST, CHECK),
        _why,
    ),
)
