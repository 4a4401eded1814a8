"""Speaks with the MCP server: delivers evidence, checks in, reads its health. Nothing here decides what may be forgotten
except by a verified acknowledgement.

`upload_evidence` takes one bundle, as its caller sees it; calls that wait at the same time leave in one request, in the
order they were made, so that a backlog travels in batches. A circuit breaker and the server's `Retry-After` decide whether
the network is touched at all; while they say no, a call is refused at once with `Unavailable`.
"""

from __future__ import annotations

import asyncio
import os
import random
import re
import secrets
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import structlog

from compliance_agent import crypto
from compliance_agent.adapters.durable import read_file
from compliance_agent.config import LABEL
from compliance_agent.core.breaker import CircuitBreaker
from compliance_agent.core.receipt import PinnedLog
from compliance_agent.credential import credential, load_api_key
from compliance_agent.dataclass import dataclass
from compliance_agent.documents import read_json
from compliance_agent.errors import (
    AgentError,
    BadEvidence,
    BadReply,
    ConfigError,
    DocumentError,
    ServerRefused,
    Unavailable,
)
from compliance_agent.log.policy import Policy
from compliance_agent.transport import protocol

if TYPE_CHECKING:
    from compliance_agent.config import AgentConfig
    from compliance_agent.models import QueuedEvidence
    from compliance_agent.ports import Clock, HttpReply, Transport

log = structlog.get_logger()
_SERVER_KEY = re.compile(r"[0-9a-f]{64}")
_LOG_KEY = re.compile(_SERVER_KEY.pattern + r"(\n" + LABEL.pattern + ")?")  # and the server's name on a second line
MAX_BUNDLE_BYTES = 65_535  # an entry of a tiled log is at most this long (C2SP tlog-tiles)


@dataclass(frozen=True)
class Credentials:
    """What enrolment left on this host: the API key, and the key the server acknowledges with."""

    api_key: str | None  # None where uplink has it
    server_key: bytes

    def __repr__(self) -> str:
        return "Credentials(***)"


