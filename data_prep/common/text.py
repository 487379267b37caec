"""Text for messages: counts with nouns, shortened values, strings that are safe on a terminal."""

import unicodedata


def printable(text: str) -> str:
    """`text` with codes for control characters, which a terminal would obey, and for half surrogate pairs."""
    return "".join(
        f"\\x{ord(each):02x}" if unicodedata.category(each) in ("Cc", "Cs") and each not in "\n\t" else each
        for each in text
    )


def counted(number: int, noun: str) -> str:
    """`number` with its noun: "1 row", "2,000 rows"."""
    return f"{number:,} {noun}" + ("" if number == 1 else "s")


def shorten(value, most: int = 60) -> str:
    """The `repr` of a value, truncated to `most` characters."""
    text = repr(value[: most + 20] if isinstance(value, str) else value)
    return text if len(text) <= most else text[: most - 3] + "..."
