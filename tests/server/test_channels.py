"""The channels against servers of the real protocols, and against those that refuse, hang, cut or redirect."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email import message_from_bytes
from pathlib import Path
from typing import Any

import pytest
from aiosmtpd.smtp import SMTP, AuthResult, LoginPassword

from compliance_agent.errors import AgentError, ConfigError, Unavailable
from compliance_agent.server import channels, tls
from compliance_agent.server.channels import wire
from compliance_agent.server.channels.mail import Mail
from compliance_agent.server.channels.posts import PagerDuty, Slack, Webhook, signature
from compliance_agent.server.channels.syslog import Syslog, message
from compliance_agent.server.records.alarms import Alert, Cause, Delivery

pytestmark = pytest.mark.anyio
NOW = datetime(2026, 11, 28, 12, 0, tzinfo=UTC)
ALERT = Alert("a" * 32, Cause("fork", "clinic-1", "f" * 64), 2, NOW, NOW)
OPEN, CLOSE = (Delivery(number, "c", transition, ALERT) for number, transition in enumerate(("open", "close")))
SECRET = "0123456789abcdef"


@pytest.fixture(scope="module")
def identity(tmp_path_factory: pytest.TempPathFactory) -> tls.Identity:
    return tls.identity(tmp_path_factory.mktemp("tls"), {"localhost", "127.0.0.1"}, datetime.now(UTC))


@pytest.fixture
def ca(identity: tls.Identity) -> str:
    return str(identity.certificate.parent / "ca.pem")


@pytest.fixture
def server_tls(identity: tls.Identity) -> ssl.SSLContext:
    return tls.context(identity)


Talk = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@contextlib.asynccontextmanager
async def listening(talk: Talk, context: ssl.SSLContext | None = None) -> AsyncIterator[int]:
    tasks: set[asyncio.Task[Any] | None] = set()

    async def served(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        tasks.add(asyncio.current_task())
        with contextlib.suppress(ConnectionError, ssl.SSLError, asyncio.CancelledError):
            await talk(reader, writer)
        writer.close()

    server = await asyncio.start_server(served, "127.0.0.1", 0, ssl=context)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        for task in tasks:
            if task is not None:
                task.cancel()


@dataclass
class Web:
    """An HTTP server that notes requests and gives these answers."""

    answers: list[bytes] = field(default_factory=list)
    heads: list[dict[str, str]] = field(default_factory=list)
    lines: list[str] = field(default_factory=list)
    bodies: list[bytes] = field(default_factory=list)

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
        found = dict(line.lower().split(": ", 1) for line in head[1:] if line)
        self.lines.append(head[0])
        self.heads.append(found)
        self.bodies.append(await reader.readexactly(int(found["content-length"])))
        writer.write(self.answers.pop(0) if self.answers else b"HTTP/1.1 202 Accepted\r\ncontent-length: 2\r\n\r\n{}")
        await writer.drain()


async def test_a_webhook_is_signed_over_time_and_body(ca: str, server_tls: ssl.SSLContext) -> None:
    web = Web()
    async with listening(web, server_tls) as port:
        hook = Webhook("msp", True, f"https://localhost:{port}/in?x=1", SECRET, ca, clock=lambda: 1_795_000_000.7)
        await hook.send(OPEN)
        await hook.send(CLOSE)
    assert web.lines == ["POST /in?x=1 HTTP/1.1"] * 2
    for head, body, delivery in zip(web.heads, web.bodies, (OPEN, CLOSE), strict=True):
        assert head["x-compliance-delivery"] == delivery.id
        stamp = head["x-compliance-timestamp"]
        assert stamp == "1795000000"
        assert head["x-compliance-signature"] == f"v1={signature(SECRET.encode(), stamp, body)}"
        assert head["x-compliance-signature"] != f"v1={signature(SECRET.encode(), stamp, body + b' ')}"
        assert head["x-compliance-signature"] != f"v1={signature(SECRET.encode(), '1795000001', body)}"
    said = json.loads(web.bodies[0])
    assert (said["kind"], said["transition"], said["count"], said["closed_at"]) == ("fork", "open", 2, None)
    assert json.loads(web.bodies[1])["closed_at"] == "2026-11-28T12:00:00.000000Z"


async def test_pagerduty_is_triggered_and_resolved_under_one_key() -> None:
    web = Web()
    async with listening(web) as port:
        pager = PagerDuty("msp", True, "routing", f"http://127.0.0.1:{port}/v2/enqueue")
        await pager.send(OPEN)
        await pager.send(CLOSE)
    first, second = map(json.loads, web.bodies)
    assert (first["event_action"], second["event_action"]) == ("trigger", "resolve")
    assert first["dedup_key"] == second["dedup_key"] == ALERT.alert_id and first["routing_key"] == "routing"
    assert first["payload"]["severity"] == "critical" and first["payload"]["source"] == "msp"
    assert "payload" not in second


async def test_slack_gets_one_line() -> None:
    web = Web()
    async with listening(web) as port:
        await Slack("msp", True, f"http://127.0.0.1:{port}/services/T/B/x").send(OPEN)
    [body] = web.bodies
    assert json.loads(body)["text"].startswith("[msp] fork began: site clinic-1 host ffffffffffffffff count 2")
    assert OPEN.id in json.loads(body)["text"]


async def _hang(reader: asyncio.StreamReader, _writer: asyncio.StreamWriter) -> None:
    await reader.read()
    await asyncio.Event().wait()


async def _cut(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.read(10)
    writer.transport.abort()


async def _half_close(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.read(10)
    writer.write(b"HTTP/1.1 200 O")
    writer.write_eof()
    await reader.read()


async def _nonsense(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.read(10)
    writer.write(b"220 mail ready\r\n" * 3)
    await writer.drain()
    await reader.read()


async def _huge_head(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.read(10)
    writer.write(b"HTTP/1.1 200 OK\r\nx: " + b"y" * 2_000_000)
    await writer.drain()
    await reader.read()


FAULTS: dict[str, tuple[Talk, str]] = {
    "hangs": (_hang, "timed_out"),
    "cuts": (_cut, "cut|bad_reply"),
    "half-closes": (_half_close, "cut|bad_reply"),
    "speaks something else": (_nonsense, "bad_reply|timed_out"),
    "answers without end": (_huge_head, "bad_reply|cut"),
    "fails": (Web([b"HTTP/1.1 500 No\r\ncontent-length: 0\r\n\r\n"]), "status_500"),
    "redirects": (Web([b"HTTP/1.1 307 No\r\nlocation: http://127.0.0.1/\r\ncontent-length: 0\r\n\r\n"]), "status_307"),
    "asks to wait": (Web([b"HTTP/1.1 429 No\r\nretry-after: 5\r\ncontent-length: 0\r\n\r\n"]), "status_429"),
}


@pytest.mark.parametrize("fault", FAULTS)
async def test_what_is_not_taken_is_not_called_taken(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wire, "DEADLINE_S", 0.5)
    talk, code = FAULTS[fault]
    async with listening(talk) as port:
        with pytest.raises(AgentError) as caught:
            await Webhook("msp", True, f"http://127.0.0.1:{port}/", SECRET).send(OPEN)
    assert re.fullmatch(code, caught.value.code)


async def test_nobody_listening_is_refused() -> None:
    async with listening(_cut) as port:
        pass
    for channel in (
        Webhook("msp", True, f"http://127.0.0.1:{port}/", SECRET),
        Syslog("msp", True, "127.0.0.1", port, tls=False),
        Mail("msp", True, "127.0.0.1", "a@b.example", "c@d.example", port, starttls=False),
    ):
        with pytest.raises(Unavailable) as caught:
            await channel.send(OPEN)
        assert caught.value.code == "cut"


async def test_a_certificate_of_another_name_or_authority_is_refused(ca: str, server_tls: ssl.SSLContext) -> None:
    web = Web()
    async with listening(web, server_tls) as port:
        for channel in (
            Webhook("msp", True, f"https://localhost:{port}/", SECRET),  # the system does not know our authority
            Webhook("msp", True, f"https://127.0.0.2:{port}/", SECRET, ca),
            Syslog("msp", True, "localhost", port),
        ):
            with pytest.raises(Unavailable) as caught:
                await channel.send(OPEN)
            assert caught.value.code in {"tls_failed", "cut"}
    assert web.bodies == []


# --- where they must not connect ------------------------------------------------------------------


@pytest.mark.parametrize(
    "host",
    ["127.0.0.1", "localhost", "[::1]", "169.254.169.254", "10.1.2.3", "192.168.0.1", "100.64.0.1", "0.0.0.0",
     "[::ffff:10.0.0.1]", "[fd00::1]", "[fe80::1]", "224.0.0.1", "[2002:0a00:0001::1]", "0x7f.1", "2130706433"],
)  # fmt: skip
async def test_no_private_address_is_connected_to(host: str, monkeypatch: pytest.MonkeyPatch) -> None:
    async def never(*_arguments: object, **_options: object) -> None:
        raise AssertionError("connected")

    monkeypatch.setattr(asyncio, "open_connection", never)
    with pytest.raises(Unavailable) as caught:
        await Webhook("msp", False, f"https://{host}/", SECRET).send(OPEN)
    assert caught.value.code in {"private_address", "unknown_name"}
    assert caught.value.code == "private_address" or host in {"[fe80::1]"}


async def test_a_name_is_looked_up_once_and_every_address_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    """A name server that says something public first, and something private later, leads nowhere else."""
    answers = [["93.184.216.34"], ["127.0.0.1"], ["93.184.216.34", "10.0.0.1"]]
    connected: list[str] = []

    async def resolve(_loop: object, _host: str, port: int, **_options: object) -> list[Any]:
        return [(2, 1, 6, "", (address, port)) for address in answers.pop(0)]

    async def connect(host: str, *_arguments: object, **options: object) -> None:
        connected.append(f"{host} as {options['server_hostname']}")
        raise ConnectionRefusedError

    monkeypatch.setattr(type(asyncio.get_running_loop()), "getaddrinfo", resolve)
    monkeypatch.setattr(asyncio, "open_connection", connect)
    hook = Webhook("msp", False, "https://hooks.example/", SECRET)
    codes = []
    for _ in range(3):
        with pytest.raises(Unavailable) as caught:
            await hook.send(OPEN)
        codes.append(caught.value.code)
    assert codes == ["cut", "private_address", "private_address"]
    assert connected == ["93.184.216.34 as hooks.example"]


# --- syslog ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("secure", [True, False])
async def test_syslog_is_framed_by_octets(ca: str, server_tls: ssl.SSLContext, secure: bool) -> None:
    came: list[bytes] = []

    async def receive(reader: asyncio.StreamReader, _writer: asyncio.StreamWriter) -> None:
        length = int(await reader.readuntil(b" "))
        came.append(await reader.readexactly(length))
        assert await reader.read(1) == b"" if not secure else True

    async with listening(receive, server_tls if secure else None) as port:
        await Syslog("msp", True, "localhost", port, secure, ca if secure else None).send(OPEN)
        await asyncio.sleep(0.05)
    assert came == [message(OPEN, "msp")]
    found = re.fullmatch(
        r"<106>1 (\S+Z) msp compliance-server - fork \[compliance@32473((?: \w+=\"[^\"]*\")+)\] (.*)", came[0].decode()
    )
    assert found is not None and f'delivery_id="{OPEN.id}"' in found[2] and found[1].startswith("2026-11-28T12")


# --- mail -----------------------------------------------------------------------------------------


@dataclass
class Letters:
    """What an SMTP server was handed."""

    came: list[tuple[list[str], bytes]] = field(default_factory=list)
    answer: str = "250 OK"

    async def handle_DATA(self, _server: Any, _session: Any, envelope: Any) -> str:
        if self.answer.startswith("250"):
            self.came.append((envelope.rcpt_tos, envelope.content))
        return self.answer


@contextlib.asynccontextmanager
async def mailing(letters: Letters, context: ssl.SSLContext | None = None, **options: Any) -> AsyncIterator[int]:
    loop = asyncio.get_running_loop()
    made = lambda: SMTP(letters, tls_context=context, require_starttls=context is not None, loop=loop, **options)  # noqa: E731
    server = await loop.create_server(made, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()


def authenticate(_server: Any, _session: Any, _envelope: Any, _mechanism: str, data: Any) -> AuthResult:
    assert isinstance(data, LoginPassword)
    return AuthResult(success=(data.login, data.password) == (b"msp", SECRET.encode()), handled=False)


async def test_mail_goes_over_starttls_with_a_login(ca: str, server_tls: ssl.SSLContext) -> None:
    letters = Letters()
    async with mailing(letters, server_tls, authenticator=authenticate, auth_required=True) as port:
        given = ("localhost", "msp@msp.example", "a@clinic.example b@clinic.example", port)
        await Mail("msp", True, *given, user="msp", password_file=SECRET, ca_file=ca).send(OPEN)
        for wrong, code in (
            ({"user": "msp", "password_file": "wrong" * 4, "ca_file": ca}, "smtp_535"),
            ({"user": "msp", "password_file": SECRET}, "tls_failed"),
            ({"starttls": False}, "smtp_530"),
        ):
            options: dict[str, Any] = dict(wrong)
            with pytest.raises(Unavailable) as caught:
                await Mail("msp", True, *given, **options).send(OPEN)
            assert caught.value.code == code
    [(to, raw)] = letters.came
    letter = message_from_bytes(raw)
    assert to == ["a@clinic.example", "b@clinic.example"]
    assert letter["Message-ID"] == f"<{OPEN.id}@msp>" and letter["Auto-Submitted"] == "auto-generated"
    assert letter["Subject"].replace("\n", "").startswith("[msp] fork began")
    assert "count: 2" in letter.get_payload()


@pytest.mark.parametrize(("answer", "code"), [("451 later", "smtp_451"), ("554 no", "smtp_554")])
async def test_a_mail_server_that_refuses_is_not_called_a_success(answer: str, code: str) -> None:
    letters = Letters(answer=answer)
    async with mailing(letters) as port:
        with pytest.raises(Unavailable) as caught:
            await Mail("msp", True, "127.0.0.1", "a@b.example", "c@d.example", port, starttls=False).send(OPEN)
    assert caught.value.code == code and letters.came == []


# --- the file -------------------------------------------------------------------------------------


def written(tmp_path: Path, text: str) -> Path:
    for name in ("secret", "short"):
        (tmp_path / name).write_text(SECRET if name == "secret" else "x")
        (tmp_path / name).chmod(0o600)
    path = tmp_path / "alerts.yaml"
    path.write_text(text.replace("DIR", str(tmp_path)))
    path.chmod(0o600)
    return path


def test_one_of_each_kind_is_read(tmp_path: Path, ca: str) -> None:
    text = f"""channels:
  - {{name: mail, kind: smtp, host: mail.example, sender: msp@msp.example, to: a@b.example, user: u, password_file: DIR/secret}}
  - {{name: hook, kind: webhook, url: 'https://hooks.example/in', secret_file: DIR/secret, ca_file: '{ca}'}}
  - {{name: pager, kind: pagerduty, key_file: DIR/secret}}
  - {{name: siem, kind: syslog, host: 10.0.0.1, port: 601, tls: false, private: true}}
