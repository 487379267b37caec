"""Muon on several processes: each does a part of the work, and what comes out is what one process gives."""

import copy

import pytest
import torch
from helpers.processes import by_two
from torch import distributed, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel
from transformers import GPT2Config, GPT2LMHeadModel, Qwen3MoeConfig, Qwen3MoeForCausalLM

from recipes.trainers import muon


def trained(how: str) -> tuple[dict[str, torch.Tensor], list[int]]:
    """(weights, matrices that this process orthogonalized in each update) after three updates on the same 8 rows: by one
    process, or by two with 4 rows each, whose weights are whole ("ddp") or in parts ("fsdp2")."""
    muon.bf16_is_fast = lambda device: False  # in bf16 the gradients' last bits would show
    torch.manual_seed(0)
    shape = {"n_positions": 64, "n_embd": 32, "n_layer": 2, "n_head": 2}
    model = GPT2LMHeadModel(GPT2Config(vocab_size=61, **shape, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0))
    rows = torch.randint(61, (8, 64))
    rank, processes = (0, 1) if how == "alone" else (distributed.get_rank(), distributed.get_world_size())
    rows = rows[rank * 8 // processes : (rank + 1) * 8 // processes]
    wrapped = model
    if how == "ddp":
        wrapped = DistributedDataParallel(model)
    elif how == "fsdp2":
        for block in model.transformer.h:
            fully_shard(block)
        fully_shard(model)
    optimizer = muon.MuonWithAdamW(model, muon_lr=0.05, lr=0.01, weight_decay=0.1)
    orthogonalize, counts = muon.orthogonalize, []

    def counted(matrices: torch.Tensor) -> torch.Tensor:
        counts[-1] += len(matrices)
        return orthogonalize(matrices)

    muon.orthogonalize = counted
    for step in range(3):
        counts.append(0)
        wrapped(input_ids=rows, labels=rows).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if how == "fsdp2" and step == 1:  # a checkpoint, and an optimizer that goes on from it
            options = StateDictOptions(full_state_dict=True)
            state = get_optimizer_state_dict(model, optimizer, options=options)
            optimizer = muon.MuonWithAdamW(model, muon_lr=0.05, lr=0.01, weight_decay=0.1)
            set_optimizer_state_dict(model, optimizer, state, options=options)
    muon.orthogonalize = orthogonalize
    weights = {name: weight.detach() for name, weight in model.named_parameters()}
    return {name: weight.full_tensor() if how == "fsdp2" else weight for name, weight in weights.items()}, counts


def trained_both_ways() -> dict:
    return {how: trained(how) for how in ("ddp", "fsdp2")}


def test_two_processes_share_the_work_and_train_what_one_trains(monkeypatch):
    monkeypatch.setattr(muon, "bf16_is_fast", lambda device: False)
    alone, counts = trained("alone")
    # A block has six matrices: query, key, value, the attention's output, and two of the MLP, which cost four times as much.
    assert counts == [12, 12, 12]
    for results in by_two(trained_both_ways):
        assert results["ddp"][1] == [6, 6, 6]
        for how in ("ddp", "fsdp2"):
            weights, _ = results[how]
            assert weights.keys() == alone.keys()
            furthest = max((weights[name] - alone[name]).abs().max().item() for name in alone)
            assert furthest < 1e-3, (how, furthest)  # three updates move a weight of a matrix by 0.03, of the rest too


def test_work_is_shared_evenly():
    assert muon.shares([1, 1, 4, 4, 1, 1], 2) == [0, 1, 0, 1, 0, 1]
    assert muon.shares([5, 3, 3], 2) == [0, 1, 1]
    assert muon.shares([2], 4) == [0]


def experts() -> nn.Module:
    """A mixture of experts, whose matrices lie in one weight of three dimensions."""
    shape = {"hidden_size": 8, "moe_intermediate_size": 4, "num_hidden_layers": 1, "vocab_size": 11, "head_dim": 4}
    shape |= {"num_attention_heads": 2, "num_key_value_heads": 1, "num_experts": 3, "num_experts_per_tok": 2}
    return Qwen3MoeForCausalLM(Qwen3MoeConfig(**shape))


def convolution() -> nn.Module:
    return nn.Sequential(nn.Conv1d(8, 8, 3), nn.Flatten(), nn.Linear(8, 8))


@pytest.mark.parametrize(
    ("build", "inputs", "solid"),
    [(experts, torch.arange(8)[None], [(3, 8, 8), (3, 8, 4)]), (convolution, torch.ones(1, 8, 3), [(8, 8, 3)])],
)
def test_weights_of_three_dimensions_are_adamws_and_decay(build, inputs, solid):
    torch.manual_seed(0)
    model = build()
    optimizer = muon.MuonWithAdamW(model, muon_lr=0.1, lr=0.01, weight_decay=0.5)
    matrices, rest, vectors = (group["params"] for group in optimizer.param_groups)
    found = [weight for weight in model.parameters() if weight.ndim == 3]
    assert [tuple(weight.shape) for weight in found] == solid
    assert {weight.ndim for weight in matrices} == {2} and {weight.ndim for weight in vectors} == {1}
    assert {id(weight) for weight in found} <= {id(weight) for weight in rest}
    before = [weight.detach().clone() for weight in found]
    output = model(inputs)
    (output.logits if build is experts else output).square().sum().backward()
    optimizer.step()
    for weight, old in zip(found, before, strict=True):
        # AdamW's first step: 0.01 in the direction of the gradient's sign, beside a decay by 0.01 · 0.5.
        trained = weight.grad.abs() > 1e-5
        assert trained.any()
        expected = old * (1 - 0.01 * 0.5) - 0.01 * weight.grad.sign()
        torch.testing.assert_close(weight.detach()[trained], expected[trained], atol=1e-5, rtol=0)


def test_a_step_for_which_no_gradient_is_left_changes_nothing():
    """As the Trainer takes one after PPO's own."""
    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config(vocab_size=11, n_positions=8, n_embd=8, n_layer=1, n_head=2))
    optimizer = muon.MuonWithAdamW(model, muon_lr=0.1, lr=0.01, weight_decay=0.5)
    model(input_ids=torch.arange(8)[None], labels=torch.arange(8)[None]).loss.backward()
    for taken in (False, True):  # of the optimizer's state there is none yet, then some
        if taken:
            optimizer.step()
        gradients = [weight.grad for weight in model.parameters()]
        weights = [weight.detach().clone() for weight in model.parameters()]
        state = copy.deepcopy(optimizer.state_dict())
        optimizer.zero_grad(set_to_none=True)
        optimizer.step()
        assert all(map(torch.equal, model.parameters(), weights))
        torch.testing.assert_close(optimizer.state_dict(), state, atol=0, rtol=0)
        assert len(state["state"]) == taken * len(weights)
        for weight, gradient in zip(model.parameters(), gradients, strict=True):
            weight.grad = gradient
