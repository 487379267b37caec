"""How fast is the way from files to what training reads, and how much memory does it take?

    python -m eval.speed data --data ../shared/data/belle_chat_800.json

Inputs are made in a temporary folder (2.6 GB at the sizes below) by repeating the conversations given with new ids. Every
figure is of a process of its own, started for it: seconds by the clock, memory as the most that the process and its
children held together, looked at 50 times a second.

    conversations   100,000 conversations read, checked, tokenized, masked, ready to train
    memory          the same for ten times as many, over that peak
    shards          text to token shards by data_prep/mix_corpus.py, over `encode_batch` of `tokenizers` on the same text
    large           the memory of mix_corpus on 1 GB of text
    bpe             data_prep/train_tokenizer.py on 100 MB, from start to end, over the call of `train_from_iterator` of
                    `tokenizers` alone; beside it, over a script that reads the file, makes this call and saves
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
from data_prep.common.files import atomic_write, existing, read_json, read_jsonl, write_jsonl
from data_prep.train_tokenizer import SPLIT

PARTS = ("conversations", "memory", "shards", "large", "bpe")
MAX_LENGTH = 512  # tokens of a conversation, as in recipes/configs/belle/sft.yaml
BATCH = 1000  # texts that `encode_batch` is given at once

# The least that makes a tokenizer of the same kind out of the same file; it prints the seconds of the call.
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


class Measured(NamedTuple):
    """What a process took: seconds, MiB, and what it printed."""

    seconds: float
    peak: float
    printed: str


def measure(*command) -> Measured:
    """Run a Python command to its end and measure it. Exits as it does where it fails."""
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
    """Bytes of memory that a process and its children hold; 0 where it has just ended."""
    try:
        return sum(each.memory_info().rss for each in (process, *process.children(recursive=True)))
    except psutil.NoSuchProcess:
        return 0


def write_conversations(rows: list[dict], count: int, path: Path) -> None:
    """`count` conversations, the rows over and over with new ids, as one JSON list."""
    with atomic_write(path) as file:
        file.write("[\n")
        for number in tqdm(range(count), desc=path.name, unit="row", leave=False):
            row = {**rows[number % len(rows)], "id": str(number)}
            file.write(json.dumps(row, ensure_ascii=False) + ("\n]\n" if number == count - 1 else ",\n"))


def write_corpus(rows: list[dict], size: float, path: Path) -> None:
    """The conversations as documents {"id", "text"}, over and over until they are `size` bytes of text."""

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


def ready(path: Path, tokenizer: Path) -> Measured:
    """`load_tokenized` on a file of conversations, in a process of its own; its seconds are those of the call."""
    found = measure("-m", "eval.benchmarks.data", "load", path, tokenizer)
    return found._replace(seconds=last_number(found))


def shards(path: Path, tokenizer: Path, folder: Path) -> Measured:
    """mix_corpus on a corpus: the whole process, from the command to the shards."""
    output = folder / f"{path.stem}_tokens"
    config = {"tokenizer": str(tokenizer), "sources": {"text": {"files": [str(path)]}}, "passes": 1}
    config_path = folder / f"{path.stem}.yaml"
    config_path.write_text(json.dumps({**config, "output_dir": str(output)}))  # JSON is YAML
    return measure("-m", "data_prep.mix_corpus", "--config", config_path)


def data(arguments: argparse.Namespace) -> dict:
    """Seconds and memory from files to what training reads, beside what they should be."""
    rows = read_json(existing(arguments.data))
    if (
        not isinstance(rows, list)
        or not rows
        or not all(isinstance(row, dict) and "conversations" in row for row in rows)
    ):
        raise InputError(f"{arguments.data}: expected a list of {{'id', 'conversations'}}")
    parts = arguments.part or PARTS
    lines, metrics = [], {}

    def result(name: str, value: float, unit: str, reach: float, aim: float, higher: bool = False) -> None:
        def reached(bound: float) -> str:
            return "yes" if (value >= bound if higher else value <= bound) else "NO"

        metrics[name] = value
        lines.append(f"{name:36} {value:10.2f} {unit:6} {reach:8g} {reached(reach):4} {aim:8g} {reached(aim):4}")

    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        write_corpus(rows, arguments.corpus_bytes, folder / "corpus.jsonl")
        write_corpus(rows, min(arguments.corpus_bytes, 1e6), folder / "small.jsonl")
        tokenizer = folder / "tokenizer"
        measure("-m", "data_prep.train_tokenizer", "--corpus", folder / "small.jsonl", "--vocab_size", 6000,
                "--output_dir", tokenizer)  # fmt: skip
        if {"conversations", "memory"} & set(parts):
            write_conversations(rows, arguments.conversations, folder / "some.json")
            some = ready(folder / "some.json", tokenizer)
            print(f"{arguments.conversations:,} conversations: {some.seconds:.1f} s, {some.peak:.0f} MiB")
        if "conversations" in parts:
            result("conversations ready", some.seconds, "s", 60, 25)
            result("their peak memory", some.peak / 1024, "GiB", 1.5, 0.8)
        if "memory" in parts:
            many = 10 * arguments.conversations
            write_conversations(rows, many, folder / "many.json")
            found = ready(folder / "many.json", tokenizer)
            (folder / "many.json").unlink()
            print(f"{many:,} conversations: {found.seconds:.1f} s, {found.peak:.0f} MiB")
            result("peak memory of ten times as many", found.peak / 1024, "GiB", 1.5, 0.8)
            result("over the first", found.peak / some.peak, "times", 1.2, 1.2)
        if "shards" in parts:
            size = text_bytes(folder / "corpus.jsonl") / 1e6
            bare = last_number(measure("-m", "eval.benchmarks.data", "encode", folder / "corpus.jsonl", tokenizer))
            ours = shards(folder / "corpus.jsonl", tokenizer, folder)
            print(
                f"{size:.1f} MB of text: {size / ours.seconds:.2f} MB/s to shards, {size / bare:.2f} MB/s by encode_batch"
            )
            result("text to shards over encode_batch", bare / ours.seconds, "times", 0.7, 0.9, higher=True)
        if "large" in parts:
            write_corpus(rows, arguments.large_bytes, folder / "large.jsonl")
            found = shards(folder / "large.jsonl", tokenizer, folder)
            print(
                f"{arguments.large_bytes / 1e6:,.0f} MB of text to shards: {found.seconds:.1f} s, {found.peak:.0f} MiB"
            )
            result("peak memory of 1 GB to shards", found.peak / 1024, "GiB", 1.0, 0.5)
        if "bpe" in parts:
            bare = measure("-c", BARE_BPE, folder / "corpus.jsonl", arguments.vocab_size, SPLIT, folder / "bare.json")
            ours = measure("-m", "data_prep.train_tokenizer", "--corpus", folder / "corpus.jsonl", "--vocab_size",
                           arguments.vocab_size, "--output_dir", folder / "trained")  # fmt: skip
            print(
                f"BPE of {arguments.vocab_size:,} entries: {ours.seconds:.1f} s, by a bare script {bare.seconds:.1f} s, "
                f"{ours.seconds / bare.seconds:.2f} times; the call in it takes {last_number(bare):.1f} s"
            )
            result("BPE training over a bare call", ours.seconds / last_number(bare), "times", 1.2, 1.05)
    print(f"\n{'':36} {'measured':>10} {'':6} {'reach':>8} {'':4} {'aim':>8}")
    print("\n".join(lines))
    return {"metrics": metrics}


# What the processes do


def load(path: str, tokenizer: str) -> float:
    """Seconds of `load_tokenized`."""
    from transformers import AutoTokenizer

    from data_prep.tokens.sft_dataset import load_tokenized

    loaded = AutoTokenizer.from_pretrained(tokenizer)
    start = time.perf_counter()
    dataset = load_tokenized(path, loaded, MAX_LENGTH, on_bad="repair")  # Belle has turns of one speaker in a row
    assert len(dataset)
    return time.perf_counter() - start


def encode(path: str, tokenizer: str) -> float:
    """Seconds of `encode_batch` on texts that lie in memory, all cores at work."""
    from tokenizers import Tokenizer

    loaded, texts = Tokenizer.from_file(f"{tokenizer}/tokenizer.json"), [row["text"] for row in read_jsonl(path)]
    start = time.perf_counter()
    for first in range(0, len(texts), BATCH):
        loaded.encode_batch(texts[first : first + BATCH], add_special_tokens=False)
    return time.perf_counter() - start


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--data", required=True, help="conversations in the Baichuan format, to be repeated")
    parser.add_argument("--part", nargs="+", choices=PARTS, help="all without")
    parser.add_argument("--conversations", type=int, default=100_000)
    parser.add_argument("--corpus_bytes", type=float, default=100e6, help="of text, for shards and bpe")
    parser.add_argument("--large_bytes", type=float, default=1e9, help="of text, for large")
    parser.add_argument("--vocab_size", type=int, default=16_384, help="for bpe")


if __name__ == "__main__":
    name, *given = sys.argv[1:]
    print({"load": load, "encode": encode}[name](*given))
