"""Pushing a finished model to the Hub: once, when it is saved and looked at, and never along the way."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import huggingface_hub
from transformers.trainer_utils import HubStrategy

from data_prep.common.errors import InputError

if TYPE_CHECKING:  # slow to import
    from transformers import Trainer, TrainingArguments

# Neither the state of the training, nor rows of the user's that were set aside, nor paths on the user's machine.
NOT_PUSHED = ["_*", "checkpoint-*", "partial-*", "training_args.bin", "quarantine*.jsonl", "settings.json"]
# What an earlier push may have left, an adapter for one: from_pretrained would apply it to a merged model.
REPLACED = ["*.safetensors", "*.safetensors.index.json", "adapter_*", "training_args.bin"]


def prepare_push(args: TrainingArguments) -> None:
    """Find out before any work whether the model can be pushed, and keep `hub_token` out of all files.

    Raises InputError if the Hub cannot be reached or refuses, and for a push along the way.
    """
    if args.hub_token:
        # Trainers write their arguments into every checkpoint.
        os.environ["HF_TOKEN"], args.hub_token = args.hub_token, None
    if args.hub_strategy != HubStrategy.END:
        raise InputError(
            f"hub_strategy: found {args.hub_strategy.value}; a recipe pushes its finished model: expected end"
        )
    if args.push_to_hub and int(os.environ.get("RANK", 0)) == 0:
        name = args.hub_model_id or Path(args.output_dir).absolute().name
        try:
            huggingface_hub.create_repo(name, private=args.hub_private_repo, exist_ok=True)
        except Exception as error:  # a network, a server, a token, a name: many classes of several libraries
            raise InputError(
                f"push_to_hub: {name}: {reason(error)}; log in by `hf auth login`, or leave it out"
            ) from None


def push(trainer: Trainer) -> None:
    """Upload the output folder, with a model card. Raises InputError, which says that the model is safe, if that fails."""
    folder, name = trainer.args.output_dir, trainer.hub_model_id
    try:
        trainer.create_model_card(model_name=name.split("/")[-1])
        done = huggingface_hub.upload_folder(
            repo_id=name,
            folder_path=folder,
            commit_message="Model save",
            revision=trainer.args.hub_revision,
            ignore_patterns=NOT_PUSHED,
            delete_patterns=REPLACED,
        )
    except Exception as error:
        again = f"hf upload {name} {folder} --exclude 'checkpoint-*' 'quarantine*'"
        raise InputError(f"the model in {folder} is whole, but not pushed: {reason(error)}; try: {again}") from None
    print(f"pushed to {done}")


def reason(error: Exception) -> str:
    """The first line of an error of the Hub's client, without the token that a request may name."""
    first = (str(error).strip().splitlines() or [type(error).__name__])[0]
    token = os.environ.get("HF_TOKEN")
    return (first.replace(token, "…") if token else first)[:200]
