"""The steps of data_prep/clean_corpus.py as blocks of datatrove pipelines, which its executors spread over machines.

A task reads every so many-th file. What it leaves is named after the file, so that the order of the documents, which says
which of two duplicates stays, is that of the files, whatever the number of tasks. In the folder of the work:

    passed/00000.jsonl       what the filters of single documents leave of a file
    keys/00000.npz           its "digests" (documents,) and "bands" (documents, bands), see near_duplicates.py
    duplicates/00000.json    {place of a document in passed/: the filter that removes it}
    counts/                  what each task and step has counted
    output/                  documents/00000.jsonl, tokens/00000/, report.json
"""

import os
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from datatrove.data import Document, DocumentsPipeline
from datatrove.pipeline.base import PipelineStep
from datatrove.pipeline.filters.base_filter import BaseFilter

from data_prep.common.batches import batched_by_length
from data_prep.common.files import atomic_write, json_line, read_json, read_jsonl, write_json, write_jsonl
from data_prep.corpus.kept_fields import changed_lines, cleaned_row
from data_prep.corpus.near_duplicates import BATCH_CHARACTERS, duplicates_of, text_keys
from data_prep.corpus.rules import Rules, document_filter
from data_prep.readers.documents import reading_counts, texts
from data_prep.rows.bad_rows import BadRows
from data_prep.rows.problems import REPAIRED_BY_READING
from data_prep.tokens.corpus_tokens import load_tokenizer, tokenize_source
from data_prep.tokens.shards import token_dtype, write_index

STEPS = ("read", "filter", "write")


def named(number: int, ending: str) -> str:
    return f"{number:05}{ending}"


class Read(PipelineStep):
    """Every document of this task's files; bad rows go by `on_bad`, as everywhere."""

    type, name = "📖 - READER", "files"

    def __init__(self, files: list[str], text_column: str, on_bad: str, work: Path) -> None:
        super().__init__()
        self.files, self.text_column, self.on_bad, self.work = files, text_column, on_bad, work

    def run(self, data: DocumentsPipeline = None, rank: int = 0, world_size: int = 1) -> DocumentsPipeline:
        counts, told = Counter(), []
        for number in range(rank, len(self.files), world_size):
            bad_rows = BadRows(self.on_bad, self.work / "output" / "quarantine" / named(number, ".jsonl"))
            of_file, changed = Counter(), defaultdict(Counter)
            for document in texts(self.files[number], self.text_column, of_file):
                text, row = document
                if not bad_rows.accept(row, REPAIRED_BY_READING):
                    continue
                if not text.strip():
                    of_file["empty"] += 1
                    continue
                counts.update(documents=1, bytes=len(text.encode("utf-8")))
                kept = cleaned_row(document, self.text_column, changed)
                yield Document(text=text, id=f"{number}/{row.number}", metadata={"number": number, "row": kept})
            bad_rows.close()  # raises InputError for bad rows that are errors
            lines = reading_counts(bad_rows, of_file) + changed_lines(changed)
            told += [f"{self.files[number]}: {line}" for line in lines]
        write_json(self.work / "counts" / f"read-{rank}.json", {**counts, "reading": told})


class Filter(BaseFilter):
    """The filters that look at one document by itself (rules.py), as one block."""

    name = "quality, language, evaluation texts"

    def __init__(self, rules: Rules, work: Path) -> None:
        super().__init__()
        self.rules, self.work, self.removed = rules, work, {}

    def filter(self, doc: Document) -> bool | tuple[bool, str]:
        reason = document_filter(self.rules)(doc.text)
        if reason is None:
            return True
        counts = self.removed.setdefault(reason.filter, Counter())
        counts.update(documents=1, bytes=len(doc.text.encode("utf-8")))
        return False, reason.filter

    def run(self, data: DocumentsPipeline, rank: int = 0, world_size: int = 1) -> DocumentsPipeline:
        yield from super().run(data, rank, world_size)
        write_json(self.work / "counts" / f"filter-{rank}.json", self.removed)


