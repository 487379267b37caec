"""Alarms of a run: named warnings for what goes wrong, each with a remedy.

    alarm reward_constant at update 2: every answer has the reward -0.01: nothing can be learned from it; …

`RewardAlarms` reads what RLOO and GRPO log; `PPOAlarms` (trainers/ppo/alarms.py) adds what PPO alone can tell. That of
continued pretraining, `forgetting`, is in trainers/sources.py.

    reward_constant     all answers between two logs have one reward
    no_spread           most groups (the answers to one prompt) have one reward each: only the others teach
    reward_not_finite   a reward is NaN or infinite: the update is skipped, the weights stay as they are

A log says little, so all but `reward_not_finite` need their sign in two logs in a row, and are cleared by two without it.
"""

import copy
import math

from tqdm.auto import tqdm
from transformers import TrainerCallback
from transformers.trainer_callback import ExportableState

from data_prep.common.errors import InputError
from data_prep.models.reward_functions import FORM

NAMES = ("reward_constant", "no_spread", "reward_not_finite")
# Rounding leaves equal rewards a standard deviation of a few units in the last place of a 32-bit number.
ROUNDING = 1e-6
# Dynamic sampling (Yu 2025, arXiv:2503.14476, section 3.2) takes such groups out: their advantages are 0.
MOST_GROUPS = 0.5


class Alarms(TrainerCallback, ExportableState):
    """Named alarms: printed, kept in `raised`, and in `trainer_state.json`.

    An alarm is raised once, and again only after it was cleared. It is written to `state.log_history` as {"step",
    "alarm", "message"}.

    Args:
        stop_on: names of alarms that stop the run.

    Raises InputError for an unknown name in `stop_on`.
    """

    names: tuple[str, ...] = ()
    kept = ("signs", "standing", "raised")

    def __init__(self, stop_on: list[str]) -> None:
        if unknown := [name for name in stop_on if name not in self.names]:
            raise InputError(f"stop_on: no alarm is called {', '.join(unknown)}; there are {', '.join(self.names)}")
        self.stop_on = stop_on
        self.signs: dict[str, list[bool]] = {}  # whether the last two logs had the sign of an alarm
        self.standing: list[str] = []  # alarms raised and not cleared
        self.raised: list[dict] = []

    def arguments(self) -> dict:
        """What the class is built with again."""
        return {"stop_on": self.stop_on}

    def state(self) -> dict:
        """What `trainer_state.json` keeps, as plain JSON."""
        return {
            "args": self.arguments(),
            "attributes": copy.deepcopy({key: getattr(self, key) for key in self.kept}),
        }

    def on_train_begin(self, args, state, control, **kwargs):
        # The Trainer restores this state only with `restore_callback_states_from_checkpoint`, and then with the old
        # arguments. Read from the Trainer's state instead, it is there without that option, and the new ones hold.
        name = type(self).__name__
        if state.global_step and name in state.stateful_callbacks:
            for key, value in copy.deepcopy(state.stateful_callbacks[name]["attributes"]).items():
                setattr(self, key, value)
            # An alarm that stopped the run stops it again if nothing has changed, instead of counting as raised.
            self.standing = [alarm for alarm in self.standing if alarm not in self.stop_on]
        # Resumed from a checkpoint without this callback, the Trainer would fail with a KeyError at its next one.
        state.stateful_callbacks.setdefault(name, self.state())

    def watch(self, state, control, name: str, sign: bool, message: str, in_a_row: int = 2) -> None:
        """Note whether a log had the sign of an alarm; raise the alarm after `in_a_row` that had."""
        self.signs[name] = [*self.signs.get(name, []), sign][-2:]
        if not any(self.signs[name]):
            self.standing = [alarm for alarm in self.standing if alarm != name]
        if name in self.standing or self.signs[name][-in_a_row:] != [True] * in_a_row:
            return
        self.standing.append(name)
        if name in self.stop_on:
            control.should_training_stop = True
            message += "; the run is stopped"
        self.raised.append({"step": state.global_step, "alarm": name, "message": message})
        state.log_history.append(dict(self.raised[-1]))
        if state.is_world_process_zero:
            tqdm.write(f"alarm {name} at update {state.global_step}: {message}")  # between the bars, not through them


class RewardAlarms(Alarms):
    """Named alarms over what RLOOTrainer and GRPOTrainer log."""

    names = NAMES

    def __init__(self, stop_on: list[str]) -> None:
        super().__init__(stop_on)
        self.not_finite: list[str] = []  # the functions whose rewards were not finite since the last log

    # The trainers reduce what they log over all processes: all see the same numbers here and stop at the same update.

    def on_log(self, args, state, control, logs=None, **kwargs):
        if "reward_std" not in logs:  # an evaluation, or the end of the run
            return
        found = ", ".join(sorted(set(self.not_finite)))
        self.watch_not_finite(state, control, bool(found), found)
        self.not_finite = []
        # Without the penalty for truncated answers, which differs between them.
        keys = [
            key for key in logs if key.startswith("rewards/") and key.endswith("/std") and "missing_eos" not in key
        ]
        spreads = [logs[key] for key in keys]
        constant = self.watch_constant(state, control, spreads, logs["reward"])
        share = logs["groups_without_spread"]
        message = (
            f"the answers to {share:.0%} of the prompts have one reward each, and teach nothing; raise num_generations "
            "or temperature, give a reward that tells answers apart by more than right or wrong, or leave out prompts "
            "that are always or never answered right"
        )
        self.watch(state, control, "no_spread", not constant and share > MOST_GROUPS, message)

    def watch_constant(self, state, control, spreads: list[float | None], reward: float | None) -> bool:
        """Whether rewards with these standard deviations (None, NaN: unknown) are constant."""
        known = all(spread is not None and math.isfinite(spread) for spread in spreads)
        rounding = ROUNDING * max(1.0, abs(reward or 0.0))
        sign = bool(spreads) and known and max(spreads) <= rounding
        message = (
            f"every answer has the reward {reward:.3g}: nothing can be learned from it; look at what the reward function "
            f"returns for different answers. {FORM}"
            if sign
            else ""
        )
        self.watch(state, control, "reward_constant", sign, message)
        return sign

    def watch_not_finite(self, state, control, sign: bool, names: str) -> None:
        """Note whether a reward, of the functions `names`, was NaN or infinite."""
        message = (
            f"a reward by {names} is NaN or infinite: such updates are skipped; look at what it returns for empty and "
            "truncated answers"
        )
        self.watch(state, control, "reward_not_finite", sign, message, in_a_row=1)


def show_alarms(log_history: list[dict]) -> list[dict]:
    """The alarms in a trainer's log, in order; named in a printed line if there are any."""
    found = [row for row in log_history if "alarm" in row]
    if found:
        print("alarms: " + ", ".join(f"{row['alarm']} at update {row['step']}" for row in found))
    return found
