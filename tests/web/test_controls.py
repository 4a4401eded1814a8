"""The controls of a site: every cell from its records, who said nothing counts, nothing is claimed that no host shows."""

from __future__ import annotations

import csv
import html
import io
import re
from collections.abc import AsyncIterator
from datetime import UTC, date, datetime, timedelta
from typing import Any

import httpx2 as httpx
import pytest

from compliance_agent.core.citations import SECTIONS, Reach
from compliance_agent.core.proposed_rule import PROPOSED
from compliance_agent.server.records import Host, Said
from compliance_agent.server.services.controls import NONE, UNLOOKED, Cube, _shown, cell, machines_of, states_of, worst
from compliance_agent.web import controls, words
from compliance_agent.web.table_files import safe
from tests.web.serving import Served, serving
from tests.web.test_views import sign_in, visiting

pytestmark = [pytest.mark.anyio, pytest.mark.xdist_group("web_controls")]
DAY = date(2026, 11, 10)
AUDIT = "164.312(b)"


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="module")
async def served(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Served]:
    async with serving(tmp_path_factory.mktemp("controls")) as running:
        yield running


@pytest.fixture
async def client(served: Served) -> AsyncIterator[httpx.AsyncClient]:
    async with visiting(served) as visitor:
        await sign_in(visitor)
        yield visitor


def beat(day: date, number: int) -> Said:
    return Said("k", day.isoformat(), "heartbeat", None, None, None, 24, number)


def change(day: date, number: int, result: str, outcome: str | None = None) -> Said:
    return Said("k", day.isoformat(), "remediation" if outcome else "drift", "firewall", result, outcome, 1, number)


def shown(said: list[Said], states: dict[int, dict[str, str]]) -> dict[str, Any]:
    days = [DAY, DAY + timedelta(days=1)]
    return {day.isoformat()[-2:]: verdicts for day, verdicts in _shown(days, said, states) if day >= DAY}


# What a day shows


@pytest.mark.parametrize(
    ("said", "states", "first", "second"),
    [
        ([], {}, None, None),  # said nothing
        ([beat(DAY, 1)], {1: {"firewall": "pass"}}, {"firewall": "pass"}, None),  # silence is not what it said last
        # Healed within the day: the day was not all well, the next one is.
        (
            [beat(DAY, 9), change(DAY, 5, "fail", "success"), beat(DAY + timedelta(days=1), 12)],
            {9: {"firewall": "pass"}, 12: {"firewall": "pass"}},
            {"firewall": "fail"},
            {"firewall": "pass"},
        ),
        # It failed when the day began, and was seen to pass later on.
        (
            [beat(DAY, 1), change(DAY + timedelta(days=1), 2, "pass"), beat(DAY + timedelta(days=1), 3)],
            {1: {"firewall": "fail"}, 3: {"firewall": "pass"}},
            {"firewall": "fail"},
            {"firewall": "fail"},
        ),
        # The day before the first says what stood when it began.
        (
            [beat(DAY - timedelta(days=1), 1), change(DAY, 2, "pass"), beat(DAY, 3)],
            {1: {"firewall": "fail"}, 3: {"firewall": "pass"}},
            {"firewall": "fail"},
            None,
        ),
        # A change after the last heartbeat counts.
        ([beat(DAY, 1), change(DAY, 2, "fail")], {1: {"firewall": "pass"}}, {"firewall": "fail"}, None),
        # A cure that did not hold leaves what it found.
        ([beat(DAY, 1), change(DAY, 2, "fail", "reverted")], {1: {"firewall": "pass"}}, {"firewall": "fail"}, None),
        # A check that the heartbeat no longer names is no longer looked at.
        (
            [beat(DAY, 1), beat(DAY + timedelta(days=1), 2)],
            {1: {"firewall": "pass", "backup": "pass"}, 2: {"backup": "pass"}},
            {"firewall": "pass", "backup": "pass"},
            {"backup": "pass"},
        ),
        # Its bytes were destroyed, or say nothing: the host spoke, and nothing can be said of any check.
        ([beat(DAY, 1)], {}, {}, None),
    ],
)
def test_a_day_has_the_worst_verdict_that_held(
    said: list[Said], states: dict[int, dict[str, str]], first: Any, second: Any
) -> None:
    assert shown(said, states) == {"10": first, "11": second}


