"""A sample over the API is drawn the same again, is noted, and becomes a packet of exactly its records, which anybody verifies."""

from __future__ import annotations

import asyncio
import re
import time
from typing import Any

import pytest

from compliance_agent.packet.sampled import Drawing
from compliance_agent.packet.verify import verify_bytes
from compliance_agent.server.records import Dates
from compliance_agent.server.services import sampling
from tests.server.builder import START, Server, on_sqlite
from tests.server.tenants import form_token
from tests.server.test_acts import acts
from tests.server.test_exceptions_api import bearer
from tests.server.test_packets import FORM, asked, filled, person

pytestmark = pytest.mark.anyio
BASE = "/api/v1/sites/clinic-1"
SPAN = {"first": "2026-11-21", "last": "2026-11-23"}
ASKED: dict[str, Any] = {**SPAN, "number": 3, "seed": "auditor-7"}


async def drawn(server: Server, headers: dict[str, str], **more: Any) -> dict[str, Any]:
    reply = await server.client.post(f"{BASE}/samples", headers=headers, json={**ASKED, **more})
    assert reply.status_code == 201, reply.text
    said: dict[str, Any] = reply.json()
    return said


async def test_drawn_noted_and_drawn_again(server: Server) -> None:
    await filled(server)
    jo = await bearer(server, "jo", role="viewer")
    said = await drawn(server, jo)
    assert (said["seed"], said["number"], len(said["instances"])) == ("auditor-7", 3, said["population"]["instances"])
    noted = [act["subject"] for act in (await acts(server))["clinic-1"] if act["act"] == "sample_drawn"]
    assert noted == [said.pop("act")]
    query = {**SPAN, "seed": "auditor-7", "number": 3, "size": said["log"]["size"]}
    again = await server.client.get(f"{BASE}/sample", headers=jo, params=query)
    assert again.json() == said, "by whoever has the seed, and nothing more is noted"
    assert len([act for act in (await acts(server))["clinic-1"] if act["act"] == "sample_drawn"]) == 1
    assert (await drawn(server, jo, seed=None))["seed"] != (await drawn(server, jo, seed=None))["seed"]


async def test_its_packet_has_its_records_alone_and_verifies(server: Server) -> None:
    """Asked for, built beside the requests on both databases, followed to its end, taken; each an act."""
    await filled(server)
    jo, other = await bearer(server, "jo", role="viewer"), await bearer(server, "kim", role="owner")
    reply = await server.client.post(f"{BASE}/samples/packet", headers=jo, json=ASKED)
    assert reply.status_code == 202, reply.text
    job = reply.json()
    place, until = f"/api/v1/packets/{job['job_id']}", time.monotonic() + 60
    assert job["sample"]["seed"] == "auditor-7" and job["sample"]["size"] > 0
    while job["state"] in {"waiting", "running"}:
        assert time.monotonic() < until, job
        await asyncio.sleep(0.1)
        job = (await server.client.get(place, headers=jo)).json()
    assert (job["state"], job["problems"]) == ("done", 0), job
    raw = (await server.client.get(f"{place}/files/packet.zip", headers=jo)).content
    [listed] = [one for one in job["files"] if one["name"] == "packet.zip"]
    report = verify_bytes(raw)
    assert report.ok and len(raw) == listed["size"] and report.scope is not None and report.scope.sample is not None
    said = await drawn(server, jo, size=job["sample"]["size"])
    assert report.found == sum(one["record"] is not None for one in said["instances"]) > 0
    for path in (place, f"{place}/files/packet.zip"):
        assert (await server.client.get(path, headers=other)).status_code == 404, "it is for who asked for it"
    assert (await server.client.post(f"{place}/remove", headers=other)).status_code == 404
    assert (await server.client.post(f"{place}/remove", headers=jo)).json()["state"] == "gone"
    assert (await server.client.get(f"{place}/files/packet.zip", headers=jo)).status_code == 404
    mine = [act["act"] for act in (await acts(server))["clinic-1"] if act["act"].startswith(("sample", "packet"))]
    assert mine == ["sample_drawn", "packet_asked", "packet_built", "packet_taken", "sample_drawn", "packet_removed"]


@on_sqlite
async def test_packets_are_listed_to_who_asked_and_to_an_owner(server: Server) -> None:
    """An owner sees that there is one, and whose; not its files. A site that is not the caller's does not exist."""
    await filled(server)
    await server.enrolled("ws-09", "clinic-2")
    jo, kim = await bearer(server, "jo", role="viewer"), await bearer(server, "kim", role="owner")
    other = await bearer(server, "pat", role="operator")
    elsewhere = await bearer(server, "lee", role="owner", sites=frozenset({"clinic-2"}))
    job = (await server.client.post(f"{BASE}/samples/packet", headers=jo, json=ASKED)).json()

    async def listed(headers: dict[str, str], **query: str) -> list[tuple[str, str]]:
        reply = await server.client.get("/api/v1/packets", headers=headers, params=query)
        assert reply.status_code == 200, reply.text
        return [(one["job_id"], one["asked_by"]) for one in reply.json()]

    assert await listed(jo) == await listed(kim) == await listed(kim, site="clinic-1") == [(job["job_id"], "jo")]
    assert await listed(other) == await listed(elsewhere) == await listed(kim, site="clinic-2") == []
    for headers, site in ((elsewhere, "clinic-1"), (kim, "clinic-0")):
        reply = await server.client.get("/api/v1/packets", headers=headers, params={"site": site})
        assert (reply.status_code, reply.json()["code"]) == (404, "not_found")
    assert (await server.client.get(f"/api/v1/packets/{job['job_id']}", headers=kim)).status_code == 404
    assert (await server.client.get("/api/v1/packets")).status_code == 401


