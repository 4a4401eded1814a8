"""Read tools: what comes with this program and is the same for everybody: checks, runbooks, sections of the rule."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from compliance_agent.core.citations import SECTIONS
from compliance_agent.core.planning import cure_document
from compliance_agent.evidence.allowlist import registry
from compliance_agent.runbook import Runbook, When, shipped
from compliance_agent.server.services.tools.scene import Scene
from compliance_agent.server.services.tools.standing import CHECK, LIMIT, SKIP
from compliance_agent.server.services.tools.words import Answer, Tier, Tool, page, word


def _check(name: str) -> dict[str, Any]:
    known = registry().checks[name]
    return {"check": name, **{field: known[field] for field in ("title", "severity")}}


async def _checks(_scene: Scene, arguments: Mapping[str, Any]) -> Answer:
    return page([_check(name) for name in sorted(registry().checks)], arguments)


async def _show_check(_scene: Scene, arguments: Mapping[str, Any]) -> Answer:
    known = registry().checks[arguments["check"]]
    more = ("rationale", "citations", "does_not_prove", "reasons")
    about = [runbook.id for runbook in shipped().values() if arguments["check"] in runbook.checks]
    return Answer({**_check(arguments["check"]), **{field: known[field] for field in more}, "runbooks": about})


def _runbook(item: Runbook) -> dict[str, Any]:
    return {
        "runbook": item.id,
        "version": item.version,
        "sha256": item.sha256,
        "name": item.name,
        "sla_s": item.sla_s,
        "checks": list(item.checks),
        "citations": list(item.citations),
    }


async def _runbooks(_scene: Scene, arguments: Mapping[str, Any]) -> Answer:
    return page([_runbook(item) for item in shipped().values()], arguments)


async def _show_runbook(_scene: Scene, arguments: Mapping[str, Any]) -> Answer:
    found = shipped()[arguments["runbook"]]
    cures = [{"when": _when(cure.when), **cure_document(cure)} for cure in found.cures]
    return Answer(
        {**_runbook(found), "people": [{"when": _when(item.when), "do": item.do} for item in found.people]}, cures
    )


def _when(when: When) -> dict[str, Any]:
    return {"check": when.check or None, "reasons": list(when.reasons), "code": when.code or None}


def _section(name: str) -> dict[str, Any]:
    found = SECTIONS[name]
    return {"section": name, "title": found.title, "force": str(found.force), "reach": str(found.reach)}


async def _citations(_scene: Scene, arguments: Mapping[str, Any]) -> Answer:
    return page([_section(name) for name in SECTIONS], arguments)


async def _show_citation(_scene: Scene, arguments: Mapping[str, Any]) -> Answer:
    name = arguments["section"]
    citing = sorted(check for check, known in registry().checks.items() if name in known["citations"])
    return Answer({**_section(name), "checks": citing})


REFERENCE = (
    Tool("list_checks", Tier.READ, "Every check of this version.", (SKIP, LIMIT), _checks),
    Tool(
        "show_check",
        Tier.READ,
        "One check: why it is there, what each reason means, what it does not prove.",
        (CHECK,),
        _show_check,
    ),
    Tool("list_runbooks", Tier.READ, "The runbooks of this version.", (SKIP, LIMIT), _runbooks),
    Tool(
        "show_runbook",
        Tier.READ,
        "One runbook: for each finding the steps that the agent may take, and what is left to people.",
        (word("runbook", "A runbook's id", shipped()),),
        _show_runbook,
    ),
    Tool("list_citations", Tier.READ, "Sections of 45 CFR Part 164.", (SKIP, LIMIT), _citations),
    Tool(
        "show_citation",
        Tier.READ,
        "One section of 45 CFR Part 164, and the checks that cite it.",
        (word("section", "A section, such as 164.312(b)", SECTIONS),),
        _show_citation,
    ),
)
