#!/usr/bin/env python3
"""Walks through the viewer in a real Chromium over a large fleet: every page and every act, and how long each page took.

    ./run browse [--sites 50] [--hosts 1000] [--bundles 1000000] [--times 20] [--directory DIRECTORY] [--json]

The fleet is the one of `BENCH=viewer` (lab/viewer_seed.py), made at the first walk and kept. A page is asked for so many times,
each time of another host; once it is held to axe in both themes and to a width of 320 px. A page holds where 95 of 100 answers
began within 300 ms, nothing was found and the browser had nothing to complain of; an act where it led to what it promises. Ends
with 1 where one does not.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import sys
from pathlib import Path
from typing import Any

from playwright.sync_api import sync_playwright

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from compliance_agent.lab.bench_viewer import MOST_S  # noqa: E402
from compliance_agent.lab.viewer_seed import Size, kept  # noqa: E402
from compliance_agent.logs import configure  # noqa: E402
from tests.web.browsing import CHROMIUM, FLAGS  # noqa: E402
from tests.web.serving import listening  # noqa: E402
from tests.web.walking import Acts, Seen, pages, serving_large, walked  # noqa: E402


def p95(times_ms: list[float]) -> float:
    """What 95 of 100 stay within."""
    return (
        statistics.quantiles(times_ms, n=100, method="inclusive")[94] if len(times_ms) > 1 else max(times_ms, default=0)
    )


def told(seen: list[Seen], acts: list[Seen], as_json: bool) -> int:
    """Print it all; how many do not hold."""
    rows = []
    for one in (*seen, *acts):
        late = ["late"] if one.answered_ms and p95(one.answered_ms) > MOST_S * 1e3 else []
        row: dict[str, Any] = {"name": one.name, "p50_ms": None, "p95_ms": None, "findings": [*late, *one.findings]}
        if one.answered_ms:
            row |= {"p50_ms": round(statistics.median(one.answered_ms)), "p95_ms": round(p95(one.answered_ms))}
        rows.append(row)
    bad = [row for row in rows if row["findings"]]
    if as_json:
        sys.stdout.write(json.dumps(rows) + "\n")
        return len(bad)
    for row in rows:
        times = f"{row['p50_ms']:>5} {row['p95_ms']:>5} ms" if row["p95_ms"] is not None else " " * 14
        sys.stdout.write(f"{times}  {'holds ' if not row['findings'] else 'MISSED'}  {row['name']}\n")
        sys.stdout.writelines(f"{' ' * 24}{finding}\n" for finding in row["findings"])
    sys.stdout.write(f"{len(seen)} pages and {len(acts)} acts; {len(bad)} missed\n")
    return len(bad)


def main() -> int:
    """Walk."""
    asks = argparse.ArgumentParser(description="Every page and act of the viewer in Chromium over a large fleet.")
    asks.add_argument("--sites", type=int, default=Size.sites)
    asks.add_argument("--hosts", type=int, default=Size.hosts)
    asks.add_argument("--bundles", type=int, default=Size.bundles)
    asks.add_argument("--times", type=int, default=20, help="how often each page is asked for")
    asks.add_argument("--directory", type=Path, help="where the fleet is kept instead of the user's cache")
    asks.add_argument("--json", action="store_true")
    asked = asks.parse_args()
    if min(asked.sites, asked.hosts, asked.bundles, asked.times) < 1 or asked.sites > asked.hosts:
        asks.error("give at least 1 of each, and no more sites than hosts")
    configure("ERROR")  # what is printed is the table, or the JSON
    if not shutil.which(CHROMIUM):
        sys.stderr.write("error: no Chromium found; apt-get install chromium, or set CHROMIUM\n")
        return 69
    size = Size(asked.sites, asked.hosts, asked.bundles)

    def say(line: str) -> None:
        sys.stderr.write(f"{line}\n")

    place = asked.directory or kept(size)
    say(f"fleet: {place}, made first where it is not there yet (a million records: half an hour)")
    with (
        listening(serving_large(place, size, asked.times)) as (address, large),
        sync_playwright() as playwright,
    ):
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=list(FLAGS))
        seen = walked(browser, address, large, pages(), say)
        acts = Acts(browser, address, large).done(say)
        browser.close()
    return 1 if told(seen, acts, asked.json) else 0


if __name__ == "__main__":
    sys.exit(main())
