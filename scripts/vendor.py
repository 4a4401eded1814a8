#!/usr/bin/env python3
"""Copies what the viewer takes from npm into the tree, so that building and running it needs no node.

    scripts/vendor.py            npm ci of web/package-lock.json, then copy files and licences and write vendor.json
    scripts/vendor.py --check    the same into a scratch directory, and fail if the tree differs
    scripts/vendor.py --offline  hold the committed files against vendor.json only; no npm, no network

vendor.json names each file with its SHA-384 in the form of a Subresource Integrity attribute; the templates read it.
"""

from __future__ import annotations

import argparse
import base64
import filecmp
import hashlib
import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
SHIPPED = Path("compliance_agent/web/static/vendor")
TESTED = Path("tests/web/assets")


class Package(NamedTuple):
    """One npm package: where it goes, under which short name, and the files taken from it (the last is the licence)."""

    npm: str
    name: str
    into: Path
    files: tuple[str, ...]
    licence: str


PACKAGES = (
    Package("@picocss/pico", "pico", SHIPPED, ("css/pico.min.css",), "LICENSE.md"),
    Package("htmx.org", "htmx", SHIPPED, ("dist/htmx.min.js",), "LICENSE"),
    Package("axe-core", "axe", TESTED, ("axe.min.js",), "LICENSE"),
)


def sri(content: bytes) -> str:
    """The `integrity` attribute of a file."""
    return "sha384-" + base64.b64encode(hashlib.sha384(content).digest()).decode()


def install(scratch: Path) -> Path:
    """The node_modules directory of the locked versions, each held against its hash by npm."""
    for name in ("package.json", "package-lock.json", ".npmrc"):
        shutil.copy(ROOT / "web" / name, scratch / name)
    subprocess.run(["npm", "ci", "--silent", "--ignore-scripts"], cwd=scratch, check=True)
    return scratch / "node_modules"


def copy(modules: Path, target: Path) -> None:
    """Write every file, licence and vendor.json under `target`, which stands for the root of the tree."""
    for into in (SHIPPED, TESTED):
        manifest = {}
        for package in (package for package in PACKAGES if package.into == into):
            source = modules / package.npm
            version = json.loads((source / "package.json").read_bytes())["version"]
            folder = f"{package.name}-{version}"
            (target / into / folder).mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source / package.licence, target / into / folder / "LICENSE")
            for file in package.files:
                content = (source / file).read_bytes()
                short = Path(file).name
                (target / into / folder / short).write_bytes(content)
                manifest[short] = {
                    "path": f"{folder}/{short}",
                    "npm": package.npm,
                    "version": version,
                    "integrity": sri(content),
                }
        (target / into / "vendor.json").write_text(json.dumps(manifest, indent=2, sort_keys=True) + "\n")


def damaged() -> list[str]:
    """Committed files that are not what vendor.json says."""
    wrong = []
    for into in (SHIPPED, TESTED):
        for entry in json.loads((ROOT / into / "vendor.json").read_bytes()).values():
            path = ROOT / into / entry["path"]
            if not path.is_file() or sri(path.read_bytes()) != entry["integrity"]:
                wrong.append(str(into / entry["path"]))
    return wrong


def differing(fresh: Path) -> list[str]:
    """Files that a fresh copy has and the tree has not, or has otherwise; and files of the tree that a fresh copy lacks."""
    wrong = []
    for into in (SHIPPED, TESTED):
        new = {path.relative_to(fresh) for path in (fresh / into).rglob("*") if path.is_file()}
        old = {path.relative_to(ROOT) for path in (ROOT / into).rglob("*") if path.is_file()}
        wrong += [str(path) for path in new ^ old]
        wrong += [str(path) for path in new & old if not filecmp.cmp(fresh / path, ROOT / path, shallow=False)]
    return sorted(wrong)


def main() -> int:
    """Copy, or check; 1 and the names of the files when they differ."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--offline", action="store_true")
    asked = parser.parse_args()
    if asked.offline:
        wrong = damaged()
    else:
        with tempfile.TemporaryDirectory() as scratch:
            modules = install(Path(scratch))
            if asked.check:
                fresh = Path(scratch) / "fresh"
                copy(modules, fresh)
                wrong = differing(fresh)
            else:
                for into in (SHIPPED, TESTED):
                    shutil.rmtree(ROOT / into, ignore_errors=True)
                copy(modules, ROOT)
                wrong = damaged()
    for path in wrong:
        print(f"{path}: differs; run scripts/vendor.py", file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
