"""How fast a million records verify, and in how much memory: real files on a real disk, the command as a person runs it.

Records are of several hosts, a receipt beside each (`bench_records`). `bench_packet` makes a packet of the same.
"""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from compliance_agent import crypto
from compliance_agent.adapters.workers import in_order
from compliance_agent.evidence.canonical import canonical
from compliance_agent.lab import bench_records
from compliance_agent.lab.bench_log import _document
from compliance_agent.lab.bench_records import HOSTS, START

PARTS = ("bundle.json", "bundle.sig", "leaf.json", "bundle.tlog-proof")


@dataclass(frozen=True)
class Ran:
    """What a command took: seconds, processor seconds of all its processes, and the most memory that these had at one moment."""

    status: int
    seconds: float
    cpu_s: float
    peak_rss_bytes: int
    peak_pss_bytes: int
    said: str


def make(directory: Path, records: int) -> Path:
    """An evidence directory of so many records, with the log's key and the hosts' beside it; one that is there is kept."""
    done = directory / f"done-{records}"
    if done.exists():
        return directory / "evidence"
    bench_records.make(directory, records)
    (directory / "keys").mkdir(parents=True)
    log = bench_records.log(directory)
    for number in in_order(lambda host: _put(directory, host, log), range(HOSTS), count=2):
        pem = crypto.public_pem(bench_records.public_key(number))
        (directory / "keys" / f"{bench_records.label(number)}.pub.pem").write_text(pem)
    (directory / "keys" / "log.vkey").write_text(f"{log.key}\n")
    done.touch()
    return directory / "evidence"


def _put(directory: Path, host: int, log: bench_records.Log) -> int:
    tree = log.tree
    for at, bundle in enumerate(bench_records.of_host(directory, host)):
        place = directory / "evidence" / bundle.directory
        place.mkdir(parents=True)
        _, receipt = log.receipt(tree, host, at)
        for name, content in zip(PARTS, (bundle.body, bundle.signature, bundle.leaf, receipt), strict=True):
            (place / name).write_bytes(content)
    return host


def run(*words: str) -> Ran:
    """The command, watched."""
    command = [sys.executable, "-m", "compliance_agent", *words]
    before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    peaks, stop = [0, 0], threading.Event()

    def watch() -> None:
        while not stop.wait(0.1):
            for at, name in enumerate(("Rss", "Pss")):
                peaks[at] = max(peaks[at], sum(memory(pid, name) for pid in _family(process.pid)))

    watcher = threading.Thread(target=watch)
    watcher.start()
    said, _ = process.communicate()
    seconds, after = time.perf_counter() - started, resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu_s = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    stop.set()
    watcher.join()
    return Ran(process.returncode, seconds, cpu_s, peaks[0], peaks[1], said)


def _family(pid: int) -> Iterator[int]:
    yield pid
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text("ascii").split()
    except OSError:
        return
    for child in children:
        yield from _family(int(child))


def memory(pid: int, name: str) -> int:
    """Bytes of a process by this name in its smaps_rollup; 0 when it has ended."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text("ascii").splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1_024 for line in lines if line.startswith(f"{name}:")), 0)


def checks_per_s(seconds: float = 3.0) -> float:
    """Strict signature checks of a record's size a second, on all cores at once: the limit of this run."""

    def one(_: int) -> float:
        key = bench_records.key(7)
        message = canonical(_document("ws-00", crypto.key_id(key.public_key().public_bytes_raw()), START))
        public, signature = key.public_key().public_bytes_raw(), key.sign(message)
        count, started = 0, time.perf_counter()
        while time.perf_counter() - started < seconds:
            for _ in range(100):
                crypto.verify(public, signature, message)
            count += 100
        return count / (time.perf_counter() - started)

    return sum(in_order(one, range(2), count=2))


def read_s(directory: Path) -> float:
    """Seconds in which two processes do nothing but read every file of a record: the floor for whoever verifies them."""

    def read(host: Path) -> int:
        count = 0
        for top, names, files in os.walk(host):
            names.sort()
            for name in files:
                handle = os.open(f"{top}/{name}", os.O_RDONLY)
                count += len(os.read(handle, 65_536))
                os.close(handle)
        return count

    started = time.perf_counter()
    list(in_order(read, sorted(directory.iterdir()), count=2))
    return time.perf_counter() - started


def forget() -> None:
    """Have the system forget what it keeps of files, so that the next reader goes to the disk (root alone)."""
    os.sync()
    Path("/proc/sys/vm/drop_caches").write_text("3", "ascii")
