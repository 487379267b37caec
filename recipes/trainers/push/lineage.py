"""Which stages made the model in a folder, read off the records of its runs."""

import os
import re
from pathlib import Path
from typing import NamedTuple

from data_prep.common.errors import InputError
from data_prep.common.files import read_json
from recipes.trainers.push.names import paths_in, short_names, shown
from recipes.trainers.push.record import UNTOLD

PUSHED = "pushed.json"  # in a folder that was pushed: where to
PARENTS = ("model_name_or_path", "sft_model_path")  # what a stage goes on from
DATA = ("documents", "tokens", "conversations", "rankings", "prompts")
ON_HUB = (*PARENTS, "reward_model_path", "value_model_path", "attn_implementation")
# No results, and perhaps of many megabytes.
NO_RESULTS = ("config.json", "tokenizer.json", "vocab.json", "settings.json", "curve.json", PUSHED)


class Stage(NamedTuple):
    """One training: its folder, its recipe ("sft"), the record in its settings.json, and its results."""

    folder: Path
    recipe: str
    record: dict
    results: dict

    @property
    def parent(self) -> str | None:
        """The model that it went on from, as it was given."""
        settings = self.record.get("settings", {})
        return next((str(settings[name]) for name in PARENTS if settings.get(name)), None)

    def given(self, names: dict[str, str]) -> dict:
        """The settings that were given and may be told, files by their `names` and models of the Hub by their ids."""
        told = {key: value for key, value in self.record.get("given", {}).items() if key not in UNTOLD}
        return {key: value if self._is_on_hub(key, value) else shown(value, names) for key, value in told.items()}

    def _is_on_hub(self, key: str, value) -> bool:
        known = key in ON_HUB and isinstance(value, str) and value not in self.record.get("local", ())
        return known and looks_like_hub_id(value) and not Path(value).exists()

    def folder_of(self, name: str) -> Path | None:
        """The folder of a model by the name it was given, from here or beside this one's; None of one of the Hub."""
        if name not in self.record.get("local", (name,)):
            return None
        for path in (Path(name), self.folder.absolute().parent / Path(name).name):
            if path.is_dir() and path.absolute() != self.folder.absolute():
                return path
        return None

    def hub_id(self, name: str) -> str | None:
        """The id of a model on the Hub; of a folder the one that it was pushed to, None where it was not."""
        if folder := self.folder_of(name):
            return pushed_to(folder)
        return name if name not in self.record.get("local", ()) and looks_like_hub_id(name) else None


def looks_like_hub_id(name: str) -> bool:
    return bool(re.fullmatch(r"\w[\w.-]*(/[\w.-]+)?", name)) and not name.startswith("runs/")


def pushed_to(folder: Path) -> str | None:
    """The repository that a folder was last pushed to."""
    return object_in(folder / PUSHED).get("repo_id")


def object_in(path: Path) -> dict:
    """The JSON object in a file; {} where there is none: a card is written of what is there."""
    try:
        value = read_json(path)
    except InputError:
        return {}
    return value if isinstance(value, dict) else {}


def place_of_results(folder: Path, record: dict) -> Path:
    """Where the results of a folder are: where its recipe wrote them, or the same place of a copy of the whole run.

    Records of earlier versions tell the first alone: by its name, `results` beside the folder is taken for the second.
    """
    told, way, here = record.get("results_dir"), record.get("results_from_model"), folder.absolute()
    beside = here.parent / "results"
    if way:
        own = Path(os.path.normpath(here / way))
    else:
        own = beside if told is None or Path(told).name == beside.name else Path(told)
    return next((place for place in (own, Path(told or own)) if place.is_dir()), beside)


def results_in(folder: Path, record: dict, results_dir: str | None = None) -> list[dict]:
    """Everything that a stage or an evaluation wrote where the results of a folder are, in the order of their names.

    What lies in the folder itself is its own. A file may have been renamed, as recipes/compare.sh does with those of other
    seeds: its "stage" here is its name. "place" is the folder in which it lies.
    """
    given = Path(results_dir) if results_dir and Path(results_dir).is_dir() else None
    found = {}
    for place in (folder, given or place_of_results(folder, record)):
        for path in sorted(place.glob("*.json")):
            if path.name not in NO_RESULTS and "stage" in (value := object_in(path)):
                found.setdefault(path.stem, {**value, "stage": path.stem, "place": place})
    return list(found.values())


def lineage(folder: Path) -> list[Stage]:
    """The stages that made a model, the first one first; [] for a folder that no recipe wrote."""
    stages, seen = [], set()
    here: Path | None = folder
    while here and here.absolute() not in seen and (record := object_in(here / "settings.json")):
        seen.add(here.absolute())
        recipe = str(record.get("recipe", "")).removesuffix(".py")
        results = {each["stage"]: each for each in results_in(here, record)}
        stage = Stage(here, recipe, record, results.get(here.name) or results.get(recipe, {}))
        stages.insert(0, stage)
        here = stage.folder_of(stage.parent) if stage.parent else None
    return stages


def names_in(stages: list[Stage], results: list[dict]) -> dict[str, str]:
    """The name on the card of every file and folder that the stages and the evaluations of a model were given."""
    data = [{key: result.get(key) for key in ("data", "opponent")} for result in results]
    settings = [stage.record.get("settings", {}) for stage in stages]
    data += [{key: each.get(key) for key in (*DATA, "heldout")} for each in settings]
    others = [stage.record.get("given") for stage in stages] + [stage.parent for stage in stages]
    return short_names([*paths_in(data, every=True), *paths_in(others)])


def base_of(folder: Path) -> str | None:
    """The id on the Hub of the model that this one was made from, or None.

    Of an adapter it is the very model that it was trained on; of a whole model the nearest one that is on the Hub.
    """
    stages = lineage(folder)
    adapter = folder / "adapter_config.json"
    if adapter.exists():
        name = stages[-1].parent if stages else object_in(adapter).get("base_model_name_or_path")
        stage = stages[-1] if stages else Stage(folder, "", {}, {})
        return stage.hub_id(name) if name else None
    return next((found for each in reversed(stages) if each.parent and (found := each.hub_id(each.parent))), None)
