"""`compliance-agent packet` as a person runs it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.cli.command import run
from tests.packet.scene import Made

PERIOD = ("--site", "clinic-1", "--from", "2026-11-22", "--to", "2026-11-22")


def test_build_verify_show(made: Made, tmp_path: Path) -> None:
    out = tmp_path / "packet.zip"
    done = run("packet", "build", "--data-dir", made.data_dir, *PERIOD, "--out", out, "--json")
    assert done.status == 0, done.err
    assert json.loads(done.out)["records"] == 12
    assert out.read_bytes() == made.raw
    verified = run("packet", "verify", out)
    assert (verified.status, "12 of 12 records verified" in verified.out) == (0, True)
    assert "the keys came with the packet" in verified.line
    shown = run("packet", "show", out)
    assert shown.status == 0
    for text in ("ws-03", "unknown", "24", "0 %", "silent: ws-03 from 2026-11-22T00:00:00"):
        assert text in shown.out, text
    page = json.loads(run("packet", "show", out, "--json").out)
    assert (page["records"], page["verified"], page["counts"]["unknown"]) == (8, True, 2)


def test_build_of_exactly_a_sample(made: Made, tmp_path: Path) -> None:
    """The records of the host-days that are drawn and no other; said with the same seed and size it is the same file."""
    base = (
        "packet",
        "build",
        "--data-dir",
        made.data_dir,
        "--site",
        "clinic-1",
        "--from",
        "2026-11-21",
        "--to",
        "2026-11-23",
    )
    first = run(*base, "--sample", "6", "--out", tmp_path / "one.zip", "--json")
    assert first.status == 0, first.err
    facts = json.loads(first.out)
    drawn = facts["sample"]
    assert facts["problems"] == [] and (drawn["number"], drawn["instances"]) == (6, 6)
    assert facts["records"] == drawn["instances"] - drawn["missing"] > 0
    same = ("--sample", "6", "--seed", drawn["seed"], "--size", str(drawn["size"]), "--out", tmp_path / "two.zip")
    again = run(*base, *same)
    assert again.status == 0 and f"seed {drawn['seed']}" in again.out
    assert (tmp_path / "two.zip").read_bytes() == (tmp_path / "one.zip").read_bytes()
    assert run("packet", "verify", tmp_path / "one.zip").status == 0
    one = json.loads(
        run(*base, "--sample", "9", "--seed", "s", "--host", "ws-01", "--out", tmp_path / "host.zip", "--json").out
    )
    assert one["sample"]["instances"] == 3, "the three days of that host"


@pytest.mark.parametrize("number", ["nonsense", "0", "101", "-3", "2.5", ""])
def test_a_number_that_is_none_is_answered_with_the_range_and_the_next_step(number: str) -> None:
    """Of each command that draws; nothing has been read yet."""
    built = run("packet", "build", "--data-dir", "none", *PERIOD, "--out", "none.zip", "--sample", number)
    drawn = run("packet", "sample", "none.zip", "--number", number)
    for done, name, step in ((built, "--sample", "give --sample 25"), (drawn, "--number", "give --every")):
        assert done.status == 2
        assert f"'{name}': {number!r}: expected a whole number from 1 to 100; {step}" in " ".join(done.err.split())
    sized = run("packet", "sample", "none.zip", "--size", number)
    assert sized.status == (66 if number == "101" else 2), "there is no most"


@pytest.mark.parametrize(
    "words", [("--seed", "s"), ("--size", "4"), ("--sample", "2", "--log-year", "2026"), ("--sample", "0")]
)
def test_what_is_no_sample_is_a_word_too_many(made: Made, tmp_path: Path, words: tuple[str, ...]) -> None:
    out = tmp_path / "packet.zip"
    assert run("packet", "build", "--data-dir", made.data_dir, *PERIOD, "--out", out, *words).status == 2
    bad = run(
        "packet", "build", "--data-dir", made.data_dir, *PERIOD, "--out", out, "--sample", "2", "--seed", "Mrs Smith"
    )
    assert bad.status not in {0, 1} and "seed" in bad.err and not out.exists()


def test_a_damaged_packet_ends_in_65_and_is_named(made: Made, tmp_path: Path) -> None:
    path = tmp_path / "packet.zip"
    at = made.raw.index(b'"reason":"offset_too_large"')
    path.write_bytes(made.raw[:at] + b"'" + made.raw[at + 1 :])
    done = run("packet", "verify", path)
    assert done.status == 65
    from compliance_agent.packet import archive
    from compliance_agent.packet.verify import verify_files

    files = made.files
    victim = made.pick("bundle.sig")
    path.write_bytes(archive.pack({**files, victim: bytes(64)}))
    done = run("packet", "verify", path, "--json")
    assert done.status == 65
    named = {(item["code"], item["where"]) for item in json.loads(done.out)["problems"]}
    assert ("bad_signature", victim.rpartition("/")[0]) in named
    assert run("packet", "show", path).status == 65
    path.write_bytes(archive.pack({**files, victim.replace("bundle.sig", "bundle.json"): b"{}"}))
    shown = run("packet", "show", path, "--json")
    page = json.loads(shown.out)
    assert (shown.status, page["records"] + page["beside_the_period"]) == (65, 11)
    assert not verify_files(archive.unpack(path.read_bytes())).ok


def test_a_policy_from_elsewhere(made: Made, tmp_path: Path) -> None:
    path, policy = tmp_path / "packet.zip", tmp_path / "policy"
    path.write_bytes(made.raw)
    policy.write_bytes(made.files["policy"])
    done = run("packet", "verify", path, "--policy", policy)
    assert (done.status, done.err) == (0, "")
    policy.write_bytes(b"quorum none\n")
    assert run("packet", "verify", path, "--policy", policy).status == 65


@pytest.mark.parametrize(
    ("words", "status", "says"),
    [
        (("verify", "/nonexistent.zip"), 66, "cannot be read"),
        (("build", "--data-dir", "/nonexistent", *PERIOD, "--out", "x"), 66, "not the data directory"),
        (
            (
                "build",
                "--data-dir",
                "/nonexistent",
                "--site",
                "a",
                "--from",
                "2026-11-23",
                "--to",
                "2026-11-22",
                "--out",
                "x",
            ),
            2,
            "",
        ),
        (
            (
                "build",
                "--data-dir",
                "/nonexistent",
                "--site",
                "a",
                "--from",
                "yesterday",
                "--to",
                "2026-11-22",
                "--out",
                "x",
            ),
            2,
            "",
        ),
    ],
)
def test_what_cannot_be_done_is_said_in_a_line(tmp_path: Path, words: tuple[str, ...], status: int, says: str) -> None:
    done = run("packet", *words, cwd=tmp_path)
    assert done.status == status
    assert says in done.err
    assert list(tmp_path.iterdir()) == []


def test_an_empty_period_is_refused_with_what_there_is(made: Made, tmp_path: Path) -> None:
    words = ("--site", "clinic-1", "--from", "2026-01-01", "--to", "2026-01-31", "--out", tmp_path / "x.zip")
    done = run("packet", "build", "--data-dir", made.data_dir, *words)
    assert done.status == 66
    assert "there is evidence from 2026-11-21 to 2026-11-23" in done.line
    assert not (tmp_path / "x.zip").exists()
