"""Read a YAML file of settings strictly: what plain YAML passes over in silence is an error here."""

from pathlib import Path

import yaml

from data_prep.common.errors import InputError
from data_prep.common.files import regular_file
from data_prep.common.text import shorten

# Beside its own errors, PyYAML lets pass those of the values: the 13th month, int("") and brackets without end.
ERRORS = (yaml.YAMLError, ValueError, TypeError, LookupError, AttributeError, RecursionError)


class DuplicateKey(Exception):
    """A key stands twice in one mapping: (key, line, line of the first), lines from 1."""


class StrictLoader(yaml.SafeLoader):
    """Plain values alone, and every key once in its mapping: elsewhere the last one silently wins."""

    def compose_mapping_node(self, anchor):
        node = super().compose_mapping_node(anchor)
        first: dict[tuple[str, str], int] = {}
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                line, seen = key.start_mark.line + 1, first.get((key.tag, key.value))
                if seen is not None:
                    raise DuplicateKey(key.value, line, seen)
                first[key.tag, key.value] = line
        return node


def read_yaml(path: str | Path) -> dict:
    """The keys and values in a YAML file; {} if it is empty.

    Raises InputError, which names file and line, for a key that is there twice in a mapping of any depth, and for a file
    that is missing, unreadable, not UTF-8, not YAML or has anything but named values at its top.
    """
    path = regular_file(path)
    try:
        value = yaml.load(path.read_text(encoding="utf-8-sig"), StrictLoader)  # noqa: S506 (it is a SafeLoader)
    except DuplicateKey as error:
        key, line, first = error.args
        raise InputError(
            f"{path}: line {line:,}: found the key {shorten(key)} again, after line {first:,}; expected each key once: "
            "remove one of them"
        ) from None
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: byte {error.start:,} is not UTF-8; save the file as UTF-8") from None
    except ERRORS as error:
        mark = getattr(error, "problem_mark", None)
        place = f"line {mark.line + 1:,}, column {mark.column + 1:,}: " if mark else ""
        reason = getattr(error, "problem", None) or (str(error).splitlines() or [type(error).__name__])[0]
        raise InputError(f"{path}: {place}not YAML ({reason})") from None
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise InputError(f"{path}: expected keys and values, found {type(value).__name__}")
    if strange := [key for key in value if not isinstance(key, str)]:
        raise InputError(f"{path}: found the key {strange[0]!r}, which YAML does not read as text; expected a name")
    return value
