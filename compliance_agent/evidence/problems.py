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
    "bad_shed": "the mark of records that were let go does not verify, or does not fit the chain",
    "clock_ran_back": "the monotonic clock ran back within one boot",
    "backdated": "the record says it is older than what it holds can be",
    "postdated": "the record says it is younger than the log it stands in",
    "times_contradict": "what third parties said of its time cannot all be true",
    "not_logged": "the log has no entry for this record",
    "missing_record": "the log has an entry for a record that is not here",
    "missing_host": "the log has a host that the packet does not name",
    "split_view": "a checkpoint that a host verified, or that the log holds itself, is not one of this log",
    "fork": "a host signed two records for one place",
    "key_not_valid": "signed before its key was enrolled or after it was revoked, by the log's order",
    "bad_entry": "the log holds what is no entry of it",
    "bad_entry_bundle": "a file of entries does not hold what its name says",
    "bad_checkpoint": "not the text of a checkpoint",
    "bad_note": "not a signed note",
    "bad_retention": "what the log says of entries that it destroyed cannot be believed",
    "no_checkpoint": "the log serves no checkpoint",
    "no_quorum": "the checkpoint lacks the cosignatures that the policy asks for",
    "bad_token": "a time stamp does not verify over its checkpoint, or is not the one of its entry",
    **receipt.CODES,
    "unknown_log": "the receipt is of a log whose key was not given",
    "bad_container": "not a zip file as a packet is written",
    "bad_manifest": "not a manifest of every file",
    "bad_scope": "packet.json is not the scope of this packet",
    "wrong_sample": "drawn again, a packet that is a sample holds other host-days or records",
    "wrong_exception": "an exception is not as the acts in the log have it",
    "bad_key": "a key file does not hold the key it should",
    "weak_key": "a key of small order, which signs every message",
    "bad_policy": "not a policy",
    "missing_file": "a file is missing",
    "extra_file": "a file that nothing accounts for",
    "changed_file": "a file is not the one of the manifest",
    "wrong_checkpoint": "a checkpoint is not the one it should be",
    "wrong_export": "an export is not what follows from the records",
    "bad_envelope": "the envelope of the export does not verify",
}

FLAGS = {
    "clock_set_back": "a record is dated before the one before it in its chain",
    "clock_off": "by its own measurement the host's clock was more than two seconds off",
}


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong, with the bundle or host it is wrong with."""

    code: str
    where: str
    detail: str = ""
