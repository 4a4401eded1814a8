"""Witnesses, checked in the browser: real witness processes, real WebCrypto, held against the policy parser of Python.

A page that is told by the server who has seen a log would be worth nothing: each lie is told in what the server answers.
"""

from __future__ import annotations

import hashlib
import itertools
import re
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.mldsa import MLDSA44PrivateKey
from playwright.sync_api import Browser, Page, Route, expect

from compliance_agent import crypto
from compliance_agent.errors import BadEvidence
from compliance_agent.log.fields import to_base64
from compliance_agent.log.note import KeyType, Note, Signature, VerifierKey
from compliance_agent.log.policy import Policy
from compliance_agent.log.proof import Proof
from compliance_agent.server.log_keys import LogKeys
from tests.web.browsing import MARKS, Visit, axe
from tests.web.serving import Served, on_loopback
from tests.web.test_check import Record, alone, path_of, pressed, wrong
from tests.witness.builder import running as witness

pytestmark = MARKS
SITE = "clinic-elm-street"
SECOND = "other.example/w2"


@dataclass(frozen=True)
class Watched:
    """A server whose log two witnesses have cosigned; what a visitor got from elsewhere."""

    address: str
    served: Served
    log: VerifierKey
    w1: VerifierKey
    w2: VerifierKey
    w2_pq: VerifierKey

    @property
    def host_key(self) -> str:
        return crypto.public_pem(self.served.hosts["ehr-db-02"].public_key)


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watched]:
    root: Path = tmp_path_factory.mktemp("watched")
    origin = f"compliance-server/{SITE}/{datetime.now(UTC).year}"
    (root / "server").mkdir(mode=0o700)
    log = LogKeys(root / "server" / "keys").verifier(origin)
    (root / "logs").write_text(f"log {log}\nquorum none\n")
    with ExitStack() as stack:
        one = stack.enter_context(witness(root / "w1", root / "logs"))
        two = stack.enter_context(witness(root / "w2", root / "logs", "--name", SECOND, "--ml-dsa"))
        ed25519, mldsa44 = two.keys
        lines = (f"witness w1 {one.keys[0]} {one.url}", f"witness w2 {ed25519} {two.url}", f"witness w2-pq {mldsa44} {two.url}",
                 "group both all w1 w2", "quorum both")  # fmt: skip
        (root / "witnesses").write_text("\n".join(lines) + "\n")
        asked: dict[str, Any] = {"witness_policy_file": root / "witnesses", "witness_deadline_ms": 10_000}
        address, served = stack.enter_context(on_loopback(root, **asked))
        yield Watched(address, served, log, one.keys[0], ed25519, mldsa44)


@pytest.fixture
def seen(browser: Browser, watched: Watched) -> Iterator[Visit]:
    made = Visit(browser, watched.address)
    made.sign_in().goto(watched.address + path_of(watched.served))
    yield made
    made.context.close()
    assert made.complaints == []


def state(page: Page) -> str:
    return pressed(page)["witnesses"]


def sentence(page: Page) -> str:
    return page.locator('[data-line="witnesses"] [data-sentence]').inner_text()


def give(page: Page, policy: str, **keys: str) -> None:
    details = page.locator("details", has=page.locator('textarea[name="policy"]'))
    if details.get_attribute("open") is None:
        details.locator("summary").click()
    for name, text in {"policy": policy, **keys}.items():
        page.locator(f'textarea[name="{name}"]').fill(text)


def policy(*lines: str) -> str:
    return "\n".join(lines) + "\n"


def stranger(name: str, kind: KeyType = KeyType.COSIGNATURE) -> VerifierKey:
    return VerifierKey(name, kind, Ed25519PrivateKey.generate().public_key().public_bytes_raw())


# --- what is sound ----------------------------------------------------------------------------------


