"""`compliance-agent demo --check` from outside: it ends well, and what it leaves can be checked without us."""

from __future__ import annotations

import json
import random
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.real.conftest import Scene
from tests.real.stage import command, environment

pytestmark = [pytest.mark.real, pytest.mark.slow, pytest.mark.xdist_group("demo"), pytest.mark.timeout(150)]
README = Path(__file__).resolve().parents[2] / "README.md"
SIMULATED = ("riverside-01", "hillside-01")
ALLOWED_S = 60.0
HOST_FILES = {"agent.yaml", "baseline.yaml", "order-keys.json", "state", "evidence", "keys"}


@pytest.fixture
def copy(scene: Scene, tmp_path: Path) -> Path:
    """A host's directory to damage."""
    return Path(shutil.copytree(scene.host(SIMULATED[0]), tmp_path / SIMULATED[0]))


def bundles(host: Path) -> list[Path]:
    """Every bundle.json of a host, in chain order."""
    found = [path for path in host.glob("evidence/*/*/*/*/bundle.json") if not path.parent.name.startswith(".")]
    return sorted(found, key=lambda path: json.loads(path.read_bytes())["seq"])


def by_openssl(host: Path, bundle: Path) -> bool:
    """What the command in the README says of one bundle, word for word but for the host's name."""
    line = next(line for line in README.read_text("utf-8").splitlines() if line.startswith("openssl pkeyutl -verify"))
    assert SIMULATED[0] in line
    script = f"bundle={shlex.quote(str(bundle.relative_to(host)))}\n{line.replace(SIMULATED[0], host.name)}"
    done = subprocess.run(
        ["sh", "-c", script], cwd=host, env=environment(), capture_output=True, text=True, check=False
    )
    return done.returncode == 0 and "Verified Successfully" in done.stdout


def test_the_bounded_demo_ends_well_within_its_time(scenes: list[Scene]) -> None:
    for scene in scenes:
        assert scene.status == 0, scene.err[-800:]
        assert scene.seconds < ALLOWED_S
        assert "Traceback" not in scene.err
    assert {host for host, _ in scenes[0].drifts()} == set(SIMULATED), "drift -> heal -> verified on each host"


def test_it_leaves_the_layout_that_is_promised(scene: Scene) -> None:
    assert (scene.directory / "server" / "server.db").is_file()
    hosts = sorted(path.name for path in (scene.directory / "hosts").iterdir())
    assert hosts == sorted([*SIMULATED, "this-machine"])
    for name in hosts:
        host = scene.host(name)
        assert {path.name for path in host.iterdir()} == HOST_FILES
        assert (host / "keys" / f"{name}.pub.pem").read_text("ascii").startswith("-----BEGIN PUBLIC KEY-----")
        assert bundles(host)


def test_this_machine_was_only_looked_at(scene: Scene) -> None:
    documents = [json.loads(path.read_bytes()) for path in bundles(scene.host("this-machine"))]
    assert {document["outcome"] for document in documents} <= {None, "deferred", "alert"}
    assert not any(document["actions"] for document in documents)


def test_openssl_alone_verifies_every_bundle(scene: Scene) -> None:
    if shutil.which("openssl") is None:
        pytest.skip("no openssl on this machine")
    checked = 0
    for name in (*SIMULATED, "this-machine"):
        for bundle in bundles(scene.host(name)):
            assert by_openssl(scene.host(name), bundle), bundle
            checked += 1
    assert checked >= 3 * len(SIMULATED)


def test_our_verifier_finds_every_chain_whole(scene: Scene) -> None:
    for name in (*SIMULATED, "this-machine"):
        done = command("verify", scene.host(name), "--json")
        report = json.loads(done.stdout)
        assert (done.returncode, report["ok"]) == (0, True)
        assert report["found"] == report["verified"] == len(bundles(scene.host(name)))
        assert [chain["host"] for chain in report["chains"]] == [name]


@pytest.mark.parametrize("seed", range(3))
def test_one_flipped_byte_is_named_by_both(copy: Path, seed: int) -> None:
    rng = random.Random(seed)
    victim = rng.choice(bundles(copy))
    others = [path for path in bundles(copy) if path != victim]
    body = bytearray(victim.read_bytes())
    body[rng.randrange(len(body))] ^= 1 << rng.randrange(8)
    victim.write_bytes(body)
    done = command("verify", copy)
    assert done.returncode == 65
    assert victim.parent.name in done.stdout
    if shutil.which("openssl") is not None:
        assert not by_openssl(copy, victim)
        assert by_openssl(copy, rng.choice(others))


def test_a_deleted_bundle_is_named_by_its_number(copy: Path) -> None:
    gone, after = bundles(copy)[4:6]
    shutil.rmtree(gone.parent)
    done = command("verify", copy, "--json")
    report = json.loads(done.stdout)
    assert done.returncode == 65
    assert [(item["code"], item["where"], item["detail"]) for item in report["problems"]] == [
        ("missing", after.parent.name, "epoch 0: seq 5 to 5")
    ]


def test_the_same_seed_tells_the_same_story(scenes: list[Scene]) -> None:
    first, second = (scene.drifts() for scene in scenes)
    assert first == second
    assert len(first) >= len(SIMULATED)
