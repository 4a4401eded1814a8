"""`verify` holds receipts to the log's key, the bundle beside them and each other, and says how many there are."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner

from compliance_agent.cli.verify import command
from compliance_agent.crypto import public_pem
from compliance_agent.evidence.canonical import canonical
from compliance_agent.evidence.verify import verify_paths
from compliance_agent.lab.log import FakeLog
from compliance_agent.models import BundleKind
from tests.agent_scene import Scene


async def _recorded(scene: Scene) -> None:
    agent = scene.agent()
    for number in range(4):
        await agent.recording.create(
            check="", outcome=None, kind=BundleKind.HEARTBEAT, reason="as_expected", counts={"pending": number}
        )
        await agent.delivery.turn()
        await scene.delivered(agent)
    await scene.close()
    scene.live = None


@pytest.fixture
def scene(tmp_path: Path) -> Scene:
    made = Scene(tmp_path)
    asyncio.run(_recorded(made))
    return made


def keys(scene: Scene) -> dict[str, bytes]:
    return {scene.signer.key_id: scene.signer.public_bytes}


def log_of(scene: Scene) -> FakeLog:
    assert scene.server.log is not None
    return scene.server.log


def directories(scene: Scene) -> list[Path]:
    found = [path.parent for path in scene.config.evidence_dir.rglob("bundle.json")]
    return sorted(found, key=lambda path: int(json.loads((path / "bundle.json").read_bytes())["seq"]))


def swap(one: Path, other: Path, name: str) -> None:
    first, second = (one / name).read_bytes(), (other / name).read_bytes()
    (one / name).write_bytes(second)
    (other / name).write_bytes(first)


def flip(path: Path) -> None:
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2] ^= 1
    path.write_bytes(raw)


def fork_receipt(scene: Scene, place: Path) -> None:
    """The server shows another tree of the same size, and logs the same bundle in it."""
    log = log_of(scene)
    log.fork()
    name = place.name
    receipt = log.receipt(name)
    assert receipt is not None
    (place / "bundle.tlog-proof").write_bytes(base64.b64decode(receipt["proof"]))


def rewritten(scene: Scene, place: Path) -> None:
    """With the host's own key: the bundle says something else, and its receipt shows it."""
    path = place / "bundle.json"
    raw = canonical({**json.loads(path.read_bytes()), "recovered": True})
    path.write_bytes(raw)
    (place / "bundle.sig").write_bytes(scene.signer.sign(raw))


CHANGES: dict[str, tuple[Callable[[Scene, list[Path]], object], set[str]]] = {
    "nothing": (lambda _, places: None, set()),
    "leaf of another bundle": (lambda _, places: swap(places[1], places[2], "leaf.json"), {"wrong_leaf"}),
    "proof of another bundle": (lambda _, places: swap(places[1], places[2], "bundle.tlog-proof"), {"bad_inclusion_proof"}),
    "bit in the leaf": (lambda _, places: flip(places[1] / "leaf.json"), {"wrong_leaf"}),
    "leaf removed": (lambda _, places: (places[1] / "leaf.json").unlink(), {"unreadable"}),
    "proof removed": (lambda _, places: (places[1] / "bundle.tlog-proof").unlink(), {"unreadable"}),
    "proof emptied": (lambda _, places: (places[1] / "bundle.tlog-proof").write_bytes(b""), {"bad_receipt"}),
    "rewritten with the host's key": (lambda scene, places: rewritten(scene, places[3]), {"wrong_leaf"}),
    "split view": (lambda scene, places: fork_receipt(scene, places[1]), {"log_forked"}),
}  # fmt: skip


@pytest.mark.parametrize("name", CHANGES)
def test_every_change_is_named(scene: Scene, name: str) -> None:
    change, expected = CHANGES[name]
    change(scene, directories(scene))
    report = verify_paths([scene.config.evidence_dir], keys(scene), log_keys=[log_of(scene).vkey])
    assert {problem.code for problem in report.problems} == expected
    assert report.exit_status == (65 if expected else 0)
    assert report.verified == 4, "a bundle is judged without its receipt"


def test_both_files_removed_are_a_receipt_less(scene: Scene) -> None:
    for name in ("leaf.json", "bundle.tlog-proof"):
        (directories(scene)[2] / name).unlink()
    report = verify_paths([scene.config.evidence_dir], keys(scene), log_keys=[log_of(scene).vkey])
    assert report.ok and report.chains[0].receipted == 3


def test_a_bundle_that_names_another_tree_than_the_log_showed(scene: Scene) -> None:
    """A host that was shown a fork keeps its head in its signed bundles: any receipt of the other branch contradicts it."""
    place = directories(scene)[3]
    path = place / "bundle.json"
    document = json.loads(path.read_bytes())
    raw = canonical({**document, "log_head": {**document["log_head"], "root": "00" * 32}})
    path.write_bytes(raw)
    (place / "bundle.sig").write_bytes(scene.signer.sign(raw))
    for name in ("leaf.json", "bundle.tlog-proof"):
        (place / name).unlink()
    report = verify_paths([scene.config.evidence_dir], keys(scene), log_keys=[log_of(scene).vkey])
    assert {(problem.code, problem.where) for problem in report.problems} == {("log_forked", document["bundle_id"])}


def test_without_a_log_key_nothing_is_claimed(scene: Scene) -> None:
    report = verify_paths([scene.config.evidence_dir], keys(scene))
    assert report.ok and report.receipts_unchecked == 4 and report.chains[0].receipted == 0


def test_another_log_key_is_named(scene: Scene) -> None:
    other = FakeLog("clinic-1", seed="another")
    report = verify_paths([scene.config.evidence_dir], keys(scene), log_keys=[other.vkey])
    assert {problem.code for problem in report.problems} == {"no_known_signature"}
    report = verify_paths([scene.config.evidence_dir], keys(scene), log_keys=[FakeLog("clinic-2").vkey])
    assert {problem.code for problem in report.problems} == {"no_known_signature"}


@pytest.mark.parametrize("given", ["vkey", "file", "beside"])
def test_the_command(scene: Scene, given: str) -> None:
    place = scene.config.evidence_dir / "keys"
    place.mkdir()
    (place / "srv-1.pub.pem").write_text(public_pem(scene.signer.public_bytes))
    file = (place if given == "beside" else scene.root) / "clinic-1-2026.vkey"
    file.write_text(f"{log_of(scene).vkey}\n")
    option = {"vkey": ["--log-key", str(log_of(scene).vkey)], "file": ["--log-key", str(file)], "beside": []}[given]
    ran = CliRunner().invoke(command, [str(scene.config.evidence_dir), *option])
    assert ran.exit_code == 0 and "4 of 4" in ran.output and "not checked" not in ran.output
    flip(directories(scene)[0] / "bundle.tlog-proof")
    ran = CliRunner().invoke(command, [str(scene.config.evidence_dir), *option, "--json"])
    assert ran.exit_code == 65
    document = json.loads(ran.stdout)
    assert document["chains"][0]["receipted"] == 3 and len(document["problems"]) == 1


@pytest.mark.parametrize("given", ["name+00000000+AAAA", "a+b", "/nowhere/at-all"])
def test_what_is_no_log_key_is_refused(scene: Scene, given: str) -> None:
    ran = CliRunner().invoke(command, [str(scene.config.evidence_dir), "--log-key", given])
    assert ran.exit_code != 0
