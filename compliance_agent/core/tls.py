"""What `openssl s_client` says of a TLS endpoint, and when certificates end.

An endpoint is written `name:port` and always asked at 127.0.0.1, with the name in the handshake: the host's own services, and
nothing else.
"""

from __future__ import annotations

import re
from datetime import datetime

from compliance_agent.core.validity import read_validities
from compliance_agent.dataclass import dataclass
from compliance_agent.errors import CannotTell
from compliance_agent.ports import Ran

VERSIONS = ("1.2", "1.3")
_ENDPOINT = re.compile(r"([A-Za-z0-9](?:[A-Za-z0-9.-]{0,80}[A-Za-z0-9])?):(\d{1,5})")
_CERTIFICATE = re.compile(r"-----BEGIN CERTIFICATE-----\n[A-Za-z0-9+/=\n]+-----END CERTIFICATE-----\n")
_VERIFIED = re.compile(r"^\s*Verify return code: (\d{1,3}) \(", re.MULTILINE)
_AGREED = re.compile(r"^New, TLSv1\.[0-3], Cipher is (?!\(NONE\))\S+$", re.MULTILINE)
_NOTHING = re.compile(r"^New, \(NONE\), Cipher is \(NONE\)$", re.MULTILINE)
# How the other side says no; anything else may be our own side that could not ask.
_REFUSED = ("alert number", "wrong version number", "unexpected eof", "errno=104", "connection reset")
_UNREACHED = ("connect:errno=", "connection refused", "connect error")
WRONG_NAME = frozenset({62, 63, 64})
EXPIRED = frozenset({9, 10})  # before its time, after its time: shown by the certificate's own dates


@dataclass(frozen=True)
class Endpoint:
    """A service of this host: the name it must prove, and its port."""

    name: str
    port: int


@dataclass(frozen=True)
class Answer:
    """What an endpoint showed: openssl's verify return code, and when its certificate begins and ends."""

    code: int
    starts: datetime
    ends: datetime

    @property
    def named(self) -> bool:
        """Whether it is for the name that was asked."""
        return self.code not in WRONG_NAME

    def in_date(self, now: datetime) -> bool:
        """Whether its own dates hold."""
        return self.starts <= now < self.ends

    def trusted(self, now: datetime) -> bool:
        """Whether its chain leads to an authority. A date that is over counts here when it is not the certificate's own."""
        return self.code == 0 or not self.named or (self.code in EXPIRED and not self.in_date(now))


def read_endpoint(text: str) -> Endpoint:
    """An endpoint as the baseline writes it.

    Raises:
        ValueError: not `name:port`.
    """
    found = _ENDPOINT.fullmatch(text)
    if found is None or not 1 <= int(found[2]) <= 65_535:
        raise ValueError(f"endpoints: expected name:port such as localhost:443, found {text!r}")
    return Endpoint(found[1], int(found[2]))


def asking(endpoint: Endpoint, ca_file: str) -> tuple[str, ...]:
    """The question for what the endpoint shows."""
    return (*_client(endpoint), "-verify_hostname", endpoint.name, "-CAfile", ca_file)


def asking_old(endpoint: Endpoint, least: str) -> tuple[str, ...]:
    """The question whether it still takes a version before `least`, with whatever ciphers there are.

    Whose certificate it shows is not asked here, so no authority is loaded: the host's own would be 20 ms of openssl's 27.
    """
    version = "-tls1_1" if least == "1.2" else "-tls1_2"
    return (*_client(endpoint), version, "-cipher", "ALL:@SECLEVEL=0", "-no-CAfile", "-no-CApath")


def _client(endpoint: Endpoint) -> tuple[str, ...]:
    return ("openssl", "s_client", "-connect", f"127.0.0.1:{endpoint.port}", "-servername", endpoint.name)


def unreached(ran: Ran) -> bool:
    """Whether no connection came about, so that nothing can be said of the endpoint."""
    said = ran.err.decode("utf-8", "replace").lower()
    return ran.exit_status == 1 and any(word in said for word in _UNREACHED)


def read_answer(text: str) -> Answer:
    """What `asking` printed.

    Raises:
        CannotTell: `unparsable`.
    """
    certificate, verified = _CERTIFICATE.search(text), _VERIFIED.search(text)
    if certificate is None or verified is None or not _AGREED.search(text):
        raise CannotTell("unparsable", "openssl: expected a certificate, a cipher and a verify return code")
    leaf = read_validities(certificate[0].encode("ascii"))[0]
    return Answer(int(verified[1]), leaf.starts, leaf.ends)


def sound(certificate: bytes) -> Answer:
    """What an endpoint shows whose chain and name were verified.

    Raises:
        CannotTell: `unparsable`.
    """
    leaf = read_validities(certificate)[0]
    return Answer(0, leaf.starts, leaf.ends)


def takes_old(ran: Ran) -> bool:
    """Whether the endpoint took the old version.

    Raises:
        CannotTell: `tool_failed`; neither it nor a refusal of the other side.
    """
    said = ran.err.decode("utf-8", "replace").lower()
    if ran.exit_status == 0:
        return True
    if ran.exit_status == 1 and _NOTHING.search(ran.text) and any(word in said for word in _REFUSED):
        return False
    raise CannotTell("tool_failed", "openssl: could not ask for an old version of TLS")


def days_left(ends: datetime, now: datetime) -> int:
    """Full days until then; negative once it is over."""
    return (ends - now).days
