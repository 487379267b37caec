"""The optimizer, the ranking loss and PPO's arithmetic, against values worked out by hand."""

import math
import os
import random
import sys
from dataclasses import dataclass
from types import SimpleNamespace

import huggingface_hub
import psutil
import pytest
import torch
from accelerate import Accelerator
from huggingface_hub.utils import _telemetry
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from transformers import GPT2Config, GPT2ForSequenceClassification, GPT2LMHeadModel, TrainingArguments

from data_prep.common.intervals import bootstrap_interval
from data_prep.ranking.raters import ranks_by_reference
from data_prep.sample_completions import near_references
from recipes.trainers import muon
from recipes.trainers.arguments import parse_arguments
from recipes.trainers.muon import MuonWithAdamW, orthogonalize
from recipes.trainers.ppo.loss import advantages_and_returns
from recipes.trainers.ppo.policy_and_value import PolicyAndValue, answer_logprobs
from recipes.trainers.reward_trainer import RankingCollator, RankingRewardTrainer


@pytest.mark.parametrize("shape", [(3, 8, 8), (2, 4, 16), (2, 16, 4)])
def test_orthogonalized_matrices_have_singular_values_near_one(shape):
    torch.manual_seed(0)
    values = torch.linalg.svdvals(orthogonalize(torch.randn(shape)))
    assert values.min() > 0.6 and values.max() < 1.3


@pytest.mark.parametrize("shape", [(3, 8, 8), (2, 16, 64), (2, 64, 16)])
def test_orthogonalizing_moves_singular_values_alone_and_by_the_quintic(shape, monkeypatch):
    monkeypatch.setattr(muon, "bf16_is_fast", lambda device: False)
    torch.manual_seed(0)
    number, rows, columns = shape
    low_rank = torch.randn(number, rows, 5) @ torch.randn(number, 5, columns)  # three or eleven are almost zero
    matrices = low_rank + 1e-4 * torch.randn(shape)
    u, values, v = torch.linalg.svd(matrices.double(), full_matrices=False)
    values /= values.square().sum(-1, keepdim=True).sqrt()
    for _ in range(5):
        values = 3.4445 * values - 4.7750 * values**3 + 2.0315 * values**5
    torch.testing.assert_close(orthogonalize(matrices).double(), u * values[:, None] @ v, atol=1e-4, rtol=0)


def test_muon_moves_a_matrix_and_adamw_the_rest():
    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config(vocab_size=11, n_positions=8, n_embd=8, n_layer=1, n_head=2))
    optimizer = MuonWithAdamW(model, muon_lr=0.1, lr=0.01)
    muon, tables, vectors = optimizer.param_groups
    assert [tuple(weight.shape) for weight in muon["params"]] == [(8, 24), (8, 8), (8, 32), (32, 8)]
    assert [tuple(weight.shape) for weight in tables["params"]] == [(11, 8), (8, 8)]  # tokens (tied), positions
    assert all(weight.ndim == 1 for weight in vectors["params"])
    before = model.transformer.h[0].attn.c_proj.weight.clone(), model.transformer.ln_f.weight.clone()
    model(input_ids=torch.arange(8)[None], labels=torch.arange(8)[None]).loss.backward()
    optimizer.step()
    matrix = model.transformer.h[0].attn.c_proj.weight.detach() - before[0]
    # a step of lr · 0.2 · sqrt(8) times a nearly orthogonal matrix
    assert torch.linalg.svdvals(matrix).mean().item() == pytest.approx(0.1 * 0.2 * math.sqrt(8), rel=0.3)
    # AdamW's first step is lr in the direction of the gradient's sign
    assert (model.transformer.ln_f.weight - before[1]).abs().max().item() == pytest.approx(0.01, rel=1e-3)


def test_a_weight_without_gradient_stays():
    model = nn.Sequential(nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False))
    optimizer = MuonWithAdamW(model, muon_lr=0.1, lr=0.1, weight_decay=0.5)
    before = model[1].weight.clone()
    model[0](torch.ones(1, 4)).sum().backward()
    optimizer.step()
    assert torch.equal(model[1].weight, before)


