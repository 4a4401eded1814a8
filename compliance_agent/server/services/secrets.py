"""Random secrets that callers carry: made once, shown once, kept only as SHA-256.

They have 256 random bits, so a plain hash is enough (a password has not, and is hashed with argon2id in `users`).
"""

from __future__ import annotations

import base64
import hashlib
import secrets
from collections.abc import Callable

Rng = Callable[[int], bytes]  # n random bytes; secrets.token_bytes outside of tests

API_KEY_PREFIX = "cak1."
OPERATOR_PREFIX = "cao1."


def new_secret(prefix: str, rng: Rng = secrets.token_bytes) -> str:
    """A secret of 256 random bits as text."""
    return prefix + base64.urlsafe_b64encode(rng(32)).decode("ascii").rstrip("=")


def from_base64url(text: str) -> bytes:
    """The bytes; ValueError when it is not base64url without padding."""
    if not text.isascii() or not text.replace("-", "a").replace("_", "a").isalnum():
        raise ValueError("not base64url")
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))


def hashed(secret: str | bytes) -> str:
    """What the database keeps of a secret."""
    return hashlib.sha256(secret.encode("utf-8", "surrogatepass") if isinstance(secret, str) else secret).hexdigest()
