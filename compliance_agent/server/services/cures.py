"""What healed itself lately, and which plans wait for a person's approval, over all the sites of a reader."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta

from compliance_agent.server.records import Bundle, BundleQuery, Host, SiteReader
from compliance_agent.server.services.fleet import SiteStanding

APPROVAL = "approval_required"
MOST = 200  # records looked through; a list of records has no more
LATELY = timedelta(hours=24)


@dataclass(frozen=True)
class Cures:
    """Cures, newest first.

    Attributes:
        hosts: of the sites, by key.
        more: older records were not looked through, so that more may wait.
    """

    hosts: Mapping[str, Host]
    healed: tuple[Bundle, ...]
    waiting: tuple[Bundle, ...]
    more: bool


async def cures(reader: SiteReader, sites: Iterable[SiteStanding], now: datetime) -> Cures:
    """The cures of hosts that are not revoked.

    A plan waits while its check still fails and the newest record of a cure says that it does. That record is not older than the
    failure, so nothing before the oldest failure is read.
    """
    hosts = {item.host.key_id: item for site in sites for item in site.live}
    failing = {
        (key_id, check.check): check.verdict.since
        for key_id, item in hosts.items()
        for check in item.checks
        if check.verdict.result == "fail"
    }
    since = min(now - LATELY, *failing.values()) if failing else now - LATELY
    found = await reader.bundles(BundleQuery(kind="remediation", since=since, limit=MOST))
    newest: dict[tuple[str, str | None], Bundle] = {}
    for bundle in found:
        newest.setdefault((bundle.key_id, bundle.check), bundle)
    return Cures(
        hosts={key_id: item.host for key_id, item in hosts.items()},
        healed=tuple(
            item
            for item in found
            if item.outcome == "success" and item.received_at >= now - LATELY and item.key_id in hosts
        ),
        waiting=tuple(item for place, item in newest.items() if place in failing and item.error == APPROVAL),
        more=len(found) == MOST,
    )
