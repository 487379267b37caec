"""Every evaluation through its command, with figures worked out by hand."""

import io
import json
import math
import re
import subprocess
import sys
from pathlib import Path

import evaluate
import matplotlib.image
import pytest
import torch
from helpers.evaluations import assert_small_picture, interval
from helpers.models import save, tiny_config
from transformers import GPT2LMHeadModel

from data_prep.common.files import write_json, write_jsonl, write_results
from data_prep.common.intervals import bootstrap_interval, show_interval, show_nats
from data_prep.common.plots import sheet, wrapped
from data_prep.judging.judges import outcome_by_reference
from data_prep.models import loading
from data_prep.models.bits_per_byte import heldout_batches
from data_prep.models.generation import generate_answers
from data_prep.models.scoring import sequence_logprobs
from data_prep.train_tokenizer import train_tokenizer
from eval import answers, chat, metrics, perplexity, report, reward_accuracy, win_rate
from eval.common.grouped import grouped
from eval.metrics import load_metric
from eval.reporting.drawing.example import caption, example_question, mark
from eval.reporting.drawing.pictures import answers_picture
from eval.reporting.publishing import BEGIN, END, tables_in
from eval.reporting.tables import comparison, markdown, verdict

SURE = {"low": 1.0, "high": 1.0}


def results(folder: Path, name: str) -> dict:
    return json.loads((folder / f"{name}.json").read_text())


@pytest.fixture(scope="module")
def yes(talker) -> Path:
    return talker("yes")


@pytest.fixture(scope="module")
def no(talker) -> Path:
    return talker("no")


@pytest.fixture
def questions(write_conversations) -> Path:
    """Four questions, three of them answered by "yes" and one by "no"."""
    rows = [
        ("a/what/1", "1?", "yes"),
        ("b/what/2", "2?", "no"),
        ("c/module/3", "3?", "yes"),
        ("d/module/4", "4?", "yes"),
    ]
    return write_conversations(rows)


# Metrics


def test_intervals_as_they_are_written():
    assert show_interval({"value": 0.721, "low": 0.698, "high": 0.743, "n": 9}) == "72.1% [69.8%, 74.3%]"
    assert show_nats({"value": 1.25, "low": -0.001, "high": 1.506, "n": 9}) == "1.25 [0.00, 1.51]"


def test_metrics_load_by_path_and_ignore_blanks_but_not_case():
    metric = evaluate.load(str(Path(metrics.__file__).with_name("exact_match.py")))
    texts = {"predictions": ["a  b\n", "A b", "", "é 漢字"], "references": ["a b", "a b", "x", "é 漢字"]}
    found = metric.compute(**texts)
    assert found["matches"] == [True, False, False, True]
    assert found["exact_match"] == bootstrap_interval([1, 0, 0, 1])
    assert found["exact_match"]["value"] == 0.5 and found["exact_match"]["n"] == 4


def test_chrf_by_hand():
    found = load_chrf([("abc", "abc"), ("c", "d")])
    assert found["sentence_chrf"] == [100.0, 0.0]
    # As one corpus: of the single characters 3 of 4 match, of the pairs 2 of 2, of the triples 1 of 1; precision and
    # recall are alike, and the mean over the orders that occur is (3/4 + 1 + 1) / 3.
    assert found["chrf"] == pytest.approx(100 * (0.75 + 1 + 1) / 3)
    # "ab" for "abc": precision 1 and 1; recall 2/3 and 1/2 (no triple in the answer, so that order is left out):
    # P = 1, R = 7/12, chrF2 = 5PR / (4P + R).
    recall = (2 / 3 + 1 / 2) / 2
    assert load_chrf([("ab", "abc")])["chrf"] == pytest.approx(100 * 5 * recall / (4 + recall))


def load_chrf(pairs):
    predictions, references = zip(*pairs, strict=True)
    return load_metric("chrf").compute(predictions=list(predictions), references=list(references))


def test_win_rate_metric():
    metric = load_metric("win_rate")
    assert metric.compute(wins=[1.0, 0.5, 0.0])["win_rate"]["value"] == 0.5
    assert metric.compute(wins=[1.0] * 5)["win_rate"] == {"value": 1.0, **SURE, "n": 5}
    with pytest.raises(ValueError, match="found 2.0"):
        metric.compute(wins=[2.0])


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        ((True, 100.0), (False, 99.9), 1.0),  # a match beats anything, however close
        ((False, 99.9), (True, 100.0), 0.0),
        ((True, 100.0), (True, 100.0), 0.5),
        ((False, 54.9), (False, 50.0), 0.5),
        ((False, 55.0), (False, 50.0), 1.0),
        ((False, 50.0), (False, 55.0), 0.0),
    ],
)
def test_judge(first, second, expected):
    assert outcome_by_reference(*first, *second) == expected


# Perplexity


def test_zero_model_spreads_its_bets_evenly(command, zero_model_dir, tmp_path):
    # 262 entries, all as likely, and a token per byte: log2(262) bits per byte, perplexity 262. The second document is
    # longer than the context of 64.
    texts = ["yes and no", "what is right " * 20]
    write_jsonl(tmp_path / "documents.jsonl", [{"text": text} for text in texts])
    command_line = ("--model", zero_model_dir, "--documents", tmp_path / "documents.jsonl", "--results_dir", tmp_path)
    code, out, err = command(perplexity, *command_line)
    assert code == 0, err
    found = results(tmp_path, "perplexity_base")
    assert found["metrics"]["bits_per_byte"] == pytest.approx(math.log2(262), rel=1e-5)
    assert found["metrics"]["perplexity_per_token"] == pytest.approx(262, rel=1e-4)
    assert (found["tokens"], found["bytes"], found["context"]) == (10 + 280, 10 + 280, 64)
    assert "8.033 bits per byte, perplexity 262.0 per token, on 290 bytes (290 tokens)" in out


