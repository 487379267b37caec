"""Rows out of any file: which files a path stands for, and the rows in them with what is wrong with each.

All readers (conversations, preferences, documents) start from these rows. They come from JSON lists, JSON Lines, CSV,
plain text and Parquet; each of these but Parquet also as .gz, .xz or .zst; folders of them; and datasets on the Hub.
"""

import glob
import itertools
import json
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

from data_prep.common.errors import InputError
from data_prep.common.files import existing, regular_file
from data_prep.common.text import counted, printable, shorten
from data_prep.documents.endings import READ_BY, ending
from data_prep.rows.csv_rows import csv_rows, delimiter_of
from data_prep.rows.json_rows import json_rows, rest
from data_prep.rows.problems import BYTE_ORDER_MARK, NOT_UNICODE, NOT_UTF8, REPAIRED_BY_READING, Problem, Row, not_utf8
from data_prep.rows.text_rows import text_rows
from data_prep.rows.text_window import COMPRESSED, Window

ENDINGS = (".json", ".jsonl", ".csv", ".parquet")
COMPRESSIBLE = (".txt", ".json", ".jsonl", ".csv")
HUB = "hf://"
REPORT = {"check.json", "check.html"}  # what makes a folder a report of data_prep.check
QUARANTINE = re.compile(r"(?:(?:^|/)quarantine(?:_[^/]*)?|\.quarantine)\.jsonl$")
HELD_OUT = re.compile(r"(?:^|[_-])held[_-]?out(?:[_.-]|$)", re.I)  # documents_heldout.jsonl, held-out.json, heldout/
# The names by which public data sets tell their splits apart: train-00000-of-00001.parquet, test_sft.jsonl, validation/.
TRAINED_ON = re.compile(r"train(?=[-_.]|$)", re.I)
MEASURED_ON = re.compile(r"(?:test|val|valid|validation|dev|eval)(?=[-_.]|$)", re.I)
SHOWN = 10  # endings of files that are not read
QUARANTINED = b'{"file": '  # the beginning of a row there (see rows/bad_rows.py)
# How a report begins that clean_corpus, clean_cluster or read_documents wrote beside its documents, and an index of shards.
OWN_BEGINNINGS = {"report.json": rb'\{\s*"(?:documents_in|files)": \d', "index.json": rb'\{\s*"dtype": "'}
# How files begin that hold no rows but describe those beside them: the Hub's, save_to_disk's and LLaMA-Factory's.
DESCRIPTIONS = {
    "dataset_infos.json": rb'\{\s*"[^"]*":\s*\{',
    "dataset_info.json": rb'\{\s*"(?:[^"]*":\s*\{|(?:builder_name|citation|config_name|dataset_name|dataset_size|description)")',
    "dataset_dict.json": rb'\{\s*"splits":\s*\[',
    "state.json": rb'\{\s*"_data_files":\s*\[',
}
POINTER = b"version https://git-lfs.github.com/spec/v1"
BESIDE_REPORT = "report.txt"  # clean_corpus writes its report.json as text, too


def kind_of_file(path: str | Path) -> str:
    """The ending that says how a file is read, such as ".json", without that of a compression; "" if there is none."""
    suffixes = [suffix.lower() for suffix in Path(path).suffixes]
    if suffixes and suffixes[-1] in COMPRESSED:
        return suffixes[-2] if len(suffixes) > 1 and suffixes[-2] in COMPRESSIBLE else ""
    return suffixes[-1] if suffixes else ""


def is_text(path: str | Path) -> bool:
    """Whether the name is that of plain text: .txt, or .txt.gz and the like."""
    return kind_of_file(path) == ".txt"


def is_glob(path: str) -> bool:
    return any(character in path for character in "*?[") and not os.path.exists(path)


