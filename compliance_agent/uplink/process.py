"""`uplink` as a process: its files, socket and signals. It reads the same configuration as `run`, and holds none of its keys."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
from collections.abc import Callable
from pathlib import Path

import structlog

from compliance_agent.adapters.durable import read_file
from compliance_agent.config import AgentConfig, check_url
from compliance_agent.credential import load_api_key, load_token
from compliance_agent.errors import AgentError, ConfigError
from compliance_agent.local_socket import activated, adopted, listen, uid_of
from compliance_agent.logs import configure, where
from compliance_agent.transport.http import HttpTransport, to_server
from compliance_agent.uplink.certificate import OwnCertificate
from compliance_agent.uplink.serve import Doors, Uplink

NAMES = ("uplink", "compliance-agent-uplink.socket")  # of a descriptor that the service manager hands over

log = structlog.get_logger()


async def serve(read: Callable[[], AgentConfig], log_level: str | None = None) -> None:
    """Serve until SIGTERM or SIGINT; SIGHUP has the files read again, and keeps what was when they cannot be used.

    Args:
        read: gives the configuration, anew with each call.
        log_level: in place of the configuration's.

    Raises:
        ConfigError: a file, a user or the socket cannot be used.
    """
    config = read()
    configure(log_level or config.log_level)
    loop, ended, again = asyncio.get_running_loop(), asyncio.Event(), asyncio.Event()
    uplink = Uplink(doors_of(config), {0, os.geteuid(), uid_of(config.run_user)})
    listener = listening(config.uplink_socket)
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, ended.set)
    loop.add_signal_handler(signal.SIGHUP, again.set)
    serving = asyncio.create_task(uplink.serve(listener))
    log.info("uplink.started")
    try:
        while not ended.is_set():
            waiting = [asyncio.ensure_future(event.wait()) for event in (ended, again)]
            await asyncio.wait({serving, *waiting}, return_when=asyncio.FIRST_COMPLETED)
            for each in waiting:
                each.cancel()
            if serving.done():
                serving.result()
                break
            if again.is_set():
                again.clear()
                await _reload(uplink, read)
    finally:
        serving.cancel()
        await asyncio.wait({serving})
        await uplink.doors.close()
        log.info("uplink.stopped")


async def _reload(uplink: Uplink, read: Callable[[], AgentConfig]) -> None:
    try:
        doors = doors_of(read())
    except AgentError as error:
        log.error("config.refused", code=error.code, at=where(error))
        return
    former, uplink.doors = uplink.doors, doors
    await former.close()
    log.info("config.reloaded")


def doors_of(config: AgentConfig) -> Doors:
    """The ways out that a configuration names.

    Raises:
        ConfigError: an address or a file cannot be used; an API key that is not there yet is no trouble.
    """
    key = ApiKey(config.mcp_api_key_file)
    server = to_server(config)
    doors = Doors(server, key.text, key.forget)
    if config.client_key_file is None:
        doors.certificate = OwnCertificate(config.client_cert_file, server)
    if config.witness_logs_file is not None:
        urls = witnessed(config.witness_logs_file)
        doors.logs = {url: HttpTransport(url, ca_file=config.witness_ca_file) for url in urls}
        doors.token = load_token(config.witness_token_file)
    if config.otlp_url is not None:
        doors.collectors = {config.otlp_url: HttpTransport(config.otlp_url)}
    return doors


class ApiKey:
    """The API key, read when it is first needed."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._text: str | None = None

    def text(self) -> str:
        """The key.

        Raises:
            Unavailable, ConfigError: see `credential`.
        """
        if self._text is None:
            self._text = load_api_key(self._path)
        return self._text

    def forget(self) -> None:
        """Read the file again before the next request."""
        self._text = None


def witnessed(path: Path) -> list[str]:
    """URLs of the logs that this host witnesses. Whether the file is right in all its parts, `run` says."""
    try:
        lines = read_file(path, limit_bytes=65_536, trusted=True).decode("utf-8", "replace").splitlines()
    except AgentError as error:
        raise ConfigError(f"witness_logs_file {path}: {error}", code="bad_policy", hint=error.hint) from error
    urls = [words[2] for words in map(str.split, lines) if len(words) == 3 and words[0] == "log"]
    for url in urls:
        check_url("witness_logs_file", url)
    return urls


def listening(path: Path) -> socket.socket:
    """The socket that the service manager handed over, or one of our own at the path.

    Raises:
        ConfigError: neither is to be had.
    """
    given = activated(os.environ, os.getpid())
    handles = [handle for name in (*NAMES, "unknown") for handle in given.get(name, [])]
    if len(handles) > 1:
        raise ConfigError("LISTEN_FDS: expected one socket")
    return adopted(handles[0]) if handles else listen(path)
