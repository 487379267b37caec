"""Documents out of corpus files, one at a time: the memory used does not depend on the size of a file.

What is read: JSON Lines, JSON lists, CSV and Parquet with a column of texts, conversations of the Baichuan and the OpenAI
format (the turns of one, separated by blank lines, are a document), plain text, all of these but Parquet also as .gz, .xz
and .zst, folders and globs of them, and data sets of the Hub, streamed ("hf://owner/name:config:split").
"""

import glob
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from data_prep.common.errors import InputError
from data_prep.common.files import existing
from data_prep.common.text import counted, shorten
from data_prep.rows.bad_rows import BadRows
from data_prep.rows.problems import BYTE_ORDER_MARK, REPAIRED_BY_READING, Problem, Row, not_utf8
from data_prep.rows.read import ENDINGS, HUB, kind_of_file, read_rows
from data_prep.rows.text_window import COMPRESSED, Window

HEAD = 1 << 20  # characters by which a text file is taken for running text, or for a document a line
PIECE = 1 << 17  # characters of running text that make a document: about 24,000 English words
LONGEST_LINE = 1 << 24  # characters; what a line goes on with after that is another document
TURNS = {"conversations": "value", "messages": "content"}


class Document(NamedTuple):
    """A text and the row that it is from."""

    text: str
    row: Row


def is_text(path: str | Path) -> bool:
    """Whether the file is plain text by its name: .txt, or .txt.gz and the like."""
    suffixes = [suffix.lower() for suffix in Path(path).suffixes]
    return suffixes[-1:] == [".txt"] or (suffixes[-2:-1] == [".txt"] and suffixes[-1] in COMPRESSED)


def readable(path: str | Path) -> bool:
    return is_text(path) or kind_of_file(path) in ENDINGS


def corpus_files(paths: str | Path | Iterable[str | Path]) -> list[str]:
    """The files that `paths` stand for: files as given, folders and globs as the readable files in them, sorted.

    Data sets of the Hub are kept as they are. Raises InputError where a path names nothing that can be read.
    """
    files: list[str] = []
    for path in [str(paths)] if isinstance(paths, str | Path) else map(str, paths):
        if path.startswith(HUB):
            files.append(path)
            continue
        if is_glob(path):
            found = sorted(glob.glob(path, recursive=True))
        elif existing(path).is_dir():
            found = sorted(str(file) for file in Path(path).rglob("*") if not file.name.startswith("."))
        elif readable(path):
            files.append(path)
            continue
        else:
            expected = ", ".join((".txt", *ENDINGS))
            raise InputError(f"{path}: unknown ending; expected {expected}, or compressed, such as .txt.gz")
        found = [file for file in found if readable(file) and Path(file).is_file()]
        if not found:
            raise InputError(f"{path}: no file in it that can be read; expected {', '.join(('.txt', *ENDINGS))}")
        files += found
    if not files:
        raise InputError("no corpus file given: name at least one")
    return files


def stamps(files: list[str]) -> list[list]:
    """Name, size and time of each file, by which a run that goes on knows that they are the same; of the Hub the name."""
    stats = [None if file.startswith(HUB) else Path(file).stat() for file in files]
    return [[file, stat and stat.st_size, stat and stat.st_mtime_ns] for file, stat in zip(files, stats, strict=True)]


def is_glob(path: str) -> bool:
    return any(character in path for character in "*?[") and not Path(path).exists()


def read_documents(paths: str | Path | Iterable[str | Path], **options) -> Iterator[str]:
    """The texts of `documents`, which has the same arguments."""
    return (document.text for document in documents(paths, **options))


def documents(
    paths: str | Path | Iterable[str | Path],
    text_column: str = "text",
    bad_rows: BadRows | None = None,
    counts: Counter | None = None,
) -> Iterator[Document]:
    """The documents of all files, in order. Documents without text are left out and counted.

    Bad rows go to `bad_rows` (without one, they are errors). Where they are errors, no more documents come after the first
    of them, and its file is read on to its end, so that the error names all bad rows in it. After the last document the
    bad_rows is closed.

    Args:
        counts: gets "documents", "empty" (left out because there is no text in them) and "cut" (pieces cut off lines
            longer than 16 million characters).

    Raises InputError for bad rows, an unknown ending, and files that hold no text at all.
    """
    bad_rows, counts = bad_rows or BadRows("error"), Counter() if counts is None else counts
    files = corpus_files(paths)
    for file in files:
        failed = False
        for text, row in texts(file, text_column, counts):
            if not bad_rows.accept(row, REPAIRED_BY_READING):
                failed |= bad_rows.on_bad != "quarantine"
                if failed and file.startswith(HUB):
                    break
            elif not text.strip():
                counts["empty"] += 1
            elif not failed:
                counts["documents"] += 1
                yield Document(text, row)
        if failed:
            break
    bad_rows.close()
    if not counts["documents"]:
        aside = f" ({counted(bad_rows.quarantined, 'row')} quarantined)" if bad_rows.quarantined else ""
        raise InputError(f"{', '.join(files[:3])}{', ...' * (len(files) > 3)}: no text in it{aside}")


