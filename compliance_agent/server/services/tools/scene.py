"""What one call of a tool may see: the rows of its person, as of one time. Made anew for every call."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING

from compliance_agent.errors import Refusal
from compliance_agent.server.records import Host, SiteReader, User
from compliance_agent.server.services.fleet import Fleet

if TYPE_CHECKING:
    from compliance_agent.server.desks import Services


@dataclass
class Scene:
    """One call.

    Attributes:
        user, reader: who calls, and the rows that this person sees.
        now: the time that the answer is about: the server's, or in a replay that of the former call.
        sites: those that the call turned out to be about; their logs have it.
    """

    services: Services
    user: User
    reader: SiteReader
    now: datetime
    sites: set[str] = field(default_factory=set)

    @property
    def fleet(self) -> Fleet:
        """The read model, as of `now`."""
        return Fleet(self.reader, lambda: self.now, self.services.silence, self.services.verifier)

    def about(self, site_id: str) -> str:
        """Note that the call is about this site, one that the person sees."""
        self.sites.add(site_id)
        return site_id

    def site(self, site_id: str) -> str:
        """A site of the person's.

        Raises:
            Refusal: 404.
        """
        if site_id not in self.reader.sites:
            raise Refusal("no such site", code="not_found", status=404)
        return self.about(site_id)

    async def host(self, key_id: str) -> Host:
        """A host of the person's sites.

        Raises:
            Refusal: 404.
        """
        found = await self.reader.host(key_id)
        if found is None:
            raise Refusal("no such host", code="not_found", status=404)
        self.about(found.site_id)
        return found
