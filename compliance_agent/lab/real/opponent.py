"""Somebody who undoes the cure every second. The agent has to see that it is being fought, say so once, and stop."""

from __future__ import annotations

import time
from typing import Any

from compliance_agent.lab.real.host import Host

LASTS_S = 60.0
HEALS_ALLOWED = 5


def fight(host: Host) -> dict[str, Any]:
    """Flush the firewall every second; what the agent made of it."""
    before = len(host.bundles("firewall"))
    ends = time.monotonic() + LASTS_S
    undone = 0
    while time.monotonic() < ends:
        host.machine.run("nft flush ruleset")
        undone += 1
        time.sleep(1.0)  # every second, as the row says
    fought = host.bundles("firewall")[before:]
    heals = sum(bundle["outcome"] == "success" for bundle in fought)
    alarms = sum(bundle["outcome"] == "alert" and bundle["error"] == "flapping" for bundle in fought)
    return {"undone": undone, "heals": heals, "alarms": alarms, "ok": 1 <= heals <= HEALS_ALLOWED and alarms == 1}
