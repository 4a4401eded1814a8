"""The root file system of every lab host: made once by debootstrap, kept under the hash of what it was made from.

The mirror is the one this machine's own apt uses, asked for at run time. What is made is moved into place as a whole, behind a
lock, so a run that was cut off leaves nothing that looks finished.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
from importlib import resources
from pathlib import Path

from compliance_agent.errors import Unavailable
from compliance_agent.lab.real.machine import mount_over
from compliance_agent.lab.real.shell import must

PACKAGES = (
    "systemd-sysv", "dbus", "nftables", "rsyslog", "chrony", "clamav-daemon", "clamav-freshclam", "restic", "openssh-server",
    "auditd", "cryptsetup-bin", "unattended-upgrades", "python3", "python3-venv", "iproute2", "procps", "cron", "sudo", "openssl",
    "openscap-scanner", "ssg-debian",
)  # fmt: skip
NEEDED = {
    "debootstrap": "debootstrap",
    "systemd-nspawn": "systemd-container",
    "nsenter": "util-linux",
    "ip": "iproute2",
    "mount": "mount",
}
ENCLOSE = ("unshare", "--mount", "--pid", "--net", "--fork", "--mount-proc", "true")

_FILES = {
    # chronyd may look at the kernel's clock here and not set it: the machine's clock belongs to the machine.
    "etc/systemd/system/chrony.service.d/lab.conf": "[Unit]\nConditionCapability=\n",
    "etc/default/chrony": 'DAEMON_OPTS="-x -F 0"\n',
    "etc/chrony/chrony.conf": "server 10.77.0.1 iburst minpoll 0 maxpoll 1\ndriftfile /var/lib/chrony/chrony.drift\n"
    "makestep 1 -1\nrtcsync\n",
    # The signatures are ours (signatures.py), so the conditions on the names of the official ones go.
    "etc/systemd/system/clamav-daemon.service.d/lab.conf": "[Unit]\nConditionPathExistsGlob=\n"
    "ConditionPathExistsGlob=/var/lib/clamav/*.cud\n",
    "etc/systemd/system/clamav-freshclam.service.d/lab.conf": "[Unit]\nConditionPathExists=\n"
    "[Service]\nExecStart=\nExecStart=+/bin/sh -c 'lab-signatures 0 && exec sleep infinity'\n",
    "etc/systemd/system/restic-backup.service": "[Service]\nType=oneshot\n"
    "Environment=RESTIC_PASSWORD_FILE=/etc/msp/restic.password\n"
    "ExecStart=/usr/bin/restic -r /srv/backup/restic --no-cache backup /srv/data\n",
    "etc/systemd/system/restic-backup.timer": "[Timer]\nOnCalendar=03:00\n[Install]\nWantedBy=timers.target\n",
    "usr/local/sbin/lab-signatures": resources.files(__package__).joinpath("signatures.py").read_text("utf-8"),
    "etc/msp/restic.password": "lab\n",
    "srv/data/record": "a record\n",
}
_EXECUTABLE = {"usr/local/sbin/lab-signatures"}
_SETUP = """
set -e
sed -i 's/^SelfCheck.*/SelfCheck 86400/; s/^ConcurrentDatabaseReload.*/ConcurrentDatabaseReload false/' /etc/clamav/clamd.conf
lab-signatures 0
chown -R clamav:clamav /var/lib/clamav
chmod 600 /etc/msp/restic.password
mkdir -p /srv/backup
restic -q -r /srv/backup/restic --password-file /etc/msp/restic.password --no-cache init
systemctl -q enable chrony clamav-daemon clamav-freshclam rsyslog restic-backup.timer
systemctl -q disable apt-daily.timer apt-daily-upgrade.timer
rm -f /etc/apt/sources.list /etc/apt/sources.list.d/* /var/cache/apt/archives/*.deb /etc/machine-id
rm -rf /var/lib/apt/lists/*
touch /etc/machine-id
"""


def recipe_hash(release: str, packages: tuple[str, ...] | None = None) -> str:
    """Changes with everything the cached root file system is made from."""
    return hashlib.sha256("\0".join((release, *(packages or PACKAGES))).encode()).hexdigest()[:16]


def cache_directory() -> Path:
    """Where root file systems are kept."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "compliance-agent" / "lab"


def check_machine() -> None:
    """Raises Unavailable, with what to do, where real hosts cannot be booted."""
    if os.geteuid() != 0 or not Path("/etc/debian_version").exists():
        raise Unavailable("make lab boots real hosts: it needs root on Debian; without, there is `make test`")
    missing = sorted(package for tool, package in NEEDED.items() if shutil.which(tool) is None)
    if missing:
        raise Unavailable(f"make lab needs programs that are missing here: apt-get install {' '.join(missing)}")
    if subprocess.run(ENCLOSE, capture_output=True, check=False, timeout=20).returncode != 0:
        raise Unavailable("make lab: this machine allows no namespaces; in a container it has to be a privileged one")
    release = suite()
    if not (cache_directory() / recipe_hash(release)).is_dir():
        mirror(release)


def suite() -> str:
    """This machine's own Debian release; its mirror is known to have it."""
    for line in Path("/etc/os-release").read_text("utf-8").splitlines():
        if line.startswith("VERSION_CODENAME="):
            return line.partition("=")[2].strip('"')
    raise Unavailable("make lab: /etc/os-release names no Debian release")


def mirror(release: str) -> str:
    """Where this machine's apt gets that release from.

    Raises:
        Unavailable: apt has no such source.
    """
    asked = ["apt-get", "indextargets", "--format", "$(REPO_URI) $(RELEASE) $(COMPONENT)", "Identifier: Packages"]
    out = subprocess.run(asked, capture_output=True, text=True, check=False, timeout=60).stdout  # apt's own word
    for line in out.splitlines():
        uri, _, rest = line.partition(" ")
        if rest == f"{release} main":
            return uri
    raise Unavailable(f"make lab: apt has no source for {release} main", hint="apt-get update")


def root_filesystem(packages: tuple[str, ...] | None = None) -> Path:
    """The cached root file system of these packages, made when it is not there; that of the booted hosts by default."""
    release = suite()
    wanted = cache_directory() / recipe_hash(release, packages)
    if wanted.is_dir():  # it was moved there whole
        return wanted
    wanted.parent.mkdir(parents=True, exist_ok=True)
    with wanted.with_suffix(".lock").open("w") as lock:  # one of other packages may be made meanwhile
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not wanted.is_dir():
            making = wanted.with_suffix(".new")
            _unmount(making / "root")
            shutil.rmtree(making, ignore_errors=True)
            try:
                _make(making, release, packages or PACKAGES).rename(wanted)
            finally:
                _unmount(making / "root")
                shutil.rmtree(making, ignore_errors=True)
    return wanted


def _make(making: Path, release: str, packages: tuple[str, ...]) -> Path:
    """Debootstrap through an overlay that does not sync, which is most of its time; what stays is the upper layer."""
    root, upper, nothing = making / "root", making / "upper", making / "nothing"
    for directory in (root, nothing):
        directory.mkdir(parents=True)
    mount_over((nothing,), root, upper)
    command = [
        "debootstrap",
        "--variant=minbase",
        f"--include={','.join(packages)}",
        release,
        str(root),
        mirror(release),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=1_200)
    if done.returncode != 0:
        raise Unavailable(f"debootstrap: exit status {done.returncode}; {done.stdout[-400:]}")
    _unmount(root)
    subprocess.run(["sync", "--file-system", str(upper)], check=True, timeout=300)  # now it has to be on the disk
    return upper


def _unmount(root: Path) -> None:
    if root.is_mount():
        subprocess.run(["umount", "--recursive", str(root)], check=True, timeout=60)


def fit_out(root: Path) -> None:
    """The lab's own files over a root file system, and what a clinic's host has set up."""
    for name, text in _FILES.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, "utf-8")
        path.chmod(0o755 if name in _EXECUTABLE else 0o644)
    must("chroot", str(root), "/bin/sh", "-c", _SETUP, timeout_s=120)
