"""What each page of the viewer costs the server on a large fleet: how long from request to answer, and how many statements.

The app runs in this process over the data directory that `viewer_seed` made, its clock standing at the end of the story. Pages are
asked for in turn, each with the ids of another host and site every time, so that none lives of what the one before it has read.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import hashlib
import json
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx2 as httpx

from compliance_agent.entries.leaf import time_leaf
from compliance_agent.errors import Refusal, Unavailable
from compliance_agent.lab.counting import Counted
from compliance_agent.lab.seeding import MovingClock
from compliance_agent.lab.viewer_seed import END, Size, made, settings
from compliance_agent.server.app import create_app
from compliance_agent.server.opening import utc_now
from compliance_agent.server.records import BundleQuery, Dates, NewLeaf
from compliance_agent.server.records.packets import PacketJob
from compliance_agent.server.runner import COLLECT
from compliance_agent.server.services.orders import Wanted

NAME, PASSWORD = "bench", "correct horse battery"
MOST_QUERIES, MOST_S = 10, 0.3
Ids = Mapping[str, str]

# Each page of the viewer (tests/web/test_queries.py holds this against the routes of the app): route -> what is asked for after its
# path.
PAGES: Mapping[str, Sequence[str]] = {
    "/": ("",),
    "/sites/{site_id}": ("",),
    "/hosts/{key_id}": ("",),
    "/hosts/{key_id}/public-key": ("",),
    "/hosts/{key_id}/evidence": (
        "",
        "?check=firewall",
        "?kind=remediation&outcome=success",
        "?result=unknown",
        "?check=no-such",
    ),
    "/hosts/{key_id}/checks/{check}": ("",),
    "/hosts/{key_id}/checks/{check}/exception": ("", "?reason=device_limit&measure=watched&reference=a&days=7"),
    "/bundles/{bundle_id}": ("?key={key_id}", "?key={key_id}&proof=1"),
    "/bundles/{bundle_id}/{name}": ("?key={key_id}",),
    "/sites/{site_id}/log": ("", "?before=200"),
    "/sites/{site_id}/log/{year}/key": ("",),
    "/sites/{site_id}/log/{year}/files/{name}": ("",),
    "/sites/{site_id}/log/{year}/older/{index}": ("",),
    "/sites/{site_id}/log/{year}/consistency/{size}": ("",),
    "/sites/{site_id}/controls": ("", "?by=host", "?host={key_id}", "?rule=proposed&from=2026-10-29&to=2026-11-28"),
    "/sites/{site_id}/controls.csv": ("",),
    "/evidence": (
        "",
        "?check=firewall",
        "?check=firewall&outcome=failed",
        "?outcome=success&site={site_id}",
        "?result=exception",
        "?citation=164.312(b)&result=fail&from=2026-11-10&to=2026-11-12",
        "?from=2026-11-05&to=2026-11-05",
        "?from=2026-10-30&to=2026-11-02&kind=heartbeat",
        "?host=ws-003",
        "?site={site_id}&from=2026-11-10&to=2026-11-12",
        "?id={bundle_id}",
        "?key={key_id}&citation=164.312(b)",
    ),
    "/sites/{site_id}/exception-rule": ("",),
    "/sites/{site_id}/packets": ("",),
    "/packets/{job_id}": ("",),
    "/sites/{site_id}/sample": (
        "",
        "?seed=bench&from=2026-10-29&to=2026-11-27&control=164.312(b)",
        "?seed=bench&from=2026-10-01&to=2026-11-27&number=60",
    ),
    "/sites/{site_id}/sample.csv": ("?seed=bench&from=2026-11-10&to=2026-11-27&number=10",),
    "/account": ("",),
    "/account/factor": ("",),
    "/account/prove": ("",),
    "/login": ("",),
    "/verify": ("",),
    "/live": ("", "?site={site_id}"),
    "/orders": ("",),
    "/orders/{order_id}": ("",),
    "/orders/{order_id}/approve": ("",),
    "/orders/{order_id}/withdraw": ("",),
    "/hosts/{key_id}/order": ("",),
    "/hosts/{key_id}/order/confirm": ("?kind=pause", "?kind=check&check=firewall"),
}

NAMES = {"/bundles/{bundle_id}/{name}": "bundle.json", "/sites/{site_id}/log/{year}/files/{name}": "policy"}
OLDER = 15  # checkpoints that each log holds in its own entries, where none of its witnesses put any there: more than one page
# What is no page: where it leads is another server's, or its time is its size.
NO_PAGES = {
    "/login/oidc": "leads to the provider of identities, which is not configured here",
    "/login/oidc/callback": "comes from there",
    "/packets/{job_id}/{name}": "a file of any size, sent in parts",
}


@dataclass
class Asked:
    """One page, asked for many times.

    Attributes:
        path: its route with what stands after it.
        name: of the file that is asked for there.
        times_s: from request to answer, each.
        statements: of the request that had most.
    """

    path: str
    name: str = ""
    times_s: list[float] = field(default_factory=list)
    statements: list[str] = field(default_factory=list)


def measure(directory: Path, size: Size, times: int = 40, say: Callable[[str], object] = lambda _: None) -> list[Asked]:
    """Ask for every page so many times."""
    return asyncio.run(_measure(directory, size, times, say))


async def _measure(directory: Path, size: Size, times: int, say: Callable[[str], object]) -> list[Asked]:
    say(f"evidence: {directory}")
    with collecting_as_a_server():
        return await _asked(directory, size, times)


@contextlib.contextmanager
def collecting_as_a_server() -> Iterator[None]:
    """The garbage collector as the server's process sets it (`server/runner.py`), and as it was afterwards."""
    usual = gc.get_threshold()
    gc.freeze()
    gc.set_threshold(*COLLECT)
    try:
        yield
    finally:
        gc.set_threshold(*usual)
        gc.unfreeze()


