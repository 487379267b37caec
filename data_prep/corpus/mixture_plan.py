"""Tables of a mixture: the plan, estimated from the beginnings of its files, and the realised shares."""

import math
from collections import Counter
from pathlib import Path
from typing import NamedTuple

from data_prep.corpus.mixture import Source, planned_tokens
from data_prep.readers.documents import texts
from data_prep.rows.read import HUB, kind_of_file
from data_prep.rows.text_window import COMPRESSED, ERRORS, decompressed
from data_prep.tokens.corpus_tokens import CorpusTokenizer

SAMPLE_BYTES = 200_000  # at the beginning of a source, to estimate its tokens from


class Estimate(NamedTuple):
    """The bytes and tokens of a source's text; None if unknown: a Hub data set, or a file whose beginning is bad."""

    bytes: int | None
    tokens: int | None


def estimate(files: list[str], text_column: str, tokenizer: CorpusTokenizer) -> Estimate:
    """Estimate bytes and tokens of the text in `files` from the beginning of the first and the sizes of all."""
    raw = text = tokens = 0
    for document in texts(files[0], text_column, Counter()):
        raw += len(document.row.raw.encode("utf-8", "surrogateescape")) + 1  # the line break
        if document.text.strip() and not document.row.problems:
            text += len(document.text.encode("utf-8"))
            tokens += len(tokenizer.tokenizer.encode(document.text, add_special_tokens=False)) + 1  # the end of text
        if raw > SAMPLE_BYTES:
            break
    if not text or any(file.startswith(HUB) for file in files):
        return Estimate(None, None)
    size = sum(text_size(file, text_column, text / raw) for file in files)
    return Estimate(round(size), round(size * tokens / text))


def text_size(path: str, text_column: str, share: float) -> float:
    """The bytes of text in a file, `share` of its decompressed bytes; for Parquet, from its metadata.

    A guess for unreadable files: reading them for the mixture reports the error.
    """
    size = Path(path).stat().st_size
    try:
        return _text_size(path, size, text_column, share)
    except (*ERRORS, ValueError):
        return size * share


def _text_size(path: str, size: int, text_column: str, share: float) -> float:
    if kind_of_file(path) == ".parquet":
        import pyarrow.parquet  # slow to import

        metadata = pyarrow.parquet.read_metadata(path)
        columns = (
            metadata.row_group(group).column(column)
            for group in range(metadata.num_row_groups)
            for column in range(metadata.num_columns)
        )
        return sum(column.total_uncompressed_size for column in columns if column.path_in_schema == text_column)
    if size and (suffix := Path(path).suffix).lower() in COMPRESSED:
        with open(path, "rb") as file:
            size *= len(decompressed(file, suffix).read(1 << 23)) / file.tell()
    return size * share


def plan_table(config: dict, files: dict[str, list[str]], estimates: dict[str, Estimate]) -> str:
    """Files, bytes, estimated tokens, target share and planned passes, one source a line; and which sources stop early."""
    tokens = {name: found.tokens for name, found in estimates.items()}
    weights = {name: source.get("weight", tokens[name] or math.nan) for name, source in config["sources"].items()}
    if len(weights) == 1:
        weights = dict.fromkeys(weights, 1.0)
    total = config.get("total_tokens") or config["passes"] * sum(count or math.nan for count in tokens.values())
    caps = {
        name: source["max_epochs"] * (tokens[name] or math.inf) if "max_epochs" in source else math.inf
        for name, source in config["sources"].items()
    }
    planned = planned_tokens(weights, caps, total)
    lines = [
        f"{'source':20} {'files':>6} {'text bytes':>15} {'tokens':>15} {'target':>8} {'planned':>15} {'passes':>7}"
    ]
    for name, found in estimates.items():
        passes = planned[name] / found.tokens if found.tokens else math.nan
        lines.append(
            f"{name:20} {len(files[name]):6,} {about(found.bytes):>15} {about(found.tokens):>15} "
            f"{weights[name] / sum(weights.values()):8.2%} {about(planned[name]):>15} {passes:7.2f}"
        )
    full = [name for name in planned if planned[name] == caps[name]]
    if len(full) == len(planned):
        lines.append(
            f"every source stops at its max_epochs: the mixture ends at {about(sum(planned.values()))} tokens, "
            f"short of {total:,.0f}"
        )
    elif full:
        lines.append(f"stopping at max_epochs: {', '.join(full)}; the others share the rest by their weights")
    return "\n".join(lines)


def needed_tokens(config: dict) -> dict[str, float]:
    """The tokens of each source that are enough for the mixture; inf for one that is read to its end.

    No source gives more than `total_tokens`. With `max_epochs` below 1 it is read until `max_epochs` of what was read are
    as many: then it does not stop early, however long the rest is. Where the weights are the lengths, all is read.
    """
    sources = config["sources"]
    weighted = len(sources) == 1 or all("weight" in source for source in sources.values())
    total = config.get("total_tokens", math.inf) if weighted else math.inf
    return {
        name: total if total == math.inf else math.ceil(total / min(1, source.get("max_epochs", 1)))
        for name, source in sources.items()
    }


def disk_line(config: dict, estimates: dict[str, Estimate], bytes_a_token: int, free: int) -> str:
    """The disk that the mixture takes, and the ids of its sources until it is complete, each read as far as is needed."""
    tokens = {name: found.tokens or math.nan for name, found in estimates.items()}
    total = config.get("total_tokens") or config["passes"] * sum(tokens.values())
    read = [
        min(most, tokens[name]) if most < math.inf else tokens[name] for name, most in needed_tokens(config).items()
    ]
    mixture, sources = total * bytes_a_token, sum(read) * bytes_a_token
    shown = ["?" if math.isnan(size) else f"~{size / 1e9:,.1f} GB" for size in (mixture, sources)]
    return f"disk: {shown[0]} for the mixture, and {shown[1]} for its sources until it is complete; {free / 1e9:,.1f} GB are free"


def about(number: float | None) -> str:
    """An estimated number as text; "?" if it is unknown."""
    return "?" if number is None or math.isnan(number) else f"~{number:,.0f}"


def realised_table(sources: list[Source]) -> str:
    """Target and realised share of the tokens, and passes, one source a line.

    The passes of a source that was not read to its end are the most that they can be: how long it is, nobody has counted.
    """
    weight_sum, total = sum(source.weight for source in sources), sum(source.tokens for source in sources)
    lines = [f"{'source':20} {'target':>8} {'realised':>9} {'tokens':>15} {'documents':>12} {'passes':>7}"]
    for source in sources:
        passes = f"{source.passes:.2f}" if source.whole else f"≤{math.ceil(100 * source.passes) / 100:.2f}"
        lines.append(
            f"{source.name:20} {source.weight / weight_sum:8.2%} {source.tokens / total:9.2%} {source.tokens:15,} "
            f"{source.documents:12,} {passes:>7}"
        )
    if part := [source.name for source in sources if not source.whole]:
        lines.append(
            f"≤: read only as far as the mixture needs, so that its passes are at most these: {', '.join(part)}"
        )
    longest = max(sources, key=lambda source: source.longest)
    if longest.longest > total / 100:
        lines.append(
            f"documents are never split, so the longest one limits how exact the shares are: it is in {longest.name} "
            f"and has {longest.longest:,} tokens, {longest.longest / total:.0%} of all"
        )
    return "\n".join(lines)
