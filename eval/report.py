"""One page on a whole run: every metric and curve, and the answers of every model to the same questions.

    python -m eval.report --run runs/quickstart

Reads `results/*.json` of the run, its data and model folders, `base/samples.jsonl` and `ppo/completions.jsonl`; asks the
models (`--models`, folders of the run) the same held-out questions. Writes into the run's folder `results.json` (all
metrics, the machine and the commit), `results.md` (the main metrics as tables) and `report.html`, a page that loads no
other file. What is missing is called "not run".

The page opens with a chart, base → SFT → PPO: the judge's win rate against SFT (`win_rate_ppo_vs_sft.json`,
`win_rate_ppo_vs_sft_greedy.json`, and the same of base vs SFT or SFT vs base), and how many greedy answers give the fact
that was asked for, and all facts (`answers_base_heldout.json`, …_sft_…, …_ppo_…, with `--eval_funcs`). Below it stands one
held-out question, answered by every model: the first, in file order, that the last model answers with all facts of the
reference while the one before it gives the asked fact alone. Where references are of one line, it is the first that the
last model answers with exactly the reference while the others give other answers, no two of them equal.

PPO, DPO, RLOO and GRPO are compared by `results/<name>.json`, `win_rate_<name>_vs_sft.json` and
`answers_<name>_heldout.json`, which recipes/compare.sh makes; <name> is the method, with `_seed<number>` for a further
seed. So are PPO with the rater itself as reward (`ppo_rater`), on right or wrong only (`ppo_right_or_wrong`) and beyond
its KL budget (`ppo_over_budget`); of best of 8 there is `win_rate_best_of_8_vs_sft.json` alone.

`--publish FOLDER` also writes `results.json` without curves and examples, the tables in `RESULTS.md` (between two
comments; the text around them is kept), the chart as `stages.png` and the question as `answers.png`.
"""

import argparse
import random
from pathlib import Path

from data_prep.common.errors import run_main
from data_prep.common.files import atomic_write, existing, read_json, write_json
from data_prep.common.intervals import show_interval, show_nats
from data_prep.common.numbers import check_at_least
from data_prep.common.page import render
from data_prep.common.plots import uri_of
from data_prep.common.provenance import commit, machine
from data_prep.readers.prompts import read_prompts
from eval.common.functions import in_words, show_measure
from eval.reporting.chart import chart
from eval.reporting.example import caption, example_question, mark
from eval.reporting.pictures import picture, score_against_kl
from eval.reporting.publishing import publish, tables_in
from eval.reporting.run_folder import completions, data_files, model_folders, samples, times, verdicts
from eval.reporting.stages import METHODS, STAGES, VARIANTS, method_of, trainings
from eval.reporting.tables import (
    MODELS,
    Known,
    answers_table,
    both_sides,
    comparison,
    comparison_columns,
    evaluations,
    judges,
    markdown,
    measures,
    number,
    tiles,
    verdict,
    without_all_facts,
)

ASKED_FIRST = 32  # questions, among which the one is looked for that shows what the stages brought
EVALUATIONS = ("answers_", "win_rate_", "reward_accuracy_", "perplexity_")


def ask(run: Path, names: list[str], questions: list[dict], max_new_tokens: int) -> dict[str, list[str]]:
    """{model: its greedy answers}; a model without a folder is left out."""
    from data_prep.models.generation import generate_answers
    from data_prep.models.loading import check_chat, load_checkpoint

    answers = {}
    for name in names:
        if questions and (run / name / "config.json").exists():
            model, tokenizer = load_checkpoint(str(run / name))
            check_chat(str(run / name), model, tokenizer, max_new_tokens)
            given = generate_answers(model, tokenizer, [row["prompt"] for row in questions], max_new_tokens, desc=name)
            answers[name] = [answer["text"] for (answer,) in given]
    return answers


def find_example(run: Path, names: list[str], questions: list[dict], max_new_tokens: int) -> tuple | None:
    """What `example_question` finds among the questions, in their order, a few at a time."""
    start, size = 0, ASKED_FIRST
    while part := questions[start : start + size]:
        if found := example_question(part, ask(run, names, part, max_new_tokens)):
            question, answers = found
            return {**question, "number": start + question["number"]}, answers
        start, size = start + size, 2 * size  # most often the first few do; each time, the models are loaded
    return None


