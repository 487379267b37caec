"""An evaluation never uses what the training saw: how parts are split, and the one check of it."""

import hashlib
from collections.abc import Hashable, Iterable

from data_prep.common.errors import InputError


def check_disjoint(
    trained: Iterable[Hashable], heldout: Iterable[Hashable], paths: Iterable[str], noun: str = "prompt"
) -> None:
    """Raise InputError if an item of `heldout`, which was read from `paths`, is in `trained` too.

    Only `heldout` is kept in memory.
    """
    heldout = list(heldout)
    asked = set(heldout)
    found = {item for item in trained if item in asked}
    if found:
        shared = sum(item in found for item in heldout)
        raise InputError(
            f"{', '.join(map(str, paths))}: {shared:,} of {len(heldout):,} held-out {noun}s {'is' if shared == 1 else 'are'} trained on too; "
            f"split by {noun}, as python -m data_prep.hold_out does"
        )


def split_position(key: str, seed: int) -> float:
    """A number in [0, 1), uniform over keys, that depends on the key and the seed alone: below the fraction is held out."""
    digest = hashlib.sha256(f"{seed} {key}".encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64
