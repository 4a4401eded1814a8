"""Root follows this host's key by what the old key and the new one have signed, and by nothing else that `run` brings."""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nacl.signing import SigningKey

from compliance_agent import crypto
from compliance_agent.adopt import rotation as module
from compliance_agent.core import orders
from compliance_agent.entries.rotation import read, statement, verified
from compliance_agent.errors import BadEvidence
from compliance_agent.heal.trouble import Refused
from tests.adopt.scene import FILE, PERMITS, STATE, TRUST, Cut, Scene, resigned
from tests.order_keys import ANNA, BEN

GONE = "/var/lib/adopt/gone.json"
FIRST, SECOND, THIRD, OTHER = (SigningKey(letter * 32) for letter in (b"1", b"2", b"3", b"o"))


def key_id(key: SigningKey) -> str:
    return crypto.key_id(bytes(key.verify_key))


@dataclass(frozen=True)
class Step:
    """A rotation, every part of which can be replaced."""

    old: SigningKey = FIRST
    new: SigningKey = SECOND
    site: str = "clinic-1"
    epoch: int = 1
    seq: int = 7
    at: str = "2026-11-28T06:00:00Z"

    @property
    def raw(self) -> bytes:
        old, new = bytes(self.old.verify_key), bytes(self.new.verify_key)
        head = (self.epoch, self.seq, "d" * 64)
        return statement(old, new, site_id=self.site, host_id="front-desk", head=head, at=self.at)

    def brought(self, raw: bytes | None = None, **changes: bytes) -> bytes:
        raw = self.raw if raw is None else raw
        parts = {
            "statement": raw, "old": bytes(self.old.verify_key),
            "old_sig": self.old.sign(raw).signature, "new_sig": self.new.sign(raw).signature, **changes,
        }  # fmt: skip
        return json.dumps({name: base64.b64encode(part).decode() for name, part in parts.items()}).encode()

    def changed(self, **says: Any) -> bytes:
        """Another statement, signed by both all the same."""
        document = json.loads(self.raw) | says
        return self.brought(json.dumps(document, sort_keys=True, separators=(",", ":")).encode())


@pytest.fixture
def scene(scene: Scene) -> Scene:
    scene.say(host=key_id(FIRST))
    return scene


def follow(scene: Scene, blob: bytes) -> str:
    """The key that root knows then, or why not."""
    _, fields, _ = scene.ask("follow", blob)
    return str(fields.get("host") or fields.get("code"))


def known(scene: Scene) -> str:
    return str(json.loads(scene.path(TRUST).read_bytes())["host"])


def by_old(scene: Scene, payload: bytes) -> bytes:
    """The old key signed something, and it was no rotation."""
    return Step().brought(old_sig=FIRST.sign(payload).signature)


def as_order(scene: Scene) -> bytes:
    return Step().brought(old_sig=FIRST.sign(crypto.pae(orders.TYPE, Step().raw)).signature)


def as_other(scene: Scene) -> bytes:
    return Step().changed(schema="compliance-agent/key-revocation/v1")


def spaced(scene: Scene) -> bytes:
    return Step().brought(json.dumps(json.loads(Step().raw), sort_keys=True).encode())


def weak(scene: Scene) -> bytes:
    return Step().changed(new_key=base64.b64encode(bytes([1]) + bytes(31)).decode())


def tomorrow(scene: Scene) -> bytes:
    return Step(at=f"{datetime.now(UTC) + timedelta(days=1):%Y-%m-%dT%H:%M:%SZ}").brought()


FAULTS: dict[str, tuple[Callable[[Scene], bytes], str]] = {
    "signed by the new key alone": (lambda s: Step().brought(old_sig=SECOND.sign(Step().raw).signature), "bad_rotation"),
    "signed by the old key alone": (lambda s: Step().brought(new_sig=FIRST.sign(Step().raw).signature), "bad_rotation"),
    "without a signature": (lambda s: Step().brought(old_sig=b"", new_sig=b""), "bad_rotation"),
    "signed by a stranger": (lambda s: Step(old=OTHER).brought(), "other_host"),
    "a stranger's key brought as the old one": (
        lambda s: dataclasses.replace(Step(), old=OTHER).brought(Step().raw), "bad_rotation"
    ),
    "of a host of another site": (lambda s: Step(site="clinic-2").brought(), "other_host"),
    "the old key signed its evidence": (lambda s: by_old(s, b'{"schema":"compliance-agent/bundle/v1"}'), "bad_rotation"),
    "the old key signed an order": (as_order, "bad_rotation"),
    "a statement for another purpose": (as_other, "bad_rotation"),
    "spelt in another way": (spaced, "bad_rotation"),
    "with a field more": (lambda s: Step().changed(also=1), "bad_rotation"),
    "to a weak key": (weak, "bad_rotation"),
    "to the same key": (lambda s: Step(new=FIRST).brought(), "replayed"),
    "of tomorrow": (tomorrow, "not_yet"),
    "no object": (lambda s: b"[]", "bad_rotation"),
    "no base64": (lambda s: b'{"new_sig":"!","old":"","old_sig":"","statement":""}', "bad_rotation"),
}  # fmt: skip