def test_the_servers_own_policy_is_shown_and_met(seen: Visit, watched: Watched) -> None:
    page = seen.page
    page.get_by_text("Whom this server asks to witness its logs").click()
    shown = page.locator("[data-served-policy]").inner_text()
    assert shown.splitlines() == [
        f"witness w1 {watched.w1}", f"witness w2 {watched.w2}", f"witness w2-pq {watched.w2_pq}",
        "group both 2 w1 w2", "quorum both",
    ]  # fmt: skip
    assert pressed(page) == wrong(witnesses="verified")
    said = sentence(page)
    assert "The quorum both of the policy is met. Cosigned by w1 at 20" in said
    assert "3 of 3 witnesses." in said and "w2-pq at 20" in said and "Not checked" not in said
    moments = re.findall(r"at (\S+Z)", said)
    assert len(moments) == 3
    for at in moments:
        assert abs(datetime.fromisoformat(at).timestamp() - time.time()) < 600
    verdict = page.locator("[data-verdict]")
    expect(verdict).to_contain_text("Whom to ask for as a witness came from this server")
    expect(verdict).not_to_contain_text("no server was trusted")
    assert axe(page, "witnesses") == []


def test_a_policy_and_keys_from_elsewhere_need_no_server(seen: Visit, watched: Watched) -> None:
    give(seen.page, policy(f"log {watched.log}", f"witness clinic {watched.w1}", "quorum clinic"),
         hostKey=watched.host_key, logKey=str(watched.log))  # fmt: skip
    assert pressed(seen.page) == wrong(witnesses="verified")
    expect(seen.page.locator("[data-verdict]")).to_contain_text("no server was trusted")


# --- too few -------------------------------------------------------------------------------------------


def test_too_few_for_the_quorum_is_refused(seen: Visit, watched: Watched) -> None:
    """One witness more than have signed; and a witness with another key under the same name."""
    lines = (f"witness w1 {watched.w1}", f"witness w2 {watched.w2}")
    give(
        seen.page,
        policy(*lines, f"witness w3 {stranger('third.example/w3')}", "group three all w1 w2 w3", "quorum three"),
    )
    assert state(seen.page) == "unwitnessed"
    assert "The quorum three of the policy is not met." in sentence(seen.page)
    expect(seen.page.locator("[data-verdict]")).to_contain_text("Refused:")
    expect(seen.page.locator('form[data-done="not verified"]')).to_have_count(1)
    give(seen.page, policy(f"witness w1 {stranger(watched.w1.name)}", "quorum w1"))
    assert state(seen.page) == "unwitnessed"
    assert "Cosigned by nobody; 0 of 1 witnesses." in sentence(seen.page)
    expect(seen.page.locator("[data-verdict]")).to_contain_text("Refused:")


def test_a_policy_that_asks_nobody_vouches_for_nothing(seen: Visit, watched: Watched) -> None:
    give(seen.page, policy(f"witness w1 {watched.w1}", "quorum none"))
    assert state(seen.page) == "unwitnessed"
    expect(seen.page.locator("[data-verdict]")).to_contain_text("Unwitnessed: nobody outside vouches")
    expect(seen.page.locator('form[data-done="unwitnessed"]')).to_have_count(1)


def test_a_witness_that_signs_with_ml_dsa_is_enough(seen: Visit, watched: Watched) -> None:
    give(seen.page, policy(f"witness pq {watched.w2_pq}", "quorum pq"))
    assert state(seen.page) == "verified"
    assert "The quorum pq of the policy is met. Cosigned by pq at 20" in sentence(seen.page)


WITHOUT_MLDSA = """() => {
    const real = SubtleCrypto.prototype.importKey;
    SubtleCrypto.prototype.importKey = function (format, bytes, how, ...rest) {
        if (how.name.startsWith("ML-DSA")) return Promise.reject(new DOMException("none", "NotSupportedError"));
        return real.call(this, format, bytes, how, ...rest);
    };
}"""


def test_what_this_browser_cannot_check_is_not_called_absent(seen: Visit, watched: Watched) -> None:
    """A browser of before ML-DSA: it says that it cannot, and who can."""
    seen.page.evaluate(WITHOUT_MLDSA)
    give(seen.page, policy(f"witness pq {watched.w2_pq}", "quorum pq"))
    assert state(seen.page) == "could not tell"
    assert "The quorum pq cannot be told." in sentence(seen.page)
    assert "compliance-agent verify --policy checks it." in sentence(seen.page)
    give(seen.page, policy(f"witness pq {watched.w2_pq}", f"witness w2 {watched.w2}", "group w any pq w2", "quorum w"))
    assert state(seen.page) == "verified"


