"""`compliance-agent enrol` as a person runs it: E3, E4 and E10 of RELIABILITY 3.3, and the operator's side of it."""

from __future__ import annotations

import base64
import inspect
import json
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest

from compliance_agent.cli import enrol as enrol_module
from compliance_agent.cli import group
from compliance_agent.config import PREFIX, AgentConfig
from compliance_agent.enrolment import parse_token
from tests.cli.command import Ended, configured, environment, run
from tests.cli.test_command_line import parameters_of
from tests.server.test_process import Running, running


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with running(tmp_path_factory.mktemp("server") / "data", "--tls") as started:
        yield started


def kept(path: Path, token: str) -> Path:
    path.write_text(token + "\n")
    path.chmod(0o600)
    return path


def enrol(server: Running, token: str, tmp_path: Path, *more: str, **options: Any) -> Ended:
    words = ["--server", server.url, "--token-file", str(kept(tmp_path / "token", token)), "--host-id", "ws-01"]
    return run("enrol", *words, "--state-dir", tmp_path / "state", *more, **options)


def altered(token: str, **changes: Any) -> str:
    body = token.removeprefix("cae1.")
    document = json.loads(base64.urlsafe_b64decode(body + "=" * (-len(body) % 4))) | changes
    raw = json.dumps(document, sort_keys=True, separators=(",", ":")).encode()
    return "cae1." + base64.urlsafe_b64encode(raw).decode().rstrip("=")


def hosts(server: Running) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(run("server", "hosts", "--json", "--data-dir", server.directory).out)[
        "hosts"
    ]
    return found


def test_a_token_from_standard_input_makes_a_host_and_both_sides_show_its_words(
    server: Running, tmp_path: Path
) -> None:
    token = server.token("clinic-stdin")
    done = run(
        "enrol", "--server", server.url, "--token-file", "-", "--host-id", "ws-01", "--state-dir", tmp_path / "state",
        "--json", input=token.encode() + b"\n",
    )  # fmt: skip
    assert done.status == 0, done.err
    said = json.loads(done.out)
    [host] = [item for item in hosts(server) if item["site_id"] == "clinic-stdin"]
    assert (host["key_id"], host["key_words"]) == (said["key_id"], said["key_words"])
    assert (host["state"], said["waiting"]) == ("live", False)


def test_what_is_printed_may_go_straight_to_the_configuration(server: Running, tmp_path: Path) -> None:
    """The shell makes an empty file before the command looks; one with anything in it is read, and may be refused."""
    config, token = tmp_path / "agent.yaml", server.token("clinic-empty")
    config.write_text(" \n")
    refused = enrol(server, token, tmp_path, "--config", str(config))
    assert refused.status == 78 and "expected a mapping" in refused.line
    config.write_text("")
    done = enrol(server, token, tmp_path, "--config", str(config))
    assert done.status == 0, done.err
    assert f"{config} is empty" in done.err
    config.write_text(done.out)
    assert AgentConfig.from_file(config).site_id == "clinic-empty"


# --- E3, E4 ---------------------------------------------------------------------------------------


def test_e3_a_token_of_another_site_than_the_configurations_is_not_even_sent(tmp_path: Path, server: Running) -> None:
    token, before = server.token("clinic-2"), hosts(server)
    config = configured(tmp_path, site_id="clinic-1")
    done = enrol(server, token, tmp_path, "--config", str(config))
    assert done.status == 78 and "clinic-1" in done.line and "clinic-2" in done.line
    assert hosts(server) == before and not (tmp_path / "state" / "keys" / "api-key").exists()
    config.write_text(config.read_text().replace("site_id: clinic-1", "site_id: clinic-2"))
    assert enrol(server, token, tmp_path, "--config", str(config)).status == 0  # the token was not used up


def test_e4_a_token_that_lost_its_authority_trusts_nobody_at_first_sight(tmp_path: Path, server: Running) -> None:
    token = server.token("clinic-4")
    assert parse_token(token).ca_sha256 is not None
    done = enrol(server, altered(token, ca_sha256=None), tmp_path)
    assert done.status == 78 and "nothing vouches for this server" in done.line
    assert not (tmp_path / "state").exists(), "nothing was asked, made or kept"
    assert [item for item in hosts(server) if item["site_id"] == "clinic-4"] == []


def test_e4_a_token_of_another_authority_refuses_this_server(tmp_path: Path, server: Running) -> None:
    done = enrol(server, altered(server.token("clinic-4"), ca_sha256="ab" * 32), tmp_path)
    assert done.status == 69 and "somebody may stand between" in done.line
    assert not (tmp_path / "state" / "keys" / "ca.pem").exists()
    assert [item for item in hosts(server) if item["site_id"] == "clinic-4"] == []


# --- E10 ------------------------------------------------------------------------------------------


def test_e10_no_option_and_no_variable_takes_a_token() -> None:
    """What cannot be typed is in no shell history, no list of processes and no environment."""
    command = group.get_command(click.Context(group), "enrol")
    assert command is enrol_module.command
    assert {item.name for item in parameters_of(command) if "token" in str(item.name)} == {"token_file"}
    names = {name for name in AgentConfig.__dataclass_fields__ if "token" in name}
    assert all(name.endswith("_file") for name in names), f"{PREFIX}... would carry it"


def forms(token: str) -> list[bytes]:
    """What must be nowhere: the token, its secret, and either as base64, as hex and reversed."""
    body = token.removeprefix("cae1.")
    secret = json.loads(base64.urlsafe_b64decode(body + "=" * (-len(body) % 4)))["secret"]
    plain = [token.encode(), body.encode(), secret.encode(), bytes.fromhex(secret)]
    return [*plain, *(base64.b64encode(one).rstrip(b"=")[:-1] for one in plain), *(one.hex().encode() for one in plain)]