def test_every_prompt_weighs_the_same_however_many_pairs_it_gives():
    rows = [
        {"completion_ids": [[1], [2, 3], [4]], "ranks": [0, 1, 2]},  # three pairs
        {"completion_ids": [[5], [6]], "ranks": [1, 0]},  # one pair, the second answer the better
    ]
    batch = RankingCollator(pad_token_id=9)(rows)
    assert batch["input_ids"].tolist() == [[1, 9], [2, 3], [4, 9], [5, 9], [6, 9]]
    assert batch["attention_mask"].tolist() == [[1, 0], [1, 1], [1, 0], [1, 0], [1, 0]]
    assert sorted(batch["pairs"].tolist()) == [[0, 1], [0, 2], [1, 2], [4, 3]]
    assert sorted(batch["pair_weights"].tolist()) == pytest.approx([1 / 6, 1 / 6, 1 / 6, 1 / 2])


def test_a_shared_prompt_is_read_once_and_answers_do_not_see_each_other():
    rows = [
        {"completion_ids": [[1, 2, 3, 4], [1, 2, 5]], "ranks": [0, 1]},
        {"completion_ids": [[6], [6, 7]], "ranks": [1, 0]},  # the second goes on behind the first: each keeps an end
    ]
    batch = RankingCollator(pad_token_id=9, shared_prompt=True)(rows)
    assert batch["input_ids"].tolist() == [[1, 2, 3, 4, 5], [6, 6, 7, 9, 9]]
    assert batch["position_ids"].tolist() == [[0, 1, 2, 3, 2], [0, 0, 1, 0, 0]]
    assert batch["ends"].tolist() == [[0, 3], [0, 4], [1, 0], [1, 2]]
    assert batch["pairs"].tolist() == [[0, 1], [3, 2]]
    assert batch["attention_mask"].shape == (2, 1, 5, 5)
    assert batch["attention_mask"][0, 0].int().tolist() == [
        [1, 0, 0, 0, 0],
        [1, 1, 0, 0, 0],
        [1, 1, 1, 0, 0],
        [1, 1, 1, 1, 0],
        [1, 1, 0, 0, 1],  # the prompt's two tokens and itself, not the other answer
    ]
    assert batch["attention_mask"][1, 0, :3, :3].int().tolist() == [[1, 0, 0], [0, 1, 0], [0, 1, 1]]


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@given(data=st.data())
@settings(max_examples=20, deadline=None)
def test_rewards_with_a_shared_prompt_are_those_of_answers_by_themselves(attention, data):
    token = st.integers(0, 8)
    rows = []
    for _ in range(data.draw(st.integers(1, 3))):
        prompt = data.draw(st.lists(token, min_size=0, max_size=5))
        answers = data.draw(st.lists(st.lists(token, min_size=1, max_size=4), min_size=2, max_size=4))
        rows.append({"completion_ids": [prompt + answer for answer in answers], "ranks": list(range(len(answers)))})
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=10, n_positions=9, n_embd=8, n_layer=2, n_head=2, num_labels=1, pad_token_id=9)
    config._attn_implementation = attention
    # In double precision: the large weights below bring fp32's rounding to 1e-4.
    model = GPT2ForSequenceClassification(config).double().eval()
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(20)  # else hardly anything depends on what is attended to
    accelerator = Accelerator(cpu=True)

    def rewards(shared_prompt: bool) -> torch.Tensor:
        trainer = SimpleNamespace(shared_prompt=shared_prompt, accelerator=accelerator)
        with torch.no_grad():
            batch = RankingCollator(9, shared_prompt=shared_prompt)(rows)
            return RankingRewardTrainer.rewards_of(trainer, model, batch)

    torch.testing.assert_close(rewards(True), rewards(False), atol=1e-5, rtol=1e-7)


