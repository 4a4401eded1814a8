"""chronyd 4.3 and systemd-timesyncd: what they measure is the host's own skew, and stepping the clock takes it away."""

from __future__ import annotations

from dataclasses import dataclass

from compliance_agent.lab.host import Call, FakeHost, Unit, said
from compliance_agent.models import ClockState
from compliance_agent.ports import Ran

UNIT = "chrony.service"
TIMESYNCD = "systemd-timesyncd.service"
STAMP = "/run/systemd/timesync/synchronized"
CONF = """pool 2.debian.pool.ntp.org iburst
driftfile /var/lib/chrony/chrony.drift
ntsdumpdir /var/lib/chrony
logdir /var/log/chrony
maxupdateskew 100.0
rtcsync
makestep 1 3
leapsectz right/UTC
"""


@dataclass
class TimeSource:
    """Where this host takes its time from.

    Attributes:
        reachable: some server answers; without one the daemon runs and is not synchronised.
        updated_s_ago: age of the last update; grows only when a fault sets it.
        dispersion_s: how imprecise the measurement is.
        corrects: stepping works; a false one is a clock that nobody may set (a container).
        reckoned_s: the steps that the daemon wanted and could not make; it reckons with them all the same.
    """

    reachable: bool = True
    reference: str = "C0A80A01"
    address: str = "192.168.10.1"
    stratum: int = 3
    updated_s_ago: float = 35.0
    dispersion_s: float = 0.000912
    corrects: bool = True
    reckoned_s: float = 0.0
    jitter_s: float = 0.000041


def provide(host: FakeHost) -> None:
    """Have chrony installed, configured and running."""
    host.put("/etc/chrony/chrony.conf", CONF)
    host.install("chronyc", "timedatectl")
    host.units_table[UNIT] = Unit(started=lambda: _start(host))
    host.aliases["chronyd.service"] = UNIT
    host.clock_source = lambda: clock_state(host)


def clock_state(host: FakeHost) -> ClockState:
    """The kernel's view: disciplined as long as a daemon runs and reaches a source."""
    source, running = host.part(TimeSource), _running(host)
    synchronised = running != "none" and source.reachable
    return ClockState(
        source=running,
        synchronized=synchronised,
        offset_us=int(host.skew_s * 1e6) if synchronised else None,
        stratum=None,
        boot_id=host.boot_id,
        monotonic_ns=int(host.clock.monotonic() * 1e9),
    )


def _running(host: FakeHost) -> str:
    return "chrony" if host.is_active(UNIT) else "timesyncd" if host.is_active(TIMESYNCD) else "none"


def _start(host: FakeHost) -> None:
    _step(host, at_least_s=1.0)
    host.part(TimeSource).reckoned_s = host.skew_s if abs(host.skew_s) >= 1.0 else 0.0


def _step(host: FakeHost, *, at_least_s: float = 0.0) -> None:
    """Set the clock right, as `makestep` does when the offset is at least so large."""
    source = host.part(TimeSource)
    if source.reachable and source.corrects and abs(host.skew_s) >= at_least_s:
        host.skew_s = 0.0
        source.updated_s_ago = 2.0


def _offset_s(host: FakeHost) -> float:
    return host.skew_s + host.part(TimeSource).jitter_s


def chronyc(call: Call) -> Ran:
    """`chronyc [-n] [-c] tracking | makestep | waitsync [tries [max-correction]] | online | burst ...`."""
    host, words = call.host, call.words
    if not host.is_active(UNIT):
        return said("506 Cannot talk to daemon\n", 1)
    command = words[0] if words else ""
    if command == "tracking":
        return said(_tracking(host, csv="-c" in call.flags))
    if command == "sources":
        return said(_sources(host))
    if command == "waitsync":
        return _waitsync(call, words[1:])
    if command in {"makestep", "online", "burst", "reload"}:
        if host.uid != 0:
            return said("501 Not authorised\n", 1)
        call.alters()
        if command == "makestep" and not words[1:]:
            _step(host)
        return said("200 OK\n")
    return said("Unrecognized command\n", 1)


