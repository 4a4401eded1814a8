"""The server's parts over its data directory: the real store, keys and clock, opened and closed; nothing that answers HTTP.

    async with opened(settings) as services: ...

Commands beside the server open this alone, and start in half the time: what answers requests (`app.py`) imports FastAPI.

The data directory: `server.db` (unless the settings name PostgreSQL), `keys/ack.pem` and `keys/ack.pub.pem` (what
acknowledgements are signed with), `keys/log.pem` and `keys/<site>-<year>.vkey` (what checkpoints are signed with),
`keys/witnesses.policy` and `keys/tsa-ca.pem` (copies, for packets), `keys/factors.key` (what second factors are sealed under),
`log/` (the logs as they are served) and `heads/` (the largest checkpoint ever signed of each) unless the settings name a bucket,
`replica` (the id of this directory), `tls/` when the server does TLS itself, `admin-password` (made at the first start, 0600).
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import fcntl
import os
import secrets
import socket
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import structlog

from compliance_agent.adapters.durable import create_file, make_directory, read_file, remove_file, write_file
from compliance_agent.crypto import Ed25519Signer
from compliance_agent.errors import AgentError, ConfigError, StorageError
from compliance_agent.log.policy import Policy
from compliance_agent.otlp import Otlp, sending
from compliance_agent.server import tls
from compliance_agent.server.channels import read as read_channels
from compliance_agent.server.cosigning import Cosigning, Intervals, policy_of
from compliance_agent.server.desks import Services
from compliance_agent.server.log_files import LogFiles
from compliance_agent.server.log_keys import MLDSA44_FILE, LogKeys, make_mldsa44
from compliance_agent.server.log_places import log_places
from compliance_agent.server.records import Clock
from compliance_agent.server.sequencer import Sequencer
from compliance_agent.server.services.access import HostAccess
from compliance_agent.server.services.alarms import Alarms
from compliance_agent.server.services.api_keys import ApiKeys
from compliance_agent.server.services.board import Board
from compliance_agent.server.services.certificates import Certificates
from compliance_agent.server.services.checkin import Checkin
from compliance_agent.server.services.duties import Duties
from compliance_agent.server.services.enrol import Enrolment
from compliance_agent.server.services.factors import Factors
from compliance_agent.server.services.fleet import Silence
from compliance_agent.server.services.ingest import Ingest
from compliance_agent.server.services.leases import Leases
from compliance_agent.server.services.limits import Quotas
from compliance_agent.server.services.oidc import Client as OidcClient
from compliance_agent.server.services.oidc import Oidc
from compliance_agent.server.services.order_trust import OrderTrustDesk
from compliance_agent.server.services.orders import OrderDesk
from compliance_agent.server.services.packets import Packets
from compliance_agent.server.services.pruning import Pruning
from compliance_agent.server.services.receipts import Receipts
from compliance_agent.server.services.retention import Holds
from compliance_agent.server.services.rotation import Rotations
from compliance_agent.server.services.sessions import Limits
from compliance_agent.server.services.tracing import Tracing
from compliance_agent.server.services.users import Users
from compliance_agent.server.services.verification import Verifier
from compliance_agent.server.services.watching import Watch, Watched, figures_of
from compliance_agent.server.settings import ServerSettings
from compliance_agent.server.store import Address, SqlStore
from compliance_agent.server.time_stamps import TimeStamps
from compliance_agent.transport.http import HttpTransport

if TYPE_CHECKING:
    from compliance_agent.server.provider_calls import ProviderCalls

ADMIN = "admin"
WITNESSES_FILE = "witnesses.policy"
FACTORS_KEY = "factors.key"
TSA_CA_FILE = "tsa-ca.pem"
REPLICA_FILE = "replica"
MAX_POLICY_BYTES = 65_536
ANY_LOG = "any/log/2026"  # where a policy is read for its witnesses alone
log = structlog.get_logger()


def utc_now() -> datetime:
    """The server's clock."""
    return datetime.now(UTC)


