"""The folders that the options of a recipe name, looked at before anything slow is imported."""

from pathlib import Path

from data_prep.common.errors import InputError
from data_prep.common.files import existing
from data_prep.models.loading import check_folder, load_tokenizer
from recipes.trainers.resuming import check_resume


def check_folders(values: dict) -> None:
    """Raise InputError for a model or checkpoint that is not there or not whole, and an `eos_token` no model has.

    A model of the Hub is looked for later, by the recipe.
    """
    made_by = {
        "model_name_or_path": "recipes/pretrain.py" if {"conversations", "tokens"} & set(values) else "recipes/sft.py",
        "sft_model_path": "recipes/sft.py",
        "reward_model_path": "recipes/reward.py",
        "value_model_path": "recipes/reward.py",
    }
    for name, recipe in made_by.items():
        if values.get(name):
            check_folder(values[name], recipe)
    check_resume(values.get("resume_from_checkpoint"))
    model, token = values.get("model_name_or_path"), values.get("eos_token")
    if token and model and Path(model).exists():
        check_eos_token(token, load_tokenizer(model), model)


def check_eos_token(token: str, tokenizer, name: str) -> None:
    """Raise InputError for a token that is not in the vocabulary of the model `name`."""
    if token not in tokenizer.get_vocab():
        raise InputError(f"eos_token: found {token!r}, which is not in the vocabulary of {name}")


def read_template(path: str) -> str:
    """The chat template of `chat_template_path`. Raises InputError for what is no file of that kind, or not there."""
    if not path.endswith((".jinja", ".j2")):  # TRL would take a model's, with new tokens
        raise InputError(f"chat_template_path is {path!r}; expected a .jinja or .j2 file")
    return existing(path).read_text(encoding="utf-8")
