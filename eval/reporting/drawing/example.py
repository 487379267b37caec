"""One question, answered by every model: which one is shown, how right each answer is, and how often."""

from pathlib import Path

from data_prep.common.agreement import exact_match
from data_prep.rewards import all_facts, asked_fact
from eval.reporting.drawing.pictures import TITLES
from eval.reporting.words import say

RIGHT, PARTLY, WRONG = "right", "partly", "wrong"


def asked_alone(text: str, reference: str) -> bool:
    """Whether a text is the fact that was asked for, the first line of the reference, and nothing else."""
    return all_facts([], [text], _facts(reference)[:1]) == [1.0]


def mark(text: str, reference: str) -> tuple[str, str]:
    """(one of `RIGHT`, `PARTLY`, `WRONG`; the same in words) of an answer.

    A reference of several lines holds the fact that was asked for and further facts (see data_prep/rewards.py); with any
    other, an answer is an exact match or none.
    """
    if len(_facts(reference)) < 2:
        return (RIGHT, "exact match") if exact_match(text, reference) else (WRONG, "no exact match")
    if all_facts([], [text], [reference]) == [1.0]:
        return RIGHT, "all facts right"
    if asked_alone(text, reference):
        return PARTLY, "asked fact alone"
    if asked_fact([], [text], [reference]) == [1.0]:
        return PARTLY, "asked fact right, not all of the rest"
    return WRONG, "asked fact wrong"


def example_question(questions: list[dict], answers: dict[str, list[str]]) -> tuple[dict, dict[str, str]] | None:
    """The first question that shows what the last model has learned: its answer gives all facts, and the one before it
    the asked fact alone. Where a reference has one fact only, the last model alone gives it, and no two answers are equal.

    Args:
        questions: rows {"prompt", "reference", …}.
        answers: {model: one answer per question}.

    Returns the row with its position, from 1, as "number", and {model: answer}; None if there is no such question, or
    fewer than two models.
    """
    *others, last = answers or [None]
    for number, question in enumerate(questions if others else (), start=1):
        given, reference = {name: texts[number - 1] for name, texts in answers.items()}, question["reference"]
        right = [name for name, text in given.items() if mark(text, reference)[0] == RIGHT]
        if len(_facts(reference)) > 1:
            fits = last in right and asked_alone(given[others[-1]], reference)
        else:
            fits = right == [last] and len({" ".join(text.split()) for text in given.values()}) == len(given)
        if fits:
            return {**question, "number": number}, given
    return None


def caption(question: dict, answers: dict[str, str], stages: dict, asked: Path) -> str:
    """The rule by which the question was chosen, and how often each model is right on all questions."""
    *others, last = (TITLES.get(name, name) for name in answers)
    chosen = "How it was chosen: the first question of {file} (number {number}) that {last} answers "
    values = {"file": asked.name, "number": f"{question['number']:,}", "last": last, "before": others[-1]}
    if len(_facts(question["reference"])) > 1:
        measure, words = "all_facts", "the share with all facts right"
        chosen += "with all facts of the reference while {before} gives the asked fact alone."
    else:
        measure, words = "exact_match", "exact match"
        chosen += "with exactly the reference; "
        chosen += (
            "{before} gives another answer."
            if len(others) == 1
            else "{others} give other answers, no two of them equal."
        )
        values["others"] = f" {say('and')} ".join(others)
    text = say(chosen, **values)
    shares = {}
    for result in stages.values():
        metrics = result.get("metrics", {})
        share = metrics.get("eval_funcs", {}).get(measure) or metrics.get(measure)
        if share and "opponent" not in result and [Path(path).name for path in result.get("data", [])] == [asked.name]:
            shares[Path(result["model"]).name] = share["value"]
    told = ", ".join(f"{TITLES.get(name, name)} {shares[name]:.1%}" for name in answers if name in shares)
    if not told:
        return text + " " + say("It shows what changes, not how often.")
    often = say("It shows what changes, not how often: {measure} on held-out questions is {rates}.",
                measure=say(words), rates=told)  # fmt: skip
    return f"{text} {often}"


def _facts(reference: str) -> list[str]:
    """The lines of a reference that are not blank."""
    return [line for line in reference.splitlines() if line.strip()]
