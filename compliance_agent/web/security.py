"""What every response of the viewer carries, and what every form must bring back.

Headers follow OWASP ASVS 5.0 (3.4.1 to 3.4.6): nothing loads from elsewhere, nothing may frame a page, no script or style stands
inside a page. The form token is a double-submitted cookie beside `SameSite=Strict`; `__Host-` names bind cookies to this
origin wherever the connection is https.
"""

from __future__ import annotations

import hmac
import secrets
from collections.abc import Mapping, Sequence

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

CSP = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self'",
        "connect-src 'self'",
        "form-action 'self'",
        "base-uri 'none'",
        "frame-ancestors 'none'",
    )
)
HEADERS: Mapping[str, str] = {
    "Content-Security-Policy": CSP,
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=(), payment=(), usb=()",
}
HSTS = "max-age=31536000; includeSubDomains"
FORM_FIELD = "form_token"
_RAW = [(name.lower().encode(), value.encode()) for name, value in HEADERS.items()]
_RAW_HTTPS = [*_RAW, (b"strict-transport-security", HSTS.encode())]
_NAMES = frozenset(name for name, _ in _RAW_HTTPS)
_NO_STORE = (b"cache-control", b"no-store")
_ANSWER, _ANSWER_HTTPS = [*_RAW, _NO_STORE], [*_RAW_HTTPS, _NO_STORE]


def answer_headers(scheme: str) -> Sequence[tuple[bytes, bytes]]:
    """What stands on an answer that is never stored and says nothing of this itself."""
    return _ANSWER_HTTPS if scheme == "https" else _ANSWER


class SecurityHeaders:
    """ASGI middleware that puts the headers on everything the wrapped app answers, errors included.

    Pages are never stored by a cache; a response that says otherwise itself (static files named by content) keeps its word.
    HSTS is only said over https, where it means something.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                ours = _RAW_HTTPS if scope["scheme"] == "https" else _RAW
                headers = [item for item in message.get("headers", ()) if item[0] not in _NAMES] + ours
                if not any(name == b"cache-control" for name, _ in headers):
                    headers.append(_NO_STORE)
                message["headers"] = headers
            await send(message)

        await self.app(scope, receive, send_with_headers)


def form_cookie(request: Request) -> str:
    """Name of the cookie that holds the form token: `__Host-` where the browser will honour it."""
    return "__Host-form" if request.url.scheme == "https" else "form"


def set_cookie(request: Request, response: Response, name: str, value: str) -> None:
    """A cookie for this browser session, out of reach of scripts and of other sites."""
    secure = request.url.scheme == "https"
    response.set_cookie(name, value, path="/", secure=secure, httponly=True, samesite="strict")


def drop_cookie(request: Request, response: Response, name: str) -> None:
    """Make the browser forget a cookie."""
    secure = request.url.scheme == "https"
    response.delete_cookie(name, path="/", secure=secure, httponly=True, samesite="strict")


def form_token(request: Request) -> str:
    """The token for this browser's forms: the one it has, or a new one."""
    held = request.cookies.get(form_cookie(request), "")
    return held if len(held) == 43 and held.isascii() else secrets.token_urlsafe(32)


def remember_form_token(request: Request, response: Response, token: str) -> None:
    """Give the browser the token that a page's forms hold."""
    if request.cookies.get(form_cookie(request)) != token:
        set_cookie(request, response, form_cookie(request), token)


def form_is_ours(request: Request, sent: str) -> bool:
    """Whether a posted form came from one of our own pages: the token matches the cookie, and no other origin is named."""
    held = request.cookies.get(form_cookie(request), "")
    if not held or not hmac.compare_digest(held.encode(), sent.encode()):
        return False
    site = request.headers.get("sec-fetch-site")
    if site is not None:
        return site == "same-origin"
    # Our own pages send `Origin: null`, because of Referrer-Policy; but every browser that does so sends Sec-Fetch-Site too.
    origin = request.headers.get("origin")
    return origin is None or origin == f"{request.url.scheme}://{request.url.netloc}"
