"""A baseline proposed from a host that is well: what it is like becomes what it is held to, and a person reads it before it counts.

    the shipped baseline -> what each check proposes of this host -> one look at it -> the text of a baseline

Only what passes now is enforced. What fails, or cannot be told, is written down as audit with the reason beside it: a proposal must
neither make a fault the rule nor start to repair a host that nobody has decided about.
"""

from __future__ import annotations

import asyncio
import dataclasses
import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from compliance_agent.baseline import Baseline, Entry, names_of, typed_parameters
from compliance_agent.drift import look
from compliance_agent.errors import CannotTell, ConfigError
from compliance_agent.models import DriftResult, Mode, Result
from compliance_agent.ports import Clock, Host

HEAD = """\
# Proposed by `compliance-agent baseline init` from one host, as it was at {at}.
# Read it before it counts: what was so on that host is written here as what shall be so, whether it was right or not.
# docs/checks.md has every parameter.
version: {version}
mode: enforce

checks:
"""


@dataclass(frozen=True)
class Proposed:
    """One entry, and what the host looked like to it.

    Attributes:
        entry: with the mode it is proposed in.
        seen: names of the parameters that were taken from the host.
        untold: why nothing could be taken, where the host could not be asked.
        result: of one look with these parameters.
    """

    entry: Entry
    seen: tuple[str, ...]
    untold: str
    result: DriftResult


async def propose(base: Baseline, host: Host, clock: Clock) -> list[Proposed]:
    """An entry for each of `base`'s, in its order, with what the host itself says in place of the example's values."""
    return list(await asyncio.gather(*(_proposed(base, entry, host, clock) for entry in base.entries.values())))


async def _proposed(base: Baseline, entry: Entry, host: Host, clock: Clock) -> Proposed:
    values, untold = dict[str, Any](), ""
    if entry.check.propose is not None:
        try:
            async with asyncio.timeout(entry.deadline_s):
                values = dict(await entry.check.propose(host))
            entry = _with(entry, values)
        except CannotTell as error:
            values, untold = {}, error.reason
        except TimeoutError:
            values, untold = {}, "timed_out"
        except ConfigError as error:  # a name on this host that a baseline cannot hold
            values, untold = {}, error.code
    result = await look(entry, base, host, clock.now)
    fine = result.result is Result.PASS and not untold
    return Proposed(entry if fine else replace(entry, mode=Mode.AUDIT), tuple(values), untold, result)


def _with(entry: Entry, values: dict[str, Any]) -> Entry:
    known = {field.name: getattr(entry.parameters, field.name) for field in dataclasses.fields(entry.parameters)}
    given = {name: list(value) if isinstance(value, tuple) else value for name, value in (known | values).items()}
    given = {name: value for name, value in given.items() if value not in (None, [])}
    parameters = typed_parameters(entry.check.spec.parameters, given, f"checks.{entry.check.id}.parameters")
    return replace(entry, parameters=parameters, names=names_of(parameters))


def text_of(proposed: list[Proposed], version: str, at: str) -> str:
    """The file: YAML in which every value is also JSON, so that nothing of the host's can be read as anything else."""
    return HEAD.format(version=json.dumps(version), at=at) + "\n".join(_lines(proposed))


def _lines(proposed: list[Proposed]) -> Iterator[str]:
    for item in proposed:
        entry, result = item.entry, item.result
        said = "This host passes" if result.result is Result.PASS else f"This host: {result.result} ({result.reason})"
        yield f"  # {entry.check.spec.title}. {said}."
        if item.untold:
            yield f"  # Its values are the shipped example's: this host could not be asked ({item.untold})."
        yield f"  {entry.check.id}:"
        yield f"    mode: {entry.mode}"
        yield f"    interval_s: {entry.interval_s}"
        yield f"    deadline_s: {int(entry.deadline_s)}"
        yield "    parameters:"
        for field in dataclasses.fields(entry.parameters):
            value = getattr(entry.parameters, field.name)
            if value is not None and value != ():
                mark = " # as on this host" if field.name in item.seen else ""
                yield f"      {field.name}: {json.dumps(value)}{mark}"
        yield ""
