"""Sentences for the tokens of evidence: what a verdict, reason, outcome or action means to the person reading.

A token is what is recorded and signed; a sentence is only how it is shown, so it may be reworded at any time. The words of the
checks come from evidence/registry.json, which is written from the checks themselves; a token that nobody has a sentence for is
shown as it is, never hidden.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any

from compliance_agent.core.orders import REASONS as OF_ORDERS


@dataclass(frozen=True)
class Word:
    """How a token is shown: a short label and what it means, as a sentence."""

    label: str
    sentence: str


VERDICTS: Mapping[str, Word] = {
    "pass": Word("Pass", "The host was seen to be as its baseline says."),
    "fail": Word("Fail", "The host was seen, and it is not as its baseline says."),
    "unknown": Word("Unknown", "It could not be told. This is never counted as fine."),
    "exception": Word("Exception", "It fails, under an approved exception that has not expired."),
    "not_applicable": Word("Not applicable", "The host was seen to lack what this check is about."),
}

OUTCOMES: Mapping[str, Word] = {
    "success": Word("Healed", "The cure was applied and the check itself passed again."),
    "failed": Word("Cure failed", "The cure failed and the former state could not be shown to be back."),
    "reverted": Word("Undone", "The cure failed or did not help, and the former state is back."),
    "deferred": Word("Held back", "Nothing was changed; it waits for a time or an act."),
    "alert": Word("Needs a person", "Nothing was changed; a person has to act."),
    "rejected": Word("Refused", "Refused for good; nothing was changed."),
    "expired": Word("Expired", "Came too late; nothing was changed."),
}

KINDS: Mapping[str, Word] = {
    "drift": Word("Change of verdict", "A check's verdict changed, in either direction."),
    "remediation": Word("Remediation", "What was done about a drift, or why nothing was."),
    "heartbeat": Word("Heartbeat", "Hourly signed statement of every check's verdict."),
    "key_event": Word("Key event", "The host's key was made, rotated or withdrawn."),
    "incident": Word("Incident", "Something that must not happen was seen, and kept."),
    "order": Word("Order", "Signed people asked this host for something; it says how that ended, or why it refused."),
    "drill": Word("Drill", "A detector was made to fire on purpose, and it was seen whether it did."),
}

TRIGGERS: Mapping[str, str] = {
    "schedule": "the schedule",
    "event": "an event on the host",
    "manual": "a person at the host",
    "order": "a signed order",
    "start": "the agent's start",
}

COMMON_REASONS: Mapping[str, str] = {
    "as_expected": "As the baseline says.",
    "timed_out": "The look took longer than its deadline and was given up.",
    "tool_missing": "A program the check needs is not installed.",
    "not_permitted": "The operating system did not let the agent look.",
    "not_found": "A file, socket or unit that must exist to be judged is not there.",
    "unparsable": "An answer came and could not be understood.",
    "output_too_large": "The answer was longer than its limit.",
    "tool_failed": "A program the check needs ran and reported failure.",
    "io_error": "Reading failed with an input/output error.",
    "crashed": "The check itself failed; this is a fault in the agent.",
    "fact_refused": "What was seen may not be recorded, so nothing was concluded from it.",
    "not_configured": "The baseline gives this check nothing to compare with.",
    "silent": "The host has stopped reporting; what it said last no longer counts.",
    "stale": "Nothing has repeated this verdict for too long; what was said last no longer counts.",
    "revoked": "The host is revoked; what it said last no longer counts.",
}

# What each point of a verification says: when it holds, and when it does not.
POINTS: Mapping[str, tuple[str, str, str]] = {
    "signature": (
        "Signature",
        "Ed25519 over the exact bytes, by the key this host enrolled with.",
        "The bytes or the signature are not what this host's key signed.",
    ),
    "canonical": (
        "Canonical form",
        "The bytes are the one canonical spelling (RFC 8785) of what they say.",
        "The bytes are not the canonical spelling (RFC 8785) of a document.",
    ),
    "schema": (
        "Schema",
        "Every field is declared and of its type; there is no room for free text.",
        "A field is missing, undeclared, or not of its type.",
    ),
    "identity": (
        "Identity",
        "It names this host, its key, its site and its client.",
        "It names another host, key, site or client than it is filed under.",
    ),
    "digest": (
        "Stored bytes",
        "Their SHA-256 is the one noted when they arrived.",
        "Their SHA-256 is not the one noted when they arrived: they were changed here.",
    ),
    "chain": (
        "Chain",
        "It names the SHA-256 of the record before it.",
        "It does not name the record that stands before it: one was removed, added or changed.",
    ),
}

GATES: Mapping[str, str] = {
    "healed": "The check passed again after the cure.",
    "cured_in_part": "The cure did its part and is kept; what is left, a person has to end.",
    "recovered": "The agent stopped in the middle of the cure; at its next start the check passed.",
    "interrupted": "The agent stopped in the middle of the cure; at its next start it was undone.",
    "check_not_passed": "The cure ran and the check still did not pass, so it was undone.",
    "taken_back": "Somebody undid the cure on the host before the check could see it; it is tried once more.",
    "capture_failed": "The former state could not be kept, so nothing was changed.",
    "step_failed": "A step of the cure failed, so what had been done was undone.",
    "heal_refused": "The root side has no leave for this change, so what had been done was undone.",
    "not_approved": "The root side had no unused approval of people for this change, so what had been done was undone.",
    "heal_unreachable": "The root side could not be asked, or did not answer, so what had been done was undone.",
    "not_verified": "A program reported success and the host was not as it should be, so what had been done was undone.",
    "storage_failed": "The rollback point could not be kept safe, so nothing may be changed.",
    "check_fail": "The cure ran and the check still failed, so it was undone.",
    "check_unknown": "After the cure it could not be told whether it had worked, so it was undone.",
    "check_not_applicable": "After the cure the check no longer applied, so it was undone.",
    "check_exception": "After the cure an exception covered the failure, so it was undone.",
    "not_restored": "The undo reported success, and the former state is not back.",
    "recovery_pending": "A cure that was cut off has to be brought to its end first.",
    "unknown_action": "The cure that was cut off used an action that the agent no longer has.",
    "unreadable_point": "The rollback point of the cure that was cut off is damaged.",
    "no_cure": "There is no automatic cure for what was seen; a person has to act.",
    "mode_audit": "The baseline only lets this check, or this host, be looked at.",
    "paused": "A person paused healing on this host.",
    "exception": "An approved exception covers this failure.",
    "cooldown": "This check was cured a moment ago; it waits before the next try.",
    "budget": "This host used up its cures for the hour.",
    "flapping": "Something keeps undoing the cure; it stops fighting until a person finds out what.",
    "rejected_target": "This cure was rolled back before and is not tried again.",
    "outside_window": "Users would notice the cure; it waits for the maintenance window.",
    "approval_required": "Users would notice the cure; it waits for a person's approval.",
    "lease_required": "Users would notice the cure; it waits for leave of the site.",
    "lease_busy": "Users would notice the cure; it waits while other hosts of the site are worked on.",
    "lease_ring": "Users would notice the cure; another host of the site is next.",
    "canary_first": "Users would notice the cure; the host that was named to try it goes first.",
    "canary_unproven": "Users would notice the cure; the first host with it has not shown yet that it succeeded.",
    "canary_failed": "The cure failed on the first host of the site; a person has to look before others follow.",
    "lease_ended": "The leave of the site to disturb users ran out in the middle of the cure, which was stopped and undone.",
    "lease_lost": "The leave of the site ran out.",
    "lease_server_down": "Users would notice the cure; the server that gives leave cannot be reached.",
    "lease_refused": "Users would notice the cure; the server refuses to give leave.",
    "blocked": "Something on the host is in the way for now.",
    "allowed": "Every gate is open.",
}

ACTION_RESULTS: Mapping[str, Word] = {
    "ok": Word("Done", "The step did what it should."),
    "failed": Word("Failed", "The step did not do what it should."),
    "skipped": Word("Skipped", "The step was not needed or not reached."),
    "undone": Word("Undone", "The step was taken back."),
    "undo_failed": Word("Undo failed", "The step could not be taken back."),
}


@cache
def registry() -> Mapping[str, Any]:
    """The checks as data: titles, reasons, facts and citations, as written from the checks of this version."""
    return dict(_known()["checks"])


@cache
def _known() -> Mapping[str, Any]:
    path = resources.files("compliance_agent.evidence") / "registry.json"
    return dict(json.loads(path.read_bytes()))


def humanise(token: str) -> str:
    """A token nobody has a sentence for, readable: `unit_masked` -> `Unit masked`."""
    return token.replace("_", " ").strip().capitalize()


def step_title(action: str) -> str:
    """What a step of a cure does, the names of its arguments in their places."""
    title = str(_known()["steps"].get(action, {}).get("title") or humanise(action))
    return f"{title[:1].upper()}{title[1:]}".replace("{", "").replace("}", "")


def step_undo(action: str) -> str:
    """How a step is taken back."""
    step = _known()["steps"].get(action)
    if step is None:
        return "not known to this version"
    why = str(step["undo_is_empty"]).rstrip(".")
    return (
        f"nothing to take back: {why[:1].lower()}{why[1:]}" if why else "brings back what was captured before the step"
    )


def check_title(check: str) -> str:
    """What is true when the check passes; the id, made readable, for a check this version does not know."""
    return str(registry().get(check, {}).get("title") or humanise(check))


def reason_sentence(check: str, reason: str) -> str:
    """Why a check was judged as it was."""
    own = registry().get(check, {}).get("reasons", {}).get(reason)
    return str(own or COMMON_REASONS.get(reason) or humanise(reason))


def gate_sentence(reason: str) -> str:
    """Why a cure was applied, held back or refused, or an order."""
    of_orders = OF_ORDERS.get(reason, "")
    said = of_orders and f"{of_orders[:1].upper()}{of_orders[1:]}."
    return GATES.get(reason) or said or COMMON_REASONS.get(reason) or humanise(reason)


def word(table: Mapping[str, Word], token: str | None) -> Word:
    """The word for a token; the token itself, made readable, when the table has none."""
    if not token:
        return Word("–", "")
    return table.get(token) or Word(humanise(token), "")


def fact_doc(check: str, name: str) -> str:
    """The sentence a check declares for a fact, or nothing."""
    return str(registry().get(check, {}).get("facts", {}).get(name, {}).get("doc", ""))
