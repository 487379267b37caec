"""Batched `generate` that drops finished rows gives the same answers as `generate` alone."""

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig

from data_prep.models.batched_generate import decode

WORDS, END, OTHER_END, PAD = 50, 48, 49, 0


@pytest.fixture(params=["gpt2", "qwen2", "mamba"])
def model(request):
    """A random model that ends some answers early: its cache keys and values, or (mamba) a recurrent state."""
    torch.manual_seed(0)
    sizes = {
        "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 64, "initializer_range": 0.5},
        "qwen2": {
            "hidden_size": 32,
            "intermediate_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "num_key_value_heads": 1,
            "initializer_range": 0.3,
        },
        "mamba": {"hidden_size": 32, "state_size": 4, "num_hidden_layers": 2, "initializer_range": 0.5},
    }
    config = AutoConfig.for_model(
        request.param, vocab_size=WORDS, eos_token_id=END, pad_token_id=PAD, bos_token_id=1, **sizes[request.param]
    )
    return AutoModelForCausalLM.from_config(config).eval()


def prompts(count: int, ragged: bool) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(1, END, (count, 6), generator=generator)
    mask = torch.ones_like(ids)
    if ragged:
        for row in range(count):
            mask[row, : row % 4] = 0
    return {"input_ids": ids.masked_fill(mask == 0, PAD), "attention_mask": mask}


def test_rows_that_continue_alone_give_the_answers_of_the_whole_batch(model):
    recurrent = model.config.model_type == "mamba"  # which sees padding
    batch = prompts(64, ragged=not recurrent)
    settings = GenerationConfig(
        max_new_tokens=24, do_sample=False, use_cache=True, eos_token_id=[END, OTHER_END], pad_token_id=PAD
    )
    calls = []

    def processors(rows):
        calls.append(len(rows))
        return []

    found = decode(model, batch, settings, processors)
    wanted = model.generate(**batch, generation_config=settings)[:, 6:]
    assert torch.equal(found[:, : wanted.shape[1]], wanted) and (found[:, wanted.shape[1] :] == PAD).all()
    assert settings.max_new_tokens == 24  # the caller's own
    ended = torch.isin(found, torch.tensor([END, OTHER_END])).any(1)
    assert 8 < ended.sum() < 64 and calls[0] == 64 and len(calls) > 1
    assert all(later <= earlier // 2 for earlier, later in zip(calls, calls[1:], strict=False))
