"""The small tools that checks use where the Host port has no method of its own."""

from __future__ import annotations

import zlib
from dataclasses import replace
from pathlib import PurePosixPath

from compliance_agent.errors import CannotTell
from compliance_agent.lab.host import Call, FakeHost, Node, said
from compliance_agent.ports import Ran


def inode_of(path: str) -> int:
    """A stable inode number for a path."""
    return 1000 + zlib.crc32(path.encode()) % 1_000_000


def date(call: Call) -> Ran:
    """`date [-u] +FORMAT`; the host lives in UTC."""
    form = next((word[1:] for word in call.argv[1:] if word.startswith("+")), "%a %b %e %H:%M:%S UTC %Y")
    return said(call.host.now().strftime(form) + "\n")


def env(call: Call) -> Ran:
    """`env --unset=NAME PROGRAM...`."""
    return call.host.installed[call.argv[2]](replace(call, argv=call.argv[2:]))


def tail(call: Call) -> Ran:
    """`tail -c N -- FILE`."""
    words = [word for word in call.argv[1:] if word != "--"]
    count, path = (int(words[1]), words[2]) if words[:1] == ["-c"] else (1 << 20, words[0])
    try:
        content = call.host.open_file(path)
    except CannotTell as error:
        return said("", 1, err=f"tail: cannot open '{path}' for reading: {_complaint(error)}\n")
    return Ran(0, content[-count:] if count else b"", b"")


def cat(call: Call) -> Ran:
    """`cat FILE...`."""
    out = b""
    for path in call.words:
        try:
            out += call.host.open_file(path)
        except CannotTell as error:
            return Ran(1, out, f"cat: {path}: {_complaint(error)}\n".encode())
    return Ran(0, out, b"")


def readlink(call: Call) -> Ran:
    """`readlink [-f] PATH`."""
    path = call.words[-1] if call.words else ""
    if "-f" in call.flags:
        return _resolved(call.host, path)
    node = call.host.files.get(path)
    return said(f"{node.target}\n") if node and node.kind == "symlink" else said("", 1)


def _resolved(host: FakeHost, path: str) -> Ran:
    try:
        return said(f"{host.find(path)[0]}\n")
    except CannotTell:
        return said("", 1)


def stat(call: Call) -> Ran:
    """`stat --format=FORMAT PATH...` with %i %n %s %a %u %Y."""
    form = next((word.partition("=")[2] for word in call.argv if word.startswith(("--format=", "--printf="))), "%n")
    out, err = "", ""
    for path in call.words:
        node = call.host.files.get(path)
        if node is None:
            err += f"stat: cannot statx '{path}': No such file or directory\n"
            continue
        values = {"%i": inode_of(path), "%n": path, "%s": len(node.content), "%a": f"{node.mode:o}", "%u": node.uid}
        line = form
        for place, value in {**values, "%Y": int(node.modified_at.timestamp())}.items():
            line = line.replace(place, str(value))
        out += line + "\n"
    return said(out, 1 if err else 0, err=err)


def uname(call: Call) -> Ran:
    """`uname -r`."""
    return said(call.host.open_file("/proc/sys/kernel/osrelease").decode())


def id_(call: Call) -> Ran:
    """`id -u`."""
    return said(f"{call.host.uid}\n")


def _complaint(error: CannotTell) -> str:
    return {"not_found": "No such file or directory", "not_permitted": "Permission denied"}.get(error.reason, "Error")


def mkdir(call: Call) -> Ran:
    """`mkdir [-m MODE] -- PATH`."""
    call.alters()
    path, mode = call.argv[-1], call.argv[call.argv.index("-m") + 1] if "-m" in call.flags else "0755"
    if path in call.host.files or str(PurePosixPath(path).parent) not in call.host.files:
        return said("", 1, err=f"mkdir: cannot create directory '{path}'\n")
    call.host.place(path, Node("directory", mode=int(mode, 8), modified_at=call.host.now()))
    return said("")


def rmdir(call: Call) -> Ran:
    """`rmdir -- PATH`."""
    call.alters()
    path = call.argv[-1]
    if any(name.startswith(f"{path}/") for name in call.host.files) or path not in call.host.files:
        return said("", 1, err=f"rmdir: failed to remove '{path}'\n")
    del call.host.files[path]
    return said("")


PROGRAMS = {
    "mkdir": mkdir,
    "rmdir": rmdir,
    "date": date,
    "env": env,
    "tail": tail,
    "cat": cat,
    "readlink": readlink,
    "stat": stat,
    "uname": uname,
    "id": id_,
}
