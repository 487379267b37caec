"""Two runs side by side: metrics with differences and intervals, settings that differ, curves, answers."""

import hashlib
import math
from collections.abc import Iterator
from pathlib import Path

from data_prep.common.errors import InputError
from data_prep.common.files import atomic_write, read_json
from data_prep.common.intervals import show_interval, show_nats
from data_prep.common.page import render
from data_prep.common.plots import BLUE, RED, as_uri, canvas, uri_of
from data_prep.readers.prompts import read_prompts
from eval.common.functions import in_words
from eval.reporting.drawing.chart import chart
from eval.reporting.drawing.example import mark
from eval.reporting.reading.asking import ask
from eval.reporting.reading.run_folder import data_file
from eval.reporting.sections import made_with, reading
from eval.reporting.stages import STAGES
from eval.reporting.tables import SHARES, number
from eval.reporting.words import label, say

# Two results are of the same prompts only if these are the same, where either has them.
ALIKE = ("prompts", "rankings", "num_return_sequences", "temperature", "max_new_tokens", "judge", "seed", "best_of", "context",
         "bytes")  # fmt: skip
TRAINED_ON = ("heldout", "max_prompts")  # settings of a recipe that decide what it is evaluated on
CURVES = {
    "pretrain": ("held-out bits per byte", "loss"),
    "sft": ("loss", "accuracy of the next token"),
    "reward": ("accuracy", "margin"),
    "ppo": ("held-out score", "held-out KL", "held-out rubric", "kl"),
}
QUESTIONS = 4


def read_run(run: Path) -> dict[str, dict]:
    return {path.stem: read_json(path) for path in sorted(run.glob("results/*.json"))}


def digest(path: Path) -> str | None:
    """A hash of a file's content; None where there is none."""
    if not path.is_file():
        return None
    with path.open("rb") as file:
        return hashlib.file_digest(file, "blake2b").hexdigest()


def file_of(run: Path, name: str) -> Path:
    """The file that a result names, in the run's own data folder if it is there: runs are moved and copied."""
    path = Path(name)
    parts = path.parts[path.parts.index("data") + 1 :] if "data" in path.parts else path.parts[-1:]
    inside = run.joinpath("data", *parts)
    return inside if inside.exists() else path


def why_not(runs: tuple[Path, Path], results: tuple[dict, dict], settings: tuple[dict, dict]) -> str | None:
    """Why two results of one name cannot be compared: what they were measured on differs, or is not known; else None.

    Args:
        settings: of the trainings that wrote the results, {} for evaluations.
    """
    for key in ALIKE:
        values = [result.get(key) for result in results]
        # Of a training, prompts and rankings are what it learned from.
        if values[0] != values[1] and (key not in ("prompts", "rankings") or "data" in results[0]):
            return say("{key} differs: {a} and {b}", key=key, a=number(values[0]), b=number(values[1]))
    data = [result.get("data") or given.get("heldout") or [] for result, given in zip(results, settings, strict=True)]
    data = [[each] if isinstance(each, str) else list(each) for each in data]
    if settings[0].get("max_prompts") != settings[1].get("max_prompts"):
        values = [number(given.get("max_prompts")) for given in settings]
        return say("{key} differs: {a} and {b}", key="max_prompts", a=values[0], b=values[1])
    if not data[0] and not data[1]:
        return say("what it was measured on is not written down")
    if len(data[0]) != len(data[1]):
        return say("{a} files of prompts and {b}", a=len(data[0]), b=len(data[1]))
    for names in zip(*data, strict=True):
        found = [digest(file_of(run, name)) for run, name in zip(runs, names, strict=True)]
        if None in found:
            run, name = runs[found.index(None)], names[found.index(None)]
            return say("{name} of {run} is not there, so that it cannot be told", name=Path(name).name, run=run)
        if found[0] != found[1]:
            return say("different prompts: {name} is another file in {a} than in {b}", name=Path(names[0]).name,
                       a=runs[0], b=runs[1])  # fmt: skip
    return None


