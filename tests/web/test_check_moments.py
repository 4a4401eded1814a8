"""Chain and time, checked in the browser: real Chromium, and one log made here in which everything holds until a fault is planted.

What is missing is `could not tell`; what contradicts is `wrong`; neither is ever passed over.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from playwright.sync_api import Route, expect

from compliance_agent import crypto
from compliance_agent.entries.leaf import bundle_leaf, time_leaf
from compliance_agent.errors import BadEvidence
from compliance_agent.evidence.canonical import canonical
from compliance_agent.log.checkpoint import Checkpoint
from compliance_agent.log.merkle import hash_leaf
from compliance_agent.log.note import KeyType, Note, VerifierKey
from compliance_agent.log.policy import Policy
from compliance_agent.log.proof import Proof
from compliance_agent.log.tiles import Tile
from compliance_agent.log.tree import Edge, TileTree
from compliance_agent.server.services.checkpoints import witnessed
from compliance_agent.server.services.moments import Moments, Stamped
from tests.web.browsing import MARKS, Visit, axe
from tests.web.serving import Served
from tests.web.test_check import NAMES, UNTOLD, path_of, pressed, wrong

pytestmark = MARKS
ORIGIN = "log.example/clinic/2026"
NOON = datetime(2026, 11, 22, 12, tzinfo=UTC)
ZEROS = "0" * 64
Given = dict[str, str | bytes]
ALL = dict.fromkeys(NAMES, "verified")


def key_of(name: str, kind: KeyType, private: Ed25519PrivateKey) -> VerifierKey:
    return VerifierKey(name, kind, private.public_key().public_bytes_raw())


@dataclass
class Story:
    """Three records of one host in a log that a witness signed an hour before noon, at noon, and ten minutes later."""

    claimed: datetime = NOON - timedelta(minutes=30)
    host: Ed25519PrivateKey = field(default_factory=Ed25519PrivateKey.generate)
    log: Ed25519PrivateKey = field(default_factory=Ed25519PrivateKey.generate)
    eye: Ed25519PrivateKey = field(default_factory=Ed25519PrivateKey.generate)
    leaves: list[bytes] = field(default_factory=list)
    bodies: list[bytes] = field(default_factory=list)
    index: int = 0
    stamped: Stamped | None = None

    def __post_init__(self) -> None:
        self.leaves += [b"other %d" % at for at in range(4)]
        self.leaves.append(time_leaf(self.note(4, NOON - timedelta(hours=1)), []))
        self.record(1, ZEROS, None)
        self.index = self.record(2, self.digest(0), 6)
        self.record(3, self.digest(1), 6)
        self.leaves.append(time_leaf(self.note(8, NOON), []))
        self.leaves.append(b"the last")

    @property
    def vkey(self) -> VerifierKey:
        return key_of(ORIGIN, KeyType.ED25519, self.log)

    @property
    def policy(self) -> str:
        return f"witness w1 {key_of('witness.example/w1', KeyType.COSIGNATURE, self.eye)}\nquorum w1\n"

    def digest(self, number: int) -> str:
        return hashlib.sha256(self.bodies[number]).hexdigest()

    def record(self, seq: int, prev: str, head: int | None) -> int:
        named = None if head is None else {"origin": ORIGIN, "size": head, "root": self.tree(head).root().hex()}
        key = crypto.key_id(self.host.public_key().public_bytes_raw())
        body = canonical(
            {
                "created_at": self.claimed.strftime("%Y-%m-%dT%H:%M:%S.%fZ"),
                "epoch": 0,
                "host": {"id": "front-desk", "key_id": key},
                "log_head": named,
                "prev": prev,
                "seq": seq,
            }
        )
        self.bodies.append(body)
        self.leaves.append(bundle_leaf(key, 0, seq, prev, self.digest(-1), self.host.sign(body)))
        return len(self.leaves) - 1

    def tree(self, size: int) -> TileTree:
        _, tiles = Edge().grow(map(hash_leaf, self.leaves[:size]))
        held = dict(tiles)
        return TileTree(size, lambda *tile: held[Tile(*tile)])

    def note(self, size: int, *times: datetime) -> bytes:
        """The checkpoint of this size, signed by the log, and by the witness at each of these times."""
        text = Checkpoint(ORIGIN, size, self.tree(size).root()).text
        eye = key_of("witness.example/w1", KeyType.COSIGNATURE, self.eye)
        lines = [eye.sign(text, self.eye.sign, int(at.timestamp())) for at in times]
        return Note(text, (self.vkey.sign(text, self.log.sign), *lines)).encode()

    def times(self) -> bytes:
        """As the server makes it."""
        policy, size = Policy.parse(self.policy.encode()), len(self.leaves)
        held = dict(Edge().grow(map(hash_leaf, self.leaves))[1])

        def seen(note: bytes) -> tuple[Checkpoint, list[datetime]]:
            if not note.startswith(ORIGIN.encode()):
                raise BadEvidence("of another log", code="other_log")
            found = [one.at for one in witnessed(note, policy)[1] if one.at is not None]
            return Checkpoint.parse(Note.parse(note).text), found

        def read(*tile: int) -> bytes:
            return held[Tile(*tile)]

        tree = TileTree(size, read)
        made = Moments(
            tree, bytes(tree.root()), read, lambda number: self.leaves if number == 0 else [], seen, self.stamped
        )
        return made.proof(self.index, json.loads(self.bodies[1]), made)

    def given(self) -> Given:
        """All that the page takes, each as it is taken."""
        size = len(self.leaves)
        path = tuple(self.tree(size).inclusion(self.index))
        return {
            "bundle": self.bodies[1],
            "sig": self.host.sign(self.bodies[1]),
            "leaf": self.leaves[self.index],
            "proof": Proof(self.index, path, self.note(size, NOON + timedelta(minutes=10))).encode(),
            "hostKey": crypto.public_pem(self.host.public_key().public_bytes_raw()),
            "logKey": str(self.vkey),
            "policy": self.policy,
            "previous": self.bodies[0],
            "following": self.bodies[2],
            "followingSig": self.host.sign(self.bodies[2]),
            "times": self.times(),
        }


CHECK = """async given => {
    const bytes = text => Uint8Array.from(atob(text), letter => letter.charCodeAt(0));
    const entries = Object.entries(given).map(([name, one]) => [name, typeof one === "string" ? one : bytes(one.b64)]);
    return (await recordProof.check(Object.fromEntries(entries))).map(line => [line.name, line.state, line.sentence]);
}"""


def checked(visit: Visit, given: Given) -> tuple[dict[str, str], dict[str, str]]:
    """State and sentence of each line, as the page's own program finds them."""
    sent = {
        name: one if isinstance(one, str) else {"b64": base64.b64encode(one).decode()} for name, one in given.items()
    }
    lines = visit.page.evaluate(CHECK, sent)
    return {name: state for name, state, _ in lines}, {name: said for name, _, said in lines}


