"""Functions that score answers: as a reward in PPO, RLOO and GRPO, a metric in an evaluation, a judge, or a ranking.

    --eval_funcs data_prep.rewards.exact_match
    --reward_funcs data_prep.rewards.rubric
    python -m data_prep.rank_completions --by function --function data_prep.rewards.rubric …

Each takes TRL's arguments, `prompts`, `completions` (texts, or lists of one assistant message) and the columns of the
dataset by name, and returns one number per answer. `reference` is the conversation's own last answer: agreement with it
is a stand-in for a human rater, not a human. Copy one to reward something else: a length, a format, a test that passes.
"""

from data_prep.common import agreement


def text_of(completion: str | list[dict]) -> str:
    return completion if isinstance(completion, str) else completion[-1]["content"]


def exact_match(prompts: list, completions: list, reference: list[str], **columns) -> list[float]:
    """1 if the answer has the reference's words in their order, whitespace aside; otherwise 0."""
    return [
        float(agreement.exact_match(text_of(completion), answer))
        for completion, answer in zip(completions, reference, strict=True)
    ]


def chrf(prompts: list, completions: list, reference: list[str], **columns) -> list[float]:
    """Character F-score with the reference (Popović 2015, as sacrebleu computes it), 0 to 1."""
    return [
        agreement.sentence_chrf(text_of(completion), answer) / 100
        for completion, answer in zip(completions, reference, strict=True)
    ]


def match_or_chrf(prompts: list, completions: list, reference: list[str], **columns) -> list[float]:
    """1 for the reference answer itself, whitespace aside; for another answer its chrF with it, 0 to 0.99."""
    matches = exact_match(prompts, completions, reference)
    return [
        match or min(0.99, score) for match, score in zip(matches, chrf(prompts, completions, reference), strict=True)
    ]


def rubric(prompts: list, completions: list, reference: list[str], **columns) -> list[float]:
    """What a rater gives who wants a right answer first and a complete one second; a rule in the place of a person.

    The first line of a reference is the fact that was asked for, the lines below are further facts worth knowing. An
    answer gets 2 points if its first line is the fact that was asked for, −2 if not, and for each line below 1 point if
    it is a further fact of the reference, −1 if not or if it is repeated. So right beats wrong, and of right answers the
    complete one is best; an answer that adds something wrong is worse than one that stops.
    """
    return [_points(text_of(completion), answer) for completion, answer in zip(completions, reference, strict=True)]


def asked_fact(prompts: list, completions: list, reference: list[str], **columns) -> list[float]:
    """1 if the answer's first line is that of the reference, the fact that was asked for; otherwise 0."""
    return [
        float(_lines(text_of(completion))[:1] == _lines(answer)[:1])
        for completion, answer in zip(completions, reference, strict=True)
    ]


def all_facts(prompts: list, completions: list, reference: list[str], **columns) -> list[float]:
    """1 if the answer gives each fact of the reference and nothing else: the points of `rubric` are the most there are."""
    return [
        float(_points(text_of(completion), answer) == len(_lines(answer)) + 1)
        for completion, answer in zip(completions, reference, strict=True)
    ]


def _points(text: str, reference: str) -> float:
    (asked, *further), (first, *others) = _lines(reference) or [""], _lines(text) or [""]
    points = 2.0 if first == asked else -2.0
    for line in others:
        points += 1.0 if line in further else -1.0
        further = [each for each in further if each != line]
    return points


def _lines(text: str) -> list[str]:
    """The lines that are not blank, with single blanks between their words."""
    return [" ".join(line.split()) for line in text.splitlines() if line.strip()]
