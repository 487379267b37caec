"""Run the first steps of a recipe in this process, write what they took, and end: `python -m recipes.planning.two_steps`.

    python -m recipes.planning.two_steps RESULT.json recipes/sft.py --config FILE.yaml

The recipe runs as it is, its own trainer and its own data; a callback looks at the clock and at the memory. One step to
warm up, two that count. Nothing is evaluated or saved afterwards.
"""

import json
import os
import runpy
import sys
import time
from pathlib import Path

import torch
from transformers import TrainerCallback
from transformers import trainer as transformers_trainer

STEPS = 3
RESULT = "PLAN_RESULT"  # environment variable: where the figures go


def peak_memory() -> int:
    """Bytes: of the GPU if there is one, else of this process with its libraries."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    import resource  # Unix has it

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


class Clock(TrainerCallback):
    """Writes seconds per step and peak memory after `STEPS` steps, and ends the process."""

    def __init__(self) -> None:
        self.before = peak_memory()  # libraries only
        self.ends: list[float] = []

    def on_step_end(self, args, state, control, **kwargs):
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.ends.append(time.perf_counter())
        if len(self.ends) == STEPS:
            seconds = (self.ends[-1] - self.ends[0]) / (STEPS - 1)
            Path(os.environ[RESULT]).write_text(
                json.dumps({"seconds": seconds, "peak": peak_memory(), "start": self.before})
            )
            sys.stdout.flush()
            os._exit(0)  # what the recipe does at its end is not measured


def main() -> None:
    result, script, *words = sys.argv[1:]
    transformers_trainer.DEFAULT_CALLBACKS.append(Clock)
    os.environ[RESULT] = result
    sys.argv = [script, *words]
    runpy.run_path(script, run_name="__main__")


if __name__ == "__main__":
    main()
