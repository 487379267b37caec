"""A run that was interrupted goes on by its own command, and nothing takes an unfinished model for a finished one.

While a run works, its output folder holds `unfinished.json` with its settings (`UNFINISHED` in data_prep/common/files.py):
what loads models refuses such a folder, and the same command goes on from the last whole checkpoint in it.
"""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import sys
import time
from datetime import date, datetime
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import torch
from accelerate.utils import broadcast
from transformers import TrainerCallback, TrainingArguments
from transformers.trainer_callback import ExportableState
from transformers.utils import chat_template_utils

from data_prep.common.errors import InputError
from data_prep.common.files import UNFINISHED, read_json, write_json
from recipes.trainers.adapter import check_tied
from recipes.trainers.batch import order_by_seed_and_step
from recipes.trainers.best_model import BestModel
from recipes.trainers.checkpoints import (
    PARTIAL,
    flaw_of,
    full_disk_as_one_line,
    last_checkpoint,
    load_as_saved,
    write_whole,
)
from recipes.trainers.inputs import changed_inputs, inputs_of
from recipes.trainers.precision import warn_of_rounding
from recipes.trainers.push.hub import prepare_push
from recipes.trainers.push.record import VERSIONS, record_of
from recipes.trainers.reference import check_reference, keep_reference
from recipes.trainers.schedule import CheckSchedule
from recipes.trainers.signals import StopOnSignal

if TYPE_CHECKING:  # slow to import
    from datasets import Dataset
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
    "hub_strategy",
    "hub_always_push",
    "save_total_limit",
    "save_on_each_node",
    "enable_jit_checkpoint",
    "reward_gate",
    *("project", "trackio_space_id", "trackio_static_space_id", "trackio_bucket_id"),
    *("log_level", "log_level_replica", "log_on_each_node", "skip_memory_metrics"),
    *(
        "log_completions",
        "log_completions_hub_repo",
        "log_multimodal",
        "log_unique_prompts",
        "num_completions_to_print",
    ),
    # How fast, and in how much memory: the same batches in the same order. Not dataloader_in_order.
    *(
        "dataloader_num_workers",
        "dataloader_persistent_workers",
        "dataloader_prefetch_factor",
        "dataloader_pin_memory",
    ),
    *("dataloader_multiprocessing_context", "dataset_num_proc", "ddp_timeout"),
    *("torch_empty_cache_steps", "eval_accumulation_steps"),
    *("vllm_server_base_url", "vllm_server_host", "vllm_server_port", "vllm_server_timeout", "vllm_group_port"),
    *("vllm_gpu_memory_utilization", "vllm_enable_sleep_mode"),
}
# Settings that a resumed run cannot change: the checkpoint holds them, in its optimizer or in its weights.
HELD = {
    *(
        "learning_rate",
        "muon_lr",
        "muon_momentum",
        "value_learning_rate",
        "weight_decay",
        "kl_coef",
        "normalize_rewards",
    ),
    *("adam_beta1", "adam_beta2", "adam_epsilon", "value_model_path"),
}
# Settings that, set or not, divide the weights of the optimizer into other groups: its saved state then does not fit.
GROUPS = ("muon_lr", "value_learning_rate")
# Settings that weights or an optimizer's state are shaped by: a checkpoint with others cannot be loaded.
SHAPES = ("optim", "use_peft", "n_layer", "n_embd", "n_positions")
SHAPES_OF_LORA = ("lora_r", "lora_target_modules", "lora_modules_to_save", "use_dora")
SAME_STATE = {"adamw_torch", "adamw_torch_fused"}
# What `--resume_from_checkpoint` takes besides a folder.
LAST, ANEW = ("last", "true", "yes", "1"), ("false", "no", "0")


class Run(NamedTuple):
    """A run that may begin: the checkpoint it goes on from, or None, and whether older ones are removed.

    `record` is what `unfinished.json` keeps: its settings, what it reads (`inputs_of`), the number of processes, the day
    of its first start, and what the model card asks for (`record_of`).
    """

    checkpoint: str | None
    anew: bool
    record: dict


def open_run(*arguments) -> Run:
    """Whether a run with these arguments begins in its `output_dir` or goes on there. Nothing is written.

    From then on chat templates take the day of its first start for today (`set_today`).

    By itself it goes on from the last whole checkpoint of a run with the same settings, data, models, library versions
    and number of processes. `--resume_from_checkpoint last` goes on with others too, and says which; `false` starts anew,
    and a path names the checkpoint.

    Args:
        arguments: what `parse_arguments` returned; one of them is a `TrainingArguments`.

    Raises InputError for a folder with a finished model, for checkpoints of another run or of another optimizer, and
    for a checkpoint that is not there, not whole or without the reference of `sync_ref_model`.
    """
    run = begun_or_resumed(arguments)
    set_today(run.record["day"])
    return run


