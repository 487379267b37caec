"""Rows that a chat template cannot write are bad rows of every recipe and of the validator: named, or set aside."""

import json
from pathlib import Path

import pytest
from helpers.models import POSITIONS, save, tiny_config
from helpers.recipes import again, refused, succeeded
from transformers import AutoTokenizer, GPT2LMHeadModel

from data_prep import check
from data_prep.common.files import read_json, write_jsonl

# Gemma refuses a system turn; Llama 3.1 two calls at once, here any question of two marks.
REFUSALS = (
    "{%- if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "{%- if messages[0].content == '??' %}{{ raise_exception('One question at once') }}{% endif %}"
)
SYSTEM = (
    "row 3, line 3: found turns of system; expected user, assistant, function_call, tool only, as the chat template has "
    "no place for others"
)
TWO = (
    "row 4, line 4: found a conversation that the chat template refuses: One question at once; expected one that it can "
    "write, or another template"
)
YES = {"role": "assistant", "content": "yes"}
RECIPES = {
    "sft": "conversations",
    "reward": "rankings",
    "dpo": "rankings",
    "kto": "rankings",
    "ppo": "prompts",
    "rloo": "prompts",
    "grpo": "prompts",
}


@pytest.fixture(scope="module")
def model(tiny_chat_tokenizer, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "refuses"
    save(GPT2LMHeadModel(tiny_config(tiny_chat_tokenizer)), tiny_chat_tokenizer, folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.chat_template = REFUSALS + tokenizer.chat_template
    tokenizer.save_pretrained(folder)
    return folder


def write(folder: Path, kind: str) -> Path:
    """Five rows of a kind; the third has a system turn, the fourth a question that the template refuses."""
    rows = []
    for question in ("a", "b", "c", "??", "d"):
        turns = [{"role": "user", "content": question}]
        if question == "c":
            turns.insert(0, {"role": "system", "content": "S"})
        sides = {"prompt": turns, "chosen": "yes", "rejected": "no"}
        rows.append(sides if kind == "rankings" else {"messages": [*turns, YES]})
    write_jsonl(folder / "rows.jsonl", rows)
    return folder / "rows.jsonl"


@pytest.mark.parametrize("kind", ["rankings", "conversations"])
@pytest.mark.parametrize("recipe", RECIPES)
def test_a_recipe_names_the_rows_that_the_template_cannot_write(recipe, kind, model, reward_file, tmp_path):
    if kind != RECIPES[recipe] and RECIPES[recipe] != "prompts":
        pytest.skip("the recipe reads the other kind")
    path = write(tmp_path, kind)
    given = {RECIPES[recipe]: path, "output_dir": tmp_path / "out"}
    given |= {"sft_model_path": model} if recipe == "ppo" else {"model_name_or_path": model}
    if RECIPES[recipe] == "prompts":
        given["reward_funcs"] = f"{reward_file}:count"
    else:
        given["max_length"] = POSITIONS
    if recipe == "sft":
        given["max_new_tokens"] = 8
    message = refused(again(recipe, **given), f"{path}: 2 rows cannot be used: ")
    assert "1 × role that the chat template does not support, 1 × refused by the chat template\n" in message
    assert f"\n  {SYSTEM}\n  {TWO}\non_bad: quarantine leaves" in message
    assert "recipes/sft.py alone" not in message and not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "recipe", ["sft", "reward", *(pytest.param(each, marks=pytest.mark.slow) for each in ("dpo", "kto"))]
)
def test_a_recipe_sets_aside_the_rows_that_the_template_cannot_write(recipe, model, tmp_path):
    path = write(tmp_path, RECIPES[recipe])
    given = {RECIPES[recipe]: path, "model_name_or_path": model, "max_length": POSITIONS, "max_steps": 1}
    given |= {"per_device_train_batch_size": 2, "save_strategy": "no", "output_dir": tmp_path / "out"}
    if recipe == "sft":
        given["max_new_tokens"] = 8
    done = succeeded(again(recipe, **given, on_bad="quarantine"))
    aside = tmp_path / "out" / "quarantine.jsonl"
    assert f"rows in 5 = rows out 3 + quarantined 2, which are in {aside}\n" in done.out
    kept = [json.loads(line) for line in aside.read_text().splitlines()]
    assert [(each["row"], each["raw"]) for each in kept] == list(enumerate(path.read_text().splitlines(), 1))[2:4]
    assert kept[1]["reasons"][0]["kind"] == "refused by the chat template"


@pytest.mark.parametrize("kind", ["rankings", "conversations"])
def test_the_validator_sets_them_aside(kind, model, command, tmp_path):
    path, out = write(tmp_path, kind), tmp_path / "out"
    code, _, err = command(check, path, "--tokenizer", model, "--on_bad", "error")
    assert code == 1 and f"\n  {SYSTEM}\n  {TWO}\n" in err
    code, _, err = command(check, path, "--tokenizer", model, "--output", out, "--drop_duplicates")
    assert code == 0, err
    report = read_json(out / "report" / "check.json")
    assert report["rows"] == {"in": 5, "out": 3, "quarantined": 2, "repaired": 0, "repairable": 0}
    written = {"rankings": "preferences", "conversations": "conversations"}[kind]
    assert len((out / f"{written}.jsonl").read_text().splitlines()) == 3
    aside = [json.loads(line) for line in (out / "report" / "quarantine.jsonl").read_text().splitlines()]
    assert [each["row"] for each in aside] == [3, 4]


def test_the_validator_measures_by_a_template_that_does_not_tell_the_turns_apart(model, command, tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(model)
    # As Mistral's and Llama 2's: neither marks nor add_generation_prompt.
    tokenizer.chat_template = "{% for each in messages %}{{ '<|user|>' + each.content + '<|end|>' }}{% endfor %}"
    tokenizer.save_pretrained(tmp_path / "unmarked")
    sides = {"prompt": "ab", "chosen": "yes", "rejected": "no"}
    write_jsonl(tmp_path / "rows.jsonl", [sides, {"messages": [{"role": "user", "content": "q"}, YES]}])
    given = (check, tmp_path / "rows.jsonl", "--tokenizer", tmp_path / "unmarked", "--max_length", 9)
    code, out, err = command(*given, "--output", tmp_path / "out")
    assert code == 0, err
    report = read_json(tmp_path / "out" / "report" / "check.json")
    # <|user|>ab<|end|><|user|>yes<|end|> is 9 tokens, with "no" 8; <|user|>q<|end|><|user|>yes<|end|> is 8.
    counts = {"total": 25, "learned": None, "masked": None, "truncated": 0, "left_out": 0}
    assert {key: report["tokens"][key] for key in counts} == counts
    assert report["context"]["prompts"] == {"longest": 4, "without_room": 0}
    assert "25 kept, those to learn from are not counted: the chat template does not enclose" in " ".join(out.split())
    code, _, err = command(*given, "--reasoning", "mask")
    assert code == 1 and err.startswith("error: --reasoning mask: the chat template does not enclose the assistant's")
