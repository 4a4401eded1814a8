"""The accounts of a clinic host: passwd, shadow and group, who may become root, and keys in home directories."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from compliance_agent.lab.host import Call, FakeHost, Node, said
from compliance_agent.ports import Ran

DAEMONS = (("daemon", 1), ("bin", 2), ("sys", 3), ("www-data", 33), ("_apt", 42), ("nobody", 65534), ("sshd", 101))
PEOPLE = (("msp", 1000), ("frontdesk", 1001))
ADMIN = "msp"
DAY = 20_454  # a day of January 2026, as the shadow file counts them
HASH = "$y$j9T$" + "F5Jx5fExrKuPp53xLKQ..1" + "$" + "X3DX6M94c7o.9agCG9G317fhZg9SqC.5i5rd.RhAtQ7"
KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIBq4lq0k0vd5nJ6mB1t1m7s0p2i8w9x3y4z5A6B7C8D9 msp\n"
SUDOERS = """Defaults\tenv_reset
Defaults\tmail_badpass
Defaults\tsecure_path="/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

# User privilege specification
root\tALL=(ALL:ALL) ALL

# Allow members of group sudo to execute any command
%sudo\tALL=(ALL:ALL) ALL

@includedir /etc/sudoers.d
"""


def provide(host: FakeHost) -> None:
    """Have the accounts of a Debian host and two people, one of them with a key and the right to become root."""
    passwd, shadow, group = ["root:x:0:0:root:/root:/bin/bash"], [f"root:!:{DAY}:0:99999:7:::"], ["root:x:0:"]
    for name, uid in DAEMONS:
        passwd.append(f"{name}:x:{uid}:{uid}:{name}:/nonexistent:/usr/sbin/nologin")
        shadow.append(f"{name}:*:{DAY}:0:99999:7:::")
        group.append(f"{name}:x:{uid}:")
    for name, uid in PEOPLE:
        passwd.append(f"{name}:x:{uid}:{uid}:,,,:/home/{name}:/bin/bash")
        shadow.append(f"{name}:{HASH}:{DAY}:0:99999:7:::")
        group.append(f"{name}:x:{uid}:")
        host.place(f"/home/{name}", Node("directory", mode=0o700, uid=uid, gid=uid))
    group += ["sudo:x:27:msp", "users:x:100:"]
    host.install("usermod", "chage")
    host.put("/etc/passwd", "\n".join(passwd) + "\n")
    host.put("/etc/shadow", "\n".join(shadow) + "\n", mode=0o640)
    host.put("/etc/group", "\n".join(group) + "\n")
    host.put("/etc/sudoers", SUDOERS, mode=0o440)
    host.put("/etc/sudoers.d/README", "# drop-ins go here\n", mode=0o440)
    host.put(f"/home/{ADMIN}/.ssh/authorized_keys", KEY, mode=0o600, uid=1000)


def add(host: FakeHost, path: str, line: str) -> None:
    """Add a line to one of the files, as the tools that manage accounts do."""
    node = host.files[path]
    host.place(path, dataclasses.replace(node, content=node.content + line.encode() + b"\n", modified_at=host.now()))


def replace(host: FakeHost, path: str, old: str, new: str) -> None:
    """Change a line of one of the files."""
    node = host.files[path]
    if old.encode() not in node.content:
        raise RuntimeError(f"{path} holds no {old!r}")
    content = node.content.replace(old.encode(), new.encode())
    host.place(path, dataclasses.replace(node, content=content, modified_at=host.now()))


def usermod(call: Call) -> Ran:
    """`usermod -L | -p HASH [--] NAME`."""

    def change(fields: list[str]) -> None:
        if "-L" in call.flags:
            fields[1] = f"!{fields[1].lstrip('!')}"
        else:
            fields[1], fields[2] = call.argv[call.argv.index("-p") + 1], str(DAY + 300)

    return _shadow(call, change)


def chage(call: Call) -> Ran:
    """`chage -d DAY [--] NAME`; -1 is for no day."""
    day = call.argv[call.argv.index("-d") + 1]

    def change(fields: list[str]) -> None:
        fields[2] = "" if day == "-1" else day

    return _shadow(call, change)


def _shadow(call: Call, change: Callable[[list[str]], None]) -> Ran:
    call.alters()
    node, name = call.host.files["/etc/shadow"], call.argv[-1]
    records = [line.split(":") for line in node.content.decode().splitlines()]
    for fields in records:
        if fields[0] == name:
            change(fields)
            content = "".join(f"{':'.join(record)}\n" for record in records)
            call.host.place("/etc/shadow", dataclasses.replace(node, content=content.encode()))
            return said("")
    return said("", 6, err=f"usermod: user '{name}' does not exist\n")


PROGRAMS = {"usermod": usermod, "chage": chage}
