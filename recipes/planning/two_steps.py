"""Run the first steps of a recipe in this process, write what they took, and end: `python -m recipes.planning.two_steps`.

    python -m recipes.planning.two_steps RESULT.json recipes/sft.py --config FILE.yaml

The recipe runs as it is, its own trainer and its own data; a callback looks at the clock and at the memory. One step to
warm up, two that count. Nothing is evaluated or saved afterwards.
"""

import json
import math
import os
import runpy
import sys
import time
from pathlib import Path

import psutil
import torch
from transformers import TrainerCallback
from transformers import trainer as transformers_trainer

from data_prep.common.machine import peak_memory

STEPS = 3
RESULT = "PLAN_RESULT"  # environment variable: where the figures go
BATCHES: list[tuple[tuple[int, ...], int]] = []


def peak() -> int:
    """Bytes: of the GPU if there is one, else of this process with its libraries."""
    return torch.cuda.max_memory_allocated() if torch.cuda.is_available() else peak_memory()


def positions(batches: list[tuple[tuple[int, ...], int]]) -> tuple[float, float]:
    """(positions of a step, those of them that are padding), of batches of (shape, tokens) without the first step's."""
    timed = batches[len(batches) // STEPS :]
    every = sum(math.prod(shape) for shape, _ in timed)
    return every / (STEPS - 1), (every - sum(tokens for _, tokens in timed)) / (STEPS - 1)


def growth(batches: list[tuple[tuple[int, ...], int]], held: list[int]) -> float:
    """Bytes that a batch of a shape that is new adds: kernels are made for each shape and kept, memory falls into pieces.

    Args:
        batches: of (shape, tokens). held: memory of the process after each step.
    """
    first = len(batches) // STEPS
    new = {shape for shape, _ in batches[first:]} - {shape for shape, _ in batches[:first]}
    return max(0, held[-1] - held[0]) / len(new) if new else 0.0


def counted(training_step):
    """`Trainer.training_step` that notes the shape of each batch, and how many of its positions are tokens."""

    def step(self, model, inputs, *rest, **named):
        if (ids := inputs.get("input_ids")) is not None:
            pad = getattr(self.processing_class, "pad_token_id", None)
            BATCHES.append((tuple(ids.shape), int((ids != pad).sum()) if pad is not None else ids.numel()))
        return training_step(self, model, inputs, *rest, **named)

    return step


class Clock(TrainerCallback):
    """After `STEPS` steps writes what they took, and ends the process.

    {"seconds" of a step, "before": those before the first, "peak": bytes, "positions" of a step, "padding": those that are,
    "growth": see the function}
    """

    def __init__(self) -> None:
        self.ends: list[float] = []
        self.held: list[int] = []
        self.before = None

    def on_train_begin(self, args, state, control, **kwargs):
        self.begun = time.perf_counter()

    def on_step_begin(self, args, state, control, **kwargs):
        if self.before is None:  # the recipe's callbacks have evaluated, where they do
            self.before = time.perf_counter() - self.begun

    def on_step_end(self, args, state, control, **kwargs):
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.ends.append(time.perf_counter())
        self.held.append(psutil.Process().memory_info().rss)
        if len(self.ends) == STEPS:
            seconds = (self.ends[-1] - self.ends[0]) / (STEPS - 1)
            found = {"seconds": seconds, "before": self.before, "peak": peak()}
            found["positions"], found["padding"] = positions(BATCHES)
            found["growth"] = 0.0 if torch.cuda.is_available() else growth(BATCHES, self.held)
            Path(os.environ[RESULT]).write_text(json.dumps(found))
            sys.stdout.flush()
            os._exit(0)  # what the recipe does at its end is not measured


def main() -> None:
    result, script, *words = sys.argv[1:]
    transformers_trainer.DEFAULT_CALLBACKS.append(Clock)
    transformers_trainer.Trainer.training_step = counted(transformers_trainer.Trainer.training_step)
    os.environ[RESULT] = result
    sys.argv = [script, *words]
    runpy.run_path(script, run_name="__main__")


if __name__ == "__main__":
    main()
