"""How often does a reward model score the better-ranked answer higher?

    python -m eval.reward_accuracy --model runs/quickstart/reward \
        --rankings runs/quickstart/data/rankings_heldout.jsonl --name heldout --results_dir runs/quickstart/results

Measures the accuracy over all pairs of unequal rank, with equal weight per prompt and a 95 % bootstrap interval over
prompts; the mean margin (reward of the better answer minus that of the worse); and the correlation of reward with
length, which shows whether the model prefers long answers (Singhal 2023, arXiv:2310.03716). Writes `reward_accuracy_<name>.json`.
"""

import argparse
import time
from pathlib import Path

from data_prep.common.errors import run_main
from data_prep.common.files import write_results
from data_prep.common.intervals import show_interval
from data_prep.readers.preferences import read_rankings
from eval.common.options import add_result_options, add_row_options, quarantine_file


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="folder or Hub id of a reward model")
    parser.add_argument(
        "--rankings",
        nargs="+",
        required=True,
        help="files, folders or globs of rankings or pairs, in any format that data_prep reads (see data_prep/README.md)",
    )
    add_row_options(parser)
    add_result_options(parser, "the model's folder")
    arguments = parser.parse_args()
    name = arguments.name or Path(arguments.model).name
    quarantine = quarantine_file(arguments.on_bad, arguments.results_dir, name)
    rows, counts = read_rankings(arguments.rankings, arguments.on_bad, quarantine, arguments.columns)
    changed = {key: count for key, count in counts.items() if key.startswith(("repaired", "quarantined")) and count}
    if changed:
        print("; ".join(f"{key}: {count:,}" for key, count in changed.items()))

    from data_prep.models.loading import check_chat, load_checkpoint
    from data_prep.models.scoring import ranking_agreement  # slow to import: after the input has been checked

    model, tokenizer = load_checkpoint(arguments.model, reward_model=True)
    check_chat(arguments.model, model, tokenizer, 1)
    start = time.perf_counter()
    agreement = ranking_agreement(model, tokenizer, rows)
    correlation = agreement["length_correlation"]
    if arguments.results_dir:
        about = {"seconds": time.perf_counter() - start, "model": arguments.model, "data": arguments.rankings}
        results = {**about, "rankings": len(rows), "counts": counts, "metrics": agreement}
        write_results(arguments.results_dir, f"reward_accuracy_{name}", results)
    print(
        f"{name}: {show_interval(agreement['accuracy'])} of {agreement['pairs']:,} pairs right (from {len(rows):,} prompts), "
        f"margin {agreement['margin']:.2f}, correlation of reward with length "
        + ("undefined" if correlation is None else f"{correlation:+.2f}")
    )


if __name__ == "__main__":
    run_main(main)
