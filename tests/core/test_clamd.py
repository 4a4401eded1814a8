"""The scanner's socket protocol: requests byte for byte, answers only in the form the daemon gives them."""

from __future__ import annotations

import hashlib
import struct
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from compliance_agent.core import clamd
from compliance_agent.errors import CannotTell

FIXTURES = Path(__file__).parent.parent / "fixtures" / "checks" / "av_health"
ROOT = Path(__file__).parent.parent.parent


def recorded(name: str) -> bytes:
    return (FIXTURES / name).read_bytes()


def test_version_and_age() -> None:
    version = clamd.parse_version(recorded("clamd-1.4.3-version.bin"), timedelta(0))
    assert (version.engine, version.database) == ("1.4.3", 27_826)
    assert version.built_at == datetime(2026, 11, 22, 7, 5, 11, tzinfo=UTC)
    assert version.age_h(datetime(2026, 11, 22, 9, 5, 11, tzinfo=UTC)) == 2
    assert version.age_h(datetime(2026, 11, 22, 9, 5, 12, tzinfo=UTC)) == 3


def test_the_daemons_local_time_is_read_in_the_hosts_zone() -> None:
    version = clamd.parse_version(recorded("clamd-1.4.3-version.bin"), clamd.parse_zone(b"-0500\n"))
    assert version.built_at == datetime(2026, 11, 22, 12, 5, 11, tzinfo=UTC)


def test_version_without_an_official_database() -> None:
    version = clamd.parse_version(recorded("clamd-1.4.6-version-without-database.bin"), timedelta(0))
    assert (version.engine, version.database, version.built_at) == ("1.4.6", None, None)
    assert version.age_h(datetime(2026, 11, 22, tzinfo=UTC)) is None


@pytest.mark.parametrize("engine", [b"0.103.12", b"1.4.3", b"1.5.0-rc", b"1.6.0-devel-20261101"])
def test_engines(engine: bytes) -> None:
    assert clamd.parse_version(b"ClamAV " + engine + b"\0", timedelta(0)).engine == engine.decode()


@pytest.mark.parametrize(
    "reply",
    [
        b"",
        b"\0",
        b"PONG\0",
        b"ClamAV 1.4.3/27826/Sun Nov 22 07:05:11 2026",
        b"ClamAV 1.4.3/27826/Sun Nov 22\0",
        b"ClamAV 1.4.3/27826/Sun Foo 22 07:05:11 2026\0",
        b"ClamAV 1.4.3/27826/Sun Feb 30 07:05:11 2026\0",
        b"ClamAV 1.4.3/27826/Sun Nov 22 27:05:11 2026\0",
        b"ClamAV 1.4.3/27826/Sun Jan  1 00:00:00 0000\0",
        b"ClamAV 1.4.3/27826/\0",
        b"ClamAV 078-05-1120\0",
        b"ClamAV Jane Roe\0",
        b"UNKNOWN COMMAND\0",
    ],
)
def test_any_other_version_is_unparsable(reply: bytes) -> None:
    with pytest.raises(CannotTell):
        clamd.parse_version(reply, timedelta(0))


@pytest.mark.parametrize(
    ("out", "hours"), [(b"+0000\n", 0.0), (b"-0500\n", -5.0), (b"+0545\n", 5.75), (b"+1400\n", 14.0)]
)
def test_zone(out: bytes, hours: float) -> None:
    assert clamd.parse_zone(out) == timedelta(hours=hours)


@pytest.mark.parametrize("out", [b"", b"UTC\n", b"+00", b"+1500\n", b"+0060\n", b"+0000\n+0000\n"])
def test_any_other_zone_is_unparsable(out: bytes) -> None:
    with pytest.raises(CannotTell):
        clamd.parse_zone(out)


def test_ping() -> None:
    assert clamd.answers_ping(b"PONG\0")
    assert not any(map(clamd.answers_ping, (b"", b"PONG", b"PONG\n", b"PONG\0PONG\0")))


def test_the_test_file_is_the_standard_one_and_stands_in_no_file_of_ours() -> None:
    assert hashlib.md5(clamd.eicar(), usedforsecurity=False).hexdigest() == "44d88612fea8a8f36de82e1278abb02f"
    assert clamd.eicar() not in Path(clamd.__file__).read_bytes()
    assert clamd.eicar() not in Path(__file__).read_bytes()


def test_a_stream_is_one_chunk_and_an_end() -> None:
    request = clamd.scan_stream(b"hello")
    assert request == b"zINSTREAM\0" + struct.pack(">I", 5) + b"hello" + b"\0\0\0\0"


@pytest.mark.parametrize(
    "reply",
    [
        recorded("clamd-1.4.6-found.bin"),
        b"stream: Win.Test.EICAR_HDB-1 FOUND\0",
        b"stream: Eicar-Signature FOUND\0",
    ],
)
def test_found(reply: bytes) -> None:
    assert clamd.found_test_file(reply) is True


def test_called_clean() -> None:
    assert clamd.found_test_file(recorded("clamd-1.4.6-clean.bin")) is False


@pytest.mark.parametrize(
    "reply",
    [
        b"",
        b"stream: OK",
        b"stream: Eicar-Signature FOUND",
        b"stream: Doc.Dropper.Agent-1 FOUND\0",
        b"INSTREAM size limit exceeded. ERROR\0",
        b"stream: Eicar\xff FOUND\0",
        b"PONG\0",
    ],
)
def test_any_other_scan_reply_is_unparsable(reply: bytes) -> None:
    with pytest.raises(CannotTell):
        clamd.found_test_file(reply)


@given(st.binary(max_size=200))
def test_no_bytes_crash_the_parsers(reply: bytes) -> None:
    for parse in (lambda: clamd.parse_version(reply, timedelta(0)), lambda: clamd.found_test_file(reply)):
        try:
            parse()
        except CannotTell:
            continue
