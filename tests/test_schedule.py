"""Settings that a run is too short for, and which model it keeps."""

import json
from types import SimpleNamespace

import pytest
from helpers.recipes import ENVIRONMENT, EXACT, again, conversation, ranking, refused, results, succeeded, weights
from transformers import TrainerState, TrainingArguments

from data_prep.common.errors import InputError
from data_prep.common.files import write_json, write_jsonl
from recipes.trainers.best_model import BestModel
from recipes.trainers.schedule import CheckSchedule, check_schedule
from recipes.trainers.sharding import check_sharding, under_zero3

BEST = {"eval_strategy": "steps", "eval_steps": 1, "save_strategy": "steps", "save_steps": 1}
BEST |= {"load_best_model_at_end": True}


@pytest.fixture
def given(tiny_model_dir, tmp_path):
    """Settings of an SFT run of four updates on eight conversations, two at a time."""
    write_json(tmp_path / "chats.json", [conversation(letter, letter, "yes") for letter in "abcdefgh"])
    write_json(tmp_path / "heldout.json", [conversation(letter, letter, "yes") for letter in "xy"])
    files = {"conversations": tmp_path / "chats.json", "heldout": tmp_path / "heldout.json"}
    model = {"model_name_or_path": tiny_model_dir, "eos_token": "<|end|>", "max_new_tokens": 2, "max_length": 64}
    return {**files, **model, **EXACT, "per_device_train_batch_size": 2, "output_dir": tmp_path / "out"}


WSD = {"lr_scheduler_type": "warmup_stable_decay"}
TOO_LONG = [
    (
        {"warmup_steps": 4},
        "warmup_steps: 4 updates of warm-up, but the run has 4 updates: learning_rate would be reached",
    ),
    (
        {**WSD, "warmup_steps": 2, "lr_scheduler_kwargs": '{"num_decay_steps": 3}'},
        "lr_scheduler_kwargs: warmup_steps 2 + num_decay_steps 3 = 5 updates, but the run has 4 updates: the decay would not "
        "come to its end; set num_decay_steps to 2 or less",
    ),
    *(
        (
            {**WSD, "lr_scheduler_kwargs": f'{{"num_decay_steps": {found}}}'},
            f"lr_scheduler_kwargs: num_decay_steps: found {said}, expected a whole number of updates",
        )
        for found, said in (('"no"', "'no'"), ("null", "None"), ("2.5", "2.5"), ("-1", "-1"))
    ),
    (
        {**BEST, "eval_steps": 5, "save_steps": 5},
        "eval_steps: 5, but the run has 4 updates: load_best_model_at_end would",
    ),
    ({**BEST, "eval_delay": 5}, "eval_delay: 5, but the run has 4 updates: there would be no evaluation to choose by"),
    (
        {**BEST, "save_steps": 2},
        "save_steps: 2, but eval_steps: 1: update 1 is evaluated and has no checkpoint, so that load_best_model_at_end "
        "could not keep it; set save_steps to 1, eval_steps to 2, or load_best_model_at_end to false",
    ),
    (
        {**BEST, "eval_steps": 0.25, "save_steps": 0.5, "eval_delay": 2},
        "save_steps: 0.5, but eval_steps: 0.25: update 3 is evaluated and has no checkpoint",
    ),
]


@pytest.mark.parametrize("settings, says", TOO_LONG)
def test_what_would_not_come_in_a_run_of_max_steps_is_refused(settings, says, given):
    refused(again("sft", **given, **settings, max_steps=4), f"error: {says}")


@pytest.mark.parametrize(
    "settings",
    [
        {"eval_steps": 2, "save_steps": 2},
        {"eval_steps": 0.34, "save_steps": 0.34},
        {"eval_steps": 3, "save_steps": 3},  # and the last update has both
        {"eval_steps": 1, "save_steps": 2, "eval_delay": 4},  # only the last is evaluated
        {"eval_strategy": "epoch", "save_strategy": "epoch"},
        {"eval_steps": 1, "save_strategy": "best"},
    ],
)
def test_evaluations_that_all_have_a_checkpoint_are_not_refused(settings, tmp_path):
    check_schedule(TrainingArguments(str(tmp_path), **EXACT, **{**BEST, **settings}), 4)


def test_a_run_of_epochs_is_counted_in_updates(given):
    text = refused(again("sft", **given, warmup_steps=4, num_train_epochs=1), "but the run has 4 updates")
    assert text.startswith("error: warmup_steps: 4 updates of warm-up")
    given |= {**WSD, "warmup_steps": 1, "lr_scheduler_kwargs": '{"num_decay_steps": 3}'}  # the whole run
    succeeded(again("sft", **given, num_train_epochs=1))


