"""Makes the witness role from an agent's configuration: its files, keys and connections; `witness_calls.py` does the work."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from urllib.parse import urlsplit

import structlog

from compliance_agent.adapters.durable import read_file
from compliance_agent.adapters.witness_keys import WitnessKeys
from compliance_agent.adapters.witness_store import WitnessStore
from compliance_agent.config import AgentConfig, check_url
from compliance_agent.credential import load_token
from compliance_agent.errors import AgentError, ConfigError
from compliance_agent.log.policy import Policy
from compliance_agent.ports import Clock, Transport
from compliance_agent.transport.http import HttpTransport
from compliance_agent.uplink.link import UplinkTransport, link_of
from compliance_agent.witness import Witness, logs_of
from compliance_agent.witness_calls import WitnessCalls

DIRECTORY = "witness"  # in state_dir
GIVE_UP_S = 1.0  # for a look that is cancelled because the agent ends
log = structlog.get_logger()


@contextlib.asynccontextmanager
async def beside(config: AgentConfig, clock: Clock) -> AsyncIterator[None]:
    """In the witness role, look at logs of others beside the loop. Its trouble is said, and is not the agent's."""
    if config.witness_logs_file is None:
        yield
        return
    role = WitnessRole(config, clock)
    task = asyncio.create_task(role.run(config.mcp_poll_interval_sec))
    try:
        yield
    finally:
        task.cancel()
        await asyncio.wait({task}, timeout=GIVE_UP_S)
        await role.close()


class WitnessRole:
    """The open witness of an agent.

    Args:
        config: with a `witness_logs_file`.
        clock: the agent's.
        transport: makes the way to a URL, in place of the real one.

    Raises:
        ConfigError: a file cannot be used.
        StorageError, StateInUse: its state cannot be used.
    """

    def __init__(self, config: AgentConfig, clock: Clock, transport: Callable[[str], Transport] | None = None) -> None:
        policy = _policy(config)
        make = transport or _ways(config)
        self._clock = clock
        self.keys = WitnessKeys(config.state_dir / DIRECTORY, config.witness_name)
        self._store = WitnessStore(config.state_dir / DIRECTORY, self.keys.keys)
        try:
            self.calls = WitnessCalls(
                Witness(logs_of([policy]), self.keys, self._store, clock),
                frozenset(self.keys.keys),
                {key.name: key for key in policy.logs},
                {key.name: make(policy.urls[key]) for key in policy.logs},
                None if config.privileges == "split" else load_token(config.witness_token_file),
            )
        except BaseException:
            self._store.close()
            raise
        log.info("witness.started", origins=len(policy.logs))

    async def run(self, interval_s: float) -> None:
        """Look at the logs at this interval, until cancelled."""
        while True:
            await self.calls.turn()
            await self._clock.sleep(interval_s)

    async def close(self) -> None:
        """Close connections and state."""
        await self.calls.close()
        self._store.close()


def _ways(config: AgentConfig) -> Callable[[str], Transport]:
    """Makes the way to a log: by uplink, which adds the token, or from here."""
    if config.privileges == "split":
        link = link_of(config)
        return lambda url: UplinkTransport(link, url)
    return lambda url: HttpTransport(url, ca_file=config.witness_ca_file)


def _policy(config: AgentConfig) -> Policy:
    path = config.witness_logs_file
    if path is None:
        raise RuntimeError("a witness role needs witness_logs_file")
    try:
        policy = Policy.parse(read_file(path, limit_bytes=65_536, trusted=True) + b"quorum none\n")
    except AgentError as error:
        raise ConfigError(f"witness_logs_file {path}: {error}", code="bad_policy", hint=error.hint) from error
    urls = [policy.urls.get(key) for key in policy.logs]
    if not policy.logs or policy.witnesses or len({key.name for key in policy.logs}) != len(policy.logs):
        raise ConfigError(f"witness_logs_file {path}: expected lines `log <key> <url>`, one for each log")
    for url in urls:
        if url is None:
            raise ConfigError(f"witness_logs_file {path}: a log line has no URL, so the log cannot be looked at")
        check_url("witness_logs_file", url)
    if config.witness_token_file is not None and len({urlsplit(url or "")[:2] for url in urls}) > 1:
        raise ConfigError(
            f"witness_logs_file {path}: logs of several servers, and one token must not go to all of them"
        )
    return policy