def test_root_knows_the_new_key_and_takes_orders_for_it_alone(scene: Scene) -> None:
    assert follow(scene, b"") == key_id(FIRST)
    assert scene.take(scene.signed(host=key_id(SECOND))) == "other_host"
    assert follow(scene, Step().brought()) == key_id(SECOND)
    assert json.loads(scene.path(TRUST).read_bytes()) == scene.trust | {"host": key_id(SECOND)}
    assert scene.path(TRUST).stat().st_mode & 0o777 == 0o644
    assert follow(scene, b"") == key_id(SECOND)
    assert scene.take(scene.signed(host=key_id(FIRST))) == "other_host"
    assert scene.take(scene.signed(host=key_id(SECOND))) == "taken"
    assert scene.stands() == ("2", True, "2")


@pytest.mark.parametrize("name", FAULTS)
def test_anything_else_is_refused_and_changes_nothing(scene: Scene, name: str) -> None:
    fault, code = FAULTS[name]
    before = {path: scene.path(path).read_bytes() for path in (TRUST, STATE, PERMITS, FILE)}
    assert follow(scene, fault(scene)) == code
    assert {path: scene.path(path).read_bytes() for path in before} == before
    assert not scene.path(GONE).exists()
    assert follow(scene, Step().brought()) == key_id(SECOND)


def test_an_older_statement_leads_nowhere_and_none_leads_back(scene: Scene) -> None:
    """Whoever kept an old key and an old statement has nothing; nor has one who signs a later one with both keys."""
    first, second = Step().brought(), Step(SECOND, THIRD, epoch=2).brought()
    assert [follow(scene, first), follow(scene, second)] == [key_id(SECOND), key_id(THIRD)]
    assert [follow(scene, first), follow(scene, second)] == ["other_host", "other_host"]
    assert follow(scene, Step(THIRD, FIRST, epoch=3).brought()) == "replayed"
    assert follow(scene, Step(THIRD, SECOND, epoch=3).brought()) == "replayed"
    assert follow(scene, Step(THIRD, OTHER, epoch=2).brought()) == "replayed"  # the chain goes on in a later epoch
    assert follow(scene, Step(THIRD, OTHER, epoch=3).brought()) == key_id(OTHER)


def test_a_host_that_was_enrolled_anew_begins_at_its_first_epoch(scene: Scene) -> None:
    """Root said the key itself, so what is remembered of the former one's epochs is not about it."""
    assert follow(scene, Step(epoch=9).brought()) == key_id(SECOND)
    scene.say(host=key_id(THIRD))
    assert follow(scene, Step(THIRD, OTHER, epoch=1).brought()) == key_id(OTHER)


def test_without_roots_word_there_is_nothing_to_follow(scene: Scene) -> None:
    scene.path(TRUST).unlink()
    assert follow(scene, b"") == follow(scene, Step().brought()) == "no_trust"
    scene.say()
    scene.path(TRUST).chmod(0o666)
    assert follow(scene, Step().brought()) == "trust_not_roots"
    scene.say()
    scene.put(GONE, b"{}")
    assert follow(scene, Step().brought()) == "state_damaged"
    assert known(scene) == key_id(FIRST)


