"""Alarms over hand-made logs of PPO runs, and over logs of a real Trainer: each where it should, and not a log earlier."""

import dataclasses
import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from transformers import Trainer, TrainerControl, TrainerState, TrainingArguments

from data_prep.common.errors import InputError
from recipes.trainers.ppo.alarms import NAMES, PPOAlarms, least_fall

ARGS = SimpleNamespace(eval_strategy="steps")
STEADY = {
    "loss": 0.1, "loss/policy": 0.0, "loss/value": 0.1, "policy/skipped_steps": 0.0, "policy/entropy": 2.0,
    "objective/kl": 1.0, "objective/length": 10.0, "objective/eos_rate": 0.9, "objective/repetition": 0.05,
}  # fmt: skip


def build(stop_on=(), kl_budget=8.0, measure="eval_exact_match", max_length=48) -> PPOAlarms:
    return PPOAlarms(kl_budget, list(stop_on), measure, max_length)


def evaluation(score: float, measure: float) -> dict:
    return {"eval_score": score, "eval_kl": 3.0, "eval_exact_match": measure}


def run(alarms, logs, evaluations=None, state=None) -> tuple[TrainerState, TrainerControl]:
    """Feed `alarms` a log an update ({} stands for STEADY) and {update: metrics}, in the Trainer's order.

    Resumes from `state`, and ends early if the run is stopped.
    """
    state, control, evaluations = state or TrainerState(), TrainerControl(), evaluations or {}
    if resumed := state.global_step > 0:  # recipes/ppo.py evaluates the SFT model first, at update 0 of an empty state
        alarms.on_evaluate(ARGS, TrainerState(), TrainerControl(), metrics=evaluation(99.0, 1.0))
    elif 0 in evaluations:
        alarms.on_evaluate(ARGS, state, control, metrics=evaluations[0])
    alarms.on_train_begin(ARGS, state, control)
    if resumed:  # eval_on_start
        alarms.on_evaluate(ARGS, state, control, metrics=evaluation(99.0, 1.0))
    for log in logs:
        state.global_step += 1
        log = {**STEADY, **log}
        state.log_history.append({**log, "step": state.global_step})
        alarms.on_log(ARGS, state, control, logs=log)
        if metrics := evaluations.get(state.global_step):
            state.log_history.append({**metrics, "step": state.global_step})
            alarms.on_log(ARGS, state, control, logs=metrics)
            alarms.on_evaluate(ARGS, state, control, metrics=metrics)
        if control.should_training_stop:
            break
    return state, control


def steps(alarms) -> list[tuple[str, int]]:
    return [(row["alarm"], row["step"]) for row in alarms.raised]


@pytest.mark.parametrize(
    "name, key, first, harmless, bad, says",
    [
        # the mean of the first four is 10: more than 20 is a growth, less than 10/3 a shrinkage
        ("length_drift", "objective/length", (8.0, 9.0, 11.0, 12.0), 20.0, 20.1, "20.1 of at most 48 tokens, 10 at first; raise missing_eos_penalty"),
        ("length_drift", "objective/length", (8.0, 9.0, 11.0, 12.0), 3.4, 3.3, "3.3 of at most 48 tokens, 10 at first; raise kl_coef or lower missing_eos_penalty"),
        # 60 is past the limit of 48: 43.2 is 90 % of it, and more than 1.25 × 30
        ("length_drift", "objective/length", (28.0, 29.0, 31.0, 32.0), 43.2, 43.3, "43.3 of at most 48 tokens, 30 at first; "),
        ("eos_collapse", "objective/eos_rate", (1.0, 0.9, 0.9, 0.8), 0.66, 0.64, "EOS rate 64%, 90% at first; "),
        ("repetition", "objective/repetition", (0.1, 0.0, 0.1, 0.0), 0.24, 0.26, "26% of an answer's 3-grams repeat earlier ones, 5% at first; "),
        ("entropy_collapse", "policy/entropy", (3.0, 2.0, 2.0, 1.0), 0.41, 0.39, "0.39 nats per token, 2 at first; "),
    ],
)  # fmt: skip
def test_against_the_first_four_logs(name, key, first, harmless, bad, says):
    start = [{key: value} for value in first]
    alarms = build()
    run(alarms, [*start, *[{key: harmless}] * 20])
    assert alarms.raised == []
    run(alarms := build(), [*start, {key: bad}, {key: harmless}, {key: bad}])  # one at a time is chance
    assert alarms.raised == []
    state, control = run(alarms := build(), [*start, {key: harmless}, {key: bad}, {key: bad}, {key: bad}])
    assert steps(alarms) == [(name, 7)]
    assert alarms.raised[0]["message"].startswith(says)
    assert [row for row in state.log_history if "alarm" in row] == alarms.raised
    assert not control.should_training_stop


