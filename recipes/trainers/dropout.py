"""Dropout switched off, of modules and of models that call it as a function."""

from torch import nn
from trl.trainer.utils import disable_dropout_in_model


def disable_dropout(model: nn.Module) -> None:
    """Switch off all dropout of `model`: its modules, as TRL does, and the rates that modules keep as numbers.

    OPT and XGLM pass theirs to `torch.nn.functional.dropout`, OPT leaves out whole layers at the rate `layerdrop`.
    A rate that is read from the config in every pass (Falcon, BLT) stays: the config is saved with the model.
    """
    disable_dropout_in_model(model)
    for module in model.modules():
        for name, value in list(vars(module).items()):
            if isinstance(value, float) and "drop" in name:
                setattr(module, name, 0.0)
