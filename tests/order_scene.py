"""A host that takes orders, and the people who sign them."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

from compliance_agent.agent import ComplianceAgent
from compliance_agent.core import orders
from compliance_agent.core.orders import Order
from tests import order_keys
from tests.agent_scene import Scene
from tests.order_keys import ANNA, BEN, Person, signed


class OrderScene(Scene):
    """A scene whose host has an order_keys_file."""

    def __post_init__(self) -> None:
        self.root.mkdir(parents=True, exist_ok=True)
        self.keys_path = self.root / "order-keys.json"
        self.keys_path.write_bytes(order_keys.keys_file())
        self.settings = {"order_keys_file": self.keys_path, **self.settings}
        super().__post_init__()
        self.numbers = itertools.count(1)

    def order(self, kind: str = "check", *, by: Sequence[Person] = (ANNA, BEN), **changes: Any) -> Order:
        """An order to this host as it stands, by what the server heard at the last check-in."""
        number, now = next(self.numbers), self.clock.now()
        form = orders.FORMS[kind]
        fields: dict[str, Any] = {
            "order_id": f"{number:032x}",
            "host": self.signer.key_id,
            "baseline_sha256": self.detector.baseline.sha256 if form.bound else None,
            "counter": number if form.numbered else None,
            "nonce": self.server.check_ins[-1]["order_nonce"] if form.numbered else None,
            "not_before": now,
            "expires": now + timedelta(minutes=15),
        }
        return order_keys.order(kind, by=by, **{**fields, **changes})

    def signed(self, kind: str = "check", *, by: Sequence[Person] = (ANNA, BEN), **changes: Any) -> bytes:
        return signed(self.order(kind, by=by, **changes), by)

    async def give(self, agent: ComplianceAgent, *envelopes: bytes) -> None:
        """The server forwards these with the next check-in, and goes on until it has their records."""
        self.server.orders = list(envelopes)
        await self.cycle(agent, pause_s=1.0)
        await self.delivered(agent)

    def ended(self) -> list[tuple[str | None, str | None, str | None]]:
        """Order, outcome and error of every order record that the server holds."""
        found = [item for item in self.documents() if item["kind"] == "order"]
        return [(item["order_id"], item["outcome"], item["error"]) for item in found]
