"""When something may happen: the maintenance window, and how long to wait before the next try.

All of it is arithmetic on a `now` that is handed in. Wall time is only used where people mean wall time, in the window.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator
from dataclasses import field
from datetime import UTC, datetime, time, timedelta, tzinfo

from compliance_agent.dataclass import dataclass
from compliance_agent.errors import ConfigError

_SECONDS = re.compile(r"[0-9]{1,400}", re.ASCII)
_HTTP_DATE = re.compile(r"[A-Z][a-z]{2,8},? [ A-Za-z0-9:-]{15,30}", re.ASCII)  # the three forms of RFC 9110 5.6.7
_LOOK_AHEAD_DAYS = 4  # a gap can swallow a window on one day (in Samoa once a whole day), never on three in a row
_LONGEST_DOUBLING = 64


def zone_named(name: str) -> tzinfo:
    """The IANA time zone of that name; `UTC` needs no time zone database.

    Raises:
        ConfigError: no such zone on this machine.
    """
    if name == "UTC":
        return UTC
    from zoneinfo import ZoneInfo, ZoneInfoNotFoundError  # with it come all the settings of Python's own build

    try:
        return ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError) as error:
        raise ConfigError(
            f"maintenance_window_zone: no such time zone {name[:60]!r}", hint="an IANA name such as Europe/Berlin"
        ) from error


@dataclass(frozen=True)
class MaintenanceWindow:
    """The hours of the local day in which users may be disturbed.

    The rule is what a person on the site reads off the wall: the window is open exactly while the local clock shows a time
    from `start` (included) to `end` (excluded). An `end` before `start` means over midnight; `start == end` means the whole
    day. Daylight saving needs no further rule: in a gap, the part of the window that the clock skips does not exist (a window
    wholly in the gap opens on the next day), and in an overlap the part that the clock shows twice is open twice.

    Args:
        start: local time, without a zone.
        end: local time, without a zone.
        zone: IANA name.

    Raises:
        ConfigError: no such zone.
    """

    start: time
    end: time
    zone: str = "UTC"
    _tz: tzinfo = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.start.tzinfo is not None or self.end.tzinfo is not None:
            raise RuntimeError("a window's times carry no zone of their own; give it as `zone`")
        object.__setattr__(self, "_tz", zone_named(self.zone))

    def contains(self, now: datetime) -> bool:
        """Whether the window is open at this instant (aware)."""
        shown = _aware(now).astimezone(self._tz).time()
        if self.start == self.end:
            return True
        if self.start < self.end:
            return self.start <= shown < self.end
        return shown >= self.start or shown < self.end

    def next_start(self, now: datetime) -> datetime:
        """The first instant from `now` on at which the window is open (UTC): `now` itself when it is open already."""
        now = _aware(now).astimezone(UTC)
        if self.contains(now):
            return now
        opening = [instant for instant in self._candidates(now) if instant > now and self.contains(instant)]
        return min(opening)

    def _candidates(self, now: datetime) -> Iterator[datetime]:
        """The window can only open when the clock shows `start`, or when the clock is moved."""
        today = now.astimezone(self._tz).date()
        for days in range(-1, _LOOK_AHEAD_DAYS + 1):
            day = today + timedelta(days=days)
            for fold in (0, 1):
                yield datetime.combine(day, self.start, self._tz).replace(fold=fold).astimezone(UTC)
        for hours in range(24 * _LOOK_AHEAD_DAYS):
            before = now + timedelta(hours=hours)
            if self._offset(before) != self._offset(before + timedelta(hours=1)):
                yield self._transition(before, before + timedelta(hours=1))

    def _offset(self, instant: datetime) -> timedelta | None:
        return instant.astimezone(self._tz).utcoffset()

    def _transition(self, before: datetime, after: datetime) -> datetime:
        """The first whole second at which the zone's offset is that of `after`."""
        low, high = int(before.timestamp()), int(after.timestamp())
        while high - low > 1:
            middle = (low + high) // 2
            moved = self._offset(datetime.fromtimestamp(middle, UTC)) == self._offset(after)
            low, high = (low, middle) if moved else (middle, high)
        return datetime.fromtimestamp(high, UTC)


def _aware(now: datetime) -> datetime:
    if now.tzinfo is None:
        raise RuntimeError("a time without a zone says nothing; pass an aware datetime")
    return now


def backoff_s(attempt: int, base: float, cap: float, rng: random.Random) -> float:
    """Seconds to wait before try number `attempt` (0 is the first repeat): full jitter, from 0 to `base * 2**attempt`.

    Full jitter spreads the tries of many hosts evenly, so that a server that comes back is not met by all of them at once.

    Args:
        attempt: tries that failed before, minus one.
        base: upper bound of the first wait, in seconds.
        cap: upper bound of every wait, in seconds.
        rng: source of randomness.

    Raises:
        ValueError: a negative argument.
    """
    if attempt < 0 or base < 0 or cap < 0:
        raise ValueError("backoff: attempt, base and cap may not be negative")
    return rng.uniform(0.0, min(cap, base * 2.0 ** min(attempt, _LONGEST_DOUBLING)))


def bounded_retry_after(header_value: str | None, now: datetime, cap: float) -> float | None:
    """Seconds a server asks to wait (`Retry-After`, RFC 9110 10.2.3), held between 1 and `cap`; None when it says nothing usable.

    Args:
        header_value: seconds or an HTTP date, as received.
        now: wall time, to compare a date with.
        cap: the longest wait a server may impose, in seconds; at least 1.
    """
    text = (header_value or "").strip(" \t")
    if _SECONDS.fullmatch(text):
        return min(max(1.0, float(text)), cap)
    if not _HTTP_DATE.fullmatch(text):
        return None
    from email.utils import parsedate_to_datetime

    try:
        until = parsedate_to_datetime(text)
    except (ValueError, TypeError, IndexError, OverflowError):
        return None
    if until.tzinfo is None:
        until = until.replace(tzinfo=UTC)
    return min(max(1.0, (until - _aware(now)).total_seconds()), cap)
