"""Does an answer stand in the text that it was written from: by the overlap of words, and by the numbers in it."""

import re
from collections import Counter

from data_prep.corpus.text_units import is_unspaced, ngrams, units

NUMBER = re.compile(r"\d+(?:[.,]\d+)*")
AROUND = re.compile(r"^\W+|\W+$")


def words(text: str) -> list[str]:
    """The words of a text, or characters of a script without blanks between words, without punctuation and case."""
    return [word for unit in units(text.casefold()) if (word := AROUND.sub("", unit))]


def overlap(answer: str, text: str) -> float:
    """The share of the words of an answer that stand in the text, 0 to 1; a word counts as often as the text has it.

    In scripts without blanks between words it is that of the pairs of neighbouring characters: the characters alone stand
    in almost any text.
    """
    found = words(answer)
    size = 2 if len(found) > 1 and is_unspaced(found) else 1
    asked, there = Counter(ngrams(found, size)), Counter(ngrams(words(text), size))
    return (asked & there).total() / asked.total() if asked else 0.0


def strange_numbers(answer: str, text: str) -> list[str]:
    """The numbers of an answer that the text does not have: words may be put otherwise, numbers may not."""
    there = set(NUMBER.findall(text))
    return [number for number in NUMBER.findall(answer) if number not in there]


def located(answer: str, text: str) -> tuple[int, int] | None:
    """Where the answer stands in the text word for word, blanks and line breaks aside; None if it does not."""
    parts = answer.split()
    found = re.search(r"\s+".join(map(re.escape, parts)), text) if parts else None
    return found.span() if found else None
