"""Checkpoints that hold the reference where it follows the policy (`sync_ref_model`).

TRL moves it every `ref_model_sync_steps` and saves it nowhere: a resumed run would load the model that the first one began
with, and train against that.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors.torch import load_file, save_file

from data_prep.common.errors import InputError
from recipes.trainers.sharding import in_parts, under_fsdp

if TYPE_CHECKING:  # slow to import
    from transformers import Trainer, TrainingArguments

# A folder of its own: what reads every .safetensors of a checkpoint would take it for weights of the policy.
REFERENCE = "reference"


def check_reference(checkpoint: str, args: TrainingArguments) -> None:
    """Raise InputError for a checkpoint without the reference that a run with these arguments goes on with."""
    if getattr(args, "sync_ref_model", False) and not (Path(checkpoint) / REFERENCE).is_dir():
        raise lacking(Path(checkpoint), REFERENCE)


def lacking(checkpoint: Path, name: str) -> InputError:
    return InputError(
        f"sync_ref_model: {checkpoint} holds no {name}: of an earlier version, of a run without sync_ref_model or of another "
        "number of processes, it lacks the reference that its next update is trained against; resume from another, start "
        "anew by --resume_from_checkpoint false, or give another --output_dir"
    )


@torch.no_grad()
def keep_reference(trainer: Trainer, checkpoint: str | None) -> None:
    """Make checkpoints hold the weights of the reference, and load those of `checkpoint`, if there is one.

    Where weights are in parts each process keeps its own.

    Raises InputError for a checkpoint that holds none of this process.
    """
    args, save = trainer.args, trainer._save_rng_state
    model = trainer.accelerator.unwrap_model(trainer.ref_model, keep_torch_compile=False)
    parts = in_parts(model) or under_fsdp(args.fsdp)  # the first FSDP marks no weight
    name = f"{REFERENCE}/model.safetensors"
    if parts:
        name = f"{REFERENCE}/part_{args.process_index}_of_{args.world_size}.safetensors"

    def save_with_reference(folder: str) -> None:
        save(folder)
        if parts or args.should_save:
            path = Path(folder) / name
            path.parent.mkdir(parents=True, exist_ok=True)
            save_file({key: weight.contiguous() for key, weight in own_weights(model).items()}, path)

    trainer._save_rng_state = save_with_reference
    if checkpoint is None:
        return
    if not (Path(checkpoint) / name).exists():
        raise lacking(Path(checkpoint), name)
    found = load_file(Path(checkpoint) / name)
    for key, weight in own_weights(model).items():
        weight.copy_(found[key])


def own_weights(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """{name: what this process has of a weight}, without gradients; tied ones once, as TRL moves them."""

    def own(weight: torch.Tensor) -> torch.Tensor:
        if hasattr(weight, "ds_tensor"):  # ZeRO-3
            return weight.ds_tensor.data
        return (weight.to_local() if hasattr(weight, "to_local") else weight).data

    return {name: own(weight) for name, weight in model.named_parameters()}
