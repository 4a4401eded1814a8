"""`compliance-agent drill`: make each alarm ring once, and keep the day it last did."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click

from compliance_agent.adapters import runner
from compliance_agent.adapters.agent_view import looking
from compliance_agent.agent import ComplianceAgent
from compliance_agent.cli.common import config_option, json_option, print_json, table, utc
from compliance_agent.cli.places import require_config
from compliance_agent.cli.status import age
from compliance_agent.config import AgentConfig
from compliance_agent.drift import DriftDetector
from compliance_agent.drills import DRILLS, Drill, Proof, keep, perform
from compliance_agent.errors import ConfigError, NoInput, StateInUse
from compliance_agent.logs import configure
from compliance_agent.models import Result
from compliance_agent.words import nearest

SCHEMA = "compliance-agent/drill/v1"


@click.command()
@click.argument("names", nargs=-1)
@config_option
@json_option
@click.option("--list", "only_list", is_flag=True, help="Only show the drills, and when each last fired.")
@click.pass_context
def command(
    ctx: click.Context, names: tuple[str, ...], config_path: Path | None, as_json: bool, only_list: bool
) -> None:
    """Prove that what looks would also find: do every drill whose check the baseline lists, or only NAMES.

    A log line is followed to its end, the scanner is shown the EICAR test file, the clock is measured, files are read back out of
    the backup and compared byte for byte. Each is recorded as evidence: at once, or by the running agent with its next look.
    Exit status 0 when every detector fired, 1 when one did not or that could not be told.
    """
    configure("CRITICAL")
    config = require_config(config_path)
    chosen = _chosen(names)
    if only_list:
        _show_list(config, chosen, as_json)
        return
    proofs, recorded = runner.run(_drill(config, chosen, explicit=bool(names)))
    if as_json:
        print_json({"schema": SCHEMA, "recorded": recorded, "drills": [_document(proof) for proof in proofs]})
    else:
        told = {Result.PASS: "fired", Result.FAIL: "did not fire", Result.UNKNOWN: "could not tell"}
        rows = [[p.drill, p.check, told[p.result], p.reason, DRILLS[p.drill].title] for p in proofs]
        table(("drill", "check", "detector", "reason", "what was done"), rows)
        click.echo("recorded as evidence" if recorded else "kept; the running agent records it with its next look")
    ctx.exit(0 if all(proof.result is Result.PASS for proof in proofs) else 1)


def _chosen(names: Sequence[str]) -> list[Drill]:
    for name in names:
        if name not in DRILLS:
            raise click.BadParameter(f"no drill {name!r}{nearest(name, DRILLS)}", param_hint="NAMES")
    return [drill for drill in DRILLS.values() if not names or drill.id in names]


async def _drill(config: AgentConfig, chosen: Sequence[Drill], *, explicit: bool) -> tuple[list[Proof], bool]:
    detector = DriftDetector(config)
    known = [drill for drill in chosen if drill.check in detector.baseline.entries]
    if (explicit and len(known) < len(chosen)) or not known:
        absent = ", ".join(sorted({drill.check for drill in chosen} - set(detector.baseline.entries)))
        raise ConfigError(f"drill: the baseline does not list {absent}, so there is no detector to prove")
    proofs = []
    for drill in known:
        proof = await perform(drill, detector, detector.host)  # type: ignore[arg-type]  # the real host can do both
        keep(config.drills_dir, proof)
        proofs.append(proof)
    return proofs, await _recorded(config)


async def _recorded(config: AgentConfig) -> bool:
    """Record what was kept, unless an agent runs, which then does it itself."""
    try:
        agent = ComplianceAgent(config, mcp_client=None)
    except StateInUse:
        return False
    try:
        return len(await agent.record_drills()) > 0
    finally:
        await agent.close()


def _document(proof: Proof) -> dict[str, Any]:
    return {
        "drill": proof.drill,
        "check": proof.check,
        "at": utc(proof.at),
        "result": str(proof.result),
        "reason": proof.reason,
        "facts": dict(proof.facts),
    }


def _show_list(config: AgentConfig, chosen: Sequence[Drill], as_json: bool) -> None:
    proven = _proven(config)
    now = datetime.now(UTC)
    if as_json:
        rows = [
            {"drill": d.id, "check": d.check, "title": d.title, "last_fired": utc(proven.get(d.id))} for d in chosen
        ]
        print_json({"schema": "compliance-agent/drills/v1", "drills": rows})
        return
    ages = {name: f"{age(max(0, int((now - at).total_seconds())))} ago" for name, at in proven.items()}
    table(
        ("drill", "check", "last fired", "what is done"),
        [[d.id, d.check, ages.get(d.id, "never"), d.title] for d in chosen],
    )


def _proven(config: AgentConfig) -> dict[str, datetime]:
    """When each detector was last proven to fire, by drill; those that never were are left out."""
    try:
        with looking(config.database_path) as view:
            moments = {name: view.moment(f"proven.{name}") for name in DRILLS}
    except NoInput:  # no agent has run here yet
        return {}
    return {name: at for name, at in moments.items() if at is not None}
