"""What does not work under DeepSpeed, refused before a model is loaded."""

import os
import sys

from data_prep.common.errors import InputError


def under_deepspeed(deepspeed) -> bool:
    """Whether DeepSpeed was asked for, by the argument of that name or by the launcher."""
    return bool(deepspeed) or os.environ.get("ACCELERATE_USE_DEEPSPEED", "false").lower() in ("1", "true")


def check_muon(config: dict, given: set[str]) -> None:
    """Raise InputError for `muon_lr`, in a YAML's `config` or on the command line, under DeepSpeed."""
    muon = config.get("muon_lr") is not None or any(word.startswith("--muon_lr") for word in sys.argv)
    lora = "use_peft" in given and config.get("use_peft", True)  # its adapters are trained by optim
    if muon and not lora and under_deepspeed("deepspeed" in given):
        raise InputError(
            "muon_lr: DeepSpeed would ignore it, and train by optim; leave it out, "
            "or launch with accelerate_configs/ddp.yaml or fsdp2.yaml"
        )
