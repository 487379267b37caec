"""Every recipe by two processes: they train what one trains on as many rows an update, in the same order."""

import shutil
from importlib.util import find_spec
from pathlib import Path

import pytest
from helpers.hub import local_hub
from helpers.models import POSITIONS, write_shards
from helpers.processes import together
from helpers.recipes import (
    ENVIRONMENT,
    EXACT,
    again,
    conversation,
    differing,
    ranking,
    ready_to_end,
    refused,
    results,
    succeeded,
)

from data_prep.common.errors import InputError
from data_prep.common.files import write_json, write_jsonl
from recipes.trainers.batch import GroupedByLength, keep_global_batch

LETTERS = "abcdefghijklmnop"


@pytest.mark.parametrize(
    ("processes", "values", "steps", "told"),
    [
        (1, {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 8}, 8, None),
        (
            1,
            {"per_device_train_batch_size": 4, "global_batch_size": 32},
            8,
            "1 processes × 4 × 8 accumulated = 32 rows",
        ),
        (
            2,
            {"per_device_train_batch_size": 4, "global_batch_size": 32},
            4,
            "2 processes × 4 × 4 accumulated = 32 rows",
        ),
        (
            8,
            {"per_device_train_batch_size": 4, "global_batch_size": 32, "n_positions": 64},
            1,
            "an update: 8 processes × 4 × 1 accumulated = 32 rows of 64 tokens = 2,048 tokens",
        ),
        (
            2,
            {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 8},
            8,
            "an update: 2 processes × 4 × 8 accumulated = 64 rows; one process would take 32: global_batch_size keeps a",
        ),
    ],
)
def test_the_rows_of_an_update_are_what_the_yaml_says(processes, values, steps, told, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", str(processes))
    given = set(values)
    says = keep_global_batch(values, given)
    assert values["gradient_accumulation_steps"] == steps
    assert says is None if told is None else told in says


@pytest.mark.parametrize(
    ("processes", "values", "says"),
    [
        (2, {"global_batch_size": 36}, "36 rows do not divide into 2 × 4 (processes × per_device_train_batch_size) = 8: "
            "set per_device_train_batch_size to a divisor of 18"),
        (3, {"global_batch_size": 32}, "32 rows do not divide into 3 × 4 (processes × per_device_train_batch_size) = 12: "
            "take a number of processes that divides 32"),
        (1, {"global_batch_size": 32, "gradient_accumulation_steps": 8}, "gradient_accumulation_steps: it follows from "
            "global_batch_size, per_device_train_batch_size and the number of processes; leave one of them out"),
    ],
)  # fmt: skip
def test_rows_that_do_not_divide_are_refused(processes, values, says, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", str(processes))
    with pytest.raises(InputError) as error:
        keep_global_batch({"per_device_train_batch_size": 4, **values}, set(values))
    assert says in str(error.value)


def test_rows_of_one_length_come_together_in_an_order_given_by_seed_and_epoch():
    lengths = [1, 9] * 40
    sampler = GroupedByLength(lengths, 4, seed=3)
    first = list(sampler)
    assert sorted(first) == [*range(80)] and list(sampler) == first
    batches = [{lengths[row] for row in first[start : start + 4]} for start in range(0, 80, 4)]
    assert sum(len(batch) > 1 for batch in batches) <= len(batches) // 4  # one a megabatch of 16 rows at most
    sampler.set_epoch(1)
    assert sorted(sampler) == [*range(80)] and list(sampler) != first
    sampler.set_epoch(0)
    assert list(sampler) == first


@pytest.fixture(scope="module")
def data(tiny_tokenizer, tiny_chat_tokenizer, tiny_model_dir, tiny_reward_dir, long_is_good_dir, tmp_path_factory):
    """{recipe: settings} for updates of 4 rows, of every length."""
    folder = tmp_path_factory.mktemp("two")
    write_shards(folder / "tokens", tiny_tokenizer(LETTERS * 48)["input_ids"], tiny_tokenizer.name_or_path)
    chat = tiny_chat_tokenizer(LETTERS * 48)["input_ids"] + [tiny_chat_tokenizer.eos_token_id]
    write_shards(folder / "chat_tokens", chat, tiny_model_dir, entries=len(tiny_chat_tokenizer))
    (folder / "heldout.txt").write_text("abcdefgh" * 8)
    (folder / "general.txt").write_text("hgfedcba" * 8)
    write_json(
        folder / "chats.json",
        [conversation(letter, letter * (1 + place), "yes") for place, letter in enumerate(LETTERS)],
    )
    ranks = [{"yes": 0, "no": 1, "maybe": 2}, {"no": 1, "yes": 0}]
    rows = [ranking(letter * (1 + place), ranks[place % 2]) for place, letter in enumerate(LETTERS)]
    write_jsonl(folder / "ranked.jsonl", rows)
    ready = ready_to_end(tiny_chat_tokenizer, folder / "ready")
    model, ranked = {"model_name_or_path": tiny_model_dir}, {"rankings": folder / "ranked.jsonl"}
    shape = {"n_layer": 1, "n_head": 2, "n_embd": 32, "n_positions": POSITIONS, "muon_lr": 0.02}
    drawing = {"prompts": folder / "chats.json", "max_steps": 4, "learning_rate": 1e-4}
    sampled = {"model_name_or_path": ready, "reward_model_path": long_is_good_dir, "max_completion_length": 8}
    epoch = {"max_length": POSITIONS, "num_train_epochs": 1, "learning_rate": 0.01}
    return {
        "pretrain": {
            "tokenizer": tiny_tokenizer.name_or_path, "tokens": folder / "tokens", "heldout": folder / "heldout.txt",
            **shape, "num_train_epochs": 1,
        },
        "continue_pretraining": {
            **model, "tokens": folder / "chat_tokens", "heldout": folder / "heldout.txt", "heldout_general": folder / "general.txt", **epoch,
        },
        "sft": {
            **model, "conversations": folder / "chats.json", "eos_token": "<|end|>", "max_new_tokens": 4,
            "assistant_only_loss": True, **epoch,
        },
        "reward": {
            **model, **ranked, **epoch, "num_train_epochs": 2, "train_sampling_strategy": "group_by_length",
        },
        "dpo": {**model, **ranked, **epoch},
        "kto": {**model, **ranked, **epoch, "learning_rate": 1e-3},
        "ppo": {
            "sft_model_path": ready, "reward_model_path": tiny_reward_dir, "response_length": 8, "temperature": 1.0,
            "stop_token": "eos", "num_ppo_epochs": 1, "num_mini_batches": 1, **drawing,
        },
        "rloo": {**sampled, **drawing, "num_generations": 2, "beta": 0.01},
        "grpo": {**sampled, **drawing, "num_generations": 2, "beta": 0.01},
    }  # fmt: skip


RUN = {"logging_steps": 1, "save_strategy": "no", "global_batch_size": 4, "per_device_train_batch_size": 2, **EXACT}
# KTO's KL is taken from answers to other prompts of the batch of a process, which are others in a smaller batch.
CLOSE = {"kto": 0.01}
# RLOO and GRPO sample by the random numbers of each process: other answers to the same prompts.
SAMPLED_APART = ("rloo", "grpo")


@pytest.mark.slow
@pytest.mark.parametrize(
    "recipe", ["pretrain", "continue_pretraining", "sft", "reward", "dpo", "kto", "ppo", *SAMPLED_APART]
)
def test_two_processes_train_what_one_trains(recipe, data, tmp_path):
    curves = {}
    for name, run, told in (("two", together, "2 processes × 2 × 1"), ("alone", again, "1 processes × 2 × 2")):
        done = succeeded(run(recipe, **data[recipe], **RUN, output_dir=tmp_path / name))
        assert f"an update: {told} accumulated = 4 rows" in done.out
        curves[name] = results(tmp_path / name, recipe)["curves"]
    compared = {"ppo": ("score", "length", "kl"), **dict.fromkeys(SAMPLED_APART, ("score",))}.get(recipe, ("loss",))
    for name in compared:
        two, alone = dict(curves["two"][name]), dict(curves["alone"][name])
        assert list(two) == list(alone) and len(two) >= 3
        if recipe not in SAMPLED_APART:
            assert two == pytest.approx(alone, abs=CLOSE.get(recipe, 2e-3)), name
    if len(compared) == 1 and recipe not in SAMPLED_APART:
        assert abs(alone[max(alone)] - alone[1]) > 0.01  # else standing still would do


@pytest.mark.slow
@pytest.mark.parametrize("recipe", ["sft", "ppo"])
def test_the_recipe_decides_the_precision_and_not_the_launcher(recipe, data, tmp_path, monkeypatch):
    """The launcher tells its own by an environment variable; bf16 leaves other weights than fp32."""
    told = "mixed precision: no, by bf16 and fp16 of the recipe; the launcher's bf16 is not taken\n"
    for launched, own in (("no", False), ("bf16", False), ("no", True)):
        monkeypatch.setitem(ENVIRONMENT, "ACCELERATE_MIXED_PRECISION", launched)
        given = {**data[recipe], **RUN, "max_steps": 1, "bf16": own, "output_dir": tmp_path / f"{launched}_{own}"}
        done = succeeded(again(recipe, **given))
        assert (told in done.out) == (launched == "bf16")
    plain = tmp_path / "no_False"
    assert not differing(plain, tmp_path / "bf16_False") and differing(plain, tmp_path / "no_True")


@pytest.mark.slow
def test_two_processes_resumed_in_the_second_epoch_see_the_rows_that_they_would_have_seen(data, tmp_path):
    for recipe in ("sft", "reward"):
        given = {**data[recipe], **RUN, "num_train_epochs": 2, "save_strategy": "steps", "save_steps": 6}
        whole, resumed = tmp_path / recipe / "whole", tmp_path / recipe / "resumed"
        succeeded(together(recipe, **given, output_dir=whole))
        resumed.mkdir()
        shutil.copytree(whole / "checkpoint-6", resumed / "checkpoint-6")
        for path in (whole / "checkpoint-6").parent.glob("*.json"):
            if path.name == "settings.json":
                shutil.copy(path, resumed / "unfinished.json")
        done = succeeded(together(recipe, **given, resume_from_checkpoint="last", output_dir=resumed))
        assert "resuming from" in done.out and not differing(whole, resumed)


@pytest.mark.slow
def test_a_global_batch_that_does_not_divide_is_one_line(data, tmp_path):
    done = together("sft", **data["sft"], **{**RUN, "global_batch_size": 5}, output_dir=tmp_path / "out")
    refused(done, "global_batch_size: 5 rows do not divide into 2 × 2")
    assert not Path(tmp_path / "out").exists()


@pytest.mark.slow
def test_the_first_process_alone_pushes(data, tmp_path, monkeypatch):
    with local_hub() as hub:
        monkeypatch.setitem(ENVIRONMENT, "HF_ENDPOINT", hub.address)
        monkeypatch.setitem(ENVIRONMENT, "HF_HUB_OFFLINE", "0")
        requests = {}
        for name, run in {"alone": again, "two": together}.items():
            push = {"push_to_hub": True, "hub_model_id": f"me/{name}", "hub_token": "hf_secret"}
            succeeded(run("sft", **data["sft"], **RUN, **push, output_dir=tmp_path / name))
            requests[name] = sorted(
                line.split("?")[0].replace(f"me/{name}", "me/x") for line in hub.log if "/large/" not in line
            )
            hub.log.clear()
        assert requests["two"] == requests["alone"] and [name for name, _ in hub.commits] == ["me/alone", "me/two"]
        pushed = hub.commits[1][1]["model.safetensors"]
    assert pushed == (tmp_path / "two" / "model.safetensors").read_bytes()


@pytest.mark.slow
def test_two_processes_resume_between_updates_on_the_same_answers(data, tmp_path):
    given = {**data["grpo"], **RUN, "save_strategy": "steps", "save_steps": 1, "steps_per_generation": 2}
    succeeded(together("grpo", **given, output_dir=tmp_path / "whole"))
    third = tmp_path / "whole" / "checkpoint-3"
    assert sorted(path.name for path in third.glob("answers_*")) == ["answers_0_of_2.pt", "answers_1_of_2.pt"]
    done = succeeded(together("grpo", **given, output_dir=tmp_path / "resumed", resume_from_checkpoint=third))
    assert f"resuming from {third};" in done.out
    assert differing(tmp_path / "whole", tmp_path / "resumed") == set()


@pytest.mark.slow
@pytest.mark.skipif(find_spec("deepspeed") is None, reason="needs DeepSpeed: pip install -e '.[deepspeed]'")
@pytest.mark.parametrize("recipe", ["sft", "reward"])
def test_two_processes_of_zero2_train_what_one_process_trains(recipe, data, tmp_path, monkeypatch):
    given = {**data[recipe], **RUN, "num_train_epochs": 1, "learning_rate": 0.001}
    succeeded(again(recipe, **given, output_dir=tmp_path / "alone"))
    place = {"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_ZERO_STAGE": "2", "DS_ACCELERATOR": "cpu"}
    for name, value in place.items():
        monkeypatch.setitem(ENVIRONMENT, name, value)
    # the first time DeepSpeed compiles its Adam: two minutes and more
    succeeded(together(recipe, 600, **given, output_dir=tmp_path / "two"))
    two, alone = (dict(results(tmp_path / name, recipe)["curves"]["loss"]) for name in ("two", "alone"))
    assert len(two) == 4 and two == pytest.approx(alone, abs=1e-3)
    assert alone[1] - alone[4] > 0.01  # else standing still would do
