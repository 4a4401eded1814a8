"""SIGHUP: the files are read again whole; what cannot be used changes nothing, what can begins a new life in the same process."""

from __future__ import annotations

import json
import os
import signal
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from compliance_agent import service
from compliance_agent.agent import ComplianceAgent
from compliance_agent.config import AgentConfig
from compliance_agent.errors import AgentError, ConfigError
from tests.cli.command import configured
from tests.test_agent_process import agent, ended, wait_for

NEWER = 'version: "2"\nchecks:\n  time_sync: {mode: audit, interval_s: 77}\n'


def rewritten(path: Path, content: str) -> None:
    path.write_text(content)
    path.chmod(0o600)


@pytest.mark.parametrize("entry", ["compliance_agent.agent", "compliance_agent run"])
def test_a_host_takes_new_files_without_a_restart(tmp_path: Path, entry: str) -> None:
    path = configured(tmp_path, mcp_poll_interval_sec=3_600)
    with agent(*entry.split(), "--config", str(path)) as process:
        wait_for(process, "cycle.completed")
        rewritten(tmp_path / "baseline.yaml", NEWER)
        process.send_signal(signal.SIGHUP)
        lines = wait_for(process, "cycle.completed")  # at once, not at the next tick, an hour away
        status, _, err = ended(process, signal.SIGTERM)
    seen = "".join(lines).replace(" ", "")
    assert '"version":"2"' in seen
    assert '"baseline":"2"' in seen and '"former":"1"' in seen
    assert seen.index('"agent.stopped"') < seen.index('"baseline.adopted"') < seen.index('"config.reloaded"')
    assert (status, "Traceback" in seen + err) == (0, False)


@pytest.mark.parametrize(
    ("file", "content", "code"),
    [
        ("baseline.yaml", 'version: "0"\nchecks:\n  time_sync: {mode: audit}\n', "baseline_older"),
        ("baseline.yaml", 'version: "2"\nchecks:\n  no_such_check: {}\n', "bad_config"),
        ("agent.yaml", "nonsense", "bad_config"),
        ("agent.yaml", None, "needs_restart"),
    ],
)
def test_files_that_cannot_be_used_change_nothing(tmp_path: Path, file: str, content: str | None, code: str) -> None:
    path = configured(tmp_path)
    text = content if content is not None else path.read_text().replace("srv-1", "srv-2")
    with agent("compliance_agent.agent", "--config", str(path)) as process:
        wait_for(process, "cycle.completed")
        before = (tmp_path / file).read_text()
        rewritten(tmp_path / file, text)
        process.send_signal(signal.SIGHUP)
        said = json.loads(wait_for(process, "config.refused")[-1])
        assert (said["code"], said["kept"]) == (code, "1")
        rewritten(tmp_path / file, before)
        process.send_signal(signal.SIGHUP)  # it is still there, and hears the next one
        seen = "".join(wait_for(process, "cycle.completed"))
        status, _, err = ended(process, signal.SIGTERM)
    assert '"config.reloaded"' in seen
    assert (status, "Traceback" in seen + err) == (0, False)


@pytest.mark.parametrize(
    ("changed", "code"),
    [(f"{name}: other\n", "needs_restart") for name in service.FIXED]
    + [("mcp_url: https://127.0.0.1:1\nmcp_ca_file: nowhere\n", "bad_config"), ("log_level: LOUD\n", "bad_config")],
)
def test_everything_is_looked_at_before_anything_ends(tmp_path: Path, changed: str, code: str) -> None:
    path = configured(tmp_path)
    present = AgentConfig.from_file(path)
    name = changed.split(":", maxsplit=1)[0]
    kept = [line for line in path.read_text().splitlines(keepends=True) if not line.startswith(f"{name}:")]
    rewritten(path, "".join([*kept, changed]))
    with pytest.raises(AgentError) as caught:
        service.usable(lambda: AgentConfig.from_file(path), present, "1")
    assert caught.value.code == code


def test_what_may_change_is_taken(tmp_path: Path) -> None:
    path = configured(tmp_path)
    present = AgentConfig.from_file(path)
    configured(tmp_path, mcp_poll_interval_sec=120, baseline=NEWER)
    follows = service.usable(lambda: AgentConfig.from_file(path), present, "1")
    assert (present.mcp_poll_interval_sec, follows.mcp_poll_interval_sec) == (60, 120)


