"""Benchmark of training: pretraining against the machine's matrix rate, SFT and reward training against TRL's own trainers.

    python -m eval.speed training --run runs/quickstart

Each measurement is a process of its own, the recipe as a user starts it. What it computes a step is told from what it does
once, warm-up and saving, by running it for few steps and for more: a rate is that of the steps between. Every part is
measured `--repeats` times; the median counts, and the least and the most are printed beside it. The matrix rate is
measured first, and again around each run that is divided by it: the better of the two counts.

    pretrain   recipes/configs/quickstart: model FLOPs, 6N + 12·L·d·T a token (Chowdhery 2022, arXiv:2204.02311, appendix
               B), over the rate of a matrix product in the precision that is trained in; and what of a step's time Muon
               takes, by Python's profiler
    gpt2       the same for GPT-2's layers and context, 12 × 768 and 1,024, with AdamW
    sft        recipes/configs/belle/sft.yaml against TRL's SFTTrainer with its defaults: one pass over the same
               conversations, the same model
    reward     recipes/configs/quickstart/reward.yaml against TRL's RewardTrainer with its defaults: one pass over the
               same pairs, from the run's SFT model
    start      seconds from the command of recipes/sft.py to its first step, the conversations tokenized on the way
"""

import argparse
import itertools
import json
import os
import pstats
import shutil
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

import torch
import yaml

from data_prep.common.errors import InputError
from data_prep.common.files import existing, read_json, read_jsonl, write_json, write_jsonl
from data_prep.common.machine import bf16_is_fast, matrix_rate, matrix_rates
from data_prep.planning.sizes import Shape
from data_prep.readers.preferences import read_rankings
from data_prep.readers.ranks import pairs
from eval.benchmarks.data import CONVERSATIONS, load_rows, train_tokenizer, write_corpus
from eval.benchmarks.repeats import Repeats

ROOT = Path(__file__).parents[2]
PARTS = ("pretrain", "gpt2", "sft", "reward", "start")
UNITS = {
    "pretraining over the matrix rate": "",
    "Muon, share of a step": "",
    "GPT-2's layers over the matrix rate": "",
    "SFT over TRL's SFTTrainer": "times",
    "reward training over TRL's RewardTrainer": "times",
    "command to first step": "s",
}
# As recipes/steps.sh: offline, and memory kept between steps.
ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "TRANSFORMERS_VERBOSITY": "error",
    "PYTHONWARNINGS": "ignore",
    "MALLOC_MMAP_THRESHOLD_": "1073741824",
    "MALLOC_TRIM_THRESHOLD_": "17179869184",
    "MALLOC_TOP_PAD_": "67108864",
    "PYTHONUNBUFFERED": "1",  # the line of the first step comes when it is printed, not at the end
}

