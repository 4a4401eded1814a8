"""A sample is drawn from every host-day there is, by the seed alone, from what the log held; what is missing is said."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
from dataclasses import replace
from datetime import date
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from compliance_agent.errors import BadEvidence, ConfigError
from compliance_agent.log.checkpoint import Checkpoint
from compliance_agent.log.merkle import RootHash, hash_leaf
from compliance_agent.log.tree import Edge
from compliance_agent.packet import sample
from compliance_agent.packet.content import RESULTS
from compliance_agent.packet.sample import Asked, Instance, Item, Life, Population, Unsealed
from tests.cli.command import run
from tests.packet.scene import Made, built

DAYS = sample.span_of(date(2026, 11, 1), date(2026, 11, 30))
LOG = Checkpoint("log", 100, RootHash(bytes(32)))
SEED = "audit-2026"


def asked(number: int | None = 5, **more: object) -> Asked:
    values = {"control": "164.312(b)", "hosts": (), "days": DAYS, "number": number, "seed": SEED, **more}
    return Asked("clinic-1", **values)  # type: ignore[arg-type]


def item(host: str, day: date, index: int, **counts: int) -> Item:
    digest = hashlib.sha256(f"{host} {day} {index}".encode()).hexdigest()
    said = dict.fromkeys(RESULTS, 0) | counts
    return Item(
        host, "k" * 64, f"id-{index}", "drift", digest, index, day, f"{day}T12:00:00.000000Z", f"evidence/{host}", said
    )


def whole(*hosts: str) -> Population:
    return sample.population([Life(host, DAYS[0], None) for host in hosts], asked())


def test_the_seed_alone_puts_the_instances_in_order() -> None:
    among = whole("a", "b")
    first = sample.draw(asked(None), among)
    assert sorted(first) == list(among.instances) and first != list(among.instances)
    assert sample.draw(asked(None), Population(among.instances[::-1])) == first
    assert sample.draw(asked(7), among) == first[:7], (
        "more are drawn by going on, so a larger sample holds a smaller one"
    )
    assert sample.draw(asked(None, seed="another"), among) != first


@pytest.mark.skipif(shutil.which("sha256sum") is None, reason="needs sha256sum")
def test_it_is_drawn_by_sha256sum_and_sort_alone(tmp_path: Path) -> None:
    among = whole("ws-01", "ws-02")
    (tmp_path / "population").write_bytes(among.lines)
    script = f"""while read host day; do
  echo "$(echo "{SEED} $host $day" | sha256sum | cut -d' ' -f1) $host $day"
