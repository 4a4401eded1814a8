"""apt 2.6 and dpkg: what is installed, what the mirror offers, and what this host has heard of it."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime, timedelta

from compliance_agent.lab.host import Call, FakeHost, Node, said
from compliance_agent.lab.programs.coreutils import inode_of
from compliance_agent.ports import Ran

LISTS = "/var/lib/apt/lists"
STAMP = "/var/lib/apt/periodic/compliance-agent-update-stamp"
LOCK = "/var/lib/dpkg/lock-frontend"
LOCKS = (LOCK, "/var/lib/dpkg/lock", f"{LISTS}/lock", "/var/cache/apt/archives/lock")
KERNEL = "6.1.0-41-amd64"
RELEASES = (
    ("mirror.example_debian_dists_bookworm_InRelease", "Debian", "oldstable", "bookworm"),
    ("mirror.example_debian_dists_bookworm-updates_InRelease", "Debian", "oldstable-updates", "bookworm-updates"),
    (
        "mirror.example_debian-security_dists_bookworm-security_InRelease",
        "Debian-Security",
        "oldstable-security",
        "bookworm-security",
    ),
)
INSTALLED = {
    "base-files": "12.4+deb12u12",
    "bash": "5.2.15-2+b8",
    "clamav-daemon": "1.4.6+dfsg-0+deb12u1",
    "chrony": "4.3-2+deb12u3",
    "libssl3": "3.0.17-1~deb12u3",
    "nftables": "1.0.6-2+deb12u2",
    "openssh-server": "1:9.2p1-2+deb12u7",
    "restic": "0.14.0-1+b5",
    "rsyslog": "8.2302.0-1+deb12u1",
    f"linux-image-{KERNEL}": "6.1.158-1",
}


@dataclass(frozen=True)
class Offer:
    """A newer version of a package, as a mirror has it."""

    version: str
    security: bool = True
    reboots: bool = False


@dataclass
class Packages:
    """The package manager's world.

    Attributes:
        installed: version by package.
        mirror: what is offered out there; known: what this host has heard of it (`apt-get update`).
        mirror_reachable: whether the mirror answers.
        broken: packages whose installation fails.
        locked_by: process id of another package manager at work.
    """

    installed: dict[str, str] = field(default_factory=lambda: dict(INSTALLED))
    mirror: dict[str, Offer] = field(default_factory=dict)
    known: dict[str, Offer] = field(default_factory=dict)
    mirror_reachable: bool = True
    broken: set[str] = field(default_factory=set)
    unpacked: set[str] = field(default_factory=set)  # new on disk, not set up
    locked_by: int | None = None
    altered: list[str] = field(default_factory=list)  # what `dpkg --verify` complains of


def provide(host: FakeHost) -> None:
    """Have Debian 12 with all security updates installed and lists of this morning."""
    host.install("apt", "apt-get", "dpkg", "dpkg-query")
    for name in INSTALLED:
        host.put(f"/var/lib/dpkg/info/{name}.list", "/.\n")
        host.put(f"/var/lib/dpkg/info/{name}.md5sums", "")
    host.put("/etc/debian_version", "12.12\n")
    host.put("/etc/os-release", 'PRETTY_NAME="Debian GNU/Linux 12 (bookworm)"\nID=debian\nVERSION_ID="12"\n')
    host.put("/proc/sys/kernel/osrelease", f"{KERNEL}\n")
    host.put("/proc/locks", "")
    host.place(f"/lib/modules/{KERNEL}", Node("directory", mode=0o755, modified_at=host.now() - timedelta(days=40)))
    host.place("/run", Node("directory", mode=0o755, modified_at=host.now()))
    for lock in LOCKS:
        host.put(lock, mode=0o640)
    write_lists(host, host.now() - timedelta(hours=6))
    host.put(STAMP, age_s=6 * 3600)


def write_lists(host: FakeHost, made_at: datetime) -> None:
    """Have package lists whose maker signed them at this time."""
    for name, label, suite, codename in RELEASES:
        until = f"Valid-Until: {_rfc2822(made_at + timedelta(days=7))}\n" if label == "Debian-Security" else ""
        text = (
            "-----BEGIN PGP SIGNED MESSAGE-----\nHash: SHA512\n\n"
            f"Origin: Debian\nLabel: {label}\nSuite: {suite}\nVersion: 12\nCodename: {codename}\n"
            f"Date: {_rfc2822(made_at)}\n{until}Acquire-By-Hash: yes\nArchitectures: all amd64\nSHA256:\n"
            " e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855        0 main/Contents-amd64\n"
            "-----BEGIN PGP SIGNATURE-----\n\niQIzBAEBCgAdFiEE\n-----END PGP SIGNATURE-----\n"
        )
        host.put(f"{LISTS}/{name}", text, age_s=(host.now() - made_at).total_seconds())


def lock(host: FakeHost, pid: int | None) -> None:
    """Let another package manager be at work, or be done."""
    host.part(Packages).locked_by = pid
    line = f"1: POSIX  ADVISORY  WRITE {pid} 08:01:{inode_of(LOCK)} 0 EOF\n" if pid else ""
    host.put("/proc/locks", line)


def offer(host: FakeHost, name: str, version: str, *, security: bool = True, reboots: bool = False) -> None:
    """A newer version appears on the mirror, and this host has heard of it."""
    packages = host.part(Packages)
    packages.mirror[name] = packages.known[name] = Offer(version, security, reboots)


def _rfc2822(moment: datetime) -> str:
    return moment.strftime("%a, %d %b %Y %H:%M:%S UTC")


def _waiting(packages: Packages) -> dict[str, Offer]:
    return {
        name: offered
        for name, offered in sorted(packages.known.items())
        if name in packages.installed and packages.installed[name] != offered.version
    }


def apt(call: Call) -> Ran:
    """`apt list --upgradable`."""
    packages = call.host.part(Packages)
    warning = "\nWARNING: apt does not have a stable CLI interface. Use with caution in scripts.\n\n"
    if call.words[-1:] != ["list"] or "--upgradable" not in call.flags:
        return said("", 100, err="E: Invalid operation\n")
    lines = ["Listing..."]
    for name, offered in _waiting(packages).items():
        suite = "oldstable-security" if offered.security else "oldstable"
        lines.append(f"{name}/{suite} {offered.version} amd64 [upgradable from: {packages.installed[name]}]")
    return said("\n".join(lines) + "\n", err=warning)


def apt_get(call: Call) -> Ran:
    """`apt-get [-s] update | upgrade | dist-upgrade | [--only-upgrade] install NAME[=VERSION]...`."""
    words = _without_options(call.argv)
    command, names = (words[0] if words else ""), words[1:]
    if command in {"upgrade", "dist-upgrade", "full-upgrade"}:
        chosen = _waiting(call.host.part(Packages))
    elif command == "install":
        waiting = _waiting(call.host.part(Packages))
        chosen = {name: waiting[name] for name in (word.partition("=")[0] for word in names) if name in waiting}
    elif command != "update":
        return said("", 100, err=f"E: Invalid operation {command}\n")
    else:
        chosen = {}
    if {"-s", "--simulate", "--dry-run"} & call.flags:
        return said(_simulated(call.host.part(Packages), chosen))
    call.alters()
    if call.host.uid != 0:
        err = "E: Could not open lock file /var/lib/dpkg/lock-frontend - open (13: Permission denied)\n"
        return said("", 100, err=f"{err}E: Unable to acquire the dpkg frontend lock, are you root?\n")
    if pid := call.host.part(Packages).locked_by:
        return said("", 100, err=f"E: Could not get lock {LOCK}. It is held by process {pid} (apt-get)\n")
    return _update(call.host) if command == "update" else _install(call.host, chosen)


def _without_options(argv: tuple[str, ...]) -> list[str]:
    words, rest = [], list(argv[1:])
    while rest:
        word = rest.pop(0)
        if word in {"-o", "--option", "-t"} and rest:
            rest.pop(0)
        elif not word.startswith("-"):
            words.append(word)
    return words


def _simulated(packages: Packages, chosen: dict[str, Offer]) -> str:
    lines = ["Reading package lists...", "Building dependency tree...", "Reading state information..."]
    lines.append("Calculating upgrade...")
    if chosen:
        lines += ["The following packages will be upgraded:", "  " + " ".join(chosen)]
    lines.append(f"{len(chosen)} upgraded, 0 newly installed, 0 to remove and 0 not upgraded.")
    for verb in ("Inst", "Conf"):
        for name, offered in chosen.items():
            origin = "Debian-Security:12/oldstable-security" if offered.security else "Debian:12.12/oldstable"
            was = f"[{packages.installed[name]}] " if verb == "Inst" else ""
            lines.append(f"{verb} {name} {was}({offered.version} {origin} [amd64])")
    return "\n".join(lines) + "\n"


def _update(host: FakeHost) -> Ran:
    packages = host.part(Packages)
    if not packages.mirror_reachable:
        url = "http://mirror.example/debian/dists/bookworm/InRelease"
        return said("", 100, err=f"E: Failed to fetch {url}  Temporary failure resolving 'mirror.example'\n")
    packages.known = dict(packages.mirror)
    write_lists(host, host.now() - timedelta(hours=1))
    return said("Hit:1 http://mirror.example/debian bookworm InRelease\nReading package lists...\n")


def _install(host: FakeHost, chosen: dict[str, Offer]) -> Ran:
    packages = host.part(Packages)
    if chosen and not packages.mirror_reachable:
        return said("", 100, err="E: Failed to fetch http://mirror.example/debian/pool  Temporary failure\n")
    done = ""
    for name, offered in chosen.items():
        if name in packages.broken:
            packages.installed[name] = offered.version  # as dpkg does: apt has nothing more to offer for it
            packages.unpacked.add(name)
            text = f"dpkg: error processing package {name} (--configure):\n subprocess returned error exit status 1\n"
            return said(done, 100, err=f"{text}E: Sub-process /usr/bin/dpkg returned an error code (1)\n")
        packages.installed[name] = offered.version
        done += f"Setting up {name} ({offered.version}) ...\n"
        if offered.reboots:
            host.put("/run/reboot-required", "*** System restart required ***\n")
            host.append("/run/reboot-required.pkgs", f"{name}\n")
    return said(f"{done}{len(chosen)} upgraded, 0 newly installed, 0 to remove and 0 not upgraded.\n")


def dpkg(call: Call) -> Ran:
    """`dpkg --configure -a`: sets up what an earlier run left unpacked; `dpkg --verify --verify-format rpm`."""
    packages = call.host.part(Packages)
    if "--verify" in call.flags:
        return said("".join(f"{line}\n" for line in packages.altered))
    call.alters()
    if packages.locked_by:
        pid = packages.locked_by
        return said("", 2, err=f"dpkg: error: dpkg frontend lock was locked by another process with pid {pid}\n")
    packages.unpacked &= packages.broken
    errors = "".join(
        f"dpkg: error processing package {name} (--configure):\n subprocess returned error exit status 1\n"
        for name in sorted(packages.unpacked)
    )
    return said("", 1 if errors else 0, err=errors)


def dpkg_query(call: Call) -> Ran:
    """`dpkg-query -W -f=FORMAT [NAME...]` with ${Package}, ${Version}, ${Architecture}, ${db:Status-Status} and -Abbrev."""
    unpacked = call.host.part(Packages).unpacked
    installed = call.host.part(Packages).installed
    form = "${Package}\\t${Version}\\n"
    for word in call.argv[1:]:
        if word.startswith(("-f=", "--showformat=")):
            form = word.partition("=")[2]
    form = form.replace("\\n", "\n").replace("\\t", "\t")
    out, err = "", ""
    for name in call.words or sorted(installed):
        if name not in installed:
            err += f"dpkg-query: no packages found matching {name}\n"
            continue
        values = {"Package": name, "binary:Package": name, "Version": installed[name], "Architecture": "amd64"}
        line, word = form, "half-configured" if name in unpacked else "installed"
        states = {
            "db:Status-Status": word,
            "db:Status-Abbrev": "iF " if name in unpacked else "ii ",
            "Status": f"install ok {word}",
        }
        for key, value in {**values, **states}.items():
            line = line.replace(f"${{{key}}}", value)
        out += line
    return said(out, 1 if err else 0, err=err)


PROGRAMS = {"apt": apt, "apt-get": apt_get, "dpkg": dpkg, "dpkg-query": dpkg_query}
