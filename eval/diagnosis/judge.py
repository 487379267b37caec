"""The judge of a run that names none."""

from data_prep.common import agreement as measures
from data_prep.rewards import text_of


def agreement(prompts: list, completions: list, reference: list[str], **columns) -> list[float]:
    """1 for the reference answer itself, whitespace aside; for another answer its chrF with it, 0 to 0.99."""
    found = []
    for completion, answer in zip(completions, reference, strict=True):
        text = text_of(completion)
        same = measures.exact_match(text, answer)
        found.append(1.0 if same else min(0.99, measures.sentence_chrf(text, answer) / 100))
    return found
