"""Lists of consecutive items, by number or by length."""

import itertools
from collections.abc import Callable, Iterable, Iterator


def batched(rows: Iterable, size: int) -> Iterator[list]:
    """`rows` in lists of `size`, the last one of what is left."""
    rows = iter(rows)
    while batch := list(itertools.islice(rows, size)):
        yield batch


def batched_by_length(items: Iterable, size: int, length: Callable[..., int] = len) -> Iterator[list]:
    """Lists of texts, or of what has a `length` in characters, of at least `size` characters together."""
    batch, characters = [], 0
    for item in items:
        batch.append(item)
        characters += length(item)
        if characters >= size:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch
