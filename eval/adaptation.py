r"""What did adapting a model to a domain bring, and what was forgotten? Two models, or more, on the same held-out texts.

    python -m eval.adaptation --before runs/quickstart/sft --before_base runs/quickstart/base \
        --after runs/adapt/sft --after_base runs/adapt/base \
        --documents domain=runs/adapt/data_heldout/documents.jsonl general=runs/quickstart/data/corpus_heldout.jsonl \
        --conversations domain=runs/adapt/numpy/conversations_heldout.json \
            general=runs/quickstart/data/terse/conversations_heldout.json \
        --trained_on runs/adapt/data/documents.jsonl runs/adapt/numpy/conversations.json --max_seen 0.03 \
        --output_dir runs/adapt/again

Measures every model: bits per byte of each source's documents, which compare between tokenizers, with 95 % intervals
over documents; exact match, chrF and the judge's win rate against `--before` of greedy answers to each source's
questions, with intervals over prompts. The source `domain` is what the model was adapted to; every other, such as
`general`, is what it shall not forget. `--tasks` runs tasks of lm-eval on every model. `--trained_on` looks for what
training has seen of these: above `--max_seen` the evaluation is refused. The verdict counts a difference only if its
interval excludes 0, over at least 20 documents or prompts. Writes `adaptation.html`, a page that loads no other file,
and `results.json`: its key `adaptation`, other keys are kept. `--publish` writes the figures and their table into
another folder too, such as that of the configs.

    python -m eval.adaptation --sweep replay=0,0.1,0.3 --command 'bash recipes/adapt.sh' --output_dir runs/adapt_replay

With `--before_base` and `--after_base` these read the documents, so that bits per byte are those before and after continued
pretraining, with those of the assistant beside them; the assistants are asked. `--stages` names models between: all read
the documents, the assistants among them are asked.

With `--sweep` the command runs once for each value, with `REPLAY=0.1` and `RUN=runs/adapt_replay/replay_0.1` in its
environment; it works in the folder that RUN names and ends with this script, as above, with `--output_dir $RUN`. Draws gain
against forgetting into `sweep.html`, with the figures in `sweep.json`, and judges every run by the budgets given here. What
is done is skipped when it is run again. `--publish` writes `sweep.json` and its table.
"""

import argparse
import time
from collections import Counter
from pathlib import Path

from data_prep.common.errors import InputError, run_main
from data_prep.common.files import atomic_write, check_writable, read_json, write_json
from data_prep.common.numbers import check_at_least
from data_prep.common.page import render
from data_prep.common.plots import uri_of
from data_prep.common.provenance import commit, machine
from data_prep.readers.documents import documents, reading_counts
from data_prep.readers.prompts import read_prompts
from data_prep.rows.bad_rows import BadRows
from eval.before_after.publishing import publish, publish_sweep
from eval.before_after.seen import seen_in_training
from eval.before_after.verdict import DOMAIN, measures_of, verdict
from eval.common.functions import add_eval_funcs, check_functions, in_words, load_functions, show_difference
from eval.common.grouped import pattern_of
from eval.common.options import add_judge, add_row_options, load_judges, quarantine_file
from eval.common.sources import named_lists, named_values
from eval.judging.outcomes import row_to_judge, say
from eval.tasks.files import own_tasks, write_tasks
from eval.tasks.harness import check_installed, check_tasks, compare_models, task_names
from eval.tasks.harness import show as show_stderr

BEFORE, AFTER = "before", "after"
ASSISTANT = "assistant"  # the model after, beside the base model below it
OF_A_SWEEP = ("sweep", "command", "forgetting_budget", "exact_match_budget", "output_dir", "publish")  # what it reads


