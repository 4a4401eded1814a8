"""Read tools: records, what they say, whether they hold, and how a host stands to its baseline."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

from compliance_agent.log.checkpoint import Checkpoint
from compliance_agent.log.note import Note
from compliance_agent.models import BundleKind, Outcome, Result
from compliance_agent.server.records import Bundle, BundleQuery, Shard
from compliance_agent.server.services.fleet import UNMET, BundleStanding, document_of
from compliance_agent.server.services.tools.plain import facts_of, known_word, reason_of
from compliance_agent.server.services.tools.scene import Scene
from compliance_agent.server.services.tools.standing import CHECK, HOST, LIMIT, SITE, SKIP, at, check_of
from compliance_agent.server.services.tools.words import (
    USUAL_ITEMS,
    Answer,
    Tier,
    Tool,
    fitting,
    number,
    page,
    text,
    word,
)

BUNDLE = text("bundle", "A record's id, a UUID", r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", 36)
BEFORE = number("before", "Only records that arrived before this number: `next` of the page before", 1, 2**53 - 1)


def _listed(item: Bundle) -> dict[str, Any]:
    return {
        "bundle": item.bundle_id,
        "number": item.number,
        "host": item.key_id,
        "kind": known_word(item.kind),
        "check": known_word(item.check),
        "result": known_word(item.result),
        "reason": reason_of(item.check, item.reason) if item.check else known_word(item.reason),
        "outcome": known_word(item.outcome),
        "error": known_word(item.error),
        "received_at": at(item.received_at),
        "sha256": item.sha256,
    }


async def _search(scene: Scene, arguments: Mapping[str, Any]) -> Answer:
    """Of one site, or of one host of it, the newest first."""
    site_id = scene.site(arguments["site"])
    limit = arguments.get("limit", USUAL_ITEMS)
    wanted = {name: arguments[name] for name in ("check", "kind", "result", "outcome", "before") if name in arguments}
    found = await scene.reader.only(site_id).bundles(
        BundleQuery(key_id=arguments.get("host"), limit=limit + 1, **wanted)
    )
    items = fitting([_listed(item) for item in found[:limit]])
    return Answer({"site": site_id}, items, int(items[-1]["number"]) if len(items) < len(found) else None)


async def _standing(scene: Scene, arguments: Mapping[str, Any]) -> BundleStanding:
    found = await scene.fleet.bundle(arguments["bundle"], arguments.get("host"))
    scene.about(found.bundle.site_id)
    return found


async def _show(scene: Scene, arguments: Mapping[str, Any]) -> Answer:
    found = await _standing(scene, arguments)
    document, check = found.document, found.bundle.check or ""
    actions = document.get("actions")
    return Answer(
        {
            **_listed(found.bundle),
            "site": found.bundle.site_id,
            "severity": known_word(document.get("severity")),
            "before": facts_of(check, document.get("pre_state")),
            "after": facts_of(check, document.get("post_state")),
            "actions": [
                {name: known_word(item.get(name)) for name in ("action", "result", "code")}
                for item in (actions if isinstance(actions, list) else [])[:64]
                if isinstance(item, dict)
            ],
            "retain_until": found.keep.until.isoformat(),
        }
    )


async def _verify(scene: Scene, arguments: Mapping[str, Any]) -> Answer:
    found = await _standing(scene, arguments)
    points = [{"point": item.name, "holds": item.holds, "code": known_word(item.code)} for item in found.points]
    return Answer({"bundle": found.bundle.bundle_id, "host": found.host.key_id, "valid": found.valid}, points)


async def _prove(scene: Scene, arguments: Mapping[str, Any]) -> Answer:
    found = await _standing(scene, arguments)
    proven = await scene.services.prover(scene.reader).prove_held(
        found.host, found.bundle, found.body, found.sig, found.previous, found.following
    )
    lines = [{"line": line.name, "state": str(line.state), "code": line.code} for line in proven.lines]
    return Answer({"bundle": found.bundle.bundle_id, "host": found.host.key_id, "state": str(proven.state)}, lines)


async def _compare(scene: Scene, arguments: Mapping[str, Any]) -> Answer:
    host = await scene.host(arguments["host"])
    standing = await scene.fleet.host(host.key_id)
    alike = Counter(item.baseline_sha256 for item in await scene.reader.hosts(host.site_id) if item.revoked_at is None)
    differs = []
    for item in standing.checks:
        if item.result in UNMET:
            held = await scene.reader.bundle(item.verdict.bundle_id, host.key_id)
            document = document_of(held[1]) if held is not None else {}
            differs.append({**check_of(item), "seen": facts_of(item.check, document.get("pre_state"))})
    return Answer(
        {
            "host": host.key_id,
            "site": host.site_id,
            "baseline_sha256": known_word(host.baseline_sha256),
            "hosts_with_this_baseline": alike[host.baseline_sha256],
            "hosts_with_another": alike.total() - alike[host.baseline_sha256],
            "silent": standing.silent,
            "checks": standing.counts,
        },
        fitting(differs),
    )


async def _baselines(scene: Scene, arguments: Mapping[str, Any]) -> Answer:
    site_id = scene.site(arguments["site"])
    live = [item for item in await scene.reader.hosts(site_id) if item.revoked_at is None and item.baseline_sha256]
    items = []
    for digest, hosts in sorted(Counter(item.baseline_sha256 for item in live).items()):
        held = await scene.services.store.write(lambda tx, digest=digest: tx.baseline(site_id, digest))  # type: ignore[misc]
        items.append({"sha256": known_word(digest), "hosts": hosts, "signed_one_is_here": held is not None})
    return page(items, arguments, site=site_id)


async def _packets(scene: Scene, arguments: Mapping[str, Any]) -> Answer:
    """What a packet of each year would be proven by; the packet itself people build, for auditors (docs/packet.md)."""
    site_id = scene.site(arguments["site"])
    shards = await scene.reader.only(site_id).shards()
    return page([_year(shard) for shard in shards], arguments, site=site_id)


def _year(shard: Shard) -> dict[str, Any]:
    published = Checkpoint.parse(Note.parse(shard.checkpoint).text) if shard.checkpoint is not None else None
    return {
        "year": shard.year,
        "entries": shard.size,
        "published_entries": published.size if published is not None else 0,
        "published_root": published.root.hex() if published is not None else None,
        "published_at": at(shard.published_at),
    }


EVIDENCE = (
    Tool(
        "search_evidence",
        Tier.READ,
        "Records of a site, the newest first, by host, check, kind, result and outcome.",
        (
            SITE,
            HOST.optional(),
            CHECK.optional(),
            word("kind", "A kind of record", tuple(map(str, BundleKind))).optional(),
            word("result", "A verdict", tuple(map(str, Result))).optional(),
            word("outcome", "How a cure ended", tuple(map(str, Outcome))).optional(),
            BEFORE.optional(),
            LIMIT,
        ),
        _search,
    ),
    Tool(
        "show_bundle",
        Tier.READ,
        "One record: what it says, as far as it is numbers, truths, times and words of closed lists.",
        (BUNDLE, HOST.optional()),
        _show,
    ),
    Tool(
        "verify_bundle",
        Tier.READ,
        "One record, verified now against its host's key and the chain: every point on its own.",
        (BUNDLE, HOST.optional()),
        _verify,
        lasting=True,
    ),
    Tool(
        "prove_bundle",
        Tier.READ,
        "What of one record can be proven now from the log as it is served: entry, inclusion, checkpoint, witnesses.",
        (BUNDLE, HOST.optional()),
        _prove,
    ),
    Tool(
        "compare_host",
        Tier.READ,
        "How a host stands to its baseline: which baseline, who else has it, and everything that departs from it.",
        (HOST,),
        _compare,
    ),
    Tool(
        "list_baselines",
        Tier.READ,
        "The baselines that the hosts of a site say they are held to, by digest.",
        (SITE, SKIP, LIMIT),
        _baselines,
    ),
    Tool(
        "list_packets",
        Tier.READ,
        "The years of a site for which an auditor's packet can be built, and what its log proves them by.",
        (SITE, SKIP, LIMIT),
        _packets,
    ),
)
