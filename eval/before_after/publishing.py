"""What of an adaptation is published beside its configs: `results.json` and the table of `RESULTS.md`."""

from pathlib import Path

from data_prep.common.files import atomic_write, write_json

BEGIN = "<!-- table: written by python -m eval.adaptation --publish -->"
END = "<!-- end of table -->"
PUBLISHED = ("bits_per_byte", "exact_match", "verdict", "measures", "seen", "settings", "machine", "commit")


def publish(folder: Path, adaptation: dict, after: str) -> list[str]:
    """Write the figures into `folder`, and their table into its RESULTS.md, whose other text is kept. Returns the names.

    Args:
        adaptation: as `results.json` has it.
        after: the name of the last model in it.
    """
    path = folder / "RESULTS.md"
    text = path.read_text(encoding="utf-8") if path.exists() else f"# Results\n\n{BEGIN}\n{END}\n"
    if text.count(BEGIN) != 1 or text.count(END) != 1 or text.index(BEGIN) > text.index(END):
        text += f"\n{BEGIN}\n{END}\n"
    before, rest = text.split(BEGIN)
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "results.json", {"adaptation": {key: adaptation[key] for key in PUBLISHED}})
    with atomic_write(path) as file:
        file.write(f"{before}{BEGIN}\n{table(adaptation, after)}{END}{rest.split(END)[1]}")
    return ["results.json", "RESULTS.md"]


def table(adaptation: dict, after: str) -> str:
    """The table in Markdown, the verdict, and where it was measured."""
    rows = ["| | before | after | change, 95 % interval | n |", "|---|---|---|---|---|"]
    for source, found in adaptation["documents"].items():
        models = found["models"]
        value, low, high = (f"{100 * models[after]['relative'][key]:+.1f}" for key in ("value", "low", "high"))
        was, now = (f"{models[name]['bits_per_byte']['value']:.3f}" for name in ("before", after))
        rows.append(
            f"| bits per byte, {source} | {was} | {now} | {value} % [{low}, {high}] | {found['documents']:,} documents |"
        )
    for source, found in adaptation["questions"].items():
        models = found["models"]
        value, low, high = (f"{100 * models[after]['difference'][key]:+.1f}" for key in ("value", "low", "high"))
        was, now = (f"{models[name]['exact_match']['value']:.1%}" for name in ("before", after))
        rows.append(
            f"| exact match, {source} | {was} | {now} | {value} points [{low}, {high}] | {found['prompts']:,} questions |"
        )
    about = adaptation["machine"]
    where = f"{about['cores']} cores of {about.get('gpu', about['cpu'])}"
    told = f"Measured at commit {adaptation['commit']} on {where}."
    return "\n".join([*rows, "", f"{adaptation['verdict']['line']}.", "", told, ""])
