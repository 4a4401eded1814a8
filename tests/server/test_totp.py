"""Codes are those of RFC 6238 and RFC 4226, and nothing else is one."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from compliance_agent.server.services import totp

SECRET = b"12345678901234567890"
# RFC 6238, appendix B: time, and the eight-digit codes for SHA-1, SHA-256 and SHA-512
VECTORS = [
    (59, "94287082", "46119246", "90693936"),
    (1111111109, "07081804", "68084774", "25091201"),
    (1111111111, "14050471", "67062674", "99943326"),
    (1234567890, "89005924", "91819424", "93441116"),
    (2000000000, "69279037", "90698825", "38618901"),
    (20000000000, "65353130", "77737706", "47863826"),
]
# RFC 4226, appendix D
COUNTED = ("755224", "287082", "359152", "969429", "338314", "254676", "287922", "162583", "399871", "520489")


@pytest.mark.parametrize(("at", "sha1", "sha256", "sha512"), VECTORS)
def test_the_vectors_of_the_rfc(at: int, sha1: str, sha256: str, sha512: str) -> None:
    long = (SECRET * 4)[:64]
    for algorithm, secret, code in (("sha1", SECRET, sha1), ("sha256", long[:32], sha256), ("sha512", long, sha512)):
        assert totp.code_at(secret, at // totp.STEP_S, digits=8, algorithm=algorithm) == code
    now = datetime.fromtimestamp(at, UTC)
    assert totp.matching_step(SECRET, sha1[-6:], now) == totp.step_of(now) == at // 30


def test_the_vectors_of_the_counter() -> None:
    assert tuple(totp.code_at(SECRET, step) for step in range(10)) == COUNTED


def test_a_code_is_good_one_step_either_way() -> None:
    now = datetime(2026, 11, 22, 12, 0, 15, tzinfo=UTC)
    code = totp.code_at(SECRET, totp.step_of(now))
    off = {
        seconds: totp.matching_step(SECRET, code, now + timedelta(seconds=seconds)) for seconds in (-60, -30, 0, 30, 60)
    }
    assert {seconds for seconds, step in off.items() if step is not None} == {-30, 0, 30}


@pytest.mark.parametrize(
    "code", ["", "12345", "1234567", "\uff11\uff12\uff13\uff14\uff15\uff16", "12 456", "-12345", "abcdef", "\ud800" * 6]
)
def test_what_is_no_code_matches_nothing(code: str) -> None:
    assert totp.matching_step(SECRET, code, datetime(2026, 11, 22, tzinfo=UTC)) is None


def test_the_address_for_the_app() -> None:
    assert totp.uri(SECRET, "a b/c", "j:d@x") == (
        "otpauth://totp/a%20b%2Fc:j%3Ad@x?secret=GEZDGNBVGY3TQOJQGEZDGNBVGY3TQOJQ&issuer=a%20b%2Fc&period=30"
    )
