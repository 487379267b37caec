"""PPO: its arithmetic against values worked out by hand, and whole runs through the command, one process and two.

A run here takes seconds: models of 2 layers, answers of a few bytes. The policy of most runs is `ready_to_end` of
test_recipes.py, whose answers end after a few tokens, so that lengths vary; `talker` always says the same.
"""

import ast
import json
import math
import os
import re
import shutil
import signal
import tempfile
import time
from dataclasses import fields
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from helpers.models import save, tiny_config
from helpers.processes import accelerate_launch, run, torchrun
from helpers.recipes import (
    EXACT,
    LORA,
    ROOT,
    Done,
    again,
    conversation,
    differing,
    loaded,
    processes,
    ready_to_end,
    refused,
    results,
    run_as_script,
    succeeded,
    words,
)
from huggingface_hub import ModelCard
from hypothesis import given as drawn
from hypothesis import settings
from hypothesis import strategies as st
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    GPT2LMHeadModel,
    TrainingArguments,
)
from transformers import GPT2ForSequenceClassification as Classifier

from data_prep.common.errors import InputError
from data_prep.common.files import read_jsonl, write_json
from data_prep.models.reward_functions import load_function
from data_prep.models.scoring import score_answers
from data_prep.rewards import chrf, exact_match
from data_prep.train_tokenizer import END_OF_TURN, train_tokenizer
from recipes.trainers.arguments import last_checkpoint
from recipes.trainers.ppo.config import REFUSED, PPOConfig
from recipes.trainers.ppo.loss import clipped_losses
from recipes.trainers.ppo.policy_and_value import groups_by_length
from recipes.trainers.ppo.rollout import Rollout, SeededSampling, repetition
from recipes.trainers.ppo.trainer import PPOTrainer

QUESTIONS = [letter * (1 + number % 4) for number, letter in enumerate("abcdefghijklmnopqrstuvwxyzABCDEF")]
HELD_OUT = ["0", "11", "222", "3", "44"]
PPO = ROOT / "recipes" / "trainers" / "ppo"
FULL: dict = {}
BY_LORA = {**LORA, "lora_r": 4}

REWARDS = '''
import json
import time
from pathlib import Path

HERE = Path(__file__).parent


def texts(completions):
    return [each if isinstance(each, str) else each[-1]["content"] for each in completions]


def letters(prompts, completions, **columns):
    """The number of characters; while there is a file `slow`, slowly."""
    if (HERE / "slow").exists():
        time.sleep(0.4)
    return [float(len(text)) for text in texts(completions)]


def share_of_a(prompts, completions, **columns):
    return [text.count("a") / max(1, len(text)) for text in texts(completions)]


def small_letters(prompts, completions, **columns):
    return [float(sum("a" <= character <= "z" for character in text)) for text in texts(completions)]


def constant(prompts, completions, **columns):
    """3 for every answer; what was asked of it goes to a file."""
    with (HERE / "asked.jsonl").open("a") as file:
        file.write(json.dumps({"prompts": prompts, "completions": completions, **columns}) + "\\n")
    return [3] * len(prompts)


def one_too_few(prompts, completions, **columns):
    return [0.0] * (len(prompts) - 1)


calls = []


def third(prompts, completions, **columns):
    """1 in the fourth evaluation, which is that of update 3 after the one before training."""
    calls.append(len(prompts))
    return [float(len(calls) == 4)] * len(prompts)


number = 4
'''


@pytest.fixture(scope="module")
def reward_file(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("rewards") / "rewards.py"
    path.write_text(REWARDS)
    return path


@pytest.fixture(scope="module")
def policy_dir(tiny_chat_tokenizer, tmp_path_factory) -> Path:
    return ready_to_end(tiny_chat_tokenizer, tmp_path_factory.mktemp("models") / "ready_to_end")


@pytest.fixture(scope="module")
def run_settings(policy_dir, reward_file, tmp_path_factory) -> dict:
    """Updates of 8 answers, rewarded by their number of characters."""
    folder = tmp_path_factory.mktemp("prompts")
    write_json(folder / "prompts.json", [conversation(question, question, "yes") for question in QUESTIONS])
    write_json(folder / "heldout.json", [conversation(question, question, "yes") for question in HELD_OUT])
    files = {"sft_model_path": policy_dir, "prompts": folder / "prompts.json", "heldout": folder / "heldout.json"}
    method = {"num_ppo_epochs": 2, "response_length": 8, "temperature": 1.0, "kl_coef": 0.05, "learning_rate": 0.003}
    steps = {"per_device_train_batch_size": 8, "logging_steps": 1, "save_steps": 1, "num_sample_generations": 0}
    rewards = {"reward_funcs": f"{reward_file}:letters", "gradient_checkpointing": False}
    return {**files, **method, **steps, **rewards, **EXACT}


@pytest.fixture
def build(tiny_chat_tokenizer, tiny_reward_dir, policy_dir, tmp_path):
    """build(gamma=0.5, …) is a trainer in this process, of 8 prompts where no `rows` are given."""

    def trainer(rows=None, policy=policy_dir, reward_funcs=(), reward_model=None, reward_tokenizer=None, **changes):
        rows = rows or [{"prompt": [{"role": "user", "content": question}]} for question in QUESTIONS[:8]]
        given = {
            "per_device_train_batch_size": len(rows),
            "response_length": 8,
            "temperature": 1.0,
            **EXACT,
            **changes,
        }
        args = PPOConfig(output_dir=str(tmp_path / "trainer"), gradient_checkpointing=False, **given)
        model, reference = (AutoModelForCausalLM.from_pretrained(policy) for _ in range(2))
        return PPOTrainer(
            args, tiny_chat_tokenizer, model, reference, reward_model,
            AutoModelForSequenceClassification.from_pretrained(tiny_reward_dir), Dataset.from_list(rows),
            reward_funcs=list(reward_funcs) or ([] if reward_model else [nothing]),
            reward_processing_class=reward_tokenizer,
        )  # fmt: skip

    return trainer


def nothing(prompts, completions, **columns):
    return [0.0] * len(prompts)


def complaint(done: Done) -> str:
    """The one error of a command, without the command line that an error of its arguments begins with."""
    return refused(done).rsplit("/ppo: ", 1)[-1]


def log_of(checkpoint: Path) -> list[dict]:
    """What a run has logged up to a checkpoint; no row of it depends on the time."""
    rows = json.loads((checkpoint / "trainer_state.json").read_text())["log_history"]
    assert not any("runtime" in key or "per_second" in key for row in rows for key in row)
    return rows


def values_of(rows: list[dict], key: str) -> list[float]:
    return [row[key] for row in rows if key in row]


def table_of(folder: Path) -> list[dict]:
    return [*read_jsonl(folder / "completions.jsonl")]


def copy_up_to(finished: Path, folder: Path, step: int) -> Path:
    """A copy of a finished run as a kill after the checkpoint of `step` leaves it, but for completions.jsonl."""
    shutil.copytree(finished, folder)
    for path in folder.glob("checkpoint-*"):
        if int(path.name.split("-")[1]) > step:
            shutil.rmtree(path)
    for name in ("config.json", "model.safetensors", "ppo.json", "curve.png", "curve.json"):
        (folder / name).unlink()
    return folder


def same_weights(one: Path, other: Path) -> None:
    """Policy and value model are bitwise the same in two folders."""
    assert differing(one, other) == differing(one / "value_model", other / "value_model") == set()


# The losses


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss", "clipped"),
    [
        (1.5, 1.0, -1.2, True),  # more of what was good, but not more than 1.2 times as much
        (1.5, -1.0, 1.5, False),  # more of what was bad is punished in full
        (0.5, 1.0, -0.5, False),  # less of what was good likewise
        (0.5, -1.0, 0.8, True),
        (1.1, 2.0, -2.2, False),
        (0.9, -2.0, 1.8, False),
    ],
)
def test_the_policy_loss_is_clipped_only_where_the_ratio_has_gone_far_enough(ratio, advantage, loss, clipped):
    logprob = torch.tensor([[math.log(ratio) - 1.0]], requires_grad=True)
    zero, one = torch.zeros(1, 1), torch.ones(1, 1)
    losses, _, found, where = clipped_losses(logprob, -one, advantage * one, zero, zero, zero, 0.2, 0.2)
    assert losses.item() == pytest.approx(loss) and found.item() == pytest.approx(ratio)
    assert where.item() is clipped
    losses.sum().backward()  # d(−A·r)/d(log p) = −A·r, and nothing where it is clipped
    assert logprob.grad.item() == pytest.approx(0.0 if clipped else -advantage * ratio)


