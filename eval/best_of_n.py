r"""What is a reward worth without training? The verdict on the answer that it picks among n.

    python -m data_prep.sample_completions --model runs/quickstart/sft --num_return_sequences 16 --limit 300 \
        --conversations runs/quickstart/data/conversations_heldout.json --output runs/quickstart/data/sixteen.jsonl
    python -m data_prep.rank_completions --by function --function data_prep.rewards.rubric \
        --completions runs/quickstart/data/sixteen.jsonl --output runs/quickstart/data/sixteen_ranked.jsonl
    python -m eval.best_of_n --reward runs/quickstart/reward --rankings runs/quickstart/data/sixteen_ranked.jsonl \
        --name heldout --results_dir runs/quickstart/results

For n = 1, 2, 4, 8, 16, as far as prompts have so many samples: the verdict on a random answer, on the one with the
highest reward among n, and on the best among n by the verdict itself, which is all there is to gain. Exact over all
subsets of the samples, with 95 % bootstrap intervals over prompts. The verdict is what the rankings hold, scores or
ranks; `--judge` takes another one, in any form that eval/judge.py takes. The reward may be of any of these forms, too.
Writes `best_of_n_<name>.json` and a picture, `best_of_n_<name>.png`. The same curve is part of `eval.reward_gate`,
beside what else a reward must know.
"""

import argparse
import random
import time
from pathlib import Path

from data_prep.common.disjoint import check_disjoint
from data_prep.common.errors import InputError, run_main
from data_prep.common.files import atomic_write, write_results
from data_prep.common.numbers import check_at_least
from data_prep.common.text import counted
from data_prep.gate.answers import read_answers
from data_prep.gate.measures import best_of_n, verdicts
from data_prep.gate.trained_on import trained_prompts
from data_prep.gate.verdict import points
from data_prep.judging.agreement import NOT_MEASURED, agreement_line, judged_with_agreement
from data_prep.judging.judges import NAMES, Judge, load_judge, short_name
from data_prep.judging.language_model import ranks_of_outcomes, told_line
from data_prep.readers.preferences import prompt_key
from eval.common.options import add_judge, add_result_options, add_row_options, load_judges, quarantine_file
from eval.judging.outcomes import say


def read_arguments() -> argparse.Namespace:
    """The options; `InputError` for values out of their range."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--reward", required=True, help=f"what picks: {NAMES}")
    parser.add_argument(
        "--rankings",
        nargs="+",
        required=True,
        help="files, folders or globs of ranked answers of one model, as data_prep.rank_completions writes them",
    )
    add_judge(parser, "recorded, the ranks or scores in the rankings")
    add_row_options(parser)
    add_result_options(parser, "the reward's")
    parser.add_argument("--limit", type=int, help="number of prompts, sampled at random (default: all)")
    parser.add_argument("--seed", type=int, default=42, help="seed for --limit (default: 42)")
    arguments = parser.parse_args()
    check_at_least(1, arguments, "limit")
    if arguments.judge == "recorded" and (arguments.rubric or arguments.agreement_with):
        raise InputError(
            "--rubric and --agreement_with: need --judge; the verdict of the rankings is whoever ranked them"
        )
    return arguments


def to_judge(row: dict) -> dict:
    """A row of `read_answers` as a judge takes it."""
    return {**row["columns"], "prompt": row["prompt"], "completions": row["completions"]}


def values_by(reward: Judge, rows: list[dict]) -> list[list[float] | None]:
    """What picks: the scores of each row's answers, or their ranks turned round; None for a row without a verdict."""
    rankings = reward.rank([to_judge(row) for row in rows])
    return [
        ranking.get("scores") or [-float(rank) for rank in ranking["ranks"]] if ranking else None
        for ranking in rankings
    ]


def worth_by(judge: Judge, rows: list[dict], other: Judge | None) -> tuple[list[list[float] | None], str, dict | None]:
    """(what each answer is worth to a judge, or None for a row without a verdict; that in words; its agreement).

    The scores of a function or reward model, otherwise the chance to beat a random answer to the same prompt.
    """
    asked = [to_judge(row) for row in rows]
    outcomes, agreed = (
        judged_with_agreement(judge, asked, None, other) if judge.language_model or other else (None, None)
    )
    rankings = ranks_of_outcomes(asked, outcomes) if judge.language_model else judge.rank(asked)
    if judge.language_model is None and all(ranking.get("scores") for ranking in rankings):
        return [ranking["scores"] for ranking in rankings], f"points of {judge.words}", agreed
    ranked = [
        {**row, "scores": None, "ranks": each["ranks"]} for row, each in zip(rows, rankings, strict=True) if each
    ]
    worth, words = verdicts(ranked)
    left = iter(worth)
    return [next(left) if ranking else None for ranking in rankings], f"{words}, by {judge.words}", agreed


