"""The agent's configuration: one file and the `MSP_*` environment, checked once, whole, and frozen.

A value in the environment wins over the file's. An unknown key or variable is refused, with the nearest known one. Every
field has its unit and its sentence beside it; docs/settings.md is generated from them.
"""

from __future__ import annotations

import dataclasses
import os
import re
import types
import typing
from collections.abc import Mapping
from datetime import time
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from compliance_agent.adapters.durable import read_file
from compliance_agent.core.schedule import zone_named
from compliance_agent.dataclass import dataclass
from compliance_agent.documents import MAX_BYTES, read_yaml
from compliance_agent.errors import AgentError, ConfigError
from compliance_agent.facts import VERSION
from compliance_agent.words import nearest

PREFIX = "MSP_"
SERVER_PREFIX = "MSP_SERVER_"  # read by `compliance-agent server`, not by the agent
LABEL = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")
_USER = re.compile(r"[a-z_][a-z0-9_-]{0,31}")  # useradd(8), "CAVEATS"
_LOOPBACK = {"127.0.0.1", "::1", "localhost"}
_IN_STATE_DIR = {
    "evidence_dir": "evidence",
    "log_dir": "logs",
    "signing_key_file": "keys/signing-key.pem",
    "client_cert_file": "keys/client.pem",
}
HEAL_SOCKET = Path("/run/compliance-agent/heal.sock")  # of compliance-agent-heal.socket
ADOPT_SOCKET = Path("/run/compliance-agent/adopt.sock")  # of compliance-agent-adopt.socket
_IN_UPLINK_DIR = {"mcp_api_key_file": "api-key", "client_cert_file": "client.pem"}
LOG_KEY_NAME = "log-key"
ORDER_ROOT_NAME = "order-root"
CREDENTIALS = "CREDENTIALS_DIRECTORY"
LOADED = ("mcp_api_key_file", "mcp_server_key_file", "mcp_log_key_file", "mcp_ca_file", "witness_token_file")
_CLOCK = re.compile(r"([01][0-9]|2[0-3]):([0-5][0-9])")


