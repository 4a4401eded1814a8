"""What the root side may do on a host, made from its baseline: strict JSON for `heal`, which knows no YAML and no check.

Only what is enforced is permitted, and each check says for itself (`permits` in its file) what its cure puts where: whole lines of
files, modes, the ruleset. Units come from the parameters that say they name units.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from compliance_agent.baseline import Baseline, wanted_units
from compliance_agent.config import AgentConfig
from compliance_agent.log.fields import to_base64
from compliance_agent.models import KeyId, Mode

SCHEMA = "compliance-agent/permits/v1"
TRUST_SCHEMA = "compliance-agent/adopt/v1"
# Where it stands, root waits for people's approval of what users would notice; nothing is approved yet (heal/approvals.py).
APPROVALS = b'{"schema": "compliance-agent/approvals/v1", "given": []}\n'


def permits_of(baseline: Baseline) -> dict[str, Any]:
    """The permissions as JSON values; empty but for their names where nothing is enforced."""
    enforced = {name: entry for name, entry in baseline.entries.items() if baseline.mode_of(name) is Mode.ENFORCE}
    whole: dict[str, Any] = {"files": {}, "modes": {}, "ruleset": None, "may": []}
    for entry in enforced.values():
        if entry.check.permits is not None:
            _add(whole, entry.check.permits(entry.parameters))
    units = {unit: want for want in ("needed", "forbidden") for unit in wanted_units(enforced, want)}
    return {
        "schema": SCHEMA,
        "baseline": baseline.sha256,
        "version": baseline.version,
        **whole,
        "may": sorted(set(whole["may"])),
        "units": units,
    }


def written(baseline: Baseline) -> bytes:
    """The file, the same bytes for the same baseline."""
    return json.dumps(permits_of(baseline), indent=1, sort_keys=True).encode("ascii") + b"\n"


def trust(
    config: AgentConfig, host: KeyId, order_root: str | None, baseline_key: bytes | None, *, order_keys: Path | None
) -> bytes:
    """Root's word for `adopt`: who this host is, whose orders and whose baselines (None: nobody's) it takes, and where its
    baseline stands.
    """
    says = {
        "schema": TRUST_SCHEMA,
        "tenant": config.client_id,
        "site": config.site_id,
        "host": host,
        "order_root": order_root,
        "order_keys": None if order_keys is None else str(order_keys.absolute()),
        "baseline_key": None if baseline_key is None else to_base64(baseline_key),
        "baseline": str(config.baseline_path.absolute()),
    }
    return json.dumps(says, indent=1, sort_keys=True).encode("ascii") + b"\n"


def _add(whole: dict[str, Any], permitted: Mapping[str, Any]) -> None:
    for name, value in permitted.items():
        if isinstance(value, Mapping):
            whole[name] |= value
        elif isinstance(value, str):
            whole[name] = value
        else:
            whole[name] += value