def metrics_of(metrics: dict, before: str = "") -> Iterator[tuple[str, dict | float]]:
    """(name, interval or number) of the metrics of a result, those of functions included."""
    for key, value in metrics.items():
        if isinstance(value, dict) and "low" in value:
            yield before + key, value
        elif key == "eval_funcs":
            for name, each in value.items():
                sides = each if "low" not in each else {"": each}
                for side, interval in sides.items():
                    yield f"{before}{in_words(name)}{f', {side}' if side else ''}", interval
        elif isinstance(value, int | float) and not isinstance(value, bool) and not before:
            yield key, value


def difference(a: dict | float, b: dict | float) -> dict:
    """{"value", "low", "high"} of B − A, the ends None without intervals.

    From the two intervals, as of independent samples (Zou & Donner 2008, doi:10.1002/sim.3095). Both runs answered the same
    prompts, so the true interval is narrower if anything: what is told apart here is apart.
    """
    if not (isinstance(a, dict) and isinstance(b, dict)):
        return {"value": b - a, "low": None, "high": None}
    value = b["value"] - a["value"]
    down = math.hypot(b["value"] - b["low"], a["high"] - a["value"])
    up = math.hypot(b["high"] - b["value"], a["value"] - a["low"])
    return {"value": value, "low": value - down, "high": value + up}


def is_share(name: str, values: tuple) -> bool:
    plain = name.split(",")[0].removesuffix("_first").removesuffix("_last").replace(" right", "").replace(" ", "_")
    ends = [each if isinstance(each, int | float) else max(abs(each["low"]), abs(each["high"])) for each in values]
    return plain.endswith((*SHARES, "fact", "facts")) and max(map(abs, ends)) <= 1


def shown(value: dict | float, share: bool) -> str:
    if isinstance(value, dict):
        return show_interval(value) if share else show_nats(value)
    return f"{value:.1%}" if share else number(value)


def shown_difference(found: dict, share: bool) -> str:
    scale, form, unit = (100, "+z.1f", say(" points")) if share else (1, "+z.2f", "")
    if found["low"] is None:
        value = found["value"]
        sign = "+" if value > 0 else "−" if value < 0 else ""
        return format(100 * value, "+z.1f") + unit if share else sign + number(abs(value))
    value, low, high = (format(scale * found[key], form) for key in ("value", "low", "high"))
    return f"{value} [{low}, {high}]{unit}"


def compared(runs: tuple[Path, Path], results: tuple[dict, dict]) -> tuple[list[dict], list[tuple[str, str]]]:
    """([{"name", "rows": [(metric, A, B, B − A, "apart", "same" or "")]}], [(result, why it is not compared)])."""
    settings = [{each["name"]: each["settings"] for each in made_with(run)} for run in runs]
    tables, refused = [], []
    for name in results[0]:
        if name not in results[1]:
            refused.append((name, say("{run} has none", run=runs[1])))
            continue
        both = tuple(each[name] for each in results)
        given = tuple(each.get("base" if name == "pretrain" else name, {}) for each in settings)
        if reason := why_not(runs, both, given):
            refused.append((name, reason))
            continue
        values = [dict(metrics_of(each.get("metrics", {}))) for each in both]
        rows = []
        for metric in [key for key in values[0] if key in values[1]]:
            a, b = values[0][metric], values[1][metric]
            if isinstance(a, dict) != isinstance(b, dict):
                continue
            share, found = is_share(metric, (a, b)), difference(a, b)
            verdict = ""
            if found["low"] is not None:
                verdict = "apart" if found["low"] > 0 or found["high"] < 0 else "same"
            text = (shown(a, share), shown(b, share), shown_difference(found, share))
            rows.append((metric.replace("_", " "), *text, verdict))
        if rows:
            tables.append({"name": name, "rows": rows})
    refused += [(name, say("{run} has none", run=runs[0])) for name in results[1] if name not in results[0]]
    return tables, refused


def different_settings(runs: tuple[Path, Path]) -> list[tuple[str, str, str, str]]:
    """[(model, setting, in A, in B)] of what was given to the recipes, paths of the two runs aside."""
    made = [{each["name"]: each for each in made_with(run)} for run in runs]
    rows = []
    for name in [name for name in made[0] if name in made[1]]:
        both = [each[name] for each in made]
        for key in dict.fromkeys([*both[0]["given"], *both[1]["given"]]):
            values = [each["settings"].get(key) for each in both]
            if values[0] != values[1]:
                rows.append((name, key, *("–" if value is None else str(value) for value in values)))
    return rows


