"""The bill of materials of the Debian package: CycloneDX 1.6, read off what was installed into it, not off what was asked for.

Each component has the digest of its RECORD, which lists its files with their digests (PyPA, "Recording installed projects"). Who
has the package can check that list against the files, and the digest against this bill.
"""

from __future__ import annotations

import hashlib
import re
import uuid
from collections.abc import Iterator
from datetime import UTC, datetime
from importlib.metadata import Distribution, distributions
from pathlib import Path
from typing import Any

NAME = "compliance-agent"
NAMESPACE = uuid.UUID("9a0c5b1e-52b3-5f0e-8a3c-2d1f6b7c4e90")  # of this project's bills


def bill(packages: Path, when: int) -> dict[str, Any]:
    """What a directory of installed packages holds.

    Args:
        packages: a `site-packages`.
        when: seconds since 1970 that stand in it as its time.
    """
    found = {_canonical(one.name): one for one in distributions(path=[str(packages)])}
    components = {name: _component(name, found[name]) for name in sorted(found)}
    subject = components.pop(NAME)
    everything = "\n".join(f"{one['bom-ref']} {one['hashes'][0]['content']}" for one in (subject, *components.values()))
    return {
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "serialNumber": f"urn:uuid:{uuid.uuid5(NAMESPACE, everything)}",
        "version": 1,
        "metadata": {
            "timestamp": datetime.fromtimestamp(when, UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
            "component": subject | {"type": "application"},
        },
        "components": list(components.values()),
        "dependencies": [
            {"ref": _purl(name, one.version), "dependsOn": sorted(set(_needs(one, found)))}
            for name, one in sorted(found.items())
        ],
    }


def _component(name: str, one: Distribution) -> dict[str, Any]:
    record = one.read_text("RECORD")
    if record is None:
        raise RuntimeError(f"{name}: no RECORD")
    purl, licence = _purl(name, one.version), one.metadata["License-Expression"] or one.metadata["License"]
    known: dict[str, Any] = {}
    if licence and len(licence) <= 200:  # some put the whole text there
        known = {
            "licenses": [
                {"expression": licence} if one.metadata["License-Expression"] else {"license": {"name": licence}}
            ]
        }
    return {
        "type": "library",
        "bom-ref": purl,
        "name": name,
        "version": one.version,
        "purl": purl,
        "hashes": [{"alg": "SHA-256", "content": hashlib.sha256(record.encode("utf-8")).hexdigest()}],
        **known,
    }


def _needs(one: Distribution, found: dict[str, Distribution]) -> Iterator[str]:
    """What it asks for and has here: neither what belongs to an extra, nor what another system would need."""
    for line in one.requires or ():
        wanted, _, marker = line.partition(";")
        name = _canonical(re.split(r"[^A-Za-z0-9._-]", wanted.strip(), maxsplit=1)[0])
        if name in found and "extra" not in marker:
            yield _purl(name, found[name].version)


def _canonical(name: str) -> str:
    """A project's name as it is compared (PyPA, "Names and normalization")."""
    return re.sub(r"[-_.]+", "-", name).lower()


def _purl(name: str, version: str) -> str:
    return f"pkg:pypi/{name}@{version}"
