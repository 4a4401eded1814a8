"""The table of bad input (RELIABILITY 4): files that are not what they should be, and values in the place of good ones.

A command that is given one of them must end with its documented status and one line that names the field or the file,
within two seconds of processor time, and leave everything as it was. `tell` runs a command and `clean` holds it to that.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import stat
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import structlog

from compliance_agent import cli
from compliance_agent.adapters import runner

LONGEST_CPU_S = 2.0
LONGEST_LINE = 700
Where = tuple[str | int, ...]
HOLE = "@hole@"

# Raw spellings, as they stand in a JSON or YAML document. "text" ones are wrong for anything but free text.
WRONG: dict[str, str] = {
    "nothing": "null",
    "list": "[[]]",
    "mapping": '{"a": {}}',
    "true for 1": "true",
    "false for 0": "false",
    "fraction": "1.5",
    "minus zero": "-0",
    "1e999": "1e999",
    "NaN": "NaN",
    "2**63": "9223372036854775808",
    "5000 digits": "9" * 5_000,
    "full-width digits": '"\\uff11\\uff12"',
    "1_0": '"1_0"',
    "empty text": '""',
    "right-to-left marks": '"a\\u202eb"',
    "four-byte character": '"\U0001f600"',
    "lone surrogate": '"\\ud800"',
    "NUL": '"a\\u0000b"',
    "control characters": '"a\\u001b[31mb\\r\\n"',
    "10 kB of text": f'"{"a" * 10_000}"',
    "parent directory": '"../../etc"',
    "absolute path": '"/etc/passwd"',
    "date of year 0": '"0000-01-01T00:00:00.000000Z"',
    "24 o'clock": '"24:00"',
    "time without a zone": '"2026-11-22T24:00:00"',
}
OF_ANOTHER_TYPE = {"list", "mapping"}
NOT_TEXT = OF_ANOTHER_TYPE | {"true for 1", "false for 0", "2**63"}
NO_WORD = {"empty text", "right-to-left marks", "four-byte character", "lone surrogate", "NUL", "control characters",
           "10 kB of text"}  # fmt: skip
NOT_A_NUMBER = set(WRONG) - {"nothing"}
NOT_A_TRUTH = NOT_A_NUMBER - {"true for 1", "false for 0"}


def must_refuse(good: object) -> set[str]:
    """Names of `WRONG` that no place may take which holds `good` in a good document."""
    if isinstance(good, bool):
        return NOT_A_TRUTH
    if isinstance(good, int):
        return NOT_A_NUMBER
    return OF_ANOTHER_TYPE if good is None else NOT_TEXT | NO_WORD


def leaves(document: Any, where: Where = ()) -> Iterator[tuple[Where, Any]]:
    """Every value of a document that holds no others, with its place."""
    if isinstance(document, dict | list) and document:
        items = document.items() if isinstance(document, dict) else enumerate(document)
        for key, value in items:
            yield from leaves(value, (*where, key))
    else:
        yield where, document


def with_raw(document: Any, where: Where, raw: str) -> bytes:
    """The document as JSON with these characters in one place."""

    def filled(value: Any, rest: Where) -> Any:
        if not rest:
            return HOLE
        if isinstance(value, dict):
            return {key: filled(item, rest[1:]) if key == rest[0] else item for key, item in value.items()}
        return [filled(item, rest[1:]) if number == rest[0] else item for number, item in enumerate(value)]

    text = json.dumps(filled(document, where), sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return text.replace(f'"{HOLE}"', raw).encode()


def name_of(where: Where) -> str:
    """The last name on the way to a leaf: what a message has to say."""
    return next(str(key) for key in reversed(where) if isinstance(key, str))


def _text(change: Callable[[bytes], bytes]) -> Callable[[Path, bytes], None]:
    def put(path: Path, good: bytes) -> None:
        path.write_bytes(change(good))
        path.chmod(0o600)

    return put


def _huge(path: Path, good: bytes) -> None:
    path.write_bytes(good)
    path.chmod(0o600)
    os.truncate(path, 100 * 1_048_576)


def _mode_0666(path: Path, good: bytes) -> None:
    path.write_bytes(good)
    path.chmod(0o666)


def _of_another_user(path: Path, good: bytes) -> None:
    path.write_bytes(good)
    path.chmod(0o600)
    os.chown(path, 54_321, 54_321)


# Ways a file can be none: each makes something at `path`, given what a good file holds.
NO_DOCUMENT: dict[str, Callable[[Path, bytes], None]] = {
    "empty": _text(lambda _: b""),
    "one byte": _text(lambda _: b"x"),
    "NUL": _text(lambda good: good[:9] + b"\0" + good[9:]),
    "byte order mark": _text(lambda good: b"\xef\xbb\xbf" + good),
    "UTF-16": _text(lambda good: good.decode().encode("utf-16")),
    "bad UTF-8": _text(lambda good: good + b"\xff\xfe\xfa"),
    "encoded surrogate": _text(lambda good: good[:9] + b"\xed\xa0\x80" + good[9:]),
    "100 MB": _huge,
    "depth 200,000": _text(lambda _: b"[" * 200_000),
    "cut": _text(lambda good: good[: len(good) // 2]),
    "not a mapping": _text(lambda _: b"[1, 2]"),
    "gzip": _text(lambda _: b"\x1f\x8b\x08\x00" + bytes(200)),
    "absent": lambda _path, _good: None,
    "link to nowhere": lambda path, _: path.symlink_to("nowhere"),
    "link to itself": lambda path, _: path.symlink_to(path.name),
    "fifo": lambda path, _: os.mkfifo(path),
    "directory": lambda path, _: path.mkdir(),
    "/dev/zero": lambda path, _: path.symlink_to("/dev/zero"),
}
# Only where a file steers the product or is a secret.
NOT_TRUSTED: dict[str, Callable[[Path, bytes], None]] = {"mode 0666": _mode_0666}
if os.geteuid() == 0:
    NOT_TRUSTED["another owner"] = _of_another_user


@dataclass(frozen=True)
class Told:
    """How a command ended and what it said."""

    words: tuple[str, ...]
    status: int
    out: str
    err: str
    cpu_s: float


def tell(*words: str | Path) -> Told:
    """`compliance-agent WORDS`, in this process but through its own entry point."""
    out, err = io.StringIO(), io.StringIO()
    started, status = time.process_time(), 0
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["compliance-agent", *map(str, words)])
        patch.setattr(runner, "end", sys.exit)  # it ends the process at once, and this one has more to do
        try:
            with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
                cli.main()
        except SystemExit as leaving:
            status = leaving.code if isinstance(leaving.code, int) else 0
        finally:
            structlog.reset_defaults()
    return Told(tuple(map(str, words)), status, out.getvalue(), err.getvalue(), time.process_time() - started)


def clean(told: Told, status: int, *named: str) -> None:
    """Documented status; one printable line on standard error that names all of `named`; little work."""
    lines = told.err.splitlines()
    assert told.status == status, f"{told.words}: exit {told.status}, expected {status}: {told.err[-300:]}"
    assert len(lines) == 1, f"{told.words}: {len(lines)} lines: {told.err[:600]}"
    for word in named:
        assert word in lines[0], f"{told.words}: {word!r} is not named in {lines[0]!r}"
    assert lines[0].startswith("compliance-agent: ")
    assert lines[0].isprintable(), repr(lines[0])
    assert len(lines[0]) <= LONGEST_LINE
    assert "Traceback" not in told.out + told.err
    assert told.cpu_s < LONGEST_CPU_S


def tree(root: Path) -> dict[str, tuple[Any, ...]]:
    """Everything below a directory: kind, mode, owner, and the digest of what is in small files."""
    found = {}
    for path in sorted(root.rglob("*")):
        info = path.lstat()
        small = stat.S_ISREG(info.st_mode) and info.st_size < 1_048_576
        digest = hashlib.sha256(path.read_bytes()).hexdigest() if small else info.st_size
        found[str(path.relative_to(root))] = (info.st_mode, info.st_uid, digest)
    return found


def of(document: Any, names: Sequence[str]) -> list[tuple[Where, Any]]:
    """The leaves of a document whose name is one of these."""
    return [(where, value) for where, value in leaves(document) if name_of(where) in names]