def test_another_log_or_another_key_of_it_is_wrong(seen: Visit, watched: Watched) -> None:
    """The page's own key of the log fits; the visitor's policy decides all the same."""
    witness_line = f"witness w1 {watched.w1}"
    other = stranger(watched.log.name, KeyType.ED25519)
    for line, said in (
        (f"log {other}", "No log of the policy signed the checkpoint."),
        (
            f"log {replace(watched.log, name='log.example/other/2026')}",
            f"The policy names no key of {watched.log.name}.",
        ),
    ):
        give(seen.page, policy(line, witness_line, "quorum w1"))
        assert state(seen.page) == "wrong"
        assert sentence(seen.page) == said


# --- a server that lies --------------------------------------------------------------------------------

Change = Callable[[Note, Watched], Note]


def line_of(note: Note, key: VerifierKey) -> Signature:
    return next(line for line in note.signatures if (line.name, line.key_id) == (key.name, key.id))


def with_line(note: Note, key: VerifierKey, change: Callable[[bytes], bytes]) -> Note:
    old = line_of(note, key)
    lines = [replace(line, signature=change(line.signature)) if line is old else line for line in note.signatures]
    return replace(note, signatures=tuple(lines))


def later(signature: bytes) -> bytes:
    """The time that it says, a second later."""
    return (int.from_bytes(signature[:8], "big") + 1).to_bytes(8, "big") + signature[8:]


def by_another(note: Note, watched: Watched) -> Note:
    """Somebody else's signature over the same time and text, under the name and key id of the first witness."""
    at = int.from_bytes(line_of(note, watched.w1).signature[:8], "big")
    made = Ed25519PrivateKey.generate().sign(f"cosignature/v1\ntime {at}\n{note.text}".encode())
    return with_line(note, watched.w1, lambda raw: raw[:8] + made)


def without(note: Note, watched: Watched) -> Note:
    gone = line_of(note, watched.w1)
    return replace(note, signatures=tuple(line for line in note.signatures if line is not gone))


LIES: dict[str, tuple[Change, str]] = {
    "another time": (lambda note, watched: with_line(note, watched.w1, later), "wrong"),
    "another signature": (lambda note, watched: with_line(note, watched.w2, lambda raw: raw[:-1] + bytes([raw[-1] ^ 1])), "wrong"),
    "another signer": (by_another, "wrong"),
    "another time of ML-DSA": (lambda note, watched: with_line(note, watched.w2_pq, later), "wrong"),
    "another signature of ML-DSA": (
        lambda note, watched: with_line(note, watched.w2_pq, lambda raw: raw[:-1] + bytes([raw[-1] ^ 1])), "wrong",
    ),
    "a line that is too short": (lambda note, watched: with_line(note, watched.w1, lambda raw: raw[:-1]), "wrong"),
    "no time": (lambda note, watched: with_line(note, watched.w1, lambda raw: raw[8:]), "wrong"),
    "a witness less": (without, "unwitnessed"),
    "the line of another log": (
        lambda note, watched: Note(note.text.replace(SITE, "clinic-harbour"), note.signatures), "wrong",
    ),
}  # fmt: skip


@pytest.mark.parametrize("lie", LIES)
def test_each_lie_about_witnesses_is_named(seen: Visit, watched: Watched, lie: str) -> None:
    change, due = LIES[lie]

    def answer(route: Route) -> None:
        genuine = route.fetch()
        proof = Proof.parse(genuine.body())
        note = Note.parse(proof.checkpoint)
        changed = change(note, watched)
        assert changed != note
        route.fulfill(response=genuine, body=replace(proof, checkpoint=changed.encode()).encode())

    seen.page.route(re.compile(r"/bundle\.tlog-proof(\?|$)"), answer)
    assert state(seen.page) == due
    expect(seen.page.locator("form[data-done=verified]")).to_have_count(0)
    if due == "unwitnessed":
        expect(seen.page.locator("[data-verdict]")).to_contain_text("Unwitnessed: nobody outside vouches")


def test_a_server_that_lowers_its_quorum_is_held_to_the_visitors(seen: Visit, watched: Watched) -> None:
    """It hides a witness that would not sign: its own policy is met, and the one from elsewhere is not."""
    served = policy(f"log {watched.log}", f"witness w1 {watched.w1}", "quorum w1")
    seen.page.route(re.compile(r"/policy\?"), lambda route: route.fulfill(body=served))
    assert state(seen.page) == "verified"
    give(
        seen.page,
        policy(
            f"witness w1 {watched.w1}",
            f"witness w9 {stranger('w9.example')}",
            "group all-of all w1 w9",
            "quorum all-of",
        ),
    )
    assert state(seen.page) == "unwitnessed"