@pytest.mark.parametrize(
    ("value", "target", "loss"),
    [
        (2.0, 3.0, 1.62),  # the old value is 1: no nearer than 1.2, and (1.2 − 3)² / 2
        (2.0, 1.0, 0.5),  # (2 − 1)² / 2 is more than (1.2 − 1)² / 2
        (1.1, 3.0, 1.805),  # within the range: (1.1 − 3)² / 2
        (0.0, -1.0, 1.62),  # (0.8 + 1)² / 2
    ],
)
def test_the_value_is_clipped_around_the_old_one(value, target, loss):
    one = torch.ones(1, 1)
    given = torch.tensor([[value]], requires_grad=True)
    _, losses, _, _ = clipped_losses(-one, -one, one, given, one, target * one, 0.2, 0.2)
    assert losses.item() == pytest.approx(loss)
    losses.sum().backward()
    assert given.grad.item() == pytest.approx(0.0 if loss == 1.62 else value - target)


def test_repetition_is_the_share_of_three_grams_that_came_before():
    answers = torch.tensor(
        [[1, 2, 3, 1, 2, 3, 1], [5, 5, 5, 5, 9, 9, 9], [5, 5, 5, 5, 5, 5, 5], [1, 2, 3, 4, 5, 6, 7]]
    )
    lengths = torch.tensor([7, 4, 2, 7])
    # 123 231 312 123 231: 2 of 5; 555 555: 1 of 2, whatever stands after the end; two tokens have none
    assert repetition(answers, torch.arange(7) < lengths[:, None]).tolist() == pytest.approx([0.4, 0.5, 0.0, 0.0])


# Rewards and advantages


def by_hand(**changes) -> Rollout:
    """An answer of three tokens that stopped, of score 1, and one of a single token that was cut, of score 2."""
    mask = torch.tensor([[True, True, True], [True, False, False]])
    given = {
        "rows": [{}, {}],
        "input_ids": torch.zeros(2, 4, dtype=torch.long),
        "positions": torch.zeros(2, 3, dtype=torch.long),
        "answers": torch.tensor([[7, 8, 9], [7, 0, 0]]),
        "mask": mask,
        "last": torch.tensor([3, 1]),
        "stopped": torch.tensor([True, False]),
        "logprobs": torch.tensor([[-1.0, -2.0, -1.0], [-0.5, 0.0, 0.0]]),
        "ref_logprobs": torch.tensor([[-1.5, -1.0, -1.0], [-1.5, 0.0, 0.0]]),
        "values": torch.zeros(2, 3),
        "scores": torch.tensor([1.0, 2.0]),
        "rewards": {"nothing": torch.tensor([1.0, 2.0])},
    }
    return Rollout(**{**given, **changes})


def rewards_of(trainer: PPOTrainer, rollout: Rollout) -> list[list[float]]:
    """With gamma 0 and values of 0 a token's return is its reward."""
    assert trainer.args.gamma == 0 and not rollout.values.any()
    trainer.estimate_advantages(rollout)
    return rollout.returns.tolist()


def test_the_kl_penalty_is_on_every_token_and_the_score_on_the_last(build):
    # k1: log p − log p_ref = 0.5, −1, 0 and 1, times −0.1
    found = rewards_of(build(gamma=0.0, kl_coef=0.1), by_hand())
    assert found == [pytest.approx([-0.05, 0.1, 1.0]), pytest.approx([1.9, 0.0, 0.0])]


def test_the_k3_penalty_is_never_a_reward(build):
    # k3: with x = log p_ref − log p = −0.5, 1, 0 and −1 it is exp(x) − 1 − x = 0.10653, 0.71828, 0 and 0.36788
    found = rewards_of(build(gamma=0.0, kl_coef=0.1, kl_estimator="k3"), by_hand())
    assert found == [pytest.approx([-0.010653, -0.071828, 1.0], abs=1e-6), pytest.approx([1.963212, 0, 0], abs=1e-6)]


def test_an_answer_that_was_cut_pays_the_penalty_and_its_logged_score_does_not(build):
    rollout, trainer = by_hand(), build(gamma=0.0, kl_coef=0.0, missing_eos_penalty=0.75)
    assert rewards_of(trainer, rollout) == [[0.0, 0.0, 1.0], [1.25, 0.0, 0.0]]
    assert rollout.scores.tolist() == [1.0, 2.0]


def test_rewards_are_whitened_in_scale_and_keep_their_mean(build):
    # 0, 0, 4 and 4: mean 2, deviation 2; what stands after the end of the second counts for nothing
    rollout = by_hand(scores=torch.tensor([4.0, 4.0]))
    found = rewards_of(build(gamma=0.0, kl_coef=0.0, whiten_rewards=True), rollout)
    assert found == [pytest.approx([1.0, 1.0, 3.0]), pytest.approx([3.0, 0.0, 0.0])]


def test_advantages_are_whitened_over_the_tokens_of_all_answers(build):
    # rewards 0, 0, 4 and 4 again: mean 2, deviation 2
    rollout = by_hand(scores=torch.tensor([4.0, 4.0]))
    build(gamma=0.0, kl_coef=0.0).estimate_advantages(rollout)
    assert rollout.advantages.tolist() == [pytest.approx([-1.0, -1.0, 1.0]), pytest.approx([1.0, 0.0, 0.0])]


def test_advantages_returns_and_figures_of_a_rollout_by_hand(build):
    values = torch.tensor([[0.4, 0.2, 0.6], [1.0, 0.0, 0.0]])
    rollout, trainer = by_hand(values=values), build(gamma=0.5, lam=0.5, kl_coef=0.1, missing_eos_penalty=0.5)
    figures = trainer.estimate_advantages(rollout)
    # Rewards −0.05, 0.1, 1 and 2 − 0.5 − 0.1 = 1.4.
    # deltas −0.05 + 0.5·0.2 − 0.4 = −0.35; 0.1 + 0.5·0.6 − 0.2 = 0.2; 1 − 0.6 = 0.4; 1.4 − 1 = 0.4
    # advantages from the end: 0.4; 0.2 + 0.25·0.4 = 0.3; −0.35 + 0.25·0.3 = −0.275; and 0.4
    assert rollout.returns.tolist() == [pytest.approx([0.125, 0.5, 1.0]), pytest.approx([1.4, 0.0, 0.0])]
    # mean 0.825 / 4 = 0.20625; squares 0.16 + 0.09 + 0.075625 + 0.16 = 0.485625; deviation √(0.12140625 − mean²)
    deviation = math.sqrt(0.485625 / 4 - 0.20625**2)
    whitened = [(advantage - 0.20625) / deviation for advantage in (-0.275, 0.3, 0.4, 0.4)]
    assert rollout.advantages[rollout.mask].tolist() == pytest.approx(whitened, abs=1e-5)
    assert not rollout.advantages[~rollout.mask].any()
    expected = {
        "score": 1.5,
        "kl": 0.25,  # −0.5 and 1 nats
        "rlhf_reward": 1.225,  # 1.5 − 0.5 / 2 − 0.1 · 0.25
        "length": 2.0,
        "eos_rate": 0.5,
        "entropy": 2.25,  # 4 and 0.5 nats
        "repetition": 0.0,
        "kl_coef": 0.1,
    }
    assert {key: figures[f"objective/{key}"] for key in expected} == pytest.approx(expected, abs=1e-6)
    # Returns 0.125, 0.5, 1 and 1.4: mean 0.75625, squares 3.225625. Their errors are the advantages.
    explained = 1 - (0.485625 / 4 - 0.20625**2) / (3.225625 / 4 - 0.75625**2)
    assert figures["value/explained_variance"] == pytest.approx(explained, abs=1e-5)
    assert not any(key.startswith("rewards/") for key in figures)  # of a single reward they would be the score


# Drawing answers


def chi_square(found: torch.Tensor, expected: torch.Tensor) -> float:
    return ((found - expected) ** 2 / expected).sum().item()


