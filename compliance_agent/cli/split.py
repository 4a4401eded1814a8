"""What is missing on this host of the three processes that its configuration asks for, and what stands in their way.

A configuration that can be used is half of it: there are users, units, sockets and files that have to be whose they should be.
Each finding says what was looked at, what was expected and found, and what to do. Nothing is changed here.
"""

from __future__ import annotations

import os
import pwd
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from compliance_agent.cli import root_trust
from compliance_agent.config import ADOPT_SOCKET, HEAL_SOCKET, AgentConfig
from compliance_agent.errors import AgentError, NotPermitted
from compliance_agent.heal.permits import MOST_PERMITS_BYTES, parse
from compliance_agent.heal.trouble import Refused

NAME = "compliance-agent"
UNITS = tuple(
    f"{NAME}-{unit}"
    for unit in (
        "run.service",
        *(f"{part}.{kind}" for part in ("uplink", "heal", "adopt") for kind in ("service", "socket")),
    )
)
WANTED = Path("/etc/systemd/system/multi-user.target.wants")  # what is started at boot
PERMIT = "compliance-agent baseline permit"
START = f"systemctl enable --now {NAME}-run"
SOCKET_MODE = 0o660


@dataclass(frozen=True)
class Here:
    """This machine, as far as it is looked at."""

    units: tuple[Path, ...] = tuple(
        Path(place, "systemd/system") for place in ("/etc", "/run", "/usr/local/lib", "/usr/lib", "/lib")
    )
    wanted: Path = WANTED
    permits: Path = Path("/etc/msp/permits.json")
    adopt_state: Path = Path("/var/lib/compliance-agent-adopt")
    lstat: Callable[[Path], os.stat_result] = os.lstat
    user: Callable[[str], pwd.struct_passwd] = pwd.getpwnam

    def found(self, path: Path) -> os.stat_result | None:
        """None where there is nothing.

        Raises:
            NotPermitted: this user may not look.
        """
        try:
            return self.lstat(path)
        except PermissionError as error:
            raise NotPermitted(f"{path}: this user may not look", hint="run config check as root") from error
        except (FileNotFoundError, NotADirectoryError):
            return None


def findings(config: AgentConfig, baseline: str, here: Here) -> list[str]:
    """What has to be put right before the processes can work together, in the order in which a person would.

    Args:
        config: of this host.
        baseline: the digest of its baseline.
        here: this machine.

    Raises:
        NotPermitted: this user may not look at something of it.
    """
    if config.privileges != "split":
        return [*_one_process(config, here)]
    users = {name: here.user(name) for name in (config.run_user, config.uplink_user) if _exists(name, here)}
    parts = (
        _users(config, here),
        _units(here),
        _owners(config, users, here),
        _permits(baseline, here),
        _trust(config, here),
        _approvals(config, here),
    )
    return [text for part in (*parts, _adopt_state(here), _sockets(config, users, here)) for text in part]


def _one_process(config: AgentConfig, here: Here) -> Iterator[str]:
    if config.heal_socket is not None:
        yield (
            "heal_socket is set and privileges is single: cures go through the root side, and the process that asks for them has"
            " the network and root's rights all the same; write privileges: split, or take heal_socket out"
        )
    if here.found(here.wanted / f"{NAME}-run.service") is not None:
        yield f"privileges is single and {NAME}-run.service starts at boot; say split, or systemctl disable {NAME}-run"


def _exists(name: str, here: Here) -> bool:
    try:
        here.user(name)
    except KeyError:
        return False
    return True


def _users(config: AgentConfig, here: Here) -> Iterator[str]:
    for setting, name in (("run_user", config.run_user), ("uplink_user", config.uplink_user)):
        if not _exists(name, here):
            yield f"{setting}: this host has no user {name}; systemd-sysusers, or useradd --system {name}, makes it"


def _units(here: Here) -> Iterator[str]:
    for unit in UNITS:
        if all(here.found(place / unit) is None for place in here.units):
            yield f"{unit}: no such unit in {', '.join(map(str, here.units[:1] + here.units[-1:]))}; install the package again"
    if here.found(here.wanted / f"{NAME}.service") is not None:
        yield f"{NAME}.service, the one process, starts at boot too and conflicts; systemctl disable --now {NAME}"


def _owners(config: AgentConfig, users: dict[str, pwd.struct_passwd], here: Here) -> Iterator[str]:
    """To each of the two what is its own, as `enrol` gives it."""
    for name, files in (
        (config.run_user, (config.state_dir, config.signing_key_file, config.mcp_server_key_file)),
        (config.uplink_user, (config.uplink_dir, config.mcp_api_key_file)),
    ):
        for path in files:
            if path is None or name not in users:
                continue
            found = here.found(path)
            if found is None:
                yield f"{path}: not there; compliance-agent enrol makes it, as root and with this configuration"
            elif found.st_uid != users[name].pw_uid:
                yield f"{path}: owned by uid {found.st_uid}, expected {name} ({users[name].pw_uid}); chown {name}: {path}"