class MCPClient:
    """The agent's side of the protocol.

    Args:
        config: address, files and limits.
        key_id: this host's key, that an acknowledgement must name.
        transport: the network; HTTP to `config.mcp_url` when not given.
        clock: for the breaker; the system's when not given.
        rng: for the breaker's jitter.
        on_ack: is given each verified acknowledgement before `upload_evidence` returns True for it.
    """

    def __init__(
        self,
        config: AgentConfig,
        key_id: str,
        *,
        transport: Transport | None = None,
        clock: Clock | None = None,
        rng: random.Random | None = None,
        on_ack: Callable[[protocol.Acknowledged], None] | None = None,
    ) -> None:
        self._config = config
        self._key_id = key_id
        self._transport = transport if transport is not None else _way(config)
        self._clock = clock if clock is not None else _system_clock()
        self._on_ack = on_ack
        self._credentials: Credentials | None = None
        self._pinned_log: PinnedLog | None = None
        self._waiting: list[tuple[protocol.Sent, asyncio.Future[bool]]] = []
        self._sender: asyncio.Task[None] | None = None
        self._not_before = 0.0
        self.breaker = CircuitBreaker(rng if rng is not None else random.Random())  # noqa: S311  jitter, not a secret
        self.min_interval_s: int | None = None
        self.api_key_refused = False  # the server does not know the key that this host has
        self.certificate_trouble = ""  # why the server does not take this host's client certificate, when it does not

    async def __aenter__(self) -> MCPClient:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Give up what is waiting and close the connection; the client can be used again."""
        if self._sender is not None:
            self._sender.cancel()
            await asyncio.wait({self._sender}, timeout=1)
            self._sender = None
        await self._transport.close()

    async def upload_evidence(self, bundle_path: str | Path, signature_path: str | Path | None = None) -> bool:
        """Deliver one stored bundle; True only when the server's signed acknowledgement of exactly this bundle was verified.

        Args:
            bundle_path: bundle.json as it was signed.
            signature_path: its 64 raw bytes; `bundle.sig` beside it when not given.

        Raises:
            ServerRefused: the server said no; `code`, `retry_after_s` and `expected` say what to do.
            Unavailable: the network was not reached, or not now.
            BadReply: the answer cannot be believed.
            NoInput, BadEvidence: the files are not a bundle.
        """
        return await self._delivered(read_bundle(Path(bundle_path), Path(signature_path) if signature_path else None))

    async def upload(self, item: QueuedEvidence) -> bool:
        """The same for a bundle of the line: by the bytes that the line holds, so that no file is needed; else by its files."""
        if item.body is None or item.signature is None:
            return await self.upload_evidence(item.bundle_path, item.signature_path)
        return await self._delivered(replace(as_sent(item.body, item.signature), traceparent=item.traceparent))

    async def _delivered(self, sent: protocol.Sent) -> bool:
        future: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self._waiting.append((sent, future))
        if self._sender is None or self._sender.done():
            self._sender = asyncio.ensure_future(self._send_waiting())
        return await future

    async def _send_waiting(self) -> None:
        """Send what is waiting, batch by batch; after a failure the rest is not tried: it would leave a gap."""
        await asyncio.sleep(0)  # callers that were started together join one request
        while self._waiting:
            batch = self._next_batch()
            try:
                await self._send([sent for sent, _ in batch], [future for _, future in batch])
            except BaseException as error:
                failure = error if isinstance(error, Exception) else Unavailable("delivery was stopped", code="stopped")
                waiting = [future for _, future in self._waiting]
                self._waiting.clear()
                for future in [*(future for _, future in batch), *waiting]:
                    if not future.done():
                        future.set_exception(failure)
                if not isinstance(error, Exception):
                    raise
                return

    def _next_batch(self) -> list[tuple[protocol.Sent, asyncio.Future[bool]]]:
        size, count = 0, 0
        for sent, _ in self._waiting[: self._config.upload_batch_size]:
            size += len(sent.body)
            if count and size > protocol.MAX_BATCH_BYTES:
                break
            count += 1
        batch, self._waiting = self._waiting[:count], self._waiting[count:]
        return batch

    async def _send(self, bundles: Sequence[protocol.Sent], futures: Sequence[asyncio.Future[bool]]) -> None:
        credentials = self._secrets()
        body, more = protocol.evidence_request(bundles), bool(self._waiting)
        answer = await self._guarded(  # a line does not stand still for receipts: they can be had together later
            lambda: self._post("/api/v1/evidence", body, credentials.api_key, hurried=more),
            lambda reply: protocol.read_evidence_reply(
                reply, bundles, self._key_id, credentials.server_key, crypto.verify
            ),
        )
        if answer.min_interval_s is not None:
            self.min_interval_s = answer.min_interval_s
        for ack, future in zip(answer.acknowledged, futures, strict=False):
            if self._on_ack is not None:
                self._on_ack(ack)
            if not future.done():
                future.set_result(True)
        if answer.stopped is not None:
            raise answer.stopped

    async def check_in(
        self,
        *,
        head: tuple[int, int, str],
        pending: int,
        baseline: tuple[str, str],
        checks: dict[str, tuple[str, str]],
        order_nonce: str | None = None,
        order_trust: dict[str, Any] | None = None,
    ) -> protocol.CheckinReply:
        """Tell the server this host is alive and how far its chain reaches; learn how far the server's copy does.

        Raises:
            ServerRefused, Unavailable, BadReply: as for `upload_evidence`.
        """
        body = protocol.checkin_request(
            key_id=self._key_id, head=head, pending=pending, baseline=baseline, checks=checks, order_nonce=order_nonce,
            order_trust=order_trust,
        )  # fmt: skip
        answer: protocol.CheckinReply = await self._decided("/api/v1/checkin", body, protocol.read_checkin_reply)
        self.min_interval_s = answer.min_interval_s
        return answer

    async def rotate_key(self, statement: bytes, old_sig: bytes, new_sig: bytes) -> None:
        """Tell the server that a new key has taken this host's key's place; returns when it has signed that it knows.

        Raises:
            ServerRefused, Unavailable, BadReply: as for `upload_evidence`; telling it again is safe.
        """
        body, credentials = protocol.rotate_request(statement, old_sig, new_sig), self._secrets()
        await self._guarded(
            lambda: self._post("/api/v1/keys/rotate", body, credentials.api_key),
            lambda reply: protocol.read_rotate_reply(reply, statement, credentials.server_key, crypto.verify),
        )

    async def lease(self, act: str, check: str, target: str, life_s: int, fence: int | None) -> protocol.LeaseReply:
        """Ask for leave to disturb this host's users, renew it, or give it back.

        Raises:
            ServerRefused, Unavailable, BadReply: as for `upload_evidence`.
        """
        body = protocol.lease_request(act, check, target, life_s, fence)
        answer: protocol.LeaseReply = await self._decided("/api/v1/leases", body, protocol.read_lease_reply)
        return answer

    async def certify(self, csr: bytes, signer: crypto.Ed25519Signer) -> bytes:
        """Ask for a client certificate (PEM) for the key of a signing request, which this host's own key vouches for.

        Raises:
            ServerRefused, Unavailable, BadReply: as for `upload_evidence`.
        """
        ask = protocol.challenge_request(signer.public_bytes)
        nonce: bytes = await self._guarded(
            lambda: self._post("/api/v1/enrol/challenge", ask, None), protocol.read_challenge_reply
        )
        body = protocol.certificate_request(csr, nonce, signer.sign(protocol.certificate_message(nonce, csr)))
        api_key = self._secrets().api_key
        answer: bytes = await self._guarded(
            lambda: self._post("/api/v1/certificates", body, api_key), protocol.read_certificate_reply
        )
        return answer

    @property
    def certificate_of_uplink(self) -> Any:
        """Where the client certificate is looked after, when that is not this process."""
        return getattr(self._transport, "certificate", None)

    async def announce_api_key(self, coming: str, signer: crypto.Ed25519Signer, *, by: str | None = None) -> None:
        """Let another API key count beside the present one, or beside the one that this call is made by.

        Raises:
            ServerRefused, Unavailable, BadReply: as for `upload_evidence`; telling it again is safe.
        """
        present = by or self._secrets().api_key
        if present is None:
            raise RuntimeError("uplink has the API key")
        body = protocol.api_key_request(coming, signer.sign(protocol.api_key_message(present, coming)))
        await self._guarded(
            lambda: self._post("/api/v1/api-keys", body, present),
            lambda reply: protocol.read_api_key_reply(reply, coming),
        )

    def use_certificate(self, path: Path | None) -> None:
        """Show this certificate from the next connection on, or none.

        Raises:
            ConfigError: it cannot be used.
        """
        use = getattr(self._transport, "use_client_certificate", None)
        if use is not None:
            use(path)
        if path is not None:
            self.certificate_trouble = ""

    def use_key(self, key_id: str) -> None:
        """From now on this host is this key."""
        self._key_id = key_id

    # The transparency log

    def pinned_log(self) -> PinnedLog | None:
        """Key and name of the server's logs as enrolment pinned them, None when the server had none then.

        Raises:
            ConfigError: the file is there and cannot be used; delivery goes on without it.
        """
        if self._pinned_log is None:
            self._pinned_log = load_pinned_log(self._config)
        return self._pinned_log

    async def fetch_receipts(self, bundle_ids: Sequence[str]) -> list[protocol.OfferedReceipt | None]:
        """Ask for the receipts of at most 100 acknowledged bundles, None for those that are not in the log yet.

        Raises:
            ServerRefused, Unavailable, BadReply: as for `upload_evidence`.
        """
        body, api_key = protocol.receipts_request(bundle_ids), self._secrets().api_key
        answer: list[protocol.OfferedReceipt | None] = await self._guarded(
            lambda: self._post("/api/v1/receipts", body, api_key),
            lambda reply: protocol.read_receipts_reply(reply, bundle_ids),
        )
        return answer

    async def log_file(self, origin: str, path: str) -> bytes:
        """A file of a log of this site: its checkpoint, or a tile.

        Raises:
            ServerRefused, Unavailable, BadReply: as for `upload_evidence`; status 404 when there is no such file.
        """
        headers = protocol.headers(self._secrets().api_key)
        answer: bytes = await self._guarded(
            lambda: self._transport.request(
                "GET",
                protocol.log_path(origin, path),
                headers=headers,
                timeout_s=float(self._config.upload_timeout_sec),
            ),
            protocol.read_log_file,
        )
        return answer

    async def fetch_baseline(self, sha256: str) -> tuple[bytes, bytes]:
        """A baseline that the server holds for this site, and its signature; its caller verifies both.

        Raises:
            ServerRefused, Unavailable, BadReply: as for `upload_evidence`; status 404 when there is none.
        """
        headers = protocol.headers(self._secrets().api_key)
        timeout_s = float(self._config.upload_timeout_sec)
        path = f"/api/v1/baselines/{sha256}"
        answer: tuple[bytes, bytes] = await self._guarded(
            lambda: self._transport.request("GET", path, headers=headers, timeout_s=timeout_s),
            protocol.read_baseline_reply,
        )
        return answer

    async def health_check(self) -> bool:
        """Whether the server says it is ready. Never raises for a server or network that is not."""
        try:
            reply = await self._transport.request("GET", "/readyz", timeout_s=5)
        except (Unavailable, BadReply):
            return False
        return reply.status == 200

    async def _decided(self, path: str, body: bytes, read: Callable[[Any], Any]) -> Any:
        """One exchange whose answer decides something by itself. Where another process fetches it, the server must sign it."""
        secret = self._secrets()
        nonce = secrets.token_hex(16) if self._config.privileges == "split" else None

        def believed(reply: HttpReply) -> Any:
            if nonce is not None:
                message = protocol.reply_message(path, nonce, body, reply.body)
                protocol.check_signed(reply, message, secret.server_key, crypto.verify)
            return read(reply)

        return await self._guarded(lambda: self._post(path, body, secret.api_key, nonce=nonce), believed)

    async def _post(
        self, path: str, body: bytes, api_key: str | None, *, hurried: bool = False, nonce: str | None = None
    ) -> HttpReply:
        headers = protocol.headers(api_key, hurried=hurried)
        if nonce is not None:
            headers[protocol.NONCE] = nonce
        timeout_s = float(self._config.upload_timeout_sec)
        return await self._transport.request("POST", path, headers=headers, body=body, timeout_s=timeout_s)

    def let_in_s(self) -> float | None:
        """Seconds until the breaker lets a try through, 0 when it does now; None while it has no say: it is closed, or the server
        asked to wait for longer.
        """
        now = self._clock.monotonic()
        wait_s = self.breaker.wait_s(now)
        return None if self.breaker.state(now) == "closed" or self._not_before - now > wait_s else wait_s

    async def _guarded(self, exchange: Callable[[], Any], read: Callable[[Any], Any]) -> Any:
        """One exchange under the breaker and the server's `Retry-After`; a refused bundle is not a failure of the server."""
        now = self._clock.monotonic()
        if now < self._not_before:
            raise Unavailable(f"the server asked to wait {self._not_before - now:.0f} s more", code="retry_after")
        if not self.breaker.allow(now):
            raise Unavailable("the server failed several times; waiting before the next try", code="circuit_open")
        try:
            answer = read(await exchange())
        except (asyncio.CancelledError, ConfigError):
            self.breaker.failure(self._clock.monotonic())
            raise
        except ServerRefused as error:
            self._note_refusal(error)
            raise
        except (Unavailable, BadReply) as error:
            if error.code == "certificate_refused":
                self.certificate_trouble = error.code
            self.breaker.failure(self._clock.monotonic())
            raise
        self.breaker.success(self._clock.monotonic())
        self.api_key_refused = False
        return answer

    def _note_refusal(self, error: ServerRefused) -> None:
        now = self._clock.monotonic()
        if error.code in {"certificate_required", "wrong_certificate"}:
            self.certificate_trouble = error.code
        self.api_key_refused = self.api_key_refused or error.code == "bad_api_key"
        if error.status in {401, 403}:
            self.forget_credentials()  # this host may have been enrolled anew meanwhile
        if error.retry_after_s is not None:
            self._not_before = now + error.retry_after_s
        if error.status >= 500 or error.status in {408, 429}:
            self.breaker.failure(now)
        else:
            self.breaker.success(now)

    def _secrets(self) -> Credentials:
        if self._credentials is None:
            self._credentials = load_credentials(self._config)
        return self._credentials

    def forget_credentials(self) -> None:
        """Read the files again before the next request (after enrolment or rotation)."""
        self._credentials = self._pinned_log = None


