"""Sheets 7, 9 and 10: hosts and who did not report, how sound the evidence is, and what its verifier found. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from compliance_agent.models import BundleKind
from compliance_agent.packet import grid
from compliance_agent.packet.content import Limits, Record, Scope, stamp
from compliance_agent.packet.report import Report
from compliance_agent.sheets.sheet import Sheet, Table, alone, at, count, host

_SHOWN = 200  # problems on paper; `packet verify --json` names all
QUORUM = {
    "met": "yes, the quorum of the policy cosigned the checkpoint",
    "unwitnessed": "no: the checkpoint lacks the quorum of the policy",
    "not_asked": "no: the policy asks for none",
    None: "the checkpoint does not verify",
}


def hosts(scope: Scope, records: Sequence[Record]) -> Sheet:
    """Every host of the scope, those that never spoke first of all."""
    own = {one.key_id: [record for record in records if record.place[0] == one.key_id] for one in scope.hosts}
    enrolled = {one.key_id: one for one in scope.hosts}
    covered = sorted(grid.coverage(scope, records), key=lambda item: (item.percent, item.host_id, item.key_id))
    rows = tuple(
        (
            item.host_id,
            item.key_id[:16],
            enrolled[item.key_id].enrolled_at[:10],
            (enrolled[item.key_id].revoked_at or "")[:10],
            count(own[item.key_id]),
            f"{item.hours_covered} of {item.hours_due} h",
            f"{item.percent} %",
        )
        for item in covered
    )
    silent = tuple(
        (item.host_id, item.key_id[:16], stamp(start)[:19], stamp(end)[:19])
        for item in covered
        for start, end in item.silent
    )
    return Sheet(
        "Hosts, and who did not report",
        (
            "Those that were seen least stand first. A machine that was never enrolled is not here: hold this against the clinic's "
            "own list. An hour is covered when a record is about it: somebody looked, which does not say that all was well.",
        ),
        (
            Table("Hosts", ("Host", "Key", "Enrolled", "Revoked", "Records", "Seen", "Share"), rows, "No host."),
            Table("Silent for more than two hours", ("Host", "Key", "From, UTC", "To, UTC"), silent, "No such span."),
        ),
    )


def _seen(limits: Limits) -> str:
    return f"the account that it was built for sees {limits.first} to {limits.last} alone"


def health(scope: Scope, records: Sequence[Record], found: Report) -> Sheet:
    """What is missing, late, or not vouched for."""
    kinds = tuple((kind.value, count(one for one in records if one.document["kind"] == kind)) for kind in BundleKind)
    unsure = [one for one in records if not one.document["clock"]["synchronized"]]
    recovered = [one for one in records if one.document["recovered"]]
    incidents = [one for one in records if one.document["kind"] == BundleKind.INCIDENT]
    sound = (
        ("Records of the period", count(records)),
        ("Cosigned by witnesses", QUORUM[found.quorum]),
        ("Cosignatures, time stamps", f"{found.said.cosignatures}, {found.said.tokens}"),
        ("Records whose host did not know the time to be right", count(unsure)),
        ("Records of cures that were cut off", count(recovered)),
        ("Not in the log yet", str(scope.pending)),
        ("In the logs of other years", str(sum(scope.elsewhere.values()))),
        ("Destroyed when their time was over", str(scope.destroyed)),
        ("Hosts under a hold", ", ".join(scope.held) or "none"),
    )
    register = tuple(
        (at(single), host(single), single.document["incident"]["code"], alone(single)) for single in incidents
    )
    left = tuple((end.host_id, end.detail) for end in found.open_ends)
    return Sheet(
        "How sound the evidence is",
        ("Nothing here says that the clinic was well; it says how far the records can carry.",),
        (
            Table("Soundness", ("", ""), sound),
            *([Table(f"Left open: {_seen(scope.limits)}", ("Host", "What"), left, "Nothing.")] if scope.limits else ()),
            Table("Records by kind", ("Kind", "Records"), kinds),
            Table(
                "Incidents: a log that contradicted itself", ("When, UTC", "Host", "What", "Record"), register, "None."
            ),
        ),
    )


def verification(scope: Scope, found: Report) -> Sheet:
    """What was checked, with what, and how to do it again."""
    verdict = (
        "Nothing is wrong with the packet."
        if found.ok
        else f"{len(found.problems)} PROBLEM(S). THIS PACKET DOES NOT VERIFY."
    )
    problems = tuple((item.code, item.where, item.detail) for item in found.problems[:_SHOWN])
    keys = tuple((one.host_id, one.key_id) for one in scope.hosts)
    trust = (
        "came with the packet; compare log.pem with one you were given in another way"
        if found.own_policy
        else "were given by whoever made this"
    )
    return Sheet(
        "Verification",
        (
            verdict,
            f"{found.verified} of {found.found} records were verified: signature, form, chain, entry and proof. "
            f"The keys of the log {trust}.",
            "Nothing of ours is needed for it: README.txt in the packet has the commands for sha256sum and openssl, and works as "
            "printed. NOT-PROVEN.txt says what none of it can show.",
        ),
        (
            Table("Problems", ("Code", "Where", "Detail"), problems, "None."),
            Table("Keys", ("Host", "Key id (SHA-256 of the public key)"), keys, "No host."),
        ),
    )
