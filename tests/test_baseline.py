"""A baseline is read whole, strictly and once; what is wrong with it is one line that names file and field."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from compliance_agent import baseline as module
from compliance_agent.baseline import Baseline, load, names_of, parse, timestamp, typed_parameters
from compliance_agent.checks import registry
from compliance_agent.errors import ConfigError, DocumentError
from compliance_agent.models import Mode

NOW = datetime(2026, 11, 22, 12, 0, tzinfo=UTC)
GOOD = 'version: "2026.11.1"\nchecks:\n  time_sync: {mode: enforce}\n'


def with_entry(entry: str) -> bytes:
    return f'version: "1"\nchecks:\n  time_sync: {entry}\n'.encode()


def with_exception(**changes: Any) -> bytes:
    item = {"id": "exc-7", "check": "time_sync", "approver": "j.doe", "expires": "2026-12-01T00:00:00Z", **changes}
    inside = ", ".join(f"{key}: {value}" for key, value in item.items() if value is not None)
    return f"{GOOD}exceptions:\n  - {{{inside}}}\n".encode()


def test_defaults_come_from_the_check_and_an_entry_without_a_mode_is_audit() -> None:
    found = parse(b'version: "1"\nchecks:\n  time_sync:\n  logging: {interval_s: 30, deadline_s: 7}\n')
    assert list(found.entries) == ["logging", "time_sync"]
    assert found.mode is Mode.ENFORCE
    assert found.mode_of("time_sync") is Mode.AUDIT
    assert found.mode_of("not_listed") is Mode.AUDIT
    assert (found.entries["logging"].interval_s, found.entries["logging"].deadline_s) == (30, 7)
    spec = found.entries["time_sync"].check.spec
    assert found.entries["time_sync"].interval_s == spec.interval_s


@pytest.mark.parametrize(
    ("host", "entry", "allowed"),
    [("enforce", "enforce", Mode.ENFORCE), ("audit", "enforce", Mode.AUDIT), ("enforce", "audit", Mode.AUDIT)],
)
def test_audit_anywhere_holds_a_check_back(host: str, entry: str, allowed: Mode) -> None:
    found = parse(f'version: "1"\nmode: {host}\nchecks:\n  time_sync: {{mode: {entry}}}\n'.encode())
    assert found.mode_of("time_sync") is allowed


def test_the_digest_is_over_the_exact_bytes(tmp_path: Path) -> None:
    path = tmp_path / "baseline.yaml"
    path.write_bytes(GOOD.encode() + b"# a remark\n")
    path.chmod(0o600)
    assert load(path).sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


REFUSED: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "baseline: expected a mapping, found nothing"),
    "one byte": (b"x", "baseline: expected a mapping, found text"),
    "a list": (b"- a\n", "expected a mapping, found a list"),
    "unknown key": (GOOD.encode() + b"exception: []\n", 'did you mean "exceptions"?'),
    "no version": (b"checks: {time_sync: }\n", "version"),
    "version is a number": (b"version: 1\nchecks: {time_sync: }\n", "version"),
    "version of full-width digits": ('version: "\uff12"\nchecks: {time_sync: }\n'.encode(), "version"),
    "no checks": (b'version: "1"\n', "checks: expected a mapping, found nothing"),
    "nothing to look at": (b'version: "1"\nchecks: {}\n', "none is listed"),
    "checks as a list": (b'version: "1"\nchecks: [time_sync]\n', "checks: expected a mapping, found a list"),
    "unknown check": (b'version: "1"\nchecks:\n  time_sink: {}\n', 'did you mean "time_sync"?'),
    "unknown entry key": (with_entry("{moode: audit}"), 'checks.time_sync: unknown key \'moode\'; did you mean "mode"?'),
    "entry is text": (with_entry("yes"), "checks.time_sync: expected a mapping"),
    "mode": (with_entry("{mode: Enforce}"), "checks.time_sync.mode: expected audit or enforce"),
    "mode is a list": (with_entry("{mode: [audit]}"), "checks.time_sync.mode"),
    "mode is true": (with_entry("{mode: true}"), "checks.time_sync.mode"),
    "mode of the host": (b'version: "1"\nmode: off\nchecks: {time_sync: }\n', "mode: expected audit or enforce"),
    "interval 0": (with_entry("{interval_s: 0}"), "checks.time_sync.interval_s"),
    "interval -0": (with_entry("{interval_s: -0}"), "checks.time_sync.interval_s"),
    "interval true": (with_entry("{interval_s: true}"), "checks.time_sync.interval_s"),
    "interval with a fraction": (with_entry("{interval_s: 1.5}"), "checks.time_sync.interval_s"),
    "interval of full-width digits": (with_entry("{interval_s: \uff11\uff12}"), "interval_s"),
    "interval 1_0": (with_entry("{interval_s: 1_0}"), "checks.time_sync.interval_s"),
    "interval 1e999": (with_entry("{interval_s: 1e999}"), "checks.time_sync.interval_s"),
    "interval NaN": (with_entry("{interval_s: .nan}"), "checks.time_sync.interval_s"),
    "interval 2**63": (with_entry("{interval_s: 9223372036854775808}"), "checks.time_sync.interval_s"),
    "5,000-digit number": (with_entry("{interval_s: " + "9" * 5_000 + "}"), "interval_s"),
    "deadline": (with_entry("{deadline_s: 3601}"), "checks.time_sync.deadline_s"),
    "unknown parameter": (with_entry("{parameters: {max_offset: 5}}"), "checks.time_sync.parameters: unknown key"),
    "parameters as a list": (with_entry("{parameters: []}"), "checks.time_sync.parameters: expected a mapping"),
    "parameter of another type": (with_entry("{parameters: {max_offset_ms: '5'}}"), "parameters.max_offset_ms"),
    "parameter is a truth": (with_entry("{parameters: {max_offset_ms: true}}"), "parameters.max_offset_ms"),
    "a key twice": (GOOD.encode() + b"version: '2'\n", "stands twice"),
    "an alias": (b"version: &a '1'\nchecks: {time_sync: *a}\n", "anchors and aliases"),
    "a tag": (b"version: !!python/name:os.system x\n", "tags are not allowed"),
    "a second document": (GOOD.encode() + b"---\na: 1\n", "second document"),
    "BOM": (b"\xef\xbb\xbf" + GOOD.encode(), "byte order mark"),
    "UTF-16": (GOOD.encode("utf-16"), "byte order mark"),
    "bad UTF-8": (GOOD.encode() + b"# \xff\n", "not UTF-8"),
    "NUL": (GOOD.encode() + b"\0", "NUL"),
    "lone surrogate": (b'version: "\\ud800"\nchecks: {time_sync: }\n', ""),
    "deep": (b"a: " + b"[" * 200_000, "deep"),
    "exceptions as a mapping": (GOOD.encode() + b"exceptions: {}\n", "exceptions: expected a list, found a mapping"),
    "exceptions as nothing": (GOOD.encode() + b"exceptions:\n", "exceptions: expected a list, found nothing"),
    "exception is text": (GOOD.encode() + b"exceptions: [x]\n", "exceptions[0]: expected a mapping"),
    "exception of no check": (with_exception(check="time_sink"), 'exceptions[0].check: no such check \'time_sink\''),
    "exception of a list of checks": (with_exception(check="[time_sync]"), "exceptions[0].check"),
    "exception without an end": (with_exception(expires=None), "exceptions[0].expires"),
    "exception without a zone": (with_exception(expires="2026-12-01T00:00:00"), "exceptions[0].expires"),
    "exception until day 0": (with_exception(expires="0000-00-00T00:00:00Z"), "exceptions[0].expires"),
    "exception until year 9999 24:00": (with_exception(expires="9999-12-31T24:00:00Z"), "exceptions[0].expires"),
    "exception that ends before it begins": (with_exception(created="2027-01-01T00:00:00Z"), "exceptions[0].expires"),
    "exception made at no time": (with_exception(created="yesterday"), "exceptions[0].created"),
    "exception by nobody": (with_exception(approver=None), "exceptions[0].approver"),
    "exception by a sentence": (with_exception(approver="'Jane Doe, MD'"), "exceptions[0].approver"),
    "exception for an unknown reason": (with_exception(reasons="[because]"), "exceptions[0].reasons"),
    "exception with an unknown key": (with_exception(until="x"), "exceptions[0]: unknown key 'until'"),
    "an exception's id twice": (with_exception() + with_exception().split(b"exceptions:\n")[1], "stands twice"),
}  # fmt: skip


CONTRADICTIONS = [
    ("chrony.service", "time_sync:", "time_sync"),
    ("rsyslog.service", "logging:", "logging"),
    ("chronyd.service", "time_sync: {parameters: {unit: chronyd}}", "time_sync"),
]


@pytest.mark.parametrize("mode", ["audit", "enforce"])
@pytest.mark.parametrize(("unit", "entry", "other"), CONTRADICTIONS)
def test_entries_that_contradict_each_other_are_refused(unit: str, entry: str, other: str, mode: str) -> None:
    """Whatever the mode: a host that can never be as it is asked to be is no baseline's business."""
    services = f"services: {{parameters: {{active: [cron.service], forbidden: [{unit}]}}}}"
    with pytest.raises(ConfigError) as refused:
        parse(f'version: "1"\nmode: {mode}\nchecks:\n  {services}\n  {entry}\n'.encode())
    assert refused.value.code == "baseline_contradiction"
    assert f"forbids {unit}" in str(refused.value) and f"checks.{other}.parameters.unit" in str(refused.value)
    for alone in (services, entry):
        assert parse(f'version: "1"\nchecks:\n  {alone}\n'.encode()).entries