def in_times(change: Callable[[dict[str, Any]], object]) -> Callable[[Story], Given]:
    def act(story: Story) -> Given:
        said = json.loads(story.times())
        change(said)
        return {"times": json.dumps(said).encode()}

    return act


def signed_anew(story: Story, **changes: Any) -> Given:
    """The record after it, with something changed, under the host's own signature."""
    body = canonical({**json.loads(story.bodies[2]), **changes})
    return {"following": body, "followingSig": story.host.sign(body)}


def dated_again(said: dict[str, Any]) -> None:
    """The witness's time in the entry, a year earlier."""
    leaf = json.loads(base64.b64decode(said["before"]["leaf"]))
    note = Note.parse(base64.b64decode(leaf["checkpoint"]))
    later = int(NOON.timestamp()).to_bytes(8, "big")
    lines = (
        note.signatures[0],
        type(note.signatures[1])(
            note.signatures[1].name, note.signatures[1].key_id, later + note.signatures[1].signature[8:]
        ),
    )
    leaf["checkpoint"] = base64.b64encode(Note(note.text, lines).encode()).decode()
    said["before"]["leaf"] = base64.b64encode(canonical(leaf)).decode()


def other_tree(story: Story) -> Given:
    """A time that a witness did sign, and that the tree does not hold whose root the record names."""
    said = json.loads(story.times())
    said["before"] |= {"index": 8, "leaf": base64.b64encode(story.leaves[8]).decode(), "path": []}
    return {"times": json.dumps(said).encode()}


