"""A model's advice about findings, for a person who asks for it. It is off unless a model is configured.

Advice is words on a screen: a choice among the options that the rules allow. It is kept nowhere, no proposal comes of it, and no
order: whoever agrees drafts it, and people approve and sign it. Nothing that goes on by itself knows this module
(`tests/test_layers.py`), so no automatic act waits for a model or follows one.

Each question and its end are noted: in the audit table, and in the log of each site that it was about, by digests.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from datetime import timedelta
from typing import Protocol

from compliance_agent.core import advice
from compliance_agent.core.advice import REASONS, Advice, AnswerRefused, Question
from compliance_agent.entries.act import digest_of
from compliance_agent.errors import Refusal
from compliance_agent.server.records import Clock, SiteReader, Store, Transaction, User
from compliance_agent.server.services import acts, roles
from compliance_agent.server.services.planning import Planner

ASKED = "plan.model_asked"
HOUR = timedelta(hours=1)
PER_HOUR = 20  # questions of one person


class Model(Protocol):
    """A language model at the other end of a network.

    Raises:
        Refusal: it did not answer, or not within its bounds.
    """

    model: str

    async def complete(self, body: bytes) -> bytes:
        """Reply to the body of a chat completion."""
        ...


@dataclass(frozen=True)
class Advised:
    """What came of a question: the choices, or why there are none (`code`, one of `REASONS`; empty where there are)."""

    choices: tuple[Advice, ...] = ()
    code: str = ""
    asked: int = 0


class Adviser:
    """The desk for advice."""

    def __init__(self, store: Store, clock: Clock, planner: Planner, model: Model | None) -> None:
        self._store = store
        self._clock = clock
        self._planner = planner
        self._model = model

    async def advise(self, user: User, reader: SiteReader) -> Advised:
        """Ask the model about what this person sees. A bad answer is an answer with a code; it ends nothing.

        Raises:
            Refusal: not allowed, no model, or asked too often.
        """
        roles.check(user, roles.Act.DRAFT_ORDER)
        if self._model is None:
            raise Refusal(f"model: {REASONS['model_off']}", code="model_off", status=409)
        asked = advice.question((await self._planner.proposals(user, reader)).proposals, self._clock())
        if not asked.proposals:
            return Advised()
        await self._reserve(user, asked)
        reply = b""
        try:
            reply = await self._model.complete(advice.request(self._model.model, asked))
            found = Advised(advice.answered(reply, asked), asked=len(asked.proposals))
        except (Refusal, AnswerRefused) as error:
            found = Advised(code=error.code, asked=len(asked.proposals))
        await self._note(user, asked, reply, found.code)
        return found

    async def _reserve(self, user: User, asked: Question) -> None:
        now = self._clock()

        async def work(tx: Transaction) -> None:
            if await tx.audited(user.name, ASKED, now - HOUR) >= PER_HOUR:
                raise Refusal(
                    f"model: {REASONS['model_too_often']}", code="model_too_often", status=429, retry_after_s=3_600
                )
            await tx.audit(now, user.name, ASKED, subject=hashlib.sha256(asked.facts).hexdigest())

        await self._store.write(work)

    async def _note(self, user: User, asked: Question, reply: bytes, code: str) -> None:
        """Say in each site's log what was asked and answered, by digests, and whether anything of it was taken."""
        act = acts.Act.MODEL_REFUSED if code else acts.Act.MODEL_ANSWERED
        document = {
            "question": hashlib.sha256(asked.facts).hexdigest(),
            "reply": hashlib.sha256(reply).hexdigest(),
            "code": code or None,
        }
        said = f"{document['question']} {document['reply']} {code or 'ok'}"
        sites = {item.finding.site_id for item in asked.proposals}
        now = self._clock()
        await self._store.write(
            lambda tx: acts.note(tx, now, act, by=user, sites=sites, subject=digest_of(document), said=said)
        )
