"""Docstrings as text: cleaned, their first sentence, and the signature of what they document."""

import inspect
import re

LONGEST_ANSWER = 84  # characters: longer first sentences are counted and left out of the conversations


def cleaned(docstring: str) -> str:
    """The docstring without indentation and trailing whitespace."""
    return "\n".join(line.rstrip() for line in inspect.cleandoc(docstring).splitlines()).strip()


def signature_of(value) -> str | None:
    """The signature as `inspect` prints it, without `self`; None if there is none."""
    try:
        text = str(inspect.signature(value))
    except (ValueError, TypeError):
        return None
    text = re.sub(r"^\((self|cls|type)(, /)?(, )?", "(", text)
    return None if " at 0x" in text or "<" in text else text  # addresses differ from run to run


def first_sentence(docstring: str) -> str:
    """The first sentence of the first paragraph, on one line."""
    paragraph = re.split(r"\n\s*\n", cleaned(docstring), maxsplit=1)[0]
    # A C docstring may start with its own signature: "dict.get(key) -> value -- what it does".
    text = re.sub(r"^[\w.]+\([^\n]*?\)\s*(->\s*[^\n]*?)?(\n|--|$)\s*", "", paragraph)
    text = " ".join(text.split())
    return re.split(r"(?<=[.!?])\s+(?=[A-Z`'\"(])", text, maxsplit=1)[0].strip()


def is_answer(sentence: str) -> bool:
    """Whether a first sentence answers a question by itself: it is short, plain text and more than a word or two."""
    short = 16 <= len(sentence) <= LONGEST_ANSWER
    return short and "\\" not in sentence and sentence[0].isalpha() and sentence.isascii()
