"""`compliance-agent keys`, as a person runs it: this host's keys, a whole site's from its log, and a new key."""

from __future__ import annotations

import asyncio
import json
import re
import shutil
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from compliance_agent.crypto import Ed25519Signer
from compliance_agent.entries.leaf import key_leaf
from tests.agent_scene import Scene
from tests.cli.command import Ended, configured, run
from tests.evidence.world import LOG, ORIGIN, RECORDS, World
from tests.server.builder import FakeHost, Hands, serving
from tests.server.test_sequencer import settled


def put(root: Path, world: World) -> Path:
    for path, content in world.served().items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(content)
    return root


def test_the_hosts_own_keys_before_and_after_a_rotation(tmp_path: Path) -> None:
    scene = Scene(tmp_path)

    async def rotated() -> str:
        agent = scene.agent()
        old: str = agent.signer.key_id
        bundle = await agent.evidence_generator.create_evidence("", None, kind="heartbeat", counts={"pending": 0})
        await agent.evidence_generator.store_evidence(bundle)
        await agent.delivery.turn()
        assert (await agent.key_rotation.rotate()).code == "rotated"
        await agent.close()
        return old

    old = asyncio.run(rotated())
    new = Ed25519Signer(scene.config.signing_key_file).key_id
    ended = run("keys", "list", "--json", "--config", configured(tmp_path))
    shown = [(key["key_id"], key["until"] is None) for key in json.loads(ended.out)["keys"]]
    assert ended.status == 0
    assert shown == [(old, False), (new, True)]
    table = run("keys", "list", "--config", configured(tmp_path))
    assert table.out.index(old) < table.out.index(new)


def test_a_host_that_never_signed_has_none(tmp_path: Path) -> None:
    refused = run("keys", "list", "--config", configured(tmp_path))
    assert refused.status == 66
    assert "no agent has run here yet" in refused.err


def test_every_key_of_a_site_is_told_from_its_log(tmp_path: Path) -> None:
    world = World.live()
    spare = FakeHost("ws-02")
    world.entries.append(key_leaf("enrol", spare.key_id, spare.public, "2026-11-22T09:00:00Z"))
    root = put(tmp_path / "log", world)
    ended = run("keys", "list", "--json", "--log", root, "--log-key", str(LOG.key))
    keys = {key["key_id"]: key for key in json.loads(ended.out)["keys"]}
    assert ended.status == 0, ended.err
    assert set(keys) == {world.host.key_id, spare.key_id}
    mine, other = keys[world.host.key_id], keys[spare.key_id]
    assert (mine["origin"], mine["event"], mine["index"], mine["records"]) == (ORIGIN, "enrol", 1, RECORDS)
    assert (other["index"], other["at"], other["records"]) == (len(world.entries) - 1, "2026-11-22T09:00:00Z", 0)


def test_a_log_that_does_not_verify_is_no_source_of_keys(tmp_path: Path) -> None:
    root = put(tmp_path / "log", World.live())
    (entries,) = (path for path in root.rglob("tile/entries/**/*") if path.is_file())
    damaged = bytearray(entries.read_bytes())
    damaged[40] ^= 1
    entries.write_bytes(damaged)
    ended = run("keys", "list", "--log", root, "--log-key", str(LOG.key))
    assert ended.status == 65
    assert ended.err