def data_files(
    paths: str | Path | Iterable[str | Path], plain_text: bool = False, endings: tuple[str, ...] = ()
) -> list[str]:
    """The files that `paths` stand for: files as given; for folders and globs the readable files in them, sorted.

    Datasets on the Hub ("hf://owner/name", "hf://owner/name:config:split") are kept as they are. With `plain_text` .txt
    files are readable too, with `endings` files that end in these and no others. In a folder these are no data: names that
    begin with a dot, and what commands of data_prep leave beside data, by name and content (quarantined rows, reports, the
    index of shards), as well as the Hub's descriptions of data (dataset_infos.json), which are counted and named on the screen;
    the other files that are not readable are counted, by ending. A glob gives what the shell gives for it: files as if
    named, and of a folder that it matches what is in it. CSV whose cells are not parted by commas is named on the screen.

    Raises InputError for a path that names nothing, for a file of an unknown kind, for what cannot be read (a pipe, a device,
    a link to nothing, a file or folder without permission, a pointer of Git LFS), and for a folder or glob in which some
    files are held out, or a split to measure on beside one to train on, by their names or those of folders in it: which of
    them is meant, only a name can say.
    """
    documents = bool(endings)
    endings = endings or ((".txt", *ENDINGS) if plain_text else ENDINGS)
    listed = [paths] if isinstance(paths, str | Path) else list(paths)
    if not listed:
        raise InputError("no data file given: name at least one")
    files: list[str] = []
    for path in map(str, listed):
        if path.startswith(HUB):
            files.append(path)
            continue
        if is_glob(path):
            found, own = _files_of_glob(path)
        elif os.path.isdir(path):
            found, own = _files_below(path)
        else:
            known = kind_of_file(path) in endings
            if known or not Path(path).suffix:
                existing(path)
            if not known:
                compressed = "" if documents else f" or, compressed, such as .jsonl.gz ({', '.join(COMPRESSED)})"
                advice = "" if documents else _advice([path], plain_text)
                raise InputError(
                    f"{path}: found the ending {Path(path).suffix!r}; expected {', '.join(endings)}{compressed}"
                    + (advice and f"; {advice}")
                )
            files.append(path)
            continue
        for line in _left_out(own):
            print(f"{printable(path)}: {line}")
        readable = [file for file in found if kind_of_file(file) in endings]
        if not readable:
            advice = "" if documents else _advice(found, plain_text)
            raise InputError(
                f"{path}: found no file that ends in {', '.join(endings)} there; expected at least one"
                + (advice and f"; {advice}")
            )
        if skipped := sorted({*found} - {*readable}):
            print(f"{printable(path)}: {_not_read(skipped)}")
            if not documents and (advice := _advice(skipped, plain_text)):
                print(f"{printable(path)}: {advice}")
        _check_parts(path, readable, documents)
        files += readable
    if strange := next((file for file in files if not_utf8(file) is not None), None):
        raise InputError(f"{strange!r}: the name is not UTF-8; rename the file")
    for file in files:
        if not file.startswith(HUB):
            regular_file(file)
    local = [] if documents else [file for file in files if not file.startswith(HUB)]
    if pointers := [file for file in local if _beginning(file, len(POINTER)) == POINTER]:
        more = f" and {counted(len(pointers) - 1, 'file')} more" if pointers[1:] else ""
        raise InputError(
            f"{pointers[0]}{more}: found a pointer of Git LFS, not the data; run in that folder: git lfs pull"
        )
    for delimiter, name in ((";", "semicolons"), ("\t", "tabs")):
        if found := [file for file in files if _delimiter(file) == delimiter]:
            print(f"{printable(names_of(found))}: read as cells parted by {name}, as the names of the columns are")
    return files


def _delimiter(path: str) -> str:
    """What parts the cells of a CSV file; "" for any other file."""
    if path.startswith(HUB) or kind_of_file(path) != ".csv":
        return ""
    window = Window(path)
    return "" if window.encoding else delimiter_of(window)


def _check_parts(path: str, files: list[str], documents: bool) -> None:
    """Raise InputError where some files of a folder or glob are held out and others are not, and where splits to train on
    and to measure on are among them.

    A page about held-out data may have such a name: of `documents` only a folder tells that they are.
    """
    folder = os.path.dirname(re.split(r"[*?[]", path)[0]) if is_glob(path) else path
    names = {file: Path(os.path.relpath(file, folder or ".")).parts for file in files}
    parts = {file: own[:-1] if documents else own for file, own in names.items()}
    held_out = [file for file, own in parts.items() if any(map(HELD_OUT.search, own))]
    if others := sorted({*files} - {*held_out}) if held_out else []:
        raise _read_together(path, held_out, "held out", others, others[0])
    measured_on = [] if documents else [file for file, own in parts.items() if any(map(MEASURED_ON.match, own))]
    others = sorted({*files} - {*measured_on}) if measured_on else []
    if trained_on := [file for file in others if any(map(TRAINED_ON.match, parts[file]))]:
        first = parts[trained_on[0]]
        place = next(place for place, part in enumerate(first) if TRAINED_ON.match(part))
        split = os.path.join(folder, *first[: place + 1])
        if place + 1 == len(first):  # the file, one of several perhaps
            split = f"{os.path.join(folder, *first[:place])}/{first[place][: len('train')]}*"
        raise _read_together(path, measured_on, "a split to measure on", trained_on, split)


def _read_together(path: str, apart: list[str], how: str, others: list[str], one: str) -> InputError:
    return InputError(
        f"{path}: found {printable(names_of(apart))}, {how} by name, beside {printable(names_of(others))}: read "
        f"together, evaluations would see what was trained on; expected one or the other, by its name: {one}, say"
    )


