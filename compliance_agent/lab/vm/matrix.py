"""Every fault that is done to the virtual host, and what must come of it. See `lab/real/row.py` for the words.

`--only vm` takes all of these rows, `--only vm:CHECK[:FAULT]` some. Order matters: rows for generations change the
baseline.
"""

from __future__ import annotations

from dataclasses import replace

from compliance_agent.lab.real.row import PUBLISH, Row, Table, unreadable
from compliance_agent.lab.vm import auditd
from compliance_agent.lab.vm.row import CLOCK, Cut, Outage, stand_in

_BACK = "systemctl start systemd-cryptsetup@records srv.mount"
_AWAY = "systemctl stop srv.mount"
_CLOSED = f"{_AWAY} systemd-cryptsetup@records"
_REALLY = """set -e
cryptsetup luksDump --dump-json-metadata /dev/disk/by-id/virtio-data | grep -q '"encryption": *"aes-xts-plain64"'
[ "$(findmnt -no SOURCE /srv)" = /dev/mapper/records ]
dmsetup table --target crypt swap | grep -q aes-xts-plain64
echo needle-of-the-lab >/srv/needle && sync /srv/needle
grep -q needle-of-the-lab /dev/mapper/records
! grep -q needle-of-the-lab /dev/disk/by-id/virtio-data || exit 1
[ "$(swapon --noheadings --show=NAME | wc -l)" = 1 ]"""


def _container(options: str) -> str:
    """A script that mounts a container with these options in place of the records."""
    made = f"cryptsetup -q luksFormat --pbkdf-force-iterations 1000 {options} /root/other /etc/records.key"
    return (
        f"set -e; {_AWAY}; truncate -s 40M /root/other; {made}; cryptsetup open --key-file /etc/records.key /root/other other;"
        " mkfs.ext4 -q /dev/mapper/other; mount /dev/mapper/other /srv"
    )


_CONTAINER_GONE = f"umount /srv; cryptsetup close other; rm /root/other; {_BACK}"
_PLAIN_DISK = "truncate -s 16M /root/plain && mkfs.ext4 -q /root/plain && mount -o loop /root/plain /srv"

ENCRYPTION = Table(
    interval_s=2,
    rows=(
        Row("encryption", "encrypted", "true", "pass", "as_expected", truth=_REALLY, standing=True),
        Row(
            "encryption", "plain_disk", f"{_CLOSED}; {_PLAIN_DISK}", "fail", "mount_not_encrypted", "alert", "no_cure",
            restore=f"umount /srv; rm /root/plain; {_BACK}",
        ),
        Row(
            "encryption", "plain_disk_over_it", _PLAIN_DISK, "fail", "mount_not_encrypted", "alert", "no_cure",
            restore="umount /srv; rm /root/plain",
        ),
        Row(
            "encryption", "memory_over_it", "mount -t tmpfs tmpfs /srv", "fail", "mount_not_encrypted", "alert", "no_cure",
            restore="umount /srv",
        ),
        Row("encryption", "closed", _CLOSED, "fail", "mount_missing", "alert", "no_cure", restore=_BACK),
        Row(
            "encryption", "plain_swap", "dd if=/dev/zero of=/swapfile bs=1M count=8 status=none; chmod 600 /swapfile;"
            " mkswap /swapfile; swapon /swapfile", "fail", "swap_not_encrypted", "alert", "no_cure",
            restore="swapoff /swapfile; rm /swapfile",
        ),
        Row(
            "encryption", "weak_cipher", _container("--type luks1 --cipher aes-cbc-essiv:sha256 --key-size 256"),
            "fail", "weak_cipher", "alert", "no_cure", restore=_CONTAINER_GONE,
        ),
        Row(
            "encryption", "short_key", _container("--type luks2 --pbkdf pbkdf2 --cipher aes-xts-plain64 --key-size 256"),
            "fail", "short_key", "alert", "no_cure", restore=_CONTAINER_GONE,
        ),
        Row(
            "encryption", "many_keys", "for key in 1 2 3 4; do echo $key | cryptsetup luksAddKey --pbkdf pbkdf2"
            " --pbkdf-force-iterations 1000 --key-file /etc/records.key /dev/disk/by-id/virtio-data -; done",
            "fail", "too_many_key_slots", "alert", "no_cure",
            restore="for key in 1 2 3 4; do echo $key | cryptsetup luksRemoveKey /dev/disk/by-id/virtio-data -; done",
        ),
        replace(unreadable("encryption", "/usr/sbin/cryptsetup"), fault="headers_unreadable"),
    ),
)  # fmt: skip