def backdated_tree(story: Story) -> Given:
    """A tree that the log signed and the witness never saw, under the witness's name with an early time."""
    said = json.loads(story.times())
    stranger = Ed25519PrivateKey.generate()
    real, story.eye = story.eye, stranger
    note = story.note(8, NOON - timedelta(minutes=50))
    story.eye = real
    eye = key_of("witness.example/w1", KeyType.COSIGNATURE, real)
    parsed = Note.parse(note)
    line = type(parsed.signatures[1])(eye.name, eye.id, parsed.signatures[1].signature)
    said["after"]["checkpoint"] = base64.b64encode(Note(parsed.text, (parsed.signatures[0], line)).encode()).decode()
    return {"times": json.dumps(said).encode()}


Fault = tuple[Callable[[Story], Mapping[str, str | bytes]], dict[str, str], str]
FAULTS: dict[str, Fault] = {
    "another record before it": (lambda story: {"previous": story.bodies[2]}, {"before": "wrong"}, "another digest"),
    "a changed record before it": (
        lambda story: {"previous": story.bodies[0].replace(b"front-desk", b"front-door")}, {"before": "wrong"}, "another digest",
    ),
    "a record after it that names another": (
        lambda story: signed_anew(story, prev="ab" * 32), {"after": "wrong"}, "another digest",
    ),
    "a record after it that is not next": (lambda story: signed_anew(story, seq=4), {"after": "wrong"}, "not neighbours"),
    "a record after it that nobody signed": (
        lambda story: {"following": story.bodies[2].replace(b"front-desk", b"front-door")}, {"after": "wrong"}, "not signed",
    ),
    "no neighbours": (
        lambda story: {"previous": b"", "following": b"", "followingSig": b""}, {"before": UNTOLD, "after": UNTOLD}, "not given",
    ),
    "no times": (lambda story: {"times": b""}, {"time": UNTOLD}, "Nothing shows when it began."),
    "no beginning": (
        in_times(lambda said: said.update(before=None, why={"before": "stopped"})), {"time": UNTOLD}, "stopped its search",
    ),
    "time stamps alone": (
        in_times(lambda said: said.update(before=None, why={"before": "stamps_only"})), {"time": UNTOLD}, "RFC 3161",
    ),
    "a later end only": (in_times(lambda said: said.update(after=None)), {}, "Not after 2026-11-22T12:10:01Z"),
    "no witness of the policy": (
        lambda story: {"policy": "witness w1 " + str(key_of("w.example", KeyType.COSIGNATURE, story.log)) + "\nquorum w1\n"},
        {"witnesses": "unwitnessed", "time": UNTOLD}, "No witness of the policy signed it.",
    ),
    "a time entry that was dated again": (in_times(dated_again), {"time": "wrong"}, "not in the tree"),
    "a time entry of another tree": (other_tree, {"time": "wrong"}, "is not one of entry 8"),
    "a path to its beginning that leads nowhere": (
        in_times(lambda said: said["before"].update(index=5)), {"time": "wrong"}, "not in the tree",
    ),
    "a cosignature that is none": (backdated_tree, {"time": "wrong"}, "does not verify"),
    "a path to its end that leads nowhere": (
        in_times(lambda said: said["after"]["path"].reverse()), {"time": "wrong"}, "not in the tree that the witness",
    ),
    "times that are nonsense": (lambda story: {"times": b"[]"}, {"time": "wrong"}, "not a JSON object"),
}  # fmt: skip


def test_all_of_it_holds_and_each_planted_fault_is_its_own_line(visit: Visit) -> None:
    """Every fault from the same sound record; every other line stays what it was."""
    visit.page.goto(f"{visit.address}/verify")
    story = Story()
    states, said = checked(visit, story.given())
    assert states == ALL, said
    assert said["time"].startswith(
        "A stretch of 1 h 0 min. Not before 2026-11-22T11:00:00Z, by a witness. Not after 2026-11-22T12:00:01Z"
    )
    found = {}
    for name, (plant, due, sentence) in FAULTS.items():
        states, said = checked(visit, story.given() | dict(plant(story)))
        told = any(sentence in said[line] for line in due or ("time",))
        if states != ALL | due or not told:
            found[name] = (states, said)
    assert found == {}


