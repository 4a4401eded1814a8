"""Client certificates of hosts in a write transaction, each statement with its site."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from sqlalchemy import Executable, delete, insert, select
from sqlalchemy.engine import RowMapping

from compliance_agent.server.records import HostCertificate
from compliance_agent.server.store import rows, tables

_c = tables.host_certificates.c


class CertificateRows:
    """The part of `records.Transaction` that is about client certificates."""

    async def _all(self, query: Executable, **values: Any) -> list[RowMapping]:
        raise NotImplementedError

    async def _changed(self, statement: Executable) -> int:
        raise NotImplementedError

    async def certificates(self, site_id: str, key_id: str) -> list[HostCertificate]:
        mine = select(tables.host_certificates).where(_c.site_id == site_id, _c.key_id == key_id)
        found = await self._all(mine.order_by(_c.issued_at.desc(), _c.fingerprint))
        times = ("issued_at", "not_after")
        return [HostCertificate(**{**row, **{name: rows.when(row[name]) for name in times}}) for row in found]

    async def add_certificate(self, certificate: HostCertificate, *, at_most: int) -> None:
        held = await self.certificates(certificate.site_id, certificate.key_id)
        for old in held[at_most - 1 :]:
            mine = (_c.site_id == old.site_id, _c.fingerprint == old.fingerprint)
            await self._changed(delete(tables.host_certificates).where(*mine))
        times = {"issued_at": rows.text(certificate.issued_at), "not_after": rows.text(certificate.not_after)}
        await self._changed(insert(tables.host_certificates).values(**{**asdict(certificate), **times}))

    async def drop_certificates(self, site_id: str, key_id: str) -> None:
        mine = (_c.site_id == site_id, _c.key_id == key_id)
        await self._changed(delete(tables.host_certificates).where(*mine))
