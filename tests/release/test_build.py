"""The wheel and the Debian package: the same bytes from the same tree, and nothing in them of the machine that built them.

The lab installs the Debian package on booted hosts and runs everything else from it (`./run lab`).
"""

from __future__ import annotations

import dataclasses
import gzip
import hashlib
import io
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator

from compliance_agent.cli import COMMANDS
from compliance_agent.config import AgentConfig
from compliance_agent.installed import agent_digest

ROOT = Path(__file__).resolve().parents[2]
DEBIAN = ROOT / "release" / "debian"
WHEN = "1790000000"
SOURCES = (
    "compliance_agent",
    "docs",
    "release",
    "requirements",
    "pyproject.toml",
    "LICENSE",
    "README.md",
    "CHANGELOG.md",
)
pytestmark = [
    pytest.mark.real,
    pytest.mark.xdist_group("release"),
    pytest.mark.skipif(shutil.which("dpkg-deb") is None, reason="no Debian: dpkg-deb is not here"),
]


def built(tree: Path, what: str, out: Path, **changed: str) -> Path:
    """What the script builds from a tree, in an environment with these changes."""
    return Path(printed(tree, what, out, **changed)[1])


def printed(tree: Path, what: str, out: Path, **changed: str) -> list[str]:
    """The words that the script prints: a digest and the file, then the digest of the code in it."""
    uv = os.environ.get("UV") or next(str(path) for path in sorted((ROOT / ".tools").glob("uv-*/bin/uv")))
    environ = {**os.environ, "UV": uv, "SOURCE_DATE_EPOCH": WHEN, **changed}
    words = [sys.executable, "-m", "release.build", what, "--level", "0", "--out", str(out)]
    done = subprocess.run(
        words, env=environ, cwd=tree, capture_output=True, text=True, check=False, timeout=100, umask=0o077
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


@pytest.fixture(scope="module")
def elsewhere(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the tree at another place, with other times and other modes."""
    tree = tmp_path_factory.mktemp("elsewhere") / "tree"
    for name in SOURCES:
        source, target = ROOT / name, tree / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if source.is_dir():
            shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"), copy_function=shutil.copyfile)
        else:
            shutil.copyfile(source, target)
    return tree


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return built(ROOT, "deb", tmp_path_factory.mktemp("here"))


def members(package: Path, part: str) -> Iterator[tarfile.TarInfo]:
    """The entries of one of a package's archives."""
    packed = subprocess.run(["dpkg-deb", f"--{part}-tarfile", str(package)], capture_output=True, check=True).stdout
    with tarfile.open(fileobj=io.BytesIO(packed)) as archive:
        yield from archive


def test_two_builds_are_byte_identical(package: Path, elsewhere: Path, tmp_path: Path) -> None:
    other = built(elsewhere, "deb", tmp_path, TZ="Asia/Tokyo", PYTHONHASHSEED="7", LC_ALL="C")
    assert other.name == package.name
    assert other.read_bytes() == package.read_bytes()


def test_the_digest_of_the_code_is_what_an_agent_of_this_code_signs(tmp_path: Path) -> None:
    """Also as an auditor computes it, from the files of an installed agent."""
    _, wheel, code, *_ = printed(ROOT, "wheel", tmp_path)
    assert code == agent_digest()
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "installed")
    script = "find . -name '*.py' | LC_ALL=C sort | xargs sha256sum | sha256sum"
    assert script in (ROOT / "docs/install.md").read_text("utf-8")
    words = ["sh", "-c", script]
    asked = subprocess.run(
        words, cwd=tmp_path / "installed/compliance_agent", capture_output=True, text=True, check=True
    )
    assert asked.stdout.split()[0] == code
    (tmp_path / "installed/compliance_agent/agent.py").write_text("", "ascii")
    other = subprocess.run(
        words, cwd=tmp_path / "installed/compliance_agent", capture_output=True, text=True, check=True
    )
    assert other.stdout.split()[0] != code, "the comparison would not see a change"


def test_two_wheels_are_byte_identical(elsewhere: Path, tmp_path: Path) -> None:
    here, there = built(ROOT, "wheel", tmp_path / "a"), built(elsewhere, "wheel", tmp_path / "b", TZ="Asia/Tokyo")
    assert here.read_bytes() == there.read_bytes()
    later = built(elsewhere, "wheel", tmp_path / "c", SOURCE_DATE_EPOCH="1790000002")
    assert later.read_bytes() != here.read_bytes(), "the comparison would not see a time"


def test_nothing_in_it_is_of_the_machine_that_built_it(package: Path, tmp_path: Path) -> None:
    subprocess.run(["dpkg-deb", "--raw-extract", str(package), str(tmp_path)], check=True)
    for path in tmp_path.rglob("*"):
        assert path.name not in {"__pycache__", "direct_url.json", "uv_cache.json"}
        if path.is_file() and not path.is_symlink():
            assert str(ROOT).encode() not in path.read_bytes(), path
    for line in (tmp_path / "DEBIAN" / "md5sums").read_text("ascii").splitlines():
        assert (tmp_path / line.split("  ", 1)[1]).is_file()


@pytest.mark.parametrize("part", ["ctrl", "fsys"])
def test_all_of_it_is_roots_and_nobody_else_may_write(package: Path, part: str) -> None:
    entries = list(members(package, part))
    assert len(entries) > 4
    for entry in entries:
        assert (entry.uid, entry.gid, entry.mtime) == (0, 0, int(WHEN)), entry.name
        assert entry.issym() or entry.mode in {0o644, 0o755}, (entry.name, oct(entry.mode))
        assert entry.isfile() or entry.isdir() or entry.issym(), entry.name


@pytest.fixture(scope="module")
def unpacked(package: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("unpacked")
    subprocess.run(["dpkg-deb", "--extract", str(package), str(root)], check=True)
    program = (root / "usr/lib/compliance-agent/bin/python3").readlink().name
    if not Path("/usr/bin", program).exists():
        pytest.skip("this machine has no Python of the release that the package is for")
    (root / "usr/bin" / program).symlink_to(f"/usr/bin/{program}")
    return root


def run(root: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """The program as it was packed, with a directory in the environment that holds modules of the same names."""
    python = root / "usr/lib/compliance-agent/bin/python3"
    return subprocess.run(
        [str(python), "-I", *words],
        env={"PYTHONPATH": str(root), "PATH": os.environ["PATH"]},
        cwd=root,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


def test_the_program_imports_from_its_own_directory_alone(unpacked: Path) -> None:
    program = unpacked / "usr/bin/compliance-agent"
    assert program.read_text("ascii").splitlines()[0] == "#!/usr/lib/compliance-agent/bin/python3 -I"
    (unpacked / "click.py").write_text("raise SystemExit('the wrong click')", "ascii")
    done = run(unpacked, str(program), "--version")
    assert (done.returncode, done.stderr) == (0, ""), done
    assert done.stdout.startswith("compliance-agent")


def test_every_command_of_a_host_has_what_it_needs(unpacked: Path) -> None:
    """And what needs a server's packages says so in one line."""
    loaded = "from compliance_agent.cli import COMMANDS, group\nfor name in COMMANDS: group.get_command(None, name)"
    done = run(unpacked, "-c", loaded)
    assert (done.returncode, done.stderr) == (0, ""), done
    refused = run(unpacked, str(unpacked / "usr/bin/compliance-agent"), "server", "--data-dir", str(unpacked / "none"))
    assert refused.returncode == 69
    assert "is not installed here" in refused.stderr and "docs/deploy.md" in refused.stderr
    assert refused.stderr.count("\n") == 1


def test_the_manual_pages_can_be_formatted_and_name_every_setting_and_command(unpacked: Path) -> None:
    pages = sorted((unpacked / "usr/share/man").rglob("*.gz"))
    assert [page.name for page in pages] == ["compliance-agent.1.gz", "agent.yaml.5.gz"]
    said = {page.name: gzip.decompress(page.read_bytes()).decode("utf-8") for page in pages}
    for field in dataclasses.fields(AgentConfig):
        assert f"\\fB{field.name}\\fR" in said["agent.yaml.5.gz"]
    for command in COMMANDS:
        assert (f".SS {command.replace('-', chr(92) + '-')}\n" in said["compliance-agent.1.gz"]) == (
            command not in {"server", "demo", "lab"}
        )
    if shutil.which("groff"):
        for text in said.values():
            words = ["groff", "-man", "-Tutf8", "-ww", "-z"]
            done = subprocess.run(words, input=text, capture_output=True, text=True, check=False)
            assert (done.returncode, done.stderr) == (0, "")


def test_the_bill_of_materials_is_valid_and_says_what_is_there(unpacked: Path) -> None:
    text = (unpacked / "usr/share/doc/compliance-agent/sbom.cdx.json").read_text("utf-8")
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(text) is None
    assert (
        JsonStrictValidator(SchemaVersion.V1_6).validate_str(text.replace('"version": 1', '"version": 0', 1))
        is not None
    )
    bill = json.loads(text)
    packages = unpacked / "usr/lib/compliance-agent/lib/python3.11/site-packages"
    pinned = dict(
        re.findall(r"^([a-z0-9-]+)==(\S+)", (ROOT / "requirements/agent.txt").read_text("utf-8"), re.MULTILINE)
    )
    assert {one["name"]: one["version"] for one in bill["components"]} == pinned
    assert len(list(packages.glob("*.dist-info"))) == len(pinned) + 1
    for one in (bill["metadata"]["component"], *bill["components"]):
        (record,) = packages.glob(f"{one['name'].replace('-', '_')}-{one['version']}.dist-info/RECORD")
        assert one["hashes"] == [{"alg": "SHA-256", "content": hashlib.sha256(record.read_bytes()).hexdigest()}]
    needs = {edge["ref"].split("/")[1].split("@")[0]: edge["dependsOn"] for edge in bill["dependencies"]}
    direct = {name.split("/")[1].split("@")[0] for name in needs["compliance-agent"]}
    assert {"click", "cryptography", "pynacl"} <= direct and "pycparser" not in direct
    assert any("cffi" in name for name in needs["cryptography"])


@pytest.mark.parametrize(
    ("place", "shell"),
    [("bash-completion/completions/compliance-agent", "bash"), ("zsh/vendor-completions/_compliance-agent", "zsh")],
)
def test_completions_are_scripts_that_ask_the_program(unpacked: Path, place: str, shell: str) -> None:
    script = unpacked / "usr/share" / place
    assert "_COMPLIANCE_AGENT_COMPLETE" in script.read_text("utf-8")
    if shutil.which(shell):
        subprocess.run([shell, "-n", str(script)], check=True)


@pytest.mark.parametrize("script", ["postinst", "prerm", "postrm"])
def test_the_scripts_are_sh_and_stop_at_the_first_failure(script: str) -> None:
    subprocess.run(["sh", "-n", str(DEBIAN / script)], check=True)
    assert "\nset -e\n" in (DEBIAN / script).read_text("ascii")


def services() -> set[str]:
    """The units that may be running old code when new code is configured; what runs to its end and is over is none."""
    shipped = (ROOT / "compliance_agent" / "units").glob("*.service")
    return {unit.name for unit in shipped if "\nType=oneshot\n" not in unit.read_text("ascii")}


def configured(tmp_path: Path, systemd: bool) -> list[str]:
    """What the script that follows an installation asks of the system, with its tools replaced by ones that only say so."""
    for name in ("systemctl", "deb-systemd-invoke", "systemd-sysusers", "systemd-tmpfiles"):
        put(tmp_path / "bin" / name, f'#!/bin/sh\necho "{name} $*" >> {tmp_path}/said\n')
    put(tmp_path / "home/bin/python3", "#!/bin/sh\n")
    if systemd:
        (tmp_path / "systemd").mkdir()
    text = (DEBIAN / "postinst").read_text("ascii")
    for place, instead in (("/usr/lib/compliance-agent", "home"), ("/run/systemd/system", "systemd")):
        assert place in text
        text = text.replace(place, str(tmp_path / instead))
    environ = {"PATH": f"{tmp_path}/bin:/usr/bin:/bin"}
    subprocess.run(["sh", "-c", text, "postinst", "configure", "0.1.0"], env=environ, check=True, timeout=20)
    return (tmp_path / "said").read_text("ascii").splitlines()


def put(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, "ascii")
    path.chmod(0o755)


def test_an_upgrade_leaves_no_service_with_the_old_code(tmp_path: Path) -> None:
    """The root side least of all. What does not run is left alone, and who forbids starts by policy is heard."""
    assert len(services()) == 5
    asked = [line.split() for line in configured(tmp_path, systemd=True) if line.startswith("deb-systemd-invoke")]
    assert [words[1] for words in asked] == ["try-restart"]
    assert set(asked[0][2:]) == services()
    order = [asked[0].index(f"compliance-agent-{part}.service") for part in ("run", "heal", "adopt")]
    assert order == sorted(order), "the root side goes after the agent that asks it"


def test_without_systemd_nothing_is_asked_of_it(tmp_path: Path) -> None:
    assert {line.split()[0] for line in configured(tmp_path, systemd=False)} == {"systemd-sysusers", "systemd-tmpfiles"}


def linted(package: Path) -> subprocess.CompletedProcess[str]:
    """The package, by every tag that Debian's checker has a name for."""
    every = "error,warning,info,pedantic,override"
    words = ["lintian", "--allow-root", "--display-info", "--pedantic", "--fail-on", every, str(package)]
    return subprocess.run(words, capture_output=True, text=True, check=False, timeout=100)


@pytest.mark.skipif(shutil.which("lintian") is None, reason="lintian is not here")
def test_debians_own_checker_finds_nothing_that_has_no_reason(package: Path, tmp_path: Path) -> None:
    """And finds it, when a reason is taken away, or a script is no longer what it was (the planted faults)."""
    done = linted(package)
    assert (done.returncode, done.stdout) == (0, ""), done.stdout + done.stderr
    tree = tmp_path / "tree"
    subprocess.run(["dpkg-deb", "--raw-extract", str(package), str(tree)], check=True)
    for directory in (tree / "usr/lib/compliance-agent/lib").glob("*/site-packages/[!y]*"):
        shutil.rmtree(directory) if directory.is_dir() else directory.unlink()  # a small package is soon looked at
    overrides = tree / "usr/share/lintian/overrides/compliance-agent"
    overrides.write_text(overrides.read_text("ascii").replace("embedded-library", "embedded-libraries"), "ascii")
    with (tree / "DEBIAN/postinst").open("a") as script:
        script.write("systemctl restart compliance-agent\n")
    broken = tmp_path / package.name
    subprocess.run(["dpkg-deb", "--root-owner-group", "-Znone", "--build", str(tree), str(broken)], check=True)
    found = linted(broken)
    assert found.returncode != 0
    for tag in ("embedded-library libyaml", "maintainer-script-calls-systemctl [postinst:"):
        assert tag in found.stdout


def test_purge_keeps_evidence_keys_and_settings_and_says_so(tmp_path: Path) -> None:
    """45 CFR 164.316(b)(2)(i) wants six years, and what the server lacks is nowhere else."""
    text = (DEBIAN / "postrm").read_text("ascii")
    assert "rm " not in text.replace("remove them by hand", "")
    assert "kept /var/lib/compliance-agent" in text
