"""Time stamps (RFC 3161), checked in the browser: real tokens by OpenSSL, held against what Python says of them.

Whatever is planted, the browser never says more than Python does, but for RSA-PSS: Python and OpenSSL refuse it.
"""

from __future__ import annotations

import base64
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, load_pem_private_key
from cryptography.x509.oid import ExtendedKeyUsageOID as OID
from playwright.sync_api import Browser, expect

from compliance_agent.entries.leaf import time_leaf
from compliance_agent.errors import BadEvidence
from compliance_agent.evidence.stamped import stamps_under
from compliance_agent.log.proof import Proof
from compliance_agent.server.time_stamps import verified
from tests.server.authority import CONFIG, openssl, stamping
from tests.web.browsing import MARKS, Visit
from tests.web.serving import on_loopback
from tests.web.test_check import UNTOLD, path_of, pressed
from tests.web.test_check_moments import ALL, ZEROS, Given, Story, checked, in_times

pytestmark = MARKS
NOTE = b"log.example/clinic/2026\n3\nAAAA\n\nline\n"
KEYS = {
    "rsa": ("rsa", "-pkeyopt", "rsa_keygen_bits:2048"),
    "p256": ("ec", "-pkeyopt", "ec_paramgen_curve:P-256"),
    "p384": ("ec", "-pkeyopt", "ec_paramgen_curve:P-384"),
}
JUDGE = """async cases => {
    const bytes = text => Uint8Array.from(atob(text), letter => letter.charCodeAt(0));
    const found = [];
    for (const [token, note, authority] of cases) {
        try { found.push("verified " + await timeStamps.time(bytes(token), bytes(note), authority)); }
        catch (error) {
            const { Wrong, Untold } = proofFormats;
            found.push((error instanceof Untold ? "untold: " : error instanceof Wrong ? "wrong: " : "fault: ") + error.message);
        }
    }
    return found;
}"""
FLIPS = """async ([token, note, authority]) => {
    const bytes = text => Uint8Array.from(atob(text), letter => letter.charCodeAt(0));
    const [whole, over, found] = [bytes(token), bytes(note), []];
    for (let at = 0; at < whole.length; at += 1) {
        const changed = whole.slice();
        changed[at] ^= 1 << (at % 8);
        try { await timeStamps.time(changed, over, authority); found.push([at, "verified"]); }
        catch (error) {
            if (!(error instanceof proofFormats.Wrong || error instanceof proofFormats.Untold)) found.push([at, String(error)]);
        }
    }
    return found;
}"""


class Desk:
    """A root, and a signer under it; each stamp is what `openssl ts` grants."""

    def __init__(self, root: Path, kind: str) -> None:
        self.root = root
        root.mkdir()
        (root / "conf").write_text(CONFIG.format(root=root))
        (root / "serial").write_text("01\n")
        key = ["-newkey", *KEYS[kind], "-nodes", "-config", "conf"]
        openssl(root, "req", "-new", *key, "-x509", "-days", "3650", "-subj", "/CN=root", "-extensions", "ca", "-keyout", "ca.key",
                "-out", "ca.pem")  # fmt: skip
        openssl(root, "req", "-new", *key, "-subj", "/CN=tsa", "-keyout", "tsa.key", "-out", "tsa.csr")
        self.certify()

    def certify(
        self,
        name: str = "tsa",
        *,
        purpose: Any = OID.TIME_STAMPING,
        critical: bool = True,
        days: tuple[int, int] = (-1, 9),
    ) -> bytes:
        """A certificate of the signer's key, number 7 in all cases; DER."""
        ca = x509.load_pem_x509_certificate(self.ca.encode())
        keys: Any = [load_pem_private_key((self.root / f"{who}.key").read_bytes(), None) for who in ("ca", "tsa")]
        now = datetime.now(UTC).replace(microsecond=0)
        made = x509.CertificateBuilder(
            ca.subject, x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)]), keys[1].public_key(), 7
        )
        made = made.not_valid_before(now + timedelta(days[0])).not_valid_after(now + timedelta(days[1]))
        made = made.add_extension(x509.ExtendedKeyUsage([purpose]), critical=critical)
        found = made.sign(keys[0], SHA256())
        (self.root / "tsa.pem").write_bytes(found.public_bytes(Encoding.PEM))
        return found.public_bytes(Encoding.DER)

    @property
    def ca(self) -> str:
        return (self.root / "ca.pem").read_text()

    def stamp(self, note: bytes = NOTE) -> bytes:
        (self.root / "note").write_bytes(note)
        openssl(self.root, "ts", "-query", "-data", "note", "-sha256", "-cert", "-out", "q.tsq")
        reply = ("-config", "conf", "-section", "one", "-queryfile", "q.tsq", "-signer", "tsa.pem", "-inkey", "tsa.key")
        openssl(self.root, "ts", "-reply", *reply, "-out", "r.tsr")
        return (self.root / "r.tsr").read_bytes()

    def stamp_pss(self) -> bytes:
        """What `openssl ts` cannot make: the same time, signed as RSA-PSS by `openssl cms`."""
        self.stamp()
        openssl(self.root, "ts", "-reply", "-in", "r.tsr", "-token_out", "-out", "token")
        openssl(self.root, "cms", "-verify", "-noverify", "-inform", "DER", "-in", "token", "-out", "time", "-binary")
        how = (
            "-econtent_type",
            "1.2.840.113549.1.9.16.1.4",
            "-nodetach",
            "-binary",
            "-cades",
            "-nosmimecap",
            "-md",
            "sha256",
        )
        openssl(self.root, "cms", "-sign", "-in", "time", *how, "-signer", "tsa.pem", "-inkey", "tsa.key", "-keyopt",
                "rsa_padding_mode:pss", "-keyopt", "rsa_pss_saltlen:32", "-outform", "DER", "-out", "pss")  # fmt: skip
        body = bytes.fromhex("3003020100") + (self.root / "pss").read_bytes()
        return b"\x30\x82" + len(body).to_bytes(2, "big") + body

    def swapped(self, token: bytes, held: bytes, **how: Any) -> bytes:
        """The token with another certificate of the same length for the same key (an ECDSA signature's length varies)."""
        other = next(one for one in (self.certify(**how) for _ in range(200)) if len(one) == len(held))
        return token.replace(held, other)