"""
    found = channels.read(written(tmp_path, text), "msp")
    assert [type(item) for item in found.values()] == [Mail, Webhook, PagerDuty, Syslog]
    assert list(found) == ["mail", "hook", "pager", "siem"]


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("[]", "channels"),
        ("channels: 1", "channels"),
        ("channels: [{kind: smtp}]", "name"),
        ("channels: [{name: a, kind: telegram}]", "kind"),
        ("channels: [{name: 'A b', kind: slack, url_file: DIR/secret}]", "name"),
        ("channels: [{name: a, kind: slack}]", "url_file"),
        ("channels: [{name: a, kind: pagerduty, key_file: DIR/none}]", "key_file"),
        ("channels: [{name: a, kind: webhook, url: 'https://x.example', secret_file: DIR/short}]", "secret_file"),
        ("channels: [{name: a, kind: webhook, url: 'http://x.example', secret_file: DIR/secret}]", "https"),
        ("channels: [{name: a, kind: webhook, url: 'https://u@x.example', secret_file: DIR/secret}]", "user"),
        ("channels: [{name: a, kind: webhook, url: 'https://x.example', secret_file: DIR/secret, x: y}]", "x"),
        ("channels: [{name: a, kind: syslog, host: h, tls: false}]", "private"),
        ("channels: [{name: a, kind: syslog, host: h, port: '1'}]", "port"),
        ("channels: [{name: a, kind: syslog, host: h}, {name: a, kind: syslog, host: h}]", "twice"),
        ("channels: [{name: a, kind: smtp, host: h, sender: x, to: y}]", "mail addresses"),
        ("channels: [{name: a, kind: smtp, host: h, sender: a@b.c, to: a@b.c, user: u}]", "password_file"),
        ("channels: [{name: a, kind: smtp, host: h, sender: a@b.c, to: a@b.c, starttls: false}]", "starttls"),
    ],
)
def test_a_file_that_cannot_be_used_names_what_is_wrong(tmp_path: Path, text: str, named: str) -> None:
    with pytest.raises(ConfigError) as caught:
        channels.read(written(tmp_path, text), "msp")
    assert named in str(caught.value) and SECRET not in str(caught.value)
