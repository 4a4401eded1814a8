"""Config, baseline, token and bundle that are not what they should be: one line, the documented status, nothing changed."""

from __future__ import annotations

import asyncio
import base64
import dataclasses
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from datetime import time
from pathlib import Path
from typing import Any

import pytest

from compliance_agent.agent import ComplianceAgent
from compliance_agent.baseline import load
from compliance_agent.cli.common import shipped_baseline
from compliance_agent.config import AgentConfig
from compliance_agent.crypto import Ed25519Signer
from compliance_agent.documents import read_yaml
from compliance_agent.drift import DriftDetector
from compliance_agent.evidence.canonical import canonical
from compliance_agent.evidence.problems import CODES
from compliance_agent.lab.clinic import healthy_host
from compliance_agent.lab.drift import FAULTS
from tests.real.bad_input import (
    NO_DOCUMENT,
    NOT_TRUSTED,
    WRONG,
    Where,
    clean,
    leaves,
    must_refuse,
    name_of,
    tell,
    tree,
    with_raw,
)
from tests.real.stage import environment

pytestmark = [pytest.mark.real]
FOUND, CONFIG, EVIDENCE, INPUT = 1, 78, 65, 66
TOKEN = {"v": 1, "site": "clinic-1", "exp": 4_000_000_000, "secret": "ab" * 16, "ca_sha256": None}
BASELINE = read_yaml(shipped_baseline().read_bytes())


@pytest.fixture(autouse=True)
def no_settings_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("MSP_")]:
        monkeypatch.delenv(name)


def settings(directory: Path) -> dict[str, Any]:
    """Every setting, as a document, with a value that is good."""
    given: dict[str, Any] = {
        "client_id": "msp-1", "site_id": "clinic-1", "host_id": "srv-1", "reseller_id": "reseller-1",
        "state_dir": str(directory / "state"), "baseline_path": str(shipped_baseline()), "mcp_url": "https://mcp.example.com",
        "mcp_api_key_file": "api-key", "mcp_server_key_file": "server-key", "mcp_ca_file": "ca.pem",
        "client_cert_file": "cert.pem", "client_key_file": "key.pem",
    }  # fmt: skip
    config = AgentConfig(**given)
    for field in dataclasses.fields(AgentConfig):
        value = getattr(config, field.name)
        shown = f"{value:%H:%M}" if isinstance(value, time) else str(value) if isinstance(value, Path) else value
        given.setdefault(field.name, shown)
    return given


def written(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    path.chmod(0o600)
    return path


# Configuration


def test_the_good_configuration_is_taken(tmp_path: Path) -> None:
    path = written(tmp_path / "agent.yaml", json.dumps(settings(tmp_path)).encode())
    told = tell("config", "check", "--config", path)
    assert told.status == 0, told.err


@pytest.mark.parametrize("field", [field.name for field in dataclasses.fields(AgentConfig)])
def test_a_setting_with_any_wrong_value_is_named(tmp_path: Path, field: str) -> None:
    document = settings(tmp_path)
    for case, raw in WRONG.items():
        path = written(tmp_path / "agent.yaml", with_raw(document, (field,), raw))
        before = tree(tmp_path)
        told = tell("config", "check", "--config", path)
        any_path_may = {"four-byte character"} if field.endswith(("_dir", "_file", "_path", "_socket")) else set()
        refused = case in refused_in_yaml(document[field]) - any_path_may
        if told.status == FOUND and not refused:  # a value that may be, which does not go with the others
            assert field in told.out and not told.err, told
        elif told.status or refused:
            clean(told, CONFIG, *named(told, field, field == "baseline_path"))
        assert tree(tmp_path) == before, case


def refused_in_yaml(good: object) -> set[str]:
    """A plain scalar that no number can be is text in YAML, and a long row of digits is such a one."""
    return must_refuse(good) - ({"2**63"} if isinstance(good, str) else set())


def named(told: Any, field: str, elsewhere: bool = False) -> list[str]:
    """What the line has to name: the field, or the line of a document that breaks before anybody knows which it would be."""
    return [".yaml", "line 1: "] if "line 1: " in told.err else [] if elsewhere else [".yaml", field]


@pytest.mark.parametrize("case", [*NO_DOCUMENT, *NOT_TRUSTED])
def test_a_configuration_file_that_is_none_is_refused(tmp_path: Path, case: str) -> None:
    good = json.dumps(settings(tmp_path)).encode()
    path = tmp_path / "agent.yaml"
    (NO_DOCUMENT | NOT_TRUSTED)[case](path, good)
    before = tree(tmp_path)
    for words in (("config", "check"), ("check",), ("heal",), ("run",)):
        clean(tell(*words, "--config", path), CONFIG, str(path))
    assert tree(tmp_path) == before


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("host_id: a\nhost_id: b\n", "host_id"),
        ("host_idd: a\n", "did you mean"),
        ("client_id: c\nsite_id: s\n", "host_id"),
        ("maintenance_window_start: '24:00'\n", "maintenance_window_start"),
        ("maintenance_window_start: '\uff12:\uff10\uff10'\n", "maintenance_window_start"),
        ("maintenance_window_start: '02:00Z'\n", "maintenance_window_start"),
        ("maintenance_window_zone: ../../etc/passwd\n", "maintenance_window_zone"),
        ("maintenance_window_zone: /etc/localtime\n", "maintenance_window_zone"),
        ("mcp_url: http://mcp.example.com\n", "mcp_url"),
        ("mcp_url: 'https://[::1'\n", "mcp_url"),
        ("mcp_url: https://user:secret@mcp.example.com\n", "mcp_url"),
        ("a: &x [1]\nb: *x\n", "anchors"),
        ("a: !!python/object/apply:os.system [true]\n", "tags"),
        ("---\na: 1\n---\nb: 2\n", "second document"),
        ("? [1]\n: 2\n", "line"),
    ],
    ids=str,
)
def test_a_configuration_that_means_two_things_is_refused(tmp_path: Path, text: str, named: str) -> None:
    rest = "" if "client_id" in text else "client_id: c\nsite_id: s\n" + ("" if "host_id" in text else "host_id: h\n")
    path = written(tmp_path / "agent.yaml", (rest + text).encode() if not text.startswith("---") else text.encode())
    told = tell("config", "check", "--config", path)
    clean(told, CONFIG, named)
    assert "secret" not in told.err


