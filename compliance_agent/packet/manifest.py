"""`MANIFEST.sha256`: the digest of every file, in the form that `sha256sum -c` reads; `MANIFEST.sig` signs it. Pure."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping

from compliance_agent.errors import BadEvidence

MANIFEST, MANIFEST_SIGNATURE = "MANIFEST.sha256", "MANIFEST.sig"
_LINE = re.compile(r"([0-9a-f]{64})  (\S+)")


def manifest(files: Mapping[str, bytes]) -> bytes:
    """The manifest of these files, by path; itself and its signature are not in it."""
    listed = sorted(path for path in files if path not in {MANIFEST, MANIFEST_SIGNATURE})
    return "".join(f"{hashlib.sha256(files[path]).hexdigest()}  {path}\n" for path in listed).encode()


def differences(raw: bytes, files: Mapping[str, bytes]) -> Iterator[tuple[str, str]]:
    """(code, path) for each file that is missing, changed or not listed; code `bad_manifest` for another form."""
    lines = [_LINE.fullmatch(line) for line in raw.decode("utf-8", "replace").splitlines()]
    listed = {line[2]: line[1] for line in lines if line}
    if len(listed) < len(lines) or not raw.endswith(b"\n"):
        raise BadEvidence("manifest is not lines of a digest and a path, each path once", code="bad_manifest")
    here = {path for path in files if path not in {MANIFEST, MANIFEST_SIGNATURE}}
    yield from (("missing_file", path) for path in sorted(listed.keys() - here))
    yield from (("extra_file", path) for path in sorted(here - listed.keys()))
    for path in sorted(here & listed.keys()):
        if hashlib.sha256(files[path]).hexdigest() != listed[path]:
            yield "changed_file", path
