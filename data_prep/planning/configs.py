"""The YAML files that data_prep.start writes: each value with the arithmetic it comes from, as a comment."""

import json
import math
import re
import textwrap
from pathlib import Path
from typing import NamedTuple

import numpy as np
import yaml

from data_prep.planning import sizes
from data_prep.planning.measure import Text, Turns

WIDTH = 118  # characters of a line


class Stage(NamedTuple):
    """A training as it is planned."""

    name: str
    lines: list[tuple]  # (key, value) or (key, value, why)
    rows: int
    tokens: int  # that are trained on
    steps: int
    flops: float


class Model(NamedTuple):
    """What is trained: a shape from random weights, or a model that is there."""

    name: str | None  # folder or Hub id; None: from random weights
    layers: int
    width: int
    parameters: int
    flops_per_token: float  # forward and backward
    vocabulary: int
    context: int  # max_length of the run
    context_why: str = ""
    lora: bool = False
    packs: bool = True  # whether conversations of a row are kept apart


class Machine(NamedTuple):
    flops: float  # a second, in training
    memory: float  # bytes
    gpu: bool


def yaml_value(value) -> str:
    """`value` on one line of YAML. Numbers are written without an exponent, which YAML 1.1 takes for text."""
    if isinstance(value, float):
        return f"{value:.10f}".rstrip("0") + ("0" if value == int(value) else "")
    if isinstance(value, list):
        return f"[{', '.join(map(yaml_value, value))}]"
    if isinstance(value, dict):
        return f"{{{', '.join(f'{key}: {yaml_value(each)}' for key, each in value.items())}}}"
    if isinstance(value, str) and re.fullmatch(r"[\w./@-]+", value) and yaml.safe_load(value) == value:
        return value
    return json.dumps(value, ensure_ascii=False)


def as_yaml(head: list[str], lines: list[tuple]) -> str:
    """A file: its head as comments, then a line for each key; a comment that does not fit beside its key stands above."""
    written = [f"# {head[0]}", *comment(head[1:])]
    for key, value, *why in lines:
        line = f"{key}: {yaml_value(value)}"
        if why and len(line) + len(why[0]) + 4 > WIDTH:
            written += comment(why)
        elif why:
            line += f"  # {why[0]}"
        written.append(line)
    return "\n".join(written) + "\n"


def comment(sentences: list[str]) -> list[str]:
    return [
        f"# {line}"
        for sentence in sentences
        for line in textwrap.wrap(sentence, WIDTH - 2, break_long_words=False, break_on_hyphens=False)
    ]


def longer(lengths: np.ndarray, limit: int) -> str:
    """The share of rows beyond a limit: "2.1 %"."""
    return f"{100 * np.mean(lengths > limit):.1f} %"


def mix(run: Path, sources: dict[str, list[str]], text: Text) -> list[tuple]:
    return [
        ("tokenizer", str(run / "tokenizer")),
        ("sources", {name: {"files": files} for name, files in sources.items()}),
        ("passes", 1, f"{text.tokens:,} tokens of {text.bytes:,} bytes; pretraining goes over them several times"),
        ("output_dir", str(run / "data" / "tokens")),
    ]


def context_line(key: str, model: Model, parts: dict[str, np.ndarray]) -> tuple:
    """The line of `max_length` or `n_positions`, with what is longer."""
    said = ", ".join(f"{longer(lengths, model.context)} of the {name}" for name, lengths in parts.items())
    return key, model.context, f"{model.context_why}; longer: {said}"


def attention_lines(model: Model, machine: Machine) -> list[tuple]:
    """The line of `attn_implementation` for training on a processor; its scores are kept, so not for a long context."""
    if machine.gpu or model.context > 1_024:
        return []
    return [
        ("attn_implementation", "eager", "on a processor plain matrix products are faster than torch's fused kernel")
    ]


def model_lines(model: Model) -> list[tuple]:
    """Lines that a model from the Hub needs beyond one that was pretrained here."""
    if not model.lora:
        return []
    return [
        ("dtype", "bfloat16", "the frozen weights; the adapters stay in fp32"),
        (
            "use_peft",
            True,
            f"{model.parameters / 1e9:.2f} B parameters × 40 bytes, what PPO in full takes, is too much here",
        ),
        ("lora_r", 16),
        ("lora_alpha", 32),
        ("lora_dropout", 0.0),
        ("lora_target_modules", ["all-linear"]),
    ]


