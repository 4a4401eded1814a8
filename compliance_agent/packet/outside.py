"""What third parties said of a packet's log, as files and commands: cosignatures of its checkpoint, and time stamps. Pure.

    found = outside(policy, checkpoint, book.times)
    found.files   # keys/witness-<name>.pem, log/older/<size>, time/<size>.tsr

All of it follows from the policy, the checkpoint and the entries of the log, so a verifier makes these files again and compares. A
file is there so that openssl alone can check it; nothing is proven by its being there.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from compliance_agent import crypto
from compliance_agent.errors import BadEvidence
from compliance_agent.log.checkpoint import Checkpoint
from compliance_agent.log.fields import from_base64, to_base64
from compliance_agent.log.note import KeyType, Note, VerifierKey
from compliance_agent.log.policy import Policy

OLDER, TIME, WITNESS = "log/older/", "time/", "keys/witness-"
YEAR = ".checkpoint"  # ends the name of the checkpoint of the year before, which is not of this log
_PLAIN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_PRINTED = re.compile(r"[A-Za-z0-9._/:@-]+")  # what may stand in a command between two quotes


@dataclass(frozen=True)
class Cosigned:
    """A line of an Ed25519 witness under the checkpoint."""

    key: VerifierKey
    file: str

    @property
    def begins(self) -> str:
        """How the line begins: name and, as one witness may sign with two keys, as much of the key's id as is whole in base64."""
        return f"— {self.key.name} {to_base64(self.key.id)[:5]}"


@dataclass(frozen=True)
class Stamped:
    """Paths of a time stamp, and of the checkpoint that it is over."""

    token: str
    note: str


@dataclass(frozen=True)
class Outside:
    """What there is: lines and stamps to be checked, and the files that they are checked with."""

    log: VerifierKey
    cosigned: tuple[Cosigned, ...] = ()
    stamps: tuple[Stamped, ...] = ()
    files: Mapping[str, bytes] = field(default_factory=dict)


def outside(policy: bytes, checkpoint: bytes, times: Iterable[tuple[int, Mapping[str, Any]]]) -> Outside:
    """All that third parties said.

    Args:
        policy: of the packet.
        checkpoint: of its log, with its signature lines.
        times: (index, entry) of the entries of kind `time`; one that cannot be read has no files.

    Raises:
        BadEvidence: the policy or the checkpoint cannot be read, or the policy has no log.
    """
    trusted, note = Policy.parse(policy), Note.parse(checkpoint)
    origin = Checkpoint.parse(note.text).origin
    logs = [key for key in trusted.logs if key.name == origin]
    if not logs:
        raise BadEvidence(f"policy names no key of {origin}", code="unknown_log")
    keys = {_key_file(name, key): key for name, key in trusted.witnesses.items() if key.type == KeyType.COSIGNATURE}
    lines = {(line.name, line.key_id) for line in note.signatures}
    cosigned = [
        Cosigned(key, file)
        for file, key in keys.items()
        if (key.name, key.id) in lines and _PRINTED.fullmatch(key.name)
    ]
    stamps, files = _stamps(times)
    files |= {file: crypto.public_pem(key.public).encode() for file, key in keys.items()}
    return Outside(logs[0], tuple(cosigned), tuple(stamps), files)


def _key_file(name: str, key: VerifierKey) -> str:
    """By the policy's name for the witness, where that can be a file's name; else by the key's id."""
    return f"{WITNESS}{name if _PLAIN.fullmatch(name) else '_' + key.id.hex()}.pem"


def _stamps(times: Iterable[tuple[int, Mapping[str, Any]]]) -> tuple[list[Stamped], dict[str, bytes]]:
    """Stamps in the log's order. A second checkpoint of one size is `<size>.2`, a second token over one `<size>-2.tsr`."""
    stamps: list[Stamped] = []
    files: dict[str, bytes] = {}
    names: dict[bytes, str] = {}
    sizes: Counter[int] = Counter()
    tokens: Counter[str] = Counter()
    for _, entry in times:
        if (read := _read(entry)) is None:
            continue
        note, size, found = read
        if note not in names:
            sizes[size] += 1
            names[note] = f"{size}" if sizes[size] == 1 else f"{size}.{sizes[size]}"
        name = names[note]
        for token in found:
            tokens[name] += 1
            file = f"{TIME}{name}.tsr" if tokens[name] == 1 else f"{TIME}{name}-{tokens[name]}.tsr"
            files |= {f"{OLDER}{name}": note, file: token}
            stamps.append(Stamped(file, f"{OLDER}{name}"))
    return stamps, files


def _read(entry: Mapping[str, Any]) -> tuple[bytes, int, list[bytes]] | None:
    """Note, size and tokens of an entry of time; None where it has no token, or is none: that is named elsewhere."""
    try:
        note = from_base64(entry["checkpoint"], "checkpoint of a time", "bad_entry")
        if not entry["tokens"] or not all(isinstance(token, str) for token in entry["tokens"]):
            return None
        tokens = [from_base64(token, "token of a time", "bad_entry") for token in entry["tokens"]]
        return note, Checkpoint.parse(Note.parse(note).text).size, tokens
    except BadEvidence:
        return None