async def _asked(directory: Path, size: Size, times: int) -> list[Asked]:
    await made(directory / "server", size)
    app = create_app(settings(directory / "server"), clock=MovingClock(END), log_clock=utc_now)
    async with app.router.lifespan_context(app):
        services = app.state.services
        services.store.database = counted = Counted(services.store.database)
        with contextlib.suppress(Refusal):  # of the run before
            await services.users.add(NAME, PASSWORD, role="operator")
        transport = httpx.ASGITransport(app=app)
        async with httpx.AsyncClient(transport=transport, base_url="http://viewer.bench") as client:
            await _sign_in(client)
            await services.users.sessions.prove(client.cookies["session"])
            ids = await ids_of(services, directory, min(times, size.hosts), NAME)
            asked = [Asked(path + more, NAMES.get(path, "")) for path, after in PAGES.items() for more in after]
            async with httpx.AsyncClient(transport=transport, base_url="http://viewer.bench") as visitor:
                for at in range(-2, times):  # two that warm up
                    for page in asked:
                        who = visitor if page.path == "/login" else client  # who is signed in is led on from there
                        await _ask(who, counted, page, ids[at % len(ids)], warm=at >= 0)
    return asked


async def _ask(client: httpx.AsyncClient, counted: Counted, page: Asked, ids: Ids, *, warm: bool) -> None:
    with counted.counting() as statements:
        began = time.perf_counter()
        address = page.path.format(**ids, name=page.name)
        if page.path.startswith("/live"):
            status = await _first_byte(client, address)
        else:
            status = (await client.get(address, headers={"Accept": "text/html"})).status_code
        took = time.perf_counter() - began
    if status != 200:
        raise Unavailable(f"bench: {page.path} answers {status}")
    if warm:
        page.times_s.append(took)
    if len(statements) > len(page.statements):
        page.statements = statements


async def _first_byte(client: httpx.AsyncClient, address: str) -> int:
    """Ask for a stream, which has no end, and leave once its first part is there; its status."""
    request = client.build_request("GET", address, headers={"Accept": "text/event-stream"})
    app = client._transport.app  # type: ignore[attr-defined]  # the transport waits for an end
    status, began = 0, asyncio.Event()

    async def receive() -> dict[str, Any]:
        await began.wait()
        return {"type": "http.disconnect"}

    async def send(message: Mapping[str, Any]) -> None:
        nonlocal status
        status = message.get("status", status)
        if message.get("body"):
            began.set()

    scope = {
        "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": "GET", "scheme": "http", "root_path": "",
        "path": request.url.path, "raw_path": request.url.raw_path, "query_string": request.url.query,
        "headers": [(name.lower(), value) for name, value in request.headers.raw], "client": ("127.0.0.1", 1), "server": ("x", 80),
    }  # fmt: skip
    task = asyncio.create_task(app(scope, receive, send))
    await asyncio.wait({task, waits := asyncio.create_task(began.wait())}, return_when=asyncio.FIRST_COMPLETED)
    for one in (task, waits):
        one.cancel()
    await asyncio.gather(task, waits, return_exceptions=True)
    return status if began.is_set() else 500


