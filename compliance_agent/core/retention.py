"""How long a record must be kept, and when it may be destroyed (45 CFR 164.316(b)(2)(i)). Pure: days in, a decision out.

    until = six years after the later of: the day of the record; the last day of its baseline version

The day of a record is the later of what it says of itself and when the server received it, in UTC. A baseline version is in effect
on a host until the host's last record that names it; while the host is enrolled and that version is its newest, it has no last
day yet. A host is known by its label, so that a new key or a new enrolment goes on with the old one. A hold beats every date.
Where something is not known, the record is kept.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta

YEARS = 6
LEAST_DAYS = 2_192  # six years with two leap days: never less, whatever the years
RULE = "45 CFR 164.316(b)(2)(i): six years from creation or from when it was last in effect, whichever is later"
REASON_ID = r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}"  # names a matter in somebody's own books


def kept_until(day: date) -> date:
    """The last day on which something of this day must be kept: six calendar years, at least 2,192 days."""
    try:
        anniversary = day.replace(year=day.year + YEARS)
    except ValueError:  # 29 February has none in six years; or the calendar ends
        if day.year + YEARS > date.max.year:
            return date.max
        anniversary = date(day.year + YEARS, 3, 1)
    return max(anniversary, day + timedelta(days=LEAST_DAYS))


def day_of(created_at: str, received_at: datetime) -> date:
    """The day of a record: by its own word or by the server's clock, whichever is later."""
    received = received_at.astimezone(UTC).date()
    try:
        return max(received, datetime.fromisoformat(created_at).astimezone(UTC).date())
    except (ValueError, OverflowError):
        return received


@dataclass(frozen=True)
class Keep:
    """What is due to one record.

    Attributes:
        until: the last day on which it must be kept; with `in_effect` the earliest that this can be.
        in_effect: its baseline version is in effect, so the six years have not begun.
        holds: reason ids of the holds that cover it.
    """

    until: date
    in_effect: bool = False
    holds: tuple[str, ...] = ()

    @property
    def why(self) -> str:
        """What keeps it: `held`, `in_effect`, or `six_years`."""
        return "held" if self.holds else "in_effect" if self.in_effect else "six_years"

    def may_go(self, today: date) -> bool:
        """Whether it may be destroyed on this day."""
        return not self.holds and not self.in_effect and today > self.until


@dataclass(frozen=True)
class SiteRules:
    """What decides about the records of one site.

    Attributes:
        last_used: the last day of each baseline version by host label and version.
        in_effect: (host label, version) pairs that are in effect now.
        holds: (host label or None for the whole site, reason id) of each hold that stands.
    """

    last_used: Mapping[tuple[str, str], date]
    in_effect: Collection[tuple[str, str]] = ()
    holds: Collection[tuple[str | None, str]] = ()

    def keep(self, host_id: str | None, version: str | None, day: date) -> Keep:
        """What is due to a record of this host and baseline version; None where an entry has none."""
        last, in_effect = day, False
        if host_id is not None and version is not None:
            use = (host_id, version)
            last = max(day, self.last_used.get(use, date.max))  # never noted: nothing says that it ended
            in_effect = use in self.in_effect
        holds = sorted(reason for host, reason in self.holds if host is None or host_id is None or host == host_id)
        return Keep(kept_until(last), in_effect, tuple(holds))


def in_effect(
    last_used: Mapping[tuple[str, str], date], live: Collection[tuple[str, str]]
) -> frozenset[tuple[str, str]]:
    """The versions in effect on enrolled hosts.

    Args:
        last_used: as in `SiteRules`.
        live: (label, baseline version as it checked in last) of each host that is not revoked.
    """
    labels = {label for label, _ in live}
    newest: dict[str, date] = {}
    for (label, _), day in last_used.items():
        newest[label] = max(day, newest.get(label, day))
    current = {use for use, day in last_used.items() if use[0] in labels and day == newest[use[0]]}
    return frozenset(current | set(live))
