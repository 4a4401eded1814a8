"""Two tenants at one server, and a case for every route: what is the other one's answers as what does not exist.

A route without a case fails the crawl, so a new route needs a line in CASES. A case is an act of one side (`Crawl`), which asks
for its own, for the other side's and for unknown ids, and compares whole answers.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import date, timedelta
from typing import Any

import httpx2
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID
from nacl.signing import SigningKey

from compliance_agent.entries.rotation import statement
from compliance_agent.evidence.canonical import canonical
from compliance_agent.server.records import Dates
from compliance_agent.server.records.packets import PacketJob
from compliance_agent.server.services.exceptions import Wanted as Accepted
from compliance_agent.server.services.orders import Wanted
from compliance_agent.server.tls import ClientAuthority
from compliance_agent.transport.protocol import api_key_message, certificate_message
from tests.server.builder import FakeHost, Server, Signed, b64, checkin_body, stamp

TLS_KEY = ec.generate_private_key(ec.SECP256R1())
FORM = "application/x-www-form-urlencoded"
PASSWORD = "correct horse battery"
_CHANGING = re.compile(
    r'"trace_id":"[0-9a-f]+"|value="[\w-]{43}"|name="once" value="[\w-]{22}"|"nonce":"[^"]+"|"server_time":"[^"]+"'
)
HEADERS_THAT_CHANGE = {"x-request-id", "set-cookie", "content-length"}


@dataclass
class Side:
    """A tenant: a site with a host, a record, and a person who may see this site alone."""

    site_id: str
    host: FakeHost
    bundle: Signed
    token: Mapping[str, str]  # headers of the person's scripts
    session: Mapping[str, str]  # headers of the person's browser
    order_id: str = "0" * 32
    job_id: str = "0" * 32
    exception_id: str = "0" * 32

    @property
    def session_id(self) -> str:
        return (
            hashlib.sha256(self.session["cookie"].partition("=")[2].encode()).hexdigest()[:16] if self.session else ""
        )

    @property
    def ids(self) -> dict[str, str]:
        return {
            "site_id": self.site_id,
            "key_id": self.host.key_id,
            "bundle_id": str(self.bundle.document["bundle_id"]),
            "year": "2026",
            "index": "0",
            "size": "1",
            "name": "bundle.json",
            "path": "0/000.p/1",
            "digest": "0" * 12,
            "order_id": self.order_id,
            "job_id": self.job_id,
            "exception_id": self.exception_id,
            "check": "time_sync",
            "sha256": hashlib.sha256(baseline_of(self.site_id)).hexdigest(),
        }

    @property
    def canaries(self) -> tuple[str, ...]:
        """What nobody else may ever read."""
        ids = self.ids
        return (
            self.site_id,
            self.session_id,
            self.host.host_id,
            ids["key_id"],
            ids["bundle_id"],
            self.bundle.sha256,
            b64(self.host.public),
            self.order_id,
            self.job_id,
            self.exception_id,
        )


@dataclass
class Nobody:
    """What does not exist: ids of the same form."""

    host: FakeHost = field(default_factory=lambda: FakeHost(host_id="zz-00", site_id="clinic-0"))
    bundle: Signed = field(init=False)

    def __post_init__(self) -> None:
        self.bundle = self.host.next()

    @property
    def ids(self) -> dict[str, str]:
        return Side("clinic-0", self.host, self.bundle, {}, {}, "f" * 32, "e" * 32, "d" * 32).ids


def baseline_of(site_id: str) -> bytes:
    """A baseline that no other site has."""
    return f'version: "{site_id}"\n'.encode()


def filled(path: str, ids: Mapping[str, str]) -> str:
    """A route's path with these ids."""
    return path.replace(":path}", "}").format(**ids)


