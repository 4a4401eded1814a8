"""deploy/compose.yaml: of the specification's own schema, and of what the server has. No container engine was at hand."""

from __future__ import annotations

import asyncio
import copy
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path
from typing import Any

import click
import jsonschema
import pytest
import yaml

from compliance_agent.errors import ConfigError
from compliance_agent.server.store import Address, migrate
from tests.deploy.product import DEPLOY, ROOT, parsed, read, settings_of
from tests.postgres import Postgres
from tests.server.conftest import postgres as postgres  # noqa: PLC0414  a fixture
from tests.server.test_process import command, running

SCHEMA = json.loads((files("check_jsonschema") / "builtin_schemas/vendor/compose-spec.json").read_bytes())
DATA = "/var/lib/compliance-agent-server"
SERVERS = ("migrate", "init", "server-1", "server-2")


@pytest.fixture
def compose() -> dict[str, Any]:
    found: dict[str, Any] = read("compose.yaml")
    return found


def refused(compose: dict[str, Any]) -> list[str]:
    checker = jsonschema.validators.validator_for(SCHEMA)(SCHEMA)
    return [f"{list(error.absolute_path)}: {error.message[:80]}" for error in checker.iter_errors(compose)]


def test_it_is_of_the_specification(compose: dict[str, Any]) -> None:
    assert refused(compose) == []


@pytest.mark.parametrize(
    "plant",
    [
        lambda it: it["services"]["db"].update(imagee="x"),
        lambda it: it["services"]["db"].update(read_only=5),
        lambda it: it["services"]["caddy"].update(ports=[{"targe": 1}]),
        lambda it: it["services"]["server-1"]["depends_on"]["migrate"].update(condition="done"),
        lambda it: it.update(servces={}),
    ],
)
def test_the_schema_sees_a_planted_fault(compose: dict[str, Any], plant: Callable[[dict[str, Any]], None]) -> None:
    planted = copy.deepcopy(compose)
    plant(planted)
    assert refused(planted) != []


def test_every_name_it_uses_is_declared(compose: dict[str, Any]) -> None:
    """Volumes, networks, secrets, services that are waited for, and files of the host: nothing dangles, nothing is left over."""
    used: dict[str, set[str]] = {"volumes": set(), "networks": set(), "secrets": set()}
    for service in compose["services"].values():
        for volume in service.get("volumes", ()):
            source, target = volume.split(":")[:2]
            assert target.startswith("/")
            if source.startswith("."):
                assert (DEPLOY / source).exists() and volume.endswith(":ro"), volume
            else:
                used["volumes"].add(source)
        used["networks"] |= set(service["networks"])
        used["secrets"] |= {item if isinstance(item, str) else item["source"] for item in service.get("secrets", ())}
        assert set(service.get("depends_on", ())) <= compose["services"].keys()
    assert {kind: set(compose[kind]) for kind in used} == used


def test_what_the_server_is_told_is_what_it_understands(compose: dict[str, Any]) -> None:
    seen = [compose["services"][name]["environment"] for name in SERVERS]
    assert all(one == seen[0] for one in seen)
    settings = settings_of({**seen[0], "MSP_SERVER_PUBLIC_URL": "https://mcp.example.com"})
    assert (str(settings.data_dir), settings.tls, settings.host, settings.port) == (DATA, True, "0.0.0.0", 8443)
    with pytest.raises(ConfigError, match="MSP_SERVER_DATBASE"):
        settings_of({"MSP_SERVER_DATBASE": "x"})
    for name in SERVERS:
        parsed(compose["services"][name].get("command", []))
    with pytest.raises(click.UsageError):
        parsed(["migrate", "--ownr", "x"])


def test_two_replicas_share_keys_and_nothing_else(compose: dict[str, Any]) -> None:
    """One data directory each, with its own files of the logs; keys and certificate are one for both."""
    mounts = [
        {target: source for source, target in (item.split(":") for item in compose["services"][name]["volumes"])}
        for name in ("server-1", "server-2")
    ]
    assert mounts[0].keys() == mounts[1].keys() == {DATA, *(f"{DATA}/{part}" for part in ("keys", "tls"))}
    assert [path for path in mounts[0] if mounts[0][path] != mounts[1][path]] == [DATA]
    first = dict(item.split(":")[::-1] for item in compose["services"]["init"]["volumes"])
    assert all(first[f"{DATA}/{part}"] == mounts[0][f"{DATA}/{part}"] for part in ("keys", "tls"))
    assert {compose["services"][name]["hostname"] for name in SERVERS} == {"server"}


def test_nothing_runs_with_more_than_it_needs(compose: dict[str, Any]) -> None:
    for name, service in compose["services"].items():
        assert service["read_only"] is True and service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        assert "privileged" not in service and "network_mode" not in service, name
        assert re.fullmatch(r"[a-z/-]+:[\w.-]+", service["image"]) and not service["image"].endswith(":latest"), name
    assert {name: it["cap_add"] for name, it in compose["services"].items() if "cap_add" in it} == {
        "caddy": ["NET_BIND_SERVICE"]
    }
    published = {name: service["ports"] for name, service in compose["services"].items() if "ports" in service}
    assert published == {"caddy": ["443:8443"], "grafana": ["127.0.0.1:3000:3000"]}
    assert compose["networks"]["inner"] == {"internal": True}
    outside = {name for name, service in compose["services"].items() if "outer" in service["networks"]}
    assert outside == {"caddy", "grafana"}
    told = yaml.safe_dump([service.get("environment", {}) for service in compose["services"].values()])
    assert not re.search(r"PASSWORD(?!_FILE|__FILE)", told)


