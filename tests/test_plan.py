"""python -m recipes.plan: its numbers are those of the built models, of arithmetic by hand, and of published trainings."""

import json
import os
import re
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from helpers.models import tiny_config
from helpers.recipes import conversation, ranking
from transformers import AutoModelForCausalLM, GPTNeoXConfig, GraniteConfig, Phi3Config, Qwen2Config

from recipes import plan
from recipes.planning import architecture, measure, two_steps
from recipes.planning.architecture import PUBLISHED, Sources, count
from recipes.planning.hardware import GPUS
from recipes.planning.memory import layer_bytes
from recipes.planning.run_plan import changes, plan_of, reader
from recipes.planning.settings import files_of, makers

ROOT = Path(__file__).parents[1]
CONFIGS = sorted((ROOT / "recipes" / "configs").rglob("*.yaml"))
GPT2 = ROOT / "recipes" / "configs" / "gpt2_small"


@pytest.fixture(scope="module")
def all_plans():
    """{folder/stage: its plan} of every YAML on disk, from a folder in which no run has been."""
    here = os.getcwd()
    read = reader(plan.recipe_arguments)
    sources = Sources(makers(CONFIGS), read)
    plans = {}
    os.chdir(ROOT / "tests" / "broken")
    try:
        for path in CONFIGS:
            stage, values = read(path)
            name = f"{path.parent.name}/{path.stem}"
            plans[name] = values if stage == "mix" else plan_of(path, stage, values, sources, rows=64_000)
    finally:
        os.chdir(here)
    return plans, sources


@pytest.fixture
def planned(command):
    """planned(*words): what the plan prints; a plan that fails is the test's end."""

    def run(*words) -> str:
        code, out, err = command(plan, *words)
        assert code == 0, err
        return out

    return run


def line(out: str, name: str) -> str:
    """What stands behind the name at the beginning of a line."""
    return re.search(rf"^  {name} +(.*)$", out, flags=re.M)[1]


def test_every_config_is_planned_without_a_network_and_without_its_data(all_plans):
    plans, _ = all_plans
    assert len(plans) == len(CONFIGS)
    for name, each in plans.items():
        if not name.endswith("/mix"):
            assert each.total(each.work.tokens) > 0 and each.peak > 0, name
            assert each.seconds(GPUS["h100"], 1, 0.4) > 0, name


def test_parameters_are_those_worked_out_in_the_heads_of_the_configs(all_plans):
    plans, _ = all_plans
    gpt2 = plans["gpt2_small/pretrain"].models["policy"]
    # 12 blocks of 12 × 768² + 13 × 768, the last layer norm, tables of 50,304 and 1,024 rows.
    assert gpt2.parameters == 12 * (12 * 768**2 + 13 * 768) + 2 * 768 + (50_304 + 1_024) * 768 == 124_475_904
    assert gpt2.multiplied == 124_475_904 - 1_024 * 768  # positions are looked up, the other table is the head too
    assert gpt2.linear == gpt2.matrices == 12 * 12 * 768**2
    sft = plans["qwen2.5_7b_lora/sft"].models["policy"]
    assert (sft.parameters, sft.adapter) == (7_615_616_512, 40_370_176)  # the head of that YAML has the sums
    assert sft.multiplied == 7_615_616_512 - 152_064 * 3_584  # the head is another matrix than the table
    ppo = plans["qwen2.5_7b_lora/ppo"].models
    assert list(ppo) == ["policy", "adapter reference", "value", "reward"]
    assert ppo["reward"].parameters == 7_615_616_512 - 152_064 * 3_584 + 3_584  # a score in place of the head
    assert ppo["value"].trainable == 40_370_176 + 3_584
    # Queries 128 × 16 wide beside a stream of 1,024: the width of attention is not that of the model.
    small = plans["adapt_qwen3_0.6b/dpo"].models["policy"]
    assert (small.attention, small.keys, small.hidden) == (2048, 1024, 1024)


@pytest.mark.parametrize("name", ["gpt2_small", "qwen2.5_7b_lora"])
def test_a_model_that_another_yaml_makes_is_followed_to_its_origin(all_plans, name):
    plans, _ = all_plans
    stages = [plans[f"{name}/{stage}"].models["policy"].positions for stage in ("sft", "reward", "ppo")]
    assert set(stages) == {1_024 if name == "gpt2_small" else 131_072}


def test_tokens_flops_and_price_of_gpt2_small_by_hand(all_plans, planned):
    out = planned(GPT2 / "pretrain.yaml", "--num_gpus", 8, "--price_per_hour", 2.5)
    assert line(out, "tokens") == "19,073 steps × 16 × 32 rows × 1,024 = 9,999,745,024"
    # 6 × 123,689,472 + 12 × 12 × 768 × 1,024
    assert line(out, "FLOPs") == "8.55e+18: 855,383,040 a token"
    assert 6 * 123_689_472 + 12 * 12 * 768 * 1_024 == 855_383_040
    # 855,383,040 × 9,999,745,024 / (8 × 0.4 × 989e12) = 2,702.8 s = 45.05 min; / 3,600 × 8 × 2.5 = 15.02
    assert line(out, "time") == "45 min; price 15.02"
    assert "20 × 124,475,904 = 2,489,518,080 tokens" in line(out, "Chinchilla")
    assert line(out, "Chinchilla").endswith("80.3 a parameter")


