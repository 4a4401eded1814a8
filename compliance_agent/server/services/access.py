"""Who is calling: a host by its API key. The answer says which site's rows the call may touch.

The key's hash is looked up once and remembered for a short while; every write looks at the host again inside its transaction, and
a call that only reads asks anew (`fresh`), so a revoked host is refused from the next request on. Each request is charged to its
host here (limits.py), before its body is read.
"""

from __future__ import annotations

from datetime import datetime, timedelta

from compliance_agent.errors import Refusal
from compliance_agent.server.records import Clock, Host, Store
from compliance_agent.server.services.api_keys import ApiKeys
from compliance_agent.server.services.certificates import fingerprint_of
from compliance_agent.server.services.limits import Quotas
from compliance_agent.server.services.secrets import API_KEY_PREFIX, hashed

REMEMBERED = timedelta(seconds=60)
MOST_REMEMBERED = 10_000


class HostAccess:
    """Authenticates hosts."""

    def __init__(
        self, store: Store, clock: Clock, limits: Quotas, *, certificates: bool = False, api_keys: ApiKeys | None = None
    ) -> None:
        self._certificates = certificates
        self._api_keys = api_keys
        self._store = store
        self._clock = clock
        self._limits = limits
        self._known: dict[str, tuple[datetime, Host]] = {}

    async def caller(
        self,
        authorization: str | None,
        certificate: bytes | None = None,
        *,
        fresh: bool = False,
        may_lack_certificate: bool = False,
    ) -> Host:
        """The host behind an `Authorization` header.

        Args:
            authorization: the header.
            certificate: the client's in this connection (DER), whose key and chain TLS has verified.
            fresh: this call writes nothing, so the host is not looked at again.
            may_lack_certificate: this call is how a host comes by one.

        Raises:
            Refusal: 401 without a known key, 403 for a host that is revoked, waits for approval, or does not show its
                certificate where one is required, 429 when it asks too often.
        """
        host = await self._known_caller(authorization, fresh)
        self._limits.request(host)
        if certificate is not None:
            # Asked each time: a certificate that was taken back is worth nothing at the next request.
            if await self._store.key_of_certificate(fingerprint_of(certificate)) != host.key_id:
                raise Refusal("certificate: is not this host's", code="wrong_certificate", status=403)
        elif self._certificates and not may_lack_certificate:
            raise Refusal("this server wants a client certificate", code="certificate_required", status=403)
        return host

    async def _known_caller(self, authorization: str | None, fresh: bool) -> Host:
        scheme, _, secret = (authorization or "").partition(" ")
        if scheme.lower() != "bearer" or not secret.startswith(API_KEY_PREFIX) or len(secret) > 128:
            raise Refusal("authorization: expected a host's API key", code="no_api_key", status=401)
        key_hash, now = hashed(secret), self._clock()
        remembered = self._known.get(key_hash)
        if remembered is not None and not fresh and now - remembered[0] < REMEMBERED:
            return remembered[1]
        found = await self._store.host_of_api_key(key_hash)
        if found is None:
            raise Refusal("authorization: this API key is not known", code="bad_api_key", status=401)
        host, unused = found
        if host.revoked_at is not None:
            raise Refusal("this host is revoked", code="host_revoked", status=403)
        if host.waiting_since is not None:
            raise Refusal("this host waits for an operator's approval", code="host_waiting", status=403)
        if unused and self._api_keys is not None:
            await self._api_keys.first_use(host, key_hash)
            self.forget(host)
        if len(self._known) >= MOST_REMEMBERED:
            self._known.clear()
        self._known[key_hash] = (now, host)
        return host

    def forget(self, host: Host) -> None:
        """Look this host up again at its next call: its key has changed."""
        self._known = {key: item for key, item in self._known.items() if item[1].key_id != host.key_id}
