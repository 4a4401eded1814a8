"""/etc/passwd, /etc/shadow and /etc/group as records. Names in them are the host's own and never leave it."""

from __future__ import annotations

import re
from collections.abc import Iterator

from compliance_agent.dataclass import dataclass
from compliance_agent.errors import CannotTell

MOST_ID = 2**32 - 1
NO_LOGIN = ("nologin", "false", "sync", "halt", "shutdown")
_SCHEMES = {"y": "yescrypt", "gy": "gost_yescrypt", "7": "scrypt", "6": "sha512", "5": "sha256", "1": "md5"}
_NUMBER = re.compile(r"[0-9]{1,10}")
_DAYS = re.compile(r"-?[0-9]{0,9}")


@dataclass(frozen=True)
class Account:
    """A line of /etc/passwd. `hash` is x where the shadow file has it."""

    name: str
    hash: str
    uid: int
    gid: int
    home: str
    shell: str


@dataclass(frozen=True)
class Shadow:
    """A line of /etc/shadow: the hash (or what stands for one) and the password's ageing, in days; None for unset."""

    name: str
    hash: str
    changed_day: int | None
    max_days: int | None


@dataclass(frozen=True)
class Group:
    """A line of /etc/group."""

    name: str
    gid: int
    members: tuple[str, ...]


def read_passwd(text: str) -> tuple[Account, ...]:
    """Every account, in order.

    Raises:
        CannotTell: `unparsable`; also when there is no account of root, which every host has.
    """
    found = tuple(
        Account(name, hashed, _number(uid), _number(gid), home, shell)
        for name, hashed, uid, gid, _, home, shell in _records(text, 7, "/etc/passwd")
    )
    if not any(account.name == "root" for account in found):
        raise CannotTell("unparsable", "/etc/passwd: expected an account root")
    return found


def read_shadow(text: str) -> tuple[Shadow, ...]:
    """Every line of the shadow file.

    Raises:
        CannotTell: `unparsable`.
    """
    return tuple(
        Shadow(name, hashed, _days(changed), _days(most))
        for name, hashed, changed, _, most, *_ in _records(text, 9, "/etc/shadow")
    )


def read_group(text: str) -> tuple[Group, ...]:
    """Every group.

    Raises:
        CannotTell: `unparsable`.
    """
    return tuple(
        Group(name, _number(gid), tuple(member for member in members.split(",") if member))
        for name, _, gid, members in _records(text, 4, "/etc/group")
    )


def may_log_in(account: Account) -> bool:
    """Whether the account's shell is one that a person gets a prompt from."""
    return account.shell.rpartition("/")[2] not in NO_LOGIN


def _records(text: str, fields: int, path: str) -> Iterator[list[str]]:
    if not text.endswith("\n"):
        raise CannotTell("unparsable", f"{path}: expected whole lines")
    for line in text.split("\n")[:-1]:
        if not line or line[0] in "#+-":  # comments, and entries of NIS, which hold no account of this host
            continue
        record = line.split(":")
        if len(record) != fields or not record[0]:
            raise CannotTell("unparsable", f"{path}: expected lines of {fields} fields")
        yield record


def _number(text: str) -> int:
    if not _NUMBER.fullmatch(text) or int(text) > MOST_ID:
        raise CannotTell("unparsable", "expected a numeric id")
    return int(text)


def _days(text: str) -> int | None:
    if not _DAYS.fullmatch(text) or text == "-":
        raise CannotTell("unparsable", "/etc/shadow: expected a number of days")
    return int(text) if text else None


def usable(hashed: str) -> bool:
    """Whether some password matches it: locked and starred ones match none."""
    return bool(hashed) and hashed[0] not in "!*" and hashed != "x"


def scheme_of(hashed: str) -> str:
    """How a password was hashed; `other` for what crypt(5) does not call by a known prefix (old DES above all)."""
    word = hashed.split("$")[1] if hashed.startswith("$") and hashed.count("$") > 1 else ""
    return "bcrypt" if word.startswith("2") else _SCHEMES.get(word, "other")
