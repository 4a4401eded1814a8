"""Syslog as RFC 5424 over TLS (RFC 5425), or plain TCP on a private network (RFC 6587), both with octet counting.

The protocol has no acknowledgement. So the connection is half-closed after the message, and the message counts as taken once the
other side has closed in its turn, or has said nothing against it for a moment.
"""

from __future__ import annotations

import asyncio

from compliance_agent.errors import ConfigError, Unavailable
from compliance_agent.server.channels import words
from compliance_agent.server.channels.wire import connected, tls_context
from compliance_agent.server.records.alarms import Delivery

FACILITY = 13  # log audit
SEVERITY = {"critical": 2, "warning": 4}
ENTERPRISE = "compliance@32473"  # the number that RFC 5612 sets aside for examples: nobody's
QUIET_S = 0.5


class Syslog:
    """One receiver."""

    def __init__(
        self, server: str, private: bool, host: str, port: int = 6514, tls: bool = True, ca_file: str | None = None
    ) -> None:
        if not tls and not private:
            raise ConfigError("tls: may be false only where the channel is private")
        self._server, self._private, self._host, self._port = server, private, host, port
        self._tls = tls_context(ca_file) if tls else None

    async def send(self, delivery: Delivery) -> None:
        """Send one frame."""
        line = message(delivery, self._server)
        async with connected(self._host, self._port, self._tls, private=self._private) as (reader, writer):
            writer.write(b"%d %s" % (len(line), line))
            await writer.drain()
            if writer.can_write_eof():
                writer.write_eof()
            try:
                async with asyncio.timeout(QUIET_S):
                    await reader.read(1)
            except TimeoutError:
                if writer.is_closing():
                    raise Unavailable(f"{self._host}: the connection was cut", code="cut") from None


def message(delivery: Delivery, server: str) -> bytes:
    """One line of RFC 5424."""
    at = delivery.alert.closed_at if delivery.transition == "close" else None
    stamp = (at or delivery.alert.opened_at).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
    said = words.document(delivery, server)
    values = "".join(
        f' {key}="{_escaped(str(value))}"' for key, value in said.items() if value is not None and key != "summary"
    )
    priority = FACILITY * 8 + SEVERITY[words.severity(delivery)]
    head = f"<{priority}>1 {stamp} {server[:255]} compliance-server - {delivery.alert.cause.kind}"
    return f"{head} [{ENTERPRISE}{values}] {said['summary']}".encode()


def _escaped(value: str) -> str:
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("]", "\\]")
