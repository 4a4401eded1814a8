"""What the server's process promises to hosts, beside its routes."""

from __future__ import annotations

import dataclasses

from compliance_agent.config import AgentConfig
from compliance_agent.server.runner import KEEP_ALIVE_S


def test_a_connection_is_kept_longer_than_a_host_waits_between_two_calls() -> None:
    """Else each check-in pays for a TLS handshake."""
    poll = next(field for field in dataclasses.fields(AgentConfig) if field.name == "mcp_poll_interval_sec")
    assert isinstance(poll.default, int)
    assert poll.default * 1.1 < KEEP_ALIVE_S
