"""Documents under several models: the bits of each, and what differs, with intervals over documents."""

import math

import torch
from tqdm.auto import tqdm

from data_prep.common.errors import InputError
from data_prep.common.intervals import bootstrap_interval

LONGEST = 1024  # tokens of a window: the logits of more would not fit beside a model of the Hub


def first_token(tokenizer, name: str) -> int:
    """The token from which a document's first one is predicted: the beginning of a text, else the end of the one before."""
    ids = (tokenizer.bos_token_id, tokenizer.eos_token_id)
    first = next((token for token in ids if token is not None), None)
    if first is None:
        raise InputError(f"{name}: its tokenizer has neither bos_token nor eos_token to predict a first token from")
    return first


@torch.no_grad()
def document_bits(model, tokenizer, first: int, texts: list[str], length: int, batch_size: int, desc: str) -> list:
    """The bits that the model needs for each text: its negative log2-likelihood, summed over all tokens.

    A text of more than `length` tokens is read in windows; each starts from the token before it, as in
    `data_prep.models.bits_per_byte`. A control token typed in a text stays text. Raises `InputError` for a likelihood
    that is not finite.
    """
    windows = []
    for number, text in enumerate(texts):
        ids = tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
        inputs = [first, *ids]
        windows += [
            (number, inputs[start : start + length][: len(ids) - start], ids[start : start + length])
            for start in range(0, len(ids), length)
        ]
    windows.sort(key=lambda window: -len(window[2]))
    nats = [0.0] * len(texts)
    model.eval()
    for start in tqdm(range(0, len(windows), batch_size), desc=desc, unit="batch", disable=len(texts) < 100 or None):
        part = windows[start : start + batch_size]
        # Padded on the right, where no counted token attends to it.
        padded = torch.full((len(part), len(part[0][1])), first)
        for row, (_, inputs, _) in enumerate(part):
            padded[row, : len(inputs)] = torch.tensor(inputs)
        logits = model(input_ids=padded.to(model.device), use_cache=False).logits
        for row, (number, _, targets) in enumerate(part):  # one row in 32 bits at a time: a vocabulary may be large
            goal = torch.tensor(targets, device=logits.device)
            loss = torch.nn.functional.cross_entropy(logits[row, : len(targets)].float(), goal, reduction="sum")
            nats[number] += loss.item()
    if not all(map(math.isfinite, nats)):
        raise InputError(f"{desc}: found a likelihood that is not finite; the model's weights are broken")
    return [each / math.log(2) for each in nats]


def compare_bits(bits: dict[str, list[float]], sizes: list[int]) -> dict:
    """Bits per byte of each model, and each against the first, with 95 % intervals over documents.

    Args:
        bits: {model: bits of each document}, the same documents for all.
        sizes: the bytes of each document, in UTF-8.

    Returns {"documents", "bytes", "models": {model: {"bits_per_byte", "difference", "relative"}}}, an interval each. The
    difference to the first model is paired, and relative is its share of the first one's bits: 0.03 is 3 % more.
    """
    first = next(iter(bits.values()))
    weights = [max(each, 1e-9) for each in first]  # no bits at all for a document would be a weight of 0
    found = {}
    for name, own in bits.items():
        rates = [each / size for each, size in zip(own, sizes, strict=True)]
        differences = [(mine - its) / size for mine, its, size in zip(own, first, sizes, strict=True)]
        ratios = [(mine - its) / its for mine, its in zip(own, weights, strict=True)]
        found[name] = {
            "bits_per_byte": bootstrap_interval(rates, sizes),
            "difference": bootstrap_interval(differences, sizes),
            "relative": bootstrap_interval(ratios, weights),
        }
    return {"documents": len(sizes), "bytes": sum(sizes), "models": found}


def most_changed(documents: list, before: list[float], after: list[float], most: int = 4) -> dict[str, list[dict]]:
    """{"worse", "better"}: the documents whose bits per byte rose and fell most, with the place they are from."""
    rows = []
    for document, old, new in zip(documents, before, after, strict=True):
        size = len(document.text.encode())
        place = f"{document.row.path}, row {document.row.number:,}"
        start = " ".join(document.text[:400].split())[:120]
        rows.append({"place": place, "start": start, "before": old / size, "after": new / size})
    rows.sort(key=lambda row: row["before"] - row["after"])
    return {
        "worse": [row for row in rows[:most] if row["after"] > row["before"]],
        "better": [row for row in rows[::-1][:most] if row["after"] < row["before"]],
    }
