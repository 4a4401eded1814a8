"""The words that the server's services and its store share, and the contract between them.

Services decide, the store remembers. A service gets a `Store`; it reads through `for_sites(...)`, a handle that sees the rows of
these sites and no others, and writes in `write(work)`: one transaction, durable when the call returns. Times are aware UTC.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime

from compliance_agent.server.records.chains import (
    NO_DIGEST,
    Bundle,
    BundleQuery,
    Changed,
    CheckVerdict,
    Fork,
    Gap,
    Head,
    Held,
    Host,
    HostCertificate,
    HostGroup,
    NewBundle,
    Place,
    Said,
    Site,
    Tally,
)
from compliance_agent.server.records.duties import Duty, Figures, Replica, Tenure
from compliance_agent.server.records.keeping import Durable, Hold, LoggedRecord, Minimum
from compliance_agent.server.records.logs import Backlog, Kept, Leaf, NewestHead, NewLeaf, PendingLeaf, Shard
from compliance_agent.server.records.people import Audited, Dates, Factor, Flow, OperatorToken, Session, Token, User
from compliance_agent.server.records.reading import Keeping, SiteReader
from compliance_agent.server.records.store import Store, Work
from compliance_agent.server.records.writing import Transaction

Clock = Callable[[], datetime]

__all__ = [
    "NO_DIGEST",
    "Audited",
    "Backlog",
    "Bundle",
    "BundleQuery",
    "Changed",
    "CheckVerdict",
    "Clock",
    "Dates",
    "Durable",
    "Duty",
    "Factor",
    "Figures",
    "Flow",
    "Fork",
    "Gap",
    "Head",
    "Held",
    "Hold",
    "Host",
    "HostCertificate",
    "HostGroup",
    "Keeping",
    "Kept",
    "Leaf",
    "LoggedRecord",
    "Minimum",
    "NewBundle",
    "NewLeaf",
    "NewestHead",
    "OperatorToken",
    "PendingLeaf",
    "Place",
    "Replica",
    "Said",
    "Session",
    "Shard",
    "Site",
    "SiteReader",
    "Store",
    "Tally",
    "Tenure",
    "Token",
    "Transaction",
    "User",
    "Work",
]