class Sign(PipelineStep):
    """What is left of each file, and the keys by which duplicates find each other."""

    type, name = "🔑 - WRITER", "keys of duplicates"

    def __init__(self, number_of_files: int, threshold: float, work: Path) -> None:
        super().__init__()
        self.number_of_files, self.threshold, self.work = number_of_files, threshold, work

    def run(self, data: DocumentsPipeline, rank: int = 0, world_size: int = 1) -> DocumentsPipeline:
        waiting = next(data, None)
        for number in range(rank, self.number_of_files, world_size):
            digests, bands = bytearray(), bytearray()

            def of_file(number: int = number) -> Iterator[dict]:
                nonlocal waiting
                while waiting is not None and waiting.metadata["number"] == number:
                    yield waiting.metadata["row"]
                    waiting = next(data, None)

            with atomic_write(self.work / "passed" / named(number, ".jsonl")) as file:
                for batch in batched_by_length(of_file(), BATCH_CHARACTERS, lambda row: len(row["text"])):
                    for grown, values in zip(
                        (digests, bands), text_keys(self.threshold, [row["text"] for row in batch]), strict=True
                    ):
                        grown += values.tobytes()
                    file.writelines(map(json_line, batch))
            found = np.frombuffer(digests, np.uint64) if digests else np.empty(0, np.uint64)
            keys = np.frombuffer(bands, np.uint64) if bands else np.empty(0, np.uint64)
            with atomic_write(self.work / "keys" / named(number, ".npz"), "wb") as file:
                np.savez(file, digests=found, bands=keys.reshape(len(found), len(keys) // max(1, len(found))))
        yield from ()


class FindDuplicates(PipelineStep):
    """Which documents of all files duplicate an earlier one: one task, with about 200 bytes of memory a document."""

    type, name = "🫂 - DEDUP", "duplicates"

    def __init__(self, number_of_files: int, threshold: float, work: Path) -> None:
        super().__init__()
        self.number_of_files, self.threshold, self.work = number_of_files, threshold, work

    def run(self, data: DocumentsPipeline = None, rank: int = 0, world_size: int = 1) -> DocumentsPipeline:
        numbers = range(self.number_of_files)
        parts = [np.load(self.work / "keys" / named(number, ".npz")) for number in numbers]
        digests = np.concatenate([part["digests"] for part in parts])
        bands = np.concatenate(
            [part["bands"] for part in parts if len(part["digests"])] or [np.empty((0, 0), np.uint64)]
        )
        ends = np.cumsum([0] + [len(part["digests"]) for part in parts])

        def every_text() -> Iterator[str]:
            for number in numbers:
                for row in read_jsonl(self.work / "passed" / named(number, ".jsonl")):
                    yield row["text"]

        found = duplicates_of(digests, bands, every_text, self.threshold) if len(digests) else {}
        of_files: list[dict] = [{} for _ in numbers]
        for position, duplicate in found.items():
            number = int(np.searchsorted(ends, position, side="right")) - 1
            kind = "exact duplicate" if duplicate.identical else "near-duplicate"
            of_files[number][position - int(ends[number])] = kind
        for number in numbers:
            write_json(self.work / "duplicates" / named(number, ".json"), of_files[number])
        yield from ()


class Write(PipelineStep):
    """The documents that stay, and with a tokenizer their ids; a file that is there is not written again."""

    type, name = "💽 - WRITER", "documents and tokens"

    def __init__(self, number_of_files: int, tokenizer: str | None, shard_tokens: int, work: Path) -> None:
        super().__init__()
        self.number_of_files, self.tokenizer = number_of_files, tokenizer
        self.shard_tokens, self.work = shard_tokens, work

    def run(self, data: DocumentsPipeline = None, rank: int = 0, world_size: int = 1) -> DocumentsPipeline:
        removed: dict[str, Counter] = {}
        loaded = load_tokenizer(self.tokenizer) if self.tokenizer else None
        for number in range(rank, self.number_of_files, world_size):
            kinds = read_json(self.work / "duplicates" / named(number, ".json"))
            kept = []
            for place, row in enumerate(read_jsonl(self.work / "passed" / named(number, ".jsonl"))):
                if kind := kinds.get(str(place)):
                    size = len(row["text"].encode("utf-8"))
                    removed.setdefault(kind, Counter()).update(documents=1, bytes=size)
                else:
                    kept.append(place)
            path = self.work / "output" / "documents" / named(number, ".jsonl")
            if not path.exists():
                rows = enumerate(read_jsonl(self.work / "passed" / named(number, ".jsonl")))
                write_jsonl(path, (row for place, row in rows if str(place) not in kinds))
            if loaded and kept:
                folder = self.work / "output" / "tokens" / named(number, "")
                tokenize_source(folder, [str(path)], loaded, shard_tokens=self.shard_tokens)
        write_json(self.work / "counts" / f"write-{rank}.json", removed)
        yield from ()


class Report(PipelineStep):
    """One index over the shards of all files, one report; then the output gets its name."""

    type, name = "📊 - STATS", "report"

    def __init__(self, number_of_files: int, tokenizer: str | None, settings: dict, work: Path, output: Path) -> None:
        super().__init__()
        self.number_of_files, self.tokenizer = number_of_files, tokenizer
        self.settings, self.work, self.output = settings, work, output

    def run(self, data: DocumentsPipeline = None, rank: int = 0, world_size: int = 1) -> DocumentsPipeline:
        counts = {
            step: [read_json(path) for path in sorted((self.work / "counts").glob(f"{step}-*.json"))] for step in STEPS
        }
        documents, size = (sum(task.get(key, 0) for task in counts["read"]) for key in ("documents", "bytes"))
        filtered: dict[str, Counter] = {}
        for task in counts["filter"] + counts["write"]:
            for kind, removed in task.items():
                filtered.setdefault(kind, Counter()).update(removed)
        report = {
            "documents_in": documents,
            "bytes_in": size,
            "documents_out": documents - sum(removed["documents"] for removed in filtered.values()),
            "bytes_out": size - sum(removed["bytes"] for removed in filtered.values()),
            "filtered": filtered,
            "reading": [line for task in counts["read"] for line in task["reading"]],
            "settings": self.settings,
        }
        folder = self.work / "output"
        if self.tokenizer and report["documents_out"]:
            tokens, loaded = folder / "tokens", load_tokenizer(self.tokenizer)
            shards = [
                {**shard, "file": f"{part.name}/{shard['file']}"}
                for part in sorted(path for path in tokens.iterdir() if path.is_dir())
                for shard in read_json(part / "index.json")["shards"]
            ]
            write_index(tokens, shards, token_dtype(loaded.vocab_size), loaded.vocab_size, loaded.hash)
        write_json(folder / "report.json", report)
        os.replace(folder, self.output)
        yield from ()
