"""Resources: addresses under which the read tools answer too, for clients that read instead of calling. Pure.

compliance://sites/clinic-1/drift      list_drift with site=clinic-1
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

SCHEME = "compliance://"
LONGEST = 300


@dataclass(frozen=True)
class Resource:
    """An address or a template of addresses, and the tool that answers; its placeholders are the tool's arguments."""

    uri: str
    name: str
    doc: str
    tool: str

    def arguments(self, uri: str) -> Mapping[str, str] | None:
        """What an address says in the template's places; None when it is another one."""
        found = re.fullmatch(re.sub(r"\\\{(\w+)\\\}", r"(?P<\1>[^/?#]+)", re.escape(self.uri)), uri)
        return None if found is None else found.groupdict()


RESOURCES = (
    Resource(f"{SCHEME}sites", "sites", "The sites that the caller sees.", "list_sites"),
    Resource(f"{SCHEME}sites/{{site}}/hosts", "hosts", "The hosts of a site.", "list_hosts"),
    Resource(f"{SCHEME}sites/{{site}}/drift", "drift", "What is not met at a site.", "list_drift"),
    Resource(f"{SCHEME}sites/{{site}}/baselines", "baselines", "The baselines of a site's hosts.", "list_baselines"),
    Resource(f"{SCHEME}sites/{{site}}/packets", "packets", "The years that a packet can be built of.", "list_packets"),
    Resource(f"{SCHEME}hosts/{{host}}", "host", "One host with its checks.", "show_host"),
    Resource(f"{SCHEME}hosts/{{host}}/baseline", "baseline", "A host beside its baseline.", "compare_host"),
    Resource(f"{SCHEME}bundles/{{bundle}}", "bundle", "One record.", "show_bundle"),
    Resource(f"{SCHEME}checks", "checks", "Every check.", "list_checks"),
    Resource(f"{SCHEME}checks/{{check}}", "check", "One check.", "show_check"),
    Resource(f"{SCHEME}runbooks", "runbooks", "Every runbook.", "list_runbooks"),
    Resource(f"{SCHEME}runbooks/{{runbook}}", "runbook", "One runbook.", "show_runbook"),
    Resource(f"{SCHEME}citations", "citations", "Sections of the rule.", "list_citations"),
    Resource(f"{SCHEME}citations/{{section}}", "citation", "One section of the rule.", "show_citation"),
)


def asked(uri: str) -> tuple[str, Mapping[str, str]]:
    """The tool and the arguments of an address; of one that is none, a tool that does not exist."""
    for item in RESOURCES if len(uri) <= LONGEST else ():
        found = item.arguments(uri)
        if found is not None:
            return item.tool, found
    return "", {}
