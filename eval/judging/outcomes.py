"""Who wins: the answers of two models to the same prompts, compared by a judge."""

from data_prep.common.errors import InputError
from data_prep.common.intervals import bootstrap_interval
from data_prep.judging.agreement import agreement_line, judged_with_agreement
from data_prep.judging.judges import Judge
from data_prep.judging.language_model import told_line
from eval.common.functions import measure
from eval.metrics import load_metric

Texts = list[list[str]]  # the answers of one model: one list per prompt


def exact_matches(rows: list[dict], texts: Texts) -> list[list[bool]]:
    """Whether each answer is its row's reference, whitespace aside: one list per prompt."""
    pairs = {
        "predictions": [text for group in texts for text in group],
        "references": [row["reference"] for row, group in zip(rows, texts, strict=True) for _ in group],
    }
    left = iter(load_metric("exact_match").compute(**pairs)["matches"])
    return [[next(left) for _ in group] for group in texts]


def row_to_judge(row: dict) -> dict:
    """What a judge gets of a row beside its answers."""
    return {key: row[key] for key in ("prompt", "id", "reference")}


def compare(
    judge: Judge, rows: list[dict], texts: list[Texts], other: Judge | None = None
) -> tuple[list[list[float | None]], dict | None]:
    """(the outcome of every answer of the model against every one of its opponent, one list per prompt; the judge's
    agreement with `other`, see `judged_with_agreement`).

    1 for a win, 0.5 for a tie, as of equal texts, 0 for a loss, None without a verdict. Raises `InputError` if there is no
    verdict at all.

    Args:
        texts: the answers of both.
    """
    asked, pairs, places = [], [], []
    for row, own, others in zip(rows, *texts, strict=True):
        place = {text: number for number, text in enumerate(dict.fromkeys([*own, *others]))}
        asked.append({**row_to_judge(row), "completions": [*place]})
        both = {tuple(sorted((place[one], place[its]))) for one in own for its in others if one != its}
        pairs.append(sorted(both))
        places.append(place)
    found, agreed = judged_with_agreement(judge, asked, pairs, other)

    def outcome(outcomes: dict, one: int, its: int) -> float | None:
        if one == its:
            return 0.5
        value = outcomes[min(one, its), max(one, its)]
        return value if value is None or one < its else 1 - value

    compared = [
        [outcome(outcomes, place[one], place[its]) for one in own for its in others]
        for outcomes, place, own, others in zip(found, places, *texts, strict=True)
    ]
    if all(value is None for group in compared for value in group):
        told = judge.told()
        why = told_line(told) if told else "none of these answers is ranked in it"
        raise InputError(f"the judge, {judge.words}, has no verdict on any of the answers: {why}")
    return compared, agreed


def say(label: str, judge: Judge, agreed: dict | None) -> None:
    """Print what a judge that is a language model told of itself, and how far a judge agrees with people or others."""
    if told := judge.told():
        print(f"{label}: {told_line(told)}")
    print(f"{label}: {agreement_line(agreed)}")


def means(values: list[list]) -> list[float]:
    """One mean per prompt of the values of its answers; None is no value, and a prompt without any is left out."""
    kept = [[value for value in group if value is not None] for group in values]
    return [sum(group) / len(group) for group in kept if group]


def measure_both(functions: dict, rows: list[dict], texts: list[Texts]) -> dict[str, dict]:
    """{function: {"model", "opponent", "difference"}}, an interval over prompts each; the difference is paired."""
    found = {}
    for name, function in functions.items():
        own, other = (means(measure(function, rows, side)) for side in texts)
        differences = [mine - its for mine, its in zip(own, other, strict=True)]
        found[name] = {
            "model": bootstrap_interval(own),
            "opponent": bootstrap_interval(other),
            "difference": bootstrap_interval(differences),
        }
    return found
