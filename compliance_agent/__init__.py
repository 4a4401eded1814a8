"""Compliance evidence for clinic hosts: observe, judge, decide, act, record, deliver.

The agent compares a host with its baseline, puts back what has drifted where the baseline allows it, and records what
it saw and did as signed evidence. `docs/ARCHITECTURE.md` shows the whole on one page.
"""

import itertools
import sys

__version__ = "0.1.0"


def import_structlog_alone() -> None:
    """Import structlog without rich, which it would load whole for tracebacks that are never printed here.

    That is a third of the agent's time to start and 5 MB on every host. Commands that draw tables import rich as ever. The command
    line calls this before it imports a command, so that `--help` needs none of it.
    """
    if "structlog" not in sys.modules and "rich" not in sys.modules:
        modules: dict[str, object] = sys.modules  # type: ignore[assignment]
        modules["rich"] = None  # an import of it fails, as where it is not installed
        try:
            import structlog  # noqa: F401
        finally:
            del sys.modules["rich"]


def _starts_lean() -> bool:
    """Whether this is the root side, which carries the standard library alone, or the command, which imports it when it must."""
    words = sys.orig_argv
    root = not {"compliance_agent.heal", "compliance_agent.adopt"}.isdisjoint(words)
    return root or ("-m", "compliance_agent") in itertools.pairwise(words) or sys.argv[0].endswith("/compliance-agent")


if not _starts_lean():
    import_structlog_alone()
