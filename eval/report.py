"""One page that shows what a run brought: every figure, curve and picture, and the same questions to every model.

    python -m eval.report --run runs/quickstart

Reads `results/*.json` of the run, its data and model folders, `base/samples.jsonl` and `ppo/completions.jsonl`; asks the
models (`--models`, folders of the run) the same held-out questions. Writes into the run's folder `results.json` (every
figure, the machine and the commit), `results.md` (the main ones, for a README) and `report.html`, which needs nothing
beside itself. What is missing is called "not run".

PPO, DPO, RLOO and GRPO are compared by `results/<name>.json`, `win_rate_<name>_vs_sft.json` and
`answers_<name>_heldout.json`, where <name> is the method, for a further seed followed by `_seed<number>`; they are made
by recipes/compare.sh.
"""

import argparse
import base64
import io
import math
import os
import platform
import re
import subprocess
from pathlib import Path

from data_prep.common.errors import run_main
from data_prep.common.files import atomic_write, existing, read_json, read_jsonl, write_json
from data_prep.common.intervals import show
from eval.win_rate import show_nats

# In the order of the chain: {stage: (title, the command, what it did, the figure to look at)}.
STAGES = {
    "pretrain": (
        "Pretraining",
        "accelerate launch recipes/pretrain.py",
        "{parameters} parameters from random weights on {tokens} tokens",
        "{bits_per_byte} bits per byte on held-out text (before: {bits_per_byte_first})",
    ),
    "sft": (
        "Supervised fine-tuning",
        "accelerate launch recipes/sft.py",
        "fine-tuned on {conversations} conversations",
        "ends {stops_by_itself} of its answers by itself; loss {loss_first} → {loss_last}",
    ),
    "reward": (
        "Reward model",
        "accelerate launch recipes/reward.py",
        "learned from {rankings} rankings",
        "prefers the better answer in {accuracy} of pairs",
    ),
    "ppo": (
        "PPO",
        "accelerate launch recipes/ppo.py",
        "{episodes} answers drawn and scored, to {prompts} prompts",
        "score {before_score} → {after_score} on held-out prompts, KL {after_kl}",
    ),
}
# The methods that improve the assistant, in the same form.
METHODS = {
    "ppo": STAGES["ppo"],
    "dpo": (
        "DPO",
        "accelerate launch recipes/dpo.py",
        "{steps} steps on {pairs} pairs of answers",
        "prefers the better answer in {eval_accuracy} of held-out pairs",
    ),
    "rloo": (
        "RLOO",
        "accelerate launch recipes/rloo.py",
        "{episodes} answers drawn and scored, to {prompts} prompts",
        "score {score_last}, KL {kl_last} at the end of training",
    ),
    "grpo": (
        "GRPO",
        "accelerate launch recipes/grpo.py",
        "{episodes} answers drawn and scored, to {prompts} prompts",
        "score {score_last}, KL {kl_last} at the end of training",
    ),
}
# What PPO evaluates of its answers beside score and KL; what else it evaluates are measures of their worth (eval_funcs).
FIGURES = ("rlhf_reward", "length", "eos_rate", "entropy", "repetition")
EQUAL_TIMES = 1.15  # training times count as equal where the longest is less than this many times the shortest
EVALUATIONS = ("answers_", "win_rate_", "reward_accuracy_", "perplexity_")
SHARES = ("stops_by_itself", "eos_rate", "accuracy", "fraction", "win_rate", "exact_match")


class Known(dict):
    """For `str.format_map`: what a stage did not write down is a dash."""

    def __missing__(self, key: str) -> str:
        return "–"


def number(value, key: str = "") -> str:
    """A figure for a reader: an interval, a share in percent, millions, thousands with commas, or three digits."""
    if isinstance(value, dict) and {"value", "low", "high"} <= set(value):
        return show(value)
    if not isinstance(value, int | float) or isinstance(value, bool):
        return "–" if value is None else str(value)
    if key.endswith(SHARES) and 0 <= value <= 1:
        return f"{value:.0%}"
    if abs(value) >= 1e6:
        return f"{value / 1e6:.1f} M"
    return f"{value:,}" if isinstance(value, int) else f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


