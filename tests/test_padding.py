"""Models whose tokenizer has no padding token, or pads with what ends an answer, as Llama's and SmolLM2's do."""

from pathlib import Path

import pytest
import torch
from helpers.models import POSITIONS
from helpers.recipes import EXACT, again, conversation, loaded, ranking, refused, results, succeeded
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from data_prep.common.files import read_json, write_json, write_jsonl
from data_prep.models.loading import load_reward_model
from data_prep.models.scoring import score_answers, sequence_logprobs
from eval import answers, reward_accuracy
from recipes.trainers.rloo_grpo import reward_at_last_token

TEXTS = ("a", "b", "c", "d", "aaa", "bbb", "ccc", "ddd")
PADS = {"none": None, "the end of turn": "<|end|>"}
QUICK = [pad if pad else pytest.param(pad, marks=pytest.mark.slow) for pad in PADS.values()]
STAYS = "{# <|pad|> and <|endoftext|> stand here, so that no special token is spare #}"


def with_pad(origin: Path, folder: Path, pad: str | None, kind=AutoModelForCausalLM, spare: bool = True) -> Path:
    """A copy of the model in `origin` that pads with `pad`; without `spare` its template holds every special token."""
    model, tokenizer = kind.from_pretrained(origin), AutoTokenizer.from_pretrained(origin)
    tokenizer.pad_token = pad
    tokenizer.chat_template += "" if spare else STAYS
    model.config.pad_token_id = tokenizer.pad_token_id
    if kind is AutoModelForCausalLM:
        model.generation_config.pad_token_id = tokenizer.pad_token_id
        model.generation_config.suppress_tokens = None
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    assert AutoTokenizer.from_pretrained(folder).pad_token == pad
    return folder


@pytest.fixture(scope="module")
def settings(long_is_good_dir, tmp_path_factory) -> dict[str, dict]:
    """An update by each recipe."""
    folder = tmp_path_factory.mktemp("data")
    write_json(folder / "prompts.json", [conversation(text, text, "yes") for text in TEXTS])
    write_jsonl(folder / "ranked.jsonl", [ranking(text, {"no": 1, "yes": 0, "maybe": 2}) for text in TEXTS])
    steps = {**EXACT, "learning_rate": 0.01, "save_strategy": "no", "logging_steps": 1, "max_steps": 4}
    drawing = {**steps, "prompts": folder / "prompts.json", "reward_model_path": long_is_good_dir}
    groups = {"per_device_train_batch_size": 16, "num_generations": 2, "max_completion_length": 8, "max_steps": 1}
    rollout = {"per_device_train_batch_size": 8, "gradient_accumulation_steps": 1, "total_episodes": 8}
    rollout |= {"response_length": 8, "num_mini_batches": 1, "num_ppo_epochs": 1, "stop_token": "eos"}
    ppo = {**drawing, **rollout}
    del ppo["max_steps"]
    return {
        "sft": {
            **steps,
            "conversations": folder / "prompts.json",
            "max_length": POSITIONS,
            "max_new_tokens": 8,
        },
        "reward": {**steps, "rankings": folder / "ranked.jsonl", "max_length": POSITIONS},
        "rloo": {**drawing, **groups},
        "grpo": {**drawing, **groups},
        "ppo": ppo,
    }


def run(recipe: str, model: Path, settings: dict[str, dict], output: Path, **changes):
    start = "sft_model_path" if recipe == "ppo" else "model_name_or_path"
    return again(recipe, **{**settings[recipe], start: model, "output_dir": output, **changes})


# Fine-tuning


@pytest.mark.parametrize("pad", PADS.values(), ids=PADS)
def test_fine_tuning_takes_a_spare_token_which_ppo_accepts(pad, tiny_model_dir, settings, tmp_path):
    model = with_pad(tiny_model_dir, tmp_path / "model", pad)
    done = succeeded(run("sft", model, settings, tmp_path / "sft"))
    found = "none" if pad is None else "<|end|>, which ends an answer"
    assert f"pad_token: <|pad|>, which the chat template leaves alone; the tokenizer has {found}\n" in done.out
    trained, tokenizer = loaded(tmp_path / "sft")
    assert (tokenizer.pad_token, tokenizer.eos_token) == ("<|pad|>", "<|end|>")
    assert trained.config.pad_token_id == trained.generation_config.pad_token_id == 1
    succeeded(run("ppo", tmp_path / "sft", settings, tmp_path / "ppo"))


@pytest.mark.parametrize("pad", QUICK, ids=PADS)
def test_without_a_spare_token_fine_tuning_says_so_and_later_recipes_name_the_option(
    pad, tiny_model_dir, settings, tmp_path
):
    model = with_pad(tiny_model_dir, tmp_path / "model", pad, spare=False)
    done = succeeded(run("sft", model, settings, tmp_path / "sft"))
    assert "pad_token: <|end|>, which ends an answer, for want of another; reward models, PPO, RLOO" in done.out
    for recipe in ("ppo", "rloo", "grpo"):
        done = run(recipe, tmp_path / "sft", settings, tmp_path / recipe)
        said = refused(done, "pads with what ends an answer (<|end|>)", "recipes/sft.py", "(--pad_token TOKEN)")
        assert said.count("\n") == 0
    refused(run("reward", tmp_path / "sft", settings, tmp_path / "reward"), "pad_token: found <|end|>, which ends an")
    succeeded(run("sft", model, settings, tmp_path / "z", pad_token="z"))
    assert loaded(tmp_path / "z")[1].pad_token == "z"


