"""What a language model is asked about findings, and what of its answer is taken. Pure: no network, and nothing is done.

    question([proposal, ...])  -> typed facts and, for each finding, the options that the rules allow
    answered(raw, asked)       -> one of these options for each finding that it names, or a refusal with its code

Out go words of closed lists and whole numbers: no id of a host, a site or a person, no label, no time, no text of a host. A check
or reason that this version does not know is not asked about. Back comes a choice among what was offered, by number and word;
whatever else stands in an answer makes the whole of it nothing. No part of an answer is kept, shown or logged as text.
"""

from __future__ import annotations

import json
from collections.abc import Container, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from compliance_agent.core.planning import Proposal, options
from compliance_agent.documents import read_json
from compliance_agent.errors import DocumentError
from compliance_agent.evidence.allowlist import registry
from compliance_agent.evidence.canonical import canonical
from compliance_agent.models import Outcome

MOST = 20
NONE = "none"
MAX_REPLY_BYTES = 65_536
MAX_ANSWER_BYTES = 4_096
MOST_HOURS = 8_760
INSTRUCTION = (
    "You look at findings of a compliance agent on hosts of clinics. For each finding you may choose one of its options:"
    " check (look again), remediate (ask for the runbook's cure; the host's own gates decide), approve (let people approve the plan"
    ' that waits), none. Answer with exactly one JSON object {"choices": [{"finding": <n>, "option": "<word>"}]} and nothing else.'
    " People decide; you run nothing."
)
REASONS = {
    "model_off": "no model is configured",
    "model_unreachable": "the model's server does not answer in time, or not with 200",
    "model_reply": "what came back is no chat completion with one text",
    "model_answer": "the text is not exactly the agreed object",
    "model_choice": "it names a finding or an option that was not offered, or a finding twice",
    "model_too_often": "as many questions as may be asked in an hour were asked",
}


@dataclass(frozen=True)
class Question:
    """What is asked.

    Attributes:
        facts: the exact bytes of the findings, as the model gets them.
        proposals: what they are about, in the order of their numbers; this stays here.
    """

    facts: bytes
    proposals: tuple[Proposal, ...]


@dataclass(frozen=True)
class Advice:
    """A choice for one finding; `kind` is None where the model would do nothing."""

    proposal: Proposal
    kind: str | None


class AnswerRefused(DocumentError):
    """An answer of which nothing is taken; `code` is one of `REASONS`."""


def question(proposals: Iterable[Proposal], now: datetime) -> Question:
    """What to ask about the first `MOST` of these for which there is a choice."""
    asked = [item for item in proposals if options(item) and _is_known(item)][:MOST]
    facts = canonical({"findings": [_facts(number, item, now) for number, item in enumerate(asked)]})
    return Question(facts, tuple(asked))


def _is_known(proposal: Proposal) -> bool:
    finding = proposal.finding
    return finding.check in registry().checks and finding.reason in registry().may_say(finding.check, gates=True)


def _facts(number: int, proposal: Proposal, now: datetime) -> dict[str, Any]:
    finding = proposal.finding
    hours = int((now - finding.since).total_seconds()) // 3600
    return {
        "n": number,
        "check": finding.check,
        "reason": finding.reason,
        "result": "unknown" if finding.result == "unknown" else "fail",
        "held": _word(finding.held, registry().may_say(finding.check, gates=True)),
        "outcome": _word(finding.outcome, frozenset(map(str, Outcome))),
        "hours": max(0, min(hours, MOST_HOURS)),
        "rule": proposal.rule,
        "runbook": proposal.runbook.id if proposal.runbook is not None else None,
        "disruptive": any(cure.disruptive for cure in proposal.cures),
        "options": [*options(proposal), NONE],
    }


def _word(value: str, known: Container[str]) -> str | None:
    """A word of a closed list; anything else is `other`."""
    return (value if value in known else "other") if value else None


def request(model: str, asked: Question) -> bytes:
    """The body of a chat completion, as OpenAI-compatible servers take it."""
    return json.dumps(
        {
            "model": model,
            "temperature": 0,
            "max_tokens": 1_000,
            "messages": [
                {"role": "system", "content": INSTRUCTION},
                {"role": "user", "content": asked.facts.decode("ascii")},
            ],
        }
    ).encode("ascii")


def answered(raw: bytes, asked: Question) -> tuple[Advice, ...]:
    """The choices of a reply.

    Raises:
        AnswerRefused: anything but what was agreed; nothing of it is taken, and no word of it is in the message.
    """
    text = _text(raw)
    try:
        document = read_json(text.encode("utf-8", "surrogatepass"), limit_bytes=MAX_ANSWER_BYTES, max_depth=4)
    except DocumentError as error:
        raise _refused("model_answer", error.code) from error
    if not isinstance(document, dict) or document.keys() != {"choices"} or not isinstance(document["choices"], list):
        raise _refused("model_answer", "other_keys")
    made, seen = [], set[int]()
    for item in document["choices"]:
        if not isinstance(item, dict) or item.keys() != {"finding", "option"}:
            raise _refused("model_answer", "other_keys")
        number, option = item["finding"], item["option"]
        if type(number) is not int or not 0 <= number < len(asked.proposals) or number in seen:
            raise _refused("model_choice", "finding")
        proposal = asked.proposals[number]
        if option not in [*options(proposal), NONE]:
            raise _refused("model_choice", "option")
        seen.add(number)
        made.append(Advice(proposal, None if option == NONE else option))
    return tuple(made)


def _text(raw: bytes) -> str:
    """The one text of a chat completion; it may have more keys, for servers add their own."""
    if len(raw) > MAX_REPLY_BYTES:
        raise _refused("model_reply", "too_large")
    try:
        choices = json.loads(raw)["choices"]
        text = _only(choices)["message"]["content"]
    except (ValueError, RecursionError, KeyError, TypeError) as error:
        raise _refused("model_reply", "other_form") from error
    if not isinstance(text, str):
        raise _refused("model_reply", "no_text")
    return text


def _only(items: Sequence[Any]) -> Any:
    if not isinstance(items, list) or len(items) != 1:
        raise ValueError("expected one")
    return items[0]


def _refused(code: str, detail: str) -> AnswerRefused:
    return AnswerRefused(f"model: {REASONS[code]} ({detail})", code=code)
