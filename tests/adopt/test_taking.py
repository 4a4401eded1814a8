"""Root takes a baseline that people ordered and that its key has signed, and nothing else, whatever `run` brings."""

from __future__ import annotations

import base64
import hashlib
import json
import os
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from nacl.signing import SigningKey

from compliance_agent.adopt import orders, state, trust
from compliance_agent.adopt import service as module
from compliance_agent.core import orders as orders_of_people
from compliance_agent.core.order_roots import KEYS_TYPE
from compliance_agent.core.versions import older
from tests import order_roots
from tests.adopt.scene import FILE, KEY, NEWER, NEWEST, PERMITS, STATE, TRUST, Cut, Scene, resigned
from tests.agent_scene import BASELINE
from tests.order_keys import ANNA, BEN, MALLORY, Person, keys_file, order, signed
from tests.order_roots import CARA, DORA, EMIL, FAYE

OLDER = BASELINE.replace(b'version: "1"', b'version: "0.9"')
UNUSABLE = NEWER + b"surprise: 1\n"
PAST, AHEAD = timedelta(minutes=-20), timedelta(minutes=10)
Fault = Callable[[Scene], str]


def later(by: timedelta) -> dict[str, Any]:
    now = datetime.now(UTC).replace(microsecond=0) + by
    return {"not_before": now, "expires": now + timedelta(minutes=15)}


def unsigned_by_key(scene: Scene) -> str:
    return scene.take(scene.signed(), signature=bytes(SigningKey(b"o" * 32).sign(NEWER).signature))


def listed(scene: Scene, by: tuple[Person, ...] = (CARA, DORA), **changes: Any) -> str:
    scene.keys = order_roots.keys(by, **changes)
    return scene.take(scene.signed())


def same_name(scene: Scene) -> str:
    """Two keys of one person are one signer."""
    signers = [
        {"name": "anna", "key": base64.b64encode(person.public).decode(), "kinds": None} for person in (ANNA, BEN)
    ]
    return listed(scene, signers=signers)


def limited(scene: Scene) -> str:
    signers = json.loads(keys_file())["signers"]
    signers[1]["kinds"] = ["check"]
    return listed(scene, signers=signers)


def of_holder(scene: Scene) -> str:
    signers = json.loads(keys_file())["signers"]
    signers[1] = {"name": "cara", "key": base64.b64encode(CARA.public).decode(), "kinds": None}
    return listed(scene, signers=signers)


def chained(scene: Scene, *roots: bytes, keys: bytes | None = None) -> str:
    scene.roots = list(roots)
    scene.keys = keys or scene.keys
    return scene.take(scene.signed())


def unbound(scene: Scene, **says: Any) -> str:
    scene.say(**says)
    return scene.take(scene.signed())


def forged(scene: Scene, kind: str) -> str:
    """Both names stand there, and what they signed is something else."""
    body = orders_of_people.payload(scene.order())
    return scene.take(
        orders_of_people.envelope(body, {person.key_id: person.sign(body, kind) for person in (ANNA, BEN)})
    )


def named(scene: Scene, content: bytes, version: str = "2") -> str:
    """An order that names these very bytes."""
    return scene.take(
        scene.signed(parameters={"version": version, "sha256": hashlib.sha256(content).hexdigest()}), content
    )


def two_days(scene: Scene) -> str:
    return scene.take(scene.signed(expires=datetime.now(UTC).replace(microsecond=0) + timedelta(days=2)))


def more_than_named(scene: Scene) -> str:
    return scene.take(resigned(scene.order(), [ANNA, BEN, MALLORY]))


def cut_signature(scene: Scene) -> str:
    return scene.take(scene.signed(), signature=bytes(KEY.sign(NEWER).signature[:63]))


def without_permits(scene: Scene) -> str:
    raw = scene.signed()
    scene.path(PERMITS).unlink()
    return scene.take(raw)


def without_trust(scene: Scene) -> str:
    scene.path(TRUST).unlink()
    return scene.take(scene.signed())


def open_trust(scene: Scene) -> str:
    scene.path(TRUST).chmod(0o666)
    return scene.take(scene.signed())


def root_2(*by: Person, **changes: Any) -> bytes:
    """A second root, of Cara and Faye; or of the former holders."""
    if by:
        return order_roots.root(by, [CARA, FAYE], version=2)
    return order_roots.root(version=2, **changes)


