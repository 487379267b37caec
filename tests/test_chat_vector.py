"""The chat vector of recipes/sft.py: an assistant less its base, added to another base before training."""

import shutil
from pathlib import Path

import pytest
import torch
from helpers.recipes import again, refused, succeeded, weights
from safetensors.torch import load_file, save_file

from data_prep.common.files import write_json

TURNS = [{"from": "human", "value": "a b"}, {"from": "gpt", "value": "c d"}]


@pytest.fixture
def settings(tmp_path) -> dict:
    write_json(tmp_path / "chats.json", [{"id": "1", "conversations": TURNS}])
    # One step at a rate too small to move a weight: what is saved is what training started from.
    return {
        "conversations": [str(tmp_path / "chats.json")], "max_length": 32, "max_steps": 1, "warmup_steps": 0,
        "learning_rate": 1e-30, "max_new_tokens": 2, "use_cpu": True, "bf16": False, "report_to": "none",
        "output_dir": tmp_path / "sft",
    }  # fmt: skip


def moved(folder: Path, copy: Path, by) -> Path:
    """A copy of a model with every weight changed by a function of (name, weight)."""
    shutil.copytree(folder, copy)
    changed = {name: by(name, weight) for name, weight in load_file(copy / "model.safetensors").items()}
    save_file(changed, copy / "model.safetensors", metadata={"format": "pt"})
    return copy


def test_the_assistant_less_its_base_is_added(settings, tiny_model_dir, tmp_path):
    base = Path(tiny_model_dir)
    assistant = moved(base, tmp_path / "assistant", lambda name, weight: weight + 0.25)
    new = moved(base, tmp_path / "new", lambda name, weight: weight * 0.5)
    done = succeeded(again("sft", **settings, model_name_or_path=new, chat_vector=[assistant, base]))
    assert f"chat vector: {assistant} less {base} is added to the weights" in done.out
    before, after = weights(new), weights(tmp_path / "sft")
    assert before.keys() == after.keys()
    for name, weight in before.items():
        torch.testing.assert_close(after[name], weight + 0.25, rtol=0, atol=1e-6)


def test_without_it_the_model_is_what_it_was(settings, tiny_model_dir, tmp_path):
    succeeded(again("sft", **settings, model_name_or_path=tiny_model_dir))
    before, after = weights(Path(tiny_model_dir)), weights(tmp_path / "sft")
    for name, weight in before.items():
        torch.testing.assert_close(after[name], weight, rtol=0, atol=1e-6, msg=name)


def test_what_cannot_be_added_is_refused(settings, tiny_model_dir, tmp_path):
    base = str(tiny_model_dir)
    given = {**settings, "model_name_or_path": base}
    refused(again("sft", **given, chat_vector=[base]), "chat_vector: found 1 names, expected two")
    refused(again("sft", **given, chat_vector=[base, base], use_peft=True), "chat_vector: with LoRA")
    missing = str(tmp_path / "none")
    refused(again("sft", **given, chat_vector=[base, missing]), missing)
