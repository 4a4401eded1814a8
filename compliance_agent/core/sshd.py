"""The OpenSSH server's configuration: what `sshd -T` says is in force, what its files hold, and a policy as a drop-in file.

`sshd -T` resolves every include and default, but shows what a `Match` block changes only for a connection that is named to it. So
the blocks themselves are read as well, and what they loosen is counted whomever they are for.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence

from compliance_agent.dataclass import dataclass
from compliance_agent.errors import CannotTell

CONFIG = "/etc/ssh/sshd_config"
EFFECTIVE = ("sshd", "-T")
MOST_FILES = 64
ROOT_LOGIN = ("no", "prohibit-password", "forced-commands-only", "yes")
NEVER, BY_KEY = "never", "by_key"
ALLOWED_ROOT = {NEVER: {"no"}, BY_KEY: {"no", "prohibit-password", "forced-commands-only"}}

_LINE = re.compile(r"[ \t]*([A-Za-z][A-Za-z0-9]*)(?:[ \t]*=[ \t]*|[ \t]+)(\S.*?)[ \t]*")
_ALGORITHMS = re.compile(r"[A-Za-z0-9@.,-]+")
_YES = {"yes": True, "no": False}
_PASSWORD_WAYS = {"passwordauthentication", "kbdinteractiveauthentication", "challengeresponseauthentication"}


@dataclass(frozen=True)
class Effective:
    """What is in force for a connection.

    Attributes:
        passwords: a password (or what PAM asks for) is enough to log in.
        key_required: every way in needs a key, whatever is asked for beside it.
        root_login: one of ROOT_LOGIN.
        host_based: another host's word for who its user is may be enough.
        strict_modes: keys of an account count only where nobody else may write them.
        key_files: where keys of an account may stand, as patterns with %h and %u; none when keys are not taken.
        keys_elsewhere: a program or a certificate authority says which keys are good.
    """

    passwords: bool
    key_required: bool
    empty_passwords: bool
    root_login: str
    host_based: bool
    strict_modes: bool
    ciphers: tuple[str, ...]
    macs: tuple[str, ...]
    kex: tuple[str, ...]
    host_keys: tuple[str, ...]
    key_files: tuple[str, ...]
    keys_elsewhere: bool


def for_user(name: str) -> tuple[str, ...]:
    """The question for what is in force for one account, from an address that is nobody's (RFC 5737)."""
    return (*EFFECTIVE, "-C", f"user={name},host=host.invalid,addr=192.0.2.1,laddr=192.0.2.2,lport=22")


def read_effective(text: str) -> Effective:
    """The output of `sshd -T`.

    Raises:
        CannotTell: `unparsable`; a word is missing or not one that sshd prints.
    """
    said: dict[str, list[str]] = {}
    for line in text.splitlines():
        word, _, value = line.partition(" ")
        said.setdefault(word, []).append(value)
    methods = _one(said, "authenticationmethods")
    by_key = methods != "any" and all("publickey" in _names(way) for way in methods.split())
    passwords = _yes(said, "passwordauthentication") or _yes(said, "kbdinteractiveauthentication")
    root_login = _one(said, "permitrootlogin").replace("without-password", "prohibit-password")
    if root_login not in ROOT_LOGIN or not said.get("hostkey"):
        raise CannotTell("unparsable", "sshd -T: expected permitrootlogin and host keys in known words")
    files = _one(said, "authorizedkeysfile").split()
    return Effective(
        passwords=passwords and not by_key,
        key_required=by_key,
        empty_passwords=_yes(said, "permitemptypasswords"),
        root_login=root_login,
        host_based=_yes(said, "hostbasedauthentication") and not by_key,
        strict_modes=_yes(said, "strictmodes"),
        ciphers=_list(said, "ciphers"),
        macs=_list(said, "macs"),
        kex=_list(said, "kexalgorithms"),
        host_keys=tuple(said["hostkey"]),
        key_files=tuple(files) if _yes(said, "pubkeyauthentication") and files != ["none"] else (),
        keys_elsewhere=any(_one(said, word) != "none" for word in ("authorizedkeyscommand", "trustedusercakeys")),
    )