def load_credentials(config: AgentConfig) -> Credentials:
    """The API key, where this process holds it, and the pinned server key, from their files.

    Raises:
        Unavailable: this host is not enrolled; what is recorded waits.
        ConfigError: a file is there but cannot be used.
    """
    api_key = load_api_key(config.mcp_api_key_file) if config.privileges == "single" else None
    server_key = credential("mcp_server_key_file", config.mcp_server_key_file, _SERVER_KEY, secret=False)
    return Credentials(api_key, bytes.fromhex(server_key))


def load_pinned_log(config: AgentConfig) -> PinnedLog | None:
    """The pinned key of the server's transparency logs, with the server's name; None where enrolment wrote none.

    Raises:
        ConfigError: the file is there but cannot be used, or holds a weak key.
    """
    path = config.mcp_log_key_file
    if path is None or not os.path.lexists(path):
        return None
    key, *name = credential("mcp_log_key_file", path, _LOG_KEY, secret=False).split("\n")
    try:
        crypto.check_public_key(bytes.fromhex(key))
    except BadEvidence as error:
        raise ConfigError(f"mcp_log_key_file: {path} holds a weak key", code="weak_key") from error
    server = name[0] if name else None
    return PinnedLog(bytes.fromhex(key), server, load_witnesses(config), config.witness_required)


