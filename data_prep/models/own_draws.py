"""Sampling in which every answer has random numbers of its own, so that it does not matter what else is in its batch."""

import torch
from transformers import LogitsProcessor


def uniform_draws(prompts: int, answers: int, tokens: int, seed: int) -> torch.Tensor:
    """(prompts, answers, tokens) numbers between 0 and 1 in 64 bits, the same on every device."""
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(prompts, answers, tokens, generator=generator, dtype=torch.float64)


class OwnDraws(LogitsProcessor):
    """Leaves one token: the one at which the cumulated probability passes the answer's number (the inverse of the
    distribution function; Devroye 1986, Non-Uniform Random Variate Generation, chapter III.2).

    Sums are in 64 bits: rounding that depends on the batch then changes one draw of millions.
    """

    def __init__(self, draws: torch.Tensor, width: int, temperature: float) -> None:
        """`draws` (rows, tokens), for prompts that are `width` tokens wide."""
        self.draws, self.width, self.temperature = draws, width, temperature

    def of_rows(self, rows: torch.Tensor) -> list[LogitsProcessor]:
        """The same for some of the rows, as `decode` takes it."""
        return [OwnDraws(self.draws[rows.cpu()], self.width, self.temperature)]

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        place = input_ids.shape[1] - self.width
        passed = (scores.float() / self.temperature).softmax(-1).cpu().double().cumsum(-1)
        wanted = self.draws[:, place : place + 1] * passed[:, -1:]
        chosen = torch.searchsorted(passed, wanted, right=True).clamp(max=scores.shape[-1] - 1)
        return torch.full_like(scores, -torch.inf).scatter(1, chosen.to(scores.device), 0.0)
