"""Tables as CSV files, for programs that calculate. What such a program would run as a formula stays text.

Every cell stands in quotes; one that begins like a formula (`=`, `+`, `-`, `@`, a tab or a new line, after blanks too) gets an
apostrophe in front, as OWASP advises, which these programs show as plain text.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence

from starlette.responses import Response

_FORMULA = (
    "=",
    "+",
    "-",
    "@",
    "\t",
    "\r",
    "\n",
    "|",
    "%",
    "\uff1d",
    "\uff0b",
    "\uff0d",
    "\uff20",
)  # full-width ones too


def safe(value: object) -> str:
    """A cell that no program takes for a formula; a number stays a number."""
    text = "" if value is None else str(value)
    if isinstance(value, int) and not isinstance(value, bool):
        return text
    return f"'{text}" if text.lstrip(" \u00a0").startswith(_FORMULA) else text


def csv_file(name: str, head: Sequence[str], rows: Iterable[Sequence[object]]) -> Response:
    """The answer that hands the table out under this name."""
    written = io.StringIO()
    writer = csv.writer(written, quoting=csv.QUOTE_ALL, lineterminator="\r\n")
    writer.writerow([safe(value) for value in head])
    writer.writerows([safe(value) for value in row] for row in rows)
    plain = "".join(letter if letter.isascii() and (letter.isalnum() or letter in "-_.") else "-" for letter in name)
    return Response(
        written.getvalue(),
        media_type="text/csv; charset=utf-8",
        headers={"Content-Disposition": f'attachment; filename="{plain}"'},
    )
