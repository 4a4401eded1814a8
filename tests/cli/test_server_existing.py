"""No subcommand of `server` makes a server in a mistyped directory; one that is to make one says so here (RELIABILITY 4)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from compliance_agent.cli import group, server_enrolment
from compliance_agent.cli import server as server_command
from compliance_agent.cli.server_common import with_services
from compliance_agent.enrolment import parse_token
from compliance_agent.errors import NoInput
from compliance_agent.server.settings import ServerSettings
from compliance_agent.server.tls import known_authority
from tests.cli.command import run

# The decision about each subcommand: it may make a server where there is none (None, with its own tests), or it refuses, called so.
# TMP is a directory that exists.
DECISIONS: dict[str, list[str] | None] = {
    "alerts ack": ["0" * 32],
    "alerts list": [],
    "alerts test": [],
    "backup": ["--out", "TMP/copy"],
    "enrol-token": ["--site", "clinic-1"],
    "exception approve": ["0" * 32, "--by", "j.doe"],
    "exception rule": ["--site", "clinic-1"],
    "exception end": ["0" * 32, "--by", "j.doe"],
    "exception grant": ["--host", "0" * 12, "--check", "time_sync", "--reason", "device_limit", "--measure", "watched",
                        "--reference", "RA-1", "--days", "7", "--by", "j.doe"],
    "exception list": [],
    "fsck": [],
    "enrol-token list": [],
    "enrol-token revoke": ["0" * 16],
    "hosts": [],
    "hosts approve": ["0" * 64],
    "hosts recertify": ["0" * 64],
    "hosts revoke": ["0" * 64],
    "init": None,
    "leases retry": ["--site", "clinic-1", "patching"],
    "leases set": ["--site", "clinic-1", "--hosts-at-once", "2"],
    "leases show": ["--site", "clinic-1"],
    "lift": ["clinic-1"],
    "logs": [],
    "mcp transcript": [],
    "mcp": ["--stdio", "--token-file", "TMP/token"],
    "migrate": [],
    "move": ["--to", "postgresql://server@127.0.0.1/c", "--owner", "postgresql://owner@127.0.0.1/c"],
    "operator-token create": ["j.doe"],
    "operator-token list": [],
    "operator-token revoke": ["0" * 16],
    "operator-token rotate": ["0" * 16],
    "order approve": ["0" * 32, "--by", "j.doe"],
    "order baseline": ["TMP/baseline.yaml", "--site", "clinic-1", "--by", "j.doe"],
    "order cancel": ["0" * 32, "--by", "j.doe"],
    "order draft": ["check", "--host", "0" * 12, "--check", "time_sync", "--by", "j.doe"],
    "order export": ["TMP/orders", "--site", "clinic-1"],
    "order key": None,  # a signer's key, on the signer's machine; of a server it knows nothing
    "order list": [],
    "order publish": ["TMP/root.json", "--by", "j.doe"],
    "order show": ["0" * 32],
    "order sign": ["0" * 32, "--key", "TMP/signer.pem", "--by", "j.doe"],
    "plan advise": ["--by", "j.doe"],
    "plan demote": ["time_sync", "daemon_down", "--site", "clinic-1", "--by", "j.doe"],
    "plan draft-promoted": ["--yes", "--by", "j.doe"],
    "plan promote": ["time_sync", "daemon_down", "--site", "clinic-1", "--by", "j.doe"],
    "plan rules": [],
    "plan draft": ["0" * 16, "--by", "j.doe"],
    "plan list": [],
    "readopt": [],
    "restore": None,  # makes it from a backup
    "retention hold add": ["--site", "clinic-1", "--reason-id", "case-1"],
    "retention hold list": [],
    "retention hold release": ["--site", "clinic-1", "--reason-id", "case-1"],
    "retention prune": [],
    "retention show": [],
    "user add": ["j.doe"],
    "user disable": ["j.doe"],
    "user enable": ["j.doe"],
    "user link": ["j.doe", "--issuer", "https://login.example", "--subject", "248289761001"],
    "user list": [],
    "user password": ["j.doe"],
    "user reset-factor": ["j.doe"],
    "user role": ["j.doe", "viewer"],
    "user sessions": ["j.doe"],
    "user sites": ["j.doe"],
}  # fmt: skip
REFUSING = sorted(path for path, words in DECISIONS.items() if words is not None)


def leaves(command: click.Command, path: tuple[str, ...] = ()) -> Iterator[str]:
    """Every subcommand that does something, by its words."""
    if path and (not isinstance(command, click.Group) or command.invoke_without_command):
        yield " ".join(path)
    if not isinstance(command, click.Group):
        return
    context = click.Context(command)
    for name in command.list_commands(context):
        below = command.get_command(context, name)
        assert below is not None
        yield from leaves(below, (*path, name))


def test_there_is_a_decision_about_every_subcommand() -> None:
    assert set(leaves(server_command.command)) == set(DECISIONS)


def refusal(directory: Path, path: str, tmp_path: Path) -> BaseException | None:
    words = [word.replace("TMP", str(tmp_path)) for word in DECISIONS[path] or ()]
    call = ["server", *path.split(), *words, "--data-dir", str(directory)]
    return CliRunner().invoke(group, call, input="correct horse battery\n").exception


@pytest.mark.parametrize("path", REFUSING)
@pytest.mark.parametrize("there", [False, True], ids=["absent", "empty"])
def test_where_no_server_is_none_is_made(tmp_path: Path, path: str, there: bool) -> None:
    mistyped = tmp_path / "complaince-server"
    if there:
        mistyped.mkdir()
    said = refusal(mistyped, path, tmp_path)
    assert isinstance(said, NoInput), said
    assert str(mistyped) in said.line and "--data-dir" in said.line and "server init" in said.line
    assert (said.exit_status, mistyped.exists()) == (66, there)
    assert [item for item in tmp_path.rglob("*") if item != mistyped] == []


def test_a_command_that_makes_one_is_caught(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def careless(settings: ServerSettings, act: object, **_: object) -> object:
        return with_services(settings, act, new=True)  # type: ignore[arg-type]

    monkeypatch.setattr(server_enrolment, "with_services", careless)
    with pytest.raises(AssertionError):
        test_where_no_server_is_none_is_made(tmp_path, "hosts", there=False)


def test_a_new_server_is_made_once_and_on_purpose(tmp_path: Path) -> None:
    directory = tmp_path / "data"
    wrong = run("server", "hosts", "--data-dir", directory)
    assert (wrong.status, directory.exists()) == (66, False) and str(directory) in wrong.line
    made = run("server", "init", "--tls", "--data-dir", directory)
    assert made.status == 0 and str(directory / "admin-password") in made.line
    assert {"server.db", "keys", "tls", "admin-password"} <= {item.name for item in directory.iterdir()}
    kept = {item: item.read_bytes() for item in directory.rglob("*.pem")}
    again = run("server", "init", "--data-dir", directory)
    assert again.status == 77 and "already" in again.line
    assert {item: item.read_bytes() for item in directory.rglob("*.pem")} == kept
    assert run("server", "hosts", "--data-dir", directory).status == 0
    token = parse_token(run("server", "enrol-token", "--site", "clinic-1", "--data-dir", directory).out.strip())
    assert token.ca_sha256 == known_authority(directory / "tls") is not None
