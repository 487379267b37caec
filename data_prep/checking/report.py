"""What the validator found: on the screen, and as one page that loads no other file.

Both are made from the dictionary that `data_prep.check` writes as check.json.
"""

import math
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from data_prep.checking.context import context_sentences
from data_prep.checking.rows import CORPUS_COMMANDS
from data_prep.common.page import render
from data_prep.common.plots import BLUE, RED, as_uri, canvas
from data_prep.common.text import printable, shorten
from data_prep.readers.documents import separated_lines
from data_prep.readers.unread import fields_line, reasoning_line
from data_prep.rows.problems import Row
from data_prep.rows.read import kind_of_file

BINS = 20
FILES = 20  # files listed on the screen
BAR = 30  # characters of the longest bar on the screen
TREATMENTS = {"quarantined": "quarantined", "repaired": "repaired", "kept": "kept", "error": "an error"}


def histogram(values: np.ndarray, least_top: int = 0) -> list[dict]:
    """Counts of whole numbers in about `BINS` bins of a round width: [{"from", "to" (inclusive), "count"}, …].

    The bins end at the 99th percentile, or at `least_top` if that is more. The last bin also counts everything above; its
    "to" is then None.
    """
    if not len(values):
        return []
    top = max(int(np.quantile(values, 0.99, method="higher")), least_top, 1)
    width = max(1, top / BINS)
    power = 10 ** math.floor(math.log10(width))
    width = max(1, int(next(step * power for step in (1, 2, 5, 10) if step * power >= width)))
    count = top // width + 1
    counts = np.bincount(np.minimum(values // width, count - 1).astype(np.int64), minlength=count)
    bins = [
        {"from": number * width, "to": (number + 1) * width - 1, "count": int(rows)}
        for number, rows in enumerate(counts)
    ]
    if int(values.max()) > bins[-1]["to"]:
        bins[-1]["to"] = None
    return bins


def share(part: int, whole: int) -> str:
    """A share in percent: "12.3 %"; "< 0.1 %" if it is positive but would round to 0."""
    if not whole:
        return "–"
    percent = 100 * part / whole
    return "< 0.1 %" if 0 < percent < 0.1 else f"{percent:.1f} %" if part < whole else "100 %"


def interval(row: dict) -> str:
    """A bin in words: "0–49", "50 and more"."""
    if row["to"] is None:
        return f"{row['from']:,} and more"
    return f"{row['from']:,}" if row["from"] == row["to"] else f"{row['from']:,}–{row['to']:,}"


def id_of(value) -> str | None:
    """The id of a row, quoted; None without one."""
    identifier = value.get("id") if isinstance(value, dict) else None
    return None if identifier is None else encodable(shorten(str(identifier)))


def place(file: str, line: int | None, row: int, identifier: str | None) -> str:
    """Where a row stands: "a.jsonl:3", "a.json:1 (row 8, id 's7')" as a list may be on one line, or "a.parquet, row 2" if
    rows have no lines."""
    if line is None:
        return f"{file}, row {row}"
    if kind_of_file(file) != ".json":
        return f"{file}:{line}"
    return f"{file}:{line} (row {row}" + ("" if identifier is None else f", id {identifier}") + ")"


def place_of(row: Row) -> str:
    return place(row.path, row.line, row.number, id_of(row.value))


def encodable(text: str) -> str:
    """`text` with escapes for half surrogate pairs, which UTF-8 cannot encode."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def common_folder(report: dict) -> str:
    """The folder that all files are in, with a slash at its end; "" if there is none."""
    folder = os.path.commonprefix([os.path.dirname(file["file"]) + "/" for file in report["files"]])
    return folder[: folder.rfind("/") + 1].removeprefix("/" if folder == "/" else "")


def places(examples: list[dict], folder: str) -> str:
    """Where examples are, each file named once and without `folder`: "a.jsonl:3, :7, b.parquet, row 2"."""
    said, last = [], None
    for example in examples:
        file = example["file"]
        where = place(file, example["line"], example["row"], example["id"])
        said.append(where.removeprefix(file if file == last else folder))
        last = file
    return ", ".join(part.removeprefix(", ") for part in said)


def sentences(report: dict) -> list[tuple[str, str]]:
    """The counts below the table as (name, sentence)."""
    rows, turns, tokens, lengths = (report[key] for key in ("rows", "turns", "tokens", "lengths"))
    said = []
    if documents := report["documents"]["count"]:
        characters = report["documents"]["characters"]
        said.append(
            ("documents", f"{documents:,} of {characters:,} characters, for pretraining: {CORPUS_COMMANDS} read them")
        )
        said += [("documents", line) for line in separated_lines(report["documents"].get("separated", 0))]
    if turns["total"]:
        speakers = ", ".join(f"{count:,} {role}" for role, count in turns["by_role"].items() if count)
        own = f"; {spread(turns)} in a conversation" if turns["histogram"] else ""
        said.append(("turns", f"{turns['total']:,}: {speakers}{own}"))
    if tokens:
        total = tokens["total"]
        kept = total - tokens["truncated"] - tokens["left_out"]
        parts = {
            part: f"{tokens[part]:,} ({share(tokens[part], total)})"
            for part in ("learned", "masked", "truncated", "left_out")
            if tokens[part] is not None
        }
        learned = (
            f"of them {parts['learned']} to learn from and {parts['masked']} masked"
            if "learned" in parts
            else "those to learn from are not counted: the chat template does not enclose the assistant's turns in "
            "{% generation %}"
        )
        limit = f" at {tokens['max_length']:,} tokens" if tokens["max_length"] else ""
        said.append(
            (
                "tokens",
                f"{total:,} with {tokens['tokenizer']}: {kept:,} kept, {learned}; {parts['truncated']} truncated{limit}"
                + (f", {parts['left_out']} left out with preferences" if tokens["left_out"] else ""),
            )
        )
    if lengths["histogram"]:
        said.append(("length", f"{spread(lengths)} {lengths['unit']}"))
    said += [("context", sentence) for sentence in context_sentences(report["context"], share)]
    if rows["out"]:
        counts = report["languages"]["counts"]
        total = sum(counts.values())
        first = list(counts.items())[:8]
        listed = ", ".join(f"{name} {share(count, total)}" for name, count in first)
        rest = f", {len(counts) - len(first)} more" if len(counts) > len(first) else ""
        said.append(("language", f"{listed}{rest} (by {report['languages']['method']})"))
    if report["fields_not_read"]:
        said.append(("fields", f"not read: {fields_line(report['fields_not_read'])}"))
    said += [("fields", f"{way}: {fields_line(fields)}") for way, fields in report["fields_changed"].items()]
    if (reasoning := report["reasoning"])["turns"]:
        said.append(("reasoning", reasoning_line(reasoning["policy"], reasoning["turns"], reasoning["left_out"])))
    if rows["repairable"]:
        said.append(("repair", f"--on_bad repair can repair {rows['repairable']:,} of the quarantined rows"))
    return said


def spread(figures: dict) -> str:
    """Minimum, maximum and median: "2 to 18 (median 4)"."""
    if figures["least"] == figures["most"]:
        return f"{figures['least']:,}"
    return f"{figures['least']:,} to {figures['most']:,} (median {figures['median']:,})"


def counted_kinds(report: dict) -> tuple[str, ...]:
    """The kinds of data that the table of files counts: documents only where there are any."""
    some = any(file["documents"] for file in report["files"])
    return ("conversations", "preferences", *(("documents",) if some else ()))


def balance(report: dict) -> str:
    """The line that shows that no row was lost."""
    rows = report["rows"]
    kept = f"rows in {rows['in']:,} = rows out {rows['out']:,} + quarantined {rows['quarantined']:,}"
    return kept + (f" ({rows['repaired']:,} of the rows out repaired)" if rows["repaired"] else "")


def show(report: dict, console) -> None:
    """Print the report on a rich console."""
    from rich.table import Table
    from rich.text import Text

    folder = common_folder(report)
    if folder:
        console.print(Text(printable(f"in {folder}"), overflow="fold"))
    counted = counted_kinds(report)
    files = Table("file", "rows", *counted, "quarantined", box=None, pad_edge=False)
    for column in files.columns[1:]:
        column.justify = "right"
    for file in report["files"][:FILES]:
        counts = (f"{file[key]:,}" for key in ("rows", *counted, "quarantined"))
        files.add_row(Text(printable(file["file"].removeprefix(folder)), overflow="fold"), *counts)
    console.print(files)
    if len(report["files"]) > FILES:
        console.print(f"and {len(report['files']) - FILES:,} more, which check.json lists")
    console.print()
    if report["findings"]:
        found = Table("found", "rows", "what happens", "the first of them", box=None, pad_edge=False)
        found.columns[1].justify = "right"
        for finding in report["findings"]:
            more = ", …" if finding["rows"] > len(finding["first"]) else ""
            where = Text(printable(places(finding["first"], folder)) + more, overflow="fold")
            found.add_row(finding["kind"], f"{finding['rows']:,}", TREATMENTS[finding["treatment"]], where)
        console.print(found)
        console.print()
        for finding in report["findings"]:
            first = finding["first"][0]
            where = place(first["file"], first["line"], first["row"], first["id"])
            line = f"{finding['kind']}: {where}: found {first['found']}; expected {first['expected']}"
            console.print(Text(printable(line), overflow="fold"))
    else:
        console.print("nothing is wrong with these rows")
    console.print()
    for name, sentence in sentences(report):
        console.print(Text(f"{name:10}{sentence}", overflow="fold"))
    for line in bars(report["lengths"]["histogram"]):
        console.print(Text(line))
    console.print()


def bars(bins: list[dict]) -> Iterator[str]:
    """A histogram as lines of text; several empty bins in a row are one line."""
    most, empty = max((row["count"] for row in bins), default=0), True
    for row in bins:
        if row["count"]:
            yield f"{interval(row):>18} {'█' * round(BAR * row['count'] / most) or '▏'} {row['count']:,}"
        elif not empty:
            yield f"{'…':>18}"
        empty = not row["count"]


def picture(bins: list[dict], xlabel: str, mark: int | None = None) -> str:
    """Bars of a histogram as a PNG in a data: URI, with a line at `mark`."""
    from matplotlib.ticker import MaxNLocator  # slow to import

    figure, (panel,) = canvas(6.2, 2.7, left=0.11, right=0.97, top=0.93, bottom=0.2)
    width = bins[0]["to"] - bins[0]["from"] + 1 if bins[0]["to"] is not None else 1
    align = "center" if width == 1 else "edge"  # a bar of one number stands over it
    colors = [BLUE if mark is None or row["from"] < mark else RED for row in bins]
    starts, counts = [row["from"] for row in bins], [row["count"] for row in bins]
    panel.bar(starts, counts, width=0.9 * width, align=align, color=colors)
    if mark is not None:
        panel.axvline(mark, color=RED, linewidth=1.4, linestyle="--")
    panel.set_xlabel(xlabel + (" (last bar: and more)" if bins[-1]["to"] is None else ""))
    panel.set_ylabel("rows")
    panel.yaxis.set_major_locator(MaxNLocator(5, integer=True))
    for axis in (panel.xaxis, panel.yaxis):
        axis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    panel.grid(visible=False, axis="x")
    return as_uri(figure)


def page(report: dict) -> str:
    """The report as one HTML document; all text from the data is escaped."""
    lengths, tokens = report["lengths"], report["tokens"]
    pictures = []
    if lengths["histogram"]:
        mark = tokens["max_length"] if tokens else None
        pictures.append((f"Length in {lengths['unit']}", picture(lengths["histogram"], lengths["unit"], mark)))
    if report["turns"]["histogram"]:
        pictures.append(("Turns in a conversation", picture(report["turns"]["histogram"], "turns")))
    shown = {"pictures": pictures, "said": sentences(report), "balance": balance(report), "treatments": TREATMENTS}
    shown |= {"place": place, "places": places, "folder": common_folder(report), "share": share}
    shown |= {"kinds": counted_kinds(report)}
    return render(Path(__file__).with_name("template.html"), {**report, **shown})