def _not_read(files: list[str]) -> str:
    """Files by their endings: "3 files not read: .md (2), .docx (1)"."""
    endings: Counter = Counter()
    for file in files:
        *before, last = ("", *(suffix.lower() for suffix in Path(file).suffixes))
        endings["".join([*before[-1:], last]) if last in COMPRESSED else last] += 1
    listed = sorted(endings.items(), key=lambda each: (-each[1], each[0]))
    more = f", and {len(listed) - SHOWN:,} more" if len(listed) > SHOWN else ""
    named = ", ".join(f"{printable(ending) or 'without an ending'} ({count:,})" for ending, count in listed[:SHOWN])
    return f"{counted(len(files), 'file')} not read: {named}{more}"


def _advice(files: list[str], plain_text: bool) -> str:
    """What makes documents or rows of files that are neither; "" where none is of such a kind."""
    kinds = [each for each in READ_BY if any(ending(file) == each for file in files)] if plain_text else []
    said = [f"python -m data_prep.read_documents makes documents of {', '.join(kinds)}"] if kinds else []
    if arrow := next((file for file in files if kind_of_file(file) == ".arrow"), None):
        said.append(
            f"in Python datasets.load_from_disk({str(Path(arrow).parent)!r}).to_parquet(…) makes Parquet of .arrow"
        )
    return "; ".join(said)


def _left_out(files: list[str]) -> list[str]:
    """Files by their names: "2 files left out that data_prep wrote beside the data: report.json, report.txt"."""
    described = [file for file in files if Path(file).name in DESCRIPTIONS]
    written = [file for file in files if Path(file).name not in DESCRIPTIONS]
    lines = []
    for left, what in ((written, "that data_prep wrote beside the data"), (described, "as descriptions of the data")):
        names = list(dict.fromkeys(printable(Path(file).name) for file in left))
        more = f", and {len(names) - SHOWN:,} more names" if len(names) > SHOWN else ""
        lines += [f"{counted(len(left), 'file')} left out {what}: {', '.join(names[:SHOWN])}{more}"] * bool(left)
    return lines


def _files_of_glob(pattern: str) -> tuple[list[str], list[str]]:
    """What `_files_below` gives for the folders that a pattern matches, and the files that it matches, once each."""
    matched = glob.glob(pattern, recursive=True)
    found, own = {path for path in matched if not os.path.isdir(path)}, set()
    for folder in (path for path in matched if os.path.isdir(path)):
        files, ours = _files_below(folder)
        found.update(files)
        own.update(ours)
    normal = {os.path.normpath(path): path for path in sorted(found)}
    return sorted(normal.values()), sorted(file for file in own if os.path.normpath(file) not in normal)


def _files_below(folder: str) -> tuple[list[str], list[str]]:
    """(files in a folder and the folders in it, those beside data that hold no rows (see `_is_own`)), each sorted.

    Links are followed, and no folder is read twice.
    """

    def refuse(error: OSError) -> None:
        raise InputError(f"{error.filename}: cannot be read ({error.strerror})")

    found, own, seen = [], [], set()
    for parent, folders, names in os.walk(folder, onerror=refuse, followlinks=True):
        real = os.path.realpath(parent)
        if real in seen or (set(names) >= REPORT and seen):
            own += [str(Path(parent, name)) for name in names if real not in seen]
            folders.clear()
            continue
        seen.add(real)
        folders[:] = [name for name in folders if not name.startswith(".")]
        found += [str(Path(parent, name)) for name in names if not name.startswith(".")]
    own += [file for file in found if _is_own(file)]
    return sorted({*found} - {*own}), sorted(own)


def _is_own(path: str) -> bool:
    """Whether a file beside the data holds no rows to read: rows that a command quarantined, its report, or a description of
    the data, by its name and by how it begins."""
    name = os.path.basename(path)
    if name == BESIDE_REPORT:
        path, name = str(Path(path).with_name("report.json")), "report.json"
        if not os.path.isfile(path):
            return False
    if beginning := OWN_BEGINNINGS.get(name) or DESCRIPTIONS.get(name):
        return bool(re.match(beginning, _beginning(path, 256)))
    return bool(QUARANTINE.search(path)) and _beginning(path, len(QUARANTINED)) == QUARANTINED


def _beginning(path: str, size: int) -> bytes:
    with regular_file(path).open("rb") as file:
        return file.read(size)


def names_of(files: list[str]) -> str:
    """The names of the first files, for a message: "a.json, b.json, c.json and 2 files more"."""
    more = f" and {counted(len(files) - 3, 'file')} more" if len(files) > 3 else ""
    return ", ".join(Path(file).name for file in files[:3]) + more


