"""Text for messages: counts with nouns, shortened values, strings that are safe on a terminal."""

import re
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

# Control characters but tab and line break, half surrogate pairs, and what turns the direction of the text around it.
OBEYED = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def printable(text: str) -> str:
    """`text` with codes for what a terminal or a page would obey instead of showing it: "\\x1b[2J" clears no screen."""
    return OBEYED.sub(lambda found: ascii(found[0])[1:-1], text)


def counted(number: int, noun: str) -> str:
    """`number` with its noun: "1 row", "2,000 rows"."""
    return f"{number:,} {noun}" + ("" if number == 1 else "s")


def shorten(value, most: int = 60) -> str:
    """The `repr` of a value, truncated to `most` characters."""
    text = repr(value[: most + 20] if isinstance(value, str) else value)
    return text if len(text) <= most else text[: most - 3] + "..."


def file_names(paths: Iterable[str]) -> dict[str, str]:
    """{path: the shortest end of it that no other of the paths has}: "guide.md", or "a/guide.md" beside "b/guide.md"."""
    parts = {path: Path(path).parts for path in paths}
    ends = Counter(own[start:] for own in parts.values() for start in range(len(own)))
    shortest = {
        path: next((own[start:] for start in reversed(range(len(own))) if ends[own[start:]] == 1), own)
        for path, own in parts.items()
    }
    return {path: str(Path(*own)) for path, own in shortest.items()}