@on_sqlite
@pytest.mark.parametrize(
    ("wrong", "status", "code"),
    [
        ({"number": 101}, 422, "bad_request"), ({"seed": "Mrs Smith"}, 422, "bad_request"),
        ({"first": "2026-11-40"}, 422, "bad_period"),
        ({"first": "2026-11-24"}, 422, "bad_sample"), ({"first": "2020-01-01"}, 422, "bad_sample"),
        ({"control": "164.999"}, 422, "unknown_control"), ({"hosts": ["zz-9"]}, 422, "unknown_host"),
        ({"size": 10**9}, 422, "bad_sample"), ({"last": "2027-11-23", "first": "2027-11-22"}, 409, "no_log"),
    ],
)  # fmt: skip
async def test_what_cannot_be_drawn_says_why(server: Server, wrong: dict[str, Any], status: int, code: str) -> None:
    await filled(server)
    jo = await bearer(server, "jo", role="viewer")
    for path in ("samples", "samples/packet"):
        reply = await server.client.post(f"{BASE}/{path}", headers=jo, json={**ASKED, **wrong})
        assert (reply.status_code, reply.json()["code"]) == (status, code), reply.text
    assert not [act for act in (await acts(server))["clinic-1"] if act["act"] == "sample_drawn"]


@on_sqlite
async def test_an_auditor_draws_from_the_own_days_and_sites_alone(server: Server) -> None:
    await filled(server)
    await server.enrolled("ws-09", "clinic-2")
    today = START.date()
    limits = {"role": "auditor", "sites": frozenset({"clinic-1"}), "dates": Dates(today, today)}
    ann, query = await bearer(server, "ann", **limits), {**SPAN, "seed": "s"}
    for path in ("samples", "samples/packet"):
        reply = await server.client.post(f"{BASE}/{path}", headers=ann, json=ASKED)
        assert reply.json()["code"] == "outside_dates"
        elsewhere = await server.client.post(f"/api/v1/sites/clinic-2/{path}", headers=ann, json=ASKED)
        assert elsewhere.status_code == 404
    assert (await server.client.get(f"{BASE}/sample", headers=ann, params=query)).json()["code"] == "outside_dates"
    day = {"first": today.isoformat(), "last": today.isoformat()}
    assert {one["day"] for one in (await drawn(server, ann, **day))["instances"]} == {today.isoformat()}
    assert (await server.client.post(f"{BASE}/samples", json={**ASKED, **day})).status_code == 401


@on_sqlite
async def test_a_draw_that_is_not_noted_is_not_given(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """The planted fault: the log does not take the act."""
    await filled(server)
    jo = await bearer(server, "jo", role="viewer")

    async def fails(*_: Any, **__: Any) -> None:
        from compliance_agent.errors import StorageError

        raise StorageError("full", code="disk_full")

    monkeypatch.setattr(sampling, "note", fails)
    reply = await server.client.post(f"{BASE}/samples", headers=jo, json=ASKED)
    assert reply.status_code == 503 and "instances" not in reply.text


@on_sqlite
async def test_the_page_of_a_sample_has_its_packet_built(server: Server) -> None:
    """The button sends what was drawn, with the size of the log; a form that does not say it makes no packet of something else."""
    await filled(server)
    user, reader = await person(server)
    page = await server.client.get(
        "/sites/clinic-1/sample", params={"from": "2026-11-21", "to": "2026-11-23", "seed": "x-1"}
    )
    fields = dict(
        re.findall(r'type="hidden" name="(\w+)" value="([^"]*)"', page.text.partition("exactly this sample")[0])
    )
    assert fields["seed"] == "x-1" and int(fields["size"]) > 0
    path = await asked(server, **{name: value for name, value in fields.items() if name != "form_token"})
    job = await server.services.packets.job(user, reader, path.rpartition("/")[2])
    said = Drawing.parse(job.sample or "")
    assert (said.seed, said.number, said.size, said.hosts, job.host) == ("x-1", 25, int(fields["size"]), (), None)
    assert "A sample: at most 25 host-days" in (await server.client.get(path)).text
    token = form_token((await server.client.get("/sites/clinic-1/packets")).text)
    wrong = await server.client.post(
        "/sites/clinic-1/packets", content=f"form_token={token}&seed=x-1&number=25&size=", headers=FORM
    )
    assert wrong.status_code == 422 and "how the sample is drawn" in wrong.text
