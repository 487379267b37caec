"""LoRA beside a model's weights: its config, checked; put there for transformers' own trainer (TRL's do it themselves)."""

from __future__ import annotations

import copy
import dataclasses
import re
import warnings
from typing import TYPE_CHECKING

from data_prep.common.errors import InputError

HEADS = {"lm_head", "embed_out"}  # over tokens, by the names that model families give them

if TYPE_CHECKING:  # slow to import, and so is peft below
    import trl
    from peft import PeftConfig, PeftModel
    from torch import nn


def lora_config(model_args: trl.ModelConfig, config, head: str = "language") -> PeftConfig | None:
    """The LoRA that `model_args` ask for on the model of `config`; None without `use_peft`.

    A single name in `lora_target_modules` is the name of modules, as in a list of several: TRL makes a list of one a string,
    which PEFT takes for a regular expression of whole paths.

    Args:
        config: that of the model, from which it is built without weights to look at its modules.
        head: language, or score for a sequence classifier, whose score head is trained in full: else it keeps its random
            values, and is not saved.

    Raises InputError for a name that no module has, and for modules that PEFT cannot train; not under ZeRO-3.
    """
    from transformers.integrations import is_deepspeed_zero3_enabled  # slow to import
    from trl import get_peft_config

    if head == "score":
        modules = sorted({*(model_args.lora_modules_to_save or []), "score"})
        model_args = dataclasses.replace(model_args, lora_task_type="SEQ_CLS", lora_modules_to_save=modules)
    peft_config = get_peft_config(model_args)
    if peft_config is None:
        return None
    if isinstance(peft_config.target_modules, str) and re.fullmatch(r"[\w.]+", peft_config.target_modules):
        peft_config.target_modules = {peft_config.target_modules}
    if not is_deepspeed_zero3_enabled():  # it would share out the weights of the model that is looked at
        _check_modules(peft_config, config, head)
    return peft_config


def meta_model(config, head: str = "language"):
    """The model of a config on the meta device: shapes without memory. `head`: language, or score for a reward."""
    import torch
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

    with torch.device("meta"):
        if head == "score":
            config = copy.deepcopy(config)
            config.num_labels = 1
            return AutoModelForSequenceClassification.from_config(config)
        return AutoModelForCausalLM.from_config(config)


def check_score_head(config, name: str) -> None:
    """Raise InputError for a kind of model that transformers has no reward model of, with a head named score."""
    from transformers.integrations import is_deepspeed_zero3_enabled  # slow to import
    from transformers.models.auto.modeling_auto import MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING

    known = type(config) in MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING
    if known and (is_deepspeed_zero3_enabled() or hasattr(meta_model(config, "score"), "score")):
        return
    raise InputError(
        f"{name}: transformers has no model of the kind {config.model_type} with a score head, to give rewards or values by; "
        "expected another kind, such as llama, qwen3 or gpt2"
    )


def _check_modules(peft_config: PeftConfig, config, head: str) -> None:
    """Raise InputError for modules that the model of `config` has not, or that PEFT cannot train."""
    import torch
    from peft import get_peft_model
    from transformers.pytorch_utils import Conv1D

    model = meta_model(config, head)
    paths = [name.split(".") for name, _ in model.named_modules()]
    known = {".".join(path[start:]) for path in paths for start in range(len(path))}
    if head == "score":
        known |= HEADS  # PPO's options are for the policy, too
    kinds = (torch.nn.Linear, torch.nn.Embedding, Conv1D)
    matrices = {name.rpartition(".")[2] for name, each in model.named_modules() if isinstance(each, kinds)}
    expected = f"expected names such as {', '.join(sorted(matrices))}"
    targets = peft_config.target_modules
    names = {"lora_modules_to_save": peft_config.modules_to_save or ()}
    names["lora_target_modules"] = targets if isinstance(targets, set) else ()
    for option, asked in names.items():
        if unknown := sorted({*asked} - known):
            every = ", or all-linear by itself" if option == "lora_target_modules" else ""
            raise InputError(f"{option}: the model has no module {', '.join(unknown)}; {expected}{every}")
    try:
        with torch.device("meta"), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # they come again where the adapter is made
            get_peft_model(model, copy.deepcopy(peft_config))
    except (ValueError, re.error) as error:
        given = [targets] if isinstance(targets, str) else sorted(targets or ())
        found = f"found {', '.join(given)}: " if given else ""
        said = " ".join(str(error).split())
        raise InputError(f"lora_target_modules: {found}{said}; {expected}, or all-linear") from None


def add_adapter(model, model_args: trl.ModelConfig, args, merge: bool):
    """`model` with the LoRA adapter that `model_args` ask for; the model itself without `use_peft`.

    Modules in `lora_modules_to_save`, the embeddings say, are trained in full; see `keep_tied`. Raises InputError where
    `lora_config` or `keep_tied` does.
    """
    config = lora_config(model_args, model.config)
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