def test_windows_cover_every_token_once(tiny_tokenizer, tmp_path):
    text = "abcdefg" * 3  # 21 tokens in windows of 8: 8, 8 and 5
    write_jsonl(tmp_path / "one.jsonl", [{"text": text}])
    (batch,) = heldout_batches(tmp_path / "one.jsonl", tiny_tokenizer, 8)
    ids = tiny_tokenizer(text)["input_ids"]
    assert batch["labels"].tolist() == [ids[:8], ids[8:16], ids[16:] + [-100] * 3]
    assert batch["input_ids"][0].tolist() == [tiny_tokenizer.bos_token_id, *ids[:7]]
    assert batch["input_ids"][1].tolist() == ids[7:15]  # a window starts from the token before it, and knows no more
    assert batch["bytes"] == [8, 8, 5]


# Answers


def test_answers(command, yes, questions, tmp_path):
    arguments = ("--model", yes, "--conversations", questions, "--group_by", "/([a-z]+)/", "--max_new_tokens", 8)
    code, out, err = command(answers, *arguments, "--name", "talk", "--results_dir", tmp_path)
    assert code == 0, err
    found = results(tmp_path, "answers_talk")
    assert found["metrics"]["exact_match"] == bootstrap_interval([1, 0, 1, 1])
    assert found["metrics"]["exact_match"]["value"] == 0.75
    assert found["metrics"]["eos_rate"] == 1.0
    assert found["metrics"]["length"] == 4  # y, e, s and the end of the turn
    assert found["metrics"]["chrf"] < 100
    values = {group: (v["exact_match"]["value"], v["exact_match"]["n"]) for group, v in found["groups"].items()}
    assert values == {"module": (1.0, 2), "what": (0.5, 2)}
    assert found["groups"]["module"]["chrf"] == 100
    assert found["examples"][1] == {
        "id": "b/what/2", "prompt": [{"role": "user", "content": "2?"}], "reference": "no", "answer": "yes",
    }  # fmt: skip
    assert out.startswith("conversations.json: 4 conversations\n") and out.count("\n") == 2
    assert "talk: exact match 75.0% [25.0%, 100.0%] on 4 prompts (module 100.0%" in out
    assert out.endswith(", EOS rate 100%\n")


def test_answers_that_never_stop_and_limit(command, zero_model_dir, questions, tmp_path):
    arguments = ("--model", zero_model_dir, "--conversations", questions, "--max_new_tokens", 5, "--limit", 3)
    code, _, err = command(answers, *arguments, "--results_dir", tmp_path)
    assert code == 0, err
    found = results(tmp_path, "answers_base")  # of all-zero logits, greedy takes entry 0: <|endoftext|>, its own end
    assert found["prompts"] == 3 and found["groups"] == {}
    assert found["metrics"]["exact_match"]["value"] == 0.0
    assert found["metrics"]["length"] == 1


def test_what_the_expression_does_not_find_is_a_group_of_its_own():
    rows = [{"id": "a/what/1"}, {"id": "42"}]
    assert grouped(rows, re.compile("/([a-z]+)/")) == {"no match": [1], "what": [0]}
    assert grouped(rows, re.compile("[0-9]+")) == {"1": [0], "42": [1]}


# Bad rows


@pytest.fixture
def defective(write_conversations) -> Path:
    """Three questions, all answered by "yes"; in the second, the user takes two turns in a row."""
    path = write_conversations([("a", "1?", "yes"), ("b", "2?", "yes"), ("c", "3?", "yes")])
    rows = json.loads(path.read_text())
    rows[1]["conversations"].insert(0, {"from": "human", "value": "Well"})
    write_json(path, rows)
    return path


@pytest.mark.parametrize("module", [answers, win_rate])
def test_a_bad_row_is_refused_repaired_or_quarantined(command, module, yes, no, defective, tmp_path):
    arguments = ("--model", yes, "--conversations", defective, "--max_new_tokens", 8, "--name", "x")
    arguments += ("--opponent", no) if module is win_rate else ()
    code, out, err = command(module, *arguments)
    assert code == 1 and f"{defective}: 1 row cannot be used" in err and "row 2 (id 'b')" in err
    assert "repair" in err and "quarantine" in err

    code, out, err = command(module, *arguments, "--on_bad", "quarantine")
    assert code == 1 and err.endswith(
        "error: --on_bad quarantine: give --results_dir, where bad rows go to quarantine_<name>.jsonl\n"
    )

    stem = f"{module.__name__.removeprefix('eval.')}_x"
    for on_bad, kept in (("repair", ["a", "b", "c"]), ("quarantine", ["a", "c"])):
        code, out, err = command(module, *arguments, "--on_bad", on_bad, "--results_dir", tmp_path / on_bad)
        assert code == 0, err
        found = results(tmp_path / on_bad, stem)
        assert [example["id"] for example in found["examples"]] == kept and found["prompts"] == len(kept)
        assert found["metrics"]["exact_match"]["value"] == 1.0
        if on_bad == "repair":
            assert "3 conversations, repaired: 1 × two turns of" in out
            assert found["examples"][1]["prompt"] == [{"role": "user", "content": "Well\n2?"}]
            assert not (tmp_path / on_bad / "quarantine_x.jsonl").exists()
        else:
            assert "rows in 3 = rows out 2 + quarantined 1" in out
            (bad,) = map(json.loads, (tmp_path / on_bad / "quarantine_x.jsonl").read_text().splitlines())
            assert (bad["file"], bad["row"]) == (str(defective), 2)