def test_the_first_logs_are_compared_with_nothing():
    run(alarms := build(), [{"objective/eos_rate": 0.0}] * 4)
    assert alarms.raised == []


def test_length_near_its_limit_cannot_drift_upwards():
    # 43.2 is no growth by a quarter over 36: what fills the limit is seen in the EOS rate
    run(alarms := build(), [{"objective/length": length} for length in (36.0,) * 4 + (48.0,) * 9])
    assert alarms.raised == []


def test_kl_over_budget_needs_no_first_logs_and_a_budget():
    over = [{"objective/kl": 8.1}] * 3
    run(alarms := build(), over)
    assert steps(alarms) == [("kl_over_budget", 2)]
    run(alarms := build(), [{"objective/kl": 8.0}] * 9)
    assert alarms.raised == []
    run(alarms := build(kl_budget=None), over)
    assert alarms.raised == []


@pytest.mark.parametrize(
    "log, says",
    [
        ({"policy/skipped_steps": 2.0}, "2 optimizer steps skipped per update; lower learning_rate"),
        ({"loss/value": float("nan")}, "loss/value not finite; lower learning_rate"),
        ({"loss": float("-inf"), "loss/policy": float("inf")}, "loss not finite, loss/policy not finite; lower"),
    ],
)
def test_one_non_finite_loss_is_enough(log, says):
    run(alarms := build(), [{}, {}, log, {}])
    assert steps(alarms) == [("non_finite_loss", 3)]
    assert alarms.raised[0]["message"].startswith(says)


def test_metrics_that_are_not_numbers_are_left_to_the_loss():
    """NaN is on no side of a threshold, must not enter the first logs, and is no NaN in trainer_state.json."""
    nan = dict.fromkeys(("objective/kl", "objective/length", "objective/eos_rate", "policy/entropy"), float("nan"))
    run(alarms := build(), [{}, nan, {}, {}, {}, {"policy/entropy": 0.1}, nan, {"policy/entropy": 0.1}])
    assert steps(alarms) == [("entropy_collapse", 8)]
    assert "NaN" not in json.dumps(alarms.state())


def test_once_until_it_has_gone_and_come_back():
    #      raised at 2      one log below is no end    gone at 9     raised at 11
    kl = [9.0, 9.0, 9.0, 9.0] + [7.0, 9.0, 9.0] + [7.0, 7.0] + [9.0, 9.0, 9.0]
    run(alarms := build(), [{"objective/kl": value} for value in kl])
    assert steps(alarms) == [("kl_over_budget", 2), ("kl_over_budget", 11)]


def evaluated(*pairs: tuple[float, float]) -> tuple[list[dict], dict[int, dict]]:
    """Logs of ten updates between evaluations, and (score, measure) of update 0, 10, 20, …"""
    return [{}] * (10 * (len(pairs) - 1)), {10 * number: evaluation(*pair) for number, pair in enumerate(pairs)}


def test_least_fall_by_hand():
    # halfway is 0.35, its standard error sqrt(0.35 · 0.65 / 128) = 0.04216; (2.5 + sqrt(2 ln 3)) of them
    assert least_fall(0.45, 0.25, 3) == pytest.approx(3.9823 * 0.042158, abs=1e-5)
    assert least_fall(1.0, 0.99, 2) == 0.05
    assert least_fall(40.0, 30.0, 5) == 10.0  # chrF
    assert least_fall(-2.0, -3.0, 5) == 0.5


def test_over_optimization():
    alarms = build()
    run(alarms, *evaluated((0.4, 0.43), (1.0, 0.45), (2.0, 0.25), (3.0, 0.10), (3.5, 0.002)))
    assert steps(alarms) == [("overoptimization", 30)]
    assert alarms.raised[0]["message"].startswith(
        "eval_score 1 → 3 but eval_exact_match 0.45 → 0.1 since update 10; keep the checkpoint of that update "
        "(metric_for_best_model: exact_match), raise kl_coef, lower target_kl, or train the reward model"
    )


