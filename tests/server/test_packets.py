"""Packets that people ask for: built beside the requests, whole, within what the person may see, bounded, and noted."""

from __future__ import annotations

import asyncio
import io
import json
import os
import shutil
import sys
import time
import zipfile
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from compliance_agent.errors import Refusal
from compliance_agent.packet.verify import verify_bytes
from compliance_agent.server import packet_runner
from compliance_agent.server.packet_runner import PacketRunner
from compliance_agent.server.records import Dates, SiteReader, User
from compliance_agent.server.records.packets import PacketJob
from compliance_agent.server.services import packets
from compliance_agent.server.services.packets import KEPT, REMEMBERED, Packets
from tests.server.builder import START, FakeHost, Server, on_sqlite, stamp
from tests.server.tenants import form_token

pytestmark = pytest.mark.anyio
PASSWORD = "correct horse battery"
TODAY = START.date()
SPAN = Dates(TODAY, TODAY)
FORM = {"content-type": "application/x-www-form-urlencoded"}
DIES = "import sys; sys.stdin.read(); sys.exit(1)"
STANDS = 'import sys, time; sys.stdin.read(); print(\'{"stage": "writing", "at": 3, "total": 9}\', flush=True); time.sleep(60)'


def made(host: FakeHost, days: float) -> Any:
    at = stamp(START + timedelta(days=days))
    return host.next(created_at=at, timestamp_start=at, timestamp_end=at)


async def filled(server: Server) -> FakeHost:
    """A host with a record of yesterday, two of today and one of tomorrow, all of them in the log."""
    host = await server.enrolled()
    reply = await server.deliver(host, *(made(host, days) for days in (-1, 0, 0.1, 1)))
    assert reply.status_code == 200, reply.text
    await logged(server)
    return host


async def logged(server: Server) -> None:
    everything = server.services.store.for_sites(await server.services.store.all_sites())
    while await everything.any_pending():
        await server.services.sequencer.round()


async def person(server: Server, name: str = "jo", **limits: Any) -> tuple[User, SiteReader]:
    """A new person who is signed in, with the handle to what the person may see."""
    users = server.services.users
    user = await users.add(name, PASSWORD, **limits)
    server.client.cookies.clear()
    server.client.cookies.set("session", await users.login(name, PASSWORD))
    return user, await users.reader(user)


async def asked(server: Server, **fields: str) -> str:
    """Ask as a browser does; the page that follows."""
    page = await server.client.get("/sites/clinic-1/packets")
    form = "&".join(f"{name}={value}" for name, value in {"form_token": form_token(page.text), **fields}.items())
    reply = await server.client.post("/sites/clinic-1/packets", content=form, headers=FORM)
    assert reply.status_code == 303, reply.text
    return reply.headers["location"]


async def ended(server: Server, user: User, reader: SiteReader, path: str) -> PacketJob:
    until = time.monotonic() + 60
    while (job := await server.services.packets.job(user, reader, path.rpartition("/")[2])).open:
        assert time.monotonic() < until, job
        await asyncio.sleep(0.1)
    return job


async def acts(server: Server) -> list[str]:
    await logged(server)
    reader = server.services.store.for_sites({"clinic-1"})
    [shard] = await reader.shards()
    said = [json.loads(leaf) for leaf in await reader.leaves("clinic-1", shard.year, 0, shard.size)]
    return [one["act"] for one in said if one["kind"] == "act" and one["act"].startswith("packet_")]


async def test_from_the_form_to_both_files(server: Server) -> None:
    """Built in a process of its own, on both databases; what comes out verifies, and each step is in the log."""
    await filled(server)
    user, reader = await person(server)
    path = await asked(server, **{"from": "2026-11-22", "to": "2026-11-22", "control": "", "host": ""})
    job = await ended(server, user, reader, path)
    assert (job.state, job.problems, job.records) == ("done", 0, 4), job
    page = await server.client.get(path)
    assert job.sha256 in page.text and "Ready" in page.text
    raw = await server.client.get(f"{path}/packet.zip")
    assert (len(raw.content), raw.headers["content-type"]) == (job.size, "application/zip")
    report = verify_bytes(raw.content)
    assert report.ok and report.verified == 4, report.problems
    printed = await server.client.get(f"{path}/report.pdf")
    assert printed.content[:5] == b"%PDF-" and len(printed.content) == job.report_size
    assert 'filename="clinic-1-2026-11-22-2026-11-22-report.pdf"' in printed.headers["content-disposition"]
    assert await acts(server) == ["packet_asked", "packet_built", "packet_taken", "packet_taken"]
    for name in ("packet.zip.sig", "..%2fserver.db", "packet.json"):
        assert (await server.client.get(f"{path}/{name}")).status_code == 404
    await person(server, "somebody-else")
    for gone in (path, f"{path}/packet.zip"):
        assert (await server.client.get(gone)).status_code == 404, "a packet is for who asked for it"
    token = form_token((await server.client.get("/sites/clinic-1/packets")).text)
    stolen = await server.client.post(f"{path}/remove", content=f"form_token={token}", headers=FORM)
    assert stolen.status_code == 404 and (await server.services.packets.job(user, reader, job.job_id)).state == "done"


