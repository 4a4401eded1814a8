"""Write the drop-in that has logind end idle sessions, and have logind read it. Sessions that stand stay until they are idle."""

from __future__ import annotations

from typing import Any

from compliance_agent.core.idle import logind_file
from compliance_agent.errors import CannotTell, StepFailed
from compliance_agent.ports import ChangingHost
from compliance_agent.remedies import kept_file
from compliance_agent.remedies.spec import Action, Args

READ_ANEW = ("systemctl", "kill", "--kill-whom=main", "--signal=HUP", "--", "systemd-logind.service")


async def capture(host: ChangingHost, args: Args) -> Any:
    return await kept_file.capture_file(host, str(args["path"]))


async def apply(host: ChangingHost, args: Args) -> None:
    if int(args["seconds"]) < 1:
        raise StepFailed("seconds: expected at least 1", code="bad_arguments")
    await kept_file.put_file(host, str(args["path"]), logind_file(int(args["seconds"])))
    await _read_anew(host)


async def undo(host: ChangingHost, args: Args, captured: Any) -> None:
    await kept_file.restore_file(host, str(args["path"]), captured)
    await _read_anew(host)


async def _read_anew(host: ChangingHost) -> None:
    try:
        ran = await host.change(READ_ANEW)
    except CannotTell as error:
        raise StepFailed(f"systemctl: {error.reason}", code=error.reason) from error
    if ran.exit_status != 0:
        raise StepFailed(
            f"systemctl kill: exit status {ran.exit_status}",
            code="logind_not_told",
            exit_status_of_step=ran.exit_status,
        )


ACTION = Action(
    id="set_idle_logout",
    title="have logind end idle sessions after {seconds} s, by {path}",
    arguments={"path": str, "seconds": int},
    capture=capture,
    apply=apply,
    undo=undo,
    codes={**kept_file.CODES, "logind_not_told": "logind could not be told to read its files."},
)