def test_drawn_tokens_have_the_frequencies_of_the_softmax():
    generator = torch.Generator().manual_seed(0)
    scores = torch.tensor([2.0, 0.0, -torch.inf, 1.0, -2.0])
    uniforms = torch.rand(20_000, 1, generator=generator)
    chosen = SeededSampling(uniforms, 3, temperature=2.0)(torch.zeros(20_000, 3), scores.expand(20_000, 5))
    assert torch.isinf(chosen).sum(1).eq(4).all()  # all but one are out
    found = (chosen == 0).sum(0).float()
    # exp(1), exp(0), 0, exp(0.5) and exp(−1), over their sum 5.73488
    expected = 20_000 * torch.tensor([2.71828, 1.0, 0.0, 1.64872, 0.36788]) / 5.73488
    assert found[2] == 0
    kept = torch.tensor([0, 1, 3, 4])
    assert chi_square(found[kept], expected[kept]) < 16.3  # 99.9 % of chi-square with 3 degrees of freedom


@settings(max_examples=200, deadline=None)
@drawn(
    st.lists(st.one_of(st.just(-math.inf), st.floats(-30, 30, width=32)), min_size=1, max_size=12),
    st.one_of(st.sampled_from([0.0, 1e-45, 1 - 2**-24, 0.5]), st.floats(0, 1, exclude_max=True, width=32)),
    st.sampled_from([0.1, 0.7, 1.0, 2.0]),
)
def test_a_token_without_probability_is_never_drawn(scores, uniform, temperature):
    if max(scores) == -math.inf:
        scores[0] = 0.0
    scores = torch.tensor([scores])
    chosen = SeededSampling(torch.tensor([[uniform]]), 1, temperature)(torch.zeros(1, 1), scores).argmax(-1)
    assert (scores / temperature).softmax(-1)[0, chosen] > 0


def test_the_first_and_the_last_token_that_has_any_probability_can_be_drawn():
    scores = torch.tensor([[-torch.inf, 1.0, 0.0, -torch.inf]])
    for uniform, token in ((0.0, 1), (1 - 2**-24, 2)):
        chosen = SeededSampling(torch.tensor([[uniform]]), 1, 1.0)(torch.zeros(1, 1), scores)
        assert chosen.argmax(-1).item() == token


def test_answers_follow_the_policy_over_many_episodes(build):
    """The seeds of episodes are neighbours: their first numbers must be as good as any."""
    trainer = build(rows=[{"prompt": "a"}], response_length=2)
    rows = [dict(trainer.train_dataset[0])] * 4096
    rollout = trainer.roll_out(rows, range(4096))
    with torch.no_grad():
        logits = trainer.model.policy(input_ids=torch.tensor([rows[0]["prompt_ids"]])).logits[0, -1]
    logits[trainer.processing_class.pad_token_id] = -torch.inf
    probabilities = logits.softmax(-1)
    end = trainer.stop_token_id
    groups = torch.arange(len(probabilities)) % 10
    groups[end] = 10
    expected = 4096 * torch.zeros(11).scatter_add_(0, groups, probabilities)
    found = torch.zeros(11).scatter_add_(0, groups[rollout.answers[:, 0]], torch.ones(4096))
    assert 0.25 < expected[10] / 4096 < 0.35
    assert chi_square(found, expected) < 29.6  # 99.9 % with 10 degrees of freedom
    # What follows the first token does not depend on it: the model's answers hardly do, and the numbers must not.
    second = rollout.answers[rollout.mask[:, 1], 1]
    low = rollout.answers[rollout.mask[:, 1], 0] % 10 < 5
    shares = [(second[rows] == end).float().mean().item() for rows in (low, ~low)]
    # 0.297 of some 1,440 each: a standard deviation of 0.017 between the two
    assert abs(shares[0] - shares[1]) < 0.055 and shares[0] == pytest.approx(0.297, abs=0.05)
    assert not (rollout.answers[rollout.mask] == trainer.processing_class.pad_token_id).any()


def test_an_answer_depends_neither_on_the_rows_beside_it_nor_on_their_number(build):
    trainer = build()
    rows = [trainer.train_dataset[index] for index in range(8)]
    assert len({len(row["prompt_ids"]) for row in rows}) == 4
    together = trainer.roll_out(rows, range(40, 48))
    backwards = trainer.roll_out(rows[::-1], range(47, 39, -1))
    alone = [trainer.roll_out([row], [episode]) for row, episode in zip(rows, range(40, 48), strict=True)]
    for index in range(8):
        wanted = together.answers[index, together.mask[index]]
        for other, row in ((backwards, 7 - index), (alone[index], 0)):
            assert other.answers[row, other.mask[row]].tolist() == wanted.tolist()
            assert other.stopped[row] == together.stopped[index] and other.last[row] == together.last[index]
    assert len(set(together.mask.sum(1).tolist())) > 2  # else answers of one length would do
    others = trainer.roll_out(rows, range(48, 56))
    assert others.texts(trainer.processing_class) != together.texts(trainer.processing_class)


