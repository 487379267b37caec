"""Validate files of conversations and preferences: what is in them, and what is wrong with them.

    python -m data_prep.check data/*.jsonl --tokenizer runs/quickstart/tokenizer --max_length 256
    python -m data_prep.check data/ --on_bad repair --output runs/mine/data

Takes every format that the recipes take (listed in readers/conversation_formats.py and preference_formats.py), and tells
conversations from preferences row by row. Text (.txt, or rows with --text_column alone) counts as documents, which are for
pretraining. Prints how many rows have which problem and where the first of them are, and counts turns, tokens, lengths and
languages. Without --output nothing is written. With it the folder holds, if there is anything to write into them,

    conversations.jsonl, preferences.jsonl, documents.jsonl   the rows that are kept, in one schema for each kind; a
                                      ranking with its counts, who drew and ranked the answers, and why
    report/quarantine.jsonl           the others, unchanged, with file, line and reasons; of a row that is too long to be
                                      read (33,554,432 characters) the beginning
    report/check.json, check.html     the report, as data and as a page

The folder can be given as data to any command: none reads report/. The exit code is 1 where no row is left.

--on_bad says what happens to a row that cannot be used. quarantine: it is quarantined. repair: it is repaired if no guess
is needed, otherwise quarantined. error: the command fails after the report. A human turn at the end is trimmed in any
case, as in the recipes. All else is a warning, and the row is kept: duplicates (quarantined with --drop_duplicates), an
answer equal to its prompt, control characters, special-token text, an id on two rows, opposite judgements of the same
answers, the only label of a prompt, and rows that are too long: what the recipes will do with these is said below. Rows
with images, audio or video cannot be used; other fields that no reader takes are counted.
"""

import argparse
import contextlib
import json
import sys
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
from tqdm.auto import tqdm

from data_prep.checking.clashes import Clashes, with_clashes
from data_prep.checking.context import Context
from data_prep.checking.report import balance, encodable, histogram, id_of, page, place_of, show
from data_prep.checking.rows import (
    DUPLICATES,
    REPAIRABLE,
    WARNINGS,
    Checked,
    Lengths,
    Size,
    as_written,
    checked_rows,
    content,
    is_kept,
    kind_of_columns,
    over_long,
    treatment,
    warnings_of,
)
from data_prep.common.batches import batched
from data_prep.common.errors import InputError, run_main
from data_prep.common.files import atomic_folder, atomic_write, vacant, write_json
from data_prep.common.numbers import check_at_least
from data_prep.common.reasoning import REASONING
from data_prep.corpus.languages import language, method
from data_prep.corpus.near_duplicates import Duplicate, near_duplicates
from data_prep.readers.unread import Tally
from data_prep.rows.bad_rows import ON_BAD, BadRows
from data_prep.rows.problems import Problem, Row, not_utf8
from data_prep.rows.read import data_files

SHOWN = 5  # examples of each kind of problem
TOKENIZED_AT_ONCE = 256  # rows
KINDS = ("conversations", "preferences", "documents")
REPORT = "report"  # the folder, below --output, of what is no data
PIPED = {"width": 1 << 16, "force_terminal": False, "no_color": True}  # of a console that is none: no line is wrapped
TOKENS = ("total", "learned", "masked", "truncated", "left_out")

Measured = tuple[Checked, Size | None]  # a row and its size; None: it cannot be used


