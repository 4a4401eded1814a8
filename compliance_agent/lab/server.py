"""An MCP server in memory: the same rules as the real one, and faults to order.

It is a `ports.Transport`, so an agent speaks with it without a network. It checks the API key, the host's signature and the
place in the chain (with the real server's own rule), is idempotent, and signs its acknowledgement of them. `faults` holds what goes
wrong with the next requests, one each, in order; `down` refuses every connection.

    server = FakeServer()
    config = server.enrolled(config, signer)           # writes the credentials, as enrolment does
    server.faults.extend([Fault.LOSE_REPLY, Fault.refuse(503, retry_after_s=30)])
"""

from __future__ import annotations

import asyncio
import base64
import dataclasses
import hashlib
import json
import random
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, ClassVar

from compliance_agent import crypto
from compliance_agent.adapters.durable import make_directory, write_file
from compliance_agent.core import leases
from compliance_agent.entries import rotation
from compliance_agent.entries.leaf import bundle_leaf
from compliance_agent.errors import BadEvidence, Unavailable
from compliance_agent.evidence.canonical import canonical
from compliance_agent.lab.log import FakeLog, Lie
from compliance_agent.ports import HttpReply
from compliance_agent.server.records import Head
from compliance_agent.server.services import chain
from compliance_agent.transport import protocol

if TYPE_CHECKING:
    from compliance_agent.config import AgentConfig
    from compliance_agent.crypto import Ed25519Signer

NOW = datetime(2026, 11, 22, 12, 0, tzinfo=UTC)


@dataclass(frozen=True)
class Fault:
    """What goes wrong with one request.

    Attributes:
        name: which of the constants below.
        status: of a refusal.
        code: of a refusal.
        retry_after_s: of a refusal.
    """

    name: str
    status: int = 0
    code: str = ""
    retry_after_s: int | None = None

    NONE: ClassVar[Fault]
    LOSE_REQUEST: ClassVar[Fault]  # it never arrives
    LOSE_REPLY: ClassVar[Fault]  # it is stored, and the answer is cut
    DUPLICATE: ClassVar[Fault]  # it arrives twice; the second answer is given
    HANG: ClassVar[Fault]  # it arrives, and no answer ever comes
    ACK_OTHER: ClassVar[Fault]  # the acknowledgement names other bundles, well signed
    ACK_SWAPPED: ClassVar[Fault]  # its last bundle is one that was sent before, well signed
    ACK_FORGED: ClassVar[Fault]  # it is signed with another key
    ACK_REPLAYED: ClassVar[Fault]  # it is that of the request before
    ACK_CUT: ClassVar[Fault]  # its document is truncated
    ACK_SHORT: ClassVar[Fault]  # it leaves out the last bundle, and nothing says why
    ACK_NOT_STORED: ClassVar[Fault]  # it is missing, and nothing says why
    GARBAGE: ClassVar[Fault]  # the body is no JSON

    @classmethod
    def refuse(cls, status: int, code: str = "unavailable", *, retry_after_s: int | None = None) -> Fault:
        """An answer that says no."""
        return cls("refuse", status, code, retry_after_s)


for _name in ("NONE", "LOSE_REQUEST", "LOSE_REPLY", "DUPLICATE", "HANG", "ACK_OTHER", "ACK_SWAPPED", "ACK_FORGED",
              "ACK_REPLAYED", "ACK_CUT", "ACK_SHORT", "ACK_NOT_STORED", "GARBAGE"):  # fmt: skip
    setattr(Fault, _name, Fault(_name.lower()))


@dataclass(frozen=True)
class Held:
    """A stored bundle."""

    epoch: int
    seq: int
    sha256: str
    body: bytes

    @property
    def document(self) -> dict[str, Any]:
        """What it says."""
        found: dict[str, Any] = json.loads(self.body)
        return found


@dataclass
class Chain:
    """One enrolled key and what is held of it."""

    public: bytes
    host_id: str
    api_key: str
    next_api_key: str = ""  # its hash, until it is used
    bundles: list[Held] = field(default_factory=list)

    @property
    def head(self) -> Head | None:
        """The newest bundle."""
        return Head(self.bundles[-1].epoch, self.bundles[-1].seq, self.bundles[-1].sha256) if self.bundles else None

    def at(self, epoch: int, seq: int) -> str | None:
        """The digest held at a place."""
        return next((held.sha256 for held in self.bundles if (held.epoch, held.seq) == (epoch, seq)), None)


