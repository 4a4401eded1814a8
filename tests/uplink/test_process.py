"""Uplink as a process: its socket, its signals, the memory it takes, and what its user cannot read."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
import os
import pwd
import re
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from compliance_agent.cli import enrol as enrol_command
from compliance_agent.config import AgentConfig
from compliance_agent.errors import ConfigError, StorageError, Unavailable
from compliance_agent.frames import Side
from compliance_agent.local_socket import Wire, listen
from compliance_agent.mcp_client import MCPClient, load_credentials
from compliance_agent.models import BundleKind
from compliance_agent.uplink.link import Link, UplinkTransport, at_path, link_of
from compliance_agent.uplink.process import ApiKey, doors_of, witnessed
from compliance_agent.uplink.serve import Doors, Uplink
from compliance_agent.uplink.table import TABLE, key_goes_with
from tests.agent_scene import Scene
from tests.faults.peer import listening
from tests.real.stage import COMMAND, environment, until

pytestmark = pytest.mark.anyio
ME = pwd.getpwuid(os.geteuid()).pw_name
AGENT, UPLINK = 60_001, 60_002  # users that nobody else is


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
async def scene(tmp_path: Path) -> AsyncIterator[Scene]:
    """A host whose agent and uplink are two processes of this user."""
    users = {"run_user": ME, "uplink_user": ME, "uplink_socket": tmp_path / "uplink.sock"}
    made = Scene(tmp_path, settings={"privileges": "split", **users})
    yield made
    await made.close()


def written(scene: Scene, **more: Any) -> Path:
    """The configuration file that both read."""
    config = scene.config
    said = {
        "client_id": config.client_id, "site_id": config.site_id, "host_id": config.host_id, "privileges": "split",
        "state_dir": str(config.state_dir), "uplink_socket": str(config.uplink_socket), "run_user": ME, "uplink_user": ME,
        "mcp_api_key_file": str(config.mcp_api_key_file), "mcp_server_key_file": str(config.mcp_server_key_file), **more,
    }  # fmt: skip
    path = scene.root / "agent.yaml"
    path.write_text(json.dumps(said))
    path.chmod(0o600)
    return path


@contextlib.contextmanager
def uplink(config: Path, log: Path, **started: Any) -> Iterator[subprocess.Popen[bytes]]:
    """The real command, until the block ends."""
    with log.open("ab") as out:
        process = subprocess.Popen(
            [*COMMAND, "uplink", "--config", config], env=environment(), stdout=out, stderr=out, **started
        )
    try:
        until(lambda: b"uplink.started" in log.read_bytes() or process.poll() is not None, 30, "uplink starts")
        yield process
    finally:
        process.kill()
        process.wait()


def pss_kib(pid: int) -> int:
    found = re.search(r"^Pss:\s+(\d+)", Path(f"/proc/{pid}/smaps_rollup").read_text(), re.MULTILINE)
    assert found is not None
    return int(found[1])


async def test_evidence_goes_by_way_of_a_real_uplink_which_may_be_killed_and_reloaded(scene: Scene) -> None:
    """One real process of each kind of trouble: kill -9, another start, a reload that cannot be, one that can, the end."""
    log = scene.root / "log"
    with listening(scene.server) as url:
        config = written(scene, mcp_url=url)
        scene.way = lambda: UplinkTransport(link_of(scene.config))
        agent = scene.agent()
        heartbeat: dict[str, Any] = {
            "check": "",
            "outcome": None,
            "kind": BundleKind.HEARTBEAT,
            "reason": "as_expected",
        }

        async def delivered(count: int) -> None:
            await agent.recording.create(**heartbeat, counts={"pending": count})
            await agent.delivery.turn(20)
            await scene.delivered(agent)

        await delivered(1)
        assert scene.server.stored() == [], "nobody listens yet"
        with uplink(config, log) as process:
            scene.clock.advance(3_700)
            await delivered(2)
            assert [held.seq for held in scene.server.stored()] == [1, 2]
            assert pss_kib(process.pid) < 30_000
            process.send_signal(signal.SIGKILL)
            process.wait()
        await delivered(3)
        assert [held.seq for held in scene.server.stored()] == [1, 2]
        log.write_bytes(b"")
        with uplink(config, log) as process:  # the socket that the killed one left is replaced
            scene.clock.advance(3_700)
            await delivered(4)
            assert [held.seq for held in scene.server.stored()] == [1, 2, 3, 4]
            good = config.read_bytes()
            config.write_bytes(b"{}")
            process.send_signal(signal.SIGHUP)
            until(lambda: b"config.refused" in log.read_bytes(), 10, "a bad configuration is refused")
            config.write_bytes(good)
            process.send_signal(signal.SIGHUP)
            until(lambda: b"config.reloaded" in log.read_bytes(), 10, "a good one is taken")
            await delivered(5)
            assert len(scene.server.stored()) == 5
            process.send_signal(signal.SIGTERM)
            assert await asyncio.to_thread(process.wait, 10) == 0
        assert (await agent.offline_queue.get_stats())["pending"] == 0
        assert b"uplink.stopped" in log.read_bytes()


def has_no_network(pid: int) -> bool:
    """Whether its namespace has nothing but a loopback that is down."""
    states = [line.split() for line in in_network_of(pid, "cat", "/proc/net/dev").splitlines()[2:]]
    return [state[0] for state in states] == ["lo:"] and not in_network_of(pid, "cat", "/proc/net/route").splitlines()[
        1:
    ]


def in_network_of(pid: int, *command: str) -> str:
    """What a command says in its network."""
    return subprocess.run(
        ["nsenter", "-t", str(pid), "-n", *command], capture_output=True, text=True, check=True
    ).stdout


@pytest.mark.real
@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to take a network away")
async def test_a_real_run_without_any_network_delivers(scene: Scene) -> None:
    """The whole agent in a network namespace of its own, where nothing but the socket leads out."""
    await scene.close()
    (scene.root / "baseline.yaml").write_text('version: "1"\nchecks:\n  time_sync: {mode: audit}\n')
    (scene.root / "baseline.yaml").chmod(0o600)
    log = scene.root / "log"
    with listening(scene.server) as url:
        more = {"baseline_path": str(scene.root / "baseline.yaml"), "mcp_poll_interval_sec": 1}
        config = written(scene, mcp_url=url, **more)
        with uplink(config, log), (scene.root / "run.log").open("wb") as out:
            run = subprocess.Popen(
                ["unshare", "-n", *COMMAND, "run", "--config", config], env=environment(), stdout=out, stderr=out
            )
            try:
                until(lambda: len(scene.server.stored()) >= 2 or run.poll() is not None, 30, "something is delivered")
                assert run.poll() is None, (scene.root / "run.log").read_text()
                assert has_no_network(run.pid)
                assert not has_no_network(os.getpid()), "the test would see one"
            finally:
                run.terminate()
                status = await asyncio.to_thread(run.wait, 20)
    assert status == 0
    assert {item["host"]["key_id"] for item in scene.documents()} == {scene.signer.key_id}


async def test_a_socket_of_the_service_manager_is_taken(scene: Scene) -> None:
    """As systemd hands it over: descriptor 3, said to be for this very process."""
    log, ours = scene.root / "log", scene.root / "given.sock"
    log.touch()
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(str(ours))
        listener.listen()
        config, handle = written(scene, mcp_url="http://127.0.0.1:9"), listener.fileno()
        code = (
            "import os, sys\n"
            f"os.dup2({handle}, 3)\n"
            "os.environ |= {'LISTEN_PID': str(os.getpid()), 'LISTEN_FDS': '1', "
            "'LISTEN_FDNAMES': 'compliance-agent-uplink.socket'}\n"
            f"os.execv(sys.executable, [sys.executable, '-m', 'compliance_agent', 'uplink', '--config', {str(config)!r}])\n"
        )
        way = UplinkTransport(Link(at_path(ours, {os.geteuid()})))
        with log.open("ab") as out:
            process = subprocess.Popen(
                [sys.executable, "-c", code], env=environment(), stdout=out, stderr=out, pass_fds=[handle]
            )
        try:
            with pytest.raises(Unavailable) as refused:  # it waits in the socket until the process is there
                await way.request("GET", "/readyz", timeout_s=30)
            assert refused.value.code == "no_connection", log.read_text()
        finally:
            await way.close()
            process.kill()
            process.wait()
    assert not scene.config.uplink_socket.exists()


# What it holds, and what it does not


async def test_the_agent_of_a_split_host_reads_no_api_key(scene: Scene) -> None:
    assert scene.config.mcp_api_key_file is not None
    scene.config.mcp_api_key_file.unlink()
    assert load_credentials(scene.config).api_key is None
    assert MCPClient(scene.config, "").pinned_log() is not None


async def test_uplink_without_a_key_waits_for_enrolment(scene: Scene) -> None:
    assert scene.config.mcp_api_key_file is not None
    key = ApiKey(scene.config.mcp_api_key_file)
    kept = scene.config.mcp_api_key_file.read_bytes()
    scene.config.mcp_api_key_file.unlink()
    with pytest.raises(Unavailable, match="not enrolled"):
        key.text()
    scene.config.mcp_api_key_file.write_bytes(kept)
    scene.config.mcp_api_key_file.chmod(0o600)
    assert key.text() == kept.decode().strip()
    await doors_of(scene.config).close()


def test_logs_that_are_witnessed_are_the_only_other_ways_out(tmp_path: Path) -> None:
    path = tmp_path / "logs"
    path.write_text(
        "# a comment\nlog a+b+c https://one.example/x\nlog d\nwitness w k https://no.example/\n\nlog e https://two.example\n"
    )
    path.chmod(0o600)
    assert witnessed(path) == ["https://one.example/x", "https://two.example"]
    path.write_text("log a http://plain.example/\n")
    with pytest.raises(ConfigError, match="https"):
        witnessed(path)


def test_the_ways_are_those_that_the_client_asks() -> None:
    asked = set(
        re.findall(
            r'"(/api/v1/[a-z/]+|/readyz)"', (Path(__file__).parents[2] / "compliance_agent/mcp_client.py").read_text()
        )
    )
    assert len(asked) >= 8
    assert all(key_goes_with("GET" if path == "/readyz" else "POST", path) is not None for path in asked)


READ_ALL = """
import os, sys
root, opened, seen = sys.argv[1], [], 0
os.setgroups([]); os.setresgid({gid}, {gid}, {gid}); os.setresuid({uid}, {uid}, {uid})
for place in sys.argv[2:]:
    seen += 1
    for flags in (os.O_RDONLY, os.O_WRONLY):
        try:
            os.close(os.open(place, flags))
            opened.append(place)
        except PermissionError:
            pass
