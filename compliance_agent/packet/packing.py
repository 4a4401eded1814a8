"""Everything of a packet, in the order of its files: records and exports as they come, the rest by name. Pure.

Records are gone through twice: in the order of their files, and in the order of the exports; each time one is in memory.
The exports stand behind the records, so somebody else may make them meanwhile.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

from compliance_agent import crypto
from compliance_agent.packet import dsse
from compliance_agent.packet.archive import PARTS
from compliance_agent.packet.content import Record, Scope
from compliance_agent.packet.telling import Aside, Telling
from compliance_agent.packet.writing import Put, Writing, listed_bytes

EXPORT, OCSF, CSV = "export/assessment-results.json", "export/ocsf.jsonl", "export/evidence.csv"
ENVELOPE, KEY = "export/assessment-results.dsse.json", "keys/packet.pem"
_EVIDENCE = "evidence/"


class Stored(NamedTuple):
    """A record as its files: the directory, and what stands in it; `sha256` is of `body`."""

    directory: str
    body: bytes
    sha256: str
    signature: bytes
    leaf: bytes
    receipt: bytes


class Exports(Protocol):
    """What is told of the records, in pieces; `telling.Telling`, or somebody who does that elsewhere."""

    def document(self) -> Iterator[bytes]:
        """The assessment results; asked for twice."""
        ...

    def csv(self) -> Iterator[bytes]:
        """The table."""
        ...

    def ocsf(self) -> Iterator[bytes]:
        """The events."""
        ...


@dataclass(frozen=True)
class Parts:
    """What a packet is made of.

    Attributes:
        plain: every file that is not named here otherwise, by path.
        directories: of all records, in any order.
        told: the records of the period, host by host, each in the order of its chain.
        stored: all records with their receipts, in the order of their directories.
        predicate: what the signed statement about the assessment results says beside their digest.
        elsewhere: made of what is told somewhere else, and `told` is not asked for; None where it is done here.
    """

    scope: Scope
    plain: Mapping[str, Callable[[], bytes]]
    directories: Callable[[], Iterable[str]]
    told: Callable[[], Iterator[Record]]
    stored: Callable[[], Iterator[Stored]]
    predicate: Mapping[str, Any]
    elsewhere: Exports | None = None


@dataclass(frozen=True)
class Signing:
    """The key of the server's packets: its public half, and what signs bytes, and the file from one place to another."""

    public: bytes
    sign: Callable[[bytes], bytes]
    sign_file: Callable[[int, int], bytes]


def write(parts: Parts, put: Put, aside: Aside, signing: Signing) -> int:
    """Write a packet; its length.

    Args:
        parts: what it is made of.
        put: writes bytes at a place of the file.
        aside: gives an empty file that is gone when it is closed.
        signing: signs the assessment results and the manifest.
    """
    with contextlib.ExitStack() as open_files:
        return _written(parts, put, lambda: open_files.enter_context(aside()), signing)


def _written(parts: Parts, put: Put, aside: Aside, signing: Signing) -> int:
    names = sorted([*parts.plain, ENVELOPE, KEY, EXPORT, CSV, OCSF])
    ours = (f"{directory}/{part}" for directory in parts.directories() for part in PARTS)
    writing = Writing(put, listed_bytes(names) + listed_bytes(ours), aside())
    for name in [name for name in names if name < _EVIDENCE]:
        writing.add(name, parts.plain[name]())
    for stored in parts.stored():
        writing.add_record(stored.directory, _files(stored))
    told = parts.elsewhere or _told(parts, aside)
    exports = {EXPORT: told.document, CSV: told.csv, OCSF: told.ocsf}
    plain: dict[str, Callable[[], bytes]] = {
        **parts.plain,
        ENVELOPE: lambda: _envelope(told, parts, signing),
        KEY: lambda: crypto.public_pem(signing.public).encode(),
    }
    for name in [name for name in names if name > _EVIDENCE]:
        if name in exports:
            writing.add_pieces(name, exports[name]())
        else:
            writing.add(name, plain[name]())
    return writing.finish(signing.sign_file)


def _told(parts: Parts, aside: Aside) -> Telling:
    telling = Telling(parts.scope, aside)
    for record in parts.told():
        telling.take(record)
    return telling


def _envelope(told: Exports, parts: Parts, signing: Signing) -> bytes:
    digest = hashlib.sha256()
    for piece in told.document():
        digest.update(piece)
    said = dsse.statement(EXPORT.rpartition("/")[2], digest.hexdigest(), parts.predicate)
    return dsse.envelope(said, signing.public, signing.sign)


def _files(stored: Stored) -> list[tuple[bytes, str]]:
    """In the order of their names: "bundle.json", "bundle.sig", "bundle.tlog-proof", "leaf.json"."""
    return [(stored.body, stored.sha256), (stored.signature, ""), (stored.receipt, ""), (stored.leaf, "")]
