"""The baseline: what should be, for each check, and what may be done about it.

    version: "2026.11.1"
    mode: enforce            # `audit` here holds the whole host back
    checks:
      time_sync:
        mode: enforce        # an entry without a mode is audit
        interval_s: 60
        deadline_s: 10
        parameters: {max_offset_ms: 500}
    exceptions:
      - {id: exc-7, check: backup, reasons: [snapshot_too_old], approver: j.doe, created: ..., expires: 2026-12-01T00:00:00Z}

Parsed once, whole; an unknown key is refused with the nearest known one. The digest is over the exact bytes of the file, so an
auditor can hold the file against the bundles.
"""

from __future__ import annotations

import dataclasses
import hashlib
import types
import typing
from collections.abc import Collection, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from compliance_agent import crypto
from compliance_agent.adapters.durable import read_file
from compliance_agent.checks import registry
from compliance_agent.checks.spec import Check
from compliance_agent.dataclass import dataclass
from compliance_agent.documents import MAX_BYTES, read_yaml
from compliance_agent.errors import AgentError, ConfigError, DocumentError, NoInput
from compliance_agent.facts import NAME, VERSION, is_timestamp
from compliance_agent.models import Mode
from compliance_agent.words import nearest

MAX_KEY_BYTES = 16_384
_NAMES = "letters, digits, @._:/+-, no leading dash"


@dataclass(frozen=True)
class Exemption:
    """An approved departure from the baseline: the check fails, and a person has said until when that is accepted."""

    id: str
    check: str
    reasons: tuple[str, ...]
    approver: str
    expires: datetime

    def covers(self, check: str, reason: str, now: datetime) -> bool:
        """Whether it stands for this failure at this time. An empty `reasons` covers every reason of the check."""
        return check == self.check and now < self.expires and (not self.reasons or reason in self.reasons)


@dataclass(frozen=True)
class Entry:
    """One check's line in the baseline, its parameters already typed."""

    check: Check
    mode: Mode
    interval_s: int
    deadline_s: float
    parameters: Any
    names: Mapping[str, Collection[str]]


@dataclass(frozen=True)
class Baseline:
    """A whole, valid baseline.

    Attributes:
        version: as the file says.
        sha256: of the file's exact bytes.
        mode: of the whole host.
        entries: by check id; a check without an entry is not looked at.
        exceptions: approved departures, expired ones included.
    """

    version: str
    sha256: str
    mode: Mode
    entries: Mapping[str, Entry]
    exceptions: tuple[Exemption, ...] = ()

    def mode_of(self, check: str) -> Mode:
        """What is allowed for this check; a check that is not listed may only be looked at."""
        entry = self.entries.get(check)
        return Mode.ENFORCE if entry and self.mode is Mode.ENFORCE and entry.mode is Mode.ENFORCE else Mode.AUDIT

    def exception_for(self, check: str, reason: str, now: datetime) -> Exemption | None:
        """The unexpired exception that covers this failure, if one was approved."""
        return next((item for item in self.exceptions if item.covers(check, reason, now)), None)


def load(path: Path, *, trusted: bool = True, signed_by: Path | None = None) -> Baseline:
    """Read and check a baseline file.

    Args:
        path: the file.
        trusted: refuse one that others may write; False for the product's own, which is as safe as the code beside it.
        signed_by: the public key (PEM) whose signature over the exact bytes must stand beside it, in `<path>.sig`.

    Raises:
        ConfigError: it cannot be read or used; names the file and the field. `baseline_unsigned`, `baseline_signature`: it is
            not what the holder of the key has signed.
    """
    try:
        raw = read_file(path, limit_bytes=MAX_BYTES, trusted=trusted)
        if signed_by is not None:
            _check_signature(raw, signature_path(path), signed_by)
        return parse(raw)
    except ConfigError as error:
        raise ConfigError(f"baseline {path}: {error}", code=error.code, hint=error.hint) from error
    except DocumentError as error:
        raise ConfigError(f"baseline {path}: {error}", hint=error.hint) from error
    except AgentError as error:  # reading names the file itself
        raise ConfigError(f"baseline {error}", hint=error.hint) from error


def parse_signed(raw: bytes, sig: bytes, signed_by: Path | None) -> Baseline:
    """A baseline from bytes that came from elsewhere.

    Raises:
        ConfigError: `no_baseline_key`: this host knows no key whose baselines it would take; `baseline_signature`: it is not what
            the holder of that key has signed; or it cannot be used.
    """
    if signed_by is None:
        raise ConfigError(
            "baseline: this host takes none from elsewhere", code="no_baseline_key", hint="set baseline_key_file"
        )
    public = _public(signed_by)
    if not crypto.verify(public, sig, raw):
        raise ConfigError(f"baseline: not signed by key {crypto.key_id(public)[:16]}", code="baseline_signature")
    try:
        return parse(raw)
    except DocumentError as error:
        raise ConfigError(f"baseline: {error}", code="baseline_unusable") from error
    except ConfigError as error:
        raise ConfigError(f"baseline: {error}", code="baseline_unusable", hint=error.hint) from error


