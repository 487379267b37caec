"""Take out of a corpus what is no good text, what stands in it twice, and what a model will be evaluated on.

    python -m data_prep.clean_corpus --corpus runs/web/*.jsonl.gz --languages en --evaluation runs/web/heldout.jsonl \
        --output_dir runs/web/clean

A document goes through these filters in order, and the first that finds something takes it: quality (length, symbols,
repetition: document_filters.py), language, decontamination (decontamination.py), then exact and near-duplicates, of which
the first stays (near_duplicates.py). In the output folder: `documents.jsonl` ({"text", "source", "row"}), which
data_prep/mix_corpus.py reads, and `report.json` and `report.txt`, with each filter's count and examples of what it took.

The bytes do not depend on --num_workers. A killed run leaves a folder `.NAME.unfinished` beside the output; the same
command takes from there what the filters said of documents, most of the work, and does the rest again.
"""

import argparse
import json
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from functools import cache, partial
from pathlib import Path
from typing import NamedTuple

from tqdm.auto import tqdm

from data_prep.common.batches import batched_by_length
from data_prep.common.errors import InputError, run_main
from data_prep.common.files import atomic_write, read_json, read_jsonl, unfinished, vacant, write_json, write_jsonl
from data_prep.common.parallel import WorkerLost, cores, in_order
from data_prep.common.text import counted
from data_prep.corpus.decontamination import EvaluationTexts
from data_prep.corpus.languages import language, method
from data_prep.corpus.near_duplicates import near_duplicates
from data_prep.corpus.quality import Finding, quality_finding
from data_prep.readers.documents import corpus_files, documents, stamps, taken_out
from data_prep.rows.bad_rows import ON_BAD, BadRows

BATCH = 1 << 18  # characters that go to a worker at once
EXAMPLES, SHOWN = 5, 300  # examples of each filter, and characters of their beginnings


class Taken:
    """What each filter took: counts, bytes, and the first few examples."""

    def __init__(self) -> None:
        self.documents, self.bytes = Counter(), Counter()
        self.examples: dict[str, list[dict]] = {}

    def add(self, finding: Finding, row: dict) -> None:
        self.documents[finding.filter] += 1
        self.bytes[finding.filter] += len(row["text"].encode("utf-8"))
        examples = self.examples.setdefault(finding.filter, [])
        if len(examples) < EXAMPLES:
            examples.append({**row, "measured": finding.measured, "text": row["text"][:SHOWN]})

    def as_dict(self) -> dict:
        return {
            name: {"documents": count, "bytes": self.bytes[name], "examples": self.examples[name]}
            for name, count in self.documents.most_common()
        }


class Rules(NamedTuple):
    """The settings of the filters that look at one document by itself."""

    quality: str
    min_words: int
    max_words: int
    languages: tuple[str, ...]
    evaluation: tuple[str, ...]  # files


@cache
def evaluation_texts(files: tuple[str, ...]) -> EvaluationTexts:
    return EvaluationTexts(files)


@cache  # once in each process
def judge(rules: Rules) -> Callable[[str], Finding | None]:
    """The filters that look at one document by itself, as one function of its text."""
    evaluation = evaluation_texts(rules.evaluation) if rules.evaluation else None
    by_gopher = rules.quality == "gopher"

    def finding(text: str) -> Finding | None:
        spoken = language(text) if by_gopher or rules.languages else ""
        if by_gopher and (found := quality_finding(text, spoken, rules.min_words, rules.max_words)):
            return found
        if rules.languages and spoken not in rules.languages:
            return Finding("language", f"{spoken}, wanted: {', '.join(rules.languages)}")
        if evaluation and (run := evaluation.shared_run(text)):
            return Finding("evaluation text", f"shares: {run}")
        return None

    return finding


def findings(rules: Rules, rows: list[dict]) -> list[Finding | None]:
    return [judge(rules)(row["text"]) for row in rows]


