"""Benchmark of data preparation: speed and peak memory from files to what training reads.

    python -m eval.speed data

Inputs are made in a temporary folder (2.6 GB at the default sizes) by repeating the given conversations with new ids.
Each result is of a process of its own: seconds by the clock, memory as the most that the process and its children held
together, sampled 50 times a second. Every part is measured `--repeats` times, one after the other; the median counts, and
the least and the most are printed beside it.

    conversations   100,000 conversations read, checked, tokenized, masked, ready to train
    memory          the same for ten times as many, over that peak
    shards          text to token shards by data_prep.mix_corpus, over `encode_batch` of `tokenizers` on the same text
    large           the memory of data_prep.mix_corpus on 1 GB of text
    bpe             data_prep.train_tokenizer on 100 MB, from start to end, over the call of `train_from_iterator` of
                    `tokenizers` alone; printed too: over a script that reads the file, makes this call and saves
"""

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import psutil
from tqdm.auto import tqdm

from data_prep.common.errors import InputError
from data_prep.common.files import atomic_write, read_json, read_jsonl, write_jsonl
from data_prep.train_tokenizer import SPLIT
from eval.benchmarks.repeats import Repeats

CONVERSATIONS = "data/belle_chat_ramdon_10k.json"
URL = "https://raw.githubusercontent.com/baichuan-inc/Baichuan2/main/fine-tune/data/belle_chat_ramdon_10k.json"
PARTS = ("conversations", "memory", "shards", "large", "bpe")
UNITS = {
    "conversations ready": "s",
    "their peak memory": "GiB",
    "peak memory of ten times as many": "GiB",
    "over the first": "times",
    "text to shards over encode_batch": "times",
    "peak memory of text to shards": "GiB",
    "BPE training over a bare call": "times",
}
MAX_LENGTH = 512  # tokens of a conversation, as in recipes/configs/belle/sft.yaml
BATCH = 1000  # texts that `encode_batch` is given at once

