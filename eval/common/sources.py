"""Options of the form `name=FILE FILE name=FILE`."""

import re

from data_prep.common.errors import InputError

NAMED = re.compile(r"([A-Za-z]\w*)=(.*)", re.DOTALL)


def named_lists(option: str, words: list[str]) -> dict[str, list[str]]:
    """{"domain": ["a", "b"], "general": ["c"]} of the words domain=a b general=c.

    Raises `InputError` for a value before the first name, a name that is given twice and one without a value.
    """
    found: dict[str, list[str]] = {}
    for word in words:
        if match := NAMED.fullmatch(word):
            name, word = match.groups()
            if name in found:
                raise InputError(f"{option}: found {name}= twice; expected each name once, its files after it")
            found[name] = []
        elif not found:
            raise InputError(f"{option} {word}: found no name; expected name=value, such as domain={word}")
        if word:
            [*found.values()][-1].append(word)
    if empty := [name for name, values in found.items() if not values]:
        raise InputError(f"{option} {empty[0]}=: found nothing after it; expected a value")
    return found


def named_values(option: str, words: list[str]) -> dict[str, str]:
    """{"continued": "runs/adapt/base"} of the words continued=runs/adapt/base; one value a name."""
    found = named_lists(option, words)
    if several := [name for name, values in found.items() if len(values) > 1]:
        raise InputError(f"{option} {several[0]}=: found {len(found[several[0]])} values; expected one")
    return {name: value for name, (value,) in found.items()}
