"""`make lab`: boot a host, do every fault of the matrix to it, judge what its agent recorded, verify all of that evidence.

Exit status 0 when every line is as it must be, 1 when one is not, 69 where no host can be booted.
"""

from __future__ import annotations

import json
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType
from typing import Any

import click

from compliance_agent.cli.common import table
from compliance_agent.errors import AgentError
from compliance_agent.evidence.logged import read_log_keys
from compliance_agent.evidence.verify import load_keys, verify_paths
from compliance_agent.lab.real import install, matrix, recipe
from compliance_agent.lab.real.judge import Bundle, Judged, Observed, expected, judge
from compliance_agent.lab.real.machine import Machine
from compliance_agent.lab.real.network import Network, Repository
from compliance_agent.lab.real.row import PUBLISH, Row
from compliance_agent.logs import configure

SCHEMA = "compliance-agent/lab/v1"
TREE = Path(__file__).resolve().parents[3]
SETTLE_S = 30.0
OPPONENT_S = 60.0
HEALS_ALLOWED = 5
PASSING = {table.check for table in matrix.TABLES if table.passes}


@click.command()
@click.option("--only", multiple=True, metavar="CHECK[:FAULT]", help="Only these rows; may be given more than once.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object instead of a table.")
@click.option(
    "--report", type=click.Path(path_type=Path, dir_okay=False), help="Write the JSON object to this file too."
)
@click.option("--keep", is_flag=True, help="Keep the hosts' files.")
@click.option(
    "--opponent/--no-opponent", default=None, help="Also, or not, the reverter; the default is on without --only."
)
def main(only: tuple[str, ...], as_json: bool, report: Path | None, keep: bool, opponent: bool | None) -> None:
    """Do every fault to a real host, and judge what its agent said and did."""
    configure("CRITICAL")
    signal.signal(signal.SIGTERM, _interrupted)
    started = time.monotonic()
    try:
        rows = matrix.chosen(only)
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="--only") from error
    try:
        document, judged = _run(rows, keep, not only if opponent is None else opponent)
    except AgentError as error:
        click.echo(f"error: {error}" + (f" ({error.hint})" if error.hint else ""), err=True)
        sys.exit(error.exit_status)
    document["seconds"] = round(time.monotonic() - started, 1)
    text = json.dumps(document, indent=2, sort_keys=True)
    if report is not None:
        report.write_text(text + "\n", "utf-8")
    if as_json:
        click.echo(text)
    else:
        _print(document, judged)
    sys.exit(0 if document["ok"] else 1)


