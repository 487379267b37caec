"""A mixture's arithmetic: in which order documents come from which source, and how much each is asked for."""

import itertools
import math
import random
from collections.abc import Iterator

import numpy as np

from data_prep.tokens.shards import TokenShards


def shuffled(items: Iterator, buffer_size: int, rng: random.Random) -> Iterator:
    """`items` shuffled through a buffer of `buffer_size` items (1: the order they came in).

    An item comes at most `buffer_size - 1` places earlier than it stood. Later there is no bound, but an item waits on
    average for one more buffer; where the buffer holds all items, every order is equally likely.
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
    """One source of the mixture, read again from the start, in another order, whenever it ends.

    Attributes: `tokens`, `documents` and `bytes` drawn so far; `longest`, the tokens of the longest document drawn; `cap`,
    the tokens at which its last epoch ends.
    """

    def __init__(
        self, name: str, shards: TokenShards, weight: float, max_epochs: float | None, buffer_size: int, seed: int
    ) -> None:
        self.name, self.shards, self.weight = name, shards, weight
        self.cap = math.inf if max_epochs is None else max_epochs * len(shards)
        self.tokens = self.documents = self.bytes = self.longest = 0
        self._order = self._draw(buffer_size, seed)

    def _draw(self, buffer_size: int, seed: int) -> Iterator[int]:
        for number in itertools.count():
            rng = random.Random(f"{seed} {self.name} {number}")
            yield from shuffled(iter(range(self.shards.documents)), buffer_size, rng)

    def next_document(self) -> tuple[np.ndarray, int]:
        """The ids of the next document, end of text included, and the bytes of its text."""
        ids, size = self.shards.document(next(self._order))
        self.tokens, self.documents, self.bytes = self.tokens + len(ids), self.documents + 1, self.bytes + size
        self.longest = max(self.longest, len(ids))
        return ids, size


def mix(sources: list[Source], total_tokens: int) -> Iterator[tuple[np.ndarray, int]]:
    """Documents (ids, bytes of the text) until `total_tokens` are drawn, shares in tokens as the weights ask.

    The next document always comes from the source furthest behind its share, so the realised shares differ from the
    asked ones by less than one document per source. A source at its cap stops, and the others share what is left by
    their weights; where all have stopped, the mixture ends short of `total_tokens`.
    """
    live = [source for source in sources if source.tokens < source.cap]
    drawn = capped = 0
    while live and drawn + capped < total_tokens:
        weight_sum = sum(source.weight for source in live)
        while drawn + capped < total_tokens:
            behind = max(live, key=lambda source: source.weight / weight_sum * (drawn + 1) - source.tokens)  # noqa: B023
            ids, size = behind.next_document()
            drawn += len(ids)
            yield ids, size
            if behind.tokens >= behind.cap:
                live.remove(behind)
                drawn, capped = drawn - behind.tokens, capped + behind.tokens
                break


def planned_tokens(weights: dict[str, float], caps: dict[str, float], total_tokens: float) -> dict[str, float]:
    """What `mix` will draw from each source but for the last documents: shares by weight, none beyond its cap."""
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
