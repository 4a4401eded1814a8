"""`compliance-agent config`: bad configuration is 78 and one line that names the field; secrets are named, never shown."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from compliance_agent.crypto import Ed25519Signer
from tests.cli.command import configured, run


def test_a_good_configuration_is_told(tmp_path: Path) -> None:
    ended = run("config", "check", "--config", configured(tmp_path))
    assert (ended.status, ended.err) == (0, "")
    assert ended.out == "ok: srv-1 at clinic-1, baseline 1 with 1 checks\n"


def test_show_gives_every_setting_in_effect(tmp_path: Path) -> None:
    path = configured(tmp_path, mcp_api_key_file="key")
    (tmp_path / "key").write_text("TOP-SECRET")
    ended = run("config", "show", "--json", "--config", path, env={"MSP_HOST_ID": "srv-9"})
    document = json.loads(ended.out)
    assert document["schema"] == "compliance-agent/config/v1"
    assert document["settings"]["host_id"] == "srv-9"
    assert document["settings"]["maintenance_window_start"] == "02:00"
    assert "TOP-SECRET" not in ended.out
    assert "host_id: srv-1" in run("config", "show", "--config", path).out


def write(text: str | bytes, mode: int = 0o600) -> Callable[[Path], Any]:
    def plant(path: Path) -> None:
        path.write_bytes(text.encode() if isinstance(text, str) else text)
        path.chmod(mode)

    return plant


GOOD = "client_id: c\nsite_id: s\nhost_id: h\n"
BAD: dict[str, tuple[Callable[[Path], Any], str]] = {
    "absent": (lambda path: None, "ENOENT"),
    "directory": (lambda path: path.mkdir(), "not a regular file"),
    "endless": (lambda path: path.symlink_to("/dev/zero"), "not a regular file"),
    "open to all": (write(GOOD, 0o666), "chmod"),
    "empty": (write(""), "expected a mapping"),
    "a list": (write("- 1\n"), "expected a mapping"),
    "unknown key": (write(GOOD + "hostid: x\n"), 'did you mean "host_id"?'),
    "bad value": (write(GOOD + "mcp_poll_interval_sec: 0\n"), "mcp_poll_interval_sec"),
    "bad UTF-8": (write(GOOD.encode() + b"# \xff"), "not UTF-8"),
    "NUL": (write(GOOD.encode() + b"\0"), "NUL"),
    "deep": (write(b"[" * 200_000), "deep"),
    "huge": (write(b"#" * 100_000_000), "larger than"),
    "not YAML": (write("a: [\n"), "line"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_file_is_one_line_and_78(tmp_path: Path, name: str) -> None:
    plant, said = BAD[name]
    path = tmp_path / "agent.yaml"
    plant(path)
    ended = run("config", "check", "--config", path)
    assert ended.status == 78
    assert ended.out == ""
    assert said in ended.line and str(path) in ended.line


def test_a_bad_variable_is_named() -> None:
    ended = run("config", "check", env={"MSP_SITEID": "x"})
    assert ended.status == 78
    assert 'did you mean "MSP_SITE_ID"' in ended.line


def test_the_public_key_is_what_auditors_need_and_none_is_made(tmp_path: Path) -> None:
    path = configured(tmp_path)
    assert run("config", "public-key", "--config", path).status == 66
    assert not (tmp_path / "state").exists()
    signer = Ed25519Signer(tmp_path / "state" / "keys" / "signing-key.pem")
    ended = run("config", "public-key", "--config", path)
    assert (ended.status, ended.out) == (0, signer.public_pem())
