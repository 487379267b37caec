"""95 % intervals for averages over prompts."""

from collections.abc import Hashable, Iterable

import numpy as np


def by_prompt(keys: Iterable[Hashable], values: Iterable) -> list:
    """The mean of each prompt's values, in the order in which the prompts come first; None is left out.

    Several rows may have one prompt, ranked by several people, say: as units of their own they would make intervals narrower
    than they are.
    """
    found: dict[Hashable, list] = {}
    for key, value in zip(keys, values, strict=True):
        if value is not None:
            found.setdefault(key, []).append(value)
    return [sum(own) / len(own) for own in found.values()]


def bootstrap_interval(values, weights=None, resamples: int = 2000, seed: int = 0) -> dict:
    """The (weighted) mean of one value per prompt, and its 95 % percentile bootstrap interval over prompts.

    Prompts are resampled, not pairs or answers: those of one prompt are not independent (Efron & Tibshirani 1993,
    chapter 8). Returns {"value", "low", "high", "n"}. Raises ValueError without values.
    """
    values = np.asarray(values, dtype=float)
    weights = np.ones_like(values) if weights is None else np.asarray(weights, dtype=float)
    if not len(values):
        raise ValueError("no values to average")
    sampled = np.random.default_rng(seed).integers(0, len(values), size=(resamples, len(values)))
    means = (values * weights)[sampled].sum(1) / weights[sampled].sum(1)
    low, high = np.percentile(means, [2.5, 97.5])
    return {
        "value": float((values * weights).sum() / weights.sum()),
        "low": float(low),
        "high": float(high),
        "n": len(values),
    }


def bootstrap_statistic(parts: np.ndarray, statistic, resamples: int = 2000, seed: int = 0) -> dict | None:
    """A statistic of sums over prompts, such as kappa of tables, with its interval as of `bootstrap_interval`.

    Args:
        parts: [prompts, …], what each prompt adds to the sums.
        statistic: f(sums [resamples, …]) -> [resamples]; also of the sums of all, without the first dimension.

    Returns {"value", "low", "high", "n"}; None where the statistic is not defined on all prompts.
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        value = statistic(parts.sum(0))
        if not np.isfinite(value):
            return None
        sampled = np.random.default_rng(seed).integers(0, len(parts), size=(resamples, len(parts)))
        values = statistic(parts[sampled].sum(1))
    low, high = np.percentile(values[np.isfinite(values)], [2.5, 97.5])
    return {"value": float(value), "low": float(low), "high": float(high), "n": len(parts)}


def detectable_difference(values) -> float | None:
    """The smallest true mean that so many paired differences, scattered as these are, would show in 80 of 100 trials.

    Shown means that a two-sided test at the 5 % level tells it from 0: 1.960 + 0.842 standard errors, the minimum
    detectable effect (Bloom 1995, doi.org/10.1177/0193841X9501900504; for language models Card 2020, arXiv:2010.06595, and
    Miller 2024, arXiv:2411.00640). None where values do not scatter: too few, or all alike.
    """
    values = np.asarray(values, dtype=float)
    if len(values) < 2 or not (spread := float(values.std(ddof=1))):
        return None
    return (1.959964 + 0.841621) * spread / len(values) ** 0.5


def show_interval(interval: dict) -> str:
    """An interval of a share in percent: "72.1% [69.8%, 74.3%]"."""
    return f"{interval['value']:.1%} [{interval['low']:.1%}, {interval['high']:.1%}]"


def show_nats(interval: dict) -> str:
    """An interval of a KL divergence in nats: "1.25 [0.98, 1.51]"."""
    return f"{interval['value']:z.2f} [{interval['low']:z.2f}, {interval['high']:z.2f}]"
