"""The last step of a recipe: LoRA adapters merged into their model, the model saved whole, looked at, and pushed."""

from __future__ import annotations

import copy
import os
import shutil
import tempfile
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import transformers
from safetensors.torch import load_file
from transformers import AutoConfig, GenerationConfig

from data_prep.common.files import UNFINISHED, readable
from data_prep.models.generation import stop_token_ids
from data_prep.models.loading import context_of
from data_prep.models.merging import BOUND, logit_difference, probe_logits, why_merging_differs
from recipes.trainers.adapter import are_tied, tie
from recipes.trainers.checkpoints import full_disk_as_one_line
from recipes.trainers.precision import round_head
from recipes.trainers.push.model_files import push_trained, write_card
from recipes.trainers.trackers import where_to_look

if TYPE_CHECKING:  # slow to import, and so is peft below
    from peft import PeftModel
    from transformers import PreTrainedModel, Trainer

# `transformers serve` allows at least so many new tokens, whatever max_length says: an answer that does not end would run
# past a short context and be an HTTP error. After three quarters of such a context the end is made certain instead: this
# penalty is the one limit of a generation config that counts from the end of the prompt and that the server leaves alone.
SERVER_TOKENS, LARGE = 1024, 1e6

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
    model = trainer.accelerator.unwrap_model(trainer.model, keep_fp32_wrapper=False)
    ready = ready_to_serve(trainer, model, tokenizer, merge)
    if ready is not model:
        trainer.model = ready
    save_model(trainer, {"": ready})


def ready_to_serve(
    trainer: Trainer,
    model: PreTrainedModel | PeftModel,
    tokenizer,
    merge: bool = True,
) -> PreTrainedModel | PeftModel:
    """The policy as it is saved: an adapter merged if told so and if that changes no answer, and `serve_as_measured`."""
    from peft import PeftModel

    if merge and isinstance(model, PeftModel):
        model = merge_unless_it_answers_otherwise(trainer, model)
    serve_as_measured(model, tokenizer)
    return model


def stop_at(model: PreTrainedModel | PeftModel, ids: list[int]) -> None:
    """Let the generation config of `model` say that an answer ends with any of `ids`; it is saved with every checkpoint."""
    owner = model.get_base_model() if hasattr(model, "get_base_model") else model
    owner.generation_config.eos_token_id = ids[0] if len(ids) == 1 else ids


def stop_at_end_of_turn(trainer: Trainer, tokenizer) -> None:
    """Let the model that is trained stop at the end of turn of its chat template, and where it stopped before."""
    model = trainer.accelerator.unwrap_model(trainer.model)
    stop_at(model, stop_token_ids(model.generation_config, tokenizer))


