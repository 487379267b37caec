"""What a reward knows about ranked answers, in numbers: pairs put right, spread, length, calibration, best of n.

Everywhere `rows` are {"prompt", "completions", "counts", "ranks", "scores" or None} (see answers.py) and `values` has one
list per row, in it one number per answer: a reward, a log-likelihood, a length. NumPy alone; no model is needed.
"""

import math
from collections import Counter

import numpy as np

from data_prep.common.intervals import bootstrap_interval, by_prompt
from data_prep.readers.preferences import prompt_key
from data_prep.readers.ranks import pairs

CALIBRATION_BINS = 5
N = (1, 2, 4, 8, 16)


def pairs_right(rows: list[dict], values: list[list[float] | None]) -> list[float | None]:
    """For each row the share of its pairs of unequal rank whose better answer has the higher value; equal values count
    half. None for a row without such a pair, and where `values` has None."""
    shares = []
    for row, own in zip(rows, values, strict=True):
        compared = pairs(row["ranks"]) if own is not None else []
        right = [(own[better] > own[worse]) + 0.5 * (own[better] == own[worse]) for better, worse in compared]
        shares.append(sum(right) / len(right) if right else None)
    return shares


def lengths_of(rows: list[dict]) -> list[list[float]]:
    """Characters of each answer."""
    return [[float(len(text)) for text in row["completions"]] for row in rows]


def prompt_keys(rows: list[dict]) -> list[str]:
    """For each row what is equal for equal prompts."""
    return [prompt_key(row["prompt"]) for row in rows]


def pair_weights(rows: list[dict]) -> list[float]:
    """What each pair of unequal rank of a row weighs, so that each prompt weighs 1, however many rows it has."""
    keys, numbers = prompt_keys(rows), [len(pairs(row["ranks"])) for row in rows]
    compared = Counter(key for key, number in zip(keys, numbers, strict=True) if number)
    return [1 / number / compared[key] if number else 0.0 for key, number in zip(keys, numbers, strict=True)]


def difference(keys: list[str], one: list[float | None], other: list[float | None]) -> dict | None:
    """The mean of one − other over the prompts (`keys`) that have both, with its interval over them; None without one."""
    both = [None if None in (a, b) else a - b for a, b in zip(one, other, strict=True)]
    differences = by_prompt(keys, both)
    return bootstrap_interval(differences) if differences else None


def spread(rows: list[dict], values: list[list[float]]) -> dict:
    """The variance of the values of sampled answers, within prompts and between them.

    An answer counts as often as it was sampled. Between is the component of a one-way random-effects model, at least 0
    (Searle 1992, Variance Components, section 3.6): what is left of the variance of the prompts' means when what answers
    drawn at random would give them is taken off. Returns {"within", "between", "share_within"}; None where too few answers
    tell.
    """
    counts = [np.asarray(row["counts"], dtype=float) for row in rows]
    own = [np.asarray(each, dtype=float) for each in values]
    sizes = np.array([each.sum() for each in counts])
    total, groups = sizes.sum(), len(rows)
    if groups < 2 or total <= groups:
        return {"within": None, "between": None, "share_within": None}
    means = np.array([(c * v).sum() / c.sum() for c, v in zip(counts, own, strict=True)])
    within = sum((c * (v - m) ** 2).sum() for c, v, m in zip(counts, own, means, strict=True)) / (total - groups)
    mean = (sizes * means).sum() / total
    of_means = (sizes * (means - mean) ** 2).sum() / (groups - 1)
    size = (total - (sizes**2).sum() / total) / (groups - 1)
    between = max(0.0, (of_means - within) / size)
    whole = within + between
    return {
        "within": float(within),
        "between": float(between),
        "share_within": float(within / whole) if whole else None,
    }


def correlation(rows: list[dict], one: list[list[float]], other: list[list[float]], within: bool) -> float | None:
    """Pearson's correlation of two values of sampled answers; with `within`, of their distances from the prompt's means.
    None if one of them is constant."""
    weights = np.concatenate([np.asarray(row["counts"], dtype=float) for row in rows])
    sides = []
    for values in (one, other):
        parts = [np.asarray(own, dtype=float) for own in values]
        if within:
            parts = [own - np.average(own, weights=row["counts"]) for row, own in zip(rows, parts, strict=True)]
        flat = np.concatenate(parts)
        sides.append(flat - np.average(flat, weights=weights))
    deviations = [math.sqrt((weights * side**2).sum()) for side in sides]
    scale = [max(1.0, float(np.abs(side).max())) for side in sides]
    if any(deviation <= 1e-9 * size for deviation, size in zip(deviations, scale, strict=True)):
        return None
    return float((weights * sides[0] * sides[1]).sum() / math.prod(deviations))


