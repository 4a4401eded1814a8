"""What a verifier says is wrong: a code of a closed list, the record, host or file it is about, and a sentence."""

from __future__ import annotations

from dataclasses import dataclass

from compliance_agent.core import receipt

CODES = {
    "unreadable": "a file is missing, too long or cannot be read",
    "no_key": "no public key with the id that the bundle names was given",
    "bad_signature": "the signature does not verify over the exact bytes",
    "not_json": "not strict JSON",
    "not_canonical": "another spelling than the canonical one",
    "bad_schema": "a field is not what the schema allows",
    "misplaced": "the directory is not named after the bundle",
    "missing": "numbers of the chain that no bundle has",
    "duplicate": "two different bundles have the same place in the chain",
    "broken_link": "prev is not the digest of the bundle before",
    "missing_start": "the chain does not begin here: earlier bundles are elsewhere, or lost",
    "clock_ran_back": "the monotonic clock ran back within one boot",
    **receipt.CODES,
    "unknown_log": "the receipt is of a log whose key was not given",
}


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong, with the bundle or host it is wrong with."""

    code: str
    where: str
    detail: str = ""