# The shortest script that trains a tokenizer of the same kind on the same file; it prints the seconds of the call.
BARE_BPE = """
import json, sys, time
from tokenizers import Regex, Tokenizer, models, pre_tokenizers, trainers
path, vocab_size, split, output = sys.argv[1:]
with open(path, encoding="utf-8") as file:
    texts = [json.loads(line)["text"] for line in file]
tokenizer, byte_level = Tokenizer(models.BPE()), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
words = pre_tokenizers.Split(Regex(split), behavior="isolated")
tokenizer.pre_tokenizer = pre_tokenizers.Sequence([words, byte_level])
alphabet = byte_level.alphabet()
trainer = trainers.BpeTrainer(vocab_size=int(vocab_size), initial_alphabet=alphabet, show_progress=False)
start = time.perf_counter()
tokenizer.train_from_iterator(texts, trainer)
print(time.perf_counter() - start)
tokenizer.save(output)
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--data", default=CONVERSATIONS, help=f"conversations in the Baichuan format (default: {CONVERSATIONS})"
    )
    parser.add_argument("--part", nargs="+", choices=PARTS, default=PARTS, help="parts to measure (default: all)")
    parser.add_argument(
        "--conversations", type=int, default=100_000, help="conversations to prepare (default: 100,000)"
    )
    parser.add_argument(
        "--corpus_bytes", type=float, default=100e6, help="bytes of text for shards and bpe (default: 1e8)"
    )
    parser.add_argument("--large_bytes", type=float, default=1e9, help="bytes of text for large (default: 1e9)")
    parser.add_argument("--vocab_size", type=int, default=16_384, help="vocabulary of bpe (default: 16384)")
    parser.add_argument("--repeats", type=int, default=3, help="runs of each measurement (default: 3)")


def run(arguments: argparse.Namespace) -> dict:
    """speed and peak memory from files to what training reads"""
    if arguments.repeats < 1:
        raise InputError(f"--repeats {arguments.repeats}: expected at least 1")
    rows, repeats = load_rows(arguments.data), Repeats()
    for _ in range(arguments.repeats):
        with tempfile.TemporaryDirectory() as folder:
            measure_parts(rows, arguments, Path(folder), repeats)
    sizes = {name: getattr(arguments, name) for name in ("conversations", "corpus_bytes", "large_bytes", "vocab_size")}
    return {**repeats.results(UNITS), "settings": sizes}


def measure_parts(rows: list[dict], arguments: argparse.Namespace, folder: Path, repeats: Repeats) -> None:
    """Measure every part once, on inputs made in an empty folder."""
    parts, tokenizer, corpus = set(arguments.part), folder / "tokenizer", folder / "corpus.jsonl"
    write_corpus(rows, min(arguments.corpus_bytes, 1e6), folder / "small.jsonl")
    train_tokenizer(folder / "small.jsonl", 6000, tokenizer)
    if parts & {"conversations", "memory"}:
        repeats.add("conversations", lambda: conversations(rows, arguments.conversations, folder, tokenizer, parts))
    if parts & {"shards", "bpe"}:
        write_corpus(rows, arguments.corpus_bytes, corpus)
    if "shards" in parts:
        repeats.add("shards", lambda: shards_over_encode_batch(corpus, tokenizer))
    if "large" in parts:
        repeats.add("large", lambda: large_shards(rows, arguments.large_bytes, folder, tokenizer))
    if "bpe" in parts:
        repeats.add("bpe", lambda: bpe_over_bare_call(corpus, arguments.vocab_size))


def load_rows(path: str | Path) -> list[dict]:
    """The rows of a file of conversations; raises InputError if there is none, or something else in it."""
    if not Path(path).exists():
        raise InputError(f"{path}: no such file; fetch it by: curl -fL --create-dirs -o {CONVERSATIONS} {URL}")
    rows = read_json(path)
    if isinstance(rows, list) and rows and all(isinstance(row, dict) and "conversations" in row for row in rows):
        return rows
    raise InputError(f"{path}: expected a list of {{'id', 'conversations'}}")


# The parts


def conversations(rows: list[dict], count: int, folder: Path, tokenizer: Path, parts: set[str]) -> dict[str, float]:
    """`count` conversations made ready to train on, and, for the part memory, ten times as many."""
    first, metrics = ready(rows, count, folder, tokenizer), {}
    if "conversations" in parts:
        metrics |= {"conversations ready": first.seconds, "their peak memory": first.peak / 1024}
    if "memory" in parts:
        many = ready(rows, 10 * count, folder, tokenizer)
        metrics |= {"peak memory of ten times as many": many.peak / 1024, "over the first": many.peak / first.peak}
    return metrics


def shards_over_encode_batch(corpus: Path, tokenizer: Path) -> dict[str, float]:
    bare = last_number(measure("-m", "eval.benchmarks.data", "encode", corpus, tokenizer))
    ours, size = shards(corpus, tokenizer), text_bytes(corpus) / 1e6
    print(f"{size:.1f} MB of text: {size / ours.seconds:.2f} MB/s to shards, {size / bare:.2f} MB/s by encode_batch")
    return {"text to shards over encode_batch": bare / ours.seconds}


def large_shards(rows: list[dict], size: float, folder: Path, tokenizer: Path) -> dict[str, float]:
    write_corpus(rows, size, folder / "large.jsonl")
    found = shards(folder / "large.jsonl", tokenizer)
    print(f"{size / 1e6:,.0f} MB of text to shards: {found.seconds:.1f} s, {found.peak:.0f} MiB")
    return {"peak memory of text to shards": found.peak / 1024}


def bpe_over_bare_call(corpus: Path, vocab_size: int) -> dict[str, float]:
    bare = measure("-c", BARE_BPE, corpus, vocab_size, SPLIT, corpus.with_name("bare.json"))
    ours = train_tokenizer(corpus, vocab_size, corpus.with_name("trained"))
    call = last_number(bare)
    print(
        f"BPE of {vocab_size:,} entries: {ours.seconds:.1f} s, by a bare script {bare.seconds:.1f} s, "
        f"{ours.seconds / bare.seconds:.2f} times; the call in it takes {call:.1f} s"
    )
    return {"BPE training over a bare call": ours.seconds / call}


# Inputs and measured processes


class Measured(NamedTuple):
    """What a process took, seconds and MiB, and what it printed."""

    seconds: float
    peak: float
    printed: str


def measure(*command) -> Measured:
    """Run a Python command to its end and measure it; exits with an error if it fails."""
    start, peak = time.perf_counter(), 0
    with tempfile.TemporaryFile("w+") as output, tempfile.TemporaryFile("w+") as errors:
        process = psutil.Popen([sys.executable, *map(str, command)], stdout=output, stderr=errors)
        while process.poll() is None:
            peak = max(peak, resident(process))
            time.sleep(0.02)
        seconds = time.perf_counter() - start
        if process.returncode:
            errors.seek(0)
            sys.exit(f"error: {' '.join(map(str, command))} ended with {process.returncode}: {errors.read()[-2000:]}")
        output.seek(0)
        return Measured(seconds, peak / 2**20, output.read())


def last_number(found: Measured) -> float:
    return float(found.printed.split()[-1])


def resident(process: psutil.Process) -> int:
    """Bytes of memory that a process and its children hold; 0 if it has just ended."""
    try:
        return sum(each.memory_info().rss for each in (process, *process.children(recursive=True)))
    except psutil.NoSuchProcess:
        return 0


def write_conversations(rows: list[dict], count: int, path: Path) -> None:
    """Write `count` conversations, the rows repeated with new ids, as one JSON list."""
    with atomic_write(path) as file:
        file.write("[\n")
        for number in tqdm(range(count), desc=path.name, unit="row", leave=False):
            row = {**rows[number % len(rows)], "id": str(number)}
            file.write(json.dumps(row, ensure_ascii=False) + ("\n]\n" if number == count - 1 else ",\n"))


def write_corpus(rows: list[dict], size: float, path: Path) -> None:
    """Write the conversations as documents {"id", "text"}, repeated until they are `size` bytes of text."""

    def documents() -> Iterator[dict]:
        number = written = 0
        while written < size:
            text = "\n\n".join(turn["value"] for turn in rows[number % len(rows)]["conversations"])
            written += len(text.encode("utf-8"))
            yield {"id": str(number), "text": text}
            number += 1

    write_jsonl(path, documents())


def text_bytes(path: Path) -> int:
    return sum(len(row["text"].encode("utf-8")) for row in read_jsonl(path))


def ready(rows: list[dict], count: int, folder: Path, tokenizer: Path) -> Measured:
    """`load_tokenized` on a file of `count` conversations; the seconds are those of the call."""
    path = folder / "conversations.json"
    write_conversations(rows, count, path)
    found = measure("-m", "eval.benchmarks.data", "load", path, tokenizer)
    found = found._replace(seconds=last_number(found))
    path.unlink()
    print(f"{count:,} conversations: {found.seconds:.1f} s, {found.peak:.0f} MiB")
    return found


def train_tokenizer(corpus: Path, vocab_size: int, folder: Path) -> Measured:
    """data_prep.train_tokenizer on a corpus."""
    options = ["--corpus", corpus, "--vocab_size", vocab_size, "--output_dir", folder]
    return measure("-m", "data_prep.train_tokenizer", *options)


def shards(corpus: Path, tokenizer: Path) -> Measured:
    """data_prep.mix_corpus on a corpus: the whole process, from the command to the shards."""
    config = {
        "tokenizer": str(tokenizer),
        "sources": {"text": {"files": [str(corpus)]}},
        "passes": 1,
        "output_dir": str(corpus.with_name(f"{corpus.stem}_tokens")),
    }
    path = corpus.with_suffix(".yaml")
    path.write_text(json.dumps(config))  # JSON is YAML
    return measure("-m", "data_prep.mix_corpus", "--config", path)


# What the processes do


def load(path: str, tokenizer: str) -> float:
    """Seconds of `load_tokenized`."""
    from data_prep.models.loading import load_tokenizer
    from data_prep.tokens.sft_dataset import load_tokenized

    loaded = load_tokenizer(tokenizer)
    start = time.perf_counter()
    dataset = load_tokenized(path, loaded, MAX_LENGTH, on_bad="repair")  # Belle has turns of one speaker in a row
    assert len(dataset)
    return time.perf_counter() - start


def encode(path: str, tokenizer: str) -> float:
    """Seconds of `encode_batch` on texts in memory, on all cores."""
    from tokenizers import Tokenizer

    loaded, texts = Tokenizer.from_file(f"{tokenizer}/tokenizer.json"), [row["text"] for row in read_jsonl(path)]
    start = time.perf_counter()
    for first in range(0, len(texts), BATCH):
        loaded.encode_batch(texts[first : first + BATCH], add_special_tokens=False)
    return time.perf_counter() - start


if __name__ == "__main__":
    name, *paths = sys.argv[1:]
    print({"load": load, "encode": encode}[name](*paths))
