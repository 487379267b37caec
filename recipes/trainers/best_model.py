"""Which model a run keeps where `load_best_model_at_end` asks for the best one: the last of equals, and said."""

import math
from collections.abc import Iterable
from pathlib import Path

from tqdm.auto import tqdm
from transformers import TrainerCallback

from data_prep.common.errors import InputError
from recipes.trainers.curves import logged


class BestModel(TrainerCallback):
    """Let the last of equal evaluations be the best, and say at the end which model is kept, and why.

        kept: update 8 of 8, best eval_exact_match 0.000 (all 4 evaluations equal: the last)

    transformers keeps the first of equals: where a metric is 0 throughout, that is the model that has learned least.

    Raises InputError at the first evaluation where it lacks the metric that decides.
    """

    def __init__(self) -> None:
        self.ended = False

    def on_evaluate(self, args, state, control, metrics=None, **kwargs):
        if not self.ended:  # the Trainer compares no evaluation after training
            check_metric(args, metrics)
        # The Trainer compares after this: what was the best is put one unit in the last place below its equal.
        best = state.best_metric
        if args.metric_for_best_model is None or best is None or beyond_budget(args, metrics):
            return
        if metrics.get(key_of(args)) == best:
            state.best_metric = math.nextafter(best, -math.inf if args.greater_is_better else math.inf)

    def on_train_end(self, args, state, control, **kwargs):
        self.ended = True
        if not args.load_best_model_at_end or not state.is_world_process_zero:
            return
        key = key_of(args)
        found = dict(logged(state.log_history, key))
        if state.best_model_checkpoint is None:
            why = (
                "no evaluation was within kl_budget"
                if budget_of(args) is not None
                else "no evaluation has a checkpoint"
            )
            tqdm.write(f"kept: update {state.global_step} of {state.max_steps}, the last: {why}")
            return
        step = int(Path(state.best_model_checkpoint).name.split("-")[-1])
        within = {row["step"]: row[key] for row in state.log_history if key in row and not beyond_budget(args, row)}
        value, number = found[step], len(within)
        equal = sum(other == value for other in within.values())
        if number == 1:
            why = "the only evaluation"
        elif equal == number:
            why = f"all {number} evaluations equal: the last"
        elif equal > 1:
            why = f"of {number} evaluations, {equal} equal: the last of them"
        else:
            why = f"of {number} evaluations"
        why += f"; {len(found) - number} beyond kl_budget {budget_of(args)}" if len(found) > number else ""
        tqdm.write(f"kept: update {step} of {state.global_step}, best {key} {value:.3f} ({why})")


def key_of(args) -> str:
    """The metric that decides, by its name in an evaluation."""
    return f"eval_{args.metric_for_best_model.removeprefix('eval_')}"


def check_metric(args, evaluated: Iterable[str]) -> None:
    """Raise InputError for a `metric_for_best_model` that is not among the names of what an evaluation gives."""
    if args.metric_for_best_model is None or key_of(args) in evaluated:
        return
    names = [name.removeprefix("eval_") for name in evaluated if name.startswith("eval_")]
    names = [name for name in names if not name.endswith(("runtime", "per_second"))]
    raise InputError(
        f"metric_for_best_model: found {args.metric_for_best_model}, which is not evaluated; expected one of "
        f"{', '.join(names)}"
    )


def budget_of(args) -> float | None:
    return getattr(args, "kl_budget", None)


def beyond_budget(args, metrics: dict) -> bool:
    """Whether PPO passes over an evaluation, whatever its metric."""
    return budget_of(args) is not None and metrics.get("eval_kl", 0.0) > budget_of(args)