_AHEAD, _BEHIND = "date -s '+300 seconds'", "date -s '-300 seconds'"
TIME_SYNC = Table(
    rows=(
        Row("time_sync", "synchronised", "true", "pass", "as_expected", truth=CLOCK, standing=True),
        Row("time_sync", "ahead", _AHEAD, "fail", "offset_too_large", "success", truth=CLOCK),
        Row("time_sync", "behind", _BEHIND, "fail", "offset_too_large", "success", truth=CLOCK),
        Row(
            "time_sync", "stopped_and_ahead", f"systemctl stop chrony; {_AHEAD}", "fail", "daemon_down", "success", truth=CLOCK,
        ),
    ),
)  # fmt: skip

_NFT = "nft list table inet compliance | grep -q 'policy drop'"
_NO_NFT = "! nft list table inet compliance"
FIREWALL = Table(
    rows=(
        Cut(
            "firewall", "cut_before_act",
            stand_in("/usr/sbin/nft", '[ "$1" != -f ] || /usr/local/sbin/lab-hold\nexec $real "$@"') + "nft flush ruleset",
            "fail", "no_firewall", "reverted", "interrupted", former=_NO_NFT,
            then=Row("firewall", "healed_after_cut", "true", "fail", "no_firewall", "success", truth=_NFT),
        ),
    ),
)  # fmt: skip

_CRON = "systemctl is-active cron && systemctl is-enabled cron"
_NO_CRON = "! systemctl is-active cron && ! systemctl is-enabled cron"
# So that the agent sees all of it or nothing.
_AT_ONCE = "kill -{} $(systemctl show -p MainPID --value compliance-agent)"
# Holds the cure once the manager has done what it was asked for last, before the agent is told so.
# What the service manager wrote is on the disk before the power goes: otherwise what is left depends on how many seconds it took.
_BEFORE_RECORD = """$real "$@"; status=$?
case "$*" in *start*cron*) sync; /usr/local/sbin/lab-hold ;; esac
exit $status"""
# Everything recorded so far has the log's receipt beside it.
_DELIVERED = """cd /var/lib/compliance-agent/evidence
for path in */*/*/*/bundle.json; do [ -e ${path%.json}.tlog-proof ] || exit 1; done"""
_UNDELIVERED = f"! ({_DELIVERED})"
# What is longer than a greeting is a request; from then on that connection gets no answer. The server has it, and says so in vain.
_ANSWERS_LOST = """nft -f - <<'END'
table inet lab {
  set asked { type inet_service; flags dynamic, timeout; timeout 10m; }
  chain out { type filter hook output priority 0; tcp dport 8443 meta length > 620 update @asked { tcp sport }; }
  chain in { type filter hook input priority 0; tcp sport 8443 tcp dport @asked counter drop; }
}
END
"""
_SOME_LOST = "nft list table inet lab | grep 'counter packets [1-9]'"
OUTAGES: tuple[Row, ...] = (
    Outage(
        "services", "link_lost", "ip link set eth0 down; systemctl stop cron", "fail", "service_down", "success",
        truth=f"{_CRON} && {_UNDELIVERED}", restore="ip link set eth0 up; ip route add default via 10.0.2.2", through=_DELIVERED,
    ),
    Outage(
        "services", "answers_lost_in_delivery", f"{_ANSWERS_LOST}systemctl stop cron", "fail", "service_down", "success",
        truth=f"{_CRON} && for turn in $(seq 60); do ! {_SOME_LOST} || break; sleep 0.5; done; {_SOME_LOST} && {_UNDELIVERED}",
        restore="nft delete table inet lab", through=_DELIVERED,
    ),
)  # fmt: skip
SERVICES = Table(
    entry={"mode": "enforce", "parameters": {"active": ["cron.service", "dbus.service"], "forbidden": ["vsftpd.service"]}},
    rows=(
        *OUTAGES,
        Cut(
            "services", "cut_before_record", "systemctl disable --now cron;" + stand_in("/usr/bin/systemctl", _BEFORE_RECORD),
            "fail", "service_down", "success", left=_CRON, truth=_CRON,
        ),
        Cut(
            "services", "cut_between_steps",
            f"{_AT_ONCE.format('STOP')}; systemctl disable --now cron; systemctl enable --now vsftpd; {_AT_ONCE.format('CONT')}",
            "fail", "forbidden_running", "reverted", "interrupted", left=f"{_CRON} && systemctl is-active vsftpd",
            former=f"{_NO_CRON} && systemctl is-active vsftpd && systemctl is-enabled vsftpd",
            then=Row(
                "services", "healed_after_cut", "true", "fail", "forbidden_running", "success",
                truth=f"{_CRON} && ! systemctl is-active vsftpd && systemctl is-enabled vsftpd | grep masked",
            ),
        ),
    ),
)  # fmt: skip