async def _sign_in(client: httpx.AsyncClient) -> None:
    page = await client.get("/login")
    token = re.search(r'name="form_token" value="([^"]+)"', page.text)
    form = {"form_token": token[1] if token else "", "name": NAME, "password": PASSWORD, "next": "/"}
    reply = await client.post("/login", data=form)
    if reply.status_code != 303 or "/login" in reply.headers["location"]:
        raise Unavailable(f"bench: signing in answers {reply.status_code}")


def key_ids(directory: Path) -> list[str]:
    """Those of all hosts of the fleet that is kept there."""
    return list(json.loads((directory / "server" / "made.json").read_text("ascii"))["key_ids"])


async def ids_of(services: Any, directory: Path, count: int, name: str) -> list[Ids]:
    """Ids of so many hosts, spread over all sites, each with a record of its chain and what this person asked for."""
    reader = services.store.for_sites(await services.store.all_sites())
    user = await services.store.user(name)
    hosts = key_ids(directory)
    found: list[Ids] = []
    older, jobs = dict[str, int](), dict[str, str]()
    step = max(1, len(hosts) // count)
    step += step % 2 == 0  # so that the hosts asked for are not all of one site: hosts go round the sites in turn
    for number in range(count):
        host = await reader.host(hosts[number * step % len(hosts)])
        records = await reader.bundles(BundleQuery(key_id=host.key_id, limit=200))
        record = records[number * 37 % len(records)]
        wanted = Wanted(host.key_id, "pause", {})
        # One order a host and person, however often this runs over the same directory.
        order = await services.orders.draft(user, reader, wanted, order_id=_id_of(host.key_id, name))
        if host.site_id not in older:
            older[host.site_id] = await _older(services, reader, host.site_id)
            jobs[host.site_id] = await _packet(services, reader.only(host.site_id), user, host.site_id)
        found.append(
            {
                "site_id": host.site_id,
                "key_id": host.key_id,
                "bundle_id": record.bundle_id,
                "order_id": order.order_id,
                "check": "firewall",
                "year": str(END.year),
                "size": str(older[host.site_id] // 2),
                "index": str(older[host.site_id]),
                "job_id": jobs[host.site_id],
            }
        )
    return found


async def _older(services: Any, reader: Any, site_id: str) -> int:
    """The index of the newest checkpoint that this log holds in its own entries, which witnesses would have had put there."""
    now = services.clock()
    note = await asyncio.to_thread(services.log_files.published, site_id, END.year)
    found = (await services.logbook(reader).log(site_id, END.year)).older.heads
    if not found:
        leaves = [NewLeaf(site_id, time_leaf(note, [])) for _ in range(OLDER)]
        await services.store.write(lambda tx: tx.add_leaves(leaves, now))
        for _ in range(200):
            while await services.sequencer.round():
                pass
            if found := (await services.logbook(reader).log(site_id, END.year)).older.heads:
                break
            await asyncio.sleep(0.05)
        else:
            raise Unavailable("bench: the log took in no entry")
    return int(found[0].index)


def _id_of(*of: str) -> str:
    return hashlib.sha256("/".join(of).encode()).hexdigest()[:32]


async def _packet(services: Any, reader: Any, user: Any, site_id: str) -> str:
    """A packet that this person asked for, and that could not be built: its page needs no files."""
    there = await reader.packet_jobs(user.person_id)
    job = PacketJob(
        _id_of(site_id, user.person_id), site_id, user.person_id, Dates(END.date(), END.date()), END,
        state="failed", stage="reading", code="worker_died", tries=3, ended_at=END,
    )  # fmt: skip
    if not there:
        await services.store.write(lambda tx: tx.add_packet_job(job))
    return str(there[0].job_id if there else job.job_id)
