"""The whole product in one place: a server, simulated clinic hosts that drift and heal, and this very machine observed.

The server is the real one in its own process. Each simulated clinic runs the real agent with its real key, database, queue
and HTTP client; only the machine under it is the fake of lab/host.py, which drifts as lab/drift.py says. This machine is looked
at by the same agent with `mode: audit`, so that nothing on it is changed.

A witness of its own cosigns what the server publishes. Everything stands in one directory: `server/`, `witness/`,
`hosts/<host_id>/{agent.yaml,baseline.yaml,state/,evidence/,keys/}`.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import json
import os
import random
import re
import secrets
import signal
import socket
import sys
from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping, MutableMapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

import structlog

from compliance_agent.adapters.clock import SystemClock
from compliance_agent.adapters.durable import make_directory, write_file
from compliance_agent.adapters.subprocess_host import RealHost
from compliance_agent.agent import ComplianceAgent
from compliance_agent.baseline import load
from compliance_agent.config import AgentConfig
from compliance_agent.core import order_keys
from compliance_agent.crypto import Ed25519Signer
from compliance_agent.drift import DriftDetector
from compliance_agent.enrolment import enrol, read_token, save
from compliance_agent.errors import Unavailable
from compliance_agent.healing import HealingEngine
from compliance_agent.lab import drift as synthetic
from compliance_agent.lab.clinic import healthy_host
from compliance_agent.lab.demo_witness import DemoWitness
from compliance_agent.lab.host import FakeHost
from compliance_agent.log.fields import to_base64
from compliance_agent.transport.http import HttpTransport

if TYPE_CHECKING:
    from compliance_agent.server.desks import Services

CLINICS = (
    "riverside",
    "hillside",
    "lakeside",
    "parkview",
    "northgate",
    "oldtown",
    "seaview",
    "meadow",
    "westend",
    "harbour",
)
CLIENT = "demo-msp"
DEPUTY = "demo-deputy"
THIS_MACHINE = "this-machine"
POLL_S = 1
THIS_MACHINE_POLL_S = 15
SERVER_START_S = 30.0
WITH_A_RIGHT_CLOCK = {"backup_stale": "backup_timer_stopped"}
SEEN_EVENTS = (
    "drift.found",
    "heal.finished",
    "verdict.changed",
    "evidence.delivered",
    "receipts.verified",
    "log.contradicted",
    "demo.fault",
)

log = structlog.get_logger()


@dataclass(frozen=True)
class Event:
    """One line of the demo's story."""

    at: datetime
    host_id: str
    name: str
    keys: Mapping[str, Any]


class Feed:
    """The story so far: the agents' own log events, as they are logged. Each of `listeners` hears every one."""

    def __init__(self, most: int = 500) -> None:
        self.events: deque[Event] = deque(maxlen=most)
        self.listeners: list[Callable[[Event], None]] = []
        self._file: TextIO | None = None

    def install(self, log_file: Path) -> None:
        """Take every log event of this process: all into the file, the story also to the listeners."""
        make_directory(log_file.parent)
        self._file = log_file.open("a", encoding="utf-8", buffering=1)
        structlog.configure(
            processors=[
                structlog.contextvars.merge_contextvars,
                structlog.processors.add_log_level,
                structlog.processors.TimeStamper(fmt="iso", utc=True),
                self._take,
            ],
            cache_logger_on_first_use=False,
        )

    def _take(self, _logger: Any, _method: str, entry: MutableMapping[str, Any]) -> str:
        if self._file is not None:
            self._file.write(json.dumps(entry, default=str) + "\n")
        name = str(entry.pop("event", ""))
        if name in SEEN_EVENTS:
            event = Event(datetime.now(UTC), str(entry.pop("host_id", "")), name, dict(entry))
            self.events.append(event)
            for listener in self.listeners:
                listener(event)
        raise structlog.DropEvent