async def test_another_replica_hands_it_out_too(server: Server) -> None:
    """Its data directory has no file of it; one without other replicas keeps nothing twice."""
    await filled(server)
    user, reader = await person(server)
    path = await asked(server)
    job = await ended(server, user, reader, path)
    raw = (await server.client.get(f"{path}/packet.zip")).content
    shutil.rmtree(server.services.settings.data_dir / packet_runner.PACKETS)
    reply = await server.client.get(f"{path}/packet.zip")
    if server.services.settings.database is None:
        assert reply.status_code == 404
    else:
        assert reply.content == raw and len(raw) == job.size


@on_sqlite
async def test_an_auditors_packet_has_the_auditors_days_alone(server: Server) -> None:
    """Not the record before the first day nor the one after the last, which others have; and the page says what that costs."""
    host = await filled(server)
    limits = {"role": "auditor", "sites": frozenset({"clinic-1"}), "dates": SPAN}
    user, reader = await person(server, "auditor", **limits)
    path = await asked(server, **{"from": "2026-11-22", "to": "2026-11-22"})
    job = await ended(server, user, reader, path)
    raw = (await server.client.get(f"{path}/packet.zip")).content
    names = zipfile.ZipFile(io.BytesIO(raw)).namelist()
    days = {name.split("/")[4] for name in names if name.endswith("/bundle.json")}
    assert days == {"22"} and host.host_id in "".join(names)
    assert (job.state, job.problems, job.records) == ("done", 0, 2), verify_bytes(raw).problems
    assert [one.detail[:13] for one in verify_bytes(raw).open_ends] == ["what precedes", "what follows "]
    assert "leaves open" in (await server.client.get(path)).text
    await server.services.users.set_role("auditor", "auditor", dates=Dates(TODAY - timedelta(days=1), TODAY))
    assert (await server.client.get(path)).status_code == 404, "it was built under other dates"


@pytest.fixture
async def desk(server: Server) -> Packets:
    """A desk that the server's own runner does not hear."""
    await filled(server)
    return Packets(server.services.store, server.clock)


def runner(server: Server, desk: Packets, replica: str = "one", code: str = DIES) -> PacketRunner:
    command = (sys.executable, "-c", code)
    services = server.services
    return PacketRunner(services.settings, services.store, desk, replica, alone=True, command=command)


@on_sqlite
@pytest.mark.parametrize(
    ("days", "control", "host", "code"),
    [
        (Dates(TODAY, TODAY - timedelta(days=1)), None, None, "bad_period"),
        (Dates(TODAY - timedelta(days=366), TODAY), None, None, "bad_period"),
        (Dates(TODAY - timedelta(days=1), TODAY), None, None, "outside_dates"),
        (SPAN, "164.999", None, "unknown_control"),
        (SPAN, None, "no-such", "not_found"),
    ],
)
async def test_what_cannot_be_asked(
    server: Server, desk: Packets, days: Dates, control: str | None, host: str | None, code: str
) -> None:
    user = await server.services.users.add(
        "a", PASSWORD, role="auditor", sites=frozenset({"clinic-1"}), dates=Dates(TODAY, TODAY)
    )
    reader = await server.services.users.reader(user)
    if code == "bad_period":
        reader = server.services.store.for_sites({"clinic-1"})
    with pytest.raises(Refusal) as caught:
        await desk.ask(user, reader, "clinic-1", days, control, host)
    assert caught.value.code == code
    with pytest.raises(Refusal) as caught:
        await desk.ask(user, reader, "clinic-2", SPAN, None, None)
    assert caught.value.code == "not_found"


@on_sqlite
async def test_there_are_only_so_many(server: Server, desk: Packets) -> None:
    jo, reader = await person(server)
    first = await desk.ask(jo, reader, "clinic-1", SPAN, None, None)
    assert await desk.ask(jo, reader, "clinic-1", SPAN, None, None) == first, "the same one is not built twice"
    await desk.ask(jo, reader, "clinic-1", SPAN, "164.312(b)", None)
    with pytest.raises(Refusal, match="for you"):
        await desk.ask(jo, reader, "clinic-1", SPAN, None, "ws-01")
    al, _ = await person(server, "al")
    await desk.ask(al, reader, "clinic-1", SPAN, None, None)
    with pytest.raises(Refusal, match="for this site"):
        await desk.ask(al, reader, "clinic-1", SPAN, "164.312(b)", None)
    await desk.remove(jo, reader, first.job_id)
    await desk.ask(al, reader, "clinic-1", SPAN, "164.312(b)", None)


