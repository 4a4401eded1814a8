"""ssh_access: ways in without a key, weak algorithms, open keys, a daemon that is down or blind, cures that must not break it."""

from compliance_agent.lab.real.row import Of, Row, Scripts, Table, at_once, hidden, kept, made, refusing, stopped, then

_OF = Of("ssh_access")
_MAIN = "/etc/ssh/sshd_config"
_DROP_IN = "/etc/ssh/sshd_config.d/00-compliance.conf"
_KEYS = "/etc/ssh/ssh_host_*_key"
_OF_MSP = "/home/msp/.ssh/authorized_keys"
_READ = "systemctl reload ssh"
_REMOVED = f"rm {_DROP_IN}; {_READ}"

# The machine's own word: a real client, with its own key or with none.
_CLIENT = (
    "ssh -F none -o BatchMode=yes -o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null -o ConnectTimeout=5"
    " -i /root/lab-key {} msp@127.0.0.1 true"
)
_GETS_IN = _CLIENT.format("")
_ASKED_FOR = f"{_CLIENT.format('-v -o PubkeyAuthentication=no')} 2>&1 | tr -d '\\r' | grep 'can continue: '"
_KEYS_ONLY = f"{_GETS_IN} && {_ASKED_FOR} | grep -q 'continue: publickey$'"
# A key that others may have put there opens nothing.
_OTHERS_KEYS_REFUSED = f"chmod 666 {_OF_MSP}; ! {_GETS_IN} && chmod 600 {_OF_MSP} && {_GETS_IN}"
_PASSWORDS = f"systemctl is-active ssh && {_GETS_IN} && {_ASKED_FOR} | grep password"
_LAX_AGAIN = f"[ ! -e {_DROP_IN} ] && {_PASSWORDS}"


def _set(words: str) -> str:
    """Another setting in the policy's own file, and in force."""
    return f"sed -i 's/^{words.split(maxsplit=1)[0]} .*/{words}/' {_DROP_IN}; {_READ}"


def _main(words: str, afterwards: str = "true") -> Scripts:
    """A line more in the main file."""
    return kept(_MAIN, f"printf '{words}\\n' >>{_MAIN}\n{afterwards}", "systemctl reload-or-restart ssh")


def _refused(options: str) -> str:
    return f"! {_CLIENT.format(options)} && {_KEYS_ONLY}"


def _reload(words: str, restart: str = "on-failure") -> Scripts:
    """Another way to have the daemon read its files."""
    place = "/run/systemd/system/ssh.service.d"
    text = f"[Service]\\nExecReload=\\nExecReload={words}\\nRestart={restart}\\n"
    return (
        f"mkdir -p {place}; printf '{text}' >{place}/z.conf; systemctl daemon-reload",
        f"rm -r {place}; systemctl daemon-reload; systemctl restart ssh",
    )


