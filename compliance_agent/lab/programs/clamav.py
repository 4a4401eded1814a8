"""ClamAV 1.4: clamd behind its socket, and freshclam, which fetches signatures."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from datetime import datetime, timedelta

from compliance_agent.errors import CannotTell
from compliance_agent.lab.host import Call, FakeHost, Unit, said
from compliance_agent.ports import Ran

UNIT = "clamav-daemon.service"
FRESHCLAM = "clamav-freshclam.service"
SOCKET = "/run/clamav/clamd.ctl"
DAILY = "/var/lib/clamav/daily.cld"
# The EICAR test file, in two halves, so that no scanner takes this source for it.
EICAR = rb"X5O!P%@AP[4\PZX54(P^)7CC)7}$" + b"EICAR-STANDARD-ANTIVIRUS-TEST-FILE!$H+H*"
PUBLISHED_EVERY_S = 86_400.0


@dataclass
class Signatures:
    """The signature database that clamd has loaded, and whether a newer one can be had.

    Attributes:
        built_at: when it was published; None until `provide` set it.
        mirror_reachable: freshclam can reach a mirror.
        loaded: clamd has an official database at all.
        detects: clamd finds what it should; a false one is a daemon that lost its database or its mind.
    """

    version: int = 27_826
    built_at: datetime | None = None
    mirror_reachable: bool = True
    loaded: bool = True
    detects: bool = True
    engine: str = "1.4.6"


def provide(host: FakeHost) -> None:
    """Have clamd and freshclam installed and running, with signatures of today."""
    host.part(Signatures).built_at = host.now() - timedelta(hours=5)
    host.install("freshclam")
    host.units_table[UNIT] = Unit()
    host.units_table[FRESHCLAM] = Unit(started=lambda: _updater_started(host))
    host.sockets[SOCKET] = clamd
    host.put("/etc/clamav/clamd.conf", f"LocalSocket {SOCKET}\nUser clamav\nDatabaseDirectory /var/lib/clamav\n")
    host.put("/var/lib/clamav/main.cvd", b"ClamAV-VDB:16 Sep 2021 08-32 -0400:62:6647427:90:x:x:sigmgr:1631795562")
    _store(host)


def built(host: FakeHost) -> datetime:
    """When the loaded signatures were published; long ago when there never were any."""
    return host.part(Signatures).built_at or host.now() - timedelta(days=3650)


def _store(host: FakeHost) -> None:
    signatures, when = host.part(Signatures), built(host)
    header = (
        f"ClamAV-VDB:{when:%d %b %Y %H-%M} +0000:{signatures.version}:2077091:90:X:X:raynman:{int(when.timestamp())}"
    )
    host.put(DAILY, header.ljust(512), age_s=(host.now() - when).total_seconds())


def fetch(host: FakeHost) -> bool:
    """Bring signatures up to date if a mirror answers; clamd is told to load them."""
    signatures = host.part(Signatures)
    if not signatures.mirror_reachable:
        return False
    age_s = (host.now() - built(host)).total_seconds()
    missed = int(age_s // PUBLISHED_EVERY_S)
    if missed or not signatures.loaded:
        signatures.version += missed
        signatures.loaded = True
        signatures.built_at = host.now() - timedelta(hours=2)
        _store(host)
    return True


def _updater_started(host: FakeHost) -> None:
    """The service looks for updates at once, and stays up when no mirror answers."""
    fetch(host)


def clamd(host: FakeHost, request: bytes) -> bytes:
    """The daemon's answer to one command in `z` or `n` framing."""
    if not host.is_active(UNIT):
        raise CannotTell("io_error", f"{SOCKET}: nobody listens", errno_name="ECONNREFUSED")
    framing, rest = request[:1], request[1:]
    if framing not in {b"z", b"n"}:
        return b"UNKNOWN COMMAND\n"
    end = b"\0" if framing == b"z" else b"\n"
    command, _, body = rest.partition(end)
    if command == b"PING":
        return b"PONG" + end
    if command == b"VERSION":
        signatures = host.part(Signatures)
        if not signatures.loaded:
            return f"ClamAV {signatures.engine}".encode() + end
        return f"ClamAV {signatures.engine}/{signatures.version}/{built(host):%a %b %e %H:%M:%S %Y}".encode() + end
    if command == b"INSTREAM":
        return _scan(host, body) + end
    return b"UNKNOWN COMMAND" + end


def _scan(host: FakeHost, body: bytes) -> bytes:
    content, position = b"", 0
    while True:
        if len(body) < position + 4:
            return b"INSTREAM: Error reading chunk size. ERROR"
        (size,) = struct.unpack(">I", body[position : position + 4])
        if size == 0:
            break
        content += body[position + 4 : position + 4 + size]
        position += 4 + size
    signatures = host.part(Signatures)
    found = content.startswith(EICAR) and signatures.detects and signatures.loaded
    return b"stream: Eicar-Test-Signature FOUND" if found else b"stream: OK"


def freshclam(call: Call) -> Ran:
    """`freshclam [--quiet]`; fails while the freshclam service holds its log file."""
    host = call.host
    if host.is_active(FRESHCLAM):
        text = "Failed to lock the log file /var/log/clamav/freshclam.log: Resource temporarily unavailable"
        return said("", 62, err=f"ERROR: {text}\nERROR: initialize: libfreshclam init failed.\n")
    call.alters()
    before = host.part(Signatures).version
    started = f"ClamAV update process started at {host.now():%a %b %e %H:%M:%S %Y}\n"
    if not fetch(host):
        err = "ERROR: remote_cvdhead: Download failed (6) ERROR: Message: Could not resolve host name\n"
        return said(started, 5, err=f"WARNING: Can't get information about database.clamav.net\n{err}")
    version = host.part(Signatures).version
    text = "is up-to-date" if version == before else "updated"
    counts = f"(version: {version}, sigs: 2077091, f-level: 90, builder: raynman)"
    return said(f"{started}daily.cld database {text} {counts}\nmain.cvd database is up-to-date\n")


PROGRAMS = {"freshclam": freshclam}
