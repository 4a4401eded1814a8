"""An uplink that somebody else owns: it reads every question, may ask the server itself, and answers as it likes."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import random
from collections.abc import Callable
from typing import Any

from compliance_agent.evidence.canonical import canonical
from compliance_agent.frames import HEAD, MAX_FRAME_BYTES, Message, Reader, Side
from compliance_agent.lab.server import FakeServer
from compliance_agent.ports import HttpReply
from compliance_agent.transport.protocol import ACK_SCHEMA
from compliance_agent.uplink.table import TABLE

TRICKS = (
    "honest", "silence", "no_request", "cut_before", "cut_after", "cut_within", "garbage", "unknown_id", "earlier_id", "twice",
    "wrong_kind", "other_side", "too_large", "swapped", "replayed", "empty", "not_json", "refused", "gone", "asked_to_wait",
    "forged_ack", "other_key", "other_bundles", "made_up", "failed", "flood",
)  # fmt: skip


def reply(id_: int, answer: HttpReply) -> bytes:
    """An answer as a well-behaved uplink sends it."""
    kept = {name: value for name, value in answer.headers.items() if name in {"content-type", "retry-after"}}
    fields = {"status": answer.status, "headers": kept}
    return b"".join(TABLE.frames(Message("reply", id_, fields, answer.body)))


def frame(number: int, id_: int, payload: bytes) -> bytes:
    """A frame that no table has looked at."""
    return HEAD.pack(5 + len(payload), number, id_) + payload


class Owned:
    """Answers each question with the next trick.

    Args:
        server: which it asks with the agent's own API key.
        api_key: the key, which is uplink's to hold.
        next_trick: says what to do with a question for a path.
    """

    def __init__(self, server: FakeServer, api_key: str, next_trick: Callable[[str], str]) -> None:
        self._server, self._api_key, self._next_trick = server, api_key, next_trick
        self.played: list[str] = []
        self._former = HttpReply(200, {}, b"{}")

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        frames = Reader(TABLE, Side.ASKS)
        writer.write(TABLE.hello())
        while data := await reader.read(MAX_FRAME_BYTES):
            for asked in frames.feed(data):
                trick = self._next_trick(asked.fields["path"])
                self.played.append(trick)
                if not await self._play(trick, asked, writer):
                    return

    async def _asked(self, asked: Message) -> HttpReply:
        headers = {**asked.fields["headers"], "authorization": f"Bearer {self._api_key}"}
        return await self._server.request(
            asked.fields["method"], asked.fields["path"], headers=headers, body=asked.blob
        )

    async def _play(self, trick: str, asked: Message, writer: asyncio.StreamWriter) -> bool:
        """Whether the connection goes on."""
        id_ = asked.id
        if trick in {"silence", "no_request"}:
            if trick == "silence":
                await self._asked(asked)  # it arrives, and nobody hears of it
            return True
        if trick in {"cut_before", "gone"}:
            return False
        if trick == "flood":
            for _ in range(2_000):
                writer.write(frame(2, 2**32 - 1, b'{"status":200,"headers":{},"blob":0}'))
            return True
        raw = {
            "garbage": random.Random(id_).randbytes(200),
            "other_side": b"".join(TABLE.frames(ASKED)),
            "wrong_kind": frame(200, id_, b"{}"),
            "too_large": frame(2, id_, b'{"status":200,"headers":{},"blob":999999999}'),
            "failed": frame(3, id_, b'{"code":"rm -rf"}'),
            "empty": reply(id_, HttpReply(200, {}, b"{}")),
            "not_json": reply(id_, HttpReply(200, {}, b"\xff" * 1_000)),
            "refused": reply(id_, HttpReply(422, {}, b'{"code":"bad_signature"}')),
            "asked_to_wait": reply(id_, HttpReply(503, {"retry-after": "9999999"}, b"{}")),
            "replayed": reply(id_, self._former),
            "made_up": reply(id_, HttpReply(200, {}, made_up(asked.blob))),
        }.get(trick)
        if raw is not None:
            writer.write(raw)
            return True
        answer = await self._asked(asked)
        writer.write(self._twisted(trick, id_, answer))
        self._former = answer
        return trick not in {"cut_after", "cut_within"}

    def _twisted(self, trick: str, id_: int, answer: HttpReply) -> bytes:
        good = reply(id_, answer)
        if trick == "cut_after":
            return b""
        if trick == "cut_within":
            return good[: len(good) // 2]
        if trick == "twice":
            return good * 2
        if trick == "unknown_id":
            return reply(id_ + 7, answer)
        if trick == "earlier_id":
            return reply(max(0, id_ - 1), answer)
        if trick == "swapped":
            return reply(id_, self._former)
        if trick in {"forged_ack", "other_key", "other_bundles"}:
            return reply(id_, HttpReply(answer.status, {}, forged(trick, answer.body)))
        return good


ASKED = Message(
    "exchange", 1, {"to": "server", "method": "GET", "path": "/readyz", "headers": {}, "timeout_ms": 1_000}, b""
)


def forged(trick: str, body: bytes) -> bytes:
    """The answer to evidence with another acknowledgement: its signature broken, another key's, or over other bundles."""
    document: dict[str, Any] = json.loads(body)
    ack = document.get("ack")
    if not isinstance(ack, dict):
        return body
    sig = base64.b64decode(ack["sig"])
    if trick == "forged_ack":
        ack["sig"] = base64.b64encode(bytes(byte ^ 1 for byte in sig)).decode()
    else:
        said = json.loads(base64.b64decode(ack["document"]))
        if trick == "other_bundles":
            said["bundles"] = said.get("bundles", [])[:-1]
        ack["document"] = base64.b64encode(canonical(said)).decode()
        ack["sig"] = base64.b64encode(own_key().sign(canonical(said)).signature).decode()
    return json.dumps(document).encode()


def made_up(request: bytes) -> bytes:
    """A faultless acknowledgement of bundles that never left the host; only the key is not the server's."""
    try:
        listed = json.loads(request)["bundles"]
    except (ValueError, KeyError):
        return b"{}"
    bodies = [base64.b64decode(item["bundle"]) for item in listed]
    named = [
        {
            "bundle_sha256": hashlib.sha256(body).hexdigest(),
            "epoch": said["epoch"],
            "seq": said["seq"],
            "status": "stored",
        }
        for body, said in ((body, json.loads(body)) for body in bodies)
    ]
    raw = canonical(
        {
            "schema": ACK_SCHEMA,
            "key_id": json.loads(bodies[0])["host"]["key_id"],
            "bundles": named,
            "received_at": "2026-11-22T12:00:00.000000Z",
        }
    )
    ack = {"document": base64.b64encode(raw).decode(), "sig": base64.b64encode(own_key().sign(raw).signature).decode()}
    return json.dumps({"ack": ack, "stopped": None, "min_interval_s": 1}).encode()


def own_key() -> Any:
    """The only signing key that an uplink can have: one that it made."""
    from nacl.signing import SigningKey

    return SigningKey(b"u" * 32)
