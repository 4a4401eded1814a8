"""An agent whose baseline root writes: the order leads through the socket, and both are held to the same one, or to none."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from compliance_agent import permits
from compliance_agent.adopt.service import Adopting
from compliance_agent.agent import ComplianceAgent
from compliance_agent.baseline import parse
from compliance_agent.heal import approvals
from tests.adopt.scene import APPROVALS, FILE, KEY, NEWER, PERMITS, STATE, TRUST, Here
from tests.agent_scene import BASELINE
from tests.order_keys import ANNA, BEN, keys_file
from tests.test_adopting import Adopting as AdoptingHost

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


class Split(AdoptingHost):
    """A host that may not write its baseline."""

    def __post_init__(self) -> None:
        self.root.mkdir(parents=True, exist_ok=True)
        self.settings = {"adopt_socket": self.root / "adopt.sock", **self.settings}
        super().__post_init__()
        self.machine = Here(self.root)
        for name in ("etc/msp", "var/lib/adopt"):
            (self.root / name).mkdir(parents=True, mode=0o755)
        self.path.unlink()
        self.path.symlink_to(self.root / FILE[1:])  # the agent reads what root writes, below this directory
        self.sig = self.path.with_name("baseline.yaml.sig")
        self.sig.unlink()
        self.sig.symlink_to(self.root / f"{FILE[1:]}.sig")
        says = {
            "schema": permits.TRUST_SCHEMA, "tenant": self.config.client_id, "site": self.config.site_id,
            "host": self.signer.key_id, "order_root": None, "order_keys": "/etc/msp/order-keys.json",
            "baseline_key": base64.b64encode(bytes(KEY.verify_key)).decode(), "baseline": FILE,
        }  # fmt: skip
        for path, content in (
            (TRUST, json.dumps(says).encode()), ("/etc/msp/order-keys.json", keys_file()), (FILE, BASELINE),
            (f"{FILE}.sig", KEY.sign(BASELINE).signature), (PERMITS, permits.written(parse(BASELINE))),
        ):  # fmt: skip
            (self.root / path[1:]).write_bytes(content)

    def stands(self) -> tuple[str, str]:
        return (
            parse((self.root / FILE[1:]).read_bytes()).version,
            json.loads((self.root / PERMITS[1:]).read_bytes())["version"],
        )


@contextmanager
def served(scene: Split) -> Iterator[None]:
    """Root's side, in a thread that serves until the test is done with it, however slow the machine is."""
    path = scene.root / "adopt.sock"
    with closing(socket.socket(socket.AF_UNIX)) as listener:
        listener.bind(str(path))
        listener.listen()
        service = Adopting(scene.machine, TRUST, PERMITS, STATE, APPROVALS, scene.clock.now)
        done = threading.Event()

        def serve() -> None:
            while not done.is_set():
                service.serve(listener, {os.geteuid()}, 0.1)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join(30)
            path.unlink()


def live(scene: Split) -> ComplianceAgent:
    assert scene.live is not None
    return scene.live


async def test_an_order_is_taken_by_root_and_then_by_the_agent(tmp_path: Path) -> None:
    scene = Split(tmp_path)
    with served(scene):
        await scene.cycle(scene.agent())
        given = json.loads((tmp_path / STATE[1:]).read_bytes())["nonces"][0]["nonce"]
        assert scene.server.check_ins[-1]["order_nonce"] == given
        assert await scene.adopt(live(scene), scene.hold(NEWER)) == ("success", None)
    assert (scene.stands(), scene.held_to()) == (("2", "2"), ("2", "2"))
    assert live(scene).healing_engine.baseline.version == live(scene).drift_detector.baseline.version == "2"
    await scene.close()


async def test_what_root_refuses_the_agent_does_not_take(tmp_path: Path) -> None:
    """Root's list names one signer more than the agent's does; the record has root's reason."""
    scene = Split(tmp_path)
    (tmp_path / "etc/msp/order-keys.json").write_bytes(keys_file(thresholds={"adopt_baseline": 2}, tenant="msp-9"))
    with served(scene):
        await scene.cycle(scene.agent())
        assert await scene.adopt(live(scene), scene.hold(NEWER)) == ("failed", "other_host")
        (tmp_path / TRUST[1:]).unlink()
        assert await scene.adopt(live(scene), scene.hold(NEWER)) == ("failed", "adopt_refused")
    assert (scene.stands(), scene.held_to()) == (("1", "1"), ("1", "1"))
    await scene.close()


async def test_without_root_it_is_refused_and_everything_else_goes_on(tmp_path: Path) -> None:
    scene = Split(tmp_path)
    await scene.cycle(scene.agent())
    assert await scene.adopt(live(scene), scene.hold(NEWER)) == ("failed", "adopt_unreachable")
    await scene.give(live(scene), scene.signed("check", by=(ANNA, BEN)))
    assert scene.ended()[-1][1] == "success"
    assert scene.held_to() == ("1", "1")
    await scene.close()


