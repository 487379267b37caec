"""A run that was interrupted goes on by its own command, and nothing takes an unfinished model for a finished one.

While a run works, its output folder holds `unfinished.json` with its settings (`UNFINISHED` in data_prep/common/files.py):
what loads models refuses such a folder, and the same command goes on from the last whole checkpoint in it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import json
import shutil
import sys
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import torch
from accelerate.utils import broadcast
from safetensors import SafetensorError, safe_open
from transformers import TrainerCallback, TrainingArguments
from transformers.trainer_callback import ExportableState

from data_prep.common.errors import InputError
from data_prep.common.files import UNFINISHED, read_json, write_json
from recipes.trainers.batch import order_by_seed_and_step
from recipes.trainers.best_model import BestModel
from recipes.trainers.push.hub import prepare_push
from recipes.trainers.push.record import record_of
from recipes.trainers.schedule import CheckSchedule

if TYPE_CHECKING:  # slow to import
    from transformers import Trainer

# Settings that say where and how a run works, and nothing about what comes out of it.
WITHOUT_EFFECT = {
    "output_dir",
    "results_dir",
    "resume_from_checkpoint",
    "local_rank",
    "logging_dir",
    "run_name",
    "report_to",
    "disable_tqdm",
    "hub_token",
    "push_to_hub",
    "hub_model_id",
    "hub_private_repo",
    "hub_revision",
    "save_total_limit",
    "reward_gate",
}
# What `--resume_from_checkpoint` takes besides a folder.
LAST, ANEW = ("last", "true", "yes", "1"), ("false", "no", "0")


class Run(NamedTuple):
    """A run that may begin: the checkpoint it goes on from, or None, its settings, and whether older ones are removed.

    `record` is what only the model card asks for (`record_of`).
    """

    checkpoint: str | None
    settings: dict
    anew: bool
    record: dict


def open_run(*arguments) -> Run:
    """Whether a run with these arguments begins in its `output_dir` or goes on there. Nothing is written.

    By itself it goes on from the last whole checkpoint of a run with the same settings. `--resume_from_checkpoint last`
    goes on with other settings too, and says which; `false` starts anew, and a path names the checkpoint.

    Args:
        arguments: what `parse_arguments` returned; one of them is a `TrainingArguments`.

    Raises InputError for a folder with a finished model, for checkpoints of a run with other settings, and for a
    checkpoint that is not there or not whole.
    """
    args = next(each for each in arguments if isinstance(each, TrainingArguments))
    prepare_push(args)
    folder, asked, settings = Path(args.output_dir), args.resume_from_checkpoint, settings_of(arguments)
    record = record_of(arguments, WITHOUT_EFFECT)
    if is_finished(folder):
        raise InputError(f"{folder}: holds a finished model; remove it or give another --output_dir")
    if str(asked).lower() in ANEW:
        return Run(None, settings, True, record)
    check_resume(asked)
    checkpoint = last_checkpoint(folder) if asked is None or str(asked).lower() in LAST else str(asked)
    if checkpoint is None:
        return Run(None, settings, False, record)
    marker = Path(checkpoint).parent / UNFINISHED
    before = read_json(marker)["settings"] if marker.exists() else None
    changed = [] if before is None else changes(before, settings)
    if asked is None and (changed or before is None):
        what = f"with other settings ({'; '.join(changed[:4])})" if changed else "whose settings are not known"
        raise InputError(
            f"{folder}: holds checkpoints of a run {what}: resume it all the same by --resume_from_checkpoint last, "
            "start anew by --resume_from_checkpoint false, or give another --output_dir"
        )
    for change in changed:
        print(f"resuming with another setting, as told: {change}")
    print(f"resuming from {checkpoint}; --resume_from_checkpoint false would start anew")
    return Run(checkpoint, settings, False, record)


def settings_of(arguments: tuple) -> dict:
    """All settings of a run as plain JSON, but for those in `WITHOUT_EFFECT`."""
    settings = {}
    for each in arguments:
        settings |= each.to_dict() if isinstance(each, TrainingArguments) else dataclasses.asdict(each)
    kept = {key: value for key, value in settings.items() if key not in WITHOUT_EFFECT}
    return json.loads(json.dumps(kept, default=str))


def changes(before: dict, now: dict) -> list[str]:
    """What differs, ["learning_rate 0.004 → 0.0001", …]."""
    names = sorted(name for name in {*before, *now} if before.get(name) != now.get(name))
    return [f"{name} {before.get(name)} → {now.get(name)}" for name in names]


def is_finished(folder: Path) -> bool:
    """Whether a folder holds a model, or the adapter of one, that no run is still working on."""
    if (folder / UNFINISHED).exists():
        return False
    return any((folder / f"{kind}config.json").exists() for kind in ("", "adapter_"))


def last_checkpoint(output_dir: str | Path) -> str | None:
    """The newest whole checkpoint in `output_dir`, or None.

    The Trainer does not write checkpoints atomically: one that a kill cut short is skipped, with a line that says so.
    """
    folders = [each for each in Path(output_dir).glob("checkpoint-*") if each.name[11:].isdigit()]
    for folder in Path(output_dir).glob("partial-checkpoint-*"):
        print(f"{folder}: a run was killed while writing it; skipped")
    for folder in sorted(folders, key=lambda each: int(each.name[11:]), reverse=True):
        if (flaw := flaw_of(folder)) is None:
            return str(folder)
        print(f"{folder}: a run was killed while writing it ({flaw}); skipped")
    return None


def check_resume(asked: str | None) -> None:
    """Raise InputError if `--resume_from_checkpoint` names a checkpoint that is not there or not whole."""
    if asked is not None and str(asked).lower() not in (*LAST, *ANEW) and (flaw := flaw_of(Path(asked))):
        raise InputError(
            f"resume_from_checkpoint: {asked}: {flaw}; expected last, false, or the folder of a checkpoint"
        )


def flaw_of(checkpoint: Path) -> str | None:
    """Why a checkpoint cannot be resumed from, or None: each of its files is looked at, none is read whole."""
    if not checkpoint.is_dir():
        return "no such folder"
    if not (checkpoint / "trainer_state.json").exists():  # the last file that the Trainer writes
        return "no trainer_state.json"
    try:
        json.loads((checkpoint / "trainer_state.json").read_text(encoding="utf-8"))
    except ValueError:
        return "trainer_state.json is cut short"
    for path in checkpoint.rglob("*.safetensors"):
        try:
            with safe_open(path, framework="pt"):
                pass
        except SafetensorError:
            return f"{path.relative_to(checkpoint)} is cut short"
    cut = next((path.name for path in checkpoint.glob("*.pt") if not zipfile.is_zipfile(path)), None)
    return f"{cut} is cut short" if cut else None


class Clock(TrainerCallback, ExportableState):
    """Seconds of training, those before the checkpoint that a run goes on from included; ends it after `max_seconds`.

    The clock starts with training: loading, tokenizing and evaluations before it do not count, evaluations and
    checkpoints within it do. Training ends with the first step that ends after `max_seconds`, so that methods compare at
    equal time. Of several processes the first decides: by clocks of their own they would stop at different steps, and
    wait for each other for ever.
    """

    def __init__(self, max_seconds: float | None = None) -> None:
        self.max_seconds, self.before, self.started = max_seconds, 0.0, time.perf_counter()

    @property
    def spent(self) -> float:
        return self.before + time.perf_counter() - self.started

    def state(self) -> dict:
        """What `trainer_state.json` keeps."""
        return {"args": {}, "attributes": {"before": self.spent}}

    def on_train_begin(self, args, state, control, **kwargs):
        name = type(self).__name__
        if state.global_step and name in state.stateful_callbacks:
            self.before = state.stateful_callbacks[name]["attributes"]["before"]
        self.started = time.perf_counter()
        # Resumed from a checkpoint without this callback, the Trainer would fail with a KeyError at its next one.
        state.stateful_callbacks.setdefault(name, self.state())

    def on_step_end(self, args, state, control, **kwargs):
        if self.max_seconds is not None:
            over = torch.tensor(float(self.spent >= self.max_seconds), device=args.device)
            control.should_training_stop |= bool(broadcast(over).item())


def train(trainer: Trainer, run: Run, max_seconds: float | None = None) -> float:
    """Train, from the checkpoint of `run` if it has one, and return the seconds that all of the training took.

    From a checkpoint of the last step no step is trained: transformers 5.23 would train one more.

    Args:
        max_seconds: end training after so many; see `Clock`.

    Which model is kept is said at the end; see `BestModel`.

    Raises InputError if the disk is full, and for settings that the run is too short for (`check_schedule`).
    """
    folder = Path(trainer.args.output_dir)
    if trainer.is_world_process_zero():
        if run.anew and (older := [each for each in folder.glob("checkpoint-*") if each.name[11:].isdigit()]):
            for each in older:
                shutil.rmtree(each)
            print(f"{folder}: {len(older)} checkpoints of an earlier run removed")
        recipe = Path(sys.argv[0]).name
        write_json(folder / UNFINISHED, {"recipe": recipe, "settings": run.settings, **run.record})
    order_by_seed_and_step(trainer)
    run_epoch, clock = trainer._run_epoch, Clock(max_seconds)

    def run_epoch_unless_done(**kwargs) -> None:
        in_time = max_seconds is None or not clock.before or clock.before < max_seconds
        if trainer.state.global_step < trainer.state.max_steps and in_time:
            run_epoch(**kwargs)

    trainer._run_epoch = run_epoch_unless_done
    for callback in (clock, CheckSchedule(), BestModel()):
        trainer.add_callback(callback)
    with full_disk_as_one_line(folder):
        trainer.train(resume_from_checkpoint=run.checkpoint)
    return clock.spent


@contextlib.contextmanager
def full_disk_as_one_line(folder: Path) -> Iterator[None]:
    """Turn an error on a full disk into an InputError that says what is whole: PyTorch's own is "unexpected pos"."""
    try:
        yield
    except (OSError, RuntimeError, SafetensorError) as error:
        full = getattr(error, "errno", None) == errno.ENOSPC or "No space left" in str(error)
        if not full and shutil.disk_usage(folder).free >= 1 << 20:
            raise
        kept = last_checkpoint(folder)
        raise InputError(
            f"{folder}: the disk is full; {f'{kept} is whole' if kept else 'no checkpoint is whole'}: "
            "make room and run the same command again"
        ) from None
