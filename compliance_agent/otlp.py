"""Spans on their way to an OpenTelemetry collector: OTLP over HTTP, in batches, on whatever way out this process has.

Nothing waits for it. What a collector does not take, or there is no room for, is dropped and counted; trouble is said once, and
once that it is over. It needs the extra `otel`, which is imported here alone and only where a collector is configured.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Any

import structlog

from compliance_agent import __version__
from compliance_agent.errors import AgentError, ConfigError
from compliance_agent.ports import Transport
from compliance_agent.traces import Span

PATH = "/v1/traces"
EVERY_S = 1.0
MOST_HELD = 4_096
MOST_SENT = 512
TIMEOUT_S = 5.0
CLOSING_S = 1.0

log = structlog.get_logger()


class Otlp:
    """The way to one collector.

    Args:
        transport: leads to it.
        service: who sends: `compliance-agent` or `compliance-server`.
        wait: until some seconds have passed.

    Raises:
        ConfigError: the extra `otel` is not installed.
    """

    def __init__(self, transport: Transport, service: str, wait: Callable[[float], Awaitable[None]]) -> None:
        try:
            from opentelemetry.sdk.resources import Resource
        except ImportError as error:
            raise ConfigError(
                "otlp_url: spans need the extra `otel`, which is not installed",
                code="no_otel",
                hint='pip install "compliance-agent[otel]", or leave otlp_url out',
            ) from error
        self._resource = Resource({"service.name": service, "service.version": __version__})
        self._transport = transport
        self._wait = wait
        self._held: deque[Span] = deque()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._due = asyncio.Event()
        self._failed = ""
        self.sent = self.dropped = 0

    def add(self, span: Span) -> None:
        """Send this one soon. From any thread."""
        self._held.append(span)
        while len(self._held) > MOST_HELD:
            self._held.popleft()
            self.dropped += 1
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self._due.set)

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Send what is added until the block ends; then the rest, within a moment."""
        self._loop = asyncio.get_running_loop()
        task = asyncio.create_task(self._run())
        try:
            yield
        finally:
            task.cancel()
            await asyncio.wait({task})
            self._loop = None
            await self.close()

    async def _run(self) -> None:
        if self._held:
            self._due.set()
        while True:
            await self._due.wait()
            await self._wait(EVERY_S)
            self._due.clear()
            await self.flush()

    async def close(self) -> None:
        """Send what is held, within a moment, and close the connection; it can be used again."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(CLOSING_S):
                await self.flush()
        await self._transport.close()

    async def flush(self) -> None:
        """Send all that is held. Raises nothing for a collector that cannot be reached or does not take it."""
        while self._held:
            batch = [self._held.popleft() for _ in range(min(MOST_SENT, len(self._held)))]
            code = await self._sent(batch)
            if code:
                self.dropped += len(batch)
            else:
                self.sent += len(batch)
            self._say(code)

    async def _sent(self, batch: Sequence[Span]) -> str:
        """Empty when it was taken, else a code of ours for what was in the way."""
        headers = {"content-type": "application/x-protobuf"}
        try:
            body = message(batch, self._resource)
            reply = await self._transport.request("POST", PATH, headers=headers, body=body, timeout_s=TIMEOUT_S)
        except AgentError as error:
            return error.code
        return "" if reply.status == 200 else "not_taken"

    def _say(self, code: str) -> None:
        if code and code != self._failed:
            log.warning("traces.not_sent", code=code)
        elif self._failed and not code:
            log.info("traces.sent_again", dropped=self.dropped)
        self._failed = code


@contextlib.asynccontextmanager
async def sending(otlp: Otlp | None) -> AsyncIterator[None]:
    """Send spans meanwhile, where there is somebody to send them to."""
    if otlp is None:
        yield
        return
    async with otlp.running():
        yield


def message(spans: Sequence[Span], resource: Any) -> bytes:
    """An `ExportTraceServiceRequest`."""
    from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
    from opentelemetry.sdk.trace import ReadableSpan
    from opentelemetry.sdk.util.instrumentation import InstrumentationScope
    from opentelemetry.trace import SpanContext, TraceFlags

    def place(trace_id: str, span_id: str) -> SpanContext:
        return SpanContext(int(trace_id, 16), int(span_id, 16), is_remote=False, trace_flags=TraceFlags(1))

    scope = InstrumentationScope("compliance_agent", __version__)
    made = [
        ReadableSpan(
            span.name,
            context=place(span.context.trace_id, span.context.span_id),
            parent=place(span.context.trace_id, span.parent) if span.parent else None,
            resource=resource,
            attributes=dict(span.attributes),
            instrumentation_scope=scope,
            start_time=int(span.start.timestamp() * 1_000_000) * 1_000,
            end_time=int(span.end.timestamp() * 1_000_000) * 1_000,
        )
        for span in spans
    ]
    return bytes(encode_spans(made).SerializeToString())
