"""The units that text filters count: words, or characters in scripts without blanks between words."""

import re

TABLE_SIZE = 0x33480  # code points up to the last Han extension; none beyond it are letters
# Scripts without blanks between words: Thai to Myanmar, Khmer, kana, bopomofo, Han and its extensions.
UNSPACED = ((0x0E00, 0x10A0), (0x1780, 0x1800), (0x3040, 0x3130), (0x3400, 0xA000), (0xF900, 0xFB00), (0x20000, TABLE_SIZE))  # fmt: skip
UNSPACED_CHARACTER = "[" + "".join(f"{chr(first)}-{chr(end - 1)}" for first, end in UNSPACED) + "]"
UNIT = re.compile(rf"{UNSPACED_CHARACTER}|(?:(?!{UNSPACED_CHARACTER})\S)+")


def units(text: str) -> list[str]:
    """The words of a text; in scripts without blanks between words, the characters."""
    return UNIT.findall(text)


def is_unspaced(found: list[str]) -> bool:
    """Whether most units are characters of a script without blanks between words."""
    return sum(len(unit) == 1 and UNSPACED[0][0] <= ord(unit) for unit in found) > len(found) / 2


def ngrams(found: list[str], size: int):
    """The runs of `size` consecutive units, as tuples."""
    return zip(*(found[start:] for start in range(size)), strict=False)


def joined(gram: tuple[str, ...]) -> str:
    """An n-gram as text."""
    return ("" if is_unspaced(gram) else " ").join(gram)
