"""Ranks: the lowest is the best, and equal ranks are ties."""


def pairs(ranks: list[int]) -> list[tuple[int, int]]:
    """All (better, worse) pairs of positions with unequal ranks."""
    return [(better, worse) for better, r in enumerate(ranks) for worse, s in enumerate(ranks) if r < s]


def ranks_of_scores(scores: list[float]) -> list[int]:
    """Dense ranks, 0 for the highest score; equal scores tie."""
    order = sorted(set(scores), reverse=True)
    return [order.index(score) for score in scores]
