"""Benchmark of training: pretraining against the machine's matrix rate, SFT, reward training and sampling against the
libraries' own.

    python -m eval.speed training --run runs/quickstart

Each measurement is a process of its own, the recipe as a user starts it. Pretraining's rate is that of the steps after the
first few, by the recipe's own log. Every part is measured `--repeats` times; the median counts, and the least and the
most are printed beside it. The matrix rate is measured first, and again around each run that is divided by it: the better
of the two counts.

    pretrain   recipes/configs/quickstart: model FLOPs, 6N + 12·L·d·T a token (Chowdhery 2022, arXiv:2204.02311, appendix
               B), over the rate of a matrix product in the precision that is trained in; and what of a step's time Muon
               takes, by Python's profiler
    gpt2       the same for GPT-2's layers and context, 12 × 768 and 1,024, with AdamW; on a GPU GPT-2 124 M, as
               recipes/configs/gpt2_small/pretrain.yaml has it, with Muon
    sft        recipes/configs/belle/sft.yaml against TRL's SFTTrainer with its defaults: one pass over the same
               conversations, the same model
    reward     recipes/configs/quickstart/reward.yaml against TRL's RewardTrainer with its defaults: one pass over the
               same pairs, from the run's SFT model
    sample     answers of the run's SFT model to its prompts for rankings, four to each, sampled as
               data_prep.sample_completions does (in bf16 where that is fast), over `generate` of transformers in the
               model's precision, in batches of the same size
    start      seconds from the command of recipes/sft.py to its first step, the conversations tokenized on the way

On a GPU sft and reward train a model of GPT-2's size by the YAMLs of recipes/configs/gpt2_small, and what they hold of the
GPU's memory at most is measured too.
"""

import argparse
import itertools
import math
import pstats
import shutil
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

import torch

from data_prep.common.errors import InputError
from data_prep.common.files import existing, read_json, read_jsonl, write_json, write_jsonl
from data_prep.common.machine import bf16_is_fast, matrix_rate, matrix_rates
from data_prep.common.yaml_file import read_yaml
from data_prep.planning.sizes import Shape
from data_prep.readers.preferences import read_rankings
from data_prep.readers.prompts import read_prompts
from data_prep.readers.ranks import pairs
from eval.benchmarks.data import CONVERSATIONS, load_rows, train_tokenizer, write_corpus
from eval.benchmarks.processes import (
    ANSWERS,
    GENERATE,
    GPT2,
    ROOT,
    VOCABULARY,
    call,
    environment,
    launch,
    random_model,
    recipe,
    sampled,
    trl,
    widened,
    write_settings,
)
from eval.benchmarks.repeats import Repeats

PARTS = ("pretrain", "gpt2", "sft", "reward", "sample", "start")
UNITS = {
    "pretraining over the matrix rate": "",
    "Muon, share of a step": "",
    "GPT-2's layers over the matrix rate": "",
    "GPT-2 124 M over the matrix rate": "",
    "GPT-2 124 M": "tokens/s",
    "GPT-2 124 M, peak memory of the GPU": "GiB",
    "SFT over TRL's SFTTrainer": "times",
    "SFT, peak memory of the GPU over TRL's": "times",
    "reward training over TRL's RewardTrainer": "times",
    "reward training, peak memory of the GPU over TRL's": "times",
    "sampled answers/s over generate": "times",
    "command to first step": "s",
}
LARGE = 60e9  # bytes of a GPU's memory that the batch of gpt2_small, 32 rows of 1,024, was worked out for


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--run", type=Path, default=Path("runs/quickstart"), help="a run of the quickstart (default: runs/quickstart)"
    )
    parser.add_argument(
        "--data",
        default=CONVERSATIONS,
        help=f"conversations in the Baichuan format, for sft (default: {CONVERSATIONS})",
    )
    parser.add_argument("--part", nargs="+", choices=PARTS, default=PARTS, help="parts to measure (default: all)")
    parser.add_argument("--repeats", type=int, default=3, help="runs of each measurement (default: 3)")
    parser.add_argument(
        "--steps", type=int, default=60, help="steps of pretrain that are timed, after a few more (default: 60)"
    )
    parser.add_argument(
        "--rows",
        type=int,
        default=200,
        help="conversations of sft, rankings of reward, a fifth of the prompts of sample (default: 200)",
    )


