"""eval.win_rate, with figures worked out by hand: who wins, and the KL from the opponent."""

import math
from pathlib import Path

import pytest
import torch
from helpers.models import save, tiny_config
from helpers.recipes import results
from transformers import GPT2LMHeadModel

from data_prep.common.intervals import bootstrap_interval
from data_prep.models import loading, scoring
from data_prep.models.generation import generate_answers
from data_prep.models.scoring import sequence_logprobs
from data_prep.train_tokenizer import train_tokenizer
from eval import win_rate


def test_win_rate_by_hand(command, yes, no, questions, tmp_path):
    # Three questions are answered by "yes", one by "no": the one who says yes wins three times and loses once.
    arguments = ("--model", yes, "--opponent", no, "--conversations", questions, "--max_new_tokens", 8)
    code, out, err = command(win_rate, *arguments, "--name", "yes_vs_no", "--results_dir", tmp_path)
    assert code == 0, err
    found = results(tmp_path, "win_rate_yes_vs_no")
    metrics = found["metrics"]
    assert metrics["win_rate"] == bootstrap_interval([1, 0, 1, 1])
    # Four answers of each, every one against every one: 16 comparisons a question.
    assert (metrics["wins"], metrics["ties"], metrics["losses"]) == (48, 0, 16)
    assert metrics["exact_match"]["value"] == 0.75 and metrics["opponent_exact_match"]["value"] == 0.25
    assert "proxy for a human judge" in found["judge"] and "proxy for a human judge" in out
    assert "yes_vs_no: wins 75.0% [25.0%, 100.0%] on 4 prompts (48 wins, 0 ties, 16 losses)" in out


def test_a_model_against_itself_is_even(command, tiny_model_dir, questions, tmp_path):
    arguments = ("--model", tiny_model_dir, "--opponent", tiny_model_dir, "--conversations", questions)
    code, _, err = command(win_rate, *arguments, "--temperature", 0, "--max_new_tokens", 6, "--results_dir", tmp_path)
    assert code == 0, err
    found = results(tmp_path, "win_rate_tiny_vs_tiny")
    assert found["metrics"]["win_rate"] == {"value": 0.5, "low": 0.5, "high": 0.5, "n": 4}
    assert found["metrics"]["ties"] == 4 and found["num_return_sequences"] == 1


def test_sampled_answers_depend_on_the_seed_alone(command, tiny_model_dir, yes, questions, tmp_path):
    found = []
    for folder, seed in (("a", 1), ("b", 1), ("c", 2)):
        arguments = ("--model", tiny_model_dir, "--opponent", yes, "--conversations", questions, "--seed", seed)
        command(win_rate, *arguments, "--max_new_tokens", 6, "--name", "x", "--results_dir", tmp_path / folder)
        found.append([row["answer"] for row in results(tmp_path / folder, "win_rate_x")["examples"]])
    assert found[0] == found[1] != found[2]


@pytest.fixture(scope="module")
def leaning(tiny_chat_tokenizer, tmp_path_factory) -> Path:
    """A model to which, everywhere, each of y, e, s and <|end|> is e^(2 ln 2) = 4 times as likely as any other token."""
    model = GPT2LMHeadModel(tiny_config(tiny_chat_tokenizer, n_layer=1, tie_word_embeddings=False))
    for weight in model.parameters():
        torch.nn.init.zeros_(weight)
    with torch.no_grad():
        model.transformer.ln_f.bias[0] = 1.0  # the only thing that reaches the output matrix
        favoured = tiny_chat_tokenizer("yes<|end|>", add_special_tokens=False)["input_ids"]
        model.lm_head.weight[favoured, 0] = 2 * math.log(2)
    return save(model, tiny_chat_tokenizer, tmp_path_factory.mktemp("models") / "leaning")


