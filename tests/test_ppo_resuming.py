"""What a run of recipes/ppo.py leaves, whole or killed and resumed: weights, logs, and the table of answers."""

import json
import os
import shutil
import signal
import tempfile
import time
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from helpers.ppo import QUESTIONS
from helpers.ppo_runs import (
    BY_LORA,
    HELD_OUT,
    LORA_BY_HAND,
    assert_merged,
    copy_up_to,
    log_of,
    same_weights,
    table_of,
    values_of,
)
from helpers.recipes import ENVIRONMENT, again, differing, loaded, processes, results, run_as_script, succeeded, words
from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification

from data_prep.models.reward_functions import load_function
from data_prep.models.scoring import score_answers
from recipes.trainers.resuming import last_checkpoint

FULL: dict = {}


# Killed and resumed


@pytest.fixture(scope="module")
def resumable(run_settings, tiny_reward_dir) -> dict:
    """6 updates; a log every second, so that every other checkpoint falls between two; a table every second."""
    method = {"num_mini_batches": 2, "target_kl": 0.05, "value_learning_rate": 0.01, "total_episodes": 48}
    steps = {"logging_steps": 2, "num_sample_generations": 3, "eval_strategy": "steps", "eval_steps": 3}
    return {**run_settings, **method, **steps, "reward_model_path": tiny_reward_dir, "normalize_rewards": True}


@pytest.fixture(scope="module")
def uninterrupted(resumable, tmp_path_factory):
    """uninterrupted("full") and uninterrupted("lora"): (settings, folder, what was printed)."""
    kept = {}

    def finished(kind: str):
        if kind not in kept:
            settings = {**resumable, **(BY_LORA if kind == "lora" else FULL)}
            settings |= {"learning_rate": 0.02} if kind == "lora" else {}
            folder = tmp_path_factory.mktemp("uninterrupted") / kind
            kept[kind] = settings, folder, succeeded(again("ppo", **settings, output_dir=folder))
        return kept[kind]

    return finished


def killed(settings: dict, folder: Path, checkpoint: int) -> None:
    """Start a run and end it by SIGKILL as soon as there is that checkpoint."""
    with tempfile.TemporaryDirectory() as logs:
        line = words("ppo", {**settings, "output_dir": folder})
        process = processes().Process(target=run_as_script, args=(line, f"{logs}/log", {**ENVIRONMENT}))
        process.start()
        while not (folder / f"checkpoint-{checkpoint}").exists():
            assert process.is_alive(), Path(f"{logs}/log.err").read_text()[-3000:]
            time.sleep(0.005)
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        assert process.exitcode == -signal.SIGKILL


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["full", LORA_BY_HAND])
def test_a_killed_run_resumes_bit_for_bit_and_passes_over_half_written_checkpoints(
    uninterrupted, reward_file, kind, tmp_path
):
    settings, whole, _ = uninterrupted(kind)
    slow, folder = reward_file.with_name("slow"), tmp_path / "ppo"
    slow.touch()
    try:
        killed(settings, folder, 3)
    finally:
        slow.unlink()
    newest = Path(last_checkpoint(folder))
    assert newest.name in ("checkpoint-3", "checkpoint-4") and not (folder / "config.json").exists()
    halves = [folder / "partial-checkpoint-4", folder / "checkpoint-5"]
    for half in halves:
        shutil.copytree(newest, half, dirs_exist_ok=True)
    (halves[1] / "trainer_state.json").unlink()
    done = succeeded(again("ppo", **settings, output_dir=folder))
    for half, flaw in zip(halves, ("", " (no trainer_state.json)"), strict=True):
        assert f"{half}: a run was killed while writing it{flaw}; skipped\n" in done.out
    assert f"{newest}: a run was killed" not in done.out and f"resuming from {newest}; " in done.out
    rows = log_of(folder / "checkpoint-6")
    assert rows == log_of(whole / "checkpoint-6")
    # logging_first_step, then every second; evaluations at 3 and 6
    assert [row["step"] for row in rows if "loss" in row] == [1, 2, 4, 6]
    assert [row["step"] for row in rows if "eval_score" in row] == [3, 6]
    assert len(set(values_of(rows, "objective/kl_coef"))) == 4  # adaptive: one that started afresh would differ
    same_weights(folder, whole)
    found, expected = results(folder, "ppo"), results(whole, "ppo")
    assert found["curves"] == expected["curves"]
    assert table_of(folder) == table_of(whole)
    if kind == "lora":
        adapters = [load_file(path / "checkpoint-6" / "adapter_model.safetensors") for path in (folder, whole)]
        assert all(torch.equal(weight, adapters[1][name]) for name, weight in adapters[0].items())


