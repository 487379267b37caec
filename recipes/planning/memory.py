"""The memory of a stage on each device, in bytes, by part; an estimate that `--measure` corrects.

Activations are what the backward pass of each layer reads, counted operation by operation (as Korthikanti 2022,
arXiv:2205.05198, section 4.1, but without dropout; only eager attention keeps scores).
"""

from recipes.planning.architecture import Counts
from recipes.planning.work import ROLLOUTS, Work, answer_length, checkpoints

CHUNK = 256  # tokens of which chunked_nll holds logits at once
KEPT = 2**28  # bytes of log-probabilities that it keeps at most besides (recipes/trainers/sft_loss.py)
LOGITS = 12  # bytes an entry: fp32 logits, their log-softmax and its gradient; bf16 adds 4, of the first and the last
SHARDINGS = ("ddp", "zero2", "fsdp2")
# Recipes of TRL's trainers, which beside quantized weights cast all that is trained to bf16; the others leave it in fp32.
CAST = ("sft", "reward", "dpo", "kto", "rloo", "grpo")


def bytes_of(name: str | None) -> int:
    return 4 if name in (None, "float32") else 2


def adapter_bytes(stage: str, values: dict) -> int:
    """Bytes of a number of an adapter, of its gradient and of each of its moments."""
    quantized = values.get("load_in_4bit") or values.get("load_in_8bit")
    return 2 if quantized and stage in CAST else 4


def weight_bytes(model: Counts, values: dict, adapter: int, quantized: bool = True) -> float:
    """Bytes of a model's weights and of its adapter, a number of which has `adapter`."""
    wide = bytes_of(values.get("dtype"))
    if quantized and values.get("load_in_4bit"):
        scales = (1 + 4 / 256) / 64 if values.get("use_bnb_nested_quant") else 4 / 64  # one for 64 weights
        inner = model.linear * (0.5 + scales)
    elif quantized and values.get("load_in_8bit"):
        inner = model.linear
    else:
        inner = model.linear * wide
    return inner + (model.parameters - model.linear) * wide + adapter * model.adapter


def optimizer_bytes(model: Counts, values: dict, adapter: int) -> float:
    """Bytes of the optimizer's state: AdamW's two moments; with Muon one for a matrix in a block, two for the rest."""
    wide = adapter if model.adapter else bytes_of(values.get("dtype"))
    if values.get("muon_lr") and not model.adapter:
        return wide * (model.matrices + 2 * (model.trainable - model.matrices))
    optim = str(getattr(values["optim"], "value", values["optim"]))
    if "8bit" in optim:
        return 2 * model.trainable
    if optim in ("sgd", "adafactor"):  # no momentum; sums of rows and columns
        return 0
    return 2 * wide * model.trainable


def layer_bytes(
    model: Counts, wide: int, stream: int, length: int, eager: bool = False, compiled: bool = False
) -> float:
    """Bytes that one layer keeps for its backward pass, per token.

    Args:
        wide: bytes of a number in a product. stream: of one in the residual stream.
    """
    h, q, kv, f = model.hidden, model.attention, model.keys, model.inner
    # Layer norm: its input and its output. RMS norm, in fp32: what its weight is multiplied with, unless that is frozen, too;
    # its output as it is cast for each matrix behind it: queries, keys, values; gate and up.
    norms = 2 * h * (stream + wide)
    if model.gated:
        norms = 2 * h * (4 + (0 if model.adapter else stream)) + (5 if stream > wide else 2) * h * wide
    # Queries, keys, values, and what comes out, in the order of the projection. Eager attention repeats keys and values for
    # each head, and keeps of each query and key the softmax in fp32, and what it is cast to for the product with the values.
    attention = wide * (2 * q + 2 * kv)
    if eager:
        attention = wide * 4 * q + model.heads * length * (4 + (wide if wide < 4 else 0))
    # Gate, up, activation and their product; without a gate what goes into the activation, and what comes out, which a
    # compiled pass computes again.
    mlp = wide * f * (4 if model.gated else 1 if compiled else 2)
    return norms + attention + mlp


