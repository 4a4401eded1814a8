"""A host under an order root takes what follows from its pin, keeps that over restarts, and refuses orders when nothing holds."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from compliance_agent.adapters.agent_view import looking
from compliance_agent.cli.status import as_document
from compliance_agent.config import AgentConfig
from compliance_agent.enrolment import Token, order_root_of, pin_order_root
from compliance_agent.errors import ConfigError, StorageError
from tests.order_roots import CARA, DORA, EMIL, FAYE, keys, pin, root
from tests.order_scene import OrderScene

pytestmark = pytest.mark.anyio
ROOT = root()


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


class RootScene(OrderScene):
    """A host that is pinned to Cara's, Dora's and Emil's root."""

    def __post_init__(self) -> None:
        self.root.mkdir(parents=True, exist_ok=True)
        self.pin_path = self.root / "order-root"
        self.repin(pin(ROOT))
        self.settings = {"order_root_file": self.pin_path, "order_keys_file": None, **self.settings}
        super().__post_init__()
        self.server.order_trust = [ROOT, keys()]

    def repin(self, text: str) -> None:
        self.pin_path.write_text(text + "\n")
        self.pin_path.chmod(0o600)

    async def hears(self, *documents: bytes) -> None:
        """One round of an agent to which the server carries these."""
        assert self.live is not None
        self.server.order_trust, self.server.orders = list(documents), []
        await self.cycle(self.live, pause_s=1.0)
        await self.delivered(self.live)

    def said(self) -> dict[str, Any]:
        """What the last check-in said of it."""
        found: dict[str, Any] = self.server.check_ins[-1]["order_trust"]
        return {name: found[name] for name in ("root", "keys")}

    def status(self) -> dict[str, Any]:
        with looking(self.config.database_path) as view:
            found: dict[str, Any] = as_document(self.config, view, self.clock.now())["orders"]["trust"]
        return found

    async def ends(self, **changes: Any) -> list[str | None]:
        """How a good order of Anna and Ben ends now, as the server holds it."""
        assert self.live is not None
        known = len(self.ended())
        for _ in range(2):
            await self.give(self.live, self.signed("pause", **changes))
            await self.cycle(self.live, pause_s=1.0)
            await self.delivered(self.live)
            if len(self.ended()) > known:
                break
        return [error for _, _, error in self.ended()[known:]]


@pytest.fixture
async def scene(tmp_path: Path) -> AsyncIterator[RootScene]:
    made = RootScene(tmp_path)
    made.agent()
    yield made
    await made.close()


async def test_it_asks_from_nothing_and_takes_orders_once_the_chain_is_there(scene: RootScene) -> None:
    scene.server.order_trust = []
    await scene.hears()
    assert scene.said() == {"root": 0, "keys": 0}
    assert await scene.ends() == ["no_order_keys"]
    await scene.hears(ROOT, keys())
    assert await scene.ends() == [None]
    await scene.hears()
    assert scene.said() == {"root": 1, "keys": 1}
    assert scene.server.check_ins[-1]["order_trust"]["pin"] == pin(ROOT)


async def test_a_server_that_has_been_taken_over_gets_no_root_or_list_of_its_own_in(
    scene: RootScene, capsys: pytest.CaptureFixture[str]
) -> None:
    from tests.order_keys import ANNA, BEN, MALLORY

    own = root(by=[MALLORY, ANNA], holders=[MALLORY, ANNA, BEN])
    await scene.hears(own, keys(by=[MALLORY, ANNA]), ROOT, keys(by=[CARA]))
    await scene.hears(own, root(by=[CARA, MALLORY], holders=[CARA, MALLORY, ANNA], version=2))
    await scene.hears()
    assert scene.said() == {"root": 1, "keys": 0}
    said = capsys.readouterr().out
    assert said.count("order.trust_refused") == 4, "each document once"
    assert "trust_pin" in said and "trust_threshold" in said
    assert await scene.ends() == ["no_order_keys"]


async def test_everything_is_there_after_a_restart_and_nothing_older_comes_back(scene: RootScene) -> None:
    following = root(by=[CARA, DORA], holders=[CARA, DORA, FAYE], version=2)
    await scene.hears(ROOT, keys(version=4))
    await scene.hears(following, keys(version=5))
    await scene.restart()
    await scene.hears(ROOT, keys(version=4))
    await scene.hears()
    assert scene.said() == {"root": 2, "keys": 5}
    assert await scene.ends() == [None]


async def test_an_expired_list_stops_orders_and_not_the_checks_and_says_so_without_any_order(
    scene: RootScene, capsys: pytest.CaptureFixture[str]
) -> None:
    await scene.hears(ROOT, keys(expires="2026-11-23T00:00:00Z"))
    assert scene.status() | {"root_sha256": ""} == {
        "known_by": "order_root_file", "state": "good", "root_version": 1, "root_sha256": "", "keys_version": 1,
        "expires": "2026-11-23T00:00:00Z",
    }  # fmt: skip
    scene.clock.advance(86_400)
    capsys.readouterr()
    await scene.hears()
    await scene.hears()
    assert capsys.readouterr().out.count("order.keys_unusable") == 1
    assert scene.status()["state"] == "expired"
    looks = scene.detector.looks
    assert await scene.ends() == ["order_keys_expired"], "the refusal is a record that the server holds"
    assert scene.detector.looks > looks
    await scene.hears(keys(version=2))
    assert await scene.ends() == [None]


