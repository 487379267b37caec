"""What of a run is published beside its configs: `results.json`, the tables of `RESULTS.md`, and two pictures."""

import json
from pathlib import Path

from data_prep.common.files import atomic_write
from eval.common.markdown import parts_of
from eval.reporting.drawing.chart import chart
from eval.reporting.drawing.example import caption, mark
from eval.reporting.drawing.pictures import answers_picture
from eval.reporting.tables import markdown

BEGIN = "<!-- tables: written by python -m eval.report --publish -->"
END = "<!-- end of tables -->"
LEFT_OUT = ("curves", "examples", "alarms")  # long, and no metric


def tables_in(text: str, path: str | Path) -> tuple[str, str, str]:
    """(before, tables, after) of the text of `path`, a RESULTS.md; `InputError` if its markers are not there once each."""
    return parts_of(text, path, BEGIN, END)


def shortened(result: dict) -> dict:
    """A result as it is published: without `LEFT_OUT`, of the gate within a training the verdict alone, and numbers with
    six digits."""
    kept = {key: value for key, value in result.items() if key not in LEFT_OUT}
    if gate := kept.get("reward_gate"):
        kept["reward_gate"] = {"verdict": gate["verdict"]}
    return rounded(kept)


def rounded(value):
    if isinstance(value, dict):
        return {key: rounded(each) for key, each in value.items()}
    if isinstance(value, list):
        return [rounded(each) for each in value]
    return float(f"{value:.6g}") if isinstance(value, float) else value


def one_line_a_stage(facts: dict) -> str:
    """The JSON of `facts` with each stage on a line: small, and a difference between two commits names its stages."""
    rest = json.dumps({key: value for key, value in facts.items() if key != "stages"}, ensure_ascii=False, indent=1)
    stages = ",\n".join(
        f"  {json.dumps(name, ensure_ascii=False)}: {json.dumps(result, ensure_ascii=False)}"
        for name, result in facts["stages"].items()
    )
    return f'{{\n "stages": {{\n{stages}\n }},{rest[1:]}\n'


def publish(
    folder: Path, facts: dict, example: tuple[dict, dict[str, str]] | None, asked: Path, shown: dict | None
) -> list[str]:
    """Write the run's metrics into `folder`, their tables into its RESULTS.md, the chart of its stages and the picture of
    one question. Returns the names of what was written.

    Args:
        facts: {"stages", "machine", "commit"} as in the run's results.json.
        example: what `example_question` found.
        asked: the file that the question is from.
        shown: {"answers": [(title, text)]} as the page opens with it.

    A picture that there is nothing for is not drawn, and an older one is removed.
    """
    path = folder / "RESULTS.md"
    text = path.read_text(encoding="utf-8") if path.exists() else f"# Results\n\n{BEGIN}\n{END}\n"
    before, _, after = tables_in(text, path)
    stages = {name: shortened(result) for name, result in facts["stages"].items()}
    published = {**facts, "stages": stages}
    with atomic_write(folder / "results.json") as file:
        file.write(one_line_a_stage(published))
    with atomic_write(path) as file:
        file.write(f"{before}{BEGIN}\n{markdown(published)}{END}{after}")
    pictures = {"stages.png": (chart(stages) or {}).get("png"), "answers.png": None}
    if example:
        question, answers = example
        told = f"{caption(question, answers, stages, asked)} All metrics: RESULTS.md."
        drawn = dict(shown["answers"]) if shown else answers
        marks = {name: mark(text, question["reference"]) for name, text in drawn.items()}
        pictures["answers.png"] = answers_picture(question, drawn, marks, told)
    for name, picture in pictures.items():
        if picture is None:
            (folder / name).unlink(missing_ok=True)
            continue
        with atomic_write(folder / name, "wb") as file:
            file.write(picture)
    return ["results.json", "RESULTS.md", *(name for name, picture in pictures.items() if picture)]
