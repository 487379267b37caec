"""Rows by what a regular expression finds in their ids."""

import re

from data_prep.common.errors import InputError


def pattern_of(text: str | None) -> re.Pattern | None:
    """The expression of --group_by; `InputError` if it is none."""
    try:
        return re.compile(text) if text else None
    except re.error as error:
        raise InputError(f"--group_by {text!r}: not a regular expression ({error})") from None


def grouped(rows: list[dict], pattern: re.Pattern) -> dict[str, list[int]]:
    """{what `pattern` finds in the id: positions in `rows`}; rows without a match are under "no match"."""
    groups: dict[str, list[int]] = {}
    for position, row in enumerate(rows):
        found = pattern.search(row["id"])
        group = found and (found[1] if pattern.groups else found[0])  # None also for an optional group that is absent
        groups.setdefault(group or "no match", []).append(position)
    return dict(sorted(groups.items()))
