"""What the server says about how long records are kept: by their baseline versions, and with holds."""

from __future__ import annotations

import json
import sqlite3
import uuid
from contextlib import closing
from datetime import timedelta
from pathlib import Path

import pytest

from compliance_agent.errors import AgentError
from compliance_agent.server.store import SqlStore
from tests.server.builder import ZEROS, FakeHost, Server, Signed, serving, unrevised, unwalled
from tests.server.test_process import command

pytestmark = pytest.mark.anyio
INDEXES = "SELECT name FROM sqlite_master WHERE type = 'index' AND tbl_name = 'bundles' ORDER BY name"
DAY_S = 86_400


def naming(host: FakeHost, version: str) -> Signed:
    return host.next(baseline={"version": version, "sha256": ZEROS})


async def due(server: Server, bundle: Signed) -> tuple[str, bool, list[str]]:
    """What the API says of a record."""
    headers = await server.operator(f"op-{uuid.uuid4().hex[:12]}")
    reply = await server.client.get(f"/api/v1/bundles/{bundle.document['bundle_id']}", headers=headers)
    assert reply.status_code == 200, reply.text
    said = reply.json()["retention"]
    return said["retain_until"], said["in_effect"], said["holds"]


async def test_a_version_lives_on_after_it_was_replaced(server: Server) -> None:
    """Both hosts began with version 1; one replaced it after ten days, and each keeps its records by its own last day."""
    one, two = await server.enrolled(), await server.enrolled("ws-02")
    first, other = naming(one, "1"), naming(two, "1")
    await server.deliver(one, first)
    await server.deliver(two, other)
    assert await due(server, first) == ("2032-11-22", True, [])
    server.clock.move(10 * DAY_S)
    last, new = naming(one, "1"), naming(one, "2")
    await server.deliver(one, last, new)
    await server.checkin(one, baseline={"version": "2", "sha256": ZEROS})
    server.clock.move(5 * DAY_S)
    await server.deliver(one, later := naming(one, "2"))
    assert await due(server, first) == await due(server, last) == ("2032-12-02", False, [])
    assert await due(server, new) == await due(server, later) == ("2032-12-07", True, [])
    assert await due(server, other) == ("2032-11-22", True, [])


async def test_a_revoked_host_has_nothing_in_effect_and_a_new_one_of_its_label_goes_on(server: Server) -> None:
    host = await server.enrolled()
    await server.deliver(host, first := naming(host, "1"))
    await server.services.enrolment.revoke("clinic-1", host.key_id, actor="operator")
    assert await due(server, first) == ("2032-11-22", False, [])
    server.clock.move(40 * DAY_S)
    again = await server.enrolled()
    await server.deliver(again, naming(again, "1"))
    assert await due(server, first) == ("2033-01-01", True, [])


async def test_a_record_without_a_baseline_counts_from_its_own_day(server: Server) -> None:
    host = await server.enrolled()
    await server.deliver(host, plain := host.next(baseline=None))
    assert await due(server, plain) == ("2032-11-22", False, [])


async def test_holds_are_made_shown_and_released(server: Server) -> None:
    host, other = await server.enrolled(), await server.enrolled("ws-02")
    holds = server.services.holds
    await server.deliver(host, mine := host.next())
    await server.deliver(other, theirs := other.next())
    await holds.add("clinic-1", None, "case-1")
    await holds.add("clinic-1", "ws-01", "case-2")
    assert (await due(server, mine))[2] == ["case-1", "case-2"]
    assert (await due(server, theirs))[2] == ["case-1"]
    await holds.release("clinic-1", None, "case-1")
    assert (await due(server, mine))[2] == ["case-2"]
    assert (await due(server, theirs))[2] == []
    await holds.add("clinic-1", None, "case-1")  # the same matter, again
    assert [hold.released_at is None for hold in await holds.of("clinic-1")] == [False, True, True]
    said = "SELECT action, site_id, subject FROM audit WHERE action LIKE 'hold_%' ORDER BY number"
    assert await server.by_hand(said) == [
        ("hold_added", "clinic-1", "*:case-1"),
        ("hold_added", "clinic-1", "ws-01:case-2"),
        ("hold_released", "clinic-1", "*:case-1"),
        ("hold_added", "clinic-1", "*:case-1"),
    ]