async def side(server: Server, site_id: str, client_id: str | None, label: str) -> Side:
    """A tenant at this server. `client_id` None limits the person by the site alone."""
    token = await server.token(site_id, client_id or "msp")
    host = FakeHost(host_id=label, site_id=site_id, client_id=client_id or "msp", now=server.clock())
    host.api_key = (await server.try_enrol(host, token)).json()["api_key"]
    bundle = host.next()
    assert (await server.deliver(host, bundle, host.heartbeat(time_sync="pass"))).status_code == 200
    users, name = server.services.users, f"person-{site_id[-1]}"
    sites = frozenset({site_id}) if client_id is None else None
    person = await users.add(name, PASSWORD, role="owner", client_id=client_id or "msp", sites=sites)
    drafted = await server.services.orders.draft(person, await users.reader(person), Wanted(host.key_id, "pause", {}))
    bearer = (await users.tokens.create(name, timedelta(days=1)))[0]
    cookie = await users.login(name, PASSWORD)
    await users.sessions.prove(cookie)  # acts of the viewer are open to it
    await server.services.orders.add_baseline(
        person, await users.reader(person), site_id, baseline_of(site_id), bytes(64)
    )
    job = PacketJob(f"{hashlib.sha256(site_id.encode()).hexdigest()[:32]}", site_id, person.person_id,
                    Dates(date(2026, 11, 22), date(2026, 11, 22)), server.clock(), state="done",
                    ended_at=server.clock(), size=1, sha256="0" * 64)  # fmt: skip

    async def kept(tx: Any) -> None:
        await tx.add_packet_job(job)
        await tx.add_packet_part(job, "packet.zip", 0, b"x")

    await server.services.store.write(kept)
    accepted = hashlib.sha256(f"exception {site_id}".encode()).hexdigest()[:32]
    asked = Accepted(host.key_id, "time_sync", "vendor_requires", "watched", f"RA-{site_id}", 7)
    await server.services.exceptions().record(person, await users.reader(person), asked, accepted)
    headers = ({"authorization": f"Bearer {bearer}"}, {"cookie": f"session={cookie}"})
    return Side(site_id, host, bundle, *headers, drafted.order_id, job.job_id, accepted)


@dataclass
class Crawl:
    """One side that asks, and the other one, which must not exist for it."""

    server: Server
    mine: Side
    theirs: Side
    nobody: Nobody = field(default_factory=Nobody)

    async def ask(self, method: str, path: str, headers: Mapping[str, str], **body: Any) -> httpx2.Response:
        return await self.server.client.request(method, path, headers=dict(headers), **body)

    @property
    def callers(self) -> dict[str, Mapping[str, str]]:
        return {"token": self.mine.token, "session": self.mine.session, "host": self.mine.host.headers, "nobody": {}}

    def told(self, reply: httpx2.Response, *of: Side | Nobody) -> tuple[Any, ...]:
        """All of an answer but what is new in each, and but the ids that were asked for."""
        kept = {name: value for name, value in reply.headers.items() if name not in HEADERS_THAT_CHANGE}
        said = [_CHANGING.sub("", reply.text), *(f"{name}: {value}" for name, value in sorted(kept.items()))]
        for value in sorted({value for one in of for value in one.ids.values()}, key=len, reverse=True):
            said = [text.replace(value, "ID") for text in said]
        return reply.status_code, said

    def nothing_of_theirs(self, text: str, what: str) -> None:
        for canary in self.theirs.canaries:
            assert canary not in text, f"{what}: tells {canary}"

    async def hidden(self, method: str, path: str, query: str = "", *, own: int = 200) -> None:
        """With every credential, theirs answers as unknown does; with the right ones, mine is there."""
        seen = []
        for name, headers in self.callers.items():
            mine, theirs, unknown = [
                await self.ask(method, filled(path + query, one.ids), headers)
                for one in (self.mine, self.theirs, self.nobody)
            ]
            assert self.told(theirs, self.theirs) == self.told(unknown, self.nobody), (
                f"{method} {path}{query} as {name}"
            )
            assert theirs.status_code in {401, 404, 303}, f"{method} {path}{query} as {name}: {theirs.status_code}"
            if mine.status_code != theirs.status_code or own != 200:
                seen.append(mine.status_code)
                assert theirs.status_code == 404, f"{method} {path}{query} as {name}: {theirs.status_code}"
        assert own in seen, f"{method} {path}{query}: nobody sees the own one"

    async def listed(self, method: str, path: str) -> None:
        """A list has what is mine, and nothing of theirs."""
        replies = [await self.ask(method, path, headers) for headers in self.callers.values()]
        whole = [reply.text for reply in replies if reply.status_code == 200]
        assert any(canary in text for text in whole for canary in self.mine.canaries), f"{path}: nobody sees the own"
        for reply in replies:
            self.nothing_of_theirs(reply.text, path)

    async def public(self, method: str, path: str) -> None:
        """For everybody, and about nobody."""
        for headers in self.callers.values():
            text = (await self.ask(method, filled(path, self.theirs.ids), headers)).text
            for canary in (*self.theirs.canaries, *self.mine.canaries):
                assert canary not in text, f"{path}: tells {canary}"

    async def posted(self, path: str, body: Callable[[Side | Nobody], Any]) -> None:
        """A body about theirs is answered as one about nobody, with every credential."""
        for name, headers in self.callers.items():
            theirs, unknown = [
                await self.ask("POST", filled(path, one.ids), headers, content=canonical(body(one)))
                for one in (self.theirs, self.nobody)
            ]
            assert self.told(theirs, self.theirs) == self.told(unknown, self.nobody), f"POST {path} as {name}"


