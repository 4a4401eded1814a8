"""A configuration is checked whole and once; whatever is wrong with it is one line that names the field."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable
from datetime import time
from pathlib import Path
from typing import Any

import pytest

from compliance_agent.config import AgentConfig
from compliance_agent.errors import AgentError, ConfigError

GOOD = "client_id: msp-1\nsite_id: clinic-1\nhost_id: srv-1\n"


def write(path: Path, text: str | bytes, mode: int = 0o600) -> Path:
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    path.chmod(mode)
    return path


def test_the_specifications_fixture_is_accepted(tmp_path: Path) -> None:
    given: dict[str, Any] = dict(  # paths as text, as the specification gives them
        deployment_mode="direct",
        client_id="test-client",
        site_id="test-site",
        host_id="test-host",
        state_dir=str(tmp_path / "state"),
        evidence_dir=str(tmp_path / "evidence"),
        log_dir=str(tmp_path / "logs"),
        baseline_path=str(tmp_path / "baseline.yaml"),
        signing_key_file=str(tmp_path / "signing-key.pem"),
        mcp_url="https://mcp.example.com",
        mcp_api_key_file=str(tmp_path / "api-key.txt"),
        mcp_poll_interval_sec=60,
        maintenance_window_start=time(2, 0),
        maintenance_window_end=time(4, 0),
    )
    config = AgentConfig(**given)
    assert config.evidence_dir == tmp_path / "evidence"
    assert config.database_path == tmp_path / "state" / "agent.db"


def test_the_environment_wins_over_the_file(tmp_path: Path) -> None:
    path = write(tmp_path / "agent.yaml", GOOD + "mcp_poll_interval_sec: 30\n")
    config = AgentConfig.from_file(path, {"MSP_MCP_POLL_INTERVAL_SEC": "45", "MSP_HOST_ID": "srv-2", "PATH": "/bin"})
    assert (config.mcp_poll_interval_sec, config.host_id, config.site_id) == (45, "srv-2", "clinic-1")


def test_the_environment_alone_is_enough() -> None:
    config = AgentConfig.from_env(
        {"MSP_CLIENT_ID": "c", "MSP_SITE_ID": "s", "MSP_HOST_ID": "h", "MSP_MCP_URL": "https://mcp.example.com",
         "MSP_MAINTENANCE_WINDOW_START": "22:30", "MSP_APPROVAL_FOR_DISRUPTIVE": "true"}
    )  # fmt: skip
    assert config.mcp_url == "https://mcp.example.com"
    assert config.maintenance_window_start == time(22, 30)
    assert config.approval_for_disruptive is True


def test_relative_paths_start_at_the_file(tmp_path: Path) -> None:
    config = AgentConfig.from_file(write(tmp_path / "agent.yaml", GOOD + "state_dir: state\n"), {})
    assert config.state_dir == tmp_path / "state"
    assert config.evidence_dir == tmp_path / "state" / "evidence"


def test_settings_are_frozen(tmp_path: Path) -> None:
    config = AgentConfig.from_file(write(tmp_path / "agent.yaml", GOOD), {})
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.host_id = "other"  # type: ignore[misc]


REFUSED = {
    "host_idd: x\n": "host_idd",
    "mcp_poll_interval_sec: 0\n": "mcp_poll_interval_sec",
    "mcp_poll_interval_sec: true\n": "mcp_poll_interval_sec",
    "mcp_poll_interval_sec: '\uff11\uff12'\n": "mcp_poll_interval_sec",
    "mcp_poll_interval_sec: 1_0\n": "mcp_poll_interval_sec",
    "mcp_poll_interval_sec: [60]\n": "mcp_poll_interval_sec",
    "mcp_poll_interval_sec: 9007199254740993\n": "2^53",
    "maintenance_window_start: '24:00'\n": "maintenance_window_start",
    "maintenance_window_start: 2\n": "maintenance_window_start",
    "maintenance_window_start: '\uff11\uff12:00'\n": "maintenance_window_start",
    "maintenance_window_zone: Mars/Olympus\n": "maintenance_window_zone",
    "maintenance_window_zone: ../../etc/passwd\n": "maintenance_window_zone",
    "mcp_url: http://mcp.example.com\n": "mcp_url",
    "mcp_url: ftp://mcp.example.com\n": "mcp_url",
    "mcp_url: https://user:pw@mcp.example.com\n": "mcp_url",
    "mcp_url: https://\n": "mcp_url",
    "mcp_url: https://x:99999\n": "mcp_url",
    "mcp_url: 'https://[::1'\n": "mcp_url",
    "site_id: ../up\n": "site_id",
    "deployment_mode: resellr\n": "deployment_mode",
    "deployment_mode: reseller\n": "reseller_id",
    "client_key_file: a.pem\n": "client_cert_file",
    "state_dir: ''\n": "state_dir",
    "approval_for_disruptive: 1\n": "approval_for_disruptive",
    "log_level: LOUD\n": "log_level",
    "evidence_dir: {a: 1}\n": "evidence_dir",
}


@pytest.mark.parametrize("addition", REFUSED)
def test_a_bad_value_is_refused_by_name(tmp_path: Path, addition: str) -> None:
    key = addition.split(":", 1)[0]
    text = "".join(line for line in GOOD.splitlines(keepends=True) if not line.startswith(key + ":")) + addition
    path = write(tmp_path / "agent.yaml", text)
    with pytest.raises(ConfigError) as refused:
        AgentConfig.from_file(path, {})
    assert REFUSED[addition] in refused.value.line
    assert str(path) in refused.value.line
    assert "\n" not in refused.value.line
    assert refused.value.exit_status == 78


@pytest.mark.parametrize(
    ("given", "meant"), [("mcp_poll_intervall_sec", "mcp_poll_interval_sec"), ("hostid", "host_id")]
)
def test_a_mistyped_key_is_told_what_was_meant(tmp_path: Path, given: str, meant: str) -> None:
    with pytest.raises(ConfigError, match=f'did you mean "{meant}"'):
        AgentConfig.from_file(write(tmp_path / "agent.yaml", GOOD + f"{given}: x\n"), {})


def test_a_mistyped_variable_is_told_what_was_meant() -> None:
    with pytest.raises(ConfigError, match='did you mean "MSP_SITE_ID"'):
        AgentConfig.from_env({"MSP_SITEID": "x"})


def test_the_servers_variables_are_not_the_agents() -> None:
    config = AgentConfig.from_env(
        {"MSP_CLIENT_ID": "c", "MSP_SITE_ID": "s", "MSP_HOST_ID": "h", "MSP_SERVER_PORT": "8443"}
    )
    assert config.host_id == "h"


def test_what_is_missing_is_named() -> None:
    with pytest.raises(ConfigError, match=r"site_id: required .*MSP_SITE_ID"):
        AgentConfig.from_env({"MSP_CLIENT_ID": "c", "MSP_HOST_ID": "h"})


def _fifo(path: Path) -> None:
    os.mkfifo(path)


BAD_FILES: dict[str, Callable[[Path], object]] = {
    "absent": lambda path: None,
    "directory": lambda path: path.mkdir(),
    "fifo": _fifo,
    "writable by others": lambda path: write(path, GOOD, 0o666),
    "empty": lambda path: write(path, ""),
    "a list": lambda path: write(path, "- a\n"),
    "utf-16": lambda path: write(path, GOOD.encode("utf-16")),
    "100 MB": lambda path: write(path, b"#" * 100_000_000),
    "endless device": lambda path: path.symlink_to("/dev/zero"),
    "loop of links": lambda path: path.symlink_to(path),
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_a_bad_file_is_refused_in_one_line(tmp_path: Path, name: str) -> None:
    path = tmp_path / "agent.yaml"
    BAD_FILES[name](path)
    with pytest.raises(AgentError) as refused:
        AgentConfig.from_file(path, {})
    assert "\n" not in refused.value.line
    assert refused.value.exit_status == 78
    assert "agent.yaml" in refused.value.line


def test_every_setting_has_its_sentence() -> None:
    for field in dataclasses.fields(AgentConfig):
        assert field.metadata["doc"].endswith("."), field.name


def test_credentials_of_the_service_manager_count_where_nothing_else_is_named(tmp_path: Path) -> None:
    """LoadCredential=mcp_api_key:...: the file in $CREDENTIALS_DIRECTORY, unless file or environment name another."""
    loaded = tmp_path / "credentials"
    loaded.mkdir()
    (loaded / "mcp_api_key").write_text("k")
    (loaded / "signing_key").write_text("never: the agent writes that one itself")
    named = {"MSP_CLIENT_ID": "m", "MSP_SITE_ID": "s", "MSP_HOST_ID": "h", "CREDENTIALS_DIRECTORY": str(loaded)}
    config = AgentConfig.from_env(named)
    assert config.mcp_api_key_file == loaded / "mcp_api_key"
    assert config.mcp_server_key_file is None
    assert config.signing_key_file == config.state_dir / "keys/signing-key.pem"
    other = AgentConfig.from_env({**named, "MSP_MCP_API_KEY_FILE": "/etc/msp/api-key"})
    assert other.mcp_api_key_file == Path("/etc/msp/api-key")
    assert AgentConfig.from_env({name: value for name, value in named.items() if name != "CREDENTIALS_DIRECTORY"})