def test_bad_rankings_and_documents(command, long_is_good_dir, zero_model_dir, tmp_path):
    write_jsonl(tmp_path / "rankings.jsonl", [{"q": "1?", "good": "long answer", "bad": "short"}, {"q": "2?"}])
    arguments = ("--model", long_is_good_dir, "--rankings", tmp_path / "rankings.jsonl")
    arguments += ("--columns", "prompt=q,chosen=good,rejected=bad", "--name", "x", "--results_dir", tmp_path)
    assert command(reward_accuracy, *arguments)[0] == 1
    code, out, err = command(reward_accuracy, *arguments, "--on_bad", "quarantine")
    assert code == 0 and out.startswith("quarantined: 1\nx: 100.0%"), err
    assert json.loads((tmp_path / "quarantine_x.jsonl").read_text())["row"] == 2

    write_jsonl(tmp_path / "documents.jsonl", [{"body": "yes"}, {"body": 7}])
    arguments = ("--model", zero_model_dir, "--documents", tmp_path / "documents.jsonl", "--text_column", "body")
    assert command(perplexity, *arguments)[0] == 1
    code, out, err = command(perplexity, *arguments, "--on_bad", "quarantine", "--results_dir", tmp_path)
    assert code == 0 and "rows in 2 = rows out 1 + quarantined 1" in out and "on 3 bytes (3 tokens)" in out, err
    assert json.loads((tmp_path / "quarantine_base.jsonl").read_text())["row"] == 2


# Reward accuracy


def test_reward_accuracy(command, long_is_good_dir, tmp_path):
    # The longer answer is preferred. Right on the first prompt (1 of 1), on 2 of 3 pairs of the second, wrong on the
    # third: the mean over prompts is (1 + 2/3 + 0) / 3.
    rows = [
        {"prompt": "1?", "completions": ["long answer", "short"], "ranks": [0, 1]},
        {"prompt": "2?", "completions": ["aaaa", "aaaaaaaa", "a"], "ranks": [0, 1, 2]},
        {"prompt": "3?", "chosen": "a", "rejected": "aaa"},
    ]
    write_jsonl(tmp_path / "rankings.jsonl", rows)
    arguments = ("--model", long_is_good_dir, "--rankings", tmp_path / "rankings.jsonl", "--name", "heldout")
    code, out, err = command(reward_accuracy, *arguments, "--results_dir", tmp_path)
    assert code == 0, err
    found = results(tmp_path, "reward_accuracy_heldout")
    assert found["metrics"]["accuracy"]["value"] == pytest.approx((1 + 2 / 3 + 0) / 3)
    assert found["metrics"]["accuracy"]["n"] == 3
    assert found["metrics"]["pairs"] == 5
    assert found["metrics"]["length_correlation"] > 0.99
    assert "heldout: 55.6% [" in out and "of 5 pairs right (from 3 prompts)" in out


def test_equal_rewards_have_no_correlation(command, long_is_good_dir, tmp_path):
    write_jsonl(tmp_path / "rankings.jsonl", [{"prompt": "?", "chosen": "ab", "rejected": "cd"}])
    arguments = ("--model", long_is_good_dir, "--rankings", tmp_path / "rankings.jsonl", "--results_dir", tmp_path)
    code, out, err = command(reward_accuracy, *arguments)
    assert code == 0 and "correlation of reward with length undefined\n" in out and "RuntimeWarning" not in err
    found = results(tmp_path, "reward_accuracy_long_is_good")["metrics"]
    assert found["length_correlation"] is None and found["accuracy"]["value"] == 0 and found["margin"] == 0


# Win rate


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


def test_log_probabilities_do_not_depend_on_the_batch(tiny_model_dir):
    model, tokenizer = loading.load_checkpoint(str(tiny_model_dir))
    prompts = [[{"role": "user", "content": text}] for text in ("a", "and what is right?", "no")]
    drawn = [answer["ids"] for (answer,) in generate_answers(model, tokenizer, prompts, 12, temperature=1.0)]
    expected = []
    for prompt, ids in zip(prompts, drawn, strict=True):
        start = tokenizer.apply_chat_template(prompt, add_generation_prompt=True)["input_ids"]
        logprobs = model(torch.tensor([start + ids])).logits[0].log_softmax(-1)
        expected.append(sum(logprobs[len(start) - 1 + i, token].item() for i, token in enumerate(ids)))
    for batch_size in (1, 2, 3):
        assert sequence_logprobs(model, tokenizer, prompts, drawn, 1.0, batch_size) == pytest.approx(
            expected, abs=1e-4
        )


def test_answers_come_with_the_ids_that_were_drawn(yes):
    model, tokenizer = loading.load_checkpoint(str(yes))
    prompts = [[{"role": "user", "content": "a"}]]
    for max_new_tokens, drawn in ((8, "yes<|end|>"), (2, "ye")):
        ((answer,),) = generate_answers(model, tokenizer, prompts, max_new_tokens)
        assert answer["ids"] == tokenizer(drawn, add_special_tokens=False)["input_ids"]


# Chat


def talk(command, monkeypatch, text: str, *arguments) -> tuple[int, str, str]:
    monkeypatch.setattr(sys, "stdin", io.StringIO(text))
    return command(chat, *arguments)


