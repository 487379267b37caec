"""Answers drawn from a policy, a random number of its own for every token.

Shapes as in `ppo_trainer.py`: N answers of a rollout, R tokens of the longest answer, L of the longest conversation.
"""

from dataclasses import dataclass, field

import torch
from transformers import GenerationConfig, LogitsProcessor

from data_prep.models.batched_generate import decode


@dataclass
class Rollout:
    """What one batch of prompts gave.

    rows: N rows of the dataset, `prompt` among them.
    input_ids: (N, L) prompt and answer, padded on the right, which causal attention never looks back at.
    positions: (N, R) where in a row of `input_ids` the token stands that predicts each answer token.
    answers: (N, R) the answer's tokens, the stop token included.
    mask: (N, R) True on the answer's tokens, False after them.
    last: (N,) where the answer's last token stands in `input_ids`.
    stopped: (N,) True where the answer ends on the stop token.
    logprobs, ref_logprobs, values: (N, R) under policy, reference and value model, 0 where `mask` is False.
    scores: (N,) the weighted reward of each answer; rewards: its parts, {name: (N,)}.
    advantages, returns: (N, R).
    """

    rows: list[dict]
    input_ids: torch.Tensor
    positions: torch.Tensor
    answers: torch.Tensor
    mask: torch.Tensor
    last: torch.Tensor
    stopped: torch.Tensor
    logprobs: torch.Tensor | None = None
    ref_logprobs: torch.Tensor | None = None
    values: torch.Tensor | None = None
    scores: torch.Tensor | None = None
    rewards: dict[str, torch.Tensor] = field(default_factory=dict)
    advantages: torch.Tensor | None = None
    returns: torch.Tensor | None = None


class SeededSampling(LogitsProcessor):
    """Draw each row's next token by random numbers of its own, and leave only that one to a greedy search.

    `generate` draws a batch's tokens from one stream, so that an answer would depend on the rows beside it: on the batch
    size and on the number of processes. By inverse transform from one uniform number per row and position it does not.

    Args:
        uniforms: (rows, positions) in [0, 1).
        prompt_length: columns before the first drawn token.
        temperature: the logits are divided by it.
    """

    def __init__(self, uniforms: torch.Tensor, prompt_length: int, temperature: float) -> None:
        self.uniforms, self.prompt_length, self.temperature = uniforms, prompt_length, temperature

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        cumulative = (scores.float() / self.temperature).softmax(-1).cumsum(-1)
        # Below the sum, which rounding leaves near 1: a token of probability 0 is never reached, not even the last.
        wanted = self.uniforms[:, input_ids.shape[1] - self.prompt_length, None].clamp(max=1 - 1e-6)
        token = torch.searchsorted(cumulative, wanted * cumulative[:, -1:], right=True)
        return torch.full_like(scores, -torch.inf).scatter_(1, token, 0.0)


def repetition(answers: torch.Tensor, mask: torch.Tensor, n: int = 3) -> torch.Tensor:
    """(N,) share of an answer's n-grams of tokens that stand in it earlier; 0 for an answer without n-grams."""
    shares = []
    for answer, length in zip(answers.tolist(), mask.sum(1).tolist(), strict=True):
        grams = [tuple(answer[start : start + n]) for start in range(length - n + 1)]
        shares.append(1 - len(set(grams)) / len(grams) if grams else 0.0)
    return torch.tensor(shares, device=answers.device)


@torch.no_grad()
def draw_answers(
    policy,
    batch: dict[str, torch.Tensor],
    uniforms: torch.Tensor,
    temperature: float,
    stop_token_id: int,
    pad_token_id: int,
    shrink: bool = True,
) -> torch.Tensor:
    """Answers of up to R tokens to N prompts, (N, R), with `pad_token_id` after the stop token.

    Args:
        policy: a causal language model, with an adapter or without.
        batch: `input_ids` and `attention_mask` of the prompts, padded on the left.
        uniforms: (N, R) random numbers in [0, 1), see `SeededSampling`.
        shrink: go on without the rows that have ended. Under FSDP every process must make the same calls: False there.
    """
    settings = GenerationConfig(
        max_new_tokens=uniforms.shape[1],
        use_cache=True,  # else the policy's generation config decides, and one saved in training says no
        do_sample=False,  # the draw is SeededSampling's
        eos_token_id=stop_token_id,
        pad_token_id=pad_token_id,
        suppress_tokens=[pad_token_id],  # a drawn pad would read as the end of the answer
    )
    width = batch["input_ids"].shape[1]
    # `generate` fills what the settings leave open from the policy's own: a repetition penalty there would change
    # what is drawn, but not the probabilities that are trained on.
    owner = policy.get_base_model() if hasattr(policy, "peft_config") else policy
    own, owner.generation_config = owner.generation_config, GenerationConfig()
    try:
        return decode(
            policy,
            batch,
            settings,
            processors=lambda rows: [SeededSampling(uniforms[rows], width, temperature)],
            shrink=shrink,
        )
    finally:
        owner.generation_config = own
