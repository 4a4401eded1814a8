"""Static files: only those that are ours, under names that change with their content, as vendor.json says."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from starlette.applications import Starlette
from starlette.testclient import TestClient

from compliance_agent.web.assets import FOR_EVER, STATIC_ROUTE, assets

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def client() -> TestClient:
    return TestClient(Starlette(routes=[STATIC_ROUTE]))


def test_each_file_is_served_for_ever_under_its_digest(client: TestClient) -> None:
    for name, asset in assets().items():
        answer = client.get(asset.url)
        assert answer.content == asset.content, name
        assert answer.headers["cache-control"] == FOR_EVER
        assert answer.headers["content-type"] == asset.media_type


@pytest.mark.parametrize(
    "path", ["/static/000000000000/tokens.css", "/static/x/../../views.py", "/static/x/vendor.json", "/static/x/%2e%2e"]
)
def test_nothing_else_is_served(client: TestClient, path: str) -> None:
    answer = client.get(path)
    assert answer.status_code == 404
    assert "cache-control" not in answer.headers


def test_styles_load_nothing(client: TestClient) -> None:
    """Nothing is fetched but what a page names: the policy would block it, and integrity would not cover it."""
    assert b"url(" not in assets()["tokens.css"].content
    assert b"@import" not in assets()["tokens.css"].content


def test_committed_files_are_what_the_manifests_say() -> None:
    script = [sys.executable, str(ROOT / "scripts" / "vendor.py"), "--offline"]
    assert subprocess.run(script, check=False).returncode == 0


def test_a_changed_vendored_file_is_noticed(tmp_path: Path) -> None:
    """The planted fault: one byte more."""
    for folder in ("scripts", "web", "compliance_agent/web/static/vendor", "tests/web/assets"):
        shutil.copytree(ROOT / folder, tmp_path / folder)
    victim = next((tmp_path / "compliance_agent/web/static/vendor").glob("htmx-*/htmx.min.js"))
    victim.write_bytes(victim.read_bytes() + b"\n")
    script = [sys.executable, str(tmp_path / "scripts" / "vendor.py"), "--offline"]
    ran = subprocess.run(script, check=False, capture_output=True, text=True)
    assert ran.returncode == 1
    assert "htmx.min.js: differs" in ran.stderr


def test_every_vendored_package_has_its_licence_and_its_locked_version() -> None:
    lock = json.loads((ROOT / "web" / "package-lock.json").read_bytes())["packages"]
    assert not any("resolved" in entry for entry in lock.values())
    for folder in ("compliance_agent/web/static/vendor", "tests/web/assets"):
        for entry in json.loads((ROOT / folder / "vendor.json").read_bytes()).values():
            assert lock[f"node_modules/{entry['npm']}"]["version"] == entry["version"]
            assert (ROOT / folder / entry["path"]).with_name("LICENSE").is_file()
