"""dnf 4 (Red Hat 9 and its kin): security advisories from a cache that is as old as its files."""

from __future__ import annotations

from dataclasses import dataclass, field

from compliance_agent.lab.host import Call, FakeHost, said
from compliance_agent.ports import Ran

CACHE = "/var/cache/dnf"
REPOSITORIES = ("baseos-2a5ef1b4a2a16f5c", "appstream-9c1d2f3e4b5a6978")
REPOMD = '<?xml version="1.0"?>\n<repomd><data type="primary"/><data type="updateinfo"/></repomd>\n'


@dataclass(frozen=True)
class Advisory:
    """One erratum that waits to be applied."""

    id: str
    severity: str
    package: str


@dataclass
class Advisories:
    """What the mirror has published, what the cache knows of it, and what is applied already."""

    mirror: list[Advisory] = field(default_factory=list)
    known: list[Advisory] = field(default_factory=list)
    applied: set[str] = field(default_factory=set)
    mirror_reachable: bool = True


def provide(host: FakeHost) -> None:
    """Have dnf installed, with a cache of this morning and nothing to apply."""
    host.install("dnf")
    _write_cache(host, age_s=6 * 3600)


def publish(host: FakeHost, advisory: Advisory) -> None:
    """An advisory appears on the mirror, and the cache knows it."""
    state = host.part(Advisories)
    state.mirror.append(advisory)
    state.known.append(advisory)


def lock(host: FakeHost, pid: int) -> None:
    """Another dnf is at work."""
    host.put(f"{CACHE}/metadata_lock.pid", str(pid))
    host.put(f"/proc/{pid}/stat", f"{pid} (dnf) S")


def _write_cache(host: FakeHost, *, age_s: float, news: bool = True) -> None:
    """What a look at the mirror leaves: all files anew, or nothing but a new date on one where there was no news."""
    for name in REPOSITORIES:
        if news:
            host.put(f"{CACHE}/{name}/repodata/repomd.xml", REPOMD, age_s=age_s)
        host.put(f"{CACHE}/{name}/repodata/{name[-8:]}-primary.xml.gz", "primary", age_s=age_s)


def dnf(call: Call) -> Ran:
    """`dnf [-q] [-C] updateinfo list --security | [-y] upgrade --security | makecache --refresh`."""
    state, words = call.host.part(Advisories), call.words
    waiting = [advisory for advisory in state.known if advisory.id not in state.applied]
    if words[:2] == ["updateinfo", "list"]:
        width = max((len(advisory.id) for advisory in waiting), default=0)
        return said("".join(f"{one.id:<{width}} {one.severity}/Sec. {one.package}\n" for one in waiting))
    if words[:1] not in (["upgrade"], ["makecache"]):
        return said("", 1, err=f"No such command: {' '.join(words)}. Please use /usr/bin/dnf --help\n")
    call.alters()
    if call.host.uid != 0:
        return said("", 1, err="Error: This command has to be run with superuser privileges (under the root user).\n")
    if not state.mirror_reachable:
        return said("", 1, err="Error: Failed to download metadata for repo 'baseos': Cannot download repomd.xml\n")
    if f"{CACHE}/metadata_lock.pid" in call.host.files:
        return said("", 200, err="Waiting for process with pid 4711 to finish.\n")
    _write_cache(call.host, age_s=0, news=state.known != state.mirror)
    state.known = list(state.mirror)
    if words[0] == "upgrade":
        state.applied |= {advisory.id for advisory in state.known}
    return said("")


PROGRAMS = {"dnf": dnf}