try:
    os.listdir(root); opened.append(root)
except PermissionError:
    pass
try:
    os.kill({agent}, 0); opened.append("signal")
except PermissionError:
    pass
print(seen, *opened)
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to become the uplink's user")
async def test_the_users_of_uplink_can_read_nothing_of_the_agents(scene: Scene) -> None:
    """Every file of an agent that has recorded, opened by the real uid: no key, no database, no evidence, no signal."""
    agent = scene.agent()
    scene.detector.drift("time_sync")
    await scene.cycle(agent)
    await scene.close()
    scene.live = None
    state = scene.config.state_dir
    files = [path for path in state.rglob("*") if path.is_file()]
    for path in [state, *state.rglob("*")]:
        os.chown(path, AGENT, AGENT)
    for path in [scene.root, *scene.root.parents]:
        if path.stat().st_uid == os.geteuid() and path != Path("/") and not path.stat().st_mode & 0o001:
            path.chmod(0o755)
    assert scene.config.signing_key_file in files
    assert len(files) > 6
    # A process of the agent's user, to be signalled: a shell that waits for its standard input.
    other = subprocess.Popen(["/bin/sh", "-c", "read line"], stdin=subprocess.PIPE, user=AGENT, group=AGENT)
    try:
        code = READ_ALL.format(uid=UPLINK, gid=UPLINK, agent=other.pid)
        done = subprocess.run(
            [sys.executable, "-c", code, str(state), *map(str, files)], capture_output=True, text=True, check=True
        )
    finally:
        other.kill()
        other.communicate()
    assert done.stdout.split() == [str(len(files))]
    # The same, by the agent's own user, opens them: the test would see it.
    code = READ_ALL.format(uid=AGENT, gid=AGENT, agent=os.getpid())
    done = subprocess.run(
        [sys.executable, "-c", code, str(state), *map(str, files)], capture_output=True, text=True, check=True
    )
    assert str(scene.config.signing_key_file) in done.stdout.split()