def packing(model: Model) -> list[tuple]:
    if not model.packs:
        return [("packing", False, "this kind of model would not keep the conversations of a row apart")]
    return [("packing", True), ("packing_strategy", "bfd")]


def checkpointing(model: Model) -> list[tuple]:
    if not model.lora:
        return [("activation_checkpointing", False, "nothing is computed twice: there is memory enough")]
    return [
        ("activation_checkpointing", True, "less memory, for a third more time"),
        ("activation_checkpointing_kwargs", {"use_reentrant": False}),
    ]


def rates(model: Model, muon: float, adamw: float, full: float, lora: float) -> list[tuple]:
    """The learning rates: Muon and AdamW for a model from random weights, AdamW alone for one that is there."""
    if model.name is None:
        return [
            (
                "muon_lr",
                sizes.two_digits(muon * sizes.muon_rate(model.width)),
                f"{muon:.2g} × 0.015 × 192 / {model.width}",
            ),
            (
                "learning_rate",
                sizes.two_digits(adamw * sizes.adamw_rate(model.width)),
                f"{adamw:.2g} × 0.004 × √(192 / {model.width})",
            ),
        ]
    if model.lora:
        return [("learning_rate", lora, "ten times that of full training (Schulman 2025, LoRA Without Regret)")]
    return [("learning_rate", *full_rate(model, full))]


def full_rate(model: Model, rate: float) -> tuple[float, str]:
    """The learning rate of a model that is trained in full, and why: `rate` at a width of 1,024, falling as 1/width."""
    return sizes.two_digits(rate * 1024 / model.width), f"{rate:f} × 1,024 / {model.width:,} of the width"