def stage_sections(run: Path, results: dict) -> list[dict]:
    """What the page shows of each stage of the chain, every other method, and every other training with a curve."""
    named = trainings(results)
    others = [name for name, result in results.items() if result.get("curves") and name not in {*STAGES, *named}]
    sections = []
    for name in dict.fromkeys([*STAGES, *named, *others]):
        method = method_of(name) if name in named else name
        title, command, did, figure = {**STAGES, **METHODS}.get(method, (name, "", "", ""))
        section = {"name": name, "method": method, "title": named.get(name, title), "command": command}
        section["result"] = results.get(name)
        if result := section["result"]:
            metrics, curves = result.get("metrics", {}), result.get("curves", {})
            bits = curves.get("held-out bits per byte") or [(0, None)]
            values = {**result, **metrics, "bits_per_byte_first": bits[0][1]}
            known = Known({key: number(value, key) for key, value in values.items()})
            section |= {"did": did.format_map(known), "figure": figure.format_map(known)}
            section["seconds"] = f"{result['seconds']:,.0f} s" if "seconds" in result else "–"
            section["metrics"] = {key.replace("_", " "): number(value, key) for key, value in metrics.items()}
            if method in ("ppo", "ppo_over_budget"):
                section["against_kl"] = score_against_kl(curves, result.get("alarms", ()))
            if method == "ppo" or method in VARIANTS:
                section["completions"] = completions(run / name)
            together = (section.get("against_kl") or {}).get("curves", ())
            section["pictures"] = {
                label: picture(points, label) for label, points in curves.items() if points and label not in together
            }
        sections.append(section)
    return sections


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, required=True, help="folder with results/, data/ and the models")
    parser.add_argument(
        "--models",
        nargs="*",
        default=MODELS,
        help="folders of the run whose models answer (default: those that exist of the stages)",
    )
    parser.add_argument(
        "--prompts", help="conversations with the questions (default: <run>/data/conversations_heldout.json)"
    )
    parser.add_argument(
        "--limit", type=int, default=8, help="number of questions on the page, sampled at random (default: 8)"
    )
    parser.add_argument("--max_new_tokens", type=int, default=48, help="longest answer in tokens (default: 48)")
    parser.add_argument("--seed", type=int, default=42, help="seed for --limit (default: 42)")
    parser.add_argument(
        "--publish",
        type=Path,
        help="also write results.json, stages.png, answers.png and the tables in RESULTS.md into this folder",
    )
    arguments = parser.parse_args()
    check_at_least(1, arguments, "limit", "max_new_tokens")
    run = existing(arguments.run, "recipes/quickstart.sh")
    if arguments.prompts:
        existing(arguments.prompts)
    if arguments.publish and (path := arguments.publish / "RESULTS.md").exists():
        tables_in(path.read_text(encoding="utf-8"), path)  # before the models are asked, which takes long

    results = {path.stem: read_json(path) for path in sorted(run.glob("results/*.json"))}
    asked = Path(arguments.prompts or run / "data" / "conversations_heldout.json")
    every = read_prompts(asked, None, 0) if asked.exists() else []
    questions = every
    if arguments.limit < len(every):
        print(f"{arguments.limit:,} of {len(every):,} prompts are used (--limit)")
        questions = random.Random(arguments.seed).sample(every, arguments.limit)
    columns, table = answers_table(results, arguments.models)
    # Where all facts were counted of all answers, a table of the exact match would say the same again.
    exact = not table or any(name.startswith("answers_") for name in without_all_facts(results))
    held_out = results.get("reward", {}).get("metrics", {}).get("accuracy")
    accuracies = [("at the end of training", held_out, {})] if held_out else []
    accuracies += evaluations(results, "reward_accuracy_", "accuracy")
    rates = evaluations(results, "win_rate_", "win_rate")
    mixture = run / "data" / "tokens" / "index.json"
    # A page looks for its example among the first questions, a published one among all.
    looked_at = every if arguments.publish else every[:ASKED_FIRST]
    example = find_example(run, arguments.models, looked_at, arguments.max_new_tokens)
    opening = chart(results)
    sections, methods = stage_sections(run, results), comparison(results)
    without_curves = {
        name: {key: value for key, value in result.items() if key != "curves"} for name, result in results.items()
    }
    facts = {"stages": without_curves, "machine": machine()} | ({"commit": found} if (found := commit()) else {})
    before = read_json(run / "results.json") if (run / "results.json").exists() else {}
    facts |= {key: before[key] for key in ("adaptation",) if key in before}  # written by eval.adaptation
    page = {
        **facts, "run": run, "sections": sections, "data": data_files(run),
        "mixture": read_json(mixture) if mixture.exists() else None, "samples": samples(run), "questions": questions,
        "answers": ask(run, arguments.models, questions, arguments.max_new_tokens), "models": arguments.models,
        "asked": asked, "columns": columns, "table": table, "exact": exact, "accuracies": accuracies, "rates": rates,
        "seconds": times(run, results), "tiles": tiles(results, columns, table, arguments.models, accuracies, rates),
        "perplexities": [result for name, result in results.items() if name.startswith("perplexity_")],
        "others": verdicts(run, {name: result for name, result in results.items()
                   if name not in {section["name"] for section in sections} and not name.startswith(EVALUATIONS)}),
        "chart": opening and {**opening, "picture": uri_of(opening["picture"])}, "example": example, "mark": mark,
        "example_caption": caption(*example, results, asked) if example else None,
        "measured": [(name, *answers_table(results, arguments.models, name)) for name in measures(results)],
        "judges": judges(rates), "both_sides": both_sides(rates), "in_words": in_words, "show_measure": show_measure,
        "method_columns": comparison_columns(methods), "methods": methods, "verdict": verdict(methods), "sft": results.get("answers_sft_heldout"),
        "folders": model_folders(run), "show_interval": show_interval, "show_nats": show_nats, "number": number,
    }  # fmt: skip
    html = render(Path(__file__).parent / "reporting" / "template.html", page)
    write_json(run / "results.json", facts)
    with atomic_write(run / "results.md") as file:
        file.write(markdown(facts))
    with atomic_write(run / "report.html") as file:
        file.write(html)
    if arguments.publish:
        written = publish(arguments.publish, facts, example, asked)
        print(f"{arguments.publish}: {', '.join(written)}")
        if not example:
            print(
                "no answers.png: there is no question that shows what the last model does better (see --help for the rule)"
            )
    missing = [name for name in STAGES if name not in results]
    print(f"{run / 'report.html'}: {len(results)} results" + (f"; not run: {', '.join(missing)}" if missing else ""))


if __name__ == "__main__":
    run_main(main)
