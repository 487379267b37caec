"""The models of a run, built without memory (torch's meta device) from their configs alone, and counted."""

import math
import warnings
from pathlib import Path
from typing import NamedTuple

import torch
import trl
from transformers import AutoConfig, GPT2Config
from transformers.pytorch_utils import Conv1D

from data_prep.common.errors import InputError
from data_prep.models.loading import check_folder, context_of, load_config, load_tokenizer
from recipes.planning.settings import vocabulary_in_commands
from recipes.trainers.adapter import lora_config, meta_model
from recipes.trainers.arguments import LORA
from recipes.trainers.folders import read_template

ASSUMED_VOCABULARY = 32_768

# Models of the Hub that recipes/configs starts from, as their config.json there has them: a plan needs no network.
PUBLISHED = {
    "Qwen/Qwen2.5-7B": {
        "model_type": "qwen2",
        "max_position_embeddings": 131_072,
        "hidden_size": 3584,
        "intermediate_size": 18_944,
        "num_hidden_layers": 28,
        "num_attention_heads": 28,
        "num_key_value_heads": 4,
        "vocab_size": 152_064,
        "tie_word_embeddings": False,
    },
    "Qwen/Qwen3-0.6B-Base": {
        "model_type": "qwen3",
        "max_position_embeddings": 32_768,
        "hidden_size": 1024,
        "intermediate_size": 3072,
        "num_hidden_layers": 28,
        "num_attention_heads": 16,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "vocab_size": 151_936,
        "tie_word_embeddings": True,
    },
    "Qwen/Qwen3-8B-Base": {
        "model_type": "qwen3",
        "max_position_embeddings": 32_768,
        "hidden_size": 4096,
        "intermediate_size": 12_288,
        "num_hidden_layers": 36,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "vocab_size": 151_936,
        "tie_word_embeddings": False,
    },
}


class Counts(NamedTuple):
    """A model in numbers. All but the last nine are parameters."""

    parameters: int  # of the model, an adapter aside; weights that are used twice count once
    multiplied: (
        int  # N: without tables that are only looked up in (positions; an input table that is not the head too)
    )
    linear: int  # in the linear layers of the blocks
    matrices: int  # what Muon trains if everything is trained
    trainable: int
    adapter: int  # LoRA's, and copies of what is trained in full beside it
    layers: int
    hidden: int  # width of the residual stream
    attention: int  # d: heads × their width
    keys: int  # the same of keys, or of values
    inner: int  # width of the MLP
    gated: bool
    heads: int
    positions: float  # infinite without a limit
    vocabulary: int

    def flops(self, length: int) -> float:
        """FLOP per token of a forward and backward pass that trains everything: 6N + 12·L·d·T.

        PaLM (arXiv:2204.02311), appendix B: 2 FLOP a parameter forward, 4 backward, and the products of queries with keys
        and of weights with values, over all T positions as if none were masked.
        """
        return 6 * self.multiplied + 12 * self.layers * self.attention * length

    def forward(self, length: int) -> float:
        """FLOP per token of a forward pass: 2N + 4·L·d·T."""
        return 2 * self.multiplied + 4 * self.layers * self.attention * length

    def training(self, length: int) -> float:
        """As `flops`; with LoRA no gradient of a frozen weight is computed: 4N + 6 × adapter + 12·L·d·T."""
        if not self.adapter:
            return self.flops(length)
        return 4 * self.multiplied + 6 * self.adapter + 12 * self.layers * self.attention * length


_COUNTED: dict[tuple, Counts] = {}


def count(config, head: str = "language", model_args: trl.ModelConfig | None = None, trained: bool = True) -> Counts:
    """The numbers of a model; `model_args` says whether LoRA trains it. The same model serves many stages: kept."""
    lora = trained and model_args is not None and model_args.use_peft
    adapter = [getattr(model_args, name) for name in ("use_rslora", "use_dora", *LORA)] if lora else None
    key = (config.to_json_string(use_diff=False), head, trained, repr(adapter))
    if key not in _COUNTED:
        _COUNTED[key] = _count(config, head, model_args if lora else None, trained)
    return _COUNTED[key]


