"""PPO's alarms: named warnings for a PPO run that goes wrong, each with a remedy.

    alarm kl_over_budget at update 37: KL 12.4 nats per answer, budget 8.0; raise kl_coef or lower learning_rate

A log is an average over some tens of answers, so a single one proves nothing: all alarms but `non_finite_loss` and
`reward_not_finite` need their sign in two logs in a row, and are cleared by two logs without it. Those about rewards are
in trainers/alarms.py. Four compare with the mean of the run's own first `FIRST_LOGS` logs. With 64 answers per rollout
and 128 prompts per evaluation, runs in which nothing changes raise none in 100 updates (tests/test_alarms.py simulates
such runs); smaller rollouts are noisier.
"""

import math

from tqdm.auto import tqdm

from data_prep.common.errors import InputError
from recipes.trainers.alarms import RewardAlarms

NAMES = (
    "kl_over_budget",
    "overoptimization",
    "length_drift",
    "eos_collapse",
    "repetition",
    "entropy_collapse",
    "non_finite_loss",
    "reward_constant",
    "reward_not_finite",
)

# Four rollouts of 64 answers: their mean has half the noise of one, and with logging_steps 1 the policy has hardly
# moved.
FIRST_LOGS = 4
# Lengths vary about as much as their mean, so that the mean of 64 varies by an eighth of itself: doubling is far
# outside. Reward models often pay for length (Singhal 2023, arXiv:2310.03716).
LENGTH_GROWTH = 2.0
# If doubling would exceed the limit, 90 % of the limit counts instead, provided that is still a growth by a quarter.
NEAR_LIMIT, LEAST_GROWTH = 0.9, 1.25
# Not a half: if truncated answers learn to end, that may halve the mean, and it is no fault.
LENGTH_SHRINKAGE = 1 / 3
# A share of 64 has a standard error of at most 1/(2·8) = 0.06: a quarter of all answers is four of them.
EOS_FALL = 0.25
# The mean share of 64 answers has a standard error of 0.04 even if a tenth of them are nothing but repetition.
# Degenerate text repeats far more (Welleck 2019, arXiv:1908.04319, who measure 4-grams in this way).
REPETITION_RISE = 0.2
# Learning costs entropy: runs that went well spent 73 % of theirs on three quarters of their gain (Cui 2025,
# arXiv:2505.22617). Below a fifth, samples hardly differ, and the policy has little to learn from.
ENTROPY_LEFT = 0.2
# The measure must fall by more than chance explains: by 2.5 standard errors of a mean over 128 prompts, and by another
# √(2·ln n) of them, because the best of n evaluations owes about that much to luck. All evaluations use the same
# prompts and random numbers, so the true error is smaller. Five points are the least that matters.
PROMPTS, STANDARD_ERRORS, LEAST_FALL = 128, 2.5, 0.05
# The error of a measure outside of 0 to 1 is unknown: a quarter of the best.
RELATIVE_FALL = 0.25


def least_fall(best: float, value: float, evaluations: int) -> float:
    """How far below the `best` of so many evaluations a `value` of the measure must be to be more than chance."""
    if not 0 <= best <= 1:
        return RELATIVE_FALL * abs(best)
    # Of all quantities between 0 and 1, a yes or no varies most: p(1 - p), with p halfway between best and value.
    share = min(max((best + value) / 2, 0.0), 1.0)
    error = math.sqrt(share * (1 - share) / PROMPTS)
    return max(LEAST_FALL, (STANDARD_ERRORS + math.sqrt(2 * math.log(evaluations))) * error)


