"""What does not work where weights, gradients or optimizer state are in parts on several processes: DeepSpeed and FSDP.

It is refused before a model is loaded, by a line that names what does work.
"""

import contextlib
import json
import os
import sys

from data_prep.common.errors import InputError

# {stage: what of recipes.plan's --sharding its recipe refuses}
WHOLE = {"ppo": ("zero2", "fsdp2"), "reward": ("fsdp2",)}


def under_deepspeed(deepspeed) -> bool:
    """Whether DeepSpeed was asked for, by the argument of that name or by the launcher."""
    return bool(deepspeed) or _set("ACCELERATE_USE_DEEPSPEED")


def under_zero3(deepspeed) -> bool:
    """Whether DeepSpeed was asked for with its third stage, in which no process has whole weights."""
    if not under_deepspeed(deepspeed):
        return False
    settings = deepspeed or os.environ.get("ACCELERATE_DEEPSPEED_CONFIG_FILE", "none")
    if settings == "none":  # the launcher has no such file, but a stage
        return os.environ.get("ACCELERATE_DEEPSPEED_ZERO_STAGE") == "3"
    try:
        if not isinstance(settings, dict):
            with open(settings, encoding="utf-8") as file:
                settings = json.load(file)
        return settings["zero_optimization"]["stage"] == 3
    except (OSError, ValueError, LookupError, TypeError):
        return False  # no stage, or the Trainer says what is wrong with the file


def under_fsdp(fsdp=None) -> bool:
    """Whether FSDP was asked for, by the argument of that name or by the launcher."""
    return bool(fsdp) or _set("ACCELERATE_USE_FSDP")


def under_first_fsdp() -> bool:
    """Whether the launcher asked for FSDP and not for its second version; the first is accelerate's default."""
    return under_fsdp() and os.environ.get("FSDP_VERSION", "1") != "2"


def in_parts(model) -> bool:
    """Whether no process has the whole weights of `model`: then all must run it, or none."""
    weight = next(model.parameters())
    return hasattr(weight, "full_tensor") or hasattr(weight, "ds_id")


@contextlib.contextmanager
def on_device(model, device):
    """`model` on `device`, for a measurement before training: under FSDP it is on the CPU until then."""
    home = model.device
    if home.type != device.type:
        model.to(device)
    try:
        yield
    finally:
        if home.type != device.type:
            model.to(home)


def check_muon(config: dict, given: set[str]) -> None:
    """Raise InputError for `muon_lr`, in a YAML's `config` or on the command line, where weights are not matrices."""
    muon = config.get("muon_lr") is not None or any(word.startswith("--muon_lr") for word in sys.argv)
    lora = "use_peft" in given and config.get("use_peft", True)  # its adapters are trained by optim
    if muon and not lora and under_first_fsdp():
        raise InputError(
            "muon_lr: the first FSDP flattens the matrices that Muon needs; launch with accelerate_configs/fsdp2.yaml, or "
            "leave it out: AdamW then trains them"
        )
    if muon and not lora and under_deepspeed("deepspeed" in given):
        raise InputError(
            "muon_lr: DeepSpeed would ignore it, and train by optim; leave it out: AdamW then trains all, "
            "or launch with accelerate_configs/ddp.yaml or fsdp2.yaml"
        )


def check_sharding(values: dict, arguments: set[str]) -> None:
    """Raise InputError for what a recipe cannot do with weights in parts.

    Args:
        values: {option: value}; deepspeed, fsdp, use_peft and chat_vector are looked at.
        arguments: the names of the recipe's classes of arguments, which tell the recipe.
    """
    deepspeed, fsdp = values.get("deepspeed"), under_fsdp(values.get("fsdp"))
    zero3 = under_zero3(deepspeed)
    if "PPOConfig" in arguments and (fsdp or under_deepspeed(deepspeed)):
        # DeepSpeed's backward pass takes the step itself: before a gradient that is not finite could be skipped, and before
        # the policy's could be taken out in the warm-up of the value model. FSDP gathers weights where the wrapper of policy
        # and value model is called; to sample, to score and for the reference its parts are called.
        raise InputError(
            "PPO runs under neither DeepSpeed nor FSDP; launch with accelerate_configs/ddp.yaml; use_peft and load_in_4bit "
            "save memory"
        )
    if "RewardConfig" in arguments and (fsdp or zero3):
        raise InputError(
            "a reward model is scored after training, saved and loaded again, by processes that have it whole: not under FSDP "
            "or ZeRO-3; launch with accelerate_configs/ddp.yaml or deepspeed_zero2.yaml; use_peft and load_in_4bit save memory"
        )
    if arguments & {"RLOOConfig", "GRPOConfig"} and zero3:
        raise InputError(
            "ZeRO-3 gathers the weights in training alone, and this recipe samples before it as well; launch with "
            "accelerate_configs/ddp.yaml, deepspeed_zero2.yaml or fsdp2.yaml"
        )
    if values.get("use_peft") and under_deepspeed(deepspeed):
        raise InputError(
            "use_peft: an adapter cannot be merged and saved under DeepSpeed; launch with accelerate_configs/ddp.yaml, or with "
            "fsdp2.yaml to share out the weights"
        )
    if values.get("chat_vector") and zero3:
        raise InputError(
            "chat_vector: ZeRO-3 has the weights in parts, to which nothing can be added; launch with "
            "accelerate_configs/ddp.yaml, deepspeed_zero2.yaml or fsdp2.yaml"
        )


def _set(name: str) -> bool:
    return os.environ.get(name, "false").lower() in ("1", "true")
