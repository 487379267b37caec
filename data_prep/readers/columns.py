"""`columns`: which column of the user's file holds which field of a format."""

from collections.abc import Iterable

from data_prep.common.errors import InputError
from data_prep.common.text import shorten
from data_prep.rows.csv_rows import LIST_COLUMNS, cell_value
from data_prep.rows.problems import Problem

MISSING = "missing column"


def parse_columns(columns: str | dict[str, str] | None, fields: Iterable[str]) -> dict[str, str] | None:
    """{field: column} from "prompt=question,completion=answer"; a dictionary is only checked, None stays None.

    Raises InputError for a string in another form, and for a field that is not in `fields`.
    """
    if columns is None:
        return None
    mapping = columns
    if isinstance(columns, str):
        mapping = dict(part.split("=", 1) for part in columns.split(",") if part.count("=") == 1)
        if len(mapping) != columns.count(",") + 1 or not all(mapping.values()):
            raise InputError(
                f"columns: found {columns!r}; expected field=column, separated by commas, such as messages=dialogue or "
                "prompt=q,completion=a"
            )
    if unknown := [field for field in mapping if field not in fields]:
        raise InputError(f"columns: found the field {unknown[0]!r}; expected one of {', '.join(fields)}")
    return mapping


def renamed(row: dict, columns: dict[str, str]) -> tuple[dict, list[Problem]]:
    """The values of the named columns, under the names of their fields; ({}, [problem]) if a column is missing."""
    if missing := [column for column in columns.values() if column not in row]:
        found, expected = shorten(list(row), 300), f"the column {missing[0]!r}, which columns names"
        return {}, [Problem(MISSING, f"keys {found}", expected)]
    values = {field: row[column] for field, column in columns.items()}
    # The CSV reader left a list in such a cell as text, because its column has another name.
    for field in values.keys() & set(LIST_COLUMNS):
        if isinstance(values[field], str):
            values[field] = cell_value(field, values[field])
    return values, []
