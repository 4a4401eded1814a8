"""Prometheus' own parsers read both formats back as what was meant."""

from __future__ import annotations

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as read_open
from prometheus_client.parser import text_string_to_metric_families as read_plain

from compliance_agent.core.exposition import OPEN, PLAIN, Family, media_type, one, rendered

FAMILIES = [
    Family("p_looks", "counter", 'said "so"\nand \\ so', [({"check": 'a"b\\c\nd', "result": "pass"}, 3)]),
    one("p_depth", "gauge", "Depth.", 0.25),
    Family("p_build", "info", "Build.", [({"version": "1.0"}, 1)]),
    Family("p_cycle_seconds", "summary", "Cycles.", [({}, 1.5), ({}, 4)]),
    Family("p_empty", "gauge", "None yet.", []),
]
SAMPLES = {
    ("p_looks_total", (("check", 'a"b\\c\nd'), ("result", "pass")), 3.0),
    ("p_depth", (), 0.25),
    ("p_build_info", (("version", "1.0"),), 1.0),
    ("p_cycle_seconds_sum", (), 1.5),
    ("p_cycle_seconds_count", (), 4.0),
}


@pytest.mark.parametrize(("kind", "read"), [(PLAIN, read_plain), (OPEN, read_open)])
def test_what_is_meant_is_what_is_read(kind: str, read: object) -> None:
    text = rendered(FAMILIES, kind).decode()
    found = list(read(text))  # type: ignore[operator]
    seen = {(item.name, tuple(sorted(item.labels.items())), item.value) for one in found for item in one.samples}
    assert seen == SAMPLES
    kinds = {one.name: one.type for one in found}
    assert kinds["p_cycle_seconds"] == "summary" and kinds["p_looks"] == "counter"
    assert text.endswith("# EOF\n") is (kind == OPEN)


@pytest.mark.parametrize(
    ("accept", "expected"),
    [
        ("", PLAIN),
        ("*/*", PLAIN),
        ("text/html", PLAIN),
        ("application/openmetrics-text", OPEN),
        ("application/openmetrics-text;version=1.0.0,text/plain;version=0.0.4;q=0.5,*/*;q=0.1", OPEN),
        ("application/openmetrics-text;q=0.3,text/plain;q=0.9", PLAIN),
        ("application/openmetrics-text;q=0", PLAIN),
        ("application/openmetrics-text;q=nonsense", PLAIN),
    ],
)
def test_the_format_is_negotiated(accept: str, expected: str) -> None:
    assert media_type(accept) == expected
