"""What the programs of looks read of the file system: all that may change their answers, for those of which that can be said.

A program that is not in here, or is asked in another way, is run each time. So is one whose settings lead to files that are
not foreseen here: then the answer is None, as it is for whatever could not be made out.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path

from compliance_agent.core import file_lists, packages, sshd
from compliance_agent.dataclass import dataclass
from compliance_agent.errors import CannotTell

DPKG = "/var/lib/dpkg"
_BOOKS = (DPKG, f"{DPKG}/updates", f"{DPKG}/triggers")
_APT = tuple(f"/etc/apt{part}" for part in ("", "/apt.conf.d", "/preferences.d", "/sources.list.d", "/trusted.gpg.d"))
_APT_LISTS = (packages.APT_LISTS, "/var/lib/apt")
_ELSEWHERE = re.compile(rb"\bdir\b|rootdir|#include", re.IGNORECASE)  # apt.conf(5): other places, other files
_HOST_KEY = re.compile(r"[ \t]*hostkey[ \t=]+\"?(\S*)", re.IGNORECASE)
_SSH = "/etc/ssh"
_PRIVILEGE_SEPARATION = ("/run/sshd", "/var/empty", "/usr/share/empty.sshd")  # sshd says nothing without its own
_MOST_BYTES = 1 << 20


@dataclass(frozen=True)
class Reads:
    """Paths that a program reads.

    Attributes:
        whole: files, and directories with what stands directly in them; all of them must be there.
        present: of which only matters what they are and whose, or that they are not there.
        listed: directories whose files `*.list` hold a path in each line.
        alone: a file that holds further such paths.
    """

    whole: tuple[str, ...] = ()
    present: tuple[str, ...] = ()
    listed: str | None = None
    alone: str | None = None


def may_be_kept(argv: Sequence[str]) -> bool:
    """Whether what it reads is known at all."""
    return tuple(argv) in _EXACT or tuple(argv[:2]) == sshd.EFFECTIVE or tuple(argv[:1]) == ("restic",)


def reads_of(argv: Sequence[str]) -> Reads | None:
    """What this program reads when it is asked this, besides itself and its libraries; None when that cannot be said. Blocks.

    Raises:
        OSError: what it depends on cannot be looked at.
    """
    find = _EXACT.get(tuple(argv))
    if find is not None:
        return find()
    if tuple(argv[:2]) == sshd.EFFECTIVE:
        return _sshd(bool(argv[2:]))
    return _restic(argv) if argv[0] == "restic" else None


def _books() -> Reads:
    return Reads(_BOOKS)


def _verify() -> Reads:
    whole = (*_BOOKS, f"{DPKG}/info", "/etc/dpkg", "/etc/dpkg/dpkg.cfg.d")
    return Reads(whole, listed=f"{DPKG}/info", alone=f"{DPKG}/diversions")


def _apt() -> Reads | None:
    for path in (Path("/etc/apt/apt.conf"), *Path(_APT[1]).iterdir()):
        if path.exists() and _ELSEWHERE.search(_bytes(path)):
            return None
    return Reads((*_BOOKS, *_APT, *_APT_LISTS))


def _sshd(of_user: bool) -> Reads | None:
    """Its files, what they include, and the directory of its keys. For an account not where a block may ask for its groups."""
    waiting, found = [sshd.CONFIG], list[str]()
    while waiting:
        path = waiting.pop()
        if path in found:
            continue
        if len(found) > sshd.MOST_FILES:
            return None
        found.append(path)
        text = _bytes(Path(path)).decode("utf-8", "replace")
        try:
            file = sshd.read_file(text)
        except CannotTell:
            return None
        keys = (match[1] for line in text.splitlines() if (match := _HOST_KEY.match(line)))
        if (of_user and file.blocks) or any(key.rpartition("/")[0] != _SSH for key in keys):
            return None
        for pattern in file.includes:
            directory, _, name = (pattern if pattern.startswith("/") else f"{_SSH}/{pattern}").rpartition("/")
            if set("*?[") & set(directory):
                return None
            found.append(directory)
            waiting += [str(path) for path in Path(directory).glob(name)]
    accounts = ("/etc/passwd", "/etc/group", "/etc/nsswitch.conf") if of_user else ()
    return Reads(tuple(dict.fromkeys((_SSH, *found, *accounts))), _PRIVILEGE_SEPARATION)


def _restic(argv: Sequence[str]) -> Reads | None:
    """What a list of snapshots is made of, where the repository is a directory of this host."""
    if tuple(argv) == ("restic", "version"):
        return Reads()
    match list(argv):
        case ["restic", "--repo", str(place), "--password-file", str(word), "--no-lock", "--no-cache", "snapshots", *_]:
            if place.startswith("/") and word.startswith("/"):
                return Reads((f"{place}/config", f"{place}/keys", f"{place}/snapshots", word))
    return None


def _bytes(path: Path) -> bytes:
    with path.open("rb") as file:
        content = file.read(_MOST_BYTES + 1)
    if len(content) > _MOST_BYTES:
        raise OSError(f"{path}: longer than expected")
    return content


_EXACT: dict[tuple[str, ...], Callable[[], Reads | None]] = {
    packages.DPKG_STATES: _books,
    packages.APT_UPGRADABLE: _apt,
    file_lists.VERIFY: _verify,
}
