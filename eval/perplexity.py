r"""How well does a language model predict documents it has not seen? Bits per byte, and perplexity per token.

    python -m eval.perplexity --model runs/quickstart/base \
        --documents runs/quickstart/data/corpus_heldout.jsonl --results_dir runs/quickstart/results

Reads documents or conversations (their text only). A document longer than the model's context is split into windows;
each window starts without the tokens before it. A document's first token is predicted from bos_token, where there is
none from eos_token, and where there is neither it is not scored; the screen says which. Bits per byte can be compared
between any two models, perplexity per token only between models with the same tokenizer. Beside it stands, for each
source (`--source_column`, else the file), what gzip -9 and xz -9 need for the same text. Writes
`perplexity_<name>.json`.
"""

import argparse
import time
from pathlib import Path

from data_prep.common.errors import run_main
from data_prep.common.files import existing, write_results
from data_prep.common.numbers import check_at_least
from data_prep.rows.bad_rows import BadRows
from eval.common.options import add_on_bad, add_result_options, quarantine_file
from eval.common.stamps import stamps
from eval.harness.documents import measure_documents, read_sources, source_line


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="folder or Hub id of a causal language model")
    parser.add_argument(
        "--documents",
        required=True,
        help="documents or conversations, in any format that data_prep reads (see data_prep/README.md)",
    )
    parser.add_argument("--text_column", default="text", help="column with the text of documents (default: text)")
    parser.add_argument(
        "--source_column", default="source", help="column with the source of documents (default: source)"
    )
    add_on_bad(parser)
    add_result_options(parser, "the model's folder")
    parser.add_argument("--batch_size", type=int, default=16, help="sequences scored at once (default: 16)")
    arguments = parser.parse_args()
    check_at_least(1, arguments, "batch_size")
    existing(arguments.documents)
    name = arguments.name or Path(arguments.model).name
    bad_rows = BadRows(arguments.on_bad, quarantine_file(arguments.on_bad, arguments.results_dir, name))

    from data_prep.models.loading import load_checkpoint  # slow to import

    model, tokenizer = load_checkpoint(arguments.model)
    start = time.perf_counter()
    found = read_sources(arguments.documents, arguments.text_column, arguments.source_column, bad_rows)
    if bad_rows.quarantined:
        print(f"{arguments.documents}: {bad_rows.counts_line()}")
    if repaired := +bad_rows.repaired:
        print(
            f"{arguments.documents}: repaired: {', '.join(f'{count:,} × {kind}' for kind, count in repaired.items())}"
        )
    measured, _ = measure_documents(model, tokenizer, found, arguments.batch_size)
    metrics, first = measured["metrics"], measured["first_token_from"]
    if first == "eos_token":
        print(
            f"{arguments.model}: its tokenizer has no bos_token: a document's first token is predicted from "
            f"{tokenizer.eos_token!r}, its eos_token"
        )
    elif first is None:
        print(
            f"{arguments.model}: its tokenizer has neither bos_token nor eos_token: the first token of each document, "
            f"{measured['unscored_tokens']:,} in all, is not scored, and its bytes are not counted"
        )
    if arguments.results_dir:
        about = {"seconds": time.perf_counter() - start, "model": arguments.model, "data": [arguments.documents]}
        write_results(arguments.results_dir, f"perplexity_{name}", {**about, **stamps(arguments.model), **measured})
    print(
        f"{arguments.model}: {metrics['bits_per_byte']:.3f} bits per byte, perplexity "
        f"{metrics['perplexity_per_token']:.1f} per token, on {measured['bytes']:,} bytes "
        f"({measured['tokens']:,} tokens) of {arguments.documents}"
    )
    for source, figures in measured["sources"].items():
        print(f"  {source_line(source, figures)}")


if __name__ == "__main__":
    run_main(main)
