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
    Resource(f"{SCHEME}hosts/{{host}}", "host", "One host with its checks.", "show_host"),
)


def asked(uri: str) -> tuple[str, Mapping[str, str]]:
    """The tool and the arguments of an address; of one that is none, a tool that does not exist."""
    for item in RESOURCES if len(uri) <= LONGEST else ():
        found = item.arguments(uri)
        if found is not None:
            return item.tool, found
    return "", {}