def reading_counts(bad_rows: BadRows, counts: Counter) -> list[str]:
    """What reading has left out, cut and repaired, a line each."""
    lines = [f"{counted(count, 'row')} repaired: {kind}" for kind, count in bad_rows.repaired.items()]
    if bad_rows.quarantined:
        lines.append(
            f"{counted(bad_rows.rows_in, 'row')} in = {bad_rows.rows_out:,} out + {bad_rows.quarantined:,} quarantined"
        )
    if counts["empty"]:
        lines.append(f"{counted(counts['empty'], 'document')} without text left out")
    if counts["cut"]:
        lines.append(f"{counted(counts['cut'], 'piece')} cut off lines longer than {LONGEST_LINE:,} characters")
    return lines


def texts(file: str, text_column: str, counts: Counter) -> Iterator[Document]:
    """Every row of a file with its text, "" where it has none; why it has none is among its problems."""
    for row in _text_rows(file, counts) if is_text(file) else read_rows(file):
        text, problems = _text(row, text_column)
        yield Document(text, row._replace(problems=row.problems + problems) if problems else row)


def _text(row: Row, text_column: str) -> tuple[str, list[Problem]]:
    """The text of a row, and why it has none."""
    value = row.value
    if isinstance(value, str) and is_text(row.path):
        return value, []
    if value is None and row.problems:
        return "", []
    found = f"keys {shorten(sorted(value))}" if isinstance(value, dict) else shorten(value)
    expected = f"a string under {text_column!r}, or the turns of a conversation"
    if not isinstance(value, dict):
        return "", [Problem("no text", found, expected)]
    text = value.get(text_column)
    if text is None and text_column not in value:
        key = next((key for key in TURNS if isinstance(value.get(key), list)), None)
        try:
            text = "\n\n".join(turn[TURNS[key]] for turn in value[key])
        except (TypeError, KeyError):
            return "", [Problem("no text", found if key is None else f"{shorten(value[key])} under {key!r}", expected)]
    if not isinstance(text, str):
        return "", [Problem("no text", f"{shorten(text)} under {text_column!r}", expected)]
    if (start := not_utf8(text)) is not None and not row.problems:
        found = f"{text[start]!r} (half a surrogate pair) as character {start + 1:,}"
        return text, [Problem("not Unicode", found, "whole characters")]
    return text, []


def _text_rows(path: str, counts: Counter) -> Iterator[Row]:
    """A text file as rows: one a line where lines are long, as in wiki dumps; otherwise pieces of 131,072 characters.

    Verse and code are running text: one document up to that size, cut at the end of a line.
    """
    window = Window(path)
    if window.encoding:
        yield Row(path, 1, 1, "", None, [Problem("wrong encoding", window.encoding, "UTF-8: save the file as UTF-8")])
        return
    while len(window.text) < HEAD and window.more():
        pass
    head = window.text[:HEAD]
    by_line = len(head) / (head.count("\n") + 1) > 500
    number = 0
    while window.position < len(window.text) or window.more():
        least = 0 if by_line else PIECE
        while (end := window.text.find("\n", window.position + least)) < 0:
            if len(window.text) - window.position > LONGEST_LINE or not window.more():
                break
        if end < 0:
            end = min(len(window.text), window.position + LONGEST_LINE)
            counts["cut"] += end < len(window.text)
        else:
            end += 1
        number += 1
        line, raw = window.line, window.text[window.position : end]
        window.move(end)
        problems = []
        if number == 1 and window.byte_order_mark:
            problems.append(Problem(BYTE_ORDER_MARK, "bytes EF BB BF at the start of the file", "UTF-8 without them"))
        if (start := not_utf8(raw)) is not None:
            place = f"line {line + raw.count(chr(10), 0, start):,}"
            found = f"the byte {ord(raw[start]) - 0xDC00:#x} on {place}"
            problems.append(Problem("not UTF-8", found, "UTF-8: save the file as UTF-8"))
        text = raw.replace("\r\n", "\n").replace("\r", "\n")
        yield Row(path, number, line, raw, text.rstrip("\n") if by_line else text, problems)
    if window.failure:
        yield Row(
            path, number + 1, window.line, "", None, [Problem("unreadable file", window.failure, "a whole file")]
        )
