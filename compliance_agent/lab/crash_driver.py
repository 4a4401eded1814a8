"""The real storage and upload core, synchronous and single-threaded, for harnesses that kill it or break its disk.

    python -m compliance_agent.lab.crash_driver --state DIR --server URL|none --count N [--resume] [--token-file F]

It prints one unbuffered line for each fact: `S` once set-up is over, `P <seq>:<bundle_id>` when a record is promised,
`A <seq>:<bundle_id>` when its verified acknowledgement arrived and before anything is forgotten, `D` when the queue is
drained. `--resume` records nothing and drains. Without a server nothing is delivered, and there is no `D`.

Exit status as everywhere: 0, or that of the error (73 disk full, 74 I/O, 75 in use, 69 server not reached in time).
"""

from __future__ import annotations

import asyncio
import dataclasses
import json
import os
import random
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from compliance_agent import enrolment, logs
from compliance_agent.adapters.clock import SystemClock, read_clock_state
from compliance_agent.adapters.database import Database
from compliance_agent.adapters.durable import write_file
from compliance_agent.config import AgentConfig
from compliance_agent.crypto import Ed25519Signer
from compliance_agent.errors import AgentError, BadReply, ServerRefused, Unavailable
from compliance_agent.evidence import EvidenceGenerator
from compliance_agent.mcp_client import MCPClient
from compliance_agent.models import BundleKind, ClockState, QueuedEvidence
from compliance_agent.queue import OfflineQueue
from compliance_agent.transport.protocol import Acknowledged

LONGEST_PAUSE_S = 0.5


class BareHost:
    """This machine, of which only the clock is asked, so that recording one bundle is nearly nothing but storage."""

    async def clock_state(self) -> ClockState:
        """What the kernel says."""
        return read_clock_state()


@dataclass
class Driver:
    """One run over one state directory."""

    config: AgentConfig
    database: Database
    evidence: EvidenceGenerator
    queue: OfflineQueue
    client: MCPClient | None
    acks: dict[str, bytes]

    async def record(self, count: int) -> None:
        """Record so many heartbeats, and say of each that it is promised."""
        for number in range(count):
            bundle = await self.evidence.create_evidence(
                check="", outcome=None, kind=BundleKind.HEARTBEAT, reason="as_expected", counts={"pending": number}
            )
            paths = await self.evidence.store_evidence(bundle)
            await self.queue.enqueue(bundle.bundle_id, *paths)
            say(f"P {(await self.head())[1]}:{bundle.bundle_id}")

    async def drain(self, timeout_s: float) -> None:
        """Deliver what is pending, in order.

        Raises:
            Unavailable: it was not all delivered in time.
        """
        clock = SystemClock()
        deadline = clock.monotonic() + timeout_s
        while (await self.queue.get_stats())["pending"]:
            if clock.monotonic() > deadline:
                raise Unavailable(f"not delivered within {timeout_s:g} s")
            waiting = await self.queue.get_pending(self.config.upload_batch_size)
            if not waiting:
                await clock.sleep(LONGEST_PAUSE_S)
                continue
            await self.deliver(waiting)
        say("D")

    async def deliver(self, waiting: Sequence[QueuedEvidence]) -> None:
        """One turn of delivery, as the agent does it: calls that wait together leave together."""
        assert self.client is not None  # noqa: S101  drain is only for a server
        uploads = [self.client.upload(item) for item in waiting]
        for item, result in zip(waiting, await asyncio.gather(*uploads, return_exceptions=True), strict=True):
            if result is True:
                say(f"A {item.seq}:{item.bundle_id}")
                await self.queue.mark_uploaded(item.id, self.acks.pop(item.bundle_id, None))
            elif isinstance(result, ServerRefused | Unavailable | BadReply):
                await self.put_off(item, result)
                return
            elif isinstance(result, BaseException):
                raise result

    async def put_off(self, item: QueuedEvidence, error: ServerRefused | Unavailable | BadReply) -> None:
        """Try later; where the server wants an earlier bundle, from there."""
        expected = error.expected if isinstance(error, ServerRefused) else None
        if expected is not None and item.epoch is not None and expected < (item.epoch, item.seq):
            await self.queue.requeue_from(*expected)
        else:
            retry_after_s = error.retry_after_s if isinstance(error, ServerRefused) else None
            await self.queue.increment_retry(item.id, error.code, retry_after_s)

    async def head(self) -> tuple[int, int]:
        """Epoch and number of the last record."""
        head = (await self.evidence.open()).head()
        return (head.epoch, head.seq) if head else (0, 0)

    async def close(self) -> None:
        """Let go of connection and database."""
        if self.client is not None:
            await self.client.close()
        self.database.close()


