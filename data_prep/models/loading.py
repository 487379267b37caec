"""Checkpoints by their name, a folder or a Hub id, and whether they fit what is asked of them. Errors are one clear line.

Nothing that lies in a checkpoint's folder is run: weights are read from safetensors only, since unpickling runs code, and
`trust_remote_code` is False wherever something is loaded. Left out, it is None, and the library asks on standard input.
"""

import contextlib
import importlib
import inspect
import sys
from collections.abc import Iterator
from pathlib import Path

from safetensors import SafetensorError, safe_open
from transformers import AutoConfig
from transformers.utils import logging

from data_prep.common.errors import InputError
from data_prep.common.files import UNFINISHED, existing, read_json
from data_prep.common.imports import collector_paused
from data_prep.common.machine import training_device, without_cudnn_attention

# Kinds of layers by their names in transformers' configs; `hybrid` is attention beside one of the others.
STATEFUL = {
    "linear_attention",
    "conv",
    "hybrid",
    "hybrid_sliding",
    "compressed_sparse_attention",
    "heavily_compressed_attention",
}
BAR_AFTER = 3  # seconds: a small model is there before its bar could be read
TEMPLATE_FROM = "Use a tokenizer made by data_prep.train_tokenizer or put a chat_template.jinja into its folder"


def load_checkpoint(name: str, reward_model: bool = False):
    """(model, tokenizer) of a folder or Hub id, on the accelerator if there is one.

    Raises `InputError` where there is none, and where it is of the other kind.
    """
    from transformers import AutoModelForCausalLM

    if reward_model:
        model, tokenizer = load_reward_model(name)
    else:
        load_config(name, "recipes/pretrain.py, sft.py or ppo.py")
        model, tokenizer = _load(AutoModelForCausalLM, name)
    without_cudnn_attention()
    return model.to(training_device()).eval(), tokenizer


def load_config(name: str, made_by: str):
    """The config of a language model in a folder or on the Hub, an adapter's base included; no weight is read.

    Raises `InputError` for what `load_checkpoint` could not load: no folder, an unfinished one, a reward model, weights
    that are missing or cut short.
    """
    _check_folder(name, made_by)
    if Path(name).exists():
        _check_weights(name)
    config = _config(name)
    found = " ".join(config.architectures or [])
    if "ForSequenceClassification" in found:
        raise InputError(f"{name}: expected a language model, found {found}: that is a reward model")
    return config


def load_reward_model(name: str, **load):
    """(model, tokenizer) of a reward model, a sequence classifier with one label, in a folder or on the Hub.

    `load` goes to `from_pretrained`. Raises InputError for anything else: loaded as a reward model, a language model
    gets a random score head, and the library only warns.
    """
    from transformers import AutoModelForSequenceClassification

    _check_folder(name, "recipes/reward.py")
    _check_whole(name)
    config = _config(name)
    found = " ".join(config.architectures or [])
    if "ForSequenceClassification" not in found or config.num_labels != 1:
        raise InputError(f"{name}: expected a reward model (recipes/reward.py), found {found or 'no architecture'}")
    return _load(AutoModelForSequenceClassification, name, **load)


def is_reward_model(name: str) -> bool:
    """Whether a folder or Hub id is a sequence classifier; InputError where it is no finished model. No weight is read."""
    _check_folder(name, "recipes/reward.py or recipes/sft.py")
    return "ForSequenceClassification" in " ".join(_config(name).architectures or [])


def load_tokenizer(name: str | Path, revision: str = "main"):
    """The tokenizer in a folder or on the Hub. Raises InputError where there is none that can be loaded."""
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(name, revision=revision, trust_remote_code=False)
    except Exception as error:  # of a broken file the libraries raise whatever they come upon
        raise InputError(f"{name}: no tokenizer that can be loaded ({_reason(error)})") from None


