"""How fast is it here? Every speed is a fraction of the machine's matrix rate, so that figures compare between machines.

    python -m eval.speed matrix
    python -m eval.speed shakespeare --data ../shared/data/tinyshakespeare.txt

`matrix` prints the rate of a 1024³ product. `shakespeare` trains nanoGPT's small CPU model (4 layers, 128 wide, context
64, characters) by recipes/configs/shakespeare and takes the seconds of the whole process to nanoGPT's validation loss of
1.8857, which nanoGPT's own CPU recipe reached in 102 s where the fp32 product ran at 190 GFLOP/s. Run it on a quiet
machine: it is a benchmark, and no test looks at its time.
"""

import argparse
import math
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

from data_prep.files import existing, read_json, run_main, write_results
from data_prep.machine import bf16_is_fast, matrix_rate

NANOGPT_LOSS, NANOGPT_SECONDS, NANOGPT_RATE = 1.8857, 102.0, 190e9
TRAINING_BYTES = 1_003_854  # nanoGPT's split of tinyshakespeare: the first 90 % train, the rest validates


def matrix(arguments) -> dict:
    """GFLOP/s in fp32 and, where it is a gain, bf16."""
    rates = {"fp32": matrix_rate(torch.float32) / 1e9}
    if bf16_is_fast():
        rates["bf16"] = matrix_rate(torch.bfloat16) / 1e9
    for name, rate in rates.items():
        print(f"{name}: {rate:.0f} GFLOP/s in a 1024³ matrix product, {torch.get_num_threads()} threads")
    return {"metrics": rates}


def shakespeare(arguments) -> dict:
    """Seconds of the pretraining process to nanoGPT's loss, over nanoGPT's at the same matrix rate."""
    text, root = existing(arguments.data).read_bytes(), Path(__file__).parents[1]
    configs = root / "recipes" / "configs" / "shakespeare"
    with tempfile.TemporaryDirectory() as folder:  # the paths in the YAMLs are relative: a run of the user's stays
        run = Path(folder) / "runs" / "shakespeare"
        (run / "data").mkdir(parents=True)
        (run / "data/train.txt").write_bytes(text[:TRAINING_BYTES])
        (run / "data/val.txt").write_bytes(text[TRAINING_BYTES:])

        def python(*command) -> None:
            subprocess.run([sys.executable, *map(str, command)], cwd=folder, check=True)

        tokenizer = ["--corpus", run / "data/train.txt", "--vocab_size", 262, "--output_dir", run / "tokenizer"]
        python("-m", "data_prep.train_tokenizer", *tokenizer)
        python("-m", "data_prep.mix_corpus", "--config", configs / "mix.yaml")
        rate = matrix_rate(torch.float32, seconds=2.0)
        start = time.perf_counter()
        python(root / "recipes" / "pretrain.py", "--config", configs / "pretrain.yaml")
        seconds = time.perf_counter() - start
        figures = read_json(run / "base/pretrain.json")["metrics"]
    # a character is a byte here, so bits per byte are the loss in another unit
    loss = figures["bits_per_byte"] * math.log(2)
    ratio = seconds * (rate / NANOGPT_RATE) / NANOGPT_SECONDS
    reached = "reached" if loss <= NANOGPT_LOSS else "NOT reached"
    print(
        f"validation loss {loss:.4f} ({reached}: nanoGPT's is {NANOGPT_LOSS}) in {seconds:.1f} s of the whole process, "
        f"matrix rate {rate / 1e9:.0f} GFLOP/s; over nanoGPT's {NANOGPT_SECONDS:.0f} s at the same matrix rate: {ratio:.2f}"
    )
    figures = {"loss": loss, "whole_process_seconds": seconds, "fp32_gflops": rate / 1e9, "over_nanogpt": ratio}
    return {"metrics": figures}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    for name, function in (("matrix", matrix), ("shakespeare", shakespeare)):
        command = commands.add_parser(name, help=function.__doc__)
        command.set_defaults(run=function)
        command.add_argument("--results_dir", help="where the figures go; without, they are printed only")
        if name == "shakespeare":
            command.add_argument("--data", default="../shared/data/tinyshakespeare.txt", help="tinyshakespeare.txt")
    arguments = parser.parse_args()
    results = arguments.run(arguments)
    if arguments.results_dir:
        write_results(arguments.results_dir, f"speed_{arguments.command}", results)


if __name__ == "__main__":
    run_main(main)