def _interrupted(_number: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _say(text: str) -> None:
    click.echo(f"lab: {text}", err=True)


def _run(rows: tuple[Row, ...], keep: bool, opponent: bool) -> tuple[dict[str, Any], list[Judged]]:
    recipe.check_machine()
    base = recipe.root_filesystem()
    _say(f"root file system {base.name}")
    scratch = Path(tempfile.mkdtemp(prefix="compliance-lab-", dir=recipe.cache_directory()))
    lower = install.layer(TREE, base, scratch), base
    network = Network(scratch, base)
    hosts: list[Machine] = []
    try:
        network.open()
        host = _host("clinic-01", lower, network, install.SETTINGS, hosts, scratch)
        judged = [_row(host, row, Repository(network.repository)) for row in rows]
        fought = _opponent(_host("clinic-02", lower, network, install.OPPONENT, hosts, scratch)) if opponent else None
        evidence = [_evidence(machine, network) for machine in hosts]
    finally:
        for machine in hosts:
            machine.close()
        network.close()
        if not keep:
            shutil.rmtree(scratch, ignore_errors=True)
    return _document(judged, fought, evidence), judged


def _host(
    name: str, lower: tuple[Path, ...], network: Network, settings: dict[str, str], hosts: list[Machine], scratch: Path
) -> Machine:
    started = time.monotonic()
    machine = Machine(name, lower, scratch)
    hosts.append(machine)
    machine.mount()
    machine.boot()
    network.join(machine)
    booted = time.monotonic() - started
    install.install(machine, network, settings)
    _say(f"{name} booted in {booted:.1f} s, agent running after {time.monotonic() - started:.1f} s")
    wanted = {table.check for table in matrix.TABLES}
    _until(lambda: wanted <= set(_verdicts(machine)), SETTLE_S)
    _settled(machine, PASSING)
    _say(f"{name}: {', '.join(f'{check} {word}' for check, word in sorted(_verdicts(machine).items()))}")
    return machine


def _row(host: Machine, row: Row, repository: Repository) -> Judged:
    known = {path.parent for path in _paths(host)}
    injected = datetime.now(UTC)
    _script(host, row.inject, repository)
    seen: list[Bundle] = []

    def there() -> bool:
        since = injected.strftime("%Y-%m-%dT%H:%M:%S.%fZ")  # what the row before left behind does not count
        recorded = [bundle for bundle in _bundles(host, known) if bundle["check"] == row.check]
        seen[:] = [bundle for bundle in recorded if bundle["timestamp_end"] >= since]
        return any(expected(row, bundle) for bundle in seen)

    if row.standing:
        known, injected = set(), datetime.fromtimestamp(0, UTC)
    _until(there, row.wait_s)
    truth = host.run(row.truth).returncode == 0 if row.outcome == "success" else None
    former = host.run(row.former).returncode == 0 if row.outcome in {"reverted", "failed"} else None
    line = judge(row, Observed(injected, tuple(seen), truth, former))
    _script(host, row.restore, repository)
    if row.check in PASSING:
        _settled(host, {row.check})
    late = [bundle for bundle in _bundles(host, known) if bundle["check"] == row.check]
    if line.differences:
        trail = " | ".join(
            f"{b['kind']} {b['result']} {b['reason']} {b['outcome']} {b['error']} {b['post_result']}" for b in late
        )
        _say(f"{row.name}: recorded: {trail}")
    took = f"detected {line.detect_s} s, healed {line.heal_s} s" if line.heal_s else f"detected {line.detect_s} s"
    _say(
        f"{row.name}: {line.verdict} -> {line.cure or '-'}; {took}"
        + "".join(f"; DIFFERS: {text}" for text in line.differences)
    )
    return line


def _script(host: Machine, script: str, repository: Repository) -> None:
    if script.startswith(PUBLISH):
        first, _, script = script.partition("\n")
        version, _, broken = first.removeprefix(PUBLISH).partition(" ")
        repository.publish({"lab-widget": version}, broken=bool(broken))
    host.run(script, timeout_s=120)


def _opponent(host: Machine) -> dict[str, Any]:
    """Undo the cure every second for a minute; the agent has to see that it is being fought, and to say so once."""
    known = {path.parent for path in _paths(host)}
    ends = time.monotonic() + OPPONENT_S
    undone = 0
    while time.monotonic() < ends:
        host.run("nft flush ruleset")
        undone += 1
        time.sleep(1.0)
    fought = [bundle for bundle in _bundles(host, known) if bundle["check"] == "firewall"]
    heals = sum(bundle["outcome"] == "success" for bundle in fought)
    alarms = [bundle for bundle in fought if bundle["outcome"] == "alert" and bundle["error"] == "flapping"]
    ok = 1 <= heals <= HEALS_ALLOWED and len(alarms) == 1
    _say(f"opponent: undone {undone} times in {OPPONENT_S:.0f} s; {heals} heals, {len(alarms)} alarm(s)")
    return {"undone": undone, "heals": heals, "alarms": len(alarms), "ok": ok}


def _evidence(host: Machine, network: Network) -> dict[str, Any]:
    """Everything the host recorded, delivered, logged, and verified offline."""
    state = host.root / "var/lib/compliance-agent"

    def delivered() -> bool:
        return all((path.parent / "bundle.tlog-proof").exists() for path in _paths(host))

    if not _until(delivered, 20.0):
        host.run("systemctl restart compliance-agent")  # it delivers what waits at once
        _until(delivered, 30.0)
    host.run("systemctl stop compliance-agent")
    _until(delivered, 5.0)
    public = host.directory / "host.pub.pem"
    public.write_text(host.must("compliance-agent config public-key"), "utf-8")
    keys = load_keys([public])
    report = verify_paths([state / "evidence"], keys, log_keys=read_log_keys(network.log_keys()))
    receipted = sum(chain.receipted for chain in report.chains)
    problems = [f"{problem.code} {problem.where}" for problem in report.problems]
    _say(f"{host.name}: {report.found} bundles, {receipted} with a verified receipt, {len(problems)} problem(s)")
    # The last words of an agent that is stopped wait on its disk for its next start.
    ok = report.ok and report.found > 0 and receipted >= report.found - 2
    return {"host": host.name, "bundles": report.found, "receipts": receipted, "problems": problems[:20], "ok": ok}


def _paths(host: Machine) -> list[Path]:
    """Bundles on the host's disk; a directory with a hidden name is not whole yet."""
    return sorted((host.root / "var/lib/compliance-agent/evidence").glob("*/*/*/[!.]*/bundle.json"))


def _bundles(host: Machine, known: set[Path]) -> list[Bundle]:
    """What was recorded besides `known`, in order."""
    found = [json.loads(path.read_bytes()) for path in _paths(host) if path.parent not in known]
    return sorted(found, key=lambda bundle: (bundle["epoch"], bundle["seq"]))


def _verdicts(host: Machine) -> dict[str, str]:
    """The last recorded verdict of each check."""
    return {
        bundle["check"]: str(bundle["post_result"] or bundle["result"])
        for bundle in _bundles(host, set())
        if bundle["check"]
    }


def _settled(host: Machine, checks: set[str]) -> bool:
    return _until(lambda: all(_verdicts(host).get(check) == "pass" for check in checks), SETTLE_S)


def _until(holds: Callable[[], bool], seconds: float) -> bool:
    ends = time.monotonic() + seconds
    while not holds():
        if time.monotonic() > ends:
            return False
        time.sleep(0.3)
    return True


def _document(judged: list[Judged], fought: dict[str, Any] | None, evidence: list[dict[str, Any]]) -> dict[str, Any]:
    false_healed, blind = sum(line.false_healed for line in judged), sum(line.blind_pass for line in judged)
    right = not any(line.differences for line in judged) and all(item["ok"] for item in evidence)
    return {
        "schema": SCHEMA,
        "ok": right and not false_healed and not blind and (fought is None or fought["ok"]),
        "false_healed": false_healed,
        "blind_passes": blind,
        "opponent": fought,
        "evidence": evidence,
        "rows": [
            {
                "check": line.row.check, "fault": line.row.fault, "verdict": line.verdict, "cure": line.cure,
                "detect_s": line.detect_s, "heal_s": line.heal_s, "bundle_id": line.bundle_id,
                "differences": list(line.differences),
            }
            for line in judged
        ],
    }  # fmt: skip


def _print(document: dict[str, Any], judged: list[Judged]) -> None:
    rows = [
        [
            line.row.check, line.row.fault, line.verdict, line.cure or "-", "" if line.detect_s is None else f"{line.detect_s:.1f}",
            "" if line.heal_s is None else f"{line.heal_s:.1f}", line.bundle_id, "DIFFERS" if line.differences else "ok",
        ]
        for line in judged
    ]  # fmt: skip
    table(("check", "fault", "verdict", "cure", "detect s", "heal s", "evidence", ""), rows)
    click.echo(
        f"{len(judged)} rows, {sum(bool(line.differences) for line in judged)} differ; "
        f"{document['blind_passes']} passes where the probe could not look, {document['false_healed']} false healed; "
        f"{document['seconds']} s"
    )


if __name__ == "__main__":
    main()