def database(settings: ServerSettings) -> Path | Address:
    """Where the database is: a file of ours, or PostgreSQL."""
    if settings.database is None:
        return settings.data_dir / "server.db"
    return Address(settings.database, password_of(settings.database_password_file))


def password_of(path: Path | None) -> str | None:
    """A password from its file, which nobody else may read.

    Raises:
        ConfigError: the file cannot be used.
    """
    if path is None:
        return None
    try:
        return read_file(path, limit_bytes=1_024, secret=True).decode("utf-8").removesuffix("\n")
    except (AgentError, UnicodeDecodeError) as error:
        raise ConfigError(f"database_password_file {path}: {error}") from error


def is_made(settings: ServerSettings) -> bool:
    """Whether the data directory holds a server."""
    where = database(settings)
    return where.is_file() if isinstance(where, Path) else (settings.data_dir / "keys" / "ack.pem").is_file()


def names_of(settings: ServerSettings) -> set[str]:
    """Every name and address under which the server's certificate must be valid."""
    names = {"localhost", "127.0.0.1", "::1", socket.gethostname()}
    if settings.host not in {"0.0.0.0", "::"}:  # noqa: S104  compared, not bound
        names.add(settings.host)
    if settings.public_url:
        names.add(urlsplit(settings.public_url).hostname or "localhost")
    return names


@contextlib.contextmanager
def only_server(directory: Path) -> Iterator[None]:
    """Hold the data directory: a second server on it would sign and sequence against the first.

    Raises:
        StorageError: another server runs on it.
    """
    handle = os.open(directory / "server.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise StorageError(
                f"{directory}: another server runs on this data directory", code="already_running"
            ) from error
        yield
    finally:
        os.close(handle)


@contextlib.asynccontextmanager
async def opened(
    settings: ServerSettings,
    clock: Clock = utc_now,
    verifier: Verifier | None = None,
    log_clock: Clock | None = None,
) -> AsyncIterator[Services]:
    """The services over the data directory, which is made when it is new; closed at the end."""
    make_directory(settings.data_dir)
    signer = Ed25519Signer(settings.data_dir / "keys" / "ack.pem")
    public = settings.data_dir / "keys" / "ack.pub.pem"
    if not public.exists():
        write_file(public, signer.public_pem().encode(), 0o644)
    authority = tls.identity(settings.data_dir / "tls", names_of(settings), clock()).ca_pem if settings.tls else None
    certifies = settings.tls_client_certificates == "required"
    verifier = verifier or Verifier()
    if settings.log_mldsa44:
        make_mldsa44(settings.data_dir / "keys" / MLDSA44_FILE)
    keys, board = LogKeys(settings.data_dir / "keys"), Board()
    files, heads = await asyncio.to_thread(log_places, settings, clock)
    channels = read_channels(settings.alerts_file, settings.name) if settings.alerts_file is not None else {}
    store = await SqlStore.open(database(settings), None if clock is utc_now else clock)
    cosigning = _cosigning(settings, store, files, keys, board, clock)
    limits = Quotas(settings)
    alarms = Alarms(store, clock, channels)
    api_keys = ApiKeys(store, clock, verifier.verify)
    ingest = Ingest(store, signer.sign, clock, verifier, alarms)
    duties = Duties(
        store,
        _replica_id(settings.data_dir),
        settings.duty_lease_s,
        alone=settings.database is None,
        figures=lambda: figures_of(ingest.waiting_s, board, clock(), _stamps_every(settings, cosigning)),
    )
    people = _users(settings, store, clock)
    otlp = None
    if settings.otlp_url is not None:
        otlp = Otlp(HttpTransport(settings.otlp_url), "compliance-server", asyncio.sleep)
    tracing = Tracing(clock, os.urandom, otlp.add if otlp is not None else None)
    receipts = Receipts(store, files, board)
    if otlp is not None:
        board.logged, receipts.made = tracing.logged, tracing.receipted
    calls = _calls() if settings.oidc_issuer is not None else None
    sends = contextlib.AsyncExitStack()
    try:
        await sends.enter_async_context(sending(otlp))
        yield Services(
            settings=settings,
            store=store,
            clock=clock,
            verifier=verifier,
            silence=Silence(settings.min_interval_s, settings.silent_after_s, settings.stale_after_s),
            limits=limits,
            alarms=alarms,
            access=HostAccess(store, clock, limits, certificates=certifies, api_keys=api_keys),
            api_keys=api_keys,
            certificates=Certificates(
                store,
                clock,
                tls.ClientAuthority(settings.data_dir / "tls", clock()) if certifies else None,
                verify=verifier.verify,
            ),
            ingest=ingest,
            duties=duties,
            leases=Leases(store, clock),
            checkin=Checkin(store, clock),
            enrolment=Enrolment(store, clock, approval=settings.enrol_approval, verify=verifier.verify),
            rotations=Rotations(store, signer.sign, clock),
            users=people,
            oidc=_oidc(settings, store, clock, people, calls) if calls is not None else None,
            orders=OrderDesk(store, clock),
            order_trust=OrderTrustDesk(store, clock),
            holds=Holds(store, clock),
            packets=Packets(store, clock),
            pruning=Pruning(store, files, clock),
            ack_public_key=signer.public_bytes,
            sign=signer.sign,
            log_keys=keys,
            log_files=files,
            log_heads=heads,
            board=board,
            sequencer=Sequencer(
                store,
                files,
                keys,
                heads,
                board,
                log_clock or clock,
                name=settings.name,
                duties=duties,
                cosigning=cosigning,
                interval_s=settings.log_interval_ms / 1_000,
            ),
            receipts=receipts,
            tracing=tracing,
            cosigning=cosigning,
            policy=cosigning.named if cosigning is not None else _named(keys, settings.data_dir),
            ca_pem=authority,
        )
    finally:
        await sends.aclose()
        if cosigning is not None:
            await cosigning.close()
        if calls is not None:
            await calls.close()
        await store.close()


