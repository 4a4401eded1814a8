"""`compliance-agent server operator-token`: shown once, listed without a secret, and every way to be refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.cli.command import Ended, run
from tests.cli.test_json import documented, flat, problems


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data directory with a site and the first owner of all."""
    root = tmp_path_factory.mktemp("tokens") / "data"
    assert run("server", "init", "--data-dir", root).status == 0
    assert run("server", "enrol-token", "--site", "clinic-1", "--data-dir", root).status == 0
    return root


def token(data: Path, *words: str | Path) -> Ended:
    return run("server", "operator-token", *words, "--data-dir", data)


def test_a_life_of_a_token(data: Path, tmp_path: Path) -> None:
    file = tmp_path / "token"
    words = ("--label", "nightly", "--role", "viewer", "--site", "clinic-1", "--expires", "90d", "--out", file)
    made = token(data, "create", "admin", *words)
    assert (made.status, made.out, file.stat().st_mode & 0o777) == (0, "", 0o600)
    secret, named = file.read_text().strip(), made.line.split()[1]
    assert secret.startswith("cao1.")
    rotated = token(data, "rotate", named, "--overlap", "1h")
    assert rotated.status == 0 and rotated.out.startswith("cao1.") and rotated.out.strip() != secret
    listed = token(data, "list", "--json")
    document = json.loads(listed.out)
    assert problems(document) == []
    assert {key for key, _ in flat(document)} - {"schema"} <= set(
        documented("compliance-agent/server-operator-tokens/v1")
    )
    newer, older = document["tokens"]
    assert (older["token_id"], older["state"], older["successor"]) == (named, "replaced", newer["token_id"])
    assert (newer["label"], newer["role"], newer["sites"], newer["state"]) == (
        "nightly",
        "viewer",
        ["clinic-1"],
        "live",
    )
    assert token(data, "revoke", newer["token_id"]).status == 0
    shown = token(data, "list", "--user", "admin")
    assert [line.split()[0] for line in shown.out.splitlines()[1:]] == [newer["token_id"], older["token_id"]]
    for ended in (made, listed, shown):
        assert secret[5:] not in ended.out + ended.err and rotated.out.strip()[5:] not in ended.out + ended.err
    held = b"".join(path.read_bytes() for path in data.rglob("*") if path.is_file())
    assert secret.encode() not in held and secret[5:].encode() not in held


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (("create", "nobody"), "no user nobody"),
        (("create", "admin", "--role", "auditor"), "auditor"),
        (("create", "admin", "--site", "nowhere"), "nowhere"),
        (("create", "admin", "--expires", "400d"), "366 days"),
        (("create", "admin", "--label", "two words"), "--label"),
        (("rotate", "0" * 16), "0 have"),
        (("rotate", "xyz"), "TOKEN_ID"),
        (("rotate", "0" * 16, "--overlap", "31d"), "30 days"),
        (("revoke", "0" * 16), "0 have"),
    ],
)
def test_what_is_refused_says_why_and_changes_nothing(data: Path, words: tuple[str, ...], named: str) -> None:
    before = token(data, "list", "--json").out
    ended = token(data, *words)
    assert ended.status not in {0, 1} and named in ended.err and ended.out == ""
    assert token(data, "list", "--json").out == before


def test_it_is_not_written_over_anything(data: Path, tmp_path: Path) -> None:
    file = tmp_path / "there"
    file.write_text("mine")
    before = token(data, "list", "--json").out
    assert token(data, "create", "admin", "--out", file).status == 77
    assert (file.read_text(), token(data, "list", "--json").out) == ("mine", before)