def main() -> None:
    arguments = read_arguments()
    name = arguments.name or short_name(arguments.reward)
    quarantine = quarantine_file(arguments.on_bad, arguments.results_dir, name)
    kept = Path(arguments.results_dir, f".best_of_n_{name}") if arguments.results_dir else None
    reward = load_judge(arguments.reward, journal=kept and kept.with_name(f"{kept.name}.reward"))
    judge, other = (None, None) if arguments.judge == "recorded" else load_judges(arguments, kept)
    rows = read_answers(arguments.rankings, arguments.on_bad, quarantine, arguments.columns)
    if Path(arguments.reward).is_dir() and reward.language_model is None:
        trained, unknown = trained_prompts(arguments.reward)
        check_disjoint(trained, [prompt_key(row["prompt"]) for row in rows], arguments.rankings)
        if unknown:
            print(f"whether {arguments.reward} was trained on these prompts is not known: {unknown}")
    if arguments.limit and arguments.limit < len(rows):
        print(f"{arguments.limit:,} of {counted(len(rows), 'prompt')} are used (--limit)")
        rows = random.Random(arguments.seed).sample(rows, arguments.limit)
    start = time.perf_counter()
    values = values_by(reward, rows)
    agreed = None
    if judge is None:
        worth, words = verdicts(rows)
        whose = sorted({str(row["columns"].get("ranked_by")) for row in rows})
        words = f"{words}; ranked by {', '.join(whose) if whose != ['None'] else 'whom the rankings do not say'}"
    else:
        worth, words, agreed = worth_by(judge, rows, other)
    whole = [index for index, pair in enumerate(zip(values, worth, strict=True)) if None not in pair]
    if len(whole) < len(rows):
        print(f"left out: {counted(len(rows) - len(whole), 'prompt')} without a verdict on every answer")
    if not whole:
        raise InputError(f"{', '.join(arguments.rankings)}: no prompt has a verdict on every answer")
    rows, values, worth = ([each[index] for index in whole] for each in (rows, values, worth))
    found = best_of_n(rows, values, worth)
    people = agreement_line(agreed) if judge else agreement_of_recorded(rows)
    gained = f"best of {found[-1]['n']} by it gains {points(found[-1]['gain'], digits=3)} ({words})"
    if arguments.results_dir:
        about = {"seconds": time.perf_counter() - start, "reward": arguments.reward, "judge": words}
        about |= {"data": arguments.rankings, "prompts": len(rows), "agreement": agreed or "not measured"}
        about |= {"judge_told": judge.told()} if judge and judge.language_model else {}
        about |= {"verdict": {"line": f"{reward.words}: {gained}; {people}"}}
        write_results(arguments.results_dir, f"best_of_n_{name}", about | {"metrics": {"best_of_n": found}})
        from eval.judging.picture import best_of_n_picture  # slow to import

        with atomic_write(Path(arguments.results_dir, f"best_of_n_{name}.png"), "wb") as file:
            file.write(best_of_n_picture(found, words))
    print(f"{name}, on {counted(len(rows), 'prompt')}: best of n by {reward.words} ({words})")
    for row in found:
        values = ", ".join(f"{label} {row[key]['value']:z.3f}" for key, label in WORDS.items())
        print(f"  n = {row['n']:<2} {values}; it gains {points(row['gain'], digits=3)}")
    if found[-1]["n"] < 16:
        print(f"n ends at {found[-1]['n']}: fewer than half of the prompts have more samples")
    if told := reward.told():
        print(f"{name}: the reward: {told_line(told)}")
    if judge:
        say(f"{name}: the judge", judge, agreed)
        judge.close()
    else:
        print(f"{name}: {people}")
    reward.close()


WORDS = {"random": "random", "reward": "the reward's pick", "rater": "the verdict's own"}


def agreement_of_recorded(rows: list[dict]) -> str:
    """How far a verdict that the rankings hold is that of people."""
    people = all(row["columns"].get("ranked_by") == "a person" for row in rows)
    return "the verdict is that of people" if people else NOT_MEASURED


if __name__ == "__main__":
    run_main(main)