def signature_path(path: Path) -> Path:
    """Where the signature of a baseline file stands: beside it, 64 raw bytes that `openssl pkeyutl -rawin` verifies."""
    return path.with_name(path.name + ".sig")


def _public(signed_by: Path) -> bytes:
    try:
        return crypto.read_public_pem(read_file(signed_by, limit_bytes=MAX_KEY_BYTES, trusted=True))
    except AgentError as error:
        raise ConfigError(f"baseline_key_file {signed_by}: {error}", code=error.code, hint=error.hint) from error


def _check_signature(raw: bytes, signature: Path, signed_by: Path) -> None:
    public = _public(signed_by)
    try:
        sig = read_file(signature, limit_bytes=MAX_KEY_BYTES)
    except NoInput as error:
        raise ConfigError(
            f"not signed: {signature.name} is not there",
            code="baseline_unsigned",
            hint="compliance-agent baseline sign, with the key whose public half baseline_key_file names",
        ) from error
    if not crypto.verify(public, sig, raw):
        raise ConfigError(
            f"{signature.name} is not the signature of these bytes by key {crypto.key_id(public)[:16]}",
            code="baseline_signature",
            hint="it was changed after it was signed, or signed by another key",
        )


def parse(raw: bytes) -> Baseline:
    """A baseline from the bytes of its file.

    Raises:
        ConfigError: names the field, what was expected and what was found.
        DocumentError: not YAML.
    """
    document = _mapping(read_yaml(raw), "baseline", {"version", "mode", "checks", "exceptions"})
    version = checked_version(document.get("version"))
    checks = _mapping(document.get("checks"), "checks", set(registry()))
    if not checks:
        raise ConfigError("checks: none is listed; a baseline that looks at nothing proves nothing")
    entries = {name: _entry(name, value) for name, value in sorted(checks.items())}
    _refuse_contradictions(entries)
    return Baseline(
        version=version,
        sha256=hashlib.sha256(raw).hexdigest(),
        mode=_mode(document.get("mode", "enforce"), "mode"),
        entries=entries,
        exceptions=_exceptions(document.get("exceptions", [])),
    )


def checked_version(value: object) -> str:
    """The value, if it can name a baseline.

    Raises:
        ConfigError: it cannot.
    """
    if not isinstance(value, str) or not VERSION.fullmatch(value):
        raise ConfigError('version: expected a quoted version such as "2026.11.1"')
    return value


def wanted_units(entries: Mapping[str, Entry], want: str) -> dict[str, list[str]]:
    """Units that entries name as `needed` or `forbidden`, whole as systemd writes them, with the fields that do."""
    found: dict[str, list[str]] = {}
    for name, entry in entries.items():
        for field in dataclasses.fields(entry.parameters):
            if field.metadata.get("unit") == want:
                for unit in entry.names.get(field.name, ()):
                    whole = unit if "." in unit else f"{unit}.service"
                    found.setdefault(whole, []).append(f"checks.{name}.parameters.{field.name}")
    return found


def _refuse_contradictions(entries: Mapping[str, Entry]) -> None:
    """No host can be as two entries want that want opposite things, and their cures would undo each other for ever."""
    needed, forbidden = wanted_units(entries, "needed"), wanted_units(entries, "forbidden")
    for unit in sorted(needed.keys() & forbidden.keys()):
        raise ConfigError(
            f"{forbidden[unit][0]}: forbids {unit}, which {needed[unit][0]} needs",
            code="baseline_contradiction",
            hint="take the unit out of one of them",
        )


def _mapping(value: Any, field: str, known: set[str]) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ConfigError(f"{field}: expected a mapping, found {_kind(value)}")
    for key in value:
        if key not in known:
            raise ConfigError(f"{field}: unknown key {key[:60]!r}{nearest(key, known)}")
    return value


def _exceptions(value: Any) -> tuple[Exemption, ...]:
    if not isinstance(value, list):
        raise ConfigError(f"exceptions: expected a list, found {_kind(value)}")
    found = tuple(_exception(item, number) for number, item in enumerate(value))
    seen: set[str] = set()
    for item in found:
        if item.id in seen:
            raise ConfigError(f"exceptions: id {item.id!r} stands twice")
        seen.add(item.id)
    return found


def _kind(value: Any) -> str:
    kinds: dict[type, str] = {type(None): "nothing", dict: "a mapping", list: "a list", str: "text"}
    return kinds.get(type(value), type(value).__name__)


def _mode(value: Any, field: str) -> Mode:
    try:
        return Mode(value)
    except ValueError as error:
        raise ConfigError(f"{field}: expected audit or enforce, found {str(value)[:40]!r}") from error


def _whole(value: Any, field: str, low: int, high: int) -> int:
    if type(value) is not int or not low <= value <= high:
        raise ConfigError(f"{field}: expected a whole number from {low} to {high}, found {str(value)[:40]!r}")
    return value


