"""What of a run is published beside its configs: `results.json`, the tables of `RESULTS.md`, `answers.png`."""

from pathlib import Path

from data_prep.common.agreement import exact_match
from data_prep.common.errors import InputError
from data_prep.common.files import atomic_write, write_json
from eval.reporting.pictures import TITLES, answers_picture
from eval.reporting.tables import markdown

BEGIN = "<!-- tables: written by python -m eval.report --publish -->"
END = "<!-- end of tables -->"
LEFT_OUT = ("curves", "examples", "alarms")  # long, and no metric


def tables_in(text: str, path: str | Path) -> tuple[str, str, str]:
    """(before, tables, after) of the text of `path`, a RESULTS.md; `InputError` if its markers are not there once each."""
    if text.count(BEGIN) != 1 or text.count(END) != 1 or text.index(BEGIN) > text.index(END):
        raise InputError(
            f"{path}: expected the lines {BEGIN} and {END}, once each and in this order, around the tables"
        )
    before, rest = text.split(BEGIN)
    tables, after = rest.split(END)
    return before, tables, after


def publish(folder: Path, facts: dict, example: tuple[dict, dict[str, str]] | None, asked: Path) -> None:
    """Write the run's metrics into `folder`, their tables into its RESULTS.md, and the picture of one question.

    Args:
        facts: {"stages", "machine", "commit"} as in the run's results.json.
        example: what `example_question` found; without one there is no picture, and an older one is removed.
        asked: the file that the question is from.
    """
    path = folder / "RESULTS.md"
    text = path.read_text(encoding="utf-8") if path.exists() else f"# Results\n\n{BEGIN}\n{END}\n"
    before, _, after = tables_in(text, path)
    stages = {
        name: {key: value for key, value in result.items() if key not in LEFT_OUT}
        for name, result in facts["stages"].items()
    }
    published = {**facts, "stages": stages}
    write_json(folder / "results.json", published)
    with atomic_write(path) as file:
        file.write(f"{before}{BEGIN}\n{markdown(published)}{END}{after}")
    if not example:
        (folder / "answers.png").unlink(missing_ok=True)
        return
    question, answers = example
    with atomic_write(folder / "answers.png", "wb") as file:
        file.write(answers_picture(question, answers, caption(question, answers, stages, asked)))


def example_question(questions: list[dict], answers: dict[str, list[str]]) -> tuple[dict, dict[str, str]] | None:
    """The first question to which only the last model gives exactly the reference answer, and no two the same answer.

    Args:
        questions: rows {"prompt", "reference", …}.
        answers: {model: one answer per question}.

    Returns the row with its position, from 1, as "number", and {model: answer}; None if there is no such question, or
    fewer than two models.
    """
    *others, last = answers or [None]
    for number, question in enumerate(questions if others else (), start=1):
        given = {name: texts[number - 1] for name, texts in answers.items()}
        exact = [name for name, text in given.items() if exact_match(text, question["reference"])]
        if exact == [last] and len({" ".join(text.split()) for text in given.values()}) == len(given):
            return {**question, "number": number}, given
    return None


def caption(question: dict, answers: dict[str, str], stages: dict, asked: Path) -> str:
    """The rule by which the question was chosen, and how often each model is exact on all questions."""
    *others, last = (TITLES.get(name, name) for name in answers)
    text = (
        f"How it was chosen: the first question of {asked.name} (number {question['number']:,}) that {last} answers with "
        f"exactly the reference; {' and '.join(others)} "
        + ("give other answers, no two of them equal. " if len(others) > 1 else "gives another answer. ")
        + "It shows what changes, not how often"
    )
    shares = {}
    for result in stages.values():
        exact = result.get("metrics", {}).get("exact_match")
        if exact and "opponent" not in result and [Path(path).name for path in result.get("data", [])] == [asked.name]:
            shares[Path(result["model"]).name] = exact["value"]
    told = ", ".join(f"{TITLES.get(name, name)} {shares[name]:.1%}" for name in answers if name in shares)
    return text + (f": exact match on held-out questions is {told}" if told else "") + ". All metrics: RESULTS.md."
