"""QLoRA: LoRA beside quantized weights, on the processor, through the commands."""

import importlib.util

import pytest
import torch
from helpers.models import POSITIONS, write_shards
from helpers.recipes import EXACT, LORA, again, conversation, loaded, ranking, results, succeeded, weights
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification
from trl import ModelConfig, SFTConfig

from data_prep.common.errors import InputError
from data_prep.common.files import write_json, write_jsonl
from data_prep.models.loading import load_reward_model
from data_prep.models.scoring import encode_answers, score_answers
from recipes.planning.memory import adapter_bytes
from recipes.sft import ScriptArguments
from recipes.trainers.arguments import parse_arguments

bitsandbytes = pytest.importorskip("bitsandbytes", reason="needs the extra quantization")

QLORA = {**LORA, **EXACT, "load_in_4bit": True, "lora_dropout": 0.0}
HELD_OUT = "opq"


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    write_json(folder / "chats.json", [conversation(letter, letter, "yes") for letter in "abcdefgh"])
    write_json(folder / "heldout.json", [conversation(letter, letter, "yes") for letter in HELD_OUT])
    write_jsonl(folder / "ranked.jsonl", [ranking(letter, {"yes": 0, "no": 1}) for letter in "abcdefgh"])
    write_jsonl(folder / "ranked_heldout.jsonl", [ranking(letter, {"yes": 0, "no": 1}) for letter in HELD_OUT])
    return folder


@pytest.fixture(scope="module")
def sft_settings(data, tiny_model_dir) -> dict:
    """20 steps, with an evaluation in the middle: bitsandbytes packs weights anew for it, and training must go on."""
    files = {"model_name_or_path": tiny_model_dir, "conversations": data / "chats.json"}
    steps = {"max_steps": 20, "logging_steps": 1, "learning_rate": 0.02, "per_device_train_batch_size": 8}
    steps |= {"eval_strategy": "steps", "eval_steps": 10, "save_strategy": "no", "max_new_tokens": 4}
    return {**files, "heldout": data / "heldout.json", **steps, "max_length": POSITIONS, "assistant_only_loss": True}


def held_out_loss(model, tokenizer) -> float:
    """The mean loss of "yes" and the end of turn after each held-out question, in nats a token."""
    losses = []
    for letter in HELD_OUT:
        ((ids,),) = encode_answers(tokenizer, [[{"role": "user", "content": letter}]], [["yes"]])
        with torch.no_grad():
            logs = model(torch.tensor([ids])).logits[0].log_softmax(-1)
        losses += [-logs[place - 1, ids[place]].item() for place in range(len(ids) - 4, len(ids))]
    return sum(losses) / len(losses)


@pytest.mark.parametrize("bits", [{"load_in_4bit": True}, {"load_in_4bit": True, "use_bnb_nested_quant": True},
                                  {"load_in_4bit": False, "load_in_8bit": True}])  # fmt: skip
def test_fine_tuning_beside_quantized_weights_learns_and_leaves_a_whole_model(sft_settings, bits, tmp_path):
    succeeded(again("sft", **{**sft_settings, **QLORA, **bits}, output_dir=tmp_path / "sft"))
    found = results(tmp_path / "sft", "sft")["metrics"]
    assert found["loss_last"] < found["loss_first"] - 0.3
    model, tokenizer = loaded(tmp_path / "sft")
    assert getattr(model.config, "quantization_config", None) is None
    assert {weight.dtype for weight in model.parameters()} == {torch.float32}
    # The evaluation was of quantized weights with the adapter beside them, the saved model is both in one.
    assert held_out_loss(model, tokenizer) == pytest.approx(found["eval_loss"], abs=0.02)


