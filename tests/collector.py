"""A collector of traces on loopback: it takes OTLP over HTTP and reads it with the published messages."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from tests.transport.peer import Talk, peer


@dataclass(frozen=True)
class Got:
    """A span as the collector has it."""

    service: str
    name: str
    trace_id: str
    span_id: str
    parent: str
    start: int
    end: int
    attributes: dict[str, str]


@dataclass
class Collector:
    """What it was sent."""

    url: str = ""
    status: int = 200
    heads: list[bytes] = field(default_factory=list)
    spans: list[Got] = field(default_factory=list)
    resources: list[dict[str, str]] = field(default_factory=list)

    def take(self, request: bytes) -> None:
        head, _, body = request.partition(b"\r\n\r\n")
        self.heads.append(head)
        for of in ExportTraceServiceRequest.FromString(body).resource_spans:
            about = {item.key: item.value.string_value for item in of.resource.attributes}
            self.resources.append(about)
            for span in (span for scope in of.scope_spans for span in scope.spans):
                said = {item.key: item.value.string_value for item in span.attributes}
                ids = (span.trace_id.hex(), span.span_id.hex(), span.parent_span_id.hex())
                times = (span.start_time_unix_nano, span.end_time_unix_nano)
                self.spans.append(Got(about["service.name"], span.name, *ids, *times, said))


@contextlib.asynccontextmanager
async def collecting() -> AsyncIterator[Collector]:
    """One that listens until the block ends."""
    made = Collector()

    async def script(talk: Talk) -> None:
        while True:
            made.take(await talk.request())
            await talk.say(b"HTTP/1.1 %d X\r\ncontent-length: 0\r\n\r\n" % made.status)

    async with peer(script) as listening:
        made.url = f"http://127.0.0.1:{listening.port}"
        yield made
