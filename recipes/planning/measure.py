"""Two steps of a run on this machine, on its longest batch: what they take, in place of what was estimated."""

import json
import os
import subprocess
import sys
import tempfile
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
    "save_only_model",
}


class Measured(NamedTuple):
    """seconds: of a step. peak: bytes; on a processor of the whole process. flops: per second. threads: of the processor."""

    seconds: float
    peak: int
    flops: float


def rows_of_a_step(plan: Plan) -> int:
    return plan.values["per_device_train_batch_size"] * plan.values["gradient_accumulation_steps"]


def longest_rows(files: list[str], number: int, path: Path) -> list[str]:
    """The longest `number` rows of data files, as a file."""
    rows = sorted((row.value for row in rows_of(data_files(files))), key=lambda row: -len(json.dumps(row)))
    write_jsonl(path, rows[:number])
    return [str(path)]


def short_run(plan: Plan, folder: Path) -> dict:
    """The settings of a run of `STEPS` steps in a folder of its own."""
    given = read_yaml(plan.path)
    settings = {name: value for name, value in given.items() if name not in LEFT_OUT}
    if "tokens" in plan.values:  # these recipes need it
        settings["heldout"] = given["heldout"]
    key = {"sft": "conversations", "reward": "rankings", "dpo": "rankings", "kto": "rankings"}.get(
        plan.stage, "prompts"
    )
    a_step = rows_of_a_step(plan)
    if key in given and not plan.values.get("packing"):
        settings[key] = longest_rows(given[key], STEPS * a_step, folder / "longest.jsonl")
    if plan.stage == "ppo":
        settings["total_episodes"] = STEPS * a_step
    else:
        settings["max_steps"] = STEPS
    settings |= {"lr_scheduler_type": "constant", "warmup_steps": 0, "save_strategy": "no", "report_to": "none"}
    settings |= {"reward_gate": "off"} if plan.stage in ("ppo", "rloo", "grpo") else {}
    return settings | {"output_dir": str(folder / "run"), "results_dir": str(folder / "results")}


def measure(plan: Plan) -> Measured:
    """Run it. Raises InputError where the run does not get so far, with the end of what it says."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        config, result = folder / f"{plan.stage}.yaml", folder / "result.json"
        config.write_text(yaml.safe_dump(short_run(plan, folder), allow_unicode=True), encoding="utf-8")
        recipe = str(ROOT / "recipes" / f"{plan.stage}.py")
        words = [sys.executable, "-m", "recipes.planning.two_steps", str(result), recipe, "--config", str(config)]
        done = subprocess.run(words, env={**os.environ, "TQDM_DISABLE": "1"}, capture_output=True, text=True)
        if not result.exists():
            lines = (done.stderr or done.stdout).strip().splitlines() or ["nothing was said"]
            told = next((line for line in reversed(lines) if line.startswith("error: ")), lines[-1])
            raise InputError(f"{plan.path}: --measure: the run ended before its third step: {told}")
        found = json.loads(result.read_text())
    work, share = plan.work, 1.0
    if plan.data is not None and len(plan.data.lengths) and not plan.values.get("packing"):
        # The longest rows are measured; a step of the run has rows of the mean length.
        longest = np.sort(plan.data.lengths)[::-1][: STEPS * rows_of_a_step(plan)].clip(max=work.length)
        share = float(longest.mean()) / work.mean
    flops = (work.flops + work.recomputed) * share
    return Measured(found["seconds"], found["peak"], flops / found["seconds"])


def measured_lines(plan: Plan, found: Measured) -> list[str]:
    """What two steps took here, and what the whole run then takes here."""
    here = "GPU" if torch.cuda.is_available() else "process with its libraries"
    rate = matrix_rate(torch.bfloat16 if bf16_is_fast() and plan.values["bf16"] else torch.float32)
    lines = [
        f"  measured     {found.seconds:.3g} s a step and {found.peak / 1e9:,.2f} GB at the peak of the {here}; "
        f"{found.flops / 1e9:,.1f} GFLOP/s, {found.flops / rate:.0%} of this machine's matrix rate"
    ]
    if plan.work.steps:
        seconds = plan.work.steps * (plan.work.flops + plan.work.recomputed) / found.flops
        lines.append(f"  here         {duration(seconds)} of training, by what was measured")
    return lines
