"""Time-based one-time codes (RFC 6238): six digits, SHA-1, thirty seconds, as every authenticator app makes them. Pure.

A code names its time step. Who keeps the last step that was used refuses a code that is seen again, and everything before it.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import re
from datetime import datetime
from urllib.parse import quote

STEP_S = 30
DIGITS = 6
SECRET_BYTES = 20
DRIFT = 1  # steps that a phone's clock may be off, either way
_CODE = re.compile(r"[0-9]{6}")


def code_at(secret: bytes, step: int, *, digits: int = DIGITS, algorithm: str = "sha1") -> str:
    """The code of one time step (RFC 4226, section 5.3)."""
    mac = hmac.digest(secret, step.to_bytes(8, "big"), getattr(hashlib, algorithm))
    at = mac[-1] & 0x0F
    number = int.from_bytes(mac[at : at + 4], "big") & 0x7FFF_FFFF
    return str(number % 10**digits).zfill(digits)


def step_of(now: datetime) -> int:
    """The time step that now is in."""
    return int(now.timestamp()) // STEP_S


def matching_step(secret: bytes, code: str, now: datetime) -> int | None:
    """The step whose code this is, at most DRIFT steps from now; None when there is none. Takes as long for either."""
    if not _CODE.fullmatch(code):
        return None
    found = None
    for step in range(step_of(now) - DRIFT, step_of(now) + DRIFT + 1):
        if hmac.compare_digest(code_at(secret, step), code):
            found = step
    return found


def spelled(secret: bytes) -> str:
    """The secret as people type it into an app."""
    return base64.b32encode(secret).decode("ascii").rstrip("=")


def uri(secret: bytes, issuer: str, name: str) -> str:
    """The address that an authenticator app opens."""
    label = f"{quote(issuer, safe='')}:{quote(name, safe='@')}"
    return f"otpauth://totp/{label}?secret={spelled(secret)}&issuer={quote(issuer, safe='')}&period={STEP_S}"
