"""The page of a log: older checkpoints, and one of them held against the newest in a real Chromium, beside real witnesses.

A visitor who kept a checkpoint learns whether the log still goes on from it, with nothing of the server believed.
"""

from __future__ import annotations

import base64
import re
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from playwright.sync_api import Browser, Page, Route, expect

from compliance_agent.log.checkpoint import Checkpoint
from compliance_agent.log.merkle import RootHash, hash_leaf
from compliance_agent.log.note import KeyType, Note, VerifierKey
from compliance_agent.log.tiles import Tile
from compliance_agent.log.tree import Edge, TileTree
from tests.web.browsing import MARKS, Visit, axe
from tests.web.test_check import flipped
from tests.web.test_check_witnesses import SITE, Watched, seen, watched

pytestmark = MARKS
__all__ = ["seen", "watched"]  # the fixtures
SOUND = {"older": "verified", "newest": "verified", "consistency": "verified"}
LOG = f"/sites/{SITE}/log"


def states(page: Page) -> dict[str, str]:
    page.wait_for_selector("form[data-done]")
    lines = page.locator("[data-lines] li").all()
    return {str(line.get_attribute("data-line")): line.locator("strong").inner_text().split(": ")[1] for line in lines}


def held(page: Page, note: str, key: str = "") -> dict[str, str]:
    """Hold this checkpoint against the newest; the state of each line."""
    page.locator('textarea[name="older"]').fill(note)
    page.locator('textarea[name="logKey"]').fill(key)
    page.get_by_role("button", name="Check in this browser").last.press("Enter")
    return states(page)


def newest(page: Page, watched: Watched) -> Checkpoint:
    text = page.request.get(f"{watched.address}/log/{SITE}/{watched.served.clock.now.year}/checkpoint").text()
    return Checkpoint.parse(Note.parse(text.encode()).text)


def signed(watched: Watched, size: int, root: bytes) -> str:
    """By the log's own key, as only a log could that lies."""
    services = watched.served.services
    return services.log_keys.note(Checkpoint(watched.log.name, size, RootHash(root)), services.clock()).decode()


def test_the_tiles_stand_in_even_rows(seen: Visit, watched: Watched) -> None:
    """Six of them at 1280 px are three and three, none left alone below five."""
    seen.page.goto(watched.address + LOG)
    tops = seen.page.evaluate("[...document.querySelectorAll('.tiles > .tile')].map(tile => tile.offsetTop)")
    assert len(tops) == 6 and [tops.count(top) for top in sorted(set(tops))] == [3, 3]


def test_an_older_checkpoint_is_listed_and_checked_here(seen: Visit, watched: Watched) -> None:
    page = seen.page
    page.goto(watched.address + LOG)
    row = page.locator("tr[data-size]").last
    expect(row).to_contain_text("The newest checkpoint goes on from it.")
    expect(row).to_contain_text("Cosigned by w1, w2, w2-pq.")
    row.get_by_role("button").press("Enter")
    assert states(page) == SOUND
    expect(page.locator("[data-verdict]")).to_contain_text("verified by this browser. The key came from this server")
    with page.expect_download() as waiting:
        row.get_by_role("link", name="checkpoint").click()
    kept = Path(waiting.value.path()).read_text()
    assert held(page, kept.replace("\n", "\r\n"), str(watched.log)) == SOUND
    expect(page.locator("form[data-done=verified] [data-verdict]")).to_contain_text("The key is the one you gave.")