@pytest.mark.parametrize(
    "pairs",
    [
        [(0.4, 0.43), (1.0, 0.45), (2.0, 0.29), (3.0, 0.29), (3.5, 0.29)],  # 0.16 is within chance
        [(0.4, 0.43), (1.0, 0.45), (0.9, 0.25), (0.8, 0.10), (0.7, 0.00)],  # both fall: the reward model is not fooled
        [(2.5, 0.20), (1.0, 0.45), (2.0, 0.10), (2.4, 0.10), (2.5, 0.10)],  # never above what the score was before
        [(0.4, 0.43), (1.0, 0.45), (2.0, 0.20), (3.0, 0.45), (3.5, 0.20)],  # one evaluation at a time
        [(0.4, 0.43), (1.0, 0.45), (2.0, 0.55), (3.0, 0.60), (3.5, 0.70)],  # both rise
    ],
)
def test_no_over_optimization(pairs):
    run(alarms := build(), *evaluated(*pairs))
    assert alarms.raised == []


def test_evaluating_an_update_twice_counts_once():
    alarms, (logs, evaluations) = build(), evaluated((0.4, 0.45), (1.0, 0.43), (2.0, 0.20))
    state, control = run(alarms, logs, evaluations)
    alarms.on_evaluate(ARGS, state, control, metrics=evaluation(2.0, 0.20))  # recipes/ppo.py, after it trained
    assert alarms.raised == [] and len(alarms.evaluations) == 3


@pytest.mark.parametrize("name, number", [("kl_over_budget", 2), ("non_finite_loss", 1), ("entropy_collapse", 6)])
def test_stops_only_where_asked(name, number):
    bad = {"objective/kl": 9.0, "policy/skipped_steps": 1.0, "policy/entropy": 0.1}
    logs = [{**bad, "policy/entropy": 2.0}] * 4 + [bad] * 4
    state, control = run(alarms := build([name]), logs)
    assert control.should_training_stop and state.global_step == number
    assert [row["alarm"] for row in alarms.raised if row["message"].endswith("; the run is stopped")] == [name]
    state, control = run(build(["repetition", "length_drift"]), logs)
    assert not control.should_training_stop and state.global_step == 8


def test_over_optimization_stops_where_asked():
    state, control = run(build(["overoptimization"]), *evaluated((0.4, 0.45), (1.0, 0.1), (2.0, 0.1), (3.0, 0.1)))
    assert control.should_training_stop and state.global_step == 20


def test_what_is_printed_and_that_processes_agree(capsys):
    logs = [{}] * 35 + [{"objective/kl": 12.4}] * 5
    run(alarms := build(["kl_over_budget"]), logs)
    line = (
        "alarm kl_over_budget at update 37: KL 12.4 nats per answer, budget 8.0; raise kl_coef or lower learning_rate; "
        "the run is stopped\n"
    )
    assert capsys.readouterr().out == line
    other = TrainerState(is_world_process_zero=False, is_local_process_zero=False)
    _, control = run(second := build(["kl_over_budget"]), logs, state=other)
    assert second.raised == alarms.raised and control.should_training_stop
    assert capsys.readouterr().out == ""


def test_says_once_that_over_optimization_cannot_be_detected(capsys):
    run(build(measure=None), *evaluated((0.4, 0.45), (1.0, 0.1), (2.0, 0.1)))
    said = "alarms: no metric of held-out answers (eval_funcs), so over-optimization cannot be detected\n"
    assert capsys.readouterr().out == said
    build().on_train_begin(SimpleNamespace(eval_strategy="no"), TrainerState(), TrainerControl())
    assert capsys.readouterr().out == "alarms: no eval_strategy, so over-optimization cannot be detected\n"


