"""Is a reward fit for PPO with a policy? Measured on ranked answers of the policy itself, without training.

A reward that PPO is to learn from has to know more than the policy does: more than chance, than the length of an answer,
than answers without their prompts, and than the policy's own log-likelihood, which costs nothing. And its favourites
among several samples have to be better: best of n is what a policy gains at a small distance from where it was (Gao 2023,
arXiv:2210.10760), so it says about what there is to be had.
"""

import math
from collections.abc import Callable

from data_prep.common.intervals import bootstrap_interval, by_prompt, show_interval
from data_prep.common.text import counted
from data_prep.gate.measures import (
    best_of_n,
    calibration,
    correlation,
    difference,
    lengths_of,
    pairs_right,
    prompt_keys,
    spread,
    verdicts,
)
from data_prep.gate.ngrams import ngram_scores
from data_prep.gate.verdict import BASELINES, MIN_PROMPTS, MORE, as_verdict, decide, points
from data_prep.readers.ranks import pairs

# Rounding leaves equal rewards a few units in the last place of a 32-bit number apart.
ROUNDING = 1e-6


def check_reward(
    rows: list[dict],
    rewards: list[list[float]],
    behind_others: list[list[float] | None],
    logprobs: list[list[float] | None],
) -> dict:
    """{"verdict": see `data_prep.gate.verdict`, "metrics": see `measure`, or {} where nothing can be measured}.

    Args:
        rows: see `data_prep.gate.answers.read_answers`.
        rewards: of each answer, one list per row.
        behind_others: the same reward of the answers behind another row's prompt; None where there is none.
        logprobs: of each answer given its prompt, summed over its tokens, in nats; None where it is not known.
    """
    verdict = unmeasurable(rows, rewards)
    metrics = measure(rows, rewards, behind_others, logprobs) if verdict is None else {}
    return {"verdict": verdict or decide(metrics), "metrics": metrics}


def unmeasurable(rows: list[dict], rewards: list[list[float]]) -> dict | None:
    """The verdict on what no figure can be had of: too few prompts, ties alone, NaN, a constant; None where it can."""
    compared = len(set(prompt_keys([row for row in rows if pairs(row["ranks"])])))
    scores = [score for row in rows for score in row.get("scores") or ()]
    if bad := sum(not math.isfinite(score) for score in scores):
        reason = f"the rater's score of {bad:,} of {counted(len(scores), 'answer')} is not a number"
        return as_verdict("not shown", reason, "look at what the rater returns for empty and truncated answers")
    if not compared:
        reason = f"no answer is ranked above another to the same prompt ({counted(len(rows), 'prompt')})"
        return as_verdict("not shown", reason, "sample more answers to a prompt, or rank them more finely")
    flat = [reward for own in rewards for reward in own]
    if bad := sum(not math.isfinite(reward) for reward in flat):
        reason = f"the reward of {bad:,} of {counted(len(flat), 'answer')} is not a number"
        return as_verdict("not fit", reason, "look at how it was trained, and at what it gives for empty answers")
    rounding = ROUNDING * max(1.0, *map(abs, flat))
    if max(flat) - min(flat) <= rounding:
        reason = f"gives each of {counted(len(flat), 'answer')} the reward {flat[0]:.3g}"
        return as_verdict("not fit", reason, "look at how it was trained: nothing can be learned from it")
    if all(max(own) - min(own) <= rounding for own in rewards):
        reason = "gives all answers to a prompt the same reward"
        return as_verdict("not fit", reason, "look at whether it reads the answers: nothing can be learned from it")
    if compared < MIN_PROMPTS:
        reason = f"{counted(compared, 'prompt')} with answers that differ in rank, expected at least {MIN_PROMPTS}"
        return as_verdict("not shown", reason, MORE)
    return None


