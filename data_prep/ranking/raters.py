"""Rank by machine: by agreement with a reference, a function, or a reward model.

Each function here returns a rater, f(rows) -> rankings. For rows `{"prompt": messages, "completions", …}` it gives, in
their order, `{"ranks": [int, …]}`, dense with 0 the best, and the "scores" behind the ranks if there are any.
"""

import math
from collections.abc import Callable

from data_prep.common.agreement import exact_match, sentence_chrf
from data_prep.common.errors import InputError
from data_prep.models.reward_functions import call_reward_function, load_function
from data_prep.readers.ranks import ranks_of_scores

Rater = Callable[[list[dict]], list[dict]]


def ranks_by_reference(completions: list[str], reference: str, tie_width: float = 25.0) -> list[int]:
    """Dense ranks, 0 the best: exact matches with the reference first, then descending steps of `tie_width` chrF points."""
    levels = []
    for completion in completions:
        # A score on the border of two steps belongs to the upper one. A perfect chrF without an exact match (it ignores
        # whitespace, and order beyond six characters) stays below the exact ones.
        score = min(sentence_chrf(completion, reference), 99.99)
        levels.append(math.inf if exact_match(completion, reference) else math.floor(score / tie_width))
    return ranks_of_scores(levels)


def by_chrf(tie_width: float) -> Rater:
    """Agreement with the row's "reference": exact matches first, then chrF in steps of `tie_width` points."""
    return lambda rows: [
        {"ranks": ranks_by_reference(row["completions"], row["reference"], tie_width)} for row in rows
    ]


def by_exact_match() -> Rater:
    """Exact matches with the row's "reference" above all other answers, which tie."""
    return lambda rows: [
        {"ranks": ranks_of_scores([exact_match(text, row["reference"]) for text in row["completions"]])}
        for row in rows
    ]


def by_function(name: str) -> Rater:
    """A function with TRL's arguments (see data_prep/rewards.py); its columns are the fields that all rows have."""
    function = load_function(name)

    def rate(rows: list[dict]) -> list[dict]:
        repeated = [row for row in rows for _ in row["completions"]]
        names = set.intersection(*map(set, rows)) - {"prompt", "completions"}
        columns = {name: [row[name] for row in repeated] for name in sorted(names)}
        scores = call_reward_function(function, [row["prompt"] for row in repeated], _texts(rows), columns)
        return _rankings(rows, scores, name)

    return rate


def by_reward_model(path: str, rows: list[dict]) -> Rater:
    """The reward model in the folder `path`; `InputError` if it is none, or if an answer in `rows` is too long for it."""
    # Slow to import: after the input has been checked.
    from data_prep.common.machine import training_device
    from data_prep.models.loading import check_context, context_of, load_reward_model
    from data_prep.models.scoring import encode_answers, score_answers

    model, tokenizer = load_reward_model(path, dtype="float32")
    check_context(tokenizer, model.config, None)
    positions = context_of(model.config) or math.inf
    encoded = encode_answers(tokenizer, [row["prompt"] for row in rows], [row["completions"] for row in rows])
    for number, own in enumerate(encoded, start=1):
        longest = max(map(len, own), default=0)
        if longest > positions:
            raise InputError(
                f"row {number} of the completions: an answer has {longest} tokens with its prompt, {path} {positions} "
                "positions: use a reward model with a longer context, or delete the row"
            )
    model.to(training_device())

    def rate(rows: list[dict]) -> list[dict]:
        prompts = [row["prompt"] for row in rows for _ in row["completions"]]
        return _rankings(rows, score_answers(model, tokenizer, prompts, _texts(rows)), path)

    return rate


def _texts(rows: list[dict]) -> list[str]:
    return [completion for row in rows for completion in row["completions"]]


def _rankings(rows: list[dict], scores: list[float], name: str) -> list[dict]:
    """Each row's ranks, and its part of the scores of all answers."""
    if bad := [score for score in scores if not math.isfinite(score)]:
        raise InputError(f"{name}: found the score {bad[0]}; expected finite numbers")
    left = iter(scores)
    rankings = []
    for row in rows:
        own = [next(left) for _ in row["completions"]]
        rankings.append({"ranks": ranks_of_scores(own), "scores": own})
    return rankings