def b64(raw: bytes) -> str:
    return base64.b64encode(raw).decode()


def by_python(token: bytes, note: bytes, ca: str) -> str:
    check = stamps_under(ca.encode())
    assert check is not None
    try:
        return f"verified {check(token, note) // 1000}"
    except BadEvidence:
        return "refused"


@pytest.fixture(scope="module")
def desks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Desk]]:
    root = tmp_path_factory.mktemp("desks")
    yield {kind: Desk(root / kind, kind) for kind in KEYS}


def judged(visit: Visit, *cases: tuple[bytes, bytes, str]) -> list[str]:
    visit.page.goto(f"{visit.address}/verify")
    found: list[str] = visit.page.evaluate(JUDGE, [[b64(token), b64(note), ca] for token, note, ca in cases])
    return found


def test_what_is_granted_is_verified_with_the_time_that_python_reads(visit: Visit, desks: dict[str, Desk]) -> None:
    """RSA and both curves; then two roots in one file, as when an authority has got another."""
    cases = [(desk.stamp(), NOTE, desk.ca) for desk in desks.values()]
    cases.append((desks["rsa"].stamp(), NOTE, desks["p256"].ca + desks["rsa"].ca))
    found = judged(visit, *cases)
    assert found == [by_python(*case) for case in cases]
    assert all(one.startswith("verified ") for one in found)


def test_pss_is_verified_and_not_with_another_salt(visit: Visit, desks: dict[str, Desk]) -> None:
    """A salt of another length than the token names is another signature. Python has no PSS: it refuses a sound one too."""
    desk = desks["rsa"]
    token = desk.stamp_pss()
    salt = bytes.fromhex("a203020120")
    assert token.count(salt) == 1
    other = token.replace(salt, bytes.fromhex("a20302011f"))
    right, wrong, spoiled = judged(
        visit, *((one, NOTE, desk.ca) for one in (token, other, token[:-1] + bytes([token[-1] ^ 1])))
    )
    assert right.startswith("verified ")
    assert by_python(token, NOTE, desk.ca) == "refused"
    assert wrong == spoiled == "wrong: Its signature does not verify."


def test_each_planted_fault_is_refused_by_both(visit: Visit, desks: dict[str, Desk], tmp_path: Path) -> None:
    rsa, other, namesake = desks["rsa"], desks["p256"], Desk(tmp_path / "namesake", "p256")
    token = rsa.stamp()
    cases = {
        "another imprint": ((token, NOTE + b"x", rsa.ca), "wrong: It is over other bytes."),
        "trailing bytes": ((token + b"\0", NOTE, rsa.ca), "wrong: It is not DER"),
        "a cut token": ((token[:-1], NOTE, rsa.ca), "wrong: It is not DER"),
        "nothing": ((b"", NOTE, rsa.ca), "wrong: It is not DER"),
        "the signature's last bit": ((token[:-1] + bytes([token[-1] ^ 1]), NOTE, rsa.ca), "wrong: Its signature does not verify."),
        "another authority of the same name": ((other.stamp(), NOTE, namesake.ca), "wrong: A certificate of it is not signed by"),
        "one whose key is of another kind": ((token, NOTE, other.ca), "untold: "),
        "a signer that is given and no root": ((token, NOTE, (rsa.root / "tsa.pem").read_text()), "untold: It leads to another"),
        "no certificate": ((token, NOTE, "nothing"), "untold: The authority"),
    }  # fmt: skip
    found = judged(visit, *(case for case, _ in cases.values()))
    for (name, (case, due)), said in zip(cases.items(), found, strict=True):
        assert said.startswith(due), (name, said)
        if "BEGIN" in case[2]:
            assert by_python(*case) == "refused", name


