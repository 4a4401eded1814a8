"""One order on the real agent's parts, single-threaded, for a harness that kills it.

    python -m tests.faults.ordering --root DIR

Each run starts the agent over the same state, recovers what was cut off, and is given the same order, signed anew for the nonce of
this run: all that a server with a signer's help could try. Doing it is a line in `acts`, durable. It prints one unbuffered
line for each fact: `S` once the agent has started, `D` when the order was dealt with.
"""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import click

from compliance_agent import logs
from compliance_agent.adapters.database import Database
from compliance_agent.lab.crash_driver import say
from tests.order_keys import order, signed
from tests.order_scene import OrderScene


async def _here(_self: Database, fn: Callable[[], Any]) -> Any:
    return fn()


def act(root: Path) -> None:
    """What the order asks for."""
    handle = os.open(root / "acts", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    os.write(handle, b"done\n")
    os.fsync(handle)
    os.close(handle)


async def drive(root: Path) -> None:
    Database.call = _here  # type: ignore[method-assign,assignment]
    scene = OrderScene(root, with_server=False)
    scene.healer.approve = lambda check, target: act(root)  # type: ignore[method-assign]
    agent = scene.agent()
    await agent.recover()
    say("S")
    now = scene.clock.now()
    names: dict[str, Any] = {
        "host": scene.signer.key_id,
        "baseline_sha256": scene.detector.baseline.sha256,
        "nonce": agent.orders.nonce,
    }
    agent.orders.offer([signed(order("approve", **names, not_before=now, expires=now + timedelta(minutes=15)))])
    await agent.orders.run()
    say("D")
    await agent.close()


@click.command()
@click.option("--root", type=click.Path(path_type=Path), required=True)
def main(root: Path) -> None:
    """Start, recover, take the order."""
    logs.configure("CRITICAL", sys.stderr)
    asyncio.run(drive(root.absolute()))


if __name__ == "__main__":
    main()
