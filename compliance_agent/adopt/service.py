"""The socket of the root side of orders: a nonce, or a baseline that an order names; refused, or taken as a whole."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from hashlib import sha256
from typing import Any

from compliance_agent.adopt.forms import BROUGHT, TRUST, raw_of, spelt, strict, time_of, unless
from compliance_agent.adopt.orders import Standing, judge
from compliance_agent.adopt.protocol import ANSWER_S, TABLE
from compliance_agent.adopt.state import State
from compliance_agent.adopt.trust import Keys, by_file, by_root
from compliance_agent.frames import Message
from compliance_agent.heal import permits
from compliance_agent.heal.machine import Machine
from compliance_agent.heal.service import Answer, Desk, deadline, say
from compliance_agent.heal.trouble import Failed, Refused, Unclear

# The installed program says what a baseline permits. It reads bytes that the baseline's key has signed, and no more: as a user that
# exists for this run alone, with no network and nothing of the host.
PERMIT = ("compliance-agent", "baseline", "permit", "--made-of", "-", "-")
PERMIT_S = 60.0
PERMIT_WALLS = (
    *("DynamicUser=yes", "PrivateNetwork=yes", "PrivateDevices=yes", "CapabilityBoundingSet=", "MemoryMax=256M"),
    *("ProtectHome=yes", "InaccessiblePaths=-/etc/msp -/var/lib/compliance-agent", "MemoryDenyWriteExecute=yes"),
)
_PART = re.compile(r"[0-9]+|[A-Za-z]+")


def _now() -> datetime:
    return datetime.now(UTC)


@dataclass(frozen=True)
class Adopting(Desk):
    """What answers.

    Attributes:
        machine: this machine.
        trust_path: root's word (forms.TRUST).
        permits_path: what heal may do (heal/permits.py).
        state_path: what is remembered (state.py).
        now: the clock.
    """

    machine: Machine
    trust_path: str
    permits_path: str
    state_path: str
    now: Callable[[], datetime] = _now
    table = TABLE

    def answer(self, question: Message) -> Answer:
        """Give a nonce, or take a baseline, or say why not."""
        try:
            with deadline(ANSWER_S):
                state = State(self.machine, self.state_path)
                state.settle()
                if question.kind == "nonce":
                    return "given", {"nonce": state.give_nonce()}, b""
                taken = self._take(state, question.blob)
        except Refused as error:
            say("adopt.refused", code=error.code)
            return "refused", {"code": error.code}, b""
        except Failed as error:
            say("adopt.failed", code=error.code)
            return "failed", {"code": error.code}, b""
        except Unclear as error:
            say("adopt.unclear", reason=error.reason)
            return "unclear", {"reason": error.reason}, b""
        say("adopt.taken", baseline=taken)
        return "taken", {"baseline": taken}, b""

    def _take(self, state: State, blob: bytes) -> str:
        """Take the baseline of an order; its digest. What was taken before is said again."""
        brought = strict(blob, BROUGHT, "order_unreadable")
        order, baseline, signature = (raw_of(brought[name]) for name in ("order", "baseline", "signature"))
        digest = sha256(order).hexdigest()
        if state.says["taken"] == digest:
            return str(state.says["baseline"])
        trust = strict(permits.roots(self.machine, self.trust_path, "trust"), TRUST, "bad_trust")
        keys = self._keys(state, trust, brought)
        now, since = self.now(), state.says["since"]
        now = now if since is None else max(now, time_of(since))
        present = permits.load(self.machine, self.permits_path)
        standing = Standing(trust, keys, now, state.nonces(), state.says["counter"], present.baseline)
        says = judge(order, baseline, signature, standing)
        made = self._permitted(baseline)
        wanted = says["parameters"]
        after = permits.parse(made)
        unless((after.version, after.baseline) == (wanted["version"], wanted["sha256"]), "other_baseline")
        unless(not _older(after.version, present.version), "baseline_older")
        versions = {"pin": trust["order_root"] or "", "root": keys.root, "keys": keys.version}
        contents = {f"{trust['baseline']}.sig": signature, trust["baseline"]: baseline, self.permits_path: made}
        state.keep(
            **versions, counter=says["counter"], since=says["not_before"], taken=digest, baseline=after.baseline,
            placing=[{"path": path, "content": spelt(content)} for path, content in contents.items()],
        )  # fmt: skip
        state.settle()
        return after.baseline

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

    def _permitted(self, baseline: bytes) -> bytes:
        """What the baseline permits heal to do."""
        ran = self.machine.run_apart(PERMIT, timeout_s=PERMIT_S, stdin=baseline, walls=PERMIT_WALLS)
        unless(ran.exit == 0, "baseline_unusable")
        return ran.out


def _older(version: str, than: str) -> bool:
    """Whether a version comes before another: as `core/versions.py` says, for which a word comes before a number."""
    one, other = (
        [(1, int(part), "") if part.isdigit() else (0, 0, part) for part in _PART.findall(text)]
        for text in (version, than)
    )
    return one < other
