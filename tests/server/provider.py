"""An OpenID provider in this process, with its own keys; it can be told to lie in every way that a test knows."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import secrets
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qs, urlsplit

import httpx2
from joserfc import jwt
from joserfc.jwk import ECKey, OctKey, RSAKey
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, RedirectResponse, Response
from starlette.routing import Route

from tests.server.builder import Hands

ISSUER = "https://provider.test/realm"
CLIENT = "compliance"
SECRET = "what only the two know"


def _key(kind: str, kid: str) -> RSAKey | ECKey:
    options: Any = {"kid": kid, "use": "sig"}
    return RSAKey.generate_key(2048, options) if kind == "RSA" else ECKey.generate_key("P-256", options)


RSA, EC, OTHER, LATER = _key("RSA", "r1"), _key("EC", "e1"), _key("RSA", "r1"), _key("RSA", "r2")


def unsigned(claims: dict[str, Any]) -> str:
    """A token with the algorithm none."""
    import json

    parts = ({"alg": "none", "typ": "JWT"}, claims)
    return ".".join(base64.urlsafe_b64encode(json.dumps(part).encode()).decode().rstrip("=") for part in parts) + "."


def signed(claims: dict[str, Any], key: RSAKey | ECKey | OctKey, algorithm: str, **header: Any) -> str:
    """A token."""
    kid = {} if isinstance(key, OctKey) else {"kid": key.kid}
    return jwt.encode({"alg": algorithm, **kid, **header}, claims, key, algorithms=[algorithm])


@dataclass
class Provider:
    """The provider. What is None is what an honest one does."""

    clock: Hands
    subject: str = "u-1001"
    keys: list[RSAKey | ECKey] = field(default_factory=lambda: [RSA, EC])
    metadata: dict[str, Any] = field(default_factory=dict)
    claims: dict[str, Any] = field(default_factory=dict)
    drop: tuple[str, ...] = ()
    forge: Callable[[dict[str, Any]], str] | None = None
    token_answer: Response | None = None
    hangs: str = ""
    calls: list[str] = field(default_factory=list)
    codes: dict[str, tuple[str, str]] = field(default_factory=dict)

    def client(self) -> httpx2.AsyncClient:
        return httpx2.AsyncClient(transport=httpx2.ASGITransport(self.app()), follow_redirects=False)

    def app(self) -> Starlette:
        prefix = urlsplit(ISSUER).path
        return Starlette(
            routes=[
                Route(f"{prefix}/.well-known/openid-configuration", self._described),
                Route(f"{prefix}/keys", self._keys),
                Route(f"{prefix}/token", self._token, methods=["POST"]),
            ]
        )

    def authorize(self, address: str) -> dict[str, str]:
        """What the browser is sent back with, after the person has signed in there."""
        asked = {name: values[0] for name, values in parse_qs(urlsplit(address).query).items()}
        assert (asked["response_type"], asked["client_id"], asked["code_challenge_method"]) == ("code", CLIENT, "S256")
        code = secrets.token_urlsafe(16)
        self.codes[code] = (asked["code_challenge"], asked["nonce"])
        return {"code": code, "state": asked["state"]}

    async def _described(self, _request: Request) -> Response:
        await self._called("metadata")
        said = {
            "issuer": ISSUER,
            "authorization_endpoint": f"{ISSUER}/authorize",
            "token_endpoint": f"{ISSUER}/token",
            "jwks_uri": f"{ISSUER}/keys",
            "end_session_endpoint": f"{ISSUER}/logout",
        }
        return JSONResponse({**said, **self.metadata})

    async def _keys(self, _request: Request) -> Response:
        await self._called("keys")
        return JSONResponse({"keys": [key.as_dict(private=False) for key in self.keys]})

    async def _token(self, request: Request) -> Response:
        await self._called("token")
        if self.token_answer is not None:
            return self.token_answer
        form = {name: values[0] for name, values in parse_qs((await request.body()).decode()).items()}
        basic = base64.b64encode(f"{CLIENT}:{SECRET}".encode()).decode()
        held = self.codes.pop(form["code"], None)
        if held is None or request.headers.get("authorization") != f"Basic {basic}":
            return JSONResponse({"error": "invalid_grant"}, 400)
        digest = hashlib.sha256(form["code_verifier"].encode()).digest()
        if base64.urlsafe_b64encode(digest).decode().rstrip("=") != held[0]:
            return JSONResponse({"error": "invalid_grant"}, 400)
        return JSONResponse({"id_token": self.token(held[1]), "access_token": "x", "token_type": "Bearer"})

    def token(self, nonce: str) -> str:
        at = int(self.clock().timestamp())
        honest = {"iss": ISSUER, "sub": self.subject, "aud": CLIENT, "iat": at, "exp": at + 300, "nonce": nonce}
        claims = {name: value for name, value in {**honest, **self.claims}.items() if name not in self.drop}
        return self.forge(claims) if self.forge is not None else signed(claims, RSA, "RS256")

    async def _called(self, what: str) -> None:
        self.calls.append(what)
        if self.hangs == what:
            await asyncio.Event().wait()


def elsewhere() -> Response:
    """A redirect that would carry the code away."""
    return RedirectResponse("https://evil.test/token", 307)