def run(arguments: argparse.Namespace) -> dict:
    """pretraining over the matrix rate, SFT and reward training over TRL's trainers"""
    if min(arguments.repeats, arguments.steps, arguments.rows) < 1:
        raise InputError("--repeats, --steps and --rows: expected at least 1")
    rates, repeats = matrix_rates(), Repeats()
    with tempfile.TemporaryDirectory() as temporary:
        for part in arguments.part:
            for repeat in range(arguments.repeats):
                folder = fresh(Path(temporary) / f"{part}_{repeat}")
                repeats.add(part, partial(MEASURES[part], arguments, folder))
    settings = {"steps": arguments.steps, "rows": arguments.rows}
    return {**repeats.results(UNITS), "matrix_gflops": rates, "settings": settings}


# The parts: each takes the arguments and an empty folder, and returns {name in UNITS: value}.


def pretrain(arguments: argparse.Namespace, folder: Path) -> dict[str, float]:
    """The quickstart's model and settings."""
    fraction, _ = over_matrix_rate("quickstart", folder, inputs_of(arguments.run, folder, arguments.steps))
    share = share_of_muon(arguments.run, folder / "profiled", arguments.steps)
    return {"pretraining over the matrix rate": fraction, "Muon, share of a step": share}


def gpt2(arguments: argparse.Namespace, folder: Path) -> dict[str, float]:
    """GPT-2's layers and context; the vocabulary is the run's, so that the model has 89 M parameters, not 124 M.

    With AdamW: Muon's work is that of an update, and updates of half a million tokens, as GPT-2's, hardly notice it. On a
    GPU it is GPT-2 124 M as its YAML has it, vocabulary, half a million tokens an update and all.
    """
    inputs = inputs_of(arguments.run, folder, 8 if torch.cuda.is_available() else 4)
    if not torch.cuda.is_available():
        changed = {**GPT2, "per_device_train_batch_size": 2, "muon_lr": None, "muon_momentum": None}
        return {"GPT-2's layers over the matrix rate": over_matrix_rate("quickstart", folder, inputs | changed)[0]}
    tokenizer, tokens = widened(arguments.run / "tokenizer", VOCABULARY, folder), folder / "tokens"
    mix = read_yaml(ROOT / "recipes/configs/quickstart/mix.yaml") | {"tokenizer": tokenizer, "output_dir": tokens}
    mix["total_tokens"] = 5_500_000  # more than is trained on: the last update of a pass would be a short one
    for name, source in mix["sources"].items():
        source["files"] = [arguments.run / f"data/corpus/{name}.jsonl"]
    write_settings(folder / "mix.yaml", mix)
    call("mix_corpus", [sys.executable, "-m", "data_prep.mix_corpus", "--config", str(folder / "mix.yaml")])
    rows = 32 if torch.cuda.get_device_properties(0).total_memory > LARGE else 8
    changed = {"tokenizer": tokenizer, "tokens": tokens, "per_device_train_batch_size": rows}
    fraction, found = over_matrix_rate("gpt2_small", folder, inputs | changed)
    speed = {"GPT-2 124 M over the matrix rate": fraction, "GPT-2 124 M": found["rate"]}
    return {**speed, "GPT-2 124 M, peak memory of the GPU": found["peak"]}


