"""Whom to trust: the logs, the witnesses, and how many of them must have cosigned (C2SP tlog-policy).

log <vkey> [<url>]
witness <name> <vkey> [<url>]
group <name> all|any|<k> <name>...
quorum <name>|none
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping

from compliance_agent.dataclass import dataclass
from compliance_agent.errors import BadEvidence
from compliance_agent.log.checkpoint import Checkpoint
from compliance_agent.log.fields import from_decimal
from compliance_agent.log.note import KeyType, Note, VerifierKey


@dataclass(frozen=True)
class Verified:
    """A checkpoint that a known log signed, and its witnesses: names of the policy, POSIX seconds (0: time not said)."""

    checkpoint: Checkpoint
    witnesses: Mapping[str, int]
    quorum_met: bool  # by nobody at all, if the policy says `quorum none`


@dataclass(frozen=True)
class Policy:
    """A policy file. A group is its threshold and its members; groups stand in the order of their lines."""

    logs: tuple[VerifierKey, ...]
    witnesses: Mapping[str, VerifierKey]
    groups: Mapping[str, tuple[int, tuple[str, ...]]]
    quorum: str
    urls: Mapping[VerifierKey, str]

    @classmethod
    def parse(cls, raw: bytes) -> Policy:
        """The policy of these bytes; code `bad_policy`, and the line's number in the message."""
        lines = _Lines()
        text = raw.decode("utf-8", "backslashreplace")  # a name may be any bytes, and has to be printed
        for number, line in enumerate(text.removesuffix("\n").split("\n"), 1):
            words = re.findall(r"[^ \t]+", line)
            try:
                if re.search(r"[\x00-\x08\x0b-\x1f\x7f]", line):
                    raise BadEvidence("holds a control character")
                if words and not words[0].startswith("#"):
                    lines.read(*words)
            except BadEvidence as error:
                raise BadEvidence(f"policy line {number}: {error}", code="bad_policy") from error
        if not lines.quorum or not text.endswith("\n"):
            raise BadEvidence("policy has no quorum line, or its last line has no end", code="bad_policy")
        return cls(tuple(lines.logs), lines.witnesses, lines.groups, lines.quorum, lines.urls)

    @property
    def lines(self) -> str:
        """Witnesses, groups and quorum as the lines of a policy file, without URLs."""
        groups = (f"group {name} {least} {' '.join(members)}\n" for name, (least, members) in self.groups.items())
        witnesses = (f"witness {name} {key}\n" for name, key in self.witnesses.items())
        return "".join([*witnesses, *groups, f"quorum {self.quorum}\n"])

    def is_met_by(self, witnesses: Collection[str]) -> bool:
        """Whether these of the policy's witnesses are a quorum."""
        seen = set(witnesses) & set(self.witnesses)
        for name, (threshold, members) in self.groups.items():  # a group only names what stands before it
            if len(seen.intersection(members)) >= threshold:
                seen.add(name)
        return self.quorum == "none" or self.quorum in seen

    def met_at(self, witnesses: Mapping[str, int]) -> int | None:
        """When these had made a quorum, by the times they say (POSIX seconds); None when they do not, or none is asked for.

        A cosignature that says no time (0) does not count.
        """
        said = {name: at for name, at in witnesses.items() if at > 0}
        if self.quorum == "none" or not self.is_met_by(said):
            return None
        return next(at for at in sorted(said.values()) if self.is_met_by([name for name in said if said[name] <= at]))

    def verify(self, raw: bytes) -> Verified:
        """The checkpoint in a signed note; codes as `Note.verify`, and `unknown_log` when no log of ours signed it."""
        checkpoint = Checkpoint.parse((note := Note.parse(raw)).text)
        logs = [key for key in self.logs if key.name == checkpoint.origin]
        signed = dict(note.verify([*logs, *self.witnesses.values()]))
        if signed.keys().isdisjoint(logs):
            raise BadEvidence(f"checkpoint of {checkpoint.origin} is signed by no known log", code="unknown_log")
        witnesses = {name: seen for name, key in self.witnesses.items() if (seen := signed.get(key)) is not None}
        return Verified(checkpoint, witnesses, self.is_met_by(witnesses))


class _Lines:
    """What the lines so far have defined; `read` refuses a line that does not fit them."""

    def __init__(self) -> None:
        self.logs: list[VerifierKey] = []
        self.witnesses: dict[str, VerifierKey] = {}
        self.groups: dict[str, tuple[int, tuple[str, ...]]] = {}
        self.quorum = ""
        self.urls: dict[VerifierKey, str] = {}
        self._free: set[str] = set()  # names that are no member of a group yet

    def read(self, *words: str) -> None:
        match words:
            case ("log", vkey, *url) if len(url) <= 1:
                self.logs.append(self._key(vkey, url, self.logs, KeyType.ED25519))
            case ("witness", name, vkey, *url) if len(url) <= 1:
                self._define(name)
                self.witnesses[name] = self._key(vkey, url, self.witnesses.values(), KeyType.COSIGNATURE)
            case ("group", name, threshold, *members) if members:
                self._join(members)
                self._define(name)
                least = {"any": "1", "all": str(len(members))}.get(threshold, threshold)
                self.groups[name] = (from_decimal(least, "threshold", "bad_policy"), tuple(members))
                if not 1 <= self.groups[name][0] <= len(members):
                    raise BadEvidence(f"threshold is not from 1 to {len(members)}")
            case ("quorum", name) if not self.quorum:
                if name != "none" and name not in {*self.witnesses, *self.groups}:
                    raise BadEvidence("quorum names nothing that is defined above")
                self.quorum = name
            case _:
                raise BadEvidence("is not a log, witness or group, nor the only quorum")

    def _key(self, vkey: str, url: list[str], others: Collection[VerifierKey], type_: KeyType) -> VerifierKey:
        key = VerifierKey.parse(vkey)
        if key.type not in {type_, KeyType.MLDSA44}:
            raise BadEvidence(f"key is of type {key.type:#04x}, which does not sign here")
        if key.public in {other.public for other in others}:
            raise BadEvidence("key stands on a line above already")
        self.urls.update({key: url[0]} if url else {})
        return key

    def _define(self, name: str) -> None:
        if name == "none" or name in self.witnesses or name in self.groups:
            raise BadEvidence("name is taken")
        self._free.add(name)

    def _join(self, members: list[str]) -> None:
        if len(set(members)) < len(members) or not self._free.issuperset(members):
            raise BadEvidence("a member is not defined above, or is in a group already")
        self._free.difference_update(members)
