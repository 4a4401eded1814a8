"""Which page stands where."""

from __future__ import annotations

from compliance_agent.admin.acts import Acts
from compliance_agent.admin.door import Route
from compliance_agent.admin.pages import Pages
from compliance_agent.admin.standing import Standing


def routes(standing: Standing) -> dict[str, Route]:
    """Every page of the admin API, by its path; what changes something is a POST."""
    pages, acts = Pages(standing), Acts(standing)
    reads = {"healthz": pages.healthz, "readyz": pages.readyz, "status": pages.status, "metrics": pages.metrics}
    changes = {
        "pause": acts.pause,
        "resume": acts.resume,
        "check": acts.check,
        "loglevel": acts.loglevel,
        "profile": acts.profile,
        "reload": acts.reload,
    }
    return {f"/{name}": Route("GET", page) for name, page in reads.items()} | {
        f"/{name}": Route("POST", page) for name, page in changes.items()
    }