def test_chat_answers_and_forgets(command, monkeypatch, yes):
    text = "hi\n\n/reset\nhi\n/exit\nnever read\n"
    code, out, err = talk(command, monkeypatch, text, "--model", yes, "--max_new_tokens", 8)
    assert code == 0, err
    assert "it answers, and remembers" in out
    assert out.count("model> yes\n") == 2 and "(forgotten)" in out and "never read" not in out


def test_chat_trims_what_no_longer_fits(command, monkeypatch, yes):
    # 56 tokens beside the answer. A turn of 10 letters is 12 with its two marks, an answer 5, and one opens the
    # answer: 12, 29 and 46 tokens come before the first three answers, with the fourth question it would be 64.
    text = "abcdefghij\n" * 4 + "x" * 100 + "\n"
    code, out, err = talk(command, monkeypatch, text, "--model", yes, "--max_new_tokens", 8)
    assert code == 0, err
    assert out.count("model> yes\n") == 5
    before, after = out.split("(no longer fits and is forgotten: the oldest 1 exchange)")
    assert before.count("model> yes\n") == 3
    assert "(no longer fits and is forgotten: the oldest 3 exchanges; the first 47 tokens" in after


def test_chat_continues_raw_text_and_recognizes_base_models(command, monkeypatch, yes, zero_model_dir):
    code, out, err = talk(command, monkeypatch, "<|assistant|>y\n", "--model", yes, "--raw", "--max_new_tokens", 8)
    assert code == 0, err
    assert "it continues your text" in out and "<|assistant|>yes\n" in out
    assert "it continues your text" in talk(command, monkeypatch, "", "--model", zero_model_dir)[1]


def test_chat_by_its_command(yes):
    line = [sys.executable, "-m", "eval.chat", "--model", str(yes), "--max_new_tokens", "8"]
    done = subprocess.run(line, input="hi\n", capture_output=True, text=True, cwd=Path(__file__).parents[1])
    assert done.returncode == 0 and "model> yes\n" in done.stdout, done.stderr


# Report


@pytest.fixture
def run(tmp_path, yes, no, zero_model_dir, write_conversations):
    """The folder of a run: base, sft and ppo, results of all stages but the reward model."""
    run = tmp_path / "run"
    run.mkdir()
    for name, folder in (("base", zero_model_dir), ("sft", no), ("ppo", yes)):
        (run / name).symlink_to(folder)
    evil = "<script>alert('x')</script>"
    rows = [("1", f"Is {evil} bad?", "yes"), ("2", "2?", "yes")]
    write_conversations(rows).rename(tmp_path / "asked.json")
    (run / "data").mkdir()
    (tmp_path / "asked.json").rename(run / "data" / "conversations_heldout.json")
    folder = run / "results"
    bits = {"loss": [[10, 5.0], [20, 4.0]], "held-out bits per byte": [[0, 8.03], [20, 2.5]]}
    values = {"seconds": 12.4, "parameters": 4273664, "tokens": 40960}
    write_results(folder, "pretrain", {**values, "metrics": {"bits_per_byte": 2.5}, "curves": bits})
    sft = {"eos_rate": 0.98, "loss_first": 4.0, "loss_last": 0.5}
    write_results(folder, "sft", {"seconds": 3.0, "conversations": 12, "metrics": sft, "curves": {"loss": [[1, 4.0]]}})
    ppo = {"episodes": 3072, "eval_score_first": 0.25, "eval_score_last": 1.5, "eval_exact_match_last": 0.625}
    write_results(folder, "ppo", {"seconds": 4.0, "prompts": 7, "metrics": ppo, "curves": {"score": [[1, 0.25]]}})
    exact = {"value": 0.75, "low": 0.5, "high": 1.0, "n": 4}
    for model in ("sft", "ppo"):
        answered = {"model": f"runs/x/{model}", "data": [f"{evil}.json"], "metrics": {"exact_match": exact}}
        write_results(folder, f"answers_{model}", answered)
    return run


def test_report(command, run):
    code, out, err = command(report, "--run", run, "--max_new_tokens", 8)
    assert code == 0 and "Loading weights" not in err, err
    assert out.endswith("report.html: 5 results; not run: reward\n")
    page = (run / "report.html").read_text()
    # Once as the example, which is the first question that PPO alone answers exactly, and once among the others.
    assert "<script" not in page and page.count("Is &lt;script&gt;alert(&#39;x&#39;)&lt;/script&gt; bad?") == 2
    assert "(number 1) that PPO answers with exactly the reference; Base and SFT give other answers, no two" in page
    assert "4.3 M parameters from random weights on 40,960 tokens" in page
    assert "2.5 bits per byte on held-out text (before: 8.03)" in page
    assert "EOS rate 98%; loss 4 → 0.5" in page
    assert "score 0.25 → 1.5 on held-out prompts, KL –" in page  # a figure that the stage did not write
    assert "<dt>eval exact match last</dt><dd>62%</dd>" in page and "<dt>eval score last</dt><dd>1.5</dd>" in page
    assert "not run; it is run by <code>accelerate launch recipes/reward.py</code>" in page
    assert "Not run; it is run by <code>python -m eval.win_rate</code>" in page
    assert page.count('<dd class="right">yes ✓</dd>') == 3 and page.count("<dd>no</dd>") == 3
    assert page.count("<dd>(nothing)</dd>") == 3  # the base model of zeros
    assert "Not run: a chart of base, SFT and PPO." in page
    assert "75.0% [50.0%, 100.0%]" in page
    assert page.count('src="data:image/png;base64,') == 4
    assert "http" not in page and " src=" in page and "<link" not in page  # nothing beside itself