def test_a_warm_up_of_the_value_model_that_takes_the_whole_run_is_refused(tiny_model_dir, tmp_path):
    write_json(tmp_path / "prompts.json", [conversation(letter, letter, "yes") for letter in "abcdefgh"])
    given = {"sft_model_path": tiny_model_dir, "prompts": tmp_path / "prompts.json", **EXACT, "response_length": 4}
    given |= {"reward_funcs": "data_prep.rewards.exact_match", "per_device_train_batch_size": 4}
    given |= {"num_mini_batches": 1, "output_dir": tmp_path / "out", "num_value_warmup_updates": 3}
    says = "num_value_warmup_updates: 3 warm-up updates of 3: the policy would never be trained; set it below 3, or raise "
    refused(again("ppo", **given, total_episodes=12), f"error: {says}total_episodes (4 an update)")
    # Two passes over two rollouts.
    refused(again("ppo", **{**given, "num_value_warmup_updates": 4}, num_train_epochs=2), "4 warm-up updates of 4")
    says = "num_value_warmup_updates: 3 warm-up updates of 3"  # 0.7 of 3 are 2.1
    refused(again("ppo", **{**given, "num_value_warmup_updates": 0.7}, total_episodes=12), says)
    says = "num_value_warmup_updates: found 1.5, expected a whole number of updates, or a share below 1"
    refused(again("ppo", **{**given, "num_value_warmup_updates": 1.5}, total_episodes=12), says)


def test_of_equal_evaluations_the_last_model_is_kept_and_named(given, tmp_path):
    """At a learning rate of 0 nothing changes, and every evaluation is the same."""
    done = succeeded(again("sft", **given, **BEST, max_steps=3, learning_rate=0.0))
    loss = results(tmp_path / "out", "sft")["metrics"]["eval_loss"]
    assert f"kept: update 3 of 3, best eval_loss {loss:.3f} (all 3 evaluations equal: the last)\n" in done.out


def test_ppo_keeps_the_last_policy_where_no_answer_is_ever_right(tiny_model_dir, tmp_path):
    write_json(tmp_path / "prompts.json", [conversation(letter, letter, "yes") for letter in "abcdefgh"])
    write_json(tmp_path / "heldout.json", [conversation(letter, letter, "yes") for letter in "xy"])
    given = {"sft_model_path": tiny_model_dir, "prompts": tmp_path / "prompts.json", **EXACT, "response_length": 4}
    given |= {"reward_funcs": "data_prep.rewards.chrf", "eval_funcs": "data_prep.rewards.exact_match", **BEST}
    given |= {"heldout": tmp_path / "heldout.json", "metric_for_best_model": "exact_match", "learning_rate": 0.01}
    given |= {"per_device_train_batch_size": 4, "num_mini_batches": 1, "total_episodes": 12}
    done = succeeded(again("ppo", **given, output_dir=tmp_path / "out"))
    assert "kept: update 3 of 3, best eval_exact_match 0.000 (all 3 evaluations equal: the last)\n" in done.out
    kept, last = weights(tmp_path / "out"), weights(tmp_path / "out" / "checkpoint-3")
    assert all((kept[name] == last[name]).all() for name in last)


def test_the_reward_model_that_is_kept_is_the_best_and_named(tiny_model_dir, tmp_path):
    """What is held out is the contrary of what is learned: the first evaluation is the best."""
    write_jsonl(tmp_path / "train.jsonl", [ranking(letter, {"yes": 0, "no": 1}) for letter in "abcdefgh"])
    write_jsonl(tmp_path / "heldout.jsonl", [ranking(letter, {"yes": 1, "no": 0}) for letter in "xyz"])
    given = {"rankings": tmp_path / "train.jsonl", "heldout": tmp_path / "heldout.jsonl", "max_length": 64, **EXACT}
    given |= {"model_name_or_path": tiny_model_dir, "per_device_train_batch_size": 8, "learning_rate": 0.01, **BEST}
    done = succeeded(again("reward", **given, max_steps=3, output_dir=tmp_path / "out"))
    (line,) = [line for line in done.out.splitlines() if line.startswith("kept: ")]
    assert line.startswith("kept: update 1 of 3, best eval_loss ") and line.endswith(" (of 3 evaluations)")
    kept, first = weights(tmp_path / "out"), weights(tmp_path / "out" / "checkpoint-1")
    assert all((kept[name] == first[name]).all() for name in first)


