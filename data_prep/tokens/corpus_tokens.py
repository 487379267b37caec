"""Tokenize one source of a mixture into shards; an interrupted run resumes after its last complete shard.

`tokenizers` encodes two batches of texts at the same time, so that no core waits while the ids of a finished batch are
written. The ids of a document depend neither on its batch nor on the number of threads.
"""

import itertools
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tokenizers import Tokenizer
from tqdm.auto import tqdm

from data_prep.common.batches import batched_by_length
from data_prep.common.errors import InputError
from data_prep.common.files import existing, read_json, write_json
from data_prep.common.parallel import submit_ahead
from data_prep.common.text import counted
from data_prep.readers.documents import read_documents, reading_counts, stamps
from data_prep.rows.bad_rows import BadRows
from data_prep.tokens.shards import ShardWriter, TokenShards, token_dtype, tokenizer_hash, write_index

BATCH_BYTES = 1_000_000  # of text; a batch in work takes about 25 times as much memory
IN_WORK = 2  # batches tokenized at the same time


class CorpusTokenizer(NamedTuple):
    """What tokenizing a corpus needs of a tokenizer folder, read without `transformers`, which is slow to import."""

    tokenizer: Tokenizer
    end_of_text: int
    vocab_size: int
    hash: str
    special_tokens: list[str]


def load_tokenizer(folder: str | Path) -> CorpusTokenizer:
    """The tokenizer in `folder`, set to encode special-token text in a document as ordinary characters.

    Raises InputError if there is no tokenizer.json or no end-of-text token.
    """
    folder = existing(folder, "python -m data_prep.train_tokenizer")
    path = existing(folder / "tokenizer.json", "saving a fast tokenizer: save_pretrained(...)")
    end = read_json(folder / "tokenizer_config.json").get("eos_token")
    end = end["content"] if isinstance(end, dict) else end
    tokenizer = Tokenizer.from_file(str(path))
    if end is None or tokenizer.token_to_id(end) is None:
        raise InputError(f"{folder}: found {end!r} as eos_token; expected a token that ends documents")
    tokenizer.no_truncation()
    tokenizer.no_padding()
    tokenizer.encode_special_tokens = True
    special = [token.content for token in tokenizer.get_added_tokens_decoder().values() if token.special]
    return CorpusTokenizer(
        tokenizer,
        tokenizer.token_to_id(end),
        tokenizer.get_vocab_size(with_added_tokens=True),
        tokenizer_hash(folder),
        special,
    )


def encode(texts: Iterable[str], tokenizer: CorpusTokenizer) -> Iterator[tuple[np.ndarray, int]]:
    """(ids followed by the end of text, bytes of the text as UTF-8) of each text, in order."""
    dtype, end = token_dtype(tokenizer.vocab_size), tokenizer.end_of_text

    def encode_batch(batch: list[str]) -> list[tuple[np.ndarray, int]]:
        encodings = tokenizer.tokenizer.encode_batch_fast(batch, add_special_tokens=False)
        return [
            (np.array([*encoding.ids, end], dtype), len(text.encode("utf-8")))
            for text, encoding in zip(batch, encodings, strict=True)
        ]

    with ThreadPoolExecutor(IN_WORK) as pool:
        batches = batched_by_length(texts, BATCH_BYTES)
        for _, encoded in submit_ahead(partial(pool.submit, encode_batch), batches, IN_WORK):
            yield from encoded


def encoded_documents(paths: str | Path | Iterable[str | Path], tokenizer: str | Path) -> list[np.ndarray]:
    """The ids of each document in files, by the tokenizer in a folder, as they are in shards: end of text included."""
    return [ids for ids, _ in encode(read_documents(paths), load_tokenizer(tokenizer))]


def enough(tokens: int, documents: int, total_tokens: int, shuffle_buffer: int) -> bool:
    """Whether the documents that have left a shuffle buffer hold `total_tokens`: no mixture needs more of a source."""
    return documents > shuffle_buffer and tokens * (documents - shuffle_buffer) >= total_tokens * documents


def fingerprint(files: list[str], tokenizer: CorpusTokenizer, **settings) -> dict:
    """All that the shards of a source depend on: a source is resumed only if its fingerprint is unchanged."""
    return {"files": stamps(files), "tokenizer": tokenizer.hash, **settings}


def tokenize_source(
    folder: Path,
    files: list[str],
    tokenizer: CorpusTokenizer,
    *,
    text_column: str = "text",
    on_bad: str = "error",
    most: tuple[int, int] | None = None,
    shard_tokens: int,
    expected_bytes: int | None = None,
) -> TokenShards:
    """The documents of `files` as shards in `folder`, created or resumed.

    Args:
        most: (tokens, documents in a shuffle buffer): stop reading when there is `enough`; None: read everything.
        shard_tokens: tokens per shard, about.
        expected_bytes: of text, for the progress bar.
    """
    name, dtype = folder.name, token_dtype(tokenizer.vocab_size)
    settings = {
        "text_column": text_column,
        "on_bad": on_bad,
        "most": most and list(most),
        "shard_tokens": shard_tokens,
    }
    made_from = fingerprint(files, tokenizer, **settings)
    state = folder / "source.json"
    if folder.exists() and (not state.exists() or read_json(state) != made_from):
        print(f"{name}: files or settings differ from those of the interrupted run: tokenizing from the start")
        shutil.rmtree(folder)
    if (folder / "index.json").exists():
        print(f"{name}: tokenized by the interrupted run")
        return TokenShards(folder)
    folder.mkdir(parents=True, exist_ok=True)
    write_json(state, made_from)

    writer = ShardWriter(folder, dtype, shard_tokens)
    documents, tokens, size = (sum(shard[key] for shard in writer.shards) for key in ("documents", "tokens", "bytes"))
    if documents:
        print(f"{name}: {documents:,} documents were tokenized by the interrupted run; resuming after them")
    counts, bad_rows = Counter(), BadRows(on_bad, folder / "quarantine.jsonl")

    def texts() -> Iterator[str]:
        for text in read_documents(files, text_column=text_column, bad_rows=bad_rows, counts=counts):
            counts["special"] += any(special in text for special in tokenizer.special_tokens)
            yield text

    with tqdm(
        total=expected_bytes, initial=size, unit="B", unit_scale=True, desc=f"tokenizing {name}", disable=None
    ) as bar:
        for ids, length in encode(itertools.islice(texts(), documents, None), tokenizer):
            if most and enough(tokens, documents, *most):
                print(f"{name}: not read to its end: the mixture needs no more than its first {tokens:,} tokens")
                break
            writer.add(ids, length)
            documents, tokens = documents + 1, tokens + len(ids)
            bar.update(length)
    writer.close()
    bad_rows.close()  # if reading stopped early, `read_documents` has not closed it
    for line in reading_counts(bad_rows, counts):
        print(f"{name}: {line}")
    if counts["special"]:
        print(
            f"{name}: {counted(counts['special'], 'document')} with special-token text, encoded as ordinary characters"
        )
    write_index(folder, writer.shards, dtype, tokenizer.vocab_size, tokenizer.hash)
    return TokenShards(folder)
