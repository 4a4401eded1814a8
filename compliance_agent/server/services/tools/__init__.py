"""What programs may ask of the fleet for a person, a model's client above all, and what they may propose. No tool decides.

`words.py` says what a tool and its arguments are, `scene.py` what one call sees, and the other modules are the tools. What comes
out is ids, numbers, times and words of closed lists; what goes in as well. Who calls, how often and what of it is recorded is a
matter of `services/calls.py`; the protocol is one of `server/mcp_endpoint.py`.
"""

from __future__ import annotations

from collections.abc import Mapping

from compliance_agent.server.services.tools.evidence import EVIDENCE
from compliance_agent.server.services.tools.proposing import PROPOSING
from compliance_agent.server.services.tools.reference import REFERENCE
from compliance_agent.server.services.tools.standing import STANDING
from compliance_agent.server.services.tools.words import Answer, Tier, Tool

__all__ = ["TOOLS", "Answer", "Tier", "Tool"]

TOOLS: Mapping[str, Tool] = {tool.name: tool for tool in (*STANDING, *EVIDENCE, *REFERENCE, *PROPOSING)}
