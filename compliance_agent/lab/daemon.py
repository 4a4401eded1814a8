"""The real agent on a simulated clinic host that never stops drifting, for harnesses that kill it.

    python -m compliance_agent.lab.daemon --state DIR --config FILE --seed N

Everything but the machine is real: key, database, queue, HTTP client, the loop and its signals. The machine drifts by the
faults of lab/drift.py every few milliseconds, a person repairs it now and then, and the loop's pauses are cut short, so that
there is no quiet moment. It prints one unbuffered line for each fact: `S` once the agent runs and takes signals, `P
<epoch>:<seq>:<bundle_id>` when a bundle is promised, and `A <epoch>:<seq>:<bundle_id>` when its acknowledgement was verified
and before anything is forgotten. With `--calm` nothing drifts, so that only what is left is delivered. SIGTERM ends it.

`--nursery` saves a harness the interpreter's start: told `start` on standard input it forks such a process, told `kill` it
ends that one with SIGKILL and prints `E <exit status, negative for a signal>` after the last line the process got out.

Exit status as everywhere: 0, or that of the error.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import signal
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn, cast

import click

from compliance_agent import logs
from compliance_agent.adapters.clock import SystemClock
from compliance_agent.agent import ComplianceAgent
from compliance_agent.baseline import Baseline, load
from compliance_agent.config import AgentConfig
from compliance_agent.crypto import Ed25519Signer
from compliance_agent.documents import read_json
from compliance_agent.drift import DriftDetector
from compliance_agent.errors import AgentError, ConfigError
from compliance_agent.evidence import EvidenceGenerator
from compliance_agent.lab import drift as synthetic
from compliance_agent.lab.clinic import healthy_host
from compliance_agent.lab.host import FakeHost
from compliance_agent.mcp_client import MCPClient
from compliance_agent.models import EvidenceBundle
from compliance_agent.ports import Host
from compliance_agent.transport.protocol import Acknowledged

LONGEST_PAUSE_S = 0.002
CALM_PAUSE_S = 0.1
DRIFT_EVERY_S = (0.002, 0.02)


class HurriedClock(SystemClock):
    """True time, and nobody ever waits longer than `longest_s`: the agent polls as fast as it can."""

    def __init__(self, longest_s: float = LONGEST_PAUSE_S) -> None:
        self.longest_s = longest_s

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(min(max(seconds, 0.0), self.longest_s))


class Ward:
    """A simulated machine that can be put right as a whole: stands for whichever `FakeHost` is the machine now."""

    def __init__(self, seed: int, clock: HurriedClock, rng: random.Random) -> None:
        self._seed, self._clock, self._rng = seed, clock, rng
        self._drifted: set[str] = set()  # checks
        self.machine: FakeHost = healthy_host(seed, clock)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.machine, name)

    def something_happens(self) -> None:
        """Another fault; when its check had one before, a person comes and repairs everything instead."""
        fault = self._rng.choice(list(synthetic.FAULTS.values()))
        if fault.check in self._drifted:
            self.machine = healthy_host(self._seed, self._clock)
            self._drifted.clear()
        else:
            fault.inject(self.machine)
            self._drifted.add(fault.check)

    async def drift(self) -> None:
        """Let things happen until cancelled."""
        while True:
            await asyncio.sleep(self._rng.uniform(*DRIFT_EVERY_S))
            self.something_happens()


class LoudEvidence(EvidenceGenerator):
    """Says of each bundle that it is promised, as soon as that is so."""

    async def store_evidence(self, bundle: EvidenceBundle, sign: bool = True) -> tuple[Path, Path]:
        paths = await super().store_evidence(bundle, sign)
        document = read_json(paths[0].read_bytes())
        say(f"P {document['epoch']}:{document['seq']}:{bundle.bundle_id}")
        return paths


def say(line: str) -> None:
    """One line that is out of this process when the call returns, whatever kills it next."""
    os.write(1, f"{line}\n".encode("ascii"))


def hurried(baseline: Baseline) -> Baseline:
    """The same, with every check due whenever there is a turn."""
    entries = {name: replace(entry, interval_s=0) for name, entry in baseline.entries.items()}
    return replace(baseline, entries=entries)


def assembled(config: AgentConfig, ward: Ward, clock: HurriedClock) -> ComplianceAgent:
    """The real agent over the simulated machine."""
    host = cast(Host, ward)
    signer = Ed25519Signer(config.signing_key_file)
    detector = DriftDetector(config, host=host, baseline=hurried(load(config.baseline_path)), clock=clock)
    evidence = LoudEvidence(config, signer, clock=clock, host=host, baseline=detector.baseline)

    def acknowledged(ack: Acknowledged) -> None:
        say(f"A {ack.epoch}:{ack.seq}:{ack.bundle_id}")
        agent.delivery.keep_ack(ack)

    client = MCPClient(config, signer.key_id, clock=clock, on_ack=acknowledged) if config.mcp_url else None
    agent = ComplianceAgent(
        config, signer=signer, drift_detector=detector, evidence_generator=evidence, mcp_client=client, clock=clock
    )
    return agent


async def live(config: AgentConfig, seed: int, *, calm: bool) -> None:
    """Run until a signal."""
    rng = random.Random(f"{seed} {os.getpid()}")
    clock = HurriedClock(CALM_PAUSE_S if calm else LONGEST_PAUSE_S)
    ward = Ward(seed, clock, rng)
    agent = assembled(config, ward, clock)
    asyncio.get_running_loop().call_soon(say, "S")  # at the first turn of the loop the agent has its signal handlers
    drifting = asyncio.create_task(ward.drift())
    if calm:
        drifting.cancel()
    else:
        drifting.add_done_callback(lambda _: agent.shutdown_event.set())  # load that ended by itself is no load
    await agent.start()
    drifting.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await drifting


def nursery(config: AgentConfig, seed: int) -> None:
    """Fork and kill agents as told, one at a time, until standard input ends."""
    child = 0
    for order in iter(sys.stdin.readline, ""):
        if order.strip() == "start" and not child:
            child = os.fork()
            if not child:
                _born(config, seed)
        elif order.strip() == "kill" and child:
            child = _killed(child)
    if child:
        _killed(child)


def _born(config: AgentConfig, seed: int) -> NoReturn:
    """The forked agent: nothing of the nursery's goes on in it but its open standard output."""
    status = 70
    try:
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        asyncio.run(live(config, seed, calm=False))
        status = 0
    except AgentError as error:
        click.echo(f"daemon: {error.line}", err=True)
        status = error.exit_status
    finally:
        os._exit(status)


