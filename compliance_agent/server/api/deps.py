"""What handlers are given: the services of this app, who is signed in, and what they may see."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Annotated, Any

from fastapi import Depends
from pydantic import BaseModel
from starlette.requests import Request

from compliance_agent.errors import Refusal
from compliance_agent.log.policy import Policy
from compliance_agent.server.api.edge import CLIENT_CERTIFICATE
from compliance_agent.server.cosigning import Cosigning
from compliance_agent.server.log_files import LogFiles
from compliance_agent.server.log_heads import LogHeads
from compliance_agent.server.log_keys import LogKeys
from compliance_agent.server.records import Clock, Host, SiteReader, Store, User
from compliance_agent.server.sequencer import Sequencer
from compliance_agent.server.services import roles
from compliance_agent.server.services.access import HostAccess
from compliance_agent.server.services.alarms import Alarms
from compliance_agent.server.services.api_keys import ApiKeys
from compliance_agent.server.services.board import Board
from compliance_agent.server.services.certificates import Certificates
from compliance_agent.server.services.checkin import Checkin
from compliance_agent.server.services.controls import Controls
from compliance_agent.server.services.duties import Duties
from compliance_agent.server.services.enrol import Enrolment
from compliance_agent.server.services.fleet import Fleet, Silence
from compliance_agent.server.services.ingest import Ingest
from compliance_agent.server.services.leases import Leases
from compliance_agent.server.services.limits import Quotas
from compliance_agent.server.services.logbook import Logbook
from compliance_agent.server.services.oidc import Oidc
from compliance_agent.server.services.order_trust import OrderTrustDesk
from compliance_agent.server.services.orders import OrderDesk
from compliance_agent.server.services.proving import Prover
from compliance_agent.server.services.pruning import Pruning
from compliance_agent.server.services.receipts import Receipts
from compliance_agent.server.services.retention import Holds
from compliance_agent.server.services.rotation import Rotations
from compliance_agent.server.services.tracing import Tracing
from compliance_agent.server.services.users import Users
from compliance_agent.server.services.verification import Verifier
from compliance_agent.server.settings import ServerSettings


@dataclass(frozen=True)
class Services:
    """The desks of one running server. `app.state.services` holds it.

    Attributes:
        ack_public_key: raw 32-byte key that acknowledgements verify under; hosts pin it at enrolment.
        sign: with that key.
        alarms: what people are told, and whether they were.
        duties: what this process does of the work that one replica does at a time.
        limits: what one host and one site may ask for.
        log_keys, log_files: what signs the transparency logs, and where they are served from.
        log_heads: the largest checkpoint ever signed of each.
        board: what of them is published, and why one stands still.
        tracing: its part of the traces of drifts, where there is a collector.
        sequencer: runs in the server; in a command beside it, it is never started.
        oidc: the OpenID provider where people may sign in, when there is one.
        cosigning: asks witnesses and the time-stamping authority, where there are any.
        ca_pem: certificate of the server's own authority, when it serves TLS.
        policy: the witnesses of its logs, when there are any.
    """

    settings: ServerSettings
    store: Store
    clock: Clock
    verifier: Verifier
    silence: Silence
    limits: Quotas
    alarms: Alarms
    access: HostAccess
    api_keys: ApiKeys
    ingest: Ingest
    duties: Duties
    leases: Leases
    checkin: Checkin
    certificates: Certificates
    enrolment: Enrolment
    rotations: Rotations
    users: Users
    orders: OrderDesk
    order_trust: OrderTrustDesk
    holds: Holds
    pruning: Pruning
    ack_public_key: bytes
    sign: Callable[[bytes], bytes]
    log_keys: LogKeys
    log_files: LogFiles
    log_heads: LogHeads
    board: Board
    sequencer: Sequencer
    receipts: Receipts
    tracing: Tracing
    cosigning: Cosigning | None = None
    oidc: Oidc | None = None
    ca_pem: bytes | None = None
    policy: Policy | None = None

    def fleet(self, reader: SiteReader) -> Fleet:
        """The read model over the rows that `reader` sees."""
        return Fleet(reader, self.clock, self.silence, self.verifier)

    def prover(self, reader: SiteReader) -> Prover:
        """Proofs of the records that `reader` sees."""
        return Prover(reader, self.log_files, self.log_keys, self.policy)

    def controls(self, reader: SiteReader) -> Controls:
        """What the hosts that `reader` sees showed, day by day."""
        return Controls(reader, self.clock)

    def logbook(self, reader: SiteReader) -> Logbook:
        """The logs of the sites that `reader` sees."""
        return Logbook(reader, self.log_files, self.log_keys, self.board, self.policy)


def services_of(request: Request) -> Services:
    """The services of the app that answers this request."""
    services = request.app.state.services
    if not isinstance(services, Services):
        raise RuntimeError("the app has not started")
    return services


async def host_of(request: Request, *, fresh: bool = False, may_lack_certificate: bool = False) -> Host:
    """The host that calls; see `HostAccess.caller`."""
    return await services_of(request).access.caller(
        request.headers.get("authorization"),
        request.scope.get(CLIENT_CERTIFICATE),
        fresh=fresh,
        may_lack_certificate=may_lack_certificate,
    )


def body_of(model: type[BaseModel]) -> dict[str, Any]:
    """A request body for the OpenAPI document: read by `strict_body`, so FastAPI does not see it."""
    schema = {"$ref": f"#/components/schemas/{model.__name__}"}
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}


def session_cookie(request: Request) -> str:
    """Name of the cookie that holds the session: bound to this origin wherever the connection is https."""
    return "__Host-session" if request.url.scheme == "https" else "session"


async def user_or_none(request: Request) -> User | None:
    """Who is signed in, by session cookie or operator token."""
    users = services_of(request).users
    scheme, _, secret = request.headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer":
        return await users.tokens.user_of(secret)
    return await users.of_session(
        request.cookies.get(session_cookie(request)), use=request.headers.get("hx-request") != "true"
    )


async def current_user(request: Request) -> User:
    """Who is signed in.

    Raises:
        Refusal: 401, nobody is.
    """
    user = await user_or_none(request)
    if user is None:
        raise Refusal("sign in, or send an operator token", code="not_signed_in", status=401)
    return user


def allowed(act: roles.Act) -> Callable[[Request], Awaitable[User]]:
    """A dependency: who is signed in, and has this act; Refusal 401 or 403."""

    async def user_with_act(request: Request) -> User:
        user = await current_user(request)
        roles.check(user, act)
        return user

    return user_with_act


async def current_fleet(request: Request, user: Annotated[User, Depends(allowed(roles.Act.LOOK))]) -> Fleet:
    """What the signed-in user may see."""
    services = services_of(request)
    return services.fleet(await services.users.reader(user))


CurrentFleet = Annotated[Fleet, Depends(current_fleet)]
