"""Writes what is generated from the source, or says that it is out of date.

    python -m compliance_agent.lab.golden [--check]

`evidence/registry.json` (the closed word lists that agent and server hold evidence against),
`tests/golden/registry.txt` (the same for reviewers, one line a fact), `docs/checks.md`, and the pages of lab/handbook.py.
"""

from __future__ import annotations

import ast
import dataclasses
import errno
import importlib
import inspect
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from compliance_agent import checks, errors, facts, remedies
from compliance_agent.checks.spec import COMMON_REASONS, Check, Citation
from compliance_agent.core.citations import SECTIONS
from compliance_agent.core.proposed_rule import PROPOSED, STATUS
from compliance_agent.lab.handbook import events_page, reasons_page, settings_page

PACKAGE = Path(__file__).resolve().parent.parent
ROOT = PACKAGE.parent
NOT_THE_AGENT = {"admin", "server", "web", "lab", "cli", "packet"}  # their codes never stand in a bundle
WORD_LISTS = {
    "core.gates": "REASONS",
    "core.orders": "REASONS",
    "core.pausing": "REASONS",
    "core.receipt": "CODES",
    "healing": "CODES",
    "rotation": "WHY_NOT",
}  # modules that declare codes of their own


def generated() -> dict[Path, str]:
    """Every generated file with its text."""
    found = checks.registry()
    return {
        PACKAGE / "evidence" / "registry.json": registry_json(found),
        ROOT / "tests" / "golden" / "registry.txt": registry_text(found),
        ROOT / "docs" / "checks.md": handbook(found),
        ROOT / "docs" / "proposed-rule.md": proposed_rule_page(),
        ROOT / "docs" / "settings.md": settings_page(),
        ROOT / "docs" / "events.md": events_page(),
        ROOT / "docs" / "reasons.md": reasons_page(),
    }


def registry_json(found: Mapping[str, Check]) -> str:
    """The closed word lists as data."""
    data = {
        "version": 1,
        "common_reasons": list(COMMON_REASONS),
        "codes": sorted(codes()),
        "actions": list(remedies.actions()),
        "steps": {
            name: {"title": action.title, "undo_is_empty": action.undo_is_empty}
            for name, action in remedies.actions().items()
        },
        "checks": {name: _entry(check) for name, check in found.items()},
    }
    return json.dumps(data, indent=1, sort_keys=True, ensure_ascii=False) + "\n"


def _entry(check: Check) -> dict[str, Any]:
    spec = check.spec
    return {
        "title": spec.title,
        "severity": spec.severity.value,
        "rationale": spec.rationale,
        "reasons": dict(spec.reasons),
        "citations": [citation.section for citation in spec.citations],
        "does_not_prove": {citation.section: citation.does_not_prove for citation in spec.citations},
        "facts": {
            field.name: {"schema": kind.schema(), "doc": field.metadata["doc"]}
            for field, kind in zip(
                dataclasses.fields(spec.observation), facts.declared(spec.observation).values(), strict=True
            )
        },
    }


def codes() -> set[str]:
    """Every token that may say why something failed or was held back: codes of errors, errnos, gates, literals."""
    tokens = {name.lower() for name in vars(errno) if name.startswith("E")} | set(errors.CANNOT_TELL_REASONS)
    for _, kind in inspect.getmembers(errors, inspect.isclass):
        if issubclass(kind, errors.AgentError):
            tokens.add(kind.code)
    for module, attribute in WORD_LISTS.items():
        if PACKAGE.joinpath(*module.split(".")).with_suffix(".py").exists() or (PACKAGE / module).is_dir():
            tokens |= set(getattr(importlib.import_module(f"compliance_agent.{module}"), attribute, ()))
    for action in remedies.actions().values():
        tokens |= set(action.codes)
    for path in sorted(PACKAGE.rglob("*.py")):
        if path.relative_to(PACKAGE).parts[0] not in NOT_THE_AGENT:
            tokens |= set(_literal_codes(path))
    return {token for token in tokens if facts.TOKEN.fullmatch(token)}


def _literal_codes(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.keyword) and node.arg in {"code", "reason", "error", "no_plan_reason"}:
            yield from _words_of(node.value)


def _words_of(value: ast.expr) -> Iterator[str]:
    """The words an argument may be: `"a"`, or `"a" if locked else "b"`, or `found or "b"`."""
    match value:
        case ast.Constant(value=str(token)):
            yield token
        case ast.IfExp(body=first, orelse=second):
            yield from (*_words_of(first), *_words_of(second))
        case ast.BoolOp(values=values):
            for inner in values:
                yield from _words_of(inner)


def registry_text(found: Mapping[str, Check]) -> str:
    """One line for each thing a check declares, so that a change of what leaves a host is seen in review."""
    lines = []
    for name, check in found.items():
        spec = check.spec
        lines.append(
            f"check {name} severity={spec.severity} interval_s={spec.interval_s} deadline_s={spec.deadline_s:g}"
        )
        lines += [f"  cites {item.section}{' primary' if item.primary else ''}" for item in spec.citations]
        lines += [f"  takes {field.name}: {field.type}" for field in dataclasses.fields(spec.parameters)]
        lines += [
            f"  fact {fact}: {json.dumps(kind.schema(), sort_keys=True)}"
            for fact, kind in facts.declared(spec.observation).items()
        ]
        lines += [f"  reason {reason}" for reason in spec.reasons]
    lines += [f"action {name}({', '.join(action.arguments)})" for name, action in remedies.actions().items()]
    return "\n".join(lines) + "\n"


