"""Raw rows out of any file, and what one run does with those that are bad.

Every format of conversations, preferences and corpora is read from the rows given here: JSON lists, JSON Lines, CSV,
Parquet, each of the text ones also as .gz, .xz or .zst, folders of them, and data sets of the Hub.
"""

import glob
import itertools
import json
from collections.abc import Iterable, Iterator
from pathlib import Path

from data_prep.common.errors import InputError
from data_prep.common.files import existing
from data_prep.common.text import counted, shorten
from data_prep.rows.csv_rows import csv_rows
from data_prep.rows.json_rows import json_rows, rest
from data_prep.rows.problems import BYTE_ORDER_MARK, NOT_UNICODE, NOT_UTF8, REPAIRED_BY_READING, Problem, Row, not_utf8
from data_prep.rows.text_window import COMPRESSED, Window

TEXT_ENDINGS = (".json", ".jsonl", ".csv")
ENDINGS = (*TEXT_ENDINGS, ".parquet")
HUB = "hf://"


def kind_of_file(path: str | Path) -> str:
    """The ending that says how a file is read (".json"), that of a compression left aside; "" where it has none."""
    suffixes = [suffix.lower() for suffix in Path(path).suffixes]
    if suffixes and suffixes[-1] in COMPRESSED:
        return suffixes[-2] if len(suffixes) > 1 and suffixes[-2] in TEXT_ENDINGS else ""
    return suffixes[-1] if suffixes else ""


def data_files(paths: str | Path | Iterable[str | Path]) -> list[str]:
    """The files that `paths` stand for: files as given, folders and globs as the readable files in them, sorted.

    Data sets of the Hub ("hf://owner/name", "hf://owner/name:config:split") are kept as they are. Raises InputError
    where a path names nothing, or a file of an unknown kind.
    """
    listed = [paths] if isinstance(paths, str | Path) else list(paths)
    if not listed:
        raise InputError("no data file given: name at least one")
    files: list[str] = []
    for path in map(str, listed):
        if path.startswith(HUB):
            files.append(path)
            continue
        if any(char in path for char in "*?[") and not Path(path).exists():
            found = sorted(glob.glob(path, recursive=True))
        elif Path(path).is_dir():
            found = sorted(str(file) for file in Path(path).rglob("*") if not file.name.startswith("."))
        else:
            known = kind_of_file(path) in ENDINGS
            if known or not Path(path).suffix:
                existing(path)
            if not known:
                raise InputError(f"{path}: found the ending {Path(path).suffix!r}; expected {', '.join(ENDINGS)} or, "
                                 f"compressed, such as .jsonl.gz ({', '.join(COMPRESSED)})")  # fmt: skip
            files.append(path)
            continue
        readable = [file for file in found if kind_of_file(file) in ENDINGS and Path(file).is_file()]
        if not readable:
            raise InputError(f"{path}: found no file that ends in {', '.join(ENDINGS)} there; expected at least one")
        files += readable
    if strange := next((file for file in files if not_utf8(file) is not None), None):
        raise InputError(f"{strange!r}: the name is not UTF-8; rename the file")
    return files


def names_of(files: list[str]) -> str:
    """The names of the first files, for a line on the screen: "a.json, b.json, c.json and 2 files more"."""
    more = f" and {counted(len(files) - 3, 'file')} more" if len(files) > 3 else ""
    return ", ".join(Path(file).name for file in files[:3]) + more


def rows_of(files: Iterable[str]) -> Iterator[Row]:
    """The rows of files (see `data_files`), one at a time; an empty file is a row with that problem."""
    for path in files:
        rows = read_rows(path)
        empty = Row(path, 1, 1, "", None, [Problem("empty file", "no row", "at least one row")])
        yield from itertools.chain([next(rows, empty)], rows)