# --- the page for files, and Python's parser ---------------------------------------------------------------

JUDGE = """async ([text, note]) => {
    const { Wrong, Untold } = proofFormats;
    try { return "verified: " + await witnessPolicy.judged(text, proofFormats.readCheckpoint(note)); }
    catch (error) {
        if (error instanceof witnessPolicy.Unwitnessed) return "unwitnessed: " + error.message;
        return (error instanceof Untold ? "untold: " : error instanceof Wrong ? "wrong: " : "fault: ") + error.message;
    }
}"""


def test_files_and_a_policy_are_checked_without_asking_anybody(visit: Visit, tmp_path: Path) -> None:
    page = visit.page
    page.goto(f"{visit.address}/verify", wait_until="networkidle")
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    record = Record.made(9, 4)
    signer = Ed25519PrivateKey.generate()
    key = VerifierKey("witness.example/w1", KeyType.COSIGNATURE, signer.public_key().public_bytes_raw())
    proof = Proof.parse(record.files["bundle.tlog-proof"])
    note = Note.parse(proof.checkpoint)
    note = replace(note, signatures=(*note.signatures, key.sign(note.text, signer.sign, 1_700_000_000)))
    record.files["bundle.tlog-proof"] = replace(proof, checkpoint=note.encode()).encode()
    record.chosen(page, tmp_path)
    assert pressed(page)["witnesses"] == "could not tell"
    (tmp_path / "policy").write_text(
        policy("log " + record.files["log.vkey"].decode().strip(), f"witness w1 {key}", "quorum w1")
    )
    page.locator('input[type="file"][name="policy"]').set_input_files(tmp_path / "policy")
    assert pressed(page) == alone(witnesses="verified")
    assert "Cosigned by w1 at 2023-11-14T22:13:20Z; 1 of 1 witnesses." in sentence(page)
    expect(page.locator("[data-verdict]")).to_contain_text("no server was trusted")
    assert asked == []


W = [stranger(f"w.example/{number}") for number in range(5)]
PQ = VerifierKey("pq.example/w", KeyType.MLDSA44, MLDSA44PrivateKey.generate().public_key().public_bytes_raw())
LOG = stranger("log.example/a/2026", KeyType.ED25519)
WEAK = bytes([KeyType.COSIGNATURE, 1, *31 * [0]])
WEAK_ID = hashlib.sha256(b"weak.example\n" + WEAK).hexdigest()[:8]
WITNESS_LINES = tuple(f"witness w{number} {key}" for number, key in enumerate(W))
POLICIES: dict[str, str] = {
    "one": policy(*WITNESS_LINES, "quorum w3"),
    "two of three, inside any": policy(*WITNESS_LINES, "group a 2 w0 w1 w2", "group b any a w3", "quorum b"),
    "all of groups": policy(*WITNESS_LINES, "group a any w0 w1", "group b any w2 w3 w4", "group c all a b", "quorum c"),
    "comments and space": policy("# a policy", "", *WITNESS_LINES, "\tgroup  a\t1 w0   w1 ", "quorum a"),
    "none": policy(*WITNESS_LINES, "quorum none"),
    "a log": policy(f"log {LOG}", *WITNESS_LINES, "quorum w0"),
    "URLs": policy(f"witness x {W[0]} https://w.example", "quorum x"),
    "nothing": policy(""),
    "no quorum": policy(*WITNESS_LINES),
    "two quorums": policy(*WITNESS_LINES, "quorum w0", "quorum w1"),
    "a quorum before its witness": policy("quorum w0", *WITNESS_LINES),
    "a quorum of nothing": policy(*WITNESS_LINES, "quorum w9"),
    "quorum of two words": policy(*WITNESS_LINES, "quorum w0 w1"),
    "a member twice": policy(*WITNESS_LINES, "group a 1 w0 w0", "quorum a"),
    "a member of two groups": policy(*WITNESS_LINES, "group a 1 w0 w1", "group b 1 w0 w2", "quorum b"),
    "a member that comes later": policy("group a 1 w0", *WITNESS_LINES, "quorum a"),
    "a group of itself": policy(*WITNESS_LINES, "group a 1 a", "quorum a"),
    "an empty group": policy(*WITNESS_LINES, "group a any", "quorum a"),
    "threshold 0": policy(*WITNESS_LINES, "group a 0 w0", "quorum a"),
    "threshold too large": policy(*WITNESS_LINES, "group a 2 w0", "quorum a"),
    "threshold 01": policy(*WITNESS_LINES, "group a 01 w0", "quorum a"),
    "threshold of a word": policy(*WITNESS_LINES, "group a constructor w0", "quorum a"),
    "a name twice": policy(*WITNESS_LINES, f"witness w0 {stranger('x.example')}", "quorum w0"),
    "a witness called none": policy(f"witness none {W[0]}", "quorum none"),
    "a group called none": policy(*WITNESS_LINES, "group none any w0", "quorum none"),
    "a key twice": policy(f"witness a {W[0]}", f"witness b {W[0]}", "quorum a"),
    "a log's key as a witness": policy(f"witness a {LOG}", "quorum a"),
    "a witness's key as a log": policy(f"log {W[0]}", "quorum none"),
    "another id": policy(f"witness a {W[0].name}+00000000+{str(W[0]).split('+', 2)[2]}", "quorum a"),
    "a key that is cut": policy(f"witness a {str(W[0])[:-4]}", "quorum a"),
    "an unknown word": policy("policy v1", "quorum none"),
    "a word of every object": policy("constructor x", "quorum none"),
    "a control character": policy(*WITNESS_LINES, "quorum w0\x07"),
    "lines of another system": "\r\n".join((*WITNESS_LINES, "quorum w0", "")),
    "a weak key": policy(f"witness a weak.example+{WEAK_ID}+{to_base64(WEAK)}", "quorum a"),
    "an ML-DSA witness": policy(f"witness pq {PQ}", "quorum none"),
}  # fmt: skip


