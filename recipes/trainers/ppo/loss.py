"""The losses of PPO and the advantages they weigh.

Shapes: N answers of a rollout or a part of it, R tokens of the longest answer; one number per answer token.
"""

import torch


def clipped_losses(
    logprobs: torch.Tensor,
    old_logprobs: torch.Tensor,
    advantages: torch.Tensor,
    values: torch.Tensor,
    old_values: torch.Tensor,
    returns: torch.Tensor,
    cliprange: float,
    cliprange_value: float,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """(policy loss, value loss, probability ratio, whether the policy loss is clipped), (N, R) each.

    Schulman 2017 (arXiv:1707.06347), eq. 7, as a loss; the value clipped likewise (Huang 2024, section 4).
    """
    ratio = (logprobs - old_logprobs).exp()
    unclipped, clipped = -advantages * ratio, -advantages * ratio.clamp(1 - cliprange, 1 + cliprange)
    near = old_values + (values - old_values).clamp(-cliprange_value, cliprange_value)
    value_losses = 0.5 * torch.max((values - returns) ** 2, (near - returns) ** 2)
    return torch.max(unclipped, clipped), value_losses, ratio, clipped > unclipped


def advantages_and_returns(
    rewards: torch.Tensor, values: torch.Tensor, mask: torch.Tensor, gamma: float, lam: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Generalized advantage estimates (Schulman 2016, arXiv:1506.02438, eq. 16) and their returns, (N, R) each.

    The value after the last token of an answer is 0: the episode is over, whether the answer stopped or was truncated.
    """
    advantages, running = torch.zeros_like(rewards), torch.zeros_like(rewards[:, 0])
    for step in reversed(range(rewards.shape[1])):
        following = values[:, step + 1] * mask[:, step + 1] if step + 1 < rewards.shape[1] else 0.0
        delta = rewards[:, step] + gamma * following - values[:, step]
        running = (delta + gamma * lam * running) * mask[:, step]
        advantages[:, step] = running
    return advantages, (advantages + values) * mask
