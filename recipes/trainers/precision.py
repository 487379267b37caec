"""The precision in which weights are trained: score heads beside LoRA in fp32, and a line where steps are rounded away."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from recipes.trainers.adapter import trained

if TYPE_CHECKING:  # slow to import, and so is peft below
    from peft import PeftModel
    from transformers import Trainer


def train_head_in_fp32(model: PeftModel) -> None:
    """Let the score head beside an adapter be trained in fp32, whatever dtype its model has, until `round_head`.

    PEFT trains a copy of the head in the model's dtype, and TRL casts it to bf16 beside quantized weights: there small
    steps are rounded away. Without autocast what goes into the head would not fit it: it is cast. What else is trained in
    full keeps the model's dtype, which TRL takes from it too.
    """
    from peft.utils import ModulesToSaveWrapper

    for module in model.modules():
        if isinstance(module, ModulesToSaveWrapper):
            module.modules_to_save.to(next(module.original_module.parameters()).dtype)
    head = trained(model.get_base_model().score).float()
    head.register_forward_pre_hook(lambda module, given: (given[0].to(module.weight.dtype),))


def round_head(model: PeftModel) -> None:
    """Round a score head that was trained in fp32 to the dtype of its model, in which it will be loaded."""
    score = getattr(model.get_base_model(), "score", None)
    if score is not None and trained(score) is not score:
        trained(score).to(score.original_module.weight.dtype)


def warn_of_rounding(trainer: Trainer) -> None:
    """Print a line where whole weights are trained in 16 bits, without a copy in fp32 that takes the small steps.

    DeepSpeed, and FSDP with autocast, keep such a copy. Adapters, and what is trained beside quantized weights, are in the
    dtype that PEFT and TRL give them whatever `dtype` is.
    """
    in_fp32 = trainer.is_fsdp_enabled and (trainer.args.bf16 or trainer.args.fp16)
    weights = dict(trainer.model.named_parameters())
    quantized = not all(weight.is_floating_point() for weight in weights.values())
    if in_fp32 or trainer.is_deepspeed_enabled or quantized:
        return
    kinds = {weight.dtype for name, weight in weights.items() if weight.requires_grad and ".lora_" not in name}
    for kind in kinds & {torch.bfloat16, torch.float16}:
        print(
            f"weights are trained in {str(kind).removeprefix('torch.')}: a step below 1/{4 / torch.finfo(kind).eps:.0f} of a "
            "weight is lost; dtype: float32 with bf16: true keeps it"
        )
