"""Benchmark of pretraining: seconds to nanoGPT's validation loss on tinyshakespeare.

    python -m eval.speed shakespeare

Trains nanoGPT's small CPU model (4 layers, 128 wide, context 64, characters) by recipes/configs/shakespeare and takes
the seconds of the whole process to nanoGPT's validation loss of 1.8857. nanoGPT's own CPU recipe took 102 s to it on a
machine whose fp32 matrix product ran at 190 GFLOP/s: the ratio is taken at the same matrix rate.
"""

import argparse
import math
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

from data_prep.common.errors import InputError
from data_prep.common.files import read_json
from data_prep.common.machine import matrix_rate

TEXT = "data/tinyshakespeare.txt"
URL = "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt"
NANOGPT_LOSS, NANOGPT_SECONDS, NANOGPT_RATE = 1.8857, 102.0, 190e9
TRAINING_BYTES = 1_003_854  # nanoGPT's split of tinyshakespeare: the first 90 % train, the rest validates


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--text", default=TEXT, help=f"tinyshakespeare, default: {TEXT}")


def run(arguments: argparse.Namespace) -> dict:
    """seconds of pretraining to nanoGPT's loss, over nanoGPT's at the same matrix rate"""
    if not Path(arguments.text).exists():
        raise InputError(f"{arguments.text}: no such file; fetch it by: curl -fL --create-dirs -o {TEXT} {URL}")
    text = Path(arguments.text).read_bytes()
    with (
        tempfile.TemporaryDirectory() as folder
    ):  # paths in the YAMLs are relative: a run of the user's stays as it is
        tokenize(text, Path(folder))
        rate = matrix_rate(torch.float32, seconds=2.0)
        start = time.perf_counter()
        python(folder, recipe("pretrain.py"), "--config", recipe("configs/shakespeare/pretrain.yaml"))
        seconds = time.perf_counter() - start
        found = read_json(Path(folder) / "runs/shakespeare/base/pretrain.json")["metrics"]
    loss = found["bits_per_byte"] * math.log(2)  # a character is a byte here
    ratio = seconds * (rate / NANOGPT_RATE) / NANOGPT_SECONDS
    reached = "reached" if loss <= NANOGPT_LOSS else "NOT reached"
    print(
        f"validation loss {loss:.4f} ({reached}: nanoGPT's is {NANOGPT_LOSS}) in {seconds:.1f} s of the whole process, "
        f"matrix rate {rate / 1e9:.0f} GFLOP/s; over nanoGPT's {NANOGPT_SECONDS:.0f} s at the same matrix rate: {ratio:.2f}"
    )
    metrics = {"loss": loss, "whole_process_seconds": seconds, "fp32_gflops": rate / 1e9, "over_nanogpt": ratio}
    return {"metrics": metrics}


def tokenize(text: bytes, folder: Path) -> None:
    """Split the text as nanoGPT does; make tokenizer and token shards in `folder`, where the YAMLs look for them."""
    data = folder / "runs/shakespeare/data"
    data.mkdir(parents=True)
    (data / "train.txt").write_bytes(text[:TRAINING_BYTES])
    (data / "val.txt").write_bytes(text[TRAINING_BYTES:])
    options = ["--corpus", data / "train.txt", "--vocab_size", 262, "--output_dir", data.parent / "tokenizer"]
    python(folder, "-m", "data_prep.train_tokenizer", *options)
    python(folder, "-m", "data_prep.mix_corpus", "--config", recipe("configs/shakespeare/mix.yaml"))


def recipe(path: str) -> Path:
    return Path(__file__).parents[2] / "recipes" / path


def python(folder: str | Path, *command) -> None:
    """Run a Python command in `folder` to its end."""
    subprocess.run([sys.executable, *map(str, command)], cwd=folder, check=True)