def _tracking(host: FakeHost, *, csv: bool) -> str:
    source = host.part(TimeSource)
    if not source.reachable:
        fields = ["00000000", "", "0", "0.000000000", *["0.000000000"] * 3, *["0.000"] * 3]
        fields += ["1.000000000", "1.000000000", "0.0", "Not synchronised"]
    else:
        updated = host.now().timestamp() - source.updated_s_ago
        # The correction still to be applied: positive when this host is slow of true time.
        correction = source.reckoned_s - _offset_s(host)
        fields = [source.reference, source.address, str(source.stratum), f"{updated:.9f}", f"{correction:.9f}"]
        fields += ["-0.000012893", "0.000034512", "-11.307", "-0.001", "0.038"]
        fields += ["0.021338414", f"{source.dispersion_s:.9f}", "64.5", "Normal"]
    if csv:
        return ",".join(fields) + "\n"
    direction = "slow" if _offset_s(host) < 0 else "fast"
    return (
        f"Reference ID    : {fields[0]} ({fields[1]})\nStratum         : {fields[2]}\n"
        f"System time     : {abs(_offset_s(host)):.9f} seconds {direction} of NTP time\nLeap status     : {fields[13]}\n"
    )


def _sources(host: FakeHost) -> str:
    """`-c sources`: what its one source said last."""
    source = host.part(TimeSource)
    if not source.reachable:
        return f"^,?,{source.address},0,6,0,4294967295,0.000000000,0.000000000,0.000000000\n"
    offset = _offset_s(host)
    return f"^,*,{source.address},{source.stratum},6,377,35,{offset:.9f},{offset:.9f},{source.dispersion_s:.9f}\n"


def _waitsync(call: Call, words: list[str]) -> Ran:
    host, source = call.host, call.host.part(TimeSource)
    tries = int(words[0]) if words else 0
    largest = float(words[1]) if words[1:] else 0.0
    offset = abs(_offset_s(host))
    good = source.reachable and (largest == 0 or offset <= largest)
    reference = source.reference if source.reachable else "00000000"
    line = "try: {0}, refid: " + reference + f", correction: {offset:.9f}, skew: 0.038\n"
    return said("".join(line.format(number) for number in range(1, 2 if good else max(tries, 1) + 1)), 0 if good else 1)


def timedatectl(call: Call) -> Ran:
    """`timedatectl show | timesync-status`."""
    host, source = call.host, call.host.part(TimeSource)
    if not host.has_service_manager:
        return said("", 1, err="System has not been booted with systemd as init system (PID 1). Can't operate.\n")
    if call.words[:1] == ["show"]:
        synchronised = "yes" if clock_state(host).synchronized else "no"
        stamp = host.now().strftime("%a %Y-%m-%d %H:%M:%S UTC")
        return said(
            f"Timezone=Etc/UTC\nLocalRTC=no\nCanNTP=yes\nNTP={'no' if _running(host) == 'none' else 'yes'}\n"
            f"NTPSynchronized={synchronised}\nTimeUSec={stamp}\nRTCTimeUSec={stamp}\n"
        )
    if call.words[:1] == ["timesync-status"]:
        if not host.is_active(TIMESYNCD):
            return said("", 1, err="Failed to query server: Unit dbus-org.freedesktop.timesync1.service not found.\n")
        return said(_timesync_status(source, _offset_s(host)))
    return said("", 1, err="Unknown command verb.\n")


def _timesync_status(source: TimeSource, offset_s: float) -> str:
    head = (
        f"       Server: {source.address} (0.debian.pool.ntp.org)\nPoll interval: 34min 8s (min: 32s; max 34min 8s)\n"
    )
    if not source.reachable:
        return f"{head} Packet count: 0\n"
    sign, micros = ("-" if offset_s < 0 else "+"), int(abs(offset_s) * 1e6)
    minutes, rest = divmod(micros, 60_000_000)
    spans = [f"{minutes}min"] if minutes else []
    spans.append(f"{rest / 1e6:.6f}s" if rest >= 1_000_000 else f"{rest / 1e3:.3f}ms" if rest >= 1000 else f"{rest}us")
    return (
        f"{head}         Leap: normal\n      Version: 4\n      Stratum: {source.stratum}\n"
        f"    Reference: {source.reference}\n    Precision: 1us (-24)\n"
        f"Root distance: {source.dispersion_s * 1e3:.3f}ms (max: 5s)\n"
        f"       Offset: {sign}{' '.join(spans)}\n        Delay: 11.822ms\n       Jitter: 1.044ms\n"
        f" Packet count: 27\n    Frequency: -11.307ppm\n"
    )


PROGRAMS = {"chronyc": chronyc, "timedatectl": timedatectl}