@dataclass
class DemoHost:
    """One host of the demo: its directory, its agent, and the simulated machine (None for this very machine)."""

    host_id: str
    site_id: str
    directory: Path
    machine: FakeHost | None
    agent: ComplianceAgent
    task: asyncio.Task[None] | None = None
    injected: list[str] = field(default_factory=list)
    healed: list[str] = field(default_factory=list)
    receipted: int = 0

    @property
    def key_id(self) -> str:
        """The host's identity at the server."""
        return str(self.agent.signer.key_id)

    def unmet(self) -> list[str]:
        """Checks that did not pass when this host was last looked at."""
        return [result.check for result in self.agent.latest if result.result != "pass"]


class Demo:
    """Builds the scene in a directory, plays it, and takes it down again.

    Args:
        directory: where everything is written.
        hosts: simulated clinic hosts.
        seed: decides which host drifts how, and when.
        port: of the server; a free one when 0.
        observe_this_machine: also run an audit-only agent over the real machine.
    """

    def __init__(
        self, directory: Path, *, hosts: int = 3, seed: int = 1, port: int = 0, observe_this_machine: bool = True
    ) -> None:
        self.directory = directory
        self.seed = seed
        self.feed = Feed()
        self.feed.listeners.append(self._note)
        self.hosts: list[DemoHost] = []
        self.speaks_mcp = importlib.util.find_spec("mcp") is not None  # the extra
        self._count = hosts
        self._port = port or _free_port()
        self._with_this_machine = observe_this_machine
        self._server: asyncio.subprocess.Process | None = None
        self.witness = DemoWitness(directory / "witness", _command)
        self._began = datetime.now(UTC)
        self._rng = random.Random(seed)  # a repeatable scene

    @property
    def url(self) -> str:
        """Where the viewer is."""
        return f"http://127.0.0.1:{self._port}"

    @property
    def password(self) -> str:
        """The first user's password, as the server wrote it."""
        return (self.directory / "server" / "admin-password").read_text("ascii").strip()

    async def build(self) -> None:
        """Start the server, enrol every host and start its agent.

        Raises:
            Unavailable: the server did not come up.
        """
        make_directory(self.directory)
        names = [_clinic(number) for number in range(self._count)]
        sites = [f"{name}-clinic" for name in names] + ([THIS_MACHINE] if self._with_this_machine else [])
        make_directory(self.directory / "server")
        await self.witness.start(self.directory / "server" / "keys", sites)
        await self._start_server()
        await self._make_tokens(sites)
        for number, name in enumerate(names):
            machine = healthy_host(self.seed * 1_000 + number, SystemClock())
            self.hosts.append(await self._add_host(f"{name}-01", f"{name}-clinic", machine))
        if self._with_this_machine:
            self.hosts.append(await self._add_host(THIS_MACHINE, THIS_MACHINE, None))

    async def start(self) -> None:
        """Let every agent run."""
        for host in self.hosts:
            host.task = asyncio.create_task(self._live(host))

    async def stop(self) -> None:
        """Stop the agents, then the server; both drain first."""
        for host in self.hosts:
            host.agent.shutdown_event.set()
        await asyncio.gather(*(host.task for host in self.hosts if host.task is not None), return_exceptions=True)
        if self._server is not None and self._server.returncode is None:
            self._server.send_signal(signal.SIGTERM)
            try:
                async with asyncio.timeout(10):
                    await self._server.wait()
            except TimeoutError:
                self._server.kill()
                await self._server.wait()
        await self.witness.stop()

    async def operator_token(self) -> str:
        """A short-lived token for scripts, made as an operator makes one."""
        async with self._desk() as services:
            secret, _ = await services.users.tokens.create("admin", timedelta(hours=1))
            return secret

    async def order_a_look(self, host: DemoHost) -> str:
        """Have one check of a host looked at by a signed order, as two people's tools do it; the order's id."""
        from compliance_agent.core import orders
        from compliance_agent.server.services.orders import Wanted

        signer = Ed25519Signer(self._order_key)
        async with self._desk() as services:
            admin = await services.store.user("admin")
            assert admin is not None  # noqa: S101  the server made it at its start
            reader, desk = await services.users.reader(admin), services.orders
            row = await desk.draft(admin, reader, Wanted(host.key_id, "check", {"checks": ["time_sync"]}))
            await desk.approve(admin, reader, row.order_id)
            row = await desk.prepare(admin, reader, row.order_id, [signer.key_id])
            signature = orders.sign(row.payload or b"", signer)
            await desk.add_signature(admin, reader, row.order_id, signer.public_bytes, signature)
        return row.order_id

    async def program_token(self) -> str:
        """A token for a program: it may look and draft, and nothing else, for an hour."""
        async with self._desk() as services:
            secret, _ = await services.users.tokens.create("admin", timedelta(hours=1), role="proposer")
            return secret

    async def order_states(self) -> dict[str, str]:
        """Every order and where it stands."""
        async with self._desk() as services:
            reader = services.store.for_sites(await services.store.all_sites())
            return {row.order_id: row.state for row in await reader.orders()}

    async def agree(self, order_id: str) -> None:
        """Two people approve a draft, and two keys sign it."""
        from compliance_agent.core import orders

        signers = [Ed25519Signer(self._order_key), Ed25519Signer(self._deputy_key)]
        async with self._desk() as services:
            deputy = await services.users.add(DEPUTY, secrets.token_urlsafe(24), role="operator")
            admin, desk = await services.store.user("admin"), services.orders
            assert admin is not None  # noqa: S101  the server made it at its start
            reader = await services.users.reader(admin)
            for person in (admin, deputy):
                await desk.approve(person, reader, order_id)
            row = await desk.prepare(admin, reader, order_id, [signer.key_id for signer in signers])
            for signer in signers:
                signature = orders.sign(row.payload or b"", signer)
                await desk.add_signature(admin, reader, order_id, signer.public_bytes, signature)

    @property
    def _order_key(self) -> Path:
        return self.directory / "operator" / "order-key.pem"

    @property
    def _deputy_key(self) -> Path:
        return self.directory / "operator" / "deputy-key.pem"

    def _order_keys(self) -> bytes:
        """Whose orders count on the simulated hosts."""
        entries = [
            {"name": name, "key": to_base64(Ed25519Signer(path).public_bytes), "kinds": ["check", "approve"]}
            for name, path in (("demo-operator", self._order_key), (DEPUTY, self._deputy_key))
        ]
        expires = (datetime.now(UTC) + timedelta(days=1)).strftime("%Y-%m-%dT%H:%M:%SZ")
        document = {"schema": order_keys.SCHEMA, "version": 1, "tenant": CLIENT, "expires": expires}
        return json.dumps({**document, "signers": entries, "thresholds": {}}).encode("ascii")

    def clinics(self) -> list[DemoHost]:
        """The simulated hosts."""
        return [host for host in self.hosts if host.machine is not None]

    def inject(self, host: DemoHost, fault: str) -> None:
        """Let a simulated host drift by a named fault."""
        if host.machine is None:
            raise RuntimeError("this machine is only observed")
        synthetic.FAULTS[fault].inject(host.machine)
        host.injected.append(fault)
        with structlog.contextvars.bound_contextvars(host_id=host.host_id):
            log.info("demo.fault", fault=fault, check_id=synthetic.FAULTS[fault].check)

    def curable_faults(self, host: DemoHost) -> list[str]:
        """One fault for each check that the agent can cure, chosen by seed and host."""
        rng = random.Random(f"{self.seed} {host.host_id}")
        by_check: dict[str, list[str]] = {}
        for name, fault in sorted(synthetic.FAULTS.items()):
            if fault.cure != "person":
                by_check.setdefault(fault.check, []).append(name)
        chosen = [rng.choice(names) for names in by_check.values()]
        # A backup that is taken while the clock is ahead is dated in the future, and what to do with it is a person's decision.
        return [WITH_A_RIGHT_CLOCK.get(name, name) if "clock_skewed" in chosen else name for name in chosen]

    def next_drift(self) -> tuple[DemoHost, str]:
        """Which host drifts next, and how; the same seed gives the same story."""
        return self._rng.choice(self.clinics()), self._rng.choice(sorted(synthetic.FAULTS))

    def _note(self, event: Event) -> None:
        host = next((host for host in self.hosts if host.host_id == event.host_id), None)
        if host is None:
            return
        if event.name == "heal.finished" and event.keys.get("outcome") == "success":
            host.healed.append(str(event.keys["check_id"]))
        if event.name == "receipts.verified":
            host.receipted += int(event.keys["count"])

    def pin_log_keys(self) -> None:
        """Put each site's log key beside its host's own, so that the host's directory can be verified whole, offline."""
        for host in self.hosts:
            for vkey in (self.directory / "server" / "keys").glob(f"{host.site_id}-*.vkey"):
                write_file(host.directory / "keys" / vkey.name, vkey.read_bytes(), 0o644)

    def unwitnessed(self) -> list[str]:
        """Sites whose published checkpoint the demo's witness has not cosigned."""
        from compliance_agent.log.policy import Policy
        from compliance_agent.server.log_files import LogFiles

        server, lines, lacking = self.directory / "server", self.witness.policy_file.read_text("utf-8"), []
        for site_id, year in LogFiles(server / "log").known():
            vkey = (server / "keys" / f"{site_id}-{year}.vkey").read_text("ascii").strip()
            note = LogFiles(server / "log").published(site_id, year) or b""
            if not Policy.parse(f"log {vkey}\n{lines}".encode()).verify(note).quorum_met:
                lacking.append(site_id)
        return lacking

    async def build_packets(self) -> list[Path]:
        """One auditor's packet for each site, of the days the demo ran, in `packets/`.

        Raises:
            NoInput: nothing of a site is in the log yet.
        """
        from compliance_agent.packet.build import build

        make_directory(self.directory / "packets")
        written = []
        for site in sorted({host.site_id for host in self.hosts}):
            out = self.directory / "packets" / f"{site}.zip"
            await build(self.directory / "server", site, self._began.date(), datetime.now(UTC).date(), out)
            written.append(out)
        return written

    async def _live(self, host: DemoHost) -> None:
        structlog.contextvars.bind_contextvars(host_id=host.host_id)
        await host.agent.start(handle_signals=False)

    async def _start_server(self) -> None:
        data_dir = self.directory / "server"
        make_directory(data_dir)
        environment = {key: value for key, value in os.environ.items() if not key.startswith("MSP_")}
        with (self.directory / "server.log").open("wb") as output:
            self._server = await asyncio.create_subprocess_exec(
                *_command("server", "--data-dir", str(data_dir), "--port", str(self._port)),
                stdin=asyncio.subprocess.DEVNULL, stdout=output, stderr=output,
                env={
                    **environment,
                    "MSP_SERVER_WITNESS_POLICY_FILE": str(self.witness.policy_file),
                    **({"MSP_SERVER_MCP": "propose", "MSP_SERVER_MCP_CALLS_PER_MIN": "0"} if self.speaks_mcp else {}),
                },
            )  # fmt: skip
        await self._until_ready(self._server)

    async def _until_ready(self, server: asyncio.subprocess.Process) -> None:
        transport = HttpTransport(self.url)
        try:
            async with asyncio.timeout(SERVER_START_S):
                while server.returncode is None:
                    with contextlib.suppress(Unavailable):
                        if (await transport.request("GET", "/readyz", timeout_s=5)).status == 200:
                            return
                    await asyncio.sleep(0.1)
        except TimeoutError:
            pass
        finally:
            await transport.close()
        raise Unavailable(f"the demo's server did not start; see {self.directory / 'server.log'}")

    @contextlib.asynccontextmanager
    async def _desk(self) -> AsyncIterator[Services]:
        """The server's own services over its data directory, as its subcommands use them beside the running server."""
        from compliance_agent.server.opening import opened
        from compliance_agent.server.settings import parse

        async with opened(parse(None, {}, data_dir=self.directory / "server")) as services:
            yield services

    async def _make_tokens(self, sites: Sequence[str]) -> None:
        async with self._desk() as services:
            for site in sites:
                token, _, _ = await services.enrolment.new_token(
                    site, CLIENT, timedelta(minutes=10), ca_sha256=None, actor="demo"
                )
                write_file(self._token_file(site), token.encode("ascii"), 0o600)

    def _token_file(self, site: str) -> Path:
        return self.directory / f"{site}.token"

    async def _add_host(self, host_id: str, site_id: str, machine: FakeHost | None) -> DemoHost:
        directory = self.directory / "hosts" / host_id
        make_directory(directory)
        config = await self._enrolled(directory, host_id, site_id, machine is None)
        clock = SystemClock()
        under = machine if machine is not None else RealHost()
        detector = DriftDetector(config, host=under, baseline=load(config.baseline_path), clock=clock)
        engine = HealingEngine(config, host=under, baseline=detector.baseline, observe=detector.check_one, clock=clock)
        agent = ComplianceAgent(config, drift_detector=detector, healing_engine=engine, clock=clock)
        return DemoHost(host_id, site_id, directory, machine, agent)

    async def _enrolled(self, directory: Path, host_id: str, site_id: str, this_machine: bool) -> AgentConfig:
        """Write the host's files, enrol it as `compliance-agent enrol` does, and read its configuration back."""
        from compliance_agent.cli.common import shipped_baseline

        baseline = shipped_baseline().read_bytes() if this_machine else _clinic_baseline()
        if this_machine:
            baseline = re.sub(rb"(?m)^mode: enforce", b"mode: audit", baseline, count=1)
        write_file(directory / "baseline.yaml", baseline, 0o644)
        write_file(directory / "order-keys.json", self._order_keys(), 0o644)
        write_file(
            directory / "agent.yaml", _agent_yaml(self.url, host_id, site_id, this_machine).encode("ascii"), 0o600
        )
        config = AgentConfig.from_file(directory / "agent.yaml", {})
        signer = Ed25519Signer(config.signing_key_file)
        write_file(directory / "keys" / f"{host_id}.pub.pem", signer.public_pem().encode("ascii"), 0o644)
        token_file = self._token_file(site_id)
        transport = HttpTransport(self.url)
        try:
            enrolled = await enrol(transport, signer, read_token(token_file), host_id)
        finally:
            await transport.close()
            token_file.unlink()
        assert config.mcp_api_key_file is not None and config.mcp_server_key_file is not None  # noqa: S101  written above
        save(enrolled, config.mcp_api_key_file, config.mcp_server_key_file)
        return config


