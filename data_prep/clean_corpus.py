"""Take out of a corpus what is no good text, what stands in it twice, and what a model will be evaluated on.

    python -m data_prep.clean_corpus --corpus runs/web/*.jsonl.gz --languages en --evaluation runs/web/heldout.jsonl \
        --output_dir runs/web/clean

A document goes through these filters in order, and the first that finds something takes it: quality (length, symbols,
repetition: document_filters.py), language, decontamination (decontamination.py), then exact and near-duplicates, of which
the first stays (near_duplicates.py). In the output folder: `documents.jsonl` ({"text", "source", "row"}), which
data_prep/mix_corpus.py reads, and `report.json` and `report.txt`, with each filter's count and examples of what it took.
"""

import argparse
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

from tqdm.auto import tqdm

from data_prep.corpus import corpus_files, documents, taken_out
from data_prep.decontamination import EvaluationTexts
from data_prep.document_filters import Finding, datatrove_filter, quality_finding
from data_prep.files import InputError, atomic_folder, read_jsonl, run_main, vacant, write_json, write_jsonl
from data_prep.languages import language, method
from data_prep.near_duplicates import near_duplicates
from data_prep.rows import ON_BAD, Intake, counted

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


def judge(arguments: argparse.Namespace) -> Callable[[str], Finding | None]:
    """The filters that look at one document by itself, as one function of its text."""
    evaluation = EvaluationTexts(corpus_files(arguments.evaluation)) if arguments.evaluation else None
    if evaluation:
        print(
            f"{counted(evaluation.texts, 'evaluation text')}, {evaluation.short:,} of them too short to be looked for"
        )
    rules = quality_finding if arguments.quality == "gopher" else None
    by_datatrove = datatrove_filter() if arguments.quality == "datatrove" else None
    if arguments.languages and "script" in method():
        raise InputError(f"--languages: languages are told by {method()}")

    def finding(text: str) -> Finding | None:
        spoken = language(text) if rules or arguments.languages else ""
        if by_datatrove and (found := by_datatrove(text)):
            return found
        if rules and (found := rules(text, spoken, arguments.min_words, arguments.max_words)):
            return found
        if arguments.languages and spoken not in arguments.languages:
            return Finding("language", f"{spoken}, wanted: {', '.join(arguments.languages)}")
        if evaluation and (run := evaluation.shared_run(text)):
            return Finding("evaluation text", f"shares: {run}")
        return None

    return finding


def rows_of(path: Path) -> Iterator[dict]:
    return read_jsonl(path) if path.stat().st_size else iter(())


def without_duplicates(path: Path, threshold: float, taken: Taken) -> Iterator[dict]:
    """The rows of a JSONL file but for those whose text is that of an earlier one, or nearly so."""
    with tqdm(desc="comparing", unit="doc") as bar:

        def texts() -> Iterator[str]:
            for row in rows_of(path):
                bar.update()
                yield row["text"]

        found = near_duplicates(texts, threshold)
    for position, row in enumerate(rows_of(path)):
        if duplicate := found.get(position):
            kind = "exact duplicate" if duplicate.identical else "near-duplicate"
            taken.add(
                Finding(kind, f"{duplicate.similarity:.2f} of document {duplicate.original + 1:,} kept so far"), row
            )
        else:
            yield row


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
    parser.add_argument("--quality", choices=("gopher", "datatrove", "none"), default="gopher", help="whose rules")
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
    arguments = parser.parse_args()
    vacant(arguments.output_dir)
    if not 0 < arguments.threshold <= 1:
        raise InputError(f"--threshold {arguments.threshold}: expected more than 0 and at most 1")
    files, finding, taken = corpus_files(arguments.corpus), judge(arguments), Taken()
    size = Counter()

    with atomic_folder(arguments.output_dir) as folder:
        intake, counts = Intake(arguments.on_bad, folder / "quarantine.jsonl"), Counter()

        def good() -> Iterator[dict]:
            reading = documents(files, arguments.text_column, intake, counts)
            for text, source in tqdm(reading, desc="filtering", unit="doc"):
                row = {"text": text, "source": source.path, "row": source.number}
                size["in"] += len(text.encode("utf-8"))
                if found := finding(text):
                    taken.add(found, row)
                else:
                    yield row

        def kept() -> Iterator[dict]:
            for row in without_duplicates(filtered, arguments.threshold, taken):
                size["out"] += len(row["text"].encode("utf-8"))
                yield row

        filtered = folder / "filtered.jsonl"
        write_jsonl(filtered, good())
        out = write_jsonl(folder / "documents.jsonl", kept())
        filtered.unlink()
        settings = {key: value for key, value in vars(arguments).items() if key != "output_dir"}
        report = {"documents_in": counts["documents"], "bytes_in": size["in"], "documents_out": out,
                  "bytes_out": size["out"], "taken": taken.as_dict(), "reading": taken_out(intake, counts),
                  "settings": {**settings, "language_by": method()}}  # fmt: skip
        if counts["documents"] != out + taken.documents.total():
            raise RuntimeError(f"{counts['documents']} documents in, {out} out, {taken.documents.total()} taken")
        write_json(folder / "report.json", report)
        (folder / "report.txt").write_text(
            "\n".join((*report["reading"], counts_text(report), examples_text(report), "")), encoding="utf-8"
        )
    print(*report["reading"], counts_text(report), sep="\n")
    print(f"{counts['documents']:,} documents in = {out:,} out + {taken.documents.total():,} taken; "
          f"they are in {arguments.output_dir}/documents.jsonl, examples of the others in report.txt")  # fmt: skip


if __name__ == "__main__":
    run_main(main)