class Findings:
    """What has been found so far: counts, the first rows of each kind of problem, and two numbers for every kept row."""

    def __init__(self, max_length: int | None, reasoning: str, finds_answers: bool = True) -> None:
        """`finds_answers`: see `Lengths`."""
        self.finds_answers = finds_answers
        self.tally = Tally(reasoning)
        self.files: dict[str, Counter] = {}
        self.kinds: dict[tuple[str, str], dict] = {}  # {(kind of problem, treatment of the row): {"rows", "first"}}
        self.rows = Counter({"in": 0, "out": 0, "quarantined": 0, "repaired": 0, "repairable": 0})
        self.roles: Counter = Counter()
        self.languages: Counter = Counter()
        self.documents = Counter({"count": 0, "characters": 0})
        self.tokens = Counter(dict.fromkeys(TOKENS, 0))
        self.changed: dict[str, Counter] = {}  # {how: {field: rows}}
        self.turns, self.context = bytearray(), Context(max_length)  # 4 bytes a row each

    def add(self, row: Row, kind: str, outcome: str, warnings: tuple[str, ...]) -> None:
        """Count a row, its problems and warnings, and its treatment. A kind of problem counts once per row."""
        first = {problem.kind: problem for problem in reversed(row.problems)}
        for name, problem in first.items():
            entry = self.kinds.setdefault((name, "kept" if name in warnings else outcome), {"rows": 0, "first": []})
            entry["rows"] += 1
            if len(entry["first"]) < SHOWN:
                said = {"found": encodable(problem.found), "expected": encodable(problem.expected)}
                where = {"file": row.path, "line": row.line, "row": row.number, "id": id_of(row.value)}
                entry["first"].append(where | said)
        quarantined = not is_kept(outcome)
        self.rows.update(
            {"in": 1, "out": not quarantined, "quarantined": quarantined, "repaired": outcome == "repaired"}
        )
        self.rows["repairable"] += quarantined and set(first) <= {*REPAIRABLE, *warnings}
        file = self.files.setdefault(row.path, Counter())
        file.update({"rows": 1, "quarantined" if quarantined else kind: 1})

    def measure(
        self,
        record: dict,
        size: Size,
        unread: tuple[str, ...],
        reasoning: int,
        changed: tuple[tuple[str, str], ...],
    ) -> None:
        """Count the turns, the size and the language of a row that is kept, and what is not read or changed of it."""
        self.tally.fields.update(unread)
        for way, field in changed:
            self.changed.setdefault(way, Counter())[field] += 1
        self.tally.turns += reasoning
        self.tally.lost += size.lost
        turns = record.get("messages", record.get("prompt", []))
        if "text" in record:
            self.documents.update({"count": 1, "characters": len(record["text"])})
        self.roles.update(message["role"] for message in turns)
        self.roles["assistant"] += len(record.get("completions", ()))
        if "messages" in record:
            self.turns += np.uint32(len(turns)).tobytes()
        kind = "documents" if "text" in record else "conversations" if "messages" in record else "preferences"
        self.context.add(kind, size)
        self.tokens.update({part: getattr(size, part) for part in TOKENS})
        self.languages[language(content(record))] += 1

    def report(self, arguments: argparse.Namespace) -> dict:
        """The content of check.json."""
        order = {"error": 0, "quarantined": 0, "repaired": 1, "kept": 2}
        kinds = sorted(self.kinds.items(), key=lambda each: (order[each[0][1]], -each[1]["rows"], each[0][0]))
        names = ("rows", *KINDS, "quarantined")
        tokens = dict(self.tokens) if self.finds_answers else {**self.tokens, "learned": None, "masked": None}
        tokenizer, max_length, lengths = arguments.tokenizer, arguments.max_length, self.context.all_lengths()
        return {
            "on_bad": arguments.on_bad,
            "files": [{"file": path, **{name: counts[name] for name in names}} for path, counts in self.files.items()],
            "rows": dict(self.rows),
            "findings": [{"kind": kind, "treatment": what, **entry} for (kind, what), entry in kinds],
            "documents": dict(self.documents),
            "turns": {"total": self.roles.total(), "by_role": dict(self.roles.most_common()), **summary(self.turns)},
            "tokens": {"tokenizer": tokenizer, "max_length": max_length, **tokens} if tokenizer else None,
            "lengths": {"unit": "tokens" if tokenizer else "characters", **summary(lengths, max_length or 0)},
            "context": self.context.report(),
            "languages": {"method": method(), "counts": dict(self.languages.most_common())},
            "fields_not_read": dict(self.tally.fields.most_common()),
            "fields_changed": {way: dict(fields.most_common()) for way, fields in self.changed.items()},
            "reasoning": {"policy": self.tally.reasoning, "turns": self.tally.turns, "left_out": self.tally.lost},
        }


def summary(numbers: bytearray, least_top: int = 0) -> dict:
    """Least, median, most and histogram of integers of 4 bytes each."""
    values = np.frombuffer(numbers, np.uint32)
    some = [int(values.min()), int(np.median(values)), int(values.max())] if len(values) else [0, 0, 0]
    return {**dict(zip(("least", "median", "most"), some, strict=True)), "histogram": histogram(values, least_top)}


