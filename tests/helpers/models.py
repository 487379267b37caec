"""Models so small that they are built in seconds, and one whose answer is known."""

from pathlib import Path

import numpy as np
import torch
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
)

from data_prep.tokens.shards import ShardWriter, tokenizer_hash, write_index

POSITIONS = 64


def tiny_config(tokenizer, **changes) -> GPT2Config:
    """2 layers, 32 wide, 64 positions; everything else as the recipes set it."""
    shape = {"n_layer": 2, "n_head": 2, "n_embd": 32, "n_positions": POSITIONS, "vocab_size": len(tokenizer)}
    ids = {key: getattr(tokenizer, key) for key in ("bos_token_id", "eos_token_id", "pad_token_id")}
    return GPT2Config(**{**shape, **ids, "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0, **changes})


def save(model, tokenizer, folder: Path) -> Path:
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def counting_model(tokenizer, end: int, ends_with: int | None = None) -> GPT2LMHeadModel:
    """A model that knows positions and nothing else: x after the places from 3 on, its end after place `end`, then anything.

    Its end is the token `ends_with`; default: the tokenizer's end of sequence.

    Every place has a direction of its own; a token that follows it for certain has all of that direction.
    """
    size = len(tokenizer)
    model = GPT2LMHeadModel(tiny_config(tokenizer, n_layer=1, n_head=1, n_embd=size, tie_word_embeddings=False))
    for name, weight in model.named_parameters():
        if "ln_" not in name:  # layer norms stay the identity
            torch.nn.init.zeros_(weight)
    with torch.no_grad():
        model.transformer.wpe.weight.copy_(torch.eye(size)[:POSITIONS])
        x = tokenizer.convert_tokens_to_ids("x")
        last = tokenizer.eos_token_id if ends_with is None else ends_with
        model.lm_head.weight[x, 3:end] = model.lm_head.weight[last, end] = 100.0
    return model


def write_shards(folder: Path, ids: list[int], tokenizer_dir: str | Path, entries: int = 262, copies: int = 1) -> None:
    """A document of these ids, so many times, as data_prep/mix_corpus.py writes shards, by a tokenizer of so many entries."""
    writer = ShardWriter(folder, "<u2")
    for _ in range(copies):
        writer.add(np.array(ids), len(ids))
    writer.close()
    write_index(folder, writer.shards, "<u2", entries, tokenizer_hash(tokenizer_dir))
