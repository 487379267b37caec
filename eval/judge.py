r"""How far can a judge be trusted? It compares answers by pairs, and is held against people.

    python -m eval.judge --judge judge.yaml --rankings people.jsonl --name qwen --results_dir runs/quickstart/results
    python -m eval.judge --judge runs/quickstart/reward --rankings runs/quickstart/data/rankings_heldout.jsonl
    python -m eval.judge --judge Qwen/Qwen3-0.6B --rubric mine.yaml --completions runs/quickstart/data/completions.jsonl \
        --agreement_with data_prep.rewards.rubric --limit 50

`--judge` is a language model, as a folder or Hub id or as a YAML with the keys of data_prep/judging/settings.py,

    model: qwen3                        # its name at the url; without url a folder or Hub id
    url: http://127.0.0.1:8000/v1       # an OpenAI-compatible server; its key, if any, is in OPENAI_API_KEY
    rubric: mine.yaml                   # default: data_prep/judging/rubric.yaml; --rubric takes its place
    ask: pairs                          # or ranking: all answers to a prompt at once
    price_per_million_prompt_tokens: 0.1
    price_per_million_completion_tokens: 0.4

or anything else that judges: a reward model, a function, a file of rankings, the reference. A language model is asked about
each pair in both orders. A win counts where both orders agree, everything else is a tie (Zheng 2023, arXiv:2306.05685); a
reply without a verdict is counted and never guessed. Measured are its bias by place (+100 %: the answer shown first always
wins), ties, the verdicts that change with the order, calls, tokens and price, and how far it agrees with the ranks in
`--rankings`, or with `--agreement_with` (people's rankings, or another judge on the same answers): the share of decided pairs
it gets right, Cohen's kappa, Kendall's tau, with 95 % bootstrap intervals over prompts. Without either, agreement with
people is not measured, and the output says so. Replies are kept: the same command, run again after a stop, asks only for the
rest. Writes `judge_<name>.json`, and with a language model each reply to `judge_<name>_replies.jsonl`.
"""

import argparse
import random
import time
from pathlib import Path

from data_prep.common.errors import InputError, run_main
from data_prep.common.files import write_jsonl, write_results
from data_prep.common.numbers import check_at_least
from data_prep.common.text import counted
from data_prep.judging.agreement import agreement, agreement_line, described, judged_with_agreement
from data_prep.judging.judges import Judge, recorded, short_name
from data_prep.judging.language_model import told_line
from data_prep.ranking.completions import read_completions
from eval.common.options import add_judge, add_result_options, add_row_options, load_judges, quarantine_file


def read_arguments() -> argparse.Namespace:
    """The options; `InputError` for values that do not go together."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_judge(parser)
    parser.add_argument(
        "--rankings",
        nargs="+",
        help="files, folders or globs of ranked answers, in any format that data_prep reads: agreement is measured with them",
    )
    parser.add_argument("--completions", help="answers without ranks instead: a file of data_prep.sample_completions")
    add_row_options(parser)
    add_result_options(parser, "the judge's")
    parser.add_argument("--limit", type=int, help="number of prompts, sampled at random (default: all)")
    parser.add_argument("--seed", type=int, default=42, help="seed for --limit (default: 42)")
    arguments = parser.parse_args()
    if bool(arguments.rankings) == bool(arguments.completions):
        raise InputError("expected one of --rankings and --completions")
    if arguments.completions and (arguments.columns or arguments.on_bad != "error"):
        raise InputError("--on_bad and --columns: are for --rankings")
    check_at_least(1, arguments, "limit")
    return arguments


def judged(judge: Judge, rows: list[dict], own: Judge | None, other: Judge | None) -> tuple[list[dict], list[dict]]:
    """(the outcomes of all pairs; the agreement with the ranks of the rows, if they have any, and with `other`)."""
    outcomes, agreed = judged_with_agreement(judge, rows, None, other)
    found = [described(own, agreement(rows, outcomes, own.outcomes(rows, None)))] if own else []
    return outcomes, found + ([agreed] if agreed else [])


def main() -> None:
    arguments = read_arguments()
    name = arguments.name or short_name(arguments.judge)
    quarantine = quarantine_file(arguments.on_bad, arguments.results_dir, name)
    kept = Path(arguments.results_dir, f".judge_{name}") if arguments.results_dir else None
    judge, other = load_judges(arguments, kept)
    data = arguments.rankings or [arguments.completions]
    own = recorded(arguments.rankings, arguments.on_bad, quarantine, arguments.columns) if arguments.rankings else None
    rows = own.rows if own else read_completions(arguments.completions, by_reference=False)
    if arguments.limit and arguments.limit < len(rows):
        print(f"{arguments.limit:,} of {counted(len(rows), 'prompt')} are used (--limit)")
        rows = random.Random(arguments.seed).sample(rows, arguments.limit)
    if not any(len(row["completions"]) > 1 for row in rows):
        raise InputError(f"{', '.join(data)}: found no prompt with two different answers to compare")
    start = time.perf_counter()
    outcomes, agreements = judged(judge, rows, own, other)
    values = [value for row in outcomes for value in row.values()]
    counts = {"pairs": len(values), "ties": values.count(0.5), "without_verdict": values.count(None)}
    told = judge.told()
    said = [
        told_line(told)
        if told
        else f"{counted(counts['pairs'], 'pair')}, {counts['ties']:,} of them ties, {counts['without_verdict']:,} without a "
        "verdict; it does not see an order",
        *map(agreement_line, agreements or [None]),
    ]
    if arguments.results_dir:
        about = {"seconds": time.perf_counter() - start, "judge": judge.words, "data": data, "prompts": len(rows)}
        about |= {"agreement_with_people": any(each["people"] and each["pairs"] for each in agreements)}
        metrics = {**counts, **(told or {}), "agreement": agreements}
        about |= {"verdict": {"line": "; ".join(said)}}
        metrics.pop("cost_line", None)  # in words, as part of the line
        if judge.language_model:
            path = Path(arguments.results_dir, f"judge_{name}_replies.jsonl")
            write_jsonl(path, judge.language_model.records())
            print(f"{name}: the replies are in {path}")
        write_results(arguments.results_dir, f"judge_{name}", about | {"metrics": metrics})
    judge.close()
    print(f"{name}: the judge is {judge.words}")
    for line in said:
        print(f"{name}: {line}")


if __name__ == "__main__":
    run_main(main)
