"""What the actions that write a whole file share: what was there, the new content in its place, and the way back, byte for byte.

Writing itself is the Host port's: atomic and durable, the owner kept, no symbolic link followed, and no directory trusted in which
others can swap names. A hard link to the former file keeps the former content.
"""

from __future__ import annotations

import base64
from typing import Any

from compliance_agent.errors import CannotTell, StepFailed
from compliance_agent.ports import ChangingHost

MOST_BYTES = 262_144
MODE = 0o644
CODES = {
    "bad_arguments": "The action was given arguments that it cannot use.",
    "not_a_regular_file": "What is at the path is not a regular file, so it was left alone.",
}


async def capture_file(host: ChangingHost, path: str) -> dict[str, Any]:
    """The file's bytes, mode and owner; `content` None for no file.

    Raises:
        CannotTell: it is there and cannot be read, or is not a regular file.
    """
    try:
        stat = await host.stat(path)
    except CannotTell as error:
        if error.reason == "not_found":
            return {"content": None}
        raise
    if stat.kind != "file":
        raise CannotTell("io_error", f"{path}: not a regular file", errno_name="EINVAL")
    raw = await host.read(path, limit_bytes=MOST_BYTES)
    return {"content": base64.b64encode(raw).decode("ascii"), "mode": stat.mode, "uid": stat.uid, "gid": stat.gid}


async def put_file(host: ChangingHost, path: str, content: bytes) -> None:
    """Have exactly this content at the path, readable by all and writable by its owner.

    Raises:
        StepFailed: it could not be written, or is not a regular file.
    """
    former = await _former(host, path)
    if former["content"] is not None and base64.b64decode(former["content"]) == content and former["mode"] == MODE:
        return
    await host.write(path, content, mode=MODE)


async def restore_file(host: ChangingHost, path: str, captured: dict[str, Any]) -> None:
    """Bring back what `capture_file` saw.

    Raises:
        StepFailed: it could not be brought back.
    """
    if captured["content"] is None:
        await host.remove(path)
    elif await _former(host, path) != captured:
        await host.write(path, base64.b64decode(captured["content"]), mode=int(captured["mode"]))


async def _former(host: ChangingHost, path: str) -> dict[str, Any]:
    try:
        return await capture_file(host, path)
    except CannotTell as error:
        code = "not_a_regular_file" if error.errno_name == "EINVAL" else error.reason
        raise StepFailed(f"{path}: {error.reason}", code=code) from error
