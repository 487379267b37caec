"""What the folder of a run says about itself: its models, their settings, and what PPO logged."""

from pathlib import Path

from data_prep.common.errors import InputError
from data_prep.common.files import UNFINISHED, existing, read_json

STAGES = ("sft", "reward", "ppo")


def settings_of(folder: Path | str | None) -> dict:
    """The settings that a recipe left in its model's folder; {} where there are none."""
    path = Path(folder or "", "settings.json")
    if folder is None or not path.is_file():
        return {}
    found = read_json(path)
    if not isinstance(found, dict) or not isinstance(found.get("settings"), dict):
        raise InputError(f"{path}: expected an object with 'settings', as recipes/ write it")
    return found["settings"]


def logged_by_ppo(run: Path, folder: str | None) -> dict:
    """{"curves", "alarms", "metrics"} of `ppo.json`, in the run's results or in the model's folder; {} without it."""
    places = [run / "results" / "ppo.json", *([Path(folder, "ppo.json")] if folder else [])]
    return next((read_json(path) for path in places if path.is_file()), {})


def models_of(run: Path, given: dict[str, str | None]) -> dict[str, str | None]:
    """{"sft", "reward", "ppo": folder or Hub id, None where there is no such model yet}.

    What is `given` comes first, then what PPO's settings name and is still there, then the run's own folder.

    Raises InputError without a run or without an SFT model.
    """
    existing(run, "recipes/quickstart.sh, or the run.sh of data_prep.start")
    ppo = given["ppo"] or _finished(run / "ppo")
    settings = settings_of(ppo)
    models = {"ppo": ppo}
    for name, key in (("sft", "sft_model_path"), ("reward", "reward_model_path")):
        named = settings.get(key)
        named = named if named and Path(named).exists() else None
        # A PPO by functions alone was not trained on a reward model that lies beside it.
        own = None if name == "reward" and settings and not settings.get(key) else _finished(run / name)
        models[name] = given[name] or named or own
    if models["sft"] is None:
        raise InputError(f"{run}: found no model in sft/; expected what recipes/sft.py leaves, or --sft")
    return {name: models[name] for name in STAGES}


def _finished(folder: Path) -> str | None:
    """The folder if there is a model in it; one that is not finished is told."""
    if not (folder / "config.json").exists():
        return None
    if (folder / UNFINISHED).exists():
        print(f"{folder}: its training has not finished; it is left out")
        return None
    return str(folder)


def heldout_of(settings: dict[str, dict], given: list[str] | None) -> tuple[list[str], dict]:
    """(the files with held-out prompts, the settings of the stage that names them, {} for those `given`).

    Raises InputError where no stage has any.
    """
    if given:
        return given, {}
    for name in reversed(STAGES):
        if files := settings[name].get("heldout"):
            return files if isinstance(files, list) else [files], settings[name]
    raise InputError(
        "found no held-out prompts in the settings of the models; expected --heldout, conversations or preferences that no "
        "training saw"
    )
