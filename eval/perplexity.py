"""How well does a language model predict documents it has not seen? Bits per byte, and perplexity per token.

    python -m eval.perplexity --model runs/quickstart/base \
        --documents runs/quickstart/data/corpus_heldout.jsonl --results_dir runs/quickstart/results

Reads JSONL ({"text"}), plain text or conversations (their text alone). A document longer than the model's context is
cut into windows, each starting without memory of the one before. Bits per byte compare between any two models;
perplexity per token only between models with the same tokenizer. Writes `perplexity_<name>.json`.
"""

import argparse
import math
import time
from pathlib import Path

from data_prep.common.errors import InputError, run_main
from data_prep.common.files import existing, write_results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="folder or Hub id of a causal language model")
    parser.add_argument("--documents", required=True, help="JSONL, plain text or Baichuan JSON")
    parser.add_argument("--name", help="of the results file; the model's folder name without")
    parser.add_argument("--results_dir", help="where the figures go; without, they are printed only")
    parser.add_argument("--batch_size", type=int, default=16)
    arguments = parser.parse_args()
    existing(arguments.documents)

    from data_prep.models.bits_per_byte import (  # slow to import: after the input has been checked
        bits_per_byte,
        heldout_batches,
    )
    from data_prep.models.loading import load_checkpoint

    model, tokenizer = load_checkpoint(arguments.model)
    if tokenizer.bos_token_id is None:
        raise InputError(
            f"{arguments.model}: its tokenizer names no bos_token to predict a document's first token from"
        )
    start = time.perf_counter()
    context = model.config.max_position_embeddings
    batches = heldout_batches(arguments.documents, tokenizer, context, arguments.batch_size)
    bits, loss = bits_per_byte(model, batches, model.device)
    size = round(sum(sum(batch["bytes"]) for batch in batches))
    tokens = int(sum((batch["labels"] != -100).sum() for batch in batches))
    figures = {"bits_per_byte": bits, "perplexity_per_token": math.exp(loss), "loss_per_token": loss}
    if arguments.results_dir:
        about = {"seconds": time.perf_counter() - start, "model": arguments.model, "data": [arguments.documents]}
        counts = {"tokens": tokens, "bytes": size, "context": context}
        name = arguments.name or Path(arguments.model).name
        write_results(arguments.results_dir, f"perplexity_{name}", {**about, **counts, "metrics": figures})
    print(
        f"{arguments.model}: {bits:.3f} bits per byte, perplexity {math.exp(loss):.1f} per token, on {size:,} bytes "
        f"({tokens:,} tokens) of {arguments.documents}"
    )


if __name__ == "__main__":
    run_main(main)