def test_results_json_has_every_figure_but_no_curve(command, run):
    command(report, "--run", run, "--max_new_tokens", 8, "--models")
    found = json.loads((run / "results.json").read_text())
    assert list(found["stages"]) == ["answers_ppo", "answers_sft", "ppo", "pretrain", "sft"]
    assert found["stages"]["sft"] == {
        "stage": "sft", "seconds": 3.0, "conversations": 12,
        "metrics": {"eos_rate": 0.98, "loss_first": 4.0, "loss_last": 0.5},
    }  # fmt: skip
    assert {"cpu", "cores", "torch", "python"} <= set(found["machine"])
    assert "Not run: none of the models  is in" in (run / "report.html").read_text()


def test_report_of_an_empty_run_says_what_is_missing(command, tmp_path):
    code, out, err = command(report, "--run", tmp_path)
    assert code == 0, err
    assert "0 results; not run: pretrain, sft, reward, ppo" in out
    page = (tmp_path / "report.html").read_text()
    for name in ("pretrain", "sft", "reward", "ppo"):
        assert f"not run; it is run by <code>accelerate launch recipes/{name}.py</code>" in page
    assert "there are no questions at" in page and "There are no finished models" in page


def test_report_shows_samples_bars_and_noted_times(command, run):
    (run / "base").unlink()
    (run / "base").mkdir()
    rows = [{"step": step, "prompt": "<p>", "sample": f"sample {step}  <b>\n x"} for step in range(0, 110, 10)]
    write_jsonl(run / "base" / "samples.jsonl", rows)
    interval = {"value": 0.6, "low": 0.5, "high": 0.7, "n": 9}
    won = {"win_rate": interval, "wins": 5, "ties": 2, "losses": 2, "exact_match": interval}
    write_results(
        run / "results", "win_rate_ppo_vs_sft",
        {"judge": "a <stand-in>", "prompts": 9, "metrics": {**won, "opponent_exact_match": interval}},
    )  # fmt: skip
    write_results(run / "results", "reward_accuracy_x", {"metrics": {"accuracy": interval}})
    (run / "results" / "times.tsv").write_text("tokenizer\t7\npretrain.json\t99\n")
    code, out, err = command(report, "--run", run, "--limit", 1, "--max_new_tokens", 8)
    assert code == 0, err
    page = (run / "report.html").read_text()
    shown = [step for step in range(0, 110, 10) if f"sample {step} &lt;b&gt; x" in page]
    assert len(shown) == 6 and shown[0] == 0 and shown[-1] == 100
    assert "base: not\n  run." in page or "base: not run." in " ".join(page.split())
    assert "ppo vs sft" in page and "a &lt;stand-in&gt;" in page
    assert page.count('style="width:60.0%"') == 2 and page.count('style="left:50.0%;width:20.0%"') == 2
    assert "99 s" in page and "12 s" in page  # the whole command, and the training in it
    assert ">7 s<" in page


def write_method(folder: Path, name: str, seconds: float, rate: dict | None, **learned) -> None:
    """What training `name` and comparing it with SFT leave in `folder`."""
    episodes = {"episodes": learned.pop("episodes")} if "episodes" in learned else {}
    write_results(folder, name, {"seconds": seconds, **learned, "metrics": episodes})
    if rate:
        right = {"exact_match": rate, "opponent_exact_match": rate, "wins": 5, "ties": 2, "losses": 2}
        figures = {"win_rate": rate, "kl": interval(3.21, 3.0, 12.345), **right}
        about = {"judge": "a stand-in", "prompts": 9, "temperature": 1.0}
        write_results(folder, f"win_rate_{name}_vs_sft", {**about, "metrics": figures})


def test_methods_compared(command, tmp_path):
    folder = tmp_path / "results"
    write_method(folder, "ppo", 240.0, interval(0.65, 0.6, 0.7), episodes=12800)
    write_method(folder, "ppo_seed10", 250.4, None, episodes=12864)
    write_method(folder, "ppo_seed2", 250.0, interval(0.63, 0.45, 0.75), episodes=640)
    write_method(folder, "rloo", 262.0, interval(0.7, 0.66, 0.74), episodes=9000)
    write_method(folder, "dpo", 244.0, interval(0.6, 0.5, 0.7), pairs=5000)
    write_method(folder, "kto", 241.0, None, answers=300)
    for model, right in (("sft", 0.5), ("ppo", 0.6)):
        answered = {"model": model, "data": ["x.json"], "metrics": {"exact_match": interval(right, 0.4, 0.9)}}
        write_results(folder, f"answers_{model}_heldout", answered)
    code, out, err = command(report, "--run", tmp_path)
    assert code == 0, err
    page = (tmp_path / "report.html").read_text()
    table = re.search(r'<table id="methods">(.*?)</table>', page, re.S)[1]
    rows = [re.findall(r"<td[^>]*>(.*?)</td>", row) for row in re.findall(r"<tr>(.*?)</tr>", table, re.S)[1:]]
    assert rows == [
        ["PPO", "65.0% [60.0%, 70.0%]", "60.0% [40.0%, 90.0%]", "3.21 [3.00, 12.35]", "240 s", "12,800 answers"],
        ["PPO, seed 2", "63.0% [45.0%, 75.0%]", "not run", "3.21 [3.00, 12.35]", "250 s", "640 answers"],
        ["PPO, seed 10", "not run", "not run", "not run", "250 s", "12,864 answers"],
        ["DPO", "60.0% [50.0%, 70.0%]", "not run", "3.21 [3.00, 12.35]", "244 s", "5,000 pairs"],
        ["KTO", "not run", "not run", "not run", "241 s", "300 labelled answers"],
        ["RLOO", "70.0% [66.0%, 74.0%]", "not run", "3.21 [3.00, 12.35]", "262 s", "9,000 answers"],
    ]
    caption = (
        "Trained at equal wall time: 240 to 262 s. PPO's win rate is above 50% with its whole interval in 1 of 2 "
    )
    caption += (
        "runs. RLOO's win rate is higher than PPO's: 70.0% against 64.0% (mean of 2 seeds); their intervals overlap."
    )
    assert caption.replace("'", "&#39;") in table
    assert "sampled at temperature 1, against" in page and "(SFT: 50.0% [40.0%, 90.0%])" in page
    assert "<strong>65%</strong><span>ppo vs sft; a tie counts half</span>" in page  # not DPO's, which sorts before it
    written = (tmp_path / "results.md").read_text()
    assert "| win rate, sampled answers: ppo seed2 vs sft | 63.0% [45.0%, 75.0%] |" in written
    assert "| exact match, greedy, ppo: `x` | 60.0% [40.0%, 90.0%] |" in written
    assert "| RLOO | 70.0% [66.0%, 74.0%] | – | 3.21 [3.00, 12.35] | 262 s | 9,000 answers |" in written
    assert "| PPO, seed 10 | – | – | – | 250 s | 12,864 answers |" in written and caption in " ".join(written.split())


