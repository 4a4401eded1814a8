"""What the loop keeps over a restart: here, the baseline that a host is held to, which never goes back."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from compliance_agent.adapters.agent_state import AgentState
from compliance_agent.adapters.database import Database
from compliance_agent.adapters.open_databases import release, shared
from compliance_agent.agent import ComplianceAgent
from compliance_agent.config import AgentConfig
from compliance_agent.errors import ConfigError
from compliance_agent.models import STATS

NOW = datetime(2026, 11, 28, 6, 0, tzinfo=UTC)
ONE, OTHER = "a" * 64, "b" * 64


@pytest.fixture
def state(tmp_path: Path) -> Iterator[AgentState]:
    database = shared(tmp_path / "agent.db")
    yield AgentState(database)
    release(database)


def test_a_baseline_is_adopted_once_and_a_newer_one_after_it(state: AgentState) -> None:
    assert state.adopt_baseline("2026.11.9", ONE, NOW)
    assert not state.adopt_baseline("2026.11.9", ONE, NOW)
    assert state.adopt_baseline("2026.11.10", OTHER, NOW)


def test_an_older_one_is_refused_whatever_it_holds(state: AgentState) -> None:
    state.adopt_baseline("2026.11.10", ONE, NOW)
    for digest in (ONE, OTHER):
        with pytest.raises(
            ConfigError, match=r"older than 2026.11.10, which this host is held to since 2026-11-28"
        ) as refused:
            state.adopt_baseline("2026.11.9", digest, NOW)
        assert (refused.value.code, refused.value.exit_status) == ("baseline_older", 78)
    assert not state.adopt_baseline("2026.11.10", ONE, NOW), "the refusal changed nothing"


def test_the_same_version_with_other_bytes_is_another_baseline(state: AgentState) -> None:
    state.adopt_baseline("1", ONE, NOW)
    assert state.adopt_baseline("1", OTHER, NOW)


def test_an_agent_does_not_start_with_an_older_baseline_after_a_restart(tmp_path: Path) -> None:
    baseline = tmp_path / "baseline.yaml"

    def agent(version: str) -> ComplianceAgent:
        baseline.write_text(f'version: "{version}"\nchecks:\n  time_sync: {{mode: audit}}\n')
        baseline.chmod(0o600)
        state_dir = tmp_path / "state"
        return ComplianceAgent(
            AgentConfig(client_id="m", site_id="c", host_id="h", state_dir=state_dir, baseline_path=baseline)
        )

    async def run(version: str) -> None:
        await agent(version).close()

    asyncio.run(run("2"))
    with pytest.raises(ConfigError, match="older than 2"):
        asyncio.run(run("1"))
    asyncio.run(run("2"))


def test_counts_cost_no_sync_of_their_own_and_records_keep_theirs(tmp_path: Path) -> None:
    """The level goes back after each lazy write, one that failed too: what comes after it is durable when it returns."""
    database = Database(tmp_path / "agent.db", threaded=False, reserve_kb=0)
    state = AgentState(database)

    def level(connection: sqlite3.Connection) -> int:
        return int(connection.execute("PRAGMA synchronous").fetchone()[0])

    full = database.read(level)
    assert full == 2
    seen: list[int] = []
    database.write_lazily(lambda connection: seen.append(level(connection)))
    database.write(lambda connection: seen.append(level(connection)))
    with pytest.raises(ZeroDivisionError):
        database.write_lazily(lambda _: 1 // 0)
    assert (seen, database.read(level)) == ([1, full], full)
    state.save_statistics(dict.fromkeys(STATS, 3), {("verdicts", "time_sync:pass"): 7})
    state.save_statistics(dict.fromkeys(STATS, 4), {("verdicts", "time_sync:pass"): 8, ("cycles", ""): 1})
    database.close()
    again = AgentState(Database(tmp_path / "agent.db", threaded=False, reserve_kb=0))
    assert again.statistics() == dict.fromkeys(STATS, 4)
    assert again.counts() == {("verdicts", "time_sync:pass"): 8, ("cycles", ""): 1}
    again.database.close()


async def test_when_something_was_last_done_is_read_once_and_anew_where_the_database_is_another(
    tmp_path: Path,
) -> None:
    database = shared(tmp_path / "agent.db")
    state, asked = AgentState(database), list[str]()
    read = state.moment

    def counted(name: str) -> datetime | None:
        asked.append(name)
        return read(name)

    state.moment = counted  # type: ignore[method-assign]
    try:
        assert [await state.last("key") for _ in range(2)] == [None, None]
        state.set_moment("key", NOW)
        assert await state.last("key") == NOW
        assert asked == ["key"]
        database.disown()
        assert await state.last("key") is None
        assert asked == ["key", "key"]
    finally:
        release(database)


async def test_what_is_noted_is_known_at_once_and_kept_with_the_statistics(tmp_path: Path) -> None:
    database = shared(tmp_path / "agent.db")
    state = AgentState(database)
    state.note_moment("heartbeat", NOW)
    assert await state.last("heartbeat") == NOW
    release(database)
    database = shared(tmp_path / "agent.db")
    state = AgentState(database)
    assert await state.last("heartbeat") is None
    state.note_moment("heartbeat", NOW)
    state.save_statistics(dict.fromkeys(STATS, 0), {})
    release(database)
    database = shared(tmp_path / "agent.db")
    assert await AgentState(database).last("heartbeat") == NOW
    release(database)