def _calls() -> ProviderCalls:
    from compliance_agent.server.provider_calls import ProviderCalls  # an HTTP client, which most servers never need

    return ProviderCalls()


def _oidc(settings: ServerSettings, store: SqlStore, clock: Clock, people: Users, calls: ProviderCalls) -> Oidc:
    """The provider where people may sign in."""
    secret = None
    if settings.oidc_client_secret_file is not None:
        raw = read_file(settings.oidc_client_secret_file, limit_bytes=1_024, secret=True)
        secret = raw.decode("ascii", "replace").strip()
    address = f"{(settings.public_url or '').rstrip('/')}/login/oidc/callback"
    client = OidcClient(settings.oidc_issuer or "", settings.oidc_client_id, secret, address)
    return Oidc(store, clock, calls, client, people.login_federated)


def _users(settings: ServerSettings, store: SqlStore, clock: Clock) -> Users:
    """People, their sessions as the settings say, and the key that their second factors are sealed under."""
    path, wanted = settings.data_dir / "keys" / FACTORS_KEY, settings.second_factor_for.split()
    create_file(path, secrets.token_bytes(32))
    key = read_file(path, limit_bytes=64, secret=True)
    if len(key) != 32:
        raise ConfigError(f"{path}: expected 32 bytes, found {len(key)}", hint="bring the file back from the backup")
    return Users(
        store,
        clock,
        Factors(store, clock, key),
        sessions=Limits(timedelta(seconds=settings.session_idle_s), timedelta(seconds=settings.session_life_s)),
        demands_factor=lambda user: wanted != ["none"] and (wanted == ["all"] or user.client_id in {None, *wanted}),
    )


