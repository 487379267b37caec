"""Words for messages: counts, values cut short, text that a terminal may show."""

import unicodedata


def printable(text: str) -> str:
    """`text` with control characters, which the terminal would obey, and half surrogate pairs shown by their codes."""
    return "".join(
        f"\\x{ord(each):02x}" if unicodedata.category(each) in ("Cc", "Cs") and each not in "\n\t" else each
        for each in text
    )


def counted(number: int, noun: str) -> str:
    """`number` with its noun: "1 row", "2,000 rows"."""
    return f"{number:,} {noun}" + ("" if number == 1 else "s")


def shorten(value, most: int = 60) -> str:
    """A value as Python writes it, cut to `most` characters for a message."""
    text = repr(value[: most + 20] if isinstance(value, str) else value)
    return text if len(text) <= most else text[: most - 3] + "..."
