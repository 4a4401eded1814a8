"""What agents call, beside evidence: enrolment and check-in."""

from __future__ import annotations

import base64

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from compliance_agent.server.api.deps import body_of, host_of, services_of
from compliance_agent.server.api.edge import CLIENT_CERTIFICATE
from compliance_agent.server.api.schemas import (
    ApiKeyReply,
    ApiKeyRequest,
    CertificateReply,
    CertificateRequest,
    ChallengeReply,
    ChallengeRequest,
    CheckinReply,
    CheckinRequest,
    DurableLog,
    EnrolReply,
    EnrolRequest,
    Head,
    LeaseReply,
    LeaseRequest,
    RotateReply,
    RotateRequest,
    decoded,
    strict_body,
)
from compliance_agent.server.api.signed import signed
from compliance_agent.server.records import Head as HeadRecord
from compliance_agent.server.records.orders import TrustSaid
from compliance_agent.server.services import certificates, enrol, rotation
from compliance_agent.server.services.checkin import Said
from compliance_agent.server.services.secrets import hashed

router = APIRouter(prefix="/api/v1", tags=["agent"])


@router.post("/enrol/challenge", openapi_extra=body_of(ChallengeRequest), summary="Ask for a nonce to sign")
async def challenge(request: Request) -> ChallengeReply:
    """A nonce that proves possession of the key, good for five minutes and one use."""
    body = await strict_body(request, ChallengeRequest)
    nonce = await services_of(request).enrolment.challenge(decoded(body.public_key, 32))
    return ChallengeReply(nonce=base64.b64encode(nonce).decode("ascii"))


@router.post("/enrol", status_code=201, openapi_extra=body_of(EnrolRequest), summary="Redeem a one-time token")
async def enrol_host(request: Request) -> EnrolReply:
    """Make a key a host of the token's site."""
    body = await strict_body(request, EnrolRequest)
    services = services_of(request)
    enrolled = await services.enrolment.enrol(
        enrol.Request(
            token=body.token,
            public_key=decoded(body.public_key, 32),
            host_id=body.host_id,
            nonce=decoded(body.nonce, 32),
            proof=decoded(body.proof, 64),
        )
    )
    host = enrolled.host
    return EnrolReply(
        site_id=host.site_id,
        client_id=host.client_id,
        host_id=host.host_id,
        key_id=host.key_id,
        api_key=enrolled.api_key,
        server_key=base64.b64encode(services.ack_public_key).decode("ascii"),
        log_key=base64.b64encode(services.log_keys.public_bytes).decode("ascii"),
        server_name=services.settings.name,
        min_interval_s=services.settings.min_interval_s,
        waiting=host.waiting_since is not None,
    )


@router.post("/keys/rotate", openapi_extra=body_of(RotateRequest), summary="Let a new key take this host's key's place")
async def rotate_key(request: Request) -> RotateReply:
    """The statement again after an answer was lost gets the same answer."""
    services = services_of(request)
    caller = await host_of(request)
    body = await strict_body(request, RotateRequest)
    document, sig = await services.rotations.rotate(
        caller,
        rotation.Request(decoded(body.statement, None), decoded(body.old_sig, 64), decoded(body.new_sig, 64)),
    )
    services.access.forget(caller)
    rotated, signature = (base64.b64encode(raw).decode("ascii") for raw in (document, sig))
    return RotateReply(rotated=rotated, sig=signature)


@router.post(
    "/api-keys", openapi_extra=body_of(ApiKeyRequest), summary="Let a next API key count beside the present one"
)
async def api_key(request: Request) -> ApiKeyReply:
    """The host made the key and tells its hash; with its first use the present key ends."""
    caller = await host_of(request, fresh=True)
    body = await strict_body(request, ApiKeyRequest)
    present = hashed(request.headers["authorization"].partition(" ")[2])
    await services_of(request).api_keys.announce(caller, present, body.sha256, decoded(body.sig, 64))
    return ApiKeyReply(sha256=body.sha256)


@router.post("/certificates", openapi_extra=body_of(CertificateRequest), summary="Ask for a client certificate")
async def certificate(request: Request) -> CertificateReply:
    """For the TLS key of a signing request; the host's own key signs for a nonce of `/enrol/challenge` that it wants it."""
    caller = await host_of(request, fresh=True, may_lack_certificate=True)
    body = await strict_body(request, CertificateRequest)
    wanted = certificates.Request(decoded(body.csr, None), decoded(body.nonce, 32), decoded(body.proof, 64))
    presented = request.scope.get(CLIENT_CERTIFICATE) is not None
    pem = await services_of(request).certificates.issue(caller, wanted, presented=presented)
    return CertificateReply(certificate=pem.decode("ascii"))


@router.post(
    "/leases",
    openapi_extra=body_of(LeaseRequest),
    response_model=LeaseReply,
    summary="Ask for leave to disturb this host's users",
)
async def lease(request: Request) -> Response:
    """At most so many hosts of a site at a time; a cure that is new to the site goes to one host first."""
    services = services_of(request)
    caller = await host_of(request)
    body = await strict_body(request, LeaseRequest)
    if body.act == "release":
        told = await services.leases.release(caller, body.fence or 0)
    else:
        told = await services.leases.take(caller, body.check, body.target, body.life_s)
    return await signed(request, "/api/v1/leases", LeaseReply(fence=told.fence, for_s=told.for_s, reason=told.reason))


@router.post("/checkin", openapi_extra=body_of(CheckinRequest), summary="Say that this host lives")
async def checkin(request: Request) -> CheckinReply:
    """Note the host's head and backlog; answer with what is held of its chain."""
    services = services_of(request)
    caller = await host_of(request)
    body = await strict_body(request, CheckinRequest)
    said = Said(
        key_id=body.key_id,
        head=HeadRecord(body.head.epoch, body.head.seq, body.head.digest),
        pending=body.pending,
        agent_version=body.agent_version,
        baseline_version=body.baseline.version,
        baseline_sha256=body.baseline.sha256,
        order_nonce=body.order_nonce,
        order_trust=None if body.order_trust is None else TrustSaid(**body.order_trust.model_dump()),
    )
    answer = await services.checkin.check_in(caller, said)
    known = answer.known
    return CheckinReply(
        server_time=answer.server_time.strftime("%Y-%m-%dT%H:%M:%S.%fZ"),
        known=Head(epoch=known.epoch, seq=known.seq, digest=known.digest) if known else None,
        min_interval_s=services.settings.min_interval_s,
        orders=[base64.b64encode(raw).decode("ascii") for raw in answer.orders],
        order_trust=[base64.b64encode(raw).decode("ascii") for raw in answer.order_trust],
        durable=[DurableLog(origin=item.origin, size=item.size) for item in answer.durable],
    )


async def take_checkin(request: Request) -> Response:
    """The same beside FastAPI, which costs more than all of it."""
    request.scope["route"] = CHECKIN
    return await signed(request, CHECKIN.path, await checkin(request))


CHECKIN = Route("/api/v1/checkin", take_checkin, methods=["POST"])
