"""What chrony and systemd-timesyncd say of the clock, as numbers. Formats: chronyc(1) with `-c`, timedatectl(1)."""

from __future__ import annotations

import re
from datetime import datetime

from compliance_agent.dataclass import dataclass
from compliance_agent.errors import CannotTell

TRACKING = ("chronyc", "-n", "-c", "tracking")
SAMPLES = ("chronyc", "-n", "-c", "sources")
TIMESYNC_STATUS = ("timedatectl", "timesync-status", "--no-pager")
TIMESYNC_STAMP = "/run/systemd/timesync/synchronized"  # touched at each update, says systemd-timesyncd(8)
FOLLOWS_ITSELF = frozenset({"7F7F0101", "00000000"})  # chrony's reference ids for `local` and for nothing

_UNITS_US = {"us": 1, "ms": 1000, "s": 10**6, "min": 60 * 10**6, "h": 3600 * 10**6, "d": 86_400 * 10**6}


@dataclass(frozen=True)
class Measured:
    """A daemon's measurement. Everything but `synchronised` is None when it follows no source.

    Attributes:
        synchronised: it follows a source other than this host itself.
        offset_us: positive when this host is ahead of true time.
        bound_us: how far off the measurement itself may be.
        stratum: hops to a reference clock.
        age_s: since the last update; negative when that lies in the future.
        sample_us: what the followed source said last, as an offset, after every step since; None when the daemon does not tell.
        sample_error_us: how far off that one may be.
    """

    synchronised: bool
    offset_us: int | None = None
    bound_us: int | None = None
    stratum: int | None = None
    age_s: int | None = None
    sample_us: int | None = None
    sample_error_us: int | None = None


def parse_tracking(text: str, now: datetime) -> Measured:
    """The measurement in `chronyc -c tracking`, one line of 14 fields; `now` is the host's own clock.

    Raises:
        CannotTell: `unparsable`.
    """
    fields = text.removesuffix("\n").split(",")
    if len(fields) != 14 or not text.endswith("\n") or not re.fullmatch(r"[0-9A-F]{8}", fields[0]):
        raise CannotTell("unparsable", f"chronyc tracking: expected a line of 14 fields, found {len(fields)}")
    if fields[13] == "Not synchronised":
        return Measured(synchronised=False)
    if fields[13] not in {"Normal", "Insert second", "Delete second"}:
        raise CannotTell("unparsable", "chronyc tracking: no such leap status")
    if not re.fullmatch(r"[0-9]{1,2}", fields[2]) or not re.fullmatch(r"[0-9]{1,10}\.[0-9]{9}", fields[3]):
        raise CannotTell("unparsable", "chronyc tracking: no stratum or reference time")
    return Measured(
        synchronised=fields[0] not in FOLLOWS_ITSELF,
        offset_us=-_seconds(fields[4]),  # the field is the correction still to come: positive when this host is behind
        bound_us=abs(_seconds(fields[10])) // 2 + abs(_seconds(fields[11])),
        stratum=int(fields[2]),
        age_s=int(now.timestamp()) - int(fields[3].partition(".")[0]),
    )


def parse_samples(text: str) -> tuple[int, int] | None:
    """The last measurement of the followed source in `chronyc -c sources` and its error; None when it follows none now.

    A daemon that may not set the clock reckons with the steps it wanted: by `tracking` a clock that is far off is right, and only
    here the distance shows.

    Raises:
        CannotTell: `unparsable`.
    """
    if not text.endswith("\n"):
        raise CannotTell("unparsable", "chronyc sources: no sources, or a line that has no end")
    followed = None
    for line in text.removesuffix("\n").split("\n"):
        fields = line.split(",")
        if len(fields) != 10 or not re.fullmatch(r"[\^=#]", fields[0]) or not re.fullmatch(r"[*+?x~-]", fields[1]):
            raise CannotTell("unparsable", f"chronyc sources: expected a line of 10 fields, found {len(fields)}")
        if fields[1] == "*":
            followed = _seconds(fields[7]), abs(_seconds(fields[9]))
    return followed


def _seconds(text: str) -> int:
    """Decimal seconds as whole microseconds."""
    if not re.fullmatch(r"-?[0-9]{1,9}\.[0-9]{1,12}", text):
        raise CannotTell("unparsable", "chronyc tracking: expected seconds with a decimal point")
    size = _whole(text.removeprefix("-"), 1_000_000)
    return -size if text.startswith("-") else size


def _whole(number: str, unit: int) -> int:
    """So many units, without the part of one that is left; in whole numbers, for `decimal` is a library of its own."""
    before, _, after = number.partition(".")
    return int(before + after) * unit // int(f"1{'0' * len(after)}")


def parse_timesync_status(text: str) -> Measured:
    """The measurement in `timedatectl timesync-status`, without its age, which is not in there.

    Raises:
        CannotTell: `unparsable`.
    """
    pairs = dict(re.findall(r"^ *([A-Z][A-Za-z ]+): (.+)$", text, re.MULTILINE))
    if not re.fullmatch(r"[0-9]{1,10}", pairs.get("Packet count", "")) or not text.endswith("\n"):
        raise CannotTell("unparsable", "timedatectl: no packet count")
    if int(pairs["Packet count"]) == 0 or pairs.get("Leap") == "not synchronized":
        return Measured(synchronised=False)
    if pairs.get("Leap") not in {"normal", "inserting second", "deleting second"}:
        raise CannotTell("unparsable", "timedatectl: no such leap status")
    if not re.fullmatch(r"[0-9]{1,2}", pairs.get("Stratum", "")):
        raise CannotTell("unparsable", "timedatectl: no stratum")
    return Measured(
        synchronised=True,
        offset_us=_timespan(pairs.get("Offset", "")),
        bound_us=abs(_timespan(pairs.get("Root distance", "").partition(" (")[0])),
        stratum=int(pairs["Stratum"]),
    )


def _timespan(text: str) -> int:
    """Spans such as `-1min 2.5s` or `+345us` (systemd.time(7)) as whole microseconds."""
    span = re.fullmatch(r"([+-]?)((?:[0-9]{1,6}(?:\.[0-9]{1,6})?(?:us|ms|s|min|h|d) ?){1,6}|0)", text)
    if span is None:
        raise CannotTell("unparsable", "timedatectl: expected a time span")
    parts = re.findall(r"([0-9.]+)([a-z]+)", span[2])
    total = sum(_whole(number, _UNITS_US[unit]) for number, unit in parts)
    if total > 10**15:
        raise CannotTell("unparsable", "timedatectl: a time span of more than 31 years")
    return -total if span[1] == "-" else total