def test_only_so_many_are_remembered(scene: Scene) -> None:
    """The file stays one that can be read, however often the key gives way."""
    gone = [{"old": f"{number:064x}", "new": f"{number + 1:064x}", "epoch": number} for number in range(64)]
    scene.put(GONE, json.dumps({"gone": gone}).encode())
    assert follow(scene, Step().brought()) == key_id(SECOND)
    kept = json.loads(scene.path(GONE).read_bytes())["gone"]
    assert kept == [*gone[1:], {"old": key_id(FIRST), "new": key_id(SECOND), "epoch": 1}]
    assert follow(scene, Step(SECOND, THIRD, epoch=2).brought()) == key_id(THIRD)


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("at", range(4))
def test_stopped_between_any_two_writes_it_is_the_former_or_the_new_one(scene: Scene, at: int, after: bool) -> None:
    """State, what is gone, root's word, state: the next question, of any kind, finishes what was begun."""
    scene.machine.cut_at, scene.machine.after = len(scene.machine.writes) + at, after
    with pytest.raises(Cut):
        scene.ask("follow", Step().brought())
    scene.start()
    assert known(scene) in {key_id(FIRST), key_id(SECOND)}
    scene.nonce = scene.give_nonce()
    begun = (at, after) != (0, False)
    assert known(scene) == key_id(SECOND if begun else FIRST)
    assert scene.state()["placing"] == []
    assert follow(scene, Step().brought()) == ("other_host" if begun else key_id(SECOND))
    assert follow(scene, b"") == key_id(SECOND)
    assert scene.take(resigned(scene.order(host=key_id(SECOND)), (ANNA, BEN))) == "taken"
    assert follow(scene, Step(SECOND, FIRST, epoch=2).brought()) == "replayed"


def test_a_full_disk_is_made_good_later(scene: Scene) -> None:
    scene.machine.full = frozenset({TRUST})
    assert follow(scene, Step().brought()) == "storage_full"
    assert known(scene) == key_id(FIRST)
    scene.machine.full = frozenset()
    assert follow(scene, b"") == key_id(SECOND)


@pytest.mark.parametrize(
    ("name", "wrong", "fault"),
    [
        ("verify", lambda *_: True, "signed by the new key alone"),
        ("is_key", lambda *_: True, "to a weak key"),
        ("unless", lambda holds, code: None, "of a host of another site"),
        ("time_of", lambda *_: datetime(2026, 1, 1, tzinfo=UTC), "of tomorrow"),
    ],
)
def test_a_gate_that_is_gone_would_be_seen(
    scene: Scene, monkeypatch: pytest.MonkeyPatch, name: str, wrong: object, fault: str
) -> None:
    """The planted faults."""
    monkeypatch.setattr(module, name, wrong)
    if name == "is_key":
        monkeypatch.setattr(module, "verify", lambda *_: True)
    assert follow(scene, FAULTS[fault][0](scene)) != FAULTS[fault][1]


@settings(max_examples=150, deadline=None)
@given(data=st.data(), flips=st.integers(0, 2))
def test_what_root_follows_the_agents_own_verification_accepts(data: st.DataObject, flips: int) -> None:
    """Whatever is changed in it: never root alone."""
    step = Step(
        site=data.draw(st.sampled_from(["clinic-1", "clinic-2", ""])),
        epoch=data.draw(st.sampled_from([0, 1, 2**53 - 1, 2**53, -1])),
        seq=data.draw(st.sampled_from([0, 7, -1])),
        at=data.draw(st.sampled_from(["2026-11-28T06:00:00Z", "2026-11-28T06:00:00.123456Z", "2026-11-31T06:00:00Z", "now"])),
    )  # fmt: skip
    parts = {name: bytearray(base64.b64decode(text)) for name, text in json.loads(step.brought()).items()}
    for _ in range(flips):
        part = parts[data.draw(st.sampled_from(sorted(parts)))]
        bit = data.draw(st.integers(0, 8 * len(part) - 1))
        part[bit // 8] ^= 1 << bit % 8
    raw, *others = (bytes(parts[name]) for name in ("statement", "old", "old_sig", "new_sig"))
    blob = json.dumps({name: base64.b64encode(bytes(part)).decode() for name, part in parts.items()}).encode()
    now = datetime(2026, 11, 29, tzinfo=UTC)
    try:
        took = module.follow(blob, {"site": "clinic-1", "host": key_id(FIRST)}, [], now)
    except Refused:
        took = {}
    try:
        accepted = verified(raw, *others).new_key
    except BadEvidence:
        accepted = ""
    assert not took or took["new"] == accepted
    if flips == 0 and accepted and step.site == "clinic-1":
        assert took == {"old": key_id(FIRST), "new": accepted, "epoch": step.epoch} and read(raw).epoch == step.epoch


def test_a_key_id_is_the_digest_of_the_raw_key() -> None:
    assert key_id(FIRST) == hashlib.sha256(bytes(FIRST.verify_key)).hexdigest()
