"""The data doctor: what is in files of conversations and preferences, and what is wrong with them.

    python -m data_prep.check data/*.jsonl --tokenizer runs/quickstart/tokenizer --max_length 256
    python -m data_prep.check data/ --on_bad repair --output runs/mine/data

Takes everything that the recipes take (see conversation_formats.py and preference_formats.py), conversations and
preferences recognised row by row. Prints how many rows have which defect and where the first of them are, turns,
tokens, lengths and languages. Without --output nothing is written; with it the folder has

    conversations.jsonl, preferences.jsonl   the rows that go on, in the one schema of each
    quarantine.jsonl                         the others, if any, untouched, with file, line and reasons
    check.json, check.html                   the report, as data and as a page

What makes a row unusable is set aside (--on_bad quarantine), mended where that is certain and set aside elsewhere
(repair), or ends in an error after the report (error). A human turn at the end is trimmed under each of them, as the
recipes do. The rest is a warning, and the row is kept: duplicates (--drop_duplicates sets them aside), an answer equal to
its prompt, control characters, special-token text, and what is too long.
"""

import argparse
import contextlib
import json
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
from tqdm.auto import tqdm

from data_prep.checking.report import balance, histogram, page, place, show
from data_prep.checking.rows import (
    DUPLICATES,
    MENDED,
    WARNINGS,
    Checked,
    Lengths,
    Size,
    as_written,
    checked_rows,
    content,
    goes_on,
    kind_of_columns,
    over_long,
    treatment,
    warnings_of,
)
from data_prep.common.batches import batched
from data_prep.common.errors import InputError, run_main
from data_prep.common.files import atomic_folder, atomic_write, vacant, write_json
from data_prep.corpus.languages import language, method
from data_prep.corpus.near_duplicates import Duplicate, near_duplicates
from data_prep.rows.bad_rows import ON_BAD, BadRows
from data_prep.rows.problems import Problem, Row
from data_prep.rows.read import data_files

SHOWN = 5  # examples of each kind of finding
BATCH = 256  # rows tokenized at once
KINDS = ("conversations", "preferences")
TOKENS = ("total", "learned", "masked", "cut")


class Findings:
    """What has been seen so far: counts, the first rows of each kind, and two numbers for every row that goes on."""

    def __init__(self) -> None:
        self.files: dict[str, Counter] = {}
        self.kinds: dict[tuple[str, str], dict] = {}  # {(kind, what becomes of the row): {"rows", "first"}}
        self.rows = Counter({"in": 0, "out": 0, "quarantined": 0, "repaired": 0, "repairable": 0})
        self.roles: Counter = Counter()
        self.languages: Counter = Counter()
        self.tokens = Counter(dict.fromkeys(TOKENS, 0))
        self.turns, self.lengths = bytearray(), bytearray()  # 4 bytes a row

    def add(self, row: Row, kind: str, problems: list[Problem], outcome: str, warnings: tuple[str, ...]) -> None:
        """Enter a row with all that was found, and what became of it; a kind of problem counts once per row."""
        first = {problem.kind: problem for problem in reversed(problems)}
        for name, problem in first.items():
            entry = self.kinds.setdefault((name, "kept" if name in warnings else outcome), {"rows": 0, "first": []})
            entry["rows"] += 1
            if len(entry["first"]) < SHOWN:
                said = {"found": readable(problem.found), "expected": readable(problem.expected)}
                entry["first"].append({"file": row.path, "line": row.line, "row": row.number, **said})
        aside = not goes_on(outcome)
        repairable = aside and set(first) <= {*MENDED, *warnings}
        self.rows.update({"in": 1, "out": not aside, "quarantined": aside, "repaired": outcome == "repaired"})
        self.rows["repairable"] += repairable
        file = self.files.setdefault(row.path, Counter())
        file.update({"rows": 1, "quarantined": aside, kind: 1})

    def measure(self, record: dict, size: Size) -> None:
        """Enter the turns, the size and the language of a row that goes on."""
        turns = record.get("messages", record.get("prompt"))
        self.roles.update(message["role"] for message in turns)
        self.roles["assistant"] += len(record.get("completions", ()))
        if "messages" in record:
            self.turns += np.uint32(len(turns)).tobytes()
        self.lengths += np.uint32(size.length).tobytes()
        self.tokens.update({part: getattr(size, part) for part in TOKENS})
        self.languages[language(content(record))] += 1

    def report(self, arguments: argparse.Namespace) -> dict:
        """All of it, as check.json has it."""
        order = {"error": 0, "quarantined": 0, "repaired": 1, "kept": 2}
        kinds = sorted(self.kinds.items(), key=lambda each: (order[each[0][1]], -each[1]["rows"], each[0][0]))
        names = ("rows", *KINDS, "quarantined")
        tokenizer, max_length = arguments.tokenizer, arguments.max_length
        return {
            "on_bad": arguments.on_bad,
            "files": [{"file": path, **{name: counts[name] for name in names}} for path, counts in self.files.items()],
            "rows": dict(self.rows),
            "findings": [{"kind": kind, "treatment": what, **entry} for (kind, what), entry in kinds],
            "turns": {"total": self.roles.total(), "by_role": dict(self.roles.most_common()), **figures(self.turns)},
            "tokens": {"tokenizer": tokenizer, "max_length": max_length, **self.tokens} if tokenizer else None,
            "lengths": {"unit": "tokens" if tokenizer else "characters", **figures(self.lengths, max_length or 0)},
            "languages": {"method": method(), "counts": dict(self.languages.most_common())},
        }


