"""A moving average of the policy's weights over the updates, which is what is evaluated and saved.

An update follows the noise of its rollout and of the reward model; the average keeps what many updates agree on, and stays
nearer to where training began (Polyak 1992; for RLHF Ramé 2024, arXiv:2406.16768, and Lin 2023, arXiv:2309.06256).

torch.optim.swa_utils.AveragedModel copies the whole model, the frozen one under LoRA too, in the dtype of its weights, in
which bf16 loses steps of a few percent: hence this one.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn


class MovingAverage:
    """The average of the trainable weights of `policy`, in fp32 and without a correction at the beginning: it starts from the
    weights before training.

    Args:
        policy: the model whose weights are trained.
        decay: what is kept of the average in an update, between 0 and 1.
    """

    def __init__(self, policy: nn.Module, decay: float) -> None:
        self.policy, self.decay = policy, decay
        self.weights = {
            name: weight.detach().float().clone() for name, weight in policy.named_parameters() if weight.requires_grad
        }

    @torch.no_grad()
    def update(self) -> None:
        for name, weight in self.policy.named_parameters():
            if name in self.weights:
                self.weights[name].lerp_(weight.float(), 1 - self.decay)

    @torch.no_grad()
    def put_into_policy(self) -> None:
        for name, weight in self.policy.named_parameters():
            if name in self.weights:
                weight.copy_(self.weights[name])

    @contextmanager
    def in_policy(self) -> Iterator[None]:
        """The policy has the average for its weights, and its own again afterwards."""
        own = {
            name: weight.detach().clone() for name, weight in self.policy.named_parameters() if name in self.weights
        }
        self.put_into_policy()
        try:
            yield
        finally:
            with torch.no_grad():
                for name, weight in self.policy.named_parameters():
                    if name in own:
                        weight.copy_(own[name])
