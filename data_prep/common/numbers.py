"""Numbers of the command line, in their range."""

import argparse

from data_prep.common.errors import InputError


def check_at_least(least: int, arguments: argparse.Namespace, *names: str) -> None:
    """Raise InputError for one of the options `names` that is given and less than `least`."""
    for name in names:
        value = getattr(arguments, name)
        if value is not None and value < least:
            raise InputError(f"--{name} {value}: expected at least {least}")