def test_every_parameter_that_names_units_says_what_it_wants_of_them() -> None:
    """Else a contradiction would pass unseen; `known_units` only gives names to what is found."""
    for check in registry().values():
        for item in dataclasses.fields(check.spec.parameters):
            words = item.default if isinstance(item.default, tuple) else (item.default,)
            units = [word for word in words if str(word).rpartition(".")[2] in {"service", "socket", "timer"}]
            named = bool(units) or item.name in {"unit", "units"}
            if named and (check.id, item.name) != ("listening_ports", "known_units"):
                assert item.metadata.get("unit") in {"needed", "forbidden"}, f"{check.id}.{item.name}"


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_ambiguous_or_wrong_is_refused_by_field(tmp_path: Path, name: str) -> None:
    raw, field = REFUSED[name]
    path = tmp_path / "baseline.yaml"
    path.write_bytes(raw)
    path.chmod(0o600)
    began = time.monotonic()
    with pytest.raises(ConfigError) as refused:
        load(path)
    line = refused.value.line
    assert field in line and str(path) in line, line
    assert "\n" not in line and len(line) < 600, line
    assert refused.value.exit_status == 78
    assert time.monotonic() - began < 2


def write(path: Path, content: bytes, mode: int) -> None:
    path.write_bytes(content)
    path.chmod(mode)