def readable(text: str) -> str:
    """`text` with half surrogate pairs, which no UTF-8 file can hold, written out."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def figures(numbers: bytearray, least_top: int = 0) -> dict:
    """Least, median, most and histogram of whole numbers of 4 bytes."""
    values = np.frombuffer(numbers, np.uint32)
    some = [int(values.min()), int(np.median(values)), int(values.max())] if len(values) else [0, 0, 0]
    return {**dict(zip(("least", "median", "most"), some, strict=True)), "histogram": histogram(values, least_top)}


def duplicate_problem(duplicate: Duplicate, kind: str, original: str) -> Problem:
    noun = kind.removesuffix("s")
    if duplicate.identical:
        return Problem(f"duplicate {noun}", f"the turns of {original} again", "each once")
    found = f"{duplicate.similarity:.0%} of its runs of words in common with {original}"
    return Problem(f"near-duplicate {noun}", found, "each once")


def measured(rows: Iterable[Checked], on_bad: str, lengths: Lengths) -> Iterator[tuple[Checked, Size | None]]:
    """All rows, each with its size where it is usable."""
    for batch in batched(rows, BATCH):
        usable = [goes_on(treatment(checked.row.problems, on_bad)) for checked in batch]
        sizes = iter(lengths.measure([checked.record for checked, use in zip(batch, usable, strict=True) if use]))
        for checked, use in zip(batch, usable, strict=True):
            yield checked, next(sizes) if use else None


def examine(
    files: list[str], arguments: argparse.Namespace, lengths: Lengths, folder: Path
) -> tuple[Findings, BadRows]:
    """Read all rows and count what is found; with --output, write those that go on into `folder`.

    The files are read once for the report, and before that once or twice for duplicates.
    """
    on_bad = arguments.on_bad
    warnings = tuple(kind for kind in WARNINGS if not (arguments.drop_duplicates and kind in DUPLICATES))

    def rows(doing: str) -> Iterator[Checked]:
        return tqdm(
            checked_rows(files, arguments.columns, lengths.roles), desc=doing, unit=" rows", leave=False, mininterval=1
        )

    def texts() -> Iterator[str]:
        checked = (each for each in rows("looking for duplicates") if goes_on(treatment(each.row.problems, on_bad)))
        return (content(each.record) for each in checked)

    duplicates = near_duplicates(texts, arguments.similarity)
    originals = {duplicate.original: "" for duplicate in duplicates.values()}
    # Under repair, too, rows that cannot be mended are set aside: the doctor goes through to the end.
    bad_rows = BadRows("error" if on_bad == "error" else "quarantine", folder / "quarantine.jsonl")
    findings, position = Findings(), -1
    with contextlib.ExitStack() as stack:
        kinds = KINDS if arguments.output else ()
        outputs = {kind: stack.enter_context(atomic_write(folder / f"{kind}.jsonl")) for kind in kinds}
        for (row, kind, record), size in measured(rows("checking"), on_bad, lengths):
            found = list(row.problems)
            if size:
                position += 1
                found += warnings_of(record, lengths.special_text) + over_long(size.length, lengths.max_length)
                if position in originals:
                    originals[position] = place(row.path, row.line, row.number)
                if duplicate := duplicates.get(position):
                    found.append(duplicate_problem(duplicate, kind, originals[duplicate.original]))
            outcome = treatment(found, on_bad, warnings)
            findings.add(row, kind, found, outcome, warnings)
            reasons = [] if goes_on(outcome) else [each for each in found if each.kind not in warnings]
            if bad_rows.accept(row._replace(problems=reasons), MENDED):
                findings.measure(record, size)
                if outputs:
                    outputs[kind].write(json.dumps(as_written(record), ensure_ascii=False) + "\n")
    return findings, bad_rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+", help="files, folders, globs or hf://owner/name:config:split")
    parser.add_argument("--tokenizer", help="folder of a tokenizer with a chat template, to count tokens with")
    parser.add_argument("--max_length", type=int, help="the context to fit, in tokens")
    parser.add_argument("--on_bad", choices=ON_BAD, default="quarantine")
    parser.add_argument("--columns", help="field=column,… instead of looking for the format: messages=dialogue, or of "
                        "preferences prompt=question,chosen=good,rejected=bad")  # fmt: skip
    parser.add_argument(
        "--similarity", type=float, default=0.8, help="of near-duplicates (Jaccard); 1: identical alone"
    )
    parser.add_argument("--drop_duplicates", action="store_true", help="set duplicates and near-duplicates aside too")
    parser.add_argument("--output", type=Path, help="folder for the rows, the quarantine and the report")
    arguments = parser.parse_args()
    if not 0 < arguments.similarity <= 1:
        raise InputError(f"--similarity {arguments.similarity}: expected a number above 0 and up to 1")
    if arguments.drop_duplicates and arguments.on_bad == "error":
        raise InputError("--drop_duplicates sets rows aside: give --on_bad quarantine or repair with it")
    kind_of_columns(arguments.columns)  # raises before any work
    files = data_files(arguments.files)
    if arguments.output:
        vacant(arguments.output)
    lengths = Lengths(arguments.tokenizer, arguments.max_length)

    from rich.console import Console  # slow to import

    with atomic_folder(arguments.output) if arguments.output else tempfile.TemporaryDirectory() as folder:
        findings, bad_rows = examine(files, arguments, lengths, Path(folder))
        report = findings.report(arguments)
        show(report, Console(highlight=False, emoji=False, markup=False))
        bad_rows.close()
        if (bad_rows.rows_in, bad_rows.rows_out) != (report["rows"]["in"], report["rows"]["out"]):
            raise RuntimeError(f"{report['rows']} in the report, {vars(bad_rows)} in the books")
        if arguments.output:
            write_json(Path(folder) / "check.json", report)
            with atomic_write(Path(folder) / "check.html") as file:
                file.write(page(report))
    written = f"they are in {arguments.output}" if arguments.output else "nothing was written: --output FOLDER does"
    print(f"{balance(report)}; {written}")


if __name__ == "__main__":
    run_main(main)
