"""Posted forms, and where they lead: small, from our own pages, and never elsewhere."""

from __future__ import annotations

from urllib.parse import parse_qsl

from starlette.exceptions import HTTPException
from starlette.requests import Request

from compliance_agent.web import security

LONGEST_FORM_BYTES = 8192
LONGEST_PATH = 2048
MOST_FIELDS = 80


async def form_of(request: Request) -> dict[str, str]:
    """The fields of a small posted form that came from one of our own pages; see `pairs_of`."""
    return dict(await pairs_of(request))


async def pairs_of(request: Request) -> list[tuple[str, str]]:
    """The same, for a form in which a name may stand more than once.

    Raises:
        HTTPException: 413 too large, 400 not a form, 403 not ours.
    """
    body = b""
    async for chunk in request.stream():
        body += chunk
        if len(body) > LONGEST_FORM_BYTES:
            raise HTTPException(413)
    if request.headers.get("content-type", "").partition(";")[0].strip() != "application/x-www-form-urlencoded":
        raise HTTPException(400)
    try:
        fields = parse_qsl(body.decode("ascii"), keep_blank_values=True, max_num_fields=MOST_FIELDS)
    except ValueError as error:
        raise HTTPException(400) from error
    if not security.form_is_ours(request, dict(fields).get(security.FORM_FIELD, "")):
        raise HTTPException(403)
    return fields


def inside(path: str) -> str:
    """Where to go after signing in: a path of this site, whatever the link said."""
    safe = path.startswith("/") and not path.startswith(("//", "/\\")) and path.isascii() and path.isprintable()
    return path if safe and "\\" not in path and len(path) <= LONGEST_PATH else "/"
