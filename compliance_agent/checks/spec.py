"""What a check is: a spec, three functions and cases, in one file of this package.

    CHECK = CheckSpec(id=..., parameters=Parameters, observation=Observation, reasons=(...), citations=(...), ...)
    async def observe(host: Host, baseline: Parameters) -> Observation      asks, never changes
    def judge(baseline: Parameters, seen: Observation) -> Verdict           pure
    def plan(baseline: Parameters, seen: Observation) -> Plan | None        pure; only asked after a `fail`
    CASES = (Case(...), ...)                                                  the check's own examples, run by `make check`
    def permits(baseline: Parameters) -> Permits   optional: what the root side may do for the cure
    async def propose(host: Host) -> Proposal      optional: parameters that this host is like, for `baseline init`; only looks

`observe` raises `CannotTell` (or lets one from the host pass) when it could not look; a fact it could not read while others
could be is left `None`, and `judge` must then not answer `pass` on its strength. `judge_seen` is the one way from a look to
a verdict: it turns `Unreadable` into `unknown` and holds every reason against the check's declaration.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import field
from typing import Any, Protocol

from compliance_agent.dataclass import dataclass
from compliance_agent.errors import CANNOT_TELL_REASONS
from compliance_agent.models import Plan, Result, Severity, Verdict
from compliance_agent.ports import Host

COMMON_REASONS = ("as_expected", *CANNOT_TELL_REASONS)


@dataclass(frozen=True)
class Citation:
    """One link from a check to the rule, with what it is worth.

    Attributes:
        section: `164.312(b)` form, of 45 CFR Part 164.
        rationale: why this check's result is evidence for that section.
        does_not_prove: what remains for people to show.
        primary: the main section this check serves.
    """

    section: str
    rationale: str
    does_not_prove: str
    primary: bool = False


@dataclass(frozen=True)
class Unreadable:
    """In place of an observation: the look failed, for this reason."""

    reason: str
    errno_name: str | None = None
    message: str = ""


UNREADABLE = Unreadable("tool_failed")


class Scene(Protocol):
    """A simulated clinic host, as a case may set it up; the whole of it is lab/host.py."""

    def put(
        self, path: str, content: bytes | str = b"", *, mode: int = 0o644, uid: int = 0, age_s: float = 0.0
    ) -> None:
        """Have a regular file with this content, last modified `age_s` ago, and its parent directories."""
        ...

    def delete(self, path: str) -> None:
        """Have nothing at this path and below it."""
        ...

    def service(self, name: str, *, active: bool = True, enabled: str = "enabled") -> None:
        """Have a unit in this state."""
        ...


@dataclass(frozen=True)
class Case:
    """An example that the check must judge as stated.

    Attributes:
        name: what the example shows.
        seen: the observation, or an `Unreadable`.
        expect: the result it must be judged as.
        reason: the reason it must be judged with, when that matters.
        parameters: values that differ from the spec's example parameters.
        heals: a plan must exist for it.
        scene: makes a simulated host one of which the check sees just this. Needed where lab/clinic.py does not have what
            the check looks at: the first passing case's furnishes every simulated host, a healing case's is the drift
            on which the cure is shown.
    """

    name: str
    seen: Any
    expect: Result
    reason: str | None = None
    parameters: Mapping[str, Any] = field(default_factory=dict)
    heals: bool = False
    scene: Callable[[Scene], None] | None = None


@dataclass(frozen=True)
class CheckSpec:
    """The constant part of a check.

    Attributes:
        id: stable token, also the name in the baseline; the file is named after it.
        title: what is true when it passes, as a sentence.
        severity: weight of a failure.
        rationale: why it matters, one sentence.
        citations: links to 45 CFR 164, at least one, exactly one primary.
        parameters: frozen dataclass of what the baseline may set; each field has a default or is required, and
            `metadata={"doc": sentence}`; allowed types are bool, int, str and tuple[str, ...]. One that names units says
            with `"unit": "needed"` or `"forbidden"` what it wants of them: a baseline that wants both is refused.
        observation: frozen dataclass of facts (see facts.py).
        reasons: every reason `judge` may give besides the common ones, each with its sentence for docs and screens.
        example: parameter values that make every case meaningful (required parameters filled).
        for_people: reasons that only a person can end, and that `judge` gives after all others: a cure that leaves
            nothing else has done its part. It is kept, and said to need a person, rather than undone.
        needs: programs, sockets or files it depends on, for the docs.
        reads: what it reads and the machine tells changes of, so that an event wakes it between two looks: `path:` (a file, or a
            directory with the files in it), `unit:`, `ruleset:`, `mounts:`; a `{parameter}` stands for its value or each of them.
        untold: what it looks at besides that, and why no event wakes it: shell patterns over `target`, as in `optional`.
        optional: faults of an answer after which the check may still pass, and why; every other one must keep it from
            passing. Keys are shell patterns over `target fault`, such as `stat:/run/reboot-required not_found`.
        interval_s: default seconds between looks.
        deadline_s: default seconds after which the look is given up as `timed_out`.
    """

    id: str
    title: str
    severity: Severity
    rationale: str
    citations: tuple[Citation, ...]
    parameters: type
    observation: type
    reasons: Mapping[str, str]
    example: Mapping[str, Any] = field(default_factory=dict)
    for_people: tuple[str, ...] = ()
    needs: tuple[str, ...] = ()
    reads: tuple[str, ...] = ()
    untold: Mapping[str, str] = field(default_factory=dict)
    optional: Mapping[str, str] = field(default_factory=dict)
    interval_s: int = 60
    deadline_s: float = 10.0


Proposal = Mapping[str, "str | tuple[str, ...]"]
# By field of `heal/permits.py`: files (path -> lines), modes (path -> bits), ruleset (text), may (tokens).
Permits = Mapping[str, Any]


@dataclass(frozen=True)
class Check:
    """A registered check: its spec and its functions, taken from its module."""

    spec: CheckSpec
    observe: Callable[[Host, Any], Awaitable[Any]]
    judge: Callable[[Any, Any], Verdict]
    plan: Callable[[Any, Any], Plan | None]
    cases: Sequence[Case]
    propose: Callable[[Host], Awaitable[Proposal]] | None = None
    permits: Callable[[Any], Permits] | None = None

    @property
    def id(self) -> str:
        """The check's id."""
        return self.spec.id


