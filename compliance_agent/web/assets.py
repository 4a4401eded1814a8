"""Static files, each under a name that changes with its content, so that browsers may keep them for ever.

`/static/<first 12 hex of SHA-256>/<path>` is answered only when the digest is the file's; the page names it together with its
SHA-384 (Subresource Integrity). The set is read once, when the process starts: nothing outside it can be asked for.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources

from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

TYPES = {
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
FOR_EVER = "public, max-age=31536000, immutable"


@dataclass(frozen=True)
class Asset:
    """One static file: its bytes, the address pages use, and its integrity attribute."""

    content: bytes
    media_type: str
    url: str
    integrity: str


def _asset(name: str, content: bytes) -> Asset:
    digest = hashlib.sha256(content).hexdigest()[:12]
    integrity = "sha384-" + base64.b64encode(hashlib.sha384(content).digest()).decode()
    return Asset(content, TYPES[name[name.rindex(".") :]], f"/static/{digest}/{name}", integrity)


@cache
def assets() -> Mapping[str, Asset]:
    """Every static file by its short name: our own, and those that vendor.json names.

    Raises:
        RuntimeError: a vendored file is not the one that vendor.json promises.
    """
    static = resources.files("compliance_agent.web") / "static"
    found = {
        entry.name: _asset(entry.name, entry.read_bytes())
        for entry in static.iterdir()
        if entry.is_file() and entry.name.endswith(tuple(TYPES))
    }
    for name, promised in json.loads((static / "vendor" / "vendor.json").read_bytes()).items():
        found[name] = _asset(name, (static / "vendor" / promised["path"]).read_bytes())
        if found[name].integrity != promised["integrity"]:
            raise RuntimeError(
                f"web/static/vendor/{promised['path']} is not what vendor.json says; run scripts/vendor.py"
            )
    return found


async def serve(request: Request) -> Response:
    """One static file, or 404 when there is none of this name and content."""
    asset = assets().get(request.path_params["name"])
    if asset is None or request.url.path != asset.url:
        return PlainTextResponse("no such file\n", status_code=404)
    return Response(asset.content, media_type=asset.media_type, headers={"Cache-Control": FOR_EVER})


STATIC_ROUTE = Route("/static/{digest}/{name}", serve, methods=["GET", "HEAD"], name="static")
