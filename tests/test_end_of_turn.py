"""Assistants that end a turn with another token than their tokenizer's end of sequence, as Gemma's do."""

import copy
import json
import math
from pathlib import Path

import pytest
import torch
from helpers.models import POSITIONS, counting_model, save
from helpers.recipes import (
    EXACT,
    again,
    conversation,
    differing,
    loaded,
    ranking,
    ready_to_end,
    results,
    served_as,
    succeeded,
)
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer, GenerationConfig

from data_prep import sample_completions
from data_prep.common.files import read_jsonl, write_json, write_jsonl
from data_prep.models.generation import stop_token_ids
from data_prep.models.scoring import encode_answers, score_answers
from data_prep.tokens.chat_encoder import end_of_turn
from recipes.trainers.rloo_grpo import reward_at_last_token

TEXT, TURN, OTHER = 0, 2, 3  # <|endoftext|>, which the tokenizer ends at; <|end|>, which ends a turn; <|system|>
LIST = [TEXT, OTHER, TURN]  # of a generation config, in no order
PLACE = 4 * math.sin((8 / 63 - 0.5) * math.pi)  # the reward of place 8; see long_is_good_dir


@pytest.fixture(scope="module")
def unnamed(tiny_tokenizer, tmp_path_factory):
    """The tokenizer whose end of turn is a special token that none of its settings names, as Gemma 3's."""
    folder = tmp_path_factory.mktemp("unnamed")
    tiny_tokenizer.save_pretrained(folder)
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    assert "<|end|>" in settings.pop("extra_special_tokens")
    write_json(folder / "tokenizer_config.json", settings)
    return AutoTokenizer.from_pretrained(folder)


@pytest.fixture(scope="module")
def assistant(unnamed, tmp_path_factory):
    """assistant(token, stops) answers xxxx after a letter, xx after three, and ends with `token`; its generation config
    stops at `stops`."""

    def build(token: int, stops: int | list[int]) -> Path:
        model = counting_model(unnamed, 7, token)
        model.generation_config.eos_token_id = stops
        return save(model, unnamed, tmp_path_factory.mktemp("assistants"))

    return build


@pytest.fixture(scope="module")
def settings(long_is_good_dir, tmp_path_factory) -> dict[str, dict]:
    """An update that changes next to nothing, by each recipe."""
    folder = tmp_path_factory.mktemp("data")
    texts = ("a", "b", "c", "d", "aaa", "bbb", "ccc", "ddd")
    write_json(folder / "prompts.json", [conversation(text, text, "-") for text in texts])
    write_jsonl(folder / "ranked.jsonl", [ranking(text, {"no": 1, "yes": 0}) for text in texts])
    steps = {**EXACT, "learning_rate": 1e-9, "save_strategy": "no", "logging_steps": 1}
    ranked = {**steps, "rankings": folder / "ranked.jsonl", "per_device_train_batch_size": 8, "max_steps": 1}
    ranked |= {"max_length": POSITIONS}
    drawing = {**steps, "prompts": folder / "prompts.json", "reward_model_path": long_is_good_dir}
    groups = {"per_device_train_batch_size": 16, "num_generations": 2, "max_completion_length": 8, "max_steps": 1}
    rollout = {"per_device_train_batch_size": 8, "gradient_accumulation_steps": 1, "total_episodes": 8}
    rollout |= {"response_length": 8, "num_mini_batches": 1, "num_ppo_epochs": 1, "temperature": 1.0, "kl_coef": 0.0}
    tuned = {"conversations": folder / "prompts.json", "max_length": POSITIONS, "max_new_tokens": 8, "max_steps": 1}
    return {
        "sft": {**steps, **tuned},
        "dpo": ranked,
        "kto": ranked,
        "rloo": {**drawing, **groups, "missing_eos_penalty": 1.0},
        "grpo": {**drawing, **groups, "missing_eos_penalty": 1.0},
        "ppo": {**drawing, **rollout, "stop_token": "eos", "missing_eos_penalty": 1.0},
    }


def trained(recipe: str, model: Path, settings: dict[str, dict], folder: Path, **changes) -> Path:
    start = "sft_model_path" if recipe == "ppo" else "model_name_or_path"
    given = {**settings[recipe], start: model, **changes}
    succeeded(again(recipe, **given, output_dir=folder / recipe))
    return folder / recipe


