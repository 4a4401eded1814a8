"""The check in the browser: real Chromium, real WebCrypto, held against Python's own trees, and against a server that lies.

What the page computes must be right without the server: so each lie is told by changing what the server answers, and the page must
name what is wrong.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from playwright.sync_api import Browser, Page, Route, expect

from compliance_agent import crypto
from compliance_agent.entries.leaf import bundle_leaf
from compliance_agent.errors import BadEvidence
from compliance_agent.log.checkpoint import Checkpoint
from compliance_agent.log.merkle import hash_leaf
from compliance_agent.log.note import KeyType, Note, VerifierKey
from compliance_agent.log.proof import Proof
from compliance_agent.log.tiles import Tile
from compliance_agent.log.tree import Edge, TileTree
from tests.web.browsing import MARKS, Visit, axe
from tests.web.serving import Served

pytestmark = MARKS


NAMES = ("signature", "before", "after", "entry", "inclusion", "checkpoint", "witnesses", "time")
SIZES = (1, 2, 3, 255, 256, 257, 1000)
ORIGIN = "log.example/clinic/2026"
UNTOLD = "could not tell"  # as there is no policy on the page for files before one is given


def path_of(served: Served) -> str:
    """The record that is looked at."""
    host = served.hosts["ehr-db-02"]
    return f"/bundles/{host.cures['firewall']}?key={host.key_id}"


def pressed(page: Page) -> dict[str, str]:
    """Press the button, by keyboard; the state of each line."""
    page.get_by_role("button", name="Check in this browser").focus()
    page.keyboard.press("Enter")
    page.wait_for_selector("form[data-done]")
    lines = page.locator("[data-lines] li").all()
    return {str(line.get_attribute("data-line")): line.locator("strong").inner_text().split(": ")[1] for line in lines}


def wrong(*names: str, **others: str) -> dict[str, str]:
    """These are wrong, and the others verified; but this server has no witnesses (tests/web/test_check_witnesses.py has some)."""
    stand = {**dict.fromkeys(NAMES, "verified"), "witnesses": "unwitnessed", "time": UNTOLD, **others}
    return stand | dict.fromkeys(names, "wrong")


def alone(*names: str, witnesses: str = UNTOLD) -> dict[str, str]:
    """The same of a record that is given without its neighbours: the first of its host."""
    return wrong(*names, after=UNTOLD, witnesses=witnesses)


# Trees


def tree_of(leaves: list[bytes]) -> TileTree:
    _, tiles = Edge().grow(map(hash_leaf, leaves))
    held = dict(tiles)
    return TileTree(len(leaves), lambda *tile: held[Tile(*tile)])


def test_roots_are_those_that_python_computes(visit: Visit) -> None:
    """Every path of small trees and the edges of large ones; and a path that is too long, too short, or of another place."""
    visit.page.goto(f"{visit.address}/verify")
    entries = [f"entry {at}".encode() for at in range(max(SIZES))]
    cases: list[tuple[str, int, int, list[str]]] = []
    due: list[str] = []
    for size in SIZES:
        tree = tree_of(entries[:size])
        for index in range(size) if size < 4 else sorted({0, 1, 127, 128, 253, 254, 255, 256, 511, 999, size - 1}):
            if index < size:
                path = [node.hex() for node in tree.inclusion(index)]
                cases.append((entries[index].decode(), index, size, path))
                due.append(tree.root().hex())
    run = """cases => Promise.all(cases.map(async ([entry, index, size, path]) => {
        const bytes = hex => Uint8Array.from(hex.match(/../g).map(two => parseInt(two, 16)));
        try {
            const leaf = await recordProof.hashLeaf(new TextEncoder().encode(entry));
            const root = await recordProof.rootOf(leaf, index, size, path.map(bytes));
            return Array.from(root, byte => byte.toString(16).padStart(2, '0')).join('');
        } catch (error) { return error.message; }
    }))"""
    assert visit.page.evaluate(run, cases) == due
    assert len(due) > 30
    refused: list[tuple[str, int, int, list[str]]] = []
    for entry, index, size, path in cases:
        refused += [(entry, index, size, [*path, "00" * 32]), (entry, size, size, path), (entry, -1, size, path)]
        refused += [(entry, index, size, path[:-1])] if path else []
    answers = visit.page.evaluate(run, refused)
    assert all(answer.startswith("The path is not one of") for answer in answers)


# The page of a record


def test_a_sound_record_verifies_and_the_page_says_whose_keys(visit: Visit, running: tuple[str, Served]) -> None:
    page = visit.sign_in()
    page.goto(visit.address + path_of(running[1]))
    assert pressed(page) == wrong()
    expect(page.locator("[data-verdict]")).to_contain_text("The keys came from this server")
    give_keys(page, running[1])
    expect(page.locator("[data-lines] li")).to_have_count(0)  # what was said is not about the keys that are given now
    assert pressed(page) == wrong()
    expect(page.locator("[data-verdict]")).to_contain_text("no server was trusted")


def give_keys(page: Page, served: Served, **instead: str) -> None:
    """Keys that the visitor got elsewhere."""
    host = served.hosts["ehr-db-02"]
    origin = f"compliance-server/{host.site_id}/{served.clock.now.year}"
    keys = {"hostKey": crypto.public_pem(host.public_key), "logKey": str(served.services.log_keys.verifier(origin))}
    page.get_by_text("Keys and policy from elsewhere", exact=True).click()
    for name, text in (keys | instead).items():
        page.locator(f'textarea[name="{name}"]').fill(text)


def answering(content: bytes) -> Callable[[Route], None]:
    return lambda route: route.fulfill(body=content)


def flipped(at: int) -> Callable[[bytes], bytes]:
    return lambda raw: raw[:at] + bytes([raw[at] ^ 1]) + raw[at:][1:]


def in_proof(change: Callable[[Proof], Proof]) -> Callable[[bytes], bytes]:
    return lambda raw: change(Proof.parse(raw)).encode()


def in_checkpoint(change: Callable[[Checkpoint], Checkpoint]) -> Callable[[bytes], bytes]:
    def act(proof: Proof) -> Proof:
        note = Note.parse(proof.checkpoint)
        return replace(proof, checkpoint=Note(change(Checkpoint.parse(note.text)).text, note.signatures).encode())

    return in_proof(act)


def relabelled(raw: bytes) -> bytes:
    """Another version of the agent, in as many bytes."""
    return raw.replace(b'"version":"', b'"version":"9', 1)


def resigned(proof: Proof) -> Proof:
    """The same checkpoint, with another signature under the log's name and key id."""
    note = Note.parse(proof.checkpoint)
    forged = replace(note.signatures[0], signature=flipped(5)(note.signatures[0].signature))
    return replace(proof, checkpoint=Note(note.text, (forged,)).encode())


