"""`lora_target_modules` and `lora_modules_to_save` through the commands: names of modules, and names that no module has."""

import json

import pytest
import torch
from helpers.models import tiny_config
from helpers.recipes import RECIPES, again, refused, succeeded, weights
from helpers.stages import short_runs
from safetensors.torch import load_file
from trl import ModelConfig

from recipes.trainers.adapter import lora_config

NAMES = "expected names such as c_attn, c_fc, c_proj, lm_head, wpe, wte"


@pytest.fixture(scope="module")
def runs(tiny_tokenizer, tiny_model_dir, tiny_reward_dir, ready_to_end_dir, tmp_path_factory) -> dict[str, dict]:
    folder = tmp_path_factory.mktemp("data")
    return short_runs(folder, tiny_tokenizer, tiny_model_dir, tiny_reward_dir, ready_to_end_dir, updates=1)


def test_a_single_name_is_the_name_of_modules(runs, tmp_path):
    given = {**runs["sft"], "lora_target_modules": "c_fc", "output_dir": tmp_path / "out"}
    succeeded(again("sft", **given, merge_adapter=False))
    assert json.loads((tmp_path / "out" / "adapter_config.json").read_text())["target_modules"] == ["c_fc"]
    trained = {name.partition(".h.")[2] for name in load_file(tmp_path / "out" / "adapter_model.safetensors")}
    assert trained == {f"{block}.mlp.c_fc.lora_{side}.weight" for block in (0, 1) for side in "AB"}


@pytest.mark.parametrize("recipe", ["reward", "ppo", "continue_pretraining", "dpo", "kto", "rloo", "grpo"])
def test_so_it_is_in_every_recipe(recipe, runs, tmp_path):
    key = "sft_model_path" if recipe == "ppo" else "model_name_or_path"
    succeeded(again(recipe, **{**runs[recipe], "lora_target_modules": "c_fc", "output_dir": tmp_path / "out"}))
    if recipe != "reward":  # another class, with other names
        before, after = weights(runs[recipe][key]), weights(tmp_path / "out")
        moved = {name for name in before if not torch.equal(before[name], after[name])}
        assert moved and moved <= {f"transformer.h.{block}.mlp.c_fc.weight" for block in (0, 1)}


@pytest.mark.parametrize("recipe", [each for each in RECIPES if each != "pretrain"])
def test_a_name_that_no_module_has_is_one_error_before_training(recipe, runs, tmp_path):
    done = again(recipe, **{**runs[recipe], "lora_target_modules": "q_proj", "output_dir": tmp_path / "out"})
    names = NAMES.replace("lm_head", "score") if recipe == "reward" else NAMES
    expected = f"error: lora_target_modules: the model has no module q_proj; {names}, or all-linear by itself"
    assert refused(done, expected) == expected
    assert not [*(tmp_path / "out").glob("checkpoint-*")]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lora_target_modules": ["c_fc", "q_proj", "k"]}, f"lora_target_modules: the model has no module k, q_proj; {NAMES}"),
        ({"lora_target_modules": ["all-linear", "wte"]}, f"lora_target_modules: the model has no module all-linear; {NAMES}, or all-linear by itself"),
        ({"lora_modules_to_save": "embed_tokens"}, f"lora_modules_to_save: the model has no module embed_tokens; {NAMES}"),
        ({"lora_target_modules": r".*\.q_proj"}, r"lora_target_modules: found .*\.q_proj: Target modules .*\.q_proj not found in"),
        ({"lora_target_modules": "(c_fc"}, "lora_target_modules: found (c_fc: missing ), unterminated subpattern"),
        ({"lora_target_modules": "ln_1"}, "lora_target_modules: found ln_1: Target module LayerNorm((32,)"),
    ],
    ids=["several", "all-linear among others", "trained in full", "a pattern", "a broken pattern", "a layer norm"],
)  # fmt: skip
def test_what_cannot_be_trained_is_told(options, message, runs, tmp_path):
    refused(again("sft", **{**runs["sft"], **options, "output_dir": tmp_path / "out"}), f"error: {message}")


def test_a_pattern_and_paths_are_as_in_peft(tiny_chat_tokenizer):
    config = tiny_config(tiny_chat_tokenizer)

    def targets(*names: str):
        return lora_config(ModelConfig(use_peft=True, lora_target_modules=[*names]), config).target_modules

    before = torch.get_rng_state()
    assert targets(r".*\.(c_fc|c_attn)") == r".*\.(c_fc|c_attn)"
    assert targets("h.0.mlp.c_fc") == {"h.0.mlp.c_fc"} and targets("all-linear") == "all-linear"
    assert targets("c_fc", "wte") == {"c_fc", "wte"}
    assert torch.equal(torch.get_rng_state(), before), "looking at the modules draws no random number"
