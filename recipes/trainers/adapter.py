"""LoRA beside a model's weights, for a recipe whose trainer is transformers' own: TRL's trainers do it themselves."""

from __future__ import annotations

from typing import TYPE_CHECKING

from data_prep.common.errors import InputError

if TYPE_CHECKING:  # slow to import, and so is peft below
    import trl
    from peft import PeftModel
    from torch import nn


def add_adapter(model, model_args: trl.ModelConfig, args, merge: bool):
    """`model` with the LoRA adapter that `model_args` ask for; the model itself without `use_peft`.

    Modules in `lora_modules_to_save`, the embeddings say, are trained in full. Where embeddings and head are one matrix
    they are trained as one: PEFT 0.21 trains a copy of the embeddings and leaves the head as it was. (Its
    `ensure_weight_tying` knows the names of some models' embeddings, and GPT-2's not.)

    Raises InputError for such embeddings where the adapter is not merged: loaded again beside its model, it would not reach
    the head.
    """
    from trl import get_peft_config

    config = get_peft_config(model_args)
    if config is None:
        return model
    from peft import get_peft_model

    if args.gradient_checkpointing:
        model.enable_input_require_grads()  # frozen embeddings have no gradient to start a checkpointed block with
    tied = are_tied(model)
    model = get_peft_model(model, config)
    if tied and not are_tied(model.get_base_model()):
        if not merge:
            raise InputError(
                "lora_modules_to_save: embeddings and head of this model are one matrix, which an adapter by itself cannot "
                "hold: leave merge_adapter true, or the embeddings out"
            )
        tie(model)
    return model


def trained(module: nn.Module) -> nn.Module:
    """What is computed with in the place of `module`: the copy that is trained, if there is one."""
    from peft.utils import ModulesToSaveWrapper

    return module.modules_to_save[module.active_adapter] if isinstance(module, ModulesToSaveWrapper) else module


def are_tied(model) -> bool:
    """Whether embeddings and head of a model, perhaps with an adapter in it, are one matrix."""
    head = model.get_output_embeddings()
    return head is not None and trained(head).weight is trained(model.get_input_embeddings()).weight


def tie(model: PeftModel) -> None:
    """Let the embeddings that are trained be the head too."""
    base = model.get_base_model()
    trained(base.get_output_embeddings()).weight = trained(base.get_input_embeddings()).weight
