"""transformers' arguments without the imports that they do not need: a typo is told in two seconds instead of six.

To define TrainingArguments transformers 5.23 imports `trainer_utils`, and that imports peft, which imports the code of
every model, the compiler and, where it is installed, bitsandbytes: two thirds of the time until a recipe can read its
arguments. `trainer_utils` asks peft only whether a model is a PeftModel, when one is trained.
"""

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
            from peft import PeftMixedModel, PeftModel

            trainer_utils.PeftModel, trainer_utils.PeftMixedModel = PeftModel, PeftMixedModel
        return is_peft_available()

    trainer_utils.is_peft_available = import_and_tell
