"""PPO's losses, rewards and advantages, against values worked out by hand."""

import math

import pytest
import torch

from recipes.trainers.ppo.loss import clipped_losses
from recipes.trainers.ppo.rollout import Rollout
from recipes.trainers.ppo.trainer import PPOTrainer


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss", "clipped"),
    [
        (1.5, 1.0, -1.2, True),  # more of what was good, but not more than 1.2 times as much
        (1.5, -1.0, 1.5, False),  # more of what was bad is punished in full
        (0.5, 1.0, -0.5, False),  # less of what was good likewise
        (0.5, -1.0, 0.8, True),
        (1.1, 2.0, -2.2, False),
        (0.9, -2.0, 1.8, False),
    ],
)
def test_the_policy_loss_is_clipped_only_where_the_ratio_has_gone_far_enough(ratio, advantage, loss, clipped):
    logprob = torch.tensor([[math.log(ratio) - 1.0]], requires_grad=True)
    zero, one = torch.zeros(1, 1), torch.ones(1, 1)
    losses, _, found, where = clipped_losses(logprob, -one, advantage * one, zero, zero, zero, 0.2, 0.2)
    assert losses.item() == pytest.approx(loss) and found.item() == pytest.approx(ratio)
    assert where.item() is clipped
    losses.sum().backward()  # d(−A·r)/d(log p) = −A·r, and nothing where it is clipped
    assert logprob.grad.item() == pytest.approx(0.0 if clipped else -advantage * ratio)


@pytest.mark.parametrize(
    ("value", "target", "loss"),
    [
        (2.0, 3.0, 1.62),  # the old value is 1: no nearer than 1.2, and (1.2 − 3)² / 2
        (2.0, 1.0, 0.5),  # (2 − 1)² / 2 is more than (1.2 − 1)² / 2
        (1.1, 3.0, 1.805),  # within the range: (1.1 − 3)² / 2
        (0.0, -1.0, 1.62),  # (0.8 + 1)² / 2
    ],
)
def test_the_value_is_clipped_around_the_old_one(value, target, loss):
    one = torch.ones(1, 1)
    given = torch.tensor([[value]], requires_grad=True)
    _, losses, _, _ = clipped_losses(-one, -one, one, given, one, target * one, 0.2, 0.2)
    assert losses.item() == pytest.approx(loss)
    losses.sum().backward()
    assert given.grad.item() == pytest.approx(0.0 if loss == 1.62 else value - target)


# Rewards and advantages


def by_hand(**changes) -> Rollout:
    """An answer of three tokens that stopped, of score 1, and one of a single token that was truncated, of score 2."""
    mask = torch.tensor([[True, True, True], [True, False, False]])
    given = {
        "rows": [{}, {}],
        "input_ids": torch.zeros(2, 4, dtype=torch.long),
        "positions": torch.zeros(2, 3, dtype=torch.long),
        "answers": torch.tensor([[7, 8, 9], [7, 0, 0]]),
        "mask": mask,
        "last": torch.tensor([3, 1]),
        "stopped": torch.tensor([True, False]),
        "logprobs": torch.tensor([[-1.0, -2.0, -1.0], [-0.5, 0.0, 0.0]]),
        "ref_logprobs": torch.tensor([[-1.5, -1.0, -1.0], [-1.5, 0.0, 0.0]]),
        "values": torch.zeros(2, 3),
        "scores": torch.tensor([1.0, 2.0]),
        "rewards": {"nothing": torch.tensor([1.0, 2.0])},
    }
    return Rollout(**{**given, **changes})


def rewards_of(trainer: PPOTrainer, rollout: Rollout) -> list[list[float]]:
    """With gamma 0 and values of 0 a token's return is its reward."""
    assert trainer.args.gamma == 0 and not rollout.values.any()
    trainer.estimate_advantages(rollout)
    return rollout.returns.tolist()


def test_the_kl_penalty_is_on_every_token_and_the_score_on_the_last(build_ppo):
    # k1: log p − log p_ref = 0.5, −1, 0 and 1, times −0.1
    found = rewards_of(build_ppo(gamma=0.0, kl_coef=0.1), by_hand())
    assert found == [pytest.approx([-0.05, 0.1, 1.0]), pytest.approx([1.9, 0.0, 0.0])]


def test_the_k3_penalty_is_never_a_reward(build_ppo):
    # k3: with x = log p_ref − log p = −0.5, 1, 0 and −1 it is exp(x) − 1 − x = 0.10653, 0.71828, 0 and 0.36788
    found = rewards_of(build_ppo(gamma=0.0, kl_coef=0.1, kl_estimator="k3"), by_hand())
    assert found == [pytest.approx([-0.010653, -0.071828, 1.0], abs=1e-6), pytest.approx([1.963212, 0, 0], abs=1e-6)]


