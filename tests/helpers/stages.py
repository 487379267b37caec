"""Every recipe on models so small that a run takes a second."""

from pathlib import Path

import torch
from transformers import GPT2LMHeadModel

from data_prep.common.files import write_json, write_jsonl
from helpers.models import POSITIONS, save, tiny_config, write_shards
from helpers.recipes import EXACT, LORA, conversation, ranking


def short_runs(
    folder: Path, tokenizer, model: Path, reward_model: Path, ready: Path, updates: int = 3
) -> dict[str, dict]:
    """So many updates of each recipe, by LoRA where there is a model to start from, and a checkpoint after each.

    {recipe: its settings}; the data are written to `folder`. `ready` is an assistant by `ready_to_end`.
    """
    ids = tokenizer("abcd<|endoftext|>" * 6 * POSITIONS)["input_ids"]
    write_shards(folder / "tokens", ids, tokenizer.name_or_path)
    write_jsonl(folder / "documents.jsonl", [{"text": "what is held out"}])
    write_jsonl(folder / "general.jsonl", [{"text": "and what is not of the domain"}])
    torch.manual_seed(0)
    write_json(folder / "talk.json", [conversation(letter, letter, "yes") for letter in "abcdefghijkl"])
    write_jsonl(folder / "rankings.jsonl", [ranking(letter, {"no": 1, "yes": 0}) for letter in "abcdefghijkl"])
    steps = {"per_device_train_batch_size": 4, "logging_steps": 1, "save_steps": 1, "learning_rate": 0.01, **EXACT}
    short = {**steps, "max_steps": updates}
    lora = {**short, **LORA, "lora_r": 4}
    shape = {"n_layer": 1, "n_head": 2, "n_embd": 16, "n_positions": POSITIONS}
    text = {
        "tokenizer": tokenizer.name_or_path,
        "tokens": folder / "tokens",
        "heldout": folder / "documents.jsonl",
    }
    draws = {"prompts": folder / "talk.json", "response_length": 4, "reward_model_path": reward_model}
    groups = {**draws, "num_generations": 4, "max_completion_length": 4}
    del groups["response_length"]
    assistant, sampled = {"model_name_or_path": model}, {"model_name_or_path": ready}
    return {
        "pretrain": {**short, **shape, **text, "eval_steps": updates},
        "continue_pretraining": {
            **lora,
            "model_name_or_path": save(GPT2LMHeadModel(tiny_config(tokenizer)), tokenizer, folder / "base"),
            "tokens": folder / "tokens",
            "heldout": folder / "documents.jsonl",
            "heldout_general": folder / "general.jsonl",
            "max_length": POSITIONS,
            "eval_steps": 2,
        },
        "sft": {
            **lora,
            **assistant,
            "conversations": folder / "talk.json",
            "max_length": POSITIONS,
            "max_new_tokens": 4,
        },
        "reward": {**lora, **assistant, "rankings": folder / "rankings.jsonl", "max_length": POSITIONS},
        "dpo": {**lora, **assistant, "rankings": folder / "rankings.jsonl", "max_length": POSITIONS},
        "kto": {**lora, **assistant, "rankings": folder / "rankings.jsonl", "max_length": POSITIONS},
        "ppo": {**steps, **LORA, "lora_r": 4, **draws, "sft_model_path": ready, "total_episodes": 4 * updates},
        "rloo": {**lora, **sampled, **groups},
        "grpo": {**lora, **sampled, **groups},
    }
