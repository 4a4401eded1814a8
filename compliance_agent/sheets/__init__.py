"""The printed report of a packet: ten sheets for an auditor, each number of which names the records that it counts.

    pdf = printed(report_of(scope, records, verified, digest))

`sheet.py` has the parts of a sheet, `period.py`, `registers.py` and `standing.py` make the ten from the records, `report.py` puts
them together with the list of records that the numbers lead to, `printing.py` sets it as PDF/A-3 by typst.
"""
