"""What the actions that write a whole file share: what was there, the new content in its place, and the way back, byte for byte.

Writing itself is the Host port's: atomic and durable, the owner kept, no symbolic link followed, and no directory trusted
in which others can swap names. A hard link to the former file keeps the former content. A directory for drop-ins that is not
there yet is made, and removed again with the file.
"""

from __future__ import annotations

import base64
from pathlib import PurePosixPath
from typing import Any

from compliance_agent.errors import CannotTell, StepFailed
from compliance_agent.ports import ChangingHost, FileStat
from compliance_agent.remedies.file_codes import FILE_CODES

MOST_BYTES = 262_144
MODE = 0o644
CODES = {
    "bad_arguments": "The action was given arguments that it cannot use.",
    "directory_failed": "The directory for the file could not be made or removed.",
    **FILE_CODES,
}


async def capture_file(host: ChangingHost, path: str) -> dict[str, Any]:
    """The file's bytes, mode and owner; `content` None for no file, `directory` whether there is one for it.

    Raises:
        CannotTell: it is there and cannot be read, or is not a regular file.
    """
    try:
        stat, raw = await host.whole(path)  # as it most often is: one question, in the middle of a cure
        if stat.kind == "file" and len(raw) <= MOST_BYTES:
            return _captured(stat, raw)
    except CannotTell:  # it is asked anew what is the matter
        pass
    try:
        stat = await host.stat(path)
    except CannotTell as error:
        if error.reason == "not_found":
            return {"content": None, "directory": await _is_there(host, _parent(path))}
        raise
    if stat.kind != "file":
        raise CannotTell("io_error", f"{path}: not a regular file", errno_name="EINVAL")
    raw = await host.read(path, limit_bytes=MOST_BYTES)
    return _captured(stat, raw)


def _captured(stat: FileStat, raw: bytes) -> dict[str, Any]:
    return {"content": base64.b64encode(raw).decode("ascii"), "mode": stat.mode, "uid": stat.uid, "gid": stat.gid}


async def put_file(host: ChangingHost, path: str, content: bytes) -> None:
    """Have exactly this content at the path, readable by all and writable by its owner.

    Raises:
        StepFailed: it could not be written, or is not a regular file.
    """
    former = await _former(host, path)
    if former["content"] is not None and base64.b64decode(former["content"]) == content and former["mode"] == MODE:
        return
    if former["content"] is None and not former["directory"]:
        await _must(host, ("mkdir", "-m", "0755", "--", _parent(path)))
    await host.write(path, content, mode=MODE)


async def restore_file(host: ChangingHost, path: str, captured: dict[str, Any]) -> None:
    """Bring back what `capture_file` saw.

    Raises:
        StepFailed: it could not be brought back.
    """
    if captured["content"] is None:
        await host.remove(path)
        if not captured["directory"] and await _is_there(host, _parent(path)):
            await _must(host, ("rmdir", "--", _parent(path)))
    elif await _former(host, path) != captured:
        await host.write(path, base64.b64decode(captured["content"]), mode=int(captured["mode"]))


def _parent(path: str) -> str:
    return str(PurePosixPath(path).parent)


async def _is_there(host: ChangingHost, path: str) -> bool:
    try:
        await host.stat(path)
    except CannotTell as error:
        if error.reason == "not_found":
            return False
        raise
    return True


async def _must(host: ChangingHost, argv: tuple[str, ...]) -> None:
    try:
        ran = await host.change(argv)
    except CannotTell as error:
        raise StepFailed(f"{argv[0]}: {error.reason}", code=error.reason) from error
    if ran.exit_status != 0:
        raise StepFailed(f"{argv[0]}: exit status {ran.exit_status}", code="directory_failed")


async def _former(host: ChangingHost, path: str) -> dict[str, Any]:
    try:
        return await capture_file(host, path)
    except CannotTell as error:
        code = "not_a_regular_file" if error.errno_name == "EINVAL" else error.reason
        raise StepFailed(f"{path}: {error.reason}", code=code) from error
