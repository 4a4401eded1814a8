"""A server's answer that is not as agreed: nothing in it is believed, and nothing is forgotten because of it."""

from __future__ import annotations

import base64
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from compliance_agent.adapters.clock import SystemClock
from compliance_agent.config import AgentConfig
from compliance_agent.crypto import Ed25519Signer
from compliance_agent.errors import AgentError, BadReply, ServerRefused, Unavailable
from compliance_agent.evidence import EvidenceGenerator
from compliance_agent.evidence.verify import verify_paths
from compliance_agent.lab.clinic import healthy_host
from compliance_agent.mcp_client import MCPClient
from compliance_agent.models import BundleKind
from tests.real.bad_input import WRONG, clean, leaves, must_refuse, name_of, tell, tree, with_raw
from tests.real.peer import CHALLENGE, CHECKIN, ENROL, EVIDENCE, NO_REPLY, Peer, http, listening
from tests.real.stage import end, environment, rows

pytestmark = [pytest.mark.real]
UNAVAILABLE = 69
TOKEN = {"v": 1, "site": "clinic-1", "exp": 4_000_000_000, "secret": "ab" * 16, "ca_sha256": None}
# These break the JSON of the whole reply, before anybody knows whose value it would be.
BREAKS_JSON = {"fraction", "minus zero", "1e999", "NaN", "2**63", "5000 digits", "lone surrogate"}


@pytest.fixture
def peer(tmp_path: Path) -> Iterator[Peer]:
    with listening(tmp_path) as running:
        yield running


# Enrolment


@pytest.fixture
def state(tmp_path: Path) -> Path:
    text = base64.urlsafe_b64encode(json.dumps(TOKEN).encode()).rstrip(b"=")
    (tmp_path / "enrol.token").write_bytes(b"cae1." + text)
    (tmp_path / "enrol.token").chmod(0o600)
    Ed25519Signer(tmp_path / "state" / "keys" / "signing-key.pem")  # made at the first try, and kept for the next
    return tmp_path / "state"


def enrol(peer: Peer, state: Path) -> Any:
    return tell("enrol", "--server", peer.url, "--token-file", state.parent / "enrol.token",
                "--state-dir", state, "--host-id", "srv-1")  # fmt: skip


def test_a_good_answer_enrols(peer: Peer, state: Path) -> None:
    told = enrol(peer, state)
    assert told.status == 0, told.err
    assert {path.name for path in (state / "keys").iterdir()} == {"signing-key.pem", "api-key", "server-key"}


@pytest.mark.parametrize("path", [CHALLENGE, ENROL])
@pytest.mark.parametrize("case", NO_REPLY)
def test_an_answer_that_is_none_enrols_nobody(peer: Peer, state: Path, case: str, path: str) -> None:
    peer.answers[path] = lambda _: NO_REPLY[case]
    before = tree(state)
    clean(enrol(peer, state), UNAVAILABLE)
    assert tree(state) == before
    assert set(peer.asked) <= {CHALLENGE, ENROL}, "no redirect is followed"


@pytest.mark.parametrize("path", [CHALLENGE, ENROL])
def test_every_wrong_field_of_an_enrolment_is_named(peer: Peer, state: Path, path: str) -> None:
    signer = Ed25519Signer(state / "keys" / "signing-key.pem")
    asked = {"public_key": base64.b64encode(signer.public_bytes).decode(), "host_id": "srv-1"}
    good = peer.good(path, asked)
    before = tree(state)
    for where, value in leaves(good):
        for case in sorted(must_refuse(value)) if name_of(where) != "min_interval_s" else ():
            body = with_raw(good, where, WRONG[case])
            peer.answers[path] = lambda _, body=body: http(body)  # type: ignore[misc]
            told = enrol(peer, state)
            clean(told, UNAVAILABLE, *([] if case in BREAKS_JSON else [name_of(where)]))
            assert tree(state) == before, (where, case)


# Evidence and check-in


