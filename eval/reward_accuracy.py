r"""How often does a reward model score the better-ranked answer higher?

    python -m eval.reward_accuracy --model runs/quickstart/reward \
        --rankings runs/quickstart/data/rankings_heldout.jsonl --name heldout --results_dir runs/quickstart/results

Measures the accuracy over all pairs of unequal rank, with equal weight per prompt and a 95 % bootstrap interval over
prompts; the mean margin (reward of the better answer minus that of the worse); and the correlation of reward with
length, which shows whether the model prefers long answers (Singhal 2023, arXiv:2310.03716). Also the accuracy by the
distance of the two rewards, by the difference in length and by the distance of the rater's scores; whether sigmoid(margin)
comes true (calibration); and Kendall's tau with rankings of several answers. A file with a column `subset`, as those of
RewardBench (prompt, chosen, rejected, subset), is split by it. Writes `reward_accuracy_<name>.json` and a picture,
`reward_accuracy_<name>.png`.
"""

import argparse
import time
from pathlib import Path

from data_prep.common.disjoint import check_disjoint
from data_prep.common.errors import run_main
from data_prep.common.files import atomic_write, write_results
from data_prep.common.numbers import check_at_least
from data_prep.gate.trained_on import trained_prompts
from data_prep.readers.preferences import prompt_key, read_rankings
from eval.common.options import add_result_options, add_row_options, quarantine_file
from eval.common.stamps import stamps


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
    parser.add_argument("--subset_column", default="subset", help="column to split by (default: subset)")
    add_result_options(parser, "the model's folder")
    parser.add_argument("--batch_size", type=int, default=128, help="answers scored at once (default: 128)")
    arguments = parser.parse_args()
    check_at_least(1, arguments, "batch_size")
    name = arguments.name or Path(arguments.model).name
    quarantine = quarantine_file(arguments.on_bad, arguments.results_dir, name)
    rows, counts = read_rankings(
        arguments.rankings, arguments.on_bad, quarantine, arguments.columns, arguments.subset_column
    )
    changed = {key: count for key, count in counts.items() if key.startswith(("repaired", "quarantined")) and count}
    if changed:
        print("; ".join(f"{key}: {count:,}" for key, count in changed.items()))
    trained, unknown = trained_prompts(arguments.model)
    check_disjoint(trained, [prompt_key(row["prompt"]) for row in rows], arguments.rankings)
    if unknown:
        print(f"whether {arguments.model} was trained on these prompts is not known: {unknown}")

    from data_prep.models.loading import check_chat, load_checkpoint
    from data_prep.models.scoring import score_rankings  # slow to import: after the input has been checked
    from eval.harness.rewards import lines, measure_rankings, picture

    model, tokenizer = load_checkpoint(arguments.model, reward_model=True)
    check_chat(arguments.model, model, tokenizer, 1)
    start = time.perf_counter()
    metrics = measure_rankings(*score_rankings(model, tokenizer, rows, batch_size=arguments.batch_size))
    if arguments.results_dir:
        about = {"seconds": time.perf_counter() - start, "model": arguments.model, "data": arguments.rankings}
        results = {**about, **stamps(arguments.model), "rankings": len(rows), "counts": counts, "metrics": metrics}
        write_results(arguments.results_dir, f"reward_accuracy_{name}", results)
        with atomic_write(Path(arguments.results_dir, f"reward_accuracy_{name}.png"), "wb") as file:
            file.write(picture(metrics))
    print("\n".join(lines(name, metrics)))


if __name__ == "__main__":
    run_main(main)