async def _evidence(crawl: Crawl, method: str, path: str) -> None:
    await crawl.posted(path, lambda one: {"protocol": 1, "bundles": [one.bundle.item], "gaps": []})
    await crawl.posted(path, lambda one: {"protocol": 1, "bundles": [_relabelled(crawl, one)], "gaps": []})


def _relabelled(crawl: Crawl, one: Side | Nobody) -> dict[str, str]:
    """My own bundle that says it is of another site's host."""
    mine = crawl.mine.host
    document = mine.document(site_id=one.ids["site_id"], host={"id": one.host.host_id, "key_id": one.host.key_id})
    return mine.sign({**document, "bundle_id": "0" * 36}).item


async def _checkin(crawl: Crawl, method: str, path: str) -> None:
    await crawl.posted(path, lambda one: checkin_body(one.host))


async def _receipts(crawl: Crawl, method: str, path: str) -> None:
    await crawl.posted(path, lambda one: {"protocol": 1, "bundles": [one.ids["bundle_id"]]})


async def _challenge(crawl: Crawl, method: str, path: str) -> None:
    await crawl.posted(path, lambda one: {"protocol": 1, "public_key": b64(one.host.public)})


async def _enrol(crawl: Crawl, method: str, path: str) -> None:
    """Only who holds a key learns that it is enrolled; a token of one site makes no host at another."""
    token = await crawl.server.token(crawl.mine.site_id, crawl.mine.host.client_id)

    def without_the_key(one: Side | Nobody) -> dict[str, Any]:
        nonce, proof = b64(bytes(32)), b64(bytes(64))
        return {"protocol": 1, "token": token, "public_key": b64(one.host.public), "host_id": one.host.host_id,
                "nonce": nonce, "proof": proof}  # fmt: skip

    await crawl.posted(path, without_the_key)
    new = FakeHost(host_id="new")
    reply = await crawl.server.try_enrol(new, token)
    assert (reply.status_code, reply.json()["site_id"]) == (201, crawl.mine.site_id)
    crawl.nothing_of_theirs(reply.text, path)
    await crawl.server.services.enrolment.revoke(crawl.mine.site_id, new.key_id, actor="test")


async def _rotate(crawl: Crawl, method: str, path: str) -> None:
    new = SigningKey.generate()

    def stolen(one: Side | Nobody) -> dict[str, str | int]:
        head = (one.host.epoch, one.host.seq, one.host.prev)
        ids = {"site_id": one.ids["site_id"], "host_id": one.host.host_id}
        raw = statement(one.host.public, bytes(new.verify_key), **ids, head=head, at=stamp(crawl.server.clock()))
        sigs = {"old_sig": b64(one.host.key.sign(raw).signature), "new_sig": b64(new.sign(raw).signature)}
        return {"protocol": 1, "statement": b64(raw), **sigs}

    await crawl.posted(path, stolen)


