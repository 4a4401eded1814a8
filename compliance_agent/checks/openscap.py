"""A published SCAP profile is evaluated by `oscap`, and the rules that the baseline lists pass.

The content decides what a rule's word is worth, so its digest is pinned: content nobody reviewed proves nothing. A rule that does
not apply, was not checked or could not be decided is no pass, and a profile of which nothing applies (content for another
release, a container) is no evaluation. Rules are named only where the baseline names them; all others are counted. Nothing is
ever fixed by `oscap`.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import field, replace

from compliance_agent.checks.spec import UNREADABLE, Case, CheckSpec, Citation, failed, passed, unknown
from compliance_agent.core.tools import answered, refused, unparsable
from compliance_agent.dataclass import dataclass
from compliance_agent.errors import CannotTell
from compliance_agent.facts import SHA256, Bool, Int, Many, Name, fact
from compliance_agent.models import Plan, Result, Severity, Verdict
from compliance_agent.ports import Host, Ran

PREFIX = "xccdf_org.ssgproject.content_rule_"
MAX_CONTENT_BYTES = 134_217_728
DECIDED = (0, 2)  # exit status: every rule passed, or at least one did not
_LINE = re.compile(r"([A-Za-z0-9_.-]{1,200}):([a-z]{4,16})")
# XCCDF 1.2, table 26 (its `error` and `unknown` are both "could not tell" here)
WORDS = frozenset(
    {"pass", "fail", "error", "unknown", "notapplicable", "notchecked", "notselected", "informational", "fixed"}
)


@dataclass(frozen=True)
class Parameters:
    content: str = field(metadata={"doc": "The SCAP source data stream or XCCDF file."})
    content_sha256: str = field(metadata={"doc": "SHA-256 of that file as it was reviewed."})
    profile: str = field(metadata={"doc": "Id of the profile, as `oscap info` prints it."})
    rules: tuple[str, ...] = field(
        metadata={"doc": f"Rules of the profile that must pass, without the prefix `{PREFIX}`."}
    )
    cpe: str | None = field(
        default=None,
        metadata={"doc": "CPE dictionary that says on which systems the content applies, in place of its own."},
    )

    def __post_init__(self) -> None:
        if not self.rules:
            raise ValueError("rules: expected at least one; a profile of which nothing must pass proves nothing")
        if not SHA256.fullmatch(self.content_sha256):
            raise ValueError("content_sha256: expected 64 lower-case hexadecimal digits")
        for name in ("content", "cpe"):
            path = getattr(self, name)
            if path is not None and not path.startswith("/"):
                raise ValueError(f"{name}: expected an absolute path")
        if not self.profile:
            raise ValueError("profile: is empty")


@dataclass(frozen=True)
class Observation:
    content_as_reviewed: bool | None = fact(Bool(), "The content file has the digest that the baseline pins.")
    passed: int | None = fact(Int(0, 100_000), "Rules of the profile that passed.")
    failed: int | None = fact(Int(0, 100_000), "Rules of the profile that failed.")
    not_applicable: int | None = fact(Int(0, 100_000), "Rules of the profile that do not apply to this system.")
    undecided: int | None = fact(Int(0, 100_000), "Rules of the profile that were not checked or could not be decided.")
    rules_failed: tuple[str, ...] | None = fact(Many(Name("rules")), "Listed rules that failed.")
    rules_undecided: tuple[str, ...] | None = fact(
        Many(Name("rules")), "Listed rules that do not apply, were not checked or could not be decided."
    )
    rules_missing: tuple[str, ...] | None = fact(Many(Name("rules")), "Listed rules that the profile does not hold.")


CHECK = CheckSpec(
    id="openscap",
    title="A published SCAP profile was evaluated and the listed rules pass",
    severity=Severity.MEDIUM,
    rationale="An evaluation by rules that others wrote and review finds what a provider's own checks do not look for.",
    citations=(
        Citation(
            "164.308(a)(8)",
            rationale="A technical evaluation against a published profile is made regularly, and its result recorded.",
            does_not_prove="That the evaluation of people and procedures was made, or that the profile fits this clinic.",
            primary=True,
        ),
        Citation(
            "164.308(a)(1)(ii)(B)",
            rationale="The listed hardening rules are shown to be in force.",
            does_not_prove="That the risks of this clinic are those that the profile's authors had in mind.",
        ),
    ),
    parameters=Parameters,
    observation=Observation,
    reasons={
        "rule_failed": "A listed rule failed.",
        "content_changed": "The content is not the file that was reviewed.",
        "rule_missing": "The profile does not hold a listed rule.",
        "rule_undecided": "A listed rule does not apply here, was not checked, or could not be decided.",
        "nothing_applies": "No rule of the profile applies to this system.",
    },
    example={
        "content": "/usr/share/xml/scap/ssg/content/ssg-debian11-ds.xml",
        "content_sha256": hashlib.sha256(b"<content/>\n").hexdigest(),
        "profile": "xccdf_org.ssgproject.content_profile_standard",
        "rules": ("file_permissions_etc_shadow", "sshd_disable_empty_passwords"),
    },
    needs=("oscap", "SCAP content, such as Debian's ssg-debian", "root: rules read files that others may not"),
    reads=("path:{content}",),
    interval_s=86_400,
    deadline_s=600.0,
)


async def observe(host: Host, baseline: Parameters) -> Observation:
    await _root(host)
    seen = Observation(content_as_reviewed=await _digest(host, baseline.content) == baseline.content_sha256)
    if not seen.content_as_reviewed:
        return seen
    ran = await host.run(command(baseline), timeout_s=CHECK.deadline_s - 10)
    return _with_results(seen, _results(ran), baseline.rules)


async def _digest(host: Host, path: str) -> str:
    """SHA-256 of the content, which has tens of megabytes: they are not held all at once, unless a link leads there."""
    found = (await host.digests((path,), most_bytes=MAX_CONTENT_BYTES, total_bytes=MAX_CONTENT_BYTES))[path]
    if isinstance(found, CannotTell):
        raise found
    if found.sha256 is not None:
        return found.sha256
    return hashlib.sha256(await host.read(path, limit_bytes=MAX_CONTENT_BYTES)).hexdigest()


async def _root(host: Host) -> None:
    """A rule about a file that may not be read says what it likes, so nobody but root may ask."""
    if answered(await host.run(("id", "-u")), "id").text != "0\n":
        raise CannotTell("not_permitted", "only root can read what the rules are about")


def command(baseline: Parameters) -> tuple[str, ...]:
    cpe = () if baseline.cpe is None else ("--cpe", baseline.cpe)
    return ("oscap", "xccdf", "eval", "--progress", "--profile", baseline.profile, *cpe, baseline.content)


def _results(ran: Ran) -> dict[str, str]:
    """Result word by rule.

    Raises:
        CannotTell: `tool_failed`, `not_permitted`, `unparsable`.
    """
    if ran.exit_status not in DECIDED:
        raise CannotTell("not_permitted" if refused(ran) else "tool_failed", f"oscap ended with {ran.exit_status}")
    found: dict[str, str] = {}
    for line in ran.text.splitlines():
        match = _LINE.fullmatch(line)
        if match is None or match[2] not in WORDS or match[1] in found:
            raise unparsable("oscap", "each rule once, with a result word of XCCDF 1.2")
        found[match[1]] = match[2]
    if ("fail" in found.values()) != (ran.exit_status == 2) and "unknown" not in found.values():
        raise unparsable("oscap", "an exit status that agrees with its results")
    return found


def _with_results(seen: Observation, results: Mapping[str, str], rules: Sequence[str]) -> Observation:
    words = list(results.values())
    own = {rule: results.get(rule, results.get(PREFIX + rule)) for rule in rules}
    good, bad = words.count("pass") + words.count("fixed"), words.count("fail")
    return replace(
        seen,
        passed=good,
        failed=bad,
        not_applicable=words.count("notapplicable"),
        undecided=len(words) - good - bad - words.count("notapplicable"),
        rules_failed=tuple(rule for rule, word in own.items() if word == "fail"),
        rules_undecided=tuple(rule for rule, word in own.items() if word not in {None, "fail", "pass"}),
        rules_missing=tuple(rule for rule, word in own.items() if word is None),
    )


def judge(baseline: Parameters, seen: Observation) -> Verdict:
    if seen.content_as_reviewed is None:
        return unknown("unparsable", "whether the content is the one that was reviewed could not be told")
    if not seen.content_as_reviewed:
        return failed("content_changed", "expected the content that was reviewed, found another file")
    if None in (seen.passed, seen.failed, seen.rules_failed, seen.rules_undecided, seen.rules_missing):
        return unknown("unparsable", "what the rules found could not be told")
    if not seen.passed and not seen.failed:
        return unknown("nothing_applies", "no rule of the profile applies to this system, so nothing was evaluated")
    if seen.rules_failed:
        return failed("rule_failed", f"expected every listed rule to pass, {', '.join(seen.rules_failed)} failed")
    if seen.rules_missing:
        return unknown("rule_missing", f"the profile does not hold {', '.join(seen.rules_missing)}")
    if seen.rules_undecided:
        return unknown("rule_undecided", f"could not be decided here: {', '.join(seen.rules_undecided)}")
    return passed(f"{len(baseline.rules)} listed rules pass; of the whole profile {seen.failed} fail")


def plan(baseline: Parameters, seen: Observation) -> Plan | None:
    """Never: what a rule asks for is put back by the check that is about it, or by a person."""
    return None


GOOD = Observation(
    content_as_reviewed=True,
    passed=17,
    failed=1,
    not_applicable=2,
    undecided=0,
    rules_failed=(),
    rules_undecided=(),
    rules_missing=(),
)
CASES = (
    Case("the listed rules pass", GOOD, Result.PASS, "as_expected"),
    Case(
        "a listed rule fails", replace(GOOD, rules_failed=("file_permissions_etc_shadow",)), Result.FAIL, "rule_failed"
    ),
    Case(
        "other content",
        Observation(content_as_reviewed=False),
        Result.FAIL,
        "content_changed",
        scene=lambda host: host.put("/usr/share/xml/scap/ssg/content/ssg-debian11-ds.xml", "<other/>"),
    ),
    Case(
        "a listed rule does not apply",
        replace(GOOD, rules_undecided=("sshd_disable_empty_passwords",)),
        Result.UNKNOWN,
        "rule_undecided",
    ),
    Case(
        "a rule that is not in the profile",
        replace(GOOD, rules_missing=("sshd_disable_empty_passwords",)),
        Result.UNKNOWN,
        "rule_missing",
    ),
    Case(
        "content for another release",
        replace(GOOD, passed=0, failed=0, not_applicable=44, rules_undecided=("file_permissions_etc_shadow",)),
        Result.UNKNOWN,
        "nothing_applies",
    ),
    Case("nothing seen", Observation(), Result.UNKNOWN),
    Case("no results seen", Observation(content_as_reviewed=True), Result.UNKNOWN),
    Case("no oscap", UNREADABLE, Result.UNKNOWN),
)
