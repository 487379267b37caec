"""What of an adaptation is published beside its configs: `results.json` and the table of `RESULTS.md`."""

from pathlib import Path

from data_prep.common.files import write_json
from eval.before_after.verdict import BITS
from eval.common.markdown import write_between

BEGIN = "<!-- table: written by python -m eval.adaptation --publish -->"
END = "<!-- end of table -->"
SWEEP_BEGIN = "<!-- sweep: written by python -m eval.adaptation --sweep --publish -->"
SWEEP_END = "<!-- end of sweep -->"
PUBLISHED = ("bits_per_byte", "exact_match", "verdict", "measures", "seen", "settings", "machine", "commit")


def publish(folder: Path, adaptation: dict) -> list[str]:
    """Write the figures into `folder`, and their table into its RESULTS.md, whose other text is kept. Returns the names.

    Args:
        adaptation: as `results.json` has it.
    """
    published = {key: adaptation[key] for key in PUBLISHED}
    folder.mkdir(parents=True, exist_ok=True)
    write_between(folder / "RESULTS.md", BEGIN, table(published), END)  # first: it may refuse
    write_json(folder / "results.json", {"adaptation": published})
    return ["results.json", "RESULTS.md"]


def publish_sweep(folder: Path, sweep: dict) -> list[str]:
    """The same of a sweep: what `sweep.json` has, without the folders of its runs. Returns the names of the files."""
    rows = [{key: value for key, value in row.items() if key != "run"} for row in sweep["rows"]]
    published = {**sweep, "rows": rows}
    folder.mkdir(parents=True, exist_ok=True)
    write_between(folder / "RESULTS.md", SWEEP_BEGIN, sweep_table(published), SWEEP_END)  # first: it may refuse
    write_json(folder / "sweep.json", published)
    return ["sweep.json", "RESULTS.md"]


def table(published: dict) -> str:
    """The table in Markdown, the verdict, and where it was measured, of what is published."""
    rows = ["| | before | after | change, 95 % interval | n |", "|---|---|---|---|---|"]
    for measured in published["measures"]:
        source, loss, n = measured["source"], measured["loss"], measured["n"]
        if measured["measure"] == BITS:
            both = (f"{published['bits_per_byte'][source][when]:.3f}" for when in ("before", "after"))
            change = "{:+.1f} % [{:+.1f}, {:+.1f}]".format(*(100 * loss[key] for key in ("value", "low", "high")))
            what = "documents"
        else:
            both = (f"{published['exact_match'][source][when]:.1%}" for when in ("before", "after"))
            change = "{:+.1f} points [{:+.1f}, {:+.1f}]".format(
                *(-100 * loss[key] for key in ("value", "high", "low"))
            )
            what = "questions"
        rows.append(f"| {measured['measure']}, {source} | {' | '.join(both)} | {change} | {n:,} {what} |")
    return "\n".join([*rows, "", f"{published['verdict']['line']}.", "", measured_at(published), ""])


def sweep_table(sweep: dict) -> str:
    """A row in Markdown for each value, the best of them, and where it was measured."""
    head = [sweep["key"], *(f"bits per byte, {source}" for source in ("domain", "general"))]
    asked = list(sweep["rows"][0]["exact_match"])
    head += [*(f"exact match, {source}" for source in asked), "verdict"]
    rows = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for row in sweep["rows"]:
        loss = {"value": -row["gain"]["value"], "low": -row["gain"]["high"], "high": -row["gain"]["low"]}
        cells = [row["value"]]
        for change in (loss, row["forgetting"]):
            cells.append(
                "{:+.1f} % [{:+.1f}, {:+.1f}]".format(*(100 * change[key] for key in ("value", "low", "high")))
            )
        for source in asked:
            cells.append(f"{row['exact_match'][source]['before']:.1%} → {row['exact_match'][source]['after']:.1%}")
        rows.append(f"| {' | '.join([*cells, row['verdict']['word']])} |")
    return "\n".join([*rows, "", f"{sweep['best']['line']}.", "", measured_at(sweep), ""])


def measured_at(published: dict) -> str:
    about = published["machine"]
    where = f"{about['cores']} cores of {about.get('gpu', about['cpu'])}"
    return f"Measured at commit {published['commit']} on {where}."
