"""Which code is installed here: what every bundle, `status` and the health of an agent name."""

from __future__ import annotations

import functools
import hashlib
from pathlib import Path


@functools.cache
def agent_digest() -> str:
    """SHA-256 over this package's own source files, as they were when it was asked for first.

    The same as `find . -name '*.py' | LC_ALL=C sort | xargs sha256sum | sha256sum`, run in its directory.
    """
    package = Path(__file__).resolve().parent
    lines = sorted(f"./{path.relative_to(package).as_posix()}" for path in package.rglob("*.py"))
    listing = "".join(f"{hashlib.sha256((package / line).read_bytes()).hexdigest()}  {line}\n" for line in lines)
    return hashlib.sha256(listing.encode()).hexdigest()
