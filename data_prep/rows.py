"""Raw rows out of any file, and what one run does with those that are bad.

Every format of conversations, preferences and corpora is read from the rows given here: JSON lists, JSON Lines, CSV,
Parquet, each of the text ones also as .gz, .xz or .zst, folders of them, and data sets of the Hub.
"""

import contextlib
import glob
import itertools
import json
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from data_prep.csv_rows import csv_rows
from data_prep.files import InputError, atomic_write, existing
from data_prep.json_rows import TRAILING_COMMA, Problem, counted, json_rows, rest, shorten
from data_prep.text_window import COMPRESSED, Window

ON_BAD = ("error", "repair", "quarantine")
TEXT_ENDINGS = (".json", ".jsonl", ".csv")
ENDINGS = (*TEXT_ENDINGS, ".parquet")
HUB = "hf://"
BYTE_ORDER_MARK = "byte order mark"
NOT_UTF8, NOT_UNICODE = "not UTF-8", "not Unicode"
REPAIRED_BY_READING = (TRAILING_COMMA, BYTE_ORDER_MARK)  # the value is what the repaired text says


class Row(NamedTuple):
    """A row of a file as it was found."""

    path: str  # the file, or "owner/name/config/split" of the Hub
    number: int  # the row in it, from 1
    line: int | None  # the line on which it begins, from 1; None for Parquet and the Hub
    raw: str  # its untouched text (of Parquet and the Hub: its JSON); bytes that are no UTF-8 as surrogateescape
    value: object  # what was parsed; None where it could not be
    problems: list[Problem]  # what reading it found, and what was added since

    def with_found(self, problems: list[Problem]) -> "Row":
        """The row with what its content has wrong. A byte that is no UTF-8, named by reading, is not named again as the
        half surrogate pair that stands for it."""
        if not problems:
            return self
        named = any(problem.kind == NOT_UTF8 for problem in self.problems)
        added = [problem for problem in problems if not (named and problem.kind == NOT_UNICODE)]
        return self._replace(problems=[*self.problems, *added])


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


def not_utf8(text: str) -> int | None:
    """Where `text` holds half a surrogate pair, which UTF-8 cannot write; None: nowhere."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        return error.start
    return None


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


class Defects:
    """What is wrong with the rows of the user's files, collected so that one run shows all of it."""

    SHOWN = 5  # rows shown per file; the counts by kind cover the others

    def __init__(self) -> None:
        # {file: (rows, {kind: count}, messages about the first rows)}
        self.files: dict[str, tuple[Counter, Counter, list[str]]] = {}

    def add(self, row: Row) -> None:
        """Note the problems of a row."""
        rows, kinds, shown = self.files.setdefault(row.path, (Counter(), Counter(), []))
        rows["bad"] += 1
        kinds.update(problem.kind for problem in row.problems)
        if rows["bad"] <= self.SHOWN:
            identifier = row.value.get("id") if isinstance(row.value, dict) else None
            name = f"row {row.number:,}" + ("" if identifier is None else f" (id {shorten(str(identifier))})")
            name += "" if row.line is None else f", line {row.line:,}"
            shown += [f"  {name}: found {problem.found}; expected {problem.expected}" for problem in row.problems]

    def lines(self) -> list[str]:
        """Per file the count of every kind and its first rows."""
        lines = []
        for path, (rows, kinds, shown) in self.files.items():
            listed = ", ".join(f"{count:,} × {kind}" for kind, count in kinds.most_common())
            lines += [f"{path}: {counted(rows['bad'], 'row')} cannot be used: {listed}", *shown]
            if rows["bad"] > self.SHOWN:
                lines.append(f"  and {counted(rows['bad'] - self.SHOWN, 'row')} more")
        return lines

    def raise_if_any(self, repairable: Iterable[str]) -> None:
        """Raise one `InputError`: what is wrong, then what to do."""
        if not self.files:
            return
        lines = self.lines()
        found = {kind for _, kinds, _ in self.files.values() for kind in kinds}
        if certain := [kind for kind in repairable if kind in found]:
            lines.append(f"on_bad: repair mends, and counts: {', '.join(certain)}.")
        lines.append(
            "on_bad: quarantine sets such rows aside, untouched. Or mend them, then run the same command again."
        )
        raise InputError("\n".join(lines))