async def _certificate(crawl: Crawl, method: str, path: str) -> None:
    """A request that names another's host, and a nonce and a proof of another's key, are worth what made-up ones are."""
    desk = crawl.server.services.certificates
    closed = desk._authority
    desk._authority = ClientAuthority(crawl.server.services.settings.data_dir / "tls", crawl.server.clock())
    try:
        for names in (True, False):

            def stolen(one: Side | Nobody, names: bool = names) -> dict[str, str | int]:
                name = [x509.NameAttribute(NameOID.COMMON_NAME, one.ids["key_id"])] if names else []
                made = x509.CertificateSigningRequestBuilder().subject_name(x509.Name(name))
                raw = made.sign(TLS_KEY, hashes.SHA256()).public_bytes(Encoding.DER)
                proof = one.host.key.sign(certificate_message(bytes(32), raw)).signature
                return {"protocol": 1, "csr": b64(raw), "nonce": b64(bytes(32)), "proof": b64(proof)}

            await crawl.posted(path, stolen)
    finally:
        desk._authority = closed


async def _api_key(crawl: Crawl, method: str, path: str) -> None:
    """Another's signature, over my key or over its own, puts no key in place of mine."""

    def stolen(one: Side | Nobody) -> dict[str, str | int]:
        message = api_key_message(crawl.mine.host.api_key, "cak1.of-theirs")
        sig = one.host.key.sign(message).signature if one is not crawl.mine else bytes(64)
        return {"protocol": 1, "sha256": hashlib.sha256(b"cak1.of-theirs").hexdigest(), "sig": b64(sig)}

    await crawl.posted(path, stolen)


async def _leases(crawl: Crawl, method: str, path: str) -> None:
    """Another site's leases hold nobody up here, and their tokens end nothing of theirs."""
    body = {"protocol": 1, "act": "take", "check": "patching", "target": "ab" * 32, "life_s": 600, "fence": None}
    for one in (crawl.theirs, crawl.mine, crawl.theirs):
        reply = await crawl.ask(method, path, one.host.headers, content=canonical(body))
        assert (reply.status_code, reply.json()["fence"]) == (200, 1), "each site counts for itself"
    reply = await crawl.ask(
        method, path, crawl.mine.host.headers, content=canonical({**body, "act": "release", "fence": 2})
    )
    assert reply.json()["reason"] == "lease_lost"


async def _account(crawl: Crawl, method: str, path: str) -> None:
    """My own sessions, and nobody else's."""
    page = await crawl.ask(method, path, crawl.mine.session)
    assert crawl.mine.session_id in page.text
    crawl.nothing_of_theirs(page.text, path)


async def _end_session(crawl: Crawl, method: str, path: str) -> None:
    """The id of another person's session ends nothing, and is answered as one that does not exist."""
    token = form_token((await crawl.ask("GET", "/account", crawl.mine.session)).text)
    crawl.server.client.cookies.clear()
    headers = {"cookie": f"{crawl.mine.session['cookie']}; form={token}", "content-type": FORM}
    replies = [
        await crawl.ask(method, path, headers, content=f"form_token={token}&session={session_id}")
        for session_id in (crawl.theirs.session_id, "0" * 16)
    ]
    assert [reply.status_code for reply in replies] == [404, 404]
    assert crawl.told(replies[0], crawl.theirs) == crawl.told(replies[1], crawl.nobody)
    assert (await crawl.ask("GET", "/account", crawl.theirs.session)).status_code == 200


async def _order_act(crawl: Crawl, method: str, path: str) -> None:
    """The form of the viewer does nothing to what is theirs, and says of it what it says of nothing."""
    token = form_token((await crawl.ask("GET", "/account", crawl.mine.session)).text)
    crawl.server.client.cookies.clear()
    headers = {"cookie": f"{crawl.mine.session['cookie']}; form={token}", "content-type": FORM}
    replies = [
        await crawl.ask(
            method, filled(path, one.ids), headers, content=f"form_token={token}&kind=pause&once={'a' * 22}&seen="
        )
        for one in (crawl.theirs, crawl.nobody)
    ]
    assert [reply.status_code for reply in replies] == [404, 404]
    assert crawl.told(replies[0], crawl.theirs) == crawl.told(replies[1], crawl.nobody)


