"""The firewall lets in what the baseline lists and nothing else, whoever wrote the rules.

The rules are read for their meaning: which ports a new connection from the network reaches over all tables together, and
whether what no rule names is dropped. So a hand-written ruleset may pass, and one port too many is seen wherever it was
opened. A baseline may also, or instead, pin the digest of the whole ruleset. The cure puts one table of the product's own
in place: with it nothing unlisted comes in, whatever other tables say, and they stay as they are.
"""

from __future__ import annotations

import functools
from dataclasses import field, replace

from compliance_agent.checks.spec import (
    UNREADABLE,
    Case,
    CheckSpec,
    Citation,
    Permits,
    Proposal,
    failed,
    passed,
    unknown,
)
from compliance_agent.core import nftables
from compliance_agent.core.nft_openings import openings
from compliance_agent.core.tools import answered
from compliance_agent.dataclass import dataclass
from compliance_agent.facts import SHA256, Bool, Choice, Digest, Int, fact
from compliance_agent.models import Plan, Result, Severity, Step, Verdict
from compliance_agent.ports import Host

MOST_PROPOSED = 64  # open ports; rules that open more are no list that a person has chosen


@dataclass(frozen=True)
class Parameters:
    allow_tcp: tuple[str, ...] = field(default=(), metadata={"doc": "TCP ports or ranges open to the network."})
    allow_udp: tuple[str, ...] = field(default=(), metadata={"doc": "UDP ports or ranges open to the network."})
    expected_sha256: str | None = field(
        default=None, metadata={"doc": "Digest of the whole ruleset's meaning, as this check's fact gives it."}
    )

    def __post_init__(self) -> None:
        for name in ("allow_tcp", "allow_udp"):
            try:
                nftables.port_mask(getattr(self, name))
            except ValueError as error:
                raise ValueError(f"{name}: {error}") from error
        if self.expected_sha256 is not None and not SHA256.fullmatch(self.expected_sha256):
            raise ValueError("expected_sha256: expected 64 lower-case hexadecimal digits")
        if not (self.lists or self.expected_sha256):
            raise ValueError("allow_tcp, allow_udp or expected_sha256 is required: there is nothing to compare with")

    @property
    def lists(self) -> bool:
        """Whether the baseline says which ports are open."""
        return bool(self.allow_tcp or self.allow_udp)


@dataclass(frozen=True)
class Observation:
    ruleset_sha256: str | None = fact(Digest(), "Digest of the ruleset's meaning: no counters, handles or comments.")
    tables: int | None = fact(Int(0, 100_000), "Tables of rules, of every program.")
    policy: str | None = fact(Choice(("drop", "accept", "none")), "What happens to a packet that no rule names.")
    unexpected_tcp: int | None = fact(Int(0, 65_536), "TCP ports reachable from the network that are not listed.")
    unexpected_udp: int | None = fact(Int(0, 65_536), "UDP ports reachable from the network that are not listed.")
    missing: int | None = fact(Int(0, 131_072), "Listed ports that are not reachable.")
    missing_elsewhere: int | None = fact(Int(0, 131_072), "Of these, closed by a table that is not the product's own.")
    replies: bool | None = fact(Bool(), "Answers to the host's own connections are let in.")
    opaque_rules: int | None = fact(Int(0, 1_000_000), "Conditions whose meaning nft does not show (xtables).")


CHECK = CheckSpec(
    id="firewall",
    title="The firewall lets in only what the baseline lists",
    severity=Severity.HIGH,
    rationale="A service that cannot be reached cannot be attacked from the network.",
    citations=(
        Citation(
            "164.308(a)(1)(ii)(B)",
            "Closing ports that nobody needs is a measure that reduces risks to a reasonable level.",
            "That the listed ports are the right ones, or that what listens there is safe.",
            primary=True,
        ),
        Citation(
            "164.312(e)(1)",
            "Dropping by default supports guarding against access over a network.",
            "That what is transmitted on open ports is protected; see transmission.",
        ),
    ),
    parameters=Parameters,
    observation=Observation,
    reasons={
        "no_firewall": "No rules stand at the host's input at all.",
        "policy_accepts": "A packet that no rule names is let in.",
        "unexpected_ports": "Ports that the baseline does not list can be reached.",
        "ports_missing": "Ports that the baseline lists are closed.",
        "replies_blocked": "Answers to the host's own connections are not let in.",
        "ruleset_changed": "The ruleset's digest is not the one the baseline pins.",
        "rules_not_understood": "Rules of the xtables kind may open ports; nft does not show their meaning.",
    },
    example={"allow_tcp": ("22", "443"), "allow_udp": ("546",)},
    needs=("nft",),
    reads=("ruleset:",),
)


async def observe(host: Host, baseline: Parameters) -> Observation:
    return _seen(answered(await host.ruleset(), "nft").out, baseline)


