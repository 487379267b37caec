"""Families of models that compute what a recipe could take for granted: logits, conversations in a row, dropout."""

import json
import math
from pathlib import Path

import pytest
import torch
from helpers.models import POSITIONS, save
from helpers.recipes import EXACT, Done, again, conversation, ranking, refused, results, succeeded
from transformers import (
    AutoModelForCausalLM,
    CohereConfig,
    FalconH1Config,
    Gemma2Config,
    GPT2Config,
    GraniteConfig,
    GraniteMoeHybridConfig,
    HyperCLOVAXConfig,
    Lfm2Config,
    MiniCPM3Config,
    OPTConfig,
    Qwen2Config,
    Qwen3_5TextConfig,
)
from trl.trainer import sft_trainer

from data_prep.common.errors import InputError
from data_prep.common.files import write_json, write_jsonl
from data_prep.models.loading import carries_state
from recipes.trainers.blocks import check_documents_apart
from recipes.trainers.dropout import disable_dropout
from recipes.trainers.ppo.policy_and_value import answer_logprobs
from recipes.trainers.sft_loss import scales_its_logits

LLAMA = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": POSITIONS,
}
LINEAR = {
    "linear_num_value_heads": 4,
    "linear_num_key_heads": 2,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "head_dim": 8,
    "layer_types": ["linear_attention", "full_attention"],
}
LOW_RANK = {"q_lora_rank": 8, "kv_lora_rank": 8, "qk_nope_head_dim": 8, "qk_rope_head_dim": 8, "v_head_dim": 8}
CONFIGS = {
    "qwen2": (Qwen2Config, LLAMA),
    "gpt2": (GPT2Config, {"n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": POSITIONS}),
    "cohere": (CohereConfig, LLAMA),  # its logits are a 16th of its head's output
    "gemma2": (Gemma2Config, {**LLAMA, "head_dim": 8, "final_logit_softcapping": 1.0}),
    "granite": (GraniteConfig, {**LLAMA, "logits_scaling": 8.0}),
    "hyperclovax": (HyperCLOVAXConfig, {**LLAMA, "logits_scaling": 8.0}),
    "minicpm3": (MiniCPM3Config, {**LLAMA, **LOW_RANK, "num_key_value_heads": 4, "dim_model_base": 8}),
    "falcon_h1": (
        FalconH1Config,
        {
            **LLAMA,
            "head_dim": 8,
            "mamba_d_ssm": 32,
            "mamba_n_heads": 4,
            "mamba_d_head": 8,
            "lm_head_multiplier": 0.25,
        },
    ),
    "lfm2": (Lfm2Config, {**LLAMA, "layer_types": ["conv", "full_attention"]}),
    "qwen3_5": (Qwen3_5TextConfig, {**LLAMA, **LINEAR}),
    "opt": (
        OPTConfig,
        {
            "hidden_size": 32,
            "word_embed_proj_dim": 32,
            "ffn_dim": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "max_position_embeddings": POSITIONS,
            "dropout": 0.5,
            "layerdrop": 0.5,
        },
    ),
}


def family(kind: str, vocab_size: int = 262, **changes):
    """A small model of random weights, large enough that its logits depend on what it reads."""
    made, shape = CONFIGS[kind]
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(made(**{"vocab_size": vocab_size, "pad_token_id": 1, **shape, **changes}))
    for weight in model.parameters():
        if weight.ndim == 2:
            torch.nn.init.normal_(weight, std=0.5)
    return model.eval()


@pytest.fixture
def folder_of(tiny_chat_tokenizer, tmp_path):
    ids = {key: getattr(tiny_chat_tokenizer, key) for key in ("bos_token_id", "eos_token_id", "pad_token_id")}
    size = len(tiny_chat_tokenizer)
    return lambda kind, **changes: save(family(kind, size, **ids, **changes), tiny_chat_tokenizer, tmp_path / kind)


