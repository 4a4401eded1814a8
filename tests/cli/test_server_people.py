"""`compliance-agent server user`: everything that is said of a person, and every way to be refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.cli.command import Ended, run
from tests.cli.test_json import documented, flat, problems


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data directory with a site of the server's own client, and the first owner of all."""
    root = tmp_path_factory.mktemp("people")
    (root / "password").write_text("correct horse battery\n")
    (root / "password").chmod(0o600)
    assert run("server", "init", "--data-dir", root / "data").status == 0
    assert run("server", "enrol-token", "--site", "clinic-1", "--data-dir", root / "data").status == 0
    return root / "data"


def user(data: Path, *words: str | Path) -> Ended:
    return run("server", "user", *words, "--data-dir", data)


def said(data: Path, *words: str | Path) -> dict[str, Any]:
    """The one person of an answer."""
    ended = user(data, *words, "--json")
    assert ended.status == 0, ended.err
    document = json.loads(ended.out)
    assert problems(document) == []
    (person,) = document["users"]
    found: dict[str, Any] = person
    return found


def test_a_life_of_a_person(data: Path) -> None:
    password = ("--password-file", data.parent / "password")
    made = said(data, "add", "j.doe", "--role", "auditor", "--site", "clinic-1", "--from", "2026-01-01", "--until",
                "2026-03-31", *password)  # fmt: skip
    assert (made["role"], made["client_id"], made["sites"]) == ("auditor", "msp", ["clinic-1"])
    assert (made["first_on"], made["last_on"], made["disabled_at"]) == ("2026-01-01", "2026-03-31", None)
    changed = said(data, "role", "j.doe", "operator")
    assert (changed["role"], changed["first_on"], changed["person_id"]) == ("operator", None, made["person_id"])
    assert said(data, "sites", "j.doe")["sites"] is None
    assert said(data, "sites", "j.doe", "--every-client")["client_id"] is None
    assert said(data, "disable", "j.doe")["disabled_at"] is not None
    listed = user(data, "list")
    assert [line.split()[0] for line in listed.out.splitlines()[1:]] == ["admin", "j.doe"]
    assert "disabled" in listed.out.splitlines()[-1]
    assert said(data, "enable", "j.doe")["disabled_at"] is None
    whole = json.loads(user(data, "list", "--json").out)
    assert {key for key, _ in flat(whole)} - {"schema"} <= set(documented("compliance-agent/server-users/v1"))


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (("disable", "admin"), "last owner"),
        (("role", "admin", "viewer"), "last owner"),
        (("role", "nobody", "viewer"), "no user nobody"),
        (("role", "admin", "king"), "king"),
        (("role", "admin", "auditor"), "auditor"),
        (("sites", "admin", "--site", "nowhere"), "nowhere"),
        (("sites", "admin", "--client", "a", "--every-client"), "one of them"),
        (("role", "admin", "auditor", "--from", "2026-01-01"), "both"),
        (("role", "admin", "auditor", "--from", "2026-02-01", "--until", "2026-01-01"), "in order"),
        (("role", "admin", "auditor", "--from", "yesterday", "--until", "2026-01-01"), "yesterday"),
    ],
)
def test_what_is_refused_says_why_and_changes_nothing(data: Path, words: tuple[str, ...], named: str) -> None:
    before = user(data, "list", "--json").out
    ended = user(data, *words)
    assert ended.status not in {0, 1} and named in ended.err
    assert user(data, "list", "--json").out == before
