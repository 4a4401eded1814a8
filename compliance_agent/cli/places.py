"""Where a command finds its configuration: the file it was given, else the system's, else the environment."""

from __future__ import annotations

import os
from pathlib import Path

from compliance_agent.config import PREFIX, SERVER_PREFIX, AgentConfig
from compliance_agent.errors import ConfigError, NotPermitted

SYSTEM_CONFIG = Path("/etc/msp/agent.yaml")


def load_config(config_path: Path | None) -> AgentConfig | None:
    """The configuration the caller named, else the environment's, else the system's file, else None.

    Raises:
        ConfigError: there is one and it cannot be used.
        NotPermitted: there may be one, and this user may not look.
    """
    if config_path is not None:
        return AgentConfig.from_file(config_path)
    if _has_system_config():
        return AgentConfig.from_file(SYSTEM_CONFIG)
    if any(name.startswith(PREFIX) and not name.startswith(SERVER_PREFIX) for name in os.environ):
        return AgentConfig.from_env()
    return None


def _has_system_config() -> bool:
    """Whether there is one. Not being allowed to look is not the same as there being none."""
    try:
        SYSTEM_CONFIG.stat()
    except PermissionError as error:
        raise NotPermitted(
            f"{SYSTEM_CONFIG}: no permission to read", hint="run it as the agent's user, or give --config FILE"
        ) from error
    except OSError:
        return False
    return True


def require_config(config_path: Path | None) -> AgentConfig:
    """As `load_config`, for a command that cannot work without one.

    Raises:
        ConfigError: there is none, or it cannot be used.
    """
    config = load_config(config_path)
    if config is None:
        raise ConfigError("no configuration: give --config FILE, set MSP_* variables or write /etc/msp/agent.yaml")
    return config
