"""How well does a language model predict documents it has not seen? Bits per byte, and perplexity per token.

    python -m eval.perplexity --model runs/quickstart/base \
        --documents runs/quickstart/data/corpus_heldout.jsonl --results_dir runs/quickstart/results

Reads documents or conversations (their text only). A document longer than the model's context is split into windows;
each window starts without the tokens before it. Bits per byte can be compared between any two models, perplexity per
token only between models with the same tokenizer. Writes `perplexity_<name>.json`.
"""

import argparse
import math
import time
from pathlib import Path

from data_prep.common.errors import InputError, run_main
from data_prep.common.files import existing, write_results
from data_prep.common.numbers import check_at_least
from data_prep.rows.bad_rows import BadRows
from eval.common.options import add_on_bad, add_result_options, quarantine_file


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="folder or Hub id of a causal language model")
    parser.add_argument(
        "--documents",
        required=True,
        help="documents or conversations, in any format that data_prep reads (see data_prep/README.md)",
    )
    parser.add_argument("--text_column", default="text", help="column with the text of documents (default: text)")
    add_on_bad(parser)
    add_result_options(parser, "the model's folder")
    parser.add_argument("--batch_size", type=int, default=16, help="sequences scored at once (default: 16)")
    arguments = parser.parse_args()
    check_at_least(1, arguments, "batch_size")
    existing(arguments.documents)
    name = arguments.name or Path(arguments.model).name
    bad_rows = BadRows(arguments.on_bad, quarantine_file(arguments.on_bad, arguments.results_dir, name))

    from data_prep.models.bits_per_byte import (  # slow to import
        bits_per_byte,
        heldout_batches,
    )
    from data_prep.models.loading import load_checkpoint

    model, tokenizer = load_checkpoint(arguments.model)
    if tokenizer.bos_token_id is None:
        raise InputError(
            f"{arguments.model}: its tokenizer has no bos_token, from which a document's first token is predicted"
        )
    start = time.perf_counter()
    context = model.config.max_position_embeddings
    options = {"text_column": arguments.text_column, "bad_rows": bad_rows}
    batches = heldout_batches(arguments.documents, tokenizer, context, arguments.batch_size, **options)
    if bad_rows.quarantined:
        print(f"{arguments.documents}: {bad_rows.counts_line()}")
    if repaired := +bad_rows.repaired:
        print(
            f"{arguments.documents}: repaired: {', '.join(f'{count:,} × {kind}' for kind, count in repaired.items())}"
        )
    bits, loss = bits_per_byte(model, batches, model.device)
    size = round(sum(sum(batch["bytes"]) for batch in batches))
    tokens = int(sum((batch["labels"] != -100).sum() for batch in batches))
    metrics = {"bits_per_byte": bits, "perplexity_per_token": math.exp(loss), "loss_per_token": loss}
    if arguments.results_dir:
        about = {"seconds": time.perf_counter() - start, "model": arguments.model, "data": [arguments.documents]}
        counts = {"tokens": tokens, "bytes": size, "context": context}
        write_results(arguments.results_dir, f"perplexity_{name}", {**about, **counts, "metrics": metrics})
    print(
        f"{arguments.model}: {bits:.3f} bits per byte, perplexity {math.exp(loss):.1f} per token, on {size:,} bytes "
        f"({tokens:,} tokens) of {arguments.documents}"
    )


if __name__ == "__main__":
    run_main(main)