def test_answers_that_ended_are_left_out_of_what_is_still_drawn_and_no_answer_changes(build):
    """Of 24 rows, calls go on with the open ones; a row drawn alone is one call to its end."""
    trainer = build()
    rows = [trainer.train_dataset[index % 8] for index in range(24)]
    calls, generate = [], trainer.model.policy.generate

    def counting(*args, **kwargs):
        calls.append(len(kwargs["input_ids"]))
        return generate(*args, **kwargs)

    trainer.model.policy.generate = counting
    together = trainer.roll_out(rows, range(24))
    assert calls[0] == 24 and len(calls) > 1 and all(after <= before // 2 for before, after in pairwise(calls))
    for index, row in enumerate(rows):
        calls.clear()
        alone = trainer.roll_out([row], [index])
        assert calls == [1]
        assert alone.answers[0, alone.mask[0]].tolist() == together.answers[index, together.mask[index]].tolist()
        assert alone.stopped[0] == together.stopped[index]


def test_rows_go_through_the_models_in_groups_of_like_length():
    lengths = torch.tensor([40] * 3 + [100] + [39] * 9 + [31] * 4 + [30] * 4 + [20])
    # The longest takes seven neighbours along to make eight; 39 down to 30 are alike, 20 is not: 14 rows, so eight of
    # them, then what is left.
    found = groups_by_length(lengths, 64)
    assert [lengths[group].tolist() for group in found] == [
        [100] + [40] * 3 + [39] * 4, [39] * 5 + [31] * 3, [31] + [30] * 4 + [20]
    ]  # fmt: skip
    assert sorted(torch.cat(found).tolist()) == list(range(22))
    assert [len(group) for group in groups_by_length(lengths, 4)] == [4, 4, 4, 4, 4, 2]
    assert [len(group) for group in groups_by_length(torch.full((64,), 9), 64)] == [64]


def test_the_generation_config_of_the_policy_does_not_change_what_is_drawn(build, policy_dir, tmp_path):
    """Qwen's says repetition_penalty 1.05: answers would be drawn from another distribution than is trained."""
    shutil.copytree(policy_dir, tmp_path / "policy")
    path = tmp_path / "policy" / "generation_config.json"
    written = {"repetition_penalty": 3.0, "min_new_tokens": 6, "top_k": 1, "do_sample": True, "temperature": 0.1}
    path.write_text(json.dumps({**json.loads(path.read_text()), **written}))
    trainers = [build(policy=policy) for policy in (policy_dir, tmp_path / "policy")]
    one, other = (each.roll_out([each.train_dataset[i] for i in range(8)], range(8)) for each in trainers)
    assert other.answers.tolist() == one.answers.tolist()


# Toy tasks


@pytest.mark.parametrize(
    ("changes", "shape"),
    [
        ({"learning_rate": 0.005, "total_episodes": 3840}, {"initializer_range": 0.2}),
        # The value model first, and faster. Adapters leave the token table as it was drawn: a wider one, in which the
        # tokens are far enough apart to be told.
        (
            {"use_peft": True, "lora_target_modules": "all-linear", "lora_r": 16, "lora_alpha": 32, "total_episodes": 4480,
             "learning_rate": 0.005, "value_learning_rate": 0.02, "num_value_warmup_updates": 2},
            {"initializer_range": 0.18, "n_embd": 64},
        ),
    ],
    ids=["full", "lora"],
)  # fmt: skip
def test_a_random_model_learns_to_say_the_letter_that_is_rewarded(
    run_settings, reward_file, tiny_chat_tokenizer, changes, shape, tmp_path
):
    """No reward model, and nothing to start from: of 262 tokens one is rewarded, by its share of an answer of four."""
    torch.manual_seed(0)
    save(GPT2LMHeadModel(tiny_config(tiny_chat_tokenizer, **shape)), tiny_chat_tokenizer, tmp_path / "policy")
    asked = [chr(0x4E00 + number) for number in range(160)]
    for name, questions in (("prompts", asked[:128]), ("heldout", asked[128:])):
        write_json(tmp_path / f"{name}.json", [conversation(question, question, "-") for question in questions])
    given = {**run_settings, "sft_model_path": tmp_path / "policy", "response_length": 4, "num_ppo_epochs": 4}
    given |= {"prompts": tmp_path / "prompts.json", "heldout": tmp_path / "heldout.json", "save_strategy": "no"}
    given |= {"per_device_train_batch_size": 128, "reward_funcs": f"{reward_file}:share_of_a", "kl_coef": 0.0}
    succeeded(again("ppo", **{**given, **changes}, output_dir=tmp_path / "ppo"))
    figures = results(tmp_path / "ppo", "ppo")["metrics"]
    assert figures["eval_score_first"] < 0.1 and figures["eval_score_last"] > 0.9


# Rewards


@pytest.fixture(scope="module")
def two_rewards(run_settings, reward_file, talker, long_is_good_dir, tmp_path_factory) -> Path:
    """Three updates of two answers, of a policy that always says yes; the reference is yes for every other question."""
    folder = tmp_path_factory.mktemp("two_rewards")
    rows = [conversation(letter, letter, ("yes", "no")[number % 2]) for number, letter in enumerate("abcdef")]
    write_json(folder / "prompts.json", rows)
    write_json(
        folder / "heldout.json", [conversation(letter, letter, "yes" if letter == "x" else "no") for letter in "wxyz"]
    )
    given = {**run_settings, "prompts": folder / "prompts.json", "heldout": folder / "heldout.json", "save_steps": 3}
    given |= {
        "sft_model_path": talker("yes"),
        "reward_model_path": long_is_good_dir,
        "reward_weights": [0.5, 2.0, -1.0],
    }
    given |= {"reward_funcs": [f"{reward_file}:constant", "data_prep.rewards.exact_match"], "total_episodes": 6}
    given |= {"eval_funcs": "data_prep.rewards.exact_match", "per_device_train_batch_size": 2, "learning_rate": 1e-9}
    (reward_file.parent / "asked.jsonl").unlink(missing_ok=True)
    succeeded(again("ppo", **given, output_dir=folder / "ppo"))
    return folder / "ppo"


def test_the_score_is_the_weighted_sum_of_reward_model_and_functions(two_rewards):
    rows = [row for row in log_of(two_rewards / "checkpoint-3") if "loss" in row]
    assert [row["step"] for row in rows] == [1, 2, 3]
    of_model = 4 * math.sin((7 / 63 - 0.5) * math.pi)  # see test_ppo_reads_the_reward_at_the_end_of_turn
    for row in rows:
        parts = {key: value for key, value in row.items() if key.startswith("rewards/")}
        assert set(parts) == {"rewards/reward_model", "rewards/constant", "rewards/exact_match"}
        assert parts["rewards/reward_model"] == pytest.approx(of_model, abs=2e-3) and parts["rewards/constant"] == 3
        expected = 0.5 * parts["rewards/reward_model"] + 2 * 3 - parts["rewards/exact_match"]
        assert row["objective/score"] == pytest.approx(expected, abs=1e-5)
    # Six questions once each, two at a time, three of them with the right answer
    assert sum(values_of(rows, "rewards/exact_match")) == 1.5


def test_functions_get_messages_for_messages_and_the_columns(two_rewards, reward_file):
    asked = [*read_jsonl(reward_file.parent / "asked.jsonl")]
    assert all(set(call) == {"prompts", "completions", "reference"} for call in asked)
    assert [len(call["prompts"]) for call in asked] == [4, 2, 2, 2, 4]  # an evaluation before and after
    right = {letter: ("yes", "no")[number % 2] for number, letter in enumerate("abcdef")}
    seen = [
        (prompt, completion, reference)
        for call in asked[1:-1]
        for prompt, completion, reference in zip(call["prompts"], call["completions"], call["reference"], strict=True)
    ]
    yes = [{"role": "assistant", "content": "yes"}]
    assert sorted(prompt[0]["content"] for prompt, _, _ in seen) == [*"abcdef"]
    for prompt, completion, reference in seen:
        assert prompt == [{"role": "user", "content": prompt[0]["content"]}] and completion == yes
        assert reference == right[prompt[0]["content"]]


def test_functions_that_are_only_measured_are_measured_on_held_out_answers(two_rewards):
    figures = results(two_rewards, "ppo")["metrics"]
    assert figures["eval_exact_match_first"] == figures["eval_exact_match_last"] == 0.25  # right for x alone


def test_functions_get_texts_for_texts_and_their_rewards_in_order(build):
    asked = []

    def number(prompts, completions, topic, **columns):
        asked.append((prompts, completions, topic, columns))
        return [10, 20, 30]

    rows = [{"prompt": question, "topic": topic} for question, topic in (("a", "x"), ("bcd", "y"), ("ef", "z"))]
    trainer = build(rows=rows, reward_funcs=[number], reward_weights=[0.5])
    rollout = trainer.roll_out([trainer.train_dataset[index] for index in range(3)], range(3))
    trainer.score(rollout)
    ((prompts, completions, topic, columns),) = asked
    assert prompts == ["a", "bcd", "ef"] and topic == ["x", "y", "z"] and columns == {}
    assert completions == rollout.texts(trainer.processing_class) and all(
        isinstance(text, str) for text in completions
    )
    assert rollout.rewards["number"].tolist() == [10, 20, 30] and rollout.scores.tolist() == [5, 10, 15]


def test_text_prompts_are_encoded_as_they_stand(build):
    trainer = build(rows=[{"prompt": "ab"}])
    row = trainer.train_dataset[0]
    assert row["prompt_ids"] == trainer.processing_class("ab")["input_ids"]
    rollout = trainer.roll_out([row], [0])
    assert rollout.input_ids[0, :2].tolist() == row["prompt_ids"] and rollout.positions[0, 0] == 1


def test_the_measures_that_come_with_the_recipes():
    references = ["yes", "it is", "no"]
    assert exact_match([], ["yes", " it  is\n", "yes"], references) == [1, 1, 0]
    messages = [[{"role": "assistant", "content": text}] for text in ("yes", "it was", "no")]
    assert exact_match([], messages, references, topic=["x", "y", "z"]) == [1, 0, 1]
    # ab against ac: of the single letters one of two is right, of the pairs none: (1/2 + 0) / 2
    assert chrf([], ["yes", "xyz", "ab"], ["yes", "abc", "ac"]) == pytest.approx([1, 0, 0.25], abs=1e-6)


@pytest.mark.parametrize(
    ("changes", "messages"),
    [
        ({"reward_funcs": "{file}:one_too_few"}, ["one_too_few: 7 rewards for 8 answers"]),
        ({"reward_funcs": "{file}:not_there"}, ["{file}:not_there: no such function", "path/to/file.py:name"]),
        ({"reward_funcs": "{file}x:letters"}, ["{file}x:letters: no such function", "no such file"]),
        ({"reward_funcs": "data_prep.rewards.not_there"}, ["data_prep.rewards.not_there: no such function"]),
        ({"reward_funcs": "no_package.letters"}, ["no_package.letters: no such function", "no_package"]),
        ({"reward_funcs": "letters"}, ["letters: no such function"]),
        ({"reward_funcs": "{file}:number"}, ["{file}:number: found int; expected a function"]),
        ({"reward_funcs": None}, ["nothing to reward answers by"]),
        ({"reward_weights": [1.0, 2.0]}, ["reward_weights: 1 rewards, found 2 weights"]),
    ],
    ids=[
        "too_few",
        "no_name",
        "no_file",
        "no_name_in_package",
        "no_package",
        "no_dot",
        "no_function",
        "none",
        "weights",
    ],
)
def test_rewards_that_cannot_be_had_are_one_clear_error(run_settings, reward_file, changes, messages, tmp_path):
    given = {**run_settings, "total_episodes": 8, "heldout": None, **changes}
    given = {
        key: value.format(file=reward_file) if key == "reward_funcs" else value
        for key, value in given.items()
        if value is not None
    }
    done = again("ppo", **given, output_dir=tmp_path / "ppo")
    refused(done, *(message.format(file=reward_file) for message in messages))
    assert not (tmp_path / "ppo" / "config.json").exists()


def test_a_function_is_found_by_its_path_or_its_package(reward_file):
    assert load_function(f"{reward_file}:share_of_a")([], [[{"content": "aabb"}], [{"content": ""}]]) == [0.5, 0.0]
    assert load_function("data_prep.rewards.exact_match") is exact_match
    with pytest.raises(InputError, match="found dict; expected a function"):
        load_function("data_prep.readers.conversation_formats.ROLES")


def test_two_functions_of_one_name_both_count_or_are_refused(run_settings, reward_file, tmp_path):
    (tmp_path / "other.py").write_text(
        "def letters(prompts, completions, **columns):\n    return [100.0] * len(prompts)\n"
    )
    given = {
        **run_settings,
        "total_episodes": 8,
        "reward_funcs": [f"{reward_file}:letters", f"{tmp_path}/other.py:letters"],
    }
    done = again("ppo", **given, output_dir=tmp_path / "ppo")
    if done.code == 0:
        assert results(tmp_path / "ppo", "ppo")["metrics"]["eval_score_first"] > 100
    else:
        assert "letters" in complaint(done)


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda prompts, completions, **columns: [None] * len(prompts), "found NoneType; expected a number"),
        (lambda prompts, completions: [1.0] * len(prompts), "expected f(prompts, completions, **columns)"),
    ],
)
def test_a_function_of_another_form_is_one_clear_error(build, function, message):
    trainer = build()
    row = {**trainer.train_dataset[0], "reference": "a"}
    with pytest.raises(InputError, match=re.escape(message)):
        trainer.rewards_by(function, [row], ["a"])