_ROWS: tuple[Row, ...] = (
    _OF.healed("password_login", "password_login", _set("PasswordAuthentication yes"), _KEYS_ONLY),
    _OF.healed("policy_removed", "password_login", _REMOVED, _KEYS_ONLY),
    _OF.healed("root_login", "root_login", _set("PermitRootLogin yes"), "sshd -T | grep -qx 'permitrootlogin no'"),
    _OF.healed(
        "empty_passwords", "empty_passwords", _set("PermitEmptyPasswords yes"), "sshd -T | grep -qx 'permitemptypasswords no'"
    ),
    _OF.healed("host_vouches", "host_based_login", _set("HostbasedAuthentication yes"), _KEYS_ONLY),
    _OF.healed("modes_ignored", "modes_ignored", _set("StrictModes no"), _OTHERS_KEYS_REFUSED),
    _OF.healed(
        "weak_cipher", "weak_ciphers", _set("Ciphers aes256-gcm@openssh.com,aes128-cbc"), _refused("-c aes128-cbc")
    ),
    _OF.healed(
        "weak_mac", "weak_macs", _set("MACs hmac-sha1,hmac-sha2-256-etm@openssh.com"), _refused("-c aes128-ctr -m hmac-sha1")
    ),
    _OF.healed(
        "weak_key_exchange", "weak_kex", _set("KexAlgorithms curve25519-sha256,diffie-hellman-group14-sha1"),
        _refused("-o KexAlgorithms=diffie-hellman-group14-sha1"),
    ),
    _OF.healed(
        "host_key_open", "host_key_exposed", "chmod 644 /etc/ssh/ssh_host_ed25519_key",
        "[ $(stat -c %a /etc/ssh/ssh_host_ed25519_key) = 600 ]",
    ),
    _OF.healed(  # then the daemon has no key left that it would use, and answers nobody
        "host_keys_all_open", "host_key_exposed", f"chmod 640 {_KEYS}",
        f'[ "$(stat -c %a {_KEYS} | sort -u)" = 600 ] && {_GETS_IN}',
    ),
    _OF.healed(
        "not_reloaded", "reload_needed", then("sleep 1.1; echo lab >/etc/lab-banner", _main("Banner /etc/lab-banner")),
        f"{_GETS_IN} 2>&1 | grep -qx lab",
    ),
    *stopped("ssh_access", "ssh.service", "daemon_down"),
    _OF.alarm(
        "match_relaxes", "match_relaxes", _main("Match Address 10.77.0.0/24\\n PasswordAuthentication yes", _READ)
    ),
    _OF.blind("config_broken", "tool_failed", _main("Nonsense yes")),
    _OF.blind("program_gone", "tool_missing", hidden("/usr/sbin/sshd")),
    _OF.blind("config_hangs", "timed_out", ("mkfifo /etc/ssh/sshd_config.d/z.conf", "rm /etc/ssh/sshd_config.d/z.conf")),
    _OF.undone(
        "start_fails", "daemon_down", then(_main("Nonsense yes"), ("systemctl stop ssh", "systemctl start ssh")),
        "unit_start_failed", "! systemctl is-active ssh && ! sshd -t",
    ),
    _OF.undone(
        "earlier_file_wins", "password_login",
        made("/etc/ssh/sshd_config.d/00-a.conf", "PasswordAuthentication yes\\n", _READ), "check_fail", _PASSWORDS,
    ),
    _OF.undone(
        "policy_refused", "password_login",
        at_once(then((_REMOVED, "systemctl restart ssh"), refusing("/usr/sbin/sshd", f'[ "$1" = -t ] && [ -e {_DROP_IN} ]'))),
        "config_refused", _LAX_AGAIN,
    ),
    _OF.undone(  # an address that this host does not have: told to read it, the daemon would end
        "reload_would_end_it", "reload_needed", then("sleep 1.1", _main("ListenAddress 192.0.2.1")), "no_handshake_before",
        _GETS_IN,
    ),
    _OF.undone(
        "reload_ends_it", "password_login", at_once(then(f"rm {_DROP_IN}", _reload("/bin/kill -KILL $MAINPID", "no"))),
        "daemon_ended", _LAX_AGAIN,
    ),
    _OF.undone(
        "reload_hangs_it", "password_login", at_once(then(f"rm {_DROP_IN}", _reload("/bin/kill -STOP $MAINPID"))),
        "no_handshake_after", _LAX_AGAIN,
    ),
)  # fmt: skip

TABLE = Table(
    _ROWS,
    setup="""
    id msp >/dev/null || useradd -m -s /bin/bash msp
    ssh-keygen -q -t ed25519 -N '' -f /root/lab-key
    install -d -o msp -g msp -m 700 /home/msp/.ssh
    install -o msp -g msp -m 600 /root/lab-key.pub /home/msp/.ssh/authorized_keys
    systemctl restart ssh""",
    entry={
        "mode": "enforce",
        "deadline_s": 4,
        "parameters": {"unit": "ssh.service", "allow_passwords": False, "root_login": "never", "match_users": ["root"]},
    },
    cost_s=110.0,
)