GREY, BLUE, GREEN = "#7a818c", "#3f8fe0", "#2c9c5c"  # they read on light and on dark paper


def canvas(width: float, height: float, **margins):
    """(figure, its one panel), in inches, with margins as shares of them."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, panel = pyplot.subplots(figsize=(width, height))
    figure.subplots_adjust(**margins)
    panel.grid(alpha=0.25, color=GREY)
    panel.spines[["top", "right"]].set_visible(False)
    panel.spines[["left", "bottom"]].set_color(GREY)
    panel.tick_params(colors=GREY, labelsize=10)
    return figure, panel


def as_uri(figure) -> str:
    """A figure as a PNG in a data: URI; the figure is closed."""
    from matplotlib import pyplot

    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=160, transparent=True, metadata={"Software": None})
    pyplot.close(figure)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def picture(points: list, label: str) -> str:
    """A curve by step."""
    figure, panel = canvas(4.4, 2.6, left=0.14, right=0.98, top=0.96, bottom=0.2)
    marker = "o" if len(points) < 15 else None
    panel.plot(*zip(*points, strict=True), color=BLUE, linewidth=1.8, marker=marker, markersize=4)
    panel.set_xlabel("step", color=GREY)
    if label.endswith(SHARES):
        panel.yaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
    return as_uri(figure)


def score_against_kl(curves: dict) -> dict | None:
    """The held-out evaluations of a PPO run as a path away from the SFT model (as in Gao 2023, arXiv:2210.10760, fig. 1).

    Reads the curves "held-out score" and "held-out KL", and of the others the first that is a measure on the answers'
    worth ("held-out <measure>", none of `FIGURES`), [[update, value], …] each. Returns {"picture": data: URI, "words":
    what it shows, "curves": names of those in it}; None without score or KL.
    """
    start = "held-out "
    found = {name.removeprefix(start): dict(row) for name, row in curves.items() if name.startswith(start) and row}
    score, kl = found.pop("score", {}), found.pop("KL", {})
    measure, measured = next(((name, points) for name, points in found.items() if name not in FIGURES), ("", {}))
    steps = sorted(set(score) & set(kl) & set(measured or score))
    if not steps:
        return None
    first, last = steps[0], steps[-1]
    figure, panel = canvas(6.6, 3.3, left=0.1, right=0.9, top=0.95, bottom=0.17)
    path = [kl[step] for step in steps]
    panel.plot(path, [score[step] for step in steps], color=BLUE, linewidth=1.8, marker="o", markersize=4)
    panel.set_xlabel("KL from the fine-tuned model, nats per answer", color=GREY)
    panel.set_ylabel("reward model's score (dots)", color=BLUE)
    panel.margins(y=0.15)
    for step, side, height in ((first, "left", -14), (last, "right", 7)):
        panel.annotate(f"update {step}", (kl[step], score[step]), xytext=(0, height), textcoords="offset points", ha=side,
                       color=GREY)  # fmt: skip
    words = (
        f"From update {first} to {last} the KL went from {number(kl[first])} to {number(kl[last])} nats per answer and "
        f"the reward model's score from {number(score[first])} to {number(score[last])}."
    )
    if measure:
        right = panel.twinx()
        right.plot(path, [measured[step] for step in steps], color=GREEN, linewidth=1.8, linestyle="--", marker="s",
                   markersize=4)  # fmt: skip
        right.spines[["top", "left", "bottom"]].set_visible(False)
        right.spines["right"].set_color(GREY)
        right.tick_params(colors=GREY, labelsize=10)
        right.set_ylabel(f"{measure.replace('_', ' ')} (squares)", color=GREEN)
        right.margins(y=0.15)
        if measure.endswith(SHARES):
            right.yaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
        values = {step: number(measured[step], measure) for step in steps}
        best = max(steps, key=measured.get)
        words += (
            f" The reference answers' verdict ({measure.replace('_', ' ')} of sampled answers, a stand-in for a human "
            f"judge) went from {values[first]} to {values[last]}; it was highest at update {best}, {values[best]}."
        )
        if measured[last] < measured[best] and score[last] > score[best]:
            words += (
                " Since then the score has risen and the verdict fallen: that is what over-optimisation looks like. "
                "Whether it is more than chance, the alarms say."
            )
    drawn = ["score", "KL", *([measure] if measure else [])]
    return {"picture": as_uri(figure), "words": words, "curves": [start + name for name in drawn]}


def machine() -> dict:
    """What the run's last step, this report, runs on; the stages are taken to have run there too."""
    import torch

    names = [line.split(":", 1)[1].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name")]
    about = {"cpu": names[0] if names else platform.processor() or platform.machine(), "cores": os.cpu_count()}
    if torch.cuda.is_available():
        about["gpu"] = torch.cuda.get_device_name()
    return {**about, "torch": torch.__version__, "python": platform.python_version()}


def _lines(path: str | Path) -> list[str]:
    return Path(path).read_text().splitlines() if Path(path).exists() else []


def commit() -> str | None:
    """The commit this file is from, with "-dirty" where the checkout differs from it; None outside a checkout."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        asked = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return asked.stdout.strip() or None


def data_files(run: Path) -> list[dict]:
    """Name, rows and size of the run's data files."""
    files = sorted(path for path in run.glob("data/**/*.json*") if path.parent.name != "tokens")
    rows = []
    for path in files:
        size, count = path.stat().st_size, None
        if path.suffix == ".jsonl":
            count = sum(1 for _ in path.open("rb"))
        elif size < 5e7:  # a list has to be read as a whole
            count = len(read_json(path))
        rows.append({"name": path.relative_to(run), "rows": number(count), "size": f"{size / 1e6:.1f} MB"})
    return rows


def model_folders(run: Path) -> list[dict]:
    """Name, kind, parameters, context and vocabulary of the models in the run's folder, read without loading them."""
    from safetensors import safe_open

    rows = []
    for path in sorted(run.glob("*/config.json"), key=lambda path: path.parent.stat().st_mtime):
        config, parameters = read_json(path), 0
        for file in path.parent.glob("*.safetensors"):
            with safe_open(file, "pt") as tensors:
                shapes = [tensors.get_slice(key).get_shape() for key in tensors.keys()]  # noqa: SIM118
            parameters += sum(map(math.prod, shapes))
        kind = ", ".join(config.get("architectures") or ["–"])
        context = number(config.get("n_positions") or config.get("max_position_embeddings"))
        vocabulary = number(config.get("vocab_size"))
        about = {"kind": kind, "parameters": number(parameters), "context": context, "vocabulary": vocabulary}
        rows.append({"name": path.parent.name, **about})
    return rows


def samples(run: Path, steps: int = 6) -> dict[str, list[tuple[int, str]]]:
    """{prompt: [(step, what the model wrote after it)]} of pretraining, at most `steps`, first and last included."""
    path = run / "base" / "samples.jsonl"
    rows: dict[str, dict[int, str]] = {}
    for row in read_jsonl(path) if path.exists() else ():
        rows.setdefault(row["prompt"], {})[row["step"]] = row["sample"]
    return {prompt: spread(sorted(written.items()), steps) for prompt, written in rows.items()}


def completions(folder: Path, rows: int = 3) -> list[tuple[int, list[dict]]]:
    """[(update, first rows)] of the first and the last answers that PPO showed, from the model's `completions.jsonl`."""
    path = folder / "completions.jsonl"
    shown: dict[int, list[dict]] = {}
    for row in read_jsonl(path) if path.exists() else ():
        shown.setdefault(row["step"], []).append(row)
    return [(step, shown[step][:rows]) for step in sorted({min(shown), max(shown)})] if shown else []


def times(run: Path, results: dict) -> list[tuple[str, float]]:
    """[(step, seconds)]: whole commands as recipes/quickstart.sh noted them, then what else left its time."""
    noted = [line.split("\t") for line in _lines(run / "results" / "times.tsv")]
    whole = {name.removesuffix(".json"): float(seconds) for name, seconds in noted}
    order = [name for name in [*STAGES, *results] if "seconds" in results.get(name, {})]
    return list({**whole, **{name: results[name]["seconds"] for name in order if name not in whole}}.items())


def spread(items: list, count: int) -> list:
    """At most `count` of `items`, evenly spread, the first and the last among them."""
    if len(items) <= count:
        return items
    return [items[round(index * (len(items) - 1) / (count - 1))] for index in range(count)]


def ask(run: Path, names: list[str], questions: list[dict], max_new_tokens: int) -> dict[str, list[str]]:
    """{model: its greedy answers}; a model that is not there is left out."""
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


def answers_table(results: dict, models: list[str]) -> tuple[list[str], list[dict]]:
    """(models, rows of {"set", "group", "cells": one interval or None per model}) of all `answers_*` results."""
    cells: dict[tuple[str, str], dict] = {}
    for name, result in results.items():
        if name.startswith("answers_"):
            data, model = ", ".join(Path(path).stem for path in result["data"]), Path(result["model"]).name
            data += f" ({name})" if model in cells.get((data, ""), {}) else ""
            for group, figures in {"": result["metrics"], **result.get("groups", {})}.items():
                cells.setdefault((data, group), {})[model] = figures["exact_match"]
    found = {model for row in cells.values() for model in row}
    columns = [model for model in models if model in found] + sorted(found - set(models))
    rows = [
        {"set": data, "group": group, "cells": [row.get(model) for model in columns]}
        for (data, group), row in sorted(cells.items())
    ]
    return columns, rows


def trainings(results: dict) -> dict[str, str]:
    """{name of the results: title} of every method that was trained, its further seeds after it."""
    found = {}
    for method, (title, *_) in METHODS.items():
        seeds = [match[1] for name in results if (match := re.fullmatch(rf"{method}_seed(\d+)", name))]
        found |= {method: title} if method in results else {}
        found |= {f"{method}_seed{seed}": f"{title}, seed {seed}" for seed in sorted(seeds, key=int)}
    return found


def method_of(name: str) -> str:
    return name.split("_seed")[0]


def comparison(results: dict) -> list[dict]:
    """The rows of the table of methods, one per training: {"name", "title", "win_rate", "greedy", "kl", "seconds",
    "temperature", "learned_from"}; None for what was not run. Win rate and KL are against SFT.
    """
    rows = []
    for name, title in trainings(results).items():
        result, won = results[name], results.get(f"win_rate_{name}_vs_sft", {})
        metrics, right = result.get("metrics", {}), results.get(f"answers_{name}_heldout", {})
        drawn = {"answers": metrics.get("episodes"), "pairs": result.get("pairs")}
        rows.append({
            "name": name, "title": title, "seconds": result.get("seconds"), "temperature": won.get("temperature"),
            **{key: won.get("metrics", {}).get(key) for key in ("win_rate", "kl")},
            "greedy": right.get("metrics", {}).get("exact_match"),
            "learned_from": next((f"{number(value)} {what}" for what, value in drawn.items() if value), None),
        })  # fmt: skip
    return rows


def verdict(rows: list[dict]) -> list[str]:
    """What the table of methods says, in sentences: equal training times or not, PPO's seeds, who wins more than PPO."""
    sentences = []
    if len(rows) > 1 and all(row["seconds"] for row in rows):
        first, *_, last = sorted(rows, key=lambda row: row["seconds"])
        if last["seconds"] < EQUAL_TIMES * first["seconds"]:
            sentences.append(f"Trained at equal wall time: {first['seconds']:,.0f} to {last['seconds']:,.0f} s.")
        else:
            sentences.append(
                f"Not trained equally long: {first['title']} for {first['seconds']:,.0f} s, {last['title']} for "
                f"{last['seconds']:,.0f} s."
            )
    rates: dict[str, list[dict]] = {}
    for row in rows:
        if row["win_rate"]:
            rates.setdefault(method_of(row["name"]), []).append(row["win_rate"])
    if "ppo" not in rates:
        return sentences
    means = {method: sum(rate["value"] for rate in found) / len(found) for method, found in rates.items()}
    seeds = {method: f" (mean of {len(found)} seeds)" if len(found) > 1 else "" for method, found in rates.items()}
    above = sum(rate["low"] > 0.5 for rate in rates["ppo"])
    sentences.append(f"PPO's win rate is above 50% with its whole interval in {above} of {len(rates['ppo'])} runs.")
    better = [method for method in means if means[method] > means["ppo"]]
    for method in better:
        apart = all(rate["low"] > other["high"] for rate in rates[method] for other in rates["ppo"])
        sentences.append(
            f"{METHODS[method][0]}'s win rate is higher than PPO's: {means[method]:.1%}{seeds[method]} against "
            f"{means['ppo']:.1%}{seeds['ppo']}; their intervals {'do not overlap' if apart else 'overlap'}."
        )
    if len(means) > 1 and not better:
        sentences.append(f"No other method's win rate is higher than PPO's, {means['ppo']:.1%}{seeds['ppo']}.")
    return sentences


def tiles(
    results: dict, columns: list[str], table: list[dict], models: list[str], accuracies: list, rates: list
) -> list[tuple]:
    """The four figures on top, as (title, value, note)."""
    bits = results.get("pretrain", {}).get("curves", {}).get("held-out bits per byte", [])
    best = max((row for row in table if not row["group"]), key=lambda row: sum(map(bool, row["cells"])), default=None)
    right = (
        [(model, cell["value"]) for model, cell in zip(columns, best["cells"], strict=True) if cell] if best else []
    )
    right = [cell for cell in right if cell[0] in models] or right  # of the chain, where it was asked
    won = next((rate for rate in rates if rate[0].startswith("ppo vs ")), rates[0] if rates else None)
    chain = " → ".join(f"{model} {value:.0%}" for model, value in right)
    missing = ("–", "not run")
    return [
        ("Bits per byte, unseen text", *((f"{bits[-1][1]:.2f}", f"before: {bits[0][1]:.2f}") if bits else missing)),
        ("Right word for word", *((f"{right[-1][1]:.0%}", f"{chain}; {best['set']}") if right else missing)),
        ("Reward model is right", *((f"{accuracies[0][1]['value']:.0%}", "guessing: 50%") if accuracies else missing)),
        ("Wins", *((f"{won[1]['value']:.0%}", f"{won[0]}; a tie counts half") if won else missing)),
    ]


def evaluations(results: dict, prefix: str, figure: str) -> list[tuple[str, dict, dict]]:
    """[(what the name says beside `prefix`, the figure's interval, the whole result)] of all results of a kind."""
    return [
        (name.removeprefix(prefix).replace("_", " "), result["metrics"][figure], result)
        for name, result in results.items()
        if name.startswith(prefix)
    ]


def stage_sections(run: Path, results: dict) -> list[dict]:
    """What the page says of each stage of the chain, every other method, and every other training that left a curve."""
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
            if method == "ppo":
                section |= {"against_kl": score_against_kl(curves), "completions": completions(run / name)}
            together = (section.get("against_kl") or {}).get("curves", ())
            section["pictures"] = {
                label: picture(points, label) for label, points in curves.items() if points and label not in together
            }
        sections.append(section)
    return sections


def markdown(results: dict, columns: list[str], table: list[dict], facts: dict) -> str:
    """The run's main figures as Markdown, for a README: 95 % intervals in brackets."""
    rows = [
        (
            "bits per byte on held-out documents",
            number(results.get("pretrain", {}).get("metrics", {}).get("bits_per_byte")),
        )
    ]
    for row in table:
        for model, cell in zip(columns, row["cells"], strict=True):
            if cell and not row["group"]:
                rows.append((f"word for word right, greedy, {model}: `{row['set']}`", show(cell)))
    held_out = results.get("reward", {}).get("metrics", {}).get("accuracy")
    rows += [("reward model, accuracy on held-out wordings", show(held_out))] if held_out else []
    rows += [
        (f"reward model, accuracy: {name}", show(value))
        for name, value, _ in evaluations(results, "reward_accuracy_", "accuracy")
    ]
    rows += [
        (f"win rate, sampled answers: {name}", show(value))
        for name, value, _ in evaluations(results, "win_rate_", "win_rate")
    ]
    about = facts["machine"]
    lines = ["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows), ""]
    if methods := comparison(results):
        lines += ["| against SFT | win rate | right, greedy | KL, nats per answer | training | learned from |"]
        lines += ["|---|---|---|---|---|---|"]
        for row in methods:
            rate, right = (show(row[key]) if row[key] else "–" for key in ("win_rate", "greedy"))
            cells = [row["title"], rate, right, show_nats(row["kl"]) if row["kl"] else "–"]
            cells += [f"{row['seconds']:,.0f} s" if row["seconds"] else "–", row["learned_from"] or "–"]
            lines.append(f"| {' | '.join(cells)} |")
        lines += ["", *verdict(methods), ""]
    lines.append(
        f"Measured at commit {facts.get('commit', '–')} on {about['cores']} cores of {about.get('gpu', about['cpu'])}."
    )
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, required=True, help="folder with results/, data/ and the models")
    parser.add_argument("--models", nargs="*", default=["base", "sft", "ppo"], help="folders of the run to be asked")
    parser.add_argument("--prompts", help="conversations to ask; <run>/data/conversations_heldout.json without")
    parser.add_argument("--limit", type=int, default=8, help="questions to ask, drawn at random")
    parser.add_argument("--max_new_tokens", type=int, default=48)
    parser.add_argument("--seed", type=int, default=42, help="of the draw by --limit")
    arguments = parser.parse_args()
    run = existing(arguments.run, "recipes/quickstart.sh")
    if arguments.prompts:
        existing(arguments.prompts)

    import jinja2

    from data_prep.readers.prompts import read_questions

    results = {path.stem: read_json(path) for path in sorted(run.glob("results/*.json"))}
    asked = Path(arguments.prompts or run / "data" / "conversations_heldout.json")
    questions = read_questions(asked, arguments.limit, arguments.seed) if asked.exists() else []
    columns, table = answers_table(results, arguments.models)
    held_out = results.get("reward", {}).get("metrics", {}).get("accuracy")
    accuracies = [("at the end of training", held_out, {})] if held_out else []
    accuracies += evaluations(results, "reward_accuracy_", "accuracy")
    rates = evaluations(results, "win_rate_", "win_rate")
    mixture = run / "data" / "tokens" / "index.json"
    sections, methods = stage_sections(run, results), comparison(results)
    without_curves = {
        name: {key: value for key, value in result.items() if key != "curves"} for name, result in results.items()
    }
    facts = {"stages": without_curves, "machine": machine()} | ({"commit": found} if (found := commit()) else {})
    page = {
        **facts, "run": run, "sections": sections, "data": data_files(run),
        "mixture": read_json(mixture) if mixture.exists() else None, "samples": samples(run), "questions": questions,
        "answers": ask(run, arguments.models, questions, arguments.max_new_tokens), "models": arguments.models,
        "asked": asked, "columns": columns, "table": table, "accuracies": accuracies, "rates": rates,
        "seconds": times(run, results), "tiles": tiles(results, columns, table, arguments.models, accuracies, rates),
        "perplexities": [result for name, result in results.items() if name.startswith("perplexity_")],
        "others": {name: result for name, result in results.items()
                   if name not in {section["name"] for section in sections} and not name.startswith(EVALUATIONS)},
        "methods": methods, "verdict": verdict(methods), "sft": results.get("answers_sft_heldout"),
        "folders": model_folders(run), "show": show, "show_nats": show_nats, "number": number,
    }  # fmt: skip
    template = Path(__file__).with_name("report_template.html").read_text(encoding="utf-8")
    html = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True).from_string(template).render(page)
    write_json(run / "results.json", facts)
    with atomic_write(run / "results.md") as file:
        file.write(markdown(results, columns, table, facts))
    with atomic_write(run / "report.html") as file:
        file.write(html)
    missing = [name for name in STAGES if name not in results]
    print(f"{run / 'report.html'}: {len(results)} results" + (f"; not run: {', '.join(missing)}" if missing else ""))


if __name__ == "__main__":
    run_main(main)