def test_a_certificate_that_is_out_of_date_or_for_something_else(visit: Visit, tmp_path: Path) -> None:
    """`openssl ts` stamps with one that has ended; for the others a sound token's certificate is exchanged."""
    desk = Desk(tmp_path / "desk", "p256")
    held = desk.certify()
    sound = desk.stamp()
    cases = {
        "purpose": (desk.swapped(sound, held, purpose=OID.SERVER_AUTH), "wrong: Its signer's certificate is not"),
        "not critical": (
            desk.swapped(sound, held, name="tsaxxx", critical=False),
            "wrong: Its signer's certificate is not",
        ),
        "exchanged": (desk.swapped(sound, held, days=(-2, 9)), "wrong: It names another certificate"),
    }
    for name, days in {"ended": (-9, -1), "not begun": (1, 9)}.items():
        desk.certify(days=days)
        cases[name] = (desk.stamp(), "wrong: A certificate of it was not valid")
    found = judged(visit, *((token, NOTE, desk.ca) for token, _ in cases.values()))
    for (name, (token, due)), said in zip(cases.items(), found, strict=True):
        assert said.startswith(due), (name, said)
        assert name == "exchanged" or by_python(token, NOTE, desk.ca) == "refused", name


def test_no_bit_of_a_token_can_be_changed(visit: Visit, desks: dict[str, Desk]) -> None:
    """One in each byte; none of them is a fault of the program either."""
    visit.page.goto(f"{visit.address}/verify")
    desk = desks["p256"]
    assert visit.page.evaluate(FLIPS, [b64(desk.stamp()), b64(NOTE), desk.ca]) == []


@dataclass
class Stamped(Story):
    """Three records in a log that nobody witnesses, and that an authority stamps before and after them."""

    desk: Desk = field(kw_only=True)

    def __post_init__(self) -> None:
        roots = x509.load_pem_x509_certificates(self.desk.ca.encode())
        self.stamped = lambda token, note: verified(token, note, roots)
        self.leaves += [b"other %d" % at for at in range(4)]
        token = self.desk.stamp(first := self.note(4))
        self.claimed = verified(token, first, roots)
        self.leaves.append(time_leaf(first, [token]))
        self.record(1, ZEROS, None)
        self.index = self.record(2, self.digest(0), 6)
        self.record(3, self.digest(1), 6)
        second = self.note(8)
        self.leaves += [time_leaf(second, [self.desk.stamp(second)]), b"the last"]

    def given(self) -> Given:
        given = super().given()
        proof = Proof.parse(bytes(given["proof"]))  # type: ignore[arg-type]
        return given | {
            "proof": replace(proof, checkpoint=self.note(len(self.leaves))).encode(),
            "authority": self.desk.ca,
        }


def test_both_ends_of_a_records_time_by_stamps_alone(visit: Visit, desks: dict[str, Desk]) -> None:
    """Under the authority that is given, with no policy or with one whose witnesses saw nothing; never without it."""
    visit.page.goto(f"{visit.address}/verify")
    story = Stamped(desk=desks["p256"])
    given = story.given()
    told = f"Not before {story.claimed:%Y-%m-%dT%H:%M:%SZ}, by a time stamp (RFC 3161). Not after "
    for policy, witnesses in (("", UNTOLD), (story.policy, "unwitnessed")):
        states, said = checked(visit, given | {"policy": policy})
        assert states == ALL | {"witnesses": witnesses}, said
        assert told in said["time"] and said["time"].count("by a time stamp") == 2
    states, said = checked(visit, given | {"authority": ""})
    assert states["time"] == UNTOLD
    assert "A time stamp (RFC 3161) is not checked: No certificate of its authority is given." in said["time"]

    def spoiled(said: dict[str, Any]) -> None:
        token = bytearray(base64.b64decode(said["after"]["tokens"][0]))
        token[-1] ^= 1
        said["after"]["tokens"] = [b64(bytes(token))]

    states, said = checked(visit, given | dict(in_times(spoiled)(story)))
    assert states["time"] == "wrong" and said["time"].startswith("Time stamp 1 (RFC 3161) over a checkpoint is wrong.")


def test_a_records_page_brings_its_servers_authority_and_says_so(browser: Browser, tmp_path: Path) -> None:
    """Under the page's own policy of content; nothing vouches for an authority but who gives it."""
    with (
        stamping(tmp_path / "tsa") as desk,
        on_loopback(tmp_path, tsa_url=desk.url, tsa_ca_file=desk.ca_file) as (address, served),
    ):
        visit = Visit(browser, address)
        page = visit.sign_in()
        page.goto(address + path_of(served))
        pressed(page)
        expect(page.locator('[data-line="time"]')).to_contain_text("by a time stamp (RFC 3161)")
        expect(page.locator("[data-verdict]")).to_contain_text("Whom to believe for a time stamp came from this server")
        visit.context.close()
        assert visit.complaints == []
