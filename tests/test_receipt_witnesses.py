"""A host counts the witnesses of its log: their time stands in its records, their absence shows, forged lines are refused."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from compliance_agent.adapters.log_store import STATEMENTS
from compliance_agent.agent import ComplianceAgent
from compliance_agent.errors import ConfigError
from compliance_agent.log.note import Note, Signature
from compliance_agent.mcp_client import load_witnesses
from tests.agent_scene import Scene
from tests.cli.command import run
from tests.log.builder import LOG, NOW, WITNESSES, Signer
from tests.test_receipts import heads, log_health, log_of, receipted, record, rows, turn

pytestmark = pytest.mark.anyio
LINES = "".join(f"witness w{number} {witness.key}\n" for number, witness in enumerate(WITNESSES, 1))
POLICY = f"{LINES}group some 2 w1 w2 w3\nquorum some\n"


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
async def scene(tmp_path: Path) -> AsyncIterator[Scene]:
    async for made in _scenes(tmp_path):
        yield made


@pytest.fixture
async def strict(tmp_path: Path) -> AsyncIterator[Scene]:
    """One that refuses what is not witnessed."""
    async for made in _scenes(tmp_path, witness_required=True):
        yield made


async def _scenes(root: Path, **settings: Any) -> AsyncIterator[Scene]:
    policy = root / "witnesses"
    policy.write_text(POLICY)
    made = Scene(root, settings={"witness_policy_file": policy, **settings})
    yield made
    await made.close()


def by(*signed: tuple[Signer, int]) -> Callable[[str], Sequence[Signature]]:
    return lambda text: [who.line(text, at) for who, at in signed]


W1, W2, W3 = WITNESSES


async def said(scene: Scene, agent: ComplianceAgent) -> str | None:
    """What the next record says of the witnesses."""
    await record(scene, agent)
    await record(scene, agent)
    at: str | None = scene.documents()[-1]["log_head"]["witnessed_at"]
    return at


async def test_the_time_of_the_quorum_stands_in_the_next_record(scene: Scene) -> None:
    agent = scene.agent()
    log_of(scene).cosignatures = by((W1, NOW + 20), (W2, NOW + 10))
    expected = datetime.fromtimestamp(NOW + 20, UTC).strftime("%Y-%m-%dT%H:%M:%S")
    assert await said(scene, agent) == f"{expected}.000000Z"
    health = await log_health(agent)
    assert (health["state"], health["witnessed_at"]) == ("followed", f"{expected}Z")


async def test_one_witness_with_a_wrong_clock_does_not_move_the_time_of_two_of_three(scene: Scene) -> None:
    agent = scene.agent()
    log_of(scene).cosignatures = by((W1, NOW - 86_400_000), (W2, NOW + 1), (W3, NOW + 2))
    assert (await said(scene, agent) or "").startswith(f"{datetime.fromtimestamp(NOW + 1, UTC):%Y-%m-%dT%H:%M:%S}")


@pytest.mark.parametrize(
    "signed",
    [
        pytest.param([], id="nobody"),
        pytest.param([(W1, NOW)], id="one of two"),
        pytest.param([(W1, NOW), (W1, NOW + 1)], id="one twice"),
        pytest.param([(W1, NOW), (W2, 0)], id="one says no time"),
    ],
)
async def test_without_the_quorum_the_log_is_unwitnessed_and_goes_on(
    scene: Scene, signed: list[tuple[Signer, int]]
) -> None:
    agent = scene.agent()
    log_of(scene).cosignatures = by(*signed)
    assert await said(scene, agent) is None
    health = await log_health(agent)
    assert (health["state"], health["witnessed_at"], health["unlogged"]) == ("unwitnessed", None, 0)
    assert receipted(agent) == 2


async def test_a_forged_line_of_a_witness_is_refused(scene: Scene) -> None:
    agent = scene.agent()

    def forged(text: str) -> Sequence[Signature]:
        line = W1.line(text)
        forged = line.signature[:-1] + bytes([line.signature[-1] ^ 1])
        return [W2.line(text), Signature(line.name, line.key_id, forged)]

    earlier = Note.parse(log_of(scene).note(1)).text

    def replayed(text: str) -> Sequence[Signature]:
        return [W2.line(text), W1.line(earlier)]

    for number, lie in enumerate((forged, replayed), 1):
        log_of(scene).cosignatures = lie
        await record(scene, agent)
        health = await log_health(agent)
        assert (health["last_refused"], health["unlogged"], receipted(agent)) == ("bad_signature", number, 0)
    log_of(scene).cosignatures = by((W1, NOW), (W2, NOW))
    for _ in range(3):
        await turn(scene, agent)
    assert receipted(agent) == 2


async def test_lines_of_strangers_do_not_count(scene: Scene) -> None:
    agent = scene.agent()
    log_of(scene).cosignatures = by((W1, NOW), (LOG_AS_WITNESS, NOW))
    assert await said(scene, agent) is None
    assert receipted(agent) == 2


LOG_AS_WITNESS = Signer(type(W1.key)("witness.example/w9", W1.key.type, LOG.key.public), LOG.private)


async def test_a_quorum_that_comes_later_for_the_same_tree_is_remembered(scene: Scene) -> None:
    agent = scene.agent()
    await record(scene, agent)
    assert (await log_health(agent))["state"] == "unwitnessed"
    before = heads(agent)
    log_of(scene).cosignatures = by((W1, NOW), (W2, NOW))
    agent._database.write(lambda connection: connection.execute("DELETE FROM receipts"))  # so that it asks again
    for _ in range(3):
        await turn(scene, agent)
    assert receipted(agent) == 1 and heads(agent) == before
    assert (await log_health(agent))["state"] == "followed"


async def test_what_is_not_witnessed_is_refused_where_that_is_required(strict: Scene) -> None:
    agent = strict.agent()
    await record(strict, agent)
    health = await log_health(agent)
    assert (health["last_refused"], health["unlogged"], receipted(agent)) == ("unwitnessed", 1, 0)
    assert heads(agent) == []
    log_of(strict).cosignatures = by((W3, NOW), (W2, NOW))
    for _ in range(3):
        await turn(strict, agent)
    assert receipted(agent) == 1
    assert (await log_health(agent))["state"] == "followed"


async def test_status_says_it(scene: Scene) -> None:
    agent = scene.agent()
    path = scene.root / "config.yaml"
    fields = ("client_id", "site_id", "host_id", "state_dir", "baseline_path", "mcp_url", "witness_policy_file")
    path.write_text("".join(f"{name}: {getattr(scene.config, name)}\n" for name in fields))

    def shown() -> tuple[str, dict[str, Any]]:
        document = json.loads(run("status", "--json", "--config", str(path)).out)
        return run("status", "--config", str(path)).out, document["log"]

    assert shown()[1]["witnessing"] == "none_followed"
    await record(scene, agent)
    text, log = shown()
    assert "UNWITNESSED" in text and (log["witnessing"], log["witnessed_at"]) == ("unwitnessed", None)
    log_of(scene).cosignatures = by((W1, NOW), (W2, NOW))
    await record(scene, agent)
    text, log = shown()
    at = f"{datetime.fromtimestamp(NOW, UTC):%Y-%m-%dT%H:%M:%SZ}"
    assert f"witnessed at {at}" in text and (log["witnessing"], log["witnessed_at"]) == ("witnessed", at)


@pytest.mark.parametrize("text", ["", "quorum none\n", f"log {LOG.key}\n{POLICY}", f"{LINES}quorum nobody\n"])
def test_a_policy_that_asks_for_nobody_is_refused(tmp_path: Path, text: str) -> None:
    made = Scene(tmp_path, settings={"witness_policy_file": tmp_path / "witnesses"})
    (tmp_path / "witnesses").write_text(text)
    with pytest.raises(ConfigError, match="witness_policy_file"):
        load_witnesses(made.config)


def test_a_requirement_without_witnesses_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="witness_required"):
        Scene(tmp_path, settings={"witness_required": True})


async def test_a_state_of_before_gets_the_column(scene: Scene) -> None:
    agent = scene.agent()
    await record(scene, agent)

    def take_back(connection: Any) -> None:
        before = next(number for number, statement in enumerate(STATEMENTS) if "witnessed_at" in statement)
        connection.execute("ALTER TABLE log_heads DROP COLUMN witnessed_at")
        connection.execute("DROP TABLE shed")  # it came later
        connection.execute("UPDATE migrations SET applied = ? WHERE name = 'log'", (before,))

    agent._database.write(take_back)
    again = scene.agent()
    assert rows(again, "SELECT witnessed_at FROM log_heads") == [(None,)]