def _killed(child: int) -> int:
    """End the process, which is still ours to name because nobody else waits for it; 0 for no child any more."""
    os.kill(child, signal.SIGKILL)
    say(f"E {os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])}")
    return 0


@click.command()
@click.option("--state", type=click.Path(path_type=Path), required=True, help="State directory; the configuration's.")
@click.option("--config", "config_path", type=click.Path(path_type=Path), required=True, help="Configuration file.")
@click.option("--seed", type=int, default=0, show_default=True, help="Which clinic host is simulated.")
@click.option("--calm", is_flag=True, help="Nothing drifts; deliver what is left.")
@click.option("--nursery", "many", is_flag=True, help="Fork and kill such processes as told on standard input.")
@click.option("--log-level", default="ERROR", show_default=True, help="Least severe events on standard error.")
def main(state: Path, config_path: Path, seed: int, calm: bool, many: bool, log_level: str) -> None:
    """Run the agent on a simulated host that keeps drifting."""
    logs.configure(log_level, sys.stderr)
    try:
        config = AgentConfig.from_file(config_path)
        if config.state_dir != state.absolute():
            raise ConfigError(f"state_dir: the configuration says {config.state_dir}, --state says {state}")
        if many:
            nursery(config, seed)
        else:
            asyncio.run(live(config, seed, calm=calm))
    except AgentError as error:
        click.echo(f"daemon: {error.line}", err=True)
        sys.exit(error.exit_status)


if __name__ == "__main__":
    main()
