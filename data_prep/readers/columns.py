"""Columns of a user's file that have names of their own: which field of a format each of them is."""

from collections.abc import Iterable

from data_prep.common.errors import InputError
from data_prep.common.text import shorten
from data_prep.rows.csv_rows import LIST_COLUMNS, cell_value
from data_prep.rows.problems import Problem

MISSING = "missing column"


def parse_columns(columns: str | dict[str, str] | None, fields: Iterable[str]) -> dict[str, str] | None:
    """{field: column} of "prompt=question,completion=answer", or of that dictionary; None stays None.

    Raises InputError for what is written otherwise, and for a field that is none of `fields`.
    """
    if columns is None:
        return None
    mapping = columns
    if isinstance(columns, str):
        mapping = dict(part.split("=", 1) for part in columns.split(",") if part.count("=") == 1)
        if len(mapping) != columns.count(",") + 1 or not all(mapping.values()):
            raise InputError(f"columns: found {columns!r}; expected field=column, several with commas between them, "
                             "such as messages=dialogue or prompt=q,completion=a")  # fmt: skip
    if unknown := [field for field in mapping if field not in fields]:
        raise InputError(f"columns: found the field {unknown[0]!r}; expected one of {', '.join(fields)}")
    return mapping


def renamed(row: dict, columns: dict[str, str]) -> tuple[dict, list[Problem]]:
    """The columns that `columns` names, under the names of their fields; and the problem where one is missing."""
    if missing := [column for column in columns.values() if column not in row]:
        found, expected = shorten(list(row), 300), f"the column {missing[0]!r}, which columns names"
        return {}, [Problem(MISSING, f"keys {found}", expected)]
    values = {field: row[column] for field, column in columns.items()}
    # A cell of CSV that holds a list was left as text, because its column has another name.
    for field in values.keys() & set(LIST_COLUMNS):
        if isinstance(values[field], str):
            values[field] = cell_value(field, values[field])
    return values, []
