"""What does not work under DeepSpeed or the first FSDP, refused before a model is loaded."""

import os
import sys

from data_prep.common.errors import InputError


def under_deepspeed(deepspeed) -> bool:
    """Whether DeepSpeed was asked for, by the argument of that name or by the launcher."""
    return bool(deepspeed) or os.environ.get("ACCELERATE_USE_DEEPSPEED", "false").lower() in ("1", "true")


def under_first_fsdp() -> bool:
    """Whether the launcher asked for FSDP and not for its second version; the first is accelerate's default."""
    fsdp = os.environ.get("ACCELERATE_USE_FSDP", "false").lower() in ("1", "true")
    return fsdp and os.environ.get("FSDP_VERSION", "1") != "2"


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
