"""Uplink's own client certificate. What needs cryptography runs in a process that ends, so that uplink stays small.

python -m compliance_agent.uplink.certificate request|anew|take FILE      what it makes or takes: standard output, input
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from compliance_agent.adapters.durable import read_file
from compliance_agent.errors import ConfigError, Unavailable
from compliance_agent.transport.http import HttpTransport

MAX_BYTES = 16_384
PATIENCE_S = 20.0
_BEGIN, _END = b"-----BEGIN CERTIFICATE-----", b"-----END CERTIFICATE-----"


class OwnCertificate:
    """A file with key and certificate, and the way that shows it.

    Args:
        path: the file.
        way: to the server.
    """

    def __init__(self, path: Path, way: HttpTransport) -> None:
        self._path, self._way = path, way

    async def present(self) -> tuple[bool, bytes]:
        """Whether there is a file, and the certificate in it; never its key.

        Raises:
            AgentError: it is there and cannot be read.
        """
        if not self._path.exists():
            return False, b""
        raw = read_file(self._path, limit_bytes=MAX_BYTES, secret=True)
        begin, end = raw.find(_BEGIN), raw.find(_END)
        return True, raw[begin : end + len(_END)] + b"\n" if 0 <= begin < end else b""

    async def request(self, *, anew: bool) -> bytes:
        """A signing request for a new key, or for the present one.

        Raises:
            ConfigError, Unavailable: it could not be made.
        """
        return await self._child("anew" if anew else "request", b"")

    async def use(self, pem: bytes) -> None:
        """Keep this certificate beside the key that it is for, and show it from the next connection on; none when it is empty.

        Raises:
            ConfigError, Unavailable: it is for another key, or could not be kept.
        """
        if not pem:
            self._way.use_client_certificate(None)
            return
        await self._child("take", pem)
        self._way.use_client_certificate(self._path)

    async def _child(self, verb: str, given: bytes) -> bytes:
        pipe = asyncio.subprocess.PIPE
        command = (sys.executable, "-m", __name__, verb, str(self._path))
        child = await asyncio.create_subprocess_exec(*command, stdin=pipe, stdout=pipe)
        try:
            async with asyncio.timeout(PATIENCE_S):
                made, _ = await child.communicate(given)
        except TimeoutError as error:
            raise Unavailable("client certificate: the process that makes it hangs", code="timed_out") from error
        finally:
            if child.returncode is None:
                child.kill()
                await child.wait()
        if child.returncode != 0:
            raise ConfigError("client certificate: it could not be made or kept")
        return made


def main() -> None:
    """What the child does."""
    from compliance_agent.client_certificate import made_request, take

    verb, path = sys.argv[1], Path(sys.argv[2])
    if verb == "take":
        take(path, sys.stdin.buffer.read(MAX_BYTES))
    else:
        sys.stdout.buffer.write(made_request(path, anew=verb == "anew"))


if __name__ == "__main__":
    main()
