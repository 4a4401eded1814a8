"""What the actions on the SSH daemon share: have it read its files only when they are good, and prove that it still answers.

`sshd -t` comes before every reload, because a daemon that is told to read a bad file ends. Afterwards a whole key exchange
over loopback must succeed (`ssh-keyscan`), so that a policy nobody can agree with is noticed while it can be taken back. It is
asked before as well, at the address that the files name: a daemon that is told to read one that this host does not have ends.
"""

from __future__ import annotations

from typing import Any

from compliance_agent.core import sshd
from compliance_agent.core.tools import answered
from compliance_agent.errors import CannotTell, StepFailed
from compliance_agent.ports import ChangingHost, Ran

TRIES = 5
PAUSE_S = 0.4
CODES = {
    "config_refused": "The daemon refused its configuration when it was tested; it was not told to read it.",
    "no_handshake_before": "The daemon answered no key exchange to begin with, so nothing was changed.",
    "no_handshake_after": "The daemon answered no key exchange after it read its files.",
    "unit_not_active": "The daemon's unit is not active.",
    "daemon_ended": "The daemon ended when it was told to read its files.",
}


async def answers(host: ChangingHost) -> bool:
    """Whether a new connection to the daemon gets through a key exchange."""
    address, port = sshd.listens(answered(await host.run(sshd.EFFECTIVE), "sshd").text)
    for attempt in range(TRIES):
        ran = await host.run(("ssh-keyscan", "-T", "3", "-p", port, address), timeout_s=15.0)
        if ran.exit_status == 0 and ran.out.strip():
            return True
        if attempt + 1 < TRIES:
            await host.pause(PAUSE_S)
    return False


async def must_answer(host: ChangingHost, code: str) -> None:
    """Raises `StepFailed` with `code` when no new connection gets through."""
    try:
        through = await answers(host)
    except CannotTell as error:
        raise StepFailed(f"sshd: {error.reason}", code=error.reason) from error
    if not through:
        raise StepFailed("sshd: expected a key exchange over loopback, found none", code=code)


async def must_be_good(host: ChangingHost) -> None:
    """Raises `StepFailed` (`config_refused`) when the daemon would not take its files."""
    ran = await _run(host, ("sshd", "-t"))
    if ran.exit_status != 0:
        raise StepFailed(
            f"sshd -t: exit status {ran.exit_status}", code="config_refused", exit_status_of_step=ran.exit_status
        )


async def read_anew(host: ChangingHost, unit: str) -> None:
    """Test the files, then have the daemon read them. Behind a socket there is no daemon to tell.

    Raises:
        StepFailed: `config_refused`, `unit_not_active`, or the reload failed.
    """
    await must_be_good(host)
    if unit.endswith(".socket"):
        return
    if (await host.units((unit,)))[unit].active != "active":
        raise StepFailed(f"{unit}: is not active", code="unit_not_active")
    await host.unit_action("reload", unit)


async def read_and_answer(host: ChangingHost, unit: str) -> None:
    """Have the daemon read its files and prove that it still answers.

    One that ends is called that, whoever notices first: the service manager, which waits for the reload, or the look after it.

    Raises:
        StepFailed: `daemon_ended`, `no_handshake_after`, or as `read_anew`.
    """
    try:
        await read_anew(host, unit)
        await must_answer(host, "no_handshake_after")
    except StepFailed as error:
        if error.code in {"config_refused", "unit_not_active"} or unit.endswith(".socket"):
            raise  # nothing was told to it
        if (await host.units((unit,)))[unit].active == "active":
            raise
        raise StepFailed(f"{unit}: ended when it was to read its files", code="daemon_ended") from error


async def bring_back(host: ChangingHost, unit: str) -> None:
    """Have a daemon that answered before a cure answer again: started where it ended, started anew where it hangs.

    Raises:
        StepFailed: it still does not answer.
    """
    if unit.endswith(".socket") or await answers(host):
        return
    await host.unit_action("restart", unit)
    await must_answer(host, "no_handshake_after")


def back(captured: Any, now: Any) -> bool:
    """Whether the former state is back: an answer more than before is no loss."""
    return {**captured, "answers": True} == {**now, "answers": now["answers"] or not captured["answers"]}


async def _run(host: ChangingHost, argv: tuple[str, ...]) -> Ran:
    try:
        return await host.run(argv)
    except CannotTell as error:
        raise StepFailed(f"{argv[0]}: {error.reason}", code=error.reason) from error


async def supported(host: ChangingHost, kind: str, wanted: str) -> tuple[str, ...]:
    """Those of the wanted algorithms that this host's OpenSSH knows; one it does not know would make it refuse all.

    Raises:
        StepFailed: the program could not be asked.
    """
    ran = await _run(host, ("ssh", "-Q", kind))
    if ran.exit_status != 0:
        raise StepFailed(f"ssh -Q: exit status {ran.exit_status}", code="tool_failed")
    known = set(ran.text.split())
    return tuple(name for name in wanted.split(",") if name in known)