def test_margins_are_the_differences_of_scores_and_nothing_where_there_are_none():
    rows = [
        {"completion_ids": [[1], [2], [3]], "ranks": [0, 2, 1], "scores": [2.0, -1.0, 0.5]},
        {"completion_ids": [[4], [5]], "ranks": [1, 0], "scores": None},
    ]
    batch = RankingCollator(pad_token_id=9, margin_scale=0.5)(rows)
    margins = dict(zip(map(tuple, batch["pairs"].tolist()), batch["margins"].tolist(), strict=True))
    assert margins == {(0, 1): 1.5, (0, 2): 0.75, (2, 1): 0.75, (4, 3): 0.0}
    assert "margins" not in RankingCollator(pad_token_id=9)(rows)


def test_ranks_by_agreement_with_the_reference():
    reference = "Return a copy of the string."
    completions = ["Return a copy  of the string.", "Return a copy of the strings.", "Something else", "zzz"]
    ranks = ranks_by_reference(completions, reference)
    assert ranks[0] == 0 and ranks[1] == 1  # blanks aside it is the reference; nearly it is the next step
    assert ranks[2] == ranks[3] == max(ranks)  # both below 25: equally wrong


def test_references_of_other_questions_are_the_nearest_that_differ():
    references = ["a", "b", "b", "own", "own", "c", "d", "e"]
    drawn = {reference for seed in range(50) for reference in near_references(references, 3, 1, random.Random(seed))}
    assert drawn == {"b", "c"}  # one is drawn from the two nearest; "own" is the right answer itself
    assert near_references(references, 3, 0, random.Random(0)) == []
    assert near_references(["own", "own"], 0, 2, random.Random(0)) == []  # there is no other


