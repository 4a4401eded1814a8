"""The socket of the root side of orders: a nonce, a baseline that an order names, an approval, or this host's next key; refused, or
taken as a whole.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from typing import Any

from compliance_agent.adopt.forms import BROUGHT, KINDS, TRUST, raw_of, spelt, strict, time_of, unless
from compliance_agent.adopt.orders import Standing, hold, judge
from compliance_agent.adopt.protocol import ANSWER_S, TABLE
from compliance_agent.adopt.rotation import GONE, follow
from compliance_agent.adopt.state import State
from compliance_agent.adopt.trust import Keys, by_file, by_root
from compliance_agent.frames import Message
from compliance_agent.heal import approvals, permits
from compliance_agent.heal.machine import Machine
from compliance_agent.heal.service import Answer, Desk, deadline, say
from compliance_agent.heal.trouble import Trouble

# The installed program says what a baseline permits. It reads bytes that the baseline's key has signed, and no more: as a user that
# exists for this run alone, with no network and nothing of the host.
PERMIT = ("compliance-agent", "baseline", "permit", "--made-of", "-", "-")
PERMIT_S = 60.0
PERMIT_WALLS = (
    *("DynamicUser=yes", "PrivateNetwork=yes", "PrivateDevices=yes", "CapabilityBoundingSet=", "MemoryMax=256M"),
    *("ProtectHome=yes", "InaccessiblePaths=-/etc/msp -/var/lib/compliance-agent", "MemoryDenyWriteExecute=yes"),
)
# An hour more than the agent's own seven days, which begin a little later: it is the agent that says that they are over.
APPROVAL_LASTS = timedelta(days=7, hours=1)
_PART = re.compile(r"[0-9]+|[A-Za-z]+")


@dataclass(frozen=True)
class Adopting(Desk):
    """What answers.

    Attributes:
        machine: this machine.
        trust_path: root's word (forms.TRUST).
        permits_path: what heal may do (heal/permits.py).
        state_path: what is remembered (state.py).
        approvals_path: what people approved (heal/approvals.py).
        now: the clock.
    """

    machine: Machine
    trust_path: str
    permits_path: str
    state_path: str
    approvals_path: str
    now: Callable[[], datetime] = lambda: datetime.now(UTC)
    table = TABLE

    def answer(self, question: Message) -> Answer:
        """Give a nonce, or take what an order brings, or say why not."""
        try:
            with deadline(ANSWER_S):
                state = State(self.machine, self.state_path)
                state.settle()
                if question.kind == "nonce":
                    return "given", {"nonce": state.give_nonce()}, b""
                if question.kind == "follow":
                    return "follows", {"host": self._follow(state, question.blob)}, b""
                taken = self._take(state, question)
        except Trouble as error:
            say(f"adopt.{error.kind}", **error.said)
            return error.kind, dict(error.said), b""
        kind, fields = ("noted", {}) if question.kind == "approve" else ("taken", {"baseline": taken})
        say(f"adopt.{kind}", baseline=taken)
        return kind, fields, b""

    def _take(self, state: State, question: Message) -> str:
        """Take what an order brings; the digest of the baseline in force then. What was taken before is said again."""
        given = approvals.given(self.machine, self.approvals_path) if question.kind == "approve" else []
        brought = strict(question.blob, BROUGHT[question.kind], "order_unreadable")
        order = raw_of(brought["order"])
        digest = sha256(order).hexdigest()
        if state.says["taken"] == digest:
            return str(state.says["baseline"])
        trust = self._trust()
        keys, now = self._keys(state, trust, brought), self._clock(state)
        present = permits.load(self.machine, self.permits_path)
        standing = Standing(trust, keys, now, state.nonces(), state.says["counter"], present.baseline)
        says = judge(order, KINDS[question.kind], standing)
        if question.kind == "take":
            signature, baseline = raw_of(brought["signature"]), raw_of(brought["baseline"])
            hold(baseline, signature, says, trust)
            made, after = self._permitted(baseline, says["parameters"], present)
            contents = {f"{trust['baseline']}.sig": signature, trust["baseline"]: baseline, self.permits_path: made}
        else:
            after, contents = present.baseline, {self.approvals_path: _with(given, says, now)}
        state.keep(
            pin=trust["order_root"] or "", root=keys.root, keys=keys.version,
            counter=says["counter"], since=says["not_before"], taken=digest, baseline=after,
            placing=[{"path": path, "content": spelt(content)} for path, content in contents.items()],
        )  # fmt: skip
        state.settle()
        return after

    def _trust(self) -> dict[str, Any]:
        return strict(permits.roots(self.machine, self.trust_path, "trust"), TRUST, "bad_trust")

    def _clock(self, state: State) -> datetime:
        now, since = self.now(), state.says["since"]
        return now if since is None else max(now, time_of(since))

    def _follow(self, state: State, blob: bytes) -> str:
        """Have root's file name the key that this host's gave way to; the id of the one that it names then."""
        trust, path = self._trust(), f"{self.state_path.rpartition('/')[0]}/gone.json"
        if not blob:
            return str(trust["host"])
        kept = self.machine.read(path)
        gone = [] if kept is None else strict(kept[0], GONE, "state_damaged")["gone"]
        step = follow(blob, trust, gone, self._clock(state))
        after = {path: {"gone": [*gone, step][-64:]}, self.trust_path: {**trust, "host": step["new"]}}
        state.keep(placing=[{"path": at, "content": spelt(_written(says))} for at, says in after.items()])
        state.settle()
        say("adopt.follows", host=step["new"])
        return str(step["new"])

    def _keys(self, state: State, trust: dict[str, Any], brought: dict[str, Any]) -> Keys:
        """Whose orders count, by documents that are not older than those of an order that was taken."""
        if trust["order_root"] is None:
            unless(trust["order_keys"] is not None, "no_order_keys")
            return by_file(permits.roots(self.machine, trust["order_keys"], "order_keys"))
        unless(brought["roots"] and brought["keys"] is not None, "no_order_keys")
        found = by_root(trust["order_root"], [raw_of(raw) for raw in brought["roots"]], raw_of(brought["keys"]))
        if state.says["pin"] == trust["order_root"]:
            unless(found.root >= state.says["root"] and found.version >= state.says["keys"], "trust_version")
        return found

    def _permitted(self, baseline: bytes, named: dict[str, Any], present: permits.Permits) -> tuple[bytes, str]:
        """What the baseline permits heal to do, and its digest; it must be the one that is named, and not an older one."""
        ran = self.machine.run_apart(PERMIT, timeout_s=PERMIT_S, stdin=baseline, walls=PERMIT_WALLS)
        unless(ran.exit == 0, "baseline_unusable")
        after = permits.parse(ran.out)
        unless((after.version, after.baseline) == (named["version"], named["sha256"]), "other_baseline")
        unless(not _older(after.version, present.version), "baseline_older")
        return ran.out, after.baseline


def _with(given: list[approvals.Approval], says: dict[str, Any], now: datetime) -> bytes:
    """Root's file with one approval more; it takes the place of one of the same plan, and what is over is left out."""
    since, until = approvals.text(now), approvals.text(now + APPROVAL_LASTS)
    plan = {**says["parameters"], "baseline": says["baseline_sha256"]}
    others = [
        one
        for one in given
        if one["until"] > since and one["baseline"] == plan["baseline"] and not one.items() >= plan.items()
    ]
    after = [*others[1 - approvals.MOST_GIVEN :], {**plan, "number": says["counter"], "since": since, "until": until}]
    return _written({"schema": approvals.SCHEMA, "given": after})


def _written(document: dict[str, Any]) -> bytes:
    return json.dumps(document, indent=1, sort_keys=True).encode("ascii") + b"\n"


def _older(version: str, than: str) -> bool:
    """Whether a version comes before another: as `core/versions.py` says, for which a word comes before a number."""

    def parts(text: str) -> list[tuple[int, int, str]]:
        return [(1, int(part), "") if part.isdigit() else (0, 0, part) for part in _PART.findall(text)]

    return parts(version) < parts(than)