# Gemma's form: without marks, and a line break after the end of turn.
UNMARKED = """\
{{ bos_token }}{% for message in messages %}
{{- '<|user|>' + message['role'] + '\n' + message['content'] + '<|end|>\n' -}}
{% endfor %}{% if add_generation_prompt %}{{ '<|user|>assistant\n' }}{% endif %}"""
# Phi-3's: the conversation ends with the tokenizer's end behind the end of the turn, unless an answer is asked for.
PHI = """\
{% for message in messages %}{{ '<|' + message['role'] + '|>\n' + message['content'] + '<|end|>\n' }}{% endfor %}
{{- '<|assistant|>\n' if add_generation_prompt else eos_token }}"""
# A turn that begins with a control token, and ends with two of them.
MARKED = """\
{% for message in messages %}{% if message['role'] == 'assistant' %}{{ '<|assistant|>' }}{% generation -%}
{{ '<|system|>' + message['content'] + '<|end|><|user|>' }}{% endgeneration %}{% else %}{{ '<|user|>' + message['content'] }}
{%- endif %}{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"""


@pytest.mark.parametrize(
    "template", [None, UNMARKED, PHI, MARKED], ids=["own", "unmarked", "end of text behind it", "tokens around it"]
)
def test_the_end_of_turn_is_found_where_no_setting_names_it(unnamed, template):
    tokenizer = copy.deepcopy(unnamed)
    tokenizer.chat_template = template or tokenizer.chat_template
    assert "<|end|>" not in tokenizer.all_special_tokens and end_of_turn(tokenizer) == "<|end|>"


# GLM-4's: nothing closes a turn but the token that opens the next one.
OPEN = """\
{% for message in messages %}{{ '<|' + message['role'] + '|>\n' + message['content'] }}{% endfor %}
{{- '<|assistant|>\n' if add_generation_prompt else '' }}"""
# And one that knows no tokens at all.
PLAIN = "{% for message in messages %}{{ message['role'] + ': ' + message['content'] + '\n' }}{% endfor %}"


@pytest.mark.parametrize(
    ("template", "text"),
    [
        (None, "<|user|>a<|end|><|assistant|>yes<|end|>"),
        (UNMARKED, "<|endoftext|><|user|>user\na<|end|>\n<|user|>assistant\nyes<|end|>"),
        (PHI, "<|user|>\na<|end|>\n<|assistant|>\nyes<|end|>"),
        (MARKED, "<|user|>a<|assistant|><|system|>yes<|end|>"),
        (OPEN, "<|user|>\na<|assistant|>\nyes<|user|>"),
        (PLAIN, "user: a\nassistant: yes\n<|endoftext|>"),
    ],
    ids=["own", "unmarked", "end of text behind it", "tokens around it", "none", "no tokens"],
)
def test_what_a_reward_model_reads_ends_where_answers_end(unnamed, template, text):
    tokenizer = copy.deepcopy(unnamed)
    tokenizer.chat_template = template or tokenizer.chat_template
    ((ids, typed),) = encode_answers(tokenizer, [[{"role": "user", "content": "a"}]], [["yes", "<|end|>"]])
    assert ids == tokenizer(text, add_special_tokens=False)["input_ids"]
    own = [tokenizer.convert_tokens_to_ids(letter) for letter in "<|end|>"]  # as text, a letter is a token
    assert typed[-8:-1] == own or template == PLAIN and typed[-9:-2] == own


@pytest.mark.parametrize("template", [UNMARKED, OPEN], ids=["a line break behind it", "none"])
def test_a_reward_model_is_trained_and_measured_at_the_token_that_others_read_it_at(
    template, tiny_model_dir, tiny_chat_tokenizer, tmp_path
):
    """PPO, RLOO and GRPO read the reward of the ids that were sampled: at the end of the answer."""
    model = save(AutoModelForCausalLM.from_pretrained(tiny_model_dir), tiny_chat_tokenizer, tmp_path / "model")
    (model / "chat_template.jinja").write_text(template)
    write_jsonl(tmp_path / "ranked.jsonl", [ranking(text, {"no": 1, "yes": 0}) for text in "abcdefgh"])
    steps = {"per_device_train_batch_size": 8, "learning_rate": 0.01, "max_steps": 8, "save_strategy": "no"}
    given = {**EXACT, **steps, "rankings": tmp_path / "ranked.jsonl", "max_length": POSITIONS}
    succeeded(again("reward", **given, model_name_or_path=model, output_dir=tmp_path / "reward"))
    trained, tokenizer = loaded(tmp_path / "reward", AutoModelForSequenceClassification)
    asked = [[{"role": "user", "content": text}] for text in "abcdefgh"]
    end = tokenizer.convert_tokens_to_ids("<|end|>" if template == UNMARKED else "<|user|>")
    starts = [tokenizer.apply_chat_template(each, add_generation_prompt=True)["input_ids"] for each in asked]
    read = {}
    for answer in ("yes", "no"):
        ids = [[*start, *tokenizer(answer, add_special_tokens=False)["input_ids"], end] for start in starts]
        with torch.no_grad():
            read[answer] = trained(torch.tensor(ids)).logits.squeeze(-1)
        completions = [row[len(start) :] for start, row in zip(starts, ids, strict=True)]
        sampled = reward_at_last_token(trained, tokenizer, False)(prompts=asked, completion_ids=completions)
        scores = score_answers(trained, tokenizer, asked, [answer] * len(asked))
        assert sampled == pytest.approx(read[answer].tolist(), abs=1e-5) == scores
    assert (read["yes"] > read["no"]).all()
    margin = results(tmp_path / "reward", "reward")["metrics"]["margin"]
    assert margin == pytest.approx((read["yes"] - read["no"]).mean().item(), abs=1e-4)


