"""What is trained in which precision: score heads beside LoRA in fp32 whatever `dtype` says; weights in bf16 with a warning."""

from pathlib import Path

import pytest
import torch
from helpers.models import save
from helpers.recipes import EXACT, LORA, again, conversation, ranking, succeeded, weights
from peft import get_peft_model
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer
from trl import ModelConfig

from data_prep.common.files import write_json, write_jsonl
from recipes.planning.architecture import count
from recipes.planning.memory import weight_bytes
from recipes.trainers.adapter import lora_config
from recipes.trainers.precision import train_head_in_fp32

STEP = 1e-5  # bf16 keeps 8 bits of a weight: of one above 0.0026 half the last bit is at least so much, and it stays
HEAD = "base_model.model.score.weight"


@pytest.fixture(scope="module")
def given(ready_to_end_dir, tiny_model_dir, tiny_reward_dir, tmp_path_factory) -> dict[str, dict]:
    """Two optimizer steps of `reward` and of `ppo` on a model in bf16, with a checkpoint after each."""
    folder = tmp_path_factory.mktemp("data")
    write_json(folder / "talk.json", [conversation(letter, letter, "yes") for letter in "abcdefgh"])
    write_jsonl(folder / "rankings.jsonl", [ranking(letter, {"no": 1, "yes": 0}) for letter in "abcdefgh"])
    common = {**LORA, **EXACT, "dtype": "bfloat16", "logging_steps": 1, "save_steps": 1, "learning_rate": STEP}
    common |= {"lr_scheduler_type": "constant", "per_device_train_batch_size": 4, "lora_r": 4}
    drawn = {"prompts": folder / "talk.json", "response_length": 4, "reward_model_path": tiny_reward_dir}
    return {
        "reward": {**common, "model_name_or_path": tiny_model_dir, "rankings": folder / "rankings.jsonl"}
        | {"max_length": 64, "max_steps": 2},
        "ppo": {**common, **drawn, "sft_model_path": ready_to_end_dir}
        | {"total_episodes": 8, "num_ppo_epochs": 1, "num_mini_batches": 1},
    }


def head_of(recipe: str, folder: Path) -> torch.Tensor:
    """The score head of the adapter in a checkpoint, as it stands there."""
    path = folder / "value_model" if recipe == "ppo" else folder
    return load_file(path / "adapter_model.safetensors")[HEAD]


@pytest.mark.parametrize("half", [pytest.param(False, marks=pytest.mark.slow), True])
@pytest.mark.parametrize("recipe", ["reward", "ppo"])
def test_a_score_head_beside_lora_takes_steps_below_the_spacing_of_bf16(
    recipe, half, given, tiny_reward_dir, tmp_path
):
    settings = {**given[recipe], "bf16": half}
    done = succeeded(again(recipe, **settings, output_dir=tmp_path / "run"))
    assert "weights are trained in" not in done.out
    first, second = (head_of(recipe, tmp_path / "run" / f"checkpoint-{step}") for step in (1, 2))
    if recipe == "ppo":  # it starts from the reward model's head, rounded
        start = weights(tiny_reward_dir)["score.weight"].bfloat16().float()
    else:
        unmoved = {**settings, "learning_rate": 0.0, "max_steps": 1, "output_dir": tmp_path / "unmoved"}
        succeeded(again(recipe, **unmoved))
        start = head_of(recipe, tmp_path / "unmoved" / "checkpoint-1")
        assert torch.equal(start, start.bfloat16().float())
    assert start.abs().median() > 0.0026
    # AdamW's first step is the learning rate in the gradient's direction, whatever its size.
    torch.testing.assert_close((first - start).abs(), torch.full_like(start, STEP), rtol=0.02, atol=0)
    assert (second != first).all()
    # What is saved is that head, rounded to the model's dtype.
    saved = tmp_path / "run" / "value_model" if recipe == "ppo" else tmp_path / "run"
    assert {weight.dtype for weight in weights(saved).values()} == {torch.bfloat16}
    assert torch.equal(weights(saved)["score.weight"], second.bfloat16())


@pytest.mark.parametrize("recipe", ["reward", "ppo"])
def test_a_head_in_fp32_goes_on_from_its_checkpoint_bit_for_bit(recipe, given, tmp_path):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    succeeded(again(recipe, **given[recipe], output_dir=whole))
    killed.mkdir()
    (whole / "checkpoint-1").rename(killed / "checkpoint-1")
    (killed / "unfinished.json").write_bytes((whole / "settings.json").read_bytes())
    done = succeeded(again(recipe, **given[recipe], output_dir=killed))
    assert f"resuming from {killed}/checkpoint-1; " in done.out
    one, other = (head_of(recipe, folder / "checkpoint-2") for folder in (whole, killed))
    assert one.dtype == torch.float32 and torch.equal(one, other)


def test_a_plan_counts_the_bytes_of_a_model_in_bf16_with_an_adapter_and_a_head_in_fp32(tiny_model_dir):
    asked = ModelConfig(use_peft=True, lora_r=4, lora_target_modules=["all-linear"], dtype="bfloat16")
    load = {"num_labels": 1, "pad_token_id": 1, "dtype": torch.bfloat16}
    model = AutoModelForSequenceClassification.from_pretrained(tiny_model_dir, **load)
    counts = count(model.config, "score", asked)
    model = get_peft_model(model, lora_config(asked, model.config, "score"))
    train_head_in_fp32(model)
    bytes_there = sum(weight.numel() * weight.element_size() for weight in model.parameters())
    assert weight_bytes(counts, {"dtype": "bfloat16"}, 4) == bytes_there
    # 12 × 32² and 13 × 32 a block, 2 × 32 at the end, the tables of 262 and 64, the head; LoRA 4 × (128 + 64 + 160 + 160).
    whole = 2 * (12 * 1024 + 13 * 32) + 64 + (262 + 64) * 32 + 32
    assert bytes_there == 2 * whole + 4 * (2 * 4 * 512 + 32)


ROUNDED = "weights are trained in {}: a step below 1/{} of a weight is lost; dtype: float32 with bf16: true keeps it\n"


@pytest.mark.parametrize(
    ("recipe", "changes", "line"),
    [
        ("reward", {"dtype": "bfloat16"}, ROUNDED.format("bfloat16", 512)),
        ("reward", {"dtype": "float16"}, ROUNDED.format("float16", 4096)),
        ("reward", {"dtype": "auto"}, ROUNDED.format("bfloat16", 512)),  # as the checkpoint is
        ("reward", {"dtype": "float32"}, None),
        ("reward", {**LORA, "lora_modules_to_save": "wte"}, ROUNDED.format("bfloat16", 512)),
        ("ppo", {}, ROUNDED.format("bfloat16", 512)),
    ],
)
def test_weights_trained_in_16_bits_are_said_in_one_line(recipe, changes, line, given, tiny_model_dir, tmp_path):
    settings = {key: value for key, value in given[recipe].items() if key not in {*LORA, "lora_r"}} | changes
    settings |= {"save_strategy": "no", "max_steps": 1} if recipe == "reward" else {"total_episodes": 4}
    if changes.get("dtype") == "auto":
        model = AutoModelForCausalLM.from_pretrained(tiny_model_dir, dtype=torch.bfloat16)
        settings["model_name_or_path"] = save(model, AutoTokenizer.from_pretrained(tiny_model_dir), tmp_path / "half")
    done = succeeded(again(recipe, **settings, output_dir=tmp_path / "run"))
    assert done.out.count("weights are trained in") == (line is not None)
    assert line is None or line in done.out
