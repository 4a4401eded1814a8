"""Have the SSH daemon read its files again, after they were tested, and prove that it still answers."""

from __future__ import annotations

from typing import Any

from compliance_agent.ports import ChangingHost
from compliance_agent.remedies import sshd_daemon
from compliance_agent.remedies.spec import Action, Args


async def capture(host: ChangingHost, args: Args) -> Any:
    return {}


async def apply(host: ChangingHost, args: Args) -> None:
    await sshd_daemon.read_anew(host, str(args["unit"]))
    await sshd_daemon.must_answer(host, "no_handshake_after")


async def undo(host: ChangingHost, args: Args, captured: Any) -> None:
    return None


ACTION = Action(
    id="reload_sshd",
    title="test the SSH daemon's files and have {unit} read them",
    arguments={"unit": str},
    capture=capture,
    apply=apply,
    undo=undo,
    undo_is_empty="the files were not touched, and what the daemon had read before is kept nowhere",
    codes=sshd_daemon.CODES,
    deadline_s=120.0,
)