def test_fine_tuning_ends_answers_at_the_turn_and_not_at_the_end_of_text_behind_it(assistant, settings, tmp_path):
    model = assistant(TURN, TEXT)
    (model / "chat_template.jinja").write_text(PHI)
    folder = trained("sft", model, settings, tmp_path)
    assert loaded(folder)[1].eos_token == "<|end|>" and served_as(folder, TURN)


def test_without_a_way_to_find_the_end_of_turn_an_answer_ends_where_the_model_says(unnamed):
    tokenizer = copy.deepcopy(unnamed)
    tokenizer.chat_template = "{% for message in messages %}{{ message['content'] }}{% endfor %}"
    assert stop_token_ids(GenerationConfig(eos_token_id=[OTHER, TURN]), tokenizer) == [TEXT, OTHER, TURN]


@pytest.mark.parametrize(
    "recipe", ["sft", "rloo", "ppo", *(pytest.param(each, marks=pytest.mark.slow) for each in ("dpo", "kto", "grpo"))]
)
@pytest.mark.parametrize(
    ("stops", "saved", "fine_tuned"), [(LIST, [TURN, TEXT, OTHER], [TURN, TEXT, OTHER]), (TEXT, [TURN, TEXT], TURN)]
)
def test_what_is_saved_stops_at_every_stop_token_the_end_of_turn_first(
    recipe, stops, saved, fine_tuned, assistant, settings, tmp_path
):
    """Fine-tuning alone takes the end of turn in place of a single stop token, which a base model has."""
    folder = trained(recipe, assistant(TURN, stops), settings, tmp_path)
    assert served_as(folder, fine_tuned if recipe == "sft" else saved)
    model, tokenizer = loaded(folder)
    assert tokenizer.eos_token == ("<|end|>" if recipe == "sft" else "<|endoftext|>")
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": "a"}], add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    # Four tokens, then x at places 4 to 7 and the end of turn at place 8. The context would hold 64.
    (ids,) = model.generate(**prompt).tolist()
    assert ids[4:] == [tokenizer.convert_tokens_to_ids("x")] * 4 + [TURN]


@pytest.mark.parametrize("token", [TURN, OTHER])
@pytest.mark.parametrize("recipe", ["rloo", "grpo", "ppo"])
def test_an_answer_ends_at_any_stop_token_and_is_whole(recipe, token, assistant, settings, tmp_path):
    found = results(trained(recipe, assistant(token, LIST), settings, tmp_path), recipe)["curves"]
    # Prompts of 4 and 6 tokens, the end at place 8 of all: answers of 5 and 3 tokens, none cut, none of them penalized.
    assert found["length"] == [[1, 4.0]] and found["eos_rate"] == [[1, 1.0]]
    assert found["entropy"][0][1] == pytest.approx(0, abs=1e-3)  # nothing behind the end is trained on
    assert found["score"][0][1] == pytest.approx(PLACE, abs=2e-3)


@pytest.mark.parametrize("recipe", ["rloo", "grpo"])
def test_whole_answers_are_not_masked_as_truncated(recipe, tiny_chat_tokenizer, unnamed, settings, tmp_path):
    model = ready_to_end(tiny_chat_tokenizer, tmp_path / "model")  # ends with <|end|>, after every token alike
    unnamed.save_pretrained(model)
    steps = {"learning_rate": 0.003, "mask_truncated_completions": True, "seed": 1}
    folder = trained(recipe, model, settings, tmp_path, **steps)
    assert "transformer.ln_f.weight" in differing(model, folder)
    found = results(folder, recipe)["curves"]
    assert found["length"][0][1] == pytest.approx(
        3.17, abs=1.7
    )  # as in test_preference_optimization.py; of 16 answers


def test_sampled_answers_end_at_the_end_of_turn(command, assistant, settings, tmp_path):
    given = ("--model", assistant(TURN, TEXT), "--conversations", settings["sft"]["conversations"])
    given += ("--output", tmp_path / "sampled.jsonl", "--num_return_sequences", 1, "--max_new_tokens", 8)
    code, out, err = command(sample_completions, *given)
    assert code == 0, err
    assert [row["completions"] for row in read_jsonl(tmp_path / "sampled.jsonl")] == [["xxxx"]] * 4 + [["xx"]] * 4
    assert "EOS rate 100%" in out
