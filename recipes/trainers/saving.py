"""The last step of a recipe: LoRA adapters merged into their model, the model saved whole, looked at, and pushed."""

from __future__ import annotations

import copy
import os
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import transformers
from safetensors.torch import load_file
from transformers import AutoConfig

from data_prep.common.files import UNFINISHED, readable
from recipes.trainers.adapter import are_tied, tie
from recipes.trainers.hub import push
from recipes.trainers.resuming import full_disk_as_one_line

if TYPE_CHECKING:  # slow to import, and so is peft below
    from peft import PeftModel
    from transformers import PreTrainedModel, Trainer

# What an output folder may hold of an older model; config.json first, by which a folder is taken for a whole one.
MODEL_FILES = (
    "config.json",
    "adapter_config.json",
    "generation_config.json",
    "model*.safetensors",
    "model.safetensors.index.json",
    "adapter_model*.safetensors",
    "value_model",
)


def merge_and_save(trainer: Trainer, tokenizer, merge: bool = True) -> None:
    """Save the language model that was trained, ready to answer.

    With `merge` a LoRA adapter becomes part of the weights; otherwise it is saved by itself.
    """
    from peft import PeftModel

    model = trainer.accelerator.unwrap_model(trainer.model, keep_fp32_wrapper=False)
    if merge and isinstance(model, PeftModel):
        trainer.model = model = merge_adapter(model)
    model.config.use_cache = model.generation_config.use_cache = True  # generation is several times slower without
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    save_model(trainer, {"": model})


def save_model(trainer: Trainer, models: dict[str, PreTrainedModel]) -> None:
    """Save the trainer's model in its `output_dir`, in place of any other there: an adapter or a whole model.

    Written and looked at beside, then moved, `config.json` last: a folder that holds one is whole.

    Args:
        models: what must be found there, {subfolder: model}; "" is the folder itself.

    Raises InputError if the disk is full, RuntimeError if what was written does not load as the same model.
    """
    folder = Path(trainer.args.output_dir)
    staged = folder / "partial-model"
    if trainer.is_world_process_zero():
        shutil.rmtree(staged, ignore_errors=True)
    trainer.accelerator.wait_for_everyone()
    with full_disk_as_one_line(folder):
        trainer.save_model(str(staged), _internal_call=True)  # without a push
    trainer.accelerator.wait_for_everyone()
    if trainer.is_world_process_zero():
        (staged / "training_args.bin").unlink(missing_ok=True)  # a pickle, for nobody to read
        readable(staged)
        sharded = trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled
        for subfolder, model in models.items():
            check_reload(staged / subfolder, model, sharded)
        for pattern in MODEL_FILES:
            for path in folder.glob(pattern):
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        for path in sorted(staged.iterdir(), key=lambda path: path.name in ("config.json", "adapter_config.json")):
            os.replace(path, folder / path.name)
        staged.rmdir()
    trainer.accelerator.wait_for_everyone()


def check_reload(folder: Path, model: PreTrainedModel | PeftModel, sharded: bool = False) -> None:
    """Raise RuntimeError unless plain `from_pretrained` on `folder` gives the weights of `model`, bit for bit.

    An adapter is compared by itself. With `sharded`, weights in parts on several processes, nothing but their names is.
    """
    from peft import PeftModel, get_peft_model_state_dict

    if isinstance(model, PeftModel):
        saved, expected = load_file(folder / "adapter_model.safetensors"), get_peft_model_state_dict(model)
        foreign = [path.name for path in folder.glob("model*.safetensors")]
    else:
        kind = getattr(transformers, AutoConfig.from_pretrained(folder, trust_remote_code=False).architectures[0])
        load = {"dtype": "auto", "use_safetensors": True, "trust_remote_code": False}
        reloaded, info = kind.from_pretrained(folder, output_loading_info=True, **load)
        saved, expected = reloaded.state_dict(), {} if sharded else model.state_dict()
        foreign = [path.name for path in folder.glob("adapter_*")]
        foreign += [name for names in info.values() for name in names]
    if not sharded:
        foreign += sorted(saved.keys() ^ expected.keys())
        foreign += [
            name
            for name in saved.keys() & expected.keys()
            if not torch.equal(saved[name].cpu(), expected[name].to("cpu", saved[name].dtype))
        ]
    if foreign:
        raise RuntimeError(f"{folder}: the saved model is another than that trained: do not use it ({foreign[:5]})")


def finish(trainer: Trainer) -> None:
    """Mark the model in `output_dir` as finished, results and all; push it if told so. The settings stay, for the record."""
    if trainer.is_world_process_zero():
        folder = Path(trainer.args.output_dir)
        os.replace(folder / UNFINISHED, folder / "settings.json")
        if trainer.args.push_to_hub:
            push(trainer)


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
    from peft import PeftModel
    from peft.utils.integrations import dequantize_module_weight
    from transformers.pytorch_utils import Conv1D

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
        adapted = PeftModel.from_pretrained(whole, folder)
        if are_tied(base):
            tie(adapted)
        return adapted.merge_and_unload()
