r"""People rank answers in the browser, blind: a page for several at a time.

    python -m data_prep.rank_page --completions runs/quickstart/data/completions.jsonl \
        --output runs/quickstart/data/rankings_by_people.jsonl
    python -m data_prep.rank_page --model runs/quickstart/sft runs/quickstart/ppo \
        --conversations runs/quickstart/data/prompts_rankings.json --limit 100 --output …
    python -m data_prep.rank_page --host 0.0.0.0 --logins raters.txt --completions … --output …

Each person gives a name and puts the answers to a question in order, by keyboard, click or drag; equal ones may tie, and a
prompt may be skipped or have only bad answers. With `--logins`, a file with a line name:password for each person, the name
is that of the login. A prompt goes to one person, a share `--overlap` of them to two, whose agreement is shown. Nobody sees
which model wrote what, and the order of the answers is random.

With `--model` the answers are drawn first, from one model or several, into `OUTPUT.completions.jsonl`, which the same
command finds again. Every judgement is on the disk, in `OUTPUT.journal`, before the page goes on; the same command resumes
after a stop or a kill. From the journal two files are written anew after every judgement: the rankings in OUTPUT, as
recipes/reward.py reads them, `{"id", "prompt", "completions", "ranks", "ranked_by", "rater", "ranked_at"}`, with "note" and
"all_bad" where given (all ranks tie then), and `OUTPUT.demonstrations.jsonl`: better answers that people typed, in the
Baichuan format, for recipes/sft.py. Skipped prompts are in the journal alone.
"""

import argparse
import contextlib
import hashlib
from collections.abc import Callable
from pathlib import Path

from data_prep.common.errors import InputError, run_main
from data_prep.common.files import vacant, write_jsonl
from data_prep.common.text import counted
from data_prep.models.sampling_options import (
    add_conversations_options,
    add_sampling_options,
    check_model,
    check_sampling_options,
    digest_of,
    drawn_before,
)
from data_prep.pages.launch import add_page_options, check_page_options, serve
from data_prep.pages.ranking import FRAME, ranking_page
from data_prep.ranking.completions import read_completions
from data_prep.ranking.journal import Journal
from data_prep.ranking.people import People
from data_prep.readers.prompts import read_prompts
from data_prep.rows.read import data_files

SETTINGS = ("model", "temperature", "max_new_tokens", "num_return_sequences", "seed", "limit", "columns")
TITLE = {"en": "Rank the answers", "zh": "给回答排序"}


def beside(output: Path, what: str) -> Path:
    """The file beside `output` with its name and another ending: rankings.jsonl → rankings.<what>.jsonl."""
    return output.with_name(f"{output.stem}.{what}.jsonl")


def draw(arguments, path: Path) -> None:
    """Draw answers from all models into `path`, each text once a prompt; what is there already must be of the same settings."""
    files = data_files(arguments.conversations)
    settings = {name: getattr(arguments, name) for name in SETTINGS}
    settings["sha256 of the conversations"] = digest_of(files)
    if drawn_before(path, settings, "--output"):
        return
    quarantine = f"{arguments.output}.quarantine.jsonl"
    rows = read_prompts(files, arguments.limit, arguments.seed, arguments.on_bad, quarantine, arguments.columns)
    from data_prep.models.several import answers_of_models  # slow to import: after the input has been checked

    drawn = answers_of_models(
        arguments.model,
        [row["prompt"] for row in rows],
        arguments.max_new_tokens,
        arguments.temperature,
        arguments.num_return_sequences,
        arguments.batch_size,
        arguments.seed,
    )
    output = []
    for number, row in enumerate(rows):
        wrote: dict[str, list[str]] = {}
        for model, answers in zip(arguments.model, drawn, strict=True):
            for text in answers[number]:
                if text.strip():
                    wrote.setdefault(text, []).append(model)
        output.append(
            {
                **{key: row[key] for key in ("id", "prompt")},
                "completions": list(wrote),
                "counts": list(map(len, wrote.values())),
                "models": [sorted(set(models)) for models in wrote.values()],
                "reference": row["reference"],
                "drawn": settings,
            }
        )
    write_jsonl(path, output)
    print(f"drew answers to {counted(len(output), 'prompt')}; they are in {path}")


def write_to(output: Path) -> Callable[[People], None]:
    """What writes all rankings to `output`, and the demonstrations beside it."""

    def write(people: People) -> None:
        write_jsonl(output, people.rankings())
        write_jsonl(beside(output, "demonstrations"), people.demonstrations())

    return write


def check_arguments(arguments) -> None:
    """`InputError` for options that do not go together, or an output that is not this command's."""
    check_page_options(arguments)
    check_sampling_options(arguments)
    if (arguments.completions is None) == (arguments.model is None):
        raise InputError("give --completions FILE, or --model and --conversations to draw answers first")
    if (arguments.model is None) != (arguments.conversations is None):
        raise InputError("--model and --conversations: expected both or neither")
    if not 0 <= arguments.overlap <= 1:
        raise InputError(f"--overlap {arguments.overlap}: expected a share from 0 to 1")
    for model in arguments.model or []:
        check_model(model)
    if not arguments.output.with_name(f"{arguments.output.name}.journal").exists():
        vacant(arguments.output)
        vacant(beside(arguments.output, "demonstrations"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--completions", help="file that data_prep.sample_completions wrote")
    parser.add_argument("--output", type=Path, required=True, help="the JSON Lines file of rankings to write")
    parser.add_argument(
        "--overlap", type=float, default=0.1, help="share of the prompts that two people rank (default: 0.1)"
    )
    drawing = parser.add_argument_group("to draw the answers first, instead of --completions")
    drawing.add_argument("--model", nargs="+", help="folders or Hub ids of the models that answer")
    add_conversations_options(drawing, required=False)
    add_sampling_options(
        drawing,
        max_new_tokens=48,
        seed_for="sampling, --limit, --overlap and the order shown",
        answers="answers sampled per prompt and model",
    )
    add_page_options(parser)
    arguments = parser.parse_args()
    check_arguments(arguments)
    completions = Path(arguments.completions or beside(arguments.output, "completions"))
    if arguments.model:
        draw(arguments, completions)
    rows = read_completions(str(completions), by_reference=False)
    digest = hashlib.sha256(completions.read_bytes()).hexdigest()
    settings = {"by": "people", "seed": arguments.seed, "sha256 of the completions": digest}
    path = arguments.output.with_name(f"{arguments.output.name}.journal")
    with contextlib.closing(Journal(path, settings, durable=True, per_rater=True)) as journal:
        write = write_to(arguments.output)
        people = People(rows, journal, arguments.overlap, arguments.seed, write)
        if journal.rankings:
            print(f"{path}: {people.summary()}; resuming after them")
        if alone := len(rows) - len(people.todo):
            print(f"{counted(alone, 'prompt')} with fewer than two different answers: left out")
        write(people)
        title, named = TITLE[arguments.language], bool(arguments.logins)
        try:
            serve(ranking_page(people, arguments.language, title, {}, named), arguments, FRAME)
        finally:
            print(f"{people.summary()}; the rankings are in {arguments.output}")


if __name__ == "__main__":
    run_main(main)
