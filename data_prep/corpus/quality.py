"""Quality filters of MassiveText (Gopher): length, symbols, repetition.

The rules are those of Rae 2021 (arXiv:2112.11446, appendix A.1 and table A1), which assume blanks between words. In
scripts without them (Chinese, Japanese, Thai) every character is a unit, and two units count as a word: a Chinese word
has about two characters.
"""

import re
from collections import Counter
from typing import NamedTuple

from data_prep.corpus.text_units import is_unspaced, joined, ngrams, units

STOP_WORDS = {"the", "be", "to", "of", "and", "that", "have", "with"}
TOP_NGRAMS = ((2, 0.20), (3, 0.18), (4, 0.16))
DUPLICATE_NGRAMS = ((5, 0.15), (6, 0.14), (7, 0.13), (8, 0.12), (9, 0.11), (10, 0.10))


class Reason(NamedTuple):
    """Why a document is filtered out: the name of the filter, and what it measured."""

    filter: str
    measured: str


def length_reason(words: float, least: int, most: int) -> Reason | None:
    if words < least:
        return Reason("too short", f"{words:g} words, at least {least:,} wanted")
    if words > most:
        return Reason("too long", f"{words:g} words, at most {most:,} wanted")
    return None


def symbol_reason(text: str, found: list[str], words: float, language: str) -> Reason | None:
    """A reason in the text's symbols, lines or words. Rules about single words apply only where blanks separate them."""
    lines = text.splitlines()
    shares = (
        ("symbols", text.count("#") / words, 0.1, "number signs a word"),
        ("symbols", (text.count("...") + text.count("…")) / words, 0.1, "ellipses a word"),
        ("bullet lines", sum(line.lstrip().startswith(("•", "-")) for line in lines) / len(lines), 0.9, "of lines"),
        (
            "unfinished lines",
            sum(line.rstrip().endswith(("...", "…")) for line in lines) / len(lines),
            0.3,
            "of lines",
        ),
    )
    for name, share, most, of in shares:
        if share > most:
            return Reason(name, f"{share:.2f} {of}, at most {most:g} wanted")
    lettered = sum(any(map(str.isalpha, unit)) for unit in found) / len(found)
    if lettered < 0.8:
        return Reason("few letters", f"{lettered:.2f} of words have a letter, at least 0.8 wanted")
    if words != len(found):
        return None
    mean = sum(map(len, found)) / len(found)
    if not 3 <= mean <= 10:
        return Reason("word length", f"{mean:.1f} characters a word, 3 to 10 wanted")
    if language == "en" and len(STOP_WORDS & {unit.lower() for unit in found}) < 2:
        return Reason("no stop words", f"fewer than 2 of {', '.join(sorted(STOP_WORDS))}")
    return None


def repetition_reason(text: str, found: list[str], characters_a_word: int) -> Reason | None:
    """A repetition beyond the shares of table A1. An n-gram of words has n × `characters_a_word` units."""
    for name, pieces in (("paragraphs", re.split(r"\n{2,}", text.strip())), ("lines", re.split(r"\n+", text.strip()))):
        again = Counter(pieces)
        repeated = {piece: count - 1 for piece, count in again.items() if count > 1}
        for share, most, of in (
            (sum(repeated.values()) / len(pieces), 0.30, name),
            (sum(len(piece) * count for piece, count in repeated.items()) / len(text), 0.20, f"characters in {name}"),
        ):
            if share > most:
                return Reason("repetition", f"{share:.2f} of {of} repeat earlier ones, at most {most:.2f} wanted")
    for words, most in TOP_NGRAMS:
        grams = Counter(ngrams(found, words * characters_a_word))
        gram, count = grams.most_common(1)[0] if grams else ((), 0)
        share = count * len(joined(gram)) / len(text)
        if count > 1 and share > most:
            return Reason(
                "repetition",
                f"{share:.2f} of characters in the {words}-gram {joined(gram)!r}, at most {most:.2f} wanted",
            )
    for words, most in DUPLICATE_NGRAMS:
        share = repeated_characters(found, words * characters_a_word) / len(text)
        if share > most:
            return Reason(
                "repetition", f"{share:.2f} of characters in repeated {words}-grams, at most {most:.2f} wanted"
            )
    return None


def repeated_characters(found: list[str], size: int) -> int:
    """Characters in runs of `size` units that occurred earlier in the text; of overlapping runs the first counts."""
    grams = list(ngrams(found, size))
    seen: set[tuple] = set()
    if len(set(grams)) == len(grams):
        return 0
    total = place = 0
    while place < len(grams):
        if grams[place] in seen:
            total += sum(map(len, grams[place]))
            place += size
        else:
            seen.add(grams[place])
            place += 1
    return total


def quality_reason(text: str, language: str, least: int = 50, most: int = 100_000) -> Reason | None:
    """The first reason of MassiveText's rules to filter a text out, or None. `least` and `most` are in words."""
    found = units(text)
    unspaced = is_unspaced(found)
    words = len(found) / 2 if unspaced else len(found)
    return (
        length_reason(words, least, most)
        or symbol_reason(text, found, words, language)
        or repetition_reason(text, found, 2 if unspaced else 1)
    )