def set_today(day: str) -> None:
    """Let chat templates take `day`, "2026-01-31", for today: some write the date into every conversation (Llama 3.2,
    gpt-oss), and a run that goes on another day would train on other tokens."""

    class Today(datetime):
        @classmethod
        def now(cls, tz=None) -> datetime:
            return datetime.fromisoformat(day)

    chat_template_utils.datetime = Today  # strftime_now of all templates, TRL's renderings included


def begun_or_resumed(arguments: tuple) -> Run:
    """The run of `open_run`, with its errors."""
    args = next(each for each in arguments if isinstance(each, TrainingArguments))
    prepare_push(args)
    folder, asked, settings = Path(args.output_dir), args.resume_from_checkpoint, settings_of(arguments)
    if is_finished(folder):
        raise InputError(f"{folder}: holds a finished model; remove it or give another --output_dir")
    record = {"settings": settings, "inputs": inputs_of(settings), "processes": int(os.environ.get("WORLD_SIZE", 1))}
    record |= {"day": date.today().isoformat(), **record_of(arguments, WITHOUT_EFFECT)}
    if str(asked).lower() in ANEW:
        return Run(None, True, record)
    check_resume(asked)
    checkpoint = last_checkpoint(folder) if asked is None or str(asked).lower() in LAST else str(asked)
    if checkpoint is None:
        return Run(None, False, record)
    marker = Path(checkpoint).parent / UNFINISHED
    before = read_json(marker) if marker.exists() else None
    if before is not None:
        check_groups(checkpoint, before["settings"], settings)
        check_shapes(checkpoint, before["settings"], settings)
    changed = differences(before, record) if before is not None else None
    if asked is None and changed != {}:
        more = {kind: [f"and {len(each) - 4} more"] if len(each) > 4 else [] for kind, each in (changed or {}).items()}
        kinds = [f"other {kind} ({'; '.join([*each[:4], *more[kind]])})" for kind, each in (changed or {}).items()]
        what = f"with {', '.join(kinds)}" if kinds else "whose settings are not known"
        raise InputError(
            f"{folder}: holds checkpoints of a run {what}: resume it all the same by --resume_from_checkpoint last, "
            "start anew by --resume_from_checkpoint false, or give another --output_dir"
        )
    check_reference(checkpoint, args)
    record["day"] = (before or {}).get("day", record["day"])
    for kind, each in (changed or {}).items():
        for change in each:
            kept = ": without effect, the checkpoint's is kept" if change.split()[0] in held(settings) else ""
            print(f"resuming with another {SINGULAR[kind]}, as told: {change}{kept}")
    print(f"resuming from {checkpoint}; --resume_from_checkpoint false would start anew")
    return Run(checkpoint, False, record)


def check_groups(checkpoint: str, before: dict, now: dict) -> None:
    """Raise InputError where a setting of `GROUPS` is set and was not, or the other way around."""
    for name in GROUPS:
        old, new = before.get(name), now.get(name)
        if (old is None) == (new is None) or (name == "muon_lr" and now.get("use_peft")):  # LoRA has no Muon
            continue
        was, what = ("without it", "leave it out") if old is None else (f"with {old}", f"set it to {old}")
        raise InputError(
            f"{name}: found {'none' if new is None else new}, but {checkpoint} was trained {was}, and its optimizer "
            f"has other groups of weights: {what}, start anew by --resume_from_checkpoint false, or give another "
            "--output_dir"
        )


def check_shapes(checkpoint: str, before: dict, now: dict) -> None:
    """Raise InputError where a setting of `SHAPES`, or with LoRA of `SHAPES_OF_LORA`, is another one."""
    for name in (*SHAPES, *(SHAPES_OF_LORA if now.get("use_peft") else ())):
        old, new = before.get(name), now.get(name)
        if name not in before or old == new or {old, new} == SAME_STATE:
            continue
        raise InputError(
            f"{name}: found {new}, but {checkpoint} was trained with {old}, and what it holds has other shapes: set it to "
            f"{old}, start anew by --resume_from_checkpoint false, or give another --output_dir"
        )


def held(settings: dict) -> set[str]:
    """The settings that stay as they were in the checkpoint whatever is given; LoRA's weights are not the whole model."""
    return HELD if settings.get("use_peft") else HELD | {"model_name_or_path"}


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


SINGULAR = {"settings": "setting", "files": "file", "versions": "version", "processes": "number of processes"}


