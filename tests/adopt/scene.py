"""A host below a directory of the test's own, root's side of orders on it, and people who sign."""

from __future__ import annotations

import base64
import contextlib
import dataclasses
import hashlib
import itertools
import json
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from nacl.signing import SigningKey

from compliance_agent import permits
from compliance_agent.adopt.protocol import TABLE
from compliance_agent.adopt.service import PERMIT, Adopting
from compliance_agent.baseline import parse
from compliance_agent.core.orders import Order
from compliance_agent.frames import Message
from compliance_agent.heal import approvals
from compliance_agent.heal.machine import Machine, Ran
from compliance_agent.heal.service import Answer
from compliance_agent.heal.trouble import Failed
from tests import order_keys, order_roots
from tests.agent_scene import BASELINE
from tests.order_keys import ANNA, BEN, HOST, Person, signed

TRUST, PERMITS, STATE, FILE = (
    "/etc/msp/adopt.json",
    "/etc/msp/permits.json",
    "/var/lib/adopt/state.json",
    "/etc/msp/baseline.yaml",
)
APPROVALS = "/etc/msp/approvals.json"
KEY = SigningKey(b"b" * 32)
NEWER = BASELINE.replace(b'version: "1"', b'version: "2"')
BROUGHT = ("order", "roots", "keys")
NEWEST = BASELINE.replace(b'version: "1"', b'version: "3"')


class Here(Machine):
    """This machine, its root directory elsewhere, and the program that says what a baseline permits in this process."""

    def __init__(self, root: Path) -> None:
        super().__init__((str(root / "bin"),), str(root / "booted"))
        self.root = root
        self.writes: list[str] = []
        self.cut_at = -1
        self.after = False
        self.full: frozenset[str] = frozenset()

    @contextlib.contextmanager
    def _parent(self, path: str) -> Iterator[tuple[int, str]]:
        with super()._parent(f"{self.root}{path}") as found:
            yield found

    def write(self, path: str, content: bytes, mode: int, owner: tuple[int, int] | None = None) -> None:
        """Cut off before or after the write that the test names."""
        if path in self.full:
            raise Failed("storage_full")
        cut = len(self.writes) == self.cut_at
        self.writes.append(path)
        if cut and not self.after:
            raise Cut
        super().write(path, content, mode, owner)
        if cut:
            raise Cut

    def run_apart(self, argv: Sequence[str], *, timeout_s: float, stdin: bytes = b"", walls: Sequence[str] = ()) -> Ran:
        assert (tuple(argv), "PrivateNetwork=yes" in walls) == (PERMIT, True)
        try:
            return Ran(0, permits.written(parse(stdin)), b"")
        except Exception:
            return Ran(78, b"", b"")


class Cut(BaseException):
    """The power went."""


