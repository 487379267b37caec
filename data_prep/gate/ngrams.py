"""A reward of answers alone: a Bradley-Terry model of character n-grams, which knows nothing of the prompt.

What it puts right, no reward model has to be trained for. It is tested only on prompts that it was not fitted on.
"""

import numpy as np

from data_prep.readers.preferences import prompt_key
from data_prep.readers.ranks import pairs

ORDERS = range(1, 6)  # characters; five of them are most words
BUCKETS = 2048  # n-grams are hashed into so many features (Weinberger 2009, arXiv:0902.2206, without the sign)
FOLDS = 5
STEPS, RATE, DECAY = 150, 0.05, 1e-4


def features(texts: list[str]) -> np.ndarray:
    """(texts, BUCKETS): log(1 + count) of the hashed n-grams of each text, divided by the rows' mean norm."""
    found = np.zeros((len(texts), BUCKETS), dtype=np.float32)
    for row, text in zip(found, texts, strict=True):
        codes = np.frombuffer(f" {text} ".encode("utf-32-le", "replace"), dtype=np.uint32).astype(np.uint64)
        for order in ORDERS:
            size = len(codes) - order + 1
            if size < 1:
                break
            hashed = np.full(size, order, dtype=np.uint64)
            for place in range(order):
                hashed = hashed * np.uint64(0x100000001B3) ^ codes[place : place + size]
            hashed ^= hashed >> np.uint64(29)
            hashed *= np.uint64(0x9E3779B97F4A7C15)
            row += np.bincount((hashed >> np.uint64(40)) % np.uint64(BUCKETS), minlength=BUCKETS)
    np.log1p(found, out=found)
    norms = np.linalg.norm(found, axis=1)
    return found / (norms.mean() or 1.0) if len(texts) else found


def fit(inputs: np.ndarray, better: np.ndarray, worse: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """The coefficients of log sigmoid(score of the better − score of the worse), by Adam (Kingma 2014)."""
    coefficients = np.zeros(inputs.shape[1], dtype=np.float32)
    first, second = np.zeros_like(coefficients), np.zeros_like(coefficients)
    weights = weights / weights.sum()
    for step in range(1, STEPS + 1):
        scores = inputs @ coefficients
        pull = weights / (1 + np.exp(np.clip(scores[better] - scores[worse], -50, 50)))
        on_scores = np.bincount(worse, pull, len(inputs)) - np.bincount(better, pull, len(inputs))
        gradient = inputs.T @ on_scores.astype(np.float32) + DECAY * coefficients
        first = 0.9 * first + 0.1 * gradient
        second = 0.999 * second + 0.001 * gradient**2
        coefficients -= RATE * (first / (1 - 0.9**step)) / (np.sqrt(second / (1 - 0.999**step)) + 1e-8)
    return coefficients


def ngram_scores(rows: list[dict], seed: int = 0) -> list[list[float] | None]:
    """Each answer's score by a model that was fitted on the other prompts; None where those have no pair.

    Rows of one prompt are in one fold. Every prompt weighs 1.
    """
    keys = [prompt_key(row["prompt"]) for row in rows]
    order = np.random.default_rng(seed).permutation(sorted(set(keys)))
    fold_of = {key: number % FOLDS for number, key in enumerate(order.tolist())}
    ends = np.cumsum([0, *(len(row["completions"]) for row in rows)])
    inputs = features([text for row in rows for text in row["completions"]])
    compared = [
        (start + better, start + worse, 1 / len(own), fold_of[key])
        for start, key, own in zip(ends, keys, [pairs(row["ranks"]) for row in rows], strict=False)
        for better, worse in own
    ]
    if not compared:
        return [None] * len(rows)
    better, worse, weights, folds = map(np.array, zip(*compared, strict=True))
    scores: list[list[float] | None] = [None] * len(rows)
    for fold in sorted(set(fold_of.values())):
        inside = folds != fold
        if not inside.any():
            continue
        coefficients = fit(inputs, better[inside], worse[inside], weights[inside])
        for index, key in enumerate(keys):
            if fold_of[key] == fold:
                scores[index] = (inputs[ends[index] : ends[index + 1]] @ coefficients).tolist()
    return scores
