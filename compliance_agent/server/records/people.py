"""Who is let in: enrolment tokens and users."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime


@dataclass(frozen=True)
class Token:
    """An enrolment token, known only by its hash."""

    hash: str
    site_id: str
    client_id: str
    expires_at: datetime
    used_at: datetime | None
    used_by: str | None


@dataclass(frozen=True)
class User:
    """A person (or an operator's script). `sites` None means every site of this server."""

    name: str
    password_hash: str
    role: str  # admin | viewer
    sites: frozenset[str] | None
    created_at: datetime
    disabled_at: datetime | None = None