@pytest.mark.parametrize(
    "values, kl, says",
    [
        ([0.0, 0.0, 0.0], None, "update 3 of 3, best eval_score 0.000 (all 3 evaluations equal: the last)"),
        ([0.5, 0.2, 0.5, 0.1], None, "update 3 of 4, best eval_score 0.500 (of 4 evaluations, 2 equal: the last of them)"),
        ([0.5], None, "update 1 of 1, best eval_score 0.500 (the only evaluation)"),
        ([0.1, 0.9, 0.3], None, "update 2 of 3, best eval_score 0.900 (of 3 evaluations)"),
        # The last of the equals is beyond the budget.
        ([0.5, 0.5, 0.5], [1, 2, 9], "update 2 of 3, best eval_score 0.500 (all 2 evaluations equal: the last; 1 beyond kl_b"),
        ([0.5, 0.5], [9, 9], "update 2 of 2, the last: no evaluation was within kl_budget"),
    ],
)  # fmt: skip
def test_which_evaluation_is_kept(values, kl, says, capsys):
    """As the Trainer does it: the callback, then the comparison, then a checkpoint."""
    args = SimpleNamespace(metric_for_best_model="score", greater_is_better=True, load_best_model_at_end=True)
    args.kl_budget = 3.0 if kl else None
    callback, state = BestModel(), TrainerState(max_steps=len(values))
    for step, value in enumerate(values, start=1):
        metrics = {"eval_score": value, "eval_kl": kl[step - 1] if kl else 0.0}
        state.global_step = step
        state.log_history.append({**metrics, "step": step})
        callback.on_evaluate(args, state, None, metrics=metrics)
        if metrics["eval_kl"] <= 3.0 and (state.best_metric is None or value > state.best_metric):
            state.best_metric, state.best_model_checkpoint = value, f"out/checkpoint-{step}"
    callback.on_train_end(args, state, None)
    assert f"kept: {says}" in capsys.readouterr().out


def test_a_best_model_by_what_is_not_evaluated_is_one_error(given):
    done = again("sft", **given, **BEST, metric_for_best_model="accuracy", max_steps=2)
    refused(done, "error: metric_for_best_model: found accuracy, which is not evaluated; expected one of loss")


def test_ppo_says_so_before_training(tiny_model_dir, tmp_path):
    write_json(tmp_path / "prompts.json", [conversation(letter, letter, "yes") for letter in "abcdefgh"])
    write_json(tmp_path / "heldout.json", [conversation(letter, letter, "yes") for letter in "xy"])
    given = {"sft_model_path": tiny_model_dir, "prompts": tmp_path / "prompts.json", **EXACT, "response_length": 4}
    given |= {"reward_funcs": "data_prep.rewards.chrf", "eval_funcs": "data_prep.rewards.exact_match", **BEST}
    given |= {"heldout": tmp_path / "heldout.json", "metric_for_best_model": "rubric", "num_mini_batches": 1}
    done = again("ppo", **given, per_device_train_batch_size=4, total_episodes=12, output_dir=tmp_path / "out")
    says = "error: metric_for_best_model: found rubric, which is not evaluated; expected one of score, kl, "
    assert refused(done, says).endswith("kl, rlhf_reward, length, eos_rate, entropy, repetition, exact_match")
    assert not (tmp_path / "out").exists()


def test_an_evaluation_after_training_is_not_asked_for_the_metric_of_the_best():
    """Nothing is compared by it, and a trained model would be lost."""
    args = SimpleNamespace(metric_for_best_model="accuracy", greater_is_better=True, load_best_model_at_end=False)
    callback, state = BestModel(), TrainerState(max_steps=1)
    with pytest.raises(InputError, match="metric_for_best_model: found accuracy, which is not evaluated"):
        callback.on_evaluate(args, state, None, metrics={"eval_loss": 1.0})
    callback.on_train_end(args, state, None)
    callback.on_evaluate(args, state, None, metrics={"eval_loss": 1.0})


REQUIRED = {
    "pretrain": {"tokenizer": "x", "tokens": "x"},
    "sft": {"conversations": "x", "model_name_or_path": "x"},
    "reward": {"rankings": "x", "model_name_or_path": "x"},
}


@pytest.mark.parametrize("recipe", REQUIRED)
def test_muon_under_deepspeed_is_refused(recipe, monkeypatch, tmp_path):
    monkeypatch.setitem(ENVIRONMENT, "ACCELERATE_USE_DEEPSPEED", "true")
    done = again(recipe, **{"muon_lr": 0.01, "output_dir": tmp_path / "out", **EXACT, **REQUIRED[recipe]})
    refused(done, "error: muon_lr: DeepSpeed would ignore it, and train by optim; leave it out: AdamW then trains all")