def tokenizer_folder(name: str, revision: str = "main") -> Path:
    """The folder with the tokenizer.json of `name`, itself a folder or a model of the Hub, in the cache. InputError if none."""
    from transformers.utils import cached_file

    if not (
        file := cached_file(name, "tokenizer.json", revision=revision, _raise_exceptions_for_missing_entries=False)
    ):
        raise InputError(f"{name}: no tokenizer.json; expected a fast tokenizer, saved by save_pretrained(...)")
    return Path(file).parent


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


def check_folder(name: str, made_by: str, adapter: bool = False) -> None:
    """Raise InputError for a folder that holds no finished model, whole, in safetensors; a Hub id passes.

    With `adapter`, one by itself will do. No model is loaded and none of the libraries' slow modules is imported.
    """
    _check_folder(name, made_by)
    if Path(name).exists():
        if not adapter:
            _check_whole(name)
        _check_weights(name)


def _check_whole(name: str) -> None:
    """Raise InputError for a folder that holds an adapter without its model."""
    if Path(name).exists() and not (Path(name) / "config.json").exists():
        raise InputError(f"{name}: holds an adapter alone; expected the whole model: train with merge_adapter true")


def _check_weights(name: str) -> None:
    """Raise InputError for a folder whose weights are pickled, missing or cut short; a Hub id passes."""
    folder = Path(name)
    for stem, config in (("model", "config.json"), ("adapter_model", "adapter_config.json")):
        for file in _weight_files(folder, stem) if (folder / config).exists() else ():
            try:
                with safe_open(file, "pt"):
                    pass
            except (SafetensorError, OSError) as error:
                raise InputError(f"{file}: not a whole safetensors file ({_reason(error)}); copy it again") from None


def _weight_files(folder: Path, stem: str) -> list[Path]:
    """The safetensors files in `folder` that hold a model or an adapter. Raises InputError where one is missing."""
    file, index = folder / f"{stem}.safetensors", folder / f"{stem}.safetensors.index.json"
    if file.exists():
        return [file]
    if index.exists():
        try:
            files = [folder / part for part in sorted(set(read_json(index)["weight_map"].values()))]
        except (KeyError, TypeError, AttributeError):
            raise InputError(f"{index}: expected an object with a 'weight_map' of tensors and their files") from None
        for part in files:
            if not part.exists():
                raise InputError(f"{part}: no such file, but {index.name} names it; copy the folder again, whole")
        return files
    pickled = sorted(path for ending in ("bin", "pt", "pth", "ckpt") for path in folder.glob(f"*model*.{ending}"))
    if pickled:
        raise InputError(
            f"{pickled[0]}: pickled weights, and reading those can run code; expected {file.name}: "
            "save the model anew as safetensors"
        )
    raise InputError(f"{folder}: found no weights; expected {file.name}")


@contextlib.contextmanager
def _bar_only_if_slow() -> Iterator[None]:
    """The library's bar for the weights of a model is shown where one waits for it; downloads keep theirs as they are."""
    before = logging.set_tqdm_hook(lambda bar, args, kwargs: bar(*args, **{**kwargs, "delay": BAR_AFTER}))
    try:
        yield
    finally:
        logging.set_tqdm_hook(before)


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """Without the library's progress bars and warnings: what is wrong is told in an error."""
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


def _check_fit(name: str, config, revision: str) -> None:
    """Raise InputError where weights are not of the shape that the config says, or are missing; reads no weight.

    Left alone, those that are missing are drawn at random, with a warning.
    """
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification
    from transformers.integrations import is_deepspeed_zero3_enabled

    # Quantized weights have shapes of their own, and ZeRO-3 takes no device_map.
    if getattr(config, "quantization_config", None) is not None or is_deepspeed_zero3_enabled():
        return
    reward_model = "ForSequenceClassification" in " ".join(config.architectures or [])
    kind = AutoModelForSequenceClassification if reward_model else AutoModelForCausalLM
    with _silent():
        _load_model(kind, name, revision=revision, device_map="meta")


