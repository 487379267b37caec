"""Questions to several models: greedy answers, exact match, chrF, and who wins."""

from data_prep.common.agreement import corpus_chrf
from data_prep.common.intervals import bootstrap_interval
from data_prep.judging.judges import Judge
from eval.common.functions import measure
from eval.judging.outcomes import compare, exact_matches, means

EXAMPLES = 4


def compare_answers(
    rows: list[dict], answers: dict[str, list[str]], judge: Judge, functions: dict, other: Judge | None = None
) -> dict:
    """Exact match and chrF of each model's answers, and each against the first model's, with 95 % intervals over prompts.

    Args:
        rows: {"id", "prompt", "reference"}.
        answers: {model: one text per row}; "" where a model cannot be asked.
        judge: decides who wins.
        functions: of --eval_funcs.
        other: whom the judge's agreement is measured with, on the answers of the first and the last model.

    Returns {"prompts", "agreement", "models": {model: {"exact_match", "difference", "chrf", "win_rate", "eval_funcs"}}}: the paired
    difference in exact match to the first model, and the share of prompts won against it, a tie being half a win.
    """
    texts = {name: [[text] for text in own] for name, own in answers.items()}
    matched = {name: exact_matches(rows, own) for name, own in texts.items()}
    first, *_, last = [*answers] * 2
    references = [row["reference"] for row in rows]
    measured = {
        name: {function: means(measure(each, rows, own)) for function, each in functions.items()}
        for name, own in texts.items()
    }
    found = {}
    for name in answers:
        matches = [float(match) for (match,) in matched[name]]
        old = [float(match) for (match,) in matched[first]]
        wins, agreed = compare(judge, rows, [texts[name], texts[first]], other if name == last else None)
        found[name] = {
            "exact_match": bootstrap_interval(matches),
            "difference": bootstrap_interval([mine - its for mine, its in zip(matches, old, strict=True)]),
            "chrf": corpus_chrf(answers[name], references),
            "win_rate": bootstrap_interval(means(wins)),
        }
        if functions:
            found[name]["eval_funcs"] = {
                function: {
                    "model": bootstrap_interval(values),
                    "difference": bootstrap_interval(
                        [mine - its for mine, its in zip(values, measured[first][function], strict=True)]
                    ),
                }
                for function, values in measured[name].items()
            }
    return {"prompts": len(rows), "agreement": agreed, "models": found}


def changed_answers(rows: list[dict], before: list[str], after: list[str]) -> dict[str, list[dict]]:
    """{"lost", "gained"}: the first questions, in file order, that only the first or only the last model answers right."""
    both = [[match for (match,) in exact_matches(rows, [[text] for text in own])] for own in (before, after)]
    found = {"lost": [], "gained": []}
    for row, old, new, was, now in zip(rows, before, after, *both, strict=True):
        if was != now:
            kind = found["gained" if now else "lost"]
            kind.append({"prompt": row["prompt"], "reference": row["reference"], "before": old, "after": new})
    return {kind: examples[:EXAMPLES] for kind, examples in found.items()}
