"""The rule that was proposed in January 2025 (90 FR 898, RIN 0945-AA22), as data: a second view, and not the law.

Nothing here is cited in evidence, counts in a verdict or changes a default. It answers one question that clinics ask: if it
became final as it was proposed, what does a host already show, and what would still be missing.
"""

from __future__ import annotations

from dataclasses import dataclass

STATUS = "proposed 6 January 2025, not final: the Security Rule in force is that of 2003 as amended in 2013"


@dataclass(frozen=True)
class Proposed:
    """One requirement as proposed.

    Attributes:
        requirement: what would be asked.
        checks: ids of checks whose facts bear on it.
        shows: what they show, one sentence; empty where no check says anything.
        missing: what a host cannot show, or what no check here looks at.
    """

    requirement: str
    checks: tuple[str, ...]
    shows: str
    missing: str


PROPOSED = (
    Proposed(
        "No specification is addressable any more; everything is written down",
        (),
        "",
        "Policies and decisions are documents. An exception here already needs an approver and an end.",
    ),
    Proposed(
        "An inventory of assets and a map of the network, reviewed every twelve months",
        ("listening_ports", "services", "accounts"),
        "What waits for the network on this host, which services run and which accounts there are.",
        "The inventory itself, devices without an agent, and the review.",
    ),
    Proposed(
        "Encryption at rest and in transit",
        ("encryption", "transmission", "ssh_access"),
        "Volumes that hold records stand on dm-crypt, and services of this host speak current TLS and SSH.",
        "Data in applications, on paper, on phones, and what other systems send.",
    ),
    Proposed(
        "Multi-factor authentication",
        ("ssh_access",),
        "Nobody logs in over SSH on a password alone.",
        "A second factor at the console, at the desktop and in applications; no check looks at PAM.",
    ),
    Proposed(
        "Critical patches within fifteen days",
        ("patching",),
        "Security updates that wait, and since when, by the age of the finding at the server.",
        "Which of them are critical, firmware, and applications that no package manager knows.",
    ),
    Proposed(
        "Protection against malicious software",
        ("av_health",),
        "The scanner runs, is current and finds a test file.",
        "What it does not know.",
    ),
    Proposed(
        "No extraneous software, unneeded ports disabled, consistent configuration",
        ("services", "listening_ports", "firewall", "openscap"),
        "Forbidden units, unlisted ports and the rules of an SCAP profile.",
        "That the lists are the right ones for what the host does.",
    ),
    Proposed(
        "Segmentation of networks",
        ("firewall",),
        "What comes in at this host.",
        "The network's own borders, which no host sees.",
    ),
    Proposed(
        "A vulnerability scan every six months and a penetration test every twelve",
        ("openscap",),
        "The results of an SCAP profile, with its rules' ids.",
        "Scans from outside and tests by people; their dates are not recorded here.",
    ),
    Proposed(
        "Backups at most 48 hours old, and restoration within 72 hours",
        ("backup",),
        "The age of the last snapshot, the last check of the repository and the last restore drill.",
        "That a whole clinic comes back in 72 hours; a drill restores a sample.",
    ),
    Proposed(
        "Access ended within one hour of the end of employment",
        ("accounts",),
        "An account or key whose owner is no longer listed is found at the next look.",
        "When employment ended.",
    ),
    Proposed(
        "A compliance audit every twelve months, and business associates' certification of their safeguards",
        (),
        "",
        "The audit and the certificate; a packet (docs/packet.md) is what an auditor can hold in the hand.",
    ),
)