def _cosigning(
    settings: ServerSettings, store: SqlStore, files: LogFiles, keys: LogKeys, board: Board, clock: Clock
) -> Cosigning | None:
    """What asks witnesses and the time-stamping authority, where either is configured.

    Raises:
        ConfigError: a file cannot be used.
    """
    lines = ""
    if settings.witness_policy_file is not None:
        lines = _witness_lines(settings.witness_policy_file, f"{keys.verifier(ANY_LOG)}")
    stamps = None
    if settings.tsa_url is not None and settings.tsa_ca_file is not None:
        parts = urlsplit(settings.tsa_url)
        transport = HttpTransport(f"{parts.scheme}://{parts.netloc}")
        stamps = TimeStamps(transport, parts.path or "/", settings.tsa_ca_file)
    if not lines and stamps is None:
        return None
    urls = set(policy_of(lines, f"{keys.verifier(ANY_LOG)}").urls.values())
    return Cosigning(
        lines,
        {url: HttpTransport(url) for url in urls},
        stamps,
        store=store,
        files=files,
        keys=keys,
        board=board,
        clock=clock,
        intervals=Intervals(
            settings.witness_deadline_ms / 1_000,
            timedelta(seconds=settings.time_entry_interval_s),
            timedelta(seconds=settings.tsa_interval_s),
        ),
    )


def _replica_id(data_dir: Path) -> str:
    """The id of whoever holds this data directory, made once; a directory that was copied has the id of the first."""
    path = data_dir / REPLICA_FILE
    create_file(path, f"{secrets.token_hex(8)}\n".encode())
    return read_file(path, limit_bytes=64).decode("ascii", "replace").strip()


def _stamps_every(settings: ServerSettings, cosigning: Cosigning | None) -> timedelta | None:
    stamped = cosigning is not None and cosigning.stamps is not None
    return timedelta(seconds=settings.tsa_interval_s) if stamped else None


def watch(services: Services) -> Watch:
    """What looks for the causes of alarms."""
    watched = Watched(
        store=services.store,
        board=services.board,
        clock=services.clock,
        waiting_s=lambda: services.ingest.waiting_s,
        silent_since=lambda: services.silence.since(services.clock()),
        stamps_every=_stamps_every(services.settings, services.cosigning),
    )
    return Watch(watched, services.alarms, services.duties)


def hand_on(services: Services) -> None:
    """Leave what an auditor's packet and the commands beside the server need of both, and nothing of what is no longer asked."""
    keys, cosigning = services.settings.data_dir / "keys", services.cosigning
    stamps = cosigning.stamps if cosigning is not None else None
    lines = cosigning.witnesses if cosigning is not None else ""
    for name, content in (
        (WITNESSES_FILE, lines.encode()),
        (TSA_CA_FILE, stamps.ca_pem if stamps is not None else b""),
    ):
        if content:
            write_file(keys / name, content, 0o644)
        else:
            remove_file(keys / name)


def _named(keys: LogKeys, data_dir: Path) -> Policy | None:
    """The witnesses that the server beside us asks, as it has left them."""
    path = data_dir / "keys" / WITNESSES_FILE
    if not path.exists():
        return None
    return policy_of(
        read_file(path, limit_bytes=MAX_POLICY_BYTES).decode("utf-8", "replace"), f"{keys.verifier(ANY_LOG)}"
    )


def _witness_lines(path: Path, key: str) -> str:
    try:
        lines = read_file(path, limit_bytes=MAX_POLICY_BYTES).decode("utf-8", "replace")
        if any(line.split()[:1] == ["log"] for line in lines.splitlines()):
            raise ConfigError("holds a log line; each log's own is added by the server")
        if policy_of(lines, key).quorum == "none":
            raise ConfigError("has no quorum: nobody's word would be asked for")
    except AgentError as error:
        raise ConfigError(f"witness_policy_file {path}: {error}", hint=error.hint) from error
    return lines


async def ensure_admin(services: Services) -> Path | None:
    """Make the first user, its password in a file for this user alone; the file, or None when the user exists."""
    if await services.store.user(ADMIN) is not None:
        return None
    path = services.settings.data_dir / "admin-password"
    password = base64.b32encode(secrets.token_bytes(15)).decode("ascii").lower()
    create_file(path, f"{password}\n".encode())  # before the user: a crash in between finds it again
    written = read_file(path, limit_bytes=1024, secret=True).decode("ascii").strip()
    await services.users.add(ADMIN, written, role="owner")
    return path
