"""Containerfile: read, and its own lines run here, one by one, as far as that goes without a container engine."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.deploy.product import ROOT

TEXT = (ROOT / "Containerfile").read_text("utf-8")
INSTRUCTIONS = {"ARG", "FROM", "WORKDIR", "COPY", "RUN", "ENV", "USER", "EXPOSE", "STOPSIGNAL", "ENTRYPOINT"}


@dataclass(frozen=True)
class Line:
    instruction: str
    words: str


def stages() -> list[list[Line]]:
    lines = [line for line in TEXT.splitlines() if line.strip() and not line.startswith("#")]
    found: list[list[Line]] = [[]]
    for line in lines:
        instruction, _, words = line.partition(" ")
        assert instruction in INSTRUCTIONS, line
        if instruction == "FROM":
            found.append([])
        found[-1].append(Line(instruction, words))
    return found[1:]


def test_the_image_holds_nothing_to_build_with_and_runs_as_nobody() -> None:
    build, image = stages()
    assert {line.words for line in (build[0], image[0])} == {"${BASE} AS build", "${BASE}"}
    assert [line.words for line in image if line.instruction == "RUN"] == ["python -m pip uninstall -q -y pip"]
    assert any(line.words.endswith("pip uninstall -q -y pip") for line in build)
    assert [line.words for line in image if line.instruction == "USER"] == ["65532:65532"]
    names = [line.instruction for line in image]
    assert names.index("USER") < names.index("ENTRYPOINT")
    assert all(line.words.startswith("--from=build ") for line in image if line.instruction == "COPY")
    [entry] = [line.words for line in image if line.instruction == "ENTRYPOINT"]
    assert entry == '["compliance-agent", "server"]'


def test_every_package_is_pinned_by_hash_and_no_registry_is_named() -> None:
    installs = [line.words for line in stages()[0] if " pip install" in line.words]
    assert len(installs) == 3
    for words in installs:
        assert ("--require-hashes" in words) != ("--no-index" in words), words
        assert "--only-binary :all:" in words or "--no-index" in words
    assert "://" not in TEXT and "--index" not in TEXT.replace("--no-index", "")
    for name in re.findall(r"-r (\S+)", TEXT):
        pinned = re.findall(r"^([\w.-]+)==", (ROOT / name).read_text(), re.MULTILINE)
        assert pinned, name
    image = (ROOT / "requirements/image.txt").read_text()
    assert "boto3==" in image and "asyncpg==" in image and "pytest==" not in image


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_lines_of_the_build_give_a_server_that_runs(tmp_path: Path) -> None:
    """COPY and RUN of the first stage, in order, with directories of this test for those of the image; then the program starts."""
    work, places = (
        tmp_path / "src",
        {"/opt/": f"{tmp_path}/opt/", "/tmp/": f"{tmp_path}/tmp/", "/var/lib/": f"{tmp_path}/var/"},
    )
    python = Path(os.path.realpath(sys.executable))
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/python").symlink_to(python)
    work.mkdir()
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith(("MSP_", "PYTHON", "VIRTUAL_ENV"))
    }
    environment["PATH"] = f"{tmp_path}/bin:/usr/bin:/bin"
    for line in stages()[0]:
        if line.instruction == "COPY":
            *sources, target = line.words.split()
            for source in sources:
                there = work / target / (Path(source).name if not source.endswith("/") else "")
                there.parent.mkdir(parents=True, exist_ok=True)
                if (ROOT / source).is_dir():
                    shutil.copytree(ROOT / source, work / target, ignore=shutil.ignore_patterns("__pycache__"))
                else:
                    shutil.copyfile(ROOT / source, there)
        if line.instruction == "RUN":
            words = re.sub("|".join(places), lambda found: places[found[0]], line.words)
            done = subprocess.run(
                ["sh", "-ec", words], cwd=work, env=environment, capture_output=True, text=True, check=False
            )
            assert done.returncode == 0, (words, done.stderr[-2_000:])
    program = tmp_path / "opt/compliance-agent/bin/compliance-agent"
    assert not list((tmp_path / "opt").glob("**/site-packages/pip"))
    asked = ["-c", "import boto3, asyncpg, compliance_agent as it; print(it.__file__)"]
    done = subprocess.run(
        [program.with_name("python"), *asked], cwd="/", env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.startswith(f"{tmp_path}/opt/compliance-agent/lib/")
    data = tmp_path / "var/compliance-agent-server"
    assert sorted(path.name for path in data.iterdir()) == ["keys", "tls"]
    told = {**environment, "MSP_SERVER_DATA_DIR": str(data), "MSP_SERVER_PORT": "0", "MSP_SERVER_TLS": "true"}
    made = subprocess.run(
        [program, "server", "init", "--tls"], env=told, cwd="/", capture_output=True, text=True, check=False
    )
    assert made.returncode == 0, made.stderr
    with subprocess.Popen(
        [program, "server"], env=told, cwd="/", stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    ) as process:
        try:
            assert process.stdout is not None
            assert re.fullmatch(rb"listening on https://127\.0\.0\.1:\d+\n", process.stdout.readline())
            process.terminate()
            assert process.wait(10) == 0
        finally:
            process.kill()