def test_what_is_merged_are_the_quantized_weights(sft_settings, tiny_model_dir, tmp_path):
    """At a learning rate of 0 the adapter is nothing, and the saved matrices are those that were computed with."""
    given = {**sft_settings, **QLORA, "learning_rate": 0.0, "max_steps": 1}
    succeeded(again("sft", **given, output_dir=tmp_path / "sft"))
    before, after = weights(tiny_model_dir), weights(tmp_path / "sft")
    quantized = {name for name in before if not torch.equal(before[name], after[name])}
    matrices = ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")
    assert quantized == {f"transformer.h.{block}.{name}.weight" for block in (0, 1) for name in matrices}
    for name in quantized:
        # GPT-2 keeps its matrices the other way round than a linear layer.
        packed, state = bitsandbytes.functional.quantize_4bit(before[name].T.contiguous(), quant_type="nf4")
        expected = bitsandbytes.functional.dequantize_4bit(packed, state).T
        torch.testing.assert_close(after[name], expected, atol=1e-6, rtol=0)


def test_an_adapter_trained_beside_quantized_weights_is_saved_by_itself(sft_settings, tiny_model_dir, tmp_path):
    given = {**sft_settings, **QLORA, "merge_adapter": False, "output_dir": tmp_path / "sft"}
    succeeded(again("sft", **given))
    assert (tmp_path / "sft" / "adapter_model.safetensors").exists()
    assert not (tmp_path / "sft" / "model.safetensors").exists()
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "sft")
    assert model.peft_config["default"].base_model_name_or_path == str(tiny_model_dir)


def test_a_reward_model_beside_quantized_weights_is_whole_and_right(data, tiny_model_dir, tmp_path):
    given = {"model_name_or_path": tiny_model_dir, "rankings": data / "ranked.jsonl", "max_length": POSITIONS}
    given |= {"heldout": data / "ranked_heldout.jsonl", "max_steps": 20, "logging_steps": 1, "learning_rate": 0.02}
    succeeded(again("reward", **given, **QLORA, per_device_train_batch_size=8, output_dir=tmp_path / "reward"))
    found = results(tmp_path / "reward", "reward")["metrics"]
    assert found["accuracy"]["value"] == 1.0 and found["reload_difference"] < 1e-5
    loaded(tmp_path / "reward", AutoModelForSequenceClassification)
    model, tokenizer = load_reward_model(str(tmp_path / "reward"))
    prompts = [[{"role": "user", "content": letter}] for letter in HELD_OUT]
    good, bad = (score_answers(model, tokenizer, prompts, [text] * 3) for text in ("yes", "no"))
    assert all(one > other for one, other in zip(good, bad, strict=True))


@pytest.mark.parametrize("recipe", ["dpo", "kto", "ppo", "rloo", "grpo"])
def test_preferences_are_learned_beside_quantized_weights(recipe, data, tiny_model_dir, tiny_reward_dir, tmp_path):
    steps = {"logging_steps": 1, "save_strategy": "no", "per_device_train_batch_size": 8, "learning_rate": 0.01}
    sampled = {"prompts": data / "chats.json", "reward_model_path": tiny_reward_dir}
    given = {
        "dpo": {"rankings": data / "ranked.jsonl", "max_length": POSITIONS, "max_steps": 2},
        "kto": {"rankings": data / "ranked.jsonl", "max_length": POSITIONS, "max_steps": 2},
        "ppo": {**sampled, "num_mini_batches": 1, "response_length": 4, "total_episodes": 16},
        "rloo": {**sampled, "num_generations": 2, "max_completion_length": 4, "max_steps": 2},
        "grpo": {**sampled, "num_generations": 2, "max_completion_length": 4, "max_steps": 2},
    }[recipe]
    key = "sft_model_path" if recipe == "ppo" else "model_name_or_path"
    succeeded(again(recipe, **given, **steps, **QLORA, **{key: tiny_model_dir}, output_dir=tmp_path / "out"))
    model, _ = loaded(tmp_path / "out")
    assert getattr(model.config, "quantization_config", None) is None
    before, after = weights(tiny_model_dir), weights(tmp_path / "out")
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved and all(name.startswith("transformer.h.") and ".c_" in name for name in moved)