def test_line_ends_of_other_systems_are_taken(tmp_path: Path) -> None:
    text = json.dumps(settings(tmp_path), indent=1).replace("\n", "\r\n")
    assert tell("config", "check", "--config", written(tmp_path / "agent.yaml", text.encode())).status == 0


@pytest.mark.parametrize("variable", ["MSP_HOST_ID", "MSP_MCP_POLL_INTERVAL_SEC", "MSP_MAINTENANCE_WINDOW_START"])
@pytest.mark.parametrize(
    "value", [b"", b"\xff\xfe", "\uff11\uff12".encode(), b"1__0 ", b"a\x1b[31m", b"../x", b"9" * 5_000]
)
def test_a_variable_with_a_wrong_value_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variable: str, value: bytes
) -> None:
    path = written(tmp_path / "agent.yaml", json.dumps(settings(tmp_path)).encode())
    monkeypatch.setenv(variable, os.fsdecode(value))
    clean(tell("config", "check", "--config", path), CONFIG, variable.removeprefix("MSP_").lower())


# Baseline


def with_baseline(tmp_path: Path) -> tuple[Path, Path]:
    """A configuration that names a baseline beside it."""
    document = settings(tmp_path) | {"baseline_path": "baseline.yaml"}
    return written(tmp_path / "agent.yaml", json.dumps(document).encode()), tmp_path / "baseline.yaml"


@pytest.mark.parametrize("where", [where for where, _ in leaves(BASELINE)], ids=lambda where: ".".join(map(str, where)))
def test_a_baseline_with_any_wrong_value_is_named(tmp_path: Path, where: Where) -> None:
    config, baseline = with_baseline(tmp_path)
    good = dict(leaves(BASELINE))[where]
    for case, raw in WRONG.items():
        written(baseline, with_raw(BASELINE, where, raw))
        before = tree(tmp_path)
        told = tell("config", "check", "--config", config)
        if told.status or case in refused_in_yaml(good):
            clean(told, CONFIG, *named(told, name_of(where)))
        assert tree(tmp_path) == before, case


@pytest.mark.parametrize("case", [*NO_DOCUMENT, *NOT_TRUSTED])
def test_a_baseline_file_that_is_none_is_refused(tmp_path: Path, case: str) -> None:
    config, baseline = with_baseline(tmp_path)
    (NO_DOCUMENT | NOT_TRUSTED)[case](baseline, json.dumps(BASELINE).encode())
    for words in (("config", "check"), ("check",), ("run",)):
        clean(tell(*words, "--config", config), CONFIG, str(baseline))


@pytest.mark.parametrize("expires", ["0000-01-01T00:00:00Z", "9999-13-01T00:00:00Z", "2026-11-22T24:00:00Z",
                                     "2026-11-22T12:00:00", "2026-11-22", "2026-11-22T12:00:00+01:00"])  # fmt: skip
def test_an_exception_without_a_real_end_is_refused(tmp_path: Path, expires: str) -> None:
    config, baseline = with_baseline(tmp_path)
    item = {"id": "EX-1", "check": "patching", "approver": "dr-who", "expires": expires}
    written(baseline, json.dumps(BASELINE | {"exceptions": [item]}).encode())
    clean(tell("config", "check", "--config", config), CONFIG, "exceptions[0].expires")


