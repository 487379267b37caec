r"""Rank the answers to each prompt: by a person, a reward model, a function, a language model, or agreement with a reference.

    python -m data_prep.rank_completions --completions runs/quickstart/data/completions.jsonl \
        --output runs/quickstart/data/rankings.jsonl
    python -m data_prep.rank_completions --by person --rater Ada --completions … --output …
    python -m data_prep.rank_completions --by reward_model --reward_model runs/quickstart/reward --completions … --output …
    python -m data_prep.rank_completions --by function --function my_rewards.py:brevity --completions … --output …
    python -m data_prep.rank_completions --by judge --judge judge.yaml --agreement_with people.jsonl --completions … --output …

By default the ranks are those of a proxy for a human rater, agreement with the reference. Exact matches (whitespace
aside) have rank 0. The others follow by character F-score (chrF, Popović 2015, as sacrebleu computes it) and tie within
the same quarter of its scale of 0 to 100: a person would not tell two equally wrong answers apart either. With
`--measure exact_match` all others tie. Reward models and functions (see data_prep/rewards.py) give scores, which are
written too; a function, such as data_prep.rewards.rubric, is a stand-in for a human rater as well, and "ranked_by" says so.

A language model judges by a rubric (data_prep/judging/rubric.yaml; another one: --rubric). `--judge` is a folder or Hub id,
or a YAML with the keys of data_prep/judging/settings.py: `model`, `url` of an OpenAI-compatible server, prices. It is asked
about every pair of answers in both orders, with `ask: ranking` about all answers at once in both; an answer's score is the
share of the others that it beats. Replies without a verdict are counted, never guessed, and leave their prompt out. Printed
are its bias by place, its cost, and its agreement with the rankings of people in `--agreement_with`, which it is asked about
too (or with a function, a reward model or the reference).

It can be stopped at any time, by Ctrl-C or a kill, and the same command resumes: rankings are kept in a journal beside
the output, which appears whole at the end. One JSONL row per prompt, `{"id", "prompt": messages, "completions": […],
"ranks": […], "ranked_by", "ranked_at"}`, with the "scores", the "rater" (the person), and what
data_prep.sample_completions wrote under "counts" (how often each answer was sampled) and "drawn" (the model and the
sampling settings).
"""

import argparse
import contextlib
import hashlib
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path

from tqdm.auto import tqdm

from data_prep.common.errors import InputError, run_main
from data_prep.common.files import vacant, write_jsonl
from data_prep.common.text import counted
from data_prep.judging.agreement import agreement_line, judged_with_agreement
from data_prep.judging.judges import Judge, load_judge
from data_prep.judging.language_model import ranks_of_outcomes, told_line
from data_prep.ranking.completions import KEPT, read_completions
from data_prep.ranking.journal import Journal
from data_prep.ranking.raters import Rater, by_chrf, by_exact_match, by_function, by_reward_model
from data_prep.ranking.terminal import rank_in_terminal
from data_prep.readers.ranks import pairs

PROXY = "a stand-in for a human rater: agreement with the reference"  # stored in rankings: it stays as it is
ANSWERS_AT_ONCE = 128  # ranked in one call, and written to the journal together


def parts(rows: list[dict]) -> list[list[int]]:
    """The positions of the rows with two answers or more, in parts of at most `ANSWERS_AT_ONCE` answers or of one row.

    The parts do not depend on what has been ranked already. Padding changes the last digits of a model's scores, and a
    resumed run has to give the same scores as one that was never stopped.
    """
    found: list[list[int]] = []
    room = 0
    for index, row in enumerate(rows):
        if (answers := len(row["completions"])) < 2:
            continue
        if answers > room:
            found.append([])
            room = ANSWERS_AT_ONCE
        found[-1].append(index)
        room -= answers
    return found


