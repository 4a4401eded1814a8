"""How much one host and one site may ask of the server, so that nobody pays for another's flood.

Each limit is a bucket that fills at an even pace and holds as much as one period: a host that was away may send a minute's worth,
or a day's worth, at once. A request is charged before its body is read, bundles before a signature is checked, so that a refusal
costs next to nothing; it says when to come again. Buckets that are full again are forgotten.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from compliance_agent.errors import Refusal
from compliance_agent.server.records import Host
from compliance_agent.server.settings import ServerSettings

MINUTE, DAY = 60, 86_400
MOST_IN_FLIGHT = 32  # batches of one host that are taken in at once: it sends them one after the other
MOST_BUCKETS = 50_000  # of one limit; beyond, those that are full again are looked for
Monotonic = Callable[[], float]


@dataclass(slots=True)
class _Bucket:
    level: float
    at: float


class Buckets:
    """One limit: so many in a period, for each key by itself; 0 is no limit."""

    def __init__(self, name: str, most: int, period_s: int) -> None:
        self.name = name
        self.most = most
        self.period_s = period_s
        self.refused = 0
        self._rate = most / period_s
        self._buckets: dict[str, _Bucket] = {}

    def wait_s(self, key: str, count: int, now: float) -> float:
        """Seconds until so many would be there; 0.0 when they are. More than a bucket holds is there when it is full."""
        if self.most == 0:
            return 0.0
        bucket = self._buckets.get(key)
        if bucket is None:
            return 0.0
        short = min(count, self.most) - self._level(bucket, now)
        return 0.0 if short <= 0 else short / self._rate

    def take(self, key: str, count: int, now: float) -> None:
        """Charge it; what is more than there was is owed."""
        if self.most == 0:
            return
        bucket = self._buckets.get(key)
        if bucket is None:
            if len(self._buckets) >= MOST_BUCKETS:
                self._forget(now)
            bucket = self._buckets[key] = _Bucket(float(self.most), now)
        bucket.level, bucket.at = self._level(bucket, now) - count, now

    def _level(self, bucket: _Bucket, now: float) -> float:
        return min(float(self.most), bucket.level + max(0.0, now - bucket.at) * self._rate)

    def _forget(self, now: float) -> None:
        self._buckets = {key: item for key, item in self._buckets.items() if self._level(item, now) < self.most}


class Quotas:
    """All limits of one server."""

    def __init__(self, settings: ServerSettings, clock: Monotonic = time.monotonic) -> None:
        self.clock = clock
        self.crowded = 0
        self._in_flight: dict[str, int] = {}
        self.requests = Buckets("host_requests", settings.host_requests_per_min, MINUTE)
        self.host = Buckets("host_bundles", settings.host_bundles_per_min, MINUTE)
        self.site = Buckets("site_bundles", settings.site_bundles_per_min, MINUTE)
        self.host_day = Buckets("host_bundles_a_day", settings.host_bundles_per_day, DAY)
        self.site_day = Buckets("site_bundles_a_day", settings.site_bundles_per_day, DAY)

    @property
    def all(self) -> Sequence[Buckets]:
        """Every limit, for the figures."""
        return (self.requests, self.host, self.site, self.host_day, self.site_day)

    def request(self, host: Host) -> None:
        """Charge a host for one request.

        Raises:
            Refusal: 429, it is one too many.
        """
        self._charge(((self.requests, host.key_id),), 1)

    def bundles(self, host: Host, count: int) -> None:
        """Charge a host and its site for bundles; all of them or none.

        Raises:
            Refusal: 429, one limit has not that many left.
        """
        mine = ((self.host, host.key_id), (self.host_day, host.key_id))
        ours = ((self.site, host.site_id), (self.site_day, host.site_id))
        self._charge((*mine, *ours), count)

    @contextlib.contextmanager
    def in_flight(self, host: Host) -> Iterator[None]:
        """Bound what one host makes the server hold in memory.

        Raises:
            Refusal: 429, so many of its batches are being taken in.
        """
        count = self._in_flight.get(host.key_id, 0)
        if count >= MOST_IN_FLIGHT:
            self.crowded += 1
            raise Refusal(
                f"more than {MOST_IN_FLIGHT} batches of this host at once", code="too_many", status=429, retry_after_s=1
            )
        self._in_flight[host.key_id] = count + 1
        try:
            yield
        finally:
            self._in_flight[host.key_id] -= 1
            if not self._in_flight[host.key_id]:
                del self._in_flight[host.key_id]

    def _charge(self, wanted: Sequence[tuple[Buckets, str]], count: int) -> None:
        now = self.clock()
        longest, buckets = 0.0, wanted[0][0]
        for limit, key in wanted:
            wait_s = limit.wait_s(key, count, now)
            if wait_s > longest:
                longest, buckets = wait_s, limit
        if longest > 0:
            buckets.refused += 1
            raise Refusal(
                f"{buckets.name}: more than {buckets.most} in {buckets.period_s} s",
                code="too_many",
                status=429,
                retry_after_s=math.ceil(longest),
            )
        for limit, key in wanted:
            limit.take(key, count, now)
