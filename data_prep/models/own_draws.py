"""Sampling in which every answer has random numbers of its own, so that it does not matter what else is in its batch."""

import torch
from transformers import LogitsProcessor


def uniform_draws(
    prompts: list[int], answers: int, tokens: int, seed: int, dtype: torch.dtype = torch.float64
) -> torch.Tensor:
    """(prompts, answers, tokens) numbers in [0, 1), those of a prompt by its number alone, the same on every device."""
    generators = (torch.Generator().manual_seed(seed * 1_000_000_007 + prompt) for prompt in prompts)
    return torch.stack([torch.rand(answers, tokens, generator=generator, dtype=dtype) for generator in generators])


class OwnDraws(LogitsProcessor):
    """Leaves to greedy search one token: the one at which the cumulated probability passes the answer's number (the inverse
    of the distribution function; Devroye 1986, Non-Uniform Random Variate Generation, chapter III.2).

    `generate` samples a whole batch from one random stream, so that an answer would depend on those beside it, and on a
    processor spends as long on random numbers, one for each token of the vocabulary, as on the model.

    Args:
        draws: (rows, tokens) in [0, 1). Sums are in their precision, on their device. In 64 bits, rounding that depends on
            the batch changes one draw of millions.
        width: columns before the first sampled token.
        temperature: the logits are divided by it.
    """

    def __init__(self, draws: torch.Tensor, width: int, temperature: float) -> None:
        self.draws, self.width, self.temperature = draws, width, temperature

    def of_rows(self, rows: torch.Tensor) -> list[LogitsProcessor]:
        """The same for some of the rows, as `decode` takes it."""
        return [OwnDraws(self.draws[rows.to(self.draws.device)], self.width, self.temperature)]

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        passed = (scores.float() / self.temperature).softmax(-1).to(self.draws).cumsum(-1)
        # Rounding leaves the sum near 1, not at it. Scaled to it and kept below it, a token of probability 0 is never
        # sampled, not even the last.
        wanted = self.draws[:, input_ids.shape[1] - self.width, None].clamp(max=1 - 1e-6)
        token = torch.searchsorted(passed, wanted * passed[:, -1:], right=True)
        return torch.full_like(scores, -torch.inf).scatter_(1, token.to(scores.device), 0.0)
