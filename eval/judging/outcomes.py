"""Who wins: two answers to one prompt compared by agreement with the reference, or by a function."""

from collections.abc import Callable

from data_prep.common.intervals import bootstrap_interval, detectable_difference
from eval.common.functions import measure
from eval.metrics import load_metric

TIE_WIDTH = 5.0  # chrF points
JUDGE = (
    "a proxy for a human judge: agreement with the reference answer (an exact match beats any other answer, "
    f"then the higher sentence chrF; two matches, or scores less than {TIE_WIDTH:g} points apart, tie)"
)
JUDGE_FUNCTION = "a stand-in for a human judge: the function {} (the higher value wins, equal ones tie)"

Texts = list[list[str]]  # the answers of one model: one list per prompt


def outcome(matches: bool, score: float, other_matches: bool, other_score: float) -> float:
    """1 if the first answer wins, 0.5 for a tie, 0 if it loses. Scores are chrF, 0 to 100."""
    if matches or other_matches:
        return 0.5 + (matches - other_matches) / 2
    if abs(score - other_score) < TIE_WIDTH:
        return 0.5
    return float(score > other_score)


def outcome_by_value(value: float, other_value: float) -> float:
    """1 if the first answer wins, 0.5 for a tie, 0 if it loses, by the values that a function gives them."""
    return 0.5 + ((value > other_value) - (value < other_value)) / 2


def exact_matches(rows: list[dict], texts: Texts) -> list[list[bool]]:
    """Whether every answer is its row's reference, whitespace aside: one list per prompt."""
    left = iter(load_metric("exact_match").compute(**_beside_references(rows, texts))["matches"])
    return [[next(left) for _ in group] for group in texts]


def agreement(rows: list[dict], texts: Texts) -> list[list[tuple[bool, float]]]:
    """(exact match, sentence chrF) with its row's reference of every answer: one list per prompt."""
    scores = iter(load_metric("chrf").compute(**_beside_references(rows, texts))["sentence_chrf"])
    return [[(match, next(scores)) for match in group] for group in exact_matches(rows, texts)]


def _beside_references(rows: list[dict], texts: Texts) -> dict:
    return {
        "predictions": [text for group in texts for text in group],
        "references": [row["reference"] for row, group in zip(rows, texts, strict=True) for _ in group],
    }


def compare(function: Callable | None, rows: list[dict], texts: list[Texts], agreed: list) -> list[list[float]]:
    """The outcome of every answer of the model against every one of its opponent: one list per prompt.

    Args:
        function: the judge; None: agreement with the reference.
        texts: the answers of both.
        agreed: the `agreement` of both; not looked at with a judge.
    """
    if function:
        values = [measure(function, rows, side) for side in texts]
        return [
            [outcome_by_value(mine, other) for mine in own for other in others]
            for own, others in zip(*values, strict=True)
        ]
    return [[outcome(*mine, *other) for mine in own for other in others] for own, others in zip(*agreed, strict=True)]


def means(values: list[list[float]]) -> list[float]:
    """One mean per prompt of the values of its answers."""
    return [sum(group) / len(group) for group in values]


def measure_both(functions: dict, rows: list[dict], texts: list[Texts]) -> dict[str, dict]:
    """{function: {"model", "opponent", "difference"}}, an interval over prompts each; the difference is paired, and beside it
    stands "detectable", the smallest that so many prompts would show."""
    found = {}
    for name, function in functions.items():
        own, other = (means(measure(function, rows, side)) for side in texts)
        differences = [mine - its for mine, its in zip(own, other, strict=True)]
        found[name] = {
            "model": bootstrap_interval(own),
            "opponent": bootstrap_interval(other),
            "difference": bootstrap_interval(differences),
            "detectable": detectable_difference(differences),
        }
    return found


def figures(
    judge: Callable | None, functions: dict, rows: list[dict], both: list[list[list[dict]]]
) -> tuple[dict, list[Texts], list[list[float]]]:
    """(metrics, the texts of both, the outcome of every comparison) of the answers of a model and of its opponent.

    The metrics: "win_rate" with its interval over prompts, "detectable" (the smallest distance of a win rate from 50 % that so
    many prompts would show), "wins", "ties", "losses", and of both, the opponent's after "opponent_", "exact_match",
    "eos_rate" and "length"; with functions "eval_funcs", see `measure_both`.

    Args:
        both: of `generate_answers` of either.
    """
    texts = [[[answer["text"] for answer in group] for group in answers] for answers in both]
    # A judge needs no chrF, which takes long.
    agreed = [None, None] if judge else [agreement(rows, side) for side in texts]
    outcomes = compare(judge, rows, texts, agreed)
    flat = [value for group in outcomes for value in group]
    rate = load_metric("win_rate").compute(wins=means(outcomes))["win_rate"]
    exact, opponent_exact = (bootstrap_interval(means(exact_matches(rows, side))) for side in texts)
    metrics = {"win_rate": rate, "detectable": detectable_difference(means(outcomes))}
    metrics |= {"wins": flat.count(1.0), "ties": flat.count(0.5), "losses": flat.count(0.0)}
    metrics |= {"exact_match": exact, "opponent_exact_match": opponent_exact}
    for whose, answers in zip(("", "opponent_"), both, strict=True):
        every = [answer for group in answers for answer in group]
        metrics[f"{whose}eos_rate"] = sum(answer["stopped"] for answer in every) / len(every)
        metrics[f"{whose}length"] = sum(answer["tokens"] for answer in every) / len(every)
    metrics |= {"eval_funcs": measure_both(functions, rows, texts)} if functions else {}
    return metrics, texts, outcomes
