"""Named ways in which a healthy clinic host drifts, by check: what goes wrong, and the reason it must be found for.

Every reason that a check's cases say can be healed needs a drift here on which that is shown.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

from compliance_agent.lab.clinic import healthy_host
from compliance_agent.lab.host import FakeHost
from compliance_agent.lab.programs import chrony, clamav, logs


@dataclass(frozen=True)
class Drift:
    """One way to drift: the check that finds it, the reason it gives, and what happens to the host.

    Attributes:
        parameters: of the check, where they differ from its example.
        host: a host that is as it should be, where the healthy Debian one is not the kind that drifts so.
    """

    check: str
    reason: str
    name: str
    happen: Callable[[FakeHost], None]
    parameters: Mapping[str, Any] = field(default_factory=dict)
    host: Callable[[], FakeHost] = healthy_host


def _stopped(unit: str) -> Callable[[FakeHost], None]:
    def happen(host: FakeHost) -> None:
        host.unit(unit).active = False

    return happen


def _disabled(unit: str) -> Callable[[FakeHost], None]:
    def happen(host: FakeHost) -> None:
        host.unit(unit).active = False
        host.unit(unit).enabled = "disabled"

    return happen


def _masked(unit: str) -> Callable[[FakeHost], None]:
    def happen(host: FakeHost) -> None:
        host.unit(unit).active = False
        host.unit(unit).masked = True

    return happen


def _masked_while_running(unit: str) -> Callable[[FakeHost], None]:
    def happen(host: FakeHost) -> None:
        host.unit(unit).masked = True

    return happen


def _skewed(seconds: float) -> Callable[[FakeHost], None]:
    def happen(host: FakeHost) -> None:
        host.skew_s = seconds

    return happen


def _stuck_forwarder(host: FakeHost) -> None:
    """rsyslog's queue is stuck until it is started afresh."""
    state, unit = host.part(logs.Logs), host.unit(logs.RSYSLOG)
    state.loses = True

    def started() -> None:
        logs.load(host)
        state.loses = False

    unit.started = started


def _old_signatures(host: FakeHost) -> None:
    host.part(clamav.Signatures).built_at = host.now() - timedelta(days=9)


def _no_signatures(host: FakeHost) -> None:
    host.part(clamav.Signatures).loaded = False


def _old_signatures_and_no_updater(host: FakeHost) -> None:
    _old_signatures(host)
    host.unit(clamav.FRESHCLAM).active = False


def _blind_until_restarted(host: FakeHost) -> None:
    signatures, unit = host.part(clamav.Signatures), host.unit(clamav.UNIT)
    signatures.detects = False

    def started() -> None:
        signatures.detects = True

    unit.started = started


DRIFTS = (
    Drift("time_sync", "daemon_down", "chrony stopped", _stopped(chrony.UNIT)),
    Drift("time_sync", "daemon_down", "chrony disabled", _disabled(chrony.UNIT)),
    Drift("time_sync", "daemon_down", "chrony masked", _masked(chrony.UNIT)),
    Drift("time_sync", "daemon_down", "chrony masked while it runs", _masked_while_running(chrony.UNIT)),
    Drift("time_sync", "offset_too_large", "clock an hour ahead", _skewed(3600.0)),
    Drift("time_sync", "offset_too_large", "clock ten minutes behind", _skewed(-600.0)),
    Drift("logging", "unit_down", "rsyslog stopped", _stopped(logs.RSYSLOG)),
    Drift("logging", "unit_down", "rsyslog masked", _masked(logs.RSYSLOG)),
    Drift("logging", "unit_down", "journald stopped", _stopped(logs.JOURNALD)),
    Drift("logging", "canary_lost", "rsyslog loses lines", _stuck_forwarder),
    Drift("av_health", "daemon_down", "clamd stopped", _stopped(clamav.UNIT)),
    Drift("av_health", "daemon_down", "clamd masked", _masked(clamav.UNIT)),
    Drift("av_health", "updater_down", "freshclam disabled", _disabled(clamav.FRESHCLAM)),
    Drift("av_health", "signatures_old", "signatures nine days old", _old_signatures),
    Drift("av_health", "signatures_old", "signatures old, updater stopped", _old_signatures_and_no_updater),
    Drift("av_health", "signatures_missing", "no signatures loaded", _no_signatures),
    Drift("av_health", "probe_missed", "clamd lost its signatures", _blind_until_restarted),
)
