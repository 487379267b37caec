"""One page on a whole run: what each stage took and brought, its curves, and the answers of every model to the same questions.

    python -m eval.report --run runs/quickstart
    python -m eval.report --run runs/quickstart --language zh
    python -m eval.report runs/quickstart runs/mine

Reads `results/*.json` of the run, its data and model folders, `base/samples.jsonl` and `ppo/completions.jsonl`; asks the
models (`--models`, folders of the run) the same held-out questions. Writes into the run's folder `results.json` (all
metrics, the machine and the commit), `results.md` (the main metrics as tables) and `report.html`, a page that loads no
other file. What is missing is called "not run". Answers and scores are kept in `results/report/`, so that no model is asked
twice.

The page opens with one held-out question, answered by every model, and by the base model behind a made-up dialogue: the
first, in file order, that the last model answers with all facts of the reference while the one before it gives the asked
fact alone. Where references are of one line, it is the first that the last model answers with exactly the reference while
the others give other answers, no two of them equal. Below it stands a chart, base → SFT → PPO: the judge's win rate against
SFT (`win_rate_ppo_vs_sft.json`, `win_rate_ppo_vs_sft_greedy.json`, and the same of base vs SFT or SFT vs base), and how many
greedy answers give the fact that was asked for, and all facts (`answers_base_heldout.json`, …_sft_…, …_ppo_…, with
`--eval_funcs`). Where several judges have compared the same two models, `judge` in `win_rate_*.json`, they stand side by
side.

PPO, DPO, RLOO and GRPO are compared by `results/<name>.json`, `win_rate_<name>_vs_sft.json` and
`answers_<name>_heldout.json`, which recipes/compare.sh makes; <name> is the method, with `_seed<number>` for a further
seed. So are PPO with the rater itself as reward (`ppo_rater`), on right or wrong only (`ppo_right_or_wrong`) and beyond
its KL budget (`ppo_over_budget`); of best of 8 there is `win_rate_best_of_8_vs_sft.json` alone.

Two folders are laid side by side: metrics with their difference and its interval, settings that differ, curves. A result is
compared only where both runs measured on the same prompts; what is not is named with the reason. Writes
`report_<A>_<B>.html` into the second.

`--publish FOLDER` also writes `results.json` without curves and examples, the tables in `RESULTS.md` (between two
comments; the text around them is kept), the chart as `stages.png` and the question as `answers.png`.
"""

import argparse
import random
from pathlib import Path

from data_prep.common.errors import InputError, run_main
from data_prep.common.files import atomic_write, existing, read_json, write_json
from data_prep.common.intervals import show_interval, show_nats
from data_prep.common.numbers import check_at_least
from data_prep.common.page import render
from data_prep.common.plots import uri_of
from data_prep.common.provenance import commit, machine
from data_prep.readers.prompts import read_prompts
from eval.common.functions import in_words, show_measure
from eval.reporting.chain import chain, disk
from eval.reporting.drawing.chart import chart
from eval.reporting.drawing.example import caption, mark
from eval.reporting.drawing.pictures import TITLES
from eval.reporting.publishing import publish, tables_in
from eval.reporting.reading import doctor
from eval.reporting.reading.asking import ASKED_FIRST, ask, ask_prompted, find_example
from eval.reporting.reading.masking import mask_example
from eval.reporting.reading.rankings import ranking_example, rankings_file, score_histograms, score_rankings
from eval.reporting.reading.run_folder import (
    TRAINED_ON,
    data_file,
    data_files,
    model_folders,
    samples,
    times,
    verdicts,
)
from eval.reporting.sections import alarms, gates, made_with, stage_sections
from eval.reporting.stages import STAGES
from eval.reporting.tables import (
    MODELS,
    answers_table,
    both_sides,
    comparison,
    comparison_columns,
    evaluations,
    judges,
    markdown,
    measures,
    number,
    of_different_judges,
    tiles,
    verdict,
    without_all_facts,
)
from eval.reporting.two_runs import side_by_side
from eval.reporting.words import LANGUAGES, say, speaking

EVALUATIONS = ("answers_", "win_rate_", "reward_accuracy_", "perplexity_")
PAGES = Path(__file__).parent / "reporting" / "pages"
CONTENTS = {"answers": "Answers", "wins": "Who is preferred", "chain": "The chain", "pretrain": "Pretraining",
            "sft": "Supervised fine-tuning", "reward": "Reward model", "ppo": "PPO", "methods-compared": "Methods compared",
            "doctor": "Data", "cost": "Cost", "made": "Made with"}  # fmt: skip