def test_a_run_of_ppo_alone_says_how_to_compare(command, run):
    command(report, "--run", run, "--max_new_tokens", 8, "--models")
    page = (run / "report.html").read_text()
    assert '<tr><td>PPO</td><td class="number">not run</td>' in page
    assert "Other methods and seeds: not run; run\n    <code>bash recipes/compare.sh</code>" in page


@pytest.mark.parametrize(
    ("seconds", "rates", "expected"),
    [
        ((100, 114.9), (0.6, 0.59), ["Trained at equal wall time: 100 to 115 s.", "above", "No other"]),
        ((100, 115), (0.6, 0.6), ["Not trained equally long: PPO for 100 s, GRPO for 115 s.", "above", "No other"]),
        ((300, 100), (0.5, 0.9), ["Not trained equally long: GRPO for 100 s, PPO for 300 s.", "above", "GRPO's"]),
    ],
)
def test_what_the_table_of_methods_says(tmp_path, seconds, rates, expected):
    for name, taken, rate in zip(("ppo", "grpo"), seconds, rates, strict=True):
        write_method(tmp_path, name, taken, interval(rate, rate - 0.05, rate + 0.05), episodes=1)
    said = verdict(comparison({path.stem: results(tmp_path, path.stem) for path in tmp_path.glob("*")}))
    assert len(said) == 3 and all(part in sentence for part, sentence in zip(expected, said, strict=True))
    if rates[1] == 0.9:
        assert said[1:] == [
            "PPO's win rate is above 50% with its whole interval in 0 of 1 runs.",
            "GRPO's win rate is higher than PPO's: 90.0% against 50.0%; their intervals do not overlap.",
        ]


HELD_OUT = {
    "held-out score": [[0, 0.25], [30, 1.0], [60, 2.0], [60, 2.0]],
    "held-out KL": [[0, 0.0], [30, 4.5], [60, 9.0]],
    "held-out exact_match": [[0, 0.4], [30, 0.7], [60, 0.5]],
}


@pytest.mark.parametrize(
    ("changes", "said", "pictures"),
    [
        ({}, "it was highest at update 30, 70%. Since then the score has risen and the agreement has fallen", 2),
        ({"held-out exact_match": [[0, 0.4], [60, 0.5]]}, "went from 40% to 50%; it was highest at update 60, 50%.<", 2),
        ({"held-out score": [[0, 0.25], [30, 1.0], [60, 0.9]]}, "it was highest at update 30, 70%.<", 2),
        ({"held-out exact_match": []}, "went from 0 to 9 nats per answer and the reward model's score from 0.25 to 2.<", 2),
        ({"held-out chrf": [[0, 0.1], [60, 0.2]]}, "it was highest at update 30, 70%. Since", 3),  # the first measure
        ({"held-out exact_match": [], "held-out length": [[0, 9.0], [60, 9.0]]}, "score from 0.25 to 2.<", 3),
        ({"held-out KL": []}, None, 3),  # and so each for itself
    ],
)  # fmt: skip
def test_score_against_kl(command, tmp_path, changes, said, pictures):
    curves = {"score": [[1, 0.25]], **HELD_OUT, **changes}
    write_results(tmp_path / "results", "ppo_seed1", {"seconds": 1, "metrics": {}, "curves": curves})
    assert command(report, "--run", tmp_path)[0] == 0
    page = (tmp_path / "report.html").read_text().replace("&#39;", "'")
    shown = re.findall(r'<figure class="path"><figcaption>(.*?<)/figcaption>', page)
    assert len(shown) == (said is not None) and page.count('src="data:image/png;base64,') == pictures
    if said:
        assert said in shown[0] and shown[0].startswith("From update 0 to 60 the KL went from 0 to 9 nats per answer")
        assert f'alt="Score against KL. {shown[0][:-1]}"' in page
        assert ("a proxy for a human judge" in shown[0]) == bool(curves["held-out exact_match"])