@pytest.mark.parametrize(
    ("claimed", "state"),
    [(-3_603, "wrong"), (-3_601, "verified"), (2, "verified"), (4, "wrong")],
)
def test_a_record_that_was_dated_wrongly(visit: Visit, claimed: int, state: str) -> None:
    """Two seconds are what an honest clock may be off."""
    visit.page.goto(f"{visit.address}/verify")
    states, said = checked(visit, Story(NOON + timedelta(seconds=claimed)).given())
    assert states == ALL | {"time": state}
    assert ("dated wrongly" in said["time"]) is (state == "wrong")


def test_nothing_is_told_of_time_from_a_log_that_does_not_hold_the_record(visit: Visit) -> None:
    visit.page.goto(f"{visit.address}/verify")
    story = Story()
    other = Story()
    states, said = checked(visit, story.given() | {"proof": other.given()["proof"]})
    assert states["inclusion"] == "wrong" and states["time"] == UNTOLD
    assert "Nothing can be told of it until" in said["time"]


def test_a_number_that_is_not_first_and_names_nothing_is_wrong(visit: Visit) -> None:
    """As when everything before a record was cut off: zeros where the digest of number one stood."""
    visit.page.goto(f"{visit.address}/verify")
    story = Story()
    body = canonical({**json.loads(story.bodies[1]), "prev": ZEROS})
    states, said = checked(visit, story.given() | {"bundle": body})
    assert states["before"] == "wrong" and said["before"] == "It is number 2, and names no record before it."


def test_files_are_enough_for_all_of_it(visit: Visit, tmp_path: Path) -> None:
    """The page for files, by the names that it tells; then without the neighbours."""
    page = visit.page
    page.goto(f"{visit.address}/verify", wait_until="networkidle")
    given = Story().given()
    names = {"bundle": "bundle.json", "sig": "bundle.sig", "leaf": "leaf.json", "proof": "bundle.tlog-proof", "hostKey": "a.pem",
             "logKey": "a.vkey", "policy": "policy", "previous": "previous.json", "following": "following.json",
             "followingSig": "following.sig", "times": "times.json"}  # fmt: skip
    for what, name in names.items():
        content = given[what]
        (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    page.get_by_label("All its files at once").set_input_files(sorted(tmp_path.iterdir()))
    assert pressed(page) == ALL
    expect(page.locator("form[data-done=verified] [data-verdict]")).to_contain_text(
        "All of it verified by this browser."
    )
    (tmp_path / "previous.json").unlink()
    (tmp_path / "times.json").unlink()
    page.get_by_label("All its files at once").set_input_files(sorted(tmp_path.iterdir()))
    assert pressed(page) == ALL | {"before": UNTOLD, "time": UNTOLD}
    expect(page.locator("form[data-done=partly] [data-verdict]")).to_contain_text("Not told: chain, backwards; time.")
    page.get_by_text("Its neighbours, and the times of its log").click()
    assert axe(page, "/verify") == []


@pytest.mark.parametrize(("status", "state"), [(200, "wrong"), (404, UNTOLD)])
def test_a_server_that_changes_or_withholds_the_neighbours(
    visit: Visit, running: tuple[str, Served], status: int, state: str
) -> None:
    """On the page of a record: the links are followed to the neighbours' own files, and what comes is not believed."""
    page = visit.sign_in()
    page.goto(visit.address + path_of(running[1]))
    own = path_of(running[1]).split("?")[0]

    def answer(route: Route) -> None:
        if own in route.request.url:
            route.fallback()
        elif status == 404:
            route.fulfill(status=404)
        else:
            genuine = route.fetch()
            route.fulfill(response=genuine, body=genuine.body().replace(b'"version":"', b'"version":"9', 1))

    page.route(re.compile(r"/bundle\.json\?"), answer)
    assert pressed(page) == wrong(before=state, after=state)
    said = page.locator("[data-verdict]")
    expect(said).to_contain_text(
        "Something is wrong" if status == 200 else "Not told: chain, backwards; chain, forwards; time."
    )
    if status == 404:
        visit.forgive()  # the 404 is the point