def opening(run: Path, example: tuple | None, questions: list, answers: dict, max_new_tokens: int) -> tuple:
    """({"prompt", "reference", "answers": [(title, text)]} that a page opens with, what the prompted base model says).

    Without an example it is the first of the questions.
    """
    if example is None and not (questions and answers):
        return None, None
    question, given = example or (questions[0], {name: texts[0] for name, texts in answers.items()})
    prompted = ask_prompted(run, question, data_file(run, *TRAINED_ON), max_new_tokens)
    rows = []
    for name, text in given.items():
        rows.append((TITLES.get(name, name), text))
        if name == "base" and prompted:
            rows.append((say("Base, prompted"), prompted["text"]))
    return {**question, "answers": rows}, prompted


def page_of(
    run: Path, results: dict, facts: dict, questions: list, example: tuple | None, asked: Path, arguments
) -> str:
    """The page on a run, in the language of `arguments`."""
    models = arguments.models
    columns, table = answers_table(results, models)
    # Where all facts were counted of all answers, a table of the exact match would say the same again.
    exact = not table or any(name.startswith("answers_") for name in without_all_facts(results))
    held_out = results.get("reward", {}).get("metrics", {}).get("accuracy")
    accuracies = [(say("at the end of training"), held_out, {})] if held_out else []
    accuracies += evaluations(results, "reward_accuracy_", "accuracy")
    rates, methods = evaluations(results, "win_rate_", "win_rate"), comparison(results)
    answers = ask(run, models, questions, arguments.max_new_tokens)
    shown, prompted = opening(run, example, questions, answers, arguments.max_new_tokens)
    mixture, seconds = run / "data" / "tokens" / "index.json", times(run, results)
    sections, drawn = stage_sections(run, results), chart(results)
    mask = mask_example(run / "sft", data_file(run, *TRAINED_ON))
    ranked = rankings_file(run)
    ranking = ranking_example(ranked) if ranked else None
    scores = score_rankings(run, ranked, ranking) if ranked else None
    others = {
        name: result
        for name, result in results.items()
        if name not in {section["name"] for section in sections} and not name.startswith(EVALUATIONS)
    }
    temperatures = dict.fromkeys(row["temperature"] for row in methods if row["temperature"] is not None)
    at = say(" at temperature {t}", t=say(" and ").join(map(number, temperatures))) if temperatures else ""
    page = {
        **facts, "run": run, "language": arguments.language, "_": say, "sections": sections, "data": data_files(run),
        "contents": [(name, say(title)) for name, title in CONTENTS.items()], "shown": shown, "prompted": prompted,
        "mixture": read_json(mixture) if mixture.exists() else None, "samples": samples(run), "questions": questions,
        "answers": answers, "models": models, "asked": asked, "columns": columns, "table": table, "exact": exact,
        "accuracies": accuracies, "rates": rates, "seconds": seconds, "disk": disk(run), "temperature": at,
        "tiles": tiles(results, columns, table, models, accuracies, rates), "mask": mask, "ranking": ranking,
        "scores": scores, "histogram": score_histograms(scores) if scores and "chosen" in scores else None,
        "heldout_rankings": ranked is not None and "heldout" in ranked.name, "gates": gates(run, results),
        "alarms": alarms(results), "chain": chain(run, results, dict(seconds), mask), "made": made_with(run),
        "perplexities": [result for name, result in results.items() if name.startswith("perplexity_")],
        "others": [each for each in verdicts(run, others) if not each["line"]], "chart": drawn and {**drawn, "picture": uri_of(drawn["picture"])}, "mark": mark,
        "example_caption": caption(*example, results, asked) if example else "",
        "measured": [(name, *answers_table(results, models, name)) for name in measures(results)],
        "judges": judges(rates), "several_judges": of_different_judges(rates), "both_sides": both_sides(rates),
        "whole": {"pretrain", "sft", "reward", "ppo"} <= results.keys(), "in_words": in_words, "show_measure": show_measure, "method_columns": comparison_columns(methods),
        "methods": methods, "verdict": verdict(methods), "sft": results.get("answers_sft_heldout"),
        "tallies": doctor.tallies(run), "quarantines": doctor.quarantines(run), "doctor_command": doctor.command(run),
        "folders": model_folders(run), "show_interval": show_interval, "show_nats": show_nats, "number": number,
    }  # fmt: skip
    return render(PAGES / "report.html", page)