FAULTS: dict[str, tuple[Fault, str]] = {
    "one signer": (lambda s: s.take(s.signed(by=[ANNA])), "too_few_signers"),
    "two keys of one person": (same_name, "too_few_signers"),
    "a stranger signs": (lambda s: s.take(s.signed(by=[ANNA, MALLORY])), "unknown_signer"),
    "one who may not order this": (limited, "unknown_signer"),
    "signed by fewer than it names": (lambda s: s.take(resigned(s.order(), [ANNA])), "order_signature"),
    "signed by another than it names": (lambda s: s.take(resigned(s.order(), [ANNA, MALLORY])), "order_signature"),
    "signed by more than it names": (more_than_named, "order_signature"),
    "signed as another document": (lambda s: forged(s, KEYS_TYPE), "order_signature"),
    "another host": (lambda s: s.take(s.signed(host="ba" * 32)), "other_host"),
    "another site": (lambda s: s.take(s.signed(site="clinic-2")), "other_host"),
    "another client": (lambda s: s.take(s.signed(tenant="msp-2")), "other_host"),
    "root is of another client": (lambda s: unbound(s, tenant="msp-2"), "other_host"),
    "a nonce of another host": (lambda s: s.take(s.signed(nonce="ab" * 16)), "wrong_nonce"),
    "expired": (lambda s: s.take(s.signed(**later(PAST))), "order_expired"),
    "to begin later": (lambda s: s.take(s.signed(**later(AHEAD))), "not_yet"),
    "good for two days": (two_days, "order_too_long"),
    "made for another baseline": (lambda s: s.take(s.signed(baseline_sha256="ab" * 32)), "other_baseline"),
    "bytes were changed": (lambda s: s.take(s.signed(), NEWER + b"\n"), "other_baseline"),
    "another baseline, well signed": (lambda s: s.take(s.signed(), NEWEST), "other_baseline"),
    "not signed by the key": (unsigned_by_key, "baseline_signature"),
    "signature is cut": (cut_signature, "baseline_signature"),
    "another version than it says": (lambda s: named(s, NEWER, "9"), "other_baseline"),
    "older": (lambda s: s.take(s.signed(OLDER), OLDER), "baseline_older"),
    "cannot be used": (lambda s: named(s, UNUSABLE), "baseline_unusable"),
    "no documents": (lambda s: s.take(s.signed(), roots=[]), "no_order_keys"),
    "no list": (lambda s: s.take(s.signed(), keys=None), "no_order_keys"),
    "another root": (lambda s: chained(s, order_roots.root(version=7)), "trust_pin"),
    "root of its own making": (lambda s: chained(s, order_roots.root([FAYE, EMIL], holders=[FAYE, EMIL])), "trust_pin"),
    "root signed by one": (lambda s: chained(s, order_roots.root([CARA])), "trust_threshold"),
    "next root signed by one of the former": (lambda s: chained(s, s.roots[0], root_2(CARA, FAYE)), "trust_threshold"),
    "next root not signed by its own": (lambda s: chained(s, s.roots[0], root_2(CARA, DORA)), "trust_threshold"),
    "a root is left out": (lambda s: chained(s, s.roots[0], order_roots.root(version=3)), "trust_version"),
    "next root of another client": (lambda s: chained(s, s.roots[0], root_2(tenant="msp-2")), "trust_tenant"),
    "list signed by one": (lambda s: listed(s, (CARA,)), "trust_threshold"),
    "list signed by no holder": (lambda s: listed(s, (ANNA, BEN)), "trust_threshold"),
    "list of another client": (lambda s: listed(s, tenant="msp-2"), "trust_tenant"),
    "list has expired": (lambda s: listed(s, expires="2026-01-01T00:00:00Z"), "order_keys_expired"),
    "a holder of the root signs orders": (of_holder, "trust_role"),
    "list passed as an order": (lambda s: s.take(s.keys or b""), "order_unreadable"),
    "no order": (lambda s: s.take(b"{}"), "order_unreadable"),
    "another kind of order": (lambda s: s.take(signed(order("pause"))), "order_unreadable"),
    "root's file says nothing": (without_trust, "no_trust"),
    "root's file may be written by others": (open_trust, "trust_not_roots"),
    "root's file has a field more": (lambda s: unbound(s, also=1), "bad_trust"),
    "root permits nothing": (without_permits, "no_permits"),
}  # fmt: skip


def test_a_baseline_is_taken_whole(scene: Scene) -> None:
    assert scene.take(scene.signed()) == "taken"
    assert scene.stands() == ("2", True, "2")
    assert {scene.path(path).stat().st_mode & 0o777 for path in (FILE, f"{FILE}.sig", PERMITS)} == {0o644}
    assert scene.path(STATE).stat().st_mode & 0o777 == 0o600
    assert scene.take(scene.signed(NEWEST), NEWEST) == "taken"
    assert scene.stands() == ("3", True, "3")


