"""A NixOS 25.11 host's system profile: generations in the store, the one that is selected, and the one that runs."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field

from compliance_agent.lab.host import Call, FakeHost, Node, said
from compliance_agent.ports import Ran

PROFILES = "/nix/var/nix/profiles"
PROFILE = f"{PROFILES}/system"
KERNEL = "linux-6.12.58"


@dataclass
class Generations:
    """What was built: day of the package collection by generation, and which ones were selected, activated, booted."""

    days: dict[int, str] = field(default_factory=dict)
    selected: int = 0
    running: int = 0
    booted: int = 0
    activation_fails: bool = False


def store_path(generation: int, name: str = "nixos-system-clinic-25.11") -> str:
    """Where a generation lies in the store."""
    digest = hashlib.sha256(f"{name} {generation}".encode()).hexdigest()[:32]
    return f"/nix/store/{digest}-{name}"


def provide(host: FakeHost, days: dict[int, str]) -> None:
    """Have these generations, with the newest one selected and running."""
    known = host.part(Generations)
    known.days, known.selected, known.running, known.booted = dict(days), max(days), max(days), max(days)
    host.install("nixos-version", "nix-env", "nix-store", "readlink", "systemd-run")
    for number in days:
        host.place(store_path(number), Node("directory", mode=0o555))
        host.place(f"{PROFILES}/system-{number}-link", Node("symlink", target=store_path(number)))
    show(host)


def show(host: FakeHost) -> None:
    """Have the links say what the state says."""
    known = host.part(Generations)
    for path, target in {
        PROFILE: f"system-{known.selected}-link",
        "/run/current-system": store_path(known.running),
        "/run/booted-system": store_path(known.booted),
        "/run/current-system/kernel": f"{store_path(known.running, KERNEL)}/bzImage",
        "/run/booted-system/kernel": f"{store_path(known.booted, KERNEL)}/bzImage",
    }.items():
        host.place(path, Node("symlink", target=target))
    for number in known.days:
        host.put(f"{store_path(number, KERNEL)}/bzImage", mode=0o444)


def nixos_version(call: Call) -> Ran:
    """`nixos-version --json`."""
    known = call.host.part(Generations)
    revision = hashlib.sha256(str(known.running).encode()).hexdigest()[:40]
    document = {"nixosVersion": f"25.11.{known.days[known.running]}.{revision[:7]}", "nixpkgsRevision": revision}
    return said(json.dumps(document) + "\n")


def nix_store(call: Call) -> Ran:
    """`nix-store --query --requisites PATH`, `nix-store --query --hash PATH...`."""
    known = {path for path in call.host.files if path.startswith("/nix/store/") and path.count("/") == 3}
    for path in call.words:
        if path not in known:
            return said("", 1, err=f"error: path '{path}' is not valid\n")
    if "--requisites" in call.flags:
        generations = {store_path(number): number for number in call.host.part(Generations).days}
        return said("".join(f"{path}\n" for path in (store_path(generations[call.words[0]], KERNEL), call.words[0])))
    digest = {path: hashlib.sha256(path.encode()).hexdigest()[:52] for path in call.words}
    return said("".join(f"sha256:{digest[path]}\n" for path in call.words))


def nix_env(call: Call) -> Ran:
    """`nix-env -p PROFILE --switch-generation NUMBER`."""
    call.alters()
    known, wanted = call.host.part(Generations), call.argv[-1]
    if call.host.uid != 0 or call.argv[1:4] != ("-p", PROFILE, "--switch-generation"):
        return said("", 1, err="error: opening lock file: Permission denied\n")
    if not wanted.isdigit() or int(wanted) not in known.days:
        return said("", 1, err=f"error: profile version {wanted} does not exist\n")
    was, known.selected = known.selected, int(wanted)
    show(call.host)
    return said("", err=f"switching profile from version {was} to {wanted}\n")


def systemd_run(call: Call) -> Ran:
    """`systemd-run [OPTIONS] SYSTEM/bin/switch-to-configuration switch | test`."""
    call.alters()
    known = call.host.part(Generations)
    systems = {PROFILE: known.selected} | {store_path(number): number for number in known.days}
    wanted = systems.get(call.words[0].removesuffix("/bin/switch-to-configuration")) if call.words else None
    if wanted is None or call.words[1:] not in (["switch"], ["test"]) or known.activation_fails:
        return said("", 1, err="Finished with result: exit-code\n")
    known.running = wanted
    show(call.host)
    return said("")


PROGRAMS = {"nixos-version": nixos_version, "nix-env": nix_env, "nix-store": nix_store, "systemd-run": systemd_run}