def test_bad_settings_are_refused():
    with pytest.raises(
        InputError, match="no alarm is called kl_over_buget; there are kl_over_budget, overopt.*not_finite$"
    ):
        build(["repetition", "kl_over_buget"])
    with pytest.raises(InputError, match="no_spread can never be raised: PPO samples one answer per prompt"):
        build(["no_spread"])
    with pytest.raises(InputError, match="kl_over_budget can never be raised without a kl_budget"):
        build(["kl_over_budget"], kl_budget=None)
    with pytest.raises(InputError, match="overoptimization can never be raised without a metric"):
        build(["overoptimization"], measure=None)
    with pytest.raises(InputError, match="kl_budget: expected more than 0 nats per answer, found 0"):
        build(kl_budget=0.0)
    with pytest.raises(InputError, match="eval_exact_match is not evaluated; there are eval_kl, eval_score$"):
        run(build(), [{}], {1: {"eval_score": 1.0, "eval_kl": 1.0}})


@settings(deadline=None, max_examples=40)
@given(
    seed=st.integers(0, 2**32 - 1),
    length=st.floats(6, 20),
    cut=st.floats(0, 0.2),
    loops=st.floats(0, 0.1),
    entropy=st.floats(0.1, 4),
    kl=st.floats(0, 5),
    right=st.floats(0.05, 0.95),
    rise=st.sampled_from([0.0, 0.1]),
)
def test_a_run_in_which_nothing_changes_raises_nothing(seed, length, cut, loops, entropy, kl, right, rise):
    """100 updates of 64 answers, every fifth followed by an evaluation on the same 128 prompts.

    Lengths spread as much as their mean and a share `cut` runs into the limit; a share `loops` of the answers repeats
    itself; entropies spread as much as their mean; the log-ratio of an answer has the variance that goes with its KL if
    it is normal (twice the KL), and half as much again on top of its standard deviation. 5 nats of KL under a budget of
    8 leave (8 - 5) / (1.5 · sqrt(10) / 8) = 5 standard errors. Prompts differ in how often they are answered rightly. In
    half of the cases the score rises all along while the measure stays where it is: that alone is no alarm.
    """
    random, updates, answers, limit = np.random.default_rng(seed), 100, 64, 48
    shape = (updates, answers)
    is_cut = random.random(shape) < cut
    lengths = np.where(is_cut, limit, np.minimum(1 + random.exponential(length, shape), limit))
    repetition = np.where(random.random(shape) < loops, 0.9, random.random(shape) * 0.1)
    entropies = entropy * random.exponential(1.0, shape)
    log_ratios = kl + 1.5 * np.sqrt(2 * kl) * random.standard_normal(shape)
    metrics = {
        "objective/length": lengths, "objective/eos_rate": 1.0 - is_cut, "objective/repetition": repetition,
        "policy/entropy": entropies, "objective/kl": log_ratios,
    }  # fmt: skip
    logs = [{key: float(values[update].mean()) for key, values in metrics.items()} for update in range(updates)]
    chances = random.beta(right, 1 - right, size=128)
    evaluations = {
        update: evaluation(
            rise * update + float(random.standard_normal(128).mean()), float((random.random(128) < chances).mean())
        )
        for update in range(0, updates + 1, 5)
    }
    run(alarms := build(), logs, evaluations)
    assert len(alarms.evaluations) == 21 and alarms.raised == []


troubles = st.sampled_from(
    [{}, {}, {"objective/kl": 9.0}, {"policy/skipped_steps": 1.0}, {"objective/length": 40.0, "objective/kl": 9.0},
     {"policy/entropy": 0.1, "objective/eos_rate": 0.0}, {"objective/repetition": 0.9}, {"objective/kl": float("nan")}]
)  # fmt: skip


@settings(deadline=None, max_examples=100)
@given(
    logs=st.lists(st.tuples(troubles, st.integers(1, 4)), min_size=4, max_size=12),
    measures=st.lists(st.sampled_from([0.1, 0.5, 0.9]), min_size=10, max_size=10),
    stop_on=st.sets(st.sampled_from(NAMES), max_size=2),
    cut=st.integers(1, 47),
)
def test_a_resumed_run_raises_the_same_alarms(logs, measures, stop_on, cut):
    """Whole, or cut at any update, through the JSON of trainer_state.json, and resumed with a new callback."""
    logs = [log for log, number in logs for _ in range(number)]  # troubles that last
    evaluations = {5 * number: evaluation(float(number), measure) for number, measure in enumerate(measures)}
    quiet = {"is_world_process_zero": False}
    whole_state, whole_control = run(whole := build(stop_on), logs, evaluations, TrainerState(**quiet))
    assume(whole_state.global_step > 1)  # or it was stopped before it could be cut

    cut = min(cut, whole_state.global_step - 1)
    state, _ = run(first := build(stop_on), logs[:cut], evaluations, TrainerState(**quiet))
    state.stateful_callbacks["PPOAlarms"] = first.state()
    state = TrainerState(**json.loads(json.dumps(dataclasses.asdict(state))))
    state, control = run(resumed := build(stop_on), logs[cut:], evaluations, state)
    assert resumed.raised == whole.raised
    assert repr(state.log_history) == repr(whole_state.log_history)  # NaN equals nothing, not even NaN
    assert control.should_training_stop == whole_control.should_training_stop


