"""Do people who ranked the same answers agree? Kendall's tau and Krippendorff's alpha, with intervals over prompts."""

from itertools import combinations

import numpy as np

from data_prep.common.intervals import bootstrap_interval, bootstrap_statistic


def kendall_tau(ranks: list[int], others: list[int]) -> float | None:
    """Kendall's tau-b of two rankings of the same answers, -1 to 1; None if one of them is a single tie.

    Tau-b counts a tie in one ranking alone as neither agreement nor disagreement (Kendall 1945, "The treatment of ties
    in ranking problems").
    """
    signs = [(_sign(ranks[i], ranks[j]), _sign(others[i], others[j])) for i, j in combinations(range(len(ranks)), 2)]
    untied, others_untied = sum(a != 0 for a, _ in signs), sum(b != 0 for _, b in signs)
    return sum(a * b for a, b in signs) / (untied * others_untied) ** 0.5 if untied and others_untied else None


def _sign(rank: int, other: int) -> int:
    """1 if the first is the better one, 0 for a tie, -1."""
    return (rank < other) - (rank > other)


def _alpha_sums(rankings: list[list[int]]) -> tuple[float, float, int]:
    """(squared differences between raters, squared values, number of values) of the pairs of answers to one prompt."""
    values = np.array([[_sign(own[i], own[j]) for i, j in combinations(range(len(own)), 2)] for own in rankings])
    differences = sum(float(((a - b) ** 2).sum()) for a, b in combinations(values, 2))
    return 2 * differences / (len(rankings) - 1), float((values**2).sum()), values.size


def krippendorff_alpha(prompts: list[list[list[int]]]) -> dict | None:
    """Krippendorff's alpha over pairs of answers: 1 is perfect, 0 what chance would give, below it contradiction.

    The unit is a pair of answers to one prompt; a rater gives it 1 (the first is better), 0 (a tie) or -1, and
    differences count squared (interval data; Krippendorff, Content Analysis, chapter 11). Which answer of a pair stands
    first means nothing, so each pair counts in both directions.

    Args:
        prompts: for each prompt the rankings of at least two raters.

    Returns {"value", "low", "high", "n"}, the 95 % bootstrap interval being over prompts; None where it is undefined,
    because nobody preferred any answer.
    """
    if not prompts:
        return None

    def alpha(sums):
        differences, squares, number = np.moveaxis(2 * sums, -1, 0)
        return 1 - differences * (number - 1) / (2 * squares * number)

    return bootstrap_statistic(np.array([_alpha_sums(rankings) for rankings in prompts]), alpha)


def rater_agreement(prompts: list[list[list[int]]]) -> dict:
    """{"prompts", "kendall_tau", "krippendorff_alpha", "without_order"} of the rankings of each prompt by several raters.

    Tau is the mean over prompts of the mean over their pairs of raters; prompts where it is undefined, because a rater
    found all answers equal, are counted under "without_order". Both are intervals, or None.
    """
    prompts = [rankings for rankings in prompts if len(rankings) > 1]
    taus = []
    for rankings in prompts:
        found = [tau for a, b in combinations(rankings, 2) if (tau := kendall_tau(a, b)) is not None]
        taus += [sum(found) / len(found)] if found else []
    return {
        "prompts": len(prompts),
        "kendall_tau": bootstrap_interval(taus) if taus else None,
        "krippendorff_alpha": krippendorff_alpha(prompts),
        "without_order": len(prompts) - len(taus),
    }
