"""The server's settings: one YAML file and the `MSP_SERVER_*` environment, checked once, whole, and frozen.

A value in the environment wins over the file's. An unknown key or variable is refused, with the nearest known one.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from compliance_agent.documents import read_yaml
from compliance_agent.errors import ConfigError, DocumentError
from compliance_agent.words import nearest

PREFIX = "MSP_SERVER_"
LOOPBACK = frozenset({"127.0.0.1", "::1", "localhost"})
BLOBS = r"s3://([a-z0-9][a-z0-9.-]{1,61}[a-z0-9])(/[A-Za-z0-9._-]+(?:/[A-Za-z0-9._-]+)*)?/?"
MODES = ("COMPLIANCE", "GOVERNANCE")
_LABEL = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")
_TRUTHS = {"true": True, "false": False}


def _setting(default: Any, doc: str, low: int | None = None, high: int | None = None) -> Any:
    return field(default=default, metadata={"doc": doc, "low": low, "high": high})


@dataclass(frozen=True, kw_only=True)
class ServerSettings:
    """Everything the server is told.

    Raises:
        ConfigError: a value cannot be used, or contradicts another; names the field.
    """

    data_dir: Path = _setting(Path("/var/lib/compliance-agent-server"), "Directory of the database and the keys.")
    database: str | None = _setting(
        None, "postgresql://ROLE@HOST/NAME, without the password; `server.db` in data_dir, on SQLite, when not given."
    )
    database_password_file: Path | None = _setting(
        None, "File with the password of that role, for the server's user alone."
    )
    blobs: str | None = _setting(
        None,
        "s3://BUCKET[/PREFIX] with Object Lock, for the files of the logs; `log` and `heads` in data_dir when not given.",
    )
    blobs_endpoint: str | None = _setting(None, "Address of an object store that is not Amazon's; https.")
    blobs_region: str | None = _setting(None, "Region of the bucket.")
    blobs_mode: str = _setting(
        "COMPLIANCE", "How the bucket holds what is full: COMPLIANCE (nobody can lift it) or GOVERNANCE."
    )
    blobs_credentials_file: Path | None = _setting(
        None,
        "File with a [default] key for the bucket, for the server's user alone; the AWS_* environment when not given.",
    )
    host: str = _setting("127.0.0.1", "Address to listen on; one that others can reach needs tls.")
    port: int = _setting(8080, "Port to listen on; 0 takes a free one.", 0, 65_535)
    tls: bool = _setting(False, "Serve https (TLS 1.3) with a certificate from the server's own private authority.")
    tls_client_certificates: str = _setting(
        "off", "`required`: hosts must show the client certificate that this server gave them; needs tls."
    )
    name: str = _setting("compliance-server", "The server's name, as hosts and people see it.")
    public_url: str | None = _setting(
        None, "Address under which hosts and people reach the server, when it is another."
    )
    client_id: str = _setting("msp", "Client that a new site belongs to when the command does not say.")
    enrol_approval: bool = _setting(False, "Every new host waits until an operator approved its key words.")
    min_interval_s: int = _setting(1, "Least seconds a host shall leave between two check-ins.", 1, 86_400)
    silent_after_s: int = _setting(600, "Seconds without a word after which a host is silent.", 5, 604_800)
    stale_after_s: int = _setting(11_700, "Seconds after which a verdict nobody repeated is unknown.", 60, 604_800)
    session_idle_s: int = _setting(900, "Seconds without use after which a person's session ends.", 60, 86_400)
    session_life_s: int = _setting(43_200, "Seconds after which a person's session ends, used or not.", 60, 86_400)
    second_factor_for: str = _setting(
        "none", "Whose people must have a second factor: none, all, or ids of clients separated by spaces."
    )
    oidc_issuer: str | None = _setting(
        None, "Issuer of the OpenID provider where people may sign in; needs public_url."
    )
    oidc_client_id: str = _setting("", "What this server is called at that provider.")
    oidc_client_secret_file: Path | None = _setting(
        None, "File with the secret that the provider gave this server, readable by nobody else; PKCE alone without it."
    )
    duty_lease_s: int = _setting(
        10, "Seconds without a word of a replica after which another one takes over its part of the work.", 1, 300
    )
    log_interval_ms: int = _setting(250, "Milliseconds between two rounds of the transparency log.", 1, 60_000)
    log_mldsa44: bool = _setting(False, "Make a second, post-quantum key that signs every checkpoint of the log too.")
    witness_policy_file: Path | None = _setting(
        None,
        "C2SP tlog-policy lines (witness, group, quorum) of the witnesses of every log; the log's own line is added.",
    )
    witness_deadline_ms: int = _setting(2_000, "Milliseconds that receipts wait for witnesses, at most.", 10, 60_000)
    tsa_url: str | None = _setting(None, "Address of a time-stamping authority (RFC 3161) for checkpoints.")
    tsa_ca_file: Path | None = _setting(None, "PEM with the root that its time stamps must chain to.")
    tsa_interval_s: int = _setting(3_600, "Least seconds between two time stamps of a log.", 60, 2_592_000)
    time_entry_interval_s: int = _setting(
        300, "Least seconds between two entries that prove time in a log; needs witnesses or a tsa_url.", 10, 86_400
    )
    alerts_file: Path | None = _setting(
        None, "YAML with the channels through which people are told what began and ended (docs/alerts.md)."
    )
    otlp_url: str | None = _setting(
        None,
        "Address of an OpenTelemetry collector that takes OTLP over HTTP (`/v1/traces` is added), for the spans of each drift"
        " (docs/tracing.md); needs the extra `otel`.",
    )
    host_requests_per_min: int = _setting(
        1_200, "Requests a host may make in a minute, and at once after a quiet one; 0 is no limit.", 0, 10_000_000
    )
    host_bundles_per_min: int = _setting(
        20_000, "Bundles a host may send in a minute, and at once after a quiet one; 0 is no limit.", 0, 100_000_000
    )
    site_bundles_per_min: int = _setting(
        120_000, "Bundles that the hosts of a site may send in a minute together; 0 is no limit.", 0, 100_000_000
    )
    host_bundles_per_day: int = _setting(
        200_000, "Bundles a host may send in a day, and at once after a quiet one; 0 is no limit.", 0, 1_000_000_000
    )
    site_bundles_per_day: int = _setting(
        5_000_000, "Bundles that the hosts of a site may send in a day together; 0 is no limit.", 0, 1_000_000_000
    )
    planner_model_url: str | None = _setting(
        None,
        "Address of an OpenAI-compatible server that may be asked what it would do about findings (docs/planner.md); off when not"
        " given. https, or on this machine.",
    )
    planner_model: str = _setting("", "Which of its models.")
    planner_model_key_file: Path | None = _setting(
        None, "File with the key that this server wants, readable by nobody else."
    )
    mcp: str = _setting(
        "off",
        "What programs may do over the Model Context Protocol for a person with an operator token (docs/mcp.md): off, read, or"
        " propose; needs the extra `mcp`.",
    )
    mcp_calls_per_min: int = _setting(
        60,
        "Requests over it that a token may make in a minute, and at once after a quiet one; 0 is no limit.",
        0,
        100_000,
    )
    log_level: str = _setting("INFO", "DEBUG, INFO, WARNING or ERROR.")

    def __post_init__(self) -> None:
        object.__setattr__(self, "data_dir", Path(self.data_dir))
        for item in dataclasses.fields(self):
            _check_bounds(item, getattr(self, item.name))
        if not self.data_dir.is_absolute():
            raise ConfigError(f"data_dir: expected an absolute path, found {str(self.data_dir)[:60]!r}")
        for name in ("name", "client_id"):
            if not _LABEL.fullmatch(getattr(self, name)):
                raise ConfigError(
                    f"{name}: expected letters, digits and ._-, at most 63, found {getattr(self, name)[:60]!r}"
                )
        if self.log_level not in {"DEBUG", "INFO", "WARNING", "ERROR"}:
            raise ConfigError(f"log_level: expected DEBUG, INFO, WARNING or ERROR, found {self.log_level[:20]!r}")
        if not self.host or len(self.host) > 253 or not re.fullmatch(r"[A-Za-z0-9.:-]+", self.host):
            raise ConfigError(f"host: expected an address or a name, found {self.host[:60]!r}")
        if self.host not in LOOPBACK and not self.tls:
            raise ConfigError(
                f"host: {self.host} can be reached by others, so it needs tls",
                hint="add --tls, or listen on 127.0.0.1 behind a proxy that does TLS",
            )
        if self.tls_client_certificates not in {"off", "required"}:
            raise ConfigError(
                f"tls_client_certificates: expected off or required, found {self.tls_client_certificates[:20]!r}"
            )
        if self.tls_client_certificates == "required" and not self.tls:
            raise ConfigError(
                "tls_client_certificates: only a server that does TLS itself sees them, so it needs tls",
                hint="a proxy in front passes the connection through (docs/certificates.md)",
            )
        _check_url("public_url", self.public_url, {"", "/"})
        _check_url("tsa_url", self.tsa_url, None)
        _check_url("otlp_url", self.otlp_url, None)
        check_database("database", self.database)
        self._check_blobs()
        self._check_people()
        self._check_model()
        files = (
            "witness_policy_file",
            "tsa_ca_file",
            "database_password_file",
            "alerts_file",
            "oidc_client_secret_file",
            "blobs_credentials_file",
            "planner_model_key_file",
        )
        for name in files:
            value = getattr(self, name)
            object.__setattr__(self, name, None if value is None else Path(value))
            if value is not None and not Path(value).is_absolute():
                raise ConfigError(f"{name}: expected an absolute path, found {str(value)[:60]!r}")
        if (self.tsa_url is None) != (self.tsa_ca_file is None):
            raise ConfigError("tsa_url and tsa_ca_file: give both or neither")

    def _check_blobs(self) -> None:
        if self.blobs is not None and not re.fullmatch(BLOBS, self.blobs):
            raise ConfigError(f"blobs: expected s3://BUCKET[/PREFIX], found {self.blobs[:60]!r}")
        _check_url("blobs_endpoint", self.blobs_endpoint, {"", "/"})
        if self.blobs_endpoint is not None and not _is_safe(self.blobs_endpoint):
            raise ConfigError(f"blobs_endpoint: expected https, found {self.blobs_endpoint[:60]!r}")
        if self.blobs_mode not in MODES:
            raise ConfigError(f"blobs_mode: expected {' or '.join(MODES)}, found {self.blobs_mode[:20]!r}")
        for name in ("blobs_endpoint", "blobs_region", "blobs_credentials_file"):
            if self.blobs is None and getattr(self, name) is not None:
                raise ConfigError(f"{name}: says something of a bucket, and blobs names none")

    def _check_model(self) -> None:
        _check_url("planner_model_url", self.planner_model_url, None)
        if self.planner_model_url is not None and not _is_safe(self.planner_model_url):
            raise ConfigError(f"planner_model_url: expected https, found {self.planner_model_url[:60]!r}")
        if (self.planner_model_url is None) != (self.planner_model == ""):
            raise ConfigError("planner_model_url and planner_model: give both or neither")
        if self.planner_model_url is None and self.planner_model_key_file is not None:
            raise ConfigError("planner_model_key_file: is for a server, and planner_model_url names none")

    def _check_people(self) -> None:
        if self.mcp not in {"off", "read", "propose"}:
            raise ConfigError(f"mcp: expected off, read or propose, found {self.mcp[:20]!r}")
        if not all(_LABEL.fullmatch(item) for item in self.second_factor_for.split() or [""]):
            raise ConfigError(
                f"second_factor_for: expected none, all, or ids of clients, found {self.second_factor_for[:60]!r}"
            )
        _check_url("oidc_issuer", self.oidc_issuer, None)
        if (self.oidc_issuer is None) != (self.oidc_client_id == "") or (self.oidc_issuer and not self.public_url):
            raise ConfigError("oidc_issuer, oidc_client_id and public_url: a provider needs all three")
        if self.oidc_issuer and not _is_safe(self.oidc_issuer):
            raise ConfigError(f"oidc_issuer: expected https, found {self.oidc_issuer[:60]!r}")


def _check_bounds(item: dataclasses.Field[Any], value: Any) -> None:
    low, high = item.metadata["low"], item.metadata["high"]
    if low is not None and (isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high):
        raise ConfigError(f"{item.name}: expected a whole number from {low} to {high}, found {str(value)[:40]!r}")


def _is_safe(url: str) -> bool:
    parts = urlsplit(url)
    return parts.scheme == "https" or parts.hostname in LOOPBACK


def _check_url(name: str, url: str | None, paths: set[str] | None) -> None:
    if url is None:
        return
    try:
        parts = urlsplit(url)
        usable = parts.scheme in {"http", "https"} and bool(parts.hostname) and not parts.username and not parts.query
        usable = usable and (paths is None or parts.path in paths) and (parts.port or 1) > 0
    except ValueError:
        usable = False
    if not usable:
        raise ConfigError(f"{name}: expected http(s)://NAME[:PORT], found {url[:60]!r}")


def check_database(name: str, url: str | None) -> None:
    """Refuse what is no address of a PostgreSQL database, carries a secret, or leaves open who can listen.

    Raises:
        ConfigError: names the setting or option, and nothing of a password.
    """
    if url is None:
        return
    try:
        parts = urlsplit(url)
        asked, usable = parse_qs(parts.query), parts.scheme in {"postgresql", "postgres"} and (parts.port or 1) > 0
    except ValueError:
        raise ConfigError(f"{name}: expected postgresql://ROLE@HOST[:PORT]/NAME") from None
    if parts.password is not None or "password" in asked:
        raise ConfigError(f"{name}: holds a password; name a file with it in database_password_file")
    if not usable or not parts.username or not parts.path.strip("/"):
        raise ConfigError(f"{name}: expected postgresql://ROLE@HOST[:PORT]/NAME")
    hosts = [parts.hostname or "", *asked.get("host", [])]
    if not all(host in LOOPBACK or host.startswith("/") for host in hosts if host) and "sslmode" not in asked:
        raise ConfigError(
            f"{name}: {hosts[0]} is reached over a network, and nothing is said about TLS",
            hint="add ?sslmode=verify-full&sslrootcert=FILE, or sslmode=disable where the network is nobody else's",
        )


def parse(raw: bytes | None, environ: Mapping[str, str], **given: Any) -> ServerSettings:
    """The settings from a file's bytes (None: no file), the environment, and what a caller gives, which wins.

    Raises:
        ConfigError: names the key or the variable.
    """
    fields = {item.name: item for item in dataclasses.fields(ServerSettings)}
    values: dict[str, Any] = {}
    for key, value in _mapping(raw).items():
        if key not in fields:
            raise ConfigError(f"unknown key {key[:60]!r}{nearest(key, fields)}")
        values[key] = _typed(fields[key], value, key)
    for variable, text in environ.items():
        if not variable.startswith(PREFIX):
            continue
        name = variable.removeprefix(PREFIX).lower()
        if name not in fields:
            raise ConfigError(
                f"unknown variable {variable[:60]}{nearest(variable, [PREFIX + key.upper() for key in fields])}"
            )
        values[name] = _typed(fields[name], _from_text(fields[name], text), variable)
    return ServerSettings(**{**values, **{name: value for name, value in given.items() if value is not None}})


def _mapping(raw: bytes | None) -> dict[str, Any]:
    try:
        document = {} if raw is None else read_yaml(raw)
    except DocumentError as error:
        raise ConfigError(str(error)) from error
    if document is None:
        return {}
    if not isinstance(document, dict):
        raise ConfigError("settings: expected a mapping of keys and values")
    return document


def _from_text(item: dataclasses.Field[Any], text: str) -> Any:
    if item.type == "int" and re.fullmatch(r"[0-9]{1,15}", text, re.ASCII):
        return int(text)
    return _TRUTHS.get(text, text) if item.type == "bool" else text


def _typed(item: dataclasses.Field[Any], value: Any, where: str) -> Any:
    kind = str(item.type)
    if value is None and "None" in kind:
        return None
    wanted = {"int": int, "bool": bool}.get(kind, str)
    if not isinstance(value, wanted) or (wanted is int and isinstance(value, bool)) or value == "":
        words = {int: "a whole number", bool: "true or false", str: "text"}[wanted]
        raise ConfigError(f"{where}: expected {words}, found {str(value)[:40]!r}")
    return value
