"""What is in the folder of a run: its checkpoints, what each was trained from, and the files to measure them on."""

import os
import re
from pathlib import Path
from typing import NamedTuple

from data_prep.common.errors import InputError
from data_prep.common.files import UNFINISHED, existing, read_json
from eval.common.assistants import is_assistant
from eval.common.stamps import weight_files

ORDER = ("base", "adapted", "sft", "ppo", "dpo", "kto", "rloo", "grpo", "reward")  # others come last, by name
TRAINED_FROM = ("sft_model_path", "model_name_or_path")
PREFIXES = {"documents": "corpus_", "conversations": "conversations_", "rankings": "rankings_"}


class Checkpoint(NamedTuple):
    """A finished model of a run. `kind`: "base" (continues text), "assistant" or "reward"."""

    name: str
    folder: str
    kind: str
    asked: bool  # it has a chat template
    settings: dict  # of its recipe; {} where it left none
    opponent: str | None  # the model of the run that it was trained from


def chosen(found: list[Checkpoint], names: list[str] | None) -> list[Checkpoint]:
    """Those of the checkpoints that are named; None: all. Raises InputError for a name that is not there."""
    known = [each.name for each in found]
    if missing := [name for name in names or () if name not in known]:
        raise InputError(f"--models {missing[0]}: no finished checkpoint; there are: {', '.join(known)}")
    return [each for each in found if names is None or each.name in names]


def find_checkpoints(run: Path) -> list[Checkpoint]:
    """The checkpoints right below a run's folder, each after what it was trained from. Unfinished ones are told.

    Raises InputError where there is none.
    """
    from data_prep.models.loading import load_config, load_tokenizer  # slow to import

    existing(run, "recipes/quickstart.sh, or the run.sh of data_prep.start")
    folders = sorted({path.parent for kind in ("config", "adapter_config") for path in run.glob(f"*/{kind}.json")})
    for folder in [folder for folder in folders if (folder / UNFINISHED).exists()]:
        print(f"{folder}: its training has not finished; it is left out")
    folders = [folder for folder in folders if not (folder / UNFINISHED).exists() and weight_files(folder)]
    if not folders:
        raise InputError(f"{run}: found no checkpoint in its folders; expected what the recipes leave")
    found = []
    for folder in folders:
        settings = _settings(folder)
        if _is_reward(folder):
            found.append(Checkpoint(folder.name, str(folder), "reward", True, settings, None))
            continue
        load_config(str(folder), "recipes/pretrain.py, sft.py or ppo.py")
        tokenizer = load_tokenizer(folder)
        kind, asked = "assistant" if is_assistant(tokenizer) else "base", tokenizer.chat_template is not None
        opponent = _opponent(folder, kind, settings, folders)
        found.append(Checkpoint(folder.name, str(folder), kind, asked, settings, opponent))
    found.sort(key=lambda each: _place(each.name))
    rewards = {each.name for each in found if each.kind == "reward"}
    found = [each._replace(opponent=None) if each.opponent in rewards else each for each in found]
    ordered: list[Checkpoint] = []
    while left := [each for each in found if each not in ordered]:
        done = {each.name for each in ordered}
        ready = [each for each in left if each.opponent is None or each.opponent in done]
        ordered.append((ready or left)[0])  # two that were trained from each other: as they come
    return ordered


def _is_reward(folder: Path) -> bool:
    if not (folder / "config.json").exists():
        return read_json(folder / "adapter_config.json").get("task_type") == "SEQ_CLS"
    return "ForSequenceClassification" in " ".join(read_json(folder / "config.json").get("architectures") or [])


def _settings(folder: Path) -> dict:
    path = folder / "settings.json"
    found = read_json(path) if path.exists() else {}
    return found.get("settings") or {} if isinstance(found, dict) else {}


def _opponent(folder: Path, kind: str, settings: dict, folders: list[Path]) -> str | None:
    """The folder of the run that a model was trained from; a run that was moved is known by the folder's name.

    Where no settings say so it is sft/ for an assistant and base/ for that one and for other base models, if they are there.
    """
    others = [each for each in folders if each != folder]
    named = [str(settings[key]) for key in TRAINED_FROM if settings.get(key)]
    for path in named:
        for same in (os.path.realpath, lambda each: Path(each).name):
            if hit := next((each.name for each in others if same(str(each)) == same(path)), None):
                return hit
    guess = "base" if kind == "base" or folder.name.startswith("sft") else "sft"
    return guess if not named and folder.name != "base" and any(each.name == guess for each in others) else None


def _place(name: str) -> tuple:
    """Where a name stands: ppo, ppo_seed1, ppo_seed10, ppo_rater, …"""
    root, _, rest = name.partition("_")
    numbers = [int(part) if part.isdigit() else 0 for part in re.split(r"(\d+)", rest)]
    return (
        ORDER.index(root) if root in ORDER else len(ORDER),
        root,
        not rest.startswith("seed") and bool(rest),
        numbers,
        name,
    )


def role(name: str) -> str:
    """The name without the number of its seed: sft for sft_seed1. Names of comparisons are made of it, as in compare.sh."""
    return re.sub(r"_seed\d+$", "", name)


def find_data(run: Path, checkpoints: list[Checkpoint], kind: str) -> dict[str, list[str]]:
    """{name: files} of held-out documents, conversations or rankings: those in data/ of the run, as the quickstart names
    them (conversations_heldout_names.json is heldout_names), else those that the checkpoints' settings name."""
    prefix = PREFIXES[kind]
    files = sorted(path for path in run.glob(f"data/{prefix}heldout*") if path.suffix in (".json", ".jsonl"))
    if not files:
        kinds = {"documents": ("base",), "conversations": ("assistant",), "rankings": ("reward",)}[kind]
        named = [file for each in checkpoints if each.kind in kinds for file in _heldout(each)]
        files = [Path(file) for file in dict.fromkeys(named)]
    found = {path.name.split(".")[0].removeprefix(prefix): [str(path)] for path in files}
    return dict(sorted(found.items(), key=lambda item: (item[0] != "heldout", item[0])))


def _heldout(checkpoint: Checkpoint) -> list[str]:
    files = checkpoint.settings.get("heldout") or []
    return [file for file in ([files] if isinstance(files, str) else files) if Path(file).exists()]


def rankings_of(checkpoint: Checkpoint, checkpoints: list[Checkpoint], found: dict[str, list[str]]) -> dict:
    """The rankings that a reward model is measured on: all but those that are another one's own held-out rankings alone.

    Rankings of several seeds' own answers lie in one folder.
    """

    def own(each: Checkpoint) -> set[str]:
        files = each.settings.get("heldout") or []
        return {Path(file).name for file in ([files] if isinstance(files, str) else files)}

    theirs = {name for each in checkpoints if each.kind == "reward" and each != checkpoint for name in own(each)}
    skipped = theirs - own(checkpoint)
    return {name: files for name, files in found.items() if not {Path(file).name for file in files} <= skipped}