def duplicate_problem(duplicate: Duplicate, kind: str, original: str) -> Problem:
    noun = kind.removesuffix("s")
    if duplicate.identical or duplicate.copy_of is not None:
        return Problem(f"duplicate {noun}", f"the turns of {original} again", "each once")
    found = f"{duplicate.similarity:.0%} of its runs of words in common with {original}"
    return Problem(f"near-duplicate {noun}", found, "each once")


def named_original(duplicate: Duplicate) -> int:
    """The position of the earlier row to name beside a duplicate: one with the same text, if there is one."""
    return duplicate.original if duplicate.copy_of is None else duplicate.copy_of


def measured(rows: Iterable[Checked], on_bad: str, lengths: Lengths) -> Iterator[Measured]:
    """All rows, each with its size, or None if it cannot be used."""
    for batch in batched(rows, TOKENIZED_AT_ONCE):
        usable = [is_kept(treatment(checked.row.problems, on_bad)) for checked in batch]
        sizes = iter(lengths.measure_all([checked.record for checked, use in zip(batch, usable, strict=True) if use]))
        for checked, use in zip(batch, usable, strict=True):
            yield checked, next(sizes) if use else None


def with_warnings(rows: Iterable[Measured], lengths: Lengths) -> Iterator[Measured]:
    """The rows; the problems of a usable row now include its warnings."""
    for checked, size in rows:
        if size:
            strange = warnings_of(checked.record, lengths.special_text)
            if checked.kind == "documents":  # of any length: they are packed
                yield checked.with_found(strange), size
                continue
            checked = checked.with_found(strange + over_long(checked.record, size.length, lengths.max_length))
        yield checked, size


def with_duplicates(rows: Iterable[Measured], duplicates: dict[int, Duplicate]) -> Iterator[Measured]:
    """The rows; a duplicate gets a problem that says where its original is.

    Args:
        duplicates: {position among the usable rows: Duplicate}; an original precedes its duplicates.
    """
    named = {position: named_original(duplicate) for position, duplicate in duplicates.items()}
    places = dict.fromkeys(named.values(), "")
    position = 0
    for checked, size in rows:
        if size:
            if position in places:
                places[position] = place_of(checked.row)
            if duplicate := duplicates.get(position):
                problem = duplicate_problem(duplicate, checked.kind, places[named[position]])
                checked = checked.with_found([problem])
            position += 1
        yield checked, size