# Token


def token_text(document: bytes) -> bytes:
    return b"cae1." + base64.urlsafe_b64encode(document).rstrip(b"=") + b"\n"


def enrol(tmp_path: Path) -> Any:
    """`enrol` against a port where nobody listens: a bad token is refused before that matters."""
    return tell("enrol", "--server", "http://127.0.0.1:9", "--token-file", tmp_path / "enrol.token",
                "--state-dir", tmp_path / "state", "--host-id", "srv-1")  # fmt: skip


def test_with_a_good_token_it_is_the_server_that_is_missing(tmp_path: Path) -> None:
    written(tmp_path / "enrol.token", token_text(json.dumps(TOKEN).encode()))
    clean(enrol(tmp_path), 69, "127.0.0.1:9")


@pytest.mark.parametrize("where", [where for where, _ in leaves(TOKEN)], ids=name_of)
def test_a_token_with_any_wrong_value_is_refused(tmp_path: Path, where: Where) -> None:
    for case in must_refuse(dict(leaves(TOKEN))[where]):
        written(tmp_path / "enrol.token", token_text(with_raw(TOKEN, where, WRONG[case])))
        before = tree(tmp_path)
        clean(enrol(tmp_path), CONFIG, "enrol.token")
        assert tree(tmp_path) == before, case


@pytest.mark.parametrize("case", [*NO_DOCUMENT, *NOT_TRUSTED])
def test_a_token_file_that_is_none_is_refused_and_never_shown(tmp_path: Path, case: str) -> None:
    (NO_DOCUMENT | NOT_TRUSTED)[case](tmp_path / "enrol.token", token_text(json.dumps(TOKEN).encode()))
    before = tree(tmp_path)
    told = enrol(tmp_path)
    clean(told, CONFIG, "enrol.token")
    assert "cae1." not in told.out + told.err
    assert tree(tmp_path) == before


# Bundles


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Ed25519Signer]:
    """A host's directory with a drift, its cure and a heartbeat, and the key that signed them."""
    directory = tmp_path_factory.mktemp("host")
    (directory / "keys").mkdir()
    config = AgentConfig(client_id="c", site_id="s", host_id="h", state_dir=directory / "state",
                         evidence_dir=directory / "evidence", baseline_path=shipped_baseline())  # fmt: skip
    signer = Ed25519Signer(directory / "keys" / "h.pem")
    written(directory / "keys" / "h.pub.pem", signer.public_pem().encode())

    machine = healthy_host(1)
    FAULTS["chrony_stopped"].inject(machine)

    async def record() -> None:
        detector = DriftDetector(config, host=machine, baseline=load(shipped_baseline()), clock=machine.clock)
        agent = ComplianceAgent(config, signer=signer, drift_detector=detector, clock=machine.clock)
        await agent._run_iteration()
        await agent._heartbeat_if_due()
        await agent.close()

    asyncio.run(record())
    shutil.rmtree(directory / "state")
    return directory, signer


@pytest.fixture
def host(recorded: tuple[Path, Ed25519Signer], tmp_path: Path) -> Path:
    return Path(shutil.copytree(recorded[0], tmp_path / "h"))


def bundle_of(host: Path, kind: str) -> Path:
    return next(path for path in sorted(host.rglob("bundle.json")) if json.loads(path.read_bytes())["kind"] == kind)


def rejected(told: Any, name: str) -> None:
    """Status 65; what is wrong with which bundle is the report, on standard output."""
    assert told.status == EVIDENCE, f"exit {told.status}: {told.out[-300:]} {told.err[-300:]}"
    assert name in told.out
    assert any(f"{code}: " in told.out for code in CODES)
    assert all(line.isprintable() for line in told.out.splitlines())
    assert "Traceback" not in told.out + told.err
    assert len(told.err.splitlines()) <= 1
    assert told.cpu_s < 2.0


@pytest.mark.parametrize("kind", ["remediation", "heartbeat"])
def test_every_leaf_of_a_bundle_is_held_to_its_type(
    host: Path, recorded: tuple[Path, Ed25519Signer], kind: str
) -> None:
    """Even when the host's own key signed the wrong value."""
    path, signer = bundle_of(host, kind), recorded[1]
    document = json.loads(path.read_bytes())
    for where, good in leaves(document):
        for case in sorted(must_refuse(good)):
            body = with_raw(document, where, WRONG[case])
            path.write_bytes(body)
            path.with_name("bundle.sig").write_bytes(signer.sign(body))
            rejected(tell("verify", path.parent, "--key", host / "keys" / "h.pub.pem"), path.parent.name)


