"""The scanner daemon's own socket protocol (clamd(8)), as bytes: what is asked, and what an answer means.

Commands are sent in their `z` form, so that an answer ends with a NUL byte and a cut one shows. Nothing here keeps what
the daemon says but three facts: it is there, how old its signatures are, and whether it found the test file.
"""

from __future__ import annotations

import re
import struct
from datetime import UTC, datetime, timedelta

from compliance_agent.dataclass import dataclass
from compliance_agent.errors import CannotTell

PING = b"zPING\0"
VERSION = b"zVERSION\0"
# The daemon prints the host's local time without its zone. Programs are started in UTC, so that has to be taken back here.
ZONE = ("env", "--unset=TZ", "date", "+%z")

_VERSION = re.compile(
    rb"ClamAV (?P<engine>[0-9]{1,2}(?:\.[0-9]{1,4}){1,2}(?:-(?:rc|beta|devel)[0-9-]{0,12})?)"
    rb"(?:/(?P<database>[0-9]{1,9})"
    rb"/[A-Z][a-z]{2} (?P<date>[A-Z][a-z]{2} [ 0-9][0-9] [0-9]{2}:[0-9]{2}:[0-9]{2} [0-9]{4}))?\0"
)
_FOUND = re.compile(rb"stream: [\x20-\x7e]{0,200}eicar[\x20-\x7e]{0,200} FOUND\0", re.IGNORECASE)
_ZONE = re.compile(rb"([+-])([0-9]{2})([0-9]{2})\n")
_MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")


@dataclass(frozen=True)
class ScannerVersion:
    """What zVERSION says. Without an official database there is neither number nor time.

    Attributes:
        engine: of the program, such as `1.4.3`.
        database: number of the daily signature database, None when none is loaded.
        built_at: when that database was made (UTC).
    """

    engine: str
    database: int | None
    built_at: datetime | None

    def age_h(self, now: datetime) -> int | None:
        """Whole hours since the database was made, rounded up; None when there is none."""
        return None if self.built_at is None else -((self.built_at - now) // timedelta(hours=1))


def answers_ping(reply: bytes) -> bool:
    """Whether the daemon is there and says so."""
    return reply == b"PONG\0"


def parse_version(reply: bytes, zone: timedelta) -> ScannerVersion:
    """The answer to VERSION. The daemon prints local time without its zone, so the host's must be given.

    Raises:
        CannotTell: `unparsable`, also for an answer that was cut.
    """
    match = _VERSION.fullmatch(reply)
    if match is None:
        raise CannotTell("unparsable", "the scanner's version is not of the form ClamAV N/N/DATE")
    engine = match["engine"].decode("ascii")
    if match["database"] is None:
        return ScannerVersion(engine, None, None)
    return ScannerVersion(engine, int(match["database"]), _ctime(match["date"].decode("ascii"), zone))


def parse_zone(out: bytes) -> timedelta:
    """The host's offset from UTC, from the answer to ZONE.

    Raises:
        CannotTell: `unparsable`.
    """
    match = _ZONE.fullmatch(out)
    if match is None or int(match[2]) > 14 or int(match[3]) > 59:
        raise CannotTell("unparsable", "the zone is not of the form +HHMM")
    offset = timedelta(hours=int(match[2]), minutes=int(match[3]))
    return offset if match[1] == b"+" else -offset


def _ctime(text: str, zone: timedelta) -> datetime:
    """`Nov 22 09:40:00 2026` as UTC. By hand, because strptime's month names depend on the locale."""
    month, rest = text[:3], text[4:]
    day, time, year = rest[:2], rest[3:11], rest[12:]
    try:
        hour, minute, second = (int(part) for part in time.split(":"))
        local = datetime(int(year), _MONTHS.index(month) + 1, int(day), hour, minute, second, tzinfo=UTC)
        return local - zone
    except (ValueError, OverflowError) as error:
        raise CannotTell("unparsable", "the signatures' date is no date") from error


def eicar() -> bytes:
    """The harmless 68-byte file that every scanner reports (EICAR), put together here so that no file of ours is it."""
    head = rb"X5O!P%@AP[4\PZX54(P^)7CC)7}"
    return b"".join((head, b"$", b"EICAR", b"-STANDARD", b"-ANTIVIRUS", b"-TEST-FILE!", b"$H+H*"))


def scan_stream(content: bytes) -> bytes:
    """A request to scan these bytes: one chunk with its length before it, then a chunk of no length."""
    return b"zINSTREAM\0" + struct.pack(">I", len(content)) + content + struct.pack(">I", 0)


def found_test_file(reply: bytes) -> bool:
    """Whether the scan reported the test file: True or, when it called it clean, False.

    Raises:
        CannotTell: `unparsable` for any other answer, a size limit or another finding among them.
    """
    if _FOUND.fullmatch(reply):
        return True
    if reply == b"stream: OK\0":
        return False
    raise CannotTell("unparsable", "the scan was answered with neither FOUND nor OK")
