"""Compliance evidence for clinic hosts: observe, judge, decide, act, record, deliver.

The agent compares a host with its baseline, puts back what has drifted where the baseline allows it, and records what
it saw and did as signed evidence. `docs/ARCHITECTURE.md` shows the whole on one page.
"""

__version__ = "0.1.0"
