"""This host's API key gives way to a new one, on a schedule or at a person's word; neither side can be locked out.

    the next key, durable beside the present one -> its hash told to the server, signed by the host's own key, which lets both count
        -> the file replaced, durable -> its first use ends the former one at the server

A stop before the file is replaced leaves the present key, which still counts because nothing has used the next one; a stop after it
leaves the next one, which the server had made durable before it answered. The former key stays beside the file: it is worth nothing
at the server, but at one that was restored from a backup of before, which is then told of the present one again. Where `uplink` has
the key (`privileges: split`) nothing here touches it.
"""

from __future__ import annotations

import base64
import os
import secrets
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, Protocol

import structlog

from compliance_agent.adapters.durable import remove_file, write_file
from compliance_agent.config import AgentConfig
from compliance_agent.credential import load_api_key
from compliance_agent.errors import AgentError, ServerRefused
from compliance_agent.logs import where
from compliance_agent.ports import Clock

PREFIX = "cak1."
REQUEST_FILE = "rotate-api-key"
log = structlog.get_logger()


class Parts(Protocol):
    """What it needs of the agent, read anew each time."""

    signer: Any
    mcp_client: Any
    clock: Clock


class ApiKeyRotation:
    """The API key of one host.

    Args:
        parts: the agent.
        config: where the key stands, and how long it may serve.
    """

    def __init__(self, parts: Parts, config: AgentConfig) -> None:
        self._parts = parts
        self._config = config
        self._said = ""

    @property
    def path(self) -> Path | None:
        """The file that is kept here; None where there is none, or `uplink` has it."""
        own = self._config.privileges == "single" and self._config.mcp_url is not None
        return self._config.mcp_api_key_file if own else None

    def due(self, since: datetime | None) -> bool:
        """Whether it shall give way: somebody asked, or it has served for long enough."""
        if self.path is None or not os.path.lexists(self.path):
            return False
        if (self._config.state_dir / REQUEST_FILE).exists():
            return True
        days = self._config.api_key_rotation_days
        return days > 0 and since is not None and self._parts.clock.now() - since >= timedelta(days=days)

    async def keep(self, since: datetime | None) -> bool:
        """Do what is due; whether there is a new key. Trouble is said once and waits for the next turn."""
        announce = getattr(self._parts.mcp_client, "announce_api_key", None)
        if self.path is None or not callable(announce):
            return False
        try:
            if getattr(self._parts.mcp_client, "api_key_refused", False) is True:
                await self._told_again(announce, self.path)
            done = self.due(since)
            if done:
                await self._rotate(announce, self.path)
        except AgentError as error:
            if self._said != error.code:
                log.error("key.api_rotation_failed", code=error.code, at=where(error))
            self._said = error.code
            return False
        self._said = ""
        return done

    async def _rotate(self, announce: Any, path: Path) -> None:
        present, coming = load_api_key(path), path.with_name(f"{path.name}.next")
        following = _next_key(coming)
        if following != present:  # or the file was replaced just before this agent was stopped
            await self._announced(announce, following, coming)
            write_file(path.with_name(f"{path.name}.former"), f"{present}\n".encode(), 0o600)
            write_file(path, f"{following}\n".encode(), 0o600)
        self._parts.mcp_client.forget_credentials()
        remove_file(coming)
        remove_file(self._config.state_dir / REQUEST_FILE)
        log.info("key.api_rotated")

    async def _announced(self, announce: Any, following: str, coming: Path) -> None:
        try:
            await announce(following, self._parts.signer)
        except ServerRefused as error:
            if error.code == "api_key_ended":  # the host was enrolled anew meanwhile; the next turn makes another one
                remove_file(coming)
            raise

    async def _told_again(self, announce: Any, path: Path) -> None:
        """The server does not know the key any more. If it was restored from a backup, it knows the former one."""
        former = path.with_name(f"{path.name}.former")
        if not _is_there(former):
            return
        await announce(load_api_key(path), self._parts.signer, by=load_api_key(former))
        self._parts.mcp_client.forget_credentials()
        log.info("key.api_told_again")


def _is_there(path: Path) -> bool:
    return os.path.lexists(path)


def _next_key(path: Path) -> str:
    """The next key, made before or now; durable either way."""
    if os.path.lexists(path):
        return load_api_key(path)
    key = PREFIX + base64.urlsafe_b64encode(secrets.token_bytes(32)).decode("ascii").rstrip("=")
    write_file(path, f"{key}\n".encode(), 0o600)
    return key
