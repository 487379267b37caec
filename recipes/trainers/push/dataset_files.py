"""Pushing data: the rows that were kept, without the folders of this machine, and a card of what the reports say."""

import csv
from collections.abc import Iterable, Iterator
from pathlib import Path

from huggingface_hub import DatasetCard, DatasetCardData

from data_prep.common.errors import InputError
from data_prep.common.files import (
    atomic_write,
    existing,
    read_json,
    read_jsonl,
    regular_file,
    write_json,
    write_jsonl,
)
from data_prep.common.text import shorten
from data_prep.rows.json_rows import LIMIT
from recipes.trainers.push.lineage import object_in
from recipes.trainers.push.names import is_path, names_of, paths_in, short_names, shown

ENDINGS = (".jsonl", ".json", ".csv", ".parquet")
NAMES_A_FILE = ("source", "file")  # columns of data_prep.clean_corpus, read_documents and ask_documents
NOT_DATA = ("report.json", "index.json", "results.json", "settings.json")
SIZES = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M"))
TASKS = {"documents": "text-generation", "conversations": "text-generation", "preferences": "reinforcement-learning"}


def data_in(path: Path) -> list[Path]:
    """The files of rows that go: a file, or those at the top of a folder. Raises InputError where there is none."""
    if existing(path).is_file():
        found = [path]
    else:
        found = [each for each in sorted(path.iterdir()) if each.is_file() and each.name not in NOT_DATA]
    kept = [
        each
        for each in found
        if each.suffix in ENDINGS and not each.name.startswith((".", "_", "partial")) and "quarantine" not in each.name
    ]
    if not kept:
        raise InputError(
            f"{path}: found no data to push; expected rows as {', '.join(ENDINGS)}, and none of those quarantined"
        )
    return kept


def data_files_to_push(path: Path, card: str, temporary: Path) -> dict[str, Path | bytes]:
    """{name on the Hub: file}, the card first. Rows that name a file of this machine keep as much of its path as tells it
    from the others' (see `short_names`).

    Such files are written anew, into `temporary`.
    """
    files: dict[str, Path | bytes] = {"README.md": card.encode()}
    found = data_in(path)
    named_in = {each: {name for row in rows_in(each) for name in files_named(row)} for each in found}
    names = short_names(name for own in named_in.values() for name in sorted(own))
    for each in found:
        files[each.name] = without_paths(each, names, temporary) if any(map(is_path, named_in[each])) else each
    return files


def without_paths(path: Path, names: dict[str, str], temporary: Path) -> Path:
    """A copy of a file whose rows name files of this machine, with their `names`."""
    copy = temporary / path.name
    if path.suffix == ".csv":
        with atomic_write(copy) as file:
            writer = csv.writer(file, lineterminator="\n")
            for row in cells_in(path):
                writer.writerow(with_names({name: cell}, names)[name] for name, cell in row)
    elif path.suffix == ".parquet":
        write_parquet(path, copy, names)
    elif path.suffix == ".json":
        write_json(copy, [with_names(row, names) for row in rows_in(path)])
    else:
        write_jsonl(copy, (with_names(row, names) for row in rows_in(path)))
    return copy


def write_parquet(path: Path, copy: Path, names: dict[str, str]) -> None:
    """A copy of a Parquet file with the same schema, whose rows name files by their `names`."""
    import pyarrow  # slow to import
    import pyarrow.parquet

    with pyarrow.parquet.ParquetFile(path) as file, pyarrow.parquet.ParquetWriter(copy, file.schema_arrow) as writer:
        for batch in file.iter_batches():
            for index, field in enumerate(batch.schema):
                if field.name in NAMES_A_FILE:
                    values = [with_names({field.name: value}, names)[field.name] for value in batch[index].to_pylist()]
                    batch = batch.set_column(index, field, pyarrow.array(values, field.type))
            writer.write_batch(batch)


def is_json(path: Path) -> bool:
    return path.suffix in (".jsonl", ".json")


def rows_in(path: Path) -> Iterable[dict]:
    """The rows of a file of JSON Lines or of one JSON list; of CSV and Parquet the cells that may name files, one by one."""
    if path.suffix == ".jsonl":
        return read_jsonl(path)
    if path.suffix == ".csv":
        return ({name: cell} for row in cells_in(path) for name, cell in row if name in NAMES_A_FILE)
    if path.suffix == ".parquet":
        return parquet_cells(path)
    rows = read_json(path)
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise InputError(f"{path}: expected a list of rows, each a JSON object")
    return rows