def test_without_any_pad_token_ppo_names_the_option(tiny_model_dir, settings, tmp_path):
    model = with_pad(tiny_model_dir, tmp_path / "model", None)
    for recipe in ("ppo", "rloo", "grpo"):
        refused(run(recipe, model, settings, tmp_path / recipe), "has no pad_token", "(--pad_token TOKEN)")


def test_a_pad_token_that_no_vocabulary_has(tiny_model_dir, settings, tmp_path):
    for recipe in ("sft", "reward"):
        done = run(recipe, tiny_model_dir, settings, tmp_path / recipe, pad_token="<nope>")
        refused(done, "pad_token: found '<nope>', which is not in the vocabulary")


# The reward model


@pytest.mark.parametrize("pad", QUICK, ids=PADS)
def test_a_reward_model_from_a_model_without_padding_reads_the_end_of_turn(pad, tiny_model_dir, settings, tmp_path):
    model = with_pad(tiny_model_dir, tmp_path / "model", pad)
    refused(
        run("reward", with_pad(tiny_model_dir, tmp_path / "none", pad, spare=False), settings, tmp_path / "refused"),
        f"pad_token: found {'none' if pad is None else '<|end|>, which ends an answer'}",
        "(--pad_token TOKEN) here and of recipes/sft.py",
    )
    for output, option, token in (("spare", {}, "<|pad|>"), ("given", {"pad_token": "z"}, "z")):
        succeeded(run("reward", model, settings, tmp_path / output, **option))
        trained, tokenizer = loaded(tmp_path / output, AutoModelForSequenceClassification)
        assert tokenizer.pad_token == token and trained.config.pad_token_id == tokenizer.convert_tokens_to_ids(token)
    read = {}
    for text in TEXTS:
        for answer in ("yes", "no", "maybe"):  # of unlike lengths: padded in a batch, alone here
            ids = tokenizer(f"<|user|>{text}<|end|><|assistant|>{answer}<|end|>", return_tensors="pt")["input_ids"]
            with torch.no_grad():
                read[text, answer] = trained.score(trained.base_model(ids).last_hidden_state[0, -1]).item()
    pairs = (("yes", "no"), ("yes", "maybe"), ("no", "maybe"))
    margins = [read[text, better] - read[text, worse] for text in TEXTS for better, worse in pairs]
    assert results(tmp_path / "given", "reward")["metrics"]["margin"] == pytest.approx(
        sum(margins) / len(margins), abs=1e-4
    )


def test_a_reward_model_is_read_with_its_own_padding(tiny_reward_dir, tiny_chat_tokenizer, tmp_path):
    """The tokenizers of policy and reward model have the same entries, and pad with different ones."""
    model, _ = load_reward_model(
        str(with_pad(tiny_reward_dir, tmp_path / "z", "z", AutoModelForSequenceClassification))
    )
    asked = [[{"role": "user", "content": text}] for text in ("a", "aaa")]
    completions = [tiny_chat_tokenizer(text)["input_ids"] for text in ("yes<|end|>", "no<|end|>")]
    read = reward_at_last_token(model.eval(), tiny_chat_tokenizer, False)
    together = read(prompts=asked, completion_ids=completions)
    alone = [read(prompts=[each], completion_ids=[ids])[0] for each, ids in zip(asked, completions, strict=True)]
    assert together == pytest.approx(alone, abs=1e-5) and abs(alone[0] - alone[1]) > 1e-3
    assert score_answers(model, tiny_chat_tokenizer, asked, ["yes", "no"]) == pytest.approx(alone, abs=1e-5)


# Evaluation


@pytest.mark.parametrize("pad", PADS.values(), ids=PADS)
def test_answers_are_the_same_without_a_padding_token(pad, yes, command, settings, tmp_path):
    model = with_pad(yes, tmp_path / "model", pad)
    given = (
        "--conversations",
        settings["sft"]["conversations"],
        "--max_new_tokens",
        8,
        "--name",
        "x",
        "--results_dir",
        tmp_path,
    )
    code, _, err = command(answers, "--model", model, *given)
    assert code == 0, err
    found = read_json(tmp_path / "answers_x.json")["metrics"]
    assert (found["exact_match"]["value"], found["eos_rate"]) == (1.0, 1.0)


def test_rewards_are_the_same_without_a_padding_token(long_is_good_dir, command, settings, tmp_path):
    model = with_pad(long_is_good_dir, tmp_path / "model", None, AutoModelForSequenceClassification)
    figures = {}
    for name, folder in (("with", long_is_good_dir), ("without", model)):
        given = ("--rankings", settings["reward"]["rankings"], "--name", name, "--results_dir", tmp_path)
        code, _, err = command(reward_accuracy, "--model", folder, *given)
        assert code == 0, err
        figures[name] = read_json(tmp_path / f"reward_accuracy_{name}.json")["metrics"]
    # Longer is better to it: yes above no, but maybe above both. One of three pairs.
    assert figures["without"]["accuracy"]["value"] == pytest.approx(1 / 3, abs=1e-4)
    assert figures["without"]["margin"] == pytest.approx(figures["with"]["margin"], abs=1e-4)


def test_log_probabilities_are_the_same_without_a_padding_token(tiny_model_dir, tmp_path):
    found = []
    for folder in (tiny_model_dir, with_pad(tiny_model_dir, tmp_path / "model", None)):
        model, tokenizer = loaded(folder)
        asked = [[{"role": "user", "content": text}] for text in ("a", "aaa")]
        found.append(sequence_logprobs(model, tokenizer, asked, [[70, 71, 2], [70, 2]]))
    assert found[0] == pytest.approx(found[1], abs=1e-5)