@pytest.mark.parametrize(("gpus", "refused"), [(1, False), (16, False), (3, True), (32, True)])
def test_an_update_has_global_batch_size_rows_on_any_number_of_gpus(gpus, refused, planned, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")  # of whoever asks: the plan is for --num_gpus
    out = planned(GPT2 / "pretrain.yaml", "--num_gpus", gpus)
    assert line(out, "tokens") == "19,073 steps × 16 × 32 rows × 1,024 = 9,999,745,024"
    assert (f"note: global_batch_size: 512 rows do not divide into {gpus} GPUs × 32:" in out) == refused


def test_memory_by_part_by_hand(all_plans):
    plans, sources = all_plans
    found = plans["gpt2_small/pretrain"]
    parameters, matrices = 124_475_904, 12 * 12 * 768**2
    assert found.parts["weights"] == found.parts["gradients"] == 4 * parameters
    assert found.parts["optimizer"] == 4 * matrices + 8 * (parameters - matrices)  # Muon: one moment, AdamW: two
    assert found.parts["bf16 copies"] == 2 * (matrices + 50_304 * 768)
    # A layer and token: two norms keep 4 + 2 bytes, attention 4 × 2, the MLP 2 × 4 × 2 of each unit of the width: 36.
    policy = found.models["policy"]
    assert layer_bytes(policy, 2, 4, 1_024, False) == 36 * 768
    # Compiled, what comes out of the activation is computed again: 2 × 4 bytes less. An H100 held 16.4 GB (gpu_check.sh).
    assert found.parts["activations"] == 32 * 1_024 * (12 * 28 * 768 + 10 * 768)
    assert found.parts["logits"] == 32 * 1_024 * 50_304 * 4
    assert found.peak == sum(found.parts.values()) == pytest.approx(16.42e9, rel=0.15)
    plain = plan_of(found.path, found.stage, {**found.values, "torch_compile": False}, sources)
    assert plain.parts["activations"] == 32 * 1_024 * (12 * 36 * 768 + 10 * 768)
    assert plain.parts["logits"] == 32 * 1_024 * 50_304 * 16
    # Eager: of each head and key also 4 bytes of the softmax and 2 of what the values are multiplied with.
    values = {**found.values, "attn_implementation": "eager"}
    eager = plan_of(found.path, found.stage, values, sources)
    scores = 12 * 32 * 12 * 1_024**2 * 6  # layers × rows × heads × context²
    assert eager.parts["activations"] - found.parts["activations"] == scores == 28_991_029_248
    # PPO: its rollout of 512 answers keeps keys and values of 1,024 tokens, 2 × 12 layers × 768 × 2 bytes each.
    ppo = plans["gpt2_small/ppo"]
    assert ppo.parts["KV cache"] == 512 * 1_024 * 2 * 12 * 768 * 2
    assert ppo.parts["weights of the reference"] == 4 * parameters
    averaged = plans["quickstart/ppo"]  # ema_decay: fp32 weights once more
    assert averaged.parts["average of the policy"] == averaged.parts["weights of the policy"]
    assert "average of the policy" not in ppo.parts
    # LoRA: 16 bytes a trained parameter, among them its own fp32 weights; QLoRA: half a byte and a scale for 64 weights, and
    # 8 bytes a trained parameter under TRL's trainers, which cast it to bf16, 16 under transformers' own.
    lora = plans["qwen2.5_7b_lora/sft"]
    assert lora.parts["weights"] == 2 * 7_615_616_512 + 4 * 40_370_176
    assert lora.parts["gradients"] + lora.parts["optimizer"] == 12 * 40_370_176
    reward = plans["qwen2.5_7b_lora/reward"]  # the score head stays in bf16, and a copy in fp32 is trained
    assert reward.parts["weights"] == 2 * (7_070_619_136 + 3_584) + 4 * (40_370_176 + 3_584)
    linear = 36 * (2 * 4_096 * 4_096 + 2 * 4_096 * 1_024 + 3 * 4_096 * 12_288)
    norms = 36 * (2 * 4_096 + 2 * 128) + 4_096
    others = 2 * 151_936 * 4_096 + norms
    for stage, adapter, wide in (
        ("sft", 43_646_976, 2),
        ("dpo", 43_646_976, 2),
        ("continue_pretraining", 87_293_952, 4),
    ):
        quantized = plans[f"adapt_qwen3_8b/{stage}"].parts
        assert quantized["weights"] == linear * (0.5 + 4 / 64) + 2 * others + wide * adapter
        assert quantized["gradients"] == wide * adapter and quantized["optimizer"] == 2 * wide * adapter


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("bf16", [True, False])
@pytest.mark.parametrize("kind", ["gpt2", "qwen2", "qwen2 in bf16"])
def test_what_a_layer_keeps_is_what_autograd_keeps(kind, bf16, attention, tiny_tokenizer):
    """Keys and values of two of four heads, and a width that is not that of the MLP."""
    rows, length, shape = 2, 48, {"attn_implementation": attention, "use_cache": False}
    config = tiny_config(tiny_tokenizer, n_embd=64, n_head=4, activation_function="gelu_pytorch_tanh", **shape)
    if kind != "gpt2":
        width = {"hidden_size": 64, "intermediate_size": 160, "num_attention_heads": 4, "num_key_value_heads": 2}
        config = Qwen2Config(**width, num_hidden_layers=2, vocab_size=262, max_position_embeddings=64, **shape)
    model = AutoModelForCausalLM.from_config(config).train()
    if kind == "qwen2 in bf16":
        model = model.bfloat16()
    block = (model.transformer.h if kind == "gpt2" else model.model.layers)[1]
    seen, places, held = {}, [], []
    # Weights, and what autocast makes of them; of each row and head a number of the norms and of sdpa's softmax.
    weights = [sorted(each.shape) for each in block.parameters()]

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        held.append(tensor)  # so that no other comes to lie where it is
        if sorted(tensor.shape) not in weights and tensor.numel() > rows * length * 4:
            seen[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    block.register_forward_pre_hook(lambda *given: places.append(set(seen)))
    block.register_forward_hook(lambda *given: places.append(set(seen)))
    ids = torch.zeros(rows, length, dtype=torch.long)
    hooks = torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor)
    with hooks, torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        model(ids)
    kept = sum(seen[place] for place in places[1] - places[0])
    wide, stream = (2 if bf16 or kind == "qwen2 in bf16" else 4), (2 if kind == "qwen2 in bf16" else 4)
    assert kept == rows * length * layer_bytes(count(config), wide, stream, length, attention == "eager")


@pytest.mark.parametrize(("config", "gated"), [(Qwen2Config, True), (Phi3Config, True), (GPTNeoXConfig, False)])
def test_a_gate_is_known_in_a_matrix_of_its_own_and_in_one_with_the_other(config, gated):
    shape = {"hidden_size": 8, "intermediate_size": 16, "num_attention_heads": 2, "num_hidden_layers": 1}
    assert count(config(**shape, vocab_size=9, pad_token_id=0, bos_token_id=1, eos_token_id=2)).gated == gated


def test_flops_of_preferences_and_of_lora_by_hand(all_plans):
    plans, _ = all_plans
    dpo = plans["dpo_zh/dpo"]  # 8 pairs, all tokens taken as 512
    policy = dpo.models["policy"]
    attention = policy.layers * policy.attention * 512
    assert dpo.work.flops == 16 * 512 * (
        6 * policy.multiplied + 12 * attention + 2 * policy.multiplied + 4 * attention
    )
    assert dpo.work.steps == 64_000 / 8
    lora = plans["qwen2.5_7b_lora/sft"]
    n, adapter, attention = lora.models["policy"].multiplied, 40_370_176, 28 * 3_584 * 2_048
    assert lora.work.flops == 32 * 2_048 * (4 * n + 6 * adapter + 12 * attention)
    assert lora.work.recomputed == 32 * 2_048 * (2 * lora.models["policy"].linear + 4 * attention)


def test_what_does_not_fit_is_said_with_the_key_to_change(all_plans, planned):
    path = GPT2 / "pretrain.yaml"
    out = planned(path, "--gpu", "t4")
    # 1.90 GB, and of activations and logits 8.71 + 6.59 GB, which halve with the rows: 16 rows take 9.55 GB of 0.9 × 16.
    assert "DOES NOT FIT" in out
    # An update keeps its 512 rows by global_batch_size; gradient_accumulation_steps beside it would be refused.
    assert line(out, "change") == "per_device_train_batch_size: 16 → 9.55 GB"
    plans, sources = all_plans
    values = {**plans["gpt2_small/pretrain"].values, "global_batch_size": None, "gradient_accumulation_steps": 16}
    keys, needed = changes(plan_of(path, "pretrain", values, sources), sources, 16e9, 1, "ddp")
    assert keys == {"per_device_train_batch_size": 16, "gradient_accumulation_steps": 32}
    assert round(needed / 1e9, 2) == 9.55
    full = plans["gpt2_small/sft"]
    assert changes(full, sources, 0.1e9, 1, "ddp") is None
    # Half a byte a weight, one row, everything computed again: what is left is tables, logits and log-probabilities.
    keys, _ = changes(full, sources, 0.75e9, 1, "ddp")
    assert keys["load_in_4bit"] and keys["per_device_train_batch_size"] == 1
    # 8 GPUs under FSDP2 share weights, gradients and states; what a device keeps of them is an eighth.
    shared = plan_of(full.path, full.stage, full.values, sources, gpus=8, sharding="fsdp2")
    for part in ("weights", "gradients", "optimizer"):
        assert shared.parts[part] == full.parts[part] / 8
    # What can be shared out is told to be, but not to recipes that need whole weights.
    for stage in ("sft", "reward", "ppo"):
        found = changes(plans[f"gpt2_small/{stage}"], sources, 0.6e9, 8, "ddp")
        assert (found is not None and "--sharding" in found[0]) == (stage == "sft"), (stage, found)


@pytest.fixture
def tiny_sft(tiny_model_dir, tmp_path) -> Path:
    """The YAML of a fine-tuning on ten conversations; a token is a letter."""
    rows = [conversation(str(number), "ab", "cd") for number in range(10)]
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    lines = [f"model_name_or_path: {tiny_model_dir}", f"conversations: [{tmp_path / 'rows.json'}]"]
    lines += [
        "max_length: 64",
        "max_new_tokens: 4",
        "per_device_train_batch_size: 4",
        "gradient_accumulation_steps: 1",
        "num_train_epochs: 2",
    ]
    lines += ["activation_checkpointing: false", f"output_dir: {tmp_path / 'out'}"]
    (tmp_path / "sft.yaml").write_text("\n".join(lines))
    return tmp_path / "sft.yaml"


def test_parameters_equal_those_of_a_folder_and_rows_are_counted(tiny_model_dir, tiny_sft, planned):
    built = AutoModelForCausalLM.from_pretrained(tiny_model_dir).num_parameters()
    out = planned(tiny_sft)
    assert line(out, "model").startswith(f"{built:,} parameters")
    # Each is <|user|> a b <|end|> <|assistant|> c d <|end|>, 8 tokens; 3 batches a pass, two passes.
    assert line(out, "tokens") == "6 steps × 1 × 4 rows × 8.0 = 192"
    assert not (tiny_sft.parent / "out").exists()


def test_rows_of_a_glob_are_counted_as_training_reads_them(tiny_sft, planned):
    text, folder = tiny_sft.read_text(), tiny_sft.parent
    tiny_sft.write_text(text.replace(f"{folder}/rows.json", f"'{folder}/row?.j*n'"))
    assert line(planned(tiny_sft), "tokens") == "6 steps × 1 × 4 rows × 8.0 = 192"
    tiny_sft.write_text(text.replace(f"{folder}/rows.json", f"'{folder}/other*.json'"))
    assert "192" not in planned(tiny_sft)


def test_conversations_with_tools_are_counted(tiny_sft, planned):
    call = {"from": "function_call", "value": json.dumps({"name": "f", "arguments": {}})}
    turns = [
        {"from": "human", "value": "ab"},
        call,
        {"from": "observation", "value": "4"},
        {"from": "gpt", "value": "cd"},
    ]
    (tiny_sft.parent / "rows.json").write_text(json.dumps([{"conversations": turns}] * 4))
    tiny_sft.write_text(tiny_sft.read_text().replace("max_length: 64", "max_length: 256"))
    # A token is a letter. Besides call and result there are a b and c d, and two control tokens at each of four turns.
    call, result = '<tool_call>\n{"name": "f", "arguments": {}}\n</tool_call>', "<tool_response>\n4\n</tool_response>"
    tokens = len(call) + len(result) + 2 + 2 + 8
    assert line(planned(tiny_sft), "tokens") == f"2 steps × 1 × 4 rows × {tokens}.0 = {8 * tokens}"


def test_a_file_without_a_row_to_train_on_is_one_error(tiny_sft, tiny_model_dir, command, tmp_path):
    (tmp_path / "rows.json").write_text("[]")
    code, out, err = command(plan, tiny_sft)
    assert code == 1 and err.startswith(f"error: {tmp_path / 'rows.json'}: no conversation is left of 1 row; expected")
    (tmp_path / "tied.json").write_text(json.dumps([{"prompt": "ab", "completions": ["c", "d"], "ranks": [0, 0]}]))
    text = (
        f"model_name_or_path: {tiny_model_dir}\nrankings: [{tmp_path / 'tied.json'}]\noutput_dir: {tmp_path / 'out'}\n"
    )
    (tmp_path / "kto.yaml").write_text(text + "max_length: 64\n")
    code, out, err = command(plan, tmp_path / "kto.yaml")
    assert code == 1 and err.startswith(
        f"error: {tmp_path / 'tied.json'}: found no row to train on; expected at least"
    )


TEMPLATE = "{% for each in messages %}{{ each['role'] }}: {{ each['content'] }}<|end|>{% endfor %}"


@pytest.fixture
def without_template(tiny_model_dir, tmp_path) -> Path:
    folder = Path(shutil.copytree(tiny_model_dir, tmp_path / "bare"))
    (folder / "chat_template.jinja").unlink()
    return folder


@pytest.mark.parametrize("bare", [True, False])
def test_tokens_are_those_of_the_template_that_the_recipe_takes(
    bare, without_template, tiny_model_dir, tiny_sft, tmp_path, planned
):
    (tmp_path / "own.jinja").write_text(TEMPLATE)
    text = tiny_sft.read_text() + f"\nchat_template_path: {tmp_path / 'own.jinja'}\n"
    tiny_sft.write_text(text.replace(str(tiny_model_dir), str(without_template if bare else tiny_model_dir)))
    # user: ab<|end|>assistant: cd<|end|>, 8 + 1 + 13 + 1 tokens
    assert line(planned(tiny_sft), "tokens") == "6 steps × 1 × 4 rows × 23.0 = 552"
    # Of the model that this makes it is the template, too.
    (tmp_path / "pairs.jsonl").write_text(json.dumps(ranking("ab", {"cd": 1, "ce": 2})))
    text = f"model_name_or_path: {tmp_path / 'out'}\nrankings: [{tmp_path / 'pairs.jsonl'}]\nmax_length: 64\n"
    (tmp_path / "dpo.yaml").write_text(text + "per_device_train_batch_size: 1\nmax_steps: 1\noutput_dir: dpo\n")
    assert "1 rows × 2 answers × 23.0 = " in line(planned(tmp_path / "dpo.yaml"), "tokens")


@pytest.mark.parametrize("recipe", ["sft", "ppo"])
def test_a_model_without_a_template_is_one_error(
    recipe, without_template, tiny_model_dir, tiny_sft, command, tmp_path
):
    path = tmp_path / f"{recipe}.yaml"
    text = tiny_sft.read_text().replace(str(tiny_model_dir), str(without_template))
    if recipe == "ppo":
        text = (
            f"sft_model_path: {without_template}\nprompts: {tmp_path / 'rows.json'}\noutput_dir: {tmp_path / 'out'}\n"
        )
        text += "response_length: 8\nreward_funcs: [a:b]\n"
    path.write_text(text)
    code, _, err = command(plan, path)
    assert (code, err.count("\n")) == (1, 1) and f"{without_template}: found no chat template; expected one" in err


def test_a_model_that_the_recipe_would_refuse_is_refused(tiny_sft, tiny_model_dir, tiny_reward_dir, command, tmp_path):
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    about = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": str(tiny_model_dir), "r": 1}
    (adapter / "adapter_config.json").write_text(json.dumps(about))
    whole = {
        adapter: f"{adapter}: holds an adapter alone; expected the whole model",
        tiny_reward_dir: f"{tiny_reward_dir}: expected a language model, found GPT2ForSequenceClassification",
    }
    text = tiny_sft.read_text()
    for folder, message in whole.items():
        tiny_sft.write_text(text.replace(str(tiny_model_dir), str(folder)))
        code, _, err = command(plan, tiny_sft)
        assert code == 1 and message in err
    granite = tmp_path / "granite"
    config = GraniteConfig(hidden_size=8, num_attention_heads=2, num_hidden_layers=1, vocab_size=262)
    AutoModelForCausalLM.from_config(config).save_pretrained(granite)
    (tmp_path / "reward.yaml").write_text(f"model_name_or_path: {granite}\nrankings: [a.json]\noutput_dir: b\n")
    code, _, err = command(plan, tmp_path / "reward.yaml")
    assert code == 1 and f"{granite}: transformers has no model of the kind granite with a score head" in err
    text = f"model_name_or_path: {tiny_model_dir}\nreward_model_path: {tiny_model_dir}\nprompts: [a.json]\noutput_dir: b\n"
    (tmp_path / "rloo.yaml").write_text(text + "max_completion_length: 8\n")
    code, _, err = command(plan, tmp_path / "rloo.yaml")
    assert code == 1 and f"{tiny_model_dir}: expected a reward model (recipes/reward.py), found GPT2LMHeadModel" in err


@pytest.mark.parametrize(
    ("long", "tokens"),
    [
        # Five of 8 tokens, five of 28 that lose 16: half are 8, half are 12.
        ("truncate", "6 steps × 1 × 4 rows × 10.0 = 240"),
        ("drop", "4 steps × 1 × 4 rows × 8.0 = 128"),
    ],
)
def test_rows_beyond_max_length_count_as_the_recipe_takes_them(long, tokens, tiny_sft, tmp_path, planned):
    rows = [conversation(str(number), "ab", "cd" + "e" * 20 * (number % 2)) for number in range(10)]
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    tiny_sft.write_text(tiny_sft.read_text().replace("max_length: 64", "max_length: 12") + f"\nlong: {long}\n")
    out = planned(tiny_sft)
    assert line(out, "tokens") == tokens
    assert ("5 of 10 rows are longer than max_length, 12: they are left out" in out) == (long == "drop")


@pytest.mark.parametrize(
    ("recipe", "tokens"),
    [
        # Four prompts, each with c and d of one rank, and e: 6 tokens and the answer's letter, but one c has 20. Left out
        # are the ranking with it, its one pair, or it alone; of 11 labelled answers also one that is a batch by itself.
        ("reward", "2 steps × 1 × 2 rows × 3 answers × 7.0 = 84"),
        ("dpo", "4 steps × 1 × 2 rows × 2 answers × 7.0 = 112"),
        ("kto", "5 steps × 1 × 2 rows × 7.0 = 70"),
    ],
)
def test_rankings_count_as_the_recipe_takes_them(recipe, tokens, tiny_model_dir, tmp_path, planned):
    last = ["c", "c", "c", "c" * 20]
    rows = [{"prompt": f"{n}b", "completions": [each, "d", "e"], "ranks": [1, 1, 2]} for n, each in enumerate(last)]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    text = f"model_name_or_path: {tiny_model_dir}\nrankings: [{tmp_path / 'rows.jsonl'}]\nmax_length: 16\n"
    text += "per_device_train_batch_size: 2\ngradient_accumulation_steps: 1\nnum_train_epochs: 1\noutput_dir: out\n"
    (tmp_path / f"{recipe}.yaml").write_text(text)
    assert line(planned(tmp_path / f"{recipe}.yaml"), "tokens") == tokens


@pytest.mark.parametrize(
    ("recipe", "settings", "steps"),
    [
        # 14 prompts, 2 answers to each but in PPO; a batch of 2.
        (
            "ppo",
            {"gradient_accumulation_steps": 2, "num_train_epochs": 3},
            9,
        ),  # 14 // 4 = 3 whole rollouts, three times
        ("ppo", {"gradient_accumulation_steps": 2, "total_episodes": 13}, 4),
        ("rloo", {"gradient_accumulation_steps": 2, "num_train_epochs": 2}, 14),
        ("rloo", {"gradient_accumulation_steps": 4, "num_train_epochs": 2}, 6),  # 28 // 8 = 3
        # 28 // 8 = 3 generations of 4 batches, 12 in threes: 4 steps
        ("grpo", {"gradient_accumulation_steps": 3, "steps_per_generation": 4, "num_train_epochs": 2}, 8),
        ("grpo", {"gradient_accumulation_steps": 4, "num_iterations": 2, "num_train_epochs": 1}, 6),
    ],
)
def test_steps_are_those_of_whole_rollouts(recipe, settings, steps, tiny_model_dir, tmp_path, planned):
    rows = [conversation(str(number), "ab", "cd") for number in range(14)]
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    length = {"response_length": 8} if recipe == "ppo" else {"max_completion_length": 8, "num_generations": 2}
    settings |= {"sft_model_path" if recipe == "ppo" else "model_name_or_path": tiny_model_dir, **length}
    settings |= {"per_device_train_batch_size": 2, "prompts": [str(tmp_path / "rows.json")], "output_dir": "out"}
    settings |= {"reward_funcs": ["a:b"]}
    (tmp_path / f"{recipe}.yaml").write_text("\n".join(f"{name}: {value}" for name, value in settings.items()))
    assert line(planned(tmp_path / f"{recipe}.yaml"), "tokens").startswith(f"{steps} steps × ")


def test_the_value_model_starts_from_the_policy_where_the_reward_model_reads_other_ids(
    tiny_model_dir, other_tokenizer_dir, tmp_path, planned
):
    text = f"sft_model_path: {tiny_model_dir}\nreward_model_path: {other_tokenizer_dir}\nresponse_length: 8\n"
    (tmp_path / "ppo.yaml").write_text(text + "prompts: [a.json]\noutput_dir: out\n")
    out = planned(tmp_path / "ppo.yaml")
    policy, value, reward = (
        int(line(out, name).split()[0].replace(",", "")) for name in ("policy", "value", "reward")
    )
    assert value == policy + 32 != reward  # the policy's tied head is its table; a score of 32 weights beside it


def test_prompts_that_training_refuses_are_refused(tiny_model_dir, command, tmp_path):
    call = {"role": "assistant", "tool_calls": [{"name": "add", "arguments": {"a": 2}}]}
    turns = [{"role": "user", "content": "2+2?"}, call]
    (tmp_path / "rows.json").write_text(json.dumps([{"messages": turns}]))
    text = (
        f"model_name_or_path: {tiny_model_dir}\nprompts: [{tmp_path / 'rows.json'}]\noutput_dir: {tmp_path / 'out'}\n"
    )
    (tmp_path / "grpo.yaml").write_text(text + "reward_funcs: [data_prep.rewards.exact_match]\n")
    code, out, err = command(plan, tmp_path / "grpo.yaml")
    assert code == 1 and "found turns of function_call; expected system, user, assistant only: recipes/sft.py" in err


@pytest.mark.slow
def test_two_steps_are_measured_and_nothing_is_left(tiny_sft, planned, command, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    out = planned(tiny_sft, "--measure")
    # The process holds torch, transformers and trl: more than 0.1 GB.
    assert (
        float(re.search(r"and ([\d.]+) GB at the peak", line(out, "measured"))[1]) > 0.1 or torch.cuda.is_available()
    )
    assert line(out, "here").endswith("of training without evaluations, by what was measured")
    assert sorted(path.name for path in tiny_sft.parent.iterdir()) == ["rows.json", "sft.yaml"]
    tiny_sft.write_text(tiny_sft.read_text() + "\neos_token: <|none|>\n")
    code, _, err = command(plan, tiny_sft, "--measure")
    assert code == 1 and "ended before its third step" in err and "<|none|>" in err


def test_rows_for_the_memory_are_the_longest_and_for_the_time_those_of_an_ordinary_batch():
    lengths = np.array([5, 1, 9, 3, 7])
    assert list(measure.longest(lengths, 1)) == [2, 4, 0]  # a row a step
    assert sorted(lengths[measure.ordinary(lengths, 1)]) == [1, 3, 5, 7, 9]
    # Of 24 rows eight: the middle of each three.
    assert sorted(measure.ordinary(np.arange(24), 1)) == [1, 4, 7, 10, 13, 16, 19, 22]


def test_positions_and_padding_are_those_of_the_steps_that_are_timed():
    assert two_steps.positions([((4, 25), 1), ((4, 15), 50), ((4, 10), 30)]) == (50, 10)  # 100 and 20 in two steps
    assert two_steps.positions([]) == (0, 0)


def test_memory_that_grows_with_each_new_shape_of_a_batch_is_told_per_shape():
    batches = [((4, 25), 1), ((4, 15), 1), ((4, 10), 1)]
    assert two_steps.growth(batches, [100, 150, 180]) == 40  # 80 bytes, two shapes that the first step did not have
    assert two_steps.growth([batches[0]] * 3, [100, 150, 180]) == 0
    assert two_steps.growth(batches, [100, 90, 80]) == two_steps.growth([], [1, 2, 3]) == 0


def test_the_time_is_that_of_ordinary_rows_and_the_memory_that_of_the_longest(tiny_sft, planned, monkeypatch):
    found = {
        measure.longest: {
            "seconds": 3.0,
            "before": 4.0,
            "peak": 3_000_000_000,
            "positions": 80,
            "padding": 0,
            "growth": 5.0,
        },
        measure.ordinary: {
            "seconds": 2.0,
            "before": 4.0,
            "peak": 1_000_000_000,
            "positions": 40,
            "padding": 10,
            "growth": 0.0,
        },
    }
    monkeypatch.setattr(measure, "two_steps", lambda plan, choose: found[choose])
    out = planned(tiny_sft, "--measure")
    assert line(out, "measured").startswith("2 s a step and 3.00 GB at the peak of the ")
    assert line(out, "here") == "12 s of training without evaluations, by what was measured"  # 6 steps
    tiny_sft.write_text(tiny_sft.read_text() + "\ntrain_sampling_strategy: group_by_length\n")
    # 40 positions more take a second more. Ten are padding, which batches of one length do not have: 2 - 0.25 = 1.75 s a step.
    assert line(planned(tiny_sft, "--measure"), "here").startswith("10.5 s of training")
    # What is longer was no slower, or so much that a position would take longer than a whole step has for it.
    for seconds, a_position in ((1.0, 0.0), (9.0, 2 / 40)):
        far = {**found[measure.longest], "seconds": seconds}
        assert measure.seconds_of_a_position(far, found[measure.ordinary]) == a_position


def test_two_steps_of_ppo_are_counted_in_answers_alone(tmp_path):
    """The recipe refuses both."""
    (tmp_path / "ppo.yaml").write_text("sft_model_path: a\nmax_steps: 60\n")
    values = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2}
    plan = SimpleNamespace(stage="ppo", path=tmp_path / "ppo.yaml", values=values)
    assert "max_steps" not in (settings := measure.short_run(plan, tmp_path, measure.ordinary))
    assert settings["total_episodes"] == measure.STEPS * 8


@pytest.mark.parametrize(("eval_steps", "times"), [(25, 4), (20, 4), (0.4, 4), (100, 2)])  # at 0, …, and at step 60
def test_pretraining_is_timed_with_its_evaluations(eval_steps, times, planned, tmp_path, monkeypatch):
    text = "tokenizer: a\ntokens: b\nheldout: [c]\noutput_dir: d\nmax_steps: 60\n"
    (tmp_path / "pretrain.yaml").write_text(f"{text}eval_steps: {eval_steps}\n")
    found = {"seconds": 0.5, "before": 3.0, "peak": 1, "positions": 9, "padding": 0, "growth": 0.0}
    monkeypatch.setattr(measure, "two_steps", lambda plan, choose: found)
    told = f"{30 + 3 * times} s of training with {times} evaluations, by what was measured"
    assert line(planned(tmp_path / "pretrain.yaml", "--measure"), "here") == told


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("n_layers: 3", "unknown key n_layers"),
        ("n_layer: many", "n_layer: found 'many'"),
        ("tokenizer: a\ntokens: b\noutput_dir: c\nn_head: 5", "expected a multiple of n_head, 5"),
        ("tokenizer: a\ntokens: b\noutput_dir: c\nglobal_batch_size: 12", "12 rows do not divide into 1 × 8"),
    ],
)
def test_a_wrong_config_is_one_line(command, tmp_path, text, message):
    (tmp_path / "pretrain.yaml").write_text(text)
    code, out, err = command(plan, tmp_path / "pretrain.yaml")
    assert code == 1 and message in err and err.count("\n") == 1 and str(tmp_path / "pretrain.yaml") in err