@pytest.fixture(scope="module")
def years(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A server's data over two New Years: ws-01 enrols in 2026, ws-02 in 2027, and ws-01 is revoked in 2028."""
    directory: Path = tmp_path_factory.mktemp("years") / "server"

    async def live() -> None:
        clock = Hands(datetime(2026, 12, 31, 12, tzinfo=UTC))
        async with serving(directory, clock=clock) as server:
            first = await server.enrolled()
            await server.deliver(first, first.next())
            await settled(server)
            clock.move(2 * 86_400)
            second = await server.enrolled("ws-02")
            await server.deliver(first, first.next())
            await settled(server)
            clock.move(366 * 86_400)
            await server.deliver(second, second.next())
            await server.services.enrolment.revoke("clinic-1", first.key_id, actor="operator")
            await settled(server)

    asyncio.run(live())
    return directory


def listed(data: Path, *more: str) -> Ended:
    """By the directory of the site, under the key of one year."""
    return run(
        "keys", "list", "--log", data / "log" / "clinic-1", "--log-key", data / "keys" / "clinic-1-2026.vkey", *more
    )


def test_every_year_of_a_directory_is_read(years: Path) -> None:
    ended = listed(years, "--json")
    said = json.loads(ended.out)
    assert (ended.status, said["problems"]) == (0, []), ended.err
    found = [(row["origin"].rpartition("/")[2], row["event"], row["records"]) for row in said["keys"]]
    assert sorted(found) == [
        ("2026", "enrol", 1), ("2027", "enrol", 0), ("2027", "in_an_earlier_log", 1),
        ("2028", "in_an_earlier_log", 1), ("2028", "revoke", 0),
    ]  # fmt: skip
    assert {"2026", "2027", "2028"} <= set(re.findall(r"clinic-1/(20\d\d)", listed(years).out))
    alone = run(
        "keys", "list", "--json", "--log", years / "log/clinic-1/2027", "--log-key", years / "keys/clinic-1-2026.vkey"
    )
    assert len(json.loads(alone.out)["keys"]) == 2


@pytest.mark.parametrize(
    ("fault", "year"),
    [
        (lambda site: shutil.rmtree(site / "2027"), "2027"),  # in the middle
        (lambda site: shutil.rmtree(site / "2026"), "2026"),
        (
            lambda site: (site / "2029").mkdir() or shutil.copytree(site / "2028", site / "2030"),
            "",
        ),  # twice, under another name
    ],
)
def test_a_year_that_is_not_there_is_named(
    years: Path, tmp_path: Path, fault: Callable[[Path], Any], year: str
) -> None:
    data = tmp_path / "server"
    shutil.copytree(years, data)
    fault(data / "log" / "clinic-1")
    ended = listed(data, "--json")
    problems = json.loads(ended.out)["problems"]
    assert ended.status == 65
    assert any(item["code"] == "wrong_checkpoint" and f"/{year}" in item["where"] for item in problems), problems


def test_a_year_that_nobody_binds_is_named(years: Path, tmp_path: Path) -> None:
    """A log of the year before that the server signed, and that is not the one it went on from."""
    other, data = tmp_path / "other", tmp_path / "server"
    shutil.copytree(years, data)

    async def live() -> None:
        other.mkdir(mode=0o700)
        shutil.copytree(years / "keys", other / "keys")
        async with serving(other, clock=Hands(datetime(2026, 12, 31, 12, tzinfo=UTC))) as server:
            stranger = await server.enrolled("ws-09")
            await server.deliver(stranger, *(stranger.next() for _ in range(3)))
            await settled(server)

    asyncio.run(live())
    shutil.rmtree(data / "log/clinic-1/2026")
    shutil.copytree(other / "log/clinic-1/2026", data / "log/clinic-1/2026")
    ended = listed(data, "--json")
    assert ended.status == 65
    assert {item["code"] for item in json.loads(ended.out)["problems"]} == {"log_forked"}


def test_a_directory_without_a_log_is_said(tmp_path: Path) -> None:
    refused = run("keys", "list", "--log", tmp_path, "--log-key", str(LOG.key))
    assert refused.status == 66
    assert "no log in it" in refused.err


def test_a_log_without_its_key_shows_nothing(tmp_path: Path) -> None:
    refused = run("keys", "list", "--log", tmp_path)
    assert refused.status == 2
    assert "--log-key" in refused.err


def test_a_host_without_a_server_cannot_rotate(tmp_path: Path) -> None:
    refused = run("keys", "rotate", "--config", configured(tmp_path))
    assert refused.status == 69
    assert "keys: " in refused.line