LIES: dict[str, tuple[str, Callable[[bytes], bytes], tuple[str, ...]]] = {
    "a byte of the record": ("bundle.json", relabelled, ("signature", "after", "entry")),
    "its signature": ("bundle.sig", flipped(3), ("signature", "entry")),
    "the entry": ("leaf.json", lambda raw: raw.replace(b'"seq":', b'"seq":1'), ("entry", "inclusion")),
    "a node of the path": (
        "bundle.tlog-proof",
        in_proof(lambda proof: replace(proof, path=(flipped(0)(proof.path[0]), *proof.path[1:]))),
        ("inclusion",),
    ),
    "the index": (
        "bundle.tlog-proof",
        in_proof(lambda proof: replace(proof, index=proof.index ^ 1)),
        ("inclusion",),
    ),
    "the root": (
        "bundle.tlog-proof",
        in_checkpoint(lambda seen: replace(seen, root=type(seen.root)(flipped(0)(seen.root)))),
        ("inclusion", "checkpoint", "witnesses"),
    ),
    "the tree size": (
        "bundle.tlog-proof",
        in_checkpoint(lambda seen: replace(seen, size=seen.size * 64)),
        ("inclusion", "checkpoint", "witnesses"),
    ),
    "the origin": (
        "bundle.tlog-proof",
        in_checkpoint(lambda seen: replace(seen, origin="elsewhere")),
        ("checkpoint", "witnesses"),
    ),
    "the checkpoint's signature": ("bundle.tlog-proof", in_proof(resigned), ("checkpoint", "witnesses")),
    "a receipt that is none": ("bundle.tlog-proof", lambda raw: b"nothing", ("inclusion", "checkpoint", "witnesses")),
    "the host's key": (
        "public-key",
        lambda raw: crypto.public_pem(Ed25519PrivateKey.generate().public_key().public_bytes_raw()).encode(),
        ("signature", "after", "entry"),
    ),
    "a weak host key": (
        "public-key",
        lambda raw: crypto.public_pem(bytes([1] + 31 * [0])).encode(),
        ("signature", "after", "entry"),
    ),
    "the log's key": (
        "log.vkey",
        lambda raw: str(
            VerifierKey(
                raw.decode().split("+")[0],
                KeyType.ED25519,
                Ed25519PrivateKey.generate().public_key().public_bytes_raw(),
            )
        ).encode(),
        ("checkpoint",),
    ),
}