async def test_an_expired_root_expires_its_list(scene: RootScene) -> None:
    short = root(expires="2026-11-23T00:00:00Z")
    scene.repin(pin(short))
    await scene.hears(short, keys())
    scene.clock.advance(86_400)
    assert await scene.ends() == ["order_keys_expired"]


async def test_a_lost_key_is_replaced_from_afar(scene: RootScene) -> None:
    """Emil lost his key. Cara and Dora sign the next root with Faye in it; from then on Dora and Faye can sign lists."""
    await scene.hears(ROOT, keys())
    await scene.hears(root(by=[CARA, DORA], holders=[CARA, DORA, FAYE], version=2))
    assert await scene.ends() == [None], "Cara's and Dora's list stands on"
    await scene.hears(keys(version=2, by=[DORA, EMIL]))
    await scene.hears(keys(version=2, by=[DORA, FAYE]))
    await scene.hears()
    assert scene.said() == {"root": 2, "keys": 2}


async def test_what_could_not_be_made_durable_does_not_count(scene: RootScene, monkeypatch: pytest.MonkeyPatch) -> None:
    assert scene.live is not None
    store = scene.live.orders.trust._store

    def full(*_: Any) -> None:
        raise StorageError("disk full", code="enospc")

    for name, documents in (("begin", [ROOT]), ("use_keys", [ROOT, keys()])):
        with monkeypatch.context() as broken:
            broken.setattr(store, name, full)
            await scene.hears(*documents)
            scene.server.order_trust = []
        assert await scene.ends() == ["no_order_keys"]
    await scene.hears(ROOT, keys())
    assert await scene.ends() == [None]


async def test_a_damaged_document_begins_the_chain_anew_from_the_pin(scene: RootScene) -> None:
    await scene.hears(ROOT, keys())
    assert scene.live is not None
    database = scene.live._database
    await database.call(
        lambda: database.write(lambda c: c.execute("UPDATE order_trust SET envelope = x'00' WHERE role='root'"))
    )
    await scene.restart()
    await scene.hears()
    assert scene.said() == {"root": 0, "keys": 0}
    await scene.hears(ROOT, keys())
    assert await scene.ends() == [None]


async def test_another_pin_begins_another_chain_at_once(scene: RootScene) -> None:
    await scene.hears(ROOT, keys(version=9))
    other = root(by=[FAYE, EMIL], holders=[FAYE, EMIL, DORA])
    scene.repin(pin(other))
    assert await scene.ends() == ["no_order_keys"]
    await scene.hears(other, keys(by=[FAYE, EMIL]))
    await scene.hears()
    assert scene.said() == {"root": 1, "keys": 1}


@pytest.mark.parametrize("text", ["", "0" * 63, "A" * 64, "Jane Roe"])
async def test_a_pin_that_cannot_be_read_lets_no_order_through(
    scene: RootScene, text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    await scene.hears(ROOT, keys())
    scene.repin(text)
    assert await scene.ends() == ["no_order_keys"]
    assert scene.status()["state"] == "bad_order_root"
    assert "bad_order_root" in capsys.readouterr().out
    assert "order_trust" not in scene.server.check_ins[-1]


async def test_a_list_of_another_client_is_not_this_hosts(scene: RootScene) -> None:
    other = root(tenant="msp-2")
    scene.repin(pin(other))
    await scene.hears(other, keys(tenant="msp-2"))
    assert await scene.ends() == ["no_order_keys"]


def test_a_host_has_a_root_or_a_list_of_its_own(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="order_keys_file: not with order_root_file"):
        AgentConfig(
            client_id="c", site_id="s", host_id="h", order_root_file=tmp_path / "a", order_keys_file=tmp_path / "b"
        )


# The pin at enrolment


def token(order_root: str | None) -> Token:
    from datetime import UTC, datetime

    return Token("cae1.x", "clinic-1", datetime(2027, 1, 1, tzinfo=UTC), None, order_root)


@pytest.mark.parametrize(
    ("in_token", "wanted", "found"),
    [(None, None, None), ("a" * 64, None, "a" * 64), (None, "b" * 64, "b" * 64), ("b" * 64, "b" * 64, "b" * 64)],
)
def test_the_pin_comes_from_the_token_or_from_the_operator(
    in_token: str | None, wanted: str | None, found: str | None
) -> None:
    assert order_root_of(token(in_token), wanted) == found


def test_a_token_that_names_another_root_than_the_operator_is_refused() -> None:
    with pytest.raises(ConfigError, match="nothing was sent"):
        order_root_of(token("a" * 64), "b" * 64)


def test_a_pin_that_is_there_stays_unless_the_operator_insists(tmp_path: Path) -> None:
    path = tmp_path / "keys" / "order-root"
    assert pin_order_root(path, None, insisted=False) is None and not path.exists()
    assert pin_order_root(path, "a" * 64, insisted=False) == "a" * 64
    assert pin_order_root(path, "b" * 64, insisted=False) == "a" * 64, "a server that makes a new token changes nothing"
    assert pin_order_root(path, "b" * 64, insisted=True) == "b" * 64
    assert path.stat().st_mode & 0o777 == 0o600
