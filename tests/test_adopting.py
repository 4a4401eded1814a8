"""A baseline adopted by order: signed, never older, whole or not at all, whatever is sent and wherever it is cut off."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from nacl.signing import SigningKey

from compliance_agent.adapters import baseline_files
from compliance_agent.adapters.agent_state import AgentState
from compliance_agent.adapters.database import Database
from compliance_agent.adapters.durable import write_file
from compliance_agent.agent import ComplianceAgent
from compliance_agent.baseline import load, signature_path
from compliance_agent.crypto import public_pem
from compliance_agent.errors import ConfigError, StorageFull
from tests.agent_scene import BASELINE
from tests.order_keys import ANNA, BEN
from tests.order_scene import OrderScene
from tests.test_orders import Cut

pytestmark = pytest.mark.anyio
KEY = SigningKey(b"b" * 32)
NEWER = BASELINE.replace(b'version: "1"', b'version: "2"').replace(b"  av_health: {mode: audit}\n", b"")


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


class Adopting(OrderScene):
    """A host whose baseline is signed, and a server that holds a newer one."""

    def __post_init__(self) -> None:
        self.root.mkdir(parents=True, exist_ok=True)
        self.path = self.root / "baseline.yaml"
        self.key_path = self.root / "baseline.pub.pem"
        self.key_path.write_text(public_pem(bytes(KEY.verify_key)))
        self.path.write_bytes(BASELINE)
        signature_path(self.path).write_bytes(KEY.sign(BASELINE).signature)
        self.settings = {"baseline_key_file": self.key_path, **self.settings}
        super().__post_init__()

    def agent(self) -> ComplianceAgent:
        """A start: what was begun is finished before the baseline is read, as the agent's own constructor does."""
        if self.config.database_path.exists():
            database = Database(self.config.database_path, threaded=False)
            baseline_files.settle(AgentState(database), self.path, self.config.baseline_key_file)
            database.close()
        self.detector.baseline = load(self.path, signed_by=self.config.baseline_key_file)
        return super().agent()

    def hold(self, raw: bytes, sig: bytes | None = None, *, named: bytes | None = None) -> dict[str, str]:
        """The server holds these bytes; what an order names to have them adopted."""
        digest = hashlib.sha256(named if named is not None else raw).hexdigest()
        self.server.baselines[digest] = (raw, bytes(KEY.sign(raw).signature) if sig is None else sig)
        return {"version": "2", "sha256": digest}

    async def adopt(self, agent: ComplianceAgent, parameters: dict[str, str]) -> tuple[str | None, str | None]:
        """Outcome and error of the order."""
        await self.give(agent, self.signed("adopt_baseline", parameters=parameters))
        return self.ended()[-1][1:]

    def held_to(self) -> tuple[str, str]:
        """Version by the file, which verifies, and by the database."""
        return load(self.path, signed_by=self.key_path).version, _version(self.config.database_path)


def _version(path: Path) -> str:
    import sqlite3

    with sqlite3.connect(path) as connection:
        return str(connection.execute("SELECT version FROM baselines").fetchone()[0])


@pytest.fixture
async def scene(tmp_path: Path) -> AsyncIterator[Adopting]:
    made = Adopting(tmp_path)
    await made.cycle(made.agent())
    yield made
    await made.close()


def live(scene: Adopting) -> ComplianceAgent:
    assert scene.live is not None
    return scene.live


async def test_it_is_taken_everywhere_at_once_and_kept(scene: Adopting) -> None:
    agent = live(scene)
    assert await scene.adopt(agent, scene.hold(NEWER)) == ("success", None)
    assert (scene.path.read_bytes(), scene.held_to()) == (NEWER, ("2", "2"))
    assert {
        part.baseline.version for part in (agent.drift_detector, agent.healing_engine, agent.evidence_generator)
    } == {"2"}
    scene.detector.drift("time_sync")
    scene.server.orders = []
    await scene.cycle(agent, 2)
    newest = scene.documents()[-1]
    assert newest["baseline"] == {"version": "2", "sha256": hashlib.sha256(NEWER).hexdigest()}
    assert "av_health" not in {drift.check for drift in agent.latest}  # not listed any more
    await scene.restart()
    assert scene.held_to() == ("2", "2")


OTHER = SigningKey(b"o" * 32)
OLDER = BASELINE.replace(b'version: "1"', b'version: "0.9"')
UNUSABLE = NEWER + b"surprise: 1\n"
HOSTILE: dict[str, tuple[Callable[[Adopting], dict[str, str]], str]] = {
    "not there": (lambda scene: {"version": "2", "sha256": "ef" * 32}, "baseline_unavailable"),
    "signed by another": (lambda scene: scene.hold(NEWER, OTHER.sign(NEWER).signature), "baseline_signature"),
    "changed": (lambda scene: scene.hold(NEWER + b"\n", KEY.sign(NEWER).signature), "baseline_signature"),
    "signature is cut": (lambda scene: scene.hold(NEWER, KEY.sign(NEWER).signature[:63]), "baseline_signature"),
    "not usable": (lambda scene: scene.hold(UNUSABLE), "baseline_unusable"),
    "not text": (lambda scene: scene.hold(b"\xff\xfe\0"), "baseline_unusable"),
    "another one": (lambda scene: scene.hold(BASELINE, named=NEWER), "other_baseline"),
    "another version": (lambda scene: {**scene.hold(NEWER), "version": "3"}, "other_baseline"),
    "older": (lambda scene: {**scene.hold(OLDER), "version": "0.9"}, "baseline_older"),
}