def test_unknown_and_missing_fields_of_a_bundle_are_refused(host: Path, recorded: tuple[Path, Ed25519Signer]) -> None:
    path, signer = bundle_of(host, "remediation"), recorded[1]
    document = json.loads(path.read_bytes())
    changed: list[dict[str, Any]] = [document | {"note": "free text"}]
    changed += [{name: value for name, value in document.items() if name != gone} for gone in document]
    for other in changed:
        body = canonical(other)
        path.write_bytes(body)
        path.with_name("bundle.sig").write_bytes(signer.sign(body))
        rejected(tell("verify", path.parent, "--key", host / "keys" / "h.pub.pem"), path.parent.name)


@pytest.mark.parametrize("file", ["bundle.json", "bundle.sig"])
@pytest.mark.parametrize("case", NO_DOCUMENT)
def test_a_bundle_whose_file_is_none_is_named(host: Path, case: str, file: str) -> None:
    path = bundle_of(host, "remediation").with_name(file)
    good = path.read_bytes()
    path.unlink()
    if file == "bundle.sig" and case in {"NUL", "byte order mark", "UTF-16", "encoded surrogate"}:
        good = good.hex().encode()
    NO_DOCUMENT[case](path, good)
    before = tree(host)
    told = tell("verify", host)
    if file == "bundle.json" and case == "absent":
        assert told.status == EVIDENCE, "the number that is missing is named"
    else:
        rejected(told, path.parent.name)
    assert tree(host) == before


@pytest.mark.parametrize("case", NO_DOCUMENT)
def test_a_public_key_that_is_none_is_refused(host: Path, case: str) -> None:
    path = host / "keys" / "h.pub.pem"
    good = path.read_bytes()
    path.unlink()
    NO_DOCUMENT[case](path, good)
    told = tell("verify", host / "evidence", "--key", path)
    if case == "byte order mark" and told.status == 0:
        return
    clean(told, INPUT if told.status == INPUT else EVIDENCE, str(path))


def test_evidence_that_is_not_there_is_no_success(tmp_path: Path) -> None:
    clean(tell("verify", tmp_path / "nowhere"), INPUT, "nowhere")
    (tmp_path / "empty").mkdir()
    clean(tell("verify", tmp_path / "empty"), INPUT, "no evidence")


# The same through processes of their own: status, one line, time and memory as the operating system counts them


# A process begins with the memory of the one that started it as its highest, so a small one has to start it.
COUNTER = """
import os, subprocess, sys
process = subprocess.Popen(sys.argv[1:], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
_, status, used = os.wait4(process.pid, 0)
print(os.waitstatus_to_exitcode(status), used.ru_utime + used.ru_stime, used.ru_maxrss / 1024)
"""


def counted(*words: str | Path) -> tuple[int, list[str], float, float]:
    """Exit status, lines on standard error, seconds of processor time and MiB of memory at most."""
    ran = subprocess.run(
        [sys.executable, "-I", "-S", "-c", COUNTER, sys.executable, "-m", "compliance_agent", *map(str, words)],
        env=environment(), stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip
    status, cpu_s, memory_mb = ran.stdout.split()
    return int(status), ran.stderr.splitlines(), float(cpu_s), float(memory_mb)


HANDFUL: dict[str, Callable[[Path, Path], tuple[tuple[str | Path, ...], int]]] = {
    "100 MB of configuration": lambda tmp, _: (_no(tmp, "agent.yaml", "100 MB", "run", "--config"), CONFIG),
    "a deep configuration": lambda tmp, _: (_no(tmp, "agent.yaml", "depth 200,000", "check", "--config"), CONFIG),
    "a fifo as baseline": lambda tmp, _: (_no(tmp, "baseline.yaml", "fifo", "check", "--baseline"), CONFIG),
    "endless zeros as baseline": lambda tmp, _: (_no(tmp, "b.yaml", "/dev/zero", "check", "--baseline"), CONFIG),
    "a token that is a directory": lambda tmp, _: (
        _no(tmp, "t", "directory", "enrol", "--server", "http://127.0.0.1:9", "--state-dir", tmp / "s", "--token-file"),
        CONFIG,
    ),
    "evidence that is nowhere": lambda tmp, _: (("verify", tmp / "nowhere"), INPUT),
}


def _no(tmp_path: Path, name: str, case: str, *words: str | Path) -> tuple[str | Path, ...]:
    NO_DOCUMENT[case](tmp_path / name, b"version: 1\n")
    return (*words, tmp_path / name)


@pytest.mark.parametrize("case", HANDFUL)
def test_a_process_refuses_within_two_seconds_and_150_mb(tmp_path: Path, host: Path, case: str) -> None:
    words, expected = HANDFUL[case](tmp_path, host)
    status, lines, cpu_s, memory_mb = counted(*words)
    assert (status, len(lines)) == (expected, 1), lines
    assert lines[0].startswith("compliance-agent: ")
    assert cpu_s < 2.0
    assert memory_mb < 150