done < population | LC_ALL=C sort | head -n 9 | cut -d' ' -f2-"""
    done = subprocess.run(["/bin/sh", "-c", script], cwd=tmp_path, capture_output=True, check=True, text=True)
    assert done.stdout.splitlines() == [f"{one.host} {one.day}" for one in sample.draw(asked(9), among)]
    summed = subprocess.run(["sha256sum", "population"], cwd=tmp_path, capture_output=True, check=True, text=True)
    assert summed.stdout.split()[0] == among.sha256


@given(st.permutations([item("a", day, at) for at, day in enumerate(DAYS[:9] * 3)]))
def test_the_order_in_which_records_come_does_not_matter(items: list[Item]) -> None:
    ordered = sorted(items, key=lambda one: one.index)
    wanted = sample.pull(asked(None), LOG, whole("a"), ordered).as_document()
    assert sample.pull(asked(None), LOG, whole("a"), items).as_document() == wanted


def test_a_day_without_a_record_stays_in_and_earlier_ones_are_offered_beside_it() -> None:
    among = whole("a")
    drawn = sample.draw(asked(3), among)
    missing = max(drawn)
    free = [one for one in among.instances if one not in drawn and one < missing]
    items = [item("a", one.day, at) for at, one in enumerate([*free, *drawn]) if one != missing]
    pulled = sample.pull(asked(3), LOG, among, items)
    assert [one.instance for one in pulled.pulled] == drawn and pulled.missing == 1
    [gone] = [one for one in pulled.pulled if one.shown is None]
    assert gone.instance == missing
    offered = [Instance("a", one.day) for one in gone.earlier]
    assert offered == sorted(free, reverse=True)[:3], "the latest days before it that are not drawn themselves"
    assert f"{missing.host} {missing.day} -\n".encode() in pulled.lines
    nothing = sample.pull(asked(3), LOG, among, [])
    assert nothing.missing == 3 and not any(one.earlier for one in nothing.pulled)


def test_earlier_ones_are_of_the_same_host_and_of_the_last_month() -> None:
    span = sample.span_of(date(2026, 9, 1), date(2026, 11, 30))
    only = asked(1, days=(span[-1],))
    among = sample.population([Life("a", span[0], None)], only)
    items = [item("b", span[-2], 1), item("a", span[-33], 2), item("a", span[-32], 3), item("a", span[-1], 100)]
    [one] = sample.pull(only, LOG, among, items).pulled
    assert one.shown is None, "entry 100 is not under a checkpoint of 100 entries"
    assert [found.day for found in one.earlier] == [span[-32]]


def test_only_what_the_log_held_counts() -> None:
    only, day = asked(1, days=(DAYS[3],)), DAYS[3]
    among = sample.population([Life("a", DAYS[0], None)], only)
    items = [item("a", day, at) for at in (98, 99, 100, 101)]
    [one] = sample.pull(only, LOG, among, items, {Instance("a", day): Unsealed(pending=2)}).pulled
    assert [found.index for found in one.items] == [98, 99] and one.unsealed.pending == 2
    [later] = sample.pull(only, replace(LOG, size=102), among, items).pulled
    assert len(later.items) == 4


def test_who_was_not_enrolled_is_not_drawn_and_is_counted() -> None:
    lives = [Life("a", DAYS[10], DAYS[19]), Life("a", DAYS[25], None), Life("b", DAYS[0], None)]
    found = sample.population(lives, asked())
    assert (len(found.instances), found.not_enrolled) == (10 + 5 + 30, 15)
    assert len(sample.population(lives, asked(hosts=("a",))).instances) == 15
    with pytest.raises(ConfigError, match="'c'") as refused:
        sample.population(lives, asked(hosts=("a", "c")))
    assert refused.value.code == "unknown_host"


@pytest.mark.parametrize(
    "wrong",
    [
        {"control": "164.999"}, {"days": ()}, {"days": DAYS[::-1]}, {"days": (date(2025, 1, 1), date(2026, 1, 2))}, {"number": 0},
        {"number": 101}, {"seed": ""}, {"seed": "a b"}, {"seed": "a\n"}, {"seed": "ä"}, {"seed": "a" * 65},
    ],
)  # fmt: skip
def test_what_cannot_be_drawn_is_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ConfigError):
        asked(**{"number": 5, **wrong})  # type: ignore[arg-type]


@given(st.integers(1, 700), st.data())
def test_an_older_checkpoint_has_the_root_that_the_log_had(size: int, data: st.DataObject) -> None:
    leaves = [hash_leaf(b"%d" % at) for at in range(size)]
    edge, tiles = Edge().grow(leaves)
    served = {tile.path: content for tile, content in tiles}
    newest, old = Checkpoint("log", size, edge.root()), data.draw(st.integers(1, size))
    read = sample.tile_reader(lambda path: served[path])
    assert sample.checkpoint_at(newest, old, read).root == Edge().grow(leaves[:old])[0].root()
    assert sample.checkpoint_at(newest, None, read) == newest
    for none in (0, size + 1):
        with pytest.raises(ConfigError):
            sample.checkpoint_at(newest, none, read)
    if old < size:
        lied = Checkpoint("log", size, RootHash(bytes(32)))
        with pytest.raises(BadEvidence):
            sample.checkpoint_at(lied, old, read)
        with pytest.raises(BadEvidence):
            sample.checkpoint_at(newest, old, sample.tile_reader(dict[str, bytes]().__getitem__))


@pytest.fixture(scope="module")
def three_days(made: Made, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Packets of the scene's three days: all of it, and what concerns one section."""
    where, span = tmp_path_factory.mktemp("sample"), (date(2026, 11, 20), date(2026, 11, 23))
    return {
        "whole": built(made.data_dir, where / "whole.zip", *span).path,
        "section": built(made.data_dir, where / "section.zip", *span, control="164.312(b)").path,
    }


