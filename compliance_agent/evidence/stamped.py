"""What third parties said of a log's time: cosignatures and RFC 3161 tokens over its checkpoints, each verified or not counted.

An entry of kind `time` holds a signed checkpoint of this same log and tokens over exactly those bytes. Its times count twice: the
entry is not older than they are, and the tree of that checkpoint was there when they were made.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from compliance_agent.entries.interval import SECOND_US, Timeline
from compliance_agent.errors import BadEvidence
from compliance_agent.evidence.book import Book
from compliance_agent.evidence.problems import Problem
from compliance_agent.log.fields import from_base64
from compliance_agent.log.policy import Policy, Verified

Stamps = Callable[[bytes, bytes], int]  # (token, what it is over) -> microseconds since 1970, or BadEvidence
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass
class Said:
    """Times that verified, and how many there was nothing to verify with.

    Attributes:
        said: (index, time) of entries; shown: (size, time) of trees; both as `Timeline` takes them.
        tokens_unchecked: no certificate authority was given, or nothing that reads tokens is installed.
        cosignatures: how many verified.
    """

    said: list[tuple[int, int]] = field(default_factory=list)
    shown: list[tuple[int, int]] = field(default_factory=list)
    tokens: int = 0
    tokens_unchecked: int = 0
    cosignatures: int = 0
    problems: list[Problem] = field(default_factory=list)

    @property
    def timeline(self) -> Timeline:
        """What follows from them."""
        return Timeline(self.said, self.shown)

    def cosigned(self, verified: Verified) -> list[int]:
        """Take up the witnesses of a checkpoint that verified; their times."""
        times = [time * SECOND_US for time in verified.witnesses.values() if time]
        self.cosignatures += len(times)
        self.shown += [(verified.checkpoint.size, time) for time in times]
        return times


def read_times(book: Book, policy: Policy, stamps: Stamps | None) -> Said:
    """Every time that the entries of a log hold.

    Args:
        book: the log; `whole`.
        policy: its key, and the witnesses that are trusted.
        stamps: verifies a token; None when that cannot be done here.
    """
    found = Said()
    for index, leaf in book.times:
        try:
            _read(book, index, leaf, policy, stamps, found)
        except BadEvidence as error:
            found.problems.append(Problem(error.code, f"log entry {index}", str(error)))
    return found


def _read(book: Book, index: int, leaf: Mapping[str, Any], policy: Policy, stamps: Stamps | None, found: Said) -> None:
    note = from_base64(leaf["checkpoint"], "checkpoint of a time", "bad_entry")
    verified = policy.verify(note)
    seen = verified.checkpoint
    if seen.origin != book.checkpoint.origin or seen.size > index or book.forest.root(seen.size) != seen.root:
        raise BadEvidence("its checkpoint is not an earlier one of this log", code="split_view")
    times = found.cosigned(verified)
    for token in leaf["tokens"]:
        if not isinstance(token, str):
            raise BadEvidence("a token is not text", code="bad_entry")
        raw = from_base64(token, "token of a time", "bad_entry")
        if stamps is None:
            found.tokens_unchecked += 1
            continue
        times.append(stamped := stamps(raw, note))
        found.tokens += 1
        found.shown.append((seen.size, stamped))
    if times:
        found.said.append((index, max(times)))


def stamps_under(authority: bytes) -> Stamps | None:
    """Verifies tokens under the certificates of this PEM; None where nothing that reads tokens is installed.

    Raises:
        BadEvidence: code `bad_key`; it holds no certificate.
    """
    try:
        from cryptography import x509
        from rfc3161_client import VerificationError, VerifierBuilder, decode_timestamp_response
    except ImportError:
        return None
    try:
        certificates = x509.load_pem_x509_certificates(authority)
    except ValueError as error:
        raise BadEvidence("authority for time stamps: not a PEM file of certificates", code="bad_key") from error
    roots = [one for one in certificates if one.issuer == one.subject] or certificates[:1]
    between = [one for one in certificates if one not in roots]
    verifier = VerifierBuilder(roots=roots, intermediates=between).build()

    def verify(token: bytes, message: bytes) -> int:
        try:
            response = decode_timestamp_response(token)
            verifier.verify_message(response, message)
            return (response.tst_info.gen_time.astimezone(UTC) - _EPOCH) // timedelta(microseconds=1)
        except (VerificationError, ValueError) as error:
            raise BadEvidence("a time stamp does not verify over its checkpoint", code="bad_token") from error

    return verify