def rows_of(files: Iterable[str], counts: Counter | None = None) -> Iterator[Row]:
    """The rows of files (see `data_files`), one at a time. An empty file gives one row with the problem "empty file".
    `counts` is that of `read_rows`."""
    for path in files:
        rows = read_rows(path, counts)
        empty = Row(path, 1, 1, "", None, [Problem("empty file", "no row", "at least one row")])
        yield from itertools.chain([next(rows, empty)], rows)


def identify(row: Row, column: str = "id") -> tuple[str, Row]:
    """(id, row): the row's own id, or "<file name>:<row number>". An id with half a surrogate pair is a problem of the row."""
    value = row.value.get(column) if isinstance(row.value, dict) else None
    identifier = f"{Path(row.path).name}:{row.number}" if value is None else str(value)
    if not_utf8(identifier) is not None:
        row = row.with_found([Problem(NOT_UNICODE, f"{identifier!r} under {column!r}", "complete characters")])
    return identifier, row


def read_rows(path: str | Path, counts: Counter | None = None) -> Iterator[Row]:
    """The rows of one file (see `data_files`), one at a time: the memory used does not grow with the file.

    Every byte of a text file is in exactly one row, or between two; but of a row that is too long (`json_rows.LIMIT`) only
    the beginning is kept. Nothing in a file raises: what is wrong with a row is in its problems. Raises InputError for a
    dataset on the Hub that cannot be read.

    Args:
        counts: gets "cut", the pieces cut off overlong lines of plain text, and "separated" (see `text_rows`).
    """
    path = str(path)
    if path.startswith(HUB):
        yield from _hub_rows(path)
    elif kind_of_file(path) == ".parquet":
        yield from _parquet_rows(path)
    else:
        yield from _window_rows(path, Counter() if counts is None else counts)


def _window_rows(path: str, counts: Counter) -> Iterator[Row]:
    """The rows of a file that is text, and the problems that any such file may have: its encoding, a cut archive."""
    window = Window(path)
    kind = kind_of_file(path)
    if window.encoding:
        problem = Problem("wrong encoding", window.encoding, "UTF-8: save the file as UTF-8")
        parsed = rest(window, problem)
    elif kind == ".txt":
        parsed = text_rows(window, counts)
    elif kind == ".csv":
        parsed = csv_rows(window)
    else:
        parsed = json_rows(window, lines=kind == ".jsonl")
    number = 0
    for number, (line, raw, value, problems) in enumerate(parsed, start=1):
        if (start := not_utf8(raw)) is not None and not window.encoding:
            place = f"on line {line + raw.count(chr(10), 0, start):,} (character {start + 1:,} of the row)"
            found = f"the byte {ord(raw[start]) - 0xDC00:#x} {place}"
            problems = [*problems, Problem(NOT_UTF8, found, "UTF-8: save the file as UTF-8")]
        if number == 1 and window.byte_order_mark:
            problem = Problem(BYTE_ORDER_MARK, "bytes EF BB BF at the start of the file", "UTF-8 without them")
            problems = [problem, *problems]
        if value is None and problems and all(problem.kind in REPAIRED_BY_READING for problem in problems):
            # The row is "null": without a problem that cannot be repaired it would pass for a row that was not parsed.
            problems = [*problems, Problem("not an object", "null", "a row: { ... }")]
        yield Row(path, number, line, raw, value, problems)
    if window.failure:
        problem = Problem("unreadable file", window.failure, "a complete file")
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
        problem = Problem("unreadable file", f"{shorten(str(error))}", "a complete Parquet file")
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
    """The rows of "hf://owner/name[:config[:split]]"; the default split is "train"."""
    from datasets import load_dataset  # slow to import

    name, config, split = [*path.removeprefix(HUB).split(":"), "", ""][:3]
    if not name.strip("/"):
        raise InputError(f"{path}: found no name of a data set; expected hf://owner/name[:configuration[:split]]")
    shown = "/".join((name, config or "default", split or "train"))
    try:
        dataset = load_dataset(name, config or None, split=split or "train", streaming=True)
        for number, value in enumerate(dataset, start=1):
            yield Row(shown, number, None, _as_json(value), value, [])
    except (OSError, ValueError, RuntimeError) as error:  # no network, or no such dataset, configuration or split
        first = (str(error).splitlines() or [type(error).__name__])[0]
        raise InputError(
            f"{path}: cannot be read from the Hub ({first}); expected hf://owner/name, or with several configurations or "
            "splits hf://owner/name:configuration:split"
        ) from None
