"""Bits per byte of held-out documents, for each source, with what gzip and xz need beside it."""

import gzip
import lzma
import math

from data_prep.common.errors import InputError
from data_prep.common.intervals import bootstrap_interval, detectable_difference
from data_prep.common.numbers import rounded
from data_prep.common.text import printable
from data_prep.readers.documents import documents


def read_sources(paths: str | list[str], text_column: str, source_column: str, bad_rows) -> list[tuple[str, str]]:
    """(text, source) of every document: the source is what its row has under `source_column`, else its file's name."""
    found = []
    for text, row in documents(paths, text_column, bad_rows):
        named = row.value.get(source_column) if isinstance(row.value, dict) else None
        name = str(row.path).rsplit("/", 1)[-1].split(".")[0]
        found.append((text, named if isinstance(named, str) and named else name))
    return found


def compressed_bits(texts: list[str]) -> dict[str, float]:
    """Bits per byte of the texts as one file under gzip -9 and xz -9: what is known of them without any training.

    Both learn from the very texts that they compress, a language model from others; of a few kilobytes they can learn
    little.
    """
    whole = "\n".join(texts).encode()
    return {
        "gzip": 8 * len(gzip.compress(whole, 9, mtime=0)) / len(whole),
        "xz": 8 * len(lzma.compress(whole, preset=9)) / len(whole),
    }


def measure_documents(model, tokenizer, found: list[tuple[str, str]], batch_size: int) -> tuple[dict, list[float]]:
    """(the result, the bits of each document) of a language model; `found` is that of `read_sources`.

    The result is {"tokens", "bytes", "context", "metrics", "sources": {source: "documents", "bytes", "bits_per_byte" with
    its 95 % interval over documents, "gzip", "xz"}, "first_token_from": "bos_token" or "eos_token"}, the largest source first.
    Where the tokenizer has neither, that is None, "unscored_tokens" counts the first tokens, and all other counts are without
    them and their bytes. Its figures do not depend on the batch. Raises InputError where no token is left.
    """
    from data_prep.models.bits_per_byte import first_predicted_from, text_nats, window_batches  # slow to import
    from data_prep.models.loading import context_of
    from eval.before_after.documents import LONGEST

    first = first_predicted_from(tokenizer)
    texts = [text for text, _ in found]
    context = context_of(model.config) or LONGEST
    batches = window_batches(texts, tokenizer, context, batch_size)
    bits = [nats / math.log(2) for nats in text_nats(model, batches, len(texts))]
    tokens = int(sum((batch["labels"] != -100).sum() for batch in batches))
    if not tokens:
        raise InputError(
            "no token can be scored: the tokenizer has neither bos_token nor eos_token to predict a document's first "
            "from, and no document has a second"
        )
    sizes = [len(text.encode()) for text in texts] if first else scored_bytes(batches, len(texts))
    loss = sum(bits) * math.log(2) / tokens
    whole = compressed_bits(texts)
    metrics = {
        "bits_per_byte": sum(bits) / sum(sizes),
        "perplexity_per_token": math.exp(loss),
        "loss_per_token": loss,
        "gzip_bits_per_byte": whole["gzip"],
        "xz_bits_per_byte": whole["xz"],
    }
    places: dict[str, list[int]] = {}
    for place, (_, source) in enumerate(found):
        if sizes[place]:
            places.setdefault(source, []).append(place)
    sources = {}
    for source, own in sorted(places.items(), key=lambda item: -sum(sizes[place] for place in item[1])):
        rates, weights = [bits[place] / sizes[place] for place in own], [sizes[place] for place in own]
        sources[source] = {
            "documents": len(own),
            "bytes": sum(weights),
            "bits_per_byte": bootstrap_interval(rates, weights),
            **compressed_bits([texts[place] for place in own]),
        }
    counts = {"tokens": tokens, "bytes": sum(sizes), "context": context, "first_token_from": first}
    if not first:
        counts["unscored_tokens"] = len(texts)
    return {**counts, **rounded({"metrics": metrics, "sources": sources})}, bits


def scored_bytes(batches: list[dict], number: int) -> list[int]:
    """The bytes of each of `number` texts that are in windows, to the nearest whole one."""
    sizes = [0.0] * number
    for batch in batches:
        for place, size in zip(batch["texts"], batch["bytes"], strict=True):
            sizes[place] += size
    return [round(size) for size in sizes]


def compare_documents(found: list[tuple[str, str]], bits: list[float], other: list[float]) -> dict:
    """{"all" and each source: the difference in bits per byte to another model on the same documents}.

    Each an interval over documents, paired and weighted by their bytes, with "detectable", the smallest difference that so
    many documents would show (see `detectable_difference`; each document is taken for a share of the mean bytes).
    """
    sizes = [len(text.encode()) for text, _ in found]
    places = {"all": list(range(len(found)))}
    for place, (_, source) in enumerate(found):
        places.setdefault(source, []).append(place)
    compared = {}
    for name, own in places.items():
        differences = [(bits[place] - other[place]) / sizes[place] for place in own]
        weights = [sizes[place] for place in own]
        mean = sum(weights) / len(weights)
        interval = bootstrap_interval(differences, weights)
        # A ratio's residuals: what each document adds to the error of the weighted mean (Cochran 1977, section 6.3).
        residuals = [
            weight / mean * (each - interval["value"]) for each, weight in zip(differences, weights, strict=True)
        ]
        compared[name] = {**interval, "detectable": detectable_difference(residuals)}
    return rounded(compared)


def source_line(source: str, figures: dict) -> str:
    """A source's figures in words."""
    value, low, high = (figures["bits_per_byte"][key] for key in ("value", "low", "high"))
    return (
        f"{printable(source)}: {value:.3f} [{low:.3f}, {high:.3f}] bits per byte on {figures['bytes']:,} bytes; gzip "
        f"{figures['gzip']:.3f}, xz {figures['xz']:.3f}"
    )
