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


def read_prompt(path: str | Path, needed: tuple[str, ...]) -> tuple[dict[str, str], dict[str, str]]:
    """(prompt, system) of a YAML file of what a model is asked: each the text by language, en and zh; "" for no system turn.

    Its keys are prompt, system, prompt_zh and system_zh; without a Chinese one the other stands for it.

    Args:
        needed: names that every prompt holds in braces.

    Raises InputError for a file that is missing, broken, or without the prompt or what it needs.
    """
    values = read_yaml(path)
    known = ("prompt", "system", "prompt_zh", "system_zh")
    for key, value in values.items():
        if key not in known:
            raise InputError(f"{path}: unknown key {shorten(key)}; expected {', '.join(known)}")
        if not isinstance(value, str):
            raise InputError(f"{path}: {key}: found {shorten(value)}; expected a text")
    if "prompt" not in values:
        raise InputError(
            f"{path}: missing key prompt; expected a text with {' and '.join(f'{{{n}}}' for n in needed)}"
        )
    for key in ("prompt", "prompt_zh"):
        for name in needed:
            if key in values and f"{{{name}}}" not in values[key]:
                raise InputError(f"{path}: {key}: found no {{{name}}} in it; expected it where it is to stand")
    prompt, system = values["prompt"], values.get("system", "")
    return {"en": prompt, "zh": values.get("prompt_zh", prompt)}, {"en": system, "zh": values.get("system_zh", system)}
