"""Set a file's permission bits. No symbolic link is followed, and no directory trusted in which others can swap names."""

from __future__ import annotations

import re
from typing import Any

from compliance_agent.errors import StepFailed
from compliance_agent.ports import ChangingHost
from compliance_agent.remedies.file_codes import FILE_CODES
from compliance_agent.remedies.spec import Action, Args

MODE = re.compile(r"0[0-7]{3}")


async def capture(host: ChangingHost, args: Args) -> Any:
    stat = await host.stat(str(args["path"]))
    return {"mode": stat.mode, "kind": stat.kind}


async def apply(host: ChangingHost, args: Args) -> None:
    path, mode = str(args["path"]), str(args["mode"])
    if not MODE.fullmatch(mode):
        raise StepFailed("mode: expected four octal digits that begin with 0", code="bad_arguments")
    if (await host.stat(path)).kind != "file":
        raise StepFailed(f"{path}: not a regular file", code="not_a_regular_file")
    await host.chmod(path, int(mode, 8))


async def undo(host: ChangingHost, args: Args, captured: Any) -> None:
    path = str(args["path"])
    if captured["kind"] == "file" and (await host.stat(path)).mode != captured["mode"]:
        await host.chmod(path, int(captured["mode"]))


ACTION = Action(
    id="set_mode",
    title="set the mode of {path} to {mode}",
    arguments={"path": str, "mode": str},
    capture=capture,
    apply=apply,
    undo=undo,
    codes={
        "bad_arguments": "The action was given arguments that it cannot use.",
        **FILE_CODES,
    },
)
