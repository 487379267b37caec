"""Mix corpus files by weights in tokens, tokenize them, and write one file of token ids that pretraining reads.

    python -m data_prep.mix_corpus --config recipes/configs/quickstart/mix.yaml

The mixture LLaMA was trained on is the pattern (arXiv:2302.13971, table 1): CommonCrawl 67 %, C4 15 %, GitHub 4.5 %,
Wikipedia 4.5 %, books 4.5 %, arXiv 2.5 %, StackExchange 2 % of the *tokens*, whatever the sizes of the sources: a small
good source is read several times, a large one in part. Documents are joined with the end-of-text token. It streams:
documents pass through a shuffle buffer of fixed size, so the memory does not grow with the corpus. In the output
folder: `tokens.bin` (little-endian uint16, or uint32 for vocabularies beyond 65,536), and `mixture.json` that says what
is in it, the bytes included, so that a loss per token can be turned into bits per byte.
"""

import argparse
import itertools
import random
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import yaml
from tqdm.auto import tqdm

from data_prep.corpus import read_documents
from data_prep.files import InputError, atomic_folder, existing, read_json, run_main, vacant, write_json

KEYS = {"tokenizer", "sources", "total_tokens", "passes", "shuffle_buffer", "seed", "output_dir"}


def shuffled(items: Iterator, buffer_size: int, rng: random.Random) -> Iterator:
    """`items` in an order that is random within a window of `buffer_size` (1: the order they came in)."""
    buffer = list(itertools.islice(items, buffer_size))
    for item in items:
        index = rng.randrange(len(buffer))
        yield buffer[index]
        buffer[index] = item
    if buffer_size > 1:
        rng.shuffle(buffer)
    yield from buffer


class Source:
    """One source of the mixture, read again from the start, in another order, whenever it ends.

    Attributes: `tokens`, `documents` and `bytes` drawn so far.
    """

    def __init__(self, name: str, files: list[str], weight: float, tokenizer, buffer_size: int, seed: int) -> None:
        self.name, self.files, self.weight = name, files, weight
        self.tokens = self.documents = self.bytes = 0
        self._drawn = self._draw(tokenizer, buffer_size, seed)

    def _draw(self, tokenizer, buffer_size: int, seed: int) -> Iterator[tuple[list[int], int]]:
        for number in itertools.count():
            texts = itertools.chain.from_iterable(map(read_documents, self.files))
            texts = shuffled(texts, buffer_size, random.Random(f"{seed} {self.name} {number}"))
            while batch := list(itertools.islice(texts, 64)):
                for text, ids in zip(batch, tokenizer(batch, add_special_tokens=False)["input_ids"], strict=True):
                    yield [*ids, tokenizer.eos_token_id], len(text.encode("utf-8"))

    def next_document(self) -> list[int]:
        """The ids of the next document, end of text included."""
        ids, size = next(self._drawn)
        self.tokens, self.documents, self.bytes = self.tokens + len(ids), self.documents + 1, self.bytes + size
        return ids


def count_tokens(files: list[str], tokenizer) -> int:
    """Tokens in one pass over `files`, the end-of-text tokens included."""
    texts, total = itertools.chain.from_iterable(map(read_documents, files)), 0
    while batch := list(itertools.islice(texts, 256)):
        total += sum(len(ids) + 1 for ids in tokenizer(batch, add_special_tokens=False)["input_ids"])
    return total


def mix(sources: list[Source], total_tokens: int) -> Iterator[list[int]]:
    """Documents (token ids, end of text included) until `total_tokens` are drawn, shares in tokens as the weights ask.

    The next document always comes from the source furthest behind its share, so the realised shares differ from the
    asked ones by less than one document per source.
    """
    weight_sum = sum(source.weight for source in sources)
    drawn = 0
    while drawn < total_tokens:
        behind = max(sources, key=lambda source: source.weight / weight_sum * (drawn + 1) - source.tokens)
        ids = behind.next_document()
        drawn += len(ids)
        yield ids


