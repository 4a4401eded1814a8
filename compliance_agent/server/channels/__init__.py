"""The ways to tell people: mail, a signed webhook, Slack, PagerDuty, syslog. Each takes a delivery, or says why it was not taken.

    channels:
      - {name: oncall, kind: pagerduty, key_file: /etc/msp/pagerduty.key}
      - {name: siem, kind: syslog, host: siem.example, port: 6514, ca_file: /etc/msp/siem-ca.pem}

`read` turns that file into channels. What they say is in `words.py`, how they connect, and where they must not, in `wire.py`.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from compliance_agent.adapters.durable import read_file
from compliance_agent.documents import read_yaml
from compliance_agent.errors import AgentError, ConfigError, DocumentError
from compliance_agent.server.channels.mail import Mail
from compliance_agent.server.channels.posts import PagerDuty, Slack, Webhook
from compliance_agent.server.channels.syslog import Syslog

MOST_BYTES = 65_536
_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,31}")
_KEYS: dict[str, tuple[set[str], set[str]]] = {  # kind: what it must have, what it may have
    "smtp": ({"host", "sender", "to"}, {"port", "user", "password_file", "ca_file", "starttls"}),
    "webhook": ({"url", "secret_file"}, {"ca_file"}),
    "slack": ({"url_file"}, {"ca_file"}),
    "pagerduty": ({"key_file"}, {"url", "ca_file"}),
    "syslog": ({"host"}, {"port", "tls", "ca_file"}),
}
AnyChannel = Mail | Webhook | Slack | PagerDuty | Syslog


def read(path: Path, server: str) -> dict[str, AnyChannel]:
    """The channels of a file, by name, in its order.

    Args:
        path: YAML as above; `private: true` lets a channel reach an address that is not public.
        server: our own name, as the others see it.

    Raises:
        ConfigError: it cannot be used; names the channel and the key.
    """
    try:
        document = read_yaml(read_file(path, limit_bytes=MOST_BYTES, trusted=True))
    except (DocumentError, AgentError) as error:
        raise ConfigError(f"alerts_file {path}: {error}") from error
    if not isinstance(document, dict) or document.keys() != {"channels"} or not isinstance(document["channels"], list):
        raise ConfigError(f'alerts_file {path}: expected "channels" and a list')
    found: dict[str, AnyChannel] = {}
    for index, item in enumerate(document["channels"]):
        where = f"alerts_file {path}: channels[{index}]"
        name, channel = _channel(item, server, where)
        if name in found:
            raise ConfigError(f"{where}.name: {name} stands twice")
        found[name] = channel
    return found


def _channel(item: Any, server: str, where: str) -> tuple[str, AnyChannel]:
    if not isinstance(item, dict) or item.get("kind") not in _KEYS:
        raise ConfigError(f"{where}.kind: expected one of {', '.join(_KEYS)}")
    must, may = _KEYS[item["kind"]]
    given = {key: value for key, value in item.items() if key not in {"name", "kind", "private"}}
    if not _NAME.fullmatch(str(item.get("name", ""))):
        raise ConfigError(f"{where}.name: expected small letters, digits, - and _, at most 32")
    wrong = (given.keys() - must - may) | (must - given.keys())
    if wrong:
        raise ConfigError(f"{where}.{min(wrong)}: a {item['kind']} channel has {', '.join(sorted(must | may))}")
    if not all(isinstance(value, _TYPES.get(key, str)) for key, value in given.items()):
        raise ConfigError(f"{where}: expected text, a whole number for port, true or false for tls and starttls")
    given = {key: _secret(value, f"{where}.{key}") if key in _SECRETS else value for key, value in given.items()}
    private = item.get("private", False) is True
    try:
        return item["name"], _MADE[item["kind"]](given, server, private)
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from error


_TYPES: dict[str, type] = {"port": int, "tls": bool, "starttls": bool}
_SECRETS = {"password_file", "secret_file", "url_file", "key_file"}


def _secret(path: str, where: str) -> str:
    try:
        return read_file(Path(path), limit_bytes=4_096, secret=True).decode("ascii").strip()
    except (AgentError, UnicodeDecodeError) as error:
        raise ConfigError(f"{where}: {error}") from error


_MADE: dict[str, Any] = {
    "smtp": lambda given, server, private: Mail(server, private, **given),
    "webhook": lambda given, server, private: Webhook(server, private, **given),
    "slack": lambda given, server, private: Slack(server, private, **given),
    "pagerduty": lambda given, server, private: PagerDuty(server, private, **given),
    "syslog": lambda given, server, private: Syslog(server, private, **given),
}