@pytest.fixture
def config(tmp_path: Path, peer: Peer) -> AgentConfig:
    """An enrolled host with one recorded bundle."""
    keys = tmp_path / "state" / "keys"
    config = AgentConfig(
        client_id="msp", site_id="clinic-1", host_id="srv-1", state_dir=tmp_path / "state", mcp_url=peer.url,
        mcp_api_key_file=keys / "api-key", mcp_server_key_file=keys / "server-key", upload_timeout_sec=5,
    )  # fmt: skip
    Ed25519Signer(config.signing_key_file)
    for name, text in (("api-key", "k" * 43), ("server-key", peer.signer.public_bytes.hex())):
        (keys / name).write_text(text, "ascii")
        (keys / name).chmod(0o600)
    return config


async def recorded(config: AgentConfig) -> Path:
    generator = EvidenceGenerator(config, Ed25519Signer(config.signing_key_file), host=healthy_host(1))
    bundle = await generator.create_evidence(
        check="", outcome=None, kind=BundleKind.HEARTBEAT, reason="as_expected", counts={"pending": 1}
    )
    path, _ = await generator.store_evidence(bundle)
    await generator.close()
    return path


async def delivered(config: AgentConfig, path: Path) -> bool | AgentError:
    """What a fresh client makes of the peer's answer."""
    acks: list[object] = []
    client = MCPClient(config, Ed25519Signer(config.signing_key_file).key_id, clock=SystemClock(), on_ack=acks.append)
    try:
        answer: bool | AgentError = await client.upload_evidence(path)
    except (BadReply, ServerRefused, Unavailable) as error:
        answer = error
    finally:
        await client.close()
    assert bool(acks) == (answer is True), "an acknowledgement is believed or it is not"
    return answer


async def test_a_good_acknowledgement_is_believed(config: AgentConfig) -> None:
    assert await delivered(config, await recorded(config)) is True


@pytest.mark.parametrize("case", NO_REPLY)
async def test_an_answer_that_is_none_delivers_nothing(config: AgentConfig, peer: Peer, case: str) -> None:
    path = await recorded(config)
    peer.answers[EVIDENCE] = lambda _: NO_REPLY[case]
    answer = await delivered(config, path)
    assert isinstance(answer, AgentError)
    assert str(answer).isprintable() and len(str(answer).splitlines()) == 1
    assert set(peer.asked) == {EVIDENCE}


async def test_every_wrong_field_of_an_acknowledgement_is_named(config: AgentConfig, peer: Peer) -> None:
    """Even when the server's own key signed it."""
    path = await recorded(config)
    good = peer.ack(path.read_bytes())
    for where, value in leaves(good):
        for case in sorted(must_refuse(value)):
            ack = peer.signed(with_raw(good, where, WRONG[case]))
            body = json.dumps({"ack": ack, "stopped": None, "min_interval_s": None}).encode()
            peer.answers[EVIDENCE] = lambda _, body=body: http(body)  # type: ignore[misc]
            answer = await delivered(config, path)
            assert isinstance(answer, BadReply), (where, case)
            assert case in BREAKS_JSON or name_of(where) in str(answer), (case, str(answer))


@pytest.mark.parametrize(
    "forged", ["another key", "another bundle", "no signature", "the bundle's own", "twice", "of none", "a list"]
)
async def test_a_forged_acknowledgement_is_not_believed(config: AgentConfig, peer: Peer, forged: str) -> None:
    path = await recorded(config)
    body = path.read_bytes()
    ack = peer.ack(body)
    stranger = Ed25519Signer(config.state_dir / "stranger.pem")
    raw = base64.b64decode(peer.signed(ack)["document"])
    said = {
        "another key": peer.signed(ack) | {"sig": base64.b64encode(stranger.sign(raw)).decode()},
        "another bundle": peer.signed(ack | {"bundles": [ack["bundles"][0] | {"bundle_sha256": "0" * 64}]}),
        "no signature": peer.signed(ack) | {"sig": ""},
        "the bundle's own": {"document": base64.b64encode(body).decode(),
                             "sig": base64.b64encode(path.with_name("bundle.sig").read_bytes()).decode()},
        "twice": peer.signed(peer.ack(body, body)),
        "of none": peer.signed(ack | {"bundles": []}),
        "a list": [peer.signed(ack)],
    }[forged]  # fmt: skip
    peer.answers[EVIDENCE] = lambda _: http(json.dumps({"ack": said, "stopped": None}).encode())
    assert isinstance(await delivered(config, path), BadReply)