def examine(
    files: list[str], arguments: argparse.Namespace, lengths: Lengths, folder: Path
) -> tuple[Findings, BadRows]:
    """Read all rows and count what is found. With --output, write the rows that are kept into `folder`.

    The files are read once or twice to find duplicates, then once more for the report.
    """
    on_bad = arguments.on_bad
    warnings = tuple(kind for kind in WARNINGS if not (arguments.drop_duplicates and kind in DUPLICATES))

    def rows(doing: str, counts: Counter | None = None) -> Iterator[Checked]:
        return tqdm(
            checked_rows(
                files,
                arguments.columns,
                lengths.roles,
                arguments.reasoning,
                arguments.text_column,
                lengths.refused,
                counts,
            ),
            desc=doing,
            unit=" rows",
            leave=False,
            mininterval=1,
            disable=None,
        )

    readings: list[Clashes] = []

    def texts() -> Iterator[str]:
        readings.append(Clashes((kind_of_columns(arguments.columns)[1] or {}).get("id", "id")))
        for each in rows("looking for duplicates"):
            if is_kept(treatment(each.row.problems, on_bad)):
                readings[-1].add(each)
                yield content(each.record)

    duplicates = near_duplicates(texts, arguments.similarity)
    clashes = readings[0].earlier()
    # Under repair, too, rows that cannot be repaired are quarantined: the command reports on all rows.
    bad_rows = BadRows("error" if on_bad == "error" else "quarantine", folder / REPORT / "quarantine.jsonl")
    findings = Findings(arguments.max_length, arguments.reasoning, lengths.finds_answers)
    with contextlib.ExitStack() as stack:
        outputs: dict = {}  # {kind: file}, opened for the first row
        counts: Counter = Counter()
        checked = with_warnings(measured(rows("checking", counts), on_bad, lengths), lengths)
        for (row, kind, record, *beside), size in with_clashes(with_duplicates(checked, duplicates), clashes):
            outcome = treatment(row.problems, on_bad, warnings)
            findings.add(row, kind, outcome, warnings)
            reasons = [] if is_kept(outcome) else [each for each in row.problems if each.kind not in warnings]
            if bad_rows.accept(row._replace(problems=reasons), REPAIRABLE):
                findings.measure(record, size, *beside)
                if arguments.output:
                    if kind not in outputs:
                        outputs[kind] = stack.enter_context(atomic_write(folder / f"{kind}.jsonl"))
                    written = as_written(record)
                    line = json.dumps(written, ensure_ascii=False)
                    # In ASCII if a note on a ranking has half a surrogate pair, which UTF-8 cannot encode.
                    outputs[kind].write((line if not_utf8(line) is None else json.dumps(written)) + "\n")
    findings.documents.update({"separated": counts["separated"]} if counts["separated"] else {})
    return findings, bad_rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+", help="files, folders, globs or hf://owner/name:config:split")
    parser.add_argument(
        "--tokenizer", help="folder of a tokenizer with a chat template (default: count characters, not tokens)"
    )
    parser.add_argument("--max_length", type=int, help="context length in tokens (default: any length is fine)")
    parser.add_argument(
        "--on_bad", choices=ON_BAD, default="quarantine", help="what to do with bad rows (default: quarantine)"
    )
    parser.add_argument(
        "--columns",
        help="field=column,… such as messages=dialogue or prompt=question,chosen=good,rejected=bad "
        "(default: recognise the format of each row)",
    )
    parser.add_argument("--text_column", default="text", help="column with the text of documents (default: text)")
    parser.add_argument(
        "--similarity",
        type=float,
        default=0.8,
        help="least Jaccard similarity of near-duplicates; 1: only identical rows (default: 0.8)",
    )
    parser.add_argument("--drop_duplicates", action="store_true", help="quarantine duplicates and near-duplicates")
    parser.add_argument(
        "--reasoning",
        choices=REASONING,
        default="keep",
        help="an assistant's <think>…</think> or reasoning_content: in the tokens and the loss, in neither, or masked: in the "
        "tokens alone (default: keep)",
    )
    parser.add_argument(
        "--output", type=Path, help="folder to write rows, quarantine and report to (default: write nothing)"
    )
    arguments = parser.parse_args()
    check_at_least(1, arguments, "max_length")
    if not 0 < arguments.similarity <= 1:
        raise InputError(f"--similarity {arguments.similarity}: expected a number above 0 and up to 1")
    if arguments.drop_duplicates and arguments.on_bad == "error":
        raise InputError("--drop_duplicates quarantines rows: give --on_bad quarantine or repair with it")
    kind_of_columns(arguments.columns)  # raises before any work
    files = data_files(arguments.files, plain_text=True)
    if arguments.output:
        vacant(arguments.output)
    lengths = Lengths(arguments.tokenizer, arguments.max_length, arguments.reasoning)

    from rich.console import Console  # slow to import

    with atomic_folder(arguments.output) if arguments.output else tempfile.TemporaryDirectory() as folder:
        findings, bad_rows = examine(files, arguments, lengths, Path(folder))
        report = findings.report(arguments)
        show(report, Console(highlight=False, emoji=False, markup=False, **PIPED if not sys.stdout.isatty() else {}))
        bad_rows.close()
        if (bad_rows.rows_in, bad_rows.rows_out) != (report["rows"]["in"], report["rows"]["out"]):
            raise RuntimeError(f"{report['rows']} in the report, {bad_rows.counts_line()}")
        if arguments.output:
            write_json(Path(folder) / REPORT / "check.json", report)
            with atomic_write(Path(folder) / REPORT / "check.html") as file:
                file.write(page(report))
    written = f"they are in {arguments.output}" if arguments.output else "nothing was written: --output FOLDER does"
    print(f"{balance(report)}; {written}" + ("" if report["rows"]["out"] else "; no row is left: exit code 1"))
    if not report["rows"]["out"]:
        sys.exit(1)


if __name__ == "__main__":
    run_main(main)
