"""Two steps of a run on this machine: the memory that its longest batch takes, and the time of ordinary ones."""

import json
import math
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import yaml

from data_prep.common.errors import InputError
from data_prep.common.files import write_jsonl
from data_prep.common.machine import bf16_is_fast, matrix_rate
from data_prep.common.yaml_file import read_yaml
from data_prep.rows.read import data_files, rows_of
from recipes.planning.report import duration
from recipes.planning.run_plan import Plan
from recipes.planning.two_steps import STEPS
from recipes.trainers.arguments import EVALUATION

ROOT = Path(__file__).parents[2]
# What two steps have no use for, or what would not fit their number.
LEFT_OUT = {
    *EVALUATION,
    "heldout",
    "max_seconds",
    "stop_on",
    "push_to_hub",
    "lr_scheduler_kwargs",
    "num_value_warmup_updates",
    "save_steps",
    "num_train_epochs",
    "max_steps",
    "save_only_model",
}


ROWS = {"sft": "conversations", "reward": "rankings", "dpo": "rankings", "kto": "rankings"}  # else prompts


class Measured(NamedTuple):
    """seconds: of an ordinary step. evaluation: those of each that pretraining makes on the way, else 0.

    peak: bytes; on a processor of the whole process. flops: per second.
    """

    seconds: float
    evaluation: float
    peak: int
    flops: float


def rows_of_a_step(plan: Plan) -> int:
    return plan.values["per_device_train_batch_size"] * plan.values["gradient_accumulation_steps"]


def longest(lengths: np.ndarray, a_step: int) -> np.ndarray:
    """Places of the longest rows, for all steps."""
    return np.argsort(-lengths, kind="stable")[: STEPS * a_step]


def ordinary(lengths: np.ndarray, a_step: int) -> np.ndarray:
    """Places of an even sample of all lengths, for eight steps.

    `group_by_length` sorts a quarter of the rows at a time: of two steps one then has short rows and the other long ones.
    """
    order, number = np.argsort(lengths, kind="stable"), min(8 * a_step, len(lengths))
    even = order[((np.arange(number) + 0.5) * len(order) / number).astype(int)]
    return np.random.default_rng(0).permutation(even)  # some recipes take them as they come


def short_run(plan: Plan, folder: Path, choose: Callable[[np.ndarray, int], np.ndarray]) -> dict:
    """The settings of a run of `STEPS` steps in a folder of its own, on the rows that `choose` takes by their lengths."""
    given = read_yaml(plan.path)
    settings = {name: value for name, value in given.items() if name not in LEFT_OUT}
    if "tokens" in plan.values:  # these recipes need it
        settings["heldout"] = given["heldout"]
    a_step, key = rows_of_a_step(plan), ROWS.get(plan.stage, "prompts")
    if key in given and not plan.values.get("packing"):
        rows = [row.value for row in rows_of(data_files(given[key]))]
        chosen = choose(np.array([len(json.dumps(row)) for row in rows]), a_step)
        write_jsonl(folder / "rows.jsonl", (rows[place] for place in chosen))
        settings[key] = [str(folder / "rows.jsonl")]
    if plan.stage == "ppo":
        settings["total_episodes"] = STEPS * a_step
    else:
        settings["max_steps"] = STEPS
    settings |= {"lr_scheduler_type": "constant", "warmup_steps": 0, "save_strategy": "no", "report_to": "none"}
    settings |= {"reward_gate": "off"} if plan.stage in ("ppo", "rloo", "grpo") else {}
    return settings | {"output_dir": str(folder / "run"), "results_dir": str(folder / "results")}


def two_steps(plan: Plan, choose: Callable[[np.ndarray, int], np.ndarray]) -> dict:
    """What `Clock` wrote of a short run.

    Raises InputError where it does not get so far, with what it said.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        config, result = folder / f"{plan.stage}.yaml", folder / "result.json"
        config.write_text(yaml.safe_dump(short_run(plan, folder, choose), allow_unicode=True), encoding="utf-8")
        recipe = str(ROOT / "recipes" / f"{plan.stage}.py")
        words = [sys.executable, "-m", "recipes.planning.two_steps", str(result), recipe, "--config", str(config)]
        done = subprocess.run(words, env={**os.environ, "TQDM_DISABLE": "1"}, capture_output=True, text=True)
        if not result.exists():
            lines = (done.stderr or done.stdout).strip().splitlines() or ["nothing was said"]
            told = next((line for line in reversed(lines) if line.startswith("error: ")), lines[-1])
            raise InputError(f"{plan.path}: --measure: the run ended before its third step: {told}")
        return json.loads(result.read_text())


def seconds_of_a_position(longest: dict, ordinary: dict) -> float:
    """What a position more adds to a step, by two measured ones: the optimizer takes as long whatever the rows are."""
    most = ordinary["seconds"] / ordinary["positions"] if ordinary["positions"] else 0.0
    more = longest["positions"] - ordinary["positions"]
    return min(max((longest["seconds"] - ordinary["seconds"]) / more, 0.0), most) if more else most


def measure(plan: Plan) -> Measured:
    """Run two steps on the longest rows for the memory and, where rows differ in length, two on ordinary ones for the time."""
    found = two_steps(plan, longest)
    seconds, peak = found["seconds"], found["peak"]
    if ROWS.get(plan.stage, "prompts") in plan.values and not plan.values.get("packing"):
        timed = two_steps(plan, ordinary)
        seconds = timed["seconds"]
        if plan.values.get("train_sampling_strategy") == "group_by_length":
            seconds -= timed["padding"] * seconds_of_a_position(found, timed)  # the whole run's batches pad little
        if plan.data is not None:
            shapes = min(len(np.unique(plan.data.lengths.clip(max=plan.work.length))), plan.work.steps or math.inf)
            peak += timed["growth"] * max(0, shapes - STEPS)
    evaluation = found["before"] if "tokens" in plan.values else 0.0  # pretraining begins with one
    return Measured(seconds, evaluation, round(peak), (plan.work.flops + plan.work.recomputed) / seconds)


def evaluations(plan: Plan) -> int:
    """How many a pretraining makes: at its beginning, every `eval_steps`, and at its end."""
    every = plan.values.get("eval_steps") or 500  # as the Trainer takes it
    return 1 + math.ceil(plan.work.steps / (every if every >= 1 else math.ceil(every * plan.work.steps)))


def measured_lines(plan: Plan, found: Measured) -> list[str]:
    """What two steps took here, and what the whole run then takes here."""
    here = "GPU" if torch.cuda.is_available() else "process with its libraries"
    rate = matrix_rate(torch.bfloat16 if bf16_is_fast() and plan.values["bf16"] else torch.float32)
    lines = [
        f"  measured     {found.seconds:.3g} s a step and {found.peak / 1e9:,.2f} GB at the peak of the {here}; "
        f"{found.flops / 1e9:,.1f} GFLOP/s, {found.flops / rate:.0%} of this machine's matrix rate"
    ]
    if plan.work.steps:
        made = evaluations(plan) if found.evaluation else 0
        seconds = plan.work.steps * found.seconds + made * found.evaluation
        told = f"with {made} evaluations" if made else "without evaluations"
        lines.append(f"  here         {duration(seconds)} of training {told}, by what was measured")
    return lines
