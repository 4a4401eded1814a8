"""The agent as a service: one life after another, each with the configuration that was in force when it began.

SIGHUP asks for the files to be read again: configuration, baseline, and what TLS needs. All of it is looked at first, beside the
agent that runs. Only when it can be used does that one finish what is under way, as at a stop, and another one begin in the
same process; otherwise it goes on as it was. Both are said in the log (DESIGN 9).
"""

from __future__ import annotations

import asyncio
import gc
import os
from collections.abc import Callable

import structlog

from compliance_agent.adapters.clock import SystemClock
from compliance_agent.adapters.notify import Notify
from compliance_agent.admin.door import Door
from compliance_agent.admin.place import socket_of
from compliance_agent.admin.routes import routes
from compliance_agent.admin.standing import Standing
from compliance_agent.agent import ComplianceAgent
from compliance_agent.baseline import load
from compliance_agent.config import AgentConfig
from compliance_agent.core.versions import older
from compliance_agent.delivery import code_of
from compliance_agent.errors import AgentError, ConfigError, Unavailable
from compliance_agent.log_level import LogLevel
from compliance_agent.logs import configure, where
from compliance_agent.mcp_client import MCPClient
from compliance_agent.watchdog import Watchdog

log = structlog.get_logger()

# Another value of these is another host, or another place for what must not be lost: nothing to change between two cycles.
FIXED = ("client_id", "site_id", "host_id", "state_dir", "evidence_dir", "signing_key_file", "admin_socket")


async def serve(read: Callable[[], AgentConfig], log_level: str | None = None) -> None:
    """Run the agent of this machine until SIGTERM or SIGINT.

    Args:
        read: gives the configuration, anew with each call.
        log_level: in place of the configuration's.

    Raises:
        ConfigError, StorageError: the first life cannot begin, or a later one neither with the new files nor with the former.
    """
    await Service(read, log_level).run()


class Service:
    """The lives of one process, and what stands beside all of them: the service manager, the admin socket, the log level.

    Args:
        read: gives the configuration, anew with each call.
        log_level: in place of the configuration's.
    """

    def __init__(self, read: Callable[[], AgentConfig], log_level: str | None) -> None:
        self._read = read
        self._log_level = log_level
        self._manager = Notify()
        self._level = LogLevel(configure, SystemClock())
        self._reloads: list[asyncio.Future[None]] = []  # who waits for how a reload ends
        self._standing: Standing | None = None
        self._door: Door | None = None

    async def run(self) -> None:
        """As `serve`."""
        config, former = self._read(), None
        ended: ComplianceAgent | None = None
        try:
            while True:
                self._level.use(self._log_level or config.log_level)
                try:
                    agent = ComplianceAgent(config)
                except AgentError as error:
                    if former is None or ended is None:
                        raise
                    _refused(error, ended)
                    config, former = former, None
                    continue
                if ended is not None and former is not None:
                    log.info("config.reloaded", baseline=_baseline_of(agent), former=_baseline_of(ended))
                agent.take_signals(ended)
                follows = await self._life(agent, config)
                if follows is None:
                    return
                config, former, ended = follows, config, agent
        finally:
            self._answer_reloads(Unavailable("the service has ended", code="stopping"))
            if self._door is not None:
                await self._door.close()

    async def _life(self, agent: ComplianceAgent, config: AgentConfig) -> AgentConfig | None:
        """One agent from its start to its end; the configuration of the next one, if there is to be one."""
        follows: AgentConfig | None = None

        async def listen() -> None:
            nonlocal follows
            while True:
                await agent.reload_event.wait()
                agent.reload_event.clear()
                self._manager.reloading()
                try:
                    follows = await asyncio.to_thread(usable, self._read, config, await agent.baseline_held())
                except AgentError as error:
                    _refused(error, agent)
                    self._answer_reloads(error)
                    if agent.progress.looked.is_set():  # otherwise it is still on its way to being ready
                        self._manager.tell(READY="1", STATUS=f"the new files are refused: {code_of(error)}")
                else:
                    self._answer_reloads(None)
                    agent.end()
                    return

        watchdog = Watchdog(agent, self._manager)
        await self._be_asked(agent, watchdog)
        beside = [asyncio.create_task(each) for each in (listen(), watchdog.run(), _settled(agent))]
        try:
            await agent.start()
        finally:
            for task in beside:
                task.cancel()
        return None if agent.signalled else follows

    # The admin socket

    async def _be_asked(self, agent: ComplianceAgent, watchdog: Watchdog) -> None:
        """From now on this life is the one that answers."""
        if self._standing is None:
            self._standing = Standing(agent, watchdog, self._level, self._reload)
        self._standing.agent, self._standing.watchdog = agent, watchdog
        if self._door is None:
            self._door = Door(routes(self._standing), SystemClock())
            await self._door.open(socket_of(agent.config, os.environ))

    async def _reload(self) -> None:
        """Ask for the files to be read again; returns when they are taken.

        Raises:
            AgentError: they are refused.
        """
        if self._standing is None:
            raise Unavailable("no life to reload", code="starting")
        asked = asyncio.get_running_loop().create_future()
        self._reloads.append(asked)
        self._standing.agent.reload_event.set()
        await asked

    def _answer_reloads(self, error: AgentError | None) -> None:
        waiting, self._reloads = self._reloads, []
        for asked in waiting:
            if asked.done():
                continue
            if error is None:
                asked.set_result(None)
            else:
                asked.set_exception(error)


async def _settled(agent: ComplianceAgent) -> None:
    """Once all is loaded that the first cure needs: what there is stays, and no collection walks it again, perhaps in a cure."""
    await agent.rehearsed.wait()
    gc.unfreeze()  # of the life before
    gc.collect()
    gc.freeze()


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


def _refused(error: AgentError, stays: ComplianceAgent) -> None:
    """Say why the new files are not taken, and the version of the baseline that counts on."""
    log.error("config.refused", code=code_of(error), at=where(error), kept=_baseline_of(stays))


def _baseline_of(agent: ComplianceAgent) -> str:
    return str(agent.drift_detector.baseline.version)
