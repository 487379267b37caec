"""Published trainings, and what arithmetic says of them: `python -m recipes.plan --like NAME`."""

from typing import NamedTuple

from recipes.planning.hardware import GPUS


class Published(NamedTuple):
    """What was published of a training.

    `config` is as in a config.json, `parameters` as its name has it; `price` in USD, None if it was not told.
    """

    title: str
    config: dict
    parameters: float
    tokens: float
    batch: float  # tokens of a step
    gpu: str
    gpus: int
    days: float
    price: float | None
    source: str
    remarks: tuple[str, ...]


def gpt2(layers: int, width: int, heads: int, context: int) -> dict:
    sizes = {"n_layer": layers, "n_embd": width, "n_head": heads, "n_positions": context, "vocab_size": 50_257}
    return {"model_type": "gpt2", **sizes}


LIKE = {
    "gpt3-175b": Published(
        "GPT-3 175B",
        gpt2(96, 12_288, 96, 2048),
        175e9,
        300e9,
        3.2e6,
        "v100",
        10_000,
        30,
        10e6,
        "Brown 2020, arXiv:2005.14165, table 2.1; machines, days and price as they are usually retold, not by its authors",
        (
            # Patterson 2021, arXiv:2104.10350, table 4: 24.6 TFLOP/s on each of 10,000 V100.
            "30 days do not fit: at the 24.6 TFLOP/s a V100 that Patterson 2021 (arXiv:2104.10350, table 4) gives for this "
            "training it takes {patterson:.1f} days",
        ),
    ),
    "llama2-65b": Published(
        "LLaMA 65B",
        {
            "model_type": "llama",
            "num_hidden_layers": 80,
            "hidden_size": 8192,
            "num_attention_heads": 64,
            "intermediate_size": 22_016,
            "vocab_size": 32_000,
            "max_position_embeddings": 2048,
            "tie_word_embeddings": False,
        },
        65e9,
        1.4e12,
        4e6,
        "a100",
        2048,
        21,
        5e6,
        "Touvron 2023, arXiv:2302.13971, table 2 and section 2.4 (380 tokens/s a GPU); the price is not by its authors",
        (
            "65B with 1.4 T tokens is LLaMA, the first: Llama 2 has no 65B, but a 70B on 2 T (arXiv:2307.09288)",
            "at the paper's 380 tokens/s a GPU it takes {at_380:.1f} days: the 21 fit",
        ),
    ),
    "gpt2-124m": Published(
        "GPT-2 124M",
        gpt2(12, 768, 12, 1024),
        124e6,
        600_000 * 491_520,
        491_520,
        "a100-40gb",
        8,
        4,
        None,
        "Radford 2019 for the model; its training was not published: that of nanoGPT's reproduction (README: 8 A100 of "
        "40 GB, about 4 days; config/train_gpt2.py: 600,000 steps of 491,520 tokens)",
        (
            "Radford 2019, table 2, says 117M; the table's own 12 layers, 768 wide, make {parameters:,}",
            "no price was published: none is worked out",
        ),
    ),
}


def like(name: str) -> list[str]:
    """What was published of a training as lines, with the utilisation and the price a GPU hour that it implies."""
    from transformers import AutoConfig  # slow to import

    from recipes.planning.architecture import count

    each, gpu = LIKE[name], GPUS[LIKE[name].gpu]
    config = AutoConfig.for_model(**each.config)
    model, context = count(config), config.max_position_embeddings
    short = 6 * each.parameters * each.tokens
    flops = model.flops(context) * each.tokens
    hours = each.gpus * each.days * 24
    capacity = hours * 3600 * gpu.flops
    off = model.parameters / each.parameters - 1
    lines = [
        f"{each.title} ({each.source})",
        f"  model        {model.layers} layers, {model.hidden:,} wide, {model.heads} heads, vocabulary "
        f"{model.vocabulary:,}, context {context:,}: {model.parameters:,} parameters, {off:+.1%} from {each.parameters:,.0f}",
        f"  tokens       {each.tokens:.3g} in {each.tokens / each.batch:,.0f} steps of {each.batch:,.0f}: "
        f"{each.tokens / model.parameters:.1f} a parameter (Chinchilla-optimal: {20 * model.parameters:.3g})",
        f"  FLOPs        6 × {each.parameters:.3g} × {each.tokens:.3g} = {short:.3g}; with N as built and attention, "
        f"6N + 12·L·d·T, {flops:.3g}",
        f"  machines     {each.gpus:,} × {each.gpu} × {each.days} days × {gpu.flops / 1e12:,.0f} TFLOP/s = {capacity:.3g}",
        f"  utilisation  {short / capacity:.1%} implied ({flops / capacity:.1%} with attention)",
    ]
    if each.price:
        lines.append(
            f"  price        {each.price:,.0f} USD / {hours:,.0f} GPU hours = {each.price / hours:.2f} USD each"
        )
    found = {
        "patterson": short / (each.gpus * 24.6e12 * 86_400),
        "at_380": each.tokens / (each.gpus * 380 * 86_400),
        "parameters": model.parameters,
    }
    return lines + [f"  ! {remark.format(**found)}" for remark in each.remarks]
