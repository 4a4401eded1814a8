"""`make lab`: boot hosts, do every fault of the matrix to them, judge what their agents recorded, verify all of that evidence.

The rows of one check are done to one host, one after the other; the checks are spread over hosts that run side by side. What
needs a kernel of its own is done to a virtual host beside them.
Exit status 0 when every line is as it must be, 1 when one is not, 69 where no host can be booted.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Mapping
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click

from compliance_agent.errors import AgentError, Unavailable
from compliance_agent.lab.real import apart, install, matrix, recipe, stranger
from compliance_agent.lab.real.enclosure import enclosed
from compliance_agent.lab.real.host import Host
from compliance_agent.lab.real.judge import Judged
from compliance_agent.lab.real.lifecycle import lived, removed
from compliance_agent.lab.real.machine import Machine
from compliance_agent.lab.real.network import Network
from compliance_agent.lab.real.opponent import fight
from compliance_agent.lab.real.report import Progress, as_text, document, show
from compliance_agent.lab.real.row import Table
from compliance_agent.lab.vm import image
from compliance_agent.lab.vm import matrix as vm_matrix
from compliance_agent.lab.vm import run as vm
from compliance_agent.lab.vm.virtual import missing
from compliance_agent.logs import configure

TREE = Path(__file__).resolve().parents[3]
Ended = tuple[list[dict[str, Any]], dict[str, Any]]  # lines of a service, and the evidence of its host
# What a process must not be able to do, and that no record is there twice: seen once, it is so.
WALLS = {
    "cannot_heal_alone",
    "root_side_refuses_what_root_did_not_permit",
    "uplink_reads_nothing_and_asks_nobody",
    "root_takes_a_baseline_that_people_ordered",
    "delivered_once",
}
LOGS = TREE / "test-results" / "lab"


@dataclass(frozen=True)
class Asked:
    """The options of one run."""

    tables: tuple[Table, ...]
    virtual: tuple[Table, ...]
    hosts: int
    opponent: bool
    as_json: bool
    report: Path | None


@click.command()
@click.option(
    "--only",
    multiple=True,
    metavar="[vm:]CHECK[:FAULT]",
    help="Only these rows; may be given more than once. `vm` stands for all of the virtual host.",
)
@click.option(
    "--again",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="Only the checks of which a line of this report differs, and the services where one was not as it must be; refused "
    "where a pass or a cure in it was a lie, or a process could do what it must not.",
)
@click.option("--hosts", type=click.IntRange(1, 20), default=4, show_default=True, help="Hosts that share the checks.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object instead of a table.")
@click.option(
    "--report", type=click.Path(path_type=Path, dir_okay=False), help="Write the JSON object to this file too."
)
@click.option(
    "--opponent/--no-opponent", default=None, help="Also, or not, the reverter; the default is on without --only."
)
@click.option(
    "--virtual/--no-virtual", "with_virtual", default=True, help="Also, or not, the virtual host; it needs qemu."
)
@click.option(
    "--check", is_flag=True, help="Boot nothing; only say whether hosts could be booted here (exit status 69 if not)."
)
@click.option(
    "--prepare",
    is_flag=True,
    help="Boot nothing; only make the root file systems and the image that are not there yet.",
)
def main(
    only: tuple[str, ...],
    again: Path | None,
    hosts: int,
    as_json: bool,
    report: Path | None,
    opponent: bool | None,
    with_virtual: bool,
    check: bool,
    prepare: bool,
) -> None:
    """Do every fault to a real host, and judge what its agent said and did."""
    configure("CRITICAL")
    try:
        if again is not None:
            only, opponent = different(json.loads(again.read_text("utf-8")))
        tables, virtual = _chosen(only, with_virtual) if only or again is None else ((), ())
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="--only" if again is None else "--again") from error
    asked = Asked(
        tables, virtual, hosts, not only if opponent is None else opponent, as_json, report and report.absolute()
    )
    try:
        recipe.check_machine()
    except AgentError as error:
        sys.exit(_refused(error))
    if check:
        sys.exit(0)
    work = _prepared if prepare else _work
    sys.exit(enclosed(lambda scratch: work(asked, scratch), recipe.cache_directory()))


def different(report: Mapping[str, Any]) -> tuple[tuple[str, ...], bool]:
    """The checks of which a line of a report differs, on either kind of host; and whether a line of its services does.

    Raises:
        ValueError: none does, or something in it must not be tried until it is right.
    """
    wrong = {line["step"] for line in report["service"] or () if not line["ok"]}
    checks = dict.fromkeys(row["check"] for row in report["rows"] if row["differences"])
    fought = report["opponent"] is None or report["opponent"]["ok"]
    if (
        report["false_healed"]
        or report["blind_passes"]
        or not fought
        or wrong & WALLS
        or not all(one["ok"] for one in report["evidence"])
    ):
        raise ValueError(
            "a pass or a cure in it was a lie, a wall had a hole, or evidence did not verify: once is enough"
        )
    if not checks and not wrong:
        raise ValueError("no line of it differs")
    inside = {row.check for row in vm_matrix.ROWS}
    names = tuple(name for check in checks for name in (check, f"vm:{check}") if name == check or check in inside)
    return names, bool(wrong)


def _chosen(only: tuple[str, ...], with_virtual: bool) -> tuple[tuple[Table, ...], tuple[Table, ...]]:
    """The tables of the hosts and those of the virtual host."""
    inside = tuple(name for name in only if name == "vm" or name.startswith("vm:"))
    outside = tuple(name for name in only if name not in inside)
    return (
        matrix.chosen(outside) if outside or not only else (),
        vm_matrix.chosen(inside) if with_virtual and (inside or not only) else (),
    )


def _refused(error: AgentError) -> int:
    click.echo(f"error: {error}" + (f" ({error.hint})" if error.hint else ""), err=True)
    return error.exit_status


def _prepared(asked: Asked, _: Path) -> int:
    """Make what is kept from run to run."""
    try:
        base, made = _kept(asked if not missing() else replace(asked, virtual=()))
    except AgentError as error:
        return _refused(error)
    click.echo(f"root file system {base.name}")
    if made is not None:
        click.echo(f"image {made.directory.name}")
    return 0


def _kept(asked: Asked) -> tuple[Path, image.Image | None]:
    """The root file system that hosts start from, and the virtual host's image; where both have to be made, side by side."""
    with ThreadPoolExecutor(2) as pool:
        made = pool.submit(image.image) if asked.virtual else None
        base = recipe.root_filesystem(None if asked.tables or asked.opponent else image.PACKAGES)
        return base, made.result() if made is not None else None


