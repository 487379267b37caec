"""Does a model with an adapter still answer the same once the adapter is part of its weights?"""

import torch

from data_prep.models.loading import context_of

# Of the logits' standard deviation. Merging moved the logits of a GPT-2 of 4 layers by 0.00001 of it in float32 and by 0.09
# in bfloat16, which is the rounding of any bfloat16 model; a 4-bit adapter in the weights as they were before quantization
# by 0.43 (see merge_adapter in recipes/trainers/saving.py).
BOUND = 0.25


@torch.no_grad()
def probe_logits(model, rows: int = 4, length: int = 32) -> torch.Tensor:
    """The logits of `model`, (rows, length, vocabulary) in float32 on the CPU, for tokens drawn with a fixed seed.

    Of a reward or value model: its scores at every position, (rows, length, 1).
    """
    config = model.config.get_text_config()
    length = min(length, context_of(config) or length)
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(config.vocab_size, (rows, length), generator=generator).to(model.device)
    training = model.training
    model.eval()  # dropout would be taken for a difference
    try:
        whole = model.get_base_model() if hasattr(model, "get_base_model") else model
        if hasattr(whole, "score"):  # transformers' sequence classifiers give the score of the last position alone
            return whole.score(whole.base_model(input_ids=ids).last_hidden_state).float().cpu()
        return model(input_ids=ids).logits.float().cpu()
    finally:
        model.train(training)


def logit_difference(one: torch.Tensor, other: torch.Tensor) -> float:
    """The largest difference between two tensors of logits, in standard deviations of the first; infinite where it is NaN.

    Where the first hardly vary, as the scores of an untrained head may, a thousandth of their size is taken for it.
    """
    deviation = torch.maximum(one.std(), one.abs().max() / 1000).clamp(min=1e-12)
    difference = ((one - other).abs().max() / deviation).item()
    return float("inf") if difference != difference else difference


def why_merging_differs(model) -> str:
    """What of a model with an adapter makes its merged weights another model, in words."""
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    reasons = []
    if (method := getattr(base, "quantization_method", None)) is not None:
        reasons.append(f"its weights are quantized ({getattr(method, 'value', method)}), and the sum is not")
    elif (dtype := base.get_input_embeddings().weight.dtype) != torch.float32:
        reasons.append(
            f"the sum of weight and adapter is rounded to {str(dtype).removeprefix('torch.')}: load in float32"
        )
    names = {name.split(".")[-1] for config in getattr(model, "peft_config", {}).values() for name in adapted(config)}
    if getattr(base.config, "tie_word_embeddings", False) and names & {"lm_head", "wte", "embed_tokens"}:
        reasons.append(
            f"the adapter is on {', '.join(sorted(names & {'lm_head', 'wte', 'embed_tokens'}))}, and input and output "
            "embeddings are one matrix (tie_word_embeddings): merging into one changes both"
        )
    rows = base.get_input_embeddings().weight.shape[0]
    if rows != base.config.get_text_config().vocab_size:
        reasons.append(
            f"the vocabulary was resized: {rows:,} embeddings, {base.config.get_text_config().vocab_size:,} in the config"
        )
    return (
        "; ".join(reasons) or "no usual reason is found (weights in low precision, tied embeddings, other vocabulary)"
    )


def adapted(config) -> set[str]:
    """The names of the modules that an adapter's config says it is on, or holds whole."""
    targets = config.target_modules or ()
    return {*([targets] if isinstance(targets, str) else targets), *(config.modules_to_save or ())}