def rank_by_machine(rows: list[dict], journal: Journal, rater: Rater, about: dict) -> None:
    """Rank the rows that the journal has no ranking of."""
    groups = parts(rows)
    total, done = sum(map(len, groups)), len(journal.rankings)
    with tqdm(total=total, initial=done, desc="ranking", unit="prompt", disable=None) as bar:
        for part in groups:
            if missing := [index for index in part if index not in journal.rankings]:
                ranked = dict(zip(part, rater([rows[index] for index in part]), strict=True))
                journal.add([{"row": index, **ranked[index], **about} for index in missing])
                bar.update(len(missing))


def rank_by_judge(rows: list[dict], judge: Judge, other: Judge | None) -> dict[int, dict]:
    """{row: its ranking} by a language model, without the rows that it gives no verdict on. Prints what it told of itself."""
    outcomes, agreed = judged_with_agreement(judge, rows, None, other)
    print(f"the judge: {told_line(judge.told())}\nthe judge: {agreement_line(agreed)}")
    about = {"ranked_by": judge.words, "ranked_at": datetime.now(UTC).isoformat(timespec="seconds")}
    found = enumerate(ranks_of_outcomes(rows, outcomes))
    return {index: {**ranking, **about} for index, ranking in found if ranking}


def loaded_judge(arguments) -> tuple[Judge, Judge | None]:
    """(the language model that ranks, whom its agreement is measured with)."""
    judge = load_judge(arguments.judge, arguments.rubric, arguments.output)
    if judge.language_model is None:
        raise InputError(f"--judge {arguments.judge}: found no language model; for {judge.words} use another --by")
    other = load_judge(arguments.agreement_with) if arguments.agreement_with else None
    if other is not None and other.language_model is not None:
        raise InputError(
            "--agreement_with: found a language model; expected rankings, a function, a reward model or reference"
        )
    return judge, other


def ranked_by(arguments) -> tuple[str, dict]:
    """(who ranks, in words; the settings that the ranks depend on). `InputError` if an option is missing or unused."""
    for option, by in (
        ("rater", "person"),
        ("reward_model", "reward_model"),
        ("function", "function"),
        ("judge", "judge"),
    ):
        given = getattr(arguments, option) is not None
        if given != (arguments.by == by):
            raise InputError(f"--by {arguments.by} {'does not use' if given else 'needs'} --{option}")
    for option in ("rubric", "agreement_with"):
        if getattr(arguments, option) is not None and arguments.by != "judge":
            raise InputError(f"--by {arguments.by} does not use --{option}")
    if arguments.by == "judge":
        return "", {}  # its journal is that of its replies
    if arguments.by == "person":
        return "a person", {"seed": arguments.seed}
    if arguments.by == "reward_model":
        return f"the reward model {arguments.reward_model}", {"reward_model": arguments.reward_model}
    if arguments.by == "function":
        return f"a stand-in for a human rater: the function {arguments.function}", {"function": arguments.function}
    if arguments.measure == "exact_match":
        return f"{PROXY} (exact)", {"measure": "exact_match"}
    if not arguments.tie_width > 0:
        raise InputError(f"--tie_width: found {arguments.tie_width}; expected more than 0")
    tie_width = arguments.tie_width
    return f"{PROXY} (exact, then chrF in steps of {tie_width})", {"measure": "chrf", "tie_width": tie_width}


def output_rows(
    rows: list[dict], rankings: dict[int, dict], keep_ties: bool, missing: str = "not ranked"
) -> tuple[list[dict], Counter]:
    """(the rows of the output, how many are left out by reason).

    `keep_ties` keeps rows whose answers all tie: if a person ranked them so, readers of rankings should count them. From
    a measure, such a tie only says that it cannot tell the answers apart.
    """
    output, left_out = [], Counter()
    for index, row in enumerate(rows):
        ranking = rankings.get(index, {})
        ranks = ranking.get("ranks", [])
        if len(row["completions"]) < 2:
            left_out["with one answer"] += 1
        elif ranks and len(set(ranks)) < 2 and not keep_ties:
            left_out["with all answers tied"] += 1
        elif not ranks:
            left_out["skipped" if ranking else missing] += 1
        else:
            kept = {key: row[key] for key in KEPT if key in row}
            output.append(kept | {key: value for key, value in ranking.items() if key != "row"})
    return output, left_out


