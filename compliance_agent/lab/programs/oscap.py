"""oscap 1.3.7 (Debian 12): a content file, and what each rule of its profile finds."""

from __future__ import annotations

from dataclasses import dataclass, field

from compliance_agent.lab.host import Call, FakeHost, said
from compliance_agent.ports import Ran

CONTENT = "/usr/share/xml/scap/ssg/content/ssg-debian11-ds.xml"
PROFILE = "xccdf_org.ssgproject.content_profile_standard"
RULE = "xccdf_org.ssgproject.content_rule_"


@dataclass
class Scap:
    """What the rules of the profile find, by short name."""

    results: dict[str, str] = field(
        default_factory=lambda: {
            **{f"file_owner_{number}": "pass" for number in range(15)},
            "file_permissions_etc_shadow": "pass",
            "sshd_disable_empty_passwords": "pass",
            "file_permissions_systemmap": "fail",
            "partition_for_tmp": "notapplicable",
            "partition_for_var": "notapplicable",
        }
    )


def provide(host: FakeHost) -> None:
    """Have the tool and its content."""
    host.install("oscap")
    host.put(CONTENT, "<content/>\n")


def oscap(call: Call) -> Ran:
    """`oscap xccdf eval --progress --profile ID [--cpe FILE] FILE`."""
    if call.argv[1:3] != ("xccdf", "eval"):
        return said("", 1, err="OpenSCAP Error: unknown module\n")
    if call.argv[-1] not in call.host.files:
        return said("", 1, err=f"OpenSCAP Error: Unable to open file: '{call.argv[-1]}'\n")
    if call.argv[call.argv.index("--profile") + 1] != PROFILE:
        return said("", 1, err="No profile matching suffix was found.\n")
    results = call.host.part(Scap).results
    lines = "".join(f"{RULE}{name}:{word}\n" for name, word in results.items())
    return said(lines, 2 if {"fail", "unknown"} & set(results.values()) else 0)


PROGRAMS = {"oscap": oscap}