@pytest.mark.parametrize(
    ("site", "host", "reason", "code"),
    [
        ("clinic-1", None, "about Mr. Smith", "bad_reason"),
        ("clinic-1", None, "", "bad_reason"),
        ("clinic-1", None, "x" * 64, "bad_reason"),
        ("clinic-9", None, "case-1", "no_input"),
        ("clinic-1", "ws-09", "case-1", "no_input"),
        ("clinic-1", None, "standing", "hold_stands"),
    ],
)
async def test_a_hold_that_is_none_is_refused(
    server: Server, site: str, host: str | None, reason: str, code: str
) -> None:
    await server.enrolled()
    await server.services.holds.add("clinic-1", None, "standing")
    with pytest.raises(AgentError) as caught:
        await server.services.holds.add(site, host, reason)
    assert caught.value.code == code
    with pytest.raises(AgentError):
        await server.services.holds.release("clinic-1", "ws-01", "standing")
    assert len(await server.services.holds.of()) == 1


async def test_the_commands(tmp_path: Path) -> None:
    async with serving(tmp_path / "data") as server:
        await server.enrolled()
    here = ("--data-dir", str(tmp_path / "data"))
    made = command("server", "retention", "hold", "add", "--site", "clinic-1", "--reason-id", "case-1", *here)
    assert (made.returncode, made.stdout) == (0, "") and "case-1 on clinic-1/* stands" in made.stderr
    [found] = json.loads(command("server", "retention", "hold", "list", "--json", *here).stdout)["holds"]
    assert (found["site_id"], found["host_id"], found["released_at"]) == ("clinic-1", None, None)
    done = command("server", "retention", "hold", "release", "--site", "clinic-1", "--reason-id", "case-1", *here)
    assert done.returncode == 0
    table = command("server", "retention", "hold", "list", *here).stdout.splitlines()
    assert table[1].split()[:3] == ["clinic-1", "*", "case-1"] and "stands" not in table[1]
    assert command("server", "retention", "hold", "list", "--data-dir", str(tmp_path / "none")).returncode == 66


async def test_an_older_database_learns_it_from_its_records(tmp_path: Path) -> None:
    async with serving(tmp_path / "data") as server:
        host = await server.enrolled()
        await server.deliver(host, naming(host, "1"), host.next(baseline=None))
        server.clock.move(timedelta(days=9).total_seconds())
        await server.deliver(host, naming(host, "1"), naming(host, "2"))
    path = tmp_path / "data" / "server.db"
    uses = "SELECT site_id, host_id, version, last_on FROM baseline_uses ORDER BY version"
    expected = [("clinic-1", "ws-01", "1", "2026-12-01"), ("clinic-1", "ws-01", "2", "2026-12-01")]
    with closing(sqlite3.connect(path)) as database, database:
        assert database.execute(uses).fetchall() == expected
        unwalled(database)
        for table in ("baseline_uses", "holds", "pruned_logs", "prune_guards", "prune_never"):
            database.execute(f"DROP TABLE {table}")
        indexes = database.execute(INDEXES).fetchall()
        database.execute("CREATE INDEX ix_bundles_bundle_id ON bundles (bundle_id)")  # as version 2 had them
        database.execute("CREATE INDEX ix_bundles_key_number ON bundles (key_id, number)")
        unrevised(database, "2")
    await (await SqlStore.open(path)).close()
    with closing(sqlite3.connect(path)) as database:
        assert database.execute(uses).fetchall() == expected
        assert database.execute(INDEXES).fetchall() == indexes
        assert database.execute("SELECT count(*) FROM audit WHERE action = 'wall.mended'").fetchone() == (0,)