def _work(asked: Asked, scratch: Path) -> int:
    lacking = _lacking(asked)
    try:
        if lacking is not None and not asked.tables:
            return _refused(lacking)
        result = _run(asked if lacking is None else replace(asked, virtual=()), scratch)
    except AgentError as error:
        return _refused(error)
    if asked.report is not None:
        asked.report.write_text(as_text(result) + "\n", "utf-8")
    if asked.as_json:
        click.echo(as_text(result))
    else:
        show(result)
    if result["ok"] and lacking is not None:
        return _refused(lacking)
    return 0 if result["ok"] else 1


def _lacking(asked: Asked) -> Unavailable | None:
    """Why the virtual host that was asked for cannot be started here; never left out without a word."""
    packages = missing() if asked.virtual else []
    if not packages:
        return None
    return Unavailable(
        "VIRTUAL HOST NOT RUN: no encryption that passes, no clock that is set, no power cut was tried on a real kernel",
        hint=f"apt-get install {' '.join(packages)}; or leave it out with --no-virtual",
    )


def _run(asked: Asked, scratch: Path) -> dict[str, Any]:
    started = time.monotonic()
    progress = Progress(sum(len(table.rows) for table in asked.tables) + vm.lines(asked.virtual))
    base, made = _kept(asked)
    progress.say(f"root file system {base.name} after {time.monotonic() - started:.0f} s")
    package = install.package(TREE, scratch)
    newer = install.newer(package) if asked.opponent else package
    agent = install.agent(package, base, scratch)
    bare = (install.clinic(base, scratch), base) if asked.tables or asked.opponent else ()  # without the agent
    lower = (*bare[:1], agent, *bare[1:])
    virtual = vm.prepared(made, agent, scratch) if made is not None else None
    progress.say(f"agent built and installed after {time.monotonic() - started:.0f} s")
    network = Network(scratch, base)
    network.open()

    def host(number: int, tables: tuple[Table, ...], settings: dict[str, str]) -> Host:
        made = Host(Machine(f"clinic-{number:02}", lower, scratch), network, tables)
        progress.begin(made.name, "boots")
        progress.say(f"{made.name} {made.start(settings)}: {' '.join(table.check for table in tables)}")
        return made

    def rows(number: int, tables: tuple[Table, ...]) -> tuple[list[Judged], dict[str, Any]]:
        made = host(number, tables, install.SETTINGS)
        judged: list[Judged] = []
        for table in tables:
            made.turn_to(table)
            judged += [_row(made, table, index, progress) for index in range(len(table.rows))]
        return judged, made.verified()

    def opponent() -> tuple[dict[str, Any], dict[str, Any]]:
        made = host(99, tuple(table for table in matrix.TABLES if table.check == "firewall"), install.OPPONENT)
        progress.begin(made.name, "is fought")
        fought = fight(made)
        progress.begin(made.name, "is reloaded, killed, hung and stopped")
        lines = lived(made)
        evidence = made.verified()
        return {**fought, "service": lines + removed(made)}, evidence

    def parts() -> Ended:
        return apart.served(Machine("clinic-98", lower, scratch), network, newer, progress)

    def by_the_page() -> Ended:
        machine = Machine("clinic-97", bare, scratch)
        return stranger.served(
            machine, network, (TREE / "docs/install.md").read_text("utf-8"), package, newer, progress
        )

    shares = matrix.spread(asked.tables, asked.hosts)
    pool = ThreadPoolExecutor(len(shares) + 4)  # never waited for: when this process ends, the enclosure ends all of it
    done: list[Future[tuple[list[Judged], dict[str, Any]]]] = []
    if virtual is not None:  # first, for it takes longest
        done.append(pool.submit(vm.done, virtual, asked.virtual, network, progress, LOGS))
    done += [pool.submit(rows, number, share) for number, share in enumerate(shares, 1)]
    fought = pool.submit(opponent) if asked.opponent else None
    served = [pool.submit(part) for part in (parts, by_the_page)] if asked.opponent else []
    every: list[Future[Any]] = [*done, *([fought] if fought else []), *served]
    wait(every, return_when=FIRST_EXCEPTION)
    judged = [line for future in done for line in future.result()[0]]
    evidence = [future.result()[1] for future in every]
    order = {row.name: place for place, row in enumerate(matrix.ROWS)}
    judged.sort(key=lambda line: order.get(line.row.name, len(order)))
    last = fought.result()[0] if fought else None
    service = [*last.pop("service"), *(line for part in served for line in part.result()[0])] if last else None
    return document(judged, last, service, evidence, time.monotonic() - started)


def _row(host: Host, table: Table, index: int, progress: Progress) -> Judged:
    row = table.rows[index]
    progress.begin(host.name, row.name)
    begun = datetime.now(UTC)
    line = host.do(row)
    progress.end(host.name, line)
    if line.differences:
        LOGS.mkdir(parents=True, exist_ok=True)
        kept = LOGS / f"{row.check}-{row.fault}.log"
        kept.write_text(host.trail(row, begun), "utf-8")
        progress.say(f"{row.name}: records and journal in {kept.relative_to(TREE)}")
    return line


if __name__ == "__main__":
    main()
