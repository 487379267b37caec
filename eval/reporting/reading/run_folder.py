"""What the folder of a run holds: data files, models, samples, completions and times."""

import math
from pathlib import Path

from data_prep.common.errors import InputError
from data_prep.common.files import UNFINISHED, read_json, read_jsonl
from data_prep.common.plots import uri_of
from eval.reporting.stages import STAGES
from eval.reporting.tables import number

# What a run was trained on: the names that data_prep.start gives, and those of the quickstart.
TRAINED_ON, RANKINGS = ("conversations_train", "conversations"), ("preferences_train", "rankings")


def data_file(run: Path, *names: str) -> Path:
    """The first of these files that the run has, as recipes/quickstart.sh (.json) or data_prep.start (.jsonl) writes it;
    where it has none, that of the quickstart."""
    files = [run / "data" / f"{name}{kind}" for name in names for kind in (".json", ".jsonl")]
    return next((path for path in files if path.exists()), files[0])


def data_files(run: Path) -> list[dict]:
    """Name, rows and size of the run's data files; no rows of one that cannot be read, or that is too large for it."""
    rows = []
    for path in sorted(path for path in run.glob("data/**/*.json*") if is_data(path.relative_to(run))):
        if path.is_file():
            size = path.stat().st_size
            rows.append(
                {"name": path.relative_to(run), "rows": number(count_rows(path)), "size": f"{size / 1e6:.1f} MB"}
            )
    return rows


def is_data(path: Path) -> bool:
    """Whether a name is that of data: no journal, lock or archive beside it, and nothing hidden or unfinished."""
    unfinished = any(part.startswith(".") or part.endswith(".unfinished") for part in path.parts)
    return path.suffix in (".json", ".jsonl") and path.parent.name != "tokens" and not unfinished


def count_rows(path: Path) -> int | None:
    try:
        if path.suffix == ".jsonl":
            with path.open("rb") as file:
                return sum(1 for _ in file)
        # A list has to be read as a whole.
        return len(read_json(path)) if path.stat().st_size < 5e7 else None
    except (InputError, OSError, RecursionError, TypeError):  # TypeError: a number, say, has no rows
        return None


def model_folders(run: Path) -> list[dict]:
    """Name, kind, parameters, context and vocabulary of the run's finished models, read from their files alone."""
    from safetensors import safe_open

    from data_prep.models.loading import config_in, context_of  # slow to import

    rows = []
    for path in sorted(run.glob("*/config.json"), key=lambda path: path.parent.stat().st_mtime):
        if (path.parent / UNFINISHED).exists():
            continue
        parameters = 0
        for file in path.parent.glob("*.safetensors"):
            with safe_open(file, "pt") as tensors:
                shapes = [tensors.get_slice(key).get_shape() for key in tensors.keys()]  # noqa: SIM118
            parameters += sum(map(math.prod, shapes))
        config = config_in(path.parent)
        about = {
            "kind": ", ".join(read_json(path).get("architectures") or ["–"]),
            "parameters": number(parameters),
            "context": number(context_of(config) if config else None),
            "vocabulary": number(config.get_text_config().vocab_size if config else None),
        }
        rows.append({"name": path.parent.name, **about})
    return rows


def samples(run: Path, steps: int = 6) -> dict[str, list[tuple[int, str]]]:
    """{prompt: [(step, sample)]} of pretraining, at most `steps` per prompt, the first and the last among them."""
    path = run / "base" / "samples.jsonl"
    rows: dict[str, dict[int, str]] = {}
    for row in read_jsonl(path) if path.exists() else ():
        rows.setdefault(row["prompt"], {})[row["step"]] = row["sample"]
    return {prompt: spread(sorted(written.items()), steps) for prompt, written in rows.items()}


def completions(folder: Path, rows: int = 3) -> list[tuple[int, list[dict]]]:
    """[(update, its first rows)] for the first and the last update in the model's `completions.jsonl`."""
    path = folder / "completions.jsonl"
    shown: dict[int, list[dict]] = {}
    for row in read_jsonl(path) if path.exists() else ():
        shown.setdefault(row["step"], []).append(row)
    return [(step, shown[step][:rows]) for step in sorted({min(shown), max(shown)})] if shown else []


def times(run: Path, results: dict) -> list[tuple[str, float]]:
    """[(step, seconds)]: whole commands as recipes/quickstart.sh noted them, then all other results with a time."""
    path = run / "results" / "times.tsv"
    noted = [line.split("\t") for line in path.read_text().splitlines()] if path.exists() else []
    whole = {name.removesuffix(".json"): float(seconds) for name, seconds in noted}
    order = [name for name in [*STAGES, *results] if "seconds" in results.get(name, {})]
    return list({**whole, **{name: results[name]["seconds"] for name in order if name not in whole}}.items())


def verdicts(run: Path, results: dict) -> list[dict]:
    """What a page shows of `results` that have no section of their own: {"name", "line", "picture", "metrics"}.

    "line" is a verdict's, as eval/reward_gate.py and eval/diagnose.py write it, "picture" the data: URI of the PNG beside
    the result, "metrics" the plain numbers and intervals among them. A result that has none of the three is left out.
    """
    shown = []
    for name, result in results.items():
        line, path = (result.get("verdict") or {}).get("line"), run / "results" / f"{name}.png"
        plain = {key: number(value, key) for key, value in result.get("metrics", {}).items() if is_plain(value)}
        picture = uri_of(path.read_bytes()) if path.exists() else None
        if line or plain or picture:
            shown.append({"name": name, "line": line, "picture": picture, "metrics": plain})
    return shown


def is_plain(value) -> bool:
    """Whether a metric is one figure: no list, and no table of several."""
    return value is not None and not isinstance(value, list) and (not isinstance(value, dict) or "low" in value)


def spread(items: list, count: int) -> list:
    """At most `count` of `items`, evenly spread, the first and the last among them."""
    if len(items) <= count:
        return items
    return [items[round(index * (len(items) - 1) / (count - 1))] for index in range(count)]