def calibration(rows: list[dict], values: list[list[float]]) -> dict:
    """Does sigmoid(margin), the Bradley-Terry probability that a reward gives its own favourite, come true?

    Pairs of unequal rank are put into bins by that probability, 0.5 to 1; "observed" is the share whose favourite is
    the better ranked answer (half for no margin). "error" is the expected calibration error (Guo 2017,
    arXiv:1706.04599, eq. 3). Each prompt weighs 1. Empty bins are left out.
    """
    found = []
    for row, own, weight in zip(rows, values, pair_weights(rows), strict=True):
        for better, worse in pairs(row["ranks"]):
            margin = own[better] - own[worse]
            predicted = 1 / (1 + math.exp(-min(abs(margin), 50.0)))
            found.append((predicted, 1.0 if margin > 0 else 0.5 if margin == 0 else 0.0, weight))
    predicted, observed, weights = np.array(found).T
    width = 0.5 / CALIBRATION_BINS
    places = np.minimum(((predicted - 0.5) / width).astype(int), CALIBRATION_BINS - 1)
    bins = []
    for place in sorted(set(places.tolist())):
        inside = places == place
        own = weights[inside]
        bins.append(
            {
                "from": round(0.5 + place * width, 3),
                "to": round(0.5 + (place + 1) * width, 3),
                "share": float(own.sum() / weights.sum()),
                "predicted": float(np.average(predicted[inside], weights=own)),
                "observed": float(np.average(observed[inside], weights=own)),
            }
        )
    return {"error": sum(each["share"] * abs(each["predicted"] - each["observed"]) for each in bins), "bins": bins}


def verdicts(rows: list[dict]) -> tuple[list[list[float]], str]:
    """(what each answer is worth to the rater, that in words): its scores if all rows have them, else the probability
    that an answer is ranked above one sampled at random for the same prompt, ties counting half."""
    if all(row.get("scores") for row in rows):
        return [list(map(float, row["scores"])) for row in rows], "points of the rater"
    worth = []
    for row in rows:
        total = sum(row["counts"])
        against = list(zip(row["ranks"], row["counts"], strict=True))
        worth.append(
            [
                sum(count * ((own < other) + 0.5 * (own == other)) for other, count in against) / total
                for own in row["ranks"]
            ]
        )
    return worth, "chance to beat a random answer"


def expected_best(counts: list[int], values: list[float], worth: list[float], n: int) -> float:
    """The expected worth of the answer with the highest value among `n` of the sampled ones, drawn without replacement.

    Exact over all subsets: with M draws of which m have at most the value v and m' less, the highest is v in C(m, n) −
    C(m', n) of C(M, n) subsets. Which of several answers with that value is picked is left to chance.
    """
    draws = sum(counts)
    expected, below = 0.0, 0
    for value in sorted(set(values)):
        alike = [(count, w) for count, v, w in zip(counts, values, worth, strict=True) if v == value and count]
        here = sum(count for count, _ in alike)
        if not here:
            continue
        chance = (math.comb(below + here, n) - math.comb(below, n)) / math.comb(draws, n)
        expected += chance * sum(count * w for count, w in alike) / here
        below += here
    return expected


def best_of_n(rows: list[dict], values: list[list[float]], worth: list[list[float]]) -> list[dict]:
    """What best of n by `values` brings, for each n of `N` that at least half of the rows have so many samples for.

    Returns [{"n", "prompts", "random", "reward", "rater", "gain": reward − random, "rater_gain": rater − random}, …]:
    the expected worth of a random answer, of the one with the highest value, and of the best, with intervals over
    prompts.
    """
    found, keys = [], prompt_keys(rows)
    for n in N:
        enough = [index for index, row in enumerate(rows) if sum(row["counts"]) >= n]
        if not enough or 2 * len(enough) < len(rows):
            break
        picks: dict[str, list[float]] = {"random": [], "reward": [], "rater": []}
        for index in enough:
            counts, own = rows[index]["counts"], worth[index]
            picks["random"].append(expected_best(counts, own, own, 1))
            picks["reward"].append(expected_best(counts, values[index], own, n))
            picks["rater"].append(expected_best(counts, own, own, n))
        own_keys = [keys[index] for index in enough]
        picks = {name: by_prompt(own_keys, own) for name, own in picks.items()}
        by_chance = np.array(picks["random"])
        found.append(
            {
                "n": n,
                "prompts": len(by_chance),
                **{name: bootstrap_interval(own) for name, own in picks.items()},
                "gain": bootstrap_interval(np.array(picks["reward"]) - by_chance),
                "rater_gain": bootstrap_interval(np.array(picks["rater"]) - by_chance),
            }
        )
    return found
