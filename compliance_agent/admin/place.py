"""Where the admin socket stands: as configured, in the service's runtime directory, or in the state directory."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from compliance_agent.config import AgentConfig

NAME = "agent.sock"
SYSTEM_SOCKET = Path("/run/compliance-agent/admin") / NAME


def socket_of(config: AgentConfig, environ: Mapping[str, str]) -> Path:
    """The path for an agent of this configuration.

    Args:
        config: of the agent.
        environ: with `RUNTIME_DIRECTORY` where the service manager made one.
    """
    if config.admin_socket is not None:
        return config.admin_socket
    runtime = environ.get("RUNTIME_DIRECTORY", "").split(":", maxsplit=1)[0]
    return (Path(runtime) if runtime else config.state_dir) / NAME
