"""What the reward model and DPO make of preferences that came in: margins, bad rows, left-out pairs."""

import json
import math

import pytest
import torch
from datasets import Dataset
from helpers.models import POSITIONS, tiny_config
from helpers.recipes import again, refused, results, succeeded
from transformers import GPT2ForSequenceClassification
from trl import RewardConfig

from data_prep.common.files import write_jsonl
from recipes.trainers.reward_trainer import RankingRewardTrainer


def softplus(number: float) -> float:
    """−ln σ(−number): the loss of a pair whose rewards are equal and whose margin is `number`."""
    return math.log(1 + math.exp(number))


def prompt(letter: str) -> list[dict]:
    return [{"role": "user", "content": letter}]


ROWS = [
    {"prompt": prompt("a"), "completions": ["x", "y", "z"], "ranks": [0, 2, 1], "scores": [2.0, -1.0, 0.5]},
    {"prompt": prompt("b"), "completions": ["x", "y"], "ranks": [1, 0], "scores": [0.0, 4.0]},
    {"prompt": prompt("c"), "completions": ["x", "y"], "ranks": [0, 1], "scores": None},
]


def loss(model, tokenizer, rows: list[dict], folder, margin_scale: float | None) -> float:
    arguments = RewardConfig(
        output_dir=str(folder),
        use_cpu=True,
        bf16=False,
        report_to="none",
        per_device_eval_batch_size=8,
        max_length=POSITIONS,
    )
    data = Dataset.from_list(rows)
    trainer = RankingRewardTrainer(
        model, arguments, train_dataset=data, eval_dataset=data, processing_class=tokenizer, margin_scale=margin_scale
    )
    return trainer.evaluate()["eval_loss"]


def test_a_margin_is_added_to_the_loss_of_a_pair(tiny_chat_tokenizer, tmp_path, capsys):
    model = GPT2ForSequenceClassification(tiny_config(tiny_chat_tokenizer, num_labels=1))
    torch.nn.init.zeros_(model.score.weight)  # every reward is 0
    found = loss(model, tiny_chat_tokenizer, ROWS, tmp_path, 0.5)
    # Half the differences of the scores: 3, 1.5 and 1.5 in the first prompt, 4 in the second, none in the third.
    expected = ((softplus(1.5) + softplus(0.75) + softplus(0.75)) / 3 + softplus(2) + softplus(0)) / 3
    assert found == pytest.approx(expected, abs=1e-6)
    assert "margins from the scores of 2 of 3 rankings, times 0.5; none elsewhere" in capsys.readouterr().out


def test_without_margin_scale_scores_change_nothing(tiny_chat_tokenizer, tmp_path):
    torch.manual_seed(0)
    model = GPT2ForSequenceClassification(tiny_config(tiny_chat_tokenizer, num_labels=1))
    plain = [{key: row[key] for key in ("prompt", "completions", "ranks")} for row in ROWS]
    losses = [loss(model, tiny_chat_tokenizer, rows, tmp_path, None) for rows in (ROWS, plain)]
    assert losses[0] == losses[1] != pytest.approx(math.log(2), abs=1e-6)


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> dict[str, str]:
    """Nine sound pairs, six of them scored, and two bad rows; labelled answers about other prompts."""
    folder = tmp_path_factory.mktemp("preferences")
    rows = [{"prompt": letter, "chosen": "yes", "rejected": "no"} for letter in "abc"]
    scored = {"scores": [1, 0.5], "completions": ["yes", "no"]}
    rows += [{"prompt": letter, **scored} for letter in "defghi"]
    rows += [{"prompt": "j", "chosen": "same", "rejected": "same"}, {"chosen": "yes", "rejected": "no"}]
    write_jsonl(folder / "train.jsonl", rows)
    labels = [
        {"prompt": p, "completion": "yes" if good else "no", "label": good} for p in "op" for good in (True, False)
    ]
    write_jsonl(folder / "heldout.jsonl", [*labels, {"prompt": "q", "completion": "yes", "label": True}])
    return {"rankings": folder / "train.jsonl", "heldout": folder / "heldout.jsonl"}


@pytest.mark.parametrize("recipe", ["reward", "dpo"])
def test_bad_rows_are_named_or_set_aside_and_what_is_left_out_is_said(recipe, files, tiny_model_dir, tmp_path):
    given = {**files, "model_name_or_path": tiny_model_dir, "max_length": POSITIONS, "output_dir": tmp_path / "out"}
    given |= {"max_steps": 1, "per_device_train_batch_size": 4, "save_strategy": "no"}
    message = refused(again(recipe, **given), f"{files['rankings']}: 2 rows cannot be used: ")
    assert "row 10, line 10: found 'same' at 'chosen' and at 'rejected'; expected two different texts" in message
    assert "row 11, line 11: found 'chosen' and 'rejected' alone" in message
    assert not (tmp_path / "out").exists()
    if recipe == "reward":
        given["margin_scale"] = 2
    done = succeeded(again(recipe, **given, on_bad="quarantine"))
    aside = tmp_path / "out" / "quarantine.jsonl"
    assert (
        f"train.jsonl: 9 rankings, 9 pairs; rows in 11 = rows out 9 + quarantined 2, which are in {aside}\n"
        in done.out
    )
    assert [json.loads(line)["row"] for line in aside.read_text().splitlines()] == [10, 11]
    assert (
        "heldout.jsonl: 2 rankings, 2 pairs; left out: 1 labelled answers whose prompt has only one label" in done.out
    )
    if recipe == "reward":
        assert "margins from the scores of 6 of 9 rankings, times 2" in done.out
        assert results(tmp_path / "out", "reward")["metrics"]["pairs"] == 2


@pytest.mark.parametrize(
    ("recipe", "read"),
    [
        ("reward", "4 rankings, 4 pairs"),
        ("dpo", "4 rankings, 4 pairs"),
        ("kto", "8 labelled answers, 4 good and 4 bad, from 4 rankings taken apart: the best is good, the last bad"),
    ],
)
def test_columns_of_other_names(recipe, read, tiny_model_dir, tmp_path):
    write_jsonl(tmp_path / "own.jsonl", [{"q": letter, "good": "yes", "bad": "no", "prompt": 1} for letter in "abcd"])
    given = {"rankings": tmp_path / "own.jsonl", "model_name_or_path": tiny_model_dir, "max_length": POSITIONS}
    given |= {"output_dir": tmp_path / "out", "max_steps": 1, "save_strategy": "no"}
    missing = "found keys ['q', 'good', 'bad', 'prompt']; expected the column 'worse', which columns names"
    assert missing in refused(
        again(recipe, **given, columns="prompt=q,chosen=good,rejected=worse"), "own.jsonl: 4 rows"
    )
    done = succeeded(again(recipe, **given, columns="prompt=q,chosen=good,rejected=bad"))
    assert f"own.jsonl: {read}\n" in done.out


def test_margins_without_scores_are_refused(files, tiny_model_dir, tmp_path):
    write_jsonl(tmp_path / "plain.jsonl", [{"prompt": "a", "chosen": "yes", "rejected": "no"}])
    given = {
        "rankings": tmp_path / "plain.jsonl",
        "model_name_or_path": tiny_model_dir,
        "output_dir": tmp_path / "out",
    }
    done = again("reward", **given, max_length=POSITIONS, margin_scale=1)
    refused(done, "margin_scale 1.0: found 0 rankings with scores; expected some, and a number above 0")