def identify(row: Row, column: str = "id") -> tuple[str, Row]:
    """A row's own id, or else "<file name>:<row number>"; and the row, with the problem of an id that is no text."""
    value = row.value.get(column) if isinstance(row.value, dict) else None
    identifier = f"{Path(row.path).name}:{row.number}" if value is None else str(value)
    if not_utf8(identifier) is not None:
        row = row.with_found([Problem(NOT_UNICODE, f"{identifier!r} under {column!r}", "whole characters")])
    return identifier, row


def read_rows(path: str | Path) -> Iterator[Row]:
    """The rows of one file (see `data_files`), one at a time: the memory used does not grow with the file.

    Every byte of a text file belongs to exactly one row, or stands between rows. Nothing in a file raises: what is wrong
    with a row is in its problems. Raises InputError for a data set of the Hub that cannot be had.
    """
    path = str(path)
    if path.startswith(HUB):
        yield from _hub_rows(path)
    elif kind_of_file(path) == ".parquet":
        yield from _parquet_rows(path)
    else:
        yield from _text_rows(path)


def _text_rows(path: str) -> Iterator[Row]:
    window = Window(path)
    kind = kind_of_file(path)
    if window.encoding:
        problem = Problem("wrong encoding", window.encoding, "UTF-8: save the file as UTF-8")
        parsed = rest(window, problem)
    elif kind == ".csv":
        parsed = csv_rows(window)
    else:
        parsed = json_rows(window, lines=kind == ".jsonl")
    number = 0
    for number, (line, raw, value, problems) in enumerate(parsed, start=1):
        if (start := not_utf8(raw)) is not None and not window.encoding:
            found = f"the byte {ord(raw[start]) - 0xDC00:#x} as character {start + 1:,} of the row"
            problems = [*problems, Problem(NOT_UTF8, found, "UTF-8: save the file as UTF-8")]
        if number == 1 and window.byte_order_mark:
            problem = Problem(BYTE_ORDER_MARK, "bytes EF BB BF at the start of the file", "UTF-8 without them")
            problems = [problem, *problems]
        if value is None and problems and all(problem.kind in REPAIRED_BY_READING for problem in problems):
            # Without a problem that cannot be mended, a row without a value would pass for one that was not read.
            problems = [*problems, Problem("not an object", "null", "a row: { ... }")]
        yield Row(path, number, line, raw, value, problems)
    if window.failure:
        problem = Problem("unreadable file", window.failure, "a whole file")
        yield Row(path, number + 1, window.line, "", None, [problem])


def _parquet_rows(path: str) -> Iterator[Row]:
    import pyarrow  # slow to import
    import pyarrow.parquet

    number = 0
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=1000):
                for index in range(len(batch)):
                    number += 1
                    yield _arrow_row(path, number, batch.slice(index, 1))
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        problem = Problem("unreadable file", f"{shorten(str(error))}", "a whole Parquet file")
        yield Row(path, number + 1, None, "", None, [problem])


def _arrow_row(path: str, number: int, table) -> Row:
    try:
        (value,) = table.to_pylist()
    except UnicodeDecodeError as error:
        return Row(path, number, None, "", None, [Problem(NOT_UTF8, str(error), "text as UTF-8")])
    return Row(path, number, None, _as_json(value), value, [])


def _as_json(value) -> str:
    return json.dumps(value, ensure_ascii=False, default=str)


def _hub_rows(path: str) -> Iterator[Row]:
    """The rows of "hf://owner/name[:config[:split]]"; the split is "train" where none is named."""
    from datasets import load_dataset  # slow to import

    name, config, split = [*path.removeprefix(HUB).split(":"), "", ""][:3]
    shown = "/".join((name, config or "default", split or "train"))
    try:
        dataset = load_dataset(name, config or None, split=split or "train", streaming=True)
        for number, value in enumerate(dataset, start=1):
            yield Row(shown, number, None, _as_json(value), value, [])
    except (OSError, ValueError, RuntimeError) as error:  # no network, no such data set, configuration or split
        first = (str(error).splitlines() or [type(error).__name__])[0]
        raise InputError(f"{path}: cannot be read from the Hub ({first}); expected hf://owner/name, and after it "
                         ":configuration:split where there are several") from None  # fmt: skip