@pytest.mark.parametrize(
    ("recipe", "wide"),
    [
        *(("sft", 2), ("reward", 2), ("ppo", 4), ("continue_pretraining", 4)),
        *(pytest.param(each, 2, marks=pytest.mark.slow) for each in ("dpo", "kto", "rloo", "grpo")),
    ],
)
def test_the_plan_counts_an_adapter_as_wide_as_it_is_trained(
    recipe, wide, data, tiny_chat_tokenizer, tiny_model_dir, tiny_reward_dir, tmp_path
):
    """TRL casts it to bf16, with its gradient and moments; PPO's trainer and transformers' do not."""
    sampled = {"prompts": data / "chats.json", "reward_model_path": tiny_reward_dir}
    grouped = {**sampled, "num_generations": 2, "max_completion_length": 4}
    ranked = {"rankings": data / "ranked.jsonl", "max_length": POSITIONS}
    write_shards(
        tmp_path / "tokens",
        [5] * 8 * POSITIONS + [tiny_chat_tokenizer.eos_token_id],
        tiny_model_dir,
        entries=len(tiny_chat_tokenizer),
    )
    (tmp_path / "heldout.txt").write_text("abcdefgh" * 8)
    given = {
        "sft": {"conversations": data / "chats.json", "max_length": POSITIONS, "max_new_tokens": 4},
        "ppo": {**sampled, "num_mini_batches": 1, "response_length": 4},
        "continue_pretraining": {
            "tokens": tmp_path / "tokens", "max_length": POSITIONS,
            "heldout": tmp_path / "heldout.txt", "heldout_general": tmp_path / "heldout.txt",
        },
        **dict.fromkeys(("reward", "dpo", "kto"), ranked),
        **dict.fromkeys(("rloo", "grpo"), grouped),
    }[recipe]  # fmt: skip
    given |= {
        "sft_model_path" if recipe == "ppo" else "model_name_or_path": tiny_model_dir,
        **QLORA,
        "optim": "adamw_torch",
    }
    steps = {"max_steps": 1, "save_strategy": "steps", "save_steps": 1, "per_device_train_batch_size": 8}
    succeeded(again(recipe, **given, **steps, output_dir=tmp_path / "out"))
    checkpoint = tmp_path / "out" / "checkpoint-1"
    saved = [file for path in checkpoint.rglob("*.safetensors") for file in load_file(path).items()]
    adapters = {weight.itemsize for name, weight in saved if "lora_" in name}
    states = torch.load(checkpoint / "optimizer.pt")["state"].values()
    moments = {(state["exp_avg"].itemsize, state["exp_avg_sq"].itemsize) for state in states}
    # A reward model's score head, trained in full, is put back to the width that it had.
    assert adapters == {wide} and moments - ({(4, 4)} if recipe == "reward" else set()) == {(wide, wide)}
    assert adapter_bytes(recipe, given) == wide


def test_ppo_beside_quantized_weights_saves_the_token_that_ended_its_answers(
    data, tiny_model_dir, tiny_reward_dir, tmp_path
):
    given = {"sft_model_path": tiny_model_dir, "reward_model_path": tiny_reward_dir, "prompts": data / "chats.json"}
    given |= {"stop_token_id": 65, "response_length": 4, "total_episodes": 8, "num_mini_batches": 1}
    succeeded(again("ppo", **given, **QLORA, per_device_train_batch_size=8, output_dir=tmp_path / "out"))
    assert loaded(tmp_path / "out")[0].generation_config.eos_token_id == 65


def test_without_bitsandbytes_the_extra_is_named(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(
        "sys.argv",
        [
            "sft.py",
            *[
                "--conversations",
                "x",
                "--model_name_or_path",
                "x",
                "--output_dir",
                "x",
                "--use_peft",
                "--load_in_4bit",
            ],
        ],
    )
    with pytest.raises(InputError, match=r"need bitsandbytes: pip install -e '.\[quantization\]'"):
        parse_arguments(ScriptArguments, SFTConfig, ModelConfig)
