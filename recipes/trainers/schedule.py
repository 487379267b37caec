"""Settings that count updates, against the number of updates that a run has: what would never come is refused."""

import math

from transformers import SchedulerType, TrainerCallback, TrainerState, TrainingArguments

from data_prep.common.errors import InputError

WITHOUT_WARMUP = ("constant", "reduce_lr_on_plateau", "greedy")


class CheckSchedule(TrainerCallback):
    """`check_schedule` before the first update, when the number of updates is known for certain.

    In a resumed run the steps between logs, evaluations and checkpoints are those that it is given: transformers reads
    them from the state of its checkpoint, where they are the earlier run's.
    """

    def on_train_begin(self, args, state, control, **kwargs):
        given = TrainerState()
        given.compute_steps(args, state.max_steps)
        for name in ("logging_steps", "eval_steps", "save_steps"):
            setattr(state, name, getattr(given, name))
        check_schedule(args, state.max_steps)


def check_schedule(args: TrainingArguments, updates: int) -> None:
    """Raise InputError where `args` ask for more updates of warm-up, decay or waiting than the run has, or for the best
    of evaluations that have no checkpoint."""
    warmup, kwargs = args.get_warmup_steps(updates), args.lr_scheduler_kwargs or {}
    run = f"the run has {updates:,} updates"
    if SchedulerType(args.lr_scheduler_type).value not in WITHOUT_WARMUP and warmup >= updates > 0:
        raise InputError(
            f"warmup_steps: {warmup:,} updates of warm-up, but {run}: learning_rate would be reached at its end or never; "
            f"set it below {updates:,}, or to a share of the run such as 0.05"
        )
    if isinstance(kwargs, dict) and "num_decay_steps" in kwargs:
        asked = {"warmup_steps": warmup}
        for key in ("num_stable_steps", "num_decay_steps"):
            if key == "num_stable_steps" and kwargs.get(key) is None:  # the library's own default
                continue
            if type(kwargs[key]) is not int or kwargs[key] < 0:
                raise InputError(
                    f"lr_scheduler_kwargs: {key}: found {kwargs[key]!r}, expected a whole number of updates"
                )
            asked[key] = kwargs[key]
        if sum(asked.values()) > updates:
            total = " + ".join(f"{key} {value:,}" for key, value in asked.items())
            raise InputError(
                f"lr_scheduler_kwargs: {total} = {sum(asked.values()):,} updates, but {run}: the decay would not come to its "
                f"end; set num_decay_steps to {max(0, updates - sum(asked.values()) + asked['num_decay_steps']):,} or less"
            )
    if not args.load_best_model_at_end:
        return
    for name in ("eval", "save"):
        strategy, steps = getattr(args, f"{name}_strategy").value, getattr(args, f"{name}_steps")
        if strategy == "steps" and steps > updates:
            raise InputError(
                f"{name}_steps: {int(steps):,}, but {run}: load_best_model_at_end would have no choice; set it to "
                f"{updates:,} or less, or load_best_model_at_end to false"
            )
    if args.eval_strategy.value == "steps" and args.eval_delay > updates:
        raise InputError(f"eval_delay: {args.eval_delay:g}, but {run}: there would be no evaluation to choose by")
    if args.eval_strategy.value == args.save_strategy.value == "steps":
        given = (args.eval_steps, args.save_steps)
        every, kept = (math.ceil(updates * steps) if steps < 1 else int(steps) for steps in given)
        # The Trainer compares at every evaluation, saved or not; the last update has both.
        lost = next((step for step in range(every, updates, every) if step >= args.eval_delay and step % kept), None)
        if lost is not None:
            evaluated, saved = (f"{steps:.10g}" for steps in given)
            raise InputError(
                f"save_steps: {saved}, but eval_steps: {evaluated}: update {lost:,} is evaluated and has no "
                f"checkpoint, so that load_best_model_at_end could not keep it; set save_steps to {evaluated}, "
                f"eval_steps to {saved}, or load_best_model_at_end to false"
            )
