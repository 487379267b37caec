"""The rows of the table: what was compared, how it came out, and what was found, in words."""

from typing import NamedTuple

SAME, DIFFERS, FAILS, REFUSED, NOT_INSTALLED, NOTE = "same", "differs", "fails", "refused", "not installed", "note"
GOOD = (SAME, NOT_INSTALLED, NOTE)


class Row(NamedTuple):
    """A line of the table; `figures` go into the results file."""

    check: str
    status: str
    detail: str
    figures: dict = {}


def table(rows: list[Row]) -> str:
    """The rows as text, in columns."""
    names = max(len(row.check) for row in rows)
    statuses = max(len(row.status) for row in rows)
    return "\n".join(f"{row.check:{names}}  {row.status:{statuses}}  {row.detail}".rstrip() for row in rows)
