"""What the actions on package managers share: which programs, whether one is at work, and what a failed run means."""

from __future__ import annotations

from compliance_agent.core import packages
from compliance_agent.errors import CannotTell, StepFailed
from compliance_agent.ports import ChangingHost, Host
from compliance_agent.remedies.spec import Args

LOCK_WAIT_S = 60
CODES = {
    "bad_arguments": "The action was given arguments that it cannot use.",
    "package_manager_busy": "Another program is using the package manager.",
}


def manager_of(args: Args) -> str:
    """The package manager an action is to use.

    Raises:
        StepFailed: `bad_arguments`, for one that the action does not know.
    """
    manager = args["manager"]
    if manager not in {"apt", "dnf"}:
        raise StepFailed("manager: expected apt or dnf", code="bad_arguments")
    return str(manager)


async def busy(host: Host, args: Args) -> str | None:
    """`package_manager_busy` while dpkg or apt holds a lock. The lock is looked at and never taken: looking must not
    stop others. dnf waits for its own.
    """
    if args.get("manager") != "apt":
        return None
    inodes = await host.run(("stat", "--format=%i", *packages.APT_LOCKS))  # it prints those that are there
    numbers = {int(word) for word in inodes.out.split() if word.isdigit()}
    locked = packages.locked_inodes((await host.read("/proc/locks")).decode("ascii", "replace"))
    return "package_manager_busy" if numbers & locked else None


async def must(host: ChangingHost, argv: tuple[str, ...], *, timeout_s: float, code: str) -> None:
    """Run a program that has to end with status 0.

    Raises:
        StepFailed: with `code`, or `package_manager_busy` when the lock was not free in time.
    """
    try:
        ran = await host.change(argv, timeout_s=timeout_s, env={"DEBIAN_FRONTEND": "noninteractive"})
    except CannotTell as error:
        raise StepFailed(f"{argv[0]}: {error.reason}", code=error.reason) from error
    if ran.exit_status != 0:
        locked = b"Could not get lock" in ran.err or b"Unable to acquire the dpkg" in ran.err
        raise StepFailed(
            f"{argv[0]}: exit status {ran.exit_status}, expected 0",
            code="package_manager_busy" if locked else code,
            exit_status_of_step=ran.exit_status,
        )
