"""The ceremony at the command line: a root of three holders, a list of order keys, a lost key; and what hosts make of it."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from compliance_agent import crypto
from compliance_agent.cli import group
from compliance_agent.core import order_roots
from compliance_agent.errors import AgentError, BadEvidence, DocumentError, NoInput, NotPermitted
from tests.order_keys import keys_document


class Room:
    """A directory with the holders' keys, and the command."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def run(self, *words: str | Path, fails: type[AgentError] | None = None) -> Result:
        done = CliRunner().invoke(group, ["order-root", *map(str, words)])
        if fails is not None:
            assert isinstance(done.exception, fails), done.output
        return done

    def holder(self, name: str) -> Path:
        """Make a key; its public entry."""
        done = self.run("key", self.root / f"{name}.pem", "--name", name)
        entry = self.root / f"{name}.json"
        entry.write_text(done.stdout)
        return entry

    def signed(self, path: Path, *names: str) -> Path:
        for name in names:
            assert self.run("sign", path, "--key", self.root / f"{name}.pem", "--yes").exit_code == 0
        return path

    def made(self, *names: str) -> Path:
        """The first root, unsigned."""
        words = [word for name in names for word in ("--key", str(self.holder(name)))]
        assert self.run("init", self.root / "root-1.json", "--tenant", "msp-1", *words).exit_code == 0
        return self.root / "root-1.json"

    def said(self, path: Path, *words: str | Path) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.run("show", path, *words, "--json").stdout)
        return found


@pytest.fixture
def room(tmp_path: Path) -> Room:
    return Room(tmp_path)


def test_a_ceremony_from_the_first_key_to_a_replaced_one(room: Room) -> None:
    first = room.made("cara", "dora", "emil")
    assert room.said(first)["state"] == "trust_unreadable", "nobody has signed it yet"
    room.signed(first, "cara")
    assert (room.said(first)["state"], room.said(first)["signed_by"]) == ("trust_threshold", ["cara"])
    room.signed(first, "cara")
    assert room.said(first)["state"] == "trust_threshold", "one holder, twice"
    room.signed(first, "dora")
    said = room.said(first)
    assert (said["state"], said["threshold"], said["names"]) == ("good", 2, ["cara", "dora", "emil"])

    source = room.root / "list.json"
    source.write_text(json.dumps(keys_document()))
    listed = room.root / "keys-1.json"
    assert room.run("keys", first, source, listed).exit_code == 0
    room.signed(listed, "cara", "dora")
    assert room.said(listed, "--under", first)["state"] == "good"

    second = room.root / "root-2.json"
    assert room.run("rotate", first, second, "--remove", "emil", "--add", room.holder("faye")).exit_code == 0
    room.signed(second, "faye", "dora")
    assert room.said(second, "--under", first)["state"] == "trust_threshold", "Faye is not of the former root"
    room.signed(second, "cara")
    said = room.said(second, "--under", first)
    assert (said["state"], said["version"], said["names"]) == ("good", 2, ["cara", "dora", "faye"])

    trust = order_roots.replay(
        room.said(first)["sha256"], [first.read_bytes(), second.read_bytes()], listed.read_bytes()
    )
    assert trust is not None and trust.keys is not None and trust.root.version == 2


def test_copies_that_were_signed_elsewhere_are_joined(room: Room) -> None:
    first = room.made("cara", "dora", "emil")
    copy = room.root / "copy.json"
    copy.write_bytes(first.read_bytes())
    room.signed(first, "cara")
    room.signed(copy, "emil")
    assert room.run("join", first, copy).exit_code == 0
    assert room.said(first)["signed_by"] == ["cara", "emil"]
    other = room.root / "other.json"
    assert room.run("rotate", first, other).exit_code == 0
    before = first.read_bytes()
    room.run("join", first, other, fails=BadEvidence)
    assert first.read_bytes() == before


def test_nothing_is_written_over_and_nothing_is_signed_unseen(room: Room) -> None:
    first = room.made("cara", "dora")
    room.run("rotate", first, first, fails=NotPermitted)
    room.run("sign", first, "--key", room.root / "nobody.pem", "--yes", fails=NoInput)
    assert not (room.root / "nobody.pem").exists(), "a key is not made by signing"
    done = CliRunner().invoke(
        group, ["order-root", "sign", str(first), "--key", str(room.root / "cara.pem")], input="n\n"
    )
    assert done.exit_code == 1 and '"threshold": 2' in done.output and "sign exactly this root?" in done.output
    assert json.loads(first.read_text())["signatures"] == []


def test_what_a_root_must_not_be_is_refused_where_it_is_made(room: Room) -> None:
    entries = [room.holder(name) for name in ("cara", "dora")]
    words = [word for entry in entries for word in ("--key", str(entry))]
    out = room.root / "root.json"
    for more in (["--threshold", "1"], ["--threshold", "3"], ["--key", str(entries[0])]):
        room.run("init", out, "--tenant", "msp-1", *words, *more, fails=DocumentError)
    assert room.run("init", out, "--tenant", "msp-1", *words, "--days", "0").exit_code == 2
    assert not out.exists()


@pytest.mark.parametrize(
    "changes",
    [{"tenant": "msp-2"}, {"version": 0}, {"signers": []}, {"own": True}],
)
def test_a_list_that_hosts_would_refuse_is_not_written(room: Room, changes: dict[str, Any]) -> None:
    first = room.signed(room.made("cara", "dora"), "cara", "dora")
    if changes.pop("own", False):
        public = base64.b64encode(crypto.Ed25519Signer(room.root / "cara.pem").public_bytes).decode()
        changes = {"signers": [{"name": "cara", "key": public, "kinds": None}]}
    source = room.root / "list.json"
    source.write_text(json.dumps(keys_document(**changes)))
    room.run("keys", first, source, room.root / "keys.json", fails=AgentError)
    assert not (room.root / "keys.json").exists()


def test_an_expired_root_is_said_to_be_expired(room: Room, monkeypatch: pytest.MonkeyPatch) -> None:
    from datetime import UTC, datetime

    from compliance_agent.cli import order_root

    monkeypatch.setattr(order_root, "_in", lambda _days: datetime(2026, 1, 1, tzinfo=UTC))
    first = room.signed(room.made("cara", "dora"), "cara", "dora")
    assert room.said(first)["state"] == "expired" and room.run("show", first).exit_code == 1


@pytest.mark.parametrize("content", [b"", b"{}", b"null", b"\xff", b'{"payloadType":"text/plain"}'])
def test_what_is_no_document_is_named(room: Room, content: bytes) -> None:
    path = room.root / "odd.json"
    path.write_bytes(content)
    for words in (("show", path), ("sign", path, "--key", room.root / "x.pem"), ("rotate", path, room.root / "out")):
        room.run(*words, fails=DocumentError)
