"""The roads of recipes/configs/adapt_qwen3_*: every command and YAML as it stands, on the real config with two narrow layers.

What is fetched from the Hub is there already: the model under its own name in the cache, the data of `hf://` as the files
that the commands with it would write. The mixture is smaller, and steps and samples are few.
"""

import json
import random
import re
import string

import pytest
import torch
from helpers.checkout import ROOT, Checkout, head_commands
from helpers.models import save
from helpers.recipes import conversation, in_hub_cache, loaded
from transformers import Qwen3Config, Qwen3ForCausalLM

from data_prep.common.files import write_jsonl

MODELS = {"adapt_qwen3_0.6b": ("Qwen/Qwen3-0.6B-Base", True), "adapt_qwen3_8b": ("Qwen/Qwen3-8B-Base", False)}
FEW = "--max_steps 2 --warmup_steps 1 --logging_steps 1 --gradient_accumulation_steps 1"


def words(drawn: random.Random, number: int) -> str:
    """So many words that stand in no other text."""
    return " ".join("".join(drawn.choices(string.ascii_lowercase, k=6)) for _ in range(number))


def commands_before(config: str) -> list[str]:
    """Those in the head of a YAML without those that fetch, and without the launch on eight GPUs."""
    found = re.sub(r"\\\n\s*", "", head_commands(config)[1]).splitlines()
    return [command for command in found if "hf://" not in command and not command.startswith("accelerate")]


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_the_whole_road_runs_on_two_narrow_layers(name, tiny_tokenizer, tmp_path):
    (model_name, tied), runs = MODELS[name], f"runs/{name}"
    if not tied:
        pytest.importorskip("bitsandbytes", reason="needs the extra quantization")
    tokenizer = type(tiny_tokenizer).from_pretrained(tiny_tokenizer.name_or_path)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    tokenizer.bos_token, tokenizer.pad_token = None, tokenizer.eos_token
    narrow = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2}
    real = {
        "head_dim": 128,
        "max_position_embeddings": 32_768,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e6},
    }
    torch.manual_seed(0)
    model = Qwen3ForCausalLM(
        Qwen3Config(
            **narrow, num_key_value_heads=1, **real, tie_word_embeddings=tied, vocab_size=len(tokenizer),
            eos_token_id=tokenizer.eos_token_id,
        )
    )  # fmt: skip
    in_hub_cache(tmp_path / "hub", model_name, {"main": save(model, tokenizer, tmp_path / "model")})

    (tmp_path / "root").mkdir()
    checkout, drawn = Checkout(tmp_path / "root", HF_HUB_CACHE=str(tmp_path / "hub")), random.Random(0)
    root = checkout.root
    (root / "my_documents").mkdir()
    for number in range(40):
        thing = words(drawn, 1)
        text = f"# {thing}\n\nA {thing} is a thing with {words(drawn, 5)}. {words(drawn, 40)}.\n\nQ: Who made the {thing}?\nA: It was {words(drawn, 3)}.\n"
        (root / "my_documents" / f"{number}.md").write_text(text)
    (root / runs).mkdir(parents=True)
    for file, number in (("replay", 40), ("replay_heldout", 4)):
        write_jsonl(root / runs / f"{file}.jsonl", [{"text": words(drawn, 50)} for _ in range(number)])
    for file, number in (("general", 20), ("general_heldout", 4)):
        rows = [conversation(f"{file}{row}", words(drawn, 4), words(drawn, 8)) for row in range(number)]
        write_jsonl(root / runs / f"{file}.jsonl", rows)

    for command in commands_before(f"{name}/mix.yaml"):
        checkout.run(command)
    mixture = (ROOT / "recipes" / "configs" / name / "mix.yaml").read_text()
    (root / "mix.yaml").write_text(mixture.replace("total_tokens: 21_000_000", "total_tokens: 60_000"))
    assert f"they are in {runs}/tokens" in checkout.run("python -m data_prep.mix_corpus --config mix.yaml")
    out = checkout.stage(f"{name}/continue_pretraining.yaml", f"{FEW} --eval_steps 1")
    assert "step 0: bits per byte: domain" in out
    for command in commands_before(f"{name}/sft.yaml"):
        checkout.run(command)
    checkout.stage(f"{name}/sft.yaml", f"{FEW} --max_new_tokens 8")
    for command in commands_before(f"{name}/dpo.yaml"):
        # Answers of a model that knows nothing are all as bad: the reference is the one that is preferred.
        few = re.sub(r"--limit \d+", "--limit 12 --include_reference", command).replace(
            "--max_new_tokens 256", "--max_new_tokens 16"
        )
        checkout.run(few.replace("--fraction 0.05", "--fraction 0.5"))
    checkout.stage(f"{name}/dpo.yaml", FEW)

    assert json.loads((root / runs / "base" / "continue_pretraining.json").read_text())["mixture"].keys() == {
        "domain",
        "replay",
    }
    for stage in ("base", "sft", "dpo"):
        trained, its = loaded(root / runs / stage)
        assert trained.config.tie_word_embeddings == tied and trained.config.num_hidden_layers == 2
        assert its.eos_token == ("<|endoftext|>" if stage == "base" else "<|im_end|>")
        assert trained.generation_config.eos_token_id == its.eos_token_id
    template = ROOT / "recipes" / "configs" / "qwen2.5_7b_lora" / "chat_template.jinja"
    assert its.chat_template == template.read_text()