def found_in(token: str, places: dict[str, bytes]) -> list[str]:
    return [name for name, content in places.items() for form in forms(token) if form in content]


def test_e10_the_token_is_nowhere_afterwards(tmp_path: Path, server: Running) -> None:
    token = server.token("clinic-10")
    done = enrol(server, token, tmp_path, "--json")
    assert done.status == 0, done.err
    again = enrol(server, token, tmp_path, "--again", "--host-id", "ws-02")  # a refusal must not show it either
    assert again.status == 69, again.out
    run("server", "enrol-token", "list", "--json", "--data-dir", server.directory)
    listed = run("server", "enrol-token", "list", "--json", "--data-dir", server.directory)
    places = {
        str(path): path.read_bytes()
        for root in (tmp_path / "state", server.directory)
        for path in root.rglob("*")
        if path.is_file()
    }
    places |= {"said": (done.out + done.err + again.out + again.err + listed.out).encode()}
    assert len(places) > 10 and found_in(token, places) == []
    assert found_in(token, {"planted": b"x" + token.encode() + b"x"}) == ["planted"] * 2  # these eyes do see


def test_e10_a_process_that_read_a_token_is_dumped_by_nobody() -> None:
    """A core limit of 0 does not hold where cores are piped to a collector; that the kernel must not dump at all does."""
    asked = "from ctypes import CDLL; print(CDLL(None).prctl(3, 0, 0, 0, 0))"  # PR_GET_DUMPABLE
    for secrecy, dumpable in (("", "1"), ("from compliance_agent.adapters.secrecy import *; keep_out_of_dumps()", "0")):
        done = subprocess.run(
            [sys.executable, "-c", f"{secrecy}\n{asked}"], capture_output=True, text=True, env=environment(), check=True
        )
        assert done.stdout.strip() == dumpable
    assert "keep_out_of_dumps()" in inspect.getsource(enrol_module)


def test_e10_while_it_runs_the_token_is_only_in_memory_that_nobody_can_have(tmp_path: Path, server: Running) -> None:
    """A server that never answers holds the command where it has read the token and sent nothing."""
    token = altered(server.token("clinic-10"), ca_sha256="ab" * 32)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"https://127.0.0.1:{silent.getsockname()[1]}"
        words = ["enrol", "--server", url, "--token-file", str(kept(tmp_path / "token", token)), "--host-id", "ws-01"]
        with subprocess.Popen(
            [sys.executable, "-m", "compliance_agent", *words, "--state-dir", str(tmp_path / "state")],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment(),
        ) as process:  # fmt: skip
            try:
                silent.settimeout(20)
                connection, _ = silent.accept()
                with connection:  # it waits for an answer
                    seen = Path(f"/proc/{process.pid}")
                    places = {name: (seen / name).read_bytes() for name in ("cmdline", "environ", "comm", "status")}
                    assert found_in(token, places) == []
                    [limit] = [line for line in (seen / "limits").read_text().splitlines() if "core file" in line]
                    assert limit.split()[4:6] == ["0", "0"]
            finally:
                process.kill()


# --- the operator's side ---------------------------------------------------------------------------


def test_tokens_are_listed_and_revoked_by_an_id_that_is_worth_nothing(server: Running) -> None:
    made = run("server", "enrol-token", "--site", "clinic-t", "--data-dir", server.directory)
    at = ["--data-dir", str(server.directory)]
    token_id = made.err.split()[1].rstrip(",")
    [item] = [one for one in _tokens(server) if one["site_id"] == "clinic-t"]
    assert (item["token_id"], item["state"]) == (token_id, "open")
    assert run("server", "enrol-token", "revoke", "xyz", *at).status == 2
    assert run("server", "enrol-token", "revoke", "0" * 16, *at).status == 69
    assert run("server", "enrol-token", "revoke", token_id, *at).status == 0
    assert run("server", "enrol-token", "revoke", token_id, *at).status == 69
    [item] = [one for one in _tokens(server) if one["site_id"] == "clinic-t"]
    assert item["state"] == "revoked"
    assert token_id in run("server", "enrol-token", "list", *at).out
    assert run("server", "enrol-token", *at).status == 2  # no site


def _tokens(server: Running) -> list[dict[str, Any]]:
    listed = run("server", "enrol-token", "list", "--json", "--data-dir", server.directory)
    found: list[dict[str, Any]] = json.loads(listed.out)["tokens"]
    return found


def test_a_second_host_of_a_label_waits_until_its_words_are_approved(tmp_path: Path, server: Running) -> None:
    at = ["--data-dir", str(server.directory)]
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
    assert enrol(server, server.token("clinic-5"), tmp_path / "first").status == 0
    done = enrol(server, server.token("clinic-5"), tmp_path / "second")
    assert done.status == 0 and "an operator approved it by these words" in done.err
    words = next(line.removeprefix("key words: ") for line in done.err.splitlines() if line.startswith("key words"))
    states = {item["key_words"]: item["state"] for item in hosts(server) if item["site_id"] == "clinic-5"}
    assert sorted(states.values()) == ["live", "waiting"] and states[words] == "waiting"
    assert words in run("server", "hosts", *at).out
    assert run("server", "hosts", "approve", "lusab-babad-babab-babab-babab", *at).status == 66
    assert run("server", "hosts", "approve", words, *at).status == 0
    assert {item["state"] for item in hosts(server) if item["site_id"] == "clinic-5"} == {"live"}
    assert run("server", "hosts", "revoke", words, *at).status == 0
    assert run("server", "hosts", "approve", words, *at).status == 69