def judge_seen(check: Check, baseline: object, seen: object) -> Verdict:
    """The verdict on what was seen, or on not having been able to look.

    Raises:
        RuntimeError: the check gave a reason it does not declare, or `exception`, which is not a check's to give.
    """
    if isinstance(seen, Unreadable):
        return Verdict(Result.UNKNOWN, seen.reason, seen.message or f"could not look: {seen.reason}")
    verdict = check.judge(baseline, seen)
    if verdict.reason not in COMMON_REASONS and verdict.reason not in check.spec.reasons:
        raise RuntimeError(f"{check.id} judged with undeclared reason {verdict.reason!r}")
    if verdict.result is Result.EXCEPTION:
        raise RuntimeError(f"{check.id} judged an exception; exceptions are approved by people")
    return verdict


def lines_of(content: bytes) -> list[dict[str, str]]:
    """Permission to write a file of exactly these lines."""
    return [{"line": line} for line in content.decode("ascii").splitlines()]


def passed(sentence: str = "as expected") -> Verdict:
    """The host is as the baseline says."""
    return Verdict(Result.PASS, "as_expected", sentence)


def failed(reason: str, sentence: str) -> Verdict:
    """The host was seen, and it is not as the baseline says."""
    return Verdict(Result.FAIL, reason, sentence)


def unknown(reason: str, sentence: str) -> Verdict:
    """It could not be told."""
    return Verdict(Result.UNKNOWN, reason, sentence)


def not_applicable(reason: str, sentence: str) -> Verdict:
    """The host was seen to lack what the check is about (not: the check could not find it)."""
    return Verdict(Result.NOT_APPLICABLE, reason, sentence)