async def test_files_that_root_could_not_write_are_followed_at_the_next_cycle(tmp_path: Path) -> None:
    """The order was taken and its number used up; the agent goes on with the new one as soon as its files are there, not before."""
    scene = Split(tmp_path)
    with served(scene):
        await scene.cycle(scene.agent())
        scene.machine.full = frozenset({FILE})
        assert await scene.adopt(live(scene), scene.hold(NEWER)) == ("failed", "adopt_failed")
        await scene.cycle(live(scene))
        assert live(scene).drift_detector.baseline.version == "1"
        scene.machine.full = frozenset()
        await scene.cycle(live(scene))
        assert (scene.stands(), scene.held_to()) == (("2", "2"), ("2", "2"))
        assert live(scene).healing_engine.baseline.version == live(scene).drift_detector.baseline.version == "2"
        given = json.loads((tmp_path / STATE[1:]).read_bytes())["nonces"][0]["nonce"]
        assert live(scene).orders.nonce == given
        await scene.cycle(live(scene), 3)
        kept = json.loads((tmp_path / STATE[1:]).read_bytes())["nonces"][0]["nonce"]
        assert kept == given  # it asks no more than it has to
    await scene.close()


async def test_what_root_did_not_take_is_not_followed(tmp_path: Path) -> None:
    """Nobody answered, and nothing was taken: once root says so, the former one stands and nothing is waited for."""
    scene = Split(tmp_path)
    await scene.cycle(scene.agent())
    assert await scene.adopt(live(scene), scene.hold(NEWER)) == ("failed", "adopt_unreachable")
    with served(scene):
        await scene.cycle(live(scene))
        given = live(scene).orders.nonce
        await scene.cycle(live(scene), 3)
        assert live(scene).orders.nonce == given
    assert (scene.stands(), scene.held_to()) == (("1", "1"), ("1", "1"))
    await scene.close()


async def test_a_nonce_of_the_agents_own_is_nothing_to_root(tmp_path: Path) -> None:
    """It started without root, so what it handed out is not root's."""
    scene = Split(tmp_path)
    await scene.cycle(scene.agent())
    with served(scene):
        assert await scene.adopt(live(scene), scene.hold(NEWER)) == ("failed", "wrong_nonce")
    assert scene.stands() == ("1", "1")
    await scene.close()


APPROVED = {"check": "time_sync", "target": "steps-1"}


async def approved(scene: Split) -> tuple[str | None, str | None]:
    """Outcome and error of an order that approves a plan."""
    await scene.give(live(scene), scene.signed("approve", by=(ANNA, BEN), parameters=APPROVED))
    return scene.ended()[-1][1:]


async def test_what_people_approve_root_notes_and_then_the_agent(tmp_path: Path) -> None:
    scene = Split(tmp_path)
    (tmp_path / APPROVALS[1:]).write_bytes(permits.APPROVALS)
    with served(scene):
        await scene.cycle(scene.agent())
        assert await approved(scene) == ("success", None)
    given = approvals.read((tmp_path / APPROVALS[1:]).read_bytes())
    assert [(item["check"], item["target"]) for item in given] == [("time_sync", "steps-1")]
    assert scene.healer.approved == [("time_sync", "steps-1")]
    await scene.close()


async def test_where_root_waits_for_nobody_the_agent_has_its_own_gate(tmp_path: Path) -> None:
    scene = Split(tmp_path)
    with served(scene):
        await scene.cycle(scene.agent())
        (tmp_path / TRUST[1:]).unlink()
        assert await approved(scene) == ("success", None)
    assert scene.healer.approved == [("time_sync", "steps-1")]
    assert not (tmp_path / APPROVALS[1:]).exists()
    await scene.close()


async def test_what_root_does_not_note_the_agent_does_not_either(tmp_path: Path) -> None:
    """Root's list is of another client; then root is not there at all."""
    scene = Split(tmp_path)
    (tmp_path / APPROVALS[1:]).write_bytes(permits.APPROVALS)
    (tmp_path / "etc/msp/order-keys.json").write_bytes(keys_file(tenant="msp-9"))
    with served(scene):
        await scene.cycle(scene.agent())
        assert await approved(scene) == ("failed", "other_host")
        (tmp_path / APPROVALS[1:]).chmod(0o666)
        assert await approved(scene) == ("failed", "adopt_refused")
    assert await approved(scene) == ("failed", "adopt_unreachable")
    assert scene.healer.approved == []
    await scene.close()


def test_the_process_with_the_program_that_a_package_installs(tmp_path: Path) -> None:
    """Socket-activated; what a baseline permits comes from `baseline permit --made-of -`, the same bytes as root's own command."""
    out = subprocess.run(
        [sys.executable, "-m", "compliance_agent", "baseline", "permit", "--made-of", "-", "-"],
        input=NEWER, capture_output=True, check=True, timeout=60,
    ).stdout  # fmt: skip
    assert out == permits.written(parse(NEWER))
    assert json.loads(out)["baseline"] == hashlib.sha256(NEWER).hexdigest()
    done = subprocess.run(
        [sys.executable, "-I", "-m", "compliance_agent.adopt", "--user", "0"],
        env={}, capture_output=True, text=True, check=False, timeout=30,
    )  # fmt: skip
    assert (done.returncode, "Traceback" in done.stderr, "cannot start" in done.stderr) == (78, False, True)
