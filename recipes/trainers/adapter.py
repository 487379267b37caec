"""LoRA beside a model's weights, for a recipe whose trainer is transformers' own: TRL's trainers do it themselves."""

import trl

from data_prep.common.errors import InputError


def add_adapter(model, model_args: "trl.ModelConfig", args, merge: bool):
    """`model` with the LoRA adapter that `model_args` ask for; the model itself without `use_peft`.

    Modules in `lora_modules_to_save`, the embeddings say, are trained in full. Where embeddings and head are one matrix
    they are trained as one: PEFT 0.21 would train a copy of the embeddings and leave the head as it was, and keeps some
    models' together (`ensure_weight_tying`), GPT-2's not.

    Raises InputError for such embeddings where the adapter is not merged: loaded again beside its model, it would not reach
    the head.
    """
    config = trl.get_peft_config(model_args)
    if config is None:
        return model
    from peft import get_peft_model  # slow to import
    from peft.utils import ModulesToSaveWrapper

    head = model.get_output_embeddings()
    tied = head is not None and head.weight is model.get_input_embeddings().weight
    if args.gradient_checkpointing:
        model.enable_input_require_grads()  # frozen embeddings have no gradient to start a checkpointed block with
    model = get_peft_model(model, config)
    base = model.get_base_model()
    if tied and isinstance(embeddings := base.get_input_embeddings(), ModulesToSaveWrapper):
        if not merge:
            raise InputError(
                "lora_modules_to_save: embeddings and head of this model are one matrix, which an adapter by itself cannot "
                "hold: leave merge_adapter true, or the embeddings out"
            )
        head = base.get_output_embeddings()
        trained = head.modules_to_save[embeddings.active_adapter] if isinstance(head, ModulesToSaveWrapper) else head
        trained.weight = embeddings.modules_to_save[embeddings.active_adapter].weight
    return model
