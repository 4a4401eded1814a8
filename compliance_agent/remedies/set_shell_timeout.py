"""Write the profile file that ends idle shells. It holds for shells that start from now on."""

from __future__ import annotations

from typing import Any

from compliance_agent.core.idle import shell_file
from compliance_agent.errors import StepFailed
from compliance_agent.ports import ChangingHost
from compliance_agent.remedies import kept_file
from compliance_agent.remedies.spec import Action, Args


async def capture(host: ChangingHost, args: Args) -> Any:
    return await kept_file.capture_file(host, str(args["path"]))


async def apply(host: ChangingHost, args: Args) -> None:
    if int(args["seconds"]) < 1:
        raise StepFailed("seconds: expected at least 1", code="bad_arguments")
    await kept_file.put_file(host, str(args["path"]), shell_file(int(args["seconds"])))


async def undo(host: ChangingHost, args: Args, captured: Any) -> None:
    await kept_file.restore_file(host, str(args["path"]), captured)


ACTION = Action(
    id="set_shell_timeout",
    title="end idle shells after {seconds} s, by {path}",
    arguments={"path": str, "seconds": int},
    capture=capture,
    apply=apply,
    undo=undo,
    codes=kept_file.CODES,
)
