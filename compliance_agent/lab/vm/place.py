"""Puts the agent on the virtual host as its users do, from a disk that holds nothing else; and the host's own encrypted disks.

The virtual environment is built outside (compiling its modules under an emulated processor takes minutes) from the same wheel and
the same locked requirements as on the booted hosts, and comes in as a read-only file system.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from compliance_agent.lab.real import install
from compliance_agent.lab.real.network import SERVER, Network
from compliance_agent.lab.real.row import Table
from compliance_agent.lab.vm.image import ext4
from compliance_agent.lab.vm.virtual import Virtual

AGENT_MB, DATA_MB, SWAP_MB = 192, 64, 64
HOME = "usr/lib/compliance-agent"  # of the program
SETTINGS = {**install.SETTINGS, "mcp_poll_interval_sec": "2"}
# Records on LUKS2, opened by a key file; swap under a key that is made at each start: as Debian's crypttab(5) has it.
ENCRYPT = """
set -e
head -c 64 /dev/urandom >/etc/records.key && chmod 400 /etc/records.key
cryptsetup -q luksFormat --type luks2 --cipher aes-xts-plain64 --key-size 512 --pbkdf pbkdf2 --pbkdf-force-iterations 1000 \\
  /dev/disk/by-id/virtio-data /etc/records.key
cat >/etc/crypttab <<'END'
records /dev/disk/by-id/virtio-data /etc/records.key luks,nofail
swap /dev/disk/by-id/virtio-swap /dev/urandom plain,swap,cipher=aes-xts-plain64,size=512,nofail
END
cat >>/etc/fstab <<'END'
/dev/mapper/records /srv ext4 nofail,x-systemd.device-timeout=100s 0 0
/dev/mapper/swap none swap nofail,x-systemd.device-timeout=100s 0 0
END
systemctl daemon-reload
systemctl start systemd-cryptsetup@records systemd-cryptsetup@swap
mkfs.ext4 -q /dev/mapper/records
systemctl start srv.mount dev-mapper-swap.swap
"""
JOIN = """
set -e
echo '{source}' >/etc/apt/sources.list
mkdir -p /var/lib/apt/periodic /var/lib/compliance-agent && chmod 700 /var/lib/compliance-agent
apt-get -q update && touch /var/lib/apt/periodic/compliance-agent-update-stamp
apt-get -q -y install lab-widget
umask 077; echo '{token}' >/root/token
"""
ENROL = (
    f"compliance-agent enrol --server https://{SERVER}:8443 --token-file /root/token --host-id {{name}}"
    " --state-dir /var/lib/compliance-agent"
)


def agent_disk(agent: Path, scratch: Path) -> Path:
    """A file system with what the layer of the agent holds."""
    made = scratch / "agent.img"
    ext4(agent / HOME, made, f"{AGENT_MB}M")
    return made


def blank(path: Path, megabytes: int) -> Path:
    """A disk with nothing on it."""
    with path.open("wb") as disk:
        disk.truncate(megabytes << 20)
    return path


def install_on(virtual: Virtual, network: Network, first: Table) -> None:
    """Encrypt, configure, enrol and start the agent on a host that is up."""
    virtual.must(ENCRYPT, timeout_s=120)
    virtual.must(JOIN.format(source=network.source(virtual.name).strip(), token=network.token()), timeout_s=120)
    enrolled = virtual.must(ENROL.format(name=virtual.name), timeout_s=120)
    put(virtual, "/etc/msp/baseline.yaml", install.baseline((first,)))
    put(virtual, "/etc/msp/agent.yaml", enrolled + settings(SETTINGS))
    virtual.must("systemctl restart chrony && systemctl start compliance-agent && sync", timeout_s=120)


def settings(values: Mapping[str, str]) -> str:
    """Lines of the agent's configuration."""
    return "".join(f"{name}: {value}\n" for name, value in values.items())


def put(virtual: Virtual, path: str, text: str) -> None:
    """Write a file inside, durably."""
    virtual.must(f"cat >{path} <<'END_OF_FILE'\n{text}END_OF_FILE\nsync {path}")