def test_the_newest_whole_checkpoint_is_the_last_by_number(tmp_path, capsys):
    (tmp_path / "checkpoint-best").mkdir()  # a user's copy
    (tmp_path / "checkpoint-best" / "trainer_state.json").write_text("{}")
    assert last_checkpoint(tmp_path) is None
    for name in ("checkpoint-9", "checkpoint-10", "checkpoint-11", "partial-checkpoint-12", "checkpoint-2"):
        (tmp_path / name).mkdir()
        if name != "checkpoint-11":
            (tmp_path / name / "trainer_state.json").write_text('{"global_step": 9}')
            (tmp_path / name / "rng_state.pth").touch()
    assert last_checkpoint(tmp_path) == str(tmp_path / "checkpoint-10")
    printed = capsys.readouterr().out.splitlines()
    assert sorted(line.split(":")[0] for line in printed) == [
        str(tmp_path / "checkpoint-11"),
        str(tmp_path / "partial-checkpoint-12"),
    ]


def test_with_muon_too_a_resumed_run_ends_where_an_uninterrupted_one_does(resumable, tmp_path):
    given = {name: value for name, value in resumable.items() if name != "value_learning_rate"}
    given |= {"muon_lr": 0.01, "weight_decay": 0.1}
    whole, folder = tmp_path / "whole", tmp_path / "ppo"
    succeeded(again("ppo", **given, output_dir=whole))
    matrices = {f"transformer.h.{block}.{name}.weight" for block in (0, 1) for name in ("attn.c_attn", "mlp.c_fc")}
    assert matrices | {"transformer.wte.weight"} <= differing(whole, given["sft_model_path"])
    copy_up_to(whole, folder, 3)
    done = succeeded(again("ppo", **given, output_dir=folder))
    assert f"resuming from {folder / 'checkpoint-3'}; " in done.out
    same_weights(folder, whole)
    assert log_of(folder / "checkpoint-6") == log_of(whole / "checkpoint-6")


# The table


def test_every_so_many_updates_all_answers_go_to_a_file_and_some_to_the_screen(uninterrupted):
    settings, folder, done = uninterrupted("full")
    rows = table_of(folder)
    assert [row["step"] for row in rows] == [0] * 8 + [2] * 8 + [4] * 8  # 3 tables in 6 updates, of 8 answers each
    assert all(set(row) == {"step", "prompt", "completion", "stopped", "score"} for row in rows)
    assert all([*message] == ["role", "content"] for row in rows for message in row["prompt"])
    asked = [row["prompt"][-1]["content"] for row in rows]
    assert set(asked) <= set(QUESTIONS) and len(set(asked[:16])) == 16  # the third is in the second epoch
    # The score of a row is its own: the reward model's and the number of characters
    model, tokenizer = loaded(settings["reward_model_path"], AutoModelForSequenceClassification)
    first = rows[:8]
    given = score_answers(model, tokenizer, [row["prompt"] for row in first], [row["completion"] for row in first])
    for row, score in zip(first, given, strict=True):
        if "�" not in row["completion"]:  # bytes that are no text: what the model was shown is not to be had from it
            assert row["score"] == pytest.approx(score + len(row["completion"]), abs=1e-3)
        assert row["score"] == pytest.approx(len(row["completion"]), abs=1.5)
    curve = dict(results(folder, "ppo")["curves"]["score"])
    assert sum(row["score"] for row in first) / 8 == pytest.approx(curve[1], abs=1e-3)
    titles = [line.strip() for line in done.out.splitlines() if line.strip().startswith("update ")]
    assert titles == ["update 0", "update 2", "update 4"]
    shown = done.out.split("update 0")[1].split("update 2")[0]
    assert "prompt" in shown and "answer" in shown and shown.count(f"{first[0]['score']:.2f}") >= 1
    assert [question in shown for question in asked[:4]] == [True] * 4


def test_a_resumed_run_writes_no_row_of_the_table_twice(uninterrupted, tmp_path):
    """Killed after its last table, resumed from before it."""
    settings, whole, _ = uninterrupted("full")
    folder = copy_up_to(whole, tmp_path / "ppo", 3)
    assert len(table_of(folder)) == 24
    succeeded(again("ppo", **settings, output_dir=folder, resume_from_checkpoint="last"))
    assert (folder / "completions.jsonl").read_text() == (whole / "completions.jsonl").read_text()
    same_weights(folder, whole)


# The adaptive KL coefficient


def test_a_resumed_run_has_the_coefficient_that_the_killed_one_had(uninterrupted):
    _, folder, _ = uninterrupted("full")
    coefficients = [
        json.loads((folder / f"checkpoint-{step}" / "ppo_state.json").read_text())["kl_coef"] for step in (1, 2, 6)
    ]
    assert coefficients[0] == pytest.approx(0.05 * 0.98) and len(set(coefficients)) == 3


# The moving average of the weights