def test_no_recipe_sends_telemetry_whatever_the_environment(monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_TELEMETRY", False)
    monkeypatch.setattr(huggingface_hub.constants, "is_offline_mode", lambda: False)
    sent = []
    monkeypatch.setattr(_telemetry, "_start_telemetry_thread", lambda: sent.append(True))
    huggingface_hub.utils.send_telemetry("a")
    assert sent == [True]  # without the recipes' arguments it would be
    monkeypatch.setattr(sys, "argv", ["recipe.py", "--output_dir", "nowhere"])
    parse_arguments(TrainingArguments)
    huggingface_hub.utils.send_telemetry("a")
    assert sent == [True]


@dataclass
class Arguments:
    """Not TrainingArguments, which would start a process group where WORLD_SIZE says so."""

    output_dir: str
    per_device_train_batch_size: int = 8
    gradient_accumulation_steps: int = 1


@pytest.mark.parametrize(("launcher", "world_size", "expected"), [(True, "1", "all"), (True, "2", 1), (False, "1", 1)])
def test_a_single_process_under_accelerate_launch_takes_every_core(monkeypatch, launcher, world_size, expected):
    """accelerate 1.15 sets OMP_NUM_THREADS=1 for a process that is alone on the machine."""
    cores = min(psutil.cpu_count(logical=False) or 1, len(os.sched_getaffinity(0)))
    for name, value in (("OMP_NUM_THREADS", "1"), ("WORLD_SIZE", world_size)):
        monkeypatch.setenv(name, value)
    if launcher:
        monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")
    else:
        monkeypatch.delenv("ACCELERATE_MIXED_PRECISION", raising=False)
    monkeypatch.setattr(sys, "argv", ["recipe.py", "--output_dir", "nowhere"])
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        parse_arguments(Arguments)
        assert torch.get_num_threads() == (cores if expected == "all" else expected)
    finally:
        torch.set_num_threads(before)


def test_the_interval_of_a_constant_is_the_constant():
    assert bootstrap_interval([0.5] * 10) == {"value": 0.5, "low": 0.5, "high": 0.5, "n": 10}


def test_the_interval_covers_what_the_normal_approximation_does():
    interval = bootstrap_interval([0] * 50 + [1] * 50)  # 0.5 ± 1.96 · 0.5 / 10
    assert interval["low"] == pytest.approx(0.402, abs=0.02) and interval["high"] == pytest.approx(0.598, abs=0.02)


def test_advantages_and_returns_by_hand():
    # gamma 0.5, lambda 0.5; two answers, of 3 tokens and of 1
    rewards = torch.tensor([[0.0, 0.0, 1.0], [2.0, 9.0, 9.0]])
    values = torch.tensor([[0.4, 0.2, 0.6], [1.0, 9.0, 9.0]])
    mask = torch.tensor([[True, True, True], [True, False, False]])
    # first: deltas 0.5·0.2 − 0.4 = −0.3; 0.5·0.6 − 0.2 = 0.1; 1 − 0.6 = 0.4
    # advantages from the end: 0.4; 0.1 + 0.25·0.4 = 0.2; −0.3 + 0.25·0.2 = −0.25
    # second: 2 − 1 = 1, and what stands after its end counts for nothing
    advantages, returns = advantages_and_returns(rewards, values * mask, mask, gamma=0.5, lam=0.5)
    assert advantages.tolist() == [pytest.approx([-0.25, 0.2, 0.4]), [1.0, 0.0, 0.0]]
    assert returns.tolist() == [pytest.approx([0.15, 0.4, 1.0]), [2.0, 0.0, 0.0]]


@settings(max_examples=25, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 5), st.integers(1, 5)), min_size=1, max_size=4))
def test_answer_logprobs_are_those_of_each_row_alone(lengths):
    """Padding on the right and the choice of positions change nothing, for any lengths of prompt and answer."""
    torch.manual_seed(1)
    model = GPT2LMHeadModel(GPT2Config(vocab_size=13, n_positions=16, n_embd=8, n_layer=2, n_head=2)).eval()
    rows = [torch.randint(1, 13, (prompt + answer,)) for prompt, answer in lengths]
    width = max(answer for _, answer in lengths)
    input_ids = nn.utils.rnn.pad_sequence(rows, batch_first=True)
    answers, mask = torch.zeros(len(rows), width, dtype=torch.long), torch.zeros(len(rows), width, dtype=torch.bool)
    positions = torch.zeros(len(rows), width, dtype=torch.long)
    for i, (prompt, answer) in enumerate(lengths):
        answers[i, :answer], mask[i, :answer] = rows[i][prompt:], True
        positions[i] = (prompt - 1 + torch.arange(width)).clamp(max=input_ids.shape[1] - 1)
    with torch.no_grad():
        logprobs, entropy = answer_logprobs(model, input_ids, positions, answers, mask, temperature=0.5)
        for i, (prompt, answer) in enumerate(lengths):
            logs = (model(rows[i][None]).logits[0] / 0.5).log_softmax(-1)[prompt - 1 : prompt + answer - 1]
            alone = logs.gather(1, rows[i][prompt:, None]).squeeze(1)
            torch.testing.assert_close(logprobs[i, :answer], alone, atol=1e-5, rtol=1e-4)
            torch.testing.assert_close(entropy[i, :answer], -(logs.exp() * logs).sum(-1), atol=1e-5, rtol=1e-4)
    assert logprobs[~mask].abs().sum() == 0


def test_policy_and_value_share_nothing():
    from transformers import GPT2ForSequenceClassification

    config = GPT2Config(vocab_size=13, n_positions=16, n_embd=8, n_layer=1, n_head=2, num_labels=1, pad_token_id=0)
    wrapper = PolicyAndValue(GPT2LMHeadModel(config), GPT2ForSequenceClassification(config))
    ids, mask = torch.tensor([[3, 4, 5]]), torch.tensor([[True, True]])
    logprobs, _, values = wrapper(ids, torch.tensor([[0, 1]]), ids[:, 1:], mask, 1.0)
    values.sum().backward()
    assert all(weight.grad is None for weight in wrapper.policy.parameters())
    assert wrapper.value_model.score.weight.grad is not None
    assert logprobs.shape == values.shape == (1, 2)