EVENTS_CHAPTER = (
    "## Events",
    "",
    "Each check is looked at by its own interval, and every look reads everything anew. Between two looks a change of what it",
    "reads wakes it at once: files by inotify, units by the signals of the service manager on the system's message bus, the",
    "ruleset by netlink (which takes `CAP_NET_ADMIN`), mounts by the kernel's mount table. An event says that something may have",
    "changed, never what it is: the check looks, and a cure goes through the same gates. Its record has the trigger `event`.",
    "",
    "A burst is one look, 2 ms after its first event; at once where the change is over: a transaction of the ruleset, a file",
    "that its writer has closed. Then the check rests `event_gap_sec`, twice as long with each look that",
    "follows soon (at most 5 min), and at least ten times as long as its last look took; what comes meanwhile is looked at at the",
    "end. All checks together have `event_looks_per_hour`; once they are spent, rounds alone look until half of them are an hour",
    "old. A kind that cannot be told of (no watches left, no bus, not permitted) is named in `status` and in the log as",
    "`events.troubled`, is tried again every five minutes, and is looked at by the rounds meanwhile. `events: false` turns it off.",
)


def handbook(found: Mapping[str, Check]) -> str:
    """docs/checks.md: what each check looks at, may record, and is evidence for."""
    lines = [
        "# Checks",
        "",
        "Generated by `./run golden` from the files in `compliance_agent/checks/`; edit those.",
        "",
        "A check ends in `pass`, `fail`, `unknown`, `not_applicable` or `exception`. Nothing but the facts listed here",
        "may leave a host. Reasons every check may give: " + ", ".join(f"`{word}`" for word in COMMON_REASONS) + ";",
        "[reasons.md](reasons.md) says what they mean, and what holds a cure back.",
        "",
        *EVENTS_CHAPTER,
    ]
    for name, check in found.items():
        lines += ["", *_chapter(name, check)]
    return "\n".join(lines) + "\n"


def proposed_rule_page() -> str:
    """docs/proposed-rule.md: what was proposed in 2025 beside what checks show, labelled as no law."""
    lines = [
        "# The proposed rule of 2025: not the law",
        "",
        "Generated by `./run golden` from `compliance_agent/core/proposed_rule.py`; edit that.",
        "",
        f"90 FR 898, RIN 0945-AA22: {STATUS}.",
        "Evidence cites the rule in force only ([checks.md](checks.md)); nothing on this page counts in a verdict.",
        "It says what a host would already show if the proposal became final as it stood.",
        "",
        "| would be asked | checks | what they show | what would still be missing |",
        "|---|---|---|---|",
    ]
    for item in PROPOSED:
        named = " ".join(f"`{check}`" for check in item.checks) or "none"
        lines.append(f"| {item.requirement} | {named} | {item.shows or 'nothing'} | {item.missing} |")
    return "\n".join(lines) + "\n"


def _cited(item: Citation) -> str:
    section = SECTIONS[item.section]
    return f"{item.section} {section.title} ({section.force}{', primary' if item.primary else ''})"


def _chapter(name: str, check: Check) -> list[str]:
    spec = check.spec
    lines = [f"## {name}", "", f"{spec.title}. {spec.rationale}", ""]
    lines.append(f"Severity {spec.severity}, every {spec.interval_s} s, given up after {spec.deadline_s:g} s.")
    if spec.needs:
        lines.append(f"Needs {', '.join(spec.needs)}.")
    if spec.reads:
        lines.append(f"Woken by a change of {', '.join(f'`{each}`' for each in spec.reads)}.")
    untold = dict.fromkeys(spec.untold.values())
    for why in untold:
        targets = ", ".join(f"`{target}`" for target, reason in spec.untold.items() if reason == why)
        lines.append(f"Not by {targets}: {why}.")
    lines += ["", "| 45 CFR | is evidence because | does not prove |", "|---|---|---|"]
    lines += [f"| {_cited(item)} | {item.rationale} | {item.does_not_prove} |" for item in spec.citations]
    lines += ["", "| parameter | default | meaning |", "|---|---|---|"]
    for field in dataclasses.fields(spec.parameters):
        required = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        default = "required" if required else f"`{_default(field)}`"
        lines.append(f"| `{field.name}` | {default} | {field.metadata.get('doc', '')} |")
    lines += ["", "| fact | type | meaning |", "|---|---|---|"]
    for field in dataclasses.fields(spec.observation):
        lines.append(f"| `{field.name}` | {_type_text(field.metadata['fact'].schema())} | {field.metadata['doc']} |")
    lines += ["", "| reason | meaning |", "|---|---|"]
    lines += [f"| `{reason}` | {sentence} |" for reason, sentence in spec.reasons.items()]
    return lines


def _default(field: dataclasses.Field[Any]) -> Any:
    if field.default is not dataclasses.MISSING:
        return field.default
    return field.default_factory() if field.default_factory is not dataclasses.MISSING else ""


def _type_text(schema: Mapping[str, Any]) -> str:
    match schema:
        case {"type": "int", "low": low, "high": high}:
            return f"whole number {low} to {high}"
        case {"type": "choice", "words": words}:
            return "one of " + ", ".join(f"`{word}`" for word in words)
        case {"type": "name", "parameter": parameter}:
            return f"name from `{parameter}`"
        case {"type": "many", "of": inner, "at_most": at_most}:
            return f"at most {at_most} of: {_type_text(inner)}"
    return str(schema["type"])


def main(arguments: Sequence[str]) -> int:
    """Write the files, or with `--check` name those that are out of date and return 1."""
    stale = {path: text for path, text in generated().items() if not path.exists() or path.read_text("utf-8") != text}
    for path, text in stale.items():
        print(f"{'out of date' if '--check' in arguments else 'wrote'}: {path.relative_to(ROOT)}")
        if "--check" not in arguments:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, "utf-8")
    return 1 if stale and "--check" in arguments else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