# A reward model with another tokenizer


@pytest.fixture(scope="module")
def other_tokenizer_dir(tmp_path_factory) -> Path:
    """A reward model of random weights over 300 entries, merges of the policy's letters among them."""
    folder = tmp_path_factory.mktemp("other_tokenizer")
    train_tokenizer(iter(["aa bb cc dd ee ff aaa bbb ccc ddd eee fff gggg hhhh " * 4]), 275).save_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder, eos_token=END_OF_TURN)
    assert len(tokenizer) > 262 and len(tokenizer("bb")["input_ids"]) == 1
    torch.manual_seed(3)
    return save(Classifier(tiny_config(tokenizer, num_labels=1, initializer_range=0.3)), tokenizer, folder)


def test_answers_are_encoded_again_for_a_reward_model_with_another_tokenizer(
    run_settings, other_tokenizer_dir, tmp_path
):
    given = {
        **run_settings,
        "reward_model_path": other_tokenizer_dir,
        "total_episodes": 16,
        "num_sample_generations": 2,
    }
    given = {key: value for key, value in given.items() if key != "reward_funcs"}
    done = succeeded(again("ppo", **given, output_dir=tmp_path / "ppo"))
    assert f"{other_tokenizer_dir} has another tokenizer: answers are encoded again" in done.out
    rows = table_of(tmp_path / "ppo")
    assert len(rows) == 16 and len({row["score"] for row in rows}) > 8
    model, tokenizer = loaded(other_tokenizer_dir, AutoModelForSequenceClassification)
    # Each alone, and without that function. One that was cut, after 8 tokens, is not given the end that it lacks.
    assert 0 < sum(row["stopped"] for row in rows) < 16
    for row in rows:
        text = f"<|user|>{row['prompt'][0]['content']}<|end|><|assistant|>{row['completion']}"
        text += "<|end|>" * row["stopped"]
        with torch.no_grad():
            logits = model(torch.tensor([tokenizer(text, add_special_tokens=False)["input_ids"]])).logits
        assert row["score"] == pytest.approx(logits.item(), abs=1e-4)
    # Its table has another size than the policy's: the value model cannot have started from it.
    value_model = load_file(tmp_path / "ppo" / "value_model" / "model.safetensors")
    assert value_model["transformer.wte.weight"].shape == (262, 32)


def test_text_prompts_and_a_reward_model_with_another_tokenizer_work_or_are_refused(build, other_tokenizer_dir):
    model, tokenizer = loaded(other_tokenizer_dir, AutoModelForSequenceClassification)
    try:
        trainer = build(rows=[{"prompt": "ab"}], reward_model=model, reward_tokenizer=tokenizer)
    except InputError:
        return
    rollout = trainer.roll_out([trainer.train_dataset[0]], [0])
    assert rollout.stopped.item()
    trainer.score(rollout)
    ids = tokenizer("ab" + rollout.texts(trainer.processing_class)[0] + END_OF_TURN)["input_ids"]
    with torch.no_grad():
        assert rollout.scores.item() == pytest.approx(model(torch.tensor([ids])).logits.item(), abs=1e-4)


def test_a_reward_model_whose_context_is_too_short_is_refused(run_settings, tiny_chat_tokenizer, tmp_path):
    save(
        Classifier(tiny_config(tiny_chat_tokenizer, num_labels=1, n_positions=8)),
        tiny_chat_tokenizer,
        tmp_path / "reward",
    )
    given = {**run_settings, "total_episodes": 8, "reward_model_path": tmp_path / "reward"}
    assert "prompt" in complaint(again("ppo", **given, output_dir=tmp_path / "ppo"))


def test_so_is_one_with_another_tokenizer(run_settings, tmp_path):
    """How long an answer is in its tokens shows when it is there; then, too, one clear error and no traceback."""
    train_tokenizer(iter(["aa bb cc dd " * 4]), 266).save_pretrained(tmp_path / "reward")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "reward", eos_token=END_OF_TURN)
    save(Classifier(tiny_config(tokenizer, num_labels=1, n_positions=8)), tokenizer, tmp_path / "reward")
    given = {**run_settings, "total_episodes": 8, "reward_model_path": tmp_path / "reward"}
    done = again("ppo", **given, output_dir=tmp_path / "ppo")
    assert "has another tokenizer" in done.out
    refused(done)


# Killed and resumed


@pytest.fixture(scope="module")
def resumable(run_settings, tiny_reward_dir) -> dict:
    """6 updates; a log every second, so that every other checkpoint falls between two; a table every second."""
    method = {"num_mini_batches": 2, "target_kl": 0.05, "value_learning_rate": 0.01, "total_episodes": 48}
    steps = {"logging_steps": 2, "num_sample_generations": 3, "eval_strategy": "steps", "eval_steps": 3}
    return {**run_settings, **method, **steps, "reward_model_path": tiny_reward_dir}


@pytest.fixture(scope="module")
def uninterrupted(resumable, tmp_path_factory):
    """uninterrupted("full") and uninterrupted("lora"): (settings, folder, what was printed)."""
    kept = {}

    def finished(kind: str):
        if kind not in kept:
            settings = {**resumable, **(BY_LORA if kind == "lora" else FULL)}
            settings |= {"learning_rate": 0.02} if kind == "lora" else {}
            folder = tmp_path_factory.mktemp("uninterrupted") / kind
            kept[kind] = settings, folder, succeeded(again("ppo", **settings, output_dir=folder))
        return kept[kind]

    return finished


def killed(settings: dict, folder: Path, checkpoint: int) -> None:
    """Start a run and end it by SIGKILL as soon as there is that checkpoint."""
    with tempfile.TemporaryDirectory() as logs:
        line = words("ppo", {**settings, "output_dir": folder})
        process = processes().Process(target=run_as_script, args=(line, f"{logs}/log"))
        process.start()
        while not (folder / f"checkpoint-{checkpoint}").exists():
            assert process.is_alive(), Path(f"{logs}/log.err").read_text()[-3000:]
            time.sleep(0.005)
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        assert process.exitcode == -signal.SIGKILL


