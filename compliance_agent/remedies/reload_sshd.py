"""Have the SSH daemon read its files again, after they were tested, and prove that it still answers."""

from __future__ import annotations

from typing import Any

from compliance_agent.ports import ChangingHost
from compliance_agent.remedies import sshd_daemon
from compliance_agent.remedies.spec import Action, Args
from compliance_agent.remedies.unit_codes import unit_codes


async def capture(host: ChangingHost, args: Args) -> Any:
    return {"answers": await sshd_daemon.answers(host)}


async def apply(host: ChangingHost, args: Args) -> None:
    await sshd_daemon.must_be_good(host)
    await sshd_daemon.must_answer(host, "no_handshake_before")
    await sshd_daemon.read_and_answer(host, str(args["unit"]))


async def undo(host: ChangingHost, args: Args, captured: Any) -> None:
    """What the daemon had read before is kept nowhere; but it must answer again if it did."""
    if captured["answers"]:
        await sshd_daemon.bring_back(host, str(args["unit"]))


ACTION = Action(
    id="reload_sshd",
    title="test the SSH daemon's files and have {unit} read them",
    arguments={"unit": str},
    capture=capture,
    apply=apply,
    undo=undo,
    restored=sshd_daemon.back,
    codes={**unit_codes("reload", "restart"), **sshd_daemon.CODES},
    deadline_s=120.0,
)
