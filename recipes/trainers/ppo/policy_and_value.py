"""Policy and value model: log-probabilities, entropies and values, computed on the tokens of the answers only.

Shapes: N answers, R tokens of the longest answer, L tokens of the longest conversation (see `Rollout` in rollout.py).
"""

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel


class PolicyAndValue(nn.Module):
    """Policy and value model under one `forward`, so that one wrapper (DDP, autocast) covers both."""

    def __init__(self, policy: nn.Module, value_model: nn.Module) -> None:
        super().__init__()
        self.policy, self.value_model = policy, value_model
        self.config = policy.config

    def activation_checkpointing_enable(self, **kwargs) -> None:
        self.policy.activation_checkpointing_enable(**kwargs)
        self.value_model.activation_checkpointing_enable(**kwargs)

    def forward(self, input_ids, positions, answers, mask, temperature: float) -> tuple[torch.Tensor, ...]:
        """(log-probability, entropy, value) of each answer token, (N, R) each, 0 where `mask` is False.

        Inputs as in `Rollout`: `input_ids` (N, L), the others (N, R).
        """
        logprobs, entropy = answer_logprobs(self.policy, input_ids, positions, answers, mask, temperature)
        model = self.value_model.get_base_model() if hasattr(self.value_model, "peft_config") else self.value_model
        hidden = model.base_model(input_ids=input_ids, use_cache=False).last_hidden_state
        values = model.score(hidden[answer_tokens(mask, positions)]).squeeze(-1).float()[: mask.sum()]
        return logprobs, entropy, torch.zeros(mask.shape, device=values.device).masked_scatter(mask, values)


def answer_tokens(mask: torch.Tensor, positions: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """(rows, columns) of `positions` where `mask` is True, padded with zeros to a multiple of 64.

    oneDNN compiles and caches a kernel for every new shape, and tensor cores are fast on round shapes.
    """
    rows = torch.arange(len(mask), device=mask.device)[:, None].expand_as(positions)
    spare = -int(mask.sum()) % 64
    return tuple(nn.functional.pad(index[mask], (0, spare)) for index in (rows, positions))


def answer_logprobs(
    model, input_ids, positions, answers, mask, temperature: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """(log-probability, entropy) of each answer token under `model`, (N, R) each, 0 where `mask` is False.

    Log-probabilities and entropies are taken at `temperature`. The head runs on the positions of the answers only:
    logits of prompts and padding would be most of the memory. It runs within the model's own pass, since some scale what
    comes out of it (Cohere, Granite) or bound it (Gemma 2 and 4).
    """
    model = model.get_base_model() if hasattr(model, "peft_config") else model
    places = answer_tokens(mask, positions)
    hook = model.get_output_embeddings().register_forward_pre_hook(lambda head, given: (given[0][places],))
    try:
        logits = model(input_ids=input_ids, use_cache=False).logits
    finally:
        hook.remove()
    logs = (logits[: mask.sum()].float() / temperature).log_softmax(-1)
    chosen = logs.gather(-1, answers[mask][:, None]).squeeze(-1)
    with torch.no_grad():
        entropy = -(logs.exp() * logs).sum(-1)
    zeros = torch.zeros(mask.shape, device=logs.device)
    return zeros.masked_scatter(mask, chosen), zeros.masked_scatter(mask, entropy)


def groups_by_length(lengths: torch.Tensor, size: int) -> list[torch.Tensor]:
    """Indices of the rows in groups of at most `size`, longest first.

    Answers end early: in one batch, more than half of the positions would be padding. So a group holds lengths down to
    three quarters of its longest, but eight rows at least, and a multiple of eight, because few different shapes are
    fast (see `answer_tokens`).
    """
    order, groups = lengths.argsort(descending=True, stable=True), []
    while len(order):
        alike = int((lengths[order] >= 0.75 * lengths[order[0]]).sum())
        count = min(max(alike // 8 * 8, 8), size)
        groups.append(order[:count])
        order = order[count:]
    return groups


def attention_kernel(device: torch.device, length: int) -> AbstractContextManager:
    """The attention kernel for rows of `length` tokens, in the forward and the backward pass.

    torch 2.13 on CPU: up to 128 tokens, the backward pass of flash attention takes up to twice the time of plain
    matrix products. It belongs around the backward pass too, in which checkpointed layers run again.
    """
    return sdpa_kernel(SDPBackend.MATH) if device.type == "cpu" and length <= 128 else nullcontext()
