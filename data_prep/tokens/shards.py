"""Token ids on disk: a folder of shards with an index. Readers memory-map it, so opening takes the same time at any size.

    index.json        dtype, vocab_size, tokenizer (its hash), tokens, documents, bytes, shards, and what the writer adds
    shard-00000.bin   token ids, little-endian uint16 (uint32 for vocabularies beyond 65,536), end of text after each document
    shard-00000.idx   two little-endian uint64 per document: where it ends in the shard, in tokens and in bytes of text

No document is split between shards. The pattern is Megatron-LM's indexed dataset (arXiv:1909.08053).
"""

import hashlib
import json
import os
from array import array
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from data_prep.common.errors import InputError
from data_prep.common.files import atomic_write, existing, read_json, write_json

SHARD_TOKENS = 2**26  # 128 MiB as uint16: the most that a killed run loses


def shard_name(number: int, ending: str) -> str:
    return f"shard-{number:05}.{ending}"


def token_dtype(vocab_size: int) -> str:
    """The NumPy name of the smallest integer type for the ids of `vocab_size` entries."""
    return "<u2" if vocab_size <= 2**16 else "<u4"


def tokenizer_hash(folder: str | Path) -> str:
    """SHA-256 of what determines ids in a tokenizer.json: saving it again or setting padding does not change it."""
    content = read_json(existing(Path(folder) / "tokenizer.json", "saving a fast tokenizer: save_pretrained(...)"))
    relevant = {key: value for key, value in content.items() if key not in ("padding", "truncation")}
    return hashlib.sha256(json.dumps(relevant, sort_keys=True).encode("ascii")).hexdigest()


def read_ends(path: Path) -> np.ndarray:
    """An .idx file, memory-mapped: (documents, 2), the ends in tokens and in bytes."""
    return np.memmap(path, dtype="<u8", mode="r").reshape(-1, 2)


def finished_shards(folder: Path, dtype: str) -> list[dict]:
    """The complete shards in `folder`, from number 0 on. The .idx of a shard is written last."""
    shards = []
    while (path := folder / shard_name(len(shards), "idx")).exists():
        ends, ids = read_ends(path), folder / shard_name(len(shards), "bin")
        tokens, size = (int(end) for end in ends[-1])
        if not ids.exists() or ids.stat().st_size != tokens * np.dtype(dtype).itemsize:
            break
        shards.append({"file": ids.name, "documents": len(ends), "tokens": tokens, "bytes": size})
    return shards


class ShardWriter:
    """Writes documents into shards of about `shard_tokens`: the document that fills a shard is its last.

    Resumes after the finished shards in the folder. A shard has another name while it is being written.

    Attributes: `shards`, the index entries of the finished shards.
    """

    def __init__(self, folder: Path, dtype: str, shard_tokens: int = SHARD_TOKENS) -> None:
        self.folder, self.dtype, self.shard_tokens = folder, dtype, shard_tokens
        folder.mkdir(parents=True, exist_ok=True)
        self.shards = finished_shards(folder, dtype)
        self._file, self._ends, self._tokens, self._bytes = None, array("Q"), 0, 0

    def add(self, ids: np.ndarray, size: int) -> None:
        """Add a document: its ids, which end with the end of text, and the size of its text in bytes."""
        if self._file is None:
            self._file = (self.folder / "shard.partial").open("wb", buffering=1 << 20)
        self._file.write(np.asarray(ids, self.dtype).tobytes())
        self._tokens, self._bytes = self._tokens + len(ids), self._bytes + size
        self._ends.extend((self._tokens, self._bytes))
        if self._tokens >= self.shard_tokens:
            self.close()

    def close(self) -> None:
        """Finish the current shard, if there is one."""
        if self._file is None:
            return
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        number = len(self.shards)
        os.replace(self._file.name, self.folder / shard_name(number, "bin"))
        with atomic_write(self.folder / shard_name(number, "idx"), "wb") as file:
            file.write(np.asarray(self._ends, "<u8").tobytes())
        self.shards.append(
            {
                "file": shard_name(number, "bin"),
                "documents": len(self._ends) // 2,
                "tokens": self._tokens,
                "bytes": self._bytes,
            }
        )
        self._file, self._ends, self._tokens, self._bytes = None, array("Q"), 0, 0


def write_index(folder: Path, shards: list[dict], dtype: str, vocab_size: int, tokenizer: str, **more) -> dict:
    """Write index.json, the last file of a folder of shards. Returns its content."""
    totals = {key: sum(shard[key] for shard in shards) for key in ("tokens", "documents", "bytes")}
    index = {"dtype": dtype, "vocab_size": vocab_size, "tokenizer": tokenizer, **totals, **more, "shards": shards}
    write_json(folder / "index.json", index)
    return index