def test_what_is_no_verdict_is_unknown() -> None:
    assert worst(["pass", "fine"]) == "unknown"
    assert worst(["pass", "exception"]) == "exception"
    assert worst([]) == ""
    assert states_of(b"") == states_of(b"[]") == states_of(b'{"states":3}') == {}
    assert states_of(b'{"states":{"a":1,"b":{"result":"pass"}}}') == {"a": "unknown", "b": "pass"}


def host(key_id: str, enrolled: date, *, revoked: date | None = None, rotated_to: str | None = None) -> Host:
    def at(day: date) -> datetime:
        return datetime.combine(day, datetime.min.time(), UTC)

    gone = at(revoked) if revoked else None
    return Host(key_id, "clinic", "msp", "ws", b"", at(enrolled), revoked_at=gone, rotated_to=rotated_to)


def test_a_host_goes_on_under_its_new_key() -> None:
    old = host("a", DAY, revoked=DAY + timedelta(days=3), rotated_to="b")
    [machine] = machines_of([old, host("b", DAY + timedelta(days=3))])
    assert (machine.host.key_id, machine.first, machine.last) == ("b", DAY, None) and machine.keys == {"a", "b"}
    [gone] = machines_of([host("a", DAY, revoked=DAY)])
    assert [gone.lived(DAY + timedelta(days=more)) for more in (-1, 0, 1)] == [False, True, False]
    assert len(machines_of([host("a", DAY, rotated_to="b"), host("b", DAY, rotated_to="a")])) <= 2, "no endless chain"


def test_who_said_nothing_and_whom_nobody_looks_at_are_in_the_denominator() -> None:
    machines = machines_of([host(name, DAY) for name in "abcd"])
    said = {
        ("a", DAY): {"firewall": "pass"},
        ("b", DAY): None,
        ("c", DAY): {"backup": "pass"},
        ("d", DAY): {"firewall": "not_applicable"},
    }
    cube = Cube(None, tuple(machines), (DAY,), said)  # type: ignore[arg-type]
    [counted] = cube.by_day(("firewall",), machines)
    assert counted.counts == {"pass": 1, NONE: 1, UNLOOKED: 1, "not_applicable": 1}
    assert (counted.passed, counted.judged, counted.worst) == (1, 3, NONE)
    assert [one.passed for one in cube.by_host(("firewall",), machines)] == [1, 0, 0, 0]
    assert (cell([]).worst, cell([]).parts) == ("", ())


# The page


async def test_each_section_stands_where_it_may_be_claimed(client: httpx.AsyncClient) -> None:
    text = (await client.get("/sites/clinic-elm-street/controls")).text
    grid, beyond = text[: text.index('id="beyond"')], text[text.index('id="beyond"') :]
    cited = {section for check in words.registry().values() for section in check["citations"]}
    for section, known in SECTIONS.items():
        assert (f'class="id">{section}<' in grid) is (section in cited), section
        assert (f'class="id">{section}<' in beyond) is (section not in cited), section
        if known.reach is Reach.NONE:
            assert section not in cited
    row = grid[grid.index(f'class="id">{AUDIT}<') :]
    row = row[: row.index("</tr>")]
    assert "<strong>required</strong>" in row and "Does not prove: " in row


async def test_cells_say_numbers_and_lead_to_their_records(client: httpx.AsyncClient, served: Served) -> None:
    today, yesterday = served.clock.now.date(), served.clock.now.date() - timedelta(days=1)
    began = (served.clock.now - timedelta(hours=19)).date()  # updates have waited on one of the two hosts since then
    asked = f"by=host&from={yesterday}&to={today}"
    text = (await client.get(f"/sites/clinic-elm-street/controls?{asked}")).text
    row = text[text.index('class="id">164.308(a)(1)(ii)(B)<') :]
    row = row[: row.index("</tr>")]
    key_id = served.hosts["ehr-db-02"].key_id
    href = re.search(rf'href="(/evidence[^"]+key={key_id}[^"]+)"', row)
    assert f"</span>{(began - yesterday).days}/2<" in row[row.index(key_id) :]
    assert href is not None and "citation=164.308%28a%29%281%29%28ii%29%28B%29" in href[1]
    there = (await client.get(href[1].replace("&amp;", "&"))).text
    assert "patching" in there and "clinic-harbour" not in there[there.index("<tbody>") :]


