"""One rotation of a host's key over the real parts, single-threaded, for a harness that kills it.

    python -m tests.faults.rotating --state DIR --server URL [--token-file F]

Each run lets the key give way when the server knows the last one, records one bundle and delivers it. It prints one unbuffered line
for each fact: `S` once set-up is over, `R <key id>` when the rotation is done here, `P <seq>:<bundle_id>`, `A <seq>:<bundle_id>`
and `D` as the crash driver does, and `C` when the server has signed that it knows every key.
"""

from __future__ import annotations

import asyncio
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click

from compliance_agent import logs
from compliance_agent.adapters import key_files
from compliance_agent.adapters.clock import SystemClock
from compliance_agent.adapters.database import Database
from compliance_agent.config import AgentConfig
from compliance_agent.crypto import Ed25519Signer
from compliance_agent.errors import AgentError
from compliance_agent.evidence.former import FormerKeys
from compliance_agent.lab import crash_driver
from compliance_agent.lab.crash_driver import Driver, say
from compliance_agent.ports import Clock
from compliance_agent.rotation import KeyRotation


@dataclass
class Parts:
    """What a rotation asks of the agent."""

    driver: Driver
    signer: Any
    clock: Clock = field(default_factory=SystemClock)

    def __post_init__(self) -> None:
        self.mcp_client = self.driver.client
        self.offline_queue = self.driver.queue
        self.evidence_generator = self.driver.evidence

    def use_signer(self, signer: Ed25519Signer) -> None:
        """As the agent does."""
        self.signer = self.driver.evidence.signer = signer
        assert self.driver.client is not None
        self.driver.client.use_key(signer.key_id)


def settled(config: AgentConfig) -> Ed25519Signer:
    """The key that the database names, brought to its place first, as the agent does."""
    database = Database(config.state_dir / "agent.db", threaded=False, reserve_kb=config.reserve_kb)
    try:
        key_files.settle(config.signing_key_file, key_files.chain_key(database))
    finally:
        database.close()
    return Ed25519Signer(config.signing_key_file)


async def drive(state: Path, server: str, token_file: Path | None, rotates: bool) -> None:
    config = await crash_driver.configured(state, server, token_file)
    signer = settled(config)
    driver = await crash_driver.assembled(config)
    former = FormerKeys(driver.database)
    rotation = KeyRotation(Parts(driver, signer), config, driver.database, former, key_files)
    say("S")
    try:
        if not await rotation.tell():
            sys.exit(69)
        await driver.drain(20.0)
        if rotates and (rotated := await rotation.rotate()).code == "rotated":
            say(f"R {rotated.key_id}")
        await driver.record(1)
        await driver.drain(20.0)
        if not await former.unconfirmed():
            say("C")
    finally:
        await driver.close()


@click.command()
@click.option("--state", type=click.Path(path_type=Path), required=True)
@click.option("--server", required=True)
@click.option("--token-file", type=click.Path(path_type=Path))
@click.option("--rotate", "rotates", is_flag=True)
def main(state: Path, server: str, token_file: Path | None, rotates: bool) -> None:
    """Rotate, record, deliver."""
    logs.configure("ERROR", sys.stderr)
    try:
        asyncio.run(drive(state.absolute(), server, token_file, rotates))
    except AgentError as error:
        click.echo(f"rotating: {error.line}", err=True)
        sys.exit(error.exit_status)


if __name__ == "__main__":
    main()
