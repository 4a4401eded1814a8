"""`compliance-agent demo`: the whole product on this machine, live in the terminal and in the browser.

A server, simulated clinic hosts that drift and heal, and this machine observed read-only. No root, no other service.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import sys
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from compliance_agent.cli.common import Bounded
from compliance_agent.errors import NoInput

if TYPE_CHECKING:
    from compliance_agent.lab.demo import Demo, Event

CONTROL = "lab.sock"
STORY = {
    "demo.fault": ("drifts", "yellow"),
    "drift.found": ("found", "red"),
    "heal.finished": ("healed", "green"),
    "verdict.changed": ("verdict", "cyan"),
    "receipts.verified": ("receipts", "blue"),
    "log.contradicted": ("CONTRADICTED", "red"),
}


@click.command()
@click.option("--check", "bounded", is_flag=True, help="Play a bounded scene, assert that it worked, and exit.")
@click.option("--keep", type=click.Path(path_type=Path), help="Leave everything in this (new or empty) directory.")
@click.option("--hosts", type=click.IntRange(1, 100), default=3, show_default=True, help="Simulated clinic hosts.")
@click.option("--seed", type=click.IntRange(0, 2**31), default=1, show_default=True, help="Decides who drifts how.")
@click.option("--port", type=click.IntRange(0, 65_535), default=0, help="Port of the server; a free one when 0.")
@click.option("--every", type=Bounded(1, 3_600), default=6.0, show_default=True, help="Seconds between two drifts.")
@click.option("--seconds", type=Bounded(1, 86_400), help="End by itself after this long.")
@click.pass_context
def command(
    ctx: click.Context, bounded: bool, keep: Path | None, hosts: int, seed: int, port: int, every: float, seconds: float | None
) -> None:  # fmt: skip
    """A server, three simulated clinic hosts that drift and heal, and this very machine observed read-only.

    Needs no root and nothing else installed; ends with Ctrl-C. With --check it plays a bounded scene instead: every host drifts
    in every way that heals by itself, and the exit status is 0 only when each was healed, recorded, delivered and verified.
    """
    with contextlib.ExitStack() as stack:
        directory = (
            _directory(keep)
            if keep
            else Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="compliance-demo-")))
        )
        ctx.exit(asyncio.run(_play(directory, bounded, hosts, seed, port, every, seconds, keep is not None)))


def _directory(keep: Path) -> Path:
    directory = keep.absolute()
    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        raise NoInput(f"--keep {keep}: there is something already", hint="name a new or empty directory")
    return directory


async def _play(
    directory: Path, bounded: bool, hosts: int, seed: int, port: int, every: float, seconds: float | None, kept: bool
) -> int:
    from compliance_agent.lab.demo import Demo

    demo = Demo(directory, hosts=hosts, seed=seed, port=port)
    demo.feed.install(directory / "agents.log")
    stopped = _on_signals()
    try:
        click.echo("starting the server and enrolling the hosts ...", err=True)
        await demo.build()
        await demo.start()
        if bounded:
            await _check(demo)
        else:
            await _live(demo, every, seconds, stopped)
    finally:
        await demo.stop()
        demo.pin_log_keys()
    if kept:
        try:
            await demo.build_packets()
        except NoInput as error:  # ended before anything was delivered
            click.echo(f"no packets: {error}", err=True)
        click.echo(f"everything is in {directory}", err=True)
    return 0


def _on_signals() -> asyncio.Event:
    stopped = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stopped.set)
    return stopped


async def _check(demo: Demo) -> None:
    from compliance_agent.cli.common import table
    from compliance_agent.lab.demo_check import run_check

    healed = await run_check(demo, lambda line: click.echo(f"  {line}", err=True))
    rows = [[item.host_id, item.fault, item.check, "healed, verified", item.bundle_id] for item in healed]
    table(("host", "drift", "check", "result", "evidence"), rows)
    click.echo(
        f"demo check: {len(rows)} drifts on {len(demo.clinics())} hosts healed, recorded, delivered and verified"
    )


async def _live(demo: Demo, every: float, seconds: float | None, stopped: asyncio.Event) -> None:
    drifting = asyncio.create_task(_drift(demo, every))
    ending = asyncio.create_task(_end_after(seconds, stopped))
    try:
        async with _control(demo):
            if sys.stdout.isatty():
                await _screen(demo, stopped)
            else:
                await _lines(demo, stopped)
    finally:
        for task in (drifting, ending):
            task.cancel()


async def _end_after(seconds: float | None, stopped: asyncio.Event) -> None:
    if seconds is not None:
        await asyncio.sleep(seconds)
        stopped.set()


async def _drift(demo: Demo, every: float) -> None:
    """Let one host drift every few seconds, after a first quiet look."""
    while True:
        await asyncio.sleep(every)
        demo.inject(*demo.next_drift())


@contextlib.asynccontextmanager
async def _control(demo: Demo) -> AsyncIterator[None]:
    """Take orders of `compliance-agent lab drift NAME --demo DIR` on a unix socket in the demo's directory."""
    from compliance_agent.lab.drift import FAULTS

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        hosts = {host.host_id: host for host in demo.clinics()}
        try:
            async with asyncio.timeout(5):
                wish = json.loads(await reader.readline())
            host, fault = hosts[wish["host"]], wish["fault"]
            if fault not in FAULTS:
                raise KeyError(fault)
            demo.inject(host, fault)
            answer: dict[str, Any] = {"ok": True}
        except (ValueError, KeyError, TypeError, TimeoutError):
            answer = {"ok": False, "hosts": sorted(hosts), "faults": sorted(FAULTS)}
        writer.write(json.dumps(answer).encode() + b"\n")
        writer.close()

    server = await asyncio.start_unix_server(serve, str(demo.directory / CONTROL))
    try:
        yield
    finally:
        server.close()