class Lives:
    """Stands for the agent: lives that are told what to ask for while they run, and one that cannot begin."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *acts: Callable[[], None] | AgentError) -> None:
        self.acts: list[Callable[[], None] | AgentError] = list(acts)
        self.configs: list[int] = []
        lives = self

        class Agent(ComplianceAgent):
            def __init__(self, config: AgentConfig) -> None:
                lives.configs.append(config.mcp_poll_interval_sec)
                act = lives.acts.pop(0)
                if isinstance(act, AgentError):
                    raise act
                super().__init__(config)
                self.once = [act]
                if lives.made is not None and len(lives.configs) == 2:
                    lives.made()

            async def _run_iteration(self) -> None:
                while self.once:
                    self.once.pop()()

        self.made: Callable[[], None] | None = None  # what is done when the second one has just been made
        monkeypatch.setattr(service, "ComplianceAgent", Agent)


def hang_up() -> None:
    os.kill(os.getpid(), signal.SIGHUP)


def terminate() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


@pytest.fixture
def signals_given_back(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What is one for the whole process is as it was: who takes signals, and where the log goes."""
    monkeypatch.setattr(service, "configure", lambda _level: None)
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.anyio
@pytest.mark.usefixtures("signals_given_back")
async def test_one_that_cannot_begin_gives_way_to_the_former(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = configured(tmp_path, mcp_poll_interval_sec=61)
    intervals = iter([61, 62, 63])

    def read() -> AgentConfig:
        return AgentConfig.from_file(configured(tmp_path, mcp_poll_interval_sec=next(intervals)))

    lives = Lives(monkeypatch, hang_up, ConfigError("planted"), terminate)
    await service.serve(read)
    assert lives.configs == [61, 62, 61]
    assert path.exists()


@pytest.mark.anyio
@pytest.mark.usefixtures("signals_given_back")
async def test_the_first_life_that_cannot_begin_is_a_loud_stop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Lives(monkeypatch, ConfigError("planted"))
    with pytest.raises(ConfigError):
        await service.serve(lambda: AgentConfig.from_file(configured(tmp_path)))


@pytest.mark.anyio
@pytest.mark.usefixtures("signals_given_back")
async def test_a_stop_that_is_asked_for_while_the_next_one_is_made_is_heard(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The signal finds the handler of the one before."""
    lives = Lives(monkeypatch, hang_up, lambda: pytest.fail("the second one must not come to a cycle"))
    lives.made = terminate
    await service.serve(lambda: AgentConfig.from_file(configured(tmp_path)))
    assert len(lives.configs) == 2


def told(manager: socket.socket, *wanted: str) -> list[dict[str, str]]:
    """What the service manager was told, up to a datagram with one of these names."""
    seen: list[dict[str, str]] = []
    while True:
        seen.append(dict(line.split("=", 1) for line in manager.recv(4_096).decode().split("\n")))
        if seen[-1].keys() & set(wanted):
            return seen


def test_the_service_manager_is_told_the_whole_life(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """READY after the first look, a refused reload and one that is taken, the watchdog in between, STOPPING at the end."""
    path = configured(tmp_path)
    address = f"@agent-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind("\0" + address[1:])
        manager.settimeout(20)
        monkeypatch.setenv("NOTIFY_SOCKET", address)
        monkeypatch.setenv("WATCHDOG_USEC", "1500000")
        with agent("compliance_agent", "run", "--config", str(path)) as process:
            first = told(manager, "READY")
            assert "1 checks" in first[-1]["STATUS"]
            assert all("WATCHDOG" in each for each in first)
            assert told(manager, "WATCHDOG")[-1]["WATCHDOG"] == "1"
            rewritten(tmp_path / "agent.yaml", path.read_text() + "nonsense: 1\n")
            process.send_signal(signal.SIGHUP)
            assert int(told(manager, "RELOADING")[-1]["MONOTONIC_USEC"]) > 0
            assert told(manager, "READY")[-1]["STATUS"] == "the new files are refused: bad_config"
            rewritten(tmp_path / "agent.yaml", path.read_text().replace("nonsense: 1\n", ""))
            process.send_signal(signal.SIGHUP)
            _ = told(manager, "RELOADING")
            after = told(manager, "READY")
            assert not any("STOPPING" in each for each in after)
            status, _, err = ended(process, signal.SIGTERM)
            assert told(manager, "STOPPING")
    assert (status, "Traceback" in err) == (0, False)
