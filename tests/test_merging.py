"""Adapters of reward and value models are merged where they score the same merged, and saved by themselves elsewhere."""

from types import SimpleNamespace

import pytest
import torch
from helpers.models import save, tiny_config
from helpers.recipes import EXACT, again, ranking, results, succeeded
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForSequenceClassification, GPT2ForSequenceClassification, GPT2LMHeadModel

from data_prep.common.files import write_jsonl
from recipes.trainers.saving import merge_unless_it_answers_otherwise

ONE_PROCESS = SimpleNamespace(is_fsdp_enabled=False, is_deepspeed_enabled=False, is_world_process_zero=lambda: True)
LAYER = "transformer.h.0.mlp.c_fc"


def huge(model):
    """`model` with weights of 1,000 in a layer: in bfloat16, numbers there lie 4 apart, and a small adapter is lost in them."""
    torch.nn.init.constant_(model.get_submodule(LAYER).weight, 1000.0)
    return model.to(torch.bfloat16)


@pytest.mark.parametrize("lost", [False, True])
def test_an_adapter_of_a_classifier_is_merged_unless_it_would_score_otherwise(tiny_tokenizer, capsys, lost):
    torch.manual_seed(0)
    model = GPT2ForSequenceClassification(tiny_config(tiny_tokenizer, num_labels=1))
    if lost:
        huge(model)
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    settings = LoraConfig(
        task_type="SEQ_CLS", r=4, target_modules=["c_fc"], modules_to_save=["score"], init_lora_weights=False,
        fan_in_fan_out=True,
    )  # fmt: skip
    model = get_peft_model(model, settings)
    for name, weight in model.named_parameters():
        if "lora_" in name:
            torch.nn.init.uniform_(weight, 0.1, 0.9)
    found = merge_unless_it_answers_otherwise(ONE_PROCESS, model, "of the value model")
    out = capsys.readouterr().out
    if not lost:
        assert isinstance(found, GPT2ForSequenceClassification) and out == ""
        return
    assert found is model and isinstance(found, PeftModel)
    assert out.startswith(
        "the adapter of the value model is saved by itself, not merged: merged, the largest logit moves"
    )
    assert "is rounded to bfloat16: load in float32" in out and "train it with dtype float32, or without LoRA\n" in out
    base = model.get_submodule(f"base_model.model.{LAYER}.base_layer").weight
    assert torch.equal(base, before[f"{LAYER}.weight"])  # as it was, and not as it is after adding and taking away


@pytest.mark.slow
@pytest.mark.parametrize("recipe", ["reward", "ppo"])
def test_a_recipe_saves_the_adapter_by_itself(recipe, tiny_chat_tokenizer, tiny_reward_dir, tmp_path):
    torch.manual_seed(0)
    base = save(huge(GPT2LMHeadModel(tiny_config(tiny_chat_tokenizer))), tiny_chat_tokenizer, tmp_path / "base")
    lora = {
        "use_peft": True,
        "lora_target_modules": ["c_fc", "c_attn"],
        "lora_alpha": 512,
        "learning_rate": 0.05,
        "dtype": "bfloat16",
    }
    given = {**EXACT, **lora, "output_dir": tmp_path / "out", "max_steps": 3, "logging_steps": 1}
    write_jsonl(tmp_path / "rows.jsonl", [ranking(letter, {"yes": 0, "no": 1}) for letter in "abcdefgh"])
    if recipe == "reward":
        given |= {"model_name_or_path": base, "rankings": tmp_path / "rows.jsonl", "max_length": 64}
        done = succeeded(again("reward", **given))
        assert "the adapter of the reward model is saved by itself, not merged: " in done.out
        assert results(tmp_path / "out", "reward")["metrics"]["reload_difference"] < 1e-3
        folder = tmp_path / "out"
    else:
        given |= {"sft_model_path": base, "reward_model_path": tiny_reward_dir, "value_model_path": base}
        given |= {"prompts": tmp_path / "rows.jsonl", "response_length": 8, "value_learning_rate": 0.05}
        given |= {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 1}
        done = succeeded(again("ppo", **given))
        assert "the adapter of the value model is saved by itself, not merged: " in done.out
        folder = tmp_path / "out" / "value_model"
    assert (folder / "adapter_model.safetensors").exists() and not (folder / "model.safetensors").exists()
    whole = AutoModelForSequenceClassification.from_pretrained(base, num_labels=1, pad_token_id=1)
    PeftModel.from_pretrained(whole, folder)
