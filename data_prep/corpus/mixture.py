"""The arithmetic of a mixture: which source the next document comes from, and in which order a source is read."""

import itertools
import math
import random
from collections.abc import Iterator

import numpy as np

from data_prep.tokens.shards import TokenShards


def shuffled(items: Iterator, buffer_size: int, rng: random.Random) -> Iterator:
    """`items` shuffled through a buffer of `buffer_size` items (1: not shuffled).

    An item moves at most `buffer_size - 1` places forward. How far it moves back is not bounded, but geometrically
    distributed with a mean of `buffer_size - 1` places after the earliest. A buffer that holds all items gives every
    order with the same probability.
    """
    buffer = list(itertools.islice(items, buffer_size))
    for item in items:
        index = rng.randrange(len(buffer))
        yield buffer[index]
        buffer[index] = item
    if buffer_size > 1:
        rng.shuffle(buffer)
    yield from buffer


class Source:
    """One source of the mixture, read again from its beginning, in another order, whenever it ends.

    Args:
        whole: whether `shards` hold all of it. If not, `max_epochs` times them are as many as the mixture can ask for.

    Attributes: `tokens`, `documents` and `bytes` read so far; `longest`, the tokens of the longest document read; `cap`,
    the number of tokens at which the source stops (`max_epochs` times those of its shards).
    """

    def __init__(
        self,
        name: str,
        shards: TokenShards,
        weight: float,
        max_epochs: float | None,
        buffer_size: int,
        seed: int,
        whole: bool = True,
    ) -> None:
        self.name, self.shards, self.weight, self.whole = name, shards, weight, whole
        self.cap = math.inf if max_epochs is None else max_epochs * len(shards)
        self.tokens = self.documents = self.bytes = self.longest = 0
        self._order = self._epochs(buffer_size, seed)

    def _epochs(self, buffer_size: int, seed: int) -> Iterator[int]:
        for epoch in itertools.count():
            rng = random.Random(f"{seed} {self.name} {epoch}")
            yield from shuffled(iter(range(self.shards.documents)), buffer_size, rng)

    @property
    def passes(self) -> float:
        """How often it was read; of a source whose shards do not hold all of it, the most that this can be."""
        return self.tokens / len(self.shards)

    def next_document(self) -> tuple[np.ndarray, int]:
        """The ids of the next document, including the end-of-text token, and the size of its text in bytes."""
        ids, size = self.shards.document(next(self._order))
        self.tokens, self.documents, self.bytes = self.tokens + len(ids), self.documents + 1, self.bytes + size
        self.longest = max(self.longest, len(ids))
        return ids, size


def mix(sources: list[Source], total_tokens: int) -> Iterator[tuple[np.ndarray, int]]:
    """Documents (ids, bytes of the text) up to `total_tokens`, with each source's share of the tokens as its weight asks.

    The next document always comes from the source furthest behind its share, so the realised shares differ from the
    targets by less than one document per source. A source at its cap stops, and the others share the rest by
    their weights. If all have stopped, the mixture ends short of `total_tokens`.
    """
    live = [source for source in sources if source.tokens < source.cap]
    read = capped = 0  # tokens from live sources, and from those that have stopped
    while live and read + capped < total_tokens:
        weight_sum = sum(source.weight for source in live)
        while read + capped < total_tokens:
            behind = max(live, key=lambda source: source.weight / weight_sum * (read + 1) - source.tokens)  # noqa: B023
            ids, size = behind.next_document()
            read += len(ids)
            yield ids, size
            if behind.tokens >= behind.cap:
                live.remove(behind)
                read, capped = read - behind.tokens, capped + behind.tokens
                break


def planned_tokens(weights: dict[str, float], caps: dict[str, float], total_tokens: float) -> dict[str, float]:
    """The tokens that `mix` will read from each source, up to its last document: by weight, but never beyond the cap."""
    planned, left, live = {}, total_tokens, dict(weights)
    while live:
        per_weight = left / sum(live.values())
        full = [name for name, weight in live.items() if caps[name] <= weight * per_weight]
        if not full:
            return planned | {name: weight * per_weight for name, weight in live.items()}
        for name in full:
            planned[name] = caps[name]
            left -= caps[name]
            del live[name]
    return planned
