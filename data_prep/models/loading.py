"""Checkpoints by their name, a folder or a Hub id, and whether they fit what is asked of them. Errors are one clear line."""

from pathlib import Path

import torch
from transformers import AutoConfig

from data_prep.common.errors import InputError
from data_prep.common.files import UNFINISHED, existing


def load_checkpoint(name: str, reward_model: bool = False):
    """(model, tokenizer) of a folder or Hub id, on the accelerator if there is one.

    Raises `InputError` where there is none, and where it is of the other kind.
    """
    from transformers import AutoModelForCausalLM

    if reward_model:
        model, tokenizer = load_reward_model(name)
    else:
        _check_folder(name, "recipes/pretrain.py, sft.py or ppo.py")
        model, tokenizer = _load(AutoModelForCausalLM, name)
        found = " ".join(model.config.architectures or [])
        if "ForSequenceClassification" in found:
            raise InputError(f"{name}: expected a language model, found {found}: that is a reward model")
    device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else "cpu"
    return model.to(device).eval(), tokenizer


def load_reward_model(name: str, **load):
    """(model, tokenizer) of a reward model, a sequence classifier with one label, in a folder or on the Hub.

    `load` goes to `from_pretrained`. Raises InputError for anything else: loaded as a reward model, a language model
    gets a random score head, and the library only warns.
    """
    from transformers import AutoModelForSequenceClassification

    _check_folder(name, "recipes/reward.py")
    _check_whole(name)
    model, tokenizer = _load(AutoModelForSequenceClassification, name, **load)
    found = " ".join(model.config.architectures or [])
    if "ForSequenceClassification" not in found or model.config.num_labels != 1:
        raise InputError(f"{name}: expected a reward model (recipes/reward.py), found {found or 'no architecture'}")
    return model, tokenizer


def _check_folder(name: str, made_by: str) -> None:
    """Raise InputError for a folder that is not there, or holds no finished checkpoint; a Hub id passes."""
    if Path(name).is_absolute() or name.startswith((".", "runs")) or name.count("/") > 1:  # no Hub id looks like that
        existing(name, made_by)
    if (Path(name) / UNFINISHED).exists():
        raise InputError(f"{name}: its training has not finished; the command that began it, run again, goes on")
    if Path(name).exists() and not any(
        (Path(name) / file).exists() for file in ("config.json", "adapter_config.json")
    ):
        raise InputError(f"{name}: no config.json in it; expected the folder of a finished checkpoint")


def _check_whole(name: str) -> None:
    """Raise InputError for a folder that holds an adapter without its model."""
    if Path(name).exists() and not (Path(name) / "config.json").exists():
        raise InputError(f"{name}: holds an adapter alone; expected the whole model: train with merge_adapter true")


def _load(kind, name: str, **load):
    """(model, tokenizer) by `kind.from_pretrained`, the errors of the library as one line."""
    from transformers import AutoTokenizer

    try:
        return kind.from_pretrained(name, **{"use_safetensors": True, **load}), AutoTokenizer.from_pretrained(name)
    except OSError as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"{name}: neither a finished checkpoint's folder nor a model on the Hub ({reason})") from None
    except ValueError as error:  # no tokenizer in the folder, or a model type that transformers does not know
        raise InputError(f"{name}: cannot be loaded: {' '.join(str(error).split())[:200]}") from None


def _check_template(tokenizer, name: str) -> None:
    if tokenizer.chat_template is None:
        raise InputError(
            f"{name}: found no chat template; expected one, to write conversations as tokens. "
            "Use a tokenizer made by data_prep.train_tokenizer or put a chat_template.jinja into its folder"
        )


def check_chat(name: str, model, tokenizer, max_new_tokens: int) -> None:
    """Raise `InputError` where a model cannot be asked: no chat template, or no position left for a prompt."""
    _check_template(tokenizer, name)
    positions = model.config.max_position_embeddings
    if not 0 < max_new_tokens < positions:
        raise InputError(
            f"--max_new_tokens {max_new_tokens}: expected 1 to {positions - 1}; {name} has {positions} positions"
        )


def check_context(tokenizer, config, max_length: int | None) -> None:
    """Raise `InputError` where conversations of `max_length` tokens do not fit the tokenizer and checkpoint at hand.

    Left alone, these end in an IndexError inside the embedding, or in a template error after the data is loaded.
    """
    name = getattr(tokenizer, "name_or_path", "") or "the tokenizer"
    _check_template(tokenizer, name)
    if len(tokenizer) > config.vocab_size:
        raise InputError(
            f"{name}: the tokenizer does not fit the checkpoint: it has {len(tokenizer):,} entries, the model "
            f"{config.vocab_size:,}. Give the tokenizer that the model was pretrained with"
        )
    positions = getattr(config, "max_position_embeddings", None)  # GPT2Config maps it to n_positions
    if positions is not None and max_length is not None and max_length > positions:
        raise InputError(
            f"max_length is {max_length:,}, but the model has {positions:,} positions: "
            f"set max_length to {positions:,} or less, or pretrain with a longer context"
        )


def checkpoint_or_hub_id(
    name: str | None, made_by: str, revision: str = "main", argument: str = "model_name_or_path"
) -> str:
    """`name` of a folder or of a model on the Hub (or in its cache).

    Raises InputError where there is neither, for no name, and for a revision of a folder, which would be ignored.
    """
    if not name:
        raise InputError(f"{argument}: expected a folder or a model of the Hub; it is made by: {made_by}")
    _check_folder(name, made_by)
    if Path(name).exists():
        if revision != "main":
            raise InputError(f"model_revision is {revision!r}, but {name} is a folder: only the Hub has revisions")
        _check_whole(name)
    try:
        AutoConfig.from_pretrained(name, revision=revision)
    except (OSError, ValueError) as error:
        reason = str(error).splitlines()[0]
        if Path(name).exists():
            raise InputError(f"{name}: cannot be loaded: {reason}") from None
        raise InputError(
            f"{name}: no such file or folder, and no such model on the Hub ({reason}); it is made by: {made_by}"
        ) from None
    return name