def _fifo(path: Path) -> None:
    os.mkfifo(path)


FILES: dict[str, Callable[[Path], Any]] = {
    "absent": lambda path: None,
    "directory": lambda path: path.mkdir(),
    "fifo": _fifo,
    "endless": lambda path: path.symlink_to("/dev/zero"),
    "writable by others": lambda path: write(path, GOOD.encode(), 0o666),
    "100 MB": lambda path: write(path, b"#" * 100_000_000, 0o600),
}


@pytest.mark.parametrize("name", FILES)
def test_a_file_that_cannot_be_trusted_is_refused(tmp_path: Path, name: str) -> None:
    path = tmp_path / "baseline.yaml"
    FILES[name](path)
    with pytest.raises(ConfigError) as refused:
        load(path)
    assert "baseline.yaml" in refused.value.line and "\n" not in refused.value.line


@given(st.binary(max_size=300))
def test_no_bytes_raise_anything_but_a_refusal(raw: bytes) -> None:
    try:
        assert isinstance(parse(raw), Baseline)
    except (ConfigError, DocumentError) as error:
        assert "\n" not in error.line


def test_an_exception_covers_its_reasons_until_it_expires() -> None:
    found = parse(with_exception())
    end = datetime(2026, 12, 1, tzinfo=UTC)
    for at, covered in ((NOW, True), (end - timedelta(microseconds=1), True), (end, False)):
        assert (found.exception_for("time_sync", "any_reason", at) is not None) is covered
    assert found.exception_for("logging", "any_reason", NOW) is None
    reason = next(iter(found.entries["time_sync"].check.spec.reasons))
    narrow = parse(with_exception(reasons=f"[{reason}]"))
    assert narrow.exception_for("time_sync", reason, NOW) is not None
    assert narrow.exception_for("time_sync", "another", NOW) is None


