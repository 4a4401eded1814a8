"""Measure, then claim: `make bench` or `make bench BENCH=agent`. Figures go to docs/benchmarks.md with the command beside them.

Machines are shared and noisy: times are CPU seconds of the process where that is the question, the best of several runs; where a
figure depends on the machine it is a ratio to a floor that was measured in the same run.
"""

from __future__ import annotations

import hashlib
import json
import os
import resource
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import click

from compliance_agent.cli.common import table
from compliance_agent.errors import Unavailable
from compliance_agent.logs import configure

RUNS = 7


@dataclass(frozen=True)
class Figure:
    """One measured figure beside its limit or its peer of the same run."""

    name: str
    value: float
    unit: str
    limit: str
    holds: bool | None

    def row(self) -> list[str]:
        """As a line of the table."""
        verdict = {True: "holds", False: "MISSED", None: ""}[self.holds]
        return [self.name, f"{self.value:.3g} {self.unit}", self.limit, verdict]


def _cpu_of(*command: str) -> tuple[float, float]:
    """CPU and wall seconds of one run of a program, its children included."""
    before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run(command, check=False, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)  # our own interpreter
    wall, after = time.perf_counter() - started, resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, wall


def _best(measure: Callable[[], float], runs: int = RUNS) -> float:
    return min(measure() for _ in range(runs))


def bench_agent() -> list[Figure]:
    """Start-up, a one-shot look, the memory of the resident agent, and the goals beside the peers in a booted host."""
    python = sys.executable
    empty = _best(lambda: _cpu_of(python, "-c", "pass")[0])
    loaded = _best(lambda: _cpu_of(python, "-c", "import compliance_agent.agent")[0])
    helped = _best(lambda: _cpu_of(python, "-m", "compliance_agent", "--help")[0])
    looked = _best(lambda: _cpu_of(python, "-m", "compliance_agent", "check")[1], runs=3)
    rss = _resident_kib() / 1024
    return [
        Figure("import compliance_agent.agent, CPU", loaded - empty, "s", "0.35 s", loaded - empty < 0.35),
        Figure("compliance-agent --help / empty python, CPU", helped / empty, "x", "", None),
        Figure("compliance-agent check on this machine, wall", looked, "s", "2 s", looked < 2),
        Figure("compliance-agent run, the shipped baseline, steady RSS", rss, "MiB", "70 MB = 66.8 MiB", rss < 66.8),
        *_beside_peers(),
    ]


def _beside_peers() -> list[Figure]:
    """The goals that are ratios to peers; none where no host can be booted, which is said."""
    from compliance_agent.lab import bench_peers

    try:
        return [Figure(*row) for row in bench_peers.rows(bench_peers.measure(bench_peers.idle_s()))]
    except Unavailable as error:
        click.echo(f"not measured beside peers: {error.line}", err=True)
        return []