@pytest.mark.parametrize("kind", ["full", "lora"])
def test_a_killed_run_goes_on_bit_for_bit_and_passes_over_half_written_checkpoints(
    uninterrupted, reward_file, kind, tmp_path
):
    settings, whole, _ = uninterrupted(kind)
    slow, folder = reward_file.with_name("slow"), tmp_path / "ppo"
    slow.touch()
    try:
        killed(settings, folder, 3)
    finally:
        slow.unlink()
    newest = Path(last_checkpoint(folder))
    assert newest.name in ("checkpoint-3", "checkpoint-4") and not (folder / "config.json").exists()
    halves = [folder / "partial-checkpoint-4", folder / "checkpoint-5"]
    for half in halves:
        shutil.copytree(newest, half, dirs_exist_ok=True)
    (halves[1] / "trainer_state.json").unlink()
    done = succeeded(again("ppo", **settings, output_dir=folder, resume_from_checkpoint="last"))
    for half in halves:
        assert f"{half}: was cut short while it was written, and is passed over\n" in done.out
    assert f"{newest}: was cut short" not in done.out
    rows = log_of(folder / "checkpoint-6")
    assert rows == log_of(whole / "checkpoint-6")
    # logging_first_step, then every second; evaluations at 3 and 6
    assert [row["step"] for row in rows if "loss" in row] == [1, 2, 4, 6]
    assert [row["step"] for row in rows if "eval_score" in row] == [3, 6]
    assert len(set(values_of(rows, "objective/kl_coef"))) == 4  # adaptive: one that started afresh would differ
    same_weights(folder, whole)
    found, expected = results(folder, "ppo"), results(whole, "ppo")
    assert found["curves"] == expected["curves"]
    assert table_of(folder) == table_of(whole)
    if kind == "lora":
        adapters = [load_file(path / "checkpoint-6" / "adapter_model.safetensors") for path in (folder, whole)]
        assert all(torch.equal(weight, adapters[1][name]) for name, weight in adapters[0].items())


def test_the_newest_whole_checkpoint_is_the_last_by_number(tmp_path, capsys):
    (tmp_path / "checkpoint-best").mkdir()  # a user's copy
    (tmp_path / "checkpoint-best" / "trainer_state.json").write_text("{}")
    assert last_checkpoint(tmp_path) is None
    for name in ("checkpoint-9", "checkpoint-10", "checkpoint-11", "partial-checkpoint-12", "checkpoint-2"):
        (tmp_path / name).mkdir()
        if name != "checkpoint-11":
            (tmp_path / name / "trainer_state.json").touch()
    assert last_checkpoint(tmp_path) == str(tmp_path / "checkpoint-10")
    printed = capsys.readouterr().out.splitlines()
    assert sorted(line.split(":")[0] for line in printed) == [
        str(tmp_path / "checkpoint-11"),
        str(tmp_path / "partial-checkpoint-12"),
    ]


# The table


def test_every_so_many_updates_all_answers_go_to_a_file_and_some_to_the_screen(uninterrupted):
    settings, folder, done = uninterrupted("full")
    rows = table_of(folder)
    assert [row["step"] for row in rows] == [0] * 8 + [2] * 8 + [4] * 8  # 3 tables in 6 updates, of 8 answers each
    assert all(set(row) == {"step", "prompt", "completion", "stopped", "score"} for row in rows)
    assert all([*message] == ["role", "content"] for row in rows for message in row["prompt"])
    asked = [row["prompt"][-1]["content"] for row in rows]
    assert set(asked) <= set(QUESTIONS) and len(set(asked[:16])) == 16  # the third is in the second epoch
    # The score of a row is its own: the reward model's and the number of characters
    model, tokenizer = loaded(settings["reward_model_path"], AutoModelForSequenceClassification)
    first = rows[:8]
    given = score_answers(model, tokenizer, [row["prompt"] for row in first], [row["completion"] for row in first])
    for row, score in zip(first, given, strict=True):
        if "�" not in row["completion"]:  # bytes that are no text: what the model was shown is not to be had from it
            assert row["score"] == pytest.approx(score + len(row["completion"]), abs=1e-3)
        assert row["score"] == pytest.approx(len(row["completion"]), abs=1.5)
    curve = dict(results(folder, "ppo")["curves"]["score"])
    assert sum(row["score"] for row in first) / 8 == pytest.approx(curve[1], abs=1e-3)
    titles = [line.strip() for line in done.out.splitlines() if line.strip().startswith("update ")]
    assert titles == ["update 0", "update 2", "update 4"]
    shown = done.out.split("update 0")[1].split("update 2")[0]
    assert "prompt" in shown and "answer" in shown and shown.count(f"{first[0]['score']:.2f}") >= 1
    assert [question in shown for question in asked[:4]] == [True] * 4


def test_a_resumed_run_writes_no_row_of_the_table_twice(uninterrupted, tmp_path):
    """Killed after its last table, taken up from before it."""
    settings, whole, _ = uninterrupted("full")
    folder = copy_up_to(whole, tmp_path / "ppo", 3)
    assert len(table_of(folder)) == 24
    succeeded(again("ppo", **settings, output_dir=folder, resume_from_checkpoint="last"))
    assert (folder / "completions.jsonl").read_text() == (whole / "completions.jsonl").read_text()
    same_weights(folder, whole)


# The adaptive KL coefficient


def test_the_kl_coefficient_goes_towards_its_target_by_at_most_two_percent_an_update(run_settings, tmp_path):
    given = {**run_settings, "target_kl": 0.2, "kl_coef": 0.1, "total_episodes": 64, "learning_rate": 0.01}
    succeeded(again("ppo", **given, save_strategy="no", output_dir=tmp_path / "ppo"))
    succeeded(again("ppo", **{**given, "save_steps": 8}, output_dir=tmp_path / "ppo_kept"))
    rows = [row for row in log_of(tmp_path / "ppo_kept" / "checkpoint-8") if "loss" in row]
    coefficients, kls = values_of(rows, "objective/kl_coef"), values_of(rows, "objective/kl")
    expected = [0.1]
    for kl in kls[:-1]:
        expected.append(expected[-1] * (1 + 0.1 * min(0.2, max(-0.2, kl / 0.2 - 1))))
    assert coefficients == pytest.approx(expected, rel=1e-9)
    # At first the policy is its reference: 2 % less. Later it is far beyond its target: 2 % more.
    steps = [after / before for before, after in zip(coefficients, coefficients[1:], strict=False)]
    assert steps[0] == pytest.approx(0.98, abs=1e-6) and max(steps) == pytest.approx(1.02, abs=1e-6)


def test_a_resumed_run_has_the_coefficient_that_the_killed_one_had(uninterrupted):
    _, folder, _ = uninterrupted("full")
    coefficients = [
        json.loads((folder / f"checkpoint-{step}" / "ppo_state.json").read_text())["kl_coef"] for step in (1, 2, 6)
    ]
    assert coefficients[0] == pytest.approx(0.05 * 0.98) and len(set(coefficients)) == 3


# The best checkpoint


@pytest.fixture(scope="module")
def best_settings(run_settings, reward_file, tmp_path_factory) -> dict:
    """Small letters, at first one token in ten, are rewarded at a learning rate that leaves the reference quickly."""
    path = tmp_path_factory.mktemp("heldout") / "heldout.json"
    for name, numbers in (("prompts", range(64)), ("heldout", range(64, 104))):
        rows = [conversation(str(number), str(number), "yes") for number in numbers]
        write_json(path.with_name(f"{name}.json"), rows)
    steps = {"eval_strategy": "steps", "eval_steps": 1, "load_best_model_at_end": True, "total_episodes": 192}
    rate = {"learning_rate": 0.01, "lr_scheduler_type": "constant", "kl_coef": 0.0, "per_device_train_batch_size": 32}
    rewards = {"reward_funcs": f"{reward_file}:small_letters", "prompts": path.with_name("prompts.json")}
    return {**run_settings, **steps, **rate, **rewards, "heldout": path}