def test_the_shipped_baselines_are_valid() -> None:
    shipped = sorted((Path(module.__file__).parent / "baselines").glob("*.yaml"))
    assert shipped
    for path in shipped:
        assert parse(path.read_bytes()).entries


def test_the_products_own_baseline_may_stand_in_a_checkout_that_a_group_may_write(tmp_path: Path) -> None:
    path = tmp_path / "baseline.yaml"
    write(path, GOOD.encode(), 0o664)
    with pytest.raises(ConfigError, match="lets others write"):
        load(path)
    assert load(path, trusted=False).version == "2026.11.1"


@dataclass(frozen=True)
class Parameters:
    unit: str
    paths: tuple[str, ...] = ()
    limit: int | None = None
    probe: bool = False


@pytest.mark.parametrize("word", ["a", "sshd@x.service", "/var/log/auth.log", "a:b+c-d", "x" * 96])
def test_a_name_of_the_baseline(word: str) -> None:
    assert typed_parameters(Parameters, {"unit": word, "paths": [word]}, "x") == Parameters(word, (word,))


@pytest.mark.parametrize(
    "word", ["", " ", "a b", "a\n", "ü", "a;b", "$(a)", "a=b", "x" * 97, "--root=/", "-x", "\u202ea", "a\0", 1, None]
)
def test_no_name(word: Any) -> None:
    for given_ in ({"unit": word}, {"unit": "a", "paths": [word]}):
        with pytest.raises(ConfigError, match=r"^x\.(unit|paths): expected"):
            typed_parameters(Parameters, given_, "x")


def test_a_required_parameter_is_named() -> None:
    with pytest.raises(ConfigError, match="x: unit is required"):
        typed_parameters(Parameters, None, "x")
    with pytest.raises(ConfigError, match=r"x\.paths: a name stands twice"):
        typed_parameters(Parameters, {"unit": "a", "paths": ["b", "b"]}, "x")


def test_what_a_class_refuses_is_a_refusal_of_the_file() -> None:
    @dataclass(frozen=True)
    class Strict:
        limit: int = 1

        def __post_init__(self) -> None:
            if self.limit > 10:
                raise ValueError("limit: expected at most 10")

    with pytest.raises(ConfigError, match="x: limit: expected at most 10"):
        typed_parameters(Strict, {"limit": 11}, "x")


def test_the_baselines_words_are_what_names_may_say() -> None:
    assert names_of(Parameters("a", ("b", "c"))) == {"unit": ("a",), "paths": ("b", "c")}


def test_timestamps_are_utc() -> None:
    assert timestamp("2026-12-01T00:00:00Z", "x") == datetime(2026, 12, 1, tzinfo=UTC)
