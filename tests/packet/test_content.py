"""The scope reads back as it was written, and nothing else is one; a container has one spelling."""

from __future__ import annotations

import io
import json
import zipfile
from typing import Any

import pytest

from compliance_agent.errors import BadEvidence, ConfigError
from compliance_agent.packet import archive
from compliance_agent.packet.content import Scope, section
from tests.packet.scene import Made


def test_the_scope_reads_back(made: Made) -> None:
    raw = made.files["packet.json"]
    assert Scope.parse(raw).encode() == raw
    assert Scope.parse(raw) == made.built.scope


@pytest.mark.parametrize(
    "change",
    [{"since": "2026-11-23"}, {"since": "x"}, {"until": "9999-12-31"}, {"until": "20261122"},
     {"size": -1}, {"size": "1"}, {"pending": -1}, {"site_id": "../x"},
     {"host": "a/b"}, {"control": "hipaa-164.312.b"}, {"hosts": [{}]}, {"hosts": None}, {"signed_at": "now"},
     {"elsewhere": {"2027": -1}}, {"elsewhere": []}, {"origin": 1}, {"more": 1}, {"schema": "x"}],
    ids=str,
)  # fmt: skip
def test_what_is_not_a_scope_is_refused(made: Made, change: dict[str, Any]) -> None:
    document = {**json.loads(made.files["packet.json"]), **change}
    with pytest.raises(BadEvidence, match="not the scope"):
        Scope.parse(json.dumps(document, sort_keys=True, separators=(",", ":")).encode())


def test_another_spelling_of_the_scope_is_refused(made: Made) -> None:
    for raw in (made.files["packet.json"] + b"\n", b"", b"[]", b"{}", b"\xff"):
        with pytest.raises(BadEvidence, match="not the scope"):
            Scope.parse(raw)


def test_a_section_that_is_none_is_refused_with_a_hint() -> None:
    with pytest.raises(ConfigError, match="not a section") as refused:
        section("312(b)")
    assert "164.312(b)" in refused.value.hint


def test_a_container_reads_back() -> None:
    files = {"b/c.txt": b"1", "a": b"", "keys/x.pem": b"\0" * 70_000}
    assert archive.unpack(archive.pack(files)) == files
    assert archive.pack(dict(reversed(files.items()))) == archive.pack(files)


@pytest.mark.parametrize("name", ["../x", "/x", "a/../b", "a//b", "a b", "", ".", "a/.", "é", "a\\b", "a/"])
def test_a_path_that_leads_elsewhere_is_refused(name: str) -> None:
    with pytest.raises(BadEvidence, match="plain relative path"):
        archive.pack({name: b""})
    held = io.BytesIO()
    with zipfile.ZipFile(held, "w") as made_elsewhere:
        made_elsewhere.writestr(zipfile.ZipInfo(name), b"")
    with pytest.raises(BadEvidence):
        archive.unpack(held.getvalue())


def test_a_bomb_and_a_second_name_are_refused() -> None:
    held = io.BytesIO()
    with zipfile.ZipFile(held, "w", zipfile.ZIP_DEFLATED) as bomb:
        bomb.writestr("a", b"\0" * 10_000_000)
    with pytest.raises(BadEvidence, match="not as a packet is written"):
        archive.unpack(held.getvalue())
    held = io.BytesIO()
    with zipfile.ZipFile(held, "w") as twice, pytest.warns(UserWarning, match="Duplicate"):
        twice.writestr("a", b"1")
        twice.writestr("a", b"2")
    with pytest.raises(BadEvidence, match="not as a packet is written"):
        archive.unpack(held.getvalue())
