"""Agreement of a text with a reference: exact match and chrF."""

from functools import cache


def exact_match(text: str, reference: str) -> bool:
    """Whether both have the same words in the same order, whitespace aside; case and punctuation count."""
    return text.split() == reference.split()


@cache
def _scorer():
    """sacrebleu's chrF2 (Popović 2015, aclanthology.org/W15-3049) with its defaults.

    They are: character n-grams up to 6, no word n-grams, recall weighing twice as much as precision.
    """
    from sacrebleu.metrics import CHRF  # slow to import

    return CHRF()


def sentence_chrf(text: str, reference: str) -> float:
    """The chrF of one text, 0 to 100."""
    return _scorer().sentence_score(text, [reference]).score


def corpus_chrf(texts: list[str], references: list[str]) -> float:
    """The chrF of all texts, each with its reference, as one corpus; 0 to 100."""
    return _scorer().corpus_score(texts, [references]).score