def cells_in(path: Path) -> Iterator[list[tuple[str, str]]]:
    """The rows of a CSV file, each as (name of the column, cell); "" is that of a cell too many, and of the names themselves."""
    csv.field_size_limit(LIMIT)
    try:
        with regular_file(path).open(encoding="utf-8", newline="") as file:
            columns: list[str] = []
            for row in csv.reader(file, strict=True):
                yield [*zip(columns + [""] * len(row), row, strict=False)]
                columns = columns or [cell.removeprefix("\ufeff") for cell in row]
    except (csv.Error, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read as CSV ({error}); expected CSV in UTF-8") from None


def parquet_cells(path: Path) -> Iterator[dict]:
    import pyarrow  # slow to import
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(regular_file(path)) as file:
            columns = [name for name in file.schema_arrow.names if name in NAMES_A_FILE]
            for batch in file.iter_batches(columns=columns) if columns else ():
                for name, column in zip(batch.schema.names, batch.columns, strict=True):
                    yield from ({name: value} for value in column.to_pylist())
    except (pyarrow.ArrowException, OSError) as error:
        raise InputError(f"{path}: cannot be read as Parquet ({shorten(str(error))})") from None


def files_named(row: dict) -> Iterable[str]:
    """The files that a row says it comes from, under "source" or "file", or there as {"file", "row", …}."""
    for key in NAMES_A_FILE:
        if isinstance(row.get(key), dict):
            yield from files_named(row[key])
        else:
            yield from filter(None, paths_in(row.get(key), every=True))


def with_names(row: dict, names: dict[str, str]) -> dict:
    """A row whose `files_named` have their `names`."""
    kept = {**row}
    for key in NAMES_A_FILE:
        if key in row:
            kept[key] = with_names(row[key], names) if isinstance(row[key], dict) else shown(row[key], names)
    return kept


def count_of(path: Path) -> int | None:
    """The rows of a file of JSON; None of another."""
    return sum(1 for _ in rows_in(path)) if is_json(path) else None


def dataset_card(path: Path, name: str, *, license: str | None = None, private: bool = True) -> DatasetCard:
    """The card of what data_prep.check or data_prep.clean_corpus wrote, or of other files of rows."""
    files = data_in(path)
    folder = path if path.is_dir() else path.parent
    checked, cleaned = object_in(folder / "report" / "check.json"), object_in(folder / "report.json")
    counts = {each.name: count_of(each) for each in files}
    languages = checked.get("languages", {}).get("counts", {}) if path.is_dir() else {}
    total = sum(count or 0 for count in counts.values())
    data = DatasetCardData(
        pretty_name=name.split("/")[-1],
        license=license,
        language=[each for each in languages if len(each) in (2, 3)] or None,
        size_categories=next((size for bound, size in SIZES if total < bound), "n>1M") if total else None,
        task_categories=list(dict.fromkeys(TASKS[each.stem] for each in files if each.stem in TASKS)) or None,
        configs=[{"config_name": each.stem, "data_files": each.name} for each in files],
    )
    rows = ["| file | rows |", "|---|---|"]
    rows += [f"| {each} | {'–' if count is None else f'{count:,}'} |" for each, count in counts.items()]
    parts = [f"# {name.split('/')[-1]}", "\n".join(rows)]
    if path.is_dir() and checked:
        parts += ["## What was checked", by_check(checked)]
    if path.is_dir() and "documents_in" in cleaned:
        parts += ["## What was cleaned", by_cleaning(cleaned)]
    login = "# the repository is private: hf auth login first\n" if private else ""
    load = (
        f'{login}from datasets import load_dataset\n\nrows = load_dataset("{name}", "{files[0].stem}", split="train")'
    )
    parts += ["## How to use it", f"```python\n{load}\n```", "## Limits", limits(license)]
    return DatasetCard(f"---\n{data.to_yaml()}\n---\n\n" + "\n\n".join(parts) + "\n")


def limits(license: str | None) -> str:
    told = f"Licence: {license}, as whoever pushed it stated." if license else "Nobody stated its licence."
    return f"- {told}\n- It was not searched for personal data, and nobody checked what the texts say."


def by_check(report: dict) -> str:
    """What data_prep.check counted; no row is quoted."""
    rows = report["rows"]
    said = [
        f"By `data_prep.check` (`--on_bad {report['on_bad']}`): {rows['in']:,} rows in, {rows['out']:,} out, "
        f"{rows['quarantined']:,} quarantined (they are not here), {rows['repaired']:,} repaired."
    ]
    if report["findings"]:
        table = ["| found | what became of the row | rows |", "|---|---|---|"]
        table += [f"| {each['kind']} | {each['treatment']} | {each['rows']:,} |" for each in report["findings"]]
        said.append("\n".join(table))
    if counts := report.get("languages", {}).get("counts"):
        total = sum(counts.values())
        listed = ", ".join(f"{name} {count / total:.1%}" for name, count in list(counts.items())[:8])
        said.append(f"Languages: {listed} (by {report['languages']['method']}).")
    files = [each["file"] for each in report["files"]]
    return "\n\n".join([*said, f"From {names_of(files, short_names(paths_in(files, every=True)))}."])


def by_cleaning(report: dict) -> str:
    """What data_prep.clean_corpus removed, and why."""
    table = ["| | documents | bytes |", "|---|---|---|"]
    table.append(f"| in | {report['documents_in']:,} | {report['bytes_in']:,} |")
    for name, removed in report["filtered"].items():
        table.append(f"| {name} | −{removed['documents']:,} | −{removed['bytes']:,} |")
    table.append(f"| out | {report['documents_out']:,} | {report['bytes_out']:,} |")
    given = {key: value for key, value in report.get("settings", {}).items() if value is not None}
    settings = shown(given, short_names(paths_in(given)))
    told = ", ".join(f"{key} {value}" for key, value in settings.items())
    return "By `data_prep.clean_corpus`:\n\n" + "\n".join(table) + f"\n\nSettings: {told}."