def test_the_same_is_drawn_from_either_packet(three_days: dict[str, Path]) -> None:
    words = ("--seed", SEED, "--number", "4", "--json")
    one = run("packet", "sample", three_days["whole"], "--control", "164.312(b)", *words)
    other = run("packet", "sample", three_days["section"], *words)
    assert one.out == other.out
    found = json.loads(one.out)
    assert found["population"]["instances"] == 9 and found["population"]["not_enrolled"] == 3
    assert (one.status, found["verified"]) == (1 if found["sample"]["missing"] else 0, True)
    for pulled in found["instances"]:
        assert (pulled["record"] is None) == (pulled["host"] == "ws-03") == (pulled["records"] == 0)
        assert pulled["record"] is None or pulled["record"]["directory"].startswith(f"evidence/{pulled['host']}/")
        assert pulled["counts"]["unknown"] == (0 if pulled["record"] is None else 1)


def test_every_instance_and_a_silent_one_is_said(three_days: dict[str, Path]) -> None:
    done = run("packet", "sample", three_days["section"], "--seed", SEED, "--every")
    assert done.status == 1
    for text in (
        "no record on that date: ws-03 2026-11-22",
        "9 drawn, 3 without a record",
        f"seed {SEED}",
        "9 host-days",
    ):
        assert text in done.out, text
    fine = run("packet", "sample", three_days["section"], "--host", "ws-01", "--day", "2026-11-22")
    assert fine.status == 0 and "seed" in fine.out


def test_an_older_size_gives_what_was_there_then(three_days: dict[str, Path]) -> None:
    words = ("packet", "sample", three_days["section"], "--seed", SEED, "--every", "--json")
    now, then = (json.loads(run(*words, *more).out) for more in ((), ("--size", "12")))
    assert then["log"]["size"] == 12 and then["log"]["root"] != now["log"]["root"]
    assert then["population"] == now["population"]
    assert max(one["record"]["index"] for one in then["instances"] if one["record"]) < 12
    assert then["sample"]["missing"] > now["sample"]["missing"]


def test_a_changed_packet_is_named_and_ends_in_65(three_days: dict[str, Path], tmp_path: Path) -> None:
    from compliance_agent.packet import archive

    files = archive.unpack(three_days["section"].read_bytes())
    victim = next(path for path in files if path.endswith("bundle.json") and b'"pass"' in files[path])
    path = tmp_path / "changed.zip"
    path.write_bytes(archive.pack({**files, victim: files[victim].replace(b'"pass"', b'"fail"', 1)}))
    done = run("packet", "sample", path, "--seed", SEED, "--json")
    found = json.loads(done.out)
    assert (done.status, found["verified"]) == (65, False) and found["problems"]


@pytest.mark.parametrize(
    ("words", "status"),
    [
        (("--control", "164.312(d)"), 2), (("--from", "2026-11-01"), 2), (("--day", "2026-11-22", "--to", "2026-11-22"), 2),
        (("--host", "nobody"), 78), (("--size", "9999"), 78), (("--seed", "a b"), 78), (("--number", "0"), 2),
    ],
)  # fmt: skip
def test_what_the_packet_cannot_say_is_refused(
    three_days: dict[str, Path], words: tuple[str, ...], status: int
) -> None:
    assert run("packet", "sample", three_days["section"], *words).status == status
