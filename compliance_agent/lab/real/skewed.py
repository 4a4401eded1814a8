"""A time source whose clock is off by a chosen number of seconds: answers SNTP (RFC 4330) at stratum 3.

Arguments: ADDRESS SECONDS. The lab's second source; the first is a real chronyd.
"""

from __future__ import annotations

import socket
import struct
import sys
import time

SINCE_1900 = 2_208_988_800


def answer(request: bytes, now: float) -> bytes:
    """The reply to a client's packet, when the clock here reads `now` (seconds since 1970)."""
    version, poll, sent = request[0] >> 3 & 7, request[2], request[40:48]
    # No leap second, mode 4 (server), stratum 3, a precision of a microsecond, a short way to a reference clock.
    head = struct.pack(">BBBbII4s", version << 3 | 4, 3, poll, -20, 0x10, 0x10, bytes((10, 77, 0, 3)))
    return head + _stamp(now - 1) + sent + _stamp(now) * 2


def _stamp(moment: float) -> bytes:
    return struct.pack(">Q", int((moment + SINCE_1900) * 2**32))


def main(address: str, seconds: str) -> None:
    """Answer until killed."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asked:
        asked.bind((address, 123))
        while True:
            request, client = asked.recvfrom(512)
            if len(request) >= 48:
                asked.sendto(answer(request, time.time() + float(seconds)), client)


if __name__ == "__main__":
    main(*sys.argv[1:])
