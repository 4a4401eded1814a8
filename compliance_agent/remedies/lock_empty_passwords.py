"""Lock every account that needs no password. Other ways in (keys) stay; undone by giving the same accounts theirs back.

Which accounts they are is looked up here and kept in the rollback point on this host only: names of people never stand in a plan.
"""

from __future__ import annotations

import re
from typing import Any

from compliance_agent.core.passwd import read_shadow
from compliance_agent.errors import CannotTell, StepFailed
from compliance_agent.ports import ChangingHost
from compliance_agent.remedies.spec import Action, Args

NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]{0,31}\$?")


async def capture(host: ChangingHost, args: Args) -> Any:
    """Accounts with an empty password, and the day it was last changed."""
    shadows = read_shadow((await host.read("/etc/shadow")).decode("utf-8", "replace"))
    empty = {shadow.name: shadow.changed_day for shadow in shadows if not shadow.hash}
    if not all(NAME.fullmatch(name) for name in empty):
        raise CannotTell("unparsable", "an account has a name that usermod does not take")
    return {"accounts": empty}


async def apply(host: ChangingHost, args: Args) -> None:
    try:
        found = await capture(host, args)
    except CannotTell as error:
        raise StepFailed(f"/etc/shadow: {error.reason}", code=error.reason) from error
    for name in found["accounts"]:
        await _must(host, ("usermod", "-L", "--", name), "lock_failed")


async def undo(host: ChangingHost, args: Args, captured: Any) -> None:
    still = (await capture(host, args))["accounts"].items()
    for name, day in captured["accounts"].items() - still:
        await _must(host, ("usermod", "-p", "", "--", name), "unlock_failed")
        await _must(host, ("chage", "-d", "-1" if day is None else str(day), "--", name), "unlock_failed")


async def _must(host: ChangingHost, argv: tuple[str, ...], code: str) -> None:
    try:
        ran = await host.change(argv, timeout_s=20.0)
    except CannotTell as error:
        raise StepFailed(f"{argv[0]}: {error.reason}", code=error.reason) from error
    if ran.exit_status != 0:
        raise StepFailed(f"{argv[0]}: exit status {ran.exit_status}", code=code, exit_status_of_step=ran.exit_status)


ACTION = Action(
    id="lock_empty_passwords",
    title="lock every account that needs no password",
    arguments={},
    capture=capture,
    apply=apply,
    undo=undo,
    codes={
        "lock_failed": "An account could not be locked.",
        "unlock_failed": "An account could not be given back its former password.",
    },
)