_HALF = "dpkg-query -W -f '${db:Status-Abbrev} ${Version}' lab-widget | grep -E '^i[FUH] +1.1'"
_HOLD_SETTING_UP = """case "$*" in *--status-fd*--configure*) /usr/local/sbin/lab-hold ;; esac
exec $real "$@" """
PATCHING = Table(
    interval_s=8,
    rows=(
        Cut(
            "patching", "cut_in_install",
            f"{PUBLISH}1.1\n{stand_in('/usr/bin/dpkg', _HOLD_SETTING_UP)}apt-get -q update", "fail", "security_pending",
            "failed", "not_reversible", left=_HALF, former=_HALF,
            then=Row(
                "patching", "healed_after_cut", "true", "fail", "half_installed", "success",
                truth="dpkg-query -W -f '${db:Status-Abbrev} ${Version}' lab-widget | grep -x 'ii *1.1' &&"
                " [ $(grep -c ' upgrade lab-widget:all' /var/log/dpkg.log) -le 1 ]",
            ),
        ),
    ),
)  # fmt: skip

_GENERATION = "[ $(readlink /nix/var/nix/profiles/system) = system-{0}-link ] && grep -q '0{0}\"' /etc/lab-version"
_RUNS = "readlink -f /nix/var/nix/profiles/system-{0}-link | grep -qx $(readlink -f /run/current-system)"


def _nixos(generation: int) -> dict[str, object]:
    """The entry of a NixOS host. Its systems are as old as the image, so their age is not judged."""
    parameters = {"manager": "nixos", "min_generation": generation, "max_nixpkgs_age_d": 730}
    return {"mode": "enforce", "parameters": parameters}


_NEXT_IS_BROKEN = """systemctl stop compliance-agent
[ -e /nix/var/nix/profiles/system-3-link ] || lab-system 3 broken
nix-env -p /nix/var/nix/profiles/system --switch-generation 2; /nix/var/nix/profiles/system/activate; sync"""


def _takes_it_down(fault: str, then: Row | None = None) -> Cut:
    """The newest generation takes the machine down while it is activated, and at every start until the former one is booted."""
    return Cut(
        "patching", fault, _NEXT_IS_BROKEN, "fail", "generation_behind", "reverted", "interrupted", held="", dead_boot=True,
        left=f"{_RUNS.format(2)} && [ $(readlink /nix/var/nix/profiles/system) = system-3-link ]", boot=("generation=2",),
        former=f"{_GENERATION.format(2)} && {_RUNS.format(2)}", then=then,
    )  # fmt: skip


# Two tables of one check: each adopts a baseline of its own.
GENERATION = Table(
    entry=_nixos(2),
    interval_s=2,
    rows=(
        Row(
            "patching", "generation_behind", "true", "fail", "generation_behind", "success",
            truth=f"{_GENERATION.format(2)} && {_RUNS.format(2)}",
        ),
    ),
)  # fmt: skip
BROKEN_GENERATION = Table(
    entry=_nixos(3),
    interval_s=2,
    rests=("fail", "generation_behind"),
    rows=(
        _takes_it_down("generation_takes_host_down"),
        _takes_it_down(
            "and_again",
            Row(
                "patching", "not_a_third_time", "true", "fail", "generation_behind", "rejected", "rejected_target",
                former=_RUNS.format(2),
            ),
        ),
    ),
)  # fmt: skip

# Power cuts and boots later: seen closed, and passing when it is open again.
ENCRYPTION_LATER = replace(
    ENCRYPTION,
    rows=(
        Row("encryption", "closed_after_power_cuts", _CLOSED, "fail", "mount_missing", "alert", "no_cure", restore=_BACK),
    ),
)  # fmt: skip

TABLES = (ENCRYPTION, TIME_SYNC, auditd.TABLE, auditd.LOCKED, FIREWALL, SERVICES, PATCHING)
LATER = (GENERATION, BROKEN_GENERATION, ENCRYPTION_LATER)
ROWS: tuple[Row, ...] = tuple(row for table in (*TABLES, *LATER) for row in table.rows)


def chosen(only: tuple[str, ...]) -> tuple[Table, ...]:
    """Tables with the rows that `vm`, `vm:CHECK` or `vm:CHECK:FAULT` name; all of them for none.

    Raises:
        ValueError: a name fits no row.
    """
    wanted = {name.removeprefix("vm").removeprefix(":") for name in only}
    for name in wanted - {""}:
        if not any(name in {row.check, row.name} for row in ROWS):
            raise ValueError(f"no row 'vm:{name}'; there are {', '.join(f'vm:{row.name}' for row in ROWS)}")
    every = not wanted or "" in wanted
    kept = [
        replace(table, rows=tuple(row for row in table.rows if every or wanted & {row.check, row.name}))
        for table in (*TABLES, *LATER)
    ]
    return tuple(table for table in kept if table.rows)
