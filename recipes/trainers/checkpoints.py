"""Checkpoints that are whole or not there, and which of those in a folder is the one to go on from.

transformers writes a checkpoint file by file under its own name: a kill, a full disk or a lost machine leaves half of one.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors import SafetensorError, safe_open
from transformers.trainer_utils import rotate_checkpoints

from data_prep.common.errors import InputError
from data_prep.common.files import write_json

if TYPE_CHECKING:  # slow to import
    from transformers import PreTrainedModel, Trainer

# The last file written into a checkpoint: {name of every other: bytes}.
FILES = "checkpoint_files.json"
WEIGHTS_ALONE = "holds weights alone (save_only_model), from which training cannot go on"
PARTIAL = "partial-checkpoint-"
# Full, beyond the user's quota, or beyond what one file may be (`ulimit -f`).
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def write_whole(trainer: Trainer) -> None:
    """Let `trainer` write each checkpoint under another name, and move it to its own when it is whole and on the disk.

    The same for every recipe. A checkpoint of weights that are not finite is not written.

    From then on saving raises InputError for such weights and for a full disk; the checkpoints before stay as they are.
    """
    save, where, args = trainer._save_checkpoint, trainer._get_output_dir, trainer.args

    def save_whole(model, trial) -> None:
        state, folder = trainer.state, Path(args.output_dir)
        name = f"checkpoint-{state.global_step}"
        partial, final = folder / f"{PARTIAL}{state.global_step}", folder / name
        check_finite(trainer.model, final)
        if trainer.is_local_process_zero():
            shutil.rmtree(partial, ignore_errors=True)
        trainer.accelerator.wait_for_everyone()
        trainer._get_output_dir = lambda trial: str(partial)
        try:
            with full_disk_as_one_line(folder, partial):
                save(model, trial)
                best = folder / f"checkpoint-{state.best_global_step}"
                if state.best_global_step and (best == final or best.is_dir()):
                    state.best_model_checkpoint = str(best)
                trainer.accelerator.wait_for_everyone()  # each process has written its part
                if trainer.is_world_process_zero():
                    state.save_to_json(str(partial / name / "trainer_state.json"))  # with the best one's own name
                    finish(partial / name, final)
        finally:
            trainer._get_output_dir = where
        trainer.accelerator.wait_for_everyone()
        if trainer.is_local_process_zero() and (partial / name).exists():  # of a node with a disk of its own
            finish(partial / name, final)
        if trainer.is_local_process_zero():
            shutil.rmtree(partial, ignore_errors=True)
        if args.should_save:
            rotate_checkpoints(args.output_dir, args.save_total_limit, state.best_model_checkpoint, use_mtime=True)
        trainer.accelerator.wait_for_everyone()

    trainer._save_checkpoint = save_whole


def load_as_saved(trainer: Trainer) -> None:
    """Let `trainer` load a whole model's checkpoints, the one to go on from and the best, by `load_weights`.

    Adapters, FSDP and DeepSpeed write and read names of their own, PPO's trainer has its own way.
    """
    from transformers import PreTrainedModel

    if isinstance(trainer.model, PreTrainedModel) and not (trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled):
        trainer._load_from_checkpoint = lambda folder, model=None: load_weights(trainer.model, Path(folder))
        trainer._load_best_model = lambda: load_weights(trainer.model, Path(trainer.state.best_model_checkpoint))


def load_weights(model: PreTrainedModel, folder: Path) -> None:
    """Give `model`, in place, the weights that its `save_pretrained` wrote in `folder`.

    They are read by `from_pretrained`: `save_pretrained` writes them by the names and in the parts that the Hub has, which
    are not the model's own for all (GPT-NeoX's `embed_out`, the experts of Mixtral). transformers 5.23's Trainer loads the
    names that fit, and goes on without the others.

    Raises InputError if a weight is missing or is not the model's.
    """
    load = {
        "dtype": torch.float32,
        "use_safetensors": True,
        "trust_remote_code": False,
    }  # exact for the narrower ones too
    saved, info = type(model).from_pretrained(folder, output_loading_info=True, **load)
    if wrong := sorted(str(name) for names in info.values() for name in names):
        shown = ", ".join(wrong[:5]) + (f" and {len(wrong) - 5} more" if len(wrong) > 5 else "")
        raise InputError(
            f"{folder}: expected the weights of a {type(model).__name__}, found some missing or of another model "
            f"({shown}): remove this checkpoint, and the run goes on from the one before"
        )
    found = saved.state_dict()
    with torch.no_grad():
        for name, weight in model.state_dict().items():
            weight.copy_(found[name])


def finish(staged: Path, final: Path) -> None:
    """Move a whole checkpoint to its own name, its files on the disk before."""
    sizes = sizes_of(staged)
    for name in sizes:
        with (staged / name).open("rb") as file:
            os.fsync(file.fileno())
    write_json(staged / FILES, sizes)
    shutil.rmtree(final, ignore_errors=True)  # half a one, of a run of long ago
    os.replace(staged, final)
    descriptor = os.open(final.parent, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sizes_of(folder: Path) -> dict[str, int]:
    return {str(path.relative_to(folder)): path.stat().st_size for path in sorted(folder.rglob("*")) if path.is_file()}


@torch.no_grad()
def check_finite(model, final: Path) -> None:
    """Raise InputError if a weight that is trained is NaN or infinite: `final` would be a checkpoint of nothing."""
    for name, weight in model.named_parameters():
        local = weight.to_local() if hasattr(weight, "to_local") else weight
        if weight.requires_grad and not torch.isfinite(local).all():
            kept = last_checkpoint(final.parent)
            raise InputError(
                f"{final}: not written: {name} is NaN or infinite; {kept or 'no checkpoint'} is the last good one: lower "
                "learning_rate or max_grad_norm, or look at the rows before this update"
            )


def last_checkpoint(output_dir: str | Path) -> str | None:
    """The newest whole checkpoint in `output_dir`, or None. One that is not whole is skipped, with a line that says so."""
    folders = [each for each in Path(output_dir).glob("checkpoint-*") if each.name[11:].isdigit()]
    for folder in Path(output_dir).glob(f"{PARTIAL}*"):
        print(f"{folder}: a run was killed while writing it; skipped")
    for folder in sorted(folders, key=lambda each: int(each.name[11:]), reverse=True):
        if (flaw := flaw_of(folder)) is None:
            return str(folder)
        why = flaw if flaw == WEIGHTS_ALONE else f"a run was killed while writing it ({flaw})"
        print(f"{folder}: {why}; skipped")
    return None


def flaw_of(checkpoint: Path) -> str | None:
    """Why a checkpoint cannot be resumed from, or None: each of its files is looked at, none is read whole."""
    if not checkpoint.is_dir():
        return "no such folder"
    if not (checkpoint / "trainer_state.json").exists():
        return "no trainer_state.json"
    try:
        state = json.loads((checkpoint / "trainer_state.json").read_text(encoding="utf-8"))
        listed = checkpoint / FILES
        sizes = json.loads(listed.read_text(encoding="utf-8")) if listed.exists() else {}
    except ValueError:
        return "trainer_state.json is cut short"
    if not isinstance(state, dict) or "global_step" not in state:
        return "trainer_state.json holds no step"
    for name, size in sizes.items():  # of a checkpoint from elsewhere there may be none
        if not (checkpoint / name).is_file():
            return f"no {name}"
        if (checkpoint / name).stat().st_size != size:
            return f"{name} is cut short"
    if not any(checkpoint.glob("rng_state*.pth")):
        return WEIGHTS_ALONE
    for path in checkpoint.rglob("*.safetensors"):
        try:
            with safe_open(path, framework="pt"):
                pass
        except SafetensorError:
            return f"{path.relative_to(checkpoint)} is cut short"
    cut = next((path.name for path in checkpoint.glob("*.pt") if not zipfile.is_zipfile(path)), None)
    return f"{cut} is cut short" if cut else None


@contextlib.contextmanager
def full_disk_as_one_line(folder: Path, partial: Path | None = None) -> Iterator[None]:
    """Turn an error on a full disk into an InputError that says what is whole: PyTorch's own is "unexpected pos".

    `partial`, what was being written, is removed then.
    """
    try:
        yield
    except (OSError, RuntimeError, SafetensorError) as error:
        told = getattr(error, "errno", None) in FULL or any(os.strerror(number) in str(error) for number in FULL)
        if not told and shutil.disk_usage(folder).free >= 1 << 20:
            raise
        if partial is not None:
            shutil.rmtree(partial, ignore_errors=True)
        kept = last_checkpoint(folder)
        raise InputError(
            f"{folder}: the disk is full; {f'{kept} is whole' if kept else 'no checkpoint is whole'}: "
            "make room and run the same command again"
        ) from None
