"""A model that advises, over a real connection: off by default, bounded, noted; down or hostile it changes nothing."""

from __future__ import annotations

import json
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest

from compliance_agent.core.advice import MAX_REPLY_BYTES
from compliance_agent.errors import ConfigError, Refusal
from compliance_agent.server.model_calls import ModelCalls
from compliance_agent.server.records import User
from compliance_agent.server.services.advising import PER_HOUR, Advised, Adviser
from compliance_agent.server.settings import parse
from tests.core.test_advice import CANARY, HOSTILE, reply
from tests.server.builder import Server, on_sqlite
from tests.server.scripted_model import ScriptedModel, says, scripted
from tests.server.test_acts import acts
from tests.server.test_cures import cure
from tests.server.test_planning import Desk, failing

pytestmark = pytest.mark.anyio
GOOD = reply({"choices": [{"finding": 0, "option": "check"}]})


@pytest.fixture
def model() -> Iterator[ScriptedModel]:
    with scripted(says(GOOD)) as running:
        yield running


class Office(Desk):
    """A person who may ask a model about one host whose cure failed."""

    async def advise(self, model: ScriptedModel | None, deadline_s: float = 5.0) -> Advised:
        services = self.server.services
        calls = ModelCalls(model.url, "m-1", "sk-secret", deadline_s=deadline_s) if model is not None else None
        adviser = Adviser(services.store, services.clock, self.planner, calls)
        return await adviser.advise(self.user, await services.users.reader(self.user))


@pytest.fixture
async def office(server: Server) -> Office:
    host = await failing(server)
    await server.deliver(host, cure(host, "failed", "step_failed"))
    user = await server.services.users.add("jo", "correct horse battery", role="operator")
    return Office(server, user)


async def noted(server: Server) -> list[tuple[str, str]]:
    return [
        (str(action), str(outcome_or_subject))
        for action, outcome_or_subject in await server.by_hand(
            "SELECT action, subject FROM audit WHERE action LIKE '%model%' ORDER BY number"
        )
    ]


async def test_it_chooses_among_the_options_and_does_nothing(office: Office, model: ScriptedModel) -> None:
    found = await office.advise(model)
    assert [(item.proposal.finding.check, item.kind) for item in found.choices] == [("time_sync", "check")]
    assert (found.code, found.asked) == ("", 1)
    assert await office.orders() == [], "advice is words"
    row = await office.draft(found.choices[0].proposal.proposal_id, kind=found.choices[0].kind)
    assert (row.kind, row.parameters, row.state) == ("check", '{"checks":["time_sync"]}', "draft")


async def test_what_goes_over_the_wire(office: Office, model: ScriptedModel) -> None:
    await office.advise(model)
    [body], [headers] = model.bodies, model.headers
    assert headers["authorization"] == "Bearer sk-secret" and headers["accept-encoding"] == "identity"
    document = json.loads(body)
    assert document["model"] == "m-1" and len(document["messages"]) == 2
    [host] = await office.server.services.store.for_sites({"clinic-1"}).hosts()
    for canary in ("ws-01", "clinic", "msp", host.key_id[:12], "2026"):
        assert canary not in document["messages"][1]["content"]


async def test_each_question_and_its_end_are_noted_by_digests(office: Office, model: ScriptedModel) -> None:
    await office.advise(model)
    model.script = says(reply({"choices": [], "note": CANARY}))
    assert (await office.advise(model)).code == "model_answer"
    words = [item["act"] for item in (await acts(office.server))["clinic-1"] if "model" in item["act"]]
    assert words == ["model_answered", "model_refused"]
    found = await noted(office.server)
    assert [action for action, _ in found] == [
        "plan.model_asked",
        "model_answered",
        "plan.model_asked",
        "model_refused",
    ]
    assert found[1][1].endswith(" ok") and found[3][1].endswith(" model_answer")
    assert CANARY not in json.dumps(found)


@on_sqlite
async def test_a_hostile_answer_is_refused_and_ends_nothing(office: Office, model: ScriptedModel) -> None:
    add = office.server.services.users.add
    others = [
        Office(office.server, await add(name, "correct horse battery", role="operator")) for name in ("kim", "lea")
    ]
    for number, (name, (content, code)) in enumerate(HOSTILE.items()):
        model.script = says(reply(content))
        found = await others[number % 2].advise(model)
        assert (found.code, found.choices) == (code, ()), name
    assert await office.orders() == [] and len(model.bodies) == len(HOSTILE)


def _endless(handler: BaseHTTPRequestHandler) -> None:
    handler.send_response(200)
    handler.end_headers()
    try:
        while True:
            handler.wfile.write(b" " * 65_536)
    except OSError:
        pass


@on_sqlite
async def test_bounds_of_the_connection(office: Office, model: ScriptedModel) -> None:
    def silent(handler: BaseHTTPRequestHandler) -> None:
        model.end.wait(10)

    elsewhere: list[bytes] = []
    with scripted(lambda handler: elsewhere.append(b"asked")) as other:
        cases: list[tuple[Any, str]] = [
            (says(b"no", status=500), "model_unreachable"),
            (says(b"", status=307, Location=other.url + "/chat/completions"), "model_unreachable"),
            (says(b" " * (MAX_REPLY_BYTES + 1)), "model_reply"),
            (says(b"\x1f\x8b", Content_Encoding="gzip"), "model_reply"),
            (_endless, "model_reply"),
            (silent, "model_unreachable"),
        ]
        for script, code in cases:
            model.script = script
            assert (await office.advise(model, deadline_s=0.5)).code == code, script
    assert elsewhere == [], "a redirect is not followed"
    assert await office.orders() == []


async def test_with_the_model_down_everything_else_goes_on(office: Office) -> None:
    with scripted(says(GOOD)) as gone:
        pass
    assert (await office.advise(gone)).code == "model_unreachable"
    assert await office.seen() != {}
    assert (await office.draft()).kind == "remediate", "the rules ask no model"


@on_sqlite
async def test_it_is_off_by_default_and_for_people_who_may_draft(office: Office, model: ScriptedModel) -> None:
    with pytest.raises(Refusal) as caught:
        await office.advise(None)
    assert caught.value.code == "model_off" and office.server.services.settings.planner_model_url is None
    viewer: User = await office.server.services.users.add("eve", "correct horse battery", role="viewer")
    with pytest.raises(Refusal) as caught:
        await Office(office.server, viewer).advise(model)
    assert caught.value.code == "not_allowed" and model.bodies == []


async def test_a_person_asks_so_often_and_no_more(office: Office, model: ScriptedModel) -> None:
    for _ in range(PER_HOUR):
        assert (await office.advise(model)).code == ""
    with pytest.raises(Refusal) as caught:
        await office.advise(model)
    assert (caught.value.code, caught.value.status, len(model.bodies)) == ("model_too_often", 429, PER_HOUR)


@pytest.mark.parametrize(
    ("settings", "names"),
    [
        ({"planner_model_url": "http://models.example/v1", "planner_model": "m"}, "expected https"),
        ({"planner_model_url": "https://models.example/v1"}, "both or neither"),
        ({"planner_model": "m"}, "both or neither"),
        ({"planner_model_key_file": Path("/k")}, "names none"),
    ],
)
def test_a_model_is_reached_over_tls_or_on_this_machine(settings: dict[str, Any], names: str) -> None:
    with pytest.raises(ConfigError, match=names):
        parse(None, {}, data_dir=Path("/d"), **settings)
    for url in ("https://models.example/v1", "http://127.0.0.1:9/v1"):
        assert parse(None, {}, data_dir=Path("/d"), planner_model_url=url, planner_model="m").planner_model == "m"
