"""Read a folder of documents: the text of each section, page, slide or sheet as a row of JSON Lines.

    python -m data_prep.read_documents papers/ manuals/*.html --output_dir runs/mine/documents
    python -m data_prep.read_documents papers/ --rows document --fraction 0.1 --output_dir runs/mine/documents

Reads .txt .md .rst .ipynb as they are, and with the extra `documents` (pip install -e '.[documents]') also .html .docx
.pptx .xlsx .epub .pdf. The output folder holds

    documents.jsonl            {"text", "file"} and "page" (PDF, slides, form feeds) or "heading" ("Guide > Install"), a
                               section a line: what train_tokenizer, clean_corpus, hold_out and mix_corpus read
    documents_heldout.jsonl    the same of the documents that are held out, whole documents each: a command that is given the
                               folder refuses it, and asks which of the two files is meant
    report.json                every file that was not read and why, or not whole, what was left out, duplicates, the split

Headers, footers and page numbers that repeat from page to page are removed, and so are sections that are, or nearly are,
the same as one before (corpus/near_duplicates.py). The text of a document and the seed decide whether it is held out: what
is held out stays so when documents are added; at least one document is in each part.

Files are not trusted. They are read in a process of its own, which may take --time_limit seconds and --memory_limit MiB
for a file, can open no connection and start no program. A file that is encrypted, scanned, empty, broken, too large when
unpacked, has macros or XML entities in it, is named and counted, and the others are read. Links and images are not
fetched, no formula, script or cell is run.
"""

import argparse
import json
import math
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from tqdm.auto import tqdm

from data_prep.common.disjoint import split_position
from data_prep.common.errors import InputError, run_main
from data_prep.common.files import atomic_folder, check_writable, read_jsonl, vacant, write_json
from data_prep.common.numbers import check_at_least
from data_prep.common.text import counted, printable
from data_prep.corpus.near_duplicates import near_duplicates
from data_prep.documents.child import Child
from data_prep.documents.convert import Limits, convert
from data_prep.documents.endings import ENDINGS, check_libraries
from data_prep.documents.sections import Converted, NotRead
from data_prep.rows.read import HUB, data_files

NAMED = 5  # files of a kind on the screen; the report names all
FEWEST = 20  # held-out documents that eval.adaptation shows a difference on
EXAMPLES = 20  # of duplicates, in the report


class Document(NamedTuple):
    """A file that was read."""

    file: str
    position: float  # in [0, 1): below --fraction it is held out
    sections: int


def rows_of(file: str, converted: Converted, whole: bool) -> Iterator[dict]:
    """The rows of a document: one for each section, or one for all of it."""
    if whole:
        between = "\n" if any(section.page for section in converted.sections) else "\n\n"
        yield {"text": between.join(section.text for section in converted.sections), "file": file}
        return
    for section in converted.sections:
        place = {"page": section.page} if section.page else {"heading": section.heading} if section.heading else {}
        yield {"text": section.text, "file": file, **place}


def read_all(files: list[str], limits: Limits, whole: bool, seed: int, path: Path, report: dict) -> list[Document]:
    """Write the rows of all files to `path`, each with the number of its document; the report gets what is not there."""
    documents, left_out = [], Counter()
    with Child(convert, limits.time_limit, limits.memory_limit) as child, path.open("w", encoding="utf-8") as output:
        for file in tqdm(files, desc="reading", unit=" files", disable=None):
            try:
                converted = child(file, limits)
            except NotRead as error:
                report["not_read"].append({"file": file, "kind": error.kind, "reason": error.reason})
                continue
            left_out += converted.left_out
            if converted.repeated:
                report["repeated_lines"].append({"file": file, "examples": converted.repeated})
            if converted.missing:
                report["missing_parts"].append({"file": file, "missing": converted.missing})
            rows = list(rows_of(file, converted, whole))
            for row in rows:
                output.write(json.dumps({**row, "document": len(documents)}, ensure_ascii=False) + "\n")
            position = split_position("\n".join(section.text for section in converted.sections), seed)
            documents.append(Document(file, position, len(rows)))
    report["left_out"] = dict(left_out.most_common())
    return documents