def keep(acks: dict[str, bytes], ack: Acknowledged) -> None:
    """Remember the proof of delivery until the bundle is marked."""
    acks[ack.bundle_id] = ack.ack


def say(line: str) -> None:
    """One line on standard output, written at once and whole; again, when a planted fault was meant for another write."""
    try:
        os.write(1, f"{line}\n".encode())
    except OSError:
        os.write(1, f"{line}\n".encode())


async def configured(state: Path, server: str, token_file: Path | None) -> AgentConfig:
    """The configuration of this state directory; enrolled first, if it is not and there is a token."""
    identity = state / "driver.json"
    ids: dict[str, Any] = {"client_id": "lab-client", "site_id": "lab-site", "host_id": "crash-driver"}
    if identity.exists():
        ids = json.loads(identity.read_bytes())
    config = AgentConfig(
        **ids,
        state_dir=state,
        baseline_path=state / "baseline.yaml",
        mcp_url=None if server == "none" else server,
        mcp_api_key_file=state / "api-key",
        mcp_server_key_file=state / "server-key",
    )
    if config.mcp_url is None or token_file is None or (state / "api-key").exists():
        return config
    return await enrolled(config, identity, token_file)


async def enrolled(config: AgentConfig, identity: Path, token_file: Path) -> AgentConfig:
    """The configuration after enrolment; what the server called this host is kept."""
    from compliance_agent.transport.http import HttpTransport

    transport = HttpTransport(str(config.mcp_url), ca_file=config.mcp_ca_file)
    try:
        signer = Ed25519Signer(config.signing_key_file)
        answer = await enrolment.enrol(transport, signer, enrolment.read_token(token_file), config.host_id)
    finally:
        await transport.close()
    ids: dict[str, Any] = {"client_id": answer.client_id, "site_id": answer.site_id, "host_id": answer.host_id}
    write_file(identity, json.dumps(ids).encode())
    enrolment.save(answer, config.state_dir / "api-key", config.state_dir / "server-key")
    return dataclasses.replace(config, **ids)


async def assembled(config: AgentConfig) -> Driver:
    """The real parts, on one thread."""
    signer = Ed25519Signer(config.signing_key_file)
    database = Database(config.state_dir / "agent.db", threaded=False, reserve_kb=config.reserve_kb)
    clock, chance = SystemClock(), random.Random()
    evidence = EvidenceGenerator(config, signer, database=database, clock=clock, host=BareHost())  # type: ignore[arg-type]
    queue = OfflineQueue(
        config.state_dir / "agent.db", evidence_dir=config.evidence_dir, clock=clock, rng=chance, database=database
    )
    acks: dict[str, bytes] = {}
    client = None
    if config.mcp_url:
        client = MCPClient(config, signer.key_id, clock=clock, rng=chance, on_ack=lambda ack: keep(acks, ack))
    await evidence.open()
    return Driver(config, database, evidence, queue, client, acks)


async def drive(
    state: Path, server: str, count: int, *, resume: bool, token_file: Path | None, timeout_s: float
) -> None:
    """The whole run."""
    driver = await assembled(await configured(state, server, token_file))
    say("S")
    try:
        if not resume:
            await driver.record(count)
        if driver.client is not None:
            await driver.drain(timeout_s)
    finally:
        await driver.close()


@click.command()
@click.option("--state", type=click.Path(path_type=Path), required=True, help="State directory; made when absent.")
@click.option("--server", default="none", show_default=True, help="URL of the server, or none.")
@click.option("--count", type=click.IntRange(0), default=0, help="Bundles to record.")
@click.option("--resume", is_flag=True, help="Record nothing; drain.")
@click.option("--token-file", type=click.Path(path_type=Path), help="Enrol with this token first, if not enrolled.")
@click.option("--timeout", "timeout_s", type=float, default=120.0, show_default=True, help="Seconds to drain in.")
def main(state: Path, server: str, count: int, resume: bool, token_file: Path | None, timeout_s: float) -> None:
    """Drive the storage and upload core of one state directory."""
    logs.configure("ERROR", sys.stderr)
    try:
        asyncio.run(drive(state.absolute(), server, count, resume=resume, token_file=token_file, timeout_s=timeout_s))
    except AgentError as error:
        click.echo(f"crash_driver: {error.line}", err=True)
        sys.exit(error.exit_status)


if __name__ == "__main__":
    main()
