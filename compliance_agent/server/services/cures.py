"""What healed itself lately, and which plans wait for a person's approval, over all the sites of a reader."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta

from compliance_agent.server.records import Bundle, Host, SiteReader
from compliance_agent.server.services.fleet import SiteStanding

APPROVAL = "approval_required"
MOST = 200  # a list of records has no more
LATELY = timedelta(hours=24)


@dataclass(frozen=True)
class Cures:
    """Cures, newest first.

    Attributes:
        hosts: of the sites, by key.
        more: there are more plans that wait.
    """

    hosts: Mapping[str, Host]
    healed: tuple[Bundle, ...]
    waiting: tuple[Bundle, ...]
    more: bool = False


async def cures(reader: SiteReader, sites: Iterable[SiteStanding], now: datetime) -> Cures:
    """The cures of hosts that are not revoked.

    A plan waits while its check still fails and the newest record of a cure of it says that it does.
    """
    hosts = {item.host.key_id: item.host for site in sites for item in site.live}
    found = sorted(await reader.cures(now - LATELY, APPROVAL), key=lambda item: item.number, reverse=True)
    done = tuple(item for item in found if item.outcome == "success" and item.key_id in hosts)
    plans = [item for item in found if item.outcome != "success"]
    return Cures(hosts, done, tuple(item for item in plans if item.key_id in hosts), more=len(plans) >= MOST)
