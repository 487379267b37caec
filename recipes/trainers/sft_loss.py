"""SFT's loss over chunks of the tokens that count, as TRL computes it (`loss_type: chunked_nll`), without its second pass.

TRL computes each chunk's logits, loss, accuracy and entropy again for the backward pass, so that no more than a chunk's
logits are kept. The numbers here are the same to the last bit, but nothing is computed twice where all chunks are small
together, and accuracy and entropy, which have no gradient, never are.
"""

import inspect

import torch
import torch.nn.functional as F
from torch.utils.checkpoint import checkpoint
from trl.trainer import sft_trainer

# Bytes of log-probabilities, 4 for each token and entry of the vocabulary, that are kept and not recomputed.
KEPT = 2**28


def logits_of(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    logit_scale: float,
    final_logit_softcapping: float | None,
) -> torch.Tensor:
    """The logits that the loss is of, in fp32, (tokens, vocabulary); arguments as in `chunk_sums`."""
    with sft_trainer.maybe_gather_lm_head_ctx(weight, bias):
        logits = hidden.float() @ weight.float().t()
        if bias is not None:
            logits = logits + bias.float()
    if logit_scale != 1.0:
        logits = logits * logit_scale
    if final_logit_softcapping is not None:
        logits = final_logit_softcapping * torch.tanh(logits / final_logit_softcapping)
    return logits


def chunk_sums(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    labels: torch.Tensor,
    logit_scale: float,
    final_logit_softcapping: float | None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Over the tokens whose label is not -100: the sum of the loss in nats, how many are predicted right, and the sum of
    the entropies in nats. Hidden states (tokens, width), labels (tokens,), weight (vocabulary, width)."""
    logits = logits_of(hidden, weight, bias, logit_scale, final_logit_softcapping)
    log_probs = F.log_softmax(logits, dim=-1)
    loss = F.nll_loss(log_probs, labels, ignore_index=-100, reduction="sum")
    with torch.no_grad():  # the recomputation of a checkpoint ends with what the gradient needs
        counts = labels != -100
        correct = ((logits.argmax(dim=-1) == labels) & counts).sum().float()
        entropy = (-(log_probs.exp() * log_probs).sum(dim=-1) * counts).sum()
    return loss, correct, entropy


def chunked_loss(
    hidden_states: torch.Tensor,
    lm_head_weight: torch.Tensor,
    chunk_size: int,
    labels: torch.Tensor | None = None,
    shift_labels: torch.Tensor | None = None,
    num_items_in_batch: torch.Tensor | int | None = None,
    logit_scale: float = 1.0,
    final_logit_softcapping: float | None = None,
    lm_head_bias: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """The mean loss, how many tokens are predicted right, the sum of their entropies in nats, and their number.

    Args:
        hidden_states: of the last layer, (rows, length, width).
        labels: (rows, length), -100 where nothing is learned; a position predicts the label after its own.
        shift_labels: (rows, length), each position's own; taken in place of `labels`.
        num_items_in_batch: what the loss is divided by; default: the tokens of this batch.
    """
    if shift_labels is None:
        hidden_states, shift_labels = hidden_states[:, :-1], labels[:, 1:]
    hidden, targets = hidden_states.flatten(0, 1), shift_labels.flatten()
    counts = targets != -100
    number = counts.sum()
    # Those that count first, filled up to whole chunks with others: products of one shape, as in TRL. One chunk at least:
    # its zero gradient goes to every weight, which other processes wait for.
    order = counts.to(torch.int8).argsort(descending=True, stable=True)
    hidden, targets = hidden[order], targets[order]
    end = max(1, -(-int(number) // chunk_size)) * chunk_size
    # ZeRO-3 takes its parts of the weight back after the forward pass.
    small = 4 * end * len(lm_head_weight) <= KEPT and not hasattr(lm_head_weight, "ds_id")
    loss, correct, entropy = hidden.new_zeros(3, dtype=torch.float32).unbind()
    for start in range(0, end, chunk_size):
        part = slice(start, start + chunk_size)
        given = hidden[part], lm_head_weight, lm_head_bias, targets[part], logit_scale, final_logit_softcapping
        sums = chunk_sums(*given) if small else checkpoint(chunk_sums, *given, use_reentrant=False)
        loss, correct, entropy = loss + sums[0], correct + sums[1], entropy + sums[2]
    if isinstance(num_items_in_batch, torch.Tensor):
        num_items_in_batch = num_items_in_batch.to(loss.device)
    return loss / (number.clamp(min=1) if num_items_in_batch is None else num_items_in_batch), correct, entropy, number


@torch.no_grad()
def scales_its_logits(model) -> bool:
    """Whether a language model makes more of its head's output than TRL knows of, as Granite and Falcon-H1 do.

    A loss over chunks would then be of another distribution than the model's. Tried on four tokens. Where the model cannot
    be run as it lies, with attention kernels that need a GPU or in the parts of ZeRO-3, its config is asked.
    """
    from transformers.integrations import is_deepspeed_zero3_enabled  # slow to import

    text = model.config.get_text_config()
    if model.config._attn_implementation not in ("eager", "sdpa") or is_deepspeed_zero3_enabled():
        return any(getattr(text, name, 1.0) != 1.0 for name in ("logits_scaling", "lm_head_multiplier"))
    taken, training, own = [], model.training, vars(model).get("forward")
    signature, chunked = inspect.signature(chunked_loss), sft_trainer._chunked_cross_entropy_loss

    def note(*args, **kwargs) -> tuple[torch.Tensor, ...]:
        """What TRL gives the loss, as logits."""
        given = signature.bind(*args, **kwargs)
        given.apply_defaults()
        names = ("hidden_states", "lm_head_weight", "lm_head_bias", "logit_scale", "final_logit_softcapping")
        taken.append(logits_of(*(given.arguments[name] for name in names)))
        return tuple(torch.zeros(4))

    ids = torch.arange(4, device=model.device)[None]
    with torch.random.fork_rng(devices=[]):
        model.eval()
        found = model(input_ids=ids, use_cache=False).logits.float()
        sft_trainer._patch_chunked_ce_lm_head(model, 1)
        sft_trainer._chunked_cross_entropy_loss = note
        try:
            model(input_ids=ids, labels=ids)
        finally:
            sft_trainer._chunked_cross_entropy_loss = chunked
            del model.forward
            if own is not None:
                model.forward = own
            model.train(training)
    return (found - taken[0]).abs().max().item() > 0.02 * found.abs().max().item()  # rounding in bf16 is less
