"""`compliance-agent witness`: watch that logs only grow, and say so under their checkpoints; see docs/witness.md."""

from __future__ import annotations

import asyncio
import signal
import sys
from pathlib import Path

import click

from compliance_agent.adapters import runner
from compliance_agent.adapters.clock import SystemClock
from compliance_agent.adapters.durable import read_file
from compliance_agent.adapters.witness_keys import WitnessKeys
from compliance_agent.adapters.witness_store import WitnessStore
from compliance_agent.core.witness import MAX_BODY_BYTES
from compliance_agent.documents import MAX_BYTES
from compliance_agent.errors import AgentError, BadEvidence, ConfigError
from compliance_agent.log.policy import Policy
from compliance_agent.logs import configure
from compliance_agent.transport.serve import HttpServer, tls_context
from compliance_agent.witness import Witness, log, logs_of

_PATH = click.Path(path_type=Path)


@click.group(invoke_without_command=True)
@click.option("--name", help="Name of this witness, a URL without scheme; kept from the first start on.")
@click.option(
    "--state-dir", type=_PATH, help="Where its keys and what it cosigned are kept. Never restore it from a backup."
)
@click.option(
    "--policy",
    "policies",
    type=_PATH,
    multiple=True,
    help="File whose log lines say what to witness; more than one may be given.",
)
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option(
    "--port", type=click.IntRange(0, 65_535), default=8_081, show_default=True, help="Port; 0 takes a free one."
)
@click.option("--ml-dsa", is_flag=True, help="Make an ML-DSA-44 key, too; once made it is always used.")
@click.option("--cert", type=_PATH, help="Certificate (PEM) to serve https with.")
@click.option("--key", type=_PATH, help="Private key (PEM) of --cert.")
@click.pass_context
def command(
    ctx: click.Context,
    name: str | None,
    state_dir: Path | None,
    policies: tuple[Path, ...],
    host: str,
    port: int,
    ml_dsa: bool,
    cert: Path | None,
    key: Path | None,
) -> None:
    """Run a witness (without a subcommand): cosign checkpoints of logs that only grew since the last one."""
    ctx.obj = {"name": name, "state_dir": state_dir, "ml_dsa": ml_dsa}
    if ctx.invoked_subcommand is not None:
        return
    if state_dir is None or not policies:
        raise click.UsageError("a witness needs --state-dir and --policy, and --name when it is new")
    if (cert is None) != (key is None):
        raise click.UsageError("--cert and --key go together")
    configure("INFO")
    logs = logs_of(map(_policy, policies))
    if not logs:
        raise ConfigError("--policy: there is no log line, so there is nothing to witness", code="bad_policy")
    tls = tls_context(cert, key) if cert and key else None
    keys = WitnessKeys(state_dir, name, ml_dsa=ml_dsa)
    store = WitnessStore(state_dir, keys.keys)
    try:
        server = HttpServer(
            Witness(logs, keys, store, SystemClock()).answer, SystemClock().now, max_body_bytes=MAX_BODY_BYTES
        )

        async def started() -> int:
            taken = await server.start(host, port, tls)
            _print_keys(keys)
            shown = f"[{host}]" if ":" in host else host
            click.echo(f"listening on {'https' if tls else 'http'}://{shown}:{taken}")
            sys.stdout.flush()
            log.info("witness.started", origins=len(logs))
            return await _until_signal(server)

        sys.exit(runner.run(started()))
    finally:
        store.close()


@command.command("vkey")
@click.option("--name", help="Name of the witness, to make one that is not there yet.")
@click.option("--state-dir", type=_PATH, help="Where its keys are.")
@click.option("--ml-dsa", is_flag=True, help="Make an ML-DSA-44 key, too.")
@click.pass_context
def vkey(ctx: click.Context, name: str | None, state_dir: Path | None, ml_dsa: bool) -> None:
    """Print the witness's public keys as others pin them, one a line."""
    state_dir = state_dir or ctx.obj["state_dir"]
    if state_dir is None:
        raise click.UsageError("which witness? give --state-dir")
    _print_keys(WitnessKeys(state_dir, name or ctx.obj["name"], ml_dsa=ml_dsa or ctx.obj["ml_dsa"]))


def _print_keys(keys: WitnessKeys) -> None:
    for key in keys.keys:
        click.echo(str(key))


def _policy(path: Path) -> Policy:
    try:
        return Policy.parse(read_file(path, limit_bytes=MAX_BYTES, trusted=True))
    except BadEvidence as error:
        raise ConfigError(f"{path}: {error}", code=error.code) from error
    except AgentError as error:
        raise ConfigError(str(error), hint=error.hint) from error


async def _until_signal(server: HttpServer) -> int:
    """Serve until SIGTERM or SIGINT, then finish what was begun; the exit status."""
    loop, ended = asyncio.get_running_loop(), asyncio.Event()
    received: list[int] = []

    def note(number: int) -> None:
        received.append(number)
        ended.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, note, number)
    await ended.wait()
    await server.stop()
    return 130 if signal.SIGINT in received else 0
