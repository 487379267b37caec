"""Runs of recipes/ppo.py: their settings, what rewards them, and what they leave.

A run takes seconds: models of 2 layers, answers of a few bytes. The policy of most runs is `ready_to_end`, whose
answers end after a few tokens, so that lengths vary; `talker` always says the same.
"""

import json
import shutil
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from data_prep.common.files import read_jsonl, write_json
from helpers.ppo import QUESTIONS
from helpers.recipes import EXACT, LORA, Done, conversation, differing, loaded, refused

HELD_OUT = ["0", "11", "222", "3", "44"]
LORA_BY_HAND = pytest.param("lora", marks=pytest.mark.slow)  # where LoRA goes the same way through the trainer
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


def settings_of_a_run(policy: Path, reward_file: Path, folder: Path) -> dict:
    """Updates of 8 answers, rewarded by their number of characters; the prompts go into `folder`."""
    write_json(folder / "prompts.json", [conversation(question, question, "yes") for question in QUESTIONS])
    write_json(folder / "heldout.json", [conversation(question, question, "yes") for question in HELD_OUT])
    files = {
        "sft_model_path": policy,
        "prompts": folder / "prompts.json",
        "heldout": folder / "heldout.json",
    }
    method = {"num_ppo_epochs": 2, "response_length": 8, "temperature": 1.0, "kl_coef": 0.05, "learning_rate": 0.003}
    steps = {"per_device_train_batch_size": 8, "logging_steps": 1, "save_steps": 1, "num_sample_generations": 0}
    rewards = {"reward_funcs": f"{reward_file}:letters", "gradient_checkpointing": False}
    return {**files, **method, **steps, **rewards, **EXACT}


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
    (folder / "settings.json").rename(folder / "unfinished.json")
    return folder


def same_weights(one: Path, other: Path) -> None:
    """Policy and value model are bitwise the same in two folders."""
    assert differing(one, other) == differing(one / "value_model", other / "value_model") == set()


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
