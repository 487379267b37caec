"""Bits per byte of each source of text along the way, and the alarm `forgetting`: what continued pretraining must show.

    step 0: bits per byte: domain 2.310, general 1.621
    alarm forgetting at update 300: general text takes 1.702 bits per byte, 5.0 % more than before training; …

The loss on a mixture says neither what was learned of the domain nor what was lost of all else.
"""

import time
from collections.abc import Callable

from accelerate.utils import broadcast_object_list

from data_prep.models.bits_per_byte import bits_per_byte
from recipes.trainers.alarms import Alarms
from recipes.trainers.curves import logged

DOMAIN, GENERAL = "domain", "general"


def logged_as(source: str) -> str:
    """The name of a source's bits per byte in a trainer's log."""
    return f"eval_{source}_bits_per_byte"


class SourceMonitor(Alarms):
    """Bits per byte on held-out text of each source, at step 0 and every `eval_steps`, and tokens per second.

    `forgetting` is raised if general text takes more than `forgetting_budget` more bits per byte than at step 0: in two
    measurements in a row, since a learning rate that is raised again makes a model worse for a while (Ibrahim 2024,
    arXiv:2403.08763, section 6.1), or in the last. The text is the same each time, so that there is no noise.

    Args:
        forgetting_budget: share of the bits per byte at step 0.
        stop_on: names of alarms that stop the run.

    Attributes, to be set before training: `heldout`, {source: batches for `bits_per_byte`}, with "general" among the
    sources; `tokens`, a function that gives those trained on after a number of updates.

    Raises InputError for an unknown name in `stop_on`.
    """

    names = ("forgetting",)

    def __init__(self, forgetting_budget: float, stop_on: list[str]) -> None:
        super().__init__(stop_on)
        self.forgetting_budget = forgetting_budget
        self.heldout: dict[str, list] = {}
        self.tokens: Callable[[int], int] = lambda updates: 0

    def arguments(self) -> dict:
        return {key: getattr(self, key) for key in ("forgetting_budget", "stop_on")}

    def on_train_begin(self, args, state, control, model=None, **kwargs):
        super().on_train_begin(args, state, control, **kwargs)
        self.started, self.first_step, self.paused = time.perf_counter(), state.global_step, 0.0
        if not logged(state.log_history, logged_as(GENERAL)):  # a resumed run has them up to its checkpoint
            self.measure(args, state, control, model)

    def on_step_end(self, args, state, control, model=None, **kwargs):
        if state.global_step % state.eval_steps == 0 or state.global_step == state.max_steps:
            self.measure(args, state, control, model)

    def on_log(self, args, state, control, logs=None, **kwargs):
        if logs is not None and "loss" in logs and state.global_step > self.first_step:
            seconds = time.perf_counter() - self.started - self.paused
            trained = self.tokens(state.global_step) - self.tokens(self.first_step)
            logs["tokens_per_second"] = round(trained / seconds, 1)
            state.log_history[-1].update(logs)

    def measure(self, args, state, control, model) -> None:
        start = time.perf_counter()
        # Every process measures, since the weights may be in parts; the first decides, so that all stop at the same step.
        found = [bits_per_byte(model, batches, model.device)[0] for batches in self.heldout.values()]
        found = broadcast_object_list(found)  # as they are: not every device has 64 bits
        values = dict(zip(self.heldout, found, strict=True))
        state.log_history.append(
            {"step": state.global_step, **{logged_as(each): bits for each, bits in values.items()}}
        )
        if state.is_world_process_zero:
            shown = ", ".join(f"{source} {bits:.3f}" for source, bits in values.items())
            print(f"step {state.global_step}: bits per byte: {shown}")
        rise = values[GENERAL] / logged(state.log_history, logged_as(GENERAL))[0][1] - 1
        message = (
            f"general text takes {values[GENERAL]:.3f} bits per byte, {rise:.1%} more than before training, and "
            f"forgetting_budget is {self.forgetting_budget:.1%}; give replay text more weight in the mixture, or lower the "
            "learning rate"
        )
        last = state.global_step == state.max_steps
        self.watch(state, control, "forgetting", rise > self.forgetting_budget, message, in_a_row=1 if last else 2)
        self.paused += time.perf_counter() - start