def test_a_stopped_run_that_is_resumed_unchanged_is_stopped_again():
    over = [{"objective/kl": 9.0}] * 5
    state, _ = run(first := build(["kl_over_budget"]), over)
    state.stateful_callbacks["PPOAlarms"] = first.state()
    saved = json.dumps(dataclasses.asdict(state))
    state, control = run(alarms := build(["kl_over_budget"]), over, state=TrainerState(**json.loads(saved)))
    assert control.should_training_stop and steps(alarms) == [("kl_over_budget", 2), ("kl_over_budget", 3)]
    # with another budget the new one holds, though the checkpoint was written under the old
    again = build(["kl_over_budget"], kl_budget=10.0)
    state, control = run(again, over, state=TrainerState(**json.loads(saved)))
    assert not control.should_training_stop and state.global_step == 7 and steps(again) == [("kl_over_budget", 2)]


class Line(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(1, 1)

    def forward(self, x):
        return {"loss": self.layer(x).square().mean()}


class LoggingTrainer(Trainer):
    """The Trainer's own loop, log, checkpoint and resume, with the KL of each update given."""

    kl = (1.0, 1.0, 9.0, 9.0, 9.0, 1.0, 1.0, 9.0, 9.0, 9.0)  # over at 3 to 5 and from 8

    def log(self, logs, start_time=None):
        if "loss" in logs:
            logs["objective/kl"] = self.kl[self.state.global_step - 1]
        super().log(logs, start_time)


@pytest.fixture
def trainer(tmp_path):
    def make(folder: str, callbacks: list, **changes) -> Trainer:
        args = TrainingArguments(
            str(tmp_path / folder), max_steps=10, per_device_train_batch_size=1, logging_steps=1, save_steps=1,
            report_to="none", use_cpu=True, **changes,
        )  # fmt: skip
        return LoggingTrainer(Line(), args, train_dataset=[{"x": torch.ones(1)}] * 10, callbacks=callbacks)

    return make


@pytest.mark.parametrize("restore", [False, True])
@pytest.mark.parametrize("cut", [3, 6])
def test_the_trainer_saves_and_resumes_them(trainer, tmp_path, cut, restore):
    whole = trainer("whole", [build(measure=None)])
    whole.train()
    resumed = trainer("resumed", [build(measure=None)], restore_callback_states_from_checkpoint=restore)
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / f"checkpoint-{cut}"))
    for each, folder in ((whole, "whole"), (resumed, "resumed")):
        saved = json.loads((tmp_path / folder / "checkpoint-10" / "trainer_state.json").read_text(encoding="utf-8"))
        rows = [row for row in saved["log_history"] if "alarm" in row]
        assert [(row["alarm"], row["step"]) for row in rows] == [("kl_over_budget", 4), ("kl_over_budget", 9)]
        (alarms,) = (callback for callback in each.callback_handler.callbacks if isinstance(callback, PPOAlarms))
        assert alarms.raised == rows == saved["stateful_callbacks"]["PPOAlarms"]["attributes"]["raised"]


def test_the_trainer_stops_at_the_alarm(trainer):
    stopped = trainer("run", [build(["kl_over_budget"])])
    stopped.train()
    assert stopped.state.global_step == 4


def test_resuming_a_checkpoint_without_alarms(trainer, tmp_path):
    """The Trainer's next checkpoint would be a KeyError without the entry that on_train_begin makes."""
    trainer("before", []).train()
    resumed = trainer("run", [alarms := build()])
    resumed.train(resume_from_checkpoint=str(tmp_path / "before" / "checkpoint-7"))
    assert steps(alarms) == [("kl_over_budget", 9)]
    assert (tmp_path / "run" / "checkpoint-10" / "trainer_state.json").exists()