@functools.lru_cache(maxsize=1)  # the same listing means the same, and is most often the one of before
def _seen(raw: bytes, baseline: Parameters) -> Observation:
    ruleset = nftables.read(raw)
    found, elsewhere = openings(ruleset), openings(ruleset, without=nftables.TABLE)
    allowed = {"tcp": nftables.port_mask(baseline.allow_tcp), "udp": nftables.port_mask(baseline.allow_udp)}
    listed = baseline.lists
    return Observation(
        ruleset_sha256=ruleset.sha256,
        tables=len(ruleset.tables),
        policy=found.policy,
        unexpected_tcp=(found.reachable["tcp"] & ~allowed["tcp"]).bit_count() if listed else None,
        unexpected_udp=(found.reachable["udp"] & ~allowed["udp"]).bit_count() if listed else None,
        missing=sum((ports & ~found.reachable_both[name]).bit_count() for name, ports in allowed.items()),
        missing_elsewhere=sum((ports & ~elsewhere.reachable_both[name]).bit_count() for name, ports in allowed.items()),
        replies=found.replies,
        opaque_rules=found.opaque,
    )


async def propose(host: Host) -> Proposal:
    """The ports that the present rules open, where they open few: a host without rules is no example."""
    found = openings(nftables.read(answered(await host.ruleset(), "nft").out))
    if found.policy != "drop" or any(ports.bit_count() > MOST_PROPOSED for ports in found.reachable.values()):
        return {}
    ports = {proto: tuple(str(p) for p in range(65_536) if found.reachable[proto] >> p & 1) for proto in ("tcp", "udp")}
    return {f"allow_{proto}": listed for proto, listed in ports.items() if listed}


def judge(baseline: Parameters, seen: Observation) -> Verdict:
    if seen.policy is None or seen.ruleset_sha256 is None or seen.replies is None:
        return unknown("unparsable", "could not tell what the rules are")
    if seen.policy == "none":
        return failed("no_firewall", "expected rules at the input, found none")
    if seen.policy != "drop":
        return failed("policy_accepts", "expected unnamed packets to be dropped, found them let in")
    if baseline.lists and (verdict := _judge_ports(seen)) is not None:
        return verdict
    if not seen.replies:
        return failed("replies_blocked", "expected answers to the host's own connections to come in")
    if baseline.expected_sha256 not in {None, seen.ruleset_sha256}:
        return failed("ruleset_changed", "expected the pinned ruleset, found another one")
    return passed("nothing unlisted comes in" if baseline.lists else "the pinned ruleset stands")


def _judge_ports(seen: Observation) -> Verdict | None:
    if seen.unexpected_tcp is None or seen.unexpected_udp is None or seen.missing is None:
        return unknown("unparsable", "could not tell which ports are open")
    unexpected = seen.unexpected_tcp + seen.unexpected_udp
    if unexpected and seen.opaque_rules:
        return unknown("rules_not_understood", f"{unexpected} unlisted ports may be open, by rules not understood")
    if unexpected:
        return failed("unexpected_ports", f"expected only listed ports to be open, found {unexpected} others")
    if seen.missing:
        return failed("ports_missing", f"expected every listed port to be open, found {seen.missing} closed")
    return None


def plan(baseline: Parameters, seen: Observation) -> Plan | None:
    """Connections that stand are kept, so it disrupts nobody. A port that another program's table closes is for a person,
    and rules cannot be made from a digest alone.
    """
    if not baseline.lists or seen.missing_elsewhere or judge(baseline, seen).reason == "ruleset_changed":
        return None
    ports = {"allow_tcp": ",".join(baseline.allow_tcp), "allow_udp": ",".join(baseline.allow_udp)}
    return Plan(CHECK.id, (Step("load_ruleset", ports),))


def permits(baseline: Parameters) -> Permits:
    """The table, as it is loaded; none can be made from a digest alone."""
    return {"ruleset": nftables.generate(baseline.allow_tcp, baseline.allow_udp)} if baseline.lists else {}


_GOOD = Observation(
    ruleset_sha256="5" * 64,
    tables=1,
    policy="drop",
    unexpected_tcp=0,
    unexpected_udp=0,
    missing=0,
    missing_elsewhere=0,
    replies=True,
    opaque_rules=0,
)
_PINNED = {"allow_tcp": (), "allow_udp": (), "expected_sha256": "5" * 64}

CASES = (
    Case("as listed", _GOOD, Result.PASS, "as_expected"),
    Case("pinned and unchanged", replace(_GOOD, unexpected_tcp=None), Result.PASS, parameters=_PINNED),
    Case("pinned and changed", replace(_GOOD, ruleset_sha256="6" * 64), Result.FAIL, "ruleset_changed", _PINNED),
    Case("flushed", replace(_GOOD, policy="none", tables=0), Result.FAIL, "no_firewall", heals=True),
    Case("lets in what is unnamed", replace(_GOOD, policy="accept"), Result.FAIL, "policy_accepts", heals=True),
    Case("one port too many", replace(_GOOD, unexpected_tcp=1), Result.FAIL, "unexpected_ports", heals=True),
    Case("a listed port closed", replace(_GOOD, missing=1), Result.FAIL, "ports_missing", heals=True),
    Case("closed by another program", replace(_GOOD, missing=1, missing_elsewhere=1), Result.FAIL, "ports_missing"),
    Case("answers kept out", replace(_GOOD, replies=False), Result.FAIL, "replies_blocked", heals=True),
    Case(
        "xtables rules may open ports",
        replace(_GOOD, unexpected_tcp=65_536, opaque_rules=2),
        Result.UNKNOWN,
        "rules_not_understood",
    ),
    Case("nothing seen", Observation(), Result.UNKNOWN),
    Case("cannot ask nft", UNREADABLE, Result.UNKNOWN),
)
