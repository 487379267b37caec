"""eval.reward_accuracy, with figures worked out by hand."""

import pytest
from helpers.recipes import results

from data_prep.common.files import write_jsonl
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


def test_equal_rewards_have_no_correlation(command, long_is_good_dir, tmp_path):
    write_jsonl(tmp_path / "rankings.jsonl", [{"prompt": "?", "chosen": "ab", "rejected": "cd"}])
    arguments = ("--model", long_is_good_dir, "--rankings", tmp_path / "rankings.jsonl", "--results_dir", tmp_path)
    code, out, err = command(reward_accuracy, *arguments)
    assert code == 0 and "correlation of reward with length undefined\n" in out and "RuntimeWarning" not in err
    found = results(tmp_path, "reward_accuracy_long_is_good")["metrics"]
    assert found["length_correlation"] is None and found["accuracy"]["value"] == 0 and found["margin"] == 0
