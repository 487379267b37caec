"""The values of a recipe's options, before any work: of their type, in their range, and possible on this machine."""

import importlib.util
import math
from enum import Enum
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin

from data_prep.common.errors import InputError
from data_prep.common.files import check_writable
from data_prep.common.text import shorten
from recipes.trainers.sharding import under_deepspeed

AT_LEAST = {
    1: (
        "per_device_train_batch_size",
        "per_device_eval_batch_size",
        "gradient_accumulation_steps",
        "global_batch_size",
        "max_length",
        "max_new_tokens",
        "max_prompt_length",
        "max_prompts",
        "max_completion_length",
        "response_length",
        "total_episodes",
        "num_ppo_epochs",
        "num_mini_batches",
        "num_iterations",
        "local_rollout_forward_batch_size",
        "n_layer",
        "n_head",
        "n_embd",
        "n_positions",
        "lora_r",
        "lora_alpha",
        "save_total_limit",
    ),
    2: ("num_generations",),  # an answer is compared with the others to its prompt
    0: (
        "learning_rate",
        "value_learning_rate",
        "weight_decay",
        "warmup_steps",
        "max_grad_norm",
        "logging_steps",
        "save_steps",
        "eval_steps",
        "eval_delay",
        "dataloader_num_workers",
        "num_value_warmup_updates",
        "kl_coef",
        "beta",
        "muon_momentum",
        "adam_beta1",
        "adam_beta2",
        "lora_dropout",
        "seed",
        "max_seconds",
        "forgetting_budget",
    ),
}
ABOVE_0 = ("num_train_epochs", "muon_lr", "temperature", "adam_epsilon", "cliprange", "cliprange_value", "kl_budget")
BELOW_1 = ("muon_momentum", "adam_beta1", "adam_beta2", "lora_dropout")
# Packages that no requirement installs: {tracker: what to give to pip}, {names begin with: (module, what to give to pip)}.
TRACKERS = {"tensorboard": "-e '.[tensorboard]'", "trackio": "-e '.[trackio]'"} | {
    name: name for name in ("wandb", "mlflow", "comet_ml", "clearml", "swanlab", "neptune")
}
OPTIMIZERS = {
    ("adamw_bnb", "adamw_8bit", "ademamix", "lion_", "paged_", "rmsprop_bnb"): (
        "bitsandbytes",
        "-e '.[quantization]'",
    ),
    ("adamw_torch_4bit", "adamw_torch_8bit"): ("torchao", "torchao"),
    ("adamw_anyprecision",): ("torchdistx", "git+https://github.com/pytorch/torchdistx"),
    ("galore_",): ("galore_torch", "galore-torch"),
    ("apollo_",): ("apollo_torch", "apollo-torch"),
    ("lomo", "adalomo"): ("lomo_optim", "lomo-optim"),
    ("schedule_free_",): ("schedulefree", "schedulefree"),
    ("grokadamw",): ("grokadamw", "grokadamw"),
    ("stable_adamw",): ("optimi", "torch-optimi"),
}


def typed(name: str, value, hint):
    """`value` of the option `name`, as its type `hint` has it: one value for a list becomes a list of one.

    Raises InputError if it is of another type, or a number that is none. Text for a number has been read as one before.
    """
    try:
        return _typed(value, hint)
    except TypeError:
        raise InputError(
            f"{name}: found {shorten(value)}, expected {described(hint)}"
            + (" (YAML reads a bare no, yes, on or off as false or true: quote it)" if isinstance(value, bool) else "")
        ) from None


def _typed(value, hint):
    """As `typed`. Raises TypeError."""
    kind, members = get_origin(hint) or hint, get_args(hint)
    if kind in (Union, UnionType):
        if isinstance(value, str) and str in members:
            members = [each for each in members if _is_enum(each)] or [str]
        elif any((get_origin(each) or each) is dict for each in members):
            members = [each for each in members if each is not str]  # text there is JSON, or a file's name
        for member in members:
            try:
                return _typed(value, member)
            except TypeError:
                continue
    elif kind is Any or (kind is NoneType and value is None):
        return value
    elif kind is Literal or _is_enum(kind):
        if value in [each.value if isinstance(each, Enum) else each for each in members or kind]:
            return value
    elif kind is list:
        return [_typed(each, *members) for each in (value if isinstance(value, list | tuple) else [value])]
    elif kind is tuple:
        if isinstance(value, list | tuple) and len(value) == len(members):
            return tuple(map(_typed, value, members))
    elif kind is float:
        if type(value) in (int, float) and math.isfinite(value):
            return value
    elif kind is str:
        if type(value) in (str, int, float):
            return str(value)
    elif isinstance(kind, type) and type(value) is kind:  # a bool is no int
        return value
    raise TypeError


