"""What `run` may ask of `uplink`, and what it may be answered: the table of their frames, and the ways that lead to the server."""

from __future__ import annotations

import re

from compliance_agent.frames import Flag, Kind, Named, Side, Table, Text, Whole, Word

SERVER = "server"
MOST_BODY_BYTES = 2_097_152
MOST_PEM_BYTES = 16_384
LONGEST_WAIT_MS = 300_000
MOST_OPEN = 8  # questions at once
SENT = (
    "accept",
    "content-type",
    "prefer",
    "x-agent-version",
    "x-nonce",
)  # headers that run may send; the key is not among them
KEPT = ("content-type", "retry-after", "x-reply-signature")  # headers of an answer that anybody here reads
# What may come in place of an answer: the error's class by its own code, and its codes. No text: uplink is not believed.
UNAVAILABLE = (
    "unavailable", "bad_certificate", "bad_config", "certificate_refused", "cut", "no_connection", "not_enrolled", "timed_out",
    "tls_failed",
)  # fmt: skip
BAD_REPLY = ("bad_reply", "bad_http", "too_large")

TABLE = Table(
    "compliance-agent/uplink",
    1,
    Kind(
        "exchange",
        1,
        Side.ASKS,
        {
            "to": Text(300, r"server|https?://[!-~]+"),
            "method": Word(("GET", "POST")),
            "path": Text(2_048, r"/[!-~]*"),
            "headers": Named(Word(SENT), Text(200), len(SENT)),
            "timeout_ms": Whole(1, LONGEST_WAIT_MS),
        },
        most_blob_bytes=MOST_BODY_BYTES,
        answers=("reply", "failed"),
    ),
    Kind(
        "reply",
        2,
        Side.ANSWERS,
        {"status": Whole(100, 599), "headers": Named(Word(KEPT), Text(200), len(KEPT))},
        most_blob_bytes=MOST_BODY_BYTES,
    ),
    Kind("certificate", 4, Side.ASKS, answers=("certificate_is", "failed")),
    Kind("certificate_is", 5, Side.ANSWERS, {"there": Flag()}, most_blob_bytes=MOST_PEM_BYTES),
    Kind("make_request", 6, Side.ASKS, {"anew": Flag()}, answers=("request_is", "failed")),
    Kind("request_is", 7, Side.ANSWERS, most_blob_bytes=MOST_PEM_BYTES),
    Kind("use_certificate", 8, Side.ASKS, most_blob_bytes=MOST_PEM_BYTES, answers=("done", "failed")),
    Kind("done", 9, Side.ANSWERS),
    Kind("failed", 3, Side.ANSWERS, {"code": Word((*UNAVAILABLE, *BAD_REPLY))}),
)

_ID = r"[A-Za-z0-9._~-]{1,128}"
COLLECTED = ("POST", "/v1/traces")  # all that is ever asked of a collector of traces
# All that is ever asked of the server by an agent, and whether the API key goes with it.
ROUTES: tuple[tuple[str, str, bool], ...] = (
    ("GET", r"/readyz", False),
    ("POST", r"/api/v1/enrol/challenge", False),
    ("POST", r"/api/v1/(checkin|evidence|receipts|leases|certificates|keys/rotate)", True),
    ("GET", rf"/api/v1/baselines/{_ID}", True),
    ("GET", r"/log/[!-~]+", True),
)


def key_goes_with(method: str, path: str) -> bool | None:
    """Whether the API key goes with a request to the server; None when no agent ever asks this."""
    if ".." in path:
        return None
    return next((key for verb, form, key in ROUTES if verb == method and re.fullmatch(form, path, re.ASCII)), None)