# TRL's trainers as its documentation starts them: a model, data, and nothing set but where it writes and the context,
# beyond which a GPT-2 cannot read. It prints how many rows train and the seconds of train().
TRL = """
import sys, time
import torch
from datasets import load_dataset
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer
from trl import RewardConfig, RewardTrainer, SFTConfig, SFTTrainer
path, data, output, length = sys.argv[1:]
tokenizer = AutoTokenizer.from_pretrained(path)
if "TRAINER" == "SFT":
    model = AutoModelForCausalLM.from_pretrained(path)
else:
    model = AutoModelForSequenceClassification.from_pretrained(path, num_labels=1, pad_token_id=tokenizer.pad_token_id)
arguments = TRAINERConfig(output_dir=output, num_train_epochs=1, max_length=int(length), save_strategy="no",
                          report_to="none", use_cpu=not torch.accelerator.is_available())
trainer = TRAINERTrainer(model, arguments, processing_class=tokenizer,
                         train_dataset=load_dataset("json", data_files=data, split="train"))
start = time.perf_counter()
trainer.train()
print(len(trainer.train_dataset), time.perf_counter() - start)
"""


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
        "--steps", type=int, default=60, help="steps of pretrain between the two lengths of a run (default: 60)"
    )
    parser.add_argument(
        "--rows", type=int, default=200, help="conversations of sft, rankings of reward (default: 200)"
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
    fraction = over_matrix_rate(arguments.run, folder, arguments.steps, {})
    share = share_of_muon(arguments.run, folder / "profiled", arguments.steps)
    return {"pretraining over the matrix rate": fraction, "Muon, share of a step": share}


def gpt2(arguments: argparse.Namespace, folder: Path) -> dict[str, float]:
    """GPT-2's layers and context; the vocabulary is the run's, so that the model has 89 M parameters, not 124 M.

    With AdamW: Muon's work is that of an update, and updates of half a million tokens, as GPT-2's, hardly notice it.
    """
    changed = {"n_layer": 12, "n_head": 12, "n_embd": 768, "n_positions": 1024, "per_device_train_batch_size": 2}
    changed |= {"muon_lr": None}
    return {"GPT-2's layers over the matrix rate": over_matrix_rate(arguments.run, folder, 4, changed)}


def inputs_of(run: Path, folder: Path, steps: int) -> dict:
    """What pretraining of the run's data is given for so many steps alike, evaluated before and after on little."""
    existing(run / "data/tokens", "recipes/quickstart.sh")
    heldout = folder / "heldout.jsonl"
    heldout.parent.mkdir(parents=True, exist_ok=True)
    write_jsonl(heldout, itertools.islice(read_jsonl(run / "data/corpus_heldout.jsonl"), 4))
    files = {"tokenizer": run / "tokenizer", "tokens": run / "data/tokens", "heldout": [heldout]}
    constant = {"lr_scheduler_type": "constant", "lr_scheduler_kwargs": None, "warmup_steps": 0}
    return {**files, **constant, "eval_steps": 100_000, "max_steps": steps}


def over_matrix_rate(run: Path, folder: Path, steps: int, changed: dict) -> float:
    """Model FLOPs/s of `steps` steps after the first few, over the rate of a matrix product in the same precision.

    That is measured before and after: a process beside one of the two would make the fraction too high.
    """
    kind = torch.bfloat16 if bf16_is_fast() else torch.float32
    first, found, rate = max(2, steps // 6), [], matrix_rate(kind)
    for count in (first, first + steps):
        sized = {**inputs_of(run, folder, count), **changed}
        found.append(recipe("pretrain", "quickstart", folder / str(count), sized))
    short, long = found
    seconds = long["seconds"] - short["seconds"]
    if seconds <= 0:
        raise InputError(
            f"--steps {steps}: {first + steps} steps took no longer than {first}: too few to tell their time; take more"
        )
    tokens_per_second = (long["tokens"] - short["tokens"]) / seconds
    config = read_json(folder / str(first) / "model/config.json")
    shape = Shape(config["n_layer"], config["n_embd"])
    flops = tokens_per_second * shape.flops_per_token(config["vocab_size"], config["n_positions"])
    return flops / max(rate, matrix_rate(kind))


def share_of_muon(run: Path, folder: Path, steps: int) -> float:
    """Seconds in Muon's part of the optimizer over those of whole steps: forward, backward, clipping, optimizer."""
    command = launch("pretrain", "quickstart", folder, inputs_of(run, folder, steps))
    profile = folder / "profile"
    script = command[command.index("recipes/pretrain.py") :]
    finished = subprocess.run(
        [sys.executable, "-m", "cProfile", "-o", str(profile), *script],
        env=environment(),
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
    model = random_model(rows, folder)
    write_json(folder / "rows.json", rows)
    write_jsonl(folder / "messages.jsonl", ({"messages": messages(row)} for row in rows))
    theirs = seconds_of_trl("SFT", model, folder / "messages.jsonl", 512, len(rows))
    changed = {
        "model_name_or_path": model,
        "conversations": [folder / "rows.json"],
        "num_train_epochs": 1,
        "warmup_steps": 0,
    }
    ours = recipe("sft", "belle", folder / "ours", {**changed, "heldout": None})
    return {"SFT over TRL's SFTTrainer": theirs / ours["seconds"]}


def reward(arguments: argparse.Namespace, folder: Path) -> dict[str, float]:
    """One pass over the same pairs, from the run's SFT model."""
    model = existing(arguments.run / "sft/config.json", "recipes/quickstart.sh").parent
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
    theirs = seconds_of_trl("Reward", model, folder / "pairs.jsonl", length, len(ranked))
    changed = {
        "model_name_or_path": model,
        "max_length": length,
        "rankings": [folder / "rankings.jsonl"],
        "num_train_epochs": 1,
        "warmup_steps": 0,
    }
    ours = recipe("reward", "quickstart", folder / "ours", {**changed, "heldout": None})
    return {"reward training over TRL's RewardTrainer": theirs / ours["seconds"]}


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


MEASURES = {"pretrain": pretrain, "gpt2": gpt2, "sft": sft, "reward": reward, "start": start}


# What they are made of


def fresh(folder: Path) -> Path:
    folder.mkdir(parents=True)
    return folder


def environment() -> dict[str, str]:
    return {**os.environ, **ENVIRONMENT}


def launch(stage: str, config: str, folder: Path, changed: dict) -> list[str]:
    """The command of a recipe with the settings of recipes/configs/<config>, some changed (None: left out)."""
    settings = yaml.safe_load((ROOT / f"recipes/configs/{config}/{stage}.yaml").read_text(encoding="utf-8"))
    settings |= changed | {"output_dir": folder / "model", "results_dir": folder, "save_strategy": "no"}
    settings = {key: value for key, value in settings.items() if value is not None}
    if torch.cuda.is_available():
        settings.pop("attn_implementation", None)  # the YAMLs have the one that is fast on a processor
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{stage}.yaml"
    path.write_text(json.dumps(settings, default=lambda value: str(value.resolve())))  # JSON is YAML
    single = ["--quiet", "--config_file", "accelerate_configs/single_process.yaml"]
    return ["accelerate", "launch", *single, f"recipes/{stage}.py", "--config", str(path)]


def recipe(stage: str, config: str, folder: Path, changed: dict) -> dict:
    """What a recipe writes of itself; its "seconds" are those of training alone."""
    command = launch(stage, config, folder, changed)
    finished = subprocess.run(command, env=environment(), cwd=ROOT, stdout=subprocess.PIPE, text=True)
    if finished.returncode:
        sys.exit(f"error: {' '.join(command)} ended with {finished.returncode}: {finished.stdout[-2000:]}")
    return read_json(folder / f"{stage}.json")


def seconds_of_trl(trainer: str, model: Path, data: Path, length: int, rows: int) -> float:
    """Seconds of train() of TRL's SFTTrainer or RewardTrainer; raises InputError if it left rows out."""
    script = TRL.replace("TRAINER", trainer)
    # As our own are run: nothing polls its memory, and the allocator keeps its memory too.
    command = [sys.executable, "-c", script, *map(str, (model, data, data.with_suffix(".trl"), length))]
    finished = subprocess.run(command, env=environment(), capture_output=True, text=True)
    if finished.returncode:
        sys.exit(f"error: TRL's {trainer}Trainer ended with {finished.returncode}: {finished.stderr[-2000:]}")
    used, seconds = finished.stdout.split()[-2:]
    if int(used) != rows:
        raise InputError(
            f"TRL's {trainer}Trainer took {used} of {rows} rows: the others are longer than {length} tokens"
        )
    return float(seconds)


def random_model(rows: list[dict], folder: Path) -> Path:
    """A model of 4 layers, 256 wide, and its tokenizer, trained on the rows."""
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    from data_prep.models.loading import load_tokenizer

    write_corpus(rows, 1e6, folder / "corpus.jsonl")
    train_tokenizer(folder / "corpus.jsonl", 6000, folder / "tokenizer")
    tokenizer = load_tokenizer(folder / "tokenizer")
    torch.manual_seed(0)
    special = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad")}
    model = GPT2LMHeadModel(
        GPT2Config(n_layer=4, n_head=4, n_embd=256, n_positions=512, vocab_size=len(tokenizer), **special)
    )
    model.save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    return folder / "model"


def alternates(row: dict) -> bool:
    """Whether turns of two speakers alternate: TRL has no repair for others."""
    speakers = [turn["from"] for turn in row["conversations"]]
    return speakers == ["human", "gpt"] * (len(speakers) // 2)


def messages(row: dict) -> list[dict]:
    roles = {"human": "user", "gpt": "assistant"}
    return [{"role": roles[turn["from"]], "content": turn["value"]} for turn in row["conversations"]]


def answer(row: dict, place: int) -> list[dict]:
    return [{"role": "assistant", "content": row["completions"][place]}]
