"""What is changed: a pause, a look now, the log level, a profile, the files read again. Root and the agent's own user alone."""

from __future__ import annotations

import asyncio
import importlib
import uuid
from collections.abc import Sequence
from typing import Any

import structlog

from compliance_agent import log_level
from compliance_agent.admin.door import Call, answer
from compliance_agent.admin.pages import seen
from compliance_agent.admin.standing import Standing
from compliance_agent.core import pausing
from compliance_agent.drift import DriftDetector
from compliance_agent.errors import AgentError, Refusal
from compliance_agent.healing import HealingEngine
from compliance_agent.models import BundleKind, DriftResult, Outcome
from compliance_agent.ports import HttpReply

LONGEST_LOOK_S, LONGEST_PROFILE_S = 30.0, 60
_LOOK_EVERY_S = 0.02
log = structlog.get_logger()


class Acts:
    """The changes of one process.

    Args:
        standing: what they are done to.
    """

    def __init__(self, standing: Standing) -> None:
        self._standing = standing

    async def pause(self, call: Call) -> HttpReply:
        """Heal nothing for a while. Looking goes on, and this is a record of its own."""
        _only(call, "reason", "seconds")
        engine, reason = self._engine(), _word(call, "reason", pausing.REASONS)
        seconds = _whole(call, "seconds", pausing.DEFAULT_S, 60, pausing.LONGEST_S)
        former = await engine.standing_pause()
        pause = await engine.pause_here(reason, call.uid, seconds)
        try:
            bundle_id = await self._recorded(call.uid, reason, seconds)
        except Exception:  # what is not recorded was not done
            if former is None:
                await engine.resume_here(call.uid)
            else:
                await engine.store.call(lambda: engine.store.pause_for(former))
            raise
        until = f"{pause.until:%Y-%m-%dT%H:%M:%SZ}"
        return answer({"paused": True, "reason": reason, "uid": call.uid, "until": until, "bundle_id": bundle_id})

    async def resume(self, call: Call) -> HttpReply:
        """End what a person at this host asked for; an order is ended by an order."""
        _only(call)
        engine = self._engine()
        pause, by_order = await self._standing.pause()
        if pause is None and by_order:
            raise Refusal("a signed order paused healing; a signed order ends it", code="paused_by_order", status=409)
        if pause is None:
            return answer({"paused": by_order, "bundle_id": None})
        bundle_id = await self._recorded(call.uid, pause.reason, 0)
        await engine.resume_here(call.uid)
        return answer({"paused": by_order, "bundle_id": bundle_id})

    async def check(self, call: Call) -> HttpReply:
        """Look now, at these or at all; heal and record as after any look. What takes long is listed as not back yet."""
        _only(call, "checks")
        agent, detector = self._standing.agent, self._standing.agent.drift_detector
        if not isinstance(detector, DriftDetector):
            raise Refusal("this agent's detector takes no turns", code="not_supported", status=501)
        names = _checks(call, sorted(detector.baseline.entries))
        before = {drift.check: drift for drift in agent.latest}
        detector.look_now(names)
        log.info("check.asked", uid=call.uid, count=len(names))
        found: dict[str, DriftResult] = {}
        ends = agent.clock.monotonic() + LONGEST_LOOK_S
        while agent.clock.monotonic() < ends and not agent.shutdown_event.is_set():
            found = {drift.check: drift for drift in agent.latest if drift is not before.get(drift.check)}
            if all(name in found for name in names):
                break
            await asyncio.sleep(_LOOK_EVERY_S)
        back = [seen(found[name]) for name in names if name in found]
        return answer({"checks": back, "not_back": [name for name in names if name not in found]})

    async def loglevel(self, call: Call) -> HttpReply:
        """Log more, or less, for a while."""
        _only(call, "level", "seconds")
        level = _word(call, "level", log_level.LEVELS)
        seconds = _whole(call, "seconds", log_level.DEFAULT_S, 1, log_level.LONGEST_S)
        self._standing.level.use_for(level, seconds)
        log.warning("log.level_set", level_now=level, uid=call.uid, seconds=seconds)
        return answer({"level": level, "seconds": seconds, "then": self._standing.level.base})

    async def profile(self, call: Call) -> HttpReply:
        """A call tree of the loop's thread over so many seconds, as a page or as text."""
        _only(call, "seconds", "format")
        seconds, form = _whole(call, "seconds", 10, 1, LONGEST_PROFILE_S), call.document.get("format", "html")
        if form not in {"html", "text"}:
            raise _bad("format: expected html or text")
        try:
            profilers = importlib.import_module("pyinstrument")
        except ImportError as error:
            hint = "the extra `profile` is not installed here: pip install 'compliance-agent[profile]'"
            raise Refusal(hint, code="profiler_missing", status=501) from error
        if self._standing.profiling.locked():
            raise Refusal("a profile is being taken", code="profiling", status=409)
        async with self._standing.profiling:
            log.warning("profile.begun", uid=call.uid, seconds=seconds)
            profiler = profilers.Profiler(interval=0.001, async_mode="disabled")
            profiler.start()
            try:
                await asyncio.sleep(seconds)
            finally:
                profiler.stop()
        text = profiler.output_html() if form == "html" else profiler.output_text(unicode=True, show_all=True)
        return HttpReply(
            200, {"content-type": f"text/{'html' if form == 'html' else 'plain'}; charset=utf-8"}, text.encode()
        )

    async def reload(self, call: Call) -> HttpReply:
        """Read the files again, as SIGHUP does; what cannot be used is refused and changes nothing."""
        _only(call)
        try:
            await self._standing.reload()
        except AgentError as error:
            raise Refusal(
                "the new files cannot be used; the former ones stay in force", code=error.code, status=422
            ) from error
        return answer({"reloaded": True})

    def _engine(self) -> HealingEngine:
        engine = self._standing.agent.healing_engine
        if not isinstance(engine, HealingEngine):
            raise Refusal("this agent's healing keeps no pause", code="not_supported", status=501)
        return engine

    async def _recorded(self, uid: int, reason: str, seconds: int) -> str:
        """One record: who, why, for how long; 0 seconds for its end."""
        agent = self._standing.agent
        now = agent.clock.now()
        evidence = await agent.recording.create(
            check="",
            outcome=Outcome.SUCCESS,
            kind=BundleKind.ORDER,
            trigger="manual",
            bundle_id=str(uuid.uuid4()),
            reason=reason,
            counts={"uid": uid, "paused_s": seconds},
            timestamp_start=now,
            timestamp_end=now,
        )
        await agent.recording.submitted(evidence)
        return str(evidence.bundle_id)


def _bad(sentence: str) -> Refusal:
    return Refusal(sentence, code="bad_request", status=400)


def _only(call: Call, *names: str) -> None:
    for name in call.document:
        if name not in names:
            raise _bad(f"expected no member but {', '.join(names) or 'none'}")


def _word(call: Call, name: str, words: Any) -> str:
    value = call.document.get(name)
    if not isinstance(value, str) or value not in words:
        raise _bad(f"{name}: expected one of {', '.join(words)}")
    return value


def _whole(call: Call, name: str, default: int, low: int, high: int) -> int:
    value = call.document.get(name, default)
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise _bad(f"{name}: expected a whole number from {low} to {high}")
    return value


def _checks(call: Call, known: Sequence[str]) -> list[str]:
    names = call.document.get("checks", list(known))
    if not isinstance(names, list) or not names:
        raise _bad("checks: expected a list of checks of the baseline")
    if not set(map(str, names)) <= set(known):
        raise Refusal(f"checks: its baseline has {', '.join(known)}", code="unknown_check", status=400)
    return sorted(set(map(str, names)))
