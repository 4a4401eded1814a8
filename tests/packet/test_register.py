"""The register of exceptions in a packet is held to the acts of its log; no record says anything else because of it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from compliance_agent.packet import register
from compliance_agent.packet.build import build
from compliance_agent.packet.content import Limits, Scope, in_order
from compliance_agent.packet.register import Accepted
from compliance_agent.packet.verify import records_of, verify_files
from compliance_agent.sheets import registers
from tests.packet.scene import DAY, SITE, Files, Made
from tests.packet.test_verify import codes
from tests.server.builder import START, Hands, serving
from tests.server.test_exceptions import operator, wanted


async def _live(data_dir: Path) -> None:
    """One day of two hosts that fail: exceptions that stand, ended, and were approved by two; and one at another site."""
    clock = Hands(START)
    async with serving(data_dir, clock=clock) as server:
        desk, user, owner = server.services.exceptions(), await operator(server), await operator(server, "owner")
        hosts = [
            await server.enrolled(label, site)
            for label, site in (("ws-01", SITE), ("ws-02", SITE), ("ws-09", "clinic-2"))
        ]

        reader = await server.services.users.reader(user)

        async def deliver() -> None:
            for host in hosts:
                host.now = clock()
                reply = await server.deliver(host, host.next(result="fail", reason="daemon_down"))
                assert reply.status_code == 200 and all(reply.json()["receipts"])

        await deliver()
        clock.move(60)
        await desk.record(user, reader, wanted(hosts[0]), f"{1:032x}")
        await desk.record(user, reader, wanted(hosts[1], days=30, whole=True), f"{2:032x}")
        await desk.record(user, reader, wanted(hosts[2]), f"{4:032x}")
        await desk.set_people(owner, reader, SITE, 2)
        await desk.record(user, reader, wanted(hosts[0], check="firewall"), f"{3:032x}")
        clock.move(60)
        await desk.approve(owner, reader, f"{3:032x}")
        await deliver()
        clock.move(60)
        await desk.withdraw(owner, reader, f"{2:032x}")
        clock.move(60)
        await deliver()  # their places in the log are after every act


@pytest.fixture(scope="module")
def accepted(tmp_path_factory: pytest.TempPathFactory) -> Made:
    directory: Path = tmp_path_factory.mktemp("register")
    asyncio.run(_live(directory / "server"))
    result = asyncio.run(build(directory / "server", SITE, DAY, DAY, directory / "packet.zip"))
    return Made(directory / "server", result.path.read_bytes(), result)


def of(files: Files) -> Sequence[Accepted]:
    return Scope.parse(files["packet.json"]).exceptions or ()


def test_it_is_in_the_packet_and_the_log_has_an_act_of_each(accepted: Made) -> None:
    report = verify_files(accepted.files)
    assert report.problems == [] and report.ok
    first, second, third = of(accepted.files)
    assert (first.reason, first.measure, first.reference, first.people) == (
        "vendor_requires",
        "watched",
        "RA-2026-14",
        1,
    )
    assert second.key_id is None and second.withdrawn is not None
    assert (third.approver, third.seconded_by, third.people) == ("a-operator", "a-owner", 2)


def test_no_record_says_anything_else_because_of_it(accepted: Made) -> None:
    assert {record.document["result"] for record in records_of(accepted.files)} == {"fail"}


def test_report_4_names_each_with_what_fails_under_it(accepted: Made) -> None:
    """Of the three records of each host, two came after it was recorded; one of these before it was ended."""
    scope, records = Scope.parse(accepted.files["packet.json"]), records_of(accepted.files)
    table = registers.exceptions(scope, list(in_order(records, scope))).tables[0]
    said = [(row[0], row[1], row[5], row[8].text) for row in table.rows]  # type: ignore[union-attr]  # the last one is a number
    assert said == [
        ("ws-01", "time_sync", "a-operator", "2"),
        ("every host", "time_sync", "a-operator", "2"),
        ("ws-01", "firewall", "a-operator and a-owner", "0"),
    ]
    assert "The vendor requires it as it is." in table.rows[0] and "withdrawn" in str(table.rows[1][7])
    older = registers.exceptions(replace(scope, exceptions=None), []).tables[0]
    assert older.rows == () and "Not said" in older.empty, "an older packet does not say that there were none"


def test_a_packet_of_one_host_has_what_is_about_it(accepted: Made, tmp_path: Path) -> None:
    data, out = accepted.data_dir, tmp_path / "packet.zip"
    result = asyncio.run(build(data, SITE, DAY, DAY, out, host="ws-02"))
    assert result.report.ok and [one.key_id for one in result.scope.exceptions or ()] == [None]
    result = asyncio.run(build(data, SITE, DAY, DAY, out, control="164.312(b)"))
    assert result.report.ok and {one.check for one in result.scope.exceptions or ()} == {"time_sync"}


Change = Callable[[list[Accepted]], object]
WRONG: dict[str, Change] = {
    "another reason": lambda held: held.insert(0, replace(held.pop(0), reason="device_limit")),
    "a longer end": lambda held: held.insert(0, replace(held.pop(0), expires="2027-11-29T00:00:00.000000Z")),
    "another approver": lambda held: held.insert(0, replace(held.pop(0), approver_id="p" + "0" * 16)),
    "one that nobody recorded": lambda held: held.append(replace(held[0], exception_id="f" * 32)),
    "one left out": lambda held: held.pop(1),
    "that it was ended": lambda held: held.insert(1, replace(held.pop(1), withdrawn=None)),
    "an earlier end than there was": lambda held: held.insert(0, replace(held.pop(0), withdrawn=held[0].created)),
    "another second person": lambda held: held.insert(2, replace(held.pop(2), seconded_by_id="p" + "0" * 16)),
    "that a second person was needed": lambda held: held.insert(
        2, replace(held.pop(2), people=1, seconded=None, seconded_by=None, seconded_by_id=None)
    ),
}


@pytest.mark.parametrize("what", WRONG)
def test_each_change_is_named_though_all_is_signed_again(accepted: Made, what: str) -> None:
    files: Files = dict(accepted.files)
    held = list(of(files))
    WRONG[what](held)
    scope = replace(Scope.parse(files["packet.json"]), exceptions=tuple(held))
    files["packet.json"] = scope.encode()
    assert "wrong_exception" in codes(verify_files(accepted.signed_again(files)))


def test_what_was_done_after_the_days_of_an_account_is_no_part_of_its_packet(accepted: Made) -> None:
    """The log is whole all the same, and tells that it was ended."""
    files: Files = dict(accepted.files)
    held = tuple(replace(one, withdrawn=None) for one in of(files))
    for limits, found in ((Limits(DAY.isoformat(), DAY.isoformat()), False), (None, True)):
        files["packet.json"] = replace(Scope.parse(files["packet.json"]), exceptions=held, limits=limits).encode()
        assert ("wrong_exception" in codes(verify_files(accepted.signed_again(files)))) is found


def test_without_the_check_it_would_go_unnamed(accepted: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    """The planted fault."""
    monkeypatch.setattr(register, "problems", lambda *_: iter(()))
    test: Any = test_each_change_is_named_though_all_is_signed_again
    with pytest.raises(AssertionError):
        test(accepted, "another reason")