@pytest.mark.parametrize("name", FAULTS)
def test_anything_else_is_refused_and_uses_up_nothing(scene: Scene, name: str) -> None:
    """The same host then takes the good one."""
    fault, code = FAULTS[name]
    before = {path: scene.path(path).read_bytes() for path in (FILE, f"{FILE}.sig", STATE)}
    roots, keys, trusted = list(scene.roots), scene.keys, dict(scene.trust)
    permitted = scene.path(PERMITS).read_bytes()
    assert fault(scene) == code
    assert {path: scene.path(path).read_bytes() for path in before} == before
    scene.roots, scene.keys, scene.trust = roots, keys, trusted
    scene.say()
    scene.put(PERMITS, permitted)
    assert scene.take(scene.signed()) == "taken"
    assert scene.stands() == ("2", True, "2")


def test_a_list_that_root_put_here_counts_without_a_root(tmp_path: Path) -> None:
    (tmp_path / "root").mkdir(mode=0o755)
    scene = Scene(tmp_path / "root", by_root=False)
    scene.put("/etc/msp/order-keys.json", keys_file(thresholds={"adopt_baseline": 3}), 0o644)
    assert scene.take(scene.signed()) == "too_few_signers"
    scene.put("/etc/msp/order-keys.json", keys_file(), 0o664)
    assert scene.take(scene.signed()) == "order_keys_not_roots"
    scene.put("/etc/msp/order-keys.json", b"{}")
    assert scene.take(scene.signed()) == "bad_order_keys"
    scene.put("/etc/msp/order-keys.json", keys_file())
    assert scene.take(scene.signed(), roots=[], keys=None) == "taken"


# Once


def test_an_order_is_taken_once_and_said_again(scene: Scene) -> None:
    """An answer that was lost is given again, without another write; the number is used up."""
    first = scene.order()
    raw = resigned(first, (ANNA, BEN))
    assert scene.take(raw) == "taken"
    scene.machine.writes.clear()
    assert scene.take(raw) == "taken"
    assert scene.machine.writes == []
    again = resigned(scene.order(NEWEST), (ANNA, BEN), counter=first.counter)
    assert scene.take(again, NEWEST) == "replayed"
    assert scene.take(resigned(scene.order(NEWEST), (ANNA, BEN), counter=0 + 1), NEWEST) == "replayed"
    assert scene.stands()[0] == "2"


def test_overtaken_orders_are_refused(scene: Scene) -> None:
    early, late = scene.order(), scene.order(NEWEST)
    assert scene.take(resigned(late, (ANNA, BEN)), NEWEST) == "taken"
    present = json.loads(scene.path(PERMITS).read_bytes())["baseline"]
    assert scene.take(resigned(early, (ANNA, BEN), baseline_sha256=present)) == "replayed"