async def _found(crawl: Crawl, method: str, path: str) -> None:
    """A search that names what is theirs finds as little as one that names what does not exist; mine it finds."""
    await crawl.listed(method, path)
    for query in ("?site={site_id}", "?key={key_id}", "?id={bundle_id}", "?id={bundle_id}&key={key_id}&site={site_id}"):
        for name, headers in crawl.callers.items():
            mine, theirs, unknown = [
                await crawl.ask(method, filled(path + query, one.ids), headers)
                for one in (crawl.mine, crawl.theirs, crawl.nobody)
            ]
            assert crawl.told(theirs, crawl.theirs) == crawl.told(unknown, crawl.nobody), f"{path}{query} as {name}"
            if name == "session":
                assert f"/bundles/{crawl.mine.ids['bundle_id']}" in mine.text, (
                    f"{path}{query}: nobody finds the own one"
                )


async def _packet_file(crawl: Crawl, method: str, path: str) -> None:
    await crawl.hidden(method, path.replace("{name}", "packet.zip"))


async def _policy_file(crawl: Crawl, method: str, path: str) -> None:
    await crawl.hidden(method, path.replace("{name}", "policy"))


async def _older(crawl: Crawl, method: str, path: str) -> None:
    """Entry 0 holds no checkpoint, not even the own one: tests/server/test_older_heads.py has a log with some."""
    for name, headers in crawl.callers.items():
        theirs, unknown = [
            await crawl.ask(method, filled(path, one.ids), headers) for one in (crawl.theirs, crawl.nobody)
        ]
        assert crawl.told(theirs, crawl.theirs) == crawl.told(unknown, crawl.nobody), f"{path} as {name}"
        assert theirs.status_code in {303, 404}, f"{path} as {name}"


def form_token(page: str) -> str:
    """The token that a page's forms bring back."""
    found = re.search(r'name="form_token" value="([\w-]{43})"', page)
    assert found is not None
    return found[1]


async def _draft_order(crawl: Crawl, method: str, path: str) -> None:
    await crawl.posted(path, lambda one: {"host": one.ids["key_id"], "kind": "pause", "parameters": {}})


async def _record_exception(crawl: Crawl, method: str, path: str) -> None:
    words = {"check": "time_sync", "reason": "vendor_requires", "measure": "watched", "reference": "RA-1", "days": 7}
    await crawl.posted(path, lambda one: {"host": one.ids["key_id"], **words})


async def _baseline(crawl: Crawl, method: str, path: str) -> None:
    body = {"baseline": b64(b'version: "1"\n'), "sig": b64(bytes(64))}
    await crawl.posted(path, lambda one: {"site": one.ids["site_id"], **body})


def _sample() -> dict[str, Any]:
    return {"first": "2026-11-01", "last": "2026-11-22", "seed": "s"}


def _signature() -> dict[str, str]:
    return {"public_key": b64(bytes(SigningKey.generate().verify_key)), "sig": b64(bytes(64))}


async def _cosignature(crawl: Crawl, method: str, path: str) -> None:
    await crawl.posted(path, lambda one: {"any": "bytes"})


Case = Callable[[Crawl, str, str], Awaitable[None]]


def hidden(*queries: str, own: int = 200) -> Case:
    """Ids in the path, and in these queries."""

    async def case(crawl: Crawl, method: str, path: str) -> None:
        for query in ("", *queries):
            await crawl.hidden(method, path, query, own=own)

    return case


def asked(query: str) -> Case:
    """As `hidden`, where the path alone asks for nothing."""

    async def case(crawl: Crawl, method: str, path: str) -> None:
        await crawl.hidden(method, path, query)

    return case


def listed(*queries: str) -> Case:
    """A list; the ids in these queries are hidden."""

    async def case(crawl: Crawl, method: str, path: str) -> None:
        await crawl.listed(method, path)
        for query in queries:
            await crawl.hidden(method, path, query)

    return case