@pytest.mark.parametrize("lie", LIES)
def test_each_lie_of_the_server_is_named(visit: Visit, running: tuple[str, Served], lie: str) -> None:
    name, change, named = LIES[lie]
    page = visit.sign_in()

    def answer(route: Route) -> None:
        genuine = route.fetch()
        changed = change(genuine.body())
        assert changed != genuine.body()
        route.fulfill(response=genuine, body=changed)

    page.goto(visit.address + path_of(running[1]))
    own = path_of(running[1]).split("?")[0].split("/")[-1]  # and not its neighbours' files
    page.route(re.compile(rf"({own}|hosts/\w+)/{re.escape(name)}(\?|$)"), answer)
    assert pressed(page) == wrong(*named)
    expect(page.locator("[data-verdict]")).to_contain_text("Something is wrong")


def test_a_consistent_forgery_falls_with_the_keys_from_elsewhere(visit: Visit, running: tuple[str, Served]) -> None:
    """A server that made up record, log and keys agrees with itself. Only keys from elsewhere show it, and the page says so."""
    page, forged = visit.sign_in(), Record.made(7, 3)
    page.goto(visit.address + path_of(running[1]))
    files = {**forged.files, "policy": b"log " + forged.files["log.vkey"] + b"quorum none\n"}
    for name, content in files.items():
        page.route(re.compile(rf"/{re.escape(name)}(\?|$)"), answering(content))
    page.evaluate("""() => {
        const form = document.querySelector("form[data-check]").dataset;
        for (const name of ["previous", "following", "followingSig"]) delete form[name];
    }""")  # and names no neighbours, which would have to be made up as well
    assert pressed(page) == wrong(after=UNTOLD)
    expect(page.locator("[data-verdict]")).to_contain_text("agrees with itself, not whose keys they are")
    give_keys(page, running[1])
    assert pressed(page) == wrong("signature", "entry", "checkpoint", after=UNTOLD)


def test_what_the_browser_lacks_is_said(browser: Browser, running: tuple[str, Served]) -> None:
    """No WebCrypto, or none with Ed25519: nothing is verified, nothing is called wrong."""
    without = "Object.defineProperty(crypto, 'subtle', { value: undefined })"
    old = "crypto.subtle.importKey = () => Promise.reject(new DOMException('', 'NotSupportedError'))"
    for script, said in ((without, "no WebCrypto here"), (old, "has no Ed25519")):
        visit = Visit(browser, running[0])
        visit.page.add_init_script(script)
        page = visit.sign_in()
        page.goto(visit.address + path_of(running[1]))
        assert pressed(page) == dict.fromkeys(NAMES, "could not tell")
        expect(page.locator("[data-lines]")).to_contain_text(said)
        visit.context.close()


def test_what_is_not_to_be_had_is_could_not_tell(visit: Visit, running: tuple[str, Served]) -> None:
    page = visit.sign_in()
    page.goto(visit.address + path_of(running[1]))
    page.route(re.compile(r"bundle\.tlog-proof"), lambda route: route.fulfill(status=404))
    untold = dict.fromkeys(("inclusion", "checkpoint", "witnesses"), "could not tell")
    assert pressed(page) == {**wrong(), **untold}
    expect(page.locator("[data-lines]")).to_contain_text("bundle.tlog-proof is not to be had here (404).")
    visit.forgive()  # the 404 is the point


def test_weak_keys_are_those_that_libsodium_refuses(visit: Visit) -> None:
    """Small order and other spellings, with either sign; and keys that are neither."""
    p = 2**255 - 19
    eight = 0x7A03AC9277FDC74EC6CC392CFA53202A0F67100D760B3CBA4FD84D3D706A17C7  # two points of order eight
    weak = [0, 1, p - 1, p, p + 1, p + 18, eight, p - eight]
    keys = [(y | sign << 255).to_bytes(32, "little") for y in weak for sign in (0, 1)]
    keys += [Ed25519PrivateKey.generate().public_key().public_bytes_raw() for _ in range(5)]
    visit.page.goto(f"{visit.address}/verify")
    run = """pem => { try { recordProof.readPem(pem, 'It'); return true; } catch { return false; } }"""
    taken = [visit.page.evaluate(run, crypto.public_pem(key)) for key in keys]
    assert taken == [is_strong(key) for key in keys] == [False] * 16 + [True] * 5