def _count(config, head: str, model_args: trl.ModelConfig | None, trained: bool) -> Counts:
    model, text = meta_model(config, head), config.get_text_config()
    tables = {id(each.weight): each.weight for each in model.modules() if isinstance(each, torch.nn.Embedding)}
    output = model.get_output_embeddings() if head == "language" else None
    looked_up = sum(table.numel() for key, table in tables.items() if output is None or key != id(output.weight))
    heads = ("lm_head", "embed_out", "score")
    linear = sum(
        each.weight.numel()
        for name, each in model.named_modules()
        if isinstance(each, torch.nn.Linear | Conv1D) and name.rpartition(".")[2] not in heads
    )
    weights = dict(model.named_parameters())
    matrices = sum(
        weight.numel()
        for name, weight in weights.items()
        if weight.ndim == 2 and id(weight) not in tables and not any(each in name for each in heads)
    )
    parameters = sum(weight.numel() for weight in weights.values())
    gated = any(name.endswith(("gate_proj", "gate_up_proj")) for name, _ in model.named_modules())
    adapter = 0
    if model_args:
        from peft import get_peft_model  # slow to import

        peft_config = lora_config(model_args, config, head)
        with torch.device("meta"), warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # that GPT-2's matrices are the other way round
            model = get_peft_model(model, peft_config)
        adapter = sum(weight.numel() for weight in model.parameters() if weight.requires_grad)
    attention = text.num_attention_heads * (
        getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    )
    key_heads = getattr(text, "num_key_value_heads", None) or text.num_attention_heads
    return Counts(
        parameters,
        parameters - looked_up,
        linear,
        matrices,
        (adapter if model_args else parameters) if trained else 0,
        adapter,
        text.num_hidden_layers,
        text.hidden_size,
        attention,
        attention // text.num_attention_heads * key_heads,
        getattr(text, "intermediate_size", None) or getattr(text, "n_inner", None) or 4 * text.hidden_size,
        gated,
        text.num_attention_heads,
        context_of(config) or math.inf,
        text.vocab_size,
    )


class Sources(NamedTuple):
    """Where models come from: `made` is {output folder: its YAML}, `read` the settings of a YAML (stage, values)."""

    made: dict[str, Path]
    read: object


def gpt2(path: Path, values: dict) -> tuple[object, str]:
    """(config, where its vocabulary comes from) of what recipes/pretrain.py builds."""
    tokenizer = values["tokenizer"]
    if Path(tokenizer).exists():
        size, origin = len(load_tokenizer(tokenizer)), f"vocabulary of {tokenizer}"
    elif size := vocabulary_in_commands(tokenizer, path.parent):
        origin = f"vocabulary as in the command that makes {tokenizer}"
    else:
        size, origin = (
            ASSUMED_VOCABULARY,
            f"{tokenizer} is not there: a vocabulary of {ASSUMED_VOCABULARY:,} is ASSUMED",
        )
    shape = {name: values[name] for name in ("n_layer", "n_head", "n_embd", "n_positions", "activation_function")}
    ends = dict.fromkeys(("bos_token_id", "eos_token_id"))  # the tokenizer's; no shape depends on them
    return GPT2Config(vocab_size=size, **shape, **ends), origin


def config_of(name: str, sources: Sources, seen: tuple[str, ...] = (), kind: str = "language") -> tuple[object, str]:
    """(config, where it comes from) of a model: its folder, the YAML that will make it, the table above, or the Hub.

    Args:
        kind: what a folder must hold, as the recipe asks: language, reward, or either of them.

    Raises InputError for a model that none of them knows, and for a folder of another kind or of an adapter alone.
    """
    if name in seen:
        raise InputError(f"{name}: found YAMLs that each start from what the other makes: {' → '.join((*seen, name))}")
    if Path(name).exists():
        check_folder(name, "recipes/reward.py" if kind == "reward" else "recipes/pretrain.py")
        if kind == "language" or (kind == "either" and not _is_reward(name)):
            return load_config(name, ""), f"of {name}"
        config = AutoConfig.from_pretrained(name, trust_remote_code=False)
        if not _is_reward(name) or (kind == "reward" and config.num_labels != 1):
            found = " ".join(config.architectures or []) or "no architecture"
            raise InputError(f"{name}: expected a reward model (recipes/reward.py), found {found}")
        return config, f"of {name}"
    if name in sources.made:
        path = sources.made[name]
        stage, values = sources.read(path)
        if stage == "pretrain":
            config, origin = gpt2(path, values)
            return config, f"made by {path}, {origin}"
        if origin := values.get("sft_model_path") or values.get("model_name_or_path"):
            return config_of(origin, sources, (*seen, name))  # which is a language model, even of a reward model
    if name in PUBLISHED:
        return AutoConfig.for_model(**PUBLISHED[name]), f"of {name} as published: config.json at the Hub"
    return load_config(name, "recipes/pretrain.py"), f"of {name}"


def _is_reward(name: str) -> bool:
    path = Path(name) / "config.json"
    return path.exists() and "ForSequenceClassification" in path.read_text(encoding="utf-8")


def tokenizer_of(name: str, sources: Sources, template: str | None = None):
    """The tokenizer of a model, of the one that it starts from, or of its pretraining; None where none is there.

    Args:
        template: `chat_template_path` of the stage, if it has one; else that of the last stage before it that has one is
            the model's by then.
    """
    for _ in range(8):  # stages from here back to pretraining
        if Path(name).exists():
            tokenizer = load_tokenizer(name)
            if template:
                tokenizer.chat_template = read_template(template)
            return tokenizer
        if name not in sources.made:
            return None
        _, values = sources.read(sources.made[name])
        template = template or values.get("chat_template_path")
        name = values.get("sft_model_path") or values.get("model_name_or_path") or values.get("tokenizer") or ""
    return None
