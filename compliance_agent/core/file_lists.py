"""Lists of files with what they should be: manifests as `sha256sum` writes them, and what `dpkg --verify` finds.

`dpkg --verify` says nothing when all is well, and nothing of a package whose digests are gone; so packages are counted beside it.
Paths are the host's own: they are compared and counted, and never recorded.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Mapping
from types import MappingProxyType

from compliance_agent.core.tools import unparsable
from compliance_agent.dataclass import dataclass
from compliance_agent.errors import CannotTell

VERIFY = ("dpkg", "--verify", "--verify-format", "rpm")
MOST_FILES = 4096
_MANIFEST_LINE = re.compile(r"([0-9a-f]{64}) [ *](/[^\0]*)")
# Nine places, the third of which is the digest's; `c` marks a configuration file; a missing one may have an error in words.
_VERIFY_LINE = re.compile(r"(missing  |\?\?[?.5][?.A-Za-z0-9]{6}) ([ c]) (/.*)")
_ERROR = re.compile(r" \([A-Z][a-z ]+\)$")


@dataclass(frozen=True)
class Verified:
    """Files of packages that are not as they were packed: programs and data, and configuration beside them."""

    changed: int = 0
    missing: int = 0
    config_changed: int = 0
    config_missing: int = 0


@functools.lru_cache(maxsize=1)  # nearly always the same text as at the look before
def read_manifest(text: str) -> Mapping[str, str]:
    """SHA-256 by absolute path; not to be changed.

    Raises:
        CannotTell: `unparsable`, also for an empty list, a path that stands twice, and names that sha256sum had to escape.
    """
    found: dict[str, str] = {}
    for line in text.removesuffix("\n").split("\n"):
        match = _MANIFEST_LINE.fullmatch(line)
        if match is None or match[2] in found:
            raise unparsable("manifest", "lines of sha256sum with absolute paths, each path once")
        found[match[2]] = match[1]
    if len(found) > MOST_FILES:
        raise CannotTell("output_too_large", f"manifest: more than {MOST_FILES} files")
    return MappingProxyType(found)


def read_verify(text: str) -> Verified:
    """What `dpkg --verify` complains of, counted.

    Raises:
        CannotTell: `unparsable`; `not_permitted` when it could not look at a file that is there.
    """
    if text and not text.endswith("\n"):
        raise unparsable("dpkg", "whole lines")
    counts = {("5", " "): 0, ("m", " "): 0, ("5", "c"): 0, ("m", "c"): 0}
    for line in text.split("\n")[:-1]:
        match = _VERIFY_LINE.fullmatch(line)
        if match is None:
            raise unparsable("dpkg", "lines of nine places, a mark and a path")
        what = "m" if match[1] == "missing  " else match[1][2]
        if what == "?" or _ERROR.search(match[3]):
            raise CannotTell("not_permitted", "dpkg: a file could not be looked at")
        if what == ".":
            raise unparsable("dpkg", "a digest that differs")
        counts[what, match[2]] += 1
    return Verified(*counts.values())


def unverifiable(names: Iterable[str]) -> int:
    """How many packages of /var/lib/dpkg/info have a list of files and no digests."""
    every = set(names)
    stems = {name.removesuffix(".list") for name in every if name.endswith(".list")}
    return sum(f"{stem}.md5sums" not in every for stem in stems)
