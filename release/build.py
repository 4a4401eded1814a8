"""Builds the wheel and the Debian package: `./run wheel`, `./run deb`. The same tree gives the same bytes, wherever it is built.

The Debian package holds a virtual environment of its own under /usr/lib/compliance-agent: the locked requirements, each checked
against its hash, and the wheel. Times in it are SOURCE_DATE_EPOCH's (reproducible-builds.org), by default that of the last commit.
It is for one release of Python, because compiled packages are; `Depends:` says which.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import json
import os
import shutil
import string
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from datetime import UTC, datetime
from email.utils import format_datetime
from pathlib import Path

from release import manual, materials

ROOT = Path(__file__).resolve().parents[1]
DEBIAN = ROOT / "release" / "debian"
UNITS = ROOT / "compliance_agent" / "units"
NAME = "compliance-agent"
MODULE = "compliance_agent"
HOME = f"usr/lib/{NAME}"
SCRIPTS = ("postinst", "prerm", "postrm")
RELEASES = {"3.11": "bookworm", "3.13": "trixie"}  # Python -> the Debian release that has it
# What an installer leaves behind about the machine it ran on.
OF_THIS_MACHINE = ("direct_url.json", "uv_cache.json", "REQUESTED")
LAUNCHER = f"""#!/{HOME}/bin/python3 -I
import sys

from compliance_agent.cli import main

sys.exit(main())
"""


def epoch() -> str:
    """Seconds since 1970 that stand for the time of everything built."""
    given = os.environ.get("SOURCE_DATE_EPOCH")
    if given is None:
        words = ("git", "-C", str(ROOT), "log", "-1", "--format=%ct")
        asked = subprocess.run(words, capture_output=True, text=True, check=False)
        given = asked.stdout.strip()
    if not given.isdecimal():
        sys.exit("error: no time to build with: this is no git checkout, so set SOURCE_DATE_EPOCH (seconds since 1970)")
    return given


def wheel(out: Path, when: str) -> Path:
    """Build the wheel into a directory."""
    out.mkdir(parents=True, exist_ok=True)
    constraints = ROOT / "requirements" / "build.txt"
    with tempfile.TemporaryDirectory(dir=out) as made:
        uv("build", "--wheel", "--out-dir", made, "--build-constraints", str(constraints), str(ROOT), when=when)
        (built,) = Path(made).glob("*.whl")
        return built.replace(out / built.name)


def code_of(built: Path) -> str:
    """The digest of the program's code that every bundle names (`agent.sha256`), from the wheel."""
    with zipfile.ZipFile(built) as archive:
        names = (name for name in archive.namelist() if name.startswith(f"{MODULE}/") and name.endswith(".py"))
        files = {f"./{name.removeprefix(f'{MODULE}/')}": archive.read(name) for name in names}
    lines = (f"{hashlib.sha256(files[name]).hexdigest()}  {name}\n" for name in sorted(files))
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def deb(out: Path, when: str, python: str, level: int) -> tuple[Path, str]:
    """Build the Debian package, for this machine's architecture, into a directory; it, and the digest of the code in it."""
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out) as scratch:
        stage = Path(scratch, "stage")
        built = wheel(Path(scratch), when)
        version = built.name.split("-")[1]
        fill(stage, built, python, when)
        arch = said("dpkg", "--print-architecture")
        control(stage, python, version, arch, when)
        settle(stage, int(when))
        place = out / f"{NAME}_{version}~{RELEASES[python]}_{arch}.deb"
        part = Path(scratch, place.name)
        packed = ("dpkg-deb", "--root-owner-group", "-Zxz", f"-z{level}", "--build", str(stage), str(part))
        run(packed, when=when)
        return part.replace(place), code_of(built)


def fill(stage: Path, built: Path, python: str, when: str) -> None:
    """Everything below / that the package brings."""
    home = stage / HOME
    packages = home / "lib" / f"python{python}" / "site-packages"
    add = (
        *("pip", "install", "--link-mode", "copy", "--python", sys.executable, "--python-version", python),
        *("--only-binary", ":all:", "--target", str(packages)),
    )
    uv(*add, "--require-hashes", "-r", str(ROOT / "requirements" / "agent.txt"), when=when)
    uv(*add, "--no-deps", str(built), when=when)
    shutil.rmtree(packages / "bin")
    (packages / ".lock").unlink(missing_ok=True)
    for record in sorted(packages.glob("*.dist-info/RECORD")):
        forget(record)
    (home / "bin").mkdir()
    (home / "bin" / "python3").symlink_to(f"../../../bin/python{python}")
    (home / "pyvenv.cfg").write_text("home = /usr/bin\ninclude-system-site-packages = false\n", "ascii")
    put(stage / "usr/bin" / NAME, LAUNCHER, mode=0o755)
    for unit in sorted(UNITS.iterdir()):
        put(stage / "lib/systemd/system" / unit.name, unit.read_text("ascii"))
    for kind in ("sysusers", "tmpfiles"):
        put(stage / f"usr/lib/{kind}.d/{NAME}.conf", (DEBIAN / f"{kind}.conf").read_text("ascii"))
    for place, text in manual.completions().items():
        put(stage / place, text)
    for place, text in manual.pages(int(when)).items():
        squeeze(stage / f"{place}.gz", text)
    bill = materials.bill(packages, int(when))
    put(stage / "usr/share/doc" / NAME / "sbom.cdx.json", json.dumps(bill, indent=1, sort_keys=True) + "\n")
    put(stage / "usr/share/doc" / NAME / "copyright", (DEBIAN / "copyright").read_text("ascii"))
    put(stage / "usr/share/lintian/overrides" / NAME, (DEBIAN / "lintian-overrides").read_text("ascii"))


