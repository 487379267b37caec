"""Everything that applies to each checkpoint of a run, in one process: each model is loaded once.

    python -m eval.run --run runs/quickstart
    python -m eval.run --run runs/quickstart --only perplexity answers --models base sft --limit 1000
    python -m eval.run --run runs/mine --judge data_prep.rewards.rubric --conversations heldout=FILE names=FILE

A checkpoint is a folder of the run with a finished model: base, adapted, sft, reward, ppo, dpo, rloo, grpo, kto, or any other
name, such as ppo_seed1. Measured are, by part (`--only`):

    perplexity       every language model: bits per byte on held-out documents, by source, beside gzip and xz
    answers          every model with a chat template: its greedy answers (a base model: to the first set of questions)
    win_rate         each against the model that it was trained from, on the first set: sampled answers with the KL, and greedy
    matrix           each against every other, greedy, on the first set; with a picture
    reward_accuracy  every reward model: accuracy, by margin and by length, calibration, Kendall's tau; with a picture

The files are those in data/ of the run whose names hold "heldout", as the quickstart names them, else those that the
checkpoints' settings name. The judge is the first of PPO's eval_funcs, else agreement with the reference. A result that is
there is kept, and named where it is of other weights than the checkpoint has now, or was measured by another judge, on
other data or prompts, without a function that is asked for, or with other settings; the answers and the bits of every
document are kept too, in results/per_row, so that what is added later is paired with them. All is seeded, and the
figures do not depend on the batch size, unless two tokens are as likely up to rounding. Writes results/<part>_….json and
results/table.md; `python -m eval.report` makes the page.
"""

import argparse
import time
from pathlib import Path

from data_prep.common.errors import InputError, run_main
from data_prep.common.files import atomic_write, check_writable
from data_prep.common.numbers import check_at_least
from data_prep.judging.judges import load_judge
from data_prep.readers.preferences import read_rankings
from data_prep.readers.prompts import read_prompts
from data_prep.rows.bad_rows import BadRows
from eval.common.functions import add_eval_funcs, check_functions, load_functions
from eval.common.options import add_on_bad
from eval.common.sources import named_lists
from eval.harness.checkpoints import Checkpoint, chosen, find_checkpoints, find_data
from eval.harness.documents import read_sources
from eval.harness.store import Store
from eval.harness.table import table

PARTS = ("perplexity", "answers", "win_rate", "matrix", "reward_accuracy")


