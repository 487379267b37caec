"""Tables that a command writes into a page, whose other text is kept."""

from pathlib import Path

from data_prep.common.files import atomic_write


def write_between(path: Path, begin: str, table: str, end: str) -> None:
    """Write `table` between the lines `begin` and `end` of a page, which get a place at its end where it lacks them."""
    text = path.read_text(encoding="utf-8") if path.exists() else "# Results\n"
    if text.count(begin) != 1 or text.count(end) != 1 or text.index(begin) > text.index(end):
        text += f"\n{begin}\n{end}\n"
    before, rest = text.split(begin)
    with atomic_write(path) as file:
        file.write(f"{before}{begin}\n{table}{end}{rest.split(end)[1]}")
