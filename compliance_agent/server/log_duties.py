"""Which sites' logs are this process's to sequence, under which epochs it has read them, and the fence that goes by these."""

from __future__ import annotations

from collections.abc import Iterable

from compliance_agent.server.records import Tenure, Transaction
from compliance_agent.server.services.duties import LOGS, Duties, log_duty


class LogDuties:
    """The parts of the logs that are ours; all of them, whatever others do, without `duties`."""

    def __init__(self, duties: Duties | None) -> None:
        self._duties = duties
        self._epochs: dict[str, int] = {}  # under which the trees of a part were read

    @property
    def shared(self) -> bool:
        """Whether there may be others."""
        return self._duties is not None and not self._duties.alone

    def ours(self, sites: Iterable[str]) -> frozenset[str]:
        """Those of these sites whose logs were ours at the last look."""
        return frozenset(site for site in sites if self._duties is None or log_duty(site) in self._epochs)

    def holds(self, site_id: str) -> bool:
        """Whether a site's log is ours now, under the epoch in which it was read."""
        if self._duties is None:
            return True
        held = self._duties.tenure(log_duty(site_id))
        return held is not None and self._epochs.get(held.name) == held.epoch

    def look(self, sites: Iterable[str]) -> dict[str, bool]:
        """What has changed since the last look: sites that are ours now and must be read (True), and that are not any more."""
        changed: dict[str, bool] = {}
        for name in LOGS if self._duties is not None else ():
            held = self._duties.tenure(name) if self._duties is not None else None
            epoch = held.epoch if held is not None else None
            if self._epochs.get(name) == epoch:
                continue
            changed |= {site: epoch is not None for site in sites if log_duty(site) == name}
            self._epochs.pop(name, None)
            if epoch is not None:
                self._epochs[name] = epoch
        return changed

    async def fence(self, tx: Transaction, sites: Iterable[str]) -> None:
        """Let a transaction about these sites' logs go on only while they are ours.

        Raises:
            OffDuty: nothing may be written.
        """
        if self._duties is not None:
            names = {log_duty(site_id) for site_id in sites}
            await self._duties.check(tx, {Tenure(name, self._epochs.get(name, 0)) for name in names})
