"""What people and their scripts read: sites, hosts, checks, bundles. All of it within the caller's sites."""

from __future__ import annotations

import base64
from typing import Annotated

from fastapi import APIRouter, Query

from compliance_agent.server.api.deps import CurrentFleet
from compliance_agent.server.api.schemas import (
    BundleOut,
    BundleWhole,
    CheckOut,
    Head,
    HostOut,
    PageOut,
    PointOut,
    Retention,
    SiteOut,
)
from compliance_agent.server.records import Bundle, BundleQuery
from compliance_agent.server.services.fleet import CheckStanding, HostStanding, SiteStanding

router = APIRouter(prefix="/api/v1", tags=["read"])
Filter = Annotated[str | None, Query(max_length=64, pattern=r"^[A-Za-z0-9._-]+$")]


def _site(item: SiteStanding) -> SiteOut:
    return SiteOut(
        site_id=item.site.site_id,
        client_id=item.site.client_id,
        hosts=len(item.live),
        silent=item.silent,
        counts=item.counts,
        oldest_unmet_at=item.oldest_unmet_at,
    )


def _host(item: HostStanding) -> HostOut:
    host = item.host
    return HostOut(
        key_id=host.key_id,
        host_id=host.host_id,
        site_id=host.site_id,
        client_id=host.client_id,
        enrolled_at=host.enrolled_at,
        revoked_at=host.revoked_at,
        last_seen_at=host.last_seen_at,
        heartbeat_at=host.heartbeat_at,
        silent=item.silent,
        broken=item.broken,
        forks=host.forks,
        waiting_since=host.waiting_since,
        contested_at=host.contested_at,
        agent_version=host.agent_version,
        baseline_version=host.baseline_version,
        head=Head(epoch=host.head.epoch, seq=host.head.seq, digest=host.head.digest) if host.head else None,
        pending=host.pending,
        counts=item.counts,
        oldest_unmet_at=item.oldest_unmet_at,
    )


def _check(item: CheckStanding) -> CheckOut:
    said = item.verdict
    return CheckOut(
        check=said.check,
        result=item.result,
        reason=item.reason,
        reported=said.result,
        reported_reason=said.reason,
        since=said.since,
        seen_at=said.seen_at,
        bundle_id=said.bundle_id,
    )


def _bundle(item: Bundle) -> BundleOut:
    return BundleOut(**{name: getattr(item, name) for name in BundleOut.model_fields})


@router.get("/sites", summary="Clinics, the oldest unmet item first")
async def sites(fleet: CurrentFleet) -> list[SiteOut]:
    """Every site the caller may see."""
    return [_site(item) for item in await fleet.sites()]


@router.get("/hosts", summary="Hosts of one site, or of all")
async def hosts(fleet: CurrentFleet, site: Filter = None) -> list[HostOut]:
    """Every host the caller may see."""
    return [_host(item) for item in await fleet.hosts(site)]


@router.get("/hosts/{key_id}", summary="One host")
async def host(fleet: CurrentFleet, key_id: str) -> HostOut:
    """One host by its key."""
    return _host(await fleet.host(key_id))


@router.get("/hosts/{key_id}/checks", summary="What stands for each check of a host")
async def checks(fleet: CurrentFleet, key_id: str) -> list[CheckOut]:
    """Current verdicts; an old green verdict of a silent host is `unknown`."""
    return [_check(item) for item in await fleet.checks(key_id)]


@router.get("/bundles", summary="Evidence, newest arrival first")
async def bundles(
    fleet: CurrentFleet,
    host: Filter = None,
    check: Filter = None,
    kind: Filter = None,
    result: Filter = None,
    outcome: Filter = None,
    before: Annotated[int | None, Query(ge=1, le=2**53)] = None,
    limit: Annotated[int, Query(ge=1, le=100)] = 50,
) -> PageOut:
    """Bundles that fit every filter given."""
    query = BundleQuery(key_id=host, check=check, kind=kind, result=result, outcome=outcome, before=before, limit=limit)
    page = await fleet.evidence(query)
    return PageOut(items=[_bundle(item) for item in page.items], next=page.next)


@router.get("/bundles/{bundle_id}", summary="One bundle, verified now")
async def bundle(fleet: CurrentFleet, bundle_id: str, host: Filter = None) -> BundleWhole:
    """The exact bytes with signature and key, so that anyone can verify them again."""
    found = await fleet.bundle(bundle_id, host)
    return BundleWhole(
        **_bundle(found.bundle).model_dump(),
        valid=found.valid,
        points=[PointOut(name=point.name, holds=point.holds, code=point.code) for point in found.points],
        retention=Retention(
            retain_until=found.keep.until, in_effect=found.keep.in_effect, holds=list(found.keep.holds)
        ),
        bundle=base64.b64encode(found.body).decode("ascii"),
        sig=base64.b64encode(found.sig).decode("ascii"),
        public_key=base64.b64encode(found.host.public_key).decode("ascii"),
    )
