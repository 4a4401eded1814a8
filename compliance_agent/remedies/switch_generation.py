"""Select a NixOS system generation that is on the host already, and make it the running one. Never an older one."""

from __future__ import annotations

from typing import Any

from compliance_agent.core.packages import read_generation, read_store_path
from compliance_agent.core.tools import answered
from compliance_agent.errors import CannotTell, StepFailed
from compliance_agent.ports import ChangingHost
from compliance_agent.remedies.spec import Action, Args

PROFILE = "/nix/var/nix/profiles/system"
# The switch restarts services, perhaps our own: it runs in a transient unit, as nixos-rebuild does it.
TRANSIENT = ("systemd-run", "--collect", "--wait", "--quiet", "--unit=compliance-agent-switch-to-configuration")


async def capture(host: ChangingHost, args: Args) -> Any:
    """The selected generation, and the system that runs."""
    link = answered(await host.run(("readlink", PROFILE)), "readlink").text
    running = answered(await host.run(("readlink", "-f", "/run/current-system")), "readlink").text
    return {"generation": read_generation(link), "running": read_store_path(running)}


async def apply(host: ChangingHost, args: Args) -> None:
    """Select the generation and activate it.

    Raises:
        StepFailed: `would_go_backwards`, `switch_failed` or `activation_failed`.
    """
    selected, wanted = (await capture(host, args))["generation"], int(args["generation"])
    if wanted < selected:
        raise StepFailed(f"generation {wanted} is older than {selected}", code="would_go_backwards")
    await _switch(host, wanted)
    await _activate(host, PROFILE, "switch")


async def undo(host: ChangingHost, args: Args, captured: Any) -> None:
    """Select the former generation and activate the system that ran; the one way back, and only within the same cure."""
    now = await capture(host, args)
    if now["generation"] != captured["generation"]:
        await _switch(host, int(captured["generation"]))
        await _activate(host, PROFILE, "switch")
        now = await capture(host, args)
    if (
        now["running"] != captured["running"]
    ):  # it was none that was selected, so it does not become the next one booted
        await _activate(host, read_store_path(captured["running"]), "test")


async def _switch(host: ChangingHost, generation: int) -> None:
    await _must(host, ("nix-env", "-p", PROFILE, "--switch-generation", str(generation)), "switch_failed")


async def _activate(host: ChangingHost, system: str, how: str) -> None:
    await _must(host, (*TRANSIENT, f"{system}/bin/switch-to-configuration", how), "activation_failed")


async def _must(host: ChangingHost, argv: tuple[str, ...], code: str) -> None:
    try:
        ran = await host.change(argv, timeout_s=280.0)
    except CannotTell as error:
        raise StepFailed(f"{argv[0]}: {error.reason}", code=error.reason) from error
    if ran.exit_status != 0:
        raise StepFailed(f"{argv[0]}: exit status {ran.exit_status}", code=code, exit_status_of_step=ran.exit_status)


ACTION = Action(
    id="switch_generation",
    title="select system generation {generation} and activate it",
    arguments={"generation": int},
    capture=capture,
    apply=apply,
    undo=undo,
    codes={
        "would_go_backwards": "The generation to select is older than the one that is selected.",
        "switch_failed": "The generation could not be selected.",
        "activation_failed": "The generation was selected and could not be activated.",
    },
    deadline_s=600.0,
)
