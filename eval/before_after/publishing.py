"""What of an adaptation is published beside its configs: `results.json` and the table of `RESULTS.md`."""

from pathlib import Path

from data_prep.common.files import atomic_write, write_json
from eval.before_after.verdict import BITS

BEGIN = "<!-- table: written by python -m eval.adaptation --publish -->"
END = "<!-- end of table -->"
PUBLISHED = ("bits_per_byte", "exact_match", "verdict", "measures", "seen", "settings", "machine", "commit")


def publish(folder: Path, adaptation: dict) -> list[str]:
    """Write the figures into `folder`, and their table into its RESULTS.md, whose other text is kept. Returns the names.

    Args:
        adaptation: as `results.json` has it.
    """
    published = {key: adaptation[key] for key in PUBLISHED}
    path = folder / "RESULTS.md"
    text = path.read_text(encoding="utf-8") if path.exists() else f"# Results\n\n{BEGIN}\n{END}\n"
    if text.count(BEGIN) != 1 or text.count(END) != 1 or text.index(BEGIN) > text.index(END):
        text += f"\n{BEGIN}\n{END}\n"
    before, rest = text.split(BEGIN)
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "results.json", {"adaptation": published})
    with atomic_write(path) as file:
        file.write(f"{before}{BEGIN}\n{table(published)}{END}{rest.split(END)[1]}")
    return ["results.json", "RESULTS.md"]


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
    about = published["machine"]
    where = f"{about['cores']} cores of {about.get('gpu', about['cpu'])}"
    told = f"Measured at commit {published['commit']} on {where}."
    return "\n".join([*rows, "", f"{published['verdict']['line']}.", "", told, ""])
