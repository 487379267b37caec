r"""Filter, deduplicate and decontaminate a corpus.

    python -m data_prep.clean_corpus --corpus runs/web/*.jsonl.gz --languages en --evaluation runs/web/heldout.jsonl \
        --output_dir runs/web/clean

A document goes through these filters in order, and the first that objects removes it: quality (length, symbols,
repetition: corpus/quality.py), language, decontamination (corpus/decontamination.py), exact duplicates, near-duplicates
(corpus/near_duplicates.py). Of duplicates the first stays. The output folder holds `documents.jsonl`, which
data_prep/mix_corpus.py reads, and `report.json` and `report.txt` with each filter's count and examples of what it removed.
A document has the other fields of its row beside {"text", "source", "row"}, its text and the file and row of the corpus
that it comes from. A row's own "source" and "row" are replaced, fields that would make a conversation or a preference of
a document are left out, and what JSON has no form for becomes text or null; the rows with such fields are counted.

The bytes do not depend on --num_workers. A killed run leaves a folder `.NAME.unfinished` beside the output. The same
command resumes from it: documents that the run has filtered, most of the work, are not filtered again.
"""

import argparse
import json
import os
import shutil
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path

from tqdm.auto import tqdm

from data_prep.common.batches import batched_by_length
from data_prep.common.errors import InputError, run_main
from data_prep.common.files import (
    atomic_write,
    read_json,
    read_jsonl,
    unfinished,
    vacant,
    whole_lines,
    write_json,
    write_jsonl,
)
from data_prep.common.numbers import check_at_least
from data_prep.common.parallel import WorkerLost, cores, in_order
from data_prep.common.text import counted
from data_prep.corpus.kept_fields import changed_lines, cleaned_row
from data_prep.corpus.languages import method
from data_prep.corpus.near_duplicates import near_duplicates
from data_prep.corpus.quality import Reason
from data_prep.corpus.rules import Rules, add_options, document_filter, files_and_rules
from data_prep.readers.documents import documents, reading_counts, stamps
from data_prep.rows.bad_rows import BadRows

BATCH_CHARACTERS = 1 << 18  # sent to a worker at once
EXAMPLES, SHOWN = 5, 300  # examples of each filter, and how many characters of each


class Filtered:
    """What each filter removed: documents, bytes, and the first few as examples."""

    def __init__(self) -> None:
        self.documents, self.bytes = Counter(), Counter()
        self.examples: dict[str, list[dict]] = {}

    def passed(self, rows: Iterable[tuple[dict, Reason | None]]) -> Iterator[dict]:
        """The rows that come without a reason to remove them; the others are counted."""
        for row, reason in rows:
            if reason:
                self._add(row, reason)
            else:
                yield row

    def _add(self, row: dict, reason: Reason) -> None:
        self.documents[reason.filter] += 1
        self.bytes[reason.filter] += len(row["text"].encode("utf-8"))
        examples = self.examples.setdefault(reason.filter, [])
        if len(examples) < EXAMPLES:
            place = {"source": row["source"], "row": row["row"]}
            examples.append({"text": row["text"][:SHOWN], **place, "measured": reason.measured})

    def as_dict(self) -> dict:
        return {
            name: {"documents": count, "bytes": self.bytes[name], "examples": self.examples[name]}
            for name, count in self.documents.most_common()
        }


def reasons(rules: Rules, rows: list[dict]) -> list[Reason | None]:
    return [document_filter(rules)(row["text"]) for row in rows]


def read_rows(
    files: list[str], text_column: str, bad_rows: BadRows, counts: Counter, changed: dict[str, Counter]
) -> Iterator[dict]:
    """Every document as a `cleaned_row`; `counts` gets its "bytes" beside what `documents` counts."""
    for document in tqdm(documents(files, text_column, bad_rows, counts), desc="filtering", unit="doc", disable=None):
        counts["bytes"] += len(document.text.encode("utf-8"))
        yield cleaned_row(document, text_column, changed)


def filtered_rows(
    rows: Iterable[dict], rules: Rules, journal: Path, num_workers: int
) -> Iterator[tuple[dict, Reason | None]]:
    """Each row with the reason to remove it, or None.

    The `journal` gets a line of reasons for each batch of rows; batches that it has already are not filtered again.
    """
    batches, known = batched_by_length(rows, BATCH_CHARACTERS, lambda row: len(row["text"])), 0
    with journal.open("a+b") as file:
        for line, batch in zip(whole_lines(file), batches, strict=False):
            found = [reason and Reason(*reason) for reason in json.loads(line)]
            known += len(batch)
            yield from zip(batch, found, strict=True)
        if known:
            print(f"{counted(known, 'document')} were filtered by the interrupted run; resuming after them")
        for batch, found in in_order(partial(reasons, rules), batches, num_workers):
            file.write(json.dumps(found).encode() + b"\n")
            file.flush()
            yield from zip(batch, found, strict=True)