def read_arguments() -> argparse.Namespace:
    """The options; `InputError` for values out of range."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, required=True, help="folder of a run, with its checkpoints in folders")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=[*PARTS], help="the parts (default: all)")
    parser.add_argument("--models", nargs="+", metavar="NAME", help="the checkpoints (default: all)")
    for kind, what in (("documents", "documents"), ("conversations", "questions"), ("rankings", "rankings")):
        parser.add_argument(
            f"--{kind}",
            nargs="+",
            default=[],
            metavar="NAME=FILE",
            help=f"held-out {what} (default: the run's, see above)",
        )
    add_on_bad(parser)
    parser.add_argument("--judge", metavar="NAME", help="who judges, as in eval.win_rate (default: see above)")
    add_eval_funcs(parser)
    parser.add_argument("--limit", type=int, help="prompts of a set, sampled at random (default: all)")
    parser.add_argument("--max_new_tokens", type=int, default=64, help="longest answer in tokens (default: 64)")
    parser.add_argument("--temperature", type=float, default=1.0, help="of sampled answers (default: 1.0)")
    parser.add_argument("--num_return_sequences", type=int, default=4, help="answers sampled per prompt (default: 4)")
    parser.add_argument("--batch_size", type=int, default=128, help="sequences generated at once (default: 128)")
    parser.add_argument("--seed", type=int, default=42, help="seed for sampling and --limit (default: 42)")
    parser.add_argument("--overwrite", action="store_true", help="measure anew what is there")
    parser.add_argument("--results_dir", type=Path, help="folder for the results (default: <run>/results)")
    arguments = parser.parse_args()
    check_at_least(1, arguments, "limit", "max_new_tokens", "num_return_sequences", "batch_size")
    if arguments.temperature <= 0:
        raise InputError(
            f"--temperature {arguments.temperature:g}: expected more than 0; greedy answers are measured too"
        )
    return arguments


def data_of(arguments: argparse.Namespace, checkpoints: list[Checkpoint]) -> tuple[dict, dict]:
    """(the files, what is in them) of documents, conversations and rankings, each {set: …}; only what a part reads."""
    readers = {"documents": {"perplexity"}, "conversations": {"answers", "win_rate", "matrix"}}
    readers["rankings"] = {"reward_accuracy"}
    files, found, folder = {}, {}, arguments.results_dir
    for kind, parts in readers.items():
        given = named_lists(f"--{kind}", getattr(arguments, kind))
        wanted = parts & set(arguments.only)
        files[kind] = (given or find_data(arguments.run, checkpoints, kind)) if wanted else {}
        if wanted and not files[kind]:
            print(f"no held-out {kind} in {arguments.run}: {', '.join(sorted(wanted))} left out (see --{kind})")
        found[kind] = {}
        for name, paths in files[kind].items():
            quarantine = folder / f"quarantine_{kind}_{name}.jsonl"
            if kind == "documents":
                bad_rows = BadRows(arguments.on_bad, quarantine)
                found[kind][name] = read_sources(paths, "text", "source", bad_rows)
                changed = {f"repaired: {what}": count for what, count in bad_rows.repaired.items()}
                tell(name, changed | {"quarantined": bad_rows.quarantined})
            elif kind == "conversations":
                found[kind][name] = read_prompts(paths, arguments.limit, arguments.seed, arguments.on_bad, quarantine)
            else:
                rows, counts = read_rankings(paths, arguments.on_bad, quarantine, None, "subset")
                found[kind][name] = rows
                tell(
                    name, {what: count for what, count in counts.items() if what not in ("rows", "rankings", "pairs")}
                )
    return files, found


def tell(name: str, counts: dict[str, int]) -> None:
    """Print what was repaired, quarantined or left out in reading."""
    if found := ", ".join(f"{count:,} {what}" for what, count in counts.items() if count):
        print(f"{name}: {found}")


def main() -> None:
    arguments = read_arguments()
    start = time.perf_counter()
    arguments.results_dir = arguments.results_dir or arguments.run / "results"
    check_writable("--results_dir", arguments.results_dir)
    from eval.judging.outcomes import row_to_judge, say  # slow to import

    given = load_functions(arguments.eval_funcs)
    every = find_checkpoints(arguments.run)
    checkpoints = chosen(every, arguments.models)
    named = next((each.settings["eval_funcs"] for each in every if each.settings.get("eval_funcs")), [])
    functions = given or load_functions(named)
    judge = load_judge(arguments.judge or next(iter(named), "reference"), journal=arguments.results_dir / ".judge_run")
    files, data = data_of(arguments, every)
    for rows in data["conversations"].values():
        check_functions([*functions.values()], rows)
        judge.check(row_to_judge(rows[0]))

    # Slow to import: after the input has been checked.
    from eval.harness.measuring import Run, measure_checkpoint, measure_matrix

    store = Store(arguments.results_dir, arguments.overwrite)
    run = Run(
        checkpoints=every,
        measured=checkpoints,
        parts=arguments.only,
        store=store,
        documents=[each for found in data["documents"].values() for each in found],
        questions=data["conversations"],
        rankings=data["rankings"],
        files=files,
        judge=judge,
        functions=functions,
        sampling={"max_new_tokens": arguments.max_new_tokens, "batch_size": arguments.batch_size},
        temperature=arguments.temperature,
        answers_per_prompt=arguments.num_return_sequences,
        seed=arguments.seed,
    )
    print(f"{arguments.run}: {', '.join(f'{each.name} ({each.kind})' for each in checkpoints)}")
    for place, checkpoint in enumerate(checkpoints):
        measure_checkpoint(run, checkpoint)
        run.let_go(checkpoints[place + 1 :])
    if "matrix" in arguments.only:
        measure_matrix(run)
    if any(name.startswith(("win_rate_", "win_matrix_")) for name in store.written):
        say("the judge", judge, None)
    judge.close()
    with atomic_write(store.folder / "table.md") as file:
        file.write(table(arguments.run, store))
    kept = f", {len(store.kept)} were there" + (f" ({len(store.stale)} stale)" if store.stale else "")
    print(
        f"{store.folder / 'table.md'}: {len(store.written)} results measured in {time.perf_counter() - start:.0f} s"
        f"{kept if store.kept else ''}"
    )


if __name__ == "__main__":
    run_main(main)
