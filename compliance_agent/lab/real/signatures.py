#!/usr/bin/python3
"""Makes a signature database of a chosen date, in the scanner's own unsigned form, and has it loaded.

Arguments: DAYS [eicar|other] [reload|keep].

Copied to a lab host, where it also stands in for the updater, which would need its maker's network. Standard library alone.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import socket
import sys
import tarfile
import time
from pathlib import Path

STORE, SOCKET = Path("/var/lib/clamav"), Path("/run/clamav/clamd.ctl")
EICAR = b"44d88612fea8a8f36de82e1278abb02f:68:Lab.Eicar-Test\n"
OTHER = b"0123456789abcdef0123456789abcdef:1234:Lab.Other\n"


def made(days: int, signatures: bytes) -> bytes:
    """The bytes of a database that was made so many days ago."""
    moment = int(time.time()) - days * 86400
    day = time.strftime("%d %b %Y %H-%M +0000", time.gmtime(moment))
    head = f"ClamAV-VDB:{day}:27800:1:90:X:X:lab:{moment}".encode()
    info = head + b"\n" + f"daily.hdb:{len(signatures)}:{hashlib.sha256(signatures).hexdigest()}\n".encode()
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for name, body in (("daily.info", info), ("daily.hdb", signatures)):
            member = tarfile.TarInfo(name)
            member.size = len(body)
            tar.addfile(member, io.BytesIO(body))
    return head.ljust(512) + gzip.compress(out.getvalue())


def main(days: str, kind: str = "eicar", then: str = "reload") -> None:
    """Write it whole, and tell the scanner unless it is to `keep` what it has."""
    new = STORE / "daily.new"
    new.write_bytes(made(int(days), EICAR if kind == "eicar" else OTHER))
    new.replace(STORE / "daily.cud")
    if then == "reload" and SOCKET.exists():
        with socket.socket(socket.AF_UNIX) as asked:
            asked.connect(str(SOCKET))
            asked.sendall(b"zRELOAD\0")
            asked.recv(64)


if __name__ == "__main__":
    main(*sys.argv[1:])