def activation_bytes(model: Counts, values: dict, tokens: float, length: int) -> float:
    """Bytes kept for the backward pass of `tokens` in rows of `length`; with checkpointing one layer's and the borders."""
    wide = 2 if values["bf16"] or values.get("fp16") else 4
    stream = bytes_of(values.get("dtype"))
    eager, compiled = values.get("attn_implementation") == "eager", bool(values.get("torch_compile"))
    layer = layer_bytes(model, wide, stream, length, eager, compiled)
    ends = model.hidden * (2 * stream + wide)  # the embedding, the last norm
    if checkpoints(values):
        return tokens * (model.layers * stream * model.hidden + layer + ends)
    return tokens * (model.layers * layer + ends)


def memory_of(
    stage: str, values: dict, models: dict[str, Counts], work: Work, gpus: int = 1, sharding: str = "ddp"
) -> tuple[dict[str, float], float]:
    """({part: bytes}, bytes at the peak) on one of `gpus` devices.

    The peak is that of a training step, in which all but the KV cache is there, or of sampling, in which gradients and
    activations are not.
    """
    trained = {name: models[name] for name in ("policy", "value") if name in models}
    adapter = adapter_bytes(stage, values)
    weights = {
        name: weight_bytes(each, values, adapter, quantized=name != "reward") for name, each in models.items() if each
    }
    gradients = sum(
        each.trainable * (adapter if each.adapter else bytes_of(values.get("dtype"))) for each in trained.values()
    )
    states = sum(optimizer_bytes(each, values, adapter) for each in trained.values())
    if gpus > 1 and sharding == "ddp":
        gradients *= 2  # DDP's buckets
    elif gpus > 1:
        gradients, states = gradients / gpus, states / gpus
        if sharding == "fsdp2":
            weights = {name: size / gpus if name in trained else size for name, size in weights.items()}
    average = 4.0 * models["policy"].trainable if values.get("ema_decay") is not None else 0.0
    half = values["bf16"] or values.get("fp16")
    copies = 0.0
    if half and bytes_of(values.get("dtype")) == 4:  # what autocast casts is kept for the backward pass
        # A head that is not chunked away is among it: a language model's, not a reward model's.
        copies = sum(
            2 * (each.linear + _head(each, stage, name)) for name, each in trained.items() if not each.adapter
        )
    tokens = work.rows * work.length
    activations = sum(activation_bytes(each, values, tokens, work.length) for each in trained.values())
    vocabulary, entry = models["policy"].vocabulary, LOGITS + (4 if half else 0)
    cache = sampled = 0.0
    if stage == "reward":
        logits = 0.0
    elif stage == "sft" and values.get("loss_type") in (None, "chunked_nll"):
        logits = float(CHUNK * vocabulary * entry + min(4 * tokens * vocabulary, KEPT))
    elif stage in ROLLOUTS:
        answer = answer_length(values)
        logits = float(work.rows * answer * vocabulary * entry)
        at_once = values.get("local_rollout_forward_batch_size") or work.rows
        sampled = float(at_once * answer * vocabulary * entry)
        policy, rollout = (
            models["policy"],
            values["per_device_train_batch_size"] * values["gradient_accumulation_steps"],
        )
        cache = 2 * policy.layers * policy.keys * (2 if half else 4) * work.length * rollout / gpus
    else:
        if stage == "pretrain" and values.get("torch_compile"):  # see recipes/trainers/compiled.py
            entry = 4 if half else 8  # themselves and their gradient
        logits = tokens * vocabulary * entry
    parts = {f"weights of the {name}" if len(weights) > 1 else "weights": size for name, size in weights.items()}
    parts |= {"average of the policy": average, "gradients": gradients, "optimizer": states, "bf16 copies": copies}
    parts |= {"activations": activations, "logits": logits, "KV cache": cache, "logits of a rollout": sampled}
    resident = sum(weights.values()) + average + states
    peak = max(resident + gradients + copies + activations + logits, resident + cache, resident + sampled)
    return {name: size for name, size in parts.items() if size}, peak


def _head(model: Counts, stage: str, name: str) -> int:
    """Parameters of the head that a pass multiplies with."""
    return 0 if stage == "reward" or name == "value" else model.vocabulary * model.hidden
