"""What `adopt`, the root side of orders, is to be told on this host: made from its configuration, held against what is there."""

from __future__ import annotations

import json
from collections.abc import Iterator

from compliance_agent import permits
from compliance_agent.adapters.durable import read_file
from compliance_agent.adopt.forms import TRUST, strict
from compliance_agent.baseline import MAX_KEY_BYTES
from compliance_agent.config import AgentConfig
from compliance_agent.crypto import key_id, key_words, public_of, read_public_pem
from compliance_agent.errors import NoInput
from compliance_agent.facts import SHA256
from compliance_agent.heal.trouble import Refused

FILE_NAME, APPROVALS_NAME = "adopt.json", "approvals.json"  # beside the permissions
# What a field of root's file is about, for a person.
FIELDS = {
    "tenant": "client_id",
    "site": "site_id",
    "host": "this host's key, as after a rotation",
    "order_root": "order_root_file",
    "order_keys": "order_keys_file",
    "baseline_key": "baseline_key_file",
    "baseline": "baseline_path",
}


def made(config: AgentConfig | None) -> tuple[bytes, str]:
    """Root's word, and under whom. A pin may stand where the agent's user could change it, so it is said again in root's file.

    Raises:
        NoInput: root takes no order on this host; the sentence says why.
    """
    if config is None or (config.baseline_key_file is None and not config.approval_for_disruptive):
        raise NoInput("baseline_key_file is not set")
    if config.order_root_file is None and config.order_keys_file is None:
        raise NoInput("neither order_root_file nor order_keys_file is set")
    path = config.baseline_key_file
    key = None if path is None else read_public_pem(read_file(path, limit_bytes=MAX_KEY_BYTES, trusted=True))
    host = key_id(public_of(config.signing_key_file))
    if config.order_root_file is None:
        return permits.trust(config, host, None, key, order_keys=config.order_keys_file), f"{config.order_keys_file}"
    pin = read_file(config.order_root_file, limit_bytes=128).decode("ascii", "replace").strip()
    if not SHA256.fullmatch(pin):
        raise NoInput(f"{config.order_root_file} is not the SHA-256 of a root")
    return permits.trust(config, host, pin, key, order_keys=None), f"order root {pin}, in words {key_words(pin)}"


def asked_for(config: AgentConfig) -> bool:
    """Whether root is to take orders under this configuration: for a baseline, or approvals."""
    takes = config.baseline_key_file is not None or config.approval_for_disruptive
    return takes and (config.order_root_file or config.order_keys_file) is not None


def differing(standing: bytes, wanted: bytes) -> Iterator[str]:
    """Settings of which root's file says something else than this host's configuration.

    Raises:
        Refused: it is not of its form.
    """
    says, should = strict(standing, TRUST, "bad_trust"), json.loads(wanted)
    return (said for name, said in FIELDS.items() if says[name] != should[name])


__all__ = ["APPROVALS_NAME", "FILE_NAME", "Refused", "asked_for", "differing", "made"]