def test_the_moving_average_is_evaluated_and_saved_and_training_does_not_see_it(uninterrupted, tmp_path):
    settings, plain, _ = uninterrupted("full")
    given, whole = {**settings, "ema_decay": 0.75}, tmp_path / "ppo"
    succeeded(again("ppo", **given, output_dir=whole))
    average = load_file(settings["sft_model_path"] / "model.safetensors")
    for update in range(1, 7):
        own, without = (load_file(folder / f"checkpoint-{update}/model.safetensors") for folder in (whole, plain))
        assert all(torch.equal(own[name], without[name]) for name in own)
        average = {name: 0.75 * average[name] + 0.25 * own[name] for name in own}
    saved = load_file(whole / "model.safetensors")
    assert saved.keys() == average.keys()
    assert max((saved[name] - average[name]).abs().max().item() for name in saved) < 1e-6
    assert max((saved[name] - own[name]).abs().max().item() for name in saved) > 1e-4
    found, others = results(whole, "ppo")["metrics"], results(plain, "ppo")["metrics"]
    assert found["eval_kl_last"] == values_of(log_of(whole / "checkpoint-6"), "eval_kl")[-1] < others["eval_kl_last"]
    # Killed after update 3, and resumed
    folder = copy_up_to(whole, tmp_path / "again", 3)
    succeeded(again("ppo", **given, output_dir=folder, resume_from_checkpoint="last"))
    same_weights(folder, whole)


def test_an_average_that_the_checkpoint_lacks_starts_from_its_weights(uninterrupted, tmp_path):
    settings, plain, _ = uninterrupted("full")
    folder = copy_up_to(plain, tmp_path / "ppo", 3)
    done = succeeded(again("ppo", **settings, ema_decay=0.75, output_dir=folder, resume_from_checkpoint="last"))
    assert "resuming with another setting, as told: ema_decay None → 0.75\n" in done.out
    average = load_file(folder / "checkpoint-3/model.safetensors")
    for update in (4, 5, 6):
        own = load_file(folder / f"checkpoint-{update}/model.safetensors")
        average = {name: 0.75 * average[name] + 0.25 * own[name] for name in own}
    saved = load_file(folder / "model.safetensors")
    assert max((saved[name] - average[name]).abs().max().item() for name in saved) < 1e-6
    assert max((saved[name] - own[name]).abs().max().item() for name in saved) > 1e-4


@pytest.mark.parametrize("last_first", [False, True])
def test_the_average_is_never_taken_for_the_updates_own_weights(last_first, build_ppo, tmp_path, monkeypatch):
    """A folder lists its files in any order, and the average lies beside the model."""
    given = {"ema_decay": 0.5, "learning_rate": 0.003, "save_steps": 1, "total_episodes": 8}
    build_ppo(**given).train()
    folder = tmp_path / "trainer" / "checkpoint-1"
    own, average = load_file(folder / "model.safetensors"), load_file(folder / "average.safetensors")
    assert not all(torch.equal(own[name], average[name]) for name in own)
    glob = Path.glob
    monkeypatch.setattr(Path, "glob", lambda *about: iter(sorted(glob(*about), reverse=last_first)))
    for way in ("resumed", "best"):
        trainer = build_ppo(**given)
        if way == "resumed":
            trainer._load_from_checkpoint(str(folder))
        else:
            trainer.state.best_model_checkpoint = str(folder)
            trainer._load_best_model()
        loaded = trainer.model.policy.state_dict()
        assert all(torch.equal(loaded[name], own[name]) for name in own), way
        assert all(torch.equal(trainer.average.weights[name], average[name]) for name in average), way


# What is saved


def test_a_merge_says_what_its_adapters_say(uninterrupted):
    settings, folder, _ = uninterrupted("lora")
    start = settings["sft_model_path"], settings["reward_model_path"]
    assert_merged(folder, folder / "checkpoint-6", *start)


@pytest.mark.parametrize("kind", ["full", "lora"])
def test_what_is_saved_is_the_policy_that_was_evaluated(uninterrupted, build_ppo, kind):
    """Sampled again by the same random numbers, the held-out answers have the metrics of the end of the run."""
    settings, folder, _ = uninterrupted(kind)
    function = load_function(settings["reward_funcs"])
    model = AutoModelForSequenceClassification.from_pretrained(settings["reward_model_path"])
    rows = [{"prompt": [{"role": "user", "content": question}]} for question in HELD_OUT]
    rows = [*Dataset.from_list(rows).shuffle(seed=42)]  # as the recipe does: an answer is sampled by its row's number
    trainer = build_ppo(rows=rows, policy=folder, reward_funcs=[function], reward_model=model)
    found = trainer.evaluate(trainer.train_dataset)
    metrics = results(folder, "ppo")["metrics"]
    for name in ("score", "length", "eos_rate", "entropy", "repetition"):
        assert found[f"eval_{name}"] == pytest.approx(metrics[f"eval_{name}_last"], abs=1e-4)
    assert found["eval_kl"] == pytest.approx(0, abs=1e-5) and abs(metrics["eval_kl_last"]) > 0.01
