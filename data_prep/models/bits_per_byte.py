"""Bits per byte on held-out documents, which compares models with different tokenizers."""

import math
from collections.abc import Iterable

import torch

from data_prep.readers.documents import read_documents


def heldout_batches(paths: str | list[str], tokenizer, length: int, rows: int = 16, **options) -> list[dict]:
    """The documents in windows of up to `length` inputs; see `first_predicted_from` for a document's first token.

    Returns the batches of `window_batches`. `options` are those of `read_documents`.
    """
    return window_batches(read_documents(paths, **options), tokenizer, length, rows)


def first_predicted_from(tokenizer) -> str | None:
    """ "bos_token", from which a document's first token is predicted; "eos_token" where there is none, as in Qwen's.

    So does lm-evaluation-harness. None where there is neither: a first token is then not scored, as in the guide to
    perplexity in transformers' documentation.
    """
    return next((name for name in ("bos_token", "eos_token") if getattr(tokenizer, f"{name}_id") is not None), None)


def window_batches(texts: Iterable[str], tokenizer, length: int, rows: int) -> list[dict]:
    """Texts in windows, longest first.

    Returns batches of {"input_ids": (rows, longest window), "labels": the same shape, -100 where padded, "bytes":
    (rows,), "texts": (rows,)}. A window's bytes are its share, in tokens, of its text's bytes; "texts" are the places of the
    texts that windows are of. A text whose only token is not scored (see `first_predicted_from`) has no window.
    """
    windows, first = [], first_predicted_from(tokenizer)
    begin = getattr(tokenizer, f"{first}_id") if first else 0
    for place, text in enumerate(texts):
        # A control token typed in a text stays text, as in the corpus that a model is trained on.
        ids = tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
        inputs, targets = ([begin, *ids], ids) if first else (ids, ids[1:])
        size = len(text.encode("utf-8"))
        for start in range(0, len(targets), length):
            end = min(start + length, len(targets))
            windows.append((inputs[start:end], targets[start:end], size * (end - start) / len(ids), place))
    windows.sort(key=lambda window: -len(window[0]))
    batches = []
    for start in range(0, len(windows), rows):
        part = windows[start : start + rows]
        # Padded with end-of-text, on the right, where no counted token attends to it: the pad token would make
        # transformers warn about a missing attention mask, and not every tokenizer has one.
        input_ids = torch.full((len(part), len(part[0][0])), begin)
        labels = torch.full_like(input_ids, -100)
        for row, (inputs, targets, *_) in enumerate(part):
            input_ids[row, : len(inputs)], labels[row, : len(targets)] = torch.tensor(inputs), torch.tensor(targets)
        bytes_, places = [window[2] for window in part], [window[3] for window in part]
        batches.append({"input_ids": input_ids, "labels": labels, "bytes": bytes_, "texts": places})
    return batches


@torch.no_grad()
def text_nats(model, batches: list[dict], number: int) -> list[float]:
    """The nats that the model needs for each of `number` texts, from their `window_batches`, summed over all tokens.

    In 64 bits from the logits on: in 32, a sum of so many terms would depend on how rows are padded.
    """
    model.eval()
    nats = [0.0] * number
    device = model.device if model.device.type == "cuda" else "cpu"  # not every accelerator has 64 bits
    for batch in batches:
        logits, labels = model(input_ids=batch["input_ids"].to(model.device), use_cache=False).logits, batch["labels"]
        for row, place in enumerate(batch["texts"]):
            own = labels[row][labels[row] != -100]
            logs = logits[row, : len(own)].to(device).double()
            loss = torch.nn.functional.cross_entropy(logs, own.to(device), reduction="sum")
            nats[place] += loss.item()
    return nats


@torch.no_grad()
def bits_per_byte(model, batches, device) -> tuple[float, float]:
    """(bits per byte, loss per token in nats) over `batches` of {"input_ids": (rows, length), "labels", "bytes"}.

    Only the first compares between models: a byte is the same for every tokenizer, a token is not. Leaves the model in
    training mode.
    """
    model.eval()
    nats = tokens = size = 0.0
    for batch in batches:
        labels = batch["labels"].to(device)
        logits = model(input_ids=batch["input_ids"].to(device)).logits.float()
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="sum")
        nats, tokens = nats + loss.item(), tokens + (labels != -100).sum().item()
        size += float(sum(batch["bytes"]))
    model.train()
    return nats / math.log(2) / size, nats / tokens