AS_UPLINK = """
import os, sys
import compliance_agent.cli.command_line  # before it becomes somebody who may not look where this interpreter is
import compliance_agent.cli.uplink
from compliance_agent.cli import main
os.setgroups([]); os.setresgid({uid}, {uid}, {uid}); os.setresuid({uid}, {uid}, {uid})
main()
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to become the uplink's user")
async def test_uplink_as_its_own_user_does_its_work_with_its_own_files_alone(scene: Scene) -> None:
    """Real uids: the agent's directory is shut to it, its own holds all that it needs, and evidence goes through."""
    own, sockets, log = scene.root / "own", scene.root / "sockets", scene.root / "log"
    for path in (own, sockets):
        path.mkdir(mode=0o700)
    assert scene.config.mcp_api_key_file is not None
    scene.config.mcp_api_key_file.rename(own / "api-key")
    for path in (own, own / "api-key", sockets):
        os.chown(path, UPLINK, UPLINK)
    for place in [scene.root, *scene.root.parents]:
        if not place.stat().st_mode & 0o001:
            place.chmod(0o755)
    scene.config = dataclasses.replace(scene.config, uplink_socket=sockets / "s", mcp_api_key_file=own / "api-key")
    with listening(scene.server) as url:
        config = written(scene, mcp_url=url, uplink_dir=str(own))
        config.chmod(0o644)
        with log.open("wb") as out:
            process = subprocess.Popen(
                [sys.executable, "-c", AS_UPLINK.format(uid=UPLINK), "uplink", "--config", config],
                env=environment(), stdout=out, stderr=out,
            )  # fmt: skip
        try:
            until(lambda: b"uplink.started" in log.read_bytes() or process.poll() is not None, 30, "uplink starts")
            assert f"Uid:\t{UPLINK}\t{UPLINK}\t{UPLINK}" in Path(f"/proc/{process.pid}/status").read_text(), (
                log.read_text()
            )
            way = UplinkTransport(Link(at_path(sockets / "s", {UPLINK})))
            scene.way = lambda: way
            agent = scene.agent()
            await agent.recording.create(
                check="", outcome=None, kind=BundleKind.HEARTBEAT, reason="as_expected", counts={"pending": 1}
            )
            await agent.delivery.turn(20)
            await scene.delivered(agent)
            assert len(scene.server.stored()) == 1, log.read_text()
        finally:
            process.terminate()
            assert await asyncio.to_thread(process.wait, 20) == 0


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to become somebody else")
async def test_another_user_gets_no_word_from_uplink(scene: Scene) -> None:
    key = ApiKey(None)
    served = Uplink(Doors(scene.server, key.text, key.forget), {0})
    path = scene.root / "s"
    task = asyncio.create_task(served.serve(listen(path, 0o666)))
    for place in [scene.root, *scene.root.parents]:
        if not place.stat().st_mode & 0o001:
            place.chmod(0o755)
    code = (
        "import os, socket; s = socket.socket(socket.AF_UNIX); os.setresuid(60001, 60001, 60001)\n"
        f"s.connect({str(path)!r}); print(s.recv(100))"
    )
    child = await asyncio.create_subprocess_exec(sys.executable, "-I", "-c", code, stdout=subprocess.PIPE)
    out, _ = await child.communicate()
    assert out.strip() == b"b''"
    with socket.socket(socket.AF_UNIX) as one:
        one.connect(str(path))
        with Wire(one, TABLE, Side.ASKS) as wire:
            await asyncio.to_thread(wire.greet, 5)
    task.cancel()
    await asyncio.wait({task})