def read_arguments() -> argparse.Namespace:
    """The options; `InputError` for values that do not go together."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="*", type=Path, help="two folders of runs, to lay them side by side, or one")
    parser.add_argument("--run", type=Path, help="folder with results/, data/ and the models")
    parser.add_argument(
        "--models",
        nargs="*",
        default=MODELS,
        help="folders of the run whose models answer (default: those that exist of the stages)",
    )
    parser.add_argument(
        "--prompts", help="conversations with the questions (default: <run>/data/conversations_heldout.json or .jsonl)"
    )
    parser.add_argument(
        "--limit", type=int, default=8, help="number of questions on the page, sampled at random (default: 8)"
    )
    parser.add_argument("--max_new_tokens", type=int, default=48, help="longest answer in tokens (default: 48)")
    parser.add_argument("--seed", type=int, default=42, help="seed for --limit (default: 42)")
    parser.add_argument("--language", choices=LANGUAGES, default="en", help="language of the page (default: en)")
    parser.add_argument(
        "--publish",
        type=Path,
        help="also write results.json, stages.png, answers.png and the tables in RESULTS.md into this folder",
    )
    arguments = parser.parse_args()
    check_at_least(1, arguments, "limit", "max_new_tokens")
    arguments.runs = [*arguments.runs, *([arguments.run] if arguments.run else [])]
    if len(arguments.runs) not in (1, 2):
        raise InputError(f"expected the folder of one run, or of two to compare; found {len(arguments.runs)}")
    for folder in arguments.runs:
        existing(folder, "recipes/quickstart.sh")
    if len(arguments.runs) == 2 and arguments.publish:
        raise InputError("--publish: it publishes one run; give one folder")
    if arguments.prompts:
        existing(arguments.prompts)
    if arguments.publish and (path := arguments.publish / "RESULTS.md").exists():
        tables_in(path.read_text(encoding="utf-8"), path)  # before the models are asked, which takes long
    return arguments


def main() -> None:
    arguments = read_arguments()
    if len(arguments.runs) == 2:
        with speaking(arguments.language):
            print(side_by_side(*arguments.runs, arguments, PAGES / "two_runs.html"))
        return
    (run,) = arguments.runs
    results = {path.stem: read_json(path) for path in sorted(run.glob("results/*.json"))}
    asked = Path(arguments.prompts or data_file(run, "conversations_heldout"))
    every = read_prompts(asked, None, 0, can_choose=False) if asked.exists() else []
    questions = every
    if arguments.limit < len(every):
        print(f"{arguments.limit:,} of {len(every):,} prompts are used (--limit)")
        questions = random.Random(arguments.seed).sample(every, arguments.limit)
    # A page looks for its example among the first questions, a published one among all.
    looked_at = every if arguments.publish else every[:ASKED_FIRST]
    example = find_example(run, arguments.models, looked_at, arguments.max_new_tokens)
    without_curves = {
        name: {key: value for key, value in result.items() if key != "curves"} for name, result in results.items()
    }
    facts = {"stages": without_curves, "machine": machine()} | ({"commit": found} if (found := commit()) else {})
    before = read_json(run / "results.json") if (run / "results.json").exists() else {}
    facts |= {key: before[key] for key in ("adaptation",) if key in before}  # written by eval.adaptation
    with speaking(arguments.language):
        html = page_of(run, results, facts, questions, example, asked, arguments)
    write_json(run / "results.json", facts)
    with atomic_write(run / "results.md") as file:
        file.write(markdown(facts))
    with atomic_write(run / "report.html") as file:
        file.write(html)
    if arguments.publish:
        shown, _ = opening(run, example, [], {}, arguments.max_new_tokens)
        written = publish(arguments.publish, facts, example, asked, shown)
        print(f"{arguments.publish}: {', '.join(written)}")
        if not example:
            print(
                "no answers.png: there is no question that shows what the last model does better (see --help for the rule)"
            )
    missing = [name for name in STAGES if name not in results]
    print(f"{run / 'report.html'}: {len(results)} results" + (f"; not run: {', '.join(missing)}" if missing else ""))


if __name__ == "__main__":
    run_main(main)