def test_a_policy_is_read_as_python_reads_it(visit: Visit) -> None:
    """Each is taken by both or by neither; and then every set of witnesses is a quorum for both or for neither."""
    visit.page.goto(f"{visit.address}/verify")
    read = """async ([text, sets]) => {
        try { const policy = await witnessPolicy.read(text); return sets.map((names) => witnessPolicy.met(policy, names)); }
        catch (error) { return error.message; }
    }"""
    names = [f"w{number}" for number in range(5)]
    sets = [list(some) for size in range(6) for some in itertools.combinations(names, size)]
    taken = []
    for name, text in POLICIES.items():
        try:
            parsed = Policy.parse(text.encode())
            asked = parsed.quorum != "none"  # the page has a word of its own for that
            due: object = [asked and parsed.is_met_by(some) for some in sets]
            taken.append(name)
        except BadEvidence:
            due = "refused"
        found = visit.page.evaluate(read, [text, sets])
        assert (found if isinstance(found, list) else "refused") == due, (name, found)
    assert len(taken) == 8
    assert "one" in taken


@pytest.mark.parametrize("at", [0, 1, 2**31, 2**32, 253_402_300_799, 253_402_300_800, 2**53 + 1, 2**63 - 1, 2**63])
def test_a_time_is_the_one_that_was_signed(visit: Visit, at: int) -> None:
    """Of 64 bits, none of them lost; the last that the format has is the last that is taken."""
    visit.page.goto(f"{visit.address}/verify")
    signer = Ed25519PrivateKey.generate()
    key = VerifierKey("w.example/one", KeyType.COSIGNATURE, signer.public_key().public_bytes_raw())
    text = "log.example/a/2026\n5\nAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=\n"
    signature = at.to_bytes(8, "big") + signer.sign(f"cosignature/v1\ntime {at}\n{text}".encode())
    note = Note(text, (Signature(key.name, key.id, signature),)).encode().decode()
    asked = policy(f"witness w {key}", "quorum w")
    found = visit.page.evaluate(JUDGE, [asked, note])
    try:
        key.verify(text, signature)
        assert found.startswith("verified: The quorum w of the policy is met. Cosigned by w at ")
        assert (f"{at} seconds after 1970" in found) is (at > 8_640_000_000_000)
    except BadEvidence:
        assert at == 2**63
        assert found.startswith("wrong: ")
