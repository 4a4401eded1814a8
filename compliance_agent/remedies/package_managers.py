"""What the actions on package managers share: which programs, whether one is at work, and what a failed run means."""

from __future__ import annotations

from compliance_agent.checks.files import is_there
from compliance_agent.core import packages
from compliance_agent.errors import CannotTell, StepFailed
from compliance_agent.ports import ChangingHost, Host
from compliance_agent.remedies.spec import Args

LOCK_WAIT_S = 60
DNF_LOCKED = 200  # exit status with `exit_on_lock`; dnf(8), "Exit status"
DNF_CHANGE = ("dnf", "-q", "-y", "--setopt=exit_on_lock=True", "--setopt=*.skip_if_unavailable=0")
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
    """`package_manager_busy` while apt, dpkg or dnf holds a lock. It is looked at and never taken: looking must not stop
    others.
    """
    look = {"apt": _apt_busy, "dnf": _dnf_busy}.get(str(args.get("manager")))
    return "package_manager_busy" if look and await look(host) else None


async def _apt_busy(host: Host) -> bool:
    inodes = await host.run(("stat", "--format=%i", *packages.APT_LOCKS))  # it prints those that are there
    numbers = {int(word) for word in inodes.out.split() if word.isdigit()}
    return bool(numbers & packages.locked_inodes((await host.read("/proc/locks")).decode("ascii", "replace")))


async def _dnf_busy(host: Host) -> bool:
    """Dnf's locks are files with the id of the process that made them; one whose process has ended holds nothing."""
    for path in packages.DNF_LOCKS:
        try:
            holder = (await host.read(path)).decode("ascii", "replace").strip()
        except CannotTell as error:
            if error.reason != "not_found":
                raise
            continue
        if not holder.isdigit() or await is_there(host, f"/proc/{holder}/stat"):
            return True
    return False


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
        said = (b"Could not get lock", b"Unable to acquire the dpkg")
        locked = any(words in ran.err for words in said) or (argv[0] == "dnf" and ran.exit_status == DNF_LOCKED)
        raise StepFailed(
            f"{argv[0]}: exit status {ran.exit_status}, expected 0",
            code="package_manager_busy" if locked else code,
            exit_status_of_step=ran.exit_status,
        )