@pytest.fixture(scope="module")
def without_budget(best_settings, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("best") / "ppo"
    succeeded(again("ppo", **best_settings, output_dir=folder))
    return folder


def evaluations(folder: Path) -> dict[int, tuple[float, float]]:
    """{update: (score, KL)}"""
    rows = log_of(folder / "checkpoint-6")
    return {row["step"]: (row["eval_score"], row["eval_kl"]) for row in rows if "eval_score" in row}


def test_the_best_evaluation_is_what_is_saved(without_budget):
    found = evaluations(without_budget)
    best = max(found, key=lambda step: found[step][0])
    assert [*found] == [1, 2, 3, 4, 5, 6]
    same_weights(without_budget, without_budget / f"checkpoint-{best}")
    figures = results(without_budget, "ppo")["metrics"]
    assert figures["eval_score_last"] == found[best][0] > figures["eval_score_first"]


def test_an_evaluation_beyond_the_kl_budget_is_never_the_best(without_budget, best_settings, tmp_path):
    found = evaluations(without_budget)
    budget = sorted(kl for _, kl in found.values())[2] * 1.0001  # three of the six are within
    within = [step for step, (_, kl) in found.items() if kl <= budget]
    best = max(within, key=lambda step: found[step][0])
    assert max(score for score, _ in found.values()) > found[best][0]  # beyond the budget there is more to have
    done = succeeded(again("ppo", **best_settings, kl_budget=budget, save_total_limit=2, output_dir=tmp_path / "ppo"))
    assert evaluations(tmp_path / "ppo") == found
    same_weights(tmp_path / "ppo", without_budget / f"checkpoint-{best}")
    assert results(tmp_path / "ppo", "ppo")["metrics"]["eval_score_last"] == found[best][0]
    kept = sorted(path.name for path in (tmp_path / "ppo").glob("checkpoint-*"))
    assert kept == sorted({f"checkpoint-{best}", "checkpoint-6"}) and len(kept) == 2
    assert "alarm kl_over_budget" in done.out + done.err


def test_by_lora_too_the_best_adapter_is_what_is_merged_and_saved(best_settings, reward_file, tmp_path):
    """The best by a measure of its own, which says: that of update 3."""
    given = {**best_settings, **BY_LORA, "learning_rate": 0.01, "output_dir": tmp_path / "ppo"}
    given |= {"eval_funcs": f"{reward_file}:third", "metric_for_best_model": "third", "per_device_eval_batch_size": 40}
    succeeded(again("ppo", **given))
    found = evaluations(tmp_path / "ppo")
    assert [row["eval_third"] for row in log_of(tmp_path / "ppo" / "checkpoint-6") if "eval_third" in row] == [
        0, 0, 1, 0, 0, 0
    ]  # fmt: skip
    # The figures afterwards are those of the adapter, drawn by the same random numbers.
    figures = results(tmp_path / "ppo", "ppo")["metrics"]
    assert (figures["eval_score_last"], figures["eval_kl_last"]) == found[3] != found[6]
    assert_merged(tmp_path / "ppo", tmp_path / "ppo" / "checkpoint-3", given["sft_model_path"])


# LoRA


def assert_merged(merged: Path, adapter: Path, base: Path, value_base: Path | None = None) -> None:
    """The saved policy and value model say what base and adapter say."""
    model, tokenizer = loaded(merged)
    reference = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), adapter).eval()
    ids = torch.tensor([tokenizer("what is right and what is not", add_special_tokens=False)["input_ids"]])
    with torch.no_grad():
        torch.testing.assert_close(model.eval()(ids).logits, reference(ids).logits, atol=1e-5, rtol=0)
        unchanged = AutoModelForCausalLM.from_pretrained(base).eval()(ids).logits
        assert (unchanged - model(ids).logits).abs().max() > 1e-3
    classifier = AutoModelForSequenceClassification
    value_model, info = classifier.from_pretrained(merged / "value_model", output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"]
    assert not list((merged / "value_model").glob("adapter*"))
    start = classifier.from_pretrained(value_base or base, num_labels=1, pad_token_id=tokenizer.pad_token_id)
    reference = PeftModel.from_pretrained(start, adapter / "value_model").eval()
    with torch.no_grad():
        torch.testing.assert_close(value_model.eval()(ids).logits, reference(ids).logits, atol=1e-5, rtol=0)


def test_a_merge_says_what_its_adapters_say(uninterrupted):
    settings, folder, _ = uninterrupted("lora")
    start = settings["sft_model_path"], settings["reward_model_path"]
    assert_merged(folder, folder / "checkpoint-6", *start)


@pytest.mark.parametrize("kind", ["full", "lora"])
def test_what_is_saved_is_the_policy_that_was_evaluated(uninterrupted, build, kind):
    """Drawn again by the same random numbers, the held-out answers have the figures of the end of the run."""
    settings, folder, _ = uninterrupted(kind)
    function = load_function(settings["reward_funcs"])
    model = AutoModelForSequenceClassification.from_pretrained(settings["reward_model_path"])
    rows = [{"prompt": [{"role": "user", "content": question}]} for question in HELD_OUT]
    rows = [*Dataset.from_list(rows).shuffle(seed=42)]  # as the recipe does: an answer is drawn by its row's number
    trainer = build(rows=rows, policy=folder, reward_funcs=[function], reward_model=model)
    found = trainer.evaluate(trainer.train_dataset)
    figures = results(folder, "ppo")["metrics"]
    for name in ("score", "length", "eos_rate", "entropy", "repetition"):
        assert found[f"eval_{name}"] == pytest.approx(figures[f"eval_{name}_last"], abs=1e-4)
    assert found["eval_kl"] == pytest.approx(0, abs=1e-5) and abs(figures["eval_kl_last"]) > 0.01


@pytest.mark.parametrize("kind", ["full", "lora"])
def test_weights_that_were_gathered_for_saving_are_what_is_saved(build, kind, tmp_path):
    """In parts on several processes (ZeRO-3, FSDP), a model's own weights are not whole: the Trainer hands them over."""
    trainer = build()
    if kind == "lora":
        trainer.model.policy = get_peft_model(trainer.model.policy, LoraConfig(task_type="CAUSAL_LM", r=2))
    gathered = {name: torch.full_like(weight, 2.0) for name, weight in trainer.model.state_dict().items()}
    trainer._save(str(tmp_path / "saved"), state_dict=gathered)
    policy = "adapter_model.safetensors" if kind == "lora" else "model.safetensors"
    for file in (policy, "value_model/model.safetensors"):
        weights = load_file(tmp_path / "saved" / file)
        assert weights and all((weight == 2.0).all() for weight in weights.values())


def test_the_model_card_names_the_method_also_beside_an_adapter(build):
    trainer = build()
    trainer.model.policy = get_peft_model(trainer.model.policy, LoraConfig(task_type="CAUSAL_LM", r=2))
    trainer.save_model()
    path = Path(trainer.args.output_dir) / "README.md"
    assert ModelCard.load(path).data.library_name == "peft"  # as the adapter is saved
    trainer.create_model_card(model_name="assistant", tags="zh")
    card = ModelCard.load(path)
    assert card.data.model_name == "assistant" and {"trl", "ppo", "zh"} <= set(card.data.tags)
    assert "https://huggingface.co/papers/1909.08593" in card.text


# The value model's own settings


def test_only_the_value_model_has_the_value_learning_rate(build):
    trainer = build(learning_rate=0.001, value_learning_rate=0.01, weight_decay=0.1)
    groups = trainer.create_optimizer().param_groups
    rates = {id(weight): (group["lr"], group["weight_decay"]) for group in groups for weight in group["params"]}
    assert sum(len(group["params"]) for group in groups) == len(rates)  # none twice
    wrapper = trainer.model
    assert {rates[id(weight)][0] for weight in wrapper.policy.parameters()} == {0.001}
    assert {rates[id(weight)][0] for weight in wrapper.value_model.parameters()} == {0.01}
    # Biases and layer norms go without weight decay in either
    assert {rates[id(weight)][1] for weight in wrapper.parameters() if weight.ndim == 1} == {0.0}
    assert {rates[id(weight)][1] for weight in wrapper.parameters() if weight.ndim == 2} == {0.1}


def test_at_a_value_learning_rate_of_nothing_the_value_model_stays(run_settings, tiny_reward_dir, tmp_path):
    given = {**run_settings, "reward_model_path": tiny_reward_dir, "total_episodes": 16, "value_learning_rate": 0.0}
    succeeded(again("ppo", **given, output_dir=tmp_path / "ppo"))
    assert differing(tmp_path / "ppo" / "value_model", tiny_reward_dir) == set()
    assert differing(tmp_path / "ppo", run_settings["sft_model_path"])


def test_with_muon_the_value_learning_rate_holds_or_is_refused(run_settings, tiny_reward_dir, tmp_path):
    given = {**run_settings, "reward_model_path": tiny_reward_dir, "total_episodes": 16, "value_learning_rate": 0.0}
    done = again("ppo", **given, muon_lr=0.01, output_dir=tmp_path / "ppo")
    if done.code == 0:
        assert differing(tmp_path / "ppo" / "value_model", tiny_reward_dir) == set()
    else:
        assert "value_learning_rate" in complaint(done)


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_in_the_warm_up_of_the_value_model_the_policy_stays_bit_for_bit(
    run_settings, tiny_reward_dir, weight_decay, tmp_path
):
    start = run_settings["sft_model_path"]
    given = {**run_settings, "reward_model_path": tiny_reward_dir, "total_episodes": 24, "weight_decay": weight_decay}
    succeeded(again("ppo", **given, num_value_warmup_updates=2, output_dir=tmp_path / "ppo"))
    checkpoints = [tmp_path / "ppo" / f"checkpoint-{step}" for step in (1, 2, 3)]
    assert differing(checkpoints[0], start) == set() and differing(checkpoints[1], start) == set()
    assert "score.weight" in differing(checkpoints[0] / "value_model", tiny_reward_dir)
    assert "score.weight" in differing(checkpoints[1] / "value_model", checkpoints[0] / "value_model")
    assert "transformer.ln_f.weight" in differing(checkpoints[2], start)


def test_a_value_model_that_is_not_there_is_one_clear_error(run_settings, tmp_path):
    given = {**run_settings, "value_model_path": tmp_path / "not_there", "output_dir": tmp_path / "ppo"}
    assert f"{tmp_path / 'not_there'}: no such file or folder" in complaint(again("ppo", **given))


def test_a_value_model_starts_where_it_is_told(run_settings, tiny_reward_dir, long_is_good_dir, tmp_path):
    given = {**run_settings, "reward_model_path": long_is_good_dir, "value_model_path": tiny_reward_dir}
    given |= {"total_episodes": 8, "value_learning_rate": 0.0}
    succeeded(again("ppo", **given, output_dir=tmp_path / "ppo"))
    assert differing(tmp_path / "ppo" / "value_model", tiny_reward_dir) == set()


# Held-out prompts


def test_held_out_prompts_that_are_trained_on_too_are_refused(run_settings, tmp_path):
    rows = [conversation(question, question, "another answer") for question in ("new", QUESTIONS[3], QUESTIONS[5])]
    write_json(tmp_path / "heldout.json", rows)
    given = {**run_settings, "heldout": tmp_path / "heldout.json", "output_dir": tmp_path / "ppo"}
    message = f"{tmp_path / 'heldout.json'}: 2 of its prompts are trained on too; split by prompt"
    refused(again("ppo", **given), message)


# Arguments


def read_as_args(path: Path) -> set[str]:
    """Every name that a module reads as `args.name` or `self.args.name`."""
    reads = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Attribute)]
    return {
        node.attr
        for node in reads
        if ast.unparse(node.value) in ("args", "self.args") and not isinstance(node.ctx, ast.Store)
    }