class FakeServer:
    """The server. Not for use from several loops.

    Args:
        site_id: of every host that enrols here.
        client_id: of that site.
        seed: for keys and tokens.
        logged: it keeps a transparency log, as `log`; an older server has none.
    """

    def __init__(
        self, *, site_id: str = "clinic-1", client_id: str = "msp-1", seed: int = 1, logged: bool = True
    ) -> None:
        from nacl.signing import SigningKey

        self.name = "fake"
        self.site_id, self.client_id = site_id, client_id
        self.down = False
        self.ready = True
        self.min_interval_s = 1
        self.time = "2026-11-22T12:00:00Z"  # as it says at check-in
        self.signed_time = "2026-11-22T12:00:00.000000Z"  # as it signs with every acknowledgement
        self.durable: dict[str, int] | None = (
            None  # by origin, what a backup holds; None is an older server, which says nothing
        )
        self.faults: deque[Fault] = deque()
        self.requests: list[str] = []
        self.check_ins: list[dict[str, Any]] = []
        self.baselines: dict[str, tuple[bytes, bytes]] = {}  # bytes and signature, by the digest that is asked for
        self.orders: list[bytes] = []  # that every check-in is answered with
        self.order_trust: list[bytes] = []  # the same
        self.chains: dict[str, Chain] = {}
        self.authority: bytes = b""
        self.board = leases.Board()
        self.lease_clock: Callable[[], float] = lambda: 0.0
        self.log = FakeLog(site_id) if logged else None
        self._rng = random.Random(seed)
        self._key = SigningKey(self._rng.randbytes(32))
        self._other_key = SigningKey(self._rng.randbytes(32))
        self._tokens: dict[str, str | None] = {}
        self._nonces: dict[bytes, bytes] = {}
        self._last_ack: dict[str, str] | None = None

    @property
    def public(self) -> bytes:
        """The key that acknowledgements are signed with."""
        return bytes(self._key.verify_key)

    def stored(self, key_id: str | None = None) -> list[Held]:
        """Everything held of a host (of the only one when not given), in the order it came."""
        chain_ = self.chains[key_id] if key_id is not None else next(iter(self.chains.values()))
        return chain_.bundles

    def enrolled(self, config: AgentConfig, signer: Ed25519Signer) -> AgentConfig:
        """Make a key known and write its credentials where the configuration that is returned names them."""
        chain_ = self._admit(signer.public_bytes, config.host_id)
        keys = config.state_dir / "keys"
        make_directory(keys)
        write_file(keys / "api-key", chain_.api_key.encode())
        write_file(keys / "server-key", self.public.hex().encode())
        if self.log is not None:
            write_file(keys / "log-key", f"{self.log.public.hex()}\n{self.name}\n".encode())
        return dataclasses.replace(config, mcp_api_key_file=keys / "api-key", mcp_server_key_file=keys / "server-key")

    def new_token(self) -> str:
        """A one-time token."""
        content = {"v": 1, "site": self.site_id, "exp": 4_000_000_000, "secret": self._rng.randbytes(16).hex()}
        raw = canonical({**content, "ca_sha256": None})
        token = "cae1." + base64.urlsafe_b64encode(raw).decode().rstrip("=")
        self._tokens[token] = None
        return token

    # The port

    async def request(
        self,
        method: str,
        path: str,
        *,
        headers: Mapping[str, str] | None = None,
        body: bytes = b"",
        timeout_s: float = 20.0,
    ) -> HttpReply:
        """One exchange, with the next fault if there is one."""
        await asyncio.sleep(0)
        self.requests.append(path)
        fault = self.faults.popleft() if self.faults else Fault.NONE
        if self.down or fault is Fault.LOSE_REQUEST:
            raise Unavailable("fake server: no connection", code="no_connection")
        if fault.name == "refuse":
            return _problem(fault.status, fault.code, retry_after_s=fault.retry_after_s)
        if fault is Fault.DUPLICATE:
            self._answer(method, path, dict(headers or {}), body, Fault.NONE)
        reply = self._answer(method, path, dict(headers or {}), body, fault)
        if fault is Fault.HANG:
            await self._never(timeout_s)
        if fault is Fault.LOSE_REPLY:
            raise Unavailable("fake server: cut", code="cut")
        return HttpReply(200, {}, b"{") if fault is Fault.GARBAGE else reply

    async def _never(self, timeout_s: float) -> None:
        try:
            async with asyncio.timeout(timeout_s):
                await asyncio.Event().wait()
        except TimeoutError as error:
            raise Unavailable("fake server: no whole answer", code="timed_out") from error

    async def close(self) -> None:
        """Nothing is kept open."""

    def _answer(self, method: str, path: str, headers: dict[str, str], body: bytes, fault: Fault) -> HttpReply:
        open_: dict[tuple[str, str], Callable[[Any], HttpReply]] = {
            ("POST", "/api/v1/enrol/challenge"): self._challenge,
            ("POST", "/api/v1/enrol"): self._enrol,
        }
        if (method, path) == ("GET", "/readyz"):
            return _reply(200 if self.ready else 503, {})
        if (method, path) == ("GET", "/ca.pem"):
            return HttpReply(200, {}, self.authority)
        if (method, path) in open_:
            return open_[method, path](json.loads(body))
        given = headers.get("authorization", "").removeprefix("Bearer ")
        chain_ = next((item for item in self.chains.values() if item.api_key == given), None) or self._first_use(given)
        if chain_ is None:
            return _problem(401, "bad_api_key")
        if path == "/api/v1/checkin":
            return self._signed(path, headers, body, self._check_in(chain_, json.loads(body)))
        if method == "GET" and path.startswith("/api/v1/baselines/"):
            held = self.baselines.get(path.rpartition("/")[2])
            if held is None:
                return _problem(404, "no_such_baseline")
            return _reply(200, {"baseline": _b64(held[0]), "sig": _b64(held[1])})
        if path == "/api/v1/evidence":
            return self._evidence(chain_, json.loads(body), fault)
        if path in {"/api/v1/keys/rotate", "/api/v1/api-keys"}:
            said = json.loads(body)
            return self._rotate(chain_, said, fault) if "statement" in said else self._api_key(chain_, given, said)
        if path == "/api/v1/leases":
            return self._signed(path, headers, body, self._lease(chain_, json.loads(body)))
        if self.log is not None and path == "/api/v1/receipts":
            return self._receipts(chain_, json.loads(body))
        if self.log is not None and path.startswith("/log/"):
            return self._log_file(path)
        return _problem(404, "not_found")

    def _signed(self, path: str, headers: Mapping[str, str], body: bytes, reply: HttpReply) -> HttpReply:
        """The reply with the server's signature, for who sent a nonce."""
        nonce = headers.get(protocol.NONCE)
        if nonce is None:
            return reply
        sig = self._key.sign(protocol.reply_message(path, nonce, body, reply.body)).signature
        return HttpReply(reply.status, {**reply.headers, protocol.REPLY_SIGNATURE: _b64(sig)}, reply.body)

    def _first_use(self, given: str) -> Chain | None:
        """The chain whose host announced this key: from now on it is the only one."""
        chain_ = next(
            (item for item in self.chains.values() if item.next_api_key == hashlib.sha256(given.encode()).hexdigest()),
            None,
        )
        if chain_ is not None:
            chain_.api_key, chain_.next_api_key = given, ""
        return chain_

    def _api_key(self, chain_: Chain, given: str, said: dict[str, Any]) -> HttpReply:
        hashes = [hashlib.sha256(given.encode()).digest(), bytes.fromhex(said["sha256"])]
        message = protocol.API_KEY_CONTEXT + b"".join(hashes)
        if not crypto.verify(chain_.public, base64.b64decode(said["sig"]), message):
            return _problem(403, "bad_proof")
        chain_.next_api_key = said["sha256"]
        return _reply(200, {"sha256": said["sha256"]})

    def _lease(self, chain_: Chain, said: dict[str, Any]) -> HttpReply:
        """One site's board; every canary's cure is taken for a success."""
        holder, now = crypto.key_id(chain_.public), self.lease_clock()
        if said["act"] == "release":
            self.board, done = leases.release(self.board, holder, said["fence"] or 0, now)
            return _reply(200, {"fence": None, "for_s": 0, "reason": "" if done else "lease_lost"})
        ask = leases.Ask(holder, chain_.host_id, said["check"], said["target"], said["life_s"])
        self.board, answer = leases.take(self.board, ask, now, cured=leases.SUCCESS)
        until = answer.not_before if answer.lease is None else answer.lease.until
        fence = answer.lease.fence if answer.lease is not None else None
        return _reply(200, {"fence": fence, "for_s": int((until or now) - now), "reason": answer.reason})

    # Evidence

    def _evidence(self, chain_: Chain, request: dict[str, Any], fault: Fault) -> HttpReply:
        if len(request["bundles"]) > 100:
            return _problem(413, "too_large")
        named: list[dict[str, Any]] = []
        receipts: list[dict[str, str] | None] = []
        stopped: dict[str, Any] | None = None
        for index, item in enumerate(request["bundles"]):
            status, code = self._take(chain_, base64.b64decode(item["bundle"]), base64.b64decode(item["sig"]))
            if status not in {"stored", "known"}:
                expected = chain.expected(chain_.head) if status == "409" else None
                if index == 0:
                    return _problem(int(status), code, expected=expected)
                stopped = {"index": index, "code": code, "expected": expected}
                break
            named.append(self._named(base64.b64decode(item["bundle"]), status, fault))
            receipts.append(self._logged(base64.b64decode(item["bundle"]), base64.b64decode(item["sig"])))
        ack = self._ack(chain_, named, fault)
        if fault is Fault.ACK_REPLAYED:
            ack = self._last_ack or ack
        self._last_ack = ack
        said = {"ack": ack, "stopped": stopped, "min_interval_s": self.min_interval_s}
        if fault is Fault.ACK_NOT_STORED:
            del said["ack"]
        return _reply(200, said if self.log is None else {**said, "receipts": receipts})

    def _take(self, chain_: Chain, body: bytes, signature: bytes) -> tuple[str, str]:
        if not crypto.verify(chain_.public, signature, body):
            return "422", "bad_signature"
        document = json.loads(body)
        if document["host"]["key_id"] != crypto.key_id(chain_.public):
            return "422", "wrong_host"
        digest = hashlib.sha256(body).hexdigest()
        link = chain.Link(document["epoch"], document["seq"], document["prev"], digest)
        placed = chain.place(link, chain_.head, chain_.at(link.epoch, link.seq))
        if placed is chain.Placed.KNOWN:
            return "known", ""
        if placed is not chain.Placed.NEXT:
            return "409", placed.value
        chain_.bundles.append(Held(link.epoch, link.seq, digest, body))
        return "stored", ""

    def _named(self, body: bytes, status: str, fault: Fault) -> dict[str, Any]:
        document = json.loads(body)
        digest = hashlib.sha256(body + (b" " if fault is Fault.ACK_OTHER else b"")).hexdigest()
        return {"bundle_sha256": digest, "epoch": document["epoch"], "seq": document["seq"], "status": status}

    def _ack(self, chain_: Chain, named: list[dict[str, Any]], fault: Fault) -> dict[str, str]:
        if fault is Fault.ACK_SWAPPED:
            named = [*named[:-1], {**named[-1], "bundle_sha256": chain_.bundles[0].sha256}]
        raw = canonical(
            {
                "schema": protocol.ACK_SCHEMA,
                "key_id": crypto.key_id(chain_.public),
                "received_at": self.signed_time,
                "bundles": named[:-1] if fault is Fault.ACK_SHORT else named,
            }
        )
        raw = raw[:-1] if fault is Fault.ACK_CUT else raw
        key = self._other_key if fault is Fault.ACK_FORGED else self._key
        return {"document": _b64(raw), "sig": _b64(key.sign(raw).signature)}

    def _rotate(self, chain_: Chain, request: dict[str, Any], fault: Fault) -> HttpReply:
        raw, old_sig, new_sig = (base64.b64decode(request[name]) for name in ("statement", "old_sig", "new_sig"))
        said = rotation.read(raw)
        if chain_.public != said.new_public:  # else it was done before, and the answer was lost
            try:
                rotation.verified(raw, chain_.public, old_sig, new_sig)
            except BadEvidence as error:
                return _problem(422, error.code)
            head = chain_.head
            if head is None or (head.epoch, head.seq, head.digest) != (said.epoch, said.seq, said.digest):
                return _problem(409, "wrong_head")
            self.chains[said.new_key] = self.chains.pop(said.old_key)
            chain_.public = said.new_public
        word = canonical(
            {
                "schema": "compliance-agent/rotated/v1",
                "old_key": said.old_key,
                "new_key": said.new_key,
                "epoch": said.epoch,
                "seq": said.seq,
                "digest": said.digest,
            }
        )
        key = self._other_key if fault is Fault.ACK_FORGED else self._key
        return _reply(200, {"rotated": _b64(word), "sig": _b64(key.sign(word).signature)})

    # The log

    def _logged(self, body: bytes, signature: bytes) -> dict[str, str] | None:
        if self.log is None:
            return None
        document, digest = json.loads(body), hashlib.sha256(body).hexdigest()
        place = (document["host"]["key_id"], document["epoch"], document["seq"], document["prev"])
        self.log.add(document["bundle_id"], bundle_leaf(*place, digest, signature))
        return None if self.log.lie is Lie.LATE else self.log.receipt(document["bundle_id"])

    def _receipts(self, chain_: Chain, request: dict[str, Any]) -> HttpReply:
        assert self.log is not None  # noqa: S101  routed here only then
        if len(request["bundles"]) > 100:
            return _problem(413, "too_large")
        own = {held.document["bundle_id"] for held in chain_.bundles}
        return _reply(
            200, {"receipts": [self.log.receipt(item) if item in own else None for item in request["bundles"]]}
        )

    def _log_file(self, path: str) -> HttpReply:
        assert self.log is not None  # noqa: S101  routed here only then
        prefix = f"/log/{self.log.origin.split('/', 1)[1]}/"
        found = self.log.file(path.removeprefix(prefix)) if path.startswith(prefix) else None
        return _problem(404, "not_found") if found is None else HttpReply(200, {}, found)

    # Check-in and enrolment

    def _check_in(self, chain_: Chain, request: dict[str, Any]) -> HttpReply:
        self.check_ins.append(request)
        head = chain_.head
        known = {"epoch": head.epoch, "seq": head.seq, "digest": head.digest} if head else None
        said: dict[str, Any] = {
            "server_time": self.time,
            "known": known,
            "min_interval_s": self.min_interval_s,
            "orders": [_b64(raw) for raw in self.orders],
            "order_trust": [_b64(raw) for raw in self.order_trust],
        }
        if self.durable is not None:
            said["durable"] = [{"origin": origin, "size": size} for origin, size in self.durable.items()]
        return _reply(200, said)

    def _challenge(self, request: dict[str, Any]) -> HttpReply:
        nonce = self._rng.randbytes(32)
        self._nonces[base64.b64decode(request["public_key"])] = nonce
        return _reply(200, {"nonce": _b64(nonce)})

    def _enrol(self, request: dict[str, Any]) -> HttpReply:
        public, token = base64.b64decode(request["public_key"]), request["token"]
        nonce = self._nonces.pop(public, None)
        proof = base64.b64decode(request["proof"])
        if nonce is None or not crypto.verify(public, proof, protocol.proof_message(nonce, token)):
            return _problem(403, "bad_proof")
        key_id = crypto.key_id(public)
        if token not in self._tokens or self._tokens[token] not in {None, key_id}:
            return _problem(403, "token_refused")
        self._tokens[token] = key_id
        chain_ = self.chains.get(key_id) or self._admit(public, request["host_id"])
        words = {"site_id": self.site_id, "client_id": self.client_id, "host_id": chain_.host_id, "key_id": key_id}
        more = {
            "api_key": chain_.api_key,
            "server_key": _b64(self.public),
            "server_name": self.name,
            "min_interval_s": 1,
        }
        log_key = {} if self.log is None else {"log_key": _b64(self.log.public)}
        return _reply(201, {**words, **more, **log_key})

    def _admit(self, public: bytes, host_id: str) -> Chain:
        chain_ = Chain(public, host_id, f"key-{self._rng.randbytes(16).hex()}")
        return self.chains.setdefault(crypto.key_id(public), chain_)


def _reply(status: int, document: dict[str, Any]) -> HttpReply:
    return HttpReply(status, {"content-type": "application/json"}, json.dumps(document).encode())


def _problem(
    status: int, code: str, *, expected: dict[str, int | str] | None = None, retry_after_s: int | None = None
) -> HttpReply:
    document = {"type": "about:blank", "title": code, "status": status, "detail": code, "code": code}
    headers = {} if retry_after_s is None else {"retry-after": str(retry_after_s)}
    body = json.dumps({**document, **({"expected": expected} if expected else {})}).encode()
    return HttpReply(status, {"content-type": "application/problem+json", **headers}, body)


def _b64(raw: bytes) -> str:
    return base64.b64encode(raw).decode("ascii")
