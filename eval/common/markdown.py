"""Tables that a command writes into a page, whose other text is kept."""

from pathlib import Path

from data_prep.common.errors import InputError
from data_prep.common.files import atomic_write


def parts_of(text: str, path: str | Path, begin: str, end: str) -> tuple[str, str, str]:
    """(before, tables, after) of the text of `path`; `InputError` if the lines around the tables are not there once each."""
    if text.count(begin) != 1 or text.count(end) != 1 or text.index(begin) > text.index(end):
        raise InputError(
            f"{path}: expected the lines {begin} and {end}, once each and in this order, around the tables"
        )
    before, rest = text.split(begin)
    tables, after = rest.split(end)
    return before, tables, after


def write_between(path: Path, begin: str, table: str, end: str) -> None:
    """Write `table` between the lines `begin` and `end` of a page, which get a place at its end where it has neither.

    Raises InputError if it has them otherwise than once each, in this order.
    """
    text = path.read_text(encoding="utf-8") if path.exists() else "# Results\n"
    if begin not in text and end not in text:
        text += f"\n{begin}\n{end}\n"
    before, _, after = parts_of(text, path, begin, end)
    with atomic_write(path) as file:
        file.write(f"{before}{begin}\n{table}{end}{after}")
