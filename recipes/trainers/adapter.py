"""LoRA beside a model's weights: put there for transformers' own trainer (TRL's do it themselves), and tied embeddings."""

from __future__ import annotations

from typing import TYPE_CHECKING

from data_prep.common.errors import InputError

if TYPE_CHECKING:  # slow to import, and so is peft below
    import trl
    from peft import PeftModel
    from torch import nn


def add_adapter(model, model_args: trl.ModelConfig, args, merge: bool):
    """`model` with the LoRA adapter that `model_args` ask for; the model itself without `use_peft`.

    Modules in `lora_modules_to_save`, the embeddings say, are trained in full; see `keep_tied`, which may raise InputError.
    """
    from trl import get_peft_config

    config = get_peft_config(model_args)
    if config is None:
        return model
    from peft import get_peft_model

    if args.gradient_checkpointing:
        model.enable_input_require_grads()  # frozen embeddings have no gradient to start a checkpointed block with
    model = get_peft_model(model, config)
    keep_tied(model, merge)
    return model


def keep_tied(model: nn.Module, merge: bool) -> None:
    """Train embeddings and head as one where they are one matrix and `lora_modules_to_save` names one of them.

    A model without an adapter is left as it is. PEFT 0.21 trains a copy of the one and leaves the other as it was; merged,
    it unties them in the config. (Its `ensure_weight_tying` knows the names of some models' embeddings, not GPT-2's.)

    Raises InputError where the adapter is not merged: loaded again beside its model, it would not reach the other.
    """
    if hasattr(model, "get_base_model") and were_tied(model):
        if not merge:
            raise InputError(
                "lora_modules_to_save: embeddings and head of this model are one matrix, which an adapter by itself cannot "
                "hold: leave merge_adapter true, or the embeddings out"
            )
        tie(model)


def check_tied(model: nn.Module) -> None:
    """Raise InputError for embeddings and head that were one matrix, and of which an adapter would train one alone.

    They are not tied here: where the reference is the model with its adapter switched off (DPO, KTO, PPO, RLOO, GRPO), it
    would have the trained head.
    """
    model = getattr(model, "policy", model)  # PPO's wrapper
    if hasattr(model, "get_base_model") and were_tied(model):
        raise InputError(
            "lora_modules_to_save: embeddings and head of this model are one matrix, and this recipe would train one of "
            "them alone: leave them out; recipes/sft.py and continue_pretraining.py train them as one"
        )


def trained(module: nn.Module) -> nn.Module:
    """What is computed with in the place of `module`: the copy that is trained, if there is one."""
    from peft.utils import ModulesToSaveWrapper

    return module.modules_to_save[module.active_adapter] if isinstance(module, ModulesToSaveWrapper) else module


def were_tied(model: PeftModel) -> bool:
    """Whether embeddings and head were one matrix until the adapter took a copy of one of them to train."""
    base = model.get_base_model()
    head = base.get_output_embeddings()
    if head is None or are_tied(base):
        return False
    head, embeddings = (getattr(each, "original_module", each) for each in (head, base.get_input_embeddings()))
    return head.weight is embeddings.weight


def are_tied(model) -> bool:
    """Whether embeddings and head of a model, perhaps with an adapter in it, are one matrix."""
    head = model.get_output_embeddings()
    return head is not None and trained(head).weight is trained(model.get_input_embeddings()).weight


def tie(model: PeftModel) -> None:
    """Let the embeddings that are trained be the head too, or the head the embeddings if it alone is trained."""
    base = model.get_base_model()
    head, embeddings = base.get_output_embeddings(), base.get_input_embeddings()
    if trained(embeddings) is embeddings:
        embeddings.weight = trained(head).weight
    else:
        trained(head).weight = trained(embeddings).weight