def test_alarms_and_answers_along_the_way(command, run):
    evil = "<script>alert('x')</script>"
    ppo = json.loads((run / "results" / "ppo.json").read_text())
    alarms = [{"step": 12, "alarm": "length_drift", "message": f"{evil}; raise kl_coef"}]
    write_results(run / "results", "ppo", {**ppo, "alarms": alarms})
    write_results(run / "results", "ppo_seed1", {**ppo, "alarms": []})
    rows = [
        {"step": step, "prompt": prompt, "completion": f"{evil} {step}.{number}", "score": 0.12345}
        for step in (1, 20, 40)
        for number, prompt in enumerate([[{"role": "user", "content": evil}], "a <b> text", "third", "fourth"])
    ]
    write_jsonl(run / "ppo_seed1" / "completions.jsonl", rows)
    code, out, err = command(report, "--run", run, "--max_new_tokens", 8, "--models")
    assert code == 0, err
    page = (run / "report.html").read_text()
    shown = "&lt;script&gt;alert(&#39;x&#39;)&lt;/script&gt;"
    assert f"<li>Update 12: <strong>length_drift</strong>: {shown}; raise kl_coef</li>" in page
    assert page.count("No alarm was raised.") == 1 and "<script" not in page
    cells = re.findall(r'<tr><td>(.*?)</td><td>(.*?)</td><td class="number">0.123</td></tr>', page)
    asked = (shown, "a &lt;b&gt; text", "third")
    expected = [(prompt, f"{shown} {step}.{i}") for step in (1, 40) for i, prompt in enumerate(asked)]
    assert cells == expected and "Prompt, update 1<" in page and "Prompt, update 40<" in page


# What is published of a run


def published(folder: Path) -> tuple[str, str]:
    """(the tables in a folder's RESULTS.md, those that its results.json renders to)."""
    _, tables, _ = tables_in((folder / "RESULTS.md").read_text(), folder)
    return tables, f"\n{markdown(json.loads((folder / 'results.json').read_text()))}"


def test_publish(command, run, tmp_path):
    folder = tmp_path / "published"
    folder.mkdir()
    (folder / "RESULTS.md").write_text(f"Before.\n\n{BEGIN}\nold\n{END}\n\nAfter.\n")
    code, out, err = command(report, "--run", run, "--max_new_tokens", 8, "--limit", 1, "--publish", folder)
    assert code == 0 and f"{folder}: results.json, RESULTS.md, answers.png\n" in out, err
    text = (folder / "RESULTS.md").read_text()
    assert (
        text.startswith(f"Before.\n\n{BEGIN}\n| | |\n")
        and text.endswith(f".\n{END}\n\nAfter.\n")
        and "old" not in text
    )
    tables, rendered = published(folder)
    assert tables == rendered and "| bits per byte on held-out documents | 2.5 |" in tables
    stages = json.loads((folder / "results.json").read_text())["stages"]
    assert stages["pretrain"]["metrics"] == {"bits_per_byte": 2.5} and "curves" not in stages["pretrain"]
    assert_small_picture(folder / "answers.png")
    assert not (folder / "stages.png").exists()  # nothing in this run to draw it from

    (folder / "RESULTS.md").write_text(text.replace("| 2.5 |", "| 2.4 |"))  # by hand
    tables, rendered = published(folder)
    assert tables != rendered


def test_publish_into_a_new_folder_and_without_an_example(command, run, yes, tmp_path):
    (run / "sft").unlink()
    (run / "sft").symlink_to(yes)  # as right as PPO, so that no question tells them apart
    folder = tmp_path / "published"
    folder.mkdir()
    (folder / "answers.png").touch()
    code, out, err = command(report, "--run", run, "--max_new_tokens", 8, "--limit", 1, "--publish", folder)
    assert code == 0 and "no answers.png: there is no question" in out, err
    assert sorted(path.name for path in folder.iterdir()) == ["RESULTS.md", "results.json"]
    assert (folder / "RESULTS.md").read_text().startswith(f"# Results\n\n{BEGIN}\n")


def test_the_example_is_the_first_question_that_the_rule_fits():
    questions = [{"reference": reference} for reference in ("a b", "a b", "a b", "a b", "a b")]
    answers = {
        "base": ["x", "x", "x", "x", "x"],
        "sft": ["a b", "y", "x", "y", "y"],  # right; different; the base model's; different; different
        "ppo": ["a b", "z", "a b", "a  b", "a b"],  # right; wrong; right; right but for a blank; right
    }
    question, given = example_question(questions, answers)
    assert question == {"reference": "a b", "number": 4} and given == {"base": "x", "sft": "y", "ppo": "a  b"}
    assert example_question(questions, {"base": answers["base"], "sft": answers["base"]}) is None
    assert example_question(questions, {"ppo": answers["ppo"]}) is None and example_question(questions, {}) is None


def test_the_caption_says_the_rule_and_how_often():
    exact = {"exact_match": {"value": 0.775, "low": 0.7, "high": 0.8, "n": 400}}
    stages = {
        "answers_sft_heldout": {"model": "runs/x/sft", "data": ["runs/x/asked.json"], "metrics": exact},
        "answers_sft_other": {"model": "runs/x/sft", "data": ["runs/x/other.json"], "metrics": exact},
        "win_rate": {"model": "runs/x/ppo", "opponent": "runs/x/sft", "data": ["runs/x/asked.json"], "metrics": exact},
    }
    said = caption(
        {"number": 1234, "reference": "z"}, {"base": "x", "sft": "y", "ppo": "z"}, stages, Path("data/asked.json")
    )
    assert said == (
        "How it was chosen: the first question of asked.json (number 1,234) that PPO answers with exactly the "
        "reference; Base and SFT give other answers, no two of them equal. It shows what changes, not how often: exact "
        "match on held-out questions is SFT 77.5%."
    )