def test_every_argument_is_read_by_the_trainer_or_refused():
    names = {each.name for each in fields(PPOConfig)}
    inherited = {each.name for each in fields(TrainingArguments)}
    read = read_as_args(PPO / "trainer.py") | read_as_args(PPO / "prepare.py")
    # Models are given to the trainer; the recipe loads them from these two, which are TRL's.
    paths = {"sft_model_path", "reward_model_path"}
    assert names - inherited - read - REFUSED.keys() == paths
    assert paths <= read_as_args(PPO.parents[1] / "ppo.py")
    assert REFUSED.keys() <= names


@pytest.mark.parametrize("name", ["max_seconds", "stop_on", "reward_funcs", "eval_funcs", "value_model_path"])
def test_the_trainer_has_no_argument_that_the_recipe_alone_reads(name, tmp_path):
    """PPOTrainer(PPOConfig(max_seconds=60)) once ran for ever."""
    with pytest.raises(TypeError, match=name):
        PPOConfig(output_dir=str(tmp_path), use_cpu=True, bf16=False, **{name: None})


# Two processes


@pytest.fixture(scope="module")
def shared_settings(run_settings, tiny_reward_dir) -> dict:
    """3 updates of 8 answers by plain gradient descent, in which rounding stays as small as it is."""
    method = {"optim": "sgd", "lr_scheduler_type": "constant", "total_episodes": 24, "missing_eos_penalty": 1.0}
    steps = {"eval_strategy": "steps", "eval_steps": 1, "per_device_eval_batch_size": 2, "num_mini_batches": 1}
    weights = {"reward_model_path": tiny_reward_dir, "reward_weights": [1.0, 0.5], "target_kl": 0.001}
    return {**run_settings, **method, **steps, **weights, "whiten_rewards": True}


KINDS = {
    "full": ({"learning_rate": 0.05}, torchrun),
    "lora": ({"learning_rate": 0.1, **BY_LORA}, accelerate_launch),
}


@pytest.fixture(scope="module")
def by_two(shared_settings, tmp_path_factory):
    """by_two("full"): (settings, folder of one process, folder of two with half of each batch)."""
    kept = {}

    def finished(kind: str):
        if kind not in kept:
            changes, launcher = KINDS[kind]
            settings, folder = {**shared_settings, **changes}, tmp_path_factory.mktemp("two_processes")
            succeeded(again("ppo", **settings, output_dir=folder / "one"))
            settings = {**settings, "per_device_train_batch_size": 4}
            run(launcher(), "ppo", **settings, output_dir=folder / "two")
            kept[kind] = settings, folder / "one", folder / "two"
        return kept[kind]

    return finished


@pytest.mark.parametrize("kind", ["full", "lora"])
def test_two_processes_with_half_the_batch_each_do_what_one_does(by_two, kind):
    settings, one, two = by_two(kind)
    rows, expected = log_of(two / "checkpoint-3"), log_of(one / "checkpoint-3")
    assert [sorted(row) for row in rows] == [sorted(row) for row in expected]
    # 24 episodes four at a time are 6 updates; two processes take eight at a time.
    assert [row["step"] for row in rows if "loss" in row] == [1, 2, 3]
    assert results(two, "ppo")["metrics"]["episodes"] == 24
    for row, wanted in zip(rows, expected, strict=True):
        assert row == pytest.approx(wanted, abs=1e-4, rel=1e-4)
    for part in ("", "value_model"):
        weights, wanted = (load_file(path / part / "model.safetensors") for path in (two, one))
        start = load_file(
            (settings["reward_model_path"] if part else settings["sft_model_path"]) / "model.safetensors"
        )
        assert max((weights[name] - wanted[name]).abs().max().item() for name in wanted) < 1e-5
        assert (
            max((wanted[name] - start[name]).abs().max().item() for name in start) > 1e-3
        )  # it has learned something
    loaded(two)


@pytest.mark.parametrize("kind", ["full", "lora"])
def test_evaluations_of_two_processes_are_those_of_one(by_two, kind):
    """Five questions, so that one process has more of them than the other."""
    _, one, two = by_two(kind)
    found, expected = results(two, "ppo"), results(one, "ppo")
    for figures in (found["metrics"], expected["metrics"]):
        figures.pop("episodes_per_second")
    assert found["metrics"] == pytest.approx(expected["metrics"], abs=1e-4)
    assert found["metrics"]["eval_length_first"] * 5 == pytest.approx(round(found["metrics"]["eval_length_first"] * 5))
    names = [name for name in expected["curves"] if name.startswith("held-out")]
    assert len(names) == 7
    for name in names:
        steps, values = zip(*found["curves"][name], strict=True)
        assert steps == (0, 1, 2, 3)
        assert values == pytest.approx([value for _, value in expected["curves"][name]], abs=1e-4)


@pytest.mark.parametrize("kind", ["full", "lora"])
def test_two_processes_resume_bit_for_bit(by_two, kind, tmp_path):
    settings, _, whole = by_two(kind)
    folder = copy_up_to(whole, tmp_path / "ppo", 1)
    assert {"rng_state_0.pth", "rng_state_1.pth"} <= {path.name for path in (folder / "checkpoint-1").iterdir()}
    run(KINDS[kind][1](), "ppo", **settings, output_dir=folder, resume_from_checkpoint="last")
    assert log_of(folder / "checkpoint-3") == log_of(whole / "checkpoint-3")
    same_weights(folder, whole)