class Intake:
    """What one run does with bad rows, and its books.

    error       all of them are collected; `close` raises one InputError that names them
    repair      rows whose problems are all repairable go on, counted by kind in `repaired`; the others as under error
    quarantine  bad rows go untouched, with file, line and reasons, to the JSONL file `quarantine`, which appears at
                `close`, whole, or not at all where no row is bad

    The quarantine belongs to the output that it lies beside: an older one is replaced, and removed where no row is bad
    any more, so that it never tells of rows that are in the output.
    """

    def __init__(self, on_bad: str, quarantine: str | Path | None = None) -> None:
        if on_bad not in ON_BAD:
            raise InputError(f"on_bad is {on_bad!r}; expected {', '.join(ON_BAD)}")
        if on_bad == "quarantine" and quarantine is None:
            raise InputError("on_bad is 'quarantine', but there is no file for the bad rows; expected error or repair")
        self.on_bad, self.quarantine = on_bad, quarantine
        self.repaired: Counter = Counter()
        self.rows_in = self.rows_out = self.quarantined = 0
        self._defects = Defects()
        self._repairable: dict[str, None] = {}  # in the order in which they were named
        self._stack = contextlib.ExitStack()
        self._file = None  # opened for the first bad row

    def take(self, row: Row, repairable: Iterable[str] = ()) -> bool:
        """Enter a row into the books; whether it goes on.

        Args:
            row: with all its problems, those that reading it found and those of its content.
            repairable: the kinds of problem that the caller mends, or has mended, with certainty.
        """
        self.rows_in += 1
        self._repairable.update(dict.fromkeys(repairable))
        if row.problems:
            if self.on_bad == "quarantine":
                self._set_aside(row)
                return False
            if self.on_bad == "error" or any(problem.kind not in self._repairable for problem in row.problems):
                self._defects.add(row)
                return False
            self.repaired.update(problem.kind for problem in row.problems)
        self.rows_out += 1
        return True

    def _set_aside(self, row: Row) -> None:
        self.quarantined += 1
        self._defects.add(row)
        if self._file is None:
            self._file = self._stack.enter_context(atomic_write(self.quarantine))
        reasons = [problem._asdict() for problem in row.problems]
        kept = {"file": row.path, "line": row.line, "row": row.number, "reasons": reasons, "raw": row.raw}
        # In ASCII: half a surrogate pair, which stands for a byte that is no UTF-8, has no UTF-8 form.
        self._file.write(json.dumps(kept) + "\n")

    def close(self) -> None:
        """Raise the one InputError under error and repair; under quarantine let its file appear."""
        if self.on_bad != "quarantine":
            self._defects.raise_if_any(self._repairable)
        elif not self.quarantined:
            Path(self.quarantine).unlink(missing_ok=True)
        self._stack.close()
        if self.rows_in != self.rows_out + self.quarantined:
            raise RuntimeError(f"{self.rows_in} rows in, {self.rows_out} out, {self.quarantined} quarantined")

    def balance(self) -> str:
        """That no row was lost: "rows in 3 = rows out 2 + quarantined 1, which are in bad.jsonl"."""
        line = f"rows in {self.rows_in:,} = rows out {self.rows_out:,} + quarantined {self.quarantined:,}"
        return line + (f", which are in {self.quarantine}" if self.quarantined else "")

    def nothing_left(self, names: str, noun: str) -> InputError:
        """The error of a run that no `noun` is left to, and why the rows were set aside."""
        message = f"{names}: no {noun} is left of {counted(self.rows_in, 'row')}; expected at least one"
        return InputError("\n".join([message, *self._defects.lines()]))
