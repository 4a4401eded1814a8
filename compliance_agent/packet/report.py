"""What was found in a packet, and as which JSON it is said."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from compliance_agent.errors import BadEvidence
from compliance_agent.evidence.problems import Problem
from compliance_agent.evidence.stamped import Said
from compliance_agent.evidence.times import Times
from compliance_agent.packet.content import Scope

Quorum = Literal["met", "unwitnessed", "not_asked"]


@dataclass(frozen=True)
class OpenEnd:
    """An end of a host's records that a packet leaves open, since it was built for an account that may not see what lies beyond."""

    host_id: str
    detail: str


@dataclass
class Report:
    """What was found. `ok` means: records were there, and nothing was wrong with the packet.

    Attributes:
        open_ends: what a packet for certain days cannot show, and why; no problem, and said wherever the packet is.
        own_policy: whom to trust for the log came with the packet.
        own_authority: time stamps were checked under the certificates that came with the packet.
        quorum: of the policy's witnesses, under the checkpoint; None where that does not verify.
    """

    scope: Scope | None = None
    found: int = 0
    verified: int = 0
    own_policy: bool = True
    own_authority: bool = False
    quorum: Quorum | None = None
    times: Times = field(default_factory=lambda: Times({}))
    said: Said = field(default_factory=Said)
    problems: list[Problem] = field(default_factory=list)
    open_ends: list[OpenEnd] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Every record verified and nothing is wrong."""
        return self.found > 0 and not self.problems

    @property
    def exit_status(self) -> int:
        """0 all verified, 65 something is wrong."""
        return 0 if self.ok else BadEvidence.exit_status

    def as_document(self) -> dict[str, Any]:
        """The report as the JSON of `packet verify --json`."""
        return {
            "schema": "compliance-agent/packet-verify/v1",
            "ok": self.ok,
            "site_id": self.scope.site_id if self.scope else None,
            "log": {"origin": self.scope.origin, "size": self.scope.size} if self.scope else None,
            "found": self.found,
            "verified": self.verified,
            "keys_from_packet": self.own_policy,
            "time_ca_from_packet": self.own_authority,
            "quorum": self.quorum,
            "cosignatures": self.said.cosignatures,
            "tokens": self.said.tokens,
            "tokens_unchecked": self.said.tokens_unchecked,
            "times": self.times.as_document(),
            "limits": asdict(self.scope.limits) if self.scope and self.scope.limits else None,
            "sample": self.scope.sample if self.scope else None,
            "open_ends": [{"where": item.host_id, "detail": item.detail} for item in self.open_ends],
            "problems": [{"code": item.code, "where": item.where, "detail": item.detail} for item in self.problems],
        }
