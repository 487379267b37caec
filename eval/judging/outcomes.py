"""Who wins: the answers of two models to the same prompts, compared by a judge."""

from data_prep.common.errors import InputError
from data_prep.common.intervals import bootstrap_interval, detectable_difference
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
    judge: Judge, functions: dict, rows: list[dict], both: list[list[list[dict]]], other: Judge | None = None
) -> tuple[dict, list[Texts], list[list[float | None]], dict | None]:
    """(metrics, the texts of both, the outcome of every comparison, the judge's agreement with `other`) of the answers of a
    model and of its opponent.

    The metrics: "win_rate" with its interval over prompts, "detectable" (the smallest distance of a win rate from 50 % that so
    many prompts would show), "wins", "ties", "losses", "without_verdict" if there are any, and of both, the opponent's after
    "opponent_", "exact_match", "eos_rate" and "length"; with functions "eval_funcs", see `measure_both`.

    Args:
        both: of `generate_answers` of either.
    """
    texts = [[[answer["text"] for answer in group] for group in answers] for answers in both]
    outcomes, agreed = compare(judge, rows, texts, other)
    flat = [value for group in outcomes for value in group]
    rate = load_metric("win_rate").compute(wins=means(outcomes))["win_rate"]
    exact, opponent_exact = (bootstrap_interval(means(exact_matches(rows, side))) for side in texts)
    metrics = {"win_rate": rate, "detectable": detectable_difference(means(outcomes))}
    metrics |= {"wins": flat.count(1.0), "ties": flat.count(0.5), "losses": flat.count(0.0)}
    metrics |= {"without_verdict": flat.count(None)} if None in flat else {}
    metrics |= {"exact_match": exact, "opponent_exact_match": opponent_exact}
    for whose, answers in zip(("", "opponent_"), both, strict=True):
        every = [answer for group in answers for answer in group]
        metrics[f"{whose}eos_rate"] = sum(answer["stopped"] for answer in every) / len(every)
        metrics[f"{whose}length"] = sum(answer["tokens"] for answer in every) / len(every)
    metrics |= {"eval_funcs": measure_both(functions, rows, texts)} if functions else {}
    return metrics, texts, outcomes, agreed