async def _live(crawl: Crawl, method: str, path: str) -> None:
    """A stream of theirs is not there; mine is, for who asks as a live page does (tests/web/test_streams.py)."""
    answers = [
        await crawl.ask(method, f"{path}?site={one.site_id}", crawl.mine.session) for one in (crawl.theirs, crawl.mine)
    ]
    unknown = await crawl.ask(method, f"{path}?site=clinic-0", crawl.mine.session)
    assert [answer.status_code for answer in answers] == [404, 406]
    assert crawl.told(answers[0], crawl.theirs) == crawl.told(unknown, crawl.nobody)


def acted(body: Callable[[], Any] = dict) -> Case:
    """An act on what the path names."""

    async def case(crawl: Crawl, method: str, path: str) -> None:
        await crawl.posted(path, lambda one: body())

    return case


async def public(crawl: Crawl, method: str, path: str) -> None:
    """About nobody."""
    await crawl.public(method, path)


CASES: Mapping[str, Case] = {
    "GET /api/v1/openapi.json": public,
    "POST /api/v1/enrol/challenge": _challenge,
    "POST /api/v1/enrol": _enrol,
    "POST /api/v1/keys/rotate": _rotate,
    "POST /api/v1/certificates": _certificate,
    "POST /api/v1/api-keys": _api_key,
    "POST /api/v1/leases": _leases,
    "POST /api/v1/checkin": _checkin,
    "POST /api/v1/evidence": _evidence,
    "POST /api/v1/receipts": _receipts,
    "GET /log/{site_id}/{year}/checkpoint": hidden(),
    "GET /log/{site_id}/{year}/retention.json": hidden(own=404),
    "GET /log/{site_id}/{year}/tile/{path:path}": hidden(own=404),
    "POST /log/{site_id}/{year}/cosignature": _cosignature,
    "GET /api/v1/sites": listed(),
    "GET /api/v1/hosts": listed("?site={site_id}"),
    "GET /api/v1/hosts/{key_id}": hidden(),
    "GET /api/v1/hosts/{key_id}/checks": hidden(),
    "GET /api/v1/bundles": listed("?host={key_id}"),
    "GET /api/v1/bundles/{bundle_id}": hidden("?host={key_id}"),
    "GET /api/v1/orders": listed("?host={key_id}"),
    "POST /api/v1/orders": _draft_order,
    "GET /api/v1/orders/{order_id}": hidden(),
    "POST /api/v1/orders/{order_id}/approve": acted(),
    "POST /api/v1/orders/{order_id}/prepare": acted(lambda: {"signers": ["0" * 64]}),
    "POST /api/v1/orders/{order_id}/signatures": acted(_signature),
    "POST /api/v1/orders/{order_id}/cancel": acted(),
    "GET /api/v1/sites/{site_id}/sample": asked("?first=2026-11-01&last=2026-11-22&seed=s"),
    "POST /api/v1/sites/{site_id}/samples": acted(_sample),
    "POST /api/v1/sites/{site_id}/samples/packet": acted(_sample),
    "GET /api/v1/packets": listed("?site={site_id}"),
    "GET /api/v1/packets/{job_id}": hidden(),
    "POST /api/v1/packets/{job_id}/remove": acted(),
    "GET /api/v1/packets/{job_id}/files/{name}": _packet_file,
    "GET /api/v1/exceptions": listed("?host={key_id}", "?site={site_id}"),
    "POST /api/v1/exceptions": _record_exception,
    "GET /api/v1/exceptions/{exception_id}": hidden(),
    "POST /api/v1/exceptions/{exception_id}/approve": acted(),
    "POST /api/v1/exceptions/{exception_id}/end": acted(),
    "POST /api/v1/baselines": _baseline,
    "GET /api/v1/baselines/{sha256}": hidden(),
    "GET /healthz": public,
    "GET /readyz": public,
    "GET /metrics": public,
    "GET /ca.pem": public,
    "GET /": listed(),
    "GET /sites/{site_id}": hidden(),
    "GET /hosts/{key_id}": hidden(),
    "GET /hosts/{key_id}/checks/{check}": hidden(),
    "GET /hosts/{key_id}/checks/{check}/exception": hidden("?reason=device_limit&measure=watched&reference=a&days=7"),
    "POST /hosts/{key_id}/checks/{check}/exception": _order_act,
    "GET /sites/{site_id}/exception-rule": hidden("?people=2"),
    "POST /sites/{site_id}/exception-rule": _order_act,
    "GET /hosts/{key_id}/evidence": hidden("?kind=drift"),
    "GET /hosts/{key_id}/public-key": hidden(),
    "GET /bundles/{bundle_id}": hidden("?key={key_id}", "?proof=1"),
    "GET /bundles/{bundle_id}/{name}": hidden("?key={key_id}"),
    "GET /login": public,
    "POST /login": public,
    "POST /logout": public,
    "GET /login/oidc": public,
    "GET /login/oidc/callback": public,
    "GET /verify": public,
    "GET /account": _account,
    "POST /account/sessions/end": _end_session,
    "GET /account/factor": public,
    "POST /account/factor/begin": public,
    "POST /account/factor/confirm": public,
    "GET /account/prove": public,
    "POST /account/prove": public,
    "GET /sites/{site_id}/log": hidden("?year={year}"),
    "GET /sites/{site_id}/log/{year}/key": hidden(),
    "GET /sites/{site_id}/log/{year}/consistency/{size}": hidden(),
    "GET /sites/{site_id}/log/{year}/older/{index}": _older,
    "GET /sites/{site_id}/log/{year}/files/{name}": _policy_file,
    "GET /sites/{site_id}/controls": hidden("?host={key_id}", "?by=host"),
    "GET /sites/{site_id}/controls.csv": hidden("?by=host"),
    "GET /sites/{site_id}/packets": hidden(),
    "GET /sites/{site_id}/sample": hidden("?seed=s", "?seed=s&from=2026-11-01&to=2026-11-22"),
    "GET /sites/{site_id}/sample.csv": hidden("?seed=s&from=2026-11-01&to=2026-11-22"),
    "POST /sites/{site_id}/packets": acted(),
    "GET /packets/{job_id}": hidden(),
    "POST /packets/{job_id}/remove": acted(),
    "GET /packets/{job_id}/{name}": _packet_file,
    "GET /evidence": _found,
    "GET /live": _live,
    "GET /orders": listed(),
    "GET /orders/{order_id}": hidden(),
    "GET /orders/{order_id}/approve": hidden(),
    "GET /orders/{order_id}/withdraw": hidden(),
    "POST /orders/{order_id}/approve": _order_act,
    "POST /orders/{order_id}/withdraw": _order_act,
    "GET /hosts/{key_id}/order": hidden(),
    "GET /hosts/{key_id}/order/confirm": asked("?kind=pause"),
    "POST /hosts/{key_id}/order/confirm": _order_act,
    "GET /static/{digest}/{name}": public,
    "GET /{path:path}": public,
}


