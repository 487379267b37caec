"""The chat vector: what made an assistant of one base model, added to another base model of the same kind.

Huang 2023, arXiv:2310.04799: the weights of an assistant less those of its base, added to the base after its pretraining
was continued on other text, give a model that still follows the chat format, and keeps of the assistant's answers what
fine-tuning from the new base would have to teach again.
"""

import torch
from transformers import AutoModelForCausalLM

from data_prep.common.errors import InputError
from data_prep.models.loading import checkpoint_or_hub_id


@torch.no_grad()
def add_chat_vector(model, names: list[str], model_args) -> None:
    """Add to `model`, in place, the weights of the assistant names[0] less those of its base model names[1].

    Raises InputError if the three do not have weights of the same names and shapes, and with an adapter or quantized
    weights: an adapter is saved without the sum, which no folder holds.
    """
    if len(names) != 2:
        raise InputError(
            f"chat_vector: found {len(names)} names, expected two: an assistant and the base model it is from"
        )
    if model_args.use_peft or model_args.load_in_4bit or model_args.load_in_8bit:
        raise InputError(
            "chat_vector: with LoRA or quantized weights the sum would be in no folder that an adapter could be put on; "
            "leave it out, or fine-tune in full"
        )
    assistant, base = (
        AutoModelForCausalLM.from_pretrained(
            checkpoint_or_hub_id(name, "recipes/sft.py"), dtype=model.dtype, trust_remote_code=False
        )
        for name in names
    )
    shapes = {name: weight.shape for name, weight in model.named_parameters()}
    for name, other in zip(names, (assistant, base), strict=True):
        found = {key: weight.shape for key, weight in other.named_parameters()}
        for key in sorted(shapes.keys() | found.keys()):
            if shapes.get(key) != found.get(key):
                raise InputError(
                    f"chat_vector: {name}: {key} has the shape {_shape(found.get(key))}, in model_name_or_path "
                    f"{_shape(shapes.get(key))}; expected models of the same kind and vocabulary"
                )
    moved, before = dict(assistant.named_parameters()), dict(base.named_parameters())
    for key, weight in model.named_parameters():
        weight += (moved[key] - before[key]).to(weight.device)
    print(f"chat vector: {names[0]} less {names[1]} is added to the weights")


def _shape(shape: torch.Size | None) -> str:
    return " × ".join(map(str, shape)) if shape is not None else "of no weight"
