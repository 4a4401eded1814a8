#!/usr/bin/env python3
"""Writes docs/screenshots/*.png: every page of the viewer in both themes, in Chromium over the fleet of lab/seeding.py.

    ./run screenshots [DIRECTORY]

Times on the pictures are those of the moment they are taken; everything else is the same on every run. A picture has at most 256
colours, the most frequent ones, which makes it a quarter of the size.
"""

from __future__ import annotations

import base64
import sys
import tempfile
from pathlib import Path

from playwright.sync_api import Page, sync_playwright

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from compliance_agent.server.services.exceptions import Wanted as Accepted  # noqa: E402
from compliance_agent.server.services.orders import Wanted  # noqa: E402
from tests.web.browsing import CHROMIUM, FLAGS, Visit  # noqa: E402
from tests.web.people import sign_in_as, with_people  # noqa: E402
from tests.web.serving import Served, on_loopback  # noqa: E402

MOST_PX = 2_000
ORDER, DRAFT, STANDS, WAITS = (digit * 32 for digit in "5612")
ASKED = "reason=vendor_requires&measure=segregated&reference=RA-2026-14&days=7&whole=0"
READY_MS = 60_000
SMALLER = """async png => {
  const image = await createImageBitmap(await (await fetch('data:image/png;base64,' + png)).blob());
  const canvas = new OffscreenCanvas(image.width, image.height), drawing = canvas.getContext('2d');
  drawing.drawImage(image, 0, 0);
  const pixels = drawing.getImageData(0, 0, image.width, image.height).data, counts = new Map(), row = image.width + 1;
  const colour = at => pixels[at] << 16 | pixels[at + 1] << 8 | pixels[at + 2];
  for (let at = 0; at < pixels.length; at += 4) counts.set(colour(at), (counts.get(colour(at)) || 0) + 1);
  const known = [...counts].sort((a, b) => b[1] - a[1] || a[0] - b[0]).slice(0, 256).map(one => one[0]);
  const places = new Map(known.map((one, at) => [one, at]));
  const far = (a, b) => [16, 8, 0].reduce((sum, by) => sum + ((a >> by & 255) - (b >> by & 255)) ** 2, 0);
  const place = one => {
    if (!places.has(one)) places.set(one, known.reduce((best, to, at) => far(one, to) < far(one, known[best]) ? at : best, 0));
    return places.get(one);
  };
  const raw = new Uint8Array(row * image.height);
  for (let y = 0, at = 0; y < image.height; y++)
    for (let x = 0; x < image.width; x++, at += 4) raw[y * row + 1 + x] = place(colour(at));
  const packing = new Blob([raw]).stream().pipeThrough(new CompressionStream('deflate'));
  const packed = new Uint8Array(await new Response(packing).arrayBuffer());
  const shifted = (n, times) => times ? shifted(n & 1 ? 0xedb88320 ^ n >>> 1 : n >>> 1, times - 1) : n;
  const table = Array.from({length: 256}, (_, n) => shifted(n, 8));
  const four = n => [n >>> 24, n >>> 16 & 255, n >>> 8 & 255, n & 255];
  const part = (name, content) => {
    const body = [...new TextEncoder().encode(name), ...content];
    const crc = body.reduce((sum, byte) => table[(sum ^ byte) & 255] ^ sum >>> 8, -1) ^ -1;
    return [...four(content.length), ...body, ...four(crc >>> 0)];
  };
  const bytes = [137, 80, 78, 71, 13, 10, 26, 10, ...part('IHDR', [...four(image.width), ...four(image.height), 8, 3, 0, 0, 0]),
    ...part('PLTE', known.flatMap(one => [one >> 16, one >> 8 & 255, one & 255]))].concat(part('IDAT', packed), part('IEND', []));
  let text = '';
  for (const byte of bytes) text += String.fromCharCode(byte);
  return btoa(text);
}"""


