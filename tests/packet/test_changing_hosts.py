"""Hosts come and go and change their keys, and a packet of any day is still whole: it concerns the keys of its period."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from datetime import date, timedelta
from pathlib import Path

import pytest
from nacl.signing import SigningKey

from compliance_agent.evidence.chains import Tagger
from compliance_agent.packet import archive
from compliance_agent.packet.content import Scope
from compliance_agent.packet.logbook import chain_problems, open_head, open_log
from tests.packet.scene import DAY, SITE, Files, _day, built
from tests.server.builder import START, Hands, serving
from tests.server.test_rotation import goes_on, rotate

BEFORE, AFTER = DAY - timedelta(days=1), DAY + timedelta(days=1)


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of three days: on the first ws-02 is revoked and ws-03 changes its key, on the third ws-04 is enrolled."""
    directory: Path = tmp_path_factory.mktemp("changing")
    asyncio.run(_live(directory))
    return directory


async def _live(directory: Path) -> None:
    clock = Hands(START - timedelta(days=1))
    async with serving(directory, clock=clock) as server:
        hosts = [await server.enrolled(name, SITE) for name in ("ws-01", "ws-02", "ws-03")]
        for host in hosts:
            await _day(server, host, clock, 0)
        clock.move(3_600)
        await server.services.enrolment.revoke(SITE, hosts[1].key_id, actor="operator")
        hosts[2].now, new = clock(), SigningKey.generate()
        assert (await rotate(server, hosts[2], new)).status_code == 200
        hosts = [hosts[0], goes_on(hosts[2], new)]
        for _ in range(2):
            clock.move(86_400)
            if clock() > START + timedelta(days=1):
                hosts.append(await server.enrolled("ws-04", SITE))
            for host in hosts:
                await _day(server, host, clock, 0)


def packet(data_dir: Path, out: Path, since: date, until: date, control: str | None = None) -> tuple[Scope, Files]:
    made = built(data_dir, out / "packet.zip", since, until, control=control)
    assert made.report.ok, made.report.problems
    return made.scope, archive.unpack(made.path.read_bytes())


@pytest.mark.parametrize("control", [None, "164.312(b)"])
@pytest.mark.parametrize(
    ("since", "until", "labels"),
    [(BEFORE, BEFORE, ["ws-01", "ws-02", "ws-03", "ws-03"]), (DAY, DAY, ["ws-01", "ws-03"]),
     (AFTER, AFTER, ["ws-01", "ws-03", "ws-04"]), (DAY, AFTER, ["ws-01", "ws-03", "ws-04"]),
     (BEFORE, AFTER, ["ws-01", "ws-02", "ws-03", "ws-03", "ws-04"])],
    ids=["first day", "second day", "third day", "last two", "all"],
)  # fmt: skip
def test_it_verifies_and_holds_the_keys_of_its_period(
    data_dir: Path, tmp_path: Path, since: date, until: date, labels: list[str], control: str | None
) -> None:
    scope, files = packet(data_dir, tmp_path, since, until, control)
    assert [host.host_id for host in scope.hosts] == labels
    assert {path.split("/")[1] for path in files if path.startswith("evidence/")} == set(labels)
    assert {f"keys/{host.key_id}.pem" for host in scope.hosts} < files.keys()


def missing(scope: Scope, files: Files, left_out: str) -> bool:
    """Whether a packet that says nothing of this key is found out."""
    head = open_head(files, files["policy"], sum(map(len, files.values())), [])
    assert head is not None
    log = open_log(files, head, Tagger(), [])
    poorer = replace(scope, hosts=tuple(host for host in scope.hosts if host.key_id != left_out))
    return ("missing_host", left_out) in {(found.code, found.where) for found in chain_problems(poorer, log)}


def test_each_key_of_the_period_is_missed_when_it_is_left_out(data_dir: Path, tmp_path: Path) -> None:
    """So the former key is missed on its last day, and it is not the rule that has gone."""
    for since, until in ((BEFORE, BEFORE), (DAY, DAY), (BEFORE, AFTER)):
        scope, files = packet(data_dir, tmp_path, since, until)
        assert all(missing(scope, files, host.key_id) for host in scope.hosts)


def test_the_former_key_is_not_of_the_days_after(data_dir: Path, tmp_path: Path) -> None:
    first, _ = packet(data_dir, tmp_path, BEFORE, BEFORE)
    second, files = packet(data_dir, tmp_path, DAY, DAY)
    gone = {host.key_id for host in first.hosts} - {host.key_id for host in second.hosts}
    assert len(gone) == 2
    assert not any(missing(second, files, key) for key in gone)
