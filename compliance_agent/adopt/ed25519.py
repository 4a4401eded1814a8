"""Ed25519 signatures, verified strictly (RFC 8032, 5.1.7), in whole numbers and nothing else.

Refused are what RFC 8032 lets pass or leaves open, as libsodium refuses it (`crypto.verify`): S that is not below the order, a
point that is spelt in another way than the one, and a key or an R of small order. Nothing here is secret, so nothing takes care of
time; a signature takes a few milliseconds. Points are (X, Y, Z, T) with x = X/Z, y = Y/Z, xy = T/Z.
"""

from __future__ import annotations

import functools
import hashlib

P = 2**255 - 19
ORDER = 2**252 + 27742317777372353535851937790883648493
D = -121665 * pow(121666, -1, P) % P
ROOT_OF_MINUS_1 = pow(2, (P - 1) // 4, P)
Point = tuple[int, int, int, int]
ZERO: Point = (0, 1, 1, 0)


def verify(public: bytes, signature: bytes, message: bytes) -> bool:
    """Whether this is the signature of exactly these bytes by this raw key."""
    key, point, scalar = _point(public), _point(signature[:32]), int.from_bytes(signature[32:], "little")
    if key is None or point is None or len(signature) != 64 or scalar >= ORDER:
        return False
    hashed = int.from_bytes(hashlib.sha512(signature[:32] + public + message).digest(), "little") % ORDER
    return _same(_times(scalar, BASE), _sum(point, _times(hashed, key)))


@functools.lru_cache(maxsize=256)
def is_key(public: bytes) -> bool:
    """Whether it is a key that a list may name: the one spelling of a point of the group that signatures are made in."""
    point = _point(public)
    return point is not None and _same(_times(ORDER, point), ZERO)


def _point(raw: bytes) -> Point | None:
    """The point that 32 bytes spell; None where they spell none, or one of small order."""
    number = int.from_bytes(raw, "little")
    y, odd = number & (2**255 - 1), number >> 255
    if len(raw) != 32 or y >= P:
        return None
    square = (y * y - 1) * pow(D * y * y + 1, -1, P) % P
    x = pow(square, (P + 3) // 8, P)
    if x * x % P != square:
        x = x * ROOT_OF_MINUS_1 % P
    if x * x % P != square:
        return None
    x = x if x & 1 == odd else P - x  # x = 0 with the bit set is spelt wrongly, and of small order
    point = (x, y, 1, x * y % P)
    return None if _same(_times(8, point), ZERO) else point


def _sum(one: Point, other: Point) -> Point:
    a = (one[1] - one[0]) * (other[1] - other[0]) % P
    b = (one[1] + one[0]) * (other[1] + other[0]) % P
    c, d = 2 * one[3] * other[3] * D % P, 2 * one[2] * other[2] % P
    e, f, g, h = b - a, d - c, d + c, b + a
    return e * f % P, g * h % P, f * g % P, e * h % P


def _times(number: int, point: Point) -> Point:
    found = ZERO
    while number:
        if number & 1:
            found = _sum(found, point)
        point = _sum(point, point)
        number >>= 1
    return found


def _same(one: Point, other: Point) -> bool:
    return (one[0] * other[2] - other[0] * one[2]) % P == 0 and (one[1] * other[2] - other[1] * one[2]) % P == 0


BASE = _point((4 * pow(5, -1, P) % P).to_bytes(32, "little")) or ZERO
