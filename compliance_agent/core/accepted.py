"""The words with which people accept a failing check for a while: why, what is done instead, and for how long. Pure.

Closed lists: an exception that is recorded at the server has no room for anything else (docs/adr/0021).
"""

from __future__ import annotations

from collections.abc import Mapping

REASONS: Mapping[str, str] = {
    "device_limit": "The device or its software cannot be set as the baseline asks.",
    "vendor_requires": "The vendor requires it as it is.",
    "replacement_planned": "What it is about is being replaced.",
    "care_needs_it": "Care could not go on while it is changed.",
    "not_reasonable": "An assessment found that it is not reasonable and appropriate here.",
}
MEASURES: Mapping[str, str] = {
    "segregated": "The host is kept apart on the network.",
    "access_restricted": "Fewer people may use it, and that is reviewed.",
    "watched": "It is watched more closely, and what is seen is reviewed.",
    "physical": "A physical safeguard stands in for it.",
    "other_product": "Another product does the same.",
}
DAYS = (7, 30, 90, 180, 365)
