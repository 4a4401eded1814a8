"""One trace from a drift to its receipt: the W3C trace context of a record, and the spans that were spent on it.

    drift (look, heal, record) -> deliver -> ingest (verify, commit), sequence, receipt at the server -> prove, back on the host

A trace is made when a drift is seen, and goes with its record: in memory, beside its row of the queue, with the bundle on the
wire. It is never in the record. What is signed says what was seen and done; an id that a host makes up says nothing of that, could
carry anything out, and would make two records of the same thing differ. Nothing is believed of it: what is no context is none.

Spans are of few names, and their attributes of closed lists: no word in them is a host's.
"""

from __future__ import annotations

import contextlib
import functools
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from contextvars import ContextVar
from dataclasses import field
from datetime import datetime

from compliance_agent.dataclass import dataclass
from compliance_agent.models import Outcome

AT_HOST = ("drift", "look", "heal", "record", "deliver", "prove")
AT_SERVER = ("ingest", "verify", "commit", "sequence", "receipt")
ENDS = ("acknowledged", "failed", "known", "proven", "refused", "stored")
_FORM = re.compile(r"00-(?!0{32})([0-9a-f]{32})-(?!0{16})([0-9a-f]{16})-[0-9a-f]{2}", re.ASCII)

Now = Callable[[], datetime]
Chance = Callable[[int], bytes]  # so many random bytes


@functools.cache
def closed() -> Mapping[str, Collection[str]]:
    """What each attribute may say."""
    from compliance_agent.evidence.allowlist import registry

    return {
        "check": frozenset(registry().checks),
        "outcome": frozenset(str(outcome) for outcome in Outcome),
        "how": frozenset(ENDS),
    }


@dataclass(frozen=True)
class Context:
    """A place in a trace: the trace and the span that what comes next belongs to."""

    trace_id: str
    span_id: str

    @property
    def text(self) -> str:
        """It as a `traceparent`."""
        return f"00-{self.trace_id}-{self.span_id}-01"


def read(text: object) -> Context | None:
    """The context that a `traceparent` names; None for anything else, whatever it is."""
    found = _FORM.fullmatch(text) if isinstance(text, str) else None
    return Context(found[1], found[2]) if found else None


@dataclass(frozen=True)
class Span:
    """Time that was spent on one record."""

    name: str
    context: Context
    parent: str | None  # span id
    start: datetime
    end: datetime
    attributes: Mapping[str, str] = field(default_factory=dict)


Sink = Callable[[Span], None]
RECORDING: ContextVar[Context | None] = ContextVar("recording", default=None)  # whose record is being written


@contextlib.contextmanager
def recording(context: Context | None) -> Iterator[None]:
    """What is recorded meanwhile belongs to this trace."""
    token = RECORDING.set(context)
    try:
        yield
    finally:
        RECORDING.reset(token)


class Tracer:
    """Makes contexts, and spans where somebody wants them.

    Args:
        now: the time.
        chance: random bytes, for ids.
        sink: is given each span that has ended; without one there are contexts alone.
    """

    def __init__(self, now: Now, chance: Chance, sink: Sink | None = None) -> None:
        self._now = now
        self._chance = chance
        self._sink = sink

    def begin(self, name: str, parent: Context | None = None, start: datetime | None = None) -> Open:
        """A span that has begun, in its parent's trace or in a new one."""
        if self._sink is None and parent is not None:
            return Open(self, name, parent, None, start or self._now())  # nobody would know a span of its own
        trace_id = parent.trace_id if parent is not None else self._id(16)
        context = Context(trace_id, self._id(8))
        return Open(self, name, context, parent.span_id if parent is not None else None, start or self._now())

    def drift(self, check: str, start: datetime | None, seen: datetime | None) -> Trace:
        """The trace of a drift that was seen just now, by a look that began at `start`."""
        trace = Trace(self, self.begin("drift", None, start), check)
        if seen is not None:
            trace.took("look", trace.root.start, seen)
        return trace

    def _id(self, length: int) -> str:
        while not any(made := self._chance(length)):
            pass
        return made.hex()

    def end(self, opened: Open, end: datetime | None, attributes: Mapping[str, str]) -> None:
        """Hand on a span. An attribute that no list has is left out."""
        if self._sink is not None:
            said = {name: value for name, value in attributes.items() if value in closed().get(name, ())}
            ended = max(opened.start, end or self._now())
            self._sink(Span(opened.name, opened.context, opened.parent, opened.start, ended, said))


@dataclass(frozen=True)
class Open:
    """A span that has begun."""

    _tracer: Tracer = field(repr=False)
    name: str
    context: Context
    parent: str | None
    start: datetime

    def end(self, end: datetime | None = None, **attributes: str) -> None:
        """It is over, now or then."""
        self._tracer.end(self, end, attributes)


class Trace:
    """The trace of one drift on its host. Its spans are handed on once it is recorded: what is known already has no record."""

    def __init__(self, tracer: Tracer, root: Open, check: str) -> None:
        self._tracer = tracer
        self._check = check
        self._steps: list[tuple[Open, datetime]] = []
        self.root = root

    def took(self, name: str, start: datetime, end: datetime) -> None:
        """A part of it that is over."""
        self._steps.append((self._tracer.begin(name, self.root.context, start), end))

    def recorded(self, start: datetime, end: datetime, outcome: str) -> None:
        """Its record is durable."""
        self.took("record", start, end)
        for step, ended in self._steps:
            step.end(ended, check=self._check)
        self._steps.clear()
        self.root.end(end, check=self._check, outcome=outcome)