def judged(
    rows: Iterable[dict], rules: Rules, journal: Path, num_workers: int
) -> Iterator[tuple[dict, Finding | None]]:
    """Each row with what takes it out.

    The `journal` gets a line of findings for each batch of rows; those that are in it already are not looked for again.
    """
    batches, known = batched_by_length(rows, BATCH, lambda row: len(row["text"])), 0
    with journal.open("a+b") as file:
        for line, batch in zip(whole_lines(file), batches, strict=False):
            found = [finding and Finding(*finding) for finding in json.loads(line)]
            known += len(batch)
            yield from zip(batch, found, strict=True)
        if known:
            print(f"{counted(known, 'document')} were judged by the interrupted run; going on behind them")
        for batch, found in in_order(partial(findings, rules), batches, num_workers):
            file.write(json.dumps(found).encode() + b"\n")
            file.flush()
            yield from zip(batch, found, strict=True)


def whole_lines(file) -> Iterator[bytes]:
    """The lines of a binary file from its beginning; a last one that was cut short is cut off it."""
    file.seek(0)
    while (line := file.readline()).endswith(b"\n"):
        yield line
    file.truncate(file.tell() - len(line))


def rows_of(path: Path) -> Iterator[dict]:
    return read_jsonl(path) if path.stat().st_size else iter(())


def without_duplicates(path: Path, threshold: float, taken: Taken, num_workers: int) -> Iterator[dict]:
    """The rows of a JSONL file but for those whose text is that of an earlier one, or nearly so."""
    with tqdm(desc="comparing", unit="doc") as bar:

        def texts() -> Iterator[str]:
            for row in rows_of(path):
                bar.update()
                yield row["text"]

        found = near_duplicates(texts, threshold, num_workers)
    for position, row in enumerate(rows_of(path)):
        if duplicate := found.get(position):
            kind = "exact duplicate" if duplicate.identical else "near-duplicate"
            taken.add(
                Finding(kind, f"{duplicate.similarity:.2f} of document {duplicate.original + 1:,} kept so far"), row
            )
        else:
            yield row


def clean(
    files: list[str], arguments: argparse.Namespace, rules: Rules, settings: dict, journal: Path, folder: Path
) -> dict:
    """Write the documents that stay, and the report, which is returned, into `folder`."""
    taken, size, counts = Taken(), Counter(), Counter()
    intake = BadRows(arguments.on_bad, folder / "quarantine.jsonl")

    def read() -> Iterator[dict]:
        reading = documents(files, arguments.text_column, intake, counts)
        for text, source in tqdm(reading, desc="filtering", unit="doc"):
            size["in"] += len(text.encode("utf-8"))
            yield {"text": text, "source": source.path, "row": source.number}

    def good() -> Iterator[dict]:
        for row, found in judged(read(), rules, journal, arguments.num_workers):
            if found:
                taken.add(found, row)
            else:
                yield row

    def kept() -> Iterator[dict]:
        for row in without_duplicates(filtered, arguments.threshold, taken, arguments.num_workers):
            size["out"] += len(row["text"].encode("utf-8"))
            yield row

    filtered = folder / "filtered.jsonl"
    write_jsonl(filtered, good())
    out = write_jsonl(folder / "documents.jsonl", kept())
    filtered.unlink()
    report = {"documents_in": counts["documents"], "bytes_in": size["in"], "documents_out": out,
              "bytes_out": size["out"], "taken": taken.as_dict(), "reading": taken_out(intake, counts),
              "settings": settings}  # fmt: skip
    if counts["documents"] != out + taken.documents.total():
        raise RuntimeError(f"{counts['documents']} documents in, {out} out, {taken.documents.total()} taken")
    write_json(folder / "report.json", report)
    with atomic_write(folder / "report.txt") as file:
        file.write("\n".join((*report["reading"], counts_text(report), examples_text(report), "")))
    return report


