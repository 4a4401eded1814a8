"""listening_ports beyond its cases: the kernel's real lists, what counts as reachable, and who holds a port."""

from __future__ import annotations

import json
import socket
from typing import Any

import pytest

from compliance_agent.adapters.subprocess_host import RealHost
from compliance_agent.checks import registry
from compliance_agent.checks.listening_ports import Parameters
from compliance_agent.core import sockets as words
from compliance_agent.errors import CannotTell
from compliance_agent.lab.clinic import healthy_host
from compliance_agent.lab.host import FakeHost
from compliance_agent.lab.programs.sockets import Open, Sockets
from compliance_agent.models import DriftResult, Result
from tests.checks.contract import seen_by

CHECK = registry()["listening_ports"]


async def look(host: FakeHost, **parameters: Any) -> DriftResult:
    return await seen_by(CHECK, host, **parameters)


def opened(*others: Open) -> FakeHost:
    host = healthy_host()
    host.part(Sockets).others.extend(others)
    return host


@pytest.mark.parametrize(
    ("address", "family", "loopback"),
    [
        ("127.0.0.1", socket.AF_INET, True),
        ("0.0.0.0", socket.AF_INET, False),
        ("::1", socket.AF_INET6, True),
        ("::", socket.AF_INET6, False),
    ],
)
async def test_a_socket_of_our_own_is_found_in_the_real_lists(address: str, family: int, loopback: bool) -> None:
    """In the lists of this very process, which are of the same kind as those of process 1."""
    for kind, proto in ((socket.SOCK_STREAM, "tcp"), (socket.SOCK_DGRAM, "udp")):
        with socket.socket(family, kind) as mine:
            mine.bind((address, 0))
            if proto == "tcp":
                mine.listen()
            path = f"/proc/self/net/{proto}{'6' if family == socket.AF_INET6 else ''}"
            text = (await RealHost().read(path, limit_bytes=16_777_216)).decode("ascii")
            found = {(each.port, each.loopback) for each in words.read_sockets(text, proto)}
            assert (mine.getsockname()[1], loopback) in found


async def test_this_machine_can_be_looked_at() -> None:
    seen = await CHECK.observe(RealHost(), Parameters(allow_tcp=("1-65535",), allow_udp=("1-65535",)))
    assert CHECK.judge(Parameters(allow_tcp=("1-65535",), allow_udp=("1-65535",)), seen).result is Result.PASS


@pytest.mark.parametrize(
    ("socket_", "counted"),
    [
        (Open("tcp", "0.0.0.0", 8080), True),
        (Open("tcp", "192.168.1.10", 8080), True),
        (Open("tcp", "fe80::1", 8080), True),
        (Open("tcp", "127.0.0.53", 8080), False),
        (Open("tcp", "::1", 8080), False),
        (Open("tcp", "::ffff:127.0.0.1", 8080), False),
        (Open("tcp", "::ffff:10.0.0.1", 8080), True),
        (Open("tcp", "0.0.0.0", 40_000), True),
        (Open("udp", "0.0.0.0", 161), True),
        (Open("udp", "0.0.0.0", 40_000), False),
    ],
)
async def test_what_the_network_reaches(socket_: Open, counted: bool) -> None:
    seen = await look(opened(socket_))
    assert (seen.result is Result.FAIL) == counted, seen.verdict


async def test_a_datagram_port_that_was_handed_out_is_counted_apart() -> None:
    seen = await look(opened(Open("udp", "0.0.0.0", 40_000)))
    assert (seen.result, seen.pre_state["udp_handed_out"]) == (Result.PASS, 1)


@pytest.mark.parametrize(
    ("entry", "fits"),
    [("5432", True), ("any:5432", True), ("5000-6000", True), ("loopback:5432", False), ("5433", False)],
)
async def test_entries_of_the_list(entry: str, fits: bool) -> None:
    seen = await look(opened(Open("tcp", "0.0.0.0", 5432)), allow_tcp=("22", "443", entry))
    assert (seen.result is Result.PASS) == fits


async def test_the_wrong_protocol_does_not_fit() -> None:
    assert (await look(opened(Open("udp", "0.0.0.0", 443)))).pre_state["unexpected_udp"] == [443]


async def test_a_known_unit_is_named_and_another_is_not() -> None:
    seen = await look(
        opened(Open("tcp", "::", 445, unit="smbd.service"), Open("tcp", "::", 99, unit="jane-roe.service"))
    )
    assert (seen.pre_state["units"], seen.pre_state["unexpected_tcp"]) == (["smbd.service"], [99, 445])
    assert "jane" not in json.dumps(dict(seen.pre_state))
    assert seen.verdict is not None and "smbd.service" in seen.verdict.sentence and "jane" not in seen.verdict.sentence


async def test_without_ss_the_finding_stands() -> None:
    host = opened(Open("tcp", "::", 445, unit="smbd.service"))
    del host.installed["ss"]
    seen = await look(host)
    assert (seen.reason, seen.pre_state["units"]) == ("unexpected_ports", None)


@pytest.mark.parametrize(
    ("uid", "reason"), [(0, "unexpected_ports"), (104, "unexpected_ports"), (1001, "people_listen")]
)
async def test_whose_program_it_is(uid: int, reason: str) -> None:
    assert (await look(opened(Open("tcp", "0.0.0.0", 8000, uid)))).reason == reason


async def test_more_ports_than_a_record_holds_are_counted() -> None:
    seen = await look(opened(*(Open("tcp", "0.0.0.0", port) for port in range(1000, 1100))))
    assert (seen.pre_state["unexpected"], len(seen.pre_state["unexpected_tcp"])) == (100, 64)


async def test_a_list_of_another_namespace_is_not_asked() -> None:
    """An agent in a network namespace of its own sees nothing listen; so process 1 is asked, and only it."""
    host = healthy_host()
    await look(host)
    assert {target for target in host.looked if "/net/" in target and target.startswith("path:/proc/")} == {
        *(f"path:{path}" for path in words.FILES),
        f"path:{words.PORT_RANGE}",
    }


@pytest.mark.parametrize("text", ["", "\n", "  sl  local_address\n", "no header\n   0: 0100007F:0CEA\n"])
def test_another_text_is_no_list(text: str) -> None:
    with pytest.raises(CannotTell):
        words.read_sockets(text, "tcp")


@pytest.mark.parametrize("text", ["", "1\n", "2 1\n", "1 70000\n", "a b\n"])
def test_another_text_is_no_range(text: str) -> None:
    with pytest.raises(CannotTell):
        words.read_range(text)


@pytest.mark.parametrize(
    "wrong",
    [
        {"allow_tcp": ()},
        {"allow_udp": ()},
        {"allow_tcp": ("ssh",)},
        {"allow_tcp": ("0",)},
        {"allow_tcp": ("70000",)},
        {"allow_udp": ("9-8",)},
        {"allow_tcp": ("lan:22",)},
        {"known_units": ()},
    ],
)
def test_parameters_that_would_check_nothing_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Parameters(**{"allow_tcp": ("22",), "allow_udp": ("68",), **wrong})