def test_an_answer_that_was_truncated_pays_the_penalty_and_its_logged_score_does_not(build_ppo):
    rollout, trainer = by_hand(), build_ppo(gamma=0.0, kl_coef=0.0, missing_eos_penalty=0.75)
    assert rewards_of(trainer, rollout) == [[0.0, 0.0, 1.0], [1.25, 0.0, 0.0]]
    assert rollout.scores.tolist() == [1.0, 2.0]


def test_rewards_are_whitened_in_scale_and_keep_their_mean(build_ppo):
    # 0, 0, 4 and 4: mean 2, deviation 2; what stands after the end of the second counts for nothing
    rollout = by_hand(scores=torch.tensor([4.0, 4.0]))
    found = rewards_of(build_ppo(gamma=0.0, kl_coef=0.0, whiten_rewards=True), rollout)
    assert found == [pytest.approx([1.0, 1.0, 3.0]), pytest.approx([3.0, 0.0, 0.0])]


def test_normalized_rewards_are_multiples_of_the_spread_before_training_and_so_is_the_penalty(build_ppo):
    trainer = build_ppo(gamma=0.0, kl_coef=0.1, normalize_rewards=True, missing_eos_penalty=0.5)
    trainer.reward_moments = (-1.0, 4.0)
    # (1 + 1) / 4 and (2 + 1) / 4 − 0.5 for the truncated one, and the KL penalty as above
    found = rewards_of(trainer, by_hand())
    assert found == [pytest.approx([-0.05, 0.1, 0.5]), pytest.approx([0.15, 0.0, 0.0])]


def test_advantages_are_whitened_over_the_tokens_of_all_answers(build_ppo):
    # rewards 0, 0, 4 and 4 again: mean 2, deviation 2
    rollout = by_hand(scores=torch.tensor([4.0, 4.0]))
    build_ppo(gamma=0.0, kl_coef=0.0).estimate_advantages(rollout)
    assert rollout.advantages.tolist() == [pytest.approx([-1.0, -1.0, 1.0]), pytest.approx([1.0, 0.0, 0.0])]


def test_advantages_returns_and_metrics_of_a_rollout_by_hand(build_ppo):
    values = torch.tensor([[0.4, 0.2, 0.6], [1.0, 0.0, 0.0]])
    rollout, trainer = by_hand(values=values), build_ppo(gamma=0.5, lam=0.5, kl_coef=0.1, missing_eos_penalty=0.5)
    metrics = trainer.estimate_advantages(rollout)
    # Rewards −0.05, 0.1, 1 and 2 − 0.5 − 0.1 = 1.4.
    # deltas −0.05 + 0.5·0.2 − 0.4 = −0.35; 0.1 + 0.5·0.6 − 0.2 = 0.2; 1 − 0.6 = 0.4; 1.4 − 1 = 0.4
    # advantages from the end: 0.4; 0.2 + 0.25·0.4 = 0.3; −0.35 + 0.25·0.3 = −0.275; and 0.4
    assert rollout.returns.tolist() == [pytest.approx([0.125, 0.5, 1.0]), pytest.approx([1.4, 0.0, 0.0])]
    # mean 0.825 / 4 = 0.20625; squares 0.16 + 0.09 + 0.075625 + 0.16 = 0.485625; deviation √(0.12140625 − mean²)
    deviation = math.sqrt(0.485625 / 4 - 0.20625**2)
    whitened = [(advantage - 0.20625) / deviation for advantage in (-0.275, 0.3, 0.4, 0.4)]
    assert rollout.advantages[rollout.mask].tolist() == pytest.approx(whitened, abs=1e-5)
    assert not rollout.advantages[~rollout.mask].any()
    expected = {
        "score": 1.5,
        "kl": 0.25,  # −0.5 and 1 nats
        "rlhf_reward": 1.225,  # 1.5 − 0.5 / 2 − 0.1 · 0.25
        "length": 2.0,
        "eos_rate": 0.5,
        "entropy": 2.25,  # 4 and 0.5 nats
        "repetition": 0.0,
        "kl_coef": 0.1,
    }
    assert {key: metrics[f"objective/{key}"] for key in expected} == pytest.approx(expected, abs=1e-6)
    # Returns 0.125, 0.5, 1 and 1.4: mean 0.75625, squares 3.225625. Their errors are the advantages.
    explained = 1 - (0.485625 / 4 - 0.20625**2) / (3.225625 / 4 - 0.75625**2)
    assert metrics["value/explained_variance"] == pytest.approx(explained, abs=1e-5)
    assert not any(key.startswith("rewards/") for key in metrics)  # of a single reward they would be the score
