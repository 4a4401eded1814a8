"""Webhook, Slack and PagerDuty: one POST each; any status but 2XX is a failure, a redirect too."""

from __future__ import annotations

import hashlib
import hmac
import json
import time
from collections.abc import Callable
from typing import Any

from compliance_agent.errors import ConfigError, Unavailable
from compliance_agent.server.channels import words
from compliance_agent.server.channels.wire import Post
from compliance_agent.server.records.alarms import Delivery

PAGERDUTY_URL = "https://events.pagerduty.com/v2/enqueue"
LEAST_SECRET = 16


async def _posted(post: Post, document: dict[str, Any], headers: dict[str, str] | None = None) -> None:
    await _post(post, json.dumps(document, sort_keys=True).encode(), headers or {})


async def _post(post: Post, body: bytes, headers: dict[str, str]) -> None:
    status = await post(body, {"content-type": "application/json", **headers})
    if not 200 <= status < 300:
        raise Unavailable(f"answered with status {status}", code=f"status_{status}")


class Webhook:
    """Our own document, signed: `X-Compliance-Signature: v1=HMAC-SHA256(secret, timestamp "." body)` in hex.

    The timestamp is that of the try, so that a receiver can refuse what is replayed later; the delivery id is that of the alert.
    """

    def __init__(
        self,
        server: str,
        private: bool,
        url: str,
        secret_file: str,
        ca_file: str | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        if len(secret_file) < LEAST_SECRET:
            raise ConfigError(f"secret_file: expected a secret of at least {LEAST_SECRET} characters")
        self._server, self._secret, self._clock = server, secret_file.encode(), clock
        self._post = Post(url, ca_file, private=private)

    async def send(self, delivery: Delivery) -> None:
        """POST it."""
        body = json.dumps(words.document(delivery, self._server), sort_keys=True).encode()
        stamp = str(int(self._clock()))
        headers = {
            "x-compliance-delivery": delivery.id,
            "x-compliance-timestamp": stamp,
            "x-compliance-signature": f"v1={signature(self._secret, stamp, body)}",
        }
        await _post(self._post, body, headers)


def signature(secret: bytes, stamp: str, body: bytes) -> str:
    """What a receiver computes again."""
    return hmac.new(secret, stamp.encode() + b"." + body, hashlib.sha256).hexdigest()


class Slack:
    """An incoming webhook; its URL is the secret, so it stands in a file. The delivery id stands in the text."""

    def __init__(self, server: str, private: bool, url_file: str, ca_file: str | None = None) -> None:
        self._server, self._post = server, Post(url_file, ca_file, private=private)

    async def send(self, delivery: Delivery) -> None:
        """POST it."""
        await _posted(self._post, {"text": f"{words.summary(delivery, self._server)} ({delivery.id})"})


class PagerDuty:
    """Events API v2: the alert's id is the dedup key, so that its end resolves what its beginning triggered."""

    def __init__(
        self, server: str, private: bool, key_file: str, url: str = PAGERDUTY_URL, ca_file: str | None = None
    ) -> None:
        self._server, self._key, self._post = server, key_file, Post(url, ca_file, private=private)

    async def send(self, delivery: Delivery) -> None:
        """POST it."""
        event: dict[str, Any] = {
            "routing_key": self._key,
            "event_action": "resolve" if delivery.transition == "close" else "trigger",
            "dedup_key": delivery.alert.alert_id,
        }
        if delivery.transition == "open":
            event["payload"] = {
                "summary": words.summary(delivery, self._server),
                "source": self._server,
                "severity": words.severity(delivery),
                "timestamp": delivery.alert.opened_at.isoformat(),
                "class": delivery.alert.cause.kind,
                "custom_details": words.document(delivery, self._server),
            }
        await _posted(self._post, event)