def inputs_of(run: Path, folder: Path, steps: int) -> dict:
    """What pretraining of the run's data is given for `steps` steps alike after a few, evaluated before and after on little."""
    existing(run / "data/tokens", "recipes/quickstart.sh")
    heldout = folder / "heldout.jsonl"
    heldout.parent.mkdir(parents=True, exist_ok=True)
    write_jsonl(heldout, itertools.islice(read_jsonl(run / "data/corpus_heldout.jsonl"), 4))
    files = {"tokenizer": run / "tokenizer", "tokens": run / "data/tokens", "heldout": [heldout]}
    constant = {"lr_scheduler_type": "constant", "lr_scheduler_kwargs": None, "warmup_steps": 0}
    first = max(2, steps // 6)
    lengths = {"eval_steps": 100_000, "max_steps": first * (1 + math.ceil(steps / first)), "logging_steps": first}
    return {**files, **constant, **lengths}


def over_matrix_rate(config: str, folder: Path, changed: dict) -> tuple[float, dict]:
    """Model FLOPs/s of the steps after the first that are logged, over the rate of a matrix product in the same precision.

    That is measured before and after: a process beside one of the two would make the fraction too high. Returns it, and
    {"rate": tokens/s, "peak": GiB of the GPU, if there is one}.
    """
    kind = torch.bfloat16 if bf16_is_fast() else torch.float32
    rate = matrix_rate(kind)
    found = recipe("pretrain", config, folder, changed)
    tokens = rate_of_steps(found["curves"]["tokens per second"])
    built = read_json(folder / "model/config.json")
    shape = Shape(built["n_layer"], built["n_embd"])
    flops = tokens * shape.flops_per_token(built["vocab_size"], built["n_positions"])
    return flops / max(rate, matrix_rate(kind)), {"rate": tokens, "peak": found.get("peak")}


def rate_of_steps(curve: list) -> float:
    """Tokens/s of the steps between the second and the last of pretraining's points (step, tokens/s since the beginning).

    The first point is the first step, which is always logged.
    """
    (early, at_early), (late, at_late) = curve[1], curve[-1]
    seconds = late / at_late - early / at_early  # for each token of a step
    if seconds <= 0:
        raise InputError(f"{late} steps took no longer than {early}: too few to tell their time; raise --steps")
    return (late - early) / seconds


def share_of_muon(run: Path, folder: Path, steps: int) -> float:
    """Seconds in Muon's part of the optimizer over those of whole steps: forward, backward, clipping, optimizer."""
    command = launch("pretrain", "quickstart", folder, inputs_of(run, folder, steps))
    profile = folder / "profile"
    script = command[command.index("recipes/pretrain.py") :]
    finished = subprocess.run(
        [sys.executable, "-m", "cProfile", "-o", str(profile), *script],
        env=environment() | {"CUDA_LAUNCH_BLOCKING": "1"},  # else a GPU's time falls to whoever waits for it
        cwd=ROOT,
        stdout=subprocess.PIPE,
    )
    if finished.returncode:
        sys.exit(f"error: {' '.join(script)} ended with {finished.returncode}: {finished.stdout[-2000:]}")
    return share_of_step(pstats.Stats(str(profile)))


def share_of_step(stats: pstats.Stats) -> float:
    """What of the steps in a profile of recipes/pretrain.py is in `_step_muon`."""
    seconds = {}
    for (path, _, name), (_, _, _, inside, _) in stats.stats.items():
        seconds[f"{Path(path).stem}.{name}"] = inside
    whole = ("loss_watch.training_step", "trainer._clip_grad_norm", "muon.step")
    return seconds["muon._step_muon"] / sum(seconds[name] for name in whole)


def sft(arguments: argparse.Namespace, folder: Path) -> dict[str, float]:
    """One pass over the same conversations, from the same random model."""
    rows = [row for row in load_rows(arguments.data) if alternates(row)][: arguments.rows]
    write_corpus(rows, 1e6, folder / "corpus.jsonl")
    train_tokenizer(folder / "corpus.jsonl", 6000, folder / "trained")
    model = random_model(folder / "trained", folder)
    write_json(folder / "rows.json", rows)
    write_jsonl(folder / "messages.jsonl", ({"messages": messages(row)} for row in rows))
    length = min(512, read_json(model / "config.json")["n_positions"])
    theirs = trl("SFT", model, folder / "messages.jsonl", length, len(rows))
    changed = {
        "model_name_or_path": model,
        "conversations": [folder / "rows.json"],
        "num_train_epochs": 1,
        "max_steps": None,
        "warmup_steps": 0,
    }
    config = "gpt2_small" if torch.cuda.is_available() else "belle"
    if torch.cuda.is_available():
        changed["global_batch_size"] = None  # an update is one batch: the pass would hardly fill one of that size
    ours = recipe("sft", config, folder / "ours", {**changed, "heldout": None})
    return over_trl("SFT", "SFTTrainer", ours, theirs)


def reward(arguments: argparse.Namespace, folder: Path) -> dict[str, float]:
    """One pass over the same pairs, from the run's SFT model; on a GPU from a random model of GPT-2's size."""
    model = existing(arguments.run / "sft/config.json", "recipes/quickstart.sh").parent
    if torch.cuda.is_available():
        model = random_model(arguments.run / "tokenizer", folder)
    rankings = read_rankings(existing(arguments.run / "data/rankings.jsonl", "recipes/quickstart.sh"))[0]
    rankings = rankings[: arguments.rows]
    write_jsonl(folder / "rankings.jsonl", rankings)
    ranked = [
        {"prompt": row["prompt"], "chosen": answer(row, better), "rejected": answer(row, worse)}
        for row in rankings
        for better, worse in pairs(row["ranks"])
    ]
    write_jsonl(folder / "pairs.jsonl", ranked)
    length = min(256, read_json(model / "config.json")["n_positions"])
    theirs = trl("Reward", model, folder / "pairs.jsonl", length, len(ranked))
    changed = {
        "model_name_or_path": model,
        "max_length": length,
        "rankings": [folder / "rankings.jsonl"],
        "num_train_epochs": 1,
        "warmup_steps": 0,
    }
    config = "gpt2_small" if torch.cuda.is_available() else "quickstart"
    ours = recipe("reward", config, folder / "ours", {**changed, "heldout": None})
    return over_trl("reward training", "RewardTrainer", ours, theirs)


def over_trl(name: str, trainer: str, ours: dict, theirs: dict) -> dict[str, float]:
    """Times faster, and, on a GPU, what part of its memory."""
    found = {f"{name} over TRL's {trainer}": theirs["seconds"] / ours["seconds"]}
    if "peak" in ours:
        found[f"{name}, peak memory of the GPU over TRL's"] = ours["peak"] / theirs["peak"]
    return found


def sample(arguments: argparse.Namespace, folder: Path) -> dict[str, float]:
    """The run's prompts for rankings, four answers to each, 512 at once, as recipes/quickstart.sh draws them."""
    model = existing(arguments.run / "sft/config.json", "recipes/quickstart.sh").parent
    prompts = read_prompts([str(arguments.run / "data/prompts_rankings.json")], 5 * arguments.rows, seed=42)
    write_jsonl(folder / "prompts.jsonl", ({"prompt": row["prompt"]} for row in prompts))
    given = model, folder / "prompts.jsonl", 4, 512, 64
    return {"sampled answers/s over generate": sampled(ANSWERS, *given) / sampled(GENERATE, *given)}


def start(arguments: argparse.Namespace, folder: Path) -> dict[str, float]:
    """Seconds from the command of SFT to the line of its first step; of two runs the second counts, its files in memory."""
    run = arguments.run
    existing(run / "base/config.json", "recipes/quickstart.sh")
    changed = {"model_name_or_path": run / "base", "conversations": [run / "data/conversations.json"], "heldout": None}
    command = launch("sft", "quickstart", folder, {**changed, "max_steps": 1, "warmup_steps": 0, "logging_steps": 1})
    for _ in range(2):
        begin = time.perf_counter()
        with subprocess.Popen(command, env=environment(), stdout=subprocess.PIPE, text=True, cwd=ROOT) as process:
            seconds = next(
                (time.perf_counter() - begin for line in process.stdout if line.startswith("{'loss'")), None
            )
            process.stdout.read()
        if process.returncode or seconds is None:
            sys.exit(f"error: {' '.join(command)} ended with {process.returncode}")
        shutil.rmtree(folder / "model")
    return {"command to first step": seconds}


MEASURES = {"pretrain": pretrain, "gpt2": gpt2, "sft": sft, "reward": reward, "sample": sample, "start": start}


# What they are made of


def fresh(folder: Path) -> Path:
    folder.mkdir(parents=True)
    return folder


def alternates(row: dict) -> bool:
    """Whether turns of two speakers alternate: TRL has no repair for others."""
    speakers = [turn["from"] for turn in row["conversations"]]
    return speakers == ["human", "gpt"] * (len(speakers) // 2)


def messages(row: dict) -> list[dict]:
    roles = {"human": "user", "gpt": "assistant"}
    return [{"role": roles[turn["from"]], "content": turn["value"]} for turn in row["conversations"]]


def answer(row: dict, place: int) -> list[dict]:
    return [{"role": "assistant", "content": row["completions"][place]}]