def measure(
    rows: list[dict],
    rewards: list[list[float]],
    behind_others: list[list[float] | None],
    logprobs: list[list[float] | None],
) -> dict:
    """All figures, as plain JSON. Arguments as for `check_reward`; every reward is finite.

    accuracy        of the reward over pairs of unequal rank, equal scores counting half; each prompt weighs 1
    baselines       {name in `BASELINES`: its "accuracy", and "difference": the reward's less its own, paired by prompt}
    spread          see `data_prep.gate.measures.spread`
    length_correlation      of the reward with characters, over all answers and within prompts
    calibration, best_of_n  see there; "worth" says in words what best_of_n counts
    """
    lengths, keys = lengths_of(rows), prompt_keys(rows)
    right = pairs_right(rows, rewards)
    others = {
        "chance": [None if share is None else 0.5 for share in right],
        "longer": pairs_right(rows, lengths),
        "shorter": pairs_right(rows, [[-length for length in own] for own in lengths]),
        "answer_only": pairs_right(rows, behind_others),
        "ngrams": pairs_right(rows, ngram_scores(rows)),
        "policy": pairs_right(rows, logprobs),
    }
    baselines = {}
    for name, own in others.items():
        if found := difference(keys, right, own):
            accuracy = bootstrap_interval(by_prompt(keys, own))
            baselines[name] = {"accuracy": accuracy, "difference": found}
    worth, words = verdicts(rows)
    return {
        "prompts": len(set(keys)),
        "answers": sum(len(row["completions"]) for row in rows),
        "samples": sum(sum(row["counts"]) for row in rows),
        "pairs": sum(len(pairs(row["ranks"])) for row in rows),
        "accuracy": bootstrap_interval(by_prompt(keys, right)),
        "baselines": baselines,
        "spread": spread(rows, rewards),
        "length_correlation": {
            "overall": correlation(rows, rewards, lengths, within=False),
            "within_prompts": correlation(rows, rewards, lengths, within=True),
        },
        "calibration": calibration(rows, rewards),
        "worth": words,
        "best_of_n": best_of_n(rows, rewards, worth),
    }


def table(metrics: dict) -> list[str]:
    """The figures as lines to print."""
    accuracy = metrics["accuracy"]
    lines = [
        f"{metrics['pairs']:,} pairs of unequal rank, of {counted(accuracy['n'], 'prompt')}; put right:",
        f"  {'the reward':<48} {show_interval(accuracy)}",
    ]
    for name, other in metrics["baselines"].items():
        ahead = points(other["difference"], 100, 1)
        lines.append(f"  {BASELINES[name]:<48} {show_interval(other['accuracy'])}, the reward {ahead} points")
    spread, length = metrics["spread"], metrics["length_correlation"]
    share = "undefined" if spread["share_within"] is None else f"{spread['share_within']:.0%}"
    overall, within = ("undefined" if value is None else f"{value:+z.2f}" for value in length.values())
    lines.append(
        f"variance of the reward within prompts: {share} of all; correlation with length {overall}, within prompts "
        f"{within}; calibration error {metrics['calibration']['error']:.3f}"
    )
    lines.append(f"best of n ({metrics['worth']}): random, the reward's pick, the rater's own")
    for row in metrics["best_of_n"]:
        values = ", ".join(f"{row[name]['value']:z.3f}" for name in ("random", "reward", "rater"))
        lines.append(f"  n = {row['n']:<2} {values}; the reward gains {points(row['gain'], digits=3)}")
    return lines


def behind_other_prompts(
    rows: list[dict], others: list[int | None], score: Callable[[list[dict]], list[list[float]]]
) -> list[list[float] | None]:
    """What `score` gives each row's answers behind the prompt, and with the other columns, of the row in `others`."""
    moved = [
        {**row, "prompt": rows[other]["prompt"], "columns": rows[other].get("columns", {})}
        for row, other in zip(rows, others, strict=True)
        if other is not None
    ]
    found = iter(score(moved) if moved else [])
    return [None if other is None else next(found) for other in others]