def remove_duplicates(path: Path, threshold: float, report: dict) -> set[int]:
    """The numbers of the rows that are, or nearly are, an earlier one; the report gets their counts."""

    def texts() -> Iterator[str]:
        return (row["text"] for row in read_jsonl(path))

    duplicates = near_duplicates(texts, threshold)
    if duplicates:
        found, places = [*duplicates.items()][:EXAMPLES], {}
        wanted = {position for again, duplicate in found for position in (again, duplicate.original)}
        for position, row in enumerate(read_jsonl(path)):
            if position in wanted:
                places[position] = {key: row[key] for key in ("file", "page", "heading") if key in row}
        report["duplicates"]["examples"] = [
            {**places[again], "same_as": places[duplicate.original], "similarity": round(duplicate.similarity, 3)}
            for again, duplicate in found
        ]
    identical = sum(duplicate.identical for duplicate in duplicates.values())
    report["duplicates"] |= {"exact": identical, "near": len(duplicates) - identical}
    return set(duplicates)


def held_out(documents: list[Document], with_rows: set[int], fraction: float) -> set[int]:
    """The numbers of the documents to hold out: at least one, and not all. Raises InputError for a single document."""
    if not fraction:
        return set()
    if len(with_rows) < 2:
        raise InputError(
            f"found 1 document with text of its own, {documents[min(with_rows)].file}; expected at least 2, to hold one "
            "out: --fraction 0 holds none out"
        )
    order = sorted(with_rows, key=lambda number: documents[number].position)
    below = sum(documents[number].position < fraction for number in order)
    return {*order[: min(max(below, 1), len(order) - 1)]}


def write_parts(
    path: Path, folder: Path, documents: list[Document], duplicates: set[int], fraction: float, report: dict
) -> None:
    """Write the rows that are no duplicates to the part of their document, and count them."""
    with_rows = {row["document"] for position, row in enumerate(read_jsonl(path)) if position not in duplicates}
    held = held_out(documents, with_rows, fraction)
    counts = {"train": Counter(), "heldout": Counter()}
    with (folder / "documents.jsonl").open("w", encoding="utf-8") as train:
        heldout = (folder / "documents_heldout.jsonl").open("w", encoding="utf-8") if held else train
        with heldout:
            for position, row in enumerate(read_jsonl(path)):
                if position in duplicates:
                    continue
                number = row.pop("document")
                part = "heldout" if number in held else "train"
                counts[part].update(rows=1, characters=len(row["text"]))
                (heldout if number in held else train).write(json.dumps(row, ensure_ascii=False) + "\n")
    for part, numbers in (("train", with_rows - held), ("heldout", held)):
        report[part] = {
            "documents": len(numbers),
            "rows": counts[part]["rows"],
            "characters": counts[part]["characters"],
        }
    report["heldout"]["files"] = [documents[number].file for number in sorted(held)]
    report["duplicates"]["documents"] = [
        document.file for number, document in enumerate(documents) if number not in with_rows
    ]


def not_read_lines(not_read: list[dict]) -> list[str]:
    """The files that were not read, a line for each kind: "2 files encrypted: a.pdf (a password protects it), …"."""
    lines = []
    for kind in dict.fromkeys(entry["kind"] for entry in not_read):
        found = [f"{entry['file']} ({entry['reason']})" for entry in not_read if entry["kind"] == kind]
        more = f", and {len(found) - NAMED:,} more in the report" if len(found) > NAMED else ""
        lines.append(printable(f"{counted(len(found), 'file')} {kind}: {', '.join(found[:NAMED])}{more}"))
    return lines


