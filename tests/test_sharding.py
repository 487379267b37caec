"""Weights in parts: what each of eight processes would hold of the 7B model under FSDP2 and ZeRO-3, without a GPU and
without the memory; and what all processes must do together."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from helpers.models import tiny_config
from helpers.processes import by_two
from torch import distributed
from torch.distributed.fsdp import fully_shard
from torch.testing._internal.distributed.fake_pg import FakeStore
from transformers import GPT2LMHeadModel, Qwen2Config, Qwen2ForCausalLM

from data_prep.models.bits_per_byte import heldout_batches
from data_prep.models.loading import load_tokenizer
from recipes.trainers.callbacks import PretrainingMonitor
from recipes.trainers.sharding import in_parts

PARAMETERS = 7_615_616_512  # of recipes/configs/qwen2.5_7b_lora


@pytest.fixture
def first_of_eight():
    """A process group that talks to nobody."""
    distributed.init_process_group("fake", rank=0, world_size=8, store=FakeStore())
    yield
    distributed.destroy_process_group()


def test_an_eighth_of_the_7b_model_is_on_each_of_eight_processes(first_of_eight):
    with torch.device("meta"):
        model = Qwen2ForCausalLM(
            Qwen2Config(
                vocab_size=152_064, hidden_size=3584, intermediate_size=18_944, num_hidden_layers=28,
                num_attention_heads=28, num_key_value_heads=4, tie_word_embeddings=False,
            )
        )  # fmt: skip
    assert model.num_parameters() == PARAMETERS
    mesh = distributed.init_device_mesh("cpu", (8,))
    for block in model.model.layers:  # as fsdp_auto_wrap_policy: TRANSFORMER_BASED_WRAP does
        fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh)
    held = sum(weight.to_local().numel() for weight in model.parameters())
    # Every first dimension is a multiple of eight, so that nothing is padded; ZeRO-3 cuts the same weights flat, into as much.
    assert held == PARAMETERS // 8 == 951_952_064
    assert held == sum(-(-weight.numel() // 8) for weight in model.parameters())
    # Weight, gradient and AdamW's two moments in fp32: 15.2 GB of 121.8 GB; and one block whole while it computes.
    assert (round(held * 16 / 1e9, 1), round(PARAMETERS * 16 / 1e9, 1)) == (15.2, 121.8)
    block = sum(weight.numel() for weight in model.model.layers[0].parameters())
    assert block == 233_057_792 and all(weight.is_meta for weight in model.parameters())


def measured(tokenizer_folder: str, folder: str, how: str) -> list:
    """What the monitor of pretraining finds for one model: on one process, or on two that have its weights in parts."""
    tokenizer = load_tokenizer(tokenizer_folder)
    torch.manual_seed(0)
    model = GPT2LMHeadModel(tiny_config(tokenizer))
    rank = 0
    if how == "in parts":
        rank = distributed.get_rank()
        for block in model.transformer.h:
            fully_shard(block)
        fully_shard(model)
    assert in_parts(model) == (how == "in parts")
    batches = heldout_batches([f"{folder}/heldout.txt"], tokenizer, 32)
    monitor = PretrainingMonitor(batches, tokenizer, ["ab", "h"], lambda updates: 0, 1.0)
    state = SimpleNamespace(is_world_process_zero=rank == 0, global_step=0, log_history=[])
    monitor.on_train_begin(SimpleNamespace(output_dir=f"{folder}/{how}"), state, None, model=model)  # measures step 0
    return monitor.curve


def test_pretraining_is_measured_by_all_processes_where_weights_are_in_parts(tiny_tokenizer, tmp_path):
    (tmp_path / "heldout.txt").write_text("abcdefgh" * 16)
    for how in ("alone", "in parts"):
        (tmp_path / how).mkdir()
    arguments = (tiny_tokenizer.name_or_path, str(tmp_path))
    alone = measured(*arguments, "alone")
    for curve in by_two(measured, *arguments, "in parts"):
        assert curve == [(0, pytest.approx(alone[0][1], abs=1e-6))]
    rows = [Path(tmp_path / how / "samples.jsonl").read_text().splitlines() for how in ("alone", "in parts")]
    assert rows[0] == rows[1] and [json.loads(row)["prompt"] for row in rows[0]] == ["ab", "h"]
