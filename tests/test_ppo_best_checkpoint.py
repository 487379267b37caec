"""Which weights recipes/ppo.py saves: those of its best checkpoint, or their moving average."""

from pathlib import Path

import pytest
import torch
from helpers.ppo_runs import BY_LORA, assert_merged, complaint, log_of, same_weights
from helpers.recipes import again, conversation, results, succeeded
from safetensors.torch import load_file, save_file

from data_prep.common.files import write_json

# The best checkpoint


@pytest.fixture(scope="module")
def best_settings(run_settings, reward_file, tmp_path_factory) -> dict:
    """Small letters, at first one token in ten, are rewarded at a learning rate that leaves the reference quickly."""
    path = tmp_path_factory.mktemp("heldout") / "heldout.json"
    for name, numbers in (("prompts", range(64)), ("heldout", range(64, 104))):
        rows = [conversation(str(number), str(number), "yes") for number in numbers]
        write_json(path.with_name(f"{name}.json"), rows)
    steps = {"eval_strategy": "steps", "eval_steps": 1, "load_best_model_at_end": True, "total_episodes": 192}
    rate = {"learning_rate": 0.01, "lr_scheduler_type": "constant", "kl_coef": 0.0, "per_device_train_batch_size": 32}
    rewards = {"reward_funcs": f"{reward_file}:small_letters", "prompts": path.with_name("prompts.json")}
    return {**run_settings, **steps, **rate, **rewards, "heldout": path}


@pytest.fixture(scope="module")
def without_budget(best_settings, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("best") / "ppo"
    succeeded(again("ppo", **best_settings, output_dir=folder))
    return folder


def evaluations(folder: Path) -> dict[int, tuple[float, float]]:
    """{update: (score, KL)}"""
    rows = log_of(folder / "checkpoint-6")
    return {row["step"]: (row["eval_score"], row["eval_kl"]) for row in rows if "eval_score" in row}


def test_the_best_evaluation_is_what_is_saved(without_budget):
    found = evaluations(without_budget)
    best = max(found, key=lambda step: found[step][0])
    assert [*found] == [1, 2, 3, 4, 5, 6]
    same_weights(without_budget, without_budget / f"checkpoint-{best}")
    metrics = results(without_budget, "ppo")["metrics"]
    assert metrics["eval_score_last"] == found[best][0] > metrics["eval_score_first"]


def test_an_evaluation_beyond_the_kl_budget_is_never_the_best(without_budget, best_settings, tmp_path):
    found = evaluations(without_budget)
    budget = sorted(kl for _, kl in found.values())[2] * 1.0001  # three of the six are within
    within = [step for step, (_, kl) in found.items() if kl <= budget]
    best = max(within, key=lambda step: found[step][0])
    assert max(score for score, _ in found.values()) > found[best][0]  # beyond the budget there is more to have
    done = succeeded(again("ppo", **best_settings, kl_budget=budget, save_total_limit=2, output_dir=tmp_path / "ppo"))
    assert evaluations(tmp_path / "ppo") == found
    same_weights(tmp_path / "ppo", without_budget / f"checkpoint-{best}")
    assert results(tmp_path / "ppo", "ppo")["metrics"]["eval_score_last"] == found[best][0]
    kept = sorted(path.name for path in (tmp_path / "ppo").glob("checkpoint-*"))
    assert kept == sorted({f"checkpoint-{best}", "checkpoint-6"}) and len(kept) == 2
    assert "alarm kl_over_budget" in done.out + done.err


def test_by_lora_too_the_best_adapter_is_what_is_merged_and_saved(best_settings, reward_file, tmp_path):
    """The best by a measure of its own, which says: that of update 3."""
    given = {**best_settings, **BY_LORA, "learning_rate": 0.01, "output_dir": tmp_path / "ppo"}
    given |= {"eval_funcs": f"{reward_file}:third", "metric_for_best_model": "third", "per_device_eval_batch_size": 40}
    succeeded(again("ppo", **given))
    found = evaluations(tmp_path / "ppo")
    assert [row["eval_third"] for row in log_of(tmp_path / "ppo" / "checkpoint-6") if "eval_third" in row] == [
        0, 0, 1, 0, 0, 0
    ]  # fmt: skip
    # The metrics afterwards are those of the adapter, sampled by the same random numbers.
    metrics = results(tmp_path / "ppo", "ppo")["metrics"]
    assert (metrics["eval_score_last"], metrics["eval_kl_last"]) == found[3] != found[6]
    assert_merged(tmp_path / "ppo", tmp_path / "ppo" / "checkpoint-3", given["sft_model_path"])


# The moving average of the weights


def test_of_the_best_checkpoint_the_average_is_kept(best_settings, tmp_path):
    succeeded(again("ppo", **best_settings, ema_decay=0.5, output_dir=tmp_path / "ppo"))
    found = evaluations(tmp_path / "ppo")
    best = max(found, key=lambda step: found[step][0])
    saved, kept = load_file(tmp_path / "ppo/model.safetensors"), tmp_path / f"ppo/checkpoint-{best}"
    average, own = load_file(kept / "average.safetensors"), load_file(kept / "model.safetensors")
    assert all(torch.equal(saved[name], average[name]) for name in saved)
    assert not all(torch.equal(saved[name], own[name]) for name in saved)
    assert results(tmp_path / "ppo", "ppo")["metrics"]["eval_score_last"] == found[best][0]


@pytest.mark.slow
def test_by_lora_too_the_average_is_what_is_evaluated_merged_and_saved(best_settings, tmp_path):
    given = {**best_settings, **BY_LORA, "learning_rate": 0.01, "ema_decay": 0.5}
    succeeded(again("ppo", **given, output_dir=tmp_path / "ppo"))
    found = evaluations(tmp_path / "ppo")
    best = max(found, key=lambda step: found[step][0])
    metrics = results(tmp_path / "ppo", "ppo")["metrics"]
    assert (metrics["eval_score_last"], metrics["eval_kl_last"]) == found[best]
    # Of the adapter's two matrices the averages are kept, in fp32: put into the checkpoint's adapter they are the model.
    kept = tmp_path / f"ppo/checkpoint-{best}"
    average, own = load_file(kept / "average.safetensors"), load_file(kept / "adapter_model.safetensors")
    named = {name.replace(".default.weight", ".weight"): weight for name, weight in average.items()}
    assert named.keys() == own.keys() and not all(torch.equal(named[name], own[name]) for name in own)
    save_file(named, kept / "adapter_model.safetensors", metadata={"format": "pt"})
    assert_merged(tmp_path / "ppo", kept, given["sft_model_path"])


def test_a_decay_that_keeps_all_or_nothing_is_refused(run_settings, tmp_path):
    for decay in (0, 1):
        done = again("ppo", **run_settings, ema_decay=decay, output_dir=tmp_path / "ppo")
        assert complaint(done) == f"error: ema_decay: expected a number between 0 and 1, found {decay:.1f}"
