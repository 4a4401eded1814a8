"""`compliance-agent check`: look at this host now, print a verdict for each check, change and record nothing."""

from __future__ import annotations

import asyncio
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from compliance_agent.adapters import runner
from compliance_agent.cli.common import PATH, config_option, json_option, print_json, table, unconfigured
from compliance_agent.cli.places import load_config
from compliance_agent.config import AgentConfig
from compliance_agent.drift import DriftDetector
from compliance_agent.errors import ConfigError
from compliance_agent.logs import configure
from compliance_agent.models import DriftResult, Result
from compliance_agent.words import nearest

SCHEMA = "compliance-agent/check/v1"
NOW_SCHEMA = "compliance-agent/check-now/v1"
PATIENCE_S = 2.0  # a person who waits longer is told what for
FINE = {Result.PASS, Result.NOT_APPLICABLE, Result.EXCEPTION}
SLOW_S = 60.0  # a check whose look may take longer is looked at by the agent in a round of its own, and here by name


@click.command()
@click.argument("checks", nargs=-1)
@config_option
@click.option("--baseline", "baseline_path", type=PATH, help="Baseline file to hold this host against.")
@json_option
@click.option("--all", "everything", is_flag=True, help="Also checks that may take longer than a minute.")
@click.option("--now", "by_agent", is_flag=True, help="Have the running agent look, heal and record.")
@click.option("--quiet", is_flag=True, help="No output, only the exit status.")
@click.pass_context
def command(
    ctx: click.Context,
    checks: tuple[str, ...],
    config_path: Path | None,
    baseline_path: Path | None,
    as_json: bool,
    everything: bool,
    by_agent: bool,
    quiet: bool,
) -> None:
    """Look at this host and print a verdict for each check (or only for CHECKS).

    Exit status 0 when every check passes, does not apply or is an approved exception, 1 when there are findings: `unknown` is
    one. Nothing is changed and nothing is recorded. Without configuration the shipped baseline is used. Checks that may take
    longer than a minute are looked at when they are named, or with --all; otherwise they are listed as not looked at.

    With --now it is the running agent that looks, at once; what it finds is healed and recorded as after any look.
    """
    if by_agent:
        ctx.exit(asked_agent(load_config(config_path), checks, as_json=as_json, quiet=quiet))
    configure("CRITICAL")
    detector = detector_for(config_path, baseline_path)
    results = runner.run(look_at(detector, checks, everything=everything))
    skipped = () if checks or everything else slow(detector)
    findings = [result for result in results if result.result not in FINE]
    if as_json:
        print_json(as_document(detector, results, skipped))
    elif not quiet:
        _print(detector, results)
        say_skipped(skipped)
    ctx.exit(1 if findings else 0)


def asked_agent(config: AgentConfig | None, checks: Sequence[str], *, as_json: bool, quiet: bool) -> int:
    """Have the running agent look, and show what it found; the exit status.

    Raises:
        Unavailable: no agent runs here.
    """
    from compliance_agent.admin.client import demand

    asked = {"checks": list(checks)} if checks else {}
    try:
        found = demand(config, "POST", "/check", asked, timeout_s=60.0).document
    except ConfigError as error:
        if error.code != "unknown_check":
            raise
        raise click.BadParameter(str(error), param_hint="CHECKS") from error
    if as_json:
        print_json({"schema": NOW_SCHEMA, "source": "agent", **found})
    elif not quiet:
        rows = [[item["check"], item["result"], item["reason"]] for item in found["checks"]]
        table(("check", "verdict", "reason"), rows, styled=1)
        for name in found["not_back"]:
            click.echo(f"not back yet: {name}; `compliance-agent status` will say", err=True)
    fine = all(item["result"] in FINE for item in found["checks"])
    return 0 if fine and not found["not_back"] else 1


def detector_for(config_path: Path | None, baseline_path: Path | None) -> DriftDetector:
    """The checks of this host's baseline, on this machine.

    Raises:
        ConfigError: configuration or baseline cannot be used.
    """
    from compliance_agent.baseline import load

    config = load_config(config_path)
    if config is not None or baseline_path is not None:
        config = config or unconfigured(Path("/nonexistent"))
        signed_by = (
            None if baseline_path else config.baseline_key_file
        )  # a file named by hand is a question, not an order
        return DriftDetector(config, baseline=load(baseline_path or config.baseline_path, signed_by=signed_by))
    config = unconfigured(Path("/nonexistent"))
    return DriftDetector(config, baseline=load(config.baseline_path, trusted=False))


def slow(detector: DriftDetector) -> tuple[str, ...]:
    """Checks of the baseline whose look may take longer than a minute."""
    return tuple(name for name, entry in sorted(detector.baseline.entries.items()) if entry.deadline_s > SLOW_S)


def say_skipped(skipped: Sequence[str]) -> None:
    """Name what was not looked at, and how to have it looked at."""
    for name in skipped:
        click.echo(f"not looked at: {name} may take minutes; `compliance-agent check {name}` looks", err=True)


async def look_at(detector: DriftDetector, checks: Sequence[str], *, everything: bool = False) -> list[DriftResult]:
    """Results of the named checks, in the order they are named; without names of all but the `slow` ones, or of everything.

    Raises:
        click.UsageError: no such check in the baseline.
    """
    known = detector.baseline.entries
    for name in checks:
        if name not in known:
            raise click.BadParameter(f"no check {name!r} in the baseline{nearest(name, known)}", param_hint="CHECKS")
    left_out = () if everything else slow(detector)
    chosen = checks or [name for name in sorted(known) if name not in left_out]
    looks = {name: asyncio.ensure_future(detector.check_one(name)) for name in chosen}
    _, waiting = await asyncio.wait(looks.values(), timeout=PATIENCE_S)
    if waiting and sys.stderr.isatty():
        click.echo(f"still looking: {', '.join(name for name, look in looks.items() if look in waiting)}", err=True)
    return list(await asyncio.gather(*looks.values()))


def as_document(detector: DriftDetector, results: Sequence[DriftResult], skipped: Sequence[str] = ()) -> dict[str, Any]:
    """The stable object of `--json` (docs/json.md)."""
    counts = Counter(str(result.result) for result in results)
    return {
        "schema": SCHEMA,
        "baseline": {"version": detector.baseline.version, "sha256": detector.baseline.sha256},
        "compliant": all(result.result in FINE for result in results),
        "counts": {str(word): counts.get(str(word), 0) for word in Result},
        "skipped": list(skipped),
        "results": [
            {
                "check": result.check,
                "result": str(result.result),
                "reason": result.reason,
                "sentence": result.verdict.sentence if result.verdict else "",
                "severity": str(result.severity),
                "mode": str(detector.baseline.mode_of(result.check)),
                "citations": list(result.hipaa_controls or ()),
                "facts": dict(result.pre_state),
                "cure": result.recommended_action,
                "exception_id": result.exception_id,
                "duration_ms": result.duration_ms,
            }
            for result in results
        ],
    }


def _print(detector: DriftDetector, results: Sequence[DriftResult]) -> None:
    rows = [
        [
            result.check,
            str(result.result),
            result.verdict.sentence if result.verdict else result.reason,
            " ".join(list(result.hipaa_controls or ())[:1]),
        ]
        for result in results
    ]
    table(("check", "verdict", "seen", "45 CFR"), rows, styled=1)
    counts = Counter(str(result.result) for result in results)
    said = ", ".join(f"{counts[word]} {word}" for word in map(str, Result) if counts[word])
    click.echo(f"{said} (baseline {detector.baseline.version}, {detector.baseline.sha256[:12]})", err=True)