def table(sources: list[Source], tokens_per_pass: dict[str, int]) -> str:
    """Asked against realised share of the tokens, and passes, one source a line."""
    weight_sum, total = sum(source.weight for source in sources), sum(source.tokens for source in sources)
    lines = [f"{'source':20} {'asked':>7} {'realised':>9} {'tokens':>13} {'documents':>10} {'passes':>7}"]
    for source in sources:
        lines.append(
            f"{source.name:20} {source.weight / weight_sum:7.2%} {source.tokens / total:9.2%} {source.tokens:13,} "
            f"{source.documents:10,} {source.tokens / tokens_per_pass[source.name]:7.2f}"
        )
    return "\n".join(lines)


def read_config(path: str | Path) -> dict:
    """The mixture's YAML, checked: every key known, every weight positive, every file there."""
    try:
        config = yaml.safe_load(existing(path).read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise InputError(f"{path}: not YAML ({error})") from None
    if not isinstance(config, dict):
        raise InputError(f"{path}: expected keys and values, found {type(config).__name__}")
    if unknown := set(config) - KEYS:
        raise InputError(f"{path}: unknown key {sorted(unknown)}; the keys are {sorted(KEYS)}")
    if missing := {"tokenizer", "sources", "output_dir"} - set(config):
        raise InputError(f"{path}: missing key {sorted(missing)}")
    if ("total_tokens" in config) == ("passes" in config):
        raise InputError(f"{path}: give either total_tokens or passes (over the whole corpus)")
    for name, source in config["sources"].items():
        if set(source) - {"files", "weight"} or "files" not in source:
            raise InputError(f"{path}: source {name}: expected 'files' and 'weight', found {sorted(source)}")
        if source.get("weight", 1) <= 0:
            raise InputError(f"{path}: source {name}: the weight must be positive, found {source['weight']}")
        for file in source["files"]:
            existing(file)
    existing(config["tokenizer"], "python -m data_prep.train_tokenizer")
    return config


def read_tokens(folder: str | Path) -> tuple[np.ndarray, dict]:
    """(token ids, mapped and not read; mixture.json) of a folder that this script wrote."""
    meta = read_json(existing(folder, "python -m data_prep.mix_corpus") / "mixture.json")
    return np.memmap(Path(folder) / "tokens.bin", dtype=meta["dtype"], mode="r"), meta


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", required=True)
    config = read_config(parser.parse_args().config)
    vacant(config["output_dir"])
    from transformers import AutoTokenizer  # slow to import: after the arguments have been checked

    tokenizer = AutoTokenizer.from_pretrained(config["tokenizer"])
    per_pass = {name: count_tokens(source["files"], tokenizer) for name, source in config["sources"].items()}
    total_tokens = config.get("total_tokens") or int(config["passes"] * sum(per_pass.values()))
    sources = [
        # A source without a weight is as heavy as it is long: all of them together then read every file equally often.
        Source(name, source["files"], source.get("weight", per_pass[name]), tokenizer,
               config.get("shuffle_buffer", 10_000), config.get("seed", 42))
        for name, source in config["sources"].items()
    ]  # fmt: skip
    dtype = "<u2" if len(tokenizer) <= 2**16 else "<u4"
    with atomic_folder(config["output_dir"]) as folder:
        with (folder / "tokens.bin").open("wb") as file, tqdm(total=total_tokens, unit="tok", desc="mixing") as bar:
            for ids in mix(sources, total_tokens):
                file.write(np.asarray(ids, dtype=dtype).tobytes())
                bar.update(len(ids))
        meta = {
            "dtype": dtype,
            "vocab_size": len(tokenizer),
            "tokens": sum(source.tokens for source in sources),
            "bytes": sum(source.bytes for source in sources),
            "sources": {
                source.name: {
                    "asked_weight": source.weight,
                    "tokens": source.tokens,
                    "documents": source.documents,
                    "passes": source.tokens / per_pass[source.name],
                }
                for source in sources
            },
        }
        write_json(folder / "mixture.json", meta)
    print(table(sources, per_pass))
    print(f"mixed {meta['tokens']:,} tokens ({meta['bytes']:,} bytes); they are in {config['output_dir']}")


if __name__ == "__main__":
    run_main(main)
