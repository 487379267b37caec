"""Consecutive items in lists, by number or by length."""

import itertools
from collections.abc import Callable, Iterable, Iterator


def batched(rows: Iterable, size: int) -> Iterator[list]:
    """`rows` in lists of `size`; the last list may be shorter."""
    rows = iter(rows)
    while batch := list(itertools.islice(rows, size)):
        yield batch


def batched_by_length(items: Iterable, size: int, length: Callable[..., int] = len) -> Iterator[list]:
    """`items` in lists whose lengths sum to at least `size`; the last list may be shorter."""
    batch, characters = [], 0
    for item in items:
        batch.append(item)
        characters += length(item)
        if characters >= size:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch
