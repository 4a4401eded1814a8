"""OpenSSH 9.2 of Debian 12: `sshd -T` resolves the files as they are, the daemon goes on with what it read last.

The order of OpenSSH: the first value of a keyword wins, includes are read where they stand, a Match block lasts to the next one or
to the end of its file and, where it applies, overrules what stands outside of blocks.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Iterator
from dataclasses import dataclass, field

from compliance_agent.lab.host import Call, FakeHost, Unit, said
from compliance_agent.ports import Ran

UNIT = "ssh.service"
CONFIG = "/etc/ssh/sshd_config"
DROP_IN = "/etc/ssh/sshd_config.d/00-compliance.conf"
HOST_KEYS = tuple(f"/etc/ssh/ssh_host_{kind}_key" for kind in ("rsa", "ecdsa", "ed25519"))
DEBIAN = """Include /etc/ssh/sshd_config.d/*.conf
KbdInteractiveAuthentication no
UsePAM yes
X11Forwarding yes
PrintMotd no
AcceptEnv LANG LC_*
Subsystem\tsftp\t/usr/lib/openssh/sftp-server
"""
CIPHERS = "chacha20-poly1305@openssh.com aes128-ctr aes192-ctr aes256-ctr aes128-gcm@openssh.com aes256-gcm@openssh.com"
ETM = "umac-64-etm umac-128-etm hmac-sha2-256-etm hmac-sha2-512-etm hmac-sha1-etm umac-64 umac-128"
MACS = " ".join(f"{name}@openssh.com" for name in ETM.split()) + " hmac-sha2-256 hmac-sha2-512 hmac-sha1"
KEX = (
    "sntrup761x25519-sha512 sntrup761x25519-sha512@openssh.com curve25519-sha256 curve25519-sha256@libssh.org"
    " ecdh-sha2-nistp256 ecdh-sha2-nistp384 ecdh-sha2-nistp521 diffie-hellman-group-exchange-sha256"
    " diffie-hellman-group16-sha512 diffie-hellman-group18-sha512 diffie-hellman-group14-sha256"
)
OLD = {"cipher": " aes128-cbc aes256-cbc 3des-cbc", "mac": " hmac-md5", "kex": " diffie-hellman-group1-sha1"}
KNOWN = {"cipher": CIPHERS + OLD["cipher"], "mac": MACS + OLD["mac"], "kex": KEX + OLD["kex"]}
KINDS = {"ciphers": "cipher", "macs": "mac", "kexalgorithms": "kex"}
DEFAULTS = {
    "port": "22",
    "usepam": "yes",
    "permitrootlogin": "prohibit-password",
    "pubkeyauthentication": "yes",
    "passwordauthentication": "yes",
    "kbdinteractiveauthentication": "yes",
    "permitemptypasswords": "no",
    "hostbasedauthentication": "no",
    "strictmodes": "yes",
    "x11forwarding": "no",
    "printmotd": "yes",
    "ciphers": ",".join(CIPHERS.split()),
    "macs": ",".join(MACS.split()),
    "trustedusercakeys": "none",
    "authorizedkeyscommand": "none",
    "kexalgorithms": ",".join(KEX.split()),
    "authorizedkeysfile": ".ssh/authorized_keys .ssh/authorized_keys2",
    "authenticationmethods": "any",
    "clientaliveinterval": "0",
    "subsystem": "",
    "acceptenv": "",
}
CHOICES = {
    "permitrootlogin": {"yes", "no", "prohibit-password", "without-password", "forced-commands-only"},
    **{
        word: {"yes", "no"}
        for word in (
            "passwordauthentication",
            "kbdinteractiveauthentication",
            "permitemptypasswords",
            "usepam",
            "hostbasedauthentication",
            "strictmodes",
        )
    },
}


class Refused(Exception):
    """sshd does not take its configuration."""


@dataclass
class Daemon:
    """What the running daemon goes by.

    Attributes:
        policy: the settings it read last.
        mute: it accepts connections and never answers (a fault).
    """

    policy: dict[str, str] = field(default_factory=dict)
    mute: bool = False


def provide(host: FakeHost) -> None:
    """Have the daemon installed, hardened and running."""
    from compliance_agent.core.sshd import drop_in

    policy = {kind: tuple(DEFAULTS[word].split(",")) for word, kind in KINDS.items()}
    host.put(CONFIG, DEBIAN, age_s=90 * 86_400.0)
    text = drop_in(
        passwords=False,
        root_login="never",
        ciphers=policy["cipher"],
        macs=tuple(name for name in policy["mac"] if name.endswith("-etm@openssh.com") and "64-" not in name)[:3],
        kex=tuple(name for name in policy["kex"] if not name.endswith(("exchange-sha256", "group14-sha256"))),
    )
    host.put(DROP_IN, text, age_s=30 * 86_400.0)
    for path in HOST_KEYS:
        host.put(path, "-----BEGIN OPENSSH PRIVATE KEY-----\n", mode=0o600, age_s=90 * 86_400.0)
    host.install("sshd", "ssh", "ssh-keyscan")
    host.units_table[UNIT] = Unit(started=lambda: _begin(host), reloaded=lambda: read_files(host))
    host.units_table[UNIT].changed_at = host.now()
    host.aliases["sshd.service"] = UNIT
    read_files(host)


def _begin(host: FakeHost) -> bool:
    host.part(Daemon).mute = False
    return read_files(host)


def read_files(host: FakeHost) -> bool:
    """The daemon takes its settings from the files; whether it could."""
    try:
        host.part(Daemon).policy = resolve(host)
    except Refused:
        return False
    return True


def resolve(host: FakeHost, user: str | None = None) -> dict[str, str]:
    """Every setting as the files give it, for one account when it is named.

    Raises:
        Refused: a line is no setting, or others may read every host key: sshd passes over such keys.
    """
    keys = [host.files[path] for path in HOST_KEYS if path in host.files]
    if keys and all(key.mode & 0o077 for key in keys):
        raise Refused("no hostkeys available -- exiting.")
    found: dict[bool, dict[str, str]] = {False: {}, True: {}}
    for keyword, value, in_block in _walk(host, CONFIG, user, 0):
        if value not in CHOICES.get(keyword, {value}):
            raise Refused(f"unsupported option {value!r}")
        if keyword in KINDS and (not value or set(value.split(",")) - set(KNOWN[KINDS[keyword]].split())):
            raise Refused(f"Bad {keyword} spec")
        found[in_block].setdefault(keyword, value)
    return {**DEFAULTS, **found[False], **found[True]}


def _walk(host: FakeHost, path: str, user: str | None, depth: int) -> Iterator[tuple[str, str, bool]]:
    applies, in_block = True, False
    for line in host.open_file(path).decode("utf-8", "replace").splitlines():
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        keyword, *rest = line.split(None, 1)
        keyword, value = keyword.lower(), rest[0].strip() if rest else ""
        if keyword == "match":
            in_block, (kind, _, wanted) = True, value.partition(" ")
            applies = user is not None and kind.lower() == "user" and user in wanted.split(",")
        elif keyword == "include" and depth < 16:
            for included in _expand(host, value):
                yield from _walk(host, included, user, depth + 1)
        elif keyword not in DEFAULTS or not value:
            raise Refused(f"Bad configuration option: {keyword}")
        elif applies:
            yield keyword, value, in_block


def _expand(host: FakeHost, pattern: str) -> list[str]:
    matches = (name for name, node in host.files.items() if node.kind == "file" and fnmatch.fnmatchcase(name, pattern))
    return sorted(name for name in matches if name.count("/") == pattern.count("/"))


def sshd(call: Call) -> Ran:
    """`sshd -t`, `sshd -T [-C user=NAME,...]`."""
    if not call.flags & {"-t", "-T"}:
        raise RuntimeError("the simulated sshd runs as a unit only")
    if call.host.uid != 0:
        return said("", 1, err="sshd: no hostkeys available -- exiting.\nUnable to load host key: Permission denied\n")
    spec = next((word for word in call.words if word.startswith("user=")), "")
    user = spec.partition(",")[0].removeprefix("user=") or None
    try:
        policy = resolve(call.host, user)
    except Refused as error:
        return said("", 255, err=f"{CONFIG}: line 1: {error}\n{CONFIG}: terminating, 1 bad configuration options\n")
    return said(_printed(policy)) if "-T" in call.flags else said("")


def _printed(policy: dict[str, str]) -> str:
    lines = [
        f"port {policy['port']}",
        f"listenaddress [::]:{policy['port']}",
        f"listenaddress 0.0.0.0:{policy['port']}",
    ]
    for word, value in policy.items():
        shown = "without-password" if value == "prohibit-password" else value
        lines += [f"{word} {shown}"] if value and word != "port" else []
    return "\n".join([*lines, *(f"hostkey {path}" for path in HOST_KEYS), "permittunnel no"]) + "\n"


def ssh(call: Call) -> Ran:
    """`ssh -Q cipher|mac|kex`."""
    known = KNOWN.get(call.words[0]) if call.words else None
    return said("\n".join(known.split()) + "\n") if known and "-Q" in call.flags else said("", 255)


def ssh_keyscan(call: Call) -> Ran:
    """`ssh-keyscan [-T SECONDS] [-p PORT] ADDRESS`: a key, if the daemon and this OpenSSH agree on algorithms."""
    daemon = call.host.part(Daemon)
    agreed = all(set(daemon.policy[word].split(",")) & set(DEFAULTS[word].split(",")) for word in KINDS)
    port = call.argv[call.argv.index("-p") + 1] if "-p" in call.argv else "22"
    if not call.host.is_active(UNIT) or daemon.mute or not agreed or port != daemon.policy["port"]:
        return said("", 1)
    return said(f"{call.argv[-1]} ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIHostKey\n", err=f"# {call.argv[-1]}:{port}\n")


PROGRAMS = {"sshd": sshd, "ssh": ssh, "ssh-keyscan": ssh_keyscan}