def read_arguments() -> argparse.Namespace:
    """The options; `InputError` for values that do not go together."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--before", help="folder or Hub id of the model before")
    parser.add_argument("--after", help="folder or Hub id of the model after")
    parser.add_argument(
        "--before_base", help="base model below --before: the documents are read by it (default: --before)"
    )
    parser.add_argument(
        "--after_base", help="base model below --after: the documents are read by it (default: --after)"
    )
    parser.add_argument(
        "--stages", nargs="+", default=[], metavar="NAME=MODEL", help="models between the two, in their order"
    )
    parser.add_argument(
        "--documents",
        nargs="+",
        default=[],
        metavar="SOURCE=FILE",
        help="held-out documents, in any format that data_prep reads: domain=FILE FILE general=FILE; the sources domain and "
        "general are needed, others may follow",
    )
    parser.add_argument(
        "--conversations",
        nargs="+",
        default=[],
        metavar="SOURCE=FILE",
        help="held-out questions with their answers, domain=FILE general=FILE (default: none is asked)",
    )
    parser.add_argument("--trained_on", nargs="+", help="files that the models were trained on, of any kind")
    parser.add_argument(
        "--max_seen",
        type=float,
        default=0.01,
        help="largest share of a source's documents or questions that may have been seen in training (default: 0.01)",
    )
    parser.add_argument(
        "--forgetting_budget",
        type=float,
        default=0.03,
        help="largest rise of the bits per byte of another source than the domain, as a share (default: 0.03)",
    )
    parser.add_argument(
        "--exact_match_budget",
        type=float,
        default=0.05,
        help="largest fall of its exact match, as a share of the questions (default: 0.05)",
    )
    add_judge(parser)
    add_eval_funcs(parser)
    parser.add_argument(
        "--tasks",
        nargs="+",
        metavar="TASK",
        help="also run these tasks of lm-eval, as eval.lm_eval_tasks does: ours,arc_easy",
    )
    parser.add_argument(
        "--group_by", help="regular expression on a question's id: its wrong answers in ours are of the same group"
    )
    parser.add_argument("--text_column", default="text", help="column with the text of documents (default: text)")
    add_row_options(parser)
    parser.add_argument("--limit", type=int, help="questions of a source, sampled at random (default: all)")
    parser.add_argument("--max_new_tokens", type=int, default=64, help="longest answer in tokens (default: 64)")
    parser.add_argument("--batch_size", type=int, default=128, help="sequences generated at once (default: 128)")
    parser.add_argument("--seed", type=int, default=42, help="seed for --limit (default: 42)")
    parser.add_argument("--sweep", metavar="NAME=VALUES", help="run --command once for each value of a setting")
    parser.add_argument("--command", help="what --sweep runs, such as 'bash recipes/adapt.sh'")
    parser.add_argument("--output_dir", type=Path, required=True, help="folder for the page and the figures")
    parser.add_argument(
        "--publish",
        type=Path,
        help="folder that the figures and their table are written into: results.json, with --sweep sweep.json, and RESULTS.md",
    )
    arguments = parser.parse_args()
    check_at_least(1, arguments, "max_new_tokens", "batch_size", "limit")
    check_at_least(0, arguments, "max_seen", "forgetting_budget", "exact_match_budget")
    if (arguments.before_base is None) != (arguments.after_base is None):
        raise InputError("--before_base and --after_base: expected both or neither")
    if (arguments.sweep is None) != (arguments.command is None):
        raise InputError("--sweep and --command: expected both or neither")
    told = [name for name, value in vars(arguments).items() if value != parser.get_default(name)]
    if arguments.sweep and (unread := [f"--{name}" for name in told if name not in OF_A_SWEEP]):
        raise InputError(
            f"--sweep: found {', '.join(unread)} too; the command that it runs names models, files and settings itself"
        )
    if not arguments.sweep and not (arguments.before and arguments.after and arguments.documents):
        raise InputError("expected --before, --after and --documents, or --sweep with --command")
    if arguments.group_by is not None and not arguments.tasks:
        raise InputError("--group_by: found no --tasks; it is for the task ours alone")
    pattern_of(arguments.group_by)
    return arguments


def models_of(arguments: argparse.Namespace) -> tuple[dict[str, str], dict[str, str]]:
    """({name: model} of those that read the documents, of those that are asked), each in the order of the page."""
    stages = named_values("--stages", arguments.stages)
    if taken := {BEFORE, AFTER, ASSISTANT} & stages.keys():
        raise InputError(f"--stages: found the name {taken.pop()}; expected another")
    readers = {BEFORE: arguments.before_base or arguments.before, **stages}
    readers |= {AFTER: arguments.after_base or arguments.after}
    readers |= {ASSISTANT: arguments.after} if arguments.after_base else {}
    return readers, {BEFORE: arguments.before, **stages, AFTER: arguments.after}


def earlier_results(path: Path) -> dict:
    """The results that are in a file already, {} if there is none."""
    found = read_json(path) if path.exists() else {}
    if not isinstance(found, dict):
        raise InputError(f"{path}: found {type(found).__name__}; expected an object with the results of a run")
    return found


def read_evaluations(arguments: argparse.Namespace) -> tuple[dict, dict]:
    """({source: documents}, {source: questions}), read whole; prints what was repaired, quarantined and left out."""
    files = named_lists("--documents", arguments.documents)
    asked = named_lists("--conversations", arguments.conversations)
    if missing := [name for name in (DOMAIN, "general") if name not in files]:
        found = ", ".join(files)
        raise InputError(f"--documents: found {found}; expected {missing[0]}=FILE too, to tell gain from forgetting")
    if asked and DOMAIN not in asked:
        raise InputError(f"--conversations: found {', '.join(asked)}; expected {DOMAIN}=FILE too")
    texts, questions = {}, {}
    for source, paths in files.items():
        quarantine = quarantine_file(arguments.on_bad, str(arguments.output_dir), f"{source}_documents")
        bad_rows, counts = BadRows(arguments.on_bad, quarantine), Counter()
        texts[source] = list(documents(paths, arguments.text_column, bad_rows, counts))
        for line in reading_counts(bad_rows, counts):
            print(f"{', '.join(paths)}: {line}")
    for source, paths in asked.items():
        quarantine = quarantine_file(arguments.on_bad, str(arguments.output_dir), f"{source}_conversations")
        questions[source] = read_prompts(
            paths, arguments.limit, arguments.seed, arguments.on_bad, quarantine, arguments.columns
        )
    return texts, questions


def read_tasks(arguments: argparse.Namespace, plain: dict, questions: dict) -> tuple[dict, list[str]]:
    """(our own tasks with their rows, the names of all that --tasks asks for); `InputError` for a name that is no task."""
    if not arguments.tasks:
        return {}, []
    ours = own_tasks(plain, questions, arguments.group_by, arguments.seed)
    names = task_names(arguments.tasks, [*ours])
    check_tasks(names, [*ours])
    return ours, names


def check_seen(arguments: argparse.Namespace, plain: dict, questions: dict) -> dict | None:
    """What training has seen of the evaluations (`seen_in_training`); None if it is not known what it was.

    Raises `InputError` where that is more than --max_seen of a source.
    """
    if not arguments.trained_on:
        print("--trained_on is not given: whether training has seen these documents and questions was not looked for")
        return None
    found = seen_in_training(arguments.trained_on, plain, questions)
    for kind, sources in found.items():
        for source, counts in sources.items():
            said = f"{source}: {counts['seen']:,} of {counts['n']:,} held-out {kind} were seen in training"
            if counts["seen"] > arguments.max_seen * counts["n"]:
                raise InputError(
                    f"{said}; expected at most {arguments.max_seen:.1%} (--max_seen): hold out others, as "
                    "python -m data_prep.hold_out does, and train anew"
                )
            print(said)
    return found


def plainly(compared: dict, measure: str) -> dict[str, dict[str, float]]:
    """{source: {"before", "after"}}: a measure of the first and the last model as plain numbers."""
    return {
        source: {name: found["models"][name][measure]["value"] for name in (BEFORE, AFTER)}
        for source, found in compared.items()
    }


def show(interval: dict, scale: float = 1, form: str = ".3f") -> str:
    """An interval as the page shows it: "1.234 [1.200, 1.270]"."""
    value, low, high = (format(scale * interval[key], form) for key in ("value", "low", "high"))
    return f"{value} [{low}, {high}]"


def settings_of(arguments: argparse.Namespace, window: int) -> dict:
    """The settings that the results keep; `window` is in tokens."""
    names = ("forgetting_budget", "exact_match_budget", "max_seen", "limit", "max_new_tokens", "seed")
    judge = "agreement with the reference" if arguments.judge == "reference" else arguments.judge
    return {"window": window, "judge": judge} | {name: getattr(arguments, name) for name in names}


def page_of(adaptation: dict, texts: dict, questions: dict, bits: dict, answers: dict) -> str:
    """The page: the figures, and the documents and answers that changed most.

    Args:
        texts, questions: what `read_evaluations` returns.
        bits, answers: what `measure_models` returns.
    """
    from eval.before_after.documents import most_changed
    from eval.before_after.pictures import stages_picture  # slow to import
    from eval.before_after.questions import changed_answers

    compared, asked = adaptation["documents"], adaptation["questions"]
    picture = stages_picture(compared, asked, [*adaptation["models"]], [*adaptation["asked_models"]])
    changed = {source: most_changed(own, bits[source][BEFORE], bits[source][AFTER]) for source, own in texts.items()}
    examples = {source: changed_answers(questions[source], own[BEFORE], own[AFTER]) for source, own in answers.items()}
    shown = {"picture": uri_of(picture), "changed": changed, "examples": examples}
    words = {"in_words": in_words, "show_difference": show_difference, "show": show, "show_stderr": show_stderr}
    return render(Path(__file__).parent / "before_after" / "page.html", {**adaptation, **shown, **words})


def sweep(arguments: argparse.Namespace) -> None:
    """Run --command for each value of --sweep, and compare the runs."""
    from eval.before_after.sweep import run_sweep

    budgets = arguments.forgetting_budget, arguments.exact_match_budget
    found = run_sweep(arguments.sweep, arguments.command, arguments.output_dir, *budgets)
    if arguments.publish:
        tell_published(publish_sweep(arguments.publish, found), arguments.publish)


def tell_published(written: list[str], folder: Path) -> None:
    print(f"{' and '.join(written)} are written into {folder}")


def main() -> None:
    arguments = read_arguments()
    if arguments.sweep:
        sweep(arguments)
        return
    readers, asked_models = models_of(arguments)
    judge, other = load_judges(arguments, arguments.output_dir / ".judge")
    functions = load_functions(arguments.eval_funcs)
    check_writable("--output_dir", arguments.output_dir)
    results_file = arguments.output_dir / "results.json"
    others = earlier_results(results_file)
    start = time.perf_counter()
    if arguments.tasks:
        check_installed()

    # Data
    texts, questions = read_evaluations(arguments)
    plain = {source: [document.text for document in own] for source, own in texts.items()}
    prompts = {source: [row["prompt"] for row in rows] for source, rows in questions.items()}
    ours, tasks = read_tasks(arguments, plain, questions)
    for rows in questions.values():
        check_functions([*functions.values()], rows)
        judge.check(row_to_judge(rows[0]))
    seen = check_seen(arguments, plain, questions)

    # Models. Slow to import: after the input has been checked.
    from eval.before_after.documents import compare_bits
    from eval.before_after.models import check_asked, check_readers, measure_models
    from eval.before_after.questions import compare_answers

    length = check_readers(readers)
    asked_models, mute = check_asked(asked_models, arguments.max_new_tokens) if questions else ({}, [])
    sampling = {"max_new_tokens": arguments.max_new_tokens, "batch_size": arguments.batch_size}
    bits, answers = measure_models(readers, asked_models, mute, plain, prompts, length, sampling)

    # Figures
    compared = {
        source: compare_bits(own, [len(text.encode()) for text in plain[source]]) for source, own in bits.items()
    }
    asked = {
        source: compare_answers(questions[source], own, judge, functions, other) for source, own in answers.items()
    }
    lm_eval = {}
    if tasks:
        folder = arguments.output_dir / "lm_eval_tasks"
        write_tasks(folder, ours)
        both = asked_models or {BEFORE: arguments.before, AFTER: arguments.after}
        lm_eval = compare_models(both, tasks, folder, max(1, arguments.batch_size // 8))
    measures = measures_of(compared, asked, AFTER)
    found = verdict(measures, arguments.forgetting_budget, arguments.exact_match_budget)
    adaptation = {
        "bits_per_byte": plainly(compared, "bits_per_byte"), "exact_match": plainly(asked, "exact_match"),
        "verdict": found, "measures": measures, "models": readers, "asked_models": asked_models,
        "without_template": mute,
        "documents": compared, "questions": asked, "seen": seen, "lm_eval": lm_eval,
        "data": {name: getattr(arguments, name) for name in ("documents", "conversations", "trained_on")},
        "settings": settings_of(arguments, length),
        "seconds": time.perf_counter() - start, "machine": machine(), "commit": commit(),
    }  # fmt: skip

    # Save
    html = page_of(adaptation, texts, questions, bits, answers)
    write_json(results_file, {**others, "adaptation": adaptation})
    with atomic_write(arguments.output_dir / "adaptation.html") as file:
        file.write(html)
    if arguments.publish:
        tell_published(publish(arguments.publish, adaptation), arguments.publish)
    for source, own in asked.items():
        say(f"{source}: the judge", judge, own["agreement"])
    judge.close()
    for reason in found["reasons"]:
        print(reason)
    for name in mute:
        print(f"{asked_models[name]} has no chat template: it cannot be asked, and its questions count as wrong")
    print(f"{arguments.output_dir / 'adaptation.html'}: {found['line']}")


if __name__ == "__main__":
    run_main(main)
