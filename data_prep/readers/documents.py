"""Documents from corpus files, one at a time: the memory used does not grow with a file.

Reads plain text, and all files that rows/read.py reads. A row is a document if it has text under `text_column`. So is a
conversation in the Baichuan or the OpenAI format, as its turns separated by blank lines.
"""

from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from data_prep.common.errors import InputError
from data_prep.common.text import counted, shorten
from data_prep.readers.conversation_formats import is_conversation
from data_prep.rows.bad_rows import BadRows
from data_prep.rows.problems import NOT_UNICODE, REPAIRED_BY_READING, Problem, Row, not_utf8
from data_prep.rows.read import HUB, data_files, is_text, read_rows
from data_prep.rows.text_rows import LONGEST_LINE, SEPARATOR

TURNS = {"conversations": "value", "messages": "content"}


class Document(NamedTuple):
    """A text and the row that it comes from."""

    text: str
    row: Row


def stamps(files: list[str]) -> list[list]:
    """[name, size, time of change] of each file, [name, None, None] on the Hub: a resumed run compares them."""
    stats = [None if file.startswith(HUB) else Path(file).stat() for file in files]
    return [[file, stat and stat.st_size, stat and stat.st_mtime_ns] for file, stat in zip(files, stats, strict=True)]


def read_documents(paths: str | Path | Iterable[str | Path], **options) -> Iterator[str]:
    """The texts of `documents`; takes the same arguments."""
    return (document.text for document in documents(paths, **options))


def documents(
    paths: str | Path | Iterable[str | Path],
    text_column: str = "text",
    bad_rows: BadRows | None = None,
    counts: Counter | None = None,
    fields: tuple[str, ...] = (),
) -> Iterator[Document]:
    """The documents of all files, in order. Documents without text are left out and counted.

    If bad rows are errors, no document follows the first of them; its file is read to the end, so that the error names all
    bad rows in it. `bad_rows` is closed after the last document.

    Args:
        bad_rows: what to do with bad rows (default: they are errors).
        counts: gets "documents", "empty" (left out because they have no text), "separated" (that end at a line of
            <|endoftext|>) and "cut" (pieces cut off lines longer than 16 million characters).
        fields: other columns that the caller writes down: half a surrogate pair in them is a problem of the row.

    Raises InputError for bad rows, an unknown ending, and files without any text.
    """
    bad_rows, counts = bad_rows or BadRows("error"), Counter() if counts is None else counts
    files = data_files(paths, plain_text=True)
    for file in files:
        failed = False
        for text, row in texts(file, text_column, counts):
            row = row.with_found(_not_unicode(row, fields))
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
        quarantined = f" ({counted(bad_rows.quarantined, 'row')} quarantined)" if bad_rows.quarantined else ""
        message = f"{', '.join(files[:3])}{', ...' * (len(files) > 3)}: no text in it{quarantined}"
        raise InputError("\n".join([message, *bad_rows.reasons()]))


def reading_counts(bad_rows: BadRows, counts: Counter) -> list[str]:
    """What was repaired, quarantined, separated, left out and cut in reading, a line each."""
    lines = [f"{counted(count, 'row')} repaired: {kind}" for kind, count in bad_rows.repaired.items()]
    if bad_rows.quarantined:
        lines.append(
            f"{counted(bad_rows.rows_in, 'row')} in = {bad_rows.rows_out:,} out + {bad_rows.quarantined:,} quarantined"
        )
    lines += separated_lines(counts["separated"])
    if counts["empty"]:
        lines.append(f"{counted(counts['empty'], 'document')} without text left out")
    if counts["cut"]:
        lines.append(f"{counted(counts['cut'], 'piece')} cut off lines longer than {LONGEST_LINE:,} characters")
    return lines


def separated_lines(number: int) -> list[str]:
    """What to say of so many documents that end at a line of `SEPARATOR`."""
    return [f"a line of {SEPARATOR} alone ends a document: {counted(number, 'document')}"] * bool(number)


def texts(file: str, text_column: str, counts: Counter) -> Iterator[Document]:
    """Every row of a file with its text; "" if it has none, with the reason among its problems."""
    for row in read_rows(file, counts):
        text, problems = _text(row, text_column)
        yield Document(text, row._replace(problems=row.problems + problems) if problems else row)


def _not_unicode(row: Row, fields: tuple[str, ...]) -> list[Problem]:
    """What is wrong with the texts under `fields` of a row."""
    values = {name: row.value.get(name) for name in fields} if isinstance(row.value, dict) else {}
    bad = {name: value for name, value in values.items() if isinstance(value, str) and not_utf8(value) is not None}
    return [
        Problem(NOT_UNICODE, f"{shorten(value)} under {name!r}", "complete characters") for name, value in bad.items()
    ]


def _text(row: Row, text_column: str) -> tuple[str, list[Problem]]:
    """The text of a row, and what is wrong with it; "" if it has none."""
    value = row.value
    if isinstance(value, str) and is_text(row.path):
        return value, []
    if value is None and row.problems:
        return "", []
    found = f"keys {shorten(sorted(value), 300)}" if isinstance(value, dict) else shorten(value)
    expected = f"a string under {text_column!r}, or the turns of a conversation"
    if isinstance(value, dict) and text_column not in value:
        expected += (
            "; text under another name: --text_column COLUMN, as of clean_corpus, or text_column: COLUMN in the "
        )
        expected += "YAML of mix_corpus"
    if isinstance(value, dict) and text_column not in value and is_conversation(value):
        expected += "; python -m data_prep.hold_out --as_text makes documents of conversations of any format"
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
        return text, [Problem(NOT_UNICODE, found, "complete characters")]
    return text, []