def _clinic(number: int) -> str:
    name = CLINICS[number % len(CLINICS)]
    return name if number < len(CLINICS) else f"{name}-{number // len(CLINICS) + 1}"


def _clinic_baseline() -> bytes:
    """As shipped, but every check is looked at every second."""
    from importlib import resources

    shipped = (resources.files("compliance_agent") / "baselines" / "clinic-linux.yaml").read_bytes()
    return re.sub(rb"(?m)^    interval_s: \d+", b"    interval_s: 1", shipped)


def _command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "compliance_agent", *arguments]


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _agent_yaml(url: str, host_id: str, site_id: str, this_machine: bool) -> str:
    """A demo host's configuration: as shipped, but quick, and with a window that is always open."""
    return f"""\
client_id: {CLIENT}
site_id: {site_id}
host_id: {host_id}
state_dir: state
evidence_dir: evidence
baseline_path: baseline.yaml
signing_key_file: keys/signing-key.pem
mcp_url: {url}
mcp_api_key_file: keys/api-key
mcp_server_key_file: keys/server-key
witness_policy_file: ../../witness/witnesses.policy
mcp_poll_interval_sec: {THIS_MACHINE_POLL_S if this_machine else POLL_S}
order_keys_file: order-keys.json
heartbeat_interval_sec: 60
healing_cooldown_sec: 1
healing_budget_per_hour: 1000
flap_limit: 100
maintenance_window_start: "00:00"
maintenance_window_end: "00:00"
"""