def pretrain(
    run: Path,
    text: Text,
    lengths: dict[str, np.ndarray],
    heldout: list[str],
    shape: sizes.Shape,
    model: Model,
    machine: Machine,
    seconds: float,
) -> Stage:
    allowed = sizes.tokens_seen(shape, model.vocabulary, model.context, text.tokens, seconds * machine.flops)
    step = sizes.step_tokens(allowed, 256, model.context, 524_288)
    steps = max(5, round(allowed / step))
    rows = step // model.context
    batch = sizes.micro_batch(rows, model.context, model.vocabulary, model.width, model.layers, machine.memory)
    warmup, decay, between = sizes.part(steps, 0.02), sizes.part(steps, 0.4), sizes.part(steps, 0.2)
    blocks = f"{shape.n_layer} × 12 × {shape.n_embd}²"
    tables = f"({model.vocabulary:,} + {model.context:,}) × {shape.n_embd}"
    seen = steps * step
    lines = [
        ("tokenizer", str(run / "tokenizer")),
        ("tokens", str(run / "data" / "tokens")),
        ("heldout", heldout),
        ("results_dir", str(run / "results")),
        ("sample_prompts", text.beginnings),
        (
            "n_layer",
            shape.n_layer,
            f"{blocks} + {tables} = {model.parameters / 1e6:.2f} M parameters: of the shapes in data_prep/planning/sizes.py that "
            f"see {sizes.LEAST_RATIO} tokens a parameter the one with the least loss by Hoffmann 2022, equation 10; this one sees {seen / model.parameters:.2f}",
        ),
        ("n_head", shape.n_head, f"{shape.n_embd} / 64"),
        ("n_embd", shape.n_embd),
        context_line("n_positions", model, lengths),
        *attention_lines(model, machine),
        ("weight_decay", 0.01),
        *rates(model, 1.0, 1.0, 0, 0),
        ("per_device_train_batch_size", batch),
        ("gradient_accumulation_steps", rows // batch, f"× {batch} × {model.context:,} = {step:,} tokens a step"),
        (
            "max_steps",
            steps,
            f"× {step:,} = {seen:,} tokens, / {text.tokens:,} = {seen / text.tokens:.2g} passes; {sizes.PASSES} at most, and "
            f"{seconds:.0f} s, its share of --minutes",
        ),
        ("lr_scheduler_type", "warmup_stable_decay"),
        ("warmup_steps", warmup, "2 % of the steps"),
        (
            "lr_scheduler_kwargs",
            {"num_decay_steps": decay, "decay_type": "linear", "min_lr_ratio": 0.05},
            "40 % of the steps",
        ),
        ("max_grad_norm", 1.0),
        ("eval_steps", between, "a fifth of the steps"),
        ("logging_steps", sizes.part(steps, 0.02)),
        ("save_steps", between),
        ("save_total_limit", 1),
        ("report_to", "none"),
        ("output_dir", str(run / "base")),
    ]
    return Stage("pretrain", lines, text.documents, seen, steps, seen * model.flops_per_token)


def passes_in(tokens: int, most: int, model: Model, machine: Machine, seconds: float) -> int:
    """Passes over so many tokens that fit into the time: at least one, at most `most`."""
    return max(1, min(most, int(seconds * machine.flops / (tokens * model.flops_per_token))))


def sft(
    run: Path,
    origin: str,
    turns: Turns,
    files: tuple[str, str],
    extra: list[tuple],
    answer: int,
    model: Model,
    machine: Machine,
    seconds: float,
) -> Stage:
    passes = passes_in(turns.tokens, 3, model, machine, seconds)
    step = sizes.step_tokens(turns.tokens * passes, 128, model.context, 65_536)
    rows = step // model.context
    packed = math.ceil(turns.rows * sizes.packed_rows(turns.lengths, model.context) / len(turns.lengths))
    seen, an_epoch = f"{packed:,} rows that they fill / {rows}", math.ceil(packed / rows)
    if not model.packs:  # a row is a conversation
        rows = sizes.power_of_two(step * turns.rows / turns.tokens, turns.rows)
        seen, an_epoch = f"{turns.rows:,} / {rows}", math.ceil(turns.rows / rows)
    batch = sizes.micro_batch(rows, model.context, model.vocabulary, model.width, model.layers, machine.memory)
    a_step = f"× {batch} × {model.context:,} = {step:,} tokens a step"
    if not model.packs:
        a_step = f"× {batch} = {rows} conversations a step, about {step:,} tokens"
    steps = an_epoch * passes
    lines = [
        ("model_name_or_path", origin),
        ("conversations", [files[0]], f"{turns.rows:,} conversations, {turns.tokens:,} tokens"),
        ("heldout", [files[1]]),
        ("on_bad", "repair"),
        ("results_dir", str(run / "results")),
        *extra,
        context_line("max_length", model, {"conversations": turns.lengths}),
        *attention_lines(model, machine),
        *packing(model),
        ("assistant_only_loss", True),
        *model_lines(model),
        *checkpointing(model),
        ("per_device_train_batch_size", batch),
        ("gradient_accumulation_steps", rows // batch, a_step),
        (
            "num_train_epochs",
            passes,
            f"× {seen} = about {steps} steps; 3 at most, and {seconds:.0f} s, its share of --minutes",
        ),
        *rates(model, 0.67, 0.5, 0.00002, 0.0002),
        ("lr_scheduler_type", "linear"),
        ("warmup_steps", 0.05, "of the steps"),
        ("eval_strategy", "steps"),
        ("eval_on_start", True),
        ("eval_steps", 0.34, "of the steps"),
        ("per_device_eval_batch_size", batch),
        ("logging_steps", 0.05, "of the steps"),
        (
            "max_new_tokens",
            answer,
            f"of the answers {longer(turns.answers, answer)} are longer; the EOS rate is measured within it",
        ),
        ("save_strategy", "steps"),
        ("save_steps", 0.34),
        ("save_total_limit", 1),
        ("load_best_model_at_end", True, "by the held-out loss: a small file is learned by heart after some passes"),
        ("metric_for_best_model", "eval_loss"),
        ("report_to", "none"),
        ("output_dir", str(run / "sft")),
    ]
    return Stage("sft", lines, turns.rows, turns.tokens * passes, steps, turns.tokens * passes * model.flops_per_token)
