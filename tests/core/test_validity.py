"""When certificates hold, against the library that reads all of them; what is damaged gives no date."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

from compliance_agent.core.validity import read_validities, validity
from compliance_agent.errors import CannotTell

DATES = (
    (datetime(1950, 1, 1, tzinfo=UTC), datetime(2049, 12, 31, 23, 59, 59, tzinfo=UTC)),
    (datetime(1999, 12, 31, 23, 59, 59, tzinfo=UTC), datetime(2050, 1, 1, tzinfo=UTC)),
    (datetime(2026, 11, 29, 1, 2, 3, tzinfo=UTC), datetime(9999, 12, 31, 23, 59, 59, tzinfo=UTC)),
)


def certificate(dates: tuple[datetime, datetime] = DATES[0], name: str = "clinic") -> x509.Certificate:
    key = Ed25519PrivateKey.from_private_bytes(bytes(32))
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    builder = x509.CertificateBuilder(subject, subject, key.public_key(), 7, *dates)
    builder = builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
    return builder.sign(key, None)


def pem(*certificates: x509.Certificate) -> bytes:
    return b"".join(each.public_bytes(Encoding.PEM) for each in certificates)


@pytest.mark.parametrize("dates", DATES)
@pytest.mark.parametrize("name", ["c", "c" * 64])
def test_the_dates_are_those_of_the_certificate(dates: tuple[datetime, datetime], name: str) -> None:
    made = certificate(dates, name)
    (found,) = read_validities(pem(made))
    assert (found.starts, found.ends) == (made.not_valid_before_utc, made.not_valid_after_utc) == dates


def test_a_chain_with_text_around_it_is_read_whole_and_in_order() -> None:
    chain = [certificate(dates) for dates in DATES]
    text = b"subject=CN = clinic\n" + pem(*chain).replace(b"\n", b"\r\n") + b"\n-----BEGIN PRIVATE KEY-----\n"
    assert [(each.starts, each.ends) for each in read_validities(text)] == list(DATES)


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"no certificate",
        b"-----BEGIN CERTIFICATE-----\n-----END CERTIFICATE-----\n",
        b"-----BEGIN CERTIFICATE-----\nMAA=\n-----END CERTIFICATE-----\n",
        b"-----BEGIN CERTIFICATE-----\nM\n-----END CERTIFICATE-----\n",
        pem(certificate())[:-30],
        pem(certificate()) + b"-----BEGIN CERTIFICATE-----\nMAA",
        pem(certificate()) + b"-----BEGIN CERTIFICATE-----\nMAA=\n-----END CERTIFICATE-----\n",
    ],
)
def test_what_is_no_certificate_or_has_one_that_is_none_is_unknown(text: bytes) -> None:
    with pytest.raises(CannotTell) as told:
        read_validities(text)
    assert told.value.reason == "unparsable"


def test_a_certificate_that_is_cut_or_longer_has_no_dates() -> None:
    der = certificate().public_bytes(Encoding.DER)
    for size in range(len(der)):
        with pytest.raises(ValueError, match=r".+"):
            validity(der[:size])
    with pytest.raises(ValueError, match=r".+"):
        validity(der + b"\0")


def test_no_damaged_byte_gives_a_date_that_the_library_does_not_see() -> None:
    der = certificate(DATES[2]).public_bytes(Encoding.DER)
    told = 0
    for at in range(len(der)):
        for bit in (1, 2, 0x20, 0x80):
            damaged = der[:at] + bytes([der[at] ^ bit]) + der[at + 1 :]
            try:
                found = validity(damaged)
            except ValueError:
                continue
            try:
                other = x509.load_der_x509_certificate(damaged)
                dates = (other.not_valid_before_utc, other.not_valid_after_utc)
            except (ValueError, x509.InvalidVersion):
                dates = DATES[2]  # the damage is elsewhere, in what is not asked
            assert (found.starts, found.ends) == dates, (at, bit)
            told += 1
    assert told > 100


def test_a_date_that_there_is_not_is_no_date() -> None:
    der = certificate((DATES[0][0], datetime(2024, 2, 29, tzinfo=UTC))).public_bytes(Encoding.DER)
    assert validity(der).ends.day == 29
    for wrong in (
        b"230229000000Z",
        b"240230000000Z",
        b"241301000000Z",
        b"240229240000Z",
        b"240229000060Z",
        b"2402290000+1Z",
    ):
        with pytest.raises(ValueError, match=r".+"):
            validity(der.replace(b"240229000000Z", wrong))