def is_strong(key: bytes) -> bool:
    try:
        crypto.check_public_key(key)
    except BadEvidence:
        return False
    return True


# The page for files


@dataclass(frozen=True)
class Record:
    """A record in a log of its own, made here, under keys made here."""

    files: dict[str, bytes]

    @classmethod
    def made(cls, size: int, index: int, origin: str = ORIGIN) -> Record:
        host, log = Ed25519PrivateKey.generate(), Ed25519PrivateKey.generate()
        public = host.public_key().public_bytes_raw()
        body = json.dumps({"epoch": 0, "prev": "0" * 64, "seq": 1}, separators=(",", ":")).encode()
        sig, digest = host.sign(body), hashlib.sha256(body).hexdigest()
        leaf = bundle_leaf(crypto.key_id(public), 0, 1, "0" * 64, digest, sig)
        tree = tree_of([leaf if at == index else f"other {at}".encode() for at in range(size)])
        vkey = VerifierKey(ORIGIN, KeyType.ED25519, log.public_key().public_bytes_raw())
        text = Checkpoint(origin, size, tree.root()).text
        note = Note(text, (vkey.sign(text, log.sign),)).encode()
        return cls(
            {
                "bundle.json": body,
                "bundle.sig": sig,
                "leaf.json": leaf,
                "bundle.tlog-proof": Proof(index, tuple(tree.inclusion(index)), note).encode(),
                "public-key": crypto.public_pem(public).encode(),
                "log.vkey": f"{vkey}\n".encode(),
            }
        )

    def chosen(self, page: Page, folder: Path) -> None:
        """Choose every file on the page."""
        fields = zip(("bundle", "sig", "leaf", "proof", "hostKey", "logKey"), self.files.items(), strict=True)
        for field, (name, content) in fields:
            (folder / name).write_bytes(content)
            page.locator(f'input[type="file"][name="{field}"]').set_input_files(folder / name)