def summary(report: dict, output: Path) -> list[str]:
    """What was done, for the screen."""
    lines = not_read_lines(report["not_read"])
    if lacking := report["missing_parts"]:
        found = [f"{entry['file']} ({', '.join(entry['missing'][:NAMED])})" for entry in lacking]
        more = f", and {len(found) - NAMED:,} more in the report" if len(found) > NAMED else ""
        lines.append(printable(f"{counted(len(found), 'file')} incomplete: {', '.join(found[:NAMED])}{more}"))
    if left_out := report["left_out"]:
        lines.append("left out: " + ", ".join(f"{count:,} {what}" for what, count in left_out.items()))
    duplicates, train, heldout = report["duplicates"], report["train"], report["heldout"]
    lines.append(
        f"{counted(duplicates['exact'], 'exact duplicate')} and {duplicates['near']:,} near-duplicates removed"
    )
    if alike := duplicates["documents"]:
        lines.append(printable(f"nothing is left of {counted(len(alike), 'document')}: {', '.join(alike[:NAMED])}"))
    if 0 < heldout["documents"] < FEWEST:
        documents = train["documents"] + heldout["documents"]
        share = math.ceil(125 * FEWEST / documents) / 100  # a quarter more, as chance decides where a document goes
        remedy = f"--fraction {share:g}" if documents >= 2 * FEWEST else "read more documents"
        lines.append(
            f"{counted(heldout['documents'], 'document')} held out: from {FEWEST} on eval.adaptation can show a difference; "
            f"{remedy}"
        )
    rows = train["rows"] + heldout["rows"] + duplicates["exact"] + duplicates["near"]
    held = f"{heldout['rows']:,} of {counted(heldout['documents'], 'document')} in {output}/documents_heldout.jsonl"
    lines.append(
        f"{counted(report['files'], 'file')} = {report['files_read']:,} read + {len(report['not_read']):,} not read; "
        f"{counted(rows, 'row')} = {train['rows']:,} of {counted(train['documents'], 'document')} in {output}/documents.jsonl + "
        f"{held if heldout['documents'] else '0 held out'} + {duplicates['exact'] + duplicates['near']:,} duplicates; "
        f"more in {output}/report.json"
    )
    return lines


def checked(arguments: argparse.Namespace) -> list[str]:
    """The files to read. Raises InputError for options out of their range and files that need a library."""
    check_at_least(1, arguments, "max_pages", "memory_limit")
    if not 0 <= arguments.fraction < 1:
        raise InputError(f"--fraction {arguments.fraction}: expected at least 0 and less than 1")
    if not 0 < arguments.threshold <= 1:
        raise InputError(f"--threshold {arguments.threshold}: expected more than 0 and at most 1")
    if not arguments.time_limit > 0:
        raise InputError(f"--time_limit {arguments.time_limit}: expected more than 0")
    check_writable("--output_dir", vacant(arguments.output_dir).absolute().parent)
    if hub := next((path for path in arguments.files if path.startswith(HUB)), None):
        raise InputError(f"{hub}: found a data set of the Hub; expected files, folders or globs of documents")
    files = [*dict.fromkeys(data_files(arguments.files, endings=ENDINGS))]
    check_libraries(files)
    return files


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+", help="files, folders or globs")
    parser.add_argument("--output_dir", type=Path, required=True, help="the folder to write")
    parser.add_argument(
        "--rows", choices=("section", "document"), default="section", help="what a row holds (default: section)"
    )
    parser.add_argument(
        "--fraction", type=float, default=0.05, help="fraction of documents to hold out (default: 0.05)"
    )
    parser.add_argument("--seed", type=int, default=0, help="another seed holds out other documents (default: 0)")
    parser.add_argument(
        "--threshold", type=float, default=0.8, help="similarity of near-duplicates (default: 0.8; 1: only exact ones)"
    )
    parser.add_argument("--max_pages", type=int, default=5000, help="refuse longer PDFs (default: 5000)")
    parser.add_argument("--time_limit", type=float, default=120, help="seconds for a file (default: 120)")
    parser.add_argument("--memory_limit", type=int, default=2048, help="MiB of memory for a file (default: 2048)")
    arguments = parser.parse_args()
    files = checked(arguments)
    limits = Limits(arguments.max_pages, arguments.time_limit, arguments.memory_limit)
    report: dict = {
        "files": len(files),
        "not_read": [],
        "repeated_lines": [],
        "missing_parts": [],
        "duplicates": {"examples": []},
    }
    with atomic_folder(arguments.output_dir) as folder:
        path = folder / "rows.jsonl"
        documents = read_all(files, limits, arguments.rows == "document", arguments.seed, path, report)
        report["files_read"] = len(documents)
        if not documents:
            said = "\n  ".join(not_read_lines(report["not_read"]))
            raise InputError(f"no text in {counted(len(files), 'file')}:\n  {said}")
        duplicates = remove_duplicates(path, arguments.threshold, report)
        write_parts(path, folder, documents, duplicates, arguments.fraction, report)
        path.unlink()
        settings = {
            name: getattr(arguments, name) for name in ("rows", "fraction", "seed", "threshold", *Limits._fields)
        }
        write_json(folder / "report.json", {**report, "settings": settings})
    print(*summary(report, arguments.output_dir), sep="\n")


if __name__ == "__main__":
    run_main(main)
