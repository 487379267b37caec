"""Two processes of the gloo backend on the processor, started as a user starts them: what ran really was one run of two.

A launcher that falls back to one process, or starts two that know nothing of each other, ends well too: hence the figures
that only two processes together can give.
"""

import json
from pathlib import Path

import pytest
from helpers.models import POSITIONS, write_shards
from helpers.processes import accelerate_launch, run, torchrun
from helpers.recipes import (
    ENVIRONMENT,
    Done,
    again,
    conversation,
    loaded,
    ranking,
    ready_to_end,
    results,
    succeeded,
)

from data_prep.common.files import write_json, write_jsonl

COMMON = {"use_cpu": True, "bf16": False, "report_to": "none", "logging_steps": 1, "save_strategy": "no"}


@pytest.mark.slow
def test_pretraining_on_two_processes_by_torchrun(tiny_tokenizer, tmp_path):
    ids = tiny_tokenizer("abcdefgh" * 64)["input_ids"]  # 8 blocks of 64
    write_shards(tmp_path, ids, tiny_tokenizer.name_or_path)
    (tmp_path / "heldout.txt").write_text("abcdefgh" * 8)
    files = {"tokenizer": tiny_tokenizer.name_or_path, "tokens": tmp_path, "heldout": tmp_path / "heldout.txt"}
    shape = {"n_layer": 1, "n_head": 2, "n_embd": 32, "n_positions": POSITIONS}
    steps = {"num_train_epochs": 1, "per_device_train_batch_size": 2, "sample_prompts": ["ab", "c"]}
    done = run(torchrun(), "pretrain", **COMMON, **files, **shape, **steps, output_dir=tmp_path / "base")
    found = results(tmp_path / "base", "pretrain")
    # 8 blocks two at a time are 4 steps; two processes take four at a time.
    assert [step for step, _ in found["curves"]["loss"]] == [1, 2]
    assert "on 512 tokens" in done.out and found["tokens"] == 8 * POSITIONS == 512
    rows = [json.loads(line) for line in (tmp_path / "base" / "samples.jsonl").read_text().splitlines()]
    assert [(row["step"], row["prompt"]) for row in rows] == [(0, "ab"), (0, "c"), (2, "ab"), (2, "c")]
    loaded(tmp_path / "base")


@pytest.mark.slow
def test_fine_tuning_on_two_processes_by_torchrun(tiny_model_dir, write_conversations, tmp_path, monkeypatch):
    (tmp_path / "temporary").mkdir()
    monkeypatch.setitem(ENVIRONMENT, "TMPDIR", str(tmp_path / "temporary"))
    chats = write_conversations([(letter, letter, "yes") for letter in "abcdefgh"])
    given = {"model_name_or_path": tiny_model_dir, "conversations": chats, "eos_token": "<|end|>", "max_new_tokens": 8}
    given |= {"max_length": POSITIONS, "assistant_only_loss": True, "num_train_epochs": 1, "learning_rate": 0.01}
    one_each = {**COMMON, **given, "per_device_train_batch_size": 1}
    run(torchrun(), "sft", **one_each, output_dir=tmp_path / "sft")
    assert not list((tmp_path / "temporary").rglob("*.arrow"))  # each process has taken its files along
    # 8 conversations one at a time are 8 steps; two processes take two at a time.
    losses = dict(results(tmp_path / "sft", "sft")["curves"]["loss"])
    assert list(losses) == [1, 2, 3, 4]
    loaded(tmp_path / "sft")
    # What they learn from one step to the next is what one process learns from two at a time: gradients are averaged.
    two_at_a_time = {**one_each, "per_device_train_batch_size": 2}
    succeeded(again("sft", **two_at_a_time, output_dir=tmp_path / "alone"))
    alone = dict(results(tmp_path / "alone", "sft")["curves"]["loss"])
    assert losses == pytest.approx(alone, abs=1e-3)
    assert alone[1] - alone[4] > 0.1  # else standing still would do


@pytest.mark.slow
def test_a_reward_model_on_two_processes_with_shared_prompts(tiny_model_dir, tmp_path):
    ranks = [{"yes": 0, "no": 1, "maybe": 2}, {"no": 1, "yes": 0}]
    write_jsonl(
        tmp_path / "ranked.jsonl", [ranking(letter, ranks[number % 2]) for number, letter in enumerate("abcdefgh")]
    )
    given = {"model_name_or_path": tiny_model_dir, "rankings": tmp_path / "ranked.jsonl", "max_length": POSITIONS}
    one_each = {**COMMON, **given, "num_train_epochs": 1, "learning_rate": 0.01, "per_device_train_batch_size": 1}
    run(torchrun(), "reward", **one_each, shared_prompt=True, output_dir=tmp_path / "two")
    losses = dict(results(tmp_path / "two", "reward")["curves"]["loss"])
    assert list(losses) == [1, 2, 3, 4]
    # One process, two rankings at a time, every answer in a row of its own with the prompt before it.
    succeeded(again("reward", **{**one_each, "per_device_train_batch_size": 2}, output_dir=tmp_path / "alone"))
    alone = dict(results(tmp_path / "alone", "reward")["curves"]["loss"])
    assert losses == pytest.approx(alone, abs=1e-3)
    assert alone[1] - alone[4] > 0.1  # else standing still would do


@pytest.fixture(scope="module")
def improved_by_two(tiny_chat_tokenizer, tiny_reward_dir, tmp_path_factory) -> tuple[Path, Done]:
    """PPO on 32 times the same question, an answer from each process at a time."""
    folder = tmp_path_factory.mktemp("two")
    write_json(folder / "asked.json", [conversation(str(number), "a", "-") for number in range(32)])
    models = {
        "sft_model_path": ready_to_end(tiny_chat_tokenizer, folder / "sft"),
        "reward_model_path": tiny_reward_dir,
    }
    method = {"total_episodes": 32, "per_device_train_batch_size": 1, "response_length": 8, "temperature": 1.0}
    given = {**COMMON, **models, **method, "stop_token": "eos"}
    write_json(folder / "heldout.json", [conversation("b", "b", "-")])
    given |= {"prompts": folder / "asked.json", "heldout": folder / "heldout.json"}
    return folder / "ppo", run(accelerate_launch(), "ppo", **given, output_dir=folder / "ppo")


def test_ppo_on_two_processes_by_accelerate(improved_by_two):
    folder, done = improved_by_two
    found = results(folder, "ppo")
    # 32 episodes one at a time are 32 updates; two processes take two at a time.
    assert [step for step, _ in found["curves"]["score"]] == [*range(1, 17)]
    assert found["metrics"]["episodes"] == 32 and "PPO on 32 episodes" in done.out
    assert abs(found["curves"]["kl"][0][1]) < 1e-5
    loaded(folder)


def test_two_processes_of_ppo_do_not_draw_the_same_random_numbers(improved_by_two):
    # All questions are the same. With the same random numbers the two answers would be the same, and the mean of two
    # equal lengths is a whole number, in every one of the 16 updates.
    lengths = results(improved_by_two[0], "ppo")["curves"]["length"]
    assert any(length % 1 == 0.5 for _, length in lengths)
