"""Every recipe through its command, with models so small that a run takes a second: what is printed, what is on disk.

Each recipe runs once as a user starts it, `python recipes/x.py --key value …`. The other runs are processes of their own
too, but forked from one that has imported the libraries: the imports are 5 of the 6 seconds of a command.
"""

import json
import math
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from helpers.models import POSITIONS, save, write_shards
from helpers.recipes import (
    ENVIRONMENT,
    EXACT,
    LONG,
    LORA,
    Done,
    again,
    command,
    conversation,
    differing,
    is_png,
    loaded,
    ranking,
    ready_to_end,
    refused,
    results,
    served_as,
    succeeded,
    weights,
)
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
)
from trl.chat_template_utils import get_training_chat_template

from data_prep.common.files import write_json, write_jsonl
from data_prep.models.generation import generate_answers
from data_prep.models.scoring import score_answers
from data_prep.train_tokenizer import train_tokenizer
from recipes.trainers.callbacks import check_prompts

TOKENS = 262  # entries of the tiny tokenizer, of which a letter is one


# Pretraining

LETTERS = "abcdefgh"


@pytest.fixture(scope="module")
def tokens(tiny_tokenizer, tmp_path_factory) -> Path:
    """24 blocks of the first eight letters over and over, as data_prep/mix_corpus.py writes token ids."""
    folder = tmp_path_factory.mktemp("tokens")
    ids = tiny_tokenizer(LETTERS * (24 * POSITIONS // 8))["input_ids"]
    write_shards(folder, ids, tiny_tokenizer.name_or_path)
    (folder / "heldout.txt").write_text(LETTERS * 8)
    return folder


@pytest.fixture(scope="module")
def pretrain_settings(tokens, tiny_tokenizer) -> dict:
    """Four times through 24 blocks in batches of 4: 24 steps."""
    shape = {"n_layer": 2, "n_head": 2, "n_embd": 32, "n_positions": POSITIONS}
    files = {"tokenizer": tiny_tokenizer.name_or_path, "tokens": tokens, "heldout": tokens / "heldout.txt"}
    steps = {"num_train_epochs": 4, "per_device_train_batch_size": 4, "logging_steps": 8, "eval_steps": 12}
    return {
        **files,
        **shape,
        **steps,
        "muon_lr": 0.02,
        "learning_rate": 0.01,
        "sample_prompts": ["abcd", "h"],
        **EXACT,
    }


@pytest.fixture(scope="module")
def pretrained(pretrain_settings, tmp_path_factory) -> tuple[Path, Done]:
    folder = tmp_path_factory.mktemp("runs") / "base"
    return folder, succeeded(command("pretrain", **pretrain_settings, save_steps=8, output_dir=folder))


@pytest.fixture(scope="module")
def resumed(pretrained, pretrain_settings, tmp_path_factory) -> Path:
    """The run, killed while it wrote its checkpoint of step 16 and taken up again from that of step 8."""
    folder = tmp_path_factory.mktemp("runs") / "resumed"
    shutil.copytree(pretrained[0], folder)
    shutil.rmtree(folder / "checkpoint-24")
    for name in ("config.json", "model.safetensors", "pretrain.json", "curve.png", "curve.json"):
        (folder / name).unlink()
    (folder / "checkpoint-16" / "trainer_state.json").unlink()
    cut = folder / "checkpoint-16" / "model.safetensors"
    cut.write_bytes(cut.read_bytes()[:1000])
    rows = (folder / "samples.jsonl").read_text().splitlines(keepends=True)
    (folder / "samples.jsonl").write_text("".join(row for row in rows if json.loads(row)["step"] < 24))
    succeeded(again("pretrain", **pretrain_settings, save_steps=8, output_dir=folder, resume_from_checkpoint="last"))
    return folder


def test_pretraining_learns_and_its_figures_fit_together(pretrained):
    folder, done = pretrained
    found = results(folder, "pretrain")
    figures, curves = found["metrics"], found["curves"]
    assert [step for step, _ in curves["loss"]][-3:] == [8, 16, 24]
    assert curves["loss"][0][1] == figures["loss_first"] > figures["loss_last"] == curves["loss"][-1][1]
    steps, bits = zip(*curves["held-out bits per byte"], strict=True)
    assert steps == (0, 12, 24)
    # Every letter is a byte and a token, and before training each of the 262 is about as likely: log2(262) = 8.03.
    assert bits[0] == pytest.approx(math.log2(TOKENS), abs=0.05)
    # The loss before the first update is the same thing in nats: 63 tokens of a row of 64 are predicted, not 64.
    assert figures["loss_first"] / math.log(2) == pytest.approx(bits[0], abs=0.03)
    assert bits[-1] == figures["bits_per_byte"] < bits[1] < bits[0]
    assert figures["tokens_per_second"] == curves["tokens per second"][-1][1] > 0
    assert f"held-out bits per byte {bits[0]:.2f} → {bits[-1]:.3f}" in done.out
    assert "on 6,144 tokens" in done.out  # 24 steps × 4 × 64


def test_the_results_of_pretraining_count_its_tokens_without_max_steps(pretrained):
    assert results(pretrained[0], "pretrain")["tokens"] == 24 * 4 * POSITIONS


def test_the_tokens_of_pretraining_are_those_of_its_rows_where_they_do_not_fill_the_last_update(
    pretrain_settings, tmp_path
):
    settings = {**pretrain_settings, "per_device_train_batch_size": 5, "max_steps": 7, "output_dir": tmp_path / "base"}
    done = succeeded(again("pretrain", **settings))
    # 24 blocks are five updates, the last of four rows; two more have ten.
    assert results(tmp_path / "base", "pretrain")["tokens"] == (24 + 2 * 5) * POSITIONS
    assert f"on {34 * POSITIONS:,} tokens" in done.out


@pytest.mark.slow
def test_pretraining_that_is_compiled_learns_as_without(pretrain_settings, pretrained, tmp_path):
    settings = {**pretrain_settings, "torch_compile": True, "save_steps": 8, "output_dir": tmp_path / "base"}
    succeeded(command("pretrain", **settings))
    one, other = results(pretrained[0], "pretrain")["metrics"], results(tmp_path / "base", "pretrain")["metrics"]
    assert other["bits_per_byte"] == pytest.approx(one["bits_per_byte"], rel=0.02)
    assert loaded(tmp_path / "base")[0].config._attn_implementation == "sdpa"
    assert set(weights(tmp_path / "base")) == set(weights(pretrained[0]))


def test_samples_are_drawn_from_every_prompt_from_the_start_to_the_end(pretrained):
    rows = [json.loads(line) for line in (pretrained[0] / "samples.jsonl").read_text().splitlines()]
    assert [(row["step"], row["prompt"]) for row in rows] == [
        (step, prompt) for step in (0, 12, 24) for prompt in ("abcd", "h")
    ]
    assert rows[0]["sample"] != rows[-2]["sample"]


def test_without_prompts_pretraining_measures_and_samples_nothing(pretrain_settings, tmp_path):
    config, folder = tmp_path / "pretrain.yaml", tmp_path / "base"
    given = {key: str(value) if isinstance(value, Path) else value for key, value in pretrain_settings.items()}
    config.write_text(yaml.safe_dump({**given, "sample_prompts": [], "max_steps": 1}))
    done = succeeded(again("pretrain", config=config, output_dir=folder))
    shown = [line for line in done.out.splitlines() if " bits per byte on held-out text" in line]
    bits = [f"{value:.3f}" for _, value in results(folder, "pretrain")["curves"]["held-out bits per byte"]]
    assert shown == [f"step {step}: {value} bits per byte on held-out text" for step, value in enumerate(bits)]
    assert len(bits) == 2 and (folder / "samples.jsonl").read_text() == ""


def test_a_prompt_that_leaves_no_room_for_a_sample_is_refused_before_training(
    pretrain_settings, tiny_tokenizer, tmp_path
):
    settings, folder = {**pretrain_settings, "max_steps": 1}, tmp_path / "base"
    for prompt, shown, tokens in (("a" * POSITIONS, f"'{'a' * 56}...", 64), ("", "''", 0)):
        text = refused(again("pretrain", **{**settings, "sample_prompts": ["h", prompt]}, output_dir=folder))
        assert text == (
            f"error: sample_prompts: {shown}: found {tokens} tokens, expected 1 to 63, which leave room within "
            "n_positions 64; change the prompt or leave it out"
        )
        assert not folder.exists()
    check_prompts(["a" * (POSITIONS - 1)], tiny_tokenizer, POSITIONS)


def test_the_base_model_loads_with_its_tokenizer_and_says_its_letters(pretrained):
    model, tokenizer = loaded(pretrained[0])
    assert is_png(pretrained[0] / "curve.png") and served_as(pretrained[0], eos_token_id=0)
    assert len(tokenizer) == model.config.vocab_size == TOKENS and model.config.use_cache
    assert tokenizer.eos_token == "<|endoftext|>" and tokenizer.chat_template
    output = model.generate(**tokenizer(LETTERS, return_tensors="pt"), max_new_tokens=8, do_sample=False)
    assert tokenizer.decode(output[0]) == LETTERS * 2


def test_a_resumed_run_ends_where_an_uninterrupted_one_does_and_passes_over_a_cut_checkpoint(pretrained, resumed):
    assert differing(pretrained[0], resumed) == set()
    one, other = results(pretrained[0], "pretrain"), results(resumed, "pretrain")
    for name in ("loss", "held-out bits per byte"):
        assert one["curves"][name] == other["curves"][name]


def test_a_resumed_run_writes_no_sample_twice(pretrained, resumed):
    assert (resumed / "samples.jsonl").read_text() == (pretrained[0] / "samples.jsonl").read_text()


def test_a_run_shorter_than_its_logging_interval_keeps_its_model(pretrain_settings, tmp_path):
    settings = {**pretrain_settings, "max_steps": 1, "logging_steps": 500}  # the library's default
    succeeded(again("pretrain", **settings, output_dir=tmp_path / "base"))
    loaded(tmp_path / "base")


# Supervised fine-tuning


@pytest.fixture(scope="module")
def chats(tmp_path_factory) -> Path:
    """Whatever is asked, the answer is yes. The first has a system turn, two rounds and a question without answer."""
    folder = tmp_path_factory.mktemp("chats")
    rows = [conversation("two", "a", "yes", "b", "yes", "and", system="be")]
    rows += [conversation(letter, letter, "yes") for letter in "cdefghijklmn"]
    write_json(folder / "chats.json", [*rows, conversation("long", LONG, "yes")])
    write_json(folder / "heldout.json", [conversation(letter, letter, "yes") for letter in "opq"])
    return folder


@pytest.fixture(scope="module")
def sft_settings(chats) -> dict:
    return {
        "conversations": [str(chats / "chats.json")],
        "heldout": [str(chats / "heldout.json")],
        "eos_token": "<|end|>",
        "max_length": POSITIONS,
        "packing": True,
        "packing_strategy": "bfd",
        "assistant_only_loss": True,
        "per_device_train_batch_size": 2,
        "max_steps": 30,
        "logging_steps": 5,
        "learning_rate": 0.01,
        "max_new_tokens": 8,
    }


@pytest.fixture(scope="module")
def tuned(pretrained, sft_settings, tmp_path_factory) -> tuple[Path, Done]:
    """By a YAML, over which the command line wins."""
    folder = tmp_path_factory.mktemp("runs") / "sft"
    config = folder.with_suffix(".yaml")
    given = {**sft_settings, **EXACT, "model_name_or_path": str(pretrained[0]), "max_new_tokens": 4, "muon_lr": 0.02}
    given["results_dir"] = str(folder / "figures")
    config.write_text(yaml.safe_dump(given))
    return folder, succeeded(command("sft", config=config, max_new_tokens=8, output_dir=folder))


@pytest.fixture(scope="module")
def tuned_by_lora(pretrained, sft_settings, tmp_path_factory) -> tuple[Path, Done]:
    folder = tmp_path_factory.mktemp("runs") / "sft_lora"
    given = {**sft_settings, **LORA, "model_name_or_path": pretrained[0], "output_dir": folder}
    return folder, succeeded(again("sft", **given))


def test_an_example_is_shown_with_exactly_the_assistants_turns_in_the_loss_before_training(tuned):
    _, done = tuned
    inside = "[yes<|end|>]"
    shown = f"<|system|>be<|end|><|user|>a<|end|><|assistant|>{inside}<|user|>b<|end|><|assistant|>{inside}\n"
    assert f"an example; [what is between brackets] enters the loss:\n  {shown}" in done.out
    assert done.out.index(shown) < done.out.index("{'loss'")


def test_what_fine_tuning_leaves_out_is_counted(tuned):
    _, done = tuned
    assert "chats.json: 14 conversations, 1 trailing human turn trimmed\n" in done.out
    # The question of 70 letters between its two marks, and the answer of 3 between its two: 77 tokens.
    assert (
        "1 conversation is longer than max_length=64 tokens: training will not see the last 13 tokens of them; "
        "1 of those truncated has no answer left and is dropped\n" in done.out
    )


def test_the_assistant_answers_and_stops_by_itself(tuned):
    folder, done = tuned
    model, tokenizer = loaded(folder)
    end = tokenizer.convert_tokens_to_ids("<|end|>")
    assert tokenizer.eos_token == "<|end|>" and model.generation_config.eos_token_id == end
    assert model.config.use_cache and is_png(folder / "curve.png") and served_as(folder)
    prompts = [[{"role": "user", "content": letter}] for letter in "opq"]
    answers = generate_answers(model, tokenizer, prompts, 8)
    assert [answer["text"] for (answer,) in answers] == ["yes"] * 3
    # 8 of the command line, not the YAML's 4
    assert "EOS rate 100.0% [100.0%, 100.0%] of 3 answers within 8 tokens\n" in done.out
    found = results(folder / "figures", "sft")
    assert found["metrics"]["eos_rate"] == 1 and found["conversations"] == 13
    assert found["metrics"]["loss_last"] < found["metrics"]["loss_first"]
    assert found["metrics"]["eval_loss"] < 0.5


def test_an_answer_ends_where_the_chat_template_ends_it_if_nothing_else_is_said(
    sft_settings, zero_model_dir, tmp_path
):
    """The base model's tokenizer ends at <|endoftext|>, at which no answer of the template ends."""
    given = {**sft_settings, "model_name_or_path": zero_model_dir, "max_steps": 1, "eval_strategy": "no"}
    del given["eos_token"]
    done = succeeded(again("sft", **given, output_dir=tmp_path / "sft"))
    line = "eos_token: <|end|>, which closes an assistant's turn in the chat template, in place of <|endoftext|>\n"
    assert line in done.out
    model, tokenizer = loaded(tmp_path / "sft")
    end = tokenizer.convert_tokens_to_ids("<|end|>")
    assert (tokenizer.eos_token, model.generation_config.eos_token_id) == ("<|end|>", end)


def test_fine_tuning_by_lora_leaves_a_merged_model_whose_matrices_alone_have_moved(pretrained, tuned_by_lora):
    folder, done = tuned_by_lora
    model, tokenizer = loaded(folder)
    assert model.generation_config.eos_token_id == tokenizer.eos_token_id == tokenizer.convert_tokens_to_ids("<|end|>")
    assert served_as(folder)
    matrices = {f"transformer.h.{block}.{name}.weight" for block in (0, 1)
                for name in ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")}  # fmt: skip
    assert differing(pretrained[0], folder) == matrices
    found = results(folder, "sft")["metrics"]
    assert found["loss_last"] < found["loss_first"]
    assert re.search(r"EOS rate [\d.]+% \[[\d.]+%, [\d.]+%\] of 3 answers within 8 tokens\n", done.out)


def test_a_model_of_the_hub_is_fine_tuned_by_its_name(tiny_model_dir, sft_settings, tmp_path, monkeypatch):
    """Qwen/Qwen2.5-7B in recipes/configs/ is such a name. Here it lies in the cache, as after a download."""
    cached = tmp_path / "hub" / "models--somebody--tiny"
    shutil.copytree(tiny_model_dir, cached / "snapshots" / "0123abc")
    (cached / "refs").mkdir()
    (cached / "refs" / "main").write_text("0123abc")
    given = {**sft_settings, **EXACT, "model_name_or_path": "somebody/tiny", "max_steps": 1, "logging_steps": 1}
    monkeypatch.setitem(ENVIRONMENT, "HF_HUB_CACHE", str(tmp_path / "hub"))
    (tmp_path / "temporary").mkdir()
    monkeypatch.setitem(ENVIRONMENT, "TMPDIR", str(tmp_path / "temporary"))
    succeeded(
        command("sft", **given, output_dir=tmp_path / "sft")
    )  # the library reads the cache's place at its import
    loaded(tmp_path / "sft")
    assert not list((tmp_path / "temporary").rglob("*.arrow"))  # the data is not left on the user's disk


def test_a_chat_template_that_is_given_is_the_one_that_is_shown_and_saved(tiny_model_dir, sft_settings, tmp_path):
    """As in recipes/configs/qwen2.5_7b_lora/sft.yaml; the model itself has none."""
    model, tokenizer = loaded(tiny_model_dir)
    template, tokenizer.chat_template = tokenizer.chat_template, None
    save(model, tokenizer, tmp_path / "base")
    (tmp_path / "given.jinja").write_text(template.replace("'<|assistant|>'", "'<|assistant|> '"))
    given = {**sft_settings, **EXACT, "model_name_or_path": tmp_path / "base", "max_steps": 1, "logging_steps": 1}
    done = again("sft", **given, output_dir=tmp_path / "sft")
    assert "--chat_template_path FILE): data_prep/chat_template.jinja for" in refused(done, "found no chat template")
    given |= {"chat_template_path": tmp_path / "given.jinja", "output_dir": tmp_path / "sft"}
    done = succeeded(again("sft", **given))
    assert "<|user|>a<|end|><|assistant|> [yes<|end|>]<|user|>" in done.out
    assert AutoTokenizer.from_pretrained(tmp_path / "sft").chat_template == (tmp_path / "given.jinja").read_text()


@pytest.fixture(scope="module")
def marked(tiny_model_dir, sft_settings, tmp_path_factory) -> tuple[dict, Done, Path]:
    """(settings, what is printed, the model) of fine-tuning on several turns, by a template with marks."""
    folder = tmp_path_factory.mktemp("marked")
    rows = [
        conversation("1", "ab", "yes", "c", "no", system="S"),
        conversation("2", "d", "e"),
        conversation("3", "f", "g"),
    ]
    write_json(folder / "turns.json", rows)
    given = {"conversations": folder / "turns.json", "assistant_only_loss": True, "max_length": POSITIONS}
    given |= {**EXACT, "max_steps": 2, "learning_rate": 0.01, "max_new_tokens": 4, "per_device_train_batch_size": 2}
    done = succeeded(again("sft", **given, model_name_or_path=tiny_model_dir, output_dir=folder / "sft"))
    return given, done, folder / "sft"


@pytest.mark.parametrize("templates", ["one", "two"])
def test_a_template_without_marks_that_trl_does_not_know_trains_as_one_with_marks(
    templates, marked, tiny_model_dir, tmp_path
):
    """As Llama 3.1's; Hermes' tokenizers have two, of which one is for tools."""
    given, with_marks, folder = marked
    model, tokenizer = loaded(tiny_model_dir)
    unmarked = re.sub(r"{%- (end)?generation -%}", "", tokenizer.chat_template)
    assert unmarked != tokenizer.chat_template and "generation -%}" not in unmarked
    tokenizer.chat_template = unmarked
    with pytest.raises(ValueError, match="not supported for this template"):
        get_training_chat_template(tokenizer)
    if templates == "two":
        tokenizer.chat_template = {"default": unmarked, "tool_use": unmarked}
    save(model, tokenizer, tmp_path / "base")
    done = succeeded(again("sft", **given, model_name_or_path=tmp_path / "base", output_dir=tmp_path / "sft"))
    shown = "<|system|>S<|end|><|user|>ab<|end|><|assistant|>[yes<|end|>]<|user|>c<|end|><|assistant|>[no<|end|>]\n"
    assert shown in done.out and shown in with_marks.out
    assert not differing(tmp_path / "sft", folder) and differing(tmp_path / "sft", tmp_path / "base")


@pytest.mark.parametrize(("assistant_only_loss", "told"), [(True, True), (False, False)])
def test_a_template_that_ends_no_turn_is_said_to_where_that_is_to_be_learned(
    assistant_only_loss, told, marked, tiny_model_dir, tmp_path
):
    """Without add_generation_prompt, and without marks, the loss can only be on every token."""
    given, *_ = marked
    turn = "{% generation %}{{ m['content'] }}{% endgeneration %}" if assistant_only_loss else "{{ m['content'] }}"
    (tmp_path / "t.jinja").write_text(f"{{% for m in messages %}}{{{{ m['role'] }}}}: {turn}\n{{% endfor %}}")
    given = {**given, "chat_template_path": tmp_path / "t.jinja", "assistant_only_loss": assistant_only_loss}
    done = succeeded(again("sft", **given, model_name_or_path=tiny_model_dir, output_dir=tmp_path / "sft"))
    assert ("no special token closes an assistant's turn in the chat template: the mod" in done.out) == told
    shown = done.out.split("enters the loss:\n  ")[1]
    # The loss on what is said, or on all but nothing.
    assert shown.startswith("system: " if told else "[system: ") and ("[yes]" in shown) == told


def test_fine_tuning_shorter_than_its_logging_interval_ends_well(tiny_model_dir, sft_settings, tmp_path):
    given = {**sft_settings, **EXACT, "model_name_or_path": tiny_model_dir, "max_steps": 2, "logging_steps": 10}
    succeeded(again("sft", **given, output_dir=tmp_path / "sft"))
    # The first step is logged, the tenth never comes: one point.
    assert [step for step, _ in results(tmp_path / "sft", "sft")["curves"]["loss"]] == [1]


# The reward model


@pytest.fixture(scope="module")
def ranked(tmp_path_factory) -> Path:
    """To every question yes is the best answer, and the others are equally bad."""
    folder = tmp_path_factory.mktemp("ranked")
    rows = [ranking(letter, {"no": 1, "yes": 0, "maybe": 1}) for letter in "abcdefgh"]
    rows += [ranking("i", {"no": 2, "yes": 2}), ranking(LONG, {"no": 1, "yes": 0})]
    write_jsonl(folder / "train.jsonl", rows)
    rows = [ranking(letter, {"yes": 0, "no": 1, "maybe": 1}) for letter in "opq"]
    write_jsonl(folder / "heldout.jsonl", [*rows, ranking("r", {"maybe": 1, "yes": 0})])
    same = [ranking(letter, {"yes": 0, "nos": 1}) for letter in "opq"]
    write_jsonl(folder / "equally_long.jsonl", same)
    return folder


@pytest.fixture(scope="module")
def reward_settings(ranked, tiny_model_dir) -> dict:
    files = {"model_name_or_path": tiny_model_dir, "rankings": ranked / "train.jsonl"}
    steps = {"per_device_train_batch_size": 4, "max_steps": 20, "logging_steps": 5, "learning_rate": 0.01}
    return {**files, **steps, "heldout": ranked / "heldout.jsonl", "max_length": POSITIONS}


@pytest.fixture(scope="module")
def rewarded(reward_settings, tmp_path_factory) -> tuple[Path, Done]:
    folder = tmp_path_factory.mktemp("runs") / "reward"
    return folder, succeeded(command("reward", **reward_settings, **EXACT, muon_lr=0.02, output_dir=folder))


@pytest.fixture(scope="module")
def rewarded_by_lora(reward_settings, ranked, tmp_path_factory) -> dict[float, Path]:
    """By LoRA with a learning rate of 0, which leaves everything as it was drawn, and with one that trains."""
    folders = {rate: tmp_path_factory.mktemp("runs") / "reward_lora" for rate in (0.0, 0.01)}
    for (rate, folder), heldout in zip(folders.items(), ("equally_long", "heldout"), strict=True):
        given = {**reward_settings, **LORA, "learning_rate": rate, "heldout": ranked / f"{heldout}.jsonl"}
        succeeded(again("reward", **given, output_dir=folder))
    return folders


def test_ties_and_what_does_not_fit_are_counted(rewarded):
    _, done = rewarded
    # 8 × (yes above no, yes above maybe) and the long one
    assert "train.jsonl: 9 rankings, 17 pairs; left out: 1 with all completions tied\n" in done.out
    assert "heldout.jsonl: 4 rankings, 7 pairs\n" in done.out
    assert "1 of 9 rankings hold an answer beyond 64 tokens (max_length) and are left out\n" in done.out


def test_the_figures_of_the_reward_model_are_those_of_the_saved_folder(rewarded):
    folder, done = rewarded
    model, tokenizer = loaded(folder, AutoModelForSequenceClassification)
    assert is_png(folder / "curve.png")
    answers = [(letter, text) for letter in "opq" for text in ("yes", "no", "maybe")] + [("r", "maybe"), ("r", "yes")]
    prompts = [[{"role": "user", "content": letter}] for letter, _ in answers]
    scores = score_answers(model, tokenizer, prompts, [text for _, text in answers])
    reward = dict(zip(answers, scores, strict=True))
    margins = [reward[q, "yes"] - (reward[q, "no"] + reward[q, "maybe"]) / 2 for q in "opq"]
    margins.append(reward["r", "yes"] - reward["r", "maybe"])
    correlation = np.corrcoef(scores, [len(text) for _, text in answers])[0, 1]
    figures = results(folder, "reward")["metrics"]
    # Every letter has its own embedding, but the answers do not depend on the question: all pairs are right.
    assert figures["accuracy"] == {"value": 1.0, "low": 1.0, "high": 1.0, "n": 4} and figures["pairs"] == 7
    assert figures["margin"] == pytest.approx(np.mean(margins), abs=1e-4) and figures["margin"] > 1
    assert figures["length_correlation"] == pytest.approx(correlation, abs=1e-4)
    assert figures["reload_difference"] < 1e-5
    assert (
        f"accuracy on held-out rankings 100.0% [100.0%, 100.0%], margin {np.mean(margins):.2f}, "
        f"correlation of reward with length {correlation:+.2f}\n" in done.out
    )


def test_a_reward_model_by_lora_is_merged_and_its_score_head_trained(tiny_model_dir, rewarded_by_lora):
    untrained, trained = rewarded_by_lora[0.0], rewarded_by_lora[0.01]
    loaded(trained, AutoModelForSequenceClassification)
    before, after, base = weights(untrained), weights(trained), weights(tiny_model_dir)
    assert before.keys() == after.keys() == base.keys() | {"score.weight"}
    assert all(torch.equal(before[name], base[name]) for name in base)
    moved = differing(untrained, trained)
    assert "score.weight" in moved and "transformer.h.1.mlp.c_fc.weight" in moved
    assert not any(name.startswith(("transformer.w", "transformer.ln")) for name in moved)  # tables and norms
    assert results(trained, "reward")["metrics"]["accuracy"]["value"] == 1.0


def test_the_correlation_with_a_length_that_never_changes_is_null(rewarded_by_lora):
    assert results(rewarded_by_lora[0.0], "reward")["metrics"]["length_correlation"] is None  # NaN is no JSON


# PPO


@pytest.fixture(scope="module")
def ready_to_end_dir(tiny_chat_tokenizer, tmp_path_factory) -> Path:
    return ready_to_end(tiny_chat_tokenizer, tmp_path_factory.mktemp("models") / "ready_to_end")


@pytest.fixture(scope="module")
def ppo_settings(ready_to_end_dir, long_is_good_dir, tmp_path_factory) -> dict:
    """8 updates of 32 answers. The reward is the length, of which the assistant can have more by not ending."""
    folder = tmp_path_factory.mktemp("prompts")
    letters = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789!?"
    write_json(folder / "prompts.json", [conversation(letter, letter, "-") for letter in letters])
    write_json(folder / "heldout.json", [conversation(letter, letter, "-") for letter in "+-*/"])
    models = {"sft_model_path": ready_to_end_dir, "reward_model_path": long_is_good_dir}
    data = {"prompts": folder / "prompts.json", "heldout": folder / "heldout.json"}
    rollout = {"per_device_train_batch_size": 16, "gradient_accumulation_steps": 2, "total_episodes": 256}
    method = {
        "num_ppo_epochs": 2,
        "num_mini_batches": 2,
        "response_length": 8,
        "temperature": 1.0,
        "kl_coef": 0.0,
        "learning_rate": 0.001,
    }
    return {**models, **data, **rollout, **method, "stop_token": "eos", "logging_steps": 1, "save_steps": 4}


@pytest.fixture(scope="module")
def improved(ppo_settings, tmp_path_factory) -> tuple[Path, Done, bool]:
    """The folder, what was printed, and whether the reward model on disk is what it was before."""
    folder, reward = tmp_path_factory.mktemp("runs") / "ppo", ppo_settings["reward_model_path"]
    before = {path.name: path.read_bytes() for path in reward.iterdir()}
    done = succeeded(command("ppo", **ppo_settings, **EXACT, output_dir=folder))
    return folder, done, before == {path.name: path.read_bytes() for path in reward.iterdir()}


@pytest.fixture(scope="module")
def improved_again(ppo_settings, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "ppo_again"
    succeeded(again("ppo", **ppo_settings, **EXACT, output_dir=folder))
    return folder


@pytest.fixture(scope="module")
def by_lora(ppo_settings) -> dict:
    """In bf16, which is what a machine that has it takes by itself."""
    return {**ppo_settings, **LORA, "learning_rate": 0.01, "use_cpu": True, "bf16": True}


@pytest.fixture(scope="module")
def improved_by_lora(by_lora, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "ppo_lora"
    succeeded(again("ppo", **by_lora, output_dir=folder))
    return folder


def resumed_from_its_middle(finished: Path, folder: Path, settings: dict) -> Path:
    """A copy of a finished run without what came after update 4, taken up again."""
    shutil.copytree(finished, folder)
    shutil.rmtree(folder / "checkpoint-8")
    for name in ("config.json", "model.safetensors", "ppo.json"):
        (folder / name).unlink()
    succeeded(again("ppo", **settings, output_dir=folder, resume_from_checkpoint="last"))
    return folder


UPDATES = [*range(1, 9)]


def test_ppo_has_a_point_per_update_and_starts_at_its_reference(improved):
    folder, done, _ = improved
    found = results(folder, "ppo")
    curves = {name: [value for _, value in points] for name, points in found["curves"].items()}
    held_out = {name for name in curves if name.startswith("held-out ")}
    assert set(curves) - held_out == {"score", "kl", "length", "eos_rate", "entropy"}
    assert all([step for step, _ in points] == ([0, 8] if name in held_out else UPDATES)
               for name, points in found["curves"].items())  # fmt: skip
    assert curves["held-out score"] == [found["metrics"][f"eval_score_{when}"] for when in ("first", "last")]
    assert abs(curves["kl"][0]) < 1e-5 and abs(found["metrics"]["eval_kl_first"]) < 1e-5
    assert all(1 <= length <= 8 for length in curves["length"])
    assert all(rate * 32 == round(rate * 32) for rate in curves["eos_rate"])  # of 32 answers
    # An answer goes on with probability 0.703, at most to its 8th token: (1 − 0.703⁸) / 0.297 = 3.17 tokens. One whose
    # first eight are none of them the end has no end: 0.703⁸ = 6 %. And −(0.297 ln 0.297 + 0.703 ln (0.703 / 261)) =
    # 4.52 nats a token. Each is drawn 32 times.
    assert curves["length"][0] == pytest.approx(3.17, abs=1.2)
    assert curves["eos_rate"][0] == pytest.approx(0.94, abs=0.15)
    assert curves["entropy"][0] / curves["length"][0] == pytest.approx(4.52, abs=0.7)
    assert found["metrics"]["episodes"] == 256 and found["prompts"] == 64
    assert is_png(folder / "curve.png") and "PPO on 256 episodes" in done.out
    before, after = found["metrics"]["eval_score_first"], found["metrics"]["eval_score_last"]
    assert re.search(rf"score +on held-out prompts: +{before:.3f} → +{after:.3f}\n", done.out)


def test_ppo_reads_the_reward_at_the_end_of_turn(talker, ppo_settings, tmp_path):
    given = {
        **ppo_settings,
        **EXACT,
        "sft_model_path": talker("yes"),
        "total_episodes": 32,
        "output_dir": tmp_path / "ppo",
    }
    succeeded(again("ppo", **given))
    found = results(tmp_path / "ppo", "ppo")["curves"]
    # Three letters and the end of turn, whose place is the 8th: number 7 after the four tokens of the question.
    assert found["length"] == [[1, 4.0]] and found["eos_rate"] == [[1, 1.0]]
    # The reward model of conftest.py gives it (sin, −sin, cos, −cos, 0, …), 32 numbers of variance 2 / 32; the layer norm
    # divides by the root of that, 1 / 4. One token earlier would be −3.82, one later −3.69.
    assert found["score"][0][1] == pytest.approx(4 * math.sin((7 / 63 - 0.5) * math.pi), abs=2e-3)
    assert found["entropy"][0][1] == pytest.approx(0, abs=1e-3)  # it is sure of every token


def test_ppo_gets_more_of_what_is_rewarded(improved):
    found = results(improved[0], "ppo")
    figures, curves = found["metrics"], found["curves"]
    assert figures["eval_score_last"] > figures["eval_score_first"]
    assert figures["eval_length_last"] > figures["eval_length_first"] + 1
    assert curves["length"][-1][1] > curves["length"][0][1] + 1 and curves["kl"][-1][1] > 0.1


def test_the_figures_of_ppo_are_named(improved):
    held_out = ("score", "kl", "rlhf_reward", "length", "eos_rate", "entropy", "repetition")
    names = {f"eval_{name}_{when}" for when in ("first", "last") for name in held_out}
    assert set(results(improved[0], "ppo")["metrics"]) == names | {"episodes", "episodes_per_second"}


def test_ppo_leaves_the_reward_model_alone_and_trains_policy_and_value(improved, ready_to_end_dir, long_is_good_dir):
    folder, _, reward_is_the_same = improved
    assert reward_is_the_same and served_as(folder)
    model, tokenizer = loaded(folder)
    assert model.generation_config.eos_token_id == tokenizer.eos_token_id == tokenizer.convert_tokens_to_ids("<|end|>")
    assert "transformer.ln_f.weight" in differing(folder, ready_to_end_dir)
    assert "score.weight" in differing(folder / "value_model", long_is_good_dir)


def test_two_runs_of_ppo_with_one_seed_agree_exactly(improved, improved_again):
    assert differing(improved[0], improved_again) == set()
    assert differing(improved[0] / "value_model", improved_again / "value_model") == set()
    assert results(improved[0], "ppo")["curves"] == results(improved_again, "ppo")["curves"]


def test_ppo_resumed_from_its_middle_ends_where_the_uninterrupted_run_does(improved, ppo_settings, tmp_path):
    folder = resumed_from_its_middle(improved[0], tmp_path / "ppo", {**ppo_settings, **EXACT})
    found, uninterrupted = results(folder, "ppo"), results(improved[0], "ppo")
    assert found["curves"] == uninterrupted["curves"] and found["metrics"]["episodes"] == 256
    assert found["metrics"]["eval_score_last"] == uninterrupted["metrics"]["eval_score_last"]
    assert differing(folder, improved[0]) == differing(folder / "value_model", improved[0] / "value_model") == set()


def test_ppo_by_lora_is_merged_and_only_its_matrices_have_moved(improved_by_lora, ready_to_end_dir):
    model, tokenizer = loaded(improved_by_lora)
    assert model.generation_config.eos_token_id == tokenizer.eos_token_id == tokenizer.convert_tokens_to_ids("<|end|>")
    moved = differing(improved_by_lora, ready_to_end_dir)
    assert moved and all(name.startswith("transformer.h.") and ".c_" in name for name in moved)
    assert [step for step, _ in results(improved_by_lora, "ppo")["curves"]["kl"]] == UPDATES


def test_ppo_in_bf16_starts_at_its_reference(improved_by_lora):
    assert abs(results(improved_by_lora, "ppo")["curves"]["kl"][0][1]) < 1e-5


def test_ppo_by_lora_resumes_from_its_adapter(improved_by_lora, by_lora, tmp_path):
    folder = resumed_from_its_middle(improved_by_lora, tmp_path / "ppo", by_lora)
    assert results(folder, "ppo")["curves"] == results(improved_by_lora, "ppo")["curves"]
    assert differing(folder, improved_by_lora) == set()


# What is wrong with the input is one clear line, before any work


def test_a_stage_without_the_one_before_names_the_command_that_makes_it(
    pretrain_settings, sft_settings, reward_settings, ppo_settings, tmp_path
):
    missing, out = tmp_path / "not_there", {"output_dir": tmp_path / "out"}
    cases = [
        ("pretrain", {**pretrain_settings, "tokenizer": missing}, "python -m data_prep.train_tokenizer"),
        ("pretrain", {**pretrain_settings, "tokens": missing}, "python -m data_prep.mix_corpus"),
        ("sft", {**sft_settings, "model_name_or_path": missing}, "recipes/pretrain.py"),
        ("reward", {**reward_settings, "model_name_or_path": missing}, "recipes/sft.py"),
        ("ppo", {**ppo_settings, "sft_model_path": missing}, "recipes/sft.py"),
        ("ppo", {**ppo_settings, "reward_model_path": missing}, "recipes/reward.py"),
    ]
    for recipe, settings, command_before in cases:
        done = again(recipe, **{**EXACT, **settings}, **out)
        refused(done, f"error: {missing}: no such file or folder; it is made by: {command_before}")


def test_a_name_that_is_neither_a_folder_nor_a_model_at_hand_is_refused(sft_settings, reward_settings, tmp_path):
    """A Hub id looks like a relative folder, and the Hub cannot be reached."""
    for name in ("base", "out/base"):
        given = {**EXACT, "output_dir": tmp_path / "out", "model_name_or_path": name}
        refused(again("sft", **{**sft_settings, **given}), f"error: {name}: ", "neither", "recipes/pretrain.py")
        refused(again("reward", **{**reward_settings, **given}), f"error: {name}: ", "neither", "recipes/sft.py")


def test_what_does_not_fit_the_context_is_refused(
    sft_settings, reward_settings, ppo_settings, tiny_model_dir, tmp_path
):
    out = {**EXACT, "output_dir": tmp_path / "out"}
    message = "max_length is 65, but the model has 64 positions: set max_length to 64 or less"
    given = {**sft_settings, "model_name_or_path": tiny_model_dir, "max_length": 65}
    refused(again("sft", **given, **out), message)
    refused(again("reward", **{**reward_settings, "max_length": 65}, **out), message)
    # Every question is one letter between two marks, and a mark opens the answer: 4 + 61 tokens.
    refused(
        again("ppo", **{**ppo_settings, "response_length": 61}, **out),
        "64 of 64 training prompts",
        "longer than 3 tokens",
    )
    refused(
        again("ppo", **{**ppo_settings, "response_length": 60, "num_mini_batches": 3}, **out), "into 3 mini-batches"
    )


def test_a_held_out_question_that_does_not_fit_the_context_is_refused(ppo_settings, tmp_path):
    write_json(tmp_path / "heldout.json", [conversation("long", "x" * 54, "-")])  # 54 + 3 marks + 8 tokens: 65
    given = {**ppo_settings, **EXACT, "heldout": tmp_path / "heldout.json", "output_dir": tmp_path / "out"}
    refused(again("ppo", **given), "1 of 1 held-out prompts are longer than 56", "heldout.json, row 1")


def test_an_answer_that_does_not_fit_the_context_is_refused_before_training(sft_settings, tiny_model_dir, tmp_path):
    given = {**sft_settings, **EXACT, "model_name_or_path": tiny_model_dir, "max_new_tokens": 64, "max_steps": 1}
    refused(again("sft", **given, output_dir=tmp_path / "out"), "max_new_tokens", "64")


def test_a_tokenizer_that_does_not_fit_is_refused(
    pretrain_settings, sft_settings, reward_settings, ppo_settings, tiny_model_dir, tmp_path
):
    larger = train_tokenizer(iter(["yes yes no no"]), TOKENS + 2)
    assert len(larger) == TOKENS + 2
    larger.save_pretrained(tmp_path / "tokenizer")
    shutil.copytree(tiny_model_dir, tmp_path / "model")
    larger.save_pretrained(tmp_path / "model")
    out = {**EXACT, "output_dir": tmp_path / "out"}
    message = "the tokenizer does not fit the checkpoint: it has 264 entries, the model 262"
    refused(again("sft", **sft_settings, model_name_or_path=tmp_path / "model", **out), message)
    refused(again("reward", **{**reward_settings, "model_name_or_path": tmp_path / "model"}, **out), message)
    refused(again("ppo", **{**ppo_settings, "sft_model_path": tmp_path / "model"}, **out), message)
    given = {**pretrain_settings, "tokenizer": tmp_path / "tokenizer", "output_dir": tmp_path / "out"}
    refused(again("pretrain", **given), "tokenized with 262 entries, but", "has 264")


def test_a_language_model_is_no_reward_model(ppo_settings, tiny_model_dir, tmp_path):
    """The library would draw a score head at random, and PPO would follow it."""
    given = {**ppo_settings, **EXACT, "reward_model_path": tiny_model_dir, "output_dir": tmp_path / "out"}
    refused(again("ppo", **given), str(tiny_model_dir), "reward model")


def test_a_key_that_no_recipe_knows_is_refused_by_name(sft_settings, tmp_path):
    config = tmp_path / "sft.yaml"
    config.write_text(yaml.safe_dump({**sft_settings, "output_dir": str(tmp_path / "out"), "lerning_rate": 0.1}))
    refused(again("sft", config=config), f"error: {config}: unknown key lerning_rate;")
    refused(again("sft", config=tmp_path / "sft.yml"), f"error: {tmp_path / 'sft.yml'}: no such file or folder")
    given = {**sft_settings, "model_name_or_path": "x", "output_dir": tmp_path / "out", "lerning_rate": 0.1}
    refused(again("sft", **given), "--lerning_rate")


def test_a_max_length_of_none_is_the_models_context(sft_settings, tiny_model_dir, tmp_path):
    config = tmp_path / "sft.yaml"
    given = {**sft_settings, **EXACT, "model_name_or_path": str(tiny_model_dir), "max_length": None, "max_steps": 1}
    config.write_text(yaml.safe_dump({**given, "packing": False, "output_dir": str(tmp_path / "out")}))
    done = succeeded(again("sft", config=config, logging_steps=1))
    assert "1 conversation is longer than max_length=64 tokens: training will not see the last 13 tokens" in done.out


def test_conversations_that_cannot_be_used_are_counted_by_kind(sft_settings, tiny_model_dir, tmp_path):
    files = {name: tmp_path / f"{name}.json" for name in ("cut", "bad")}
    files["cut"].write_text('[{"id": "1", "conversations": [')
    rows = [conversation("good", "a", "b"), conversation("silent", "a", " "), conversation("asked", "a")]
    rows += [{"id": name, "conversations": [{"from": name, "value": "a"}]} for name in ("bot", "model")]
    twice = [{"from": speaker, "value": "a"} for speaker in ("human", "human", "gpt")]
    files["bad"].write_text(json.dumps([*rows, {"id": "twice", "conversations": twice}]))
    given = {**EXACT, "model_name_or_path": tiny_model_dir, "output_dir": tmp_path / "out"}
    done = again("sft", **{**sft_settings, "conversations": files["cut"]}, **given)
    refused(done, f"error: {files['cut']}: 1 row cannot be used: 1 × broken JSON\n", "found line 1, column 32: ")
    done = again("sft", **{**sft_settings, "conversations": files["bad"]}, **given)
    text = refused(done, f"error: {files['bad']}: 5 rows cannot be used: ")
    counts = "2 × unknown role, 1 × empty turn, 1 × no assistant turn, 1 × two turns of the same speaker in a row"
    assert text.splitlines()[0].endswith(counts)
    assert "row 6 (id 'twice'), line 1: found human at turn 2 after human; expected gpt" in text
    assert "row 4 (id 'bot'), line 1: found 'bot' under 'from' at turn 1" in text


def test_bad_rows_are_set_aside_and_long_ones_split_where_asked(sft_settings, tiny_model_dir, tmp_path):
    bad = {"id": "bad", "conversations": [{"from": "bot", "value": "a"}]}
    several = {
        "messages": [{"role": role, "content": "a" * 20} for role in ("user", "assistant") * 2]
    }  # 4 × 22 tokens
    (tmp_path / "mixed.jsonl").write_text("".join(json.dumps(row) + "\n" for row in (bad, several)))
    given = {
        **sft_settings,
        **EXACT,
        "model_name_or_path": tiny_model_dir,
        "output_dir": tmp_path / "out",
        "max_steps": 1,
    }
    given |= {"conversations": tmp_path / "mixed.jsonl", "on_bad": "quarantine", "long": "split"}
    done = succeeded(again("sft", **given))
    aside = tmp_path / "out" / "quarantine.jsonl"
    assert f"rows in 2 = rows out 1 + quarantined 1, which are in {aside}\n" in done.out
    assert "1 conversation is longer than max_length=64 tokens: split at turns into 2 (long: split)\n" in done.out
    assert json.loads(aside.read_text())["raw"] == json.dumps(bad)
    assert results(tmp_path / "out", "sft")["conversations"] == 2


def test_held_out_rankings_about_prompts_of_the_training_are_refused(reward_settings, ranked, tmp_path):
    rows = [ranking("o", {"yes": 0, "no": 1}), ranking("a", {"yes": 0, "nothing": 1})]  # other answers, same question
    write_jsonl(tmp_path / "heldout.jsonl", rows)
    given = {**reward_settings, **EXACT, "heldout": tmp_path / "heldout.jsonl", "output_dir": tmp_path / "out"}
    refused(again("reward", **given), "1 of 2 held-out prompts is trained on too; split by prompt")


@pytest.mark.slow
def test_documents_kept_apart_do_not_learn_from_each_other(pretrain_settings, tiny_tokenizer, tmp_path):
    """abcd and efgh take turns: which of them comes next is told by the one before, where it can be seen."""
    ids = tiny_tokenizer("abcd<|endoftext|>efgh<|endoftext|>" * 6 * POSITIONS)["input_ids"]
    write_shards(tmp_path / "tokens", ids, tiny_tokenizer.name_or_path)
    given = {**pretrain_settings, "tokens": tmp_path / "tokens", "max_steps": 150, "logging_steps": 10}
    losses = []
    for apart in (False, True):
        folder = tmp_path / str(apart)
        succeeded(again("pretrain", **given, document_attention=apart, output_dir=folder))
        losses.append(json.loads((folder / "pretrain.json").read_text())["curves"]["loss"][-1][1])
    # By the end of text alone a and e are equally likely, in one of five places; what came before tells them apart.
    assert losses[0] < 0.02 and losses[1] == pytest.approx(math.log(2) / 5, rel=0.05)


def test_tokens_that_do_not_fill_a_block_are_refused(pretrain_settings, tmp_path):
    write_shards(tmp_path, [0] * (POSITIONS - 1), pretrain_settings["tokenizer"])
    given = {**pretrain_settings, "tokens": tmp_path, "output_dir": tmp_path / "out"}
    refused(again("pretrain", **given), f"{tmp_path}", "63", "64")


def test_a_finished_model_is_not_written_over(
    pretrained,
    tuned,
    rewarded,
    improved,
    pretrain_settings,
    sft_settings,
    reward_settings,
    ppo_settings,
    tiny_model_dir,
):
    sft_settings = {**sft_settings, "model_name_or_path": tiny_model_dir}
    finished = {"pretrain": pretrained, "sft": tuned, "reward": rewarded, "ppo": improved}
    settings = {"pretrain": pretrain_settings, "sft": sft_settings, "reward": reward_settings, "ppo": ppo_settings}
    for recipe, (folder, *_) in finished.items():
        before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
        run = command if recipe == "sft" else again
        refused(run(recipe, **{**EXACT, **settings[recipe]}, output_dir=folder), f"{folder}: holds a finished model")
        assert before == {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_finished_adapter_is_not_written_over(sft_settings, tiny_model_dir, tmp_path):
    given = {**sft_settings, **LORA, "model_name_or_path": tiny_model_dir, "merge_adapter": False, "max_steps": 5}
    succeeded(again("sft", **given, output_dir=tmp_path / "sft"))
    before = (tmp_path / "sft" / "adapter_model.safetensors").read_bytes()
    refused(again("sft", **given, seed=1, output_dir=tmp_path / "sft"), "holds a finished model")
    assert (tmp_path / "sft" / "adapter_model.safetensors").read_bytes() == before
