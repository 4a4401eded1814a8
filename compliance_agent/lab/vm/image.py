"""The disk of the lab's virtual machine: made once from the lab's recipe, kept under the hash of what it was made from.

The same recipe as for booted hosts, with Debian's cloud kernel, an initial file system and what dm-crypt needs; turned into an
ext4 image without mounting anything. What differs from run to run, the agent, comes on a disk of its own (`place`).
"""

from __future__ import annotations

import fcntl
import hashlib
import shutil
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from compliance_agent.lab.real import recipe
from compliance_agent.lab.real.machine import Machine
from compliance_agent.lab.real.shell import must
from compliance_agent.lab.vm.auditd import RULES

PACKAGES = (
    "systemd-sysv", "udev", "kmod", "dbus", "nftables", "chrony", "cron", "cryptsetup", "python3", "python3-venv", "iproute2",
    "procps", "auditd", "linux-image-cloud-amd64", "initramfs-tools", "zstd", "libdbi-perl", "nix-bin",
)  # fmt: skip
SIZE = "4G"  # sparse

_FILES = {
    "etc/hostname": "clinic-vm\n",
    "etc/audit/rules.d/clinic.rules": RULES,
    "etc/fstab": "/dev/disk/by-id/virtio-agent /usr/lib/compliance-agent ext4 ro,nofail,x-systemd.device-timeout=100s 0 0\n",
    # Debian's own setting: the clock is stepped while the daemon starts, and slewed after that.
    "etc/chrony/chrony.conf": "server 10.77.0.1 iburst minpoll 0 maxpoll 1\ndriftfile /var/lib/chrony/chrony.drift\n"
    "makestep 1 3\nrtcsync\n",
    "etc/initramfs-tools/conf.d/lab": "MODULES=list\nCOMPRESS=zstd\nRESUME=none\n",
    "etc/initramfs-tools/modules": "virtio_pci\nvirtio_blk\nvirtio_net\next4\n",
    "etc/modules-load.d/lab.conf": "virtio_console\ndm_crypt\n",
    "etc/systemd/system/lab-runner.service": "[Unit]\nDefaultDependencies=no\nAfter=systemd-udevd.service\n"
    "[Service]\nExecStart=/usr/local/sbin/lab-runner\nRestart=always\n[Install]\nWantedBy=sysinit.target\n",
    # No boot starts it: the lab does, when it has asked the machine what was left.
    "etc/systemd/system/compliance-agent.service": "[Unit]\nAfter=network.target\n"
    "RequiresMountsFor=/usr/lib/compliance-agent\nConditionPathExists=/etc/msp/agent.yaml\n"
    "[Service]\nExecStart=/usr/bin/compliance-agent run\nRestart=on-failure\n",
    # A service that must not be there. It ends when it is told to, unless the lab holds it.
    "usr/lib/systemd/system/vsftpd.service": "[Service]\nExecStart=/usr/bin/sleep infinity\n"
    "ExecStop=/bin/sync\nExecStop=/usr/local/sbin/lab-hold\nTimeoutStopSec=infinity\n[Install]\nWantedBy=multi-user.target\n",
    "usr/bin/compliance-agent": '#!/bin/sh\nexec /usr/lib/compliance-agent/bin/python3 -m compliance_agent "$@"\n',
    # Where the lab wants to cut the power: it says that it has come this far, and goes no further.
    "usr/local/sbin/lab-hold": "#!/bin/sh\n[ -e /run/lab-hold ] || exit 0\ntouch /run/lab-held\nsleep 3600\n",
    "usr/local/sbin/lab-runner": resources.files(__package__).joinpath("runner.py").read_text("utf-8"),
    "usr/local/sbin/lab-boot": resources.files(__package__).joinpath("boot.sh").read_text("utf-8"),
    "usr/local/sbin/lab-system": resources.files(__package__).joinpath("system.sh").read_text("utf-8"),
}
# The builder of the store wants a terminal and a table of processes; both are gone when this ends.
_ENTER = 'mount --rbind /dev "$1/dev" && mount -t proc proc "$1/proc" && exec chroot "$1" /bin/sh -c "$2"'
_SETUP = """
set -e
mkdir -p /usr/lib/compliance-agent /etc/msp
sed -i 's/^max_log_file_action.*/max_log_file_action = keep_logs/' /etc/audit/auditd.conf
rm -f /etc/audit/rules.d/audit.rules
systemctl -q enable auditd chrony cron lab-runner
systemctl -q disable apt-daily.timer apt-daily-upgrade.timer
# Units come and go with every row, and each time all of these are asked anew.
cd /usr/lib/systemd/system-generators && ls | grep -vxE 'systemd-(cryptsetup|fstab)-generator' | xargs rm -f; cd /
systemctl -q mask getty@tty1 serial-getty@ttyS0 e2scrub_reap
lab-system 1 sound; lab-system 2 sound
nix-env -p /nix/var/nix/profiles/system --switch-generation 1
update-initramfs -u -k all
rm -rf /etc/apt/sources.list /etc/apt/sources.list.d/* /var/cache/apt/archives/*.deb /var/lib/apt/lists/* /etc/machine-id
touch /etc/machine-id
"""


@dataclass(frozen=True)
class Image:
    """A directory of the cache."""

    directory: Path

    @property
    def disk(self) -> Path:
        """The root file system, as a raw image."""
        return self.directory / "root.img"

    @property
    def kernel(self) -> Path:
        """What it is booted with."""
        return self.directory / "vmlinuz"

    @property
    def initrd(self) -> Path:
        """Its initial file system."""
        return self.directory / "initrd"


def image_hash(release: str) -> str:
    """Changes with everything the image is made from."""
    parts = (recipe.recipe_hash(release, PACKAGES), SIZE, _SETUP, *(f"{name}\0{text}" for name, text in _FILES.items()))
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]


def image() -> Image:
    """The cached image, made when it is not there."""
    base = recipe.root_filesystem(PACKAGES)
    wanted = recipe.cache_directory() / f"vm-{image_hash(recipe.suite())}"
    if wanted.is_dir():  # it was moved there whole
        return Image(wanted)
    with (wanted.parent / "lock-vm").open("w") as lock:  # a root file system may be under way for minutes
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not wanted.is_dir():
            made = wanted.with_suffix(".new")
            shutil.rmtree(made, ignore_errors=True)
            made.mkdir()
            _make(base, made)
            made.rename(wanted)
    return Image(wanted)


def _make(base: Path, made: Path) -> None:
    machine = Machine("layer", (base,), made)
    machine.mount()
    for name, text in _FILES.items():
        path = machine.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, "utf-8")
        path.chmod(0o755 if "bin/" in name else 0o644)
    enter = ("unshare", "--mount", "--propagation=private", "/bin/sh", "-c", _ENTER, "enter", str(machine.root), _SETUP)
    must(*enter, timeout_s=300)
    for name, pattern in (("vmlinuz", "vmlinuz-*"), ("initrd", "initrd.img-*")):
        shutil.copy(next((machine.root / "boot").glob(pattern)), made / name)
    ext4(machine.root, made / "root.img", SIZE)
    machine.unmount()
    shutil.rmtree(machine.directory)


def ext4(tree: Path, target: Path, size: str) -> None:
    """A file system image that holds a directory's content."""
    must("mke2fs", "-q", "-t", "ext4", "-d", str(tree), str(target), size, timeout_s=300)