def _config(name: str, revision: str = "main"):
    """The config of a folder, that of the model below an adapter, or of a Hub id."""
    if Path(name).exists() and not (Path(name) / "config.json").exists():
        name, revision = str(read_json(Path(name) / "adapter_config.json").get("base_model_name_or_path")), "main"
    try:
        config = AutoConfig.from_pretrained(name, revision=revision, trust_remote_code=False)
    except OSError as error:
        raise InputError(
            f"{name}: neither a finished checkpoint's folder nor a model on the Hub ({_reason(error)})"
        ) from None
    except Exception as error:  # of a broken file the library raises whatever it comes upon
        raise InputError(f"{name}: cannot be loaded: {_reason(error)}") from None
    size = _vocabulary(config)
    for key in ("eos_token_id", "pad_token_id"):
        ids = getattr(config, key, None)
        if any(token is not None and token >= size for token in (ids if isinstance(ids, list) else [ids])):
            raise InputError(f"{name}: config.json has {key} {ids}; expected less than its vocab_size, {size}")
    return config


def config_in(folder: Path):
    """The config of the model in a folder, whether or not it could be loaded; None for an adapter by itself, and for a kind
    of model that transformers does not know."""
    try:
        with _silent():
            return AutoConfig.from_pretrained(folder, trust_remote_code=False)
    except Exception:  # of a broken file the library raises whatever it comes upon
        return None


def context_of(config) -> int | None:
    """The positions of a model's context, those of its text where it has several parts; None if it has no limit, as BLOOM.

    MPT has no table of positions either, but transformers makes its attention's biases for max_seq_len tokens, no more.
    """
    text = config.get_text_config()
    return getattr(text, "max_position_embeddings", None) or getattr(text, "max_seq_len", None)


def carries_state(config) -> bool:
    """Whether layers of a language model carry a state from token to token (convolution, linear attention, SSM).

    It passes from a document to the next of a row, wherever positions start again. No weight is read.
    """
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING  # slow to import

    if types := getattr(config.get_text_config(), "layer_types", None):
        return not STATEFUL.isdisjoint(types)
    return type(config) in MODEL_FOR_CAUSAL_LM_MAPPING and MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]._is_stateful


def takes_positions(model) -> bool:
    """Whether a model, or a class of models, is told where documents of a row begin."""
    return "position_ids" in inspect.signature(model.forward).parameters


def _vocabulary(config) -> int:
    """Entries of the embedding; a model of several parts has a config for its text."""
    return config.get_text_config().vocab_size


def _reason(error: Exception) -> str:
    """What the library says, in one line."""
    text = " ".join(str(error).split())
    if "trust_remote_code" in text:
        return "it brings Python code of its own, which is never run here; expected a kind that transformers has"
    return text[:200] or type(error).__name__


def _load_model(kind, name: str, **load):
    """A model by `kind.from_pretrained`, every weight of it from the checkpoint; InputError otherwise."""
    load = {"use_safetensors": True, "trust_remote_code": False, **load}
    if "transformers.modeling_utils" not in sys.modules:
        with collector_paused():
            importlib.import_module("transformers.modeling_utils")
    try:
        with _bar_only_if_slow():
            model, info = kind.from_pretrained(name, output_loading_info=True, ignore_mismatched_sizes=True, **load)
    except OSError as error:
        raise InputError(
            f"{name}: neither a finished checkpoint's folder nor a model on the Hub ({_reason(error)})"
        ) from None
    except (ValueError, ImportError, KeyError, AttributeError, SafetensorError) as error:
        raise InputError(f"{name}: cannot be loaded: {_reason(error)}") from None
    for key, found, expected in sorted(info["mismatched_keys"])[:1]:
        raise InputError(
            f"{name}: weights and config.json do not fit: {key} is {tuple(found)}, by the config it is {tuple(expected)}"
        )
    if missing := sorted(info["missing_keys"]):
        raise InputError(
            f"{name}: found no weights for {len(missing):,} tensors of the model, {missing[0]} among them"
        )
    return model


def _load(kind, name: str, **load):
    """(model, tokenizer) of a checkpoint that fits together; InputError otherwise."""
    _check_weights(name)
    config, tokenizer = _config(name), load_tokenizer(name)
    _check_vocabulary(tokenizer, config, name)
    if not (Path(name) / "adapter_config.json").exists():  # its weights are those of its base, and its own
        _check_fit(name, config, "main")
    return _load_model(kind, name, **load), tokenizer