def serve_as_measured(model: PreTrainedModel | PeftModel, tokenizer) -> None:
    """Set how the saved model answers where nobody says otherwise: as it was measured, greedily, within its context.

    `generation_config.json` is read by `pipeline`, `transformers serve` and vLLM. Without it the first samples at
    temperature 0.7 and writes 256 tokens more than the prompt has, past the context of a small model. An answer ends where
    the model's own config says, all of the tokens in it, or at the tokenizer's end of sequence.
    """
    owner = model.get_base_model() if hasattr(model, "get_base_model") else model
    positions = context_of(owner.config)
    named = owner.generation_config.eos_token_id
    ends = named if isinstance(named, list) else [tokenizer.eos_token_id if named is None else named]
    settings = {"bos_token_id": tokenizer.bos_token_id, "pad_token_id": tokenizer.pad_token_id}
    settings |= {"do_sample": False, "max_length": positions}
    if tokenizer.pad_token_id not in (None, *ends):
        settings["suppress_tokens"] = [tokenizer.pad_token_id]  # as it is when answers are measured
    if positions and positions < 2 * SERVER_TOKENS:
        settings["exponential_decay_length_penalty"] = [positions * 3 // 4, LARGE]
    owner.config.use_cache = True  # generation is several times slower without
    owner.generation_config = GenerationConfig(**settings, use_cache=True)
    stop_at(owner, ends)


def save_model(trainer: Trainer, models: dict[str, PreTrainedModel]) -> None:
    """Save the trainer's model in its `output_dir`, in place of any other there: an adapter or a whole model.

    Written and looked at beside, then moved, `config.json` last: a folder that holds one is whole.

    Args:
        models: what must be found there, {subfolder: model}; "" is the folder itself.

    Raises InputError if the disk is full, RuntimeError if what was written does not load as the same model.
    """
    from transformers.integrations.deepspeed import unset_hf_deepspeed_config  # slow to import

    folder = Path(trainer.args.output_dir)
    staged = folder / "partial-model"
    if trainer.is_world_process_zero():
        shutil.rmtree(staged, ignore_errors=True)
    trainer.accelerator.wait_for_everyone()
    with full_disk_as_one_line(folder):
        trainer.save_model(str(staged), _internal_call=True)  # without a push
    trainer.accelerator.wait_for_everyone()
    unset_hf_deepspeed_config()  # under ZeRO-3 whatever is loaded from here on would be shared out, by all processes at once
    if trainer.is_world_process_zero():
        (staged / "training_args.bin").unlink(missing_ok=True)  # a pickle, for nobody to read
        if (staged / "adapter_config.json").exists():
            settings = getattr(models[""].get_base_model(), "generation_config", None)  # None: a reward model's
            if settings:
                settings.save_pretrained(staged)  # PEFT saves the adapter alone
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


def reload_classifier(folder: str, model: PreTrainedModel | PeftModel) -> PreTrainedModel | PeftModel:
    """The reward model that was saved in `folder`, as plain libraries load it; of an adapter on its base, as `model` is."""
    from peft import PeftModel
    from transformers import AutoModelForSequenceClassification

    load = {"dtype": model.dtype, "trust_remote_code": False, "use_safetensors": True}
    if not isinstance(model, PeftModel):
        return AutoModelForSequenceClassification.from_pretrained(folder, **load)
    config = model.get_base_model().config
    load |= {"num_labels": 1, "pad_token_id": config.pad_token_id}
    if commit := getattr(config, "_commit_hash", None):  # of a model of the Hub
        load["revision"] = commit
    if quantization := getattr(config, "quantization_config", None):
        load["quantization_config"] = quantization
    base = AutoModelForSequenceClassification.from_pretrained(config._name_or_path, **load)
    return PeftModel.from_pretrained(base, folder)


def finish(trainer: Trainer) -> None:
    """Mark the model in `output_dir` as finished, results and all, with a model card; push it if told so, and
    say where the curves are that `report_to` asked for.

    The settings stay, for the record.
    """
    if trainer.is_world_process_zero():
        folder = Path(trainer.args.output_dir)
        os.replace(folder / UNFINISHED, folder / "settings.json")
        if trainer.args.push_to_hub:
            push_trained(trainer)
        else:
            write_card(folder, folder.absolute().name)
        for line in where_to_look(trainer.args):
            print(line)


def merge_unless_it_answers_otherwise(
    trainer: Trainer, model: PeftModel, owner: str = ""
) -> PreTrainedModel | PeftModel:
    """The merged model; or `model` as it is, if merging moves its logits by more than rounding, and a line that says so.

    Of a reward or value model, which other recipes load whole, the line says what to do. Its head becomes what is saved
    first: see `round_head`.

    Args:
        owner: whose adapter the line is about, where a run has several: "of the value model".
    """
    round_head(model)
    if trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled:  # the weights are in parts on several processes
        return merge_adapter(model)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="All adapters are already merged")  # they are, by the line below
        before, quantized = probe_logits(model), getattr(model.get_base_model(), "quantization_method", None)
        weights = {} if quantized else weights_below_adapters(model)
        if quantized is None:
            model.merge_adapter()
        merged = merge_adapter(model) if quantized else model
        difference = logit_difference(before, probe_logits(merged))
        if difference <= BOUND:
            return merged if quantized else merge_adapter(model)
    if quantized is None:
        model.unmerge_adapter()
        with torch.no_grad():
            # Less what was added is not always what was, in bfloat16 least of all.
            for layer, weight in weights.items():
                layer.weight.copy_(weight)
    if trainer.is_world_process_zero():
        print(
            f"the adapter{owner and ' '}{owner} is saved by itself, not merged: merged, the largest logit moves by "
            f"{difference:.2f} of the logits' standard deviation (bound: {BOUND}); {why_merging_differs(model)}"
        )
        if hasattr(model.get_base_model(), "score"):
            print("recipes that load a reward model need it whole: train it with dtype float32, or without LoRA")
    return model


def weights_below_adapters(model: PeftModel) -> dict[torch.nn.Module, torch.Tensor]:
    """{layer: its weight, copied to the CPU} of the layers that an adapter of LoRA is beside."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    layers = [module.get_base_layer() for module in model.modules() if isinstance(module, BaseTunerLayer)]
    return {layer: layer.weight.detach().to("cpu", copy=True) for layer in layers}


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
    # On the processor: a GPU that holds the model in 4 bits may have no room for all of it beside that.
    whole = type(base).from_pretrained(base.config._name_or_path, **load)
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