def listens(text: str) -> tuple[str, str]:
    """A loopback address and port on which the daemon should answer, from `sshd -T`.

    Raises:
        CannotTell: `unparsable`.
    """
    found = re.search(r"^listenaddress (\[[0-9a-fA-F:.]+\]|[0-9.]+):(\d{1,5})$", text, re.MULTILINE)
    if found is None:
        raise CannotTell("unparsable", "sshd -T: expected a listenaddress with its port")
    address = found[1].strip("[]")
    return {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(address, address), found[2]  # noqa: S104 - an answer, not bound


def _one(said: Mapping[str, list[str]], word: str) -> str:
    values = said.get(word, [])
    if len(values) != 1 or not values[0]:
        raise CannotTell("unparsable", f"sshd -T: expected {word} once")
    return values[0]


def _yes(said: Mapping[str, list[str]], word: str) -> bool:
    answer = _YES.get(_one(said, word))
    if answer is None:
        raise CannotTell("unparsable", f"sshd -T: expected {word} yes or no")
    return answer


def _list(said: Mapping[str, list[str]], word: str) -> tuple[str, ...]:
    value = _one(said, word)
    if not _ALGORITHMS.fullmatch(value):
        raise CannotTell("unparsable", f"sshd -T: expected {word} as names joined by commas")
    return tuple(value.split(","))


def _names(way: str) -> set[str]:
    return {name.partition(":")[0] for name in way.split(",")}


@dataclass(frozen=True)
class File:
    """One file of the configuration: the patterns it includes, and its `Match` blocks as keyword and value, lower case."""

    includes: tuple[str, ...]
    blocks: tuple[tuple[tuple[str, str], ...], ...]

    def loosened(self, *, passwords: bool, root_login: str) -> int:
        """Blocks that allow what the policy does not."""
        return sum(any(_loosens(line, passwords, root_login) for line in block) for block in self.blocks)


def read_file(text: str) -> File:
    """One configuration file.

    Raises:
        CannotTell: `unparsable`; a line is not a keyword with a value.
    """
    includes: list[str] = []
    blocks: list[list[tuple[str, str]]] = []
    for keyword, value in _lines(text):
        if keyword == "match":
            blocks.append([])
        elif keyword == "include":
            includes += value.split()
        elif blocks:
            blocks[-1].append((keyword, value.lower()))
    return File(tuple(includes), tuple(tuple(block) for block in blocks))


def _lines(text: str) -> Iterator[tuple[str, str]]:
    for line in text.splitlines():
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        found = _LINE.fullmatch(line)
        if found is None:
            raise CannotTell("unparsable", "a line of sshd's configuration is no keyword with a value")
        yield found[1].lower(), found[2].replace('"', "")


def _loosens(line: tuple[str, str], passwords: bool, root_login: str) -> bool:
    keyword, value = line
    if keyword in _PASSWORD_WAYS:
        return value == "yes" and not passwords
    if keyword == "permitrootlogin":
        return value.replace("without-password", "prohibit-password") not in ALLOWED_ROOT[root_login]
    return keyword in {"permitemptypasswords", "hostbasedauthentication"} and value == "yes"


def drop_in(
    *, passwords: bool, root_login: str, ciphers: Sequence[str], macs: Sequence[str], kex: Sequence[str]
) -> bytes:
    """The policy as a configuration file.

    Raises:
        ValueError: a word that is none of sshd's, or no algorithm of a kind.
    """
    lists = {"Ciphers": ciphers, "MACs": macs, "KexAlgorithms": kex}
    if root_login not in ALLOWED_ROOT:
        raise ValueError("root_login: expected never or by_key")
    if not all(names and _ALGORITHMS.fullmatch(",".join(names)) for names in lists.values()):
        raise ValueError("expected at least one algorithm of each kind, by names that sshd knows")
    lines = [
        "# Written by compliance-agent (ssh_access). Change the baseline, not this file.",
        f"PermitRootLogin {'no' if root_login == NEVER else 'prohibit-password'}",
        "PermitEmptyPasswords no",
        "HostbasedAuthentication no",
        "StrictModes yes",
        *([] if passwords else ["PasswordAuthentication no", "KbdInteractiveAuthentication no"]),
        *(f"{keyword} {','.join(names)}" for keyword, names in lists.items()),
    ]
    return ("\n".join(lines) + "\n").encode("ascii")
