"""The last step of a recipe: LoRA adapters merged into their model, and the model saved ready to be used."""

import copy
import tempfile

import torch
from peft import PeftModel
from peft.utils.integrations import dequantize_module_weight
from transformers import PreTrainedModel, Trainer
from transformers.pytorch_utils import Conv1D


def merge_and_save(trainer: Trainer, tokenizer, merge: bool = True) -> None:
    """Save the language model that was trained, ready to answer.

    With `merge` a LoRA adapter becomes part of the weights; otherwise it is saved by itself.
    """
    model = trainer.accelerator.unwrap_model(trainer.model, keep_fp32_wrapper=False)
    if merge and isinstance(model, PeftModel):
        trainer.model = model = merge_adapter(model)
    model.config.use_cache = model.generation_config.use_cache = True  # generation is several times slower without
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    trainer.save_model(trainer.args.output_dir)


@torch.no_grad()
def merge_adapter(model: PeftModel) -> PreTrainedModel:
    """The base model with the adapter in its weights; quantized weights (QLoRA) become floating-point ones again.

    The adapter was trained beside the quantized weights, so it belongs to those, dequantized. Logits of a small random
    model (standard deviation 0.23) differed from those that were trained by 1e-6; by 0.10 when its 4-bit adapter was
    merged into the weights as they were before quantization, and by 0.25 when the sum was rounded to 4 bits again.
    In 8 bits products are rounded too: 0.010, 0.014 and 0.026.
    """
    base = model.get_base_model()
    if getattr(base, "quantization_method", None) is None:
        return model.merge_and_unload()
    from bitsandbytes.nn import Linear4bit, Linear8bitLt  # an extra

    config = copy.deepcopy(base.config)
    del config.quantization_config
    commit = getattr(config, "_commit_hash", None)  # of a model of the Hub
    load = {"config": config, "dtype": base.get_input_embeddings().weight.dtype, "use_safetensors": True}
    load |= {"revision": commit} if commit else {}
    # Not base.dequantize(): it leaves Linear layers where GPT-2 has Conv1D, which do not load again.
    whole = type(base).from_pretrained(base.config._name_or_path, **load).to(base.device)
    if hasattr(base, "generation_config"):
        whole.generation_config = base.generation_config
    for name, layer in base.named_modules():
        if isinstance(layer, Linear4bit | Linear8bitLt):
            module, weight = whole.get_submodule(name.removesuffix(".base_layer")), dequantize_module_weight(layer)
            module.weight.copy_(weight.T if isinstance(module, Conv1D) else weight)
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        return PeftModel.from_pretrained(whole, folder).merge_and_unload()
