"""A report as PDF/A-3, by typst: no system library, no font of the machine, and the same bytes each time.

What records say reaches the template as JSON, so none of it is read as markup.
"""

from __future__ import annotations

import json
import tempfile
from importlib import resources
from pathlib import Path
from typing import Final

from compliance_agent.errors import NoInput
from compliance_agent.sheets.report import Printable

_TEMPLATE = "report.typ"
_STANDARD: Final = "a-3a"  # archival, tagged for screen readers, with attached tables (ISO 19005-3)


def printed(report: Printable) -> bytes:
    """The report as a PDF.

    Raises:
        NoInput: typst, the extra `pdf`, is not installed.
    """
    try:
        import typst
    except ImportError as error:
        raise NoInput("printing needs typst", code="no_typst", hint="pip install 'compliance-agent[pdf]'") from error
    with tempfile.TemporaryDirectory(prefix="compliance-report-") as name:
        room = Path(name)
        (room / "report.json").write_text(json.dumps(report.document), "utf-8")
        for file, content in report.attached.items():
            (room / file).write_bytes(content)
        (room / _TEMPLATE).write_bytes(resources.files("compliance_agent.sheets").joinpath(_TEMPLATE).read_bytes())
        return typst.compile(
            room / _TEMPLATE,
            root=room,
            format="pdf",
            pdf_standards=_STANDARD,
            timestamp=report.made_at,
            ignore_system_fonts=True,
        )