def forget(record: Path) -> None:
    """Take out what names this machine, and the programs that are not shipped, also from the list of what is installed."""
    info = record.parent
    for name in OF_THIS_MACHINE:
        (info / name).unlink(missing_ok=True)
    gone = tuple(f"{info.name}/{name}," for name in OF_THIS_MACHINE)
    kept = [line for line in record.read_text("utf-8").splitlines() if not line.startswith((*gone, "bin/", "../"))]
    record.write_text("\n".join(sorted(kept)) + "\n", "utf-8")


def changelog(version: str, when: int) -> str:
    """In Debian's form: this version alone, for what changed for its users is said in one place."""
    text = (DEBIAN / "control").read_text("utf-8")
    (maintainer,) = (line.partition(": ")[2] for line in text.splitlines() if line.startswith("Maintainer: "))
    dated = format_datetime(datetime.fromtimestamp(when, UTC))
    said = "  * What changed: CHANGELOG.md of the source."
    return f"{NAME} ({version}) unstable; urgency=medium\n\n{said}\n\n -- {maintainer}  {dated}\n"


def control(stage: Path, python: str, version: str, arch: str, when: str) -> None:
    """What dpkg reads: the control file, the scripts, and the digest of every file."""
    place = stage / "DEBIAN"
    version = f"{version}~{RELEASES[python]}"
    squeeze(stage / "usr/share/doc" / NAME / "changelog.gz", changelog(version, int(when)))
    major, minor = python.split(".")
    values = {
        "version": version,
        "arch": arch,
        "python": python,
        "next": f"{major}.{int(minor) + 1}",
        "size": str(sum(path.lstat().st_size for path in files(stage)) // 1024),
    }
    put(place / "control", string.Template((DEBIAN / "control").read_text("utf-8")).substitute(values))
    for script in SCRIPTS:
        text = (DEBIAN / script).read_text("ascii").replace("@PYTHON@", python)
        put(place / script, text, mode=0o755)
    sums = [
        f"{hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest()}  {path.relative_to(stage)}\n"
        for path in files(stage)
        if not path.is_symlink() and place not in path.parents
    ]
    put(place / "md5sums", "".join(sums))


def files(stage: Path) -> Iterator[Path]:
    """Files and links, in an order of their own."""
    return (path for path in sorted(stage.rglob("*")) if path.is_symlink() or not path.is_dir())


def settle(stage: Path, when: int) -> None:
    """Modes and times that do not depend on who built it, when and with which umask."""
    for path in (stage, *stage.rglob("*")):
        if not path.is_symlink():
            program = path.parent in {stage / "usr/bin", stage / "DEBIAN"} and path.stat().st_mode & 0o100
            runs = path.is_dir() or program
            path.chmod(0o755 if runs else 0o644)
        os.utime(path, (when, when), follow_symlinks=False)


def put(path: Path, text: str, mode: int = 0o644) -> None:
    """Write a file of the package."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, "utf-8")
    path.chmod(mode)


def squeeze(path: Path, text: str) -> None:
    """Write a compressed file of the package."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(text.encode("utf-8"), mtime=0))


def uv(*words: str, when: str) -> None:
    """Run the installer."""
    run((os.environ.get("UV", "uv"), *words, "--quiet"), when=when)


def run(words: tuple[str, ...], when: str) -> None:
    """Run a program that has to succeed; its own words come out when it does not."""
    done = subprocess.run(
        words, env={**os.environ, "SOURCE_DATE_EPOCH": when}, check=False, capture_output=True, text=True
    )
    if done.returncode != 0:
        sys.exit(f"error: {' '.join(words[:3])}: exit status {done.returncode}\n{done.stdout}{done.stderr}")


def said(*words: str) -> str:
    """What a program prints."""
    return subprocess.run(words, capture_output=True, text=True, check=True).stdout.strip()


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="./run", description=__doc__)
    parser.add_argument("what", choices=("wheel", "deb"))
    parser.add_argument("--out", type=Path, default=ROOT / "dist", help="directory, dist/ by default")
    parser.add_argument("--python", choices=sorted(RELEASES), default="3.11", help="of the Debian package")
    parser.add_argument("--level", type=int, choices=range(10), default=6, help="of compression of the Debian package")
    asked = parser.parse_args()
    if asked.what == "deb" and shutil.which("dpkg-deb") is None:
        sys.exit("error: dpkg-deb is not here; apt-get install dpkg")
    when = epoch()
    if asked.what == "wheel":
        built = wheel(asked.out, when)
        code = code_of(built)
    else:
        built, code = deb(asked.out, when, asked.python, asked.level)
    digest = hashlib.sha256(built.read_bytes()).hexdigest()
    sys.stdout.write(f"{digest}  {built}\n{code}  its code, as each bundle says in agent.sha256\n")


if __name__ == "__main__":
    main()