def _resident_kib(settle_s: float = 12.0) -> int:
    """VmRSS of an agent that has looked at every check of the shipped baseline several times."""
    with tempfile.TemporaryDirectory(prefix="compliance-bench-") as scratch:
        baseline = Path(scratch) / "baseline.yaml"
        shipped = resources.files("compliance_agent") / "baselines" / "clinic-linux.yaml"
        baseline.write_bytes(shipped.read_bytes().replace(b"\nmode: enforce", b"\nmode: audit", 1))
        environment = {name: value for name, value in os.environ.items() if not name.startswith("MSP_")} | {
            "MSP_CLIENT_ID": "bench", "MSP_SITE_ID": "bench", "MSP_HOST_ID": "bench", "MSP_STATE_DIR": f"{scratch}/state",
            "MSP_BASELINE_PATH": str(baseline), "MSP_MCP_POLL_INTERVAL_SEC": "2",
        }  # fmt: skip
        agent = subprocess.Popen(
            [sys.executable, "-m", "compliance_agent", "run"],
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            time.sleep(settle_s)
            status = Path(f"/proc/{agent.pid}/status").read_text("ascii")
        finally:
            agent.terminate()
            agent.wait(15)
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmRSS:"))


def bench_evidence() -> list[Figure]:
    """Durable records a second, against one durable SQLite row of the same size on the same disk in the same run."""
    from compliance_agent.lab.bench_store import record_many

    with tempfile.TemporaryDirectory(prefix="compliance-bench-", dir=_disk()) as scratch:
        floor = statistics.median(_rows_per_second(Path(scratch) / f"floor-{run}.db") for run in range(3))
        ours = statistics.median(record_many(Path(scratch) / f"ours-{run}", 300) for run in range(3))
    return [
        Figure("one 2 KiB row, WAL, synchronous=FULL", floor, "rows/s", "the floor of this run", None),
        Figure("record: sign, chain, commit, directory", ours, "bundles/s", "", None),
        Figure("record / floor", ours / floor, "x", "", None),
    ]


def bench_log() -> list[Figure]:
    """Receipts a second, durable and verified, against strict signature checks a second on one core of the same run."""
    from compliance_agent.lab.bench_log import receipts_under_load, strict_verifies_per_s

    verifies = strict_verifies_per_s()
    with tempfile.TemporaryDirectory(prefix="compliance-bench-", dir=_disk()) as scratch:
        load = receipts_under_load(Path(scratch) / "server", hosts=16, batches=10)
    rate, count = load.receipts_per_s, len(load.latencies_s)
    return [
        Figure("strict Ed25519 checks of 2 KiB, one core", verifies, "1/s", "the floor of this run", None),
        Figure(f"receipts, durable and verified ({count})", rate, "1/s", "5000/s", rate >= 5_000),
        Figure("receipts / checks on one core", rate / verifies, "x", "", None),
        Figure("server CPU for each receipt", load.server_cpu_s / count * 1e6, "us", "", None),
        Figure("load generator CPU for each receipt", load.loader_cpu_s / count * 1e6, "us", "", None),
        Figure("upload to verified receipt, p50", load.percentile(50), "s", "", None),
        Figure("upload to verified receipt, p99", load.percentile(99), "s", "1 s", load.percentile(99) < 1),
    ]


def bench_ingest() -> list[Figure]:
    """S1-S4, S7 and S8: what a bundle costs on its way in, in signature checks of the same run (E)."""
    from compliance_agent.lab.bench_idiom import idiom
    from compliance_agent.lab.bench_ingest import check_cpu_s, ingest

    database = os.environ.get("BENCH_DATABASE")  # of PostgreSQL, its schema made; SQLite when it is not given
    e = check_cpu_s()
    with tempfile.TemporaryDirectory(prefix="compliance-bench-", dir=_disk()) as scratch:
        commits = _rows_per_second(Path(scratch) / "floor.db")
        places = [Path(scratch) / name for name in (("one", "one", "one") if database else ("one", "now", "batch"))]
        single = ingest(places[0], hosts=64, requests=60, size=1, database=database)
        hurried = ingest(places[1], hosts=64, requests=60, size=1, hurried=True, database=database)
        batch = ingest(places[2], hosts=16, requests=10, size=100, database=database)
        simple = idiom(Path(scratch) / "idiom-one", hosts=64, requests=60, size=1)
        simple_batch = idiom(Path(scratch) / "idiom-batch", hosts=16, requests=10, size=100)
    kind = "PostgreSQL" if database else "SQLite"
    figures = [
        Figure("E: one Ed25519 check of 2 KB, CPU", e * 1e6, "us", "the unit of this run", None),
        Figure("one durable row, committed by itself", commits, "rows/s", "the floor of this run", None),
    ]
    for name, ran, cost, share in (
        ("S1, one a request", single, 2.0, 0.5),
        ("S1, the acknowledgement alone", hurried, 2.0, 0.5),
        ("S2, 100 a request", batch, 1.4, 0.8),
    ):
        spent, of_limit = ran.server_cpu_s / ran.bundles / e, ran.per_s * e / 2
        figures += [
            Figure(f"{name}, {kind}: server CPU for a bundle", spent, "E", f"{cost} E", spent <= cost),
            Figure("  load generator CPU for a bundle", ran.loader_cpu_s / ran.bundles / e, "E", "", None),
            Figure("  bundles, whole machine", ran.per_s, "1/s", "", None),
            Figure("  S3: of two cores that only check", of_limit, "x", f"{share} x", of_limit >= share),
        ]
    for name, peer, ours, most in (
        ("one a request", simple, hurried, 3.5),
        ("100 a request", simple_batch, batch, 4.5),
    ):
        ratio = peer.server_cpu_s / peer.bundles / (ours.server_cpu_s / ours.bundles)
        figures += [
            Figure(
                f"S4: the idiom on SQLite, {name}: CPU for a bundle",
                peer.server_cpu_s / peer.bundles / e,
                "E",
                "",
                None,
            ),
            Figure("  bundles of ours for one of it, a core", ratio, "x", f"{most} x", ratio >= most),
        ]
    late = [
        Figure("S8: p99 of a request, one, 64 connections", single.p99_s * 1e3, "ms", "20 ms", single.p99_s <= 0.02),
        Figure("    the acknowledgement alone", hurried.p99_s * 1e3, "ms", "20 ms", hurried.p99_s <= 0.02),
        Figure("    100 in a request, 16 connections", batch.p99_s * 1e3, "ms", "", None),
    ]
    disk = batch.disk_bytes / batch.raw_bytes
    return [
        *figures,
        *late,
        Figure("S7: disk, of the raw bytes", disk, "x", "0.12 x", disk <= 0.12),
        Figure("S8: batched bundles / single commits", batch.per_s / commits, "x", "20 x", batch.per_s / commits >= 20),
    ]


def bench_fleet() -> list[Figure]:
    """A fleet that polls over kept connections: how long a check-in takes, and what a host costs the server."""
    from compliance_agent.lab.bench_fleet import Fleet, percentile, run

    given = {name: os.environ.get(f"BENCH_{name.upper()}") for name in ("poll_s", "connect_s", "seconds")}
    fleet = Fleet(
        int(os.environ.get("BENCH_HOSTS") or Fleet.hosts),
        **{name: float(value) for name, value in given.items() if value},
    )
    with tempfile.TemporaryDirectory(prefix="compliance-bench-", dir=_disk()) as scratch:
        seen = run(Path(scratch) / "server", fleet, os.environ.get("BENCH_DATABASE"))
    p99, load, failed = percentile(seen.checkins_s, 99), seen.server_cpu_s / seen.seconds, sum(seen.failed.values())
    wanted = fleet.hosts / fleet.poll_s
    rate = len(seen.checkins_s) / seen.seconds
    return [
        Figure(f"check-ins of {fleet.hosts:,} hosts, one in {fleet.poll_s:g} s", rate, "1/s", f"{wanted:.0f}/s", None),
        Figure("  p50", percentile(seen.checkins_s, 50) * 1e3, "ms", "", None),
        Figure("  p99", p99 * 1e3, "ms", "250 ms", p99 < 0.25),
        Figure("  slowest", max(seen.checkins_s, default=0.0) * 1e3, "ms", "", None),
        Figure(
            f"records, acknowledged ({len(seen.records_s)}): p99", percentile(seen.records_s, 99) * 1e3, "ms", "", None
        ),
        Figure(f"not answered as agreed {seen.failed or ''}".rstrip(), failed, "", "0", failed == 0),
        Figure("server CPU, of one core", load, "x", "", None),
        Figure("server CPU for each host and minute", load / fleet.hosts * 60e3, "ms", "", None),
        Figure("load generator CPU, of one core", seen.loader_cpu_s / seen.seconds, "x", "", None),
        Figure("server RSS", seen.rss_bytes / 1e6, "MB", "400 MB", seen.rss_bytes < 4e8),
        Figure("server RSS, the most", seen.peak_rss_bytes / 1e6, "MB", "400 MB", seen.peak_rss_bytes < 4e8),
    ]


def bench_verify() -> list[Figure]:
    """The verifier over many records, against strict signature checks on all cores, and reading alone, of the same run."""
    from compliance_agent.lab import bench_verify
    from compliance_agent.lab.bench_packet import make_packet

    records = int(os.environ.get("BENCH_RECORDS", "40000"))
    forms = os.environ.get("BENCH_FORMS", "packet,directory").split(",")
    limit, floor, ran = bench_verify.checks_per_s(), 0.0, dict[str, bench_verify.Ran]()
    with tempfile.TemporaryDirectory(prefix="compliance-bench-", dir=_disk()) as temporary:
        scratch = Path(os.environ.get("BENCH_KEEP") or temporary)
        if "packet" in forms:
            ran["packet"] = bench_verify.run("verify", str(make_packet(scratch, records)), "--json")
        if "directory" in forms:
            evidence = bench_verify.make(scratch, records)
            if os.environ.get("BENCH_COLD"):
                bench_verify.forget()
            ran["directory"] = bench_verify.run("verify", str(evidence), "--json")
            if os.environ.get("BENCH_COLD"):
                bench_verify.forget()
            floor = bench_verify.read_s(evidence)
    figures = [Figure("strict checks of a record's size, all cores", limit, "1/s", "the limit of this run", None)]
    if floor:
        figures.append(Figure("reading every file of the directory, nothing else", floor, "s", "its floor", None))
    scale = records / 1_000_000
    for name, one in ran.items():
        if one.status:
            raise click.ClickException(one.said[-2_000:])
        rate, goal, rss = records / one.seconds, 60 * scale, one.peak_rss_bytes
        figures += [
            Figure(f"{name} of {records:,} with receipts", one.seconds, "s", f"{goal:g} s", one.seconds < goal),
            Figure(f"{name}, records", rate, "1/s", "", None),
            Figure(f"{name} / limit", rate / limit, "x", "", None),
            Figure(f"{name}, CPU of all processes for each record", one.cpu_s / records * 1e6, "us", "", None),
            Figure(f"{name}, RSS of all processes", rss / 1e6, "MB", "300 MB", rss < 3e8),
            Figure(f"{name}, PSS of all processes", one.peak_pss_bytes / 1e6, "MB", "", None),
        ]
    return figures


def bench_tls() -> list[Figure]:
    """A new and an idle TLS connection, by who ends it, against one strict signature check of 2 KiB in the same run (E)."""
    from compliance_agent.lab.bench_log import strict_verifies_per_s
    from compliance_agent.lab.bench_tls import costs

    check_us = 1e6 / strict_verifies_per_s()
    figures = [Figure("strict Ed25519 check of 2 KiB", check_us, "us", "E of this run", None)]
    with tempfile.TemporaryDirectory(prefix="compliance-bench-", dir=_disk()) as scratch:
        measured = costs(Path(scratch))
    for cost in measured:
        figures += [
            Figure(f"{cost.front}: new connection, CPU", cost.new_us, "us", "", None),
            Figure(f"{cost.front}: new connection / E", cost.new_us / check_us, "x", "", None),
            Figure(
                f"{cost.front}: new connection / the server itself", cost.new_us / measured[0].new_us, "x", "0.25", None
            ),
            Figure(f"{cost.front}: request on a kept connection, CPU", cost.request_us, "us", "", None),
            Figure(f"{cost.front}: idle connection, PSS", cost.idle_bytes / 1_024, "KiB", "12 KB = 11.7", None),
        ]
    return figures


def bench_viewer() -> list[Figure]:
    """Every page of the viewer over a large fleet, made at the first run: time from request to answer, and statements."""
    from compliance_agent.lab import bench_viewer, viewer_seed

    given = {name: os.environ.get(f"BENCH_{name.upper()}") for name in ("sites", "hosts", "bundles")}
    size = viewer_seed.Size(**{name: int(value) for name, value in given.items() if value})
    times = int(os.environ.get("BENCH_TIMES", "40"))
    place = Path(os.environ["BENCH_DIR"]) if "BENCH_DIR" in os.environ else viewer_seed.kept(size)
    figures = []
    for page in bench_viewer.measure(place, size, times, lambda said: click.echo(said, err=True)):
        p50, p95 = (statistics.quantiles(page.times_s, n=100, method="inclusive")[part - 1] for part in (50, 95))
        count = len(page.statements)
        figures += [
            Figure(f"{page.path}: p50", p50 * 1e3, "ms", "", None),
            Figure("  p95", p95 * 1e3, "ms", "300 ms", p95 < bench_viewer.MOST_S),
            Figure("  statements", count, "", "10", count <= bench_viewer.MOST_QUERIES),
        ]
    return figures


def bench_packet() -> list[Figure]:
    """The packet of a site of 100 hosts and a month, made at the first run: built and verified by the command."""
    from compliance_agent.lab import bench_site, viewer_seed

    size = bench_site.MONTH
    place = Path(os.environ["BENCH_DIR"]) if "BENCH_DIR" in os.environ else viewer_seed.kept(size)
    ran, out = bench_site.built(place)
    paper, printed = bench_site.reported(out)
    records, seconds = json.loads(ran.said)["records"], ran.seconds
    return [
        Figure(f"{records:,} records, built and verified", seconds, "s", "30 s", seconds < bench_site.MOST_S),
        Figure("CPU of all processes", ran.cpu_s, "s", "", None),
        Figure("CPU for each record", ran.cpu_s / records * 1e6, "us", "", None),
        Figure("RSS of all processes, the most", ran.peak_rss_bytes / 1e6, "MB", "", None),
        Figure("PSS of all processes, the most", ran.peak_pss_bytes / 1e6, "MB", "", None),
        Figure("packet", out.stat().st_size / 1e6, "MB", "", None),
        Figure("its report on paper, verified and printed", paper.seconds, "s", "", None),
        Figure("  RSS of all processes, the most", paper.peak_rss_bytes / 1e6, "MB", "", None),
        Figure("  report", printed.stat().st_size / 1e6, "MB", "", None),
    ]


def _disk() -> str:
    """A directory on a real disk: /tmp may be memory."""
    return os.environ.get("BENCH_DIR") or str(Path.cwd())


def _rows_per_second(path: Path, rows: int = 500) -> float:
    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("PRAGMA synchronous=FULL")
    connection.execute("CREATE TABLE rows (id INTEGER PRIMARY KEY, body BLOB)")
    body = hashlib.sha256(b"row").digest() * 64
    started = time.perf_counter()
    for _ in range(rows):
        connection.execute("INSERT INTO rows (body) VALUES (?)", (body,))
    rate = rows / (time.perf_counter() - started)
    connection.close()
    return rate


BENCHES: dict[str, Callable[[], Sequence[Figure]]] = {
    "agent": bench_agent,
    "evidence": bench_evidence,
    "fleet": bench_fleet,
    "ingest": bench_ingest,
    "log": bench_log,
    "packet": bench_packet,
    "tls": bench_tls,
    "verify": bench_verify,
    "viewer": bench_viewer,
}


@click.command()
@click.argument("names", nargs=-1)
@click.option("--json", "as_json", is_flag=True, help="One JSON object of all figures instead of tables.")
def main(names: tuple[str, ...], as_json: bool) -> None:
    """Run the benchmarks NAMES, or all of them, and print a table each."""
    configure("ERROR")
    measured: dict[str, list[dict[str, Any]]] = {}
    for name in names or tuple(BENCHES):
        if name not in BENCHES:
            raise click.BadParameter(f"no benchmark {name!r}; there are {', '.join(BENCHES)}")
        figures = BENCHES[name]()
        measured[name] = [asdict(figure) for figure in figures]
        if as_json:
            continue
        table(("figure", "value", "limit", ""), [figure.row() for figure in figures], title=f"bench {name}")
        click.echo("")
    if as_json:
        click.echo(json.dumps(measured))


if __name__ == "__main__":
    main()
