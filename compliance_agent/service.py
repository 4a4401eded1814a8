"""The agent as a service: one life after another, each with the configuration that was in force when it began.

SIGHUP asks for the files to be read again: configuration, baseline, and what TLS needs. All of it is looked at first, beside the
agent that runs. Only when it can be used does that one finish what is under way, as at a stop, and another one begin in the
same process; otherwise it goes on as it was. Both are said in the log (DESIGN 9).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import structlog

from compliance_agent.adapters.notify import Notify
from compliance_agent.agent import ComplianceAgent
from compliance_agent.baseline import load
from compliance_agent.config import AgentConfig
from compliance_agent.core.versions import older
from compliance_agent.delivery import code_of
from compliance_agent.errors import AgentError, ConfigError
from compliance_agent.logs import configure, where
from compliance_agent.mcp_client import MCPClient
from compliance_agent.watchdog import Watchdog

log = structlog.get_logger()

# Another value of these is another host, or another place for what must not be lost: nothing to change between two cycles.
FIXED = ("client_id", "site_id", "host_id", "state_dir", "evidence_dir", "signing_key_file")


async def serve(read: Callable[[], AgentConfig], log_level: str | None = None) -> None:
    """Run the agent of this machine until SIGTERM or SIGINT.

    Args:
        read: gives the configuration, anew with each call.
        log_level: in place of the configuration's.

    Raises:
        ConfigError, StorageError: the first life cannot begin, or a later one neither with the new files nor with the former.
    """
    manager = Notify()
    config, former = read(), None
    ended: ComplianceAgent | None = None
    while True:
        configure(log_level or config.log_level)
        try:
            agent = ComplianceAgent(config)
        except AgentError as error:
            if former is None:
                raise
            _refused(error)
            config, former = former, None
            continue
        if former is not None:
            log.info("config.reloaded")
        agent.take_signals(ended)
        follows = await _life(agent, config, read, manager)
        if follows is None:
            return
        config, former, ended = follows, config, agent


async def _life(
    agent: ComplianceAgent, config: AgentConfig, read: Callable[[], AgentConfig], manager: Notify
) -> AgentConfig | None:
    """One agent from its start to its end; the configuration of the next one, if there is to be one."""
    follows: AgentConfig | None = None

    async def listen() -> None:
        nonlocal follows
        while True:
            await agent.reload_event.wait()
            agent.reload_event.clear()
            manager.reloading()
            try:
                follows = await asyncio.to_thread(usable, read, config, await agent.baseline_held())
            except AgentError as error:
                _refused(error)
                if agent.progress.looked.is_set():  # otherwise it is still on its way to being ready
                    manager.tell(READY="1", STATUS=f"the new files are refused: {code_of(error)}")
            else:
                agent.end()
                return

    beside = [asyncio.create_task(listen()), asyncio.create_task(Watchdog(agent, manager).run())]
    try:
        await agent.start()
    finally:
        for task in beside:
            task.cancel()
    return None if agent.signalled else follows


def usable(read: Callable[[], AgentConfig], present: AgentConfig, held: str | None) -> AgentConfig:
    """What the files say now, after everything that they name was looked at.

    Args:
        read: gives the configuration.
        present: the one in force.
        held: version of the baseline that the host is held to.

    Raises:
        ConfigError: it cannot be used, or not without a restart (`needs_restart`).
        StorageError: a file cannot be read.
    """
    config = read()
    for name in FIXED:
        if getattr(config, name) != getattr(present, name):
            raise ConfigError(
                f"{name}: cannot change while the agent runs",
                code="needs_restart",
                hint="stop the agent, and start it with the new value",
            )
    baseline = load(config.baseline_path, signed_by=config.baseline_key_file)
    if held is not None and older(baseline.version, held):
        raise ConfigError(f"baseline: version {baseline.version} is older than {held}", code="baseline_older")
    if config.mcp_url is not None:
        MCPClient(config, "")  # its TLS files
    return config


def _refused(error: AgentError) -> None:
    log.error("config.refused", code=code_of(error), at=where(error))