def test_muon_under_the_first_fsdp_is_refused(monkeypatch, tmp_path):
    monkeypatch.setitem(ENVIRONMENT, "ACCELERATE_USE_FSDP", "true")
    done = again("sft", **{"muon_lr": 0.01, "output_dir": tmp_path / "out", **EXACT, **REQUIRED["sft"]})
    refused(done, "error: muon_lr: the first FSDP flattens the matrices that Muon needs; launch with")


SHARDED = {  # {environment of the launcher: what it asks for}
    "fsdp": {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"},
    "zero2": {"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_ZERO_STAGE": "2"},
    "zero3": {"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_ZERO_STAGE": "3"},
}
ASKED = {"sft_model_path": "x", "prompts": "x"}
SFT = REQUIRED["sft"]
SAMPLED = {"model_name_or_path": "x", "prompts": "x"}


@pytest.mark.parametrize(
    ("recipe", "how", "given", "says"),
    [
        ("ppo", "fsdp", ASKED, "PPO runs under neither DeepSpeed nor FSDP; launch with accelerate_configs/ddp.yaml"),
        ("ppo", "zero2", ASKED, "PPO runs under neither DeepSpeed nor FSDP; launch with accelerate_configs/ddp.yaml"),
        ("reward", "fsdp", REQUIRED["reward"], "a reward model is scored after training, saved and loaded again"),
        ("reward", "zero3", REQUIRED["reward"], "a reward model is scored after training, saved and loaded again"),
        ("rloo", "zero3", SAMPLED, "ZeRO-3 gathers the weights in training alone"),
        ("grpo", "zero3", SAMPLED, "ZeRO-3 gathers the weights in training alone"),
        ("sft", "zero2", SFT | {"use_peft": True}, "use_peft: an adapter cannot be merged and saved under DeepSpeed"),
        ("sft", "zero3", SFT | {"chat_vector": ["x", "y"]}, "chat_vector: ZeRO-3 has the weights in parts"),
    ],
)
def test_what_cannot_be_done_with_weights_in_parts_is_refused(recipe, how, given, says, monkeypatch, tmp_path):
    for name, value in SHARDED[how].items():
        monkeypatch.setitem(ENVIRONMENT, name, value)
    refused(again(recipe, **given, output_dir=tmp_path / "out", **EXACT), f"error: {says}")


def test_the_stage_of_deepspeed_is_read_from_its_file(monkeypatch, tmp_path):
    path = tmp_path / "zero.json"
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    monkeypatch.setenv("ACCELERATE_DEEPSPEED_CONFIG_FILE", str(path))
    for stage in (2, 3):
        path.write_text(json.dumps({"zero_optimization": {"stage": stage}}))
        assert under_zero3(str(path)) == under_zero3(None) == (stage == 3)
    assert under_zero3({"zero_optimization": {"stage": 3}}) and not under_zero3({"zero_optimization": {"stage": 2}})
    for odd in ([], {}, {"zero_optimization": 3}):
        path.write_text(json.dumps(odd))
        assert not under_zero3(str(path))
    for name in ("ACCELERATE_USE_DEEPSPEED", "ACCELERATE_DEEPSPEED_CONFIG_FILE"):
        monkeypatch.delenv(name)
    assert not under_zero3(None) and not under_zero3(str(tmp_path / "missing.json"))
    check_sharding({"deepspeed": None, "fsdp": None, "use_peft": True}, {"PPOConfig"})


@pytest.mark.parametrize(("steps", "found"), [(0.25, 10), (7, 7)])
def test_a_resumed_run_counts_by_its_own_steps_and_by_its_own_number_of_updates(steps, found, tmp_path):
    asked = dict.fromkeys(("logging_steps", "eval_steps", "save_steps"), steps)
    args = TrainingArguments(str(tmp_path), use_cpu=True, report_to="none", eval_strategy="steps", **asked)
    state = TrainerState(global_step=5, max_steps=40, logging_steps=1, eval_steps=2, save_steps=3)
    CheckSchedule().on_train_begin(args, state, None)
    assert (state.logging_steps, state.eval_steps, state.save_steps) == (found, found, found)
    args.eval_steps = None
    CheckSchedule().on_train_begin(args, state, None)
    assert state.eval_steps == TrainerState().eval_steps  # as a new run has it