@pytest.mark.parametrize(
    ("name", "units", "each", "clock", "bits", "pins"),
    [
        # multiprocessors × FLOPs of one in a clock, in bf16 (fp16) with fp32 sums; boost clock in GHz; memory: bits × Gb/s
        ("v100", 80, 1024, 1.53, 4096, 1.752),
        ("t4", 40, 1024, 1.59, 256, 10),
        ("a10", 72, 1024, 1.695, 384, 12.5),
        ("a100-40gb", 108, 2048, 1.41, 5120, 2.43),
        ("a100", 108, 2048, 1.41, 5120, 3.186),
        ("rtx3090", 82, 512, 1.695, 384, 19.5),
        ("l4", 58, 1024, 2.04, 192, 12.5),
        ("l40s", 142, 1024, 2.52, 384, 18),
        ("rtx4090", 128, 512, 2.52, 384, 21),
        ("h100", 132, 4096, 1.83, 5120, 5.23),
        ("h200", 132, 4096, 1.83, 6144, 6.25),
        ("rtx5090", 170, 512, 2.407, 512, 28),
        ("mi300x", 304, 2048, 2.1, 8192, 5.2),
    ],
)
def test_the_rates_of_gpus_are_those_of_their_units_and_clocks(name, units, each, clock, bits, pins):
    gpu = GPUS[name]
    assert gpu.flops == pytest.approx(units * each * clock * 1e9, rel=0.015)
    assert gpu.bandwidth == pytest.approx(bits * pins * 1e9 / 8, rel=0.01)


def test_gpt3_as_published(planned):
    out = planned("--like", "gpt3-175b")
    # 96 × (12 × 12,288² + 13 × 12,288) + 2 × 12,288 + (50,257 + 2,048) × 12,288
    assert 96 * (12 * 12_288**2 + 13 * 12_288) + 2 * 12_288 + 52_305 * 12_288 == 174_604_259_328
    assert "174,604,259,328 parameters, -0.2%" in line(out, "model") and "context 2,048" in line(out, "model")
    assert "93,750 steps" in line(out, "tokens")  # 300e9 / 3.2e6
    # 6 × 175e9 × 300e9 = 3.15e23, over 10,000 × 30 × 86,400 × 125e12 = 3.24e24
    assert line(out, "utilisation").startswith("9.7% implied")
    assert line(out, "price") == "10,000,000 USD / 7,200,000 GPU hours = 1.39 USD each"
    # 3.15e23 / (10,000 × 24.6e12 × 86,400) = 14.82
    assert "30 days do not fit" in out and "14.8 days" in out


def test_llama_65b_as_published(planned):
    out = planned("--like", "llama2-65b")
    # 80 × (4 × 8,192² + 3 × 8,192 × 22,016 + 2 × 8,192) + 8,192 + 2 × 32,000 × 8,192
    assert 80 * (4 * 8_192**2 + 3 * 8_192 * 22_016 + 2 * 8_192) + 8_192 + 64_000 * 8_192 == 65_285_660_672
    assert "65,285,660,672 parameters, +0.4%" in line(out, "model") and "vocabulary 32,000" in line(out, "model")
    assert "350,000 steps" in line(out, "tokens")  # 1.4e12 / 4e6
    # 6 × 65e9 × 1.4e12 = 5.46e23, over 2,048 × 21 × 86,400 × 312e12 = 1.159e24
    assert line(out, "utilisation").startswith("47.1% implied")
    assert line(out, "price") == "5,000,000 USD / 1,032,192 GPU hours = 4.84 USD each"
    # 1.4e12 / (2,048 × 380 × 86,400) = 20.82
    assert "20.8 days" in out and "Llama 2 has no 65B" in out


def test_gpt2_124m_as_published(planned):
    out = planned("--like", "gpt2-124m")
    # 12 × (12 × 768² + 13 × 768) + 2 × 768 + (50,257 + 1,024) × 768; the paper's table says 117M
    assert "124,439,808 parameters" in line(out, "model") and "117M" in out
    # 6 × 124e6 × 294.912e9 = 2.194e20, over 8 × 4 × 86,400 × 312e12 = 8.626e20
    assert line(out, "utilisation").startswith("25.4% implied") and "no price was published" in out


def test_the_published_configs_are_those_that_the_recipes_start_from(all_plans):
    _, sources = all_plans
    named = re.findall(r"^model_name_or_path: (\w+/\S+)", "\n".join(path.read_text() for path in CONFIGS), flags=re.M)
    assert {name for name in named if not name.startswith("runs/")} == set(PUBLISHED)
    config, _ = architecture.config_of("Qwen/Qwen3-8B-Base", sources)
    assert count(config).parameters == 8_190_735_360  # as in the head of adapt_qwen3_8b


def test_a_folder_is_read_in_the_order_of_its_stages():
    assert [path.stem for path in files_of([str(GPT2)])] == [
        "mix", "pretrain", "sft", "reward", "ppo"
    ]  # fmt: skip