@pytest.mark.parametrize(
    "text",
    ["", "$x^2$ costs 5$ \\frac{", "W" * 5000, "word " * 900, "\x1b[31m\x00 é 漢字", "a\nb\n\nc"],
)
def test_no_text_breaks_the_picture_or_leaves_it(text, tmp_path):
    question = {"prompt": [{"role": "user", "content": text}], "reference": text}
    answers = {"base": text, "ppo": text}
    marks = {name: mark(text, text) for name in answers}
    (tmp_path / "x.png").write_bytes(answers_picture(question, answers, marks, text))
    assert_small_picture(tmp_path / "x.png")
    image = matplotlib.image.imread(tmp_path / "x.png")
    border = [image[:4], image[-4:], image[:, :24], image[:, -24:]]
    assert all((part == 1).all() for part in border)  # white: nothing reaches the border


def test_wrapped_text_keeps_its_words_and_its_width():
    figure, panel = sheet(300)
    text = " ".join(f"word{number}" for number in range(30))
    lines = wrapped(figure, text, 200, 99, size=12)
    assert " ".join(lines) == text and len(lines) > 5
    for line in lines:
        drawn = panel.text(0, 0, line, fontsize=12, parse_math=False).get_window_extent()
        assert 80 < drawn.width <= 200.5
    short = wrapped(figure, text, 200, 2, size=12)
    assert len(short) == 2 and short[0] == lines[0] and short[1].endswith(" …") and lines[1].startswith(short[1][:-2])
    assert wrapped(figure, "", 200, 2, size=12) == []
    assert "".join(wrapped(figure, "W" * 100, 200, 99, size=12)) == "W" * 100


@pytest.mark.parametrize(
    "text", ["", BEGIN, END, f"{END}\n{BEGIN}", f"{BEGIN}{BEGIN}{END}", f"{BEGIN}{END}{END}"], ids=range(6)
)
def test_a_page_without_its_markers_is_refused_and_kept(command, run, tmp_path, text):
    (tmp_path / "RESULTS.md").write_text(text)
    code, _, err = command(report, "--run", run, "--publish", tmp_path)
    assert code == 1 and "RESULTS.md: expected the lines <!-- tables" in err
    assert (tmp_path / "RESULTS.md").read_text() == text and not (tmp_path / "results.json").exists()


CONFIGS = Path(__file__).parents[1] / "recipes" / "configs"
PUBLISHED = sorted(
    path for path in CONFIGS.glob("*/RESULTS.md") if path.parent.name != "adapt"
)  # see test_adaptation.py


@pytest.mark.parametrize("path", PUBLISHED, ids=lambda path: path.parent.name)
def test_the_tables_in_the_repository_are_those_of_its_results(path):
    folder = path.parent
    if not (folder / "results.json").exists():
        pytest.skip("no run has been published yet")
    tables, rendered = published(folder)
    assert tables == rendered
    assert (folder / "results.json").stat().st_size < 100_000
    assert_small_picture(folder / "answers.png")


# What is wrong with the input is one clear line


def test_bad_input(command, yes, tiny_reward_dir, questions, tmp_path):
    write_json(tmp_path / "empty" / "nothing.json", {})
    write_jsonl(tmp_path / "rankings.jsonl", [{"prompt": "?", "chosen": "ab", "rejected": "c"}])
    asked = ("--conversations", questions)
    cases = [
        (chat, ("--model", tmp_path / "no"), "no: no such file or folder; it is made by: recipes/pretrain.py"),
        (chat, ("--model", tmp_path / "empty"), "empty: no config.json in it; expected the folder of a finished"),
        (chat, ("--model", yes, "--max_new_tokens", 64), "--max_new_tokens 64: expected 1 to 63"),
        (chat, ("--model", "nobody/nothing"), "nobody/nothing: neither a finished checkpoint's folder nor"),
        (answers, ("--model", tiny_reward_dir, *asked), "expected a language model, found GPT2ForSequenceClass"),
        (answers, ("--model", yes, *asked, "--group_by", "("), "--group_by '(': not a regular expression"),
        (answers, ("--model", yes, *asked, "--limit", 0), "--limit 0: expected at least 1"),
        (answers, ("--model", yes, *asked, "--max_new_tokens", 99), "--max_new_tokens 99: expected 1 to 63"),
        (answers, ("--model", yes, "--conversations", tmp_path / "x.json"), "x.json: no such file or folder"),
        (win_rate, ("--model", yes, "--opponent", tmp_path / "no", *asked), "/no: no such file or folder"),
        (win_rate, ("--model", yes, "--opponent", yes, *asked, "--temperature", -1), "expected at least 0"),
        (perplexity, ("--model", yes, "--documents", tmp_path / "no.txt"), "no.txt: no such file or folder"),
        (perplexity, ("--model", yes, "--documents", yes / "model.safetensors"), "found the ending '.safetensors'"),
        (report, ("--run", tmp_path / "no"), "no: no such file or folder; it is made by: recipes/quickstart.sh"),
        (report, ("--run", tmp_path, "--prompts", tmp_path / "no.json"), "no.json: no such file or folder"),
    ]
    ranked = ("--rankings", tmp_path / "rankings.jsonl")
    cases += [
        (reward_accuracy, ("--model", yes, *ranked), "expected a reward model (recipes/reward.py), found GPT2LMHead")
    ]
    cases += [(reward_accuracy, ("--model", yes, "--rankings", tmp_path / "r.txt"), "found the ending '.txt'")]
    for module, arguments, message in cases:
        code, _, err = command(module, *arguments)
        errors = [line for line in err.splitlines() if line.startswith("error: ")]
        assert code == 1 and len(errors) == 1 and message in errors[0], (module.__name__, arguments, err)
        assert "Traceback" not in err
