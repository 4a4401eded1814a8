"""Put the baseline's firewall table in place, as one transaction; other programs' tables stay as they are.

The text is made here from the ports, so no rules travel in a plan. nft reads it whole before it sends anything, and the kernel
takes it whole or not at all; only where that failed is it checked (`nft -c`) what was refused. Connections that stand are not cut.
Where the table is gone it is only made: nft refuses that should it be there again by then, and it is put in its place as ever.
"""

from __future__ import annotations

from typing import Any

from compliance_agent.core import nftables
from compliance_agent.core.tools import answered
from compliance_agent.errors import CannotTell, StepFailed
from compliance_agent.ports import ChangingHost
from compliance_agent.remedies.spec import Action, Args

LIST = ("nft", "-s", "list", "table", *nftables.TABLE)


async def capture(host: ChangingHost, args: Args) -> Any:
    """Our table as text, None when it is not there. Most often the look that found the drift has just listed the rules."""
    ruleset = nftables.read(answered(await host.ruleset(), "nft").out)
    if nftables.TABLE not in ruleset.tables:
        return {"table": None}
    return {"table": answered(await host.run(LIST), "nft").text}


async def apply(host: ChangingHost, args: Args) -> None:
    """Load it.

    Raises:
        StepFailed: `bad_arguments`, `ruleset_refused` or `load_failed`.
    """
    try:
        text = nftables.generate(_ports(args["allow_tcp"]), _ports(args["allow_udp"]))
    except ValueError as error:
        raise StepFailed(str(error), code="bad_arguments") from error
    if await _is_gone(host) and await _nft(host, nftables.creating(text)) == 0:
        return
    await _load(host, text)


async def undo(host: ChangingHost, args: Args, captured: Any) -> None:
    """Put back the table that was there, or none."""
    await _load(host, nftables.replacing() + (captured["table"] or ""))


def _ports(text: str | int | bool) -> tuple[str, ...]:
    return tuple(str(text).split(",")) if text else ()


async def _is_gone(host: ChangingHost) -> bool:
    """Whether our table is surely not there."""
    try:
        return nftables.TABLE not in nftables.read(answered(await host.ruleset(), "nft").out).tables
    except CannotTell:
        return False


async def _load(host: ChangingHost, text: str) -> None:
    status = await _nft(host, text)
    if status != 0:
        refused = await _nft(host, text, "-c") != 0
        code = "ruleset_refused" if refused else "load_failed"
        raise StepFailed(f"nft: exit status {status}", code=code, exit_status_of_step=status)


async def _nft(host: ChangingHost, text: str, *more: str) -> int:
    try:
        ran = await host.change(("nft", *more, "-f", "-"), timeout_s=20.0, stdin=text.encode())
    except CannotTell as error:
        raise StepFailed(f"nft: {error.reason}", code=error.reason) from error
    return ran.exit_status


ACTION = Action(
    id="load_ruleset",
    title="load the baseline's firewall table (tcp {allow_tcp}, udp {allow_udp})",
    arguments={"allow_tcp": str, "allow_udp": str},
    capture=capture,
    apply=apply,
    undo=undo,
    codes={
        "bad_arguments": "The action was given arguments that it cannot use.",
        "ruleset_refused": "nft refused the ruleset; nothing was loaded.",
        "load_failed": "nft reported failure when the ruleset was loaded, and found nothing wrong with it when asked.",
    },
)
