"""What PPO optimises, as functions of tensors: probabilities and values of answers, advantages, losses.

Shapes as in `ppo_trainer.py`: N answers of a rollout, R tokens of the longest answer, L of the longest conversation.
"""

import torch


def advantages_and_returns(
    rewards: torch.Tensor, values: torch.Tensor, mask: torch.Tensor, gamma: float, lam: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Generalized advantage estimates (Schulman 2016, arXiv:1506.02438, eq. 16) and their returns, (N, R) each.

    The value after the last token of an answer is 0: the episode is over, whether it stopped or was cut.
    """
    advantages, running = torch.zeros_like(rewards), torch.zeros_like(rewards[:, 0])
    for step in reversed(range(rewards.shape[1])):
        following = values[:, step + 1] * mask[:, step + 1] if step + 1 < rewards.shape[1] else 0.0
        delta = rewards[:, step] + gamma * following - values[:, step]
        running = (delta + gamma * lam * running) * mask[:, step]
        advantages[:, step] = running
    return advantages, (advantages + values) * mask


def clipped_losses(
    logprobs, old_logprobs, advantages, values, old_values, returns, cliprange: float, cliprange_value: float
) -> tuple[torch.Tensor, ...]:
    """PPO's policy and value loss of every token, the ratio of probabilities, and where clipping took hold.

    Schulman 2017 (arXiv:1707.06347), eq. 7, as a loss; the value clipped likewise (Huang 2024, section 4).
    """
    ratio = (logprobs - old_logprobs).exp()
    unclipped, clipped = -advantages * ratio, -advantages * ratio.clamp(1 - cliprange, 1 + cliprange)
    near = old_values + (values - old_values).clamp(-cliprange_value, cliprange_value)
    value_losses = 0.5 * torch.max((values - returns) ** 2, (near - returns) ** 2)
    return torch.max(unclipped, clipped), value_losses, ratio, clipped > unclipped
