"""The figures of a model card: what was measured on which data, with intervals, as rows and as the Hub's model-index."""

import contextlib
import os
from pathlib import Path
from typing import NamedTuple

from huggingface_hub import EvalResult

from recipes.trainers.push.lineage import Stage, object_in
from recipes.trainers.push.names import ADDRESS, is_path, names_of, shown

BOTH = ("before", "after")
COMPARED = (
    "win_rate",
    "kl",
)  # of a comparison; its counts and the opponent's own figures are no figures of this model
OF_THE_TEXT = (
    "gzip_bits_per_byte",
    "xz_bits_per_byte",
    "loss_per_token",
)  # what other compressors need, or said twice


class Figure(NamedTuple):
    """One measure; `low` and `high` are the ends of its 95 % interval over `n` prompts or documents, if it has one."""

    measure: str
    value: float
    low: float | None
    high: float | None
    n: int | None
    data: str
    found_by: str

    @property
    def interval(self) -> str:
        return "" if self.low is None else f"{number(self.low)} to {number(self.high)}"


def number(value: float) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}"


def figure(measure: str, value, data: str, found_by: str) -> Figure | None:
    """A figure of a number, or of {"value", "low", "high", "n"}; None of anything else."""
    bounds = value if isinstance(value, dict) else {"value": value}
    found = bounds.get("value")
    if not isinstance(found, int | float) or isinstance(found, bool) or found != found:
        return None
    return Figure(measure, found, bounds.get("low"), bounds.get("high"), bounds.get("n"), data, found_by)


def is_of(name, folder: Path, place: Path) -> bool:
    """Whether results in the folder `place` that name a model mean this folder.

    If what they name is there, it has to be this folder, or what this is a copy of: of the same settings.json. Else the run
    was moved, and the name has to end as this folder's path does below what holds both it and `place`: "sft" beside
    results/ of its own, "a/sft" beside those of several runs.
    """
    folder, place = folder.absolute(), place.absolute()
    if not isinstance(name, str) or folder.name != Path(name).name:
        return False
    if Path(name).is_dir():
        settings = object_in(folder / "settings.json")
        return Path(name).samefile(folder) or bool(settings) and settings == object_in(Path(name) / "settings.json")
    both = os.path.commonpath([folder.parent, place])
    below = folder.relative_to(both).parts
    return Path(name).parts[-len(below) :] == below


def figures_of(folder: Path, stages: list[Stage], results: list[dict], names: dict[str, str]) -> list[Figure]:
    """What evaluations of this very model found, comparisons first, and then what its own recipe measured on held-out data;
    files by `names`."""
    compared, evaluated, own = [], [], []
    for result in results:
        if not is_of(result.get("model"), folder, result["place"]):
            continue
        data, name, metrics = names_of(result.get("data"), names), result["stage"], result.get("metrics", {})
        if result.get("opponent"):
            sampled = "greedy" if result.get("temperature") == 0 else "sampled"
            against = f"against {shown(result['opponent'], names)}, {sampled}"
            by = f"{name}; judge: {judge_in_words(result['judge'])}" if result.get("judge") else name
            compared += [figure(f"{key} {against}", metrics[key], data, by) for key in COMPARED if key in metrics]
            continue
        for key, value in metrics.items():
            if key == "eval_funcs":
                evaluated += [figure(each, score, data, name) for each, score in value.items()]
            elif key not in OF_THE_TEXT:
                evaluated.append(figure(key, value, data, name))
    if stages:
        last, heldout = stages[-1], names_of(stages[-1].record.get("settings", {}).get("heldout"), names)
        for key, value in last.results.get("metrics", {}).items():
            if key.startswith("eval_") and not key.endswith("_first"):
                key = key.removeprefix("eval_").removesuffix("_last")
            elif not isinstance(value, dict) and key not in ("bits_per_byte", "eos_rate"):
                continue
            own.append(figure(key, value, heldout or "its training data", last.recipe))
    return [each for each in (*compared, *evaluated, *own) if each]


def judge_in_words(words: str) -> str:
    """A judge as results tell it, in short, without the place of its files and the address of its server."""
    parts = words.partition(" (")[0].split(" ")
    return " ".join(
        "a server" if ADDRESS.search(each) else Path(each).name if is_path(each) else each for each in parts
    )


def adaptation_of(folder: Path, stages: list[Stage], results_dir: str | None) -> dict:
    """What `eval.adaptation` found of this model, {} if it was not run: it writes into the results.json of a run."""
    told = results_dir or (stages[-1].record.get("results_dir") if stages else None)
    places = [folder, folder.absolute().parent, folder.absolute().parent / "results"]
    places += [Path(told), Path(told).absolute().parent] if told else []
    for place in places:
        adaptation = object_in(place / "results.json").get("adaptation")
        if isinstance(adaptation, dict):
            after = (adaptation.get("models") or {}).get("after")
            if after is None or is_of(after, folder, place):
                return adaptation
    return {}


class Change(NamedTuple):
    """A measure before and after: bits per byte, the fewer the better, or exact match, the more the better."""

    measure: str
    data: str
    before: float
    after: Figure

    @property
    def is_worse(self) -> bool:
        more = self.after.value > self.before
        return more if self.measure == "bits_per_byte" else self.after.value < self.before

    @property
    def change(self) -> str:
        if self.measure == "bits_per_byte" and self.before:
            return f"{self.after.value / self.before - 1:+.1%}"
        return f"{100 * (self.after.value - self.before):+.1f} points"


def changes_of(adaptation: dict, found_by: str = "adaptation") -> list[Change]:
    """The forgetting table: every source of text and of questions, before and after.

    Args:
        adaptation: what `eval.adaptation` found, or the results of recipes/continue_pretraining.py.
    """
    found = []
    for measure, details in (("bits_per_byte", "documents"), ("exact_match", "questions")):
        sources = adaptation.get(measure)
        for data, pair in sources.items() if isinstance(sources, dict) else ():
            if not isinstance(pair, dict) or not all(isinstance(pair.get(key), int | float) for key in BOTH):
                continue
            value = pair["after"]
            with contextlib.suppress(KeyError, TypeError):  # the intervals stand beside the plain numbers
                value = {**adaptation[details][data]["models"]["after"][measure], "value": value}
            found.append(Change(measure, data, pair["before"], figure(measure, value, data, found_by)))
    return found


def eval_results(figures: list[Figure], task: str) -> list[EvalResult]:
    """The figures for the card's model-index. It has no field for an interval: that is said in the measure's name."""
    found = []
    for each in figures:
        of = f", n = {each.n:,}" if each.n else ""
        interval = f" (95 % interval {each.interval}{of})" if each.interval else ""
        found.append(
            EvalResult(
                task_type=task,
                dataset_type=each.data or "held-out",
                dataset_name=each.data or "held-out data",
                metric_type=each.measure.split(" ")[0],
                metric_name=f"{each.measure.replace('_', ' ')}, {each.found_by}{interval}",
                metric_value=float(f"{each.value:.6g}"),
            )
        )
    return found