def _entry(name: str, value: Any) -> Entry:
    spec = registry()[name].spec
    where = f"checks.{name}"
    entry = _mapping({} if value is None else value, where, {"mode", "interval_s", "deadline_s", "parameters"})
    parameters = typed_parameters(spec.parameters, entry.get("parameters"), f"{where}.parameters")
    return Entry(
        check=registry()[name],
        mode=_mode(entry.get("mode", "audit"), f"{where}.mode"),
        interval_s=_whole(entry.get("interval_s", spec.interval_s), f"{where}.interval_s", 1, 86_400),
        deadline_s=_whole(entry.get("deadline_s", int(spec.deadline_s)), f"{where}.deadline_s", 1, 3_600),
        parameters=parameters,
        names=names_of(parameters),
    )


def typed_parameters(kind: type, value: Any, where: str) -> Any:
    """An instance of a check's parameters class from a mapping of the file.

    Raises:
        ConfigError: unknown or missing key, wrong type, or a value the class itself refuses with `ValueError`.
    """
    fields = {field.name: field for field in dataclasses.fields(kind)}
    given = _mapping({} if value is None else value, where, set(fields))
    hints = typing.get_type_hints(kind)
    arguments: dict[str, Any] = {}
    for name, field in fields.items():
        if name in given:
            arguments[name] = _typed(given[name], hints[name], f"{where}.{name}")
        elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            raise ConfigError(f"{where}: {name} is required")
    try:
        return kind(**arguments)
    except ValueError as error:
        raise ConfigError(f"{where}: {error}") from error


def _typed(value: Any, hint: Any, where: str) -> Any:
    if isinstance(hint, types.UnionType):
        if value is None:
            return None
        hint = next(option for option in typing.get_args(hint) if option is not type(None))
    if typing.get_origin(hint) is tuple:
        if not isinstance(value, list) or not all(is_name(item) for item in value):
            raise ConfigError(f"{where}: expected a list of names ({_NAMES})")
        if len(set(value)) != len(value):
            raise ConfigError(f"{where}: a name stands twice")
        return tuple(value)
    if hint is str and not is_name(value):
        raise ConfigError(f"{where}: expected a name ({_NAMES}), found {str(value)[:40]!r}")
    if hint is int and type(value) is not int:
        raise ConfigError(f"{where}: expected a whole number, found {str(value)[:40]!r}")
    if hint is bool and not isinstance(value, bool):
        raise ConfigError(f"{where}: expected true or false, found {str(value)[:40]!r}")
    if hint not in {str, int, bool}:
        raise RuntimeError(f"{where}: a parameter may not be of type {hint}")
    return value


def is_name(value: object) -> bool:
    """Whether it may stand in the baseline as a name. A leading dash is refused: a name may become a program's argument."""
    return isinstance(value, str) and NAME.fullmatch(value) is not None and not value.startswith("-")


def names_of(parameters: Any) -> dict[str, tuple[str, ...]]:
    """The baseline's own words by parameter: what a `Name` fact may say."""
    names: dict[str, tuple[str, ...]] = {}
    for field in dataclasses.fields(parameters):
        value = getattr(parameters, field.name)
        if isinstance(value, str):
            names[field.name] = (value,)
        elif isinstance(value, tuple):
            names[field.name] = value
    return names


def _exception(value: Any, number: int) -> Exemption:
    where = f"exceptions[{number}]"
    item = _mapping(value, where, {"id", "check", "reasons", "approver", "created", "expires", "measure"})
    check = item.get("check")
    if not isinstance(check, str) or check not in registry():
        raise ConfigError(f"{where}.check: no such check {str(check)[:40]!r}{nearest(str(check), registry())}")
    for field in ("id", "approver", *(["measure"] if "measure" in item else [])):
        if not is_name(item.get(field)):
            raise ConfigError(f"{where}.{field}: expected a name ({_NAMES})")
    reasons = item.get("reasons", [])
    known = registry()[check].spec.reasons
    if not isinstance(reasons, list) or not all(isinstance(reason, str) and reason in known for reason in reasons):
        raise ConfigError(f"{where}.reasons: expected reasons of {check} ({', '.join(known)})")
    expires = timestamp(item.get("expires"), f"{where}.expires")
    if "created" in item and timestamp(item["created"], f"{where}.created") >= expires:
        raise ConfigError(f"{where}.expires: expected a time after created")
    return Exemption(item["id"], check, tuple(reasons), item["approver"], expires)


def timestamp(value: Any, where: str) -> datetime:
    """A UTC time from its RFC 3339 form with `Z`.

    Raises:
        ConfigError: anything else.
    """
    if is_timestamp(value):
        return datetime.fromisoformat(value).astimezone(UTC)
    raise ConfigError(f"{where}: expected a time such as 2026-12-31T00:00:00Z, found {str(value)[:40]!r}")