async def test_every_wrong_field_of_a_check_in_is_named(config: AgentConfig, peer: Peer) -> None:
    good = peer.good(CHECKIN, {}) | {"known": {"epoch": 0, "seq": 1, "digest": "0" * 64}}
    client = MCPClient(config, Ed25519Signer(config.signing_key_file).key_id)
    for where, value in leaves(good):
        for case in sorted(must_refuse(value)) if name_of(where) != "orders" else ():
            body = with_raw(good, where, WRONG[case])
            peer.answers[CHECKIN] = lambda _, body=body: http(body)  # type: ignore[misc]
            client.breaker = type(client.breaker)(random.Random(1))
            with pytest.raises(BadReply) as caught:
                await client.check_in(head=(0, 0, "0" * 64), pending=0, baseline=("1", "0" * 64), checks={})
            assert case in BREAKS_JSON or name_of(where) in str(caught.value), (case, str(caught.value))
    await client.close()


# The agent itself, for some seconds in bad company


@pytest.mark.slow
def test_the_running_agent_keeps_everything_and_its_temper(config: AgentConfig, peer: Peer, tmp_path: Path) -> None:
    """`run` against a server that never says a right word: alive, quiet on the network, nothing lost, ends when told to."""
    rng = random.Random(7)
    for path in (EVIDENCE, CHECKIN):
        peer.answers[path] = lambda _: rng.choice(list(NO_REPLY.values()))
    config_file = written_config(tmp_path, config)
    with (tmp_path / "agent.log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "compliance_agent", "run", "--config", str(config_file)],
            env=environment(), stdin=subprocess.DEVNULL, stdout=log, stderr=log,
        )  # fmt: skip
    try:
        deadline = time.monotonic() + 30
        while EVIDENCE not in peer.asked and time.monotonic() < deadline and process.poll() is None:
            time.sleep(0.05)
        time.sleep(4)
        assert process.poll() is None, (tmp_path / "agent.log").read_text()[-600:]
        assert len(peer.asked) < 40, "it does not hammer"
        assert cpu_s(process.pid) < 4
    finally:
        status = end(process, signal.SIGTERM)
    assert status == 0
    lines = (tmp_path / "agent.log").read_text().splitlines()
    assert all(isinstance(json.loads(line), dict) for line in lines), "events only, no traceback"
    states = dict(rows(config.database_path, "SELECT state, count(*) FROM evidence GROUP BY state"))
    assert set(states) == {"pending"}, "nothing was acknowledged, so nothing is forgotten"
    signer = Ed25519Signer(config.signing_key_file)
    report = verify_paths([config.evidence_dir], {signer.key_id: signer.public_bytes})
    assert report.ok and report.verified == states["pending"]


def written_config(tmp_path: Path, config: AgentConfig) -> Path:
    """The configuration as a file, with a baseline that only looks."""
    checks = "checks:\n  time_sync:\n  encryption:\n    parameters: {mounts: ['/']}\n"
    (tmp_path / "baseline.yaml").write_text(f'version: "1"\nmode: audit\n{checks}')
    lines = {"client_id": "msp", "site_id": "clinic-1", "host_id": "srv-1", "state_dir": str(config.state_dir),
             "mcp_url": config.mcp_url, "mcp_api_key_file": str(config.mcp_api_key_file),
             "mcp_server_key_file": str(config.mcp_server_key_file), "baseline_path": "baseline.yaml",
             "mcp_poll_interval_sec": 1, "upload_timeout_sec": 2}  # fmt: skip
    path = tmp_path / "agent.yaml"
    path.write_text(json.dumps(lines))
    for name in ("agent.yaml", "baseline.yaml"):
        (tmp_path / name).chmod(0o600)
    return path


def cpu_s(pid: int) -> float:
    """Seconds of processor time that a process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
