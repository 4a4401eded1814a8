"""The page of one check says how it stands, what would cure it, what holds that, and what the last cure did, with the records."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from html import unescape
from typing import Any

import pytest

from compliance_agent import remedies
from compliance_agent.core import planning
from compliance_agent.core.planning import Finding
from compliance_agent.runbook import shipped
from compliance_agent.web import plans, words
from tests.web.serving import Served, serving
from tests.web.test_views import sign_in, visiting

pytestmark = [pytest.mark.anyio, pytest.mark.xdist_group("web_check_views")]
NOW = datetime(2026, 11, 22, 12, tzinfo=UTC)


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="module")
async def served(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Served]:
    async with serving(tmp_path_factory.mktemp("check")) as running:
        yield running


async def text_of(served: Served, host: str, check: str) -> str:
    """What a person reads on the page."""
    async with visiting(served) as client:
        await sign_in(client)
        answer = await client.get(f"/hosts/{served.hosts[host].key_id}/checks/{check}")
        assert answer.status_code == 200
        main = answer.text.partition('<main class="container"')[2].partition("</main>")[0]
        return re.sub(r"\s+", " ", unescape(re.sub(r"<[^>]+>", " ", main)))


async def test_a_failing_check_shows_its_plan_and_the_gate_that_holds_it(served: Served) -> None:
    text = await text_of(served, "ehr-db-02", "patching")
    gate = words.gate_sentence("outside_window")
    order = ["Why it did (not) fix", "Held back", "The plan", "Check", "Gate", gate, "Do 1", "refresh_package_lists", "Do 2",
             "apply_security_updates", "Verify", "Undo", "None of this can be taken back"]  # fmt: skip
    at = -1
    for part in order:
        at = text.find(part, at + 1)
        assert at >= 0, f"{part} is missing, or stands before what comes before it"
    assert "No step was taken; nothing was changed." in text and "Pause healing" not in text


async def test_after_a_cure_it_shows_both_looks_the_steps_and_the_record(served: Served) -> None:
    text = await text_of(served, "ehr-db-02", "firewall")
    assert "What the last cure did" in text and "The plan" not in text
    assert re.search(r"1\. load_ruleset Done 140 ms", text)
    assert re.search(r"policy What happens to a packet that no rule names\. none drop \(changed\)", text) or re.search(
        r"policy .{0,80} none drop", text
    )


async def test_what_could_not_be_told_is_looked_at_again_and_nothing_is_changed(served: Served) -> None:
    text = await text_of(served, "frontdesk-01", "encryption")
    assert "Nothing is changed on the strength of what could not be told." in text and "Do 1" not in text


def test_what_only_a_person_can_end_says_what_to_do() -> None:
    people = next(item for book in shipped().values() for item in book.people if item.when.check)
    finding = Finding("k", "s", people.when.check, "fail", people.when.reasons[0], NOW)
    shown = plans.plan_page(planning.plan(finding, shipped(), NOW))
    assert shown is not None and shown.people == people.do


async def test_a_check_that_the_host_does_not_have_is_not_there(served: Served) -> None:
    async with visiting(served) as client:
        await sign_in(client)
        for check in ("no-such", "%3Cscript%3E"):
            answer = await client.get(f"/hosts/{served.hosts['ehr-db-02'].key_id}/checks/{check}")
            assert answer.status_code == 404 and "script>alert" not in answer.text


def test_every_step_of_every_runbook_is_told_in_words() -> None:
    """The registry has the title of each row of the table, and why it has nothing to take back where that is so."""
    for name, action in remedies.actions().items():
        assert words.step_title(name).lower() == action.title.replace("{", "").replace("}", "").lower()
        assert ("nothing to take back" in words.step_undo(name)) is bool(action.undo_is_empty)
    for book in shipped().values():
        for cure in book.cures:
            shown = plans.plan_page(planning.plan(
                Finding("k", "s", cure.when.check, "fail", cure.when.reasons[0], NOW), shipped(), NOW + timedelta(hours=1)
            ))  # fmt: skip
            assert shown is not None and shown.cures[0].steps and shown.kind == "remediate"
    assert words.step_undo("no_such_row") == "not known to this version"


def test_a_damaged_record_breaks_nothing() -> None:
    odd: dict[str, Any] = {"pre_state": "x", "post_state": [], "actions": [None, {}], "result": None, "post_result": 5}
    shown = plans.cure_page("firewall", odd)
    assert shown is not None and shown.facts == () and shown.before == "unknown"
    assert plans.cure_page("firewall", {}) is None