def setting(
    doc: str,
    default: Any = dataclasses.MISSING,
    *,
    low: int | None = None,
    high: int | None = None,
    words: tuple[str, ...] = (),
) -> Any:
    """A field of the configuration with its sentence, bounds (both included) or allowed words."""
    metadata = {"doc": doc, "low": low, "high": high, "words": words}
    if default is dataclasses.MISSING:
        return dataclasses.field(metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


@dataclass(frozen=True, kw_only=True)
class AgentConfig:
    """Everything the agent is told. Paths may be given as text; they are absolute `Path`s afterwards.

    Raises:
        ConfigError: a field is missing, of the wrong type, out of bounds, or contradicts another; names the field.
    """

    client_id: str = setting("The managed service provider's id for the client the host belongs to.")
    site_id: str = setting("The clinic (site) the host stands in.")
    host_id: str = setting("The host's label, unique within its site; its identity is its key.")
    deployment_mode: str = setting(
        "Who runs the agent: the provider itself or a reseller.", "direct", words=("direct", "reseller")
    )
    reseller_id: str | None = setting("The reseller's id; required when deployment_mode is reseller.", None)
    policy_version: str = setting("Version of the compliance policy the baseline implements.", "1.0")

    state_dir: Path = setting(
        "Directory of the agent's database, reserve file and lock.", Path("/var/lib/compliance-agent")
    )
    evidence_dir: Path = setting("Directory of the evidence; `evidence` in state_dir when not given.", None)
    log_dir: Path = setting(
        "Kept for older configurations; logs go to standard error. `logs` in state_dir when not given.", None
    )
    baseline_path: Path = setting("The baseline file.", Path("/etc/msp/baseline.yaml"))
    baseline_key_file: Path | None = setting(
        "Public key (PEM) whose signature the baseline must carry in `<baseline>.sig`; without it, what is in the file counts.",
        None,
    )
    signing_key_file: Path = setting(
        "The host's Ed25519 key; `keys/signing-key.pem` in state_dir when not given.", None
    )

    order_root_file: Path | None = setting(
        "File with the SHA-256 of the order root that this host is pinned to, as enrolment wrote it; who may sign orders"
        " follows from there. Without this or order_keys_file no order counts.",
        None,
    )
    order_keys_file: Path | None = setting(
        "Instead of order_root_file, for hosts that somebody looks after by hand: file (root's, JSON) that says whose signed orders"
        " count on this host.",
        None,
    )

    key_rotation_days: int = setting(
        "Days after which this host's key gives way to a new one by itself; 0 leaves it to `keys rotate`.",
        0,
        low=0,
        high=3_650,
    )

    api_key_rotation_days: int = setting(
        "Days after which this host's API key gives way to a new one by itself; 0 leaves it to `keys rotate --api-key`.",
        90,
        low=0,
        high=3_650,
    )

    leases: bool = setting(
        "Cures that users would notice wait for the server's leave, so many hosts of a site at a time; needs an mcp_url.",
        True,
    )

    mcp_url: str | None = setting(
        "Address of the MCP server; without one the agent records and delivers nothing.", None
    )
    mcp_api_key_file: Path | None = setting("File with the API key that enrolment wrote.", None)
    mcp_server_key_file: Path | None = setting(
        "File with the server's acknowledgement key (hex) that enrolment pinned.", None
    )
    mcp_log_key_file: Path | None = setting(
        "File with the key of the server's transparency logs (hex, then the server's name) that enrolment pinned; `log-key` beside"
        " mcp_server_key_file when not given.",
        None,
    )
    witness_policy_file: Path | None = setting(
        "C2SP tlog-policy lines (witness, group, quorum) of the witnesses whose cosignatures of the server's logs count here;"
        " the log's own key is pinned.",
        None,
    )
    witness_required: bool = setting(
        "A receipt without the quorum of witness_policy_file is refused, not only said to be unwitnessed.", False
    )
    witness_logs_file: Path | None = setting(
        "Lines `log <key> <url>` (C2SP tlog-policy) of logs that this agent witnesses itself; the witness role is off without it.",
        None,
    )
    witness_name: str | None = setting(
        "Name of this agent as a witness, a URL without scheme; kept from its first start on.", None
    )
    witness_token_file: Path | None = setting(
        "File with a read token for the server of witness_logs_file, whose logs are not shown to everybody.", None
    )
    witness_ca_file: Path | None = setting("Certificate authority of the servers of witness_logs_file (PEM).", None)
    otlp_url: str | None = setting(
        "Address of an OpenTelemetry collector that takes OTLP over HTTP (`/v1/traces` is added), for the spans of each drift"
        " (docs/tracing.md); needs the extra `otel`. Nothing is sent without it.",
        None,
    )
    keep_days: int = setting(
        "Days after which records that the server has logged, and holds in a backup, are removed here; 0 keeps all for ever.",
        0,
        low=0,
        high=36_500,
    )
    mcp_ca_file: Path | None = setting("Certificate authority the server's TLS certificate must come from (PEM).", None)
    client_cert_file: Path = setting(
        "Client certificate for mutual TLS, with its key (PEM); the agent asks for it when the server wants one, and renews it;"
        " `keys/client.pem` in state_dir when not given.",
        None,
    )
    client_key_file: Path | None = setting(
        "Key of a client certificate (PEM) that somebody else looks after; the agent then leaves both files alone.",
        None,
    )
    mcp_poll_interval_sec: int = setting(
        "Seconds between two rounds, +-10 %; a check is looked at in a round when its own interval has passed.",
        60,
        low=1,
        high=86_400,
    )

    events: bool = setting(
        "A change of what a check reads has that check looked at at once; the rounds go on all the same.", True
    )
    event_gap_sec: int = setting(
        "Shortest time between two looks at one check that events cause, seconds; longer while they go on.",
        1,
        low=1,
        high=3_600,
    )
    event_looks_per_hour: int = setting(
        "Looks that events may cause in any hour, over all checks; then rounds alone, until half of them are an hour old.",
        600,
        low=1,
        high=100_000,
    )

    maintenance_window_start: time = setting("Local start of the window for disruptive cures, HH:MM.", time(2, 0))
    maintenance_window_end: time = setting(
        "Local end of that window, HH:MM; before the start means over midnight.", time(4, 0)
    )
    maintenance_window_zone: str = setting("IANA time zone of the window.", "UTC")

    heartbeat_interval_sec: int = setting("Seconds between two signed heartbeats.", 3_600, low=10, high=86_400)
    healing_budget_per_hour: int = setting(
        "Cures this host may try in an hour, over all checks.", 20, low=0, high=1_000
    )
    healing_cooldown_sec: int = setting(
        "Seconds after a cure before the same check is cured again.", 300, low=0, high=86_400
    )
    flap_limit: int = setting(
        "Cures of one check within flap_window_sec after which it is left alone.", 5, low=1, high=100
    )
    flap_window_sec: int = setting("Seconds over which flap_limit counts.", 86_400, low=60, high=604_800)
    approval_for_disruptive: bool = setting(
        "Disruptive cures also wait for a person's approval; with `split`, root's side too, after `baseline permit`.",
        False,
    )

    upload_batch_size: int = setting("Bundles in one request.", 100, low=1, high=100)
    upload_timeout_sec: int = setting("Seconds after which one request is given up.", 20, low=1, high=300)
    upload_turn_sec: int = setting("Seconds that one iteration gives to delivery at its end.", 10, low=1, high=300)
    reserve_kb: int = setting("KiB kept back so that delivery still works on a full disk.", 512, low=0, high=1_048_576)
    log_level: str = setting(
        "Least severe events that are logged.", "INFO", words=("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL")
    )
    admin_socket: Path | None = setting(
        "Unix socket of the admin API; `agent.sock` in the service's runtime directory, or else in state_dir, when not given.",
        None,
    )
    privileges: str = setting(
        "`single`: one process. `split`: what speaks to the network is a process of its own, `compliance-agent uplink`.",
        "single",
        words=("single", "split"),
    )
    uplink_socket: Path = setting(
        "Socket at which uplink takes the agent's requests, where privileges is split.",
        Path("/run/compliance-agent/uplink.sock"),
    )
    uplink_dir: Path = setting(
        "Directory of uplink's own files, where privileges is split: `api-key`, `ca.pem`, `client.pem`.",
        Path("/var/lib/compliance-agent-uplink"),
    )
    heal_socket: Path | None = setting(
        "Socket of the root side, through which cures change the host; that of the shipped units where privileges is split. "
        "Without it the agent changes the host itself, as root.",
        None,
    )
    adopt_socket: Path | None = setting(
        "Socket of the root side that takes a baseline which was ordered, after it has verified order and baseline itself; that of "
        "the shipped units where privileges is split. Without it the agent writes its baseline itself.",
        None,
    )
    run_user: str = setting(
        "User of the agent; where privileges is split, uplink serves it alone, and root.", "compliance-agent"
    )
    uplink_user: str = setting(
        "User of uplink; where privileges is split, the agent speaks to it alone, and to the service manager.",
        "compliance-agent-uplink",
    )

    def __post_init__(self) -> None:
        hints = typing.get_type_hints(type(self))
        for field in dataclasses.fields(self):
            object.__setattr__(self, field.name, _checked(field, hints[field.name], getattr(self, field.name)))
        if self.client_key_file is not None and self.client_cert_file is None:
            raise ConfigError("client_key_file: needs client_cert_file, the certificate it is the key of")
        places = {name: self.state_dir / place for name, place in _IN_STATE_DIR.items()}
        if self.privileges == "split":
            places |= {name: self.uplink_dir / place for name, place in _IN_UPLINK_DIR.items()}
            places |= {"heal_socket": HEAL_SOCKET, "adopt_socket": ADOPT_SOCKET}
        for name, path in places.items():
            if getattr(self, name) is None:
                object.__setattr__(self, name, path)
        if self.mcp_log_key_file is None and self.mcp_server_key_file is not None:
            object.__setattr__(self, "mcp_log_key_file", self.mcp_server_key_file.with_name(LOG_KEY_NAME))
        for name in ("client_id", "site_id", "host_id", "reseller_id"):
            value = getattr(self, name)
            if value is not None and not LABEL.fullmatch(value):
                raise ConfigError(f"{name}: expected 1 to 63 letters, digits, dots, dashes or underscores")
        if not VERSION.fullmatch(self.policy_version):  # it stands in every bundle
            raise ConfigError('policy_version: expected a version such as "1.0", without spaces, at most 40 characters')
        self._agree()
        check_url("mcp_url", self.mcp_url)
        check_url("otlp_url", self.otlp_url)
        zone_named(self.maintenance_window_zone)

    def _agree(self) -> None:
        """Settings that are good by themselves and not beside each other, and names that no user can have."""
        for wrong, message in (
            (
                self.order_root_file is not None and self.order_keys_file is not None,
                "order_keys_file: not with order_root_file, whose root says whose orders count",
            ),
            (
                self.deployment_mode == "reseller" and self.reseller_id is None,
                "reseller_id: required when deployment_mode is reseller",
            ),
            (
                self.witness_logs_file is not None and self.witness_name is None,
                "witness_logs_file: a witness needs a witness_name",
            ),
            (
                self.witness_required and self.witness_policy_file is None,
                "witness_required: needs witness_policy_file, which says whose word is required",
            ),
            (_USER.fullmatch(self.run_user) is None, "run_user: expected the name of a user of this host"),
            (_USER.fullmatch(self.uplink_user) is None, "uplink_user: expected the name of a user of this host"),
        ):
            if wrong:
                raise ConfigError(message)

    @property
    def database_path(self) -> Path:
        """The one SQLite database of this agent."""
        return self.state_dir / "agent.db"

    @property
    def drills_dir(self) -> Path:
        """Where the newest proof of each drill stands until it is recorded."""
        return self.state_dir / "drills"

    @classmethod
    def from_file(cls, path: str | Path, environ: Mapping[str, str] | None = None) -> AgentConfig:
        """The file's values, overlaid with `MSP_*` from the environment.

        Args:
            path: a YAML file; relative paths in it are taken from its directory.
            environ: the environment; this process's own when not given.

        Raises:
            ConfigError: names the file and the field.
        """
        path = Path(path)
        try:
            document = read_yaml(read_file(path, limit_bytes=MAX_BYTES, trusted=True))
        except AgentError as error:
            raise ConfigError(
                f"config {path}: {error}" if str(path) not in str(error) else f"config {error}", hint=error.hint
            ) from error
        try:
            return cls._from_mapping(document, _environment(environ), path.resolve().parent)
        except ConfigError as error:
            raise ConfigError(f"config {path}: {error}", hint=error.hint) from error

    @classmethod
    def from_env(cls, environ: Mapping[str, str] | None = None) -> AgentConfig:
        """The configuration from `MSP_*` alone.

        Raises:
            ConfigError: names the variable.
        """
        return cls._from_mapping({}, _environment(environ), Path.cwd())

    @classmethod
    def _from_mapping(cls, document: Any, environment: Mapping[str, str], base: Path) -> AgentConfig:
        fields = {field.name: field for field in dataclasses.fields(cls)}
        if not isinstance(document, dict):
            raise ConfigError("expected a mapping of settings")
        for key in document:
            if key not in fields:
                raise ConfigError(f"unknown key {key[:60]!r}{nearest(key, fields)}")
        values = {**_credentials(environment), **document, **_variables(environment, fields)}
        for name, field in fields.items():
            if name not in values and field.default is dataclasses.MISSING:
                raise ConfigError(f"{name}: required (or set {PREFIX}{name.upper()})")
        hints = typing.get_type_hints(cls)
        return cls(**{name: _anchored(value, hints[name], base) for name, value in values.items()})


def _environment(environ: Mapping[str, str] | None) -> Mapping[str, str]:
    return os.environ if environ is None else environ


def _variables(environment: Mapping[str, str], fields: Mapping[str, Any]) -> dict[str, str]:
    known = {PREFIX + name.upper(): name for name in fields}
    values = {}
    for variable, value in environment.items():
        if not variable.startswith(PREFIX) or variable.startswith(SERVER_PREFIX):
            continue
        if variable not in known:
            raise ConfigError(f"unknown variable {variable[:60]}{nearest(variable, known)}")
        values[known[variable]] = value
    return values


def _credentials(environment: Mapping[str, str]) -> dict[str, str]:
    """What the service manager loaded for this service (LoadCredential=), by the names of the settings without `_file`."""
    directory = environment.get(CREDENTIALS, "")
    places = {name: f"{directory}/{name.removesuffix('_file')}" for name in LOADED}
    return {name: path for name, path in places.items() if directory and os.path.lexists(path)}


def _anchored(value: Any, hint: Any, base: Path) -> Any:
    if Path in (hint, *typing.get_args(hint)) and isinstance(value, str) and value:
        return base / value
    return value


def _kind(hint: Any) -> tuple[Any, bool]:
    if isinstance(hint, types.UnionType):
        return next(option for option in typing.get_args(hint) if option is not type(None)), True
    return hint, False


def _checked(field: dataclasses.Field[Any], hint: Any, value: Any) -> Any:
    kind, optional = _kind(hint)
    name = field.name
    if value is None and (optional or field.default is None):
        return None
    if kind is Path:
        return _path(name, value)
    if kind is time:
        return _time(name, value)
    if kind is int:
        return _int(name, value, field.metadata["low"], field.metadata["high"])
    if kind is bool:
        return _bool(name, value)
    if not isinstance(value, str) or not value or len(value) > 2_048 or not value.isprintable():
        raise ConfigError(f"{name}: expected text, found {_shown(value)}")
    words = field.metadata["words"]
    if words and value not in words:
        raise ConfigError(f"{name}: expected one of {', '.join(words)}, found {_shown(value)}{nearest(value, words)}")
    return value


def _shown(value: Any) -> str:
    return "nothing" if value is None else repr(value)[:60]


def _path(name: str, value: Any) -> Path:
    if not isinstance(value, str | os.PathLike) or not 0 < len(str(value)) <= 4_096 or not str(value).isprintable():
        raise ConfigError(f"{name}: expected a path, found {_shown(value)}")
    return Path(value).absolute()


def _time(name: str, value: Any) -> time:
    if isinstance(value, time):
        return value
    matched = _CLOCK.fullmatch(value) if isinstance(value, str) and value.isascii() else None
    if matched is None:
        raise ConfigError(f"{name}: expected HH:MM, found {_shown(value)}")
    return time(int(matched[1]), int(matched[2]))


def _int(name: str, value: Any, low: int, high: int) -> int:
    if isinstance(value, str) and re.fullmatch(r"[0-9]{1,9}", value, re.ASCII):
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise ConfigError(f"{name}: expected a whole number from {low} to {high}, found {_shown(value)}")
    return value


def _bool(name: str, value: Any) -> bool:
    if value is True or value == "true":
        return True
    if value is False or value == "false":
        return False
    raise ConfigError(f"{name}: expected true or false, found {_shown(value)}")


def check_url(name: str, url: str | None) -> None:
    """Refuse an address that is not https, or http to this machine itself."""
    if url is None:
        return
    try:
        parts = urlsplit(url)
        port_is_valid = parts.port is None or 0 < parts.port < 65_536
    except ValueError as error:
        raise ConfigError(f"{name}: not a URL: {_shown(url)}") from error
    if (
        parts.scheme not in {"https", "http"}
        or not parts.hostname
        or not port_is_valid
        or parts.query
        or parts.fragment
        or parts.username
    ):
        raise ConfigError(f"{name}: expected https://host[:port][/prefix] without user, query or fragment")
    if parts.scheme == "http" and parts.hostname not in _LOOPBACK:
        raise ConfigError(f"{name}: http is only allowed to this machine itself; use https")