@pytest.mark.parametrize(
    ("temperature", "max_new_tokens", "nats", "stops"),
    [
        # Of 262 entries four weigh 4 and the others 1. The answer y, e, s, <|end|> is certain on the one side.
        (1.0, 8, 4 * math.log((4 * 4 + 258) / 4), 1.0),
        # At temperature 2 the four weigh the root of it.
        (2.0, 8, 4 * math.log((4 * 2 + 258) / 2), 1.0),
        # Cut after two tokens, an answer has no end that could count.
        (1.0, 2, 2 * math.log((4 * 4 + 258) / 4), 0.0),
    ],
)
def test_kl_by_hand(command, yes, leaning, questions, tmp_path, temperature, max_new_tokens, nats, stops):
    arguments = ("--model", yes, "--opponent", leaning, "--conversations", questions, "--temperature", temperature)
    arguments += ("--max_new_tokens", max_new_tokens, "--name", "x", "--results_dir", tmp_path)
    code, out, err = command(win_rate, *arguments)
    assert code == 0, err
    metrics = results(tmp_path, "win_rate_x")["metrics"]
    assert metrics["kl"] == {key: pytest.approx(nats, rel=1e-5) for key in ("value", "low", "high")} | {"n": 4}
    assert metrics["eos_rate"] == stops and metrics["length"] == min(4, max_new_tokens)
    assert metrics["opponent_eos_rate"] < 1 and 1 <= metrics["opponent_length"] <= max_new_tokens
    assert f"KL from the opponent {nats:.2f} [{nats:.2f}, {nats:.2f}] nats per answer" in out


def test_kl_counts_the_prompts_that_fit_and_is_0_from_itself(command, tiny_model_dir, write_conversations, tmp_path):
    # 64 positions, 8 of them for the answer: a question of 53 letters with its two marks and <|assistant|> just fits.
    rows = [("a", "1?", "yes"), ("b", "x" * 53, "yes"), ("c", "x" * 54, "yes")]
    arguments = ("--model", tiny_model_dir, "--opponent", tiny_model_dir, "--max_new_tokens", 8)
    arguments += ("--conversations", write_conversations(rows), "--name", "x", "--results_dir", tmp_path)
    code, out, err = command(win_rate, *arguments)
    assert code == 0, err
    assert results(tmp_path, "win_rate_x")["metrics"]["kl"] == {"value": 0.0, "low": 0.0, "high": 0.0, "n": 2}
    assert "KL: 1 of 3 prompts are longer than 56 tokens and are left out\n" in out
    arguments = (*arguments[:6], "--conversations", write_conversations(rows[2:]), *arguments[8:])
    assert command(win_rate, *arguments)[0] == 0
    assert "kl" not in results(tmp_path, "win_rate_x")["metrics"]


def test_no_kl_of_greedy_answers_nor_between_tokenizers(command, yes, zero_model_dir, questions, tmp_path):
    tokenizer = train_tokenizer(iter(["yes and no, and what is right"]), 263)  # one merge more
    other = save(GPT2LMHeadModel(tiny_config(tokenizer)), tokenizer, tmp_path / "other")
    for opponent, temperature in ((zero_model_dir, 0), (other, 1.0)):
        arguments = ("--model", yes, "--opponent", opponent, "--conversations", questions, "--max_new_tokens", 8)
        arguments += ("--temperature", temperature, "--name", "x", "--results_dir", tmp_path)
        code, out, err = command(win_rate, *arguments)
        assert code == 0, err
        metrics = results(tmp_path, "win_rate_x")["metrics"]
        assert "kl" not in metrics and "KL" not in out and metrics["length"] == 4


def test_log_probabilities_do_not_depend_on_the_batch(tiny_model_dir, monkeypatch):
    model, tokenizer = loading.load_checkpoint(str(tiny_model_dir))
    prompts = [[{"role": "user", "content": text}] for text in ("a", "and what is right?", "no")]
    drawn = [answer["ids"] for (answer,) in generate_answers(model, tokenizer, prompts, 12, temperature=1.0)]
    expected = []
    for prompt, ids in zip(prompts, drawn, strict=True):
        start = tokenizer.apply_chat_template(prompt, add_generation_prompt=True)["input_ids"]
        logprobs = model(torch.tensor([start + ids], device=model.device)).logits[0].log_softmax(-1)
        expected.append(sum(logprobs[len(start) - 1 + i, token].item() for i, token in enumerate(ids)))
    for batch_size in (1, 2, 3):
        assert sequence_logprobs(model, tokenizer, prompts, drawn, 1.0, batch_size) == pytest.approx(
            expected, abs=1e-4
        )
    monkeypatch.setattr(scoring, "LOGITS", 1)  # each row alone, out of a batch of all
    assert sequence_logprobs(model, tokenizer, prompts, drawn, 1.0, 3) == pytest.approx(expected, abs=1e-4)


def test_answers_come_with_the_ids_that_were_drawn(yes):
    model, tokenizer = loading.load_checkpoint(str(yes))
    prompts = [[{"role": "user", "content": "a"}]]
    for max_new_tokens, drawn in ((8, "yes<|end|>"), (2, "ye")):
        ((answer,),) = generate_answers(model, tokenizer, prompts, max_new_tokens)
        assert answer["ids"] == tokenizer(drawn, add_special_tokens=False)["input_ids"]