def test_prometheus_asks_every_replica_where_caddy_hands_its_figures_on(compose: dict[str, Any]) -> None:
    config = read("prometheus/compose.yml")
    [job] = config["scrape_configs"]
    assert (job["job_name"], config["rule_files"]) == ("compliance-server", ["rules.yml"])
    paths = {item["labels"]["__metrics_path__"] for item in job["static_configs"]}
    caddyfile = (DEPLOY / "Caddyfile").read_text()
    assert paths == {f"/{name}" for name in compose["services"] if name.startswith("server-")}
    assert all(f"path {path}\n" in caddyfile and f"https:/{path}:8443" in caddyfile for path in paths)
    assert {target for item in job["static_configs"] for target in item["targets"]} == {"caddy:9180"}
    [argument] = [it for it in compose["services"]["prometheus"]["command"] if it.startswith("--config.file=")]
    assert argument.removeprefix("--config.file=/etc/prometheus/") == "compose.yml"


def test_grafana_finds_its_dashboard(compose: dict[str, Any]) -> None:
    [provider] = read("grafana/provisioning/dashboards/compliance.yml")["providers"]
    [source] = read("grafana/provisioning/datasources/prometheus.yml")["datasources"]
    mounted = [item.split(":")[1] for item in compose["services"]["grafana"]["volumes"]]
    assert any(path.startswith(provider["options"]["path"] + "/") for path in mounted)
    assert source["url"] == "http://prometheus:9090" and "prometheus" in compose["services"]


# --- run here, as far as there is no container engine ---------------------------------------------


def made_secrets(directory: Path) -> subprocess.CompletedProcess[str]:
    script = ["sh", str(DEPLOY / "secrets.sh"), str(directory)]
    return subprocess.run(script, capture_output=True, text=True, check=False)


def test_the_secrets_and_the_roles_are_what_postgresql_and_the_server_take(
    tmp_path: Path, postgres: Postgres, compose: dict[str, Any]
) -> None:
    """The script is run, its statements are run on a PostgreSQL, and `server migrate` makes the schema with these two roles."""
    secrets = tmp_path / "secrets"
    assert made_secrets(secrets).returncode == 0
    assert {item["file"] for item in compose["secrets"].values()} == {
        f"./secrets/{path.name}" for path in secrets.iterdir()
    }
    assert {path.stat().st_mode & 0o777 for path in secrets.iterdir()} == {0o600}
    assert made_secrets(secrets).returncode == 77
    words = {name: (secrets / f"{name}-password").read_text() for name in ("postgres", "owner", "server", "grafana")}
    assert all(re.fullmatch(r"[0-9a-f]{48}", word) for word in words.values()) and len(set(words.values())) == 4
    if os.getuid() == 0:
        assert (secrets / "roles.sql").stat().st_uid == int(compose["services"]["db"]["user"].split(":")[0])
        os.chown(secrets / "owner-password", 0, 0)
    name = f"c{os.urandom(8).hex()}"
    sql = (secrets / "roles.sql").read_text()
    for role in ("compliance_owner", "compliance_server"):
        sql = sql.replace(role, f"{role}_{name}")
    sql = sql.replace("DATABASE compliance", f"DATABASE {name}")
    owner, server = (postgres.address(name, f"{role}_{name}") for role in ("compliance_owner", "compliance_server"))

    async def act() -> None:
        for statement in filter(None, (part.strip() for part in sql.split(";"))):
            await postgres.by_hand("postgres", statement)
        try:
            await migrate(Address(owner.url, words["owner"]), f"compliance_server_{name}")
        finally:
            await postgres.by_hand("postgres", f"DROP DATABASE {name} WITH (FORCE)")
            await postgres.by_hand("postgres", f"DROP ROLE compliance_owner_{name}")
            await postgres.by_hand("postgres", f"DROP ROLE compliance_server_{name}")

    asyncio.run(act())
    assert server.url.startswith("postgresql://compliance_server_")


def test_the_health_check_tells_a_server_that_lives(tmp_path: Path, compose: dict[str, Any]) -> None:
    test = compose["services"]["server-1"]["healthcheck"]["test"]
    assert test[:3] == ["CMD", "python", "-c"]
    with running(tmp_path / "data", "--tls") as server:
        code = test[3].replace("localhost:8443", server.url.removeprefix("https://").replace("127.0.0.1", "localhost"))
        asked = [sys.executable, "-c", code]
        assert subprocess.run(asked, cwd=tmp_path / "data", check=False, capture_output=True).returncode == 0
    assert subprocess.run(asked, cwd=tmp_path / "data", check=False, capture_output=True).returncode == 1


def test_the_file_that_is_kept_out_of_the_image_is_kept_out(tmp_path: Path) -> None:
    """What the Containerfile copies is let in by .containerignore, and the secrets are ignored by git."""
    copied = re.findall(r"^COPY (?!--from)(.*) \S+$", (ROOT / "Containerfile").read_text(), re.MULTILINE)
    wanted = {word.rstrip("/") for line in copied for word in line.split()}
    ignore = (ROOT / ".containerignore").read_text().splitlines()
    assert {line[1:] for line in ignore if line.startswith("!")} == wanted
    assert "*" in ignore and all((ROOT / name).exists() for name in wanted)
    assert "/deploy/secrets/" in (ROOT / ".gitignore").read_text().splitlines()
    assert command("server", "--help").returncode == 0
