"""accounts: passwords that are empty or weak, shared ids, new people, new ways to become root, files that cannot be read."""

import hashlib

from compliance_agent.lab.real.row import Of, Row, Scripts, Table, at_once, kept, made, refusing, then

_OF = Of("accounts")
_SUDOERS = "root ALL=(ALL:ALL) ALL\n%sudo ALL=(ALL:ALL) ALL\n@includedir /etc/sudoers.d\n"
_PINNED = hashlib.sha256(f"12:/etc/sudoers:{len(_SUDOERS)}:{_SUDOERS}".encode()).hexdigest()
_LOCKED = "[ \"$(passwd -S frontdesk | cut -d' ' -f2)\" = L ] && ! getent shadow | grep -q '^[^:]*::'"
_GIVEN = 'usermod -p "$(cat /root/hash)" frontdesk'
_EMPTY = ("passwd -q -d frontdesk", _GIVEN)


def _files(script: str) -> Scripts:
    """A change of the account files, which are brought back as they were."""
    names = "passwd shadow group gshadow"
    return (
        f"mkdir -p /root/accounts; for name in {names}; do cp -p /etc/$name /root/accounts; done\n{script}",
        f"for name in {names}; do cp -p /root/accounts/$name /etc; done",
    )


_ROWS: tuple[Row, ...] = (
    _OF.healed("empty_password", "empty_passwords", _EMPTY, _LOCKED),
    _OF.alarm("second_root", "other_roots", _files("useradd -o -u 0 -M toor")),
    _OF.alarm("shared_id", "duplicate_uids", _files("useradd -o -u $(id -u frontdesk) -M double")),
    _OF.alarm("sudo_by_group", "unlisted_admins", _files("gpasswd -a frontdesk sudo")),
    _OF.alarm("sudo_by_primary_group", "unlisted_admins", _files("usermod -g sudo frontdesk")),
    _OF.alarm(
        "sudo_without_password", "unlisted_admins", made("/etc/sudoers.d/lab", "frontdesk ALL=(ALL) NOPASSWD: ALL\\n")
    ),
    _OF.alarm("sudo_for_everybody", "unlisted_admins", made("/etc/sudoers.d/lab", "ALL ALL=(ALL) NOPASSWD: ALL\\n")),
    _OF.alarm("sudo_setting", "sudoers_changed", made("/etc/sudoers.d/lab", "Defaults !authenticate\\n")),
    _OF.alarm("new_person", "unlisted_people", _files("useradd -M -s /bin/bash mallory")),
    _OF.alarm(  # not among the ids of people, and somebody logs in with it all the same
        "person_as_service", "unlisted_people", _files("useradd -r -M -s /bin/bash -p \"$(cat /root/hash)\" backupd")
    ),
    _OF.alarm("account_gone", "account_missing", _files("userdel msp")),
    _OF.alarm(
        "key_left_behind", "stray_keys",
        ("mkdir -p /var/backups/.ssh; cp /etc/hostname /var/backups/.ssh/authorized_keys", "rm -r /var/backups/.ssh"),
    ),
    _OF.alarm(
        "weak_hash", "weak_hashes", _files("usermod -p \"$(openssl passwd -1 lab)\" frontdesk")
    ),
    _OF.alarm("password_without_end", "old_passwords", _files("chage -M -1 frontdesk")),
    _OF.blind("shadow_gone", "not_found", ("mv /etc/shadow /etc/shadow.away", "mv /etc/shadow.away /etc/shadow")),
    _OF.blind("passwd_cut", "unparsable", kept("/etc/passwd", "truncate -s -5 /etc/passwd")),
    _OF.blind("sudoers_unreadable", "io_error", ("mkfifo /etc/sudoers.d/lab", "rm /etc/sudoers.d/lab")),
    _OF.blind("sudoers_not_understood", "unparsable", made("/etc/sudoers.d/lab", "frontdesk may do anything\\n")),
    _OF.undone(  # somebody edits the accounts, and usermod waits for nobody
        "accounts_locked", "empty_passwords", at_once(then(_EMPTY, ("echo 1 >/etc/shadow.lock; sync", "rm -f /etc/shadow.lock"))),
        "lock_failed", "passwd -S frontdesk | grep -q ' NP '",
    ),
    _OF.undone(
        "lock_takes_no_effect", "empty_passwords", at_once(then(_EMPTY, refusing("/usr/sbin/usermod", '[ "$1" = -L ]'))),
        "lock_failed", "passwd -S frontdesk | grep -q ' NP '",
    ),
)  # fmt: skip

TABLE = Table(
    _ROWS,
    setup=f"""
    for name in msp frontdesk; do id $name >/dev/null 2>&1 || useradd -m -s /bin/bash $name; done
    openssl passwd -6 lab >/root/hash; chmod 600 /root/hash
    for name in msp frontdesk; do usermod -p "$(cat /root/hash)" $name; chage -M 365 $name; done
    gpasswd -a msp sudo
    rm -f /etc/sudoers.d/*
    printf %s '{_SUDOERS}' >/etc/sudoers""",
    entry={
        "mode": "enforce",
        "parameters": {
            "people": ["msp", "frontdesk"],
            "admins": ["msp"],
            "expected": ["root", "msp"],
            "hash_schemes": ["yescrypt", "sha512"],
            "max_password_age_d": 365,
            "sudoers_sha256": _PINNED,
        },
    },
    cost_s=60.0,
)
