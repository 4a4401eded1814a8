"""Running the server in one process: uvicorn on uvloop and httptools, guarded (guard.py), one listening socket, a bounded end."""

from __future__ import annotations

import contextlib
import errno
import gc
import logging
import signal
import socket
import ssl
from collections.abc import Callable, Iterator

import uvicorn

from compliance_agent.errors import AgentError, NotPermitted, Unavailable
from compliance_agent.evidence.allowlist import registry
from compliance_agent.server import tls
from compliance_agent.server.api.beside import App
from compliance_agent.server.app import create_app
from compliance_agent.server.guard import Crowd, room
from compliance_agent.server.opening import names_of, utc_now
from compliance_agent.server.settings import ServerSettings
from compliance_agent.server.whole import answered_by

DRAIN_S = 3  # for requests in flight, within the 5 s that a service manager may count on
BACKLOG = 2_048
COLLECT = (20_000, 20, 50)  # Python's own would walk all that ten thousand connections hold, every few seconds
KEEP_ALIVE_S = 75  # longer than hosts wait between two calls: a TLS connection is paid for once


class Ending(uvicorn.Server):
    """Ends what would go on by itself, such as the streams of live pages, before it waits for what is under way."""

    def __init__(self, config: uvicorn.Config, ending: Callable[[], None]) -> None:
        super().__init__(config)
        self._ending = ending

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._ending()
        await super().shutdown(sockets)


class _Server(Ending):
    """Says where it listens once it does, and ends by itself after a signal instead of dying of it."""

    def __init__(self, config: uvicorn.Config, started: Callable[[], None], ending: Callable[[], None]) -> None:
        super().__init__(config, ending)
        self._tell = started
        self.interrupted = False

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            self._tell()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        before = {number: signal.signal(number, self.handle_exit) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
            self.interrupted = signal.SIGINT in self._captured_signals


def serve(settings: ServerSettings, announce: Callable[[str], None]) -> int:
    """Serve until SIGTERM or SIGINT, then finish what was begun; the exit status.

    Args:
        settings: checked settings.
        announce: told the URL once connections are accepted.

    Raises:
        AgentError: it could not start; says why.
    """
    logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)  # what it would say, ours says without a traceback
    app = create_app(settings)
    listener = _listen(settings.host, settings.port)
    host = f"[{settings.host}]" if ":" in settings.host else settings.host
    url = f"{'https' if settings.tls else 'http'}://{host}:{listener.getsockname()[1]}"
    server = _Server(_config(settings, app), lambda: announce(url), app.state.streams.close)
    _ = registry().spelled  # made at the first record otherwise, while everybody waits
    gc.freeze()  # what was loaded stays: no collection walks the modules again while evidence comes in
    gc.set_threshold(*COLLECT)
    try:
        server.run(sockets=[listener])
    except SystemExit as error:  # how uvicorn says that the lifespan failed
        problem = getattr(app.state, "startup_error", None)
        raise problem if isinstance(problem, AgentError) else Unavailable("server: could not start") from error
    finally:
        listener.close()
    return 130 if server.interrupted else 0


def _config(settings: ServerSettings, app: App) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        loop="compliance_agent.server.guard:Loop",
        http=answered_by(app.whole, Crowd(room())),
        ws="none",
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,  # a forged X-Forwarded-For must mean nothing
        backlog=BACKLOG,
        timeout_keep_alive=KEEP_ALIVE_S,
        timeout_graceful_shutdown=DRAIN_S,
        ssl_context_factory=_tls_factory(settings) if settings.tls else None,
    )


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=BACKLOG)
    except OSError as error:
        name = errno.errorcode.get(error.errno or 0, "cannot be resolved")
        kind = NotPermitted if error.errno == errno.EACCES else Unavailable
        raise kind(f"host {host} port {port}: cannot listen ({name})", hint="choose another with --port") from error


def _tls_factory(settings: ServerSettings) -> Callable[[uvicorn.Config, Callable[[], ssl.SSLContext]], ssl.SSLContext]:
    def make(_config: uvicorn.Config, _default: Callable[[], ssl.SSLContext]) -> ssl.SSLContext:
        directory = settings.data_dir / "tls"
        clients = None
        if settings.tls_client_certificates == "required":
            tls.ClientAuthority(directory, utc_now())
            clients = directory / tls.CLIENTS_CA
        return tls.context(tls.identity(directory, names_of(settings), utc_now()), clients)

    return make