def beginning_hash(ids: list) -> np.ndarray:
    """A hash of the first ids of documents, place by place: integers, or arrays with an id of each document."""
    found = np.uint64(0)
    for each in ids:
        with np.errstate(over="ignore"):
            found = found * np.uint64(6364136223846793005) + np.asarray(each, np.uint64)
    return found


class TokenShards:
    """The ids in a folder of shards as one long array: `len` is in tokens, and slices are NumPy arrays.

    Raises InputError if the folder or a shard is missing, or if the size of a shard is not that in the index.

    Attributes: `index`, the content of index.json; `documents`, their number.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = existing(folder, "python -m data_prep.mix_corpus")
        self.index = read_json(existing(self.folder / "index.json", "python -m data_prep.mix_corpus"))
        shards, dtype = self.index["shards"], np.dtype(self.index["dtype"])
        for shard in shards:
            expected, found = shard["tokens"] * dtype.itemsize, existing(self.folder / shard["file"]).stat().st_size
            if found != expected:
                raise InputError(
                    f"{self.folder / shard['file']}: found {found:,} bytes, expected {expected:,} as the index says: the copy "
                    "is incomplete; copy it again, or rebuild it with python -m data_prep.mix_corpus"
                )
        self._ids = [np.memmap(self.folder / shard["file"], dtype=dtype, mode="r") for shard in shards]
        self._starts = np.cumsum([0] + [shard["tokens"] for shard in shards])
        self._ends: list[np.ndarray] = []
        self._files: list = []
        self._document_starts = np.cumsum([0] + [shard["documents"] for shard in shards])
        self.documents = int(self._document_starts[-1])

    def __reduce__(self):  # workers of a DataLoader get the name of the folder, not the data
        return type(self), (self.folder,)

    def __len__(self) -> int:
        return int(self._starts[-1])

    def __getitem__(self, span: slice) -> np.ndarray:
        start, stop, step = span.indices(len(self))
        if step != 1:
            raise ValueError(f"slices of shards have step 1, not {step}")
        parts = []
        shard = int(np.searchsorted(self._starts, start, side="right")) - 1
        while start < stop:
            end = min(stop, int(self._starts[shard + 1]))
            parts.append(self._ids[shard][start - self._starts[shard] : end - self._starts[shard]])
            start, shard = end, shard + 1
        if len(parts) == 1:
            return parts[0]
        return np.concatenate(parts) if parts else np.empty(0, self.index["dtype"])

    def documents_like(self, documents: list[np.ndarray]) -> Iterator[bytes]:
        """The ids, as bytes, of the documents as long as one of `documents` and with the same beginning.

        So given documents are found among many without reading all: of the others a few ids are looked at.
        """
        lengths = [len(document) for document in documents]
        size = min(8, *lengths)
        beginnings = [beginning_hash([int(ids) for ids in document[:size]]) for document in documents]
        for ids, shard, first in zip(self._ids, self.index["shards"], self._document_starts, strict=False):
            ends = read_ends((self.folder / shard["file"]).with_suffix(".idx"))[:, 0].astype(np.int64)
            starts = np.concatenate([[0], ends[:-1]])
            alike = np.flatnonzero(np.isin(ends - starts, lengths))
            hashes = beginning_hash([ids[starts[alike] + place].astype(np.uint64) for place in range(size)])
            for inside in alike[np.isin(hashes, beginnings)]:
                yield self.document(int(first + inside))[0].tobytes()

    def document(self, number: int) -> tuple[np.ndarray, int]:
        """The ids of document `number` (from 0) with its end of text, and the size of its text in bytes."""
        if not self._ends:
            files = [self.folder / shard["file"] for shard in self.index["shards"]]
            self._ends = [read_ends(file.with_suffix(".idx")) for file in files]
            # Read, not mapped: mapped pages count as memory of the process, and a mixture reads them all.
            self._files = [file.open("rb", buffering=0) for file in files]
        shard = int(np.searchsorted(self._document_starts, number, side="right")) - 1
        ends, inside = self._ends[shard], number - int(self._document_starts[shard])
        start, start_byte = ends[inside - 1].tolist() if inside else (0, 0)
        end, end_byte = ends[inside].tolist()
        file, dtype = self._files[shard], self._ids[shard].dtype
        file.seek(start * dtype.itemsize)
        return np.frombuffer(file.read((end - start) * dtype.itemsize), dtype), end_byte - start_byte

    def check_tokenizer(self, folder: str | Path, entries: int) -> None:
        """Raise InputError if the ids are not of the tokenizer in `folder`, which has `entries` entries."""
        if self.index["vocab_size"] != entries:
            what = f"tokenized with {self.index['vocab_size']:,} entries, but {folder} has {entries:,}"
        elif self.index["tokenizer"] != tokenizer_hash(folder):
            what = f"tokenized with a tokenizer other than {folder}, with as many entries"
        else:
            return
        raise InputError(f"{self.folder}: {what}; run data_prep.mix_corpus again with this tokenizer")
