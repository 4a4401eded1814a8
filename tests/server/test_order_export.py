"""Orders as files: what docs/orders.md says to type finds every altered byte, with sha256sum and openssl alone."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from compliance_agent.cli.server_order_export import SCHEMA, _found
from tests.cli.test_json import problems
from tests.order_keys import ANNA, BEN
from tests.order_roots import CARA, DORA, FAYE, keys, root
from tests.server.builder import Server, on_sqlite
from tests.server.test_orders import Office

pytestmark = [pytest.mark.anyio, on_sqlite]
PAGE = (Path(__file__).resolve().parent.parent.parent / "docs" / "orders.md").read_text("utf-8")
DOCUMENTS = (
    root(tenant="msp"),
    keys(tenant="msp"),
    root(tenant="msp", by=[CARA, DORA], holders=[CARA, DORA, FAYE], version=2),
    keys(tenant="msp", version=2),
)


def commands() -> str:
    """What the page says to type in the directory."""
    section = PAGE.split("## Checking one without the server")[1].split("\n## ")[0]
    found = re.findall(r"^    (.*)$", section, re.MULTILINE)
    assert len(found) >= 10
    return "\n".join(found)


def checked(directory: Path) -> tuple[int, str]:
    done = subprocess.run(
        ["bash", "-c", commands()], cwd=directory, capture_output=True, text=True, check=False, timeout=60
    )
    return done.returncode, done.stdout


@pytest.fixture
async def exported(server: Server, tmp_path: Path) -> Path:
    """Two signed orders and a draft, under two roots and two lists."""
    office = await Office.opened(server)
    user = await server.services.store.user("jo")
    assert user is not None
    reader = await server.services.users.reader(user)
    for raw in DOCUMENTS:
        await server.services.order_trust.publish(user, reader, "clinic-1", raw)
    await office.sign(await office.approved("pause"), ANNA)
    await office.sign(await office.approved("rotate_key"), ANNA, BEN)
    await office.draft("pause")
    files, index = await _found(server.services, "clinic-1")
    for name, content in files.items():
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content)
    (tmp_path / "index.json").write_text(json.dumps({"schema": SCHEMA, "site_id": "clinic-1", **index}))
    return tmp_path


async def test_the_commands_of_the_page_find_nothing_wrong_and_the_index_says_who_did_what(exported: Path) -> None:
    assert checked(exported) == (0, "")
    index = json.loads((exported / "index.json").read_text())
    assert problems(index) == []
    assert sorted(item["kind"] for item in index["orders"]) == ["pause", "pause", "rotate_key"] and index["complete"]
    rotate = next(item for item in index["orders"] if item["kind"] == "rotate_key")
    assert {mark["who"] for mark in rotate["marks"] if mark["what"] == "approved"} == {"jo", "kim"}
    assert {mark["who"] for mark in rotate["marks"] if mark["what"] == "signed"} == {ANNA.key_id, BEN.key_id}
    assert (exported / "orders" / f"{rotate['sha256']}.json").exists()
    assert sorted(path.name for path in (exported / "trust").iterdir()) == [
        "keys-1.json", "keys-2.json", "root-1.json", "root-2.json",
    ]  # fmt: skip
    assert len(list((exported / "keys").iterdir())) == 6


def _other_bytes(path: Path) -> None:
    path.write_bytes(path.read_bytes().replace(b'"signatures"', b'"signatures "'))


def _other_payload(path: Path) -> None:
    document = json.loads(path.read_text())
    document["payload"] = document["payload"][:-8] + "AAAA" + document["payload"][-4:]
    path.write_text(json.dumps(document, separators=(",", ":")))


def _other_type(path: Path) -> None:
    path.write_text(path.read_text().replace("order-", "orders-"))


@pytest.mark.parametrize(
    ("which", "change"),
    [("orders", _other_bytes), ("orders", _other_payload), ("trust", _other_payload), ("trust", _other_type)],
)
async def test_an_altered_file_is_named(exported: Path, which: str, change: Callable[[Path], None]) -> None:
    for path in sorted((exported / which).iterdir()):
        before = path.read_bytes()
        change(path)
        status, said = checked(exported)
        assert (status, f"BAD: {which}/{path.name}") == (1, said.strip())
        path.write_bytes(before)
    assert checked(exported)[0] == 0


async def test_a_key_of_somebody_else_is_no_signature(exported: Path) -> None:
    ours, others = exported / "keys" / f"{ANNA.key_id}.pem", exported / "keys" / f"{CARA.key_id}.pem"
    ours.write_bytes(others.read_bytes())
    status, said = checked(exported)
    assert status == 1 and said.startswith("BAD: orders/")