def _is_enum(hint) -> bool:
    return isinstance(hint, type) and issubclass(hint, Enum)


def described(hint) -> str:
    """What an option of the type `hint` takes, in words."""
    members = get_args(hint)
    if enums := [each for each in (hint, *members) if _is_enum(each)]:
        return "one of " + ", ".join(each.value for each in enums[0])
    if get_origin(hint) is Literal:
        return "one of " + ", ".join(map(str, members))
    if get_origin(hint) in (Union, UnionType):
        return " or ".join(described(each) for each in members if each is not NoneType)
    names = {int: "a whole number", float: "a number", bool: "true or false", str: "text", dict: "keys and values"}
    names |= {list: "a list", tuple: "a list"}
    return names.get(get_origin(hint) or hint, getattr(hint, "__name__", str(hint)))


def check_values(values: dict) -> None:
    """Raise InputError for a value that is out of range, an output folder that is none, and a package that is missing."""
    for least, names in AT_LEAST.items():
        for name in names:
            if values.get(name) is not None and values[name] < least:
                raise InputError(f"{name}: expected at least {least}, found {values[name]}")
    for name in ABOVE_0:
        if values.get(name) is not None and values[name] <= 0:
            raise InputError(f"{name}: expected more than 0, found {values[name]}")
    for name in BELOW_1:
        if values.get(name) is not None and values[name] >= 1:
            raise InputError(f"{name}: expected less than 1, found {values[name]}")
    steps = values.get("max_steps", -1)
    if steps == 0 or steps < -1:
        raise InputError(f"max_steps: expected at least 1, or -1 for num_train_epochs, found {steps}")
    if "tokens" in values and values.get("eval_steps") == 0:  # elsewhere the Trainer takes logging_steps for it
        raise InputError(
            "eval_steps: expected at least 1, or a share of the run such as 0.1, found 0; as many as the run has updates "
            "measure its beginning and its end alone"
        )
    if "n_embd" in values and values["n_embd"] % values["n_head"]:
        raise InputError(f"n_embd: found {values['n_embd']}, expected a multiple of n_head, {values['n_head']}")
    model = "sft_model_path" if "sft_model_path" in values else "model_name_or_path"
    if model in values and not values[model]:
        raise InputError(f"{model}: expected a folder or a model of the Hub; give --{model}, or {model}: in the YAML")
    if not values["output_dir"]:
        raise InputError("output_dir: expected a folder to write to; give --output_dir, or output_dir: in the YAML")
    for name in ("output_dir", "results_dir"):
        if values.get(name):
            check_writable(name, Path(values[name]).expanduser())
    _check_packages(values)


def _check_packages(values: dict) -> None:
    """Raise InputError for an option that needs a package which is not installed."""
    trackers = values.get("report_to")
    for tracker in trackers if isinstance(trackers, list) else [trackers]:
        if tracker in TRACKERS and importlib.util.find_spec(tracker) is None:
            raise InputError(f"report_to: {tracker} is not installed: pip install {TRACKERS[tracker]}")
    if values.get("use_liger_kernel") and importlib.util.find_spec("liger_kernel") is None:
        raise InputError("use_liger_kernel: liger-kernel is not installed: pip install liger-kernel")
    if values.get("use_vllm") and importlib.util.find_spec("vllm") is None:
        raise InputError(
            "use_vllm: vLLM is not installed: pip install vllm, if there is one for this torch; without it the recipe samples "
            "by generate"
        )
    if under_deepspeed(values.get("deepspeed")) and importlib.util.find_spec("deepspeed") is None:
        raise InputError("deepspeed: DeepSpeed is not installed: pip install -e '.[deepspeed]'")
    for prefixes, (module, pip) in OPTIMIZERS.items():
        if str(values.get("optim")).startswith(prefixes) and importlib.util.find_spec(module) is None:
            raise InputError(f"optim: {values['optim']} needs {module}, which is not installed: pip install {pip}")