def _story(event: Event) -> tuple[str, str, str] | None:
    """Word, colour and text of an event, or None when it does not belong on the screen."""
    keys = event.keys
    if event.name not in STORY:
        return None
    word, shade = STORY[event.name]
    check = str(keys.get("check_id", ""))
    if event.name == "receipts.verified":
        return word, shade, f"{keys['count']} verified against the log"
    if event.name == "log.contradicted":
        return word, shade, f"the log shows two histories: {keys['ours']} and {keys['theirs']} entries"
    if event.name == "demo.fault":
        return word, shade, f"{check}: {keys['fault']}"
    if event.name == "heal.finished":
        outcome = str(keys["outcome"])
        shown = f"{check}: evidence {str(keys.get('bundle_id', ''))[:8]}"
        if outcome == "success":
            return word, shade, shown
        return (
            ("held back", "yellow", f"{check}: {keys.get('reason')}")
            if outcome != "failed"
            else ("FAILED", "red", shown)
        )
    return word, shade, f"{check}: {keys.get('result', 'fail')} ({keys.get('reason', '')})"


async def _lines(demo: Demo, stopped: asyncio.Event) -> None:
    _print_login(demo)

    def say(event: Event) -> None:
        told = _story(event)
        if told is not None:
            click.echo(f"{event.at:%H:%M:%S}  {event.host_id:<14}  {told[0]:<9}  {told[2]}")

    demo.feed.listeners.append(say)
    await stopped.wait()


def _print_login(demo: Demo) -> None:
    click.echo(f"viewer: {demo.url}   login: admin   password: {demo.password}")
    click.echo(
        f"drift by hand: compliance-agent lab drift --demo {demo.directory} --host {demo.clinics()[0].host_id} NAME"
    )


async def _screen(demo: Demo, stopped: asyncio.Event) -> None:
    from rich.console import Console
    from rich.live import Live

    console = Console()
    with Live(_picture(demo, console.height), console=console, screen=False, auto_refresh=False) as live:
        while not stopped.is_set():
            live.update(_picture(demo, console.height), refresh=True)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(0.5):
                    await stopped.wait()


def _picture(demo: Demo, height: int) -> Any:
    from rich.console import Group
    from rich.panel import Panel
    from rich.text import Text

    by_hand = f"compliance-agent lab drift --demo {demo.directory} --host {demo.clinics()[0].host_id} NAME"
    head = Text.assemble(("compliance-agent demo", "bold"), "   Ctrl-C ends\n", "viewer ", (demo.url, "bold cyan"))
    head.append(f"   login admin   password {demo.password}\n")
    head.append(f"drift by hand: {by_hand}", style="dim")
    room = max(5, height - len(demo.hosts) - 12)
    return Group(Panel(head, border_style="cyan"), _hosts(demo), _timeline(demo, room))


def _hosts(demo: Demo) -> Any:
    """A line a host. Checks are counted, and only those that do not pass are named: there are too many for columns of their own."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    from compliance_agent.cli.common import STYLE

    shown = Table(box=box.SIMPLE_HEAD, title="hosts", title_justify="left", expand=True)
    for column in ("host", "pass", "does not pass", "healed", "records", "receipts"):
        shown.add_column(column, no_wrap=True, ratio=1 if column == "does not pass" else None)
    for host in demo.hosts:
        seen = {result.check: str(result.result) for result in host.agent.latest}
        unmet = Text()
        for check, result in sorted(seen.items()):
            if result != "pass":
                unmet.append(f"{', ' if unmet else ''}{check}", style=STYLE.get(result, "dim"))
        passing = f"{list(seen.values()).count('pass')}/{len(seen)}" if seen else "..."
        name = host.host_id if host.machine is not None else f"{host.host_id} (observed)"
        stats = host.agent.stats
        counts = [stats["remediations_successful"], stats["evidence_generated"], host.receipted]
        shown.add_row(name, passing, unmet, *map(str, counts))
    return shown


def _timeline(demo: Demo, room: int) -> Any:
    from rich.text import Text

    text = Text()
    told = [(event, story) for event in demo.feed.events if (story := _story(event)) is not None]
    for event, (word, shade, line) in told[-room:]:
        text.append(f"{event.at:%H:%M:%S}  {event.host_id:<14}  ")
        text.append(f"{word:<9}  ", style=shade)
        text.append(f"{line}\n")
    return text
