"""Small files that enrolment wrote: read whole, held against their form, and never shown."""

from __future__ import annotations

import os
import re
from pathlib import Path

from compliance_agent.adapters.durable import read_file
from compliance_agent.errors import AgentError, ConfigError, Unavailable

_API_KEY = re.compile(r"[!-~]{1,256}")


def load_api_key(path: Path | None) -> str:
    """The API key.

    Raises:
        Unavailable: this host is not enrolled; what is recorded waits.
        ConfigError: the file is there but cannot be used.
    """
    return credential("mcp_api_key_file", path, _API_KEY, secret=True)


def load_token(path: Path | None) -> str | None:
    """The token that shows the logs of others; None where none is configured.

    Raises:
        ConfigError: the file holds none.
    """
    if path is None:
        return None
    try:
        token = read_file(path, limit_bytes=4_096, trusted=True, secret=True).decode("ascii", "replace").strip()
    except AgentError as error:
        raise ConfigError(f"witness_token_file: {error}", hint=error.hint) from error
    if not token or not token.isprintable() or " " in token:
        raise ConfigError(f"witness_token_file {path}: does not hold a token")
    return token


def credential(field: str, path: Path | None, form: re.Pattern[str], *, secret: bool) -> str:
    """The text of a file of this form.

    Raises:
        Unavailable, ConfigError: as above.
    """
    if path is None or not os.path.lexists(path):
        raise Unavailable(
            "this host is not enrolled", code="not_enrolled", hint="compliance-agent enrol --server URL --token-file F"
        )
    try:
        text = read_file(path, limit_bytes=4_096, trusted=True, secret=secret).decode("latin-1").strip()
    except AgentError as error:
        raise ConfigError(f"{field}: {error}", hint=error.hint) from error
    if not form.fullmatch(text):
        raise ConfigError(f"{field}: {path} does not hold what enrolment wrote")
    return text
