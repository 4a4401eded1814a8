"""What the modules of `compliance-agent server` share: which directory is meant, the services over it, and how values are typed."""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import Awaitable, Callable
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from compliance_agent.adapters.durable import read_file
from compliance_agent.documents import MAX_BYTES
from compliance_agent.errors import AgentError, ConfigError, NoInput

if TYPE_CHECKING:
    from compliance_agent.server.desks import Services
    from compliance_agent.server.settings import ServerSettings

T = TypeVar("T")
SYSTEM_CONFIG = Path("/etc/msp/server.yaml")
_DURATION = re.compile(r"([1-9][0-9]{0,5})([smhd])", re.ASCII)
_SECONDS = {"s": 1, "m": 60, "h": 3_600, "d": 86_400}
_PATH = click.Path(path_type=Path, readable=False)


def settings_of(ctx: click.Context, **given: Any) -> ServerSettings:
    """The settings from `--config` (or the system's file), the environment and the options."""
    from compliance_agent.server.settings import PREFIX, parse

    options = ctx.find_root().params | (ctx.obj or {})
    path = options.get("config_path") or (SYSTEM_CONFIG if SYSTEM_CONFIG.exists() else None)
    raw = None
    if path is not None:
        try:
            raw = read_file(path, limit_bytes=MAX_BYTES, trusted=True)
        except AgentError as error:
            raise ConfigError(str(error), hint=error.hint) from error
    data_dir = options.get("data_dir")
    if data_dir is None and f"{PREFIX}DATA_DIR" not in os.environ and path is None:
        data_dir = _default_data_dir()
    return parse(raw, os.environ, data_dir=data_dir.absolute() if data_dir else None, **given)


def _default_data_dir() -> Path:
    """`$STATE_DIRECTORY` from systemd, the system's directory for root, else this user's."""
    if os.environ.get("STATE_DIRECTORY"):
        return Path(os.environ["STATE_DIRECTORY"].split(":")[0])
    if os.geteuid() == 0:
        return Path("/var/lib/compliance-agent-server")
    return Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state") / "compliance-agent-server"


def existing(settings: ServerSettings) -> Path:
    """The data directory, which holds a server: a mistyped one must not become a second, empty one with keys of its own.

    Raises:
        NoInput: it holds none.
    """
    from compliance_agent.server.opening import is_made

    if not is_made(settings):
        raise no_server(f"{settings.data_dir}: holds no server")
    return settings.data_dir


def no_server(what: str) -> NoInput:
    """The refusal of a command whose directory is not a server's, with the next step."""
    hint = "name the server's directory with --data-dir; `compliance-agent server init` makes a new one"
    return NoInput(what, hint=hint)


def with_services(settings: ServerSettings, act: Callable[[Services], Awaitable[T]], *, new: bool = False) -> T:
    """Run `act` with the services over the data directory.

    Raises:
        NoInput: it holds no server, and none is to be made there (`new`).
    """
    from compliance_agent.logs import configure
    from compliance_agent.server.opening import opened

    if not new:
        existing(settings)
    configure("ERROR")

    async def run() -> T:
        async with opened(settings) as services:
            return await act(services)

    return asyncio.run(run())


def data_dir_option(function: Callable[..., Any]) -> Callable[..., Any]:
    """`--data-dir` after the subcommand too, where people put it."""

    def keep(ctx: click.Context, _parameter: click.Parameter, value: Path | None) -> None:
        if value is not None:
            ctx.obj = {**(ctx.obj or {}), "data_dir": value}

    return click.option(
        "--data-dir", type=_PATH, expose_value=False, callback=keep, help="Directory of the database and the keys."
    )(function)


def duration(text: str) -> timedelta:
    """`90s`, `15m`, `1h` or `7d`.

    Raises:
        click.BadParameter: anything else.
    """
    found = _DURATION.fullmatch(text)
    if found is None:
        raise click.BadParameter(f"expected a duration such as 15m, 1h or 7d, found {text[:20]!r}")
    return timedelta(seconds=int(found[1]) * _SECONDS[found[2]])


def label_of(name: str, text: str) -> str:
    """A site's or client's id, as typed.

    Raises:
        click.BadParameter: it is none.
    """
    from compliance_agent.config import LABEL

    if not LABEL.fullmatch(text):
        raise click.BadParameter(f"{name}: expected letters, digits and ._-, at most 63, found {text[:60]!r}")
    return text