def load_witnesses(config: AgentConfig) -> Policy | None:
    """Whose cosignatures count here, None where the configuration names nobody.

    Raises:
        ConfigError: the file cannot be used.
    """
    path = config.witness_policy_file
    if path is None:
        return None
    try:
        policy = Policy.parse(read_file(path, limit_bytes=65_536, trusted=True))
    except AgentError as error:
        raise ConfigError(f"witness_policy_file {path}: {error}", code="bad_policy", hint=error.hint) from error
    if policy.logs or policy.quorum == "none":
        raise ConfigError(
            f"witness_policy_file {path}: expected witness, group and quorum lines, no log line and a quorum of somebody",
            code="bad_policy",
        )
    return policy


def read_bundle(bundle_path: Path, signature_path: Path | None = None) -> protocol.Sent:
    """A stored bundle's exact bytes, with the place in the chain that it claims.

    Raises:
        NoInput: a file is missing.
        BadEvidence: not a bundle.
    """
    body = read_file(bundle_path, limit_bytes=MAX_BUNDLE_BYTES)
    return as_sent(body, read_file(signature_path or bundle_path.with_suffix(".sig"), limit_bytes=64))


def as_sent(body: bytes, signature: bytes) -> protocol.Sent:
    """A bundle's exact bytes, with the place in the chain that it claims.

    Raises:
        BadEvidence: not a bundle.
    """
    try:
        document = read_json(body, limit_bytes=MAX_BUNDLE_BYTES)
        sent = protocol.Sent(document["bundle_id"], document["epoch"], document["seq"], body, signature)
    except (DocumentError, KeyError, TypeError) as error:
        raise BadEvidence("bundle to deliver: expected a signed bundle, found something else") from error
    if [type(item) for item in (sent.bundle_id, sent.epoch, sent.seq)] != [str, int, int] or len(signature) != 64:
        raise BadEvidence("bundle to deliver: expected a signed bundle, found something else")
    return sent


def _way(config: AgentConfig) -> Transport:
    if config.privileges == "split":
        from compliance_agent.uplink.link import UplinkTransport, link_of

        return UplinkTransport(link_of(config))
    from compliance_agent.transport.http import to_server

    return to_server(config)


def _system_clock() -> Clock:
    from compliance_agent.adapters.clock import SystemClock

    return SystemClock()
