"""A packet that is a sample has exactly the records that are drawn, and whoever has it draws the same again, offline."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from compliance_agent.errors import Refusal
from compliance_agent.evidence.canonical import canonical
from compliance_agent.packet import sampled
from compliance_agent.packet.build import Built, Places, checked, write
from compliance_agent.packet.choosing import Wanted
from compliance_agent.packet.content import Scope
from compliance_agent.packet.sampled import Drawing
from compliance_agent.packet.verify import records_of, verify_files
from compliance_agent.server.records import Dates
from compliance_agent.server.store import SqlStore
from tests.packet.scene import DAY, SITE, Damage, Files, Made, built
from tests.packet.test_verify import codes

FIRST, LAST = DAY - timedelta(days=1), DAY + timedelta(days=1)
DRAWING = Drawing((), 6, "auditor-7")


def sample_packet(made: Made, out: Path, drawing: Drawing = DRAWING, dates: Dates | None = None, **asked: Any) -> Built:
    async def wrote() -> tuple[Scope, int]:
        store = await SqlStore.open(made.data_dir / "server.db")
        wanted = Wanted(SITE, FIRST, LAST, drawing=drawing, **asked)
        try:
            return await write(store.for_sites({SITE}, dates), Places.of(made.data_dir), wanted, out)
        finally:
            await store.close()

    return checked(out, *asyncio.run(wrote()))


@pytest.fixture(scope="module")
def drawn(made: Made, tmp_path_factory: pytest.TempPathFactory) -> Made:
    out: Path = tmp_path_factory.mktemp("sampled") / "packet.zip"
    result = sample_packet(made, out)
    return Made(made.data_dir, out.read_bytes(), result)


@pytest.fixture(scope="module")
def everything(made: Made, tmp_path_factory: pytest.TempPathFactory) -> Files:
    """The files of a packet of all three days."""
    out: Path = tmp_path_factory.mktemp("whole") / "packet.zip"
    built(made.data_dir, out, FIRST, LAST)
    return replace(made, raw=out.read_bytes()).files


def test_it_has_the_records_of_the_sample_alone_and_verifies(drawn: Made, everything: Files) -> None:
    report, said = verify_files(drawn.files), json.loads(drawn.files["sample.json"])
    assert report.problems == [] and report.open_ends == []
    named = [one["record"]["sha256"] for one in said["instances"] if one["record"]]
    assert sorted(record.digest for record in records_of(drawn.files)) == sorted(named)
    assert 0 < len(named) == report.verified < len(records_of(everything)), (
        "and some host-days are of a host that says nothing"
    )
    assert said["sample"]["missing"] == 6 - len(named) > 0 and said["seed"] == "auditor-7"
    assert b"a sample of it" in drawn.files["README.txt"]


def test_the_same_seed_makes_the_same_sample_and_another_one_another(drawn: Made, made: Made, tmp_path: Path) -> None:
    again = sample_packet(made, tmp_path / "again.zip")
    assert again.scope == drawn.built.scope, "its digest of sample.json too"
    other = sample_packet(made, tmp_path / "other.zip", replace(DRAWING, seed="auditor-8"))
    assert other.report.ok and other.scope.sample != drawn.built.scope.sample


def test_from_what_the_log_held_then(drawn: Made, made: Made, tmp_path: Path) -> None:
    """What came into the log since is not drawn, and the root of that time is held to the log."""
    then = sample_packet(made, tmp_path / "then.zip", replace(DRAWING, size=13))
    assert (
        then.report.problems == []
        and json.loads(replace(made, raw=then.path.read_bytes()).files["sample.json"])["log"]["size"] == 13
    )
    assert then.records < drawn.built.records


def test_of_a_section_and_of_one_host(made: Made, tmp_path: Path) -> None:
    result = sample_packet(made, tmp_path / "packet.zip", replace(DRAWING, hosts=("ws-01",)), control="164.312(b)")
    files = replace(made, raw=result.path.read_bytes()).files
    assert result.report.problems == [] and {one["host"] for one in json.loads(files["sample.json"])["instances"]} == {
        "ws-01"
    }


def test_an_account_with_dates_draws_from_its_days_alone(made: Made, tmp_path: Path) -> None:
    with pytest.raises(Refusal) as caught:
        sample_packet(made, tmp_path / "packet.zip", dates=Dates(DAY, DAY))
    assert caught.value.code == "outside_dates" and not (tmp_path / "packet.zip").exists()


# --- each thing that could be done to it, by whoever has the server's packet key


def said_again(files: Files, change: Callable[[dict[str, Any]], None]) -> None:
    """Another sample.json, which packet.json names."""
    said = json.loads(files["sample.json"])
    change(said)
    files["sample.json"] = canonical(said)
    scope = replace(Scope.parse(files["packet.json"]), sample=hashlib.sha256(files["sample.json"]).hexdigest())
    files["packet.json"] = scope.encode()


def base_of(files: Files) -> str:
    return next(path for path in sorted(files) if path.endswith("/bundle.json")).rpartition("/")[0]


def leave_out(files: Files) -> None:
    base = base_of(files)
    for path in [path for path in files if path.startswith(f"{base}/")]:
        del files[path]


def said_to_be_missing(files: Files) -> None:
    leave_out(files)

    def change(said: dict[str, Any]) -> None:
        for one in said["instances"]:
            one["record"] = None

    said_again(files, change)


def with_another(files: Files, everything: Files) -> None:
    """One more record: genuine, signed, in the log, and not drawn."""
    base = next(path for path in sorted(everything) if path.endswith("/bundle.json") and path not in files).rpartition(
        "/"
    )[0]
    files |= {path: content for path, content in everything.items() if path.startswith(f"{base}/")}


def swap(files: Files, everything: Files) -> None:
    """Another record of the same host and day, and the document says so."""
    base = base_of(files)
    day = base.rpartition("/")[0]
    other = next(path.rpartition("/")[0] for path in sorted(everything)
                 if path.startswith(f"{day}/") and path.endswith("/bundle.json") and not path.startswith(f"{base}/"))  # fmt: skip
    leave_out(files)
    files |= {path: content for path, content in everything.items() if path.startswith(f"{other}/")}


DAMAGES: dict[str, Damage] = {
    "another seed": lambda files: said_again(files, lambda said: said.update(seed="auditor-8")),
    "a host-day put in place of another": lambda files: said_again(
        files, lambda said: said["instances"][0].update(day="2026-11-20", record=None)
    ),
    "the order of what was drawn": lambda files: said_again(files, lambda said: said["instances"].reverse()),
    "fewer than were asked for": lambda files: said_again(files, lambda said: said["instances"].pop()),
    "hosts to draw from left out": lambda files: said_again(files, lambda said: said["population"].update(instances=6)),
    "a root that never was": lambda files: said_again(files, lambda said: said["log"].update(root="0" * 64)),
    "a size that never was": lambda files: said_again(files, lambda said: said["log"].update(size=10**6)),
    "a record left out": leave_out,
    "a record said to be missing": said_to_be_missing,
    "no document": lambda files: said_again(files, lambda said: said.clear()),
    "a document that packet.json does not name": lambda files: files.update({"sample.json": b"{}"}),
}  # fmt: skip


@pytest.mark.parametrize("what", DAMAGES)
def test_each_is_named_though_everything_is_signed_again(drawn: Made, what: str) -> None:
    files = drawn.files
    DAMAGES[what](files)
    assert "wrong_sample" in codes(verify_files(drawn.signed_again(files)))


@pytest.mark.parametrize("change", [with_another, swap])
def test_a_record_that_was_not_drawn_is_named(
    drawn: Made, everything: Files, change: Callable[[Files, Files], None]
) -> None:
    files = drawn.files
    change(files, everything)
    assert "wrong_sample" in codes(verify_files(drawn.signed_again(files)))


def test_that_it_is_a_sample_cannot_be_kept_quiet(drawn: Made) -> None:
    files = drawn.files
    files["packet.json"] = replace(Scope.parse(files["packet.json"]), sample=None).encode()
    assert {"extra_file", "missing_record"} <= codes(verify_files(drawn.signed_again(files)))
    del files["sample.json"]
    assert "missing_record" in codes(verify_files(drawn.signed_again(files)))


def test_without_the_drawing_again_they_would_go_unnamed(drawn: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    """The planted fault."""
    monkeypatch.setattr(sampled, "problems", lambda *_: iter(()))
    files = drawn.files
    DAMAGES["another seed"](files)
    assert "wrong_sample" not in codes(verify_files(drawn.signed_again(files)))