def test_a_forked_old_checkpoint_fails_before_all_eyes(seen: Visit, watched: Watched) -> None:
    """Signed by the log's own key over another root: two histories. And one of more entries than there are: set back."""
    page = seen.page
    page.goto(watched.address + LOG)
    size = newest(page, watched).size
    for fork, said in (
        (signed(watched, size // 2, bytes(32)), "does not begin with the tree of"),
        (signed(watched, size, bytes(32)), "does not begin with the tree of"),
        (signed(watched, size + 7, bytes(32)), "it was set back"),
    ):
        assert held(page, fork) == {**SOUND, "consistency": "wrong"}
        expect(page.locator("[data-line=consistency]")).to_contain_text(said)
        expect(page.locator('form[data-done="not verified"] [data-verdict]')).to_contain_text(
            "The log signed two histories."
        )
    assert axe(page, "log") == []


def test_what_is_not_the_logs_and_what_is_missing(seen: Visit, watched: Watched) -> None:
    page = seen.page
    page.goto(watched.address + LOG)
    sound = signed(watched, 1, b"\0" * 32)
    stranger = VerifierKey(
        watched.log.name, KeyType.ED25519, Ed25519PrivateKey.generate().public_key().public_bytes_raw()
    )
    assert held(page, sound, str(stranger)) == {"older": "wrong", "newest": "wrong", "consistency": "wrong"}
    note = Note.parse(sound.encode())
    line = note.signatures[0]
    broken = Note(note.text, (type(line)(line.name, line.key_id, flipped(3)(line.signature)),)).encode().decode()
    assert held(page, broken)["older"] == "wrong"
    assert held(page, "nonsense") == {"older": "wrong", "newest": "could not tell", "consistency": "could not tell"}
    assert held(page, "") == dict.fromkeys(SOUND, "could not tell")
    page.route(re.compile("/consistency/"), lambda route: route.fulfill(status=503))
    row = page.locator("tr[data-size]").last
    row.get_by_role("button").press("Enter")
    assert states(page) == {"older": "verified", "newest": "could not tell", "consistency": "could not tell"}
    seen.forgive()  # the 503 is the point


def test_a_server_that_changes_the_path_is_named(seen: Visit, watched: Watched) -> None:
    page = seen.page
    page.goto(watched.address + LOG)

    def answer(route: Route) -> None:
        genuine = route.fetch()
        head, _, note = genuine.text().partition("\n\n")
        lines = head.split("\n")
        lines[-1] = base64.b64encode(flipped(0)(base64.b64decode(lines[-1]))).decode()
        route.fulfill(response=genuine, body="\n".join(lines) + "\n\n" + note)

    page.route(re.compile("/consistency/"), answer)
    page.locator("tr[data-size]").last.get_by_role("button").press("Enter")
    assert states(page) == {**SOUND, "consistency": "wrong"}


def test_consistency_is_what_python_computes(visit: Visit) -> None:
    """Every pair of small trees and the edges of larger ones; and no path that is too long, too short, or changed."""
    sizes = [*range(1, 18), 255, 256, 257, 300]
    leaves = [hash_leaf(b"entry %d" % at) for at in range(max(sizes))]
    trees = {}
    for size in sizes:
        tiles = dict(Edge().grow(leaves[:size])[1])
        trees[size] = TileTree(size, lambda *tile, tiles=tiles: tiles[Tile(*tile)])
    cases, due = [], []
    for old in sizes:
        for new in (size for size in sizes if size >= old):
            path = [one.hex() for one in trees[new].consistency(old)]
            roots = [bytes(trees[old].root()).hex(), bytes(trees[new].root()).hex()]
            other = f"{int(roots[0][:2], 16) ^ 1:02x}{roots[0][2:]}"
            cases += [
                [old, new, path, *roots],
                [old, new, path, other, roots[1]],
                [old, new, [*path, "00" * 32], *roots],
            ]
            due += [True, False, False]
            if path:
                cases.append([old, new, path[:-1], *roots])
                due.append(False)
    visit.page.goto(f"{visit.address}/verify")
    found = visit.page.evaluate(
        """cases => Promise.all(cases.map(async ([old, size, path, ...roots]) => {
            const bytes = hex => Uint8Array.from(hex.match(/../g).map(two => parseInt(two, 16)));
            try { await proofFormats.continued(old, size, path.map(bytes), ...roots.map(bytes)); return true; }
            catch (error) { return error instanceof proofFormats.Wrong ? false : String(error); }
        }))""",
        cases,
    )
    assert found == due
    assert len(due) > 700


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_without_scripts_and_on_a_narrow_screen(browser: Browser, watched: Watched, theme: str) -> None:
    """The server's own comparison stands there; every file can be had; nothing asks for what scripts do."""
    visit = Visit(browser, watched.address, scripts=False, theme=theme, width=320)
    page = visit.sign_in()
    page.goto(watched.address + LOG)
    expect(page.locator("tr[data-size] .tone-pass").first).to_contain_text("verified")
    expect(page.get_by_role("heading", name="Hold one against")).to_be_hidden()
    expect(page.get_by_text("The check in the browser needs scripts.")).to_be_visible()
    expect(page.locator('[data-tile="unanchored"]')).to_contain_text("entries since third parties last signed")
    for name in ("log.vkey", "log.pem", "policy"):
        with page.expect_download() as waiting:
            page.get_by_role("link", name=name, exact=True).click()
        assert Path(waiting.value.path()).stat().st_size > 50
    assert page.evaluate("document.documentElement.scrollWidth") <= 320
    visit.context.close()
