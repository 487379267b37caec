"""recipes/ppo.py learns what is rewarded, at a KL that it steers, and is not judged by what it was trained on."""

import pytest
import torch
from helpers.models import save, tiny_config
from helpers.ppo import QUESTIONS
from helpers.ppo_runs import log_of, values_of
from helpers.recipes import again, conversation, refused, results, succeeded
from transformers import GPT2LMHeadModel

from data_prep.common.files import write_json

# Toy tasks


@pytest.mark.parametrize(
    ("changes", "shape"),
    [
        ({"learning_rate": 0.005, "total_episodes": 3840}, {"initializer_range": 0.2}),
        # The value model first, and faster. Adapters leave the token table as it was initialized: it is wider here, so
        # that its rows are far enough apart.
        pytest.param(
            {"use_peft": True, "lora_target_modules": "all-linear", "lora_r": 16, "lora_alpha": 32, "total_episodes": 4480,
             "learning_rate": 0.005, "value_learning_rate": 0.02, "num_value_warmup_updates": 2},
            {"initializer_range": 0.18, "n_embd": 64},
            marks=pytest.mark.slow,
        ),
    ],
    ids=["full", "lora"],
)  # fmt: skip
def test_a_random_model_learns_to_say_the_letter_that_is_rewarded(
    run_settings, reward_file, tiny_chat_tokenizer, changes, shape, tmp_path
):
    """No reward model, and nothing to start from: of 262 tokens one is rewarded, by its share of an answer of four."""
    torch.manual_seed(0)
    save(GPT2LMHeadModel(tiny_config(tiny_chat_tokenizer, **shape)), tiny_chat_tokenizer, tmp_path / "policy")
    asked = [chr(0x4E00 + number) for number in range(160)]
    for name, questions in (("prompts", asked[:128]), ("heldout", asked[128:])):
        write_json(tmp_path / f"{name}.json", [conversation(question, question, "-") for question in questions])
    given = {**run_settings, "sft_model_path": tmp_path / "policy", "response_length": 4, "num_ppo_epochs": 4}
    given |= {"prompts": tmp_path / "prompts.json", "heldout": tmp_path / "heldout.json", "save_strategy": "no"}
    given |= {"per_device_train_batch_size": 128, "reward_funcs": f"{reward_file}:share_of_a", "kl_coef": 0.0}
    succeeded(again("ppo", **{**given, **changes}, output_dir=tmp_path / "ppo"))
    metrics = results(tmp_path / "ppo", "ppo")["metrics"]
    assert metrics["eval_score_first"] < 0.1 and metrics["eval_score_last"] > 0.9


# The adaptive KL coefficient


def test_the_kl_coefficient_goes_towards_its_target_by_at_most_two_percent_an_update(run_settings, tmp_path):
    given = {**run_settings, "target_kl": 0.2, "kl_coef": 0.1, "total_episodes": 64, "learning_rate": 0.01}
    succeeded(again("ppo", **given, save_strategy="no", output_dir=tmp_path / "ppo"))
    succeeded(again("ppo", **{**given, "save_steps": 8}, output_dir=tmp_path / "ppo_kept"))
    rows = [row for row in log_of(tmp_path / "ppo_kept" / "checkpoint-8") if "loss" in row]
    coefficients, kls = values_of(rows, "objective/kl_coef"), values_of(rows, "objective/kl")
    expected = [0.1]
    for kl in kls[:-1]:
        expected.append(expected[-1] * (1 + 0.1 * min(0.2, max(-0.2, kl / 0.2 - 1))))
    assert coefficients == pytest.approx(expected, rel=1e-9)
    # At first the policy is its reference: 2 % less. Later it is far beyond its target: 2 % more.
    steps = [after / before for before, after in zip(coefficients, coefficients[1:], strict=False)]
    assert steps[0] == pytest.approx(0.98, abs=1e-6) and max(steps) == pytest.approx(1.02, abs=1e-6)


# Held-out prompts


def test_held_out_prompts_that_are_trained_on_too_are_refused(run_settings, tmp_path):
    rows = [conversation(question, question, "another answer") for question in ("new", QUESTIONS[3], QUESTIONS[5])]
    write_json(tmp_path / "heldout.json", rows)
    given = {**run_settings, "heldout": tmp_path / "heldout.json", "output_dir": tmp_path / "ppo"}
    message = f"{tmp_path / 'heldout.json'}: 2 of 3 held-out prompts are trained on too; split by prompt"
    refused(again("ppo", **given), message)
