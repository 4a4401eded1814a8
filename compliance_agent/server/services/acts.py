"""What people do is noted in the transaction that does it: in the log of each site that it concerns, and in the audit table.

The log has ids alone, and an entry that is in it can be taken out by nobody; the table has names, for whoever runs the server.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime

from compliance_agent.entries.act import CONSOLE, Act, act_leaf
from compliance_agent.server.records import NewLeaf, Transaction, User

__all__ = ["Act", "note", "sites_of"]


async def note(
    tx: Transaction,
    now: datetime,
    act: Act,
    *,
    by: User | None,
    sites: Iterable[str],
    subject: str | None = None,
    said: str = "",
) -> None:
    """An act, done now.

    Args:
        tx: the transaction that does it.
        now: the server's time.
        act: what was done.
        by: who did it; None is the console.
        sites: those that it concerns, each of which has it in its log.
        subject: the id of a person or key, or the digest of a document, that it was about.
        said: the same in the table's words; ids and names of our own, no text from outside.
    """
    concerned = sorted(sites)
    leaf = act_leaf(act, by.person_id if by else CONSOLE, subject, now.strftime("%Y-%m-%dT%H:%M:%S.%fZ"))
    await tx.add_leaves([NewLeaf(site_id, leaf) for site_id in concerned], now)
    one = concerned[0] if len(concerned) == 1 else None
    await tx.audit(now, by.name if by else "operator", str(act), site_id=one, subject=said)


async def sites_of(tx: Transaction, user: User) -> frozenset[str]:
    """The sites that a person may see, and whose logs have what the person does."""
    sites = await tx.all_sites(user.client_id)
    return sites if user.sites is None else sites & user.sites