def trained_on_four_rows(recipe: str, model: Path, folder: Path, **settings) -> Done:
    """The recipe for two steps on rows of 20 tokens or so."""
    words, given = ("what", "is it", "and", "why"), {"model_name_or_path": model, "max_length": POSITIONS}
    if recipe in ("dpo", "reward"):
        write_jsonl(folder / "data.jsonl", [ranking(each, {"yes, it is so": 1, "no": 2}) for each in words])
        given |= {"rankings": folder / "data.jsonl", "max_steps": 2}
    else:
        write_json(folder / "data.json", [conversation(each, each, "yes") for each in words])
    if recipe == "sft":
        given |= {"conversations": folder / "data.json", "max_new_tokens": 4, "max_steps": 2}
    if recipe == "ppo":
        function = "def none(prompts, completions, **columns):\n    return [0.0] * len(prompts)\n"
        (folder / "rewards.py").write_text(function)
        given = {"sft_model_path": model, "prompts": folder / "data.json"}
        given |= {"reward_funcs": f"{folder / 'rewards.py'}:none"}
        given |= {"response_length": 8, "total_episodes": 4, "gradient_accumulation_steps": 2}
    output = {"per_device_train_batch_size": 2, "logging_steps": 1, "output_dir": folder / "out"}
    return again(recipe, **{**EXACT, **given, **output, **settings})


# Logits that are more than the output of the head


@pytest.mark.parametrize("kind", CONFIGS)
def test_a_model_whose_logits_trl_would_not_compute_is_found(kind):
    scales = {"granite", "hyperclovax", "minicpm3", "falcon_h1"}
    model, loss, random = family(kind).train(), sft_trainer._chunked_cross_entropy_loss, torch.get_rng_state()
    assert scales_its_logits(model) == (kind in scales)
    assert model.training and "forward" not in vars(model) and torch.equal(random, torch.get_rng_state())
    assert sft_trainer._chunked_cross_entropy_loss is loss
    if kind != "gpt2":  # half precision rounds, and is no scale
        assert scales_its_logits(family(kind).bfloat16()) == (kind in scales)


@pytest.mark.parametrize("kind", ["granite", "hyperclovax", "falcon_h1", "qwen2"])
def test_where_a_model_cannot_be_run_its_config_says_whether_it_scales(kind):
    model = family(kind)
    model.config._attn_implementation, model.forward = "flash_attention_2", None  # which cannot be called
    assert scales_its_logits(model) == (kind != "qwen2")


@pytest.mark.parametrize("packing", [pytest.param(False, marks=pytest.mark.slow), True])
def test_sft_lowers_the_loss_of_the_model_as_it_is_served(packing, folder_of, tmp_path):
    # Logits of a millionth make each of the 262 tokens as likely as any other, whatever two steps have learned.
    model = folder_of("granite", logits_scaling=1e6)
    done = succeeded(trained_on_four_rows("sft", model, tmp_path, packing=packing))
    assert "loss_type: nll, in place of chunked_nll, which does not know how GraniteForCausalLM scales" in done.out
    metrics = results(tmp_path / "out", "sft")["metrics"]
    for key in ("loss_first", "loss_last"):
        assert metrics[key] == pytest.approx(math.log(262), rel=1e-4)


@pytest.mark.parametrize("kind", CONFIGS)
def test_the_log_probabilities_of_ppo_are_those_that_answers_are_sampled_by(kind):
    model, temperature = family(kind), 0.7
    ids = torch.randint(3, 262, (2, 12))
    positions, mask = torch.tensor([[4, 5, 6], [7, 8, 9]]), torch.tensor([[True, True, True], [True, True, False]])
    answers = ids.gather(1, positions + 1)
    with torch.no_grad():
        found, entropy = answer_logprobs(model, ids, positions, answers, mask, temperature)
        logs = (model(input_ids=ids, use_cache=False).logits / temperature).log_softmax(-1)
    for row, place in mask.nonzero().tolist():
        own = logs[row, positions[row, place]]
        assert found[row, place].item() == pytest.approx(own[answers[row, place]].item(), abs=1e-4)
        assert entropy[row, place].item() == pytest.approx(-(own.exp() * own).sum().item(), abs=1e-4)
    assert (found[1, 2], entropy[1, 2]) == (0, 0)


def test_the_entropy_of_ppo_is_that_of_bounded_logits(folder_of, tmp_path):
    # Bounded by a millionth, every token is as likely as any other; the entropy of an answer is the sum over its tokens.
    succeeded(trained_on_four_rows("ppo", folder_of("gemma2", final_logit_softcapping=1e-6), tmp_path))
    curves = results(tmp_path / "out", "ppo")["curves"]
    assert curves["entropy"][0][1] / curves["length"][0][1] == pytest.approx(math.log(262), rel=1e-4)


# Conversations of a row