def differences(before: dict, now: dict) -> dict[str, list[str]]:
    """What a run that goes on would do otherwise, {"settings": [change, …], "files", "versions", "processes"}.

    Of what a run of an earlier version of this repository did not record, nothing is said.
    """
    earlier = {key: value for key, value in before["settings"].items() if key not in WITHOUT_EFFECT}
    settings = changes(earlier, now["settings"])
    found = {"settings": settings}
    told = {change.split()[0] for change in settings}
    found["files"] = changed_inputs(before["inputs"], now["inputs"], told) if "inputs" in before else []
    versions = [{name: each.get("versions", {}).get(name) for name in VERSIONS} for each in (before, now)]
    found["versions"] = changes(*versions) if "versions" in before else []
    found["processes"] = changes(
        {"processes": before.get("processes", now["processes"])}, {"processes": now["processes"]}
    )
    return {kind: each for kind, each in found.items() if each}


def is_finished(folder: Path) -> bool:
    """Whether a folder holds a model, or the adapter of one, that no run is still working on."""
    if (folder / UNFINISHED).exists():
        return False
    return any((folder / f"{kind}config.json").exists() for kind in ("", "adapter_"))


def check_resume(asked: str | None) -> None:
    """Raise InputError if `--resume_from_checkpoint` names a checkpoint that is not there or not whole."""
    if asked is not None and str(asked).lower() not in (*LAST, *ANEW) and (flaw := flaw_of(Path(asked))):
        raise InputError(
            f"resume_from_checkpoint: {asked}: {flaw}; expected last, false, or the folder of a checkpoint"
        )


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


def train(trainer: Trainer, run: Run, max_seconds: float | None = None, rows: Dataset | None = None) -> float:
    """Train, from the checkpoint of `run` if it has one, and return the seconds that all of the training took.

    From a checkpoint of the last step no step is trained: transformers 5.23 would train one more.

    Args:
        max_seconds: end training after so many; see `Clock`.
        rows: what the rows of the training set were read from; see `LossWatch`.

    Which model is kept is said at the end; see `BestModel`. Checkpoints are written whole or not at all (`write_whole`).
    A signal saves one and ends the process (`StopOnSignal`).

    Raises InputError if the disk is full, for a loss that is not finite (`LossWatch`), for settings that the run is too
    short for (`check_schedule`), for tied embeddings that would part (`check_tied`), and for a checkpoint that lacks what it
    needs (`keep_answers`, `keep_reference`).
    """
    check_tied(trainer.model)
    warn_of_rounding(trainer)
    folder = Path(trainer.args.output_dir)
    if trainer.is_world_process_zero():
        if run.anew and (older := [each for each in folder.glob("checkpoint-*") if each.name[11:].isdigit()]):
            for each in older:
                shutil.rmtree(each)
            print(f"{folder}: {len(older)} checkpoints of an earlier run removed")
        for each in folder.glob(f"{PARTIAL}*"):  # of a run that was killed while it wrote one
            shutil.rmtree(each)
        write_json(folder / UNFINISHED, {"recipe": Path(sys.argv[0]).name, **run.record})
    order_by_seed_and_step(trainer)
    if getattr(trainer.args, "disable_dropout", False):  # TRL has switched off that of modules
        from recipes.trainers.dropout import disable_dropout  # imports TRL

        disable_dropout(trainer.model)
    if hasattr(trainer, "_buffered_inputs"):
        from recipes.trainers.rloo_grpo import keep_answers  # imports datasets

        keep_answers(trainer)
    if getattr(trainer.args, "sync_ref_model", False):
        keep_reference(trainer, run.checkpoint)
    run_epoch, clock, signals, watch = trainer._run_epoch, Clock(max_seconds), StopOnSignal(), None
    if not hasattr(trainer, "reward_funcs"):  # PPO, RLOO and GRPO have alarms, and draw what they train on
        from recipes.trainers.loss_watch import LossWatch  # imports datasets

        watch = LossWatch(trainer, rows)
        trainer.add_callback(watch)

    def run_epoch_unless_done(**kwargs) -> None:
        in_time = max_seconds is None or not clock.before or clock.before < max_seconds
        if watch is not None:
            watch.begin_pass(kwargs["train_dataloader"], kwargs["epoch"] * kwargs["num_update_steps_per_epoch"])
        if trainer.state.global_step < trainer.state.max_steps and in_time:
            run_epoch(**kwargs)

    trainer._run_epoch = run_epoch_unless_done
    for callback in (clock, CheckSchedule(), BestModel(), signals):
        trainer.add_callback(callback)
    write_whole(trainer)
    load_as_saved(trainer)
    with full_disk_as_one_line(folder), signals.listening():
        trainer.train(resume_from_checkpoint=run.checkpoint)
    return clock.spent
