"""The server's figures, in a registry of its own. Totals only: labels are routes and codes, never hosts, sites or users."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client import CollectorRegistry, Histogram
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest

from compliance_agent import __version__
from compliance_agent.server.desks import Services
from compliance_agent.server.records import Backlog
from compliance_agent.server.services.duties import DUTIES

_METHODS = frozenset(("GET", "HEAD", "POST"))
_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 10)


class Metrics:
    """Collects over the life of one app."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self._known: dict[tuple[str, str, int], Histogram] = {}
        self._requests = Histogram(
            "compliance_server_request_seconds",
            "Time to answer, by route.",
            ("route", "method", "status"),
            registry=self._registry,
            buckets=_BUCKETS,
        )

    def observe(self, route: str, method: str, status: int, seconds: float) -> None:
        """Count one answered request; methods that are not ours share one label."""
        found = self._known.get((route, method, status))
        if found is None:
            known = method if method in _METHODS else "other"
            found = self._requests.labels(route, known, str(status))
            if known == method:  # routes and codes are few; words that callers make up are not
                self._known[route, method, status] = found
        found.observe(seconds)

    async def exposition(self, services: Services) -> tuple[bytes, str]:
        """Everything in the text format, with its media type."""
        states = await _host_states(services)
        backlog = await services.store.for_sites(await services.store.all_sites()).backlog()
        scrape = CollectorRegistry()
        scrape.register(_Snapshot(services, states, backlog))
        return generate_latest(self._registry) + generate_latest(scrape), CONTENT_TYPE_LATEST


async def _host_states(services: Services) -> dict[str, int]:
    states = {"live": 0, "silent": 0, "revoked": 0, "waiting": 0, "forked": 0, "contested": 0}
    for group in await services.store.host_groups(services.silence.since(services.clock())):
        if group.revoked:
            states["revoked"] += group.count
        elif group.waiting:
            states["waiting"] += group.count
        else:
            states["silent" if group.silent else "live"] += group.count
        states["forked"] += group.forked
        states["contested"] += group.contested
    return states


class _Snapshot:
    """What the services count by themselves, as Prometheus families."""

    def __init__(self, services: Services, hosts: dict[str, int], backlog: Backlog) -> None:
        self._services = services
        self._hosts = hosts
        self._backlog = backlog

    def collect(self) -> Iterator[Metric]:
        totals = self._services.ingest.totals
        bundles = CounterMetricFamily("compliance_server_bundles", "Bundles acknowledged.", labels=["status"])
        bundles.add_metric(["stored"], totals.stored)
        bundles.add_metric(["known"], totals.known)
        yield bundles
        refused = CounterMetricFamily("compliance_server_bundles_refused", "Bundles refused, by code.", labels=["code"])
        for code, count in sorted(totals.refused.items()):
            refused.add_metric([code], count)
        yield refused
        words = "Records stored of a check that failed: drift found, cured or not."
        yield CounterMetricFamily("compliance_server_drift", words, totals.drift)
        yield CounterMetricFamily("compliance_server_forks", "Contradicting chains seen.", totals.forks)
        yield CounterMetricFamily("compliance_server_checkins", "Check-ins accepted.", self._services.checkin.total)
        yield CounterMetricFamily("compliance_server_logins_failed", "Failed logins.", self._services.users.failed)
        yield from self._alerts()
        duties = self._services.duties
        held = sum(duties.tenure(name) is not None for name in DUTIES)
        yield GaugeMetricFamily("compliance_server_duties", "Duties that this process holds now.", held)
        words = "Writes that were refused, as another replica had taken over."
        yield CounterMetricFamily("compliance_server_duty_refused", words, duties.refused)
        limits = self._services.limits
        limited = CounterMetricFamily("compliance_server_limited", "Requests refused by a limit.", labels=["limit"])
        for one in limits.all:
            limited.add_metric([one.name], one.refused)
        limited.add_metric(["host_in_flight"], limits.crowded)
        yield limited
        hosts = GaugeMetricFamily("compliance_server_hosts", "Hosts by state.", labels=["state"])
        for state, count in self._hosts.items():
            hosts.add_metric([state], count)
        yield hosts
        yield from self._log()
        build = GaugeMetricFamily("compliance_server_build_info", "Version of the program.", labels=["version"])
        build.add_metric([__version__], 1)
        yield build

    def _alerts(self) -> Iterator[Metric]:
        alarms = self._services.alarms
        yield CounterMetricFamily("compliance_server_alerts_sent", "Alert deliveries that were taken.", alarms.sent)
        yield CounterMetricFamily("compliance_server_alerts_given_up", "Alert deliveries given up.", alarms.dead)
        failed = CounterMetricFamily("compliance_server_alerts_failed", "Failed tries, by code.", labels=["code"])
        for code, number in sorted(alarms.failed.items()):
            failed.add_metric([code], number)
        yield failed
        words, waiting_s = (
            "Age of the oldest evidence that is being verified or written.",
            self._services.ingest.waiting_s,
        )
        yield GaugeMetricFamily("compliance_server_ingest_lag_seconds", words, waiting_s)

    def _log(self) -> Iterator[Metric]:
        board, now, backlog = self._services.board, self._services.clock(), self._backlog
        heads = list(board.heads.values())
        lag = (now - backlog.oldest).total_seconds() if backlog.oldest is not None else 0.0
        age = (now - max(head.at for head in heads)).total_seconds() if heads else 0.0
        gauges = {
            "log_shards": ("Logs, one for each site and year.", len(heads)),
            "log_size": ("Entries under published checkpoints, over all logs.", sum(head.size for head in heads)),
            "log_pending": ("Entries that wait for an index.", backlog.count),
            "log_lag_seconds": ("Age of the oldest entry that waits.", lag),
            "log_checkpoint_age_seconds": ("Age of the newest checkpoint.", age),
        }
        if self._services.cosigning is not None:
            met = [one.met for one in board.witnessing.values()]
            gauges["log_unwitnessed"] = (
                "Logs whose newest checkpoint lacks its quorum of witnesses.",
                met.count(False),
            )
            if board.stamped_at is not None:
                age = (now - board.stamped_at).total_seconds()
                gauges["log_time_stamp_age_seconds"] = ("Age of the newest time stamp over a checkpoint.", age)
        for name, (words, value) in gauges.items():
            yield GaugeMetricFamily(f"compliance_server_{name}", words, value)
        yield CounterMetricFamily("compliance_server_receipts", "Receipts minted.", self._services.receipts.minted)
        still = GaugeMetricFamily("compliance_server_log_still", "Logs that stand still, by code.", labels=["code"])
        for code in board.reasons():
            still.add_metric([code], 1)
        yield still
