r"""People judge two models blind, in the browser: how often does one win?

    python -m eval.arena --model runs/quickstart/ppo --opponent runs/quickstart/sft \
        --conversations runs/quickstart/data/conversations_heldout.json --limit 100 --results_dir runs/quickstart/results

Both models answer every prompt once; a person sees the two answers in random order without names, and says which is
better, or that they are equal (`--overlap` of the prompts are judged by two people). A prompt with the same answer twice is
a tie that nobody is asked about; it counts once the people have come to it. Of a prompt that several people judged the mean
counts. The win rate, a tie being half a win, has a 95 % bootstrap interval over prompts.

`win_rate_<name>.json` in the results folder has the form of eval.win_rate's, with people as the judge, and is written
anew after every judgement, so that eval.report shows it. Beside it are `arena_<name>.completions.jsonl`, the answers,
drawn once; `arena_<name>.jsonl`, the rankings of answers that are not empty, which recipes/reward.py reads; better
answers that people typed, in `arena_<name>.demonstrations.jsonl`; and the journal, from which the same command resumes
after a stop or a kill.
"""

import argparse
import contextlib
import hashlib
from pathlib import Path

from data_prep.common.errors import InputError, run_main
from data_prep.common.files import check_writable, read_jsonl, vacant, write_jsonl, write_results
from data_prep.common.intervals import bootstrap_interval, show_interval
from data_prep.common.text import counted
from data_prep.models.sampling_options import add_sampling_options, check_sampling_options, digest_of, drawn_before
from data_prep.pages.launch import add_page_options, check_page_options, serve
from data_prep.pages.ranking import FRAME, ranking_page
from data_prep.ranking.journal import Journal
from data_prep.ranking.people import People
from data_prep.readers.prompts import read_prompts
from data_prep.rows.read import data_files
from eval.common.options import CONVERSATIONS, add_row_options, quarantine_file

SETTINGS = ("model", "opponent", "temperature", "max_new_tokens", "seed", "limit", "columns")
JUDGE = "people, who did not see which model answered ({})"
TITLE = {"en": "Arena", "zh": "竞技场"}
WORDS = {
    "intro": (
        "You will see a question and two answers to it, and say which is better. You are not told which model wrote which. "
        "Your name is kept with every judgement, so that it is known who judged.",
        "您会看到一个问题和两个回答，请选出更好的一个。页面不会告诉您回答来自哪个模型。您的名字会与每条评判一起保存。",
    ),
    "question": ("Which answer is better?", "哪个回答更好？"),
    "keys": (
        "Keys: the number of the better answer, then Enter; = and Enter if they are equal; Backspace takes one back.",
        "按键：按较好回答的编号，再按 Enter；若相同则按 = 和 Enter；Backspace 退回。",
    ),
    "touch": (
        "Tap 1st beside the better answer, then Save; if they are equal, Equal and Save.",
        "点按较好回答旁的“第1”，再点“保存”；若相同则点“相同”和“保存”。",
    ),
}


def draw(arguments, path: Path, quarantine: Path | None) -> None:
    """Let both models answer every prompt once, into `path`; what is there already must be of the same settings."""
    files = data_files(arguments.conversations)
    settings = {name: getattr(arguments, name) for name in SETTINGS}
    settings["sha256 of the conversations"] = digest_of(files)
    if drawn_before(path, settings, "--name"):
        return
    rows = read_prompts(files, arguments.limit, arguments.seed, arguments.on_bad, quarantine, arguments.columns)
    from data_prep.models.several import answers_of_models  # slow to import: after the input has been checked

    models = [arguments.model, arguments.opponent]
    prompts = [row["prompt"] for row in rows]
    sampling = (arguments.max_new_tokens, arguments.temperature, 1, arguments.batch_size, arguments.seed)
    own, others = answers_of_models(models, prompts, *sampling)
    both = ({"completions": [*mine, *its]} for mine, its in zip(own, others, strict=True))
    write_jsonl(path, [{**row, **texts, "drawn": settings} for row, texts in zip(rows, both, strict=True)])


def outcomes(people: People) -> tuple[dict[int, list[float]], int]:
    """({row: 1, 0.5 or 0 for each judgement}, of how many rows the answers are the same), as far as people have come.

    1: the model wins, whose answer is the first; 0: its opponent.
    """
    found: dict[int, list[float]] = {}
    for (index, _), ranking in sorted(people.journal.rankings.items()):
        if "ranks" in ranking:
            own, other = ranking["ranks"]
            found.setdefault(index, []).append(0.5 + ((own < other) - (own > other)) / 2)
    seen = {index for index, _ in people.journal.rankings}
    come_to = len(people.rows) if seen >= set(people.todo) else max(seen, default=0)
    same = set(range(come_to)) - set(people.todo)
    return {**found, **{index: [0.5] for index in same}}, len(same)