def test_only_the_two_newest_nonces_are_good_and_not_for_ever(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    first = scene.nonce
    scene.give_nonce()
    assert scene.take(scene.signed(nonce=first, baseline_sha256="ab" * 32)) == "other_baseline"  # so far it came
    scene.give_nonce()
    assert scene.take(scene.signed(nonce=first)) == "wrong_nonce"
    newest = scene.give_nonce()
    now = state._uptime_s()
    monkeypatch.setattr(state, "_uptime_s", lambda: now + state.NONCE_LIFE_S + 1)
    assert scene.take(scene.signed(nonce=newest)) == "wrong_nonce"
    monkeypatch.setattr(state, "_uptime_s", lambda: 0)
    assert now == 0 or scene.take(scene.signed(nonce=newest)) == "wrong_nonce"


def test_what_was_signed_before_the_state_was_lost_is_worth_nothing(scene: Scene) -> None:
    raw = scene.signed()
    scene.path(STATE).unlink()
    assert scene.take(raw) == "wrong_nonce"
    scene.nonce = scene.give_nonce()
    assert scene.take(raw) == "wrong_nonce"
    assert scene.take(scene.signed()) == "taken"


def test_a_clock_that_was_set_back_brings_no_order_back(scene: Scene) -> None:
    """What was taken began at a time, and it is not earlier now."""
    scene.remember(since=f"{datetime.now(UTC) + timedelta(hours=1):%Y-%m-%dT%H:%M:%SZ}")
    assert scene.take(scene.signed()) == "order_expired"


def test_documents_never_go_back(scene: Scene) -> None:
    next_root = order_roots.root(version=2)
    scene.roots.append(next_root)
    scene.keys = order_roots.keys(version=5)
    assert scene.take(scene.signed()) == "taken"
    for roots, keys in ((scene.roots[:1], scene.keys), (scene.roots, order_roots.keys(version=4))):
        scene.roots, scene.keys = list(roots), keys
        assert scene.take(scene.signed(NEWEST), NEWEST) == "trust_version"
        scene.roots = [order_roots.root(), next_root]
    other = order_roots.root(expires="2030-11-30T00:00:00Z")  # a new pin begins a new chain
    scene.say(order_root=order_roots.pin(other))
    scene.roots, scene.keys = [other], order_roots.keys(version=1)
    assert scene.take(scene.signed(NEWEST), NEWEST) == "taken"


# Files


@pytest.mark.parametrize("path", [FILE, f"{FILE}.sig", PERMITS])
@pytest.mark.parametrize("what", ["a link", "a second name", "a directory"])
def test_what_is_no_plain_file_is_not_written(scene: Scene, path: str, what: str, tmp_path: Path) -> None:
    """Nor what it leads to."""
    target, place, raw = tmp_path / "target", scene.path(path), scene.signed()
    target.write_bytes(place.read_bytes())
    before = target.read_bytes()
    place.unlink()
    if what == "a link":
        place.symlink_to(target)
    elif what == "a second name":
        os.link(target, place)
    else:
        place.mkdir()
    assert scene.take(raw) in {"not_a_regular_file", "permits_not_roots"}
    assert target.read_bytes() == before


def test_a_directory_that_others_may_write_is_not_written_in(scene: Scene) -> None:
    raw = scene.signed()
    scene.path("/etc/msp").chmod(0o777)
    assert scene.take(raw) == "trust_not_roots"
    scene.path("/etc/msp").chmod(0o755)
    assert scene.stands() == ("1", True, "1")


@pytest.mark.parametrize("content", [b"", b"{}", b"[]", b"\xff", b'{"nonces":[]}'])
def test_a_damaged_state_is_no_state(scene: Scene, content: bytes) -> None:
    raw = scene.signed()
    scene.put(STATE, content, 0o600)
    assert scene.take(raw) == "state_damaged"
    assert scene.ask("nonce")[1] == {"code": "state_damaged"}
    assert scene.path(STATE).read_bytes() == content
    assert scene.stands() == ("1", True, "1")


def test_a_state_that_others_may_read_is_no_state(scene: Scene) -> None:
    scene.path(STATE).chmod(0o644)
    assert scene.take(scene.signed()) == "state_damaged"


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("at", range(5))
def test_stopped_between_any_two_writes_it_is_the_former_or_the_new_one(scene: Scene, at: int, after: bool) -> None:
    """State, signature, baseline, permissions, state: the next question, of any kind, finishes what was begun."""
    raw = scene.signed()
    scene.machine.cut_at, scene.machine.after = len(scene.machine.writes) + at, after
    with pytest.raises(Cut):
        scene.take(raw)
    scene.start()
    scene.nonce = scene.give_nonce()
    begun = (at, after) != (0, False)
    assert scene.stands() == (("2", True, "2") if begun else ("1", True, "1"))
    assert scene.state()["placing"] == []
    assert scene.take(raw) == "taken"  # the nonce before is still good
    assert scene.stands() == ("2", True, "2")


def test_a_write_that_fails_is_finished_later(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    raw, place = scene.signed(), scene.path(FILE)
    place.unlink()
    place.mkdir()
    assert scene.take(raw) == "not_a_regular_file"
    assert scene.ask("nonce")[1] == {"code": "not_a_regular_file"}
    place.rmdir()
    scene.give_nonce()
    assert scene.stands() == ("2", True, "2")


# The tests see it


@pytest.mark.parametrize(
    ("where", "name", "wrong", "fault"),
    [
        (orders, "verify", lambda *_: True, "not signed by the key"),
        (orders, "_signed", lambda *_: None, "one signer"),
        (orders, "LEAST_SIGNERS", 1, "one signer"),
        (orders, "LONGEST_LIFE", timedelta(days=9), "good for two days"),
        (trust.Signed, "needs", lambda *_: None, "list signed by no holder"),
        (trust, "verify", lambda *_: True, "signed as another document"),
        (module, "_older", lambda *_: False, "older"),
    ],
    ids=["baseline", "signatures", "two", "life", "threshold", "verify", "older"],
)
def test_a_gate_that_is_gone_would_be_seen(
    scene: Scene, monkeypatch: pytest.MonkeyPatch, where: object, name: str, wrong: object, fault: str
) -> None:
    """The planted faults."""
    monkeypatch.setattr(where, name, wrong)
    assert FAULTS[fault][0](scene) != FAULTS[fault][1]


@pytest.mark.parametrize("one", ["1", "1.0", "1.0-rc2", "2026.11.9", "2026.11.10", "a", "", "1.0.1"])
@pytest.mark.parametrize("other", ["1", "1.0", "1.0-rc2", "2026.11.9", "2026.11.10", "a", "", "1.0.1"])
def test_versions_are_ordered_as_the_agent_orders_them(one: str, other: str) -> None:
    assert module._older(one, other) == older(one, other)