def save(path: Path, rows: list[dict], output: list[dict], left_out: Counter, who: str) -> None:
    """Write the rankings, and say how many there are."""
    write_jsonl(path, output)
    line = f"ranked the answers to {len(output):,} of {counted(len(rows), 'prompt')} by {who}: "
    line += counted(sum(len(pairs(row["ranks"])) for row in output), "pair")
    if left_out:
        line += "; left out: " + ", ".join(f"{count:,} {reason}" for reason, count in left_out.items())
    print(f"{line}; the rankings are in {path}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--completions", required=True, help="file that data_prep.sample_completions wrote")
    parser.add_argument("--output", type=Path, required=True, help="the JSON Lines file to write")
    parser.add_argument(
        "--by",
        choices=("person", "reward_model", "function", "judge", "reference"),
        default="reference",
        help="who ranks (default: reference)",
    )
    parser.add_argument("--rater", help="with --by person: the person's name, written with every ranking")
    parser.add_argument(
        "--seed", type=int, default=42, help="with --by person: order in which answers are shown (default: 42)"
    )
    parser.add_argument("--reward_model", help="with --by reward_model: its folder")
    parser.add_argument("--function", help="with --by function: path/to/file.py:name or package.module.name")
    parser.add_argument("--judge", help="with --by judge: the YAML, folder or Hub id of a language model")
    parser.add_argument("--rubric", help="with --by judge: the YAML of what it is told (default: the judge's own)")
    parser.add_argument(
        "--agreement_with",
        help="with --by judge: a file of rankings, best of people, or a function, a reward model, reference (default: none, "
        "and the agreement is not measured)",
    )
    parser.add_argument(
        "--measure", choices=("chrf", "exact_match"), default="chrf", help="with --by reference (default: chrf)"
    )
    parser.add_argument(
        "--tie_width", type=float, default=25.0, help="with chrf: points within which answers tie (default: 25)"
    )
    arguments = parser.parse_args()
    who, settings = ranked_by(arguments)
    vacant(arguments.output)
    rows = read_completions(arguments.completions, arguments.by == "reference")
    if arguments.by == "judge":
        judge, other = loaded_judge(arguments)
        rankings, who = rank_by_judge(rows, judge, other), judge.words
        output, left_out = output_rows(rows, rankings, keep_ties=False, missing="without a verdict")
        save(arguments.output, rows, output, left_out, who)
        judge.close()
        return
    person = arguments.by == "person"
    if arguments.by == "reward_model":
        rater = by_reward_model(arguments.reward_model, rows)
    elif arguments.by == "function":
        rater = by_function(arguments.function)
    else:
        rater = by_exact_match() if arguments.measure == "exact_match" else by_chrf(arguments.tie_width)

    digest = hashlib.sha256(Path(arguments.completions).read_bytes()).hexdigest()
    settings = {"by": arguments.by, **settings, "sha256 of the completions": digest}
    path = arguments.output.with_name(f"{arguments.output.name}.journal")
    with contextlib.closing(Journal(path, settings, durable=person)) as journal:
        if journal.rankings:
            print(f"{path}: {counted(len(journal.rankings), 'ranking')} of an earlier run; resuming after them")
        if not person:
            rank_by_machine(rows, journal, rater, {"ranked_by": who})
        elif not rank_in_terminal(rows, journal, {"ranked_by": who, "rater": arguments.rater}, arguments.seed):
            print(f"{counted(len(journal.rankings), 'ranking')} kept in {path}; the same command resumes")
            return
        output, left_out = output_rows(rows, journal.rankings, keep_ties=person)
    save(arguments.output, rows, output, left_out, who)
    path.unlink()


if __name__ == "__main__":
    run_main(main)