def results_of(people: People, arguments) -> dict | None:
    """The results file, in the form of eval.win_rate's; None as long as nothing has been judged."""
    judged, same = outcomes(people)
    if not judged:
        return None
    flat = [value for values in judged.values() for value in values]
    rankings = people.journal.rankings.values()
    agreement = {key: value for key, value in people.agreement().items() if value}
    metrics = {
        "win_rate": bootstrap_interval([sum(values) / len(values) for values in judged.values()]),
        "wins": flat.count(1.0),
        "ties": flat.count(0.5),
        "losses": flat.count(0.0),
        "same_answer": same,
        "all_bad": sum("all_bad" in ranking for ranking in rankings),
        "skipped": sum("skipped" in ranking for ranking in rankings),
    }
    examples = [
        {
            **{key: people.rows[index][key] for key in ("id", "prompt", "reference")},
            "answer": people.rows[index]["completions"][0],
            "opponent_answer": people.rows[index]["completions"][1],
            "outcome": values[0],
        }
        for index, values in sorted(judged.items())[:8]
    ]
    return {
        "model": arguments.model,
        "opponent": arguments.opponent,
        "data": arguments.conversations,
        "judge": JUDGE.format(people.summary().partition(":")[0]),
        "raters": sorted({rater for _, rater in people.journal.rankings}),
        "prompts": len(judged),
        "num_return_sequences": 1,
        **{key: getattr(arguments, key) for key in ("temperature", "max_new_tokens", "seed")},
        "metrics": metrics,
        "agreement": agreement,
        "examples": examples,
    }


def read_arguments() -> argparse.Namespace:
    """The options; `InputError` for values that do not go together."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="folder or Hub id of the model in question")
    parser.add_argument("--opponent", required=True, help="folder or Hub id of the model it is compared with")
    parser.add_argument("--conversations", nargs="+", required=True, help=CONVERSATIONS)
    add_row_options(parser)
    parser.add_argument("--name", help="name of the results (default: <model>_vs_<opponent>_by_people)")
    parser.add_argument(
        "--results_dir", required=True, help="folder for the results file, the answers and the journal"
    )
    parser.add_argument(
        "--overlap", type=float, default=0.1, help="share of the prompts that two people judge (default: 0.1)"
    )
    add_sampling_options(
        parser, max_new_tokens=64, seed_for="sampling, --limit, --overlap and the order shown", answers=""
    )
    add_page_options(parser)
    arguments = parser.parse_args()
    check_page_options(arguments)
    check_sampling_options(arguments)
    if not 0 <= arguments.overlap <= 1:
        raise InputError(f"--overlap {arguments.overlap:g}: expected a share from 0 to 1")
    arguments.name = arguments.name or f"{Path(arguments.model).name}_vs_{Path(arguments.opponent).name}_by_people"
    return arguments


def main() -> None:
    arguments = read_arguments()
    folder, stage = Path(arguments.results_dir), f"win_rate_{arguments.name}"
    quarantine = quarantine_file(arguments.on_bad, arguments.results_dir, arguments.name)
    check_writable("--results_dir", folder)
    completions, rankings, demonstrations, path = (
        folder / f"arena_{arguments.name}{ending}"
        for ending in (".completions.jsonl", ".jsonl", ".demonstrations.jsonl", ".jsonl.journal")
    )
    if not path.exists():
        for output in (folder / f"{stage}.json", rankings, demonstrations):
            vacant(output)
    draw(arguments, completions, quarantine)
    rows = list(read_jsonl(completions))

    def write(people: People) -> None:
        # recipes/reward.py reads no empty answer.
        write_jsonl(rankings, [row for row in people.rankings() if all(map(str.strip, row["completions"]))])
        write_jsonl(demonstrations, people.demonstrations())
        if results := results_of(people, arguments):
            write_results(folder, stage, results)
        else:
            (folder / f"{stage}.json").unlink(missing_ok=True)

    digest = hashlib.sha256(completions.read_bytes()).hexdigest()
    settings = {"by": "people", "seed": arguments.seed, "sha256 of the completions": digest}
    with contextlib.closing(Journal(path, settings, durable=True, per_rater=True)) as journal:
        people = People(rows, journal, arguments.overlap, arguments.seed, write)
        if journal.rankings:
            print(f"{path}: {people.summary()}; resuming after them")
        if same := len(rows) - len(people.todo):
            print(f"{counted(same, 'prompt')} with the same answer by both: ties that nobody is asked about")
        write(people)
        title, named = TITLE[arguments.language], bool(arguments.logins)
        try:
            serve(ranking_page(people, arguments.language, title, WORDS, named), arguments, FRAME)
        finally:
            print(people.summary())
            if results := results_of(people, arguments):
                rate = show_interval(results["metrics"]["win_rate"])
                print(f"{arguments.name}: wins {rate} on {counted(results['prompts'], 'prompt')}, judged by people")


if __name__ == "__main__":
    run_main(main)