def both_curves(results: tuple[dict, dict]) -> list[dict]:
    """The main curves of each stage, A in blue and B in red."""
    found = []
    for stage, names in CURVES.items():
        for name in names:
            curves = [each.get(stage, {}).get("curves", {}).get(name) for each in results]
            if not all(curves):
                continue
            figure, (panel,) = canvas(4.4, 2.6, left=0.14, right=0.98, top=0.96, bottom=0.2)
            for points, color, which in zip(curves, (BLUE, RED), "AB", strict=True):
                style = {"marker": "o" if len(points) < 15 else None, "markersize": 4, "alpha": 0.85}
                panel.plot(*zip(*points, strict=True), color=color, linewidth=1.8, label=which, **style)
            panel.set_xlabel(label("step"))
            panel.legend(frameon=False, fontsize=9, labelcolor="#7a818c")
            if name.endswith(SHARES):
                panel.yaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
            ends = [number(points[-1][1], name) for points in curves]
            words = say("At the end: A {a}, B {b}.", a=ends[0], b=ends[1])
            about = {"stage": say(STAGES[stage][0]), "name": name, "words": words, "reading": reading(name)}
            found.append({**about, "picture": as_uri(figure)})
    return found


def same_questions(runs: tuple[Path, Path], arguments) -> list[tuple[dict, list[tuple[str, str]]]]:
    """[(question, [(model, answer)])] of the first held-out questions, if both runs have the same."""
    paths = [Path(arguments.prompts or data_file(run, "conversations_heldout")) for run in runs]
    if digest(paths[0]) is None or digest(paths[0]) != digest(paths[1]):
        return []
    rows = read_prompts(paths[0], None, 0, can_choose=False)
    rows = [rows[index * len(rows) // QUESTIONS] for index in range(QUESTIONS)] if len(rows) > QUESTIONS else rows
    given = [ask(run, arguments.models, rows, arguments.max_new_tokens) for run in runs]
    names = [name for name in arguments.models if all(name in each for each in given)][-2:]
    return [
        (
            row,
            [
                (f"{which}: {name}", each[name][index])
                for name in names
                for which, each in zip("AB", given, strict=True)
            ],
        )
        for index, row in enumerate(rows)
    ]


def side_by_side(a: Path, b: Path, arguments, template: Path) -> str:
    """Write the page that compares two runs into the second. Returns the line that says where it is.

    Raises InputError where no result of the two can be compared, with the reason for each.
    """
    runs = (a, b)
    results = tuple(read_run(run) for run in runs)
    for run, found in zip(runs, results, strict=True):
        if not found:
            raise InputError(f"{run}: found no results/*.json; expected those of a run (recipes/quickstart.sh)")
    tables, refused = compared(runs, results)
    if not tables:
        reasons = "\n".join(f"  {name}: {reason}" for name, reason in refused)
        raise InputError(f"{a} and {b} have no result that was measured on the same prompts:\n{reasons}")
    charts = [chart(each) for each in results]
    page = {
        "runs": runs, "tables": tables, "refused": refused, "settings": different_settings(runs), "_": say,
        "language": arguments.language, "curves": both_curves(results), "questions": same_questions(runs, arguments),
        "charts": [each and {**each, "picture": uri_of(each["picture"])} for each in charts], "mark": mark,
        "show_interval": show_interval, "number": number,
        "apart": sum(row[-1] == "apart" for table in tables for row in table["rows"]),
        "intervals": sum(row[-1] != "" for table in tables for row in table["rows"]),
    }  # fmt: skip
    html = render(template, page)
    path = b / f"report_{a.resolve().name}_{b.resolve().name}.html"
    with atomic_write(path) as file:
        file.write(html)
    alone = [name for name, reason in refused if not all(name in each for each in results)]
    for name, reason in refused:
        if name not in alone:
            print(f"not compared: {name}: {reason}")
    if alone:
        print(f"not compared, as one run alone has them: {', '.join(alone)}")
    return f"{path}: {len(tables)} results compared, {len(refused)} not"
