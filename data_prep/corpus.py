"""Documents out of corpus files, one at a time: the memory used does not depend on the size of a file."""

from collections.abc import Iterator
from pathlib import Path

from data_prep.files import InputError, existing, read_json, read_jsonl


def read_documents(path: str | Path) -> Iterator[str]:
    """The documents in a file, by its ending.

    .jsonl  one object a line, its "text"
    .txt    one document a line where lines are long, as in wiki dumps; the whole file where they are verse or code
    .json   conversations in the Baichuan format, one document each: the turns, separated by blank lines

    Raises InputError for any other ending, a row without "text", and a file without any text.
    """
    path = existing(path)
    count = 0
    for text in _documents(path):
        if text.strip():
            count += 1
            yield text
    if not count:
        raise InputError(f"{path}: no text in it")


def _documents(path: Path) -> Iterator[str]:
    if path.suffix == ".jsonl":
        for number, row in enumerate(read_jsonl(path), start=1):
            if not isinstance(row.get("text"), str):
                raise InputError(f"{path}: row {number}: expected a string under 'text', found keys {sorted(row)}")
            yield row["text"]
    elif path.suffix == ".json":
        rows = read_json(path)
        if not isinstance(rows, list):
            raise InputError(f"{path}: expected a list of conversations, found {type(rows).__name__}")
        for number, row in enumerate(rows, start=1):
            try:
                yield "\n\n".join(turn["value"] for turn in row["conversations"])
            except (TypeError, KeyError):
                raise InputError(
                    f"{path}: row {number}: expected 'conversations' with 'value' in every turn"
                ) from None
    elif path.suffix == ".txt":
        yield from _text_documents(path)
    else:
        raise InputError(f"{path}: unknown ending; expected .jsonl, .json or .txt")


def _text_documents(path: Path) -> Iterator[str]:
    with path.open(encoding="utf-8") as file:
        try:
            head = file.read(1 << 20)
            lines = head.count("\n") + 1
            file.seek(0)
            if len(head) / lines > 500:  # a dump with one article a line
                for line in file:
                    yield line.rstrip("\n")
            else:  # running text: pieces of a megabyte, cut at line ends, so that memory stays bounded
                while lines := file.readlines(1 << 20):
                    yield "".join(lines)
        except UnicodeDecodeError as error:
            raise InputError(f"{path}: not UTF-8 (byte {error.start}); save the file as UTF-8") from None
