"""eval.reward_accuracy, with figures worked out by hand."""

import shutil

import pytest
from helpers.recipes import results

from data_prep.common.files import write_json, write_jsonl
from eval import reward_accuracy


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


def test_rankings_that_the_model_was_trained_on_are_refused(command, long_is_good_dir, tmp_path):
    model = tmp_path / "reward"
    shutil.copytree(long_is_good_dir, model)
    rows = [{"prompt": f"{number}?", "chosen": "ab", "rejected": "c"} for number in range(4)]
    write_jsonl(tmp_path / "train.jsonl", rows[:2])
    write_jsonl(tmp_path / "all.jsonl", rows)
    write_jsonl(tmp_path / "heldout.jsonl", rows[2:])
    write_json(model / "settings.json", {"settings": {"rankings": [str(tmp_path / "train.jsonl")]}})
    code, _, err = command(reward_accuracy, "--model", model, "--rankings", tmp_path / "all.jsonl")
    assert code == 1 and "all.jsonl: 2 of 4 held-out prompts are trained on too" in err
    code, out, _ = command(reward_accuracy, "--model", model, "--rankings", tmp_path / "heldout.jsonl")
    assert code == 0 and out.startswith("reward: 100.0%")


def test_a_prompt_that_several_people_ranked_is_one_prompt(command, long_is_good_dir, tmp_path):
    rows = [{"prompt": f"{number}?", "completions": ["ab", "c"], "ranks": [0, 1]} for number in range(5)]
    rows += [{"prompt": f"{number}?", "completions": ["ab", "c"], "ranks": [1, 0]} for number in range(5, 8)]
    for people in (1, 3):
        write_jsonl(tmp_path / "rankings.jsonl", rows * people)
        arguments = ("--model", long_is_good_dir, "--rankings", tmp_path / "rankings.jsonl", "--name", people)
        code, out, err = command(reward_accuracy, *arguments, "--results_dir", tmp_path)
        assert code == 0 and f" of {8 * people} pairs right (from 8 prompts)" in out, err
    one, three = (results(tmp_path, f"reward_accuracy_{people}")["metrics"] for people in (1, 3))
    assert one["accuracy"]["value"] == 5 / 8 and one["accuracy"]["n"] == 8
    assert one == {**three, "pairs": 8, **{key: one[key] for key in ("by_margin", "by_length_difference")}}
    for key in ("by_margin", "by_length_difference"):
        assert [each["accuracy"] for each in one[key]] == [each["accuracy"] for each in three[key]]
    # Two who contradict each other: each prompt is half right.
    write_jsonl(tmp_path / "rankings.jsonl", [*rows, *({**row, "ranks": row["ranks"][::-1]} for row in rows)])
    assert command(reward_accuracy, *arguments[:4], "--name", "both", "--results_dir", tmp_path)[0] == 0
    accuracy = results(tmp_path, "reward_accuracy_both")["metrics"]["accuracy"]
    assert (accuracy["value"], accuracy["low"], accuracy["high"], accuracy["n"]) == (0.5, 0.5, 0.5, 8)


def test_equal_rewards_have_no_correlation(command, long_is_good_dir, tmp_path):
    write_jsonl(tmp_path / "rankings.jsonl", [{"prompt": "?", "chosen": "ab", "rejected": "cd"}])
    arguments = ("--model", long_is_good_dir, "--rankings", tmp_path / "rankings.jsonl", "--results_dir", tmp_path)
    code, out, err = command(reward_accuracy, *arguments)
    assert code == 0 and "correlation of reward with length undefined\n" in out and "RuntimeWarning" not in err
    found = results(tmp_path, "reward_accuracy_long_is_good")["metrics"]
    assert found["length_correlation"] is None and found["accuracy"]["value"] == 0 and found["margin"] == 0
