"""The second factor of people: set up, asked for, used up, taken away.

    secret = await factors.begin("j.doe")             # shown once, for the app
    codes = await factors.confirm("j.doe", "123456")  # counts from now on; recovery codes, shown once
    await factors.take(tx, "j.doe", typed, now)       # a code of the app, or a recovery code; each works once

A secret is sealed in the database under a key in the data directory's `keys/`: who reads the database alone, or a copy of it, has
no codes. Recovery codes are kept as hashes. Which step was used last moves forward by compare-and-swap, so one code serves
one of two requests that bring it at the same time.
"""

from __future__ import annotations

import base64
import secrets
from datetime import datetime

from nacl.exceptions import CryptoError
from nacl.secret import SecretBox

from compliance_agent.errors import Refusal, StorageError
from compliance_agent.server.records import Clock, Factor, Store, Transaction
from compliance_agent.server.services import totp
from compliance_agent.server.services.acts import Act, note, sites_of
from compliance_agent.server.services.secrets import Rng, hashed

RECOVERY_CODES = 10
_RECOVERY_BYTES = 10


class Factors:
    """Second factors, by user name."""

    def __init__(self, store: Store, clock: Clock, key: bytes, rng: Rng = secrets.token_bytes) -> None:
        self._store = store
        self._clock = clock
        self._box = SecretBox(key)
        self._rng = rng

    async def has(self, name: str) -> bool:
        """Whether this person has a second factor that counts."""
        held = await self._store.factor(name)
        return held is not None and held.confirmed_at is not None

    async def begin(self, name: str) -> bytes:
        """A new secret for the person's app. It counts once a code of it was confirmed; one that was begun before is forgotten.

        Raises:
            Refusal: the person has a factor already; an owner can reset it.
        """
        secret = self._rng(totp.SECRET_BYTES)
        sealed = bytes(self._box.encrypt(secret, self._rng(SecretBox.NONCE_SIZE)))

        async def work(tx: Transaction) -> None:
            held = await tx.factor(name)
            if held is not None and held.confirmed_at is not None:
                raise Refusal("second factor: there is one already", code="factor_exists", status=409)
            await tx.drop_factor(name)
            await tx.add_factor(Factor(name, sealed, None, 0))

        await self._store.write(work)
        return secret

    async def begun(self, name: str) -> bytes | None:
        """The secret that waits to be confirmed."""
        held = await self._store.factor(name)
        return self._opened(held) if held is not None and held.confirmed_at is None else None

    async def confirm(self, name: str, code: str) -> list[str]:
        """The person's app makes the right codes: the factor counts from now on. Recovery codes, which are shown once.

        Raises:
            Refusal: nothing was begun, or the code is wrong.
        """
        codes = [base64.b32encode(self._rng(_RECOVERY_BYTES)).decode("ascii").lower() for _ in range(RECOVERY_CODES)]
        now = self._clock()

        async def work(tx: Transaction) -> bool:
            held = await tx.factor(name)
            if held is None or held.confirmed_at is not None or not await self._step(tx, held, code, now):
                return False
            await tx.confirm_factor(name, now, [hashed(item) for item in codes])
            user = await tx.user(name)
            if user is not None:
                await note(tx, now, Act.FACTOR_SET, by=user, sites=await sites_of(tx, user))
            return True

        if not await self._store.write(work):
            raise Refusal("code: wrong, or from another minute", code="bad_code", status=422)
        return codes

    async def take(self, tx: Transaction, name: str, code: str, now: datetime) -> bool:
        """Use up a code, or a recovery code; False when it is none, or was used."""
        held = await tx.factor(name)
        if held is None or held.confirmed_at is None:
            return False
        typed = "".join(code.split()).lower()
        return await self._step(tx, held, typed, now) or await tx.use_recovery_code(name, hashed(typed), now)

    async def reset(self, name: str) -> None:
        """The person has none from now on, and every session ends: the phone is lost.

        Raises:
            Refusal: the person has none.
        """
        now = self._clock()

        async def work(tx: Transaction) -> bool:
            held = await tx.factor(name)
            await tx.drop_factor(name)
            await tx.end_credentials(name, now, tokens=False)
            user = await tx.user(name)
            if held is not None and user is not None:
                sites, subject = await sites_of(tx, user), user.person_id
                await note(tx, now, Act.FACTOR_RESET, by=None, sites=sites, subject=subject, said=name)
            return held is not None

        if not await self._store.write(work):
            raise Refusal(f"name: {name} has no second factor", code="no_factor", status=404)

    async def _step(self, tx: Transaction, held: Factor, code: str, now: datetime) -> bool:
        step = totp.matching_step(self._opened(held), code, now)
        return step is not None and await tx.use_step(held.name, step)

    def _opened(self, held: Factor) -> bytes:
        try:
            return self._box.decrypt(held.sealed)
        except (CryptoError, ValueError) as error:
            raise StorageError(
                f"second factor of {held.name}: is sealed under another key than keys/factors.key",
                code="factor_key_lost",
                hint="bring that file back from the backup, or `server user reset-factor`",
            ) from error
