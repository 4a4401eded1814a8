"""A host's key that gave way: the statement that both keys sign (`entries/rotation.py`), held against root's file.

    root's key -> says who comes after it, in the chain's order; both sign -> root's file names the new one

The old key is the one in root's file and no other, so a statement counts once, and none leads back to a key that gave way here.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from hashlib import sha256
from typing import Any

from compliance_agent.adopt.ed25519 import is_key, verify
from compliance_agent.adopt.forms import BASE64, KEY, LABEL, TIME, raw_of, strict, time_of, unless
from compliance_agent.adopt.state import NUMBER
from compliance_agent.frames import Fields, Several, Word
from compliance_agent.heal.protocol import SHA256

CODE = "bad_rotation"
BROUGHT = Fields({"statement": BASE64, "old": KEY, "old_sig": BASE64, "new_sig": BASE64})
STATEMENT = Fields({
    "schema": Word(("compliance-agent/key-rotation/v1",)), "site_id": LABEL, "host_id": LABEL, "old_key": SHA256, "new_key": KEY,
    "epoch": NUMBER, "seq": NUMBER, "digest": SHA256, "at": TIME,
})  # fmt: skip
GONE = Fields({"gone": Several(Fields({"old": SHA256, "new": SHA256, "epoch": NUMBER}), 64)})


def follow(blob: bytes, trust: Mapping[str, Any], gone: Sequence[Mapping[str, Any]], now: datetime) -> dict[str, Any]:
    """The step from root's key (`trust`) to the next one, a member of GONE; `gone` are the steps before.

    Raises:
        Refused: the first reason why not.
    """
    brought = {name: raw_of(text, CODE) for name, text in strict(blob, BROUGHT, CODE).items()}
    raw, old = brought["statement"], brought["old"]
    says = strict(raw, STATEMENT, CODE)
    unless(json.dumps(says, sort_keys=True, separators=(",", ":")).encode() == raw, CODE)
    new = raw_of(says["new_key"], CODE)
    key, epoch = sha256(new).hexdigest(), says["epoch"]
    unless((says["site_id"], says["old_key"]) == (trust["site"], trust["host"]), "other_host")
    unless(sha256(old).hexdigest() == says["old_key"] and is_key(new), CODE)
    unless(verify(old, brought["old_sig"], raw) and verify(new, brought["new_sig"], raw), CODE)
    unless(key != trust["host"] and all(step["old"] != key for step in gone), "replayed")
    unless(all(epoch > step["epoch"] for step in gone if step["new"] == trust["host"]), "replayed")
    unless(time_of(says["at"], CODE) <= now, "not_yet")
    return {"old": trust["host"], "new": key, "epoch": epoch}
