"""The table of a run: what was measured of each checkpoint, read from its results."""

from pathlib import Path

from data_prep.common.intervals import show_interval, show_nats
from data_prep.common.text import printable
from eval.common.functions import in_words, show_detectable, show_difference, show_measure
from eval.harness.store import Store

KINDS = ("perplexity_", "answers_", "win_rate_", "win_matrix_", "reward_accuracy_")
NOTE = (
    "95 % bootstrap intervals over prompts or documents in brackets. What so many prompts “would show” is the smallest true "
    "difference that they show in 80 of 100 trials: a smaller one may be there all the same."
)


def table(run: Path, store: Store) -> str:
    """`table.md`: one part each for documents, answers, comparisons and rewards; those asked for first, then what else is
    in the results."""
    names = [*store.asked, *sorted(path.stem for path in store.folder.glob("*.json"))]
    results = {name: found for name in dict.fromkeys(names) if name.startswith(KINDS) and (found := store.read(name))}
    parts = zip(KINDS, (_documents, _answers, _comparisons, _matrices, _rewards), strict=True)
    lines = [f"# What was measured of {run}", "", NOTE, ""]
    for kind, part in parts:
        if own := {name: result for name, result in results.items() if name.startswith(kind)}:
            lines += part(own)
    if store.stale:
        lines += ["## Stale", "", *(f"- `{name}`: {reason}" for name, reason in sorted(store.stale.items())), ""]
    return "\n".join(lines)


def _rows(header: list[str], rows: list[list[str]]) -> list[str]:
    cells = [[_cell(cell) for cell in row] for row in [header, *rows]]
    lines = ["| " + " | ".join(row) + " |" for row in cells]
    return [lines[0], "|" + "---|" * len(header), *lines[1:], ""]


def _cell(text: str) -> str:
    """Text of data or models, which is not to be obeyed."""
    return printable(text).replace("|", "\\|").replace("<", "&lt;").replace("\n", " ")


def _documents(results: dict) -> list[str]:
    shown = []
    for result in results.values():
        model, sources, than = Path(result["model"]).name, result.get("sources", {}), result.get("against", {})
        metrics, differences = result["metrics"], than.get("difference", {})
        others = [_number(metrics.get(f"{key}_bits_per_byte")) for key in ("gzip", "xz")]
        whole = _difference(than.get("model"), differences.get("all"))
        shown.append([model, "all", _number(metrics["bits_per_byte"]), *others, whole])
        for source, figures in sources.items() if len(sources) > 1 else ():
            others = [_number(figures[key]) for key in ("gzip", "xz")]
            difference = _difference(than.get("model"), differences.get(source))
            shown.append([model, source, _triple(figures["bits_per_byte"]), *others, difference])
    header = ["model", "documents", "bits per byte", "gzip -9", "xz -9", "difference"]
    return ["## Held-out documents", "", *_rows(header, shown)]


def _answers(results: dict) -> list[str]:
    functions = dict.fromkeys(name for each in results.values() for name in each["metrics"].get("eval_funcs", {}))
    shown = []
    for result in results.values():
        metrics, measured = result["metrics"], result["metrics"].get("eval_funcs", {})
        data = ", ".join(Path(path).stem for path in result["data"])
        row = [Path(result["model"]).name, data, f"{result['prompts']:,}", show_interval(metrics["exact_match"])]
        row += [show_measure(name, measured[name]) if name in measured else "–" for name in functions]
        row += [show_interval(metrics[key]) if key in metrics else "–" for key in ("no_end", "loops", "in_form")]
        shown.append([*row, f"{metrics['length']:.1f}"])
    header = ["model", "questions", "n", "exact match", *map(in_words, functions), "no end", "loops"]
    return ["## Greedy answers", "", *_rows([*header, "references' form", "tokens"], shown)]


