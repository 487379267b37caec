"""Rows from CSV of any size. A broken row ends with its line, or where its open quote is closed.

Cells are parted by commas, or by semicolons or tabs where the names of the columns are, as spreadsheets write them in some
languages.
"""

import csv
import json
import re
from collections import Counter
from collections.abc import Iterator

from data_prep.common.text import counted, shorten
from data_prep.rows.json_rows import LIMIT, Parsed, rest, too_long
from data_prep.rows.problems import Problem
from data_prep.rows.text_window import Window

# Columns whose cells hold a list as JSON. Cells of other columns are text, unless they hold turns.
LIST_COLUMNS = (
    "conversations",
    "messages",
    "history",
    "completions",
    "answers",
    "responses",
    "scores",
    "ranks",
    "tools",
)
FIRST_LINE, QUOTED = re.compile(r"[^ \t\r\n][^\n]*\n"), re.compile(r'"[^"\n]*"')


def delimiter_of(window: Window) -> str:
    """The character between the names of the columns, to which the window has not moved yet: a comma, if there is any doubt."""
    while not (line := FIRST_LINE.search(window.text, window.position)):
        if len(window.text) > LIMIT or not window.more():
            return ","
    names = QUOTED.sub("", line[0])
    found = [each for each in ",;\t" if each in names.strip(" \t\r\n")]
    return found[0] if len(found) == 1 else ","


def csv_rows(window: Window) -> Iterator[Parsed]:
    """The rows of a CSV file as {column: cell}; its first row names the columns."""
    csv.field_size_limit(LIMIT)
    delimiter = delimiter_of(window)
    lines: list[str] = []

    def physical_lines() -> Iterator[str]:
        size = 0
        while True:
            while (end := window.text.find("\n", window.position)) < 0:
                if not window.more() or len(window.text) - window.position > LIMIT:
                    end = len(window.text) - 1
                    break
            line = window.text[window.position : end + 1]
            size = size + len(line) if lines else len(line)
            if not line or size > LIMIT:  # an open quote would take all that follows
                return
            window.move(end + 1)
            lines.append(line)
            yield line

    header: list[str] | None = None
    while window.position < len(window.text) or window.more():
        begin = window.line
        lines.clear()
        problems: list[Problem] = []
        try:
            cells = next(csv.reader(physical_lines(), strict=True, delimiter=delimiter), [])
        except csv.Error as error:
            what = "a carriage return outside of quotes" if "new-line character" in str(error) else error
            cells, problems = [], [Problem("broken CSV", f"{what}, in the row on line {begin:,}", "CSV (RFC 4180)")]
        raw = "".join(lines)
        if not raw and header is None:
            yield from rest(window, Problem("broken CSV", "no names of the columns", "a first line of names"))
            return
        if not raw:
            yield too_long(window, window.skip_line)
            continue
        if not raw.strip(" \t\r\n"):
            continue
        if header is None and not problems:
            header = cells
            continue
        value = None
        if header is None:
            problems = [Problem("broken CSV", f"the names of the columns: {problems[0].found}", "a row of names")]
            yield Parsed(begin, raw, None, problems)
            yield from rest(window, problems[0])
            return
        if not problems and len(cells) != len(header):
            found, expected = counted(len(cells), "cell"), f"{len(header):,}, as many as columns have names"
            problems = [Problem("ragged row", f"{found} in the row on line {begin:,}", expected)]
        elif not problems:
            value = {name: cell_value(name, cell) for name, cell in zip(header, cells, strict=True)}
            if len(value) != len(header):
                name, count = Counter(header).most_common(1)[0]
                problems = [Problem("duplicate key", f"{count} columns named {shorten(name)}", "each name once")]
        yield Parsed(begin, raw.rstrip("\r\n"), value, problems)


def cell_value(name: str, cell: str):
    """The cell as text, or as a list if its column holds lists or if it is a list of turns."""
    if not cell.lstrip().startswith("["):
        return cell
    try:
        value = json.loads(cell)
    except (ValueError, RecursionError):
        return cell
    turns = bool(value) and all(isinstance(turn, dict) and ("role" in turn or "from" in turn) for turn in value)
    return value if turns or name in LIST_COLUMNS else cell
