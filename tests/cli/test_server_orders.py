"""`compliance-agent server order`: drafted and approved on the data directory, signed here or from another machine."""

from __future__ import annotations

import base64
import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx2

from compliance_agent.core import order_keys, orders
from compliance_agent.core.orders import Order
from compliance_agent.crypto import Ed25519Signer
from compliance_agent.evidence.canonical import canonical
from tests.cli.command import Ended, run
from tests.cli.test_json import problems
from tests.server.builder import FakeHost, checkin_body
from tests.server.test_process import running

NONCE = "12" * 16


def order(data: Path, *words: str | Path) -> Ended:
    return run("server", "order", *words, "--data-dir", data)


def said(data: Path, *words: str | Path) -> list[dict[str, Any]]:
    ended = order(data, *words, "--json")
    assert ended.status == 0, ended.err
    document = json.loads(ended.out)
    assert problems(document) == []
    found: list[dict[str, Any]] = document["orders"]
    return found


def test_the_way_of_an_order_from_draft_to_what_a_host_takes(tmp_path: Path) -> None:
    data = tmp_path / "data"
    (tmp_path / "password").write_text("correct horse battery\n")
    (tmp_path / "password").chmod(0o600)
    with running(data) as server:
        host = server.enrolled(FakeHost(now=datetime.now(UTC)), server.token())
        with httpx2.Client(base_url=server.url, headers=host.headers) as client:
            body = canonical({**checkin_body(host), "order_nonce": NONCE})
            assert client.post("/api/v1/checkin", content=body).json()["orders"] == []
            password = ("--password-file", tmp_path / "password", "--role", "operator")
            for name in ("jo", "kim"):
                assert run("server", "user", "add", name, *password, "--data-dir", data).status == 0
            token = tmp_path / "token"
            token.write_text(run("server", "operator-token", "create", "jo", "--data-dir", data).out)
            token.chmod(0o600)
            entries = [_key(tmp_path, name) for name in ("anna", "ben")]

            [drafted] = said(data, "draft", "approve", "--host", host.key_id[:12], "--check", "time_sync", "--target", "t1",
                             "--by", "jo")  # fmt: skip
            order_id = drafted["order_id"]
            assert drafted["parameters"] == {"check": "time_sync", "target": "t1"}
            assert said(data, "approve", order_id, "--by", "jo")[0]["state"] == "draft"
            assert said(data, "approve", order_id, "--by", "kim")[0]["state"] == "approved"
            ben = Ed25519Signer(tmp_path / "ben.pem").key_id
            remote = ("--url", server.url, "--token-file", token, "--yes")
            ended = order(data, "sign", order_id, "--key", tmp_path / "anna.pem", "--cosigner", ben, *remote)
            assert (ended.status, "approve" in ended.err) == (0, True), ended.err  # what is signed is shown
            [signed] = said(data, "sign", order_id, "--key", tmp_path / "ben.pem", "--by", "kim", "--yes")
            assert signed["state"] == "signed"
            [raw] = client.post("/api/v1/checkin", content=body).json()["orders"]
        assert [item["state"] for item in said(data, "list", "--host", host.key_id)] == ["delivered"]
        assert f"order {order_id}: approve" in order(data, "show", order_id).out
        assert "answered" not in order(data, "list").out
        assert said(data, "cancel", order_id, "--by", "jo")[0]["state"] == "cancelled"
    keys = {"schema": order_keys.SCHEMA, "version": 1, "tenant": "msp", "expires": "2099-01-01T00:00:00Z",
            "signers": entries, "thresholds": {}}  # fmt: skip
    known = orders.Standing(
        tenant="msp", site="clinic-1", host=host.key_id, keys=order_keys.parse(json.dumps(keys).encode()),
        now=datetime.now(UTC), nonces=(NONCE,), counter=0, stopped=False, baseline_sha256="0" * 64, checks=("time_sync",),
    )  # fmt: skip
    judged = orders.judge(base64.b64decode(raw), known)
    assert isinstance(judged, Order) and judged.order_id == order_id


def _key(root: Path, name: str) -> dict[str, Any]:
    ended = run("server", "order", "key", root / f"{name}.pem", "--name", name)
    assert ended.status == 0, ended.err
    entry: dict[str, Any] = json.loads(ended.out)
    return entry


def test_what_is_refused_is_one_line(tmp_path: Path) -> None:
    data = tmp_path / "data"
    assert run("server", "init", "--data-dir", data).status == 0
    for words, status, text in (
        (("draft", "pause", "--host", "0" * 12, "--by", "admin"), 66, "0 hosts have a key that begins so"),
        (("approve", "0" * 32, "--by", "nobody"), 77, "no user nobody"),
        (("approve", "0" * 32, "--by", "admin"), 69, "no such order"),
        (("show", "0" * 32), 69, "no such order"),
        (("sign", "0" * 32, "--key", tmp_path / "none.pem", "--by", "admin"), 66, "no such key"),
    ):
        ended = order(data, *words)
        assert (ended.status, text in ended.line) == (status, True), ended.err
    for misused in (
        ("draft", "check", "--host", "0" * 12, "--by", "admin"),
        ("draft", "pause", "--check", "time_sync", "--host", "0" * 12, "--by", "admin"),
    ):
        assert order(data, *misused).status in {2, 66}
    assert not (tmp_path / "none.pem").exists()
