"""The value model of recipes/ppo.py: where it starts, its learning rate, and its warm-up."""

import pytest
from helpers.ppo_runs import complaint
from helpers.recipes import again, differing, refused, succeeded


def test_at_a_value_learning_rate_of_nothing_the_value_model_stays(run_settings, tiny_reward_dir, tmp_path):
    given = {**run_settings, "reward_model_path": tiny_reward_dir, "total_episodes": 16, "value_learning_rate": 0.0}
    succeeded(again("ppo", **given, output_dir=tmp_path / "ppo"))
    assert differing(tmp_path / "ppo" / "value_model", tiny_reward_dir) == set()
    assert differing(tmp_path / "ppo", run_settings["sft_model_path"])


def test_with_muon_a_value_learning_rate_is_refused(run_settings, tiny_reward_dir, tmp_path):
    given = {**run_settings, "reward_model_path": tiny_reward_dir, "value_learning_rate": 0.0, "muon_lr": 0.01}
    refused(again("ppo", **given, output_dir=tmp_path / "ppo"), "error: value_learning_rate: Muon would ignore it")


@pytest.mark.parametrize("changes", [{}, {"weight_decay": 0.1}, {"weight_decay": 0.1, "muon_lr": 0.01}])
def test_in_the_warm_up_of_the_value_model_the_policy_stays_bit_for_bit(
    run_settings, tiny_reward_dir, changes, tmp_path
):
    start = run_settings["sft_model_path"]
    given = {**run_settings, "reward_model_path": tiny_reward_dir, "total_episodes": 24, **changes}
    succeeded(again("ppo", **given, num_value_warmup_updates=2, output_dir=tmp_path / "ppo"))
    checkpoints = [tmp_path / "ppo" / f"checkpoint-{step}" for step in (1, 2, 3)]
    assert differing(checkpoints[0], start) == set() and differing(checkpoints[1], start) == set()
    assert "score.weight" in differing(checkpoints[0] / "value_model", tiny_reward_dir)
    assert "score.weight" in differing(checkpoints[1] / "value_model", checkpoints[0] / "value_model")
    assert "transformer.ln_f.weight" in differing(checkpoints[2], start)


def test_a_warm_up_may_be_a_share_of_the_updates(run_settings, tiny_reward_dir, tmp_path):
    """0.34 of 3 updates are 1.02, and so 2."""
    given = {**run_settings, "reward_model_path": tiny_reward_dir, "total_episodes": 24}
    succeeded(again("ppo", **given, num_value_warmup_updates=0.34, output_dir=tmp_path / "ppo"))
    start, checkpoints = run_settings["sft_model_path"], [tmp_path / "ppo" / f"checkpoint-{step}" for step in (2, 3)]
    assert [bool(differing(checkpoint, start)) for checkpoint in checkpoints] == [False, True]


def test_a_value_model_that_is_not_there_is_one_clear_error(run_settings, tmp_path):
    given = {**run_settings, "value_model_path": tmp_path / "not_there", "output_dir": tmp_path / "ppo"}
    assert f"{tmp_path / 'not_there'}: no such file or folder" in complaint(again("ppo", **given))


def test_a_value_model_starts_where_it_is_told(run_settings, tiny_reward_dir, long_is_good_dir, tmp_path):
    given = {**run_settings, "reward_model_path": long_is_good_dir, "value_model_path": tiny_reward_dir}
    given |= {"total_episodes": 8, "value_learning_rate": 0.0}
    succeeded(again("ppo", **given, output_dir=tmp_path / "ppo"))
    assert differing(tmp_path / "ppo" / "value_model", tiny_reward_dir) == set()
