"""The commands' side of the admin socket: one request, one answer, bounded in time. Blocking; standard library alone."""

from __future__ import annotations

import http.client
import json
import os
import socket
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from compliance_agent.admin.place import SYSTEM_SOCKET, socket_of
from compliance_agent.config import AgentConfig
from compliance_agent.errors import AgentError, BadReply, ConfigError, NotPermitted, Unavailable

PATIENCE_S = 5.0
MAX_REPLY_BYTES = 16_777_216
_KINDS: dict[int, type[AgentError]] = {400: ConfigError, 403: NotPermitted, 422: ConfigError}


@dataclass(frozen=True)
class Reply:
    """What came back."""

    status: int
    body: bytes

    @property
    def document(self) -> dict[str, Any]:
        """The JSON object.

        Raises:
            BadReply: it is none.
        """
        try:
            found = json.loads(self.body)
        except ValueError as error:
            raise BadReply("admin socket: not the answer of an agent") from error
        if not isinstance(found, dict):
            raise BadReply("admin socket: not the answer of an agent")
        return found


class _Connection(http.client.HTTPConnection):
    def __init__(self, path: Path, timeout_s: float) -> None:
        super().__init__("localhost", timeout=timeout_s)
        self._path = path

    def connect(self) -> None:
        handle = os.open(self._path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            self.sock.settimeout(self.timeout)
            self.sock.connect(f"/proc/self/fd/{handle}/{self._path.name}")
        finally:
            os.close(handle)


def ask(path: Path, method: str, page: str, document: Any = None, timeout_s: float = PATIENCE_S) -> Reply:
    """Ask for one page.

    Raises:
        Unavailable: nobody answers there, or not in time.
        NotPermitted: this user may not ask.
        BadReply: what answers is no agent.
    """
    body = json.dumps(document).encode() if document is not None else None
    connection = _Connection(path, timeout_s)
    try:
        connection.request(method, page, body, {"content-type": "application/json"} if body else {})
        reply = connection.getresponse()
        return Reply(reply.status, reply.read(MAX_REPLY_BYTES))
    except PermissionError as error:
        raise NotPermitted(
            f"admin socket {path}: no permission to ask", hint="run it as root or as the agent's user"
        ) from error
    except OSError as error:
        raise Unavailable(f"admin socket {path}: no agent answers", code="no_agent", hint="is it running?") from error
    except http.client.HTTPException as error:
        raise BadReply("admin socket: not the answer of an agent") from error
    finally:
        connection.close()


def demand(
    config: AgentConfig | None, method: str, page: str, document: Any = None, timeout_s: float = PATIENCE_S
) -> Reply:
    """As `ask`, of the agent of this configuration; what it refuses is raised.

    Raises:
        ConfigError, NotPermitted, Unavailable: it refuses, or there is none.
    """
    reply = ask(found(config), method, page, document, timeout_s)
    if reply.status < 400:
        return reply
    problem = reply.document
    kind = _KINDS.get(reply.status, Unavailable)
    raise kind(
        f"the agent refuses: {problem.get('detail', 'without a reason')}",
        code=str(problem.get("code", "refused")),
        hint="compliance-agent config check says what is wrong" if page == "/reload" and reply.status == 422 else "",
    )


def found(config: AgentConfig | None) -> Path:
    """Where the agent of this configuration answers.

    Raises:
        Unavailable: nowhere.
        NotPermitted: this user may not ask there.
    """
    places = list(_places(config))
    said_of = " or ".join(map(str, places))
    refused: AgentError = Unavailable(
        f"admin socket {said_of}: no agent of this configuration answers", code="no_agent", hint="is it running?"
    )
    for path in places:
        try:
            told = ask(path, "GET", "/healthz", timeout_s=2.0).document
        except (Unavailable, BadReply):
            continue
        except NotPermitted as error:
            refused = error
            continue
        if config is None or (told.get("site_id"), told.get("host_id")) == (config.site_id, config.host_id):
            return path
    raise refused


def _places(config: AgentConfig | None) -> Iterable[Path]:
    if config is not None and config.admin_socket is not None:
        return [config.admin_socket]
    return [*([socket_of(config, {})] if config is not None else []), SYSTEM_SOCKET]