class Scene:
    """The host. What is named here can be replaced by a test before it asks."""

    def __init__(self, root: Path, *, by_root: bool = True) -> None:
        self.root = root
        for name in ("etc/msp", "var/lib/adopt", "bin"):
            (root / name).mkdir(parents=True, mode=0o755)
        self.machine = Here(root)
        self.numbers = itertools.count(1)
        self.roots = [order_roots.root()] if by_root else []
        self.keys = order_roots.keys() if by_root else None
        self.trust: dict[str, Any] = {
            "schema": permits.TRUST_SCHEMA, "tenant": "msp-1", "site": "clinic-1", "host": HOST,
            "order_root": order_roots.pin(self.roots[0]) if by_root else None,
            "order_keys": None if by_root else "/etc/msp/order-keys.json",
            "baseline_key": base64.b64encode(bytes(KEY.verify_key)).decode(), "baseline": FILE,
        }  # fmt: skip
        if not by_root:
            self.put("/etc/msp/order-keys.json", order_keys.keys_file())
        self.put(TRUST, json.dumps(self.trust).encode())
        self.put(PERMITS, permits.written(parse(BASELINE)))
        self.put(FILE, BASELINE)
        self.put(f"{FILE}.sig", KEY.sign(BASELINE).signature)
        self.nonce = self.give_nonce()

    def start(self) -> None:
        """Another process of the same host."""
        self.machine = Here(self.root)

    @property
    def service(self) -> Adopting:
        return Adopting(self.machine, TRUST, PERMITS, STATE, APPROVALS)

    def path(self, path: str) -> Path:
        return self.root / path.lstrip("/")

    def put(self, path: str, content: bytes, mode: int = 0o644) -> None:
        self.path(path).write_bytes(content)
        self.path(path).chmod(mode)

    def say(self, **changes: Any) -> None:
        """Have root's file say this."""
        self.trust |= changes
        self.put(TRUST, json.dumps(self.trust).encode())

    def ask(self, kind: str, blob: bytes = b"") -> Answer:
        (_, *_) = list(TABLE.frames(Message(kind, 1, {}, blob)))
        answer = self.service.answer(Message(kind, 1, {}, blob))
        list(TABLE.frames(Message(answer[0], 1, answer[1], answer[2])))  # it can be said
        return answer

    def give_nonce(self) -> str:
        kind, fields, _ = self.ask("nonce")
        assert kind == "given", fields
        return str(fields["nonce"])

    def order(self, content: bytes = NEWER, *, by: Sequence[Person] = (ANNA, BEN), **changes: Any) -> Order:
        """An order for this baseline to this host as it stands, beginning now."""
        number, now = next(self.numbers), datetime.now(UTC).replace(microsecond=0)
        present = json.loads(self.path(PERMITS).read_bytes())["baseline"]
        fields = {
            "order_id": f"{number:032x}", "counter": number, "nonce": self.nonce, "not_before": now,
            "expires": now + timedelta(minutes=15), "baseline_sha256": present,
            "parameters": {"version": parse(content).version, "sha256": hashlib.sha256(content).hexdigest()},
        }  # fmt: skip
        return order_keys.order("adopt_baseline", by=by, **{**fields, **changes})

    def signed(self, content: bytes = NEWER, *, by: Sequence[Person] = (ANNA, BEN), **changes: Any) -> bytes:
        return signed(self.order(content, by=by, **changes), by)

    def brought(self, order: bytes, content: bytes = NEWER, signature: bytes | None = None, **changes: Any) -> bytes:
        raw = {
            "order": order, "baseline": content,
            "signature": bytes(KEY.sign(content).signature) if signature is None else signature,
        }  # fmt: skip
        fields: dict[str, Any] = {name: _text(value) for name, value in raw.items()}
        fields |= {"roots": [_text(one) for one in self.roots], "keys": None if self.keys is None else _text(self.keys)}
        return json.dumps({**fields, **changes}).encode()

    def take(self, order: bytes, content: bytes = NEWER, signature: bytes | None = None, **changes: Any) -> str:
        """`taken`, or why not."""
        kind, fields, _ = self.ask("take", self.brought(order, content, signature, **changes))
        return kind if kind == "taken" else str(fields.get("code") or fields.get("reason"))

    def approval(self, check: str = "patching", target: str = "updates_0f_1", **changes: Any) -> bytes:
        """A signed order that approves this plan."""
        by = changes.pop("by", (ANNA, BEN))
        order = self.order(by=by, **{"parameters": {"check": check, "target": target}, **changes})
        return signed(dataclasses.replace(order, kind="approve"), by)

    def note(self, order: bytes, **changes: Any) -> str:
        """`noted`, or why not."""
        brought = {name: value for name, value in json.loads(self.brought(order)).items() if name in BROUGHT}
        kind, fields, _ = self.ask("approve", json.dumps({**brought, **changes}).encode())
        return kind if kind == "noted" else str(fields.get("code") or fields.get("reason"))

    def given(self) -> list[dict[str, Any]]:
        """What root's file says that people approved."""
        return approvals.read(self.path(APPROVALS).read_bytes())

    def stands(self) -> tuple[str, bool, str]:
        """Version of the file, whether its signature is right, and version of what heal may do."""
        raw = self.path(FILE).read_bytes()
        right = KEY.sign(raw).signature == self.path(f"{FILE}.sig").read_bytes()
        return parse(raw).version, right, json.loads(self.path(PERMITS).read_bytes())["version"]

    def state(self) -> dict[str, Any]:
        return dict(json.loads(self.path(STATE).read_bytes()))

    def remember(self, **changes: Any) -> None:
        self.put(STATE, json.dumps(self.state() | changes).encode(), 0o600)


def resigned(order: Order, by: Sequence[Person], **changes: Any) -> bytes:
    return signed(dataclasses.replace(order, **changes), by)


def _text(raw: bytes) -> str:
    return base64.b64encode(raw).decode()
