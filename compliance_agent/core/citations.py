"""The HIPAA Security Rule (45 CFR Part 164, Subpart C, as in force since 2013) as data: what may be cited for what.

Each section a check may name stands here with its official title, whether it is required or addressable (Appendix A to
Subpart C), and how far a host's own state is evidence for it: `direct`, `partial` (a human record is needed as well) or
`none`. A check that cites a section of the last kind, or a mapping that is often got wrong, is refused by a test.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Force(StrEnum):
    """Required, or addressable: to be implemented, or documented why not and what is done instead (164.306(d)(3))."""

    REQUIRED = "required"
    ADDRESSABLE = "addressable"


class Reach(StrEnum):
    """How far a host's own state is evidence for a section."""

    DIRECT = "direct"
    PARTIAL = "partial"
    NONE = "none"


@dataclass(frozen=True)
class Section:
    """One section: its title in the rule, its force, and the reach of technical evidence."""

    title: str
    force: Force
    reach: Reach


R, A = Force.REQUIRED, Force.ADDRESSABLE
DIRECT, PARTIAL, NONE = Reach.DIRECT, Reach.PARTIAL, Reach.NONE

SECTIONS: dict[str, Section] = {
    "164.308(a)(1)(ii)(A)": Section("Risk analysis", R, PARTIAL),
    "164.308(a)(1)(ii)(B)": Section("Risk management", R, DIRECT),
    "164.308(a)(1)(ii)(C)": Section("Sanction policy", R, NONE),
    "164.308(a)(1)(ii)(D)": Section("Information system activity review", R, PARTIAL),
    "164.308(a)(2)": Section("Assigned security responsibility", R, NONE),
    "164.308(a)(3)(ii)(A)": Section("Authorization and/or supervision", A, PARTIAL),
    "164.308(a)(3)(ii)(B)": Section("Workforce clearance procedure", A, NONE),
    "164.308(a)(3)(ii)(C)": Section("Termination procedures", A, PARTIAL),
    "164.308(a)(4)(ii)(A)": Section("Isolating health care clearinghouse functions", R, NONE),
    "164.308(a)(4)(ii)(B)": Section("Access authorization", A, PARTIAL),
    "164.308(a)(4)(ii)(C)": Section("Access establishment and modification", A, PARTIAL),
    "164.308(a)(5)(ii)(A)": Section("Security reminders", A, NONE),
    "164.308(a)(5)(ii)(B)": Section("Protection from malicious software", A, DIRECT),
    "164.308(a)(5)(ii)(C)": Section("Log-in monitoring", A, DIRECT),
    "164.308(a)(5)(ii)(D)": Section("Password management", A, PARTIAL),
    "164.308(a)(6)(ii)": Section("Response and reporting", R, PARTIAL),
    "164.308(a)(7)(ii)(A)": Section("Data backup plan", R, DIRECT),
    "164.308(a)(7)(ii)(B)": Section("Disaster recovery plan", R, PARTIAL),
    "164.308(a)(7)(ii)(C)": Section("Emergency mode operation plan", R, NONE),
    "164.308(a)(7)(ii)(D)": Section("Testing and revision procedures", A, DIRECT),
    "164.308(a)(7)(ii)(E)": Section("Applications and data criticality analysis", A, NONE),
    "164.308(a)(8)": Section("Evaluation", R, PARTIAL),
    "164.308(b)(1)": Section("Business associate contracts and other arrangements", R, NONE),
    "164.308(b)(3)": Section("Written contract or other arrangement", R, NONE),
    "164.310(a)(2)(i)": Section("Contingency operations", A, NONE),
    "164.310(a)(2)(ii)": Section("Facility security plan", A, NONE),
    "164.310(a)(2)(iii)": Section("Access control and validation procedures", A, NONE),
    "164.310(a)(2)(iv)": Section("Maintenance records", A, NONE),
    "164.310(b)": Section("Workstation use", R, NONE),
    "164.310(c)": Section("Workstation security", R, PARTIAL),
    "164.310(d)(2)(i)": Section("Disposal", R, PARTIAL),
    "164.310(d)(2)(ii)": Section("Media re-use", R, PARTIAL),
    "164.310(d)(2)(iii)": Section("Accountability", A, PARTIAL),
    "164.310(d)(2)(iv)": Section("Data backup and storage", A, PARTIAL),
    "164.312(a)(1)": Section("Access control", R, PARTIAL),
    "164.312(a)(2)(i)": Section("Unique user identification", R, DIRECT),
    "164.312(a)(2)(ii)": Section("Emergency access procedure", R, PARTIAL),
    "164.312(a)(2)(iii)": Section("Automatic logoff", A, DIRECT),
    "164.312(a)(2)(iv)": Section("Encryption and decryption", A, DIRECT),
    "164.312(b)": Section("Audit controls", R, DIRECT),
    "164.312(c)(1)": Section("Integrity", R, PARTIAL),
    "164.312(c)(2)": Section("Mechanism to authenticate electronic protected health information", A, PARTIAL),
    "164.312(d)": Section("Person or entity authentication", R, DIRECT),
    "164.312(e)(1)": Section("Transmission security", R, PARTIAL),
    "164.312(e)(2)(i)": Section("Integrity controls", A, DIRECT),
    "164.312(e)(2)(ii)": Section("Encryption", A, DIRECT),
    "164.314(a)": Section("Business associate contracts or other arrangements", R, NONE),
    "164.316(a)": Section("Policies and procedures", R, NONE),
    "164.316(b)(1)(i)": Section("Documentation: policies and procedures", R, PARTIAL),
    "164.316(b)(1)(ii)": Section("Documentation: record of an action, activity or assessment", R, DIRECT),
    "164.316(b)(2)(i)": Section("Time limit", R, DIRECT),
    "164.316(b)(2)(ii)": Section("Availability", R, PARTIAL),
    "164.316(b)(2)(iii)": Section("Updates", R, PARTIAL),
}