@pytest.mark.parametrize("name", HOSTILE)
async def test_anything_else_is_refused_and_the_old_one_stands(scene: Adopting, name: str) -> None:
    sent, code = HOSTILE[name]
    before = {path: path.read_bytes() for path in (scene.path, signature_path(scene.path))}
    assert await scene.adopt(live(scene), sent(scene)) == ("failed", code)
    assert {path: path.read_bytes() for path in before} == before
    assert scene.held_to() == ("1", "1")
    assert live(scene).drift_detector.baseline.version == "1"
    assert await scene.adopt(live(scene), scene.hold(NEWER)) == ("success", None)


async def test_no_way_back_to_what_was_held_before(scene: Adopting) -> None:
    assert await scene.adopt(live(scene), scene.hold(NEWER)) == ("success", None)
    assert await scene.adopt(live(scene), {**scene.hold(BASELINE), "version": "1"}) == ("failed", "baseline_older")
    assert scene.held_to() == ("2", "2")


async def test_without_a_key_for_baselines_none_is_taken(tmp_path: Path) -> None:
    scene = Adopting(tmp_path, settings={"baseline_key_file": None})
    await scene.cycle(scene.agent())
    assert await scene.adopt(live(scene), scene.hold(NEWER)) == ("failed", "no_baseline_key")
    assert scene.path.read_bytes() == BASELINE
    await scene.close()


async def test_one_signer_is_not_enough(scene: Adopting) -> None:
    raw = scene.signed("adopt_baseline", by=(ANNA,), parameters=scene.hold(NEWER))
    await scene.give(live(scene), raw)
    assert scene.ended()[-1][1:] == ("rejected", "too_few_signers")
    assert BEN.name != ANNA.name and scene.held_to() == ("1", "1")


async def test_files_that_cannot_be_written_leave_all_as_it_was(
    scene: Adopting, monkeypatch: pytest.MonkeyPatch
) -> None:
    write, fails = write_file, [scene.path]

    def full(path: Path, *rest: Any) -> None:
        if path in fails:
            fails.remove(path)
            raise StorageFull("no room")
        write(path, *rest)

    monkeypatch.setattr(baseline_files, "write_file", full)
    outcome, _ = await scene.adopt(live(scene), scene.hold(NEWER))
    assert outcome == "failed"
    assert scene.held_to() == ("1", "1")
    assert live(scene).drift_detector.baseline.version == "1"
    await scene.restart()
    assert scene.held_to() == ("1", "1")


async def cut_off(root: Path, number: int, after: bool) -> tuple[Adopting, bool]:
    """An adoption that is cut off at its `number`-th write, to the database or a file, before or after it took effect."""
    scene, count = Adopting(root), [0]
    await scene.cycle(scene.agent())
    raw = scene.signed("adopt_baseline", parameters=scene.hold(NEWER))
    live(scene).orders.offer([raw])

    def cutting(real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **options: Any) -> Any:
            count[0] += 1
            if count[0] == number and not after:
                raise Cut
            value = real(*args, **options)
            if count[0] == number:
                raise Cut
            return value

        return call

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Database, "write", cutting(Database.write))
        patch.setattr(baseline_files, "write_file", cutting(write_file))
        try:
            await live(scene).orders.run()
        except Cut:
            await scene.restart()
            return scene, True
    return scene, False


async def states(root: Path) -> set[tuple[str, str]]:
    """Every pair of versions (file, database) that a cut and a restart leave."""
    found = set()
    for after in (False, True):
        for number in itertools.count(1):
            scene, cut = await cut_off(root / f"{after}-{number}", number, after)
            found.add(scene.held_to())
            await scene.close()
            if not cut:
                assert number > 6
                break
    return found


async def test_cut_off_anywhere_it_is_the_old_one_or_the_new_one_whole(tmp_path: Path) -> None:
    assert await states(tmp_path) == {("1", "1"), ("2", "2")}


async def test_a_start_that_finishes_nothing_would_be_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The planted fault: cut off in between, file, signature and database say three things, and the host starts no more."""
    monkeypatch.setattr(baseline_files, "settle", lambda *_: None)
    with pytest.raises(ConfigError) as caught:
        await states(tmp_path)
    assert caught.value.code in {"baseline_signature", "baseline_older"}