def pictures(served: Served) -> dict[str, str]:
    """File name and path of each page but `login`, which is taken before anybody signs in, and a packet's."""
    healed = served.hosts["ehr-db-02"]
    site = "/sites/clinic-elm-street"
    place = f"/hosts/{healed.key_id}/checks/patching"
    waits = f"/hosts/{served.hosts['frontdesk-01'].key_id}/checks/backup"
    return {
        "fleet": "/",
        "site": site,
        "host": f"/hosts/{healed.key_id}",
        "silent": f"/hosts/{served.hosts['imaging-01'].key_id}",
        "check": f"/hosts/{healed.key_id}/checks/firewall",
        "plan": place,
        "exception": f"{place}/exception",
        "exception-read-back": f"{place}/exception?{ASKED}",
        "exception-withdraw": f"{place}/exception?withdraw={STANDS}",
        "exception-waits": waits,
        "exception-approve": f"{waits}/exception?approve={WAITS}",
        "exception-rule": f"{site}/exception-rule",
        "exception-rule-change": f"{site}/exception-rule?people=1",
        "records": f"/hosts/{healed.key_id}/evidence?kind=remediation",
        "evidence": "/evidence?kind=remediation",
        "controls": f"{site}/controls",
        "controls-hosts": f"{site}/controls?by=host",
        "controls-proposed": f"{site}/controls?rule=proposed",
        "bundle": f"/bundles/{healed.cures['firewall']}",
        "proof": f"/bundles/{healed.cures['firewall']}?proof=1",
        "sample": f"{site}/sample?seed=audit-2026&number=8&control=164.312(b)",
        "log": f"{site}/log",
        "verify": "/verify",
        "orders": "/orders",
        "order": f"/orders/{ORDER}",
        "order-approve": f"/orders/{DRAFT}/approve",
        "order-withdraw": f"/orders/{ORDER}/withdraw",
        "ask": f"/hosts/{healed.key_id}/order",
        "ask-confirm": f"/hosts/{healed.key_id}/order/confirm?kind=pause",
        "packets": f"{site}/packets",
        "account": "/account",
        "factor": "/account/factor",
        "prove": "/account/prove",
        "missing": "/no/such/page",
    }


async def prepare(served: Served) -> None:
    """An owner who looks; an order to sign and one to approve; an exception that stands, and one that waits for a second person."""
    await with_people(served)
    users, orders, desk = served.services.users, served.services.orders, served.services.exceptions()
    ada, ben = await users.set_role("ada", "owner"), await users.set_role("ben", "owner")
    every, host, site = await users.reader(ada), served.hosts["ehr-db-02"].key_id, "clinic-elm-street"
    await orders.draft(ada, every, Wanted(host, "pause", {}), order_id=ORDER)
    await orders.approve(ada, every, ORDER)
    await orders.draft(ben, every, Wanted(host, "check", {"checks": ["patching"]}), order_id=DRAFT)
    stands = Accepted(host, "patching", "vendor_requires", "segregated", "RA-2026-14", 7)
    await desk.record(ben, every, stands, STANDS)
    await desk.set_people(ada, every, site, 2)
    waits = Accepted(
        served.hosts["frontdesk-01"].key_id, "backup", "replacement_planned", "other_product", "RA-2026-16", 30
    )
    await desk.record(ben, every, waits, WAITS)


def build_packet(page: Page) -> None:
    """The one packet, from the page that asks for it; the second theme finds it ready."""
    ready = page.get_by_role("link", name="packet.zip")
    if ready.count():
        page.get_by_role("main").get_by_role("row").get_by_role("link").first.click()
    else:
        page.get_by_role("button", name="Build a packet").click()
    page.get_by_role("heading", name="Packet of").wait_for()
    ready.wait_for(timeout=READY_MS)


def take(page: Page, path: Path, smaller: Page) -> None:
    """As tall as its content, up to a limit, so that the picture shows no empty ground."""
    page.set_viewport_size({"width": 1280, "height": 400})
    height = page.evaluate("document.documentElement.scrollHeight")
    page.set_viewport_size({"width": 1280, "height": min(int(height), MOST_PX)})
    page.evaluate("window.scrollTo(0, 0)")
    whole = base64.b64encode(page.screenshot()).decode("ascii")
    path.write_bytes(base64.b64decode(smaller.evaluate(SMALLER, whole)))


def main() -> int:
    """Take every picture in both themes."""
    if not CHROMIUM:
        sys.stderr.write("error: no Chromium found; apt-get install chromium, or set CHROMIUM\n")
        return 69
    target = Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "docs" / "screenshots"
    target.mkdir(parents=True, exist_ok=True)
    with (
        tempfile.TemporaryDirectory() as folder,
        on_loopback(Path(folder), prepare=prepare) as (address, served),
        sync_playwright() as playwright,
    ):
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=list(FLAGS))
        smaller = browser.new_page()
        for theme, suffix in (("light", ""), ("dark", "-dark")):
            visit = Visit(browser, address, theme=theme)
            visit.page.goto(f"{address}/login")
            take(visit.page, target / f"login{suffix}.png", smaller)
            page = sign_in_as(visit, served, "ada")
            for name, path in pictures(served).items():
                page.set_viewport_size({"width": 1280, "height": 900})
                page.goto(address + path)
                if name == "proof":
                    page.get_by_role("button", name="Check in this browser").click()
                    page.wait_for_selector("form[data-done]")
                if name == "packets":
                    build_packet(page)
                    take(page, target / f"packet{suffix}.png", smaller)
                    page.goto(address + path)
                take(page, target / f"{name}{suffix}.png", smaller)
        browser.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
