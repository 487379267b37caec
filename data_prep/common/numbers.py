"""Numbers: of the command line, in their range; in results, as long as they mean something."""

import argparse

from data_prep.common.errors import InputError


def check_at_least(least: int, arguments: argparse.Namespace, *names: str) -> None:
    """Raise InputError for one of the options `names` that is given and less than `least`."""
    for name in names:
        value = getattr(arguments, name)
        if value is not None and value < least:
            raise InputError(f"--{name} {value}: expected at least {least}")


def rounded(value, digits: int = 6):
    """The floats in a value of JSON with so many digits, and at most so many decimals.

    What follows depends on the order of a sum, such as on the batch that a row was in.
    """
    if isinstance(value, float):
        return round(float(f"{value:.{digits}g}"), digits)
    if isinstance(value, dict):
        return {key: rounded(each, digits) for key, each in value.items()}
    return [rounded(each, digits) for each in value] if isinstance(value, list) else value