@pytest.mark.parametrize("size", SIZES)
def test_files_are_checked_without_asking_anybody(visit: Visit, tmp_path: Path, size: int) -> None:
    """Not signed in, and not one request after the page is there; at each size a good record and one with a changed byte."""
    page = visit.page
    page.goto(f"{visit.address}/verify", wait_until="networkidle")
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    record = Record.made(size, size // 2)
    record.chosen(page, tmp_path)
    assert pressed(page) == alone()
    expect(page.locator("[data-verdict]")).to_contain_text("no server was trusted")
    Record(record.files | {"bundle.json": flipped(9)(record.files["bundle.json"])}).chosen(page, tmp_path)
    assert pressed(page) == alone("signature", "entry")
    assert asked == []


def test_a_checkpoint_of_another_log_is_wrong_though_the_key_signed_it(visit: Visit, tmp_path: Path) -> None:
    """One key pair serves several logs; what it signed for one says nothing of another."""
    page = visit.page
    page.goto(f"{visit.address}/verify")
    Record.made(5, 2, origin="log.example/other/2026").chosen(page, tmp_path)
    assert pressed(page) == alone("checkpoint")
    expect(page.locator("[data-lines]")).to_contain_text("The checkpoint is of log.example/other/2026")


def test_pem_serves_as_the_logs_key_too(visit: Visit, tmp_path: Path) -> None:
    page, record = visit.page, Record.made(5, 2)
    page.goto(f"{visit.address}/verify")
    material = base64.b64decode(record.files["log.vkey"].decode().strip().split("+", 2)[2])
    Record(record.files | {"log.vkey": crypto.public_pem(material[1:]).encode()}).chosen(page, tmp_path)
    assert pressed(page) == alone()


def test_all_files_at_once_are_told_apart_by_name(visit: Visit, tmp_path: Path) -> None:
    page, record = visit.page, Record.made(9, 4)
    page.goto(f"{visit.address}/verify")
    names = {"public-key": "front-desk.pub.pem", "log.vkey": "clinic-2026.vkey"}
    for name, content in record.files.items():
        (tmp_path / names.get(name, name)).write_bytes(content)
    page.get_by_label("All its files at once").set_input_files(sorted(tmp_path.iterdir()))
    assert pressed(page) == alone()


@pytest.mark.parametrize(
    "key",
    [
        "nonsense",
        "a+b+c",
        "log.example/clinic/2026+00000000+",
        "-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----",
    ],
)
def test_a_key_that_is_none_is_no_verdict_on_the_record(visit: Visit, tmp_path: Path, key: str) -> None:
    """Mistyped is not forged."""
    page, record = visit.page, Record.made(5, 2)
    page.goto(f"{visit.address}/verify")
    material = record.files["log.vkey"].decode().strip().split("+", 2)[2]
    given = key + material if key.endswith("+") else key
    Record(record.files | {"log.vkey": given.encode(), "public-key": b"nonsense"}).chosen(page, tmp_path)
    untold = dict.fromkeys(("signature", "entry", "checkpoint", "witnesses"), UNTOLD)
    assert pressed(page) == {**untold, "inclusion": "verified", "before": "verified", "after": UNTOLD, "time": UNTOLD}
    expect(page.locator("[data-verdict]")).to_have_text("Not everything could be told.")


def test_nothing_given_is_nothing_verified(visit: Visit) -> None:
    visit.page.goto(f"{visit.address}/verify")
    assert pressed(visit.page) == dict.fromkeys(NAMES, "could not tell")
    expect(visit.page.locator("[data-verdict]")).to_have_text("Not everything could be told.")


# What the server itself proves, and the look of it all


def test_proof_and_log_are_read_without_scripts(browser: Browser, running: tuple[str, Served]) -> None:
    address, served = running
    visit = Visit(browser, address, scripts=False)
    page = visit.sign_in()
    page.goto(address + path_of(served))
    expect(page.locator("#proof-panel .proofs")).to_have_count(0)  # nothing is computed before it is asked for
    page.get_by_role("button", name="Prove it now").click()
    lines = page.locator("#proof-panel [data-line]")
    expect(lines).to_have_count(8)
    expect(page.locator("#proof-panel .tone-pass[data-line]")).to_have_count(6)
    expect(lines.nth(6)).to_contain_text("No witness is configured.")
    expect(page.get_by_text("This needs scripts.")).to_be_visible()
    expect(page.locator("form[data-check]")).to_be_hidden()
    page.get_by_role("link", name="The log of this site").click()
    expect(page.locator('[data-line="checkpoint"]')).to_contain_text("verified")
    expect(page.locator("tbody tr").first).to_contain_text("Act of a person")  # who signed in to look
    with page.expect_download() as waiting:
        page.get_by_role("link", name=re.compile("^tile.entries")).click()
    assert waiting.value.path().stat().st_size > 1000
    visit.context.close()


def test_a_log_that_stands_still_says_why(visit: Visit, running: tuple[str, Served]) -> None:
    page, board = visit.sign_in(), running[1].services.board
    page.goto(f"{visit.address}/sites/clinic-harbour/log")
    expect(page.get_by_text("Going on")).to_be_visible()
    board.stopped["clinic-harbour"] = "log_forked"
    try:
        page.evaluate("htmx.trigger('#live', 'refresh')")
        expect(page.get_by_text("The log stands still.")).to_be_visible(timeout=30_000)
        expect(page.locator(".banner.tone-fail")).to_contain_text("not a prefix of what the database holds")
    finally:
        del board.stopped["clinic-harbour"]


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_the_new_pages_are_accessible_and_fit(browser: Browser, running: tuple[str, Served], theme: str) -> None:
    """With every line shown, verified and wrong ones, and the keys' fields open."""
    address, served = running
    visit = Visit(browser, address, theme=theme)
    page, findings = visit.sign_in(), []
    for path in (f"{path_of(served)}&proof=1", "/sites/clinic-elm-street/log", "/verify"):
        page.goto(address + path)
        if path.startswith("/bundles"):
            pressed(page)
            give_keys(page, served, logKey="none+0+0")
        if not path.endswith("/log"):
            pressed(page)
        for width in (1280, 320):
            page.set_viewport_size({"width": width, "height": 900})
            findings += axe(page, f"{path} at {width}")
            wide = page.evaluate("document.documentElement.scrollWidth")
            findings += [f"{path}: {wide} px wide at {width}"] if wide > width else []
    assert findings == []
    assert visit.complaints == []
    visit.context.close()