async def test_a_split_host_without_its_users_does_not_start(scene: Scene) -> None:
    config = dataclasses.replace(scene.config, uplink_user="nobody-of-that-name")
    with pytest.raises(ConfigError, match="does not exist"):
        link_of(config)


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to give files away")
def test_enrolment_gives_each_process_its_own_and_follows_no_link(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    numbers = {"run": AGENT, "up": UPLINK}
    monkeypatch.setattr(enrol_command, "uid_of", numbers.__getitem__)
    monkeypatch.setattr(pwd, "getpwuid", lambda uid: type("User", (), {"pw_uid": uid, "pw_gid": uid}))
    config = AgentConfig(
        client_id="c", site_id="s", host_id="h", privileges="split", state_dir=tmp_path / "state",
        uplink_dir=tmp_path / "up", run_user="run", uplink_user="up",
    )  # fmt: skip
    assert (config.mcp_api_key_file, config.client_cert_file) == (tmp_path / "up/api-key", tmp_path / "up/client.pem")
    keys, victim = config.state_dir / "keys", tmp_path / "victim"
    victim.write_text("root's")
    for path in (
        config.signing_key_file,
        keys / "server-key",
        config.uplink_dir / "api-key",
        config.uplink_dir / "ca.pem",
    ):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("x")
    (keys / "log-key").symlink_to(victim)
    enrol_command.give_away(config, config.uplink_dir / "api-key", keys / "server-key")
    owned = {path: path.lstat().st_uid for path in tmp_path.rglob("*")}
    assert {path for path, uid in owned.items() if uid == UPLINK} == {config.uplink_dir, *config.uplink_dir.iterdir()}
    assert {path for path, uid in owned.items() if uid == AGENT} == {config.state_dir, keys, *keys.iterdir()}
    assert victim.stat().st_uid == 0
    keys.rename(tmp_path / "elsewhere")
    (tmp_path / "elsewhere").chmod(0o700)
    keys.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(StorageError):
        enrol_command.give_away(config, config.uplink_dir / "api-key", keys / "server-key")


def test_a_process_that_only_passes_requests_on_loads_little() -> None:
    """No database, no check, no cure, no key: each would be megabytes for as long as the host is up."""
    unwanted = ("checks", "remedies", "evidence", "adapters.database", "crypto", "agent", "healing")
    code = (
        "import sys, compliance_agent.cli.command_line, compliance_agent.cli.uplink\n"
        f"names = {[f'compliance_agent.{name}' for name in unwanted]!r}\n"
        "names += ['cryptography', 'nacl', 'sqlite3', 'email', 'argparse', 'difflib']\n"
        "print(*(name for name in names if name in sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.split() == []