def all_routes(routes: Any) -> Iterator[Any]:
    """Every route with a path, those of included routers too, however the framework nests them."""
    for route in routes:
        inner = getattr(route, "original_router", None) or getattr(route, "routes", None)
        if inner is not None:
            yield from all_routes(getattr(inner, "routes", inner) or ())
        elif getattr(route, "path", None):
            yield route
        else:
            raise AssertionError(f"a route of a kind that the crawl does not know: {route}")


def routes_of(server: Server) -> list[tuple[str, str]]:
    """Method and path of each; a HEAD is answered by its GET."""
    found = []
    for route in all_routes(server.app.router.routes):
        methods = set(getattr(route, "methods", None) or {"?"})
        found += [(method, route.path) for method in sorted(methods - {"HEAD"} if "GET" in methods else methods)]
    return found


async def crawl_all(server: Server, one: Side, other: Side) -> int:
    """Every route, both directions; how many acts of a side that were."""
    routes = routes_of(server)
    for mine, theirs in ((one, other), (other, one)):
        crawl = Crawl(server, mine, theirs)
        for method, path in routes:
            case = CASES.get(f"{method} {path}")
            assert case is not None, f"{method} {path} has no isolation case: add one to CASES"
            await case(crawl, method, path)
    gone = set(CASES) - {f"{method} {path}" for method, path in routes}
    assert not gone, f"cases of routes that are gone: {sorted(gone)}"
    return 2 * len(routes)