@on_sqlite
async def test_whoever_stops_it_ends_the_process(
    server: Server, desk: Packets, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(packet_runner, "SAY_S", 0.02)
    jo, reader = await person(server)
    job = await desk.ask(jo, reader, "clinic-1", SPAN, None, None)
    pid = tmp_path / "pid"
    code = f"import os; open({str(pid)!r}, 'w').write(str(os.getpid())); {STANDS}"
    turn = asyncio.create_task(runner(server, desk, code=code).turn())
    while (await desk.job(jo, reader, job.job_id)).stage != "writing":
        await asyncio.sleep(0.02)
    there = await desk.job(jo, reader, job.job_id)
    assert (there.at, there.total, there.state) == (3, 9, "running")
    await desk.remove(jo, reader, job.job_id)
    assert await asyncio.wait_for(turn, 10)
    assert (await desk.job(jo, reader, job.job_id)).state == "cancelled"
    with pytest.raises(ProcessLookupError):
        os.kill(int(pid.read_text()), 0)
    assert not (server.services.settings.data_dir / "packets" / job.job_id).exists()
    assert await acts(server) == ["packet_asked", "packet_removed"]


@on_sqlite
async def test_a_process_that_dies_is_said_and_one_whose_server_died_is_begun_again(
    server: Server, desk: Packets
) -> None:
    jo, reader = await person(server)
    job = await desk.ask(jo, reader, "clinic-1", SPAN, None, None)
    one, two = runner(server, desk), runner(server, desk, "two")
    begun = await server.services.store.write(one._take)
    assert begun is not None and (begun.holder, begun.tries) == ("one", 1)
    assert await server.services.store.write(two._take) is None, "it is held"
    server.clock.move(61)
    taken = await server.services.store.write(two._take)
    assert taken is not None and (taken.holder, taken.tries) == ("two", 2)
    assert not await one._going_on(begun, {}), "who was too late writes nothing more"
    assert await two.turn()
    there = await desk.job(jo, reader, job.job_id)
    assert (there.state, there.code) == ("failed", "worker_died")
    assert not await two.turn()


@on_sqlite
async def test_what_dies_again_and_again_is_given_up(server: Server, desk: Packets) -> None:
    jo, reader = await person(server)
    job = await desk.ask(jo, reader, "clinic-1", SPAN, None, None)
    for _ in range(packet_runner.MOST_TRIES):
        assert await server.services.store.write(runner(server, desk)._take) is not None
    assert await server.services.store.write(runner(server, desk)._take) is None
    assert (await desk.job(jo, reader, job.job_id)).state == "failed"


@on_sqlite
async def test_evidence_comes_before_packets_on_the_disk(
    server: Server, desk: Packets, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packet_runner, "SPARE_BYTES", 1 << 60)
    jo, reader = await person(server)
    job = await desk.ask(jo, reader, "clinic-1", SPAN, None, None)
    await runner(server, desk).turn()
    assert (await desk.job(jo, reader, job.job_id)).code == "no_room"


@on_sqlite
async def test_it_is_gone_after_a_day_and_forgotten_after_a_week(
    server: Server, desk: Packets, monkeypatch: pytest.MonkeyPatch
) -> None:
    jo, reader = await person(server)
    job = await desk.ask(jo, reader, "clinic-1", SPAN, None, None)
    done = {"records": 1, "problems": 0, "packet": {"size": 3, "sha256": "ab"}, "report": None}
    said = f"import sys, json; sys.stdin.read(); print(json.dumps({{'done': {done!r}}}))"
    work = runner(server, desk, code=said)
    await work.turn()
    held = await desk.job(jo, reader, job.job_id)
    directory = server.services.settings.data_dir / "packets" / job.job_id
    assert held.state == "done" and directory.is_dir()
    server.clock.move(KEPT.total_seconds() - 1)
    await work.turn()
    assert directory.is_dir()
    server.clock.move(1)
    await work.turn()
    assert (await desk.job(jo, reader, job.job_id)).state == "gone" and not directory.exists()
    server.clock.move(REMEMBERED.total_seconds() + 1)
    await work.turn()
    with pytest.raises(Refusal):
        await desk.job(jo, reader, job.job_id)
    assert packets.subject_of(job) == packets.subject_of(replace(job, state="gone"))