def _comparisons(results: dict) -> list[str]:
    """Each by its result's name; who judged stands below, or in a column where not all have the same judge."""
    judges = [result.get("judge", "not named") for result in results.values()]
    several, shown = len(set(judges)) > 1, []
    for (name, result), judge in zip(results.items(), judges, strict=True):
        metrics, found = result["metrics"], result["metrics"].get("eval_funcs", {})
        names = f"{Path(result['model']).name} against {Path(result['opponent']).name}"
        kind = "sampled" if result["temperature"] else "greedy"
        kind += f", best of {result['best_of']}" if result.get("best_of") else ""
        rate = show_interval(metrics["win_rate"]) + _would(metrics, "win_rate")
        differences = [
            f"{in_words(each)} {show_difference(each, own['difference'])}{_would(own, each)}"
            for each, own in found.items()
        ]
        kl = show_nats(metrics["kl"]) if "kl" in metrics else "–"
        row = [name.removeprefix("win_rate_"), names, kind, *([judge] if several else []), f"{result['prompts']:,}"]
        shown.append([*row, rate, kl, "; ".join(differences) or "–"])
    header = ["result", "models", "answers", *(["judge"] if several else []), "n", "win rate", "KL, nats per answer"]
    lines = ["## One against another", "", *_rows([*header, "paired differences"], shown)]
    return lines if several else [*lines, f"The judge is {_cell(judges[0])}.", ""]


def _matrices(results: dict) -> list[str]:
    lines = []
    for name, result in results.items():
        rates = result["win_rates"]
        cells = [
            [one, *(show_interval(rates[one][other]) if one != other else "–" for other in rates)] for one in rates
        ]
        largest = max((each["detectable"] or 0.0 for row in rates.values() for each in row.values()), default=0.0)
        lines += [f"## Each against each other, greedy (`{name}`)", "", *_rows(["row against column", *rates], cells)]
        lines += [
            f"{result['prompts']:,} prompts would show {100 * largest:.1f} percentage points from 50 %, or less, in every cell; "
            f"of {len(rates) * (len(rates) - 1) // 2} comparisons of equals one in 20 is outside its interval all the same. "
            f"The judge is {result['judge']}.",
            "",
            f"![]({name}.png)",
            "",
        ]
    return lines


def _rewards(results: dict) -> list[str]:
    shown = []
    for result in results.values():
        metrics = result["metrics"]
        tau, length = metrics.get("kendall_tau"), metrics["length_correlation"]
        data = ", ".join(Path(path).stem for path in result["data"])
        row = [Path(result["model"]).name, data, f"{metrics['pairs']:,}", show_interval(metrics["accuracy"])]
        row += [_triple(tau) if tau else "–", _number(metrics.get("calibration", {}).get("error"))]
        row.append("–" if length is None else f"{length:+.2f}")
        row.append(", ".join(f"{each['accuracy']['value']:.0%}" for each in metrics.get("by_margin", [])) or "–")
        shown.append(row)
    header = ["model", "rankings", "pairs", "right", "Kendall's tau", "calibration error", "correlation with length"]
    return ["## Reward models", "", *_rows([*header, "right, by margin from small to large"], shown)]


def _triple(interval: dict) -> str:
    return f"{interval['value']:.3f} [{interval['low']:.3f}, {interval['high']:.3f}]"


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def _difference(than: str | None, interval: dict | None) -> str:
    if not interval:
        return "–"
    value, low, high = (format(interval[key], "+z.3f") for key in ("value", "low", "high"))
    would = "" if interval["detectable"] is None else f" (would show {interval['detectable']:.3f})"
    return f"{value} [{low}, {high}] to {Path(than).name}{would}"


def _would(found: dict, name: str) -> str:
    """ " (would show 2.1 percentage points)"; nothing in a result of before that was measured."""
    if found.get("detectable") is None:
        return ""
    return f" ({show_detectable(name, found['detectable']).removeprefix('so many prompts ')})"
