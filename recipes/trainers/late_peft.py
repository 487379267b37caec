"""transformers' arguments without the imports that they do not need: a typo is told in two seconds instead of six.

To define TrainingArguments transformers 5.23 imports `trainer_utils`, and that imports peft, which imports the code of
every model, the compiler and, where it is installed, bitsandbytes: two thirds of the time until a recipe can read its
arguments. `trainer_utils` asks peft only whether a model is a PeftModel, when one is trained.
"""

import importlib
import importlib.util
import sys

import transformers.utils


def import_peft_late() -> None:
    """Let `transformers.trainer_utils` import peft when it first meets a model; without effect if it is imported by now."""
    if "transformers.trainer_utils" in sys.modules:
        return
    is_peft_available = transformers.utils.is_peft_available
    transformers.utils.is_peft_available = lambda: False
    try:
        from transformers import trainer_utils
    finally:
        transformers.utils.is_peft_available = is_peft_available

    def import_and_tell() -> bool:
        if is_peft_available() and not hasattr(trainer_utils, "PeftModel"):
            import_peft()
            from peft import PeftMixedModel, PeftModel

            trainer_utils.PeftModel, trainer_utils.PeftMixedModel = PeftModel, PeftMixedModel
        return is_peft_available()

    trainer_utils.is_peft_available = import_and_tell


def import_peft() -> None:
    """Import peft without bitsandbytes, which is an extra: where it is installed, peft imports it, and it the compiler.

    That is half of the time of importing peft, used or not. At that moment peft wants it for its KappaTune alone, which no
    recipe has; for quantized weights it imports it where it meets them.
    """
    if {"peft", "bitsandbytes"} & sys.modules.keys() or importlib.util.find_spec("bitsandbytes") is None:
        return
    sys.modules["bitsandbytes"] = None  # Python's way to say that there is none
    try:
        importlib.import_module("peft")
    finally:
        del sys.modules["bitsandbytes"]
