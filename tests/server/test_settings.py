"""Settings: file below environment below options, everything checked, the field named."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from compliance_agent.errors import ConfigError
from compliance_agent.server.settings import ServerSettings, parse


def test_environment_wins_over_the_file_and_options_over_both() -> None:
    raw = b"port: 1\nname: from-file\nclient_id: c1\n"
    found = parse(raw, {"MSP_SERVER_PORT": "2", "MSP_SERVER_NAME": "from-env", "MSP_SITE_ID": "x"}, port=3, host=None)
    assert (found.port, found.name, found.client_id, found.host) == (3, "from-env", "c1", "127.0.0.1")
    assert parse(None, {}) == ServerSettings()
    assert parse(b"", {}) == ServerSettings()


@pytest.mark.parametrize(
    ("raw", "named"),
    [
        (b"prot: 1", "unknown key 'prot'; did you mean \"port\"?"),
        (b"port: x", "port"),
        (b"port: true", "port"),
        (b"port: 65536", "port"),
        (b"port: -1", "port"),
        (b"port: 1.5", "port"),
        (b"port: 1\nport: 2", "port"),
        (b"tls: yes", "tls"),
        (b"tls: 1", "tls"),
        (b"host: 0.0.0.0", "host"),
        (b"host: 'a b'", "host"),
        (b"host: ''", "host"),
        (b"name: 'x y'", "name"),
        (b"data_dir: relative", "data_dir"),
        (b"public_url: ftp://x", "public_url"),
        (b"public_url: http://u:p@x", "public_url"),
        (b"public_url: 'http://x:99999'", "public_url"),
        (b"log_level: LOUD", "log_level"),
        (b"silent_after_s: 0", "silent_after_s"),
        (b"- a", "mapping"),
        (b"a: &b c", "anchors"),
        (b"\xff", "UTF-8"),
        (b"name: \0", "NUL"),
    ],
)
def test_what_cannot_be_used_is_named(raw: bytes, named: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse(raw, {})
    assert named in str(caught.value)
    assert "\n" not in caught.value.line


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("MSP_SERVER_PROT", "1"),
        ("MSP_SERVER_PORT", "\uff11"),
        ("MSP_SERVER_PORT", "1_0"),
        ("MSP_SERVER_PORT", ""),
        ("MSP_SERVER_TLS", "1"),
    ],
)
def test_a_bad_variable_is_named(variable: str, value: str) -> None:
    with pytest.raises(ConfigError, match=variable):
        parse(None, {variable: value})


@pytest.mark.parametrize("given", [{"host": "0.0.0.0"}, {"host": "192.0.2.1"}, {"host": "server.example"}])
def test_an_open_address_needs_tls(given: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="tls"):
        parse(None, {}, **given)
    assert parse(None, {}, tls=True, **given).tls


def test_every_setting_has_its_sentence() -> None:
    import dataclasses

    assert all(len(item.metadata["doc"].split()) > 3 for item in dataclasses.fields(ServerSettings))
    assert ServerSettings(data_dir=Path("/x")).data_dir == Path("/x")
