"""A sample that the server draws is the one that anybody draws from the packet; an auditor's dates and sites bound it."""

from __future__ import annotations

from datetime import date, timedelta
from pathlib import Path
from typing import Any

import pytest

from compliance_agent.errors import Refusal
from compliance_agent.packet.build import build
from compliance_agent.packet.sample import Asked, Instance, Sample, span_of
from compliance_agent.server.records import Dates
from tests.server.builder import START, FakeHost, Server, on_sqlite, stamp
from tests.server.test_packets import logged

pytestmark = pytest.mark.anyio
TODAY = START.date()
CONTROL = "164.312(b)"


@pytest.fixture
async def month(server: Server) -> tuple[FakeHost, FakeHost]:
    """Ten days of two hosts, one of which says nothing on some, and nothing about the section on one."""
    one, other = await server.enrolled("ws-01"), await server.enrolled("ws-02")
    for at in range(10):
        for host in (one, other):
            host.now = server.clock()
            if host is one or at not in {3, 4, 8}:
                about: dict[str, Any] = {"check": "firewall", "hipaa_controls": [], "pre_state": {}} if at == 6 else {}
                await server.deliver(
                    host, *([host.next(**about)] if host is other else [host.heartbeat(time_sync="pass")])
                )
        server.clock.move(86_400)
    return one, other


async def drawn(server: Server, size: int | None = None, dates: Dates | None = None, **more: Any) -> Sample:
    values = {
        "control": CONTROL,
        "hosts": (),
        "days": span_of(TODAY, TODAY + timedelta(days=9)),
        "number": 100,
        "seed": "s",
        **more,
    }
    services = server.services
    await logged(server)
    reader = services.store.for_sites({"clinic-1"}, dates)
    return await services.sampling(reader).sample(Asked("clinic-1", **values), size)


async def from_packet(server: Server, out: Path, asked: Asked, size: int) -> dict[str, Any]:
    from compliance_agent.cli.packet_sample import _pulled

    data = server.services.settings.data_dir
    built = await build(data, "clinic-1", asked.days[0], asked.days[-1], out, control=asked.control)
    assert built.report.ok
    return _pulled(out, built.scope, asked, size).as_document()


@on_sqlite  # a packet is built from the data directory
@pytest.mark.parametrize("size", [None, 9])
async def test_the_packet_gives_the_same(
    server: Server, month: tuple[FakeHost, FakeHost], tmp_path: Path, size: int | None
) -> None:
    here = await drawn(server, size, number=7)
    assert (here.log.size == size) is (size is not None)
    there = await from_packet(server, tmp_path / "packet.zip", here.asked, here.log.size)
    ours = here.as_document()
    for document in (ours, there):  # a packet begins with its first day, so that it can offer less
        for one in document["instances"]:
            one.pop("earlier")
    assert ours == there


async def test_what_is_missing_is_said_and_earlier_days_are_offered(
    server: Server, month: tuple[FakeHost, FakeHost]
) -> None:
    days = (TODAY + timedelta(days=3), TODAY + timedelta(days=4), TODAY + timedelta(days=6))
    found = await drawn(server, hosts=("ws-02",), days=days)
    assert (len(found.pulled), found.missing) == (3, 3)
    offered = {one.instance.day: [item.day for item in one.earlier] for one in found.pulled}
    before = [TODAY + timedelta(days=at) for at in (2, 1, 0)]
    assert offered[days[0]] == offered[days[1]] == before
    assert offered[days[2]] == [TODAY + timedelta(days=5), *before[:2]], "of the sixth day it said something else alone"
    assert all(item.index < found.log.size for one in found.pulled for item in one.earlier)


async def test_a_record_that_the_log_did_not_hold_is_named_as_such(
    server: Server, month: tuple[FakeHost, FakeHost]
) -> None:
    last = TODAY + timedelta(days=9)
    then = await drawn(server, 6, hosts=("ws-01",), days=(last,))
    assert (then.missing, then.pulled[0].unsealed.pending) == (1, 1)
    assert (await drawn(server, hosts=("ws-01",), days=(last,))).missing == 0


async def test_a_cure_across_midnight_is_of_the_day_on_which_it_began(server: Server) -> None:
    host = await server.enrolled("ws-01")
    start, end = START + timedelta(hours=11), START + timedelta(hours=13)
    times = {"timestamp_start": stamp(start), "timestamp_end": stamp(end), "created_at": stamp(end)}
    assert start.date() != end.date()
    await server.deliver(host, host.next(**times))
    server.clock.move(86_400)
    found = await drawn(server, days=(start.date(), end.date()))
    assert {one.instance: one.shown is not None for one in found.pulled} == {
        Instance("ws-01", start.date()): True,
        Instance("ws-01", end.date()): False,
    }


async def test_dates_bound_what_is_drawn_from(server: Server, month: tuple[FakeHost, FakeHost]) -> None:
    dates = Dates(TODAY + timedelta(days=2), TODAY + timedelta(days=4))
    with pytest.raises(Refusal) as refused:
        await drawn(server, dates=dates)
    assert (refused.value.code, refused.value.status) == ("outside_dates", 422)
    inside = await drawn(server, dates=dates, days=span_of(dates.first, dates.last))
    assert {one.instance.day for one in inside.pulled} == set(inside.asked.days)
    offered = {item.day for one in inside.pulled for item in one.earlier}
    assert offered <= {dates.first}, "not even as an earlier instance is another day told"


async def test_what_cannot_be_drawn_is_refused(server: Server, month: tuple[FakeHost, FakeHost]) -> None:
    services = server.services
    asked = Asked("clinic-1", None, (), (TODAY,), 5, "s")
    with pytest.raises(Refusal) as other:
        await services.sampling(services.store.for_sites({"clinic-2"})).sample(asked)
    assert other.value.status == 404
    for more, code in (
        ({"hosts": ("nobody",)}, "unknown_host"),
        ({"size": 10_000}, "bad_sample"),
        ({"days": (date(2020, 1, 1),)}, "no_log"),
    ):
        with pytest.raises(Refusal) as refused:
            await drawn(server, **more)
        assert refused.value.code == code
    reader = services.store.for_sites({"clinic-1"})
    path = next((services.settings.data_dir / "log" / "clinic-1").glob("*/checkpoint"))
    path.write_bytes(path.read_bytes().replace(b"clinic-1", b"clinic-9", 1))
    with pytest.raises(Refusal) as lied:
        await services.sampling(reader).sample(asked)
    assert lied.value.code == "log_unusable"
