"""The auditor's side of receipts: is each bundle in its site's log, as the files beside it say?

A receipt is checked with the keys of the logs and nothing else: the leaf is this bundle's, the entry is in the tree, the checkpoint
is signed. All checkpoints that were met must then agree, those that bundles name as their host's last one included: two roots
for one size are a log that shows different people different trees.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

from compliance_agent.adapters.durable import read_file
from compliance_agent.core.receipt import MAX_PROOF_BYTES, LoggedBundle, LogHead, verify_receipt
from compliance_agent.errors import BadEvidence, NoInput, NotPermitted
from compliance_agent.log.note import VerifierKey

LEAF, PROOF = "leaf.json", "bundle.tlog-proof"
SUFFIX = ".vkey"
MAX_LEAF_BYTES = 4_096


class Logs:
    """The logs an auditor trusts, and every checkpoint met so far.

    Args:
        keys: of the logs; none of them means that receipts are counted and not checked.
    """

    def __init__(self, keys: Collection[VerifierKey]) -> None:
        self.keys = keys
        self.unchecked = 0  # receipts for which there is no key
        self._roots: dict[tuple[str, int], str] = {}

    def check(self, bundle: Path, document: Mapping[str, Any], digest: str, signature: bytes) -> bool | None:
        """Whether this bundle has a receipt that verified; None when there is one, and no log key to check it with.

        Raises:
            BadEvidence: it is wrong; `code` is one of `core.receipt.CODES`, `unreadable`, or `unknown_log`.
        """
        content = _read(bundle)
        if content is None:
            return False
        if not self.keys:
            self.unchecked += 1
            return None
        host = document["host"]["key_id"]
        logged = LoggedBundle(host, document["epoch"], document["seq"], document["prev"], digest, signature)
        head = verify_receipt(logged, *content, self.keys)
        if head.origin.split("/")[1:2] != [document["site_id"]]:
            raise BadEvidence("receipt: of a log of another site", code="foreign_log")
        self._agrees(head)
        return True

    def _agrees(self, head: LogHead) -> None:
        if self._roots.setdefault((head.origin, head.size), head.root.hex()) != head.root.hex():
            raise BadEvidence(f"log {head.origin}: two roots at size {head.size}", code="log_forked")

    def contradicted(self, document: Mapping[str, Any]) -> bool:
        """Whether the checkpoint that a bundle names is another than a receipt showed for that size."""
        named = document["log_head"]
        return named is not None and self._roots.get((named["origin"], named["size"]), named["root"]) != named["root"]


def _read(bundle: Path) -> tuple[bytes, bytes] | None:
    """The two files of a receipt; None when there is neither."""
    leaf, proof = bundle.with_name(LEAF), bundle.with_name(PROOF)
    if not proof.exists() and not leaf.exists():
        return None
    try:
        return read_file(leaf, limit_bytes=MAX_LEAF_BYTES), read_file(proof, limit_bytes=MAX_PROOF_BYTES)
    except (NoInput, NotPermitted) as error:
        raise BadEvidence(f"{bundle.parent.name}: leaf or receipt cannot be read", code="unreadable") from error


def read_log_keys(given: Iterable[str]) -> list[VerifierKey]:
    """Log keys as an auditor gives them: each a vkey, or a file with one on each line.

    Raises:
        NoInput, NotPermitted: a file cannot be read.
        BadEvidence: not a verifier key.
    """
    keys = []
    for text in given:
        is_file = "+" not in text or Path(text).is_file()
        lines = read_file(Path(text), limit_bytes=65_536).decode("utf-8", "replace").split("\n") if is_file else [text]
        keys += [VerifierKey.parse(line) for line in lines if line]
    return keys


def log_keys_beside(paths: Iterable[Path], levels: int) -> list[VerifierKey]:
    """Log keys that stand with the evidence: `keys/*.vkey` in a path, above it up to so many levels, or below it."""
    found: set[Path] = set()
    for path in paths:
        near = [set((place / "keys").glob("*" + SUFFIX)) for place in (path, *list(path.absolute().parents)[:levels])]
        found |= next((files for files in near if files), set(path.rglob("keys/*" + SUFFIX)))
    return read_log_keys(str(path) for path in sorted(found))
