"""Bits per byte on held-out documents, which compares models with different tokenizers."""

import math

import torch

from data_prep.readers.documents import read_documents


def heldout_batches(paths: str | list[str], tokenizer, length: int, rows: int = 16, **options) -> list[dict]:
    """The documents in windows of up to `length` inputs; a document's first token is predicted from end-of-text.

    That is the tokenizer's bos_token; where there is none, as in Qwen's, its eos_token.

    Returns batches of {"input_ids": (rows, longest window), "labels": the same shape, -100 where padded, "bytes":
    (rows,)}. A window's bytes are its share, in tokens, of the document's bytes. `options` are those of
    `read_documents`.
    """
    windows, begin = [], tokenizer.bos_token_id
    if begin is None:
        begin = tokenizer.eos_token_id
    for text in read_documents(paths, **options):
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        inputs = [begin, *ids]
        size = len(text.encode("utf-8"))
        for start in range(0, len(ids), length):
            end = min(start + length, len(ids))
            windows.append((inputs[start:end], ids[start:end], size * (end - start) / len(ids)))
    windows.sort(key=lambda window: -len(window[0]))
    batches = []
    for start in range(0, len(windows), rows):
        part = windows[start : start + rows]
        # Padded with end-of-text, on the right, where no counted token attends to it: the pad token would make
        # transformers warn about a missing attention mask, and not every tokenizer has one.
        input_ids = torch.full((len(part), len(part[0][0])), begin)
        labels = torch.full_like(input_ids, -100)
        for row, (inputs, targets, _) in enumerate(part):
            input_ids[row, : len(inputs)], labels[row, : len(targets)] = torch.tensor(inputs), torch.tensor(targets)
        batches.append({"input_ids": input_ids, "labels": labels, "bytes": [window[2] for window in part]})
    return batches


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
