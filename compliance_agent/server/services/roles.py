"""What a person may do: one table, role by act, and nothing else decides. Pure.

    check(user, Act.LOOK)      # Refusal 403, with the act and the role in it

Which rows an act may touch is another question, and `Users.reader` answers it: the sites of the person's client, of these the
person's own, and of their records those within the person's dates. Every route for people
asks for its act; a test sees one that does not.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum

from compliance_agent.errors import Refusal
from compliance_agent.server.records import User


class Act(StrEnum):
    """Everything that a person can ask of the server, besides looking after the own account."""

    LOOK = "look"  # sites, hosts, records, logs, proofs
    DRAFT_ORDER = "draft_order"
    APPROVE_ORDER = "approve_order"
    ENROL_HOST = "enrol_host"
    REVOKE_HOST = "revoke_host"
    HOLD = "hold"  # make and release legal holds
    PRUNE = "prune"
    PEOPLE = "people"  # add people, change their role and sites, end their sessions


ROLES: Mapping[str, frozenset[Act]] = {
    "owner": frozenset(Act),
    "operator": frozenset({Act.LOOK, Act.DRAFT_ORDER, Act.APPROVE_ORDER, Act.ENROL_HOST, Act.REVOKE_HOST, Act.HOLD}),
    "proposer": frozenset({Act.LOOK, Act.DRAFT_ORDER}),  # what a program may be given: others decide about its drafts
    "viewer": frozenset({Act.LOOK}),
    "auditor": frozenset({Act.LOOK}),
}


def may(user: User, act: Act) -> bool:
    """Whether this person's role has the act; an unknown role has none, and a disabled person none either."""
    return user.disabled_at is None and act in ROLES.get(user.role, frozenset())


def check(user: User, act: Act) -> None:
    """Raises Refusal 403 (`not_allowed`) when the role does not have the act."""
    if not may(user, act):
        raise Refusal(f"{act}: the role {user.role} may not do this", code="not_allowed", status=403)


def check_limits(user: User) -> None:
    """Raises Refusal 422 when a role is unknown, or its limits are not what it needs."""
    if user.role not in ROLES:
        raise Refusal(f"role: expected one of {', '.join(ROLES)}", code="bad_role", status=422)
    if user.role == "auditor" and (not user.sites or user.dates is None):
        raise Refusal("auditor: needs at least one site, and dates", code="auditor_needs_limits", status=422)
    if user.role != "auditor" and user.dates is not None:
        raise Refusal(f"dates: only an auditor has dates, not a {user.role}", code="dates_not_for_role", status=422)