def check_template(tokenizer, name: str, otherwise: str = TEMPLATE_FROM) -> None:
    """Raise InputError for a tokenizer without a chat template, or with one that cannot write a question.

    `otherwise` says where a template can come from, if not from the tokenizer.
    """
    if tokenizer.chat_template is None:
        raise InputError(
            f"{name}: found no chat template; expected one, to write conversations as tokens. {otherwise}"
        )
    try:
        tokenizer.apply_chat_template([{"role": "user", "content": "?"}], tokenize=False)
    except Exception as error:  # a template can do anything that fails
        raise InputError(f"{name}: its chat template cannot be used: {_reason(error)}") from None


def _check_vocabulary(tokenizer, config, name: str) -> None:
    """Raise InputError where the tokenizer has tokens that the model lacks, or an eos or pad token that it lacks itself."""
    size = _vocabulary(config)
    for key in ("eos_token", "pad_token"):
        token, number = getattr(tokenizer, key), getattr(tokenizer, f"{key}_id")
        if token is not None and (number is None or tokenizer.convert_ids_to_tokens(number) != token):
            raise InputError(
                f"{key}: {token!r} is not in the vocabulary of {name}; expected one of its tokens, such as "
                f"{', '.join(map(repr, tokenizer.all_special_tokens))}"
            )
        if number is not None and number >= size:
            raise InputError(f"{name}: its {key} {token!r} is token {number:,}, but the model has {size:,} tokens")
    if len(tokenizer) > size:
        raise InputError(
            f"{name}: the tokenizer does not fit the checkpoint: it has {len(tokenizer):,} entries, the model "
            f"{size:,}. Give the tokenizer that the model was pretrained with"
        )


def check_chat(name: str, model, tokenizer, max_new_tokens: int) -> None:
    """Raise `InputError` where a model cannot be asked: no chat template, or no position left for a prompt."""
    check_template(tokenizer, name)
    check_answer(name, model.config, max_new_tokens)


def check_answer(name: str, config, max_new_tokens: int) -> None:
    """Raise `InputError` where an answer would have no token, or leave no position for a prompt."""
    positions = context_of(config)
    if max_new_tokens < 1 or (positions and max_new_tokens >= positions):
        expected = f"1 to {positions - 1}; {name} has {positions} positions" if positions else "1 or more"
        raise InputError(f"--max_new_tokens {max_new_tokens}: expected {expected}")


def check_context(tokenizer, config, max_length: int | None, otherwise: str = TEMPLATE_FROM) -> None:
    """Raise `InputError` where conversations of `max_length` tokens do not fit the tokenizer and checkpoint at hand.

    Left alone, these end in an IndexError inside the embedding, or in a template error after the data is loaded.
    `otherwise` is that of `check_template`.
    """
    check_template(tokenizer, getattr(tokenizer, "name_or_path", "") or "the tokenizer", otherwise)
    check_length(tokenizer, config, max_length)


def check_length(tokenizer, config, max_length: int | None) -> None:
    """Raise `InputError` where text of `max_length` tokens does not fit the checkpoint, or the tokenizer does not."""
    _check_vocabulary(tokenizer, config, getattr(tokenizer, "name_or_path", "") or "the tokenizer")
    positions = context_of(config)
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
    check_folder(name, made_by)
    if Path(name).exists():
        if revision != "main":
            raise InputError(f"model_revision is {revision!r}, but {name} is a folder: only the Hub has revisions")
        config = _config(name)
    else:
        try:
            config = _config(name, revision)
        except InputError as error:
            raise InputError(f"{error}; it is made by: {made_by}") from None
    found = " ".join(config.architectures or [])
    if "ForSequenceClassification" in found and made_by != "recipes/reward.py":
        raise InputError(f"{name}: expected a language model, found {found}: that is a reward model")
    _check_fit(name, config, revision)
    return name
