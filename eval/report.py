"""One page that shows what a run brought: every figure, curve and picture, and the same questions to every model.

    python -m eval.report --run runs/quickstart

Reads `results/*.json` of the run, its data and model folders, and `base/samples.jsonl`; asks the models (`--models`,
folders of the run) the same held-out questions. Writes into the run's folder `results.json` (every figure, the machine
and the commit), `results.md` (the main ones, for a README) and `report.html`, which needs nothing beside itself. What is
missing is called "not run".
"""

import argparse
import base64
import io
import math
import os
import platform
import subprocess
from pathlib import Path

from data_prep.files import atomic_write, existing, read_json, read_jsonl, run_main, write_json
from data_prep.intervals import show

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


def picture(points: list, label: str) -> str:
    """A curve as a PNG in a data: URI, in greys that read on light and dark paper."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    grey = "#7a818c"
    figure, panel = pyplot.subplots(figsize=(4.4, 2.6))
    figure.subplots_adjust(left=0.14, right=0.98, top=0.96, bottom=0.2)
    marker = "o" if len(points) < 15 else None
    panel.plot(*zip(*points, strict=True), color="#3f8fe0", linewidth=1.8, marker=marker, markersize=4)
    panel.grid(alpha=0.25, color=grey)
    panel.spines[["top", "right"]].set_visible(False)
    panel.spines[["left", "bottom"]].set_color(grey)
    panel.tick_params(colors=grey, labelsize=10)
    panel.set_xlabel("step", color=grey)
    if label.endswith(SHARES):
        panel.yaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=160, transparent=True, metadata={"Software": None})
    pyplot.close(figure)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


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
    files = sorted(path for path in run.glob("data/**/*.json*") if path.name != "mixture.json")
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
    from data_prep.generation import generate_answers
    from eval.loading import check_chat, load_checkpoint

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


def tiles(results: dict, columns: list[str], table: list[dict], accuracies: list, rates: list) -> list[tuple]:
    """The four figures on top, as (title, value, note)."""
    bits = results.get("pretrain", {}).get("curves", {}).get("held-out bits per byte", [])
    best = max((row for row in table if not row["group"]), key=lambda row: sum(map(bool, row["cells"])), default=None)
    right = (
        [(model, cell["value"]) for model, cell in zip(columns, best["cells"], strict=True) if cell] if best else []
    )
    chain = " → ".join(f"{model} {value:.0%}" for model, value in right)
    missing = ("–", "not run")
    return [
        ("Bits per byte, unseen text", *((f"{bits[-1][1]:.2f}", f"before: {bits[0][1]:.2f}") if bits else missing)),
        ("Right word for word", *((f"{right[-1][1]:.0%}", f"{chain}; {best['set']}") if right else missing)),
        ("Reward model is right", *((f"{accuracies[0][1]['value']:.0%}", "guessing: 50%") if accuracies else missing)),
        ("Wins", *((f"{rates[0][1]['value']:.0%}", f"{rates[0][0]}; a tie counts half") if rates else missing)),
    ]


def evaluations(results: dict, prefix: str, figure: str) -> list[tuple[str, dict, dict]]:
    """[(what the name says beside `prefix`, the figure's interval, the whole result)] of all results of a kind."""
    return [
        (name.removeprefix(prefix).replace("_", " "), result["metrics"][figure], result)
        for name, result in results.items()
        if name.startswith(prefix)
    ]


def stage_sections(results: dict) -> list[dict]:
    """What the page says of each stage of the chain and of every other training that left a curve."""
    others = [name for name, result in results.items() if result.get("curves") and name not in STAGES]
    sections = []
    for name in [*STAGES, *others]:
        title, command, did, figure = STAGES.get(name, (name, "", "", ""))
        section = {"name": name, "title": title, "command": command, "result": results.get(name)}
        if result := section["result"]:
            metrics, curves = result.get("metrics", {}), result.get("curves", {})
            bits = curves.get("held-out bits per byte") or [(0, None)]
            values = {**result, **metrics, "bits_per_byte_first": bits[0][1]}
            known = Known({key: number(value, key) for key, value in values.items()})
            section |= {"did": did.format_map(known), "figure": figure.format_map(known)}
            section["seconds"] = f"{result['seconds']:,.0f} s" if "seconds" in result else "–"
            section["metrics"] = {key.replace("_", " "): number(value, key) for key, value in metrics.items()}
            section["pictures"] = {label: picture(points, label) for label, points in curves.items() if points}
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

    from eval.loading import read_questions

    results = {path.stem: read_json(path) for path in sorted(run.glob("results/*.json"))}
    asked = Path(arguments.prompts or run / "data" / "conversations_heldout.json")
    questions = read_questions(asked, arguments.limit, arguments.seed) if asked.exists() else []
    columns, table = answers_table(results, arguments.models)
    held_out = results.get("reward", {}).get("metrics", {}).get("accuracy")
    accuracies = [("at the end of training", held_out, {})] if held_out else []
    accuracies += evaluations(results, "reward_accuracy_", "accuracy")
    rates = evaluations(results, "win_rate_", "win_rate")
    mixture = run / "data" / "tokens" / "mixture.json"
    without_curves = {
        name: {key: value for key, value in result.items() if key != "curves"} for name, result in results.items()
    }
    facts = {"stages": without_curves, "machine": machine()} | ({"commit": found} if (found := commit()) else {})
    page = {
        **facts, "run": run, "sections": stage_sections(results), "data": data_files(run),
        "mixture": read_json(mixture) if mixture.exists() else None, "samples": samples(run), "questions": questions,
        "answers": ask(run, arguments.models, questions, arguments.max_new_tokens), "models": arguments.models,
        "asked": asked, "columns": columns, "table": table, "accuracies": accuracies, "rates": rates,
        "seconds": times(run, results), "tiles": tiles(results, columns, table, accuracies, rates),
        "perplexities": [result for name, result in results.items() if name.startswith("perplexity_")],
        "others": {name: result for name, result in results.items()
                   if name not in STAGES and not name.startswith(EVALUATIONS) and not result.get("curves")},
        "folders": model_folders(run), "show": show, "number": number,
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
