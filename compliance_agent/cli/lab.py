"""`compliance-agent lab drift`: synthetic drift by name, on a simulated host of its own or in a running demo."""

from __future__ import annotations

import asyncio
import json
import random
import socket
from pathlib import Path

import click

from compliance_agent.cli.common import PATH, json_option, print_json, shipped_baseline, table
from compliance_agent.errors import ConfigError, Unavailable
from compliance_agent.words import nearest

CURES = {"now": "heals", "window": "heals in the window", "person": "alert"}


@click.group()
def command() -> None:
    """Tools for trying things out on simulated hosts; nothing real is touched."""


@command.command()
@click.argument("names", nargs=-1)
@click.option("--list", "listed", is_flag=True, help="List every fault.")
@click.option("--seed", type=click.IntRange(0, 2**31), help="Choose faults at random, the same for the same seed.")
@click.option("--count", type=click.IntRange(1, 100), default=1, show_default=True, help="How many, with --seed.")
@click.option("--demo", type=PATH, help="Directory of a running demo to drift in.")
@click.option("--host", help="Which host of the demo.")
@json_option
def drift(
    names: tuple[str, ...],
    listed: bool,
    seed: int | None,
    count: int,
    demo: Path | None,
    host: str | None,
    as_json: bool,
) -> None:
    """Let a simulated host drift by the faults NAMES and show what its checks say before and after.

    With --demo DIR --host ID the fault happens on that host of the running demo instead, where the agent will find and heal it.
    """
    from compliance_agent.lab.drift import FAULTS

    if listed or (not names and seed is None):
        _list(as_json)
        return
    for name in names:
        if name not in FAULTS:
            raise ConfigError(
                f"no fault {name!r}{nearest(name, FAULTS)}", code="no_such_fault", hint="--list shows all"
            )
    chosen = names or tuple(random.Random(seed).choices(sorted(FAULTS), k=count))  # noqa: S311  repeatable on purpose
    if demo is not None:
        for name in chosen:
            _ask(demo, host or "", name)
            click.echo(f"{host}: {name}")
        return
    asyncio.run(_show(chosen, seed or 0, as_json))


def _list(as_json: bool) -> None:
    from compliance_agent.lab.drift import FAULTS

    if as_json:
        print_json(
            {
                "schema": "compliance-agent/faults/v1",
                "faults": [
                    {"name": name, "check": fault.check, "title": fault.title, "cure": fault.cure}
                    for name, fault in FAULTS.items()
                ],
            }
        )
        return
    rows = [[name, fault.check, CURES[fault.cure], fault.title] for name, fault in sorted(FAULTS.items())]
    table(("fault", "check", "then", "what happens"), rows)


def _ask(demo: Path, host: str, fault: str) -> None:
    try:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(5)
            connection.connect(str(demo / "lab.sock"))
            connection.sendall(json.dumps({"host": host, "fault": fault}).encode() + b"\n")
            answer = json.loads(connection.makefile("rb").readline())
    except (OSError, ValueError) as error:
        raise Unavailable(f"no demo is running in {demo}") from error
    if not answer["ok"]:
        raise ConfigError(
            f"--host {host!r}: no such host{nearest(host, answer['hosts'])}", hint=", ".join(answer["hosts"])
        )


async def _show(names: tuple[str, ...], seed: int, as_json: bool) -> None:
    from compliance_agent.baseline import load
    from compliance_agent.cli.check import as_document
    from compliance_agent.cli.common import unconfigured
    from compliance_agent.drift import DriftDetector
    from compliance_agent.lab.clinic import healthy_host
    from compliance_agent.lab.drift import FAULTS

    machine = healthy_host(seed)
    detector = DriftDetector(
        unconfigured(Path("/nonexistent")), host=machine, baseline=load(shipped_baseline()), clock=machine.clock
    )
    before = {result.check: str(result.result) for result in await detector.check_all()}
    for name in names:
        FAULTS[name].inject(machine)
    after = await detector.check_all()
    if as_json:
        print_json({**as_document(detector, after), "faults": list(names)})
        return
    table(
        ("check", "before", "after", "seen"),
        [[r.check, before[r.check], str(r.result), r.verdict.sentence if r.verdict else ""] for r in after],
        styled=2,
        title=f"drift: {', '.join(names)}",
    )
