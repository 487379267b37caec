"""Rank the answers to each prompt.

    python -m data_prep.rank_completions --completions runs/quickstart/data/completions.jsonl \
        --output runs/quickstart/data/rankings.jsonl

The ranks are those of a stand-in for a human rater: agreement with the reference answer. Rank 0 is the reference word
for word (blanks aside); the others follow by character F-score (chrF, Popović 2015, as sacrebleu computes it), and tie
within the same quarter of its scale of 0 to 100, as a person would not tell two equally wrong answers apart. One JSONL
row per prompt, `{"id", "prompt": messages, "completions": […], "ranks": […], "ranked_by"}`.
"""

import argparse
import math
from pathlib import Path

from tqdm.auto import tqdm

from data_prep.files import InputError, read_jsonl, run_main, vacant, write_jsonl

RANKED_BY = "a stand-in for a human rater: agreement with the reference (exact, then chrF in steps of {})"


def ranks_by_reference(completions: list[str], reference: str, tie_width: float = 25.0) -> list[int]:
    """Dense ranks, 0 the best: the reference word for word, then descending steps of `tie_width` chrF points."""
    from sacrebleu.metrics import CHRF

    chrf = CHRF()
    levels = []
    for completion in completions:
        exact = completion.split() == reference.split()
        # A score on the border of two steps belongs to the upper one; a perfect score that is not the reference
        # (chrF ignores order beyond six characters) stays below it.
        score = min(chrf.sentence_score(completion, [reference]).score, 99.99)
        levels.append(math.inf if exact else math.floor(score / tie_width))
    order = sorted(set(levels), reverse=True)
    return [order.index(level) for level in levels]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--completions", required=True, help="what data_prep.sample_completions wrote")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--tie_width", type=float, default=25.0, help="chrF points within which answers tie")
    arguments = parser.parse_args()
    vacant(arguments.output)
    rows = list(read_jsonl(arguments.completions))
    for number, row in enumerate(rows, start=1):
        if missing := {"prompt", "completions", "reference"} - set(row):
            raise InputError(
                f"{arguments.completions}: row {number}: no {sorted(missing)}; expected what data_prep.sample_completions "
                "writes"
            )
    output, tied = [], 0
    for row in tqdm(rows, desc="ranking", unit="prompt"):
        ranks = ranks_by_reference(row["completions"], row["reference"], arguments.tie_width)
        if len(set(ranks)) < 2:
            tied += 1
            continue
        kept = {key: row[key] for key in ("id", "prompt", "completions") if key in row}
        output.append({**kept, "ranks": ranks, "ranked_by": RANKED_BY.format(arguments.tie_width)})
    write_jsonl(arguments.output, output)
    pairs = sum(a < b for row in output for a in row["ranks"] for b in row["ranks"])
    print(
        f"ranked the answers to {len(rows):,} prompts by {RANKED_BY.format(arguments.tie_width)}: {pairs:,} pairs; "
        f"{tied:,} prompts have one answer or all answers tied and are left out; the rankings are in {arguments.output}"
    )


if __name__ == "__main__":
    run_main(main)