# (check, section) -> why it is not evidence for it, though it is often cited so. Sections that are not in the table
# above (164.310(d)(1) for disk encryption, say) are refused already.
NEVER: dict[tuple[str, str], str] = {
    ("accounts", "164.308(a)(3)(ii)(B)"): "workforce clearance is about people; shared accounts are 164.312(a)(2)(i)",
    ("auto_logoff", "164.312(d)"): "a session left open is automatic logoff, 164.312(a)(2)(iii)",
    ("av_health", "164.312(b)"): "a virus scanner is not an audit control",
    ("backup", "164.310(d)(2)(iv)"): "that is the copy made before equipment is moved",
    ("encryption", "164.312(c)(2)"): "XTS authenticates nothing; encryption at rest is 164.312(a)(2)(iv)",
    ("encryption", "164.312(e)(2)(i)"): "data at rest is not in transit",
    ("encryption", "164.312(e)(2)(ii)"): "data at rest is not in transit",
    ("file_integrity", "164.312(a)(2)(iv)"): "verified files are not encrypted files",
    ("ssh_access", "164.312(a)(2)(i)"): "how a person logs in is authentication, 164.312(d)",
    ("ssh_access", "164.312(a)(2)(iii)"): "keep-alives detect dead peers, not idle people",
    ("ssh_access", "164.308(a)(3)(ii)(C)"): "a lockout is not a termination procedure",
}

# (check, section) -> why it may be cited, but not as the main section.
NEVER_PRIMARY: dict[tuple[str, str], str] = {
    ("firewall", "164.312(a)(1)"): "it is about persons and programs granted access; a firewall supports it",
    ("logging", "164.308(a)(1)(ii)(D)"): "activity review needs a person who reviews and signs",
    ("patching", "164.308(a)(5)(ii)(B)"): "patching is risk management first, 164.308(a)(1)(ii)(B)",
    ("backup", "164.308(a)(7)(ii)(B)"): "a restore drill is testing and revision, 164.308(a)(7)(ii)(D), first",
}


def objection(check: str, section: str, *, primary: bool) -> str | None:
    """Why this check may not cite this section (as its main one, when `primary`); None when it may."""
    known = SECTIONS.get(section)
    if known is None:
        return f"{section} is not a section of Subpart C that can be cited"
    if known.reach is Reach.NONE:
        return f"{section} ({known.title}): nothing on a host is evidence for it"
    if (check, section) in NEVER:
        return NEVER[check, section]
    return NEVER_PRIMARY.get((check, section)) if primary else None
