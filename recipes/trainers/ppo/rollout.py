"""Sample answers reproducibly, one uniform number per token, and what belongs to a batch of them."""

from dataclasses import dataclass, field

import torch
from torch import nn
from transformers import GenerationConfig

from data_prep.models.batched_generate import decode
from data_prep.models.own_draws import OwnDraws
from data_prep.tokens.generation_prompt import head_of_answers, without_head

# What `answer_metrics` measures, in its order.
METRICS = ("score", "kl", "rlhf_reward", "length", "eos_rate", "entropy", "repetition")


@dataclass
class Rollout:
    """A batch of prompts with one sampled answer each.

    N answers, R tokens of the longest answer, L tokens of the longest conversation (prompt and answer).

    Set by `PPOTrainer.roll_out`:
        rows: N rows of the dataset, `prompt` and `prompt_ids` among them.
        input_ids: (N, L) prompt and answer, padded on the right, which causal attention never sees.
        positions: (N, R) position in a row of `input_ids` of the token that predicts each answer token.
        answers: (N, R) the answer's tokens, stop token included.
        mask: (N, R) True on the answer's tokens, False after them.
        last: (N,) position of the answer's last token in `input_ids`.
        stopped: (N,) True if the answer ends on the stop token, False if it was truncated.
    Set by `PPOTrainer.score`:
        logprobs, ref_logprobs, values: (N, R) under policy, reference and value model, 0 where `mask` is False.
        rewards: {name of the reward model or function: (N,)}.
        scores: (N,) their weighted sum.
    Set by `PPOTrainer.estimate_advantages`:
        advantages, returns: (N, R), 0 where `mask` is False.
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
    rewards: dict[str, torch.Tensor] = field(default_factory=dict)
    scores: torch.Tensor | None = None
    advantages: torch.Tensor | None = None
    returns: torch.Tensor | None = None

    def inputs(self, indices: torch.Tensor) -> dict[str, torch.Tensor]:
        """What a forward pass over some of the answers takes (`PolicyAndValue`).

        Columns that are padding in all of them are left out, except up to seven, so that lengths are multiples of
        eight: few different shapes are fast (see `answer_tokens`).
        """
        length = min(-(-(int(self.last[indices].max()) + 1) // 8) * 8, self.input_ids.shape[1])
        return {
            "input_ids": self.input_ids[indices, :length],
            "positions": self.positions[indices].clamp(max=length - 1),
            "answers": self.answers[indices],
            "mask": self.mask[indices],
        }

    def texts(self, tokenizer) -> list[str]:
        """The answers as text, without their stop token and what the chat template writes at their head."""
        head = [] if isinstance(self.rows[0]["prompt"], str) else head_of_answers(tokenizer)
        lengths = (self.mask.sum(1) - self.stopped.long()).tolist()
        kept = [
            without_head(answer[:length], head) for answer, length in zip(self.answers.tolist(), lengths, strict=True)
        ]
        return tokenizer.batch_decode(kept, skip_special_tokens=True)


def rollout_of(rows: list[dict], answers: torch.Tensor, stop_token_ids: list[int], pad_token_id: int) -> Rollout:
    """The rollout of rows with `prompt_ids` and the answers (N, R) that `sample_answers` gave."""
    device = answers.device
    prompts = [torch.tensor(row["prompt_ids"], device=device) for row in rows]
    prompt_lengths = torch.tensor([len(prompt) for prompt in prompts], device=device)
    ends = torch.isin(answers, torch.tensor(stop_token_ids, device=device))
    stopped = ends.any(1)
    lengths = torch.where(stopped, ends.int().argmax(1) + 1, answers.shape[1])
    answers = answers[:, : int(lengths.max())]
    mask = torch.arange(answers.shape[1], device=device) < lengths[:, None]
    conversations = [
        torch.cat([prompt, answer[:length]])
        for prompt, answer, length in zip(prompts, answers, lengths.tolist(), strict=True)
    ]
    input_ids = nn.utils.rnn.pad_sequence(conversations, batch_first=True, padding_value=pad_token_id)
    positions = (prompt_lengths - 1)[:, None] + torch.arange(answers.shape[1], device=device)
    positions = positions.clamp(max=input_ids.shape[1] - 1)
    return Rollout(rows, input_ids, positions, answers, mask, prompt_lengths + lengths - 1, stopped)


def answer_metrics(rollout: Rollout, rewards: torch.Tensor, kl_coef: float) -> dict[str, torch.Tensor]:
    """`METRICS` of a scored rollout, one number per answer, (N,) each; KL and entropy in nats per answer.

    `rewards` (N,) are what an answer is rewarded with, before the KL penalty.
    """
    mask = rollout.mask
    kl = ((rollout.logprobs - rollout.ref_logprobs) * mask).sum(1)
    values = (
        rollout.scores,
        kl,
        rewards - kl_coef * kl,
        mask.sum(1).float(),
        rollout.stopped.float(),
        (-rollout.logprobs * mask).sum(1),
        repetition(rollout.answers, mask),
    )
    return dict(zip(METRICS, values, strict=True))


def repetition(answers: torch.Tensor, mask: torch.Tensor, n: int = 3) -> torch.Tensor:
    """(N,) share of an answer's token n-grams that occurred earlier in it; 0 for an answer shorter than n."""
    shares = []
    for answer, length in zip(answers.tolist(), mask.sum(1).tolist(), strict=True):
        grams = [tuple(answer[start : start + n]) for start in range(length - n + 1)]
        shares.append(1 - len(set(grams)) / len(grams) if grams else 0.0)
    return torch.tensor(shares, device=answers.device)


@torch.no_grad()
def sample_answers(
    policy,
    batch: dict[str, torch.Tensor],
    uniforms: torch.Tensor,
    temperature: float,
    stop_token_ids: list[int],
    pad_token_id: int,
) -> torch.Tensor:
    """Answers of up to R tokens to N prompts, (N, R), with `pad_token_id` after the first stop token.

    Args:
        policy: a causal language model, with an adapter or without.
        batch: `input_ids` and `attention_mask` of the prompts, padded on the left.
        uniforms: (N, R) random numbers in [0, 1), see `OwnDraws`.
    """
    settings = GenerationConfig(
        max_new_tokens=uniforms.shape[1],
        use_cache=True,  # otherwise the policy's generation config decides, and one saved in training says no
        do_sample=False,  # OwnDraws does it
        eos_token_id=stop_token_ids,
        pad_token_id=pad_token_id,
        suppress_tokens=[pad_token_id],  # a sampled pad would read as the end of the answer
    )
    width = batch["input_ids"].shape[1]
    return decode(policy, batch, settings, processors=OwnDraws(uniforms, width, temperature).of_rows)