async def test_a_silent_host_is_not_green(client: httpx.AsyncClient, served: Served) -> None:
    """The day after the hosts were heard for the last time, nothing passes."""
    before = served.clock.now
    served.clock.now = before + timedelta(days=2)
    try:
        await sign_in(client)
        day = served.clock.now.date().isoformat()
        text = (await client.get(f"/sites/clinic-elm-street/controls?from={day}&to={day}")).text
    finally:
        served.clock.now = before
    assert 'class="heat heat-pass"><a' not in text
    assert "2 said nothing" in text


async def test_the_proposal_is_a_second_view_and_says_so(client: httpx.AsyncClient) -> None:
    text = (await client.get("/sites/clinic-elm-street/controls?rule=proposed")).text
    assert "<strong>Not the law.</strong>" in text
    for item in PROPOSED:
        assert item.requirement in html.unescape(text)
    assert "164.312(b)" not in text
    assert "Not the law." not in (await client.get("/sites/clinic-elm-street/controls")).text


async def test_one_host_and_hosts_side_by_side(client: httpx.AsyncClient, served: Served) -> None:
    key_id = served.hosts["ehr-db-02"].key_id
    by_host = (await client.get("/sites/clinic-elm-street/controls?by=host")).text
    head = by_host[by_host.index("<thead>") : by_host.index("</thead>")]
    assert "ehr-db-02" in head and "frontdesk-01" in head
    one = (await client.get(f"/sites/clinic-elm-street/controls?host={key_id}")).text
    assert f"key={key_id}" in one and "1/1" in one and "2/2" not in one
    for query in (f"host={served.hosts['imaging-01'].key_id}", "host=x"):
        assert (await client.get(f"/sites/clinic-elm-street/controls?{query}")).status_code == 404
    assert (await client.get("/sites/clinic-elm-street/controls?from=yesterday")).status_code == 400
    assert (await client.get("/sites/nowhere/controls")).status_code == 404


async def test_no_more_than_a_month_and_nothing_to_come(client: httpx.AsyncClient, served: Served) -> None:
    text = (await client.get("/sites/clinic-elm-street/controls?from=2020-01-01&to=9999-12-31")).text
    today = served.clock.now.date()
    assert f'name="to" value="{today}"' in text
    assert f'name="from" value="{today - timedelta(days=30)}"' in text
    head = text[text.index("<thead>") : text.index("</thead>")]
    assert head.count("<th ") in {3, 4}, "the days since the hosts were enrolled, 26 hours ago"


# The file


async def test_the_file_has_the_cells_that_are_shown(client: httpx.AsyncClient) -> None:
    query = "by=day&rule=force"
    answer = await client.get(f"/sites/clinic-elm-street/controls.csv?{query}")
    assert answer.headers["content-type"] == "text/csv; charset=utf-8"
    assert re.fullmatch(
        r'attachment; filename="controls-clinic-elm-street-[-\d]+\.csv"', answer.headers["content-disposition"]
    )
    rows = list(csv.DictReader(io.StringIO(answer.text)))
    page = (await client.get(f"/sites/clinic-elm-street/controls?{query}")).text
    assert len(rows) == page.count('<td class="heat')
    shown = [f"{row['passing']}/{row['judged']}" for row in rows if row["judged"] != "0"]
    assert sorted(shown) == sorted(re.findall(r"</span>(\d+/\d+)<span", page))
    for row in rows:
        counts = [int(row[name]) for name in controls.HEAD[12:18]]
        assert sum(counts) == int(row["judged"]) and row["section"] in SECTIONS


@pytest.mark.parametrize(
    ("value", "kept"),
    [
        ("=1+1", "'=1+1"), ("+cmd|' /C calc'!A0", "'+cmd|' /C calc'!A0"), ("-2", "'-2"), ("@SUM(A1)", "'@SUM(A1)"),
        ("\t=1", "'\t=1"), ("\r=1", "'\r=1"), ("  =1", "'  =1"), ("\uff1d1", "'\uff1d1"), ("|x", "'|x"), ("%x", "'%x"),
        ("clinic", "clinic"), ("", ""), (None, ""), (-3, "-3"), (date(2026, 1, 2), "2026-01-02"), (True, "True"),
    ],
)  # fmt: skip
def test_no_cell_is_a_formula(value: object, kept: str) -> None:
    assert safe(value) == kept
