"""The arithmetic of data_prep.start: sizes, lengths, steps and rates, each from what was measured in the data.

Nothing here reads a file. Where a rule comes from a run in recipes/configs, it gives that run's value for that run's data.
"""

import bisect
import math
from typing import NamedTuple

import numpy as np

KEPT = 0.95  # of the rows are as long as the context, or shorter
PASSES = 4  # over a corpus: further ones teach little (Muennighoff 2023, arXiv:2305.16264)
LEAST_RATIO = (
    0.2  # tokens seen per parameter: recipes/configs/belle has 0.19, the quickstart 0.48, Chinchilla's optimum is 20
)
EFFICIENCY = 0.3  # of the rate of matrix products: pretraining in the quickstart reaches 34 %
START = 12  # seconds that a command takes before its first step, and to evaluate and save
# Which part of the time a training gets, relative to the others that there are.
PARTS = {"pretrain": 3, "sft": 2, "reward": 2, "ppo": 3, "dpo": 3, "kto": 3}


class Shape(NamedTuple):
    """A GPT-2-style model without its tables. Heads are 64 wide."""

    n_layer: int
    n_embd: int

    @property
    def n_head(self) -> int:
        return self.n_embd // 64

    def parameters(self, vocabulary: int, context: int) -> int:
        """Weights of the blocks and of both tables; biases and norms, about 1 %, are left out."""
        return 12 * self.n_layer * self.n_embd**2 + (vocabulary + context) * self.n_embd

    def flops_per_token(self, vocabulary: int, context: int) -> int:
        """Forward and backward: 6N + 12·layers·width·context (PaLM, arXiv:2204.02311, appendix B), positions left out."""
        used = self.parameters(vocabulary, context) - context * self.n_embd
        return 6 * used + 12 * self.n_layer * self.n_embd * context


SHAPES = [Shape(2, 128), Shape(4, 192), Shape(6, 384), Shape(8, 512), Shape(12, 768), Shape(24, 1024), Shape(36, 1280)]


def power_of_two(number: float, most: int | None = None, least: int = 1) -> int:
    """The greatest power of two that is not above `number`, between `least` and `most`."""
    power = 2 ** math.floor(math.log2(max(number, 1)))
    return max(least, min(power, most or power))


def vocabulary(size: int) -> int:
    """Entries of a tokenizer for so many bytes of text: the power of two at or above 2.5 × √bytes, 512 to 32,768.

    The quickstart's 2.56 MB get its 4,096.
    """
    return min(32_768, max(512, 2 ** math.ceil(math.log2(2.5 * math.sqrt(size)))))


def context(lengths: np.ndarray, most: int, least: int = 128) -> int:
    """The least power of two, from `least` to `most`, that is as long as `KEPT` of the rows or longer than all."""
    size = least
    while size < most and np.mean(lengths <= size) < KEPT:
        size *= 2
    return min(size, most)


def shares(trainings: list[str], seconds: float) -> dict[str, float]:
    """Seconds for each of the trainings, after what their commands take to start."""
    left = max(seconds / 2, seconds - START * len(trainings))
    total = sum(PARTS[name] for name in trainings)
    return {name: left * PARTS[name] / total for name in trainings}


def predicted_loss(parameters: float, tokens: float) -> float:
    """Nats per token by Hoffmann 2022 (arXiv:2203.15556, equation 10): only its order matters here."""
    return 1.69 + 406.4 / parameters**0.34 + 410.7 / tokens**0.28


def tokens_seen(shape: Shape, vocabulary: int, context: int, tokens: int, flops: float) -> int:
    """Tokens of pretraining: `PASSES` over the corpus, or what `flops` allow."""
    return int(min(PASSES * tokens, flops / shape.flops_per_token(vocabulary, context)))


def best_shape(vocabulary: int, context: int, tokens: int, flops: float) -> Shape:
    """Of the shapes that see `LEAST_RATIO` tokens per parameter the one with the least predicted loss, else the smallest."""

    def seen(shape: Shape) -> int:
        return tokens_seen(shape, vocabulary, context, tokens, flops)

    def size(shape: Shape) -> int:
        return shape.parameters(vocabulary, context)

    fed = [shape for shape in SHAPES if seen(shape) >= LEAST_RATIO * size(shape)]
    return min(fed or SHAPES[:1], key=lambda shape: predicted_loss(size(shape), seen(shape)))


def step_tokens(tokens: int, steps: int, context: int, most: int) -> int:
    """Tokens of a step so that `tokens` make so many steps: a power of two, at least a row of the context.

    Fewer than 2,048 only if these left fewer than 64 steps: a small step does not fill a processor.
    """
    least = min(2048, power_of_two(tokens / 64))
    return power_of_two(tokens / steps, most, least=max(context, least))


def packed_rows(lengths: np.ndarray, context: int) -> int:
    """Rows of `context` tokens that texts of these lengths fill, longer ones cut: each goes, from the longest on, where the
    least room is left over, as TRL's packing "bfd" (best fit, decreasing) does it."""
    rooms: list[int] = []  # what is free in each row, from the least on
    for length in np.sort(np.minimum(lengths, context))[::-1].tolist():
        place = bisect.bisect_left(rooms, length)
        room = rooms.pop(place) if place < len(rooms) else context
        bisect.insort(rooms, room - length)
    return len(rooms)


def micro_batch(step: int, row: int, vocabulary: int, width: int, layers: int, memory: float) -> int:
    """Rows at once, of `step` rows of `row` tokens each: what fits into half the memory.

    A token takes 12 bytes an entry of the vocabulary (logits, their gradient, the softmax, in fp32) and about 80 bytes a
    layer and unit of the width (20 activations in fp32).
    """
    fits = memory / 2 / (row * (12 * vocabulary + 80 * layers * width))
    return power_of_two(fits, most=step)


def two_digits(number: float) -> float:
    return float(f"{number:.2g}")


def muon_rate(width: int) -> float:
    """Muon's learning rate in pretraining: 0.015 at a width of 192 (recipes/configs: 0.01 and 0.02), falling as 1/width."""
    return two_digits(0.015 * 192 / width)


def adamw_rate(width: int) -> float:
    """AdamW's, for tables, norms and biases beside Muon: 0.004 at 192 and 0.002 at 768, as in recipes/configs."""
    return two_digits(0.004 * math.sqrt(192 / width))


def part(steps: int, share: float) -> int:
    """A share of a run's steps, at least one."""
    return max(1, round(steps * share))


def multiple_of_16(number: float) -> int:
    return max(16, 16 * math.ceil(number / 16))