def compared_rows(path: Path, threshold: float, num_workers: int) -> Iterator[tuple[dict, Reason | None]]:
    """Each row of a JSONL file with the earlier one that it duplicates, exactly or nearly, or None."""
    with tqdm(desc="comparing", unit="doc", disable=None) as bar:

        def texts() -> Iterator[str]:
            for row in read_jsonl(path):
                bar.update()
                yield row["text"]

        duplicates = near_duplicates(texts, threshold, num_workers)
    for position, row in enumerate(read_jsonl(path)):
        if duplicate := duplicates.get(position):
            kind = "exact duplicate" if duplicate.identical else "near-duplicate"
            measured = f"{duplicate.similarity:.2f} of document {duplicate.original + 1:,} kept so far"
            yield row, Reason(kind, measured)
        else:
            yield row, None


def clean(
    files: list[str], arguments: argparse.Namespace, rules: Rules, settings: dict, journal: Path, folder: Path
) -> dict:
    """Write the documents that stay, and the report, into `folder`; returns the report."""
    filtered, counts, changed = Filtered(), Counter(), defaultdict(Counter)
    bad_rows = BadRows(arguments.on_bad, folder / "quarantine.jsonl")
    passed = folder / "passed.jsonl"  # what the filters of single documents leave
    rows = read_rows(files, arguments.text_column, bad_rows, counts, changed)
    write_jsonl(passed, filtered.passed(filtered_rows(rows, rules, journal, arguments.num_workers)))
    compared = compared_rows(passed, arguments.threshold, arguments.num_workers)
    out = write_jsonl(folder / "documents.jsonl", filtered.passed(compared))
    passed.unlink()
    report = {
        "documents_in": counts["documents"],
        "bytes_in": counts["bytes"],
        "documents_out": out,
        "bytes_out": counts["bytes"] - filtered.bytes.total(),
        "filtered": filtered.as_dict(),
        "reading": reading_counts(bad_rows, counts) + changed_lines(changed),
        "settings": settings,
    }
    if counts["documents"] != out + filtered.documents.total():
        raise RuntimeError(f"{counts['documents']} documents in, {out} out, {filtered.documents.total()} filtered")
    write_json(folder / "report.json", report)
    with atomic_write(folder / "report.txt") as file:
        file.write("\n".join((*report["reading"], counts_text(report), examples_text(report), "")))
    return report


def counts_text(report: dict) -> str:
    """The report's counts as a table, a line per filter."""
    total = report["documents_in"]
    lines = [f"{'':24} {'documents':>12} {'share':>8} {'bytes':>16}"]
    lines.append(f"{'in':24} {total:12,} {1:8.2%} {report['bytes_in']:16,}")
    for name, removed in report["filtered"].items():
        share = removed["documents"] / total
        lines.append(f"{name:24} {removed['documents']:12,} {share:8.2%} {removed['bytes']:16,}")
    out = report["documents_out"]
    lines.append(f"{'out':24} {out:12,} {out / total:8.2%} {report['bytes_out']:16,}")
    return "\n".join(lines)


def examples_text(report: dict) -> str:
    """Examples of what each filter removed."""
    lines = []
    for name, removed in report["filtered"].items():
        lines += ["", f"{name}, for example:"]
        for example in removed["examples"]:
            beginning = " ".join(example["text"].split())
            lines.append(f"  {example['source']}, row {example['row']:,}: {example['measured']}: {beginning[:100]}")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_options(parser)
    parser.add_argument("--output_dir", type=Path, required=True, help="the folder to write")
    parser.add_argument("--num_workers", type=int, default=cores(), help="number of processes (default: all cores)")
    arguments = parser.parse_args()
    check_at_least(1, arguments, "num_workers")
    output = vacant(arguments.output_dir)
    files, rules = files_and_rules(arguments)
    evaluation = list(rules.evaluation)

    settings = {key: value for key, value in vars(arguments).items() if key not in ("output_dir", "num_workers")}
    settings |= {"language_by": method()}
    with unfinished(output) as work:
        inputs = {
            "settings": settings,
            "files": stamps(files),
            "evaluation": stamps(evaluation),
            "batch": BATCH_CHARACTERS,
        }
        state, journal = work / "run.json", work / "reasons.jsonl"
        if state.exists() and read_json(state) != inputs:
            print("files or settings differ from those of the interrupted run: starting over")
            journal.unlink(missing_ok=True)
        write_json(state, inputs)
        folder = work / "output"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        try:
            report = clean(files, arguments, rules, settings, journal, folder)
        except InputError as error:
            if not isinstance(error, WorkerLost):
                shutil.rmtree(work)  # the input will be changed: what was found in it is worthless
            raise
        os.replace(folder, output)
    print(*report["reading"], counts_text(report), sep="\n")
    print(
        f"{report['documents_in']:,} documents in = {report['documents_out']:,} out + "
        f"{report['documents_in'] - report['documents_out']:,} filtered; the documents are in {output}/documents.jsonl, "
        "examples of the others in report.txt"
    )


if __name__ == "__main__":
    run_main(main)