class PPOAlarms(RewardAlarms):
    """Named alarms over what PPOTrainer logs: printed, kept in `raised`, and in `trainer_state.json`.

    An alarm is raised once, and again only after it was cleared. It is written to `state.log_history` as {"step",
    "alarm", "message"}.

    Args:
        kl_budget: nats per answer; None: no limit.
        stop_on: names of alarms that stop the run.
        measure: an evaluation metric that should rise and is not trained on, such as `eval_exact_match`; None:
            over-optimization cannot be detected. A value from 0 to 1 is taken for a mean of values from 0 to 1.
        max_length: most tokens of an answer (`response_length`).

    Raises InputError for an unknown name in `stop_on` or one that can never be raised, for a budget that is not
    positive, and at the first evaluation that lacks `measure`.
    """

    names = NAMES
    kept = ("first", "signs", "standing", "evaluations", "evaluated_up_to", "raised")

    def __init__(self, kl_budget: float | None, stop_on: list[str], measure: str | None, max_length: int) -> None:
        if "no_spread" in stop_on:
            raise InputError(
                "stop_on: no_spread can never be raised: PPO samples one answer per prompt; remove the name"
            )
        super().__init__(stop_on)
        if kl_budget is not None and not kl_budget > 0:
            raise InputError(f"kl_budget: expected more than 0 nats per answer, found {kl_budget}")
        for name, needed, what in (
            ("kl_over_budget", kl_budget, "a kl_budget"),
            ("overoptimization", measure, "a metric of held-out answers (eval_funcs)"),
        ):
            if name in stop_on and needed is None:
                raise InputError(f"stop_on: {name} can never be raised without {what}; give one, or remove the name")
        self.kl_budget, self.measure, self.max_length = kl_budget, measure, max_length
        self.first: dict[str, list[float]] = {}  # the first logs of each metric
        self.evaluations: list[list[float]] = []  # [step, score, measure]
        self.evaluated_up_to = -1  # the last step whose evaluation counts

    def arguments(self) -> dict:
        return {key: getattr(self, key) for key in ("kl_budget", "stop_on", "measure", "max_length")}

    def on_train_begin(self, args, state, control, **kwargs):
        super().on_train_begin(args, state, control, **kwargs)
        if state.global_step:
            # With eval_on_start the Trainer evaluates again when it resumes; the interrupted run did not.
            self.evaluated_up_to = state.global_step
        if state.is_world_process_zero and (self.measure is None or args.eval_strategy == "no"):
            missing = "metric of held-out answers (eval_funcs)" if self.measure is None else "eval_strategy"
            tqdm.write(f"alarms: no {missing}, so over-optimization cannot be detected")

    def on_log(self, args, state, control, logs=None, **kwargs):
        losses = {key: logs[key] for key in ("loss", "loss/policy", "loss/value") if key in logs}
        if losses:
            found = [f"{key} not finite" for key, value in losses.items() if not math.isfinite(value)]
            if skipped := logs.get("policy/skipped_steps", 0):
                found.insert(0, f"{skipped:g} optimizer steps skipped per update")
            advice = "lower learning_rate, cliprange_value or max_grad_norm, and look for NaN in the rewards"
            self.watch(state, control, "non_finite_loss", bool(found), f"{', '.join(found)}; {advice}", in_a_row=1)

        if "objective/score" in logs:
            score = logs["objective/score"]
            found = [key for key, value in logs.items() if key.startswith("rewards/") and not math.isfinite(value)]
            names = ", ".join(key.removeprefix("rewards/") for key in found) or "the reward model or function"
            self.watch_not_finite(state, control, not math.isfinite(score), names)
            self.watch_constant(state, control, [logs.get("objective/score_std")], score)

        kl = logs.get("objective/kl", math.nan)
        if self.kl_budget is not None and math.isfinite(kl):
            message = f"KL {kl:.3g} nats per answer, budget {self.kl_budget}; raise kl_coef or lower learning_rate"
            self.watch(state, control, "kl_over_budget", kl > self.kl_budget, message)

        if compared := self.with_first(logs, "objective/length"):
            length, first = compared
            long = min(LENGTH_GROWTH * first, NEAR_LIMIT * self.max_length)
            grown = length > long >= LEAST_GROWTH * first
            advice = (
                "raise missing_eos_penalty or kl_coef, or lower response_length; does the reward grow with length "
                "(length_correlation of the reward model)?"
                if grown
                else "raise kl_coef or lower missing_eos_penalty; does the reward fall with length "
                "(length_correlation of the reward model)?"
            )
            message = f"{length:.3g} of at most {self.max_length} tokens, {first:.3g} at first; {advice}"
            self.watch(state, control, "length_drift", grown or length < LENGTH_SHRINKAGE * first, message)

        if compared := self.with_first(logs, "objective/eos_rate"):
            rate, first = compared
            message = (
                f"EOS rate {rate:.0%}, {first:.0%} at first; raise missing_eos_penalty, response_length or kl_coef"
            )
            self.watch(state, control, "eos_collapse", rate < first - EOS_FALL, message)

        if compared := self.with_first(logs, "objective/repetition"):
            share, first = compared
            message = (
                f"{share:.0%} of an answer's 3-grams repeat earlier ones, {first:.0%} at first; raise kl_coef, lower "
                "learning_rate, or train the reward model (reward_model_path) on such answers"
            )
            self.watch(state, control, "repetition", share > first + REPETITION_RISE, message)

        if compared := self.with_first(logs, "policy/entropy"):
            entropy, first = compared
            message = (
                f"{entropy:.2g} nats per token, {first:.2g} at first; raise kl_coef or temperature, or lower "
                "learning_rate, num_ppo_epochs or cliprange"
            )
            self.watch(state, control, "entropy_collapse", entropy < ENTROPY_LEFT * first, message)

    def on_evaluate(self, args, state, control, metrics=None, **kwargs):
        # One evaluation per update: a repeated one (at the start or the end of a run) does not count again.
        if self.measure is None or "eval_score" not in metrics or state.global_step <= self.evaluated_up_to:
            return
        if self.measure not in metrics:
            raise InputError(f"measure: {self.measure} is not evaluated; there are {', '.join(sorted(metrics))}")
        score, value = metrics["eval_score"], metrics[self.measure]
        if not (math.isfinite(score) and math.isfinite(value)):
            return
        self.evaluated_up_to = state.global_step
        self.evaluations.append([state.global_step, score, value])
        # Over-optimization (Gao 2023, arXiv:2210.10760; Stiennon 2020, arXiv:2009.01325, figure 5): the score of the
        # reward model rises while answers get worse. Since the best evaluation so far, the measure must have fallen,
        # and the score be above all scores up to then: scores have no scale, but an order.
        values = [row[2] for row in self.evaluations]
        at = values.index(max(values))
        step, best_score, best = self.evaluations[at]
        risen = score > max(row[1] for row in self.evaluations[: at + 1])
        fallen = best - value > least_fall(best, value, len(values))
        message = (
            f"eval_score {best_score:.3g} → {score:.3g} but {self.measure} {best:.3g} → {value:.3g} since update {step}; "
            f"keep the checkpoint of that update (metric_for_best_model: {self.measure.removeprefix('eval_')}), raise "
            "kl_coef, lower target_kl, or train the reward model (reward_model_path) on this policy's answers"
        )
        self.watch(state, control, "overoptimization", risen and fallen, message)

    def with_first(self, logs: dict, key: str) -> tuple[float, float] | None:
        """(value, mean of the run's first logs) of a metric; None while these are collected or if it is missing."""
        value = logs.get(key, math.nan)
        if not math.isfinite(value):
            return None
        first = self.first.setdefault(key, [])
        if len(first) < FIRST_LOGS:
            first.append(value)
            return None
        return value, sum(first) / FIRST_LOGS
