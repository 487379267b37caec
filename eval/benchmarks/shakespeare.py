"""Benchmark of pretraining: seconds to nanoGPT's validation loss on tinyshakespeare.

    python -m eval.speed shakespeare
    python -m eval.speed shakespeare --dev --max_steps 480

Trains nanoGPT's small CPU model (4 layers, 128 wide, context 64, characters) by recipes/configs/shakespeare and takes
the seconds of the whole process to nanoGPT's validation loss of 1.8857. nanoGPT's own CPU recipe took 102 s to it on a
machine whose fp32 matrix product ran at 190 GFLOP/s: the ratio is taken at the same matrix rate, the better of those
measured before and after. Every seed is a run; the median counts, and the least and the most are printed beside it. If
a run ends above nanoGPT's loss, there is no ratio. The number of steps is to be chosen with `--dev`, where the last tenth
of the training text is left out of training and validates.
"""

import argparse
import math
import shutil
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

import torch

from data_prep.common.errors import InputError
from data_prep.common.files import read_json
from data_prep.common.machine import matrix_rate
from eval.benchmarks.repeats import Repeats

TEXT = "data/tinyshakespeare.txt"
URL = "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt"
NANOGPT_LOSS, NANOGPT_SECONDS, NANOGPT_RATE = 1.8857, 102.0, 190e9
TRAINING_BYTES = 1_003_854  # nanoGPT's split of tinyshakespeare: the first 90 % train, the rest validates


UNITS = {"validation loss": "nats", "whole process": "s", "fp32 matrix rate": "GFLOP/s", "over nanoGPT": ""}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--text", default=TEXT, help=f"tinyshakespeare, default: {TEXT}")
    parser.add_argument("--seeds", type=int, nargs="+", default=[42, 43, 44], help="a run for each, default: 42 43 44")
    parser.add_argument("--max_steps", type=int, help="steps of a run, default: those of the YAML")
    parser.add_argument(
        "--dev", action="store_true", help="validate on the last tenth of the training text: to choose --max_steps by"
    )


def run(arguments: argparse.Namespace) -> dict:
    """seconds of pretraining to nanoGPT's loss, over nanoGPT's at the same matrix rate"""
    if not Path(arguments.text).exists():
        raise InputError(f"{arguments.text}: no such file; fetch it by: curl -fL --create-dirs -o {TEXT} {URL}")
    text, options = Path(arguments.text).read_bytes(), []
    if arguments.max_steps is not None:
        options = ["--max_steps", arguments.max_steps]
    repeats = Repeats()
    # Paths in the YAMLs are relative: a run of the user's stays as it is.
    with tempfile.TemporaryDirectory() as folder:
        tokenize(*split(text, arguments.dev), Path(folder))
        for seed in arguments.seeds:
            repeats.add("shakespeare", partial(pretrain, Path(folder), ["--seed", seed, *options]))
    results, losses = repeats.results(UNITS), repeats.runs["validation loss"]
    if torch.accelerator.is_available():
        print("nanoGPT's time is that of a processor: no ratio here")
        del results["metrics"]["over nanoGPT"], results["units"]["over nanoGPT"], results["runs"]["over nanoGPT"]
        return results
    if above := sum(loss > NANOGPT_LOSS for loss in losses):
        print(f"{above} of {len(losses)} runs ended above nanoGPT's {NANOGPT_LOSS}: no time to that loss, no ratio")
        del results["metrics"]["over nanoGPT"]
    return results


def pretrain(folder: Path, options: list) -> dict[str, float]:
    """One run by the recipe with some options from the shards in `folder`."""
    rate, start = matrix_rate(torch.float32, seconds=2.0), time.perf_counter()
    python(folder, recipe("pretrain.py"), "--config", recipe("configs/shakespeare/pretrain.yaml"), *options)
    seconds = time.perf_counter() - start
    rate = max(rate, matrix_rate(torch.float32, seconds=2.0))
    base = folder / "runs/shakespeare/base"
    loss = read_json(base / "pretrain.json")["metrics"]["bits_per_byte"] * math.log(2)  # a character is a byte here
    shutil.rmtree(base)
    values = (loss, seconds, rate / 1e9, seconds * (rate / NANOGPT_RATE) / NANOGPT_SECONDS)
    return dict(zip(UNITS, values, strict=True))


def split(text: bytes, dev: bool) -> tuple[bytes, bytes]:
    """(training text, validation text) as nanoGPT splits, or of its training text nine tenths and the last."""
    train, heldout = text[:TRAINING_BYTES], text[TRAINING_BYTES:]
    if dev:
        end = TRAINING_BYTES * 9 // 10
        train, heldout = train[:end], train[end:]
    return train, heldout


def tokenize(train: bytes, heldout: bytes, folder: Path) -> None:
    """Make tokenizer and token shards in `folder`, where the YAMLs look for them."""
    data = folder / "runs/shakespeare/data"
    data.mkdir(parents=True)
    (data / "train.txt").write_bytes(train)
    (data / "val.txt").write_bytes(heldout)
    options = ["--corpus", data / "train.txt", "--vocab_size", 262, "--output_dir", data.parent / "tokenizer"]
    python(folder, "-m", "data_prep.train_tokenizer", *options)
    python(folder, "-m", "data_prep.mix_corpus", "--config", recipe("configs/shakespeare/mix.yaml"))


def recipe(path: str) -> Path:
    return Path(__file__).parents[2] / "recipes" / path


def python(folder: str | Path, *command) -> None:
    """Run a Python command in `folder` to its end."""
    subprocess.run([sys.executable, *map(str, command)], cwd=folder, check=True)