def _permits(baseline: str, here: Here) -> Iterator[str]:
    found = here.found(here.permits)
    if found is None:
        yield f"{here.permits}: not there, so the root side refuses every cure; {PERMIT}"
    elif not stat.S_ISREG(found.st_mode) or found.st_uid != 0 or found.st_mode & 0o022:
        yield f"{here.permits}: not root's file, which only root may write, so it counts for nothing; {PERMIT}"
    else:
        try:
            with here.permits.open("rb") as file:
                other = parse(file.read(MOST_PERMITS_BYTES + 1)).baseline != baseline
        except (OSError, Refused):
            yield f"{here.permits}: cannot be read, or is not of its form; {PERMIT}"
            return
        if other:
            yield f"{here.permits}: is for another baseline than this host's, so every cure is refused; {PERMIT}"


def _trust(config: AgentConfig, here: Here) -> Iterator[str]:
    """Root's word for `adopt`, which has to say what the configuration says, and what the last rotation made of this host's key."""
    path = here.permits.with_name(root_trust.FILE_NAME)
    found = here.found(path)
    if not root_trust.asked_for(config):
        if found is not None:
            yield f"{path}: root takes orders, and this configuration names no signer of one; {PERMIT} removes it"
        return
    if found is None:
        yield f"{path}: not there, so root's side refuses every order; {PERMIT}"
    elif not stat.S_ISREG(found.st_mode) or found.st_uid != 0 or found.st_mode & 0o022:
        yield f"{path}: not root's file, which only root may write, so it counts for nothing; {PERMIT}"
    else:
        yield from _trust_says(config, path)


def _approvals(config: AgentConfig, here: Here) -> Iterator[str]:
    """Whether root waits for approvals, which has to be what the configuration says."""
    path = here.permits.with_name(root_trust.APPROVALS_NAME)
    found = here.found(path)
    if not config.approval_for_disruptive:
        if found is not None:
            yield f"{path}: root waits for approvals, and approval_for_disruptive is not set; {PERMIT} removes it"
    elif found is None:
        yield f"{path}: not there, so the root side takes the agent's word that people approved; {PERMIT}"
    elif not stat.S_ISREG(found.st_mode) or found.st_uid != 0 or found.st_mode & 0o022:
        yield f"{path}: not root's file, which only root may write, so nothing that users notice is done; {PERMIT}"
    elif not root_trust.asked_for(config):
        yield f"{path}: root waits for approvals, and neither order_root_file nor order_keys_file says whose count"


def _trust_says(config: AgentConfig, path: Path) -> Iterator[str]:
    try:
        with path.open("rb") as file:
            standing = file.read(MOST_PERMITS_BYTES + 1)
        others = list(root_trust.differing(standing, root_trust.made(config)[0]))
    except NotPermitted as error:
        raise NotPermitted(f"{error}", hint="run config check as root") from error
    except AgentError as error:
        yield f"{path}: what it should say cannot be told: {error}"
        return
    except (OSError, Refused):
        yield f"{path}: cannot be read, or is not of its form; {PERMIT}"
        return
    if others:
        yield f"{path}: differs from this host in {'; '.join(others)}, so orders for a baseline are refused; {PERMIT}"


def _adopt_state(here: Here) -> Iterator[str]:
    """What it remembers of orders; it makes it itself when it is first asked."""
    found = here.found(here.adopt_state)
    if found is not None and (not stat.S_ISDIR(found.st_mode) or found.st_uid != 0 or found.st_mode & 0o077):
        yield (
            f"{here.adopt_state}: of uid {found.st_uid}, mode {stat.S_IMODE(found.st_mode):04o}; expected a directory of root's"
            f" alone, for the numbers of orders; chown root: {here.adopt_state}; chmod 0700 {here.adopt_state}"
        )


def _sockets(config: AgentConfig, users: dict[str, pwd.struct_passwd], here: Here) -> Iterator[str]:
    gid = users[config.run_user].pw_gid if config.run_user in users else None
    for setting, path in (
        ("uplink_socket", config.uplink_socket),
        ("heal_socket", config.heal_socket or HEAL_SOCKET),
        ("adopt_socket", config.adopt_socket or ADOPT_SOCKET),
    ):
        found = here.found(path)
        if found is None:
            yield f"{setting}: {path} is not there; {START} starts it with the agent"
            continue
        if not stat.S_ISSOCK(found.st_mode):
            yield f"{setting}: {path} is no socket; remove it, then {START}"
            continue
        mode = stat.S_IMODE(found.st_mode)
        if (found.st_uid, mode) != (0, SOCKET_MODE) or gid not in {found.st_gid, None}:
            yield (
                f"{setting}: {path} is of uid {found.st_uid}, gid {found.st_gid}, mode {mode:04o}; expected 0, {config.run_user}"
                f" and {SOCKET_MODE:04o}, as the shipped unit makes it"
            )
