"""Reports as CSV (RFC 4180): a header line, exact integers, and no cell that a spreadsheet would run.

Labels are the user's own text and models come from requests, and whoever opens the file trusts it. A cell that
begins like a formula gets an apostrophe before it, as OWASP's page on CSV injection says (seen 2026-11-29); so does
what follows a semicolon, a tab or a line end, which spreadsheets of some countries take for the end of a cell.
"""

import csv
import io
import re

from metering.money import usd
from metering.reports import UsageReport, sums_as_json

CSV_TYPE = "text/csv; charset=utf-8; header=present"
_FORMULA = re.compile(r"(?:^|(?<=[;\t\r\n]))(?=[^\S\t\r\n]*[=+\-@\uff1d\uff0b\uff0d\uff20])")
"""The wide forms too: spreadsheets take them for the others."""


def usage_csv(report: UsageReport) -> str:
    """A line for each group: what it stands for, then the sums; costs in nano-USD and in USD. No line of totals,
    which would be added up with the others."""
    text = io.StringIO(newline="")
    lines = csv.writer(text, lineterminator="\r\n")
    names = list(report.named(("",) * len(report.by)))
    sums_names = [name for name in sums_as_json(report.total) if name not in {"cost_usd", "credits"}]
    lines.writerow((*names, *sums_names, "cost_usd"))
    for key, sums in report.groups.items():
        cells = [harmless(cell or "") for cell in report.named(key).values()]
        lines.writerow((*cells, *(getattr(sums, name) for name in sums_names), usd(sums.cost_nanousd)))
    return text.getvalue()


def harmless(cell: str) -> str:
    """Text that a spreadsheet shows and does not run."""
    return _FORMULA.sub("'", cell)
