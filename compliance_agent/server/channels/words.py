"""What an alert says, the same through every channel: what kind, where, how many, since when. Nothing a host has written."""

from __future__ import annotations

from typing import Any

from compliance_agent.server.records.alarms import CRITICAL, KINDS, Delivery

SCHEMA = "compliance-agent/alert/v1"


def summary(delivery: Delivery, server: str) -> str:
    """One line for a person."""
    alert = delivery.alert
    site = f" site {alert.cause.site_id}" if alert.cause.site_id else ""
    host = f" host {alert.cause.key_id[:16]}" if alert.cause.key_id else ""
    state = "ended" if delivery.transition == "close" else "began"
    return f"[{server}] {alert.cause.kind} {state}:{site}{host} count {alert.count}: {KINDS[alert.cause.kind]}"


def severity(delivery: Delivery) -> str:
    """`critical` or `warning`."""
    return "critical" if delivery.alert.cause.kind in CRITICAL else "warning"


def document(delivery: Delivery, server: str) -> dict[str, Any]:
    """All of it for a program."""
    alert = delivery.alert
    ended = alert.closed_at if delivery.transition == "close" else None
    return {
        "schema": SCHEMA,
        "delivery_id": delivery.id,
        "alert_id": alert.alert_id,
        "transition": delivery.transition,
        "server": server,
        "kind": alert.cause.kind,
        "severity": severity(delivery),
        "site_id": alert.cause.site_id,
        "key_id": alert.cause.key_id,
        "count": alert.count,
        "opened_at": alert.opened_at.strftime("%Y-%m-%dT%H:%M:%S.%fZ"),
        "closed_at": ended.strftime("%Y-%m-%dT%H:%M:%S.%fZ") if ended else None,
        "summary": summary(delivery, server),
    }
