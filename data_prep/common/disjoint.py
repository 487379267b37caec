"""An evaluation never uses what the training saw: the one check of it."""

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
