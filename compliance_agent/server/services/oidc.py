"""Signing in at an OpenID provider: authorization code with PKCE, and nobody let in but who an owner has linked.

    address, browser = await oidc.begin("/hosts/…")       # where to send the browser, and what its cookie must hold
    secret, back = await oidc.finish(query, browser)      # a session's secret, and where the person was going

A sign-in that was begun is kept by the hash of its `state`, for ten minutes and one use, with the hash of a secret in the
browser's cookie: what comes back in another browser, twice or late is refused. Keys of the provider are kept for an hour, and
fetched anew, at most once a minute, when a token names one that is not there. Persons are matched by (issuer, subject) alone.
"""

from __future__ import annotations

import base64
import hashlib
import secrets
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Protocol
from urllib.parse import urlencode, urlsplit

import structlog

from compliance_agent.errors import Refusal
from compliance_agent.server.records import Clock, Flow, Store, Transaction
from compliance_agent.server.services.id_tokens import Claims, SigningKey, UnknownKey, parsed, signing_keys, verified
from compliance_agent.server.services.secrets import Rng, hashed, new_secret

FLOW_LIFE = timedelta(minutes=10)
MOST_FLOWS = 1_000
METADATA_LIFE = timedelta(hours=1)
KEYS_AGAIN = timedelta(minutes=1)
LOOPBACK = {"127.0.0.1", "::1", "localhost"}
WELL_KNOWN = "/.well-known/openid-configuration"

log = structlog.get_logger()


class Calls(Protocol):
    """What a provider is asked over the network; a redirect is an answer like any other, and is not followed.

    Raises:
        Refusal: 503 `provider_unreachable`; 403 `bad_metadata` when the answer is too long.
    """

    async def get(self, url: str) -> tuple[int, bytes]:
        """Status and body."""
        ...

    async def post(self, url: str, fields: Mapping[str, str], basic: tuple[str, str] | None) -> tuple[int, bytes]:
        """The same, of a form; `basic` is user and password."""
        ...


@dataclass(frozen=True)
class Client:
    """What this server is at the provider."""

    issuer: str
    client_id: str
    secret: str | None
    redirect_uri: str


@dataclass(frozen=True)
class Metadata:
    """What the provider says of itself."""

    authorization_endpoint: str
    token_endpoint: str
    jwks_uri: str
    end_session_endpoint: str | None
    names_itself: bool  # RFC 9207: its answers say which issuer they are from


LetIn = Callable[[Claims], Awaitable[str]]


class Oidc:
    """The desk for sign-ins at one provider."""

    def __init__(
        self, store: Store, clock: Clock, calls: Calls, client: Client, let_in: LetIn, rng: Rng = secrets.token_bytes
    ) -> None:
        self._store = store
        self._clock = clock
        self._calls = calls
        self.client = client
        self._let_in = let_in
        self._rng = rng
        self._metadata: tuple[datetime, Metadata] | None = None
        self._keys: tuple[datetime, list[SigningKey]] | None = None

    async def begin(self, back: str) -> tuple[str, str]:
        """Where to send the browser, and the secret for its cookie.

        Raises:
            Refusal: the provider cannot be used, or too many sign-ins are under way.
        """
        said, now = await self._described(), self._clock()
        state, browser, verifier, nonce = (new_secret("", self._rng) for _ in range(4))
        flow = Flow(hashed(state), hashed(browser), nonce, verifier, back, now + FLOW_LIFE)

        async def work(tx: Transaction) -> bool:
            return await tx.add_flow(flow, now, at_most=MOST_FLOWS)

        if not await self._store.write(work):
            raise Refusal("too many sign-ins are under way", code="busy", status=429, retry_after_s=60)
        asked = {
            "response_type": "code",
            "client_id": self.client.client_id,
            "redirect_uri": self.client.redirect_uri,
            "scope": "openid",
            "state": state,
            "nonce": nonce,
            "code_challenge": challenge(verifier),
            "code_challenge_method": "S256",
        }
        return _with_query(said.authorization_endpoint, asked), browser

    async def finish(self, query: Mapping[str, str], browser: str) -> tuple[str, str]:
        """A session's secret, and where the person was going.

        Raises:
            Refusal: every reason has its code; nobody is signed in, and this sign-in cannot be finished any more.
        """
        try:
            flow = await self._flow(query.get("state", ""), browser)
            claims = await self._claims(query, flow)
            return await self._let_in(claims), flow.back
        except Refusal as refusal:
            log.warning("login.federated_failed", code=refusal.code)
            raise

    async def end_address(self, back: str) -> str | None:
        """Where a person signs out at the provider too; None when it has no such place, or cannot be asked now."""
        try:
            said = await self._described()
        except Refusal:
            return None
        if said.end_session_endpoint is None:
            return None
        asked = {"client_id": self.client.client_id, "post_logout_redirect_uri": back}
        return _with_query(said.end_session_endpoint, asked)

    async def _flow(self, state: str, browser: str) -> Flow:
        now = self._clock()
        flow = await self._store.write(lambda tx: tx.take_flow(hashed(state), now))
        if flow is None or flow.browser_hash != hashed(browser):
            raise _refused(
                "bad_state", "it was not begun in this browser, or is finished, or took too long; begin anew"
            )
        return flow

    async def _claims(self, query: Mapping[str, str], flow: Flow) -> Claims:
        said = await self._described()
        named = query.get("iss")
        if named != self.client.issuer and (named is not None or said.names_itself):
            raise _refused("bad_issuer", "the answer is of another issuer")
        if "error" in query or not query.get("code"):
            raise _refused("provider_refused", "the provider let nobody in")
        token = await self._redeemed(said, query["code"], flow)
        given = {"issuer": self.client.issuer, "client_id": self.client.client_id, "nonce": flow.nonce}
        try:
            return verified(token, await self._signing(said), now=self._clock(), **given)
        except UnknownKey:
            pass
        try:
            return verified(token, await self._signing(said, again=True), now=self._clock(), **given)
        except UnknownKey as error:
            raise _refused("bad_token", "the token is signed by no key of the provider") from error

    async def _redeemed(self, said: Metadata, code: str, flow: Flow) -> str:
        fields = {
            "grant_type": "authorization_code",
            "code": code,
            "redirect_uri": self.client.redirect_uri,
            "client_id": self.client.client_id,
            "code_verifier": flow.verifier,
        }
        basic = (self.client.client_id, self.client.secret) if self.client.secret is not None else None
        status, body = await self._calls.post(said.token_endpoint, fields, basic)
        if status in range(300, 400):
            raise _refused("provider_redirected", "the provider sent us elsewhere with the code")
        if status != 200:
            raise _refused("code_refused", "the provider did not take the code: it was used, or is too old")
        token = parsed(body, "the provider's answer").get("id_token")
        if not isinstance(token, str):
            raise _refused("bad_token", "the provider gave no id token")
        return token

    async def _described(self) -> Metadata:
        now = self._clock()
        if self._metadata is not None and now - self._metadata[0] < METADATA_LIFE:
            return self._metadata[1]
        document = await self._fetched(self.client.issuer.rstrip("/") + WELL_KNOWN, "the provider's description")
        if document.get("issuer") != self.client.issuer:
            raise _refused("bad_issuer", "the provider says that it is another issuer")
        ends = document.get("end_session_endpoint")
        found = Metadata(
            authorization_endpoint=_address(document.get("authorization_endpoint"), "authorization_endpoint"),
            token_endpoint=_address(document.get("token_endpoint"), "token_endpoint"),
            jwks_uri=_address(document.get("jwks_uri"), "jwks_uri"),
            end_session_endpoint=_address(ends, "end_session_endpoint") if ends is not None else None,
            names_itself=document.get("authorization_response_iss_parameter_supported") is True,
        )
        self._metadata = (now, found)
        return found

    async def _signing(self, said: Metadata, *, again: bool = False) -> list[SigningKey]:
        now = self._clock()
        if self._keys is not None and now - self._keys[0] < (KEYS_AGAIN if again else METADATA_LIFE):
            return self._keys[1]
        keys = signing_keys(await self._fetched(said.jwks_uri, "the provider's keys"))
        self._keys = (now, keys)
        return keys

    async def _fetched(self, url: str, what: str) -> dict[str, object]:
        status, body = await self._calls.get(url)
        if status in range(300, 400):
            raise _refused("provider_redirected", f"{what} is said to be elsewhere")
        if status != 200:
            raise Refusal(f"sign-in: {what} cannot be had: status {status}", code="provider_unreachable", status=503)
        return parsed(body, what)


def challenge(verifier: str) -> str:
    """What is shown of a verifier beforehand (RFC 7636, S256)."""
    return base64.urlsafe_b64encode(hashlib.sha256(verifier.encode("ascii")).digest()).decode("ascii").rstrip("=")


def _address(value: object, name: str) -> str:
    """An endpoint: https, or http to this machine; no user, no fragment."""
    if isinstance(value, str) and value.isascii() and len(value) <= 2_048:
        try:
            parts = urlsplit(value)
            safe = parts.scheme == "https" or (parts.scheme == "http" and parts.hostname in LOOPBACK)
            if safe and parts.hostname and not parts.username and not parts.fragment:
                return value
        except ValueError:
            pass
    raise _refused("bad_metadata", f"the provider's {name} is no address that may be used")


def _with_query(url: str, fields: Mapping[str, str]) -> str:
    return f"{url}{'&' if urlsplit(url).query else '?'}{urlencode(fields)}"


def _refused(code: str, why: str) -> Refusal:
    return Refusal(f"sign-in: {why}", code=code, status=403)