def counts_text(report: dict) -> str:
    """The report's counts for the eye, a line for each filter."""
    total = report["documents_in"]
    lines = [f"{'':24} {'documents':>12} {'share':>8} {'bytes':>16}"]
    lines.append(f"{'in':24} {total:12,} {1:8.2%} {report['bytes_in']:16,}")
    for name, taken in report["taken"].items():
        lines.append(f"{name:24} {taken['documents']:12,} {taken['documents'] / total:8.2%} {taken['bytes']:16,}")
    out = report["documents_out"]
    lines.append(f"{'out':24} {out:12,} {out / total:8.2%} {report['bytes_out']:16,}")
    return "\n".join(lines)


def examples_text(report: dict) -> str:
    """What each filter took, for example."""
    lines = []
    for name, taken in report["taken"].items():
        lines += ["", f"{name}, for example:"]
        for example in taken["examples"]:
            beginning = " ".join(example["text"].split())
            lines.append(f"  {example['source']}, row {example['row']:,}: {example['measured']}: {beginning[:100]}")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--corpus", nargs="+", required=True, help="files, folders, globs or hf:// names: see corpus.py"
    )
    parser.add_argument("--text_column", default="text", help="where rows have their text")
    parser.add_argument("--on_bad", "--on-bad", choices=ON_BAD, default="error", help="bad rows")
    parser.add_argument("--quality", choices=("gopher", "none"), default="gopher", help="the rules for good text")
    parser.add_argument("--min_words", type=int, default=50, help="of a document, by gopher's rules")
    parser.add_argument("--max_words", type=int, default=100_000)
    parser.add_argument("--languages", nargs="+", metavar="CODE", help="the only ones to keep: en, zh, ...")
    parser.add_argument(
        "--evaluation", nargs="+", metavar="FILE", help="take documents out that share text with these"
    )
    parser.add_argument(
        "--threshold", type=float, default=0.8, help="similarity of near-duplicates; 1: exact ones only"
    )
    parser.add_argument("--output_dir", type=Path, required=True)
    parser.add_argument("--num_workers", type=int, default=cores(), help="processes; all cores without")
    arguments = parser.parse_args()
    output = vacant(arguments.output_dir)
    if not 0 < arguments.threshold <= 1:
        raise InputError(f"--threshold {arguments.threshold}: expected more than 0 and at most 1")
    if arguments.num_workers < 1:
        raise InputError(f"--num_workers {arguments.num_workers}: expected at least 1")
    if arguments.languages and "script" in method():
        raise InputError(f"--languages: languages are told by {method()}")
    files = corpus_files(arguments.corpus)
    evaluation = corpus_files(arguments.evaluation) if arguments.evaluation else []
    rules = Rules(
        arguments.quality,
        arguments.min_words,
        arguments.max_words,
        tuple(arguments.languages or ()),
        tuple(evaluation),
    )
    judge(rules)  # what is wrong with the rules is said before any work
    if evaluation:
        found = evaluation_texts(rules.evaluation)
        print(f"{counted(found.texts, 'evaluation text')}, {found.short:,} of them too short to be looked for")

    settings = {key: value for key, value in vars(arguments).items() if key not in ("output_dir", "num_workers")}
    settings |= {"language_by": method()}
    with unfinished(output) as work:
        begun = {"settings": settings, "files": stamps(files), "evaluation": stamps(evaluation), "batch": BATCH}
        state, journal = work / "run.json", work / "findings.jsonl"
        if state.exists() and read_json(state) != begun:
            print("files or settings are not those of the interrupted run: begun again")
            journal.unlink(missing_ok=True)
        write_json(state, begun)
        folder = work / "output"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        try:
            report = clean(files, arguments, rules, settings, journal, folder)
        except InputError as error:
            if not isinstance(error, WorkerLost):
                shutil.rmtree(work)  # when the input is mended, what was found in it says nothing any more
            raise
        os.replace(folder, output)
    print(*report["reading"], counts_text(report), sep="\n")
    taken = report["documents_in"] - report["documents_out"]
    print(f"{report['documents_in']:,} documents in = {report['documents_out']:,} out + {taken:,} taken; "
          f"they are in {output}/documents.jsonl, examples of the others in report.txt")  # fmt: skip


if __name__ == "__main__":
    run_main(main)