@pytest.mark.parametrize("kind", CONFIGS)
def test_layers_that_carry_a_state_are_known_by_the_config(kind):
    assert carries_state(family(kind).config) == (kind in ("falcon_h1", "lfm2", "qwen3_5"))


def test_a_family_with_and_without_such_layers_is_told_by_the_layers_of_the_model():
    attention = GraniteMoeHybridConfig(**LLAMA, mamba_n_heads=4, layer_types=["full_attention"] * 2)
    mixed = GraniteMoeHybridConfig(**LLAMA, mamba_n_heads=4, layer_types=["linear_attention", "full_attention"])
    assert (carries_state(attention), carries_state(mixed)) == (False, True)


@pytest.mark.parametrize(
    ("kind", "option"),
    [("lfm2", "packing"), ("qwen3_5", "padding_free"), ("falcon_h1", "packing"), ("opt", "packing")],
)
def test_conversations_that_would_see_each_other_are_not_put_in_a_row(kind, option, folder_of, tmp_path):
    told = refused(
        trained_on_four_rows("sft", folder_of(kind), tmp_path, **{option: True}),
        f"{option}: in {type(family(kind)).__name__} with attention 'sdpa' conversations of a row see each other",
        f"set {option}: false",
    )
    assert len(told.splitlines()) == 1 and ("attn_implementation" in told) == (kind == "opt")


def test_a_model_that_carries_a_state_is_trained_on_rows_of_one_conversation(folder_of, tmp_path):
    succeeded(trained_on_four_rows("sft", folder_of("lfm2"), tmp_path, packing=False))


@pytest.mark.parametrize("kind", ["lfm2", "qwen3_5", "falcon_h1", "qwen2"])
def test_where_a_model_cannot_be_run_its_config_says_whether_rows_are_kept_apart(kind):
    model = family(kind)
    model.config._attn_implementation = "flash_attention_2"
    if kind == "qwen2":
        check_documents_apart(model, 0, "packing", "conversations")
        return
    with pytest.raises(InputError, match=r"packing: .* carry a state .* of the conversations .*; set packing: false"):
        check_documents_apart(model, 0, "packing", "conversations")


def test_answers_behind_a_shared_prompt_are_refused_for_a_model_that_carries_a_state(folder_of, tmp_path):
    model = folder_of("qwen3_5")
    told = refused(
        trained_on_four_rows("reward", model, tmp_path, shared_prompt=True),
        "shared_prompt: qwen3_5_text models have layers that carry a state",
        "set shared_prompt: false",
    )
    assert len(told.splitlines()) == 1
    succeeded(trained_on_four_rows("reward", model, tmp_path))


# Dropout


@pytest.mark.parametrize("kind", ["opt", "gpt2"])
def test_no_dropout_is_left(kind):
    model, ids = family(kind).train(), torch.arange(3, 40)[None]
    passes = [model(input_ids=ids, use_cache=False).logits for _ in range(4)]
    assert not all(torch.equal(passes[0], each) for each in passes)
    disable_dropout(model)
    passes = [model(input_ids=ids, use_cache=False).logits for _ in range(4)]
    assert all(torch.equal(passes[0], each) for each in [*passes, model.eval()(input_ids=ids).logits])
    assert model.config.to_dict() == family(kind).config.to_dict()  # which is saved with the model


def test_the_first_pass_of_ppo_over_answers_finds_the_probabilities_that_they_were_drawn_with(folder_of, tmp_path):
    once = {"num_ppo_epochs": 1, "num_mini_batches": 1, "save_strategy": "steps", "save_steps": 1}
    succeeded(trained_on_four_rows("ppo", folder_of("opt"), tmp_path, **once))
    history = json.loads((tmp_path / "out" / "checkpoint-1" / "trainer_state.json").read_text())["log_history"]
    (ratio,) = (row["policy/ratio"] for row in history if "policy/ratio" in row)
    (divergence,) = (row["policy/approxkl"] for row in history if "policy/approxkl" in row)
    assert ratio == pytest.approx(1.0, abs=1e-5) and divergence == pytest.approx(0.0, abs=1e-8)


def test_dpo_begins_at_its_reference(folder_of, tmp_path):
    # A policy as it was loaded prefers neither answer more than its reference does: -log(1 / (1 + exp(0))) = ln 2.
    succeeded(trained_on_four_rows("dpo", folder_of("opt"), tmp_path))
    assert results(tmp_path / "out", "dpo")["metrics"]["loss_first"] == pytest.approx(math.log(2), abs=1e-4)
