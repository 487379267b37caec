"""The table of a run: what was measured of each checkpoint, read from its results."""

from pathlib import Path

from data_prep.common.intervals import show_interval, show_nats
from eval.common.functions import in_words, show_detectable, show_difference, show_measure
from eval.harness.store import Store

ALL = "all sources"


def _rows(header: list[str], rows: list[list[str]]) -> list[str]:
    if not rows:
        return []
    cells = [[cell.replace("|", "\\|").replace("\n", " ") for cell in row] for row in [header, *rows]]
    lines = ["| " + " | ".join(row) + " |" for row in cells]
    return [lines[0], "|" + "---|" * len(header), *lines[1:], ""]


def _bits(interval: dict) -> str:
    return f"{interval['value']:.3f} [{interval['low']:.3f}, {interval['high']:.3f}]"


def _percent(interval: dict | None) -> str:
    return "–" if interval is None else show_interval(interval)


def table(run: Path, store: Store) -> str:
    """`table.md`: one part each for documents, answers, comparisons and rewards; 95 % intervals in brackets."""
    results = {name: store.read(name) for name in sorted([*store.kept, *store.written], key=_in_order(store))}
    own = {kind: {n: r for n, r in results.items() if n.startswith(kind)} for kind in KINDS}
    lines = [f"# What was measured of {run}", ""]
    lines += ["95 % bootstrap intervals over prompts or documents in brackets. “Would show” is the smallest true", ""]
    lines[-1:] = [
        "difference that so many prompts show in 80 of 100 trials: a smaller one may be there all the same.",
        "",
    ]

    shown = []
    for result in own["perplexity_"].values():
        model = Path(result["model"]).name
        metrics, sources, than = result["metrics"], result.get("sources", {}), result.get("against", {})
        more = than.get("difference", {})
        whole = [
            f"{metrics['bits_per_byte']:.3f}",
            *(_number(metrics.get(f"{key}_bits_per_byte")) for key in ("gzip", "xz")),
        ]
        shown.append([model, ALL, *whole, _difference(than.get("model"), more.get("all"))])
        for source, figures in sources.items() if len(sources) > 1 else ():
            whole = [_bits(figures["bits_per_byte"]), _number(figures["gzip"]), _number(figures["xz"])]
            shown.append([model, source, *whole, _difference(than.get("model"), more.get(source))])
    header = ["model", "documents", "bits per byte", "gzip -9", "xz -9", "difference"]
    lines += ["## Held-out documents", "", *_rows(header, shown)] if shown else []

    shown, functions = [], {}
    for result in own["answers_"].values():
        functions |= dict.fromkeys(result["metrics"].get("eval_funcs", {}))
    for result in own["answers_"].values():
        metrics, measured = result["metrics"], result["metrics"].get("eval_funcs", {})
        data = ", ".join(Path(path).stem for path in result["data"])
        row = [Path(result["model"]).name, data, f"{result['prompts']:,}", show_interval(metrics["exact_match"])]
        row += [show_measure(name, measured[name]) if name in measured else "–" for name in functions]
        row += [_percent(metrics.get(key)) for key in ("no_end", "loops", "in_form")]
        shown.append([*row, f"{metrics['length']:.1f}"])
    header = [
        "model",
        "questions",
        "n",
        "exact match",
        *map(in_words, functions),
        "no end",
        "loops",
        "references' form",
    ]
    lines += ["## Greedy answers", "", *_rows([*header, "tokens"], shown)] if shown else []

    shown = []
    for result in own["win_rate_"].values():
        metrics, greedy = result["metrics"], result["temperature"] == 0
        names = f"{Path(result['model']).name} against {Path(result['opponent']).name}"
        kl = show_nats(metrics["kl"]) if "kl" in metrics else "–"
        rate = f"{show_interval(metrics['win_rate'])}{_would(metrics, 'win_rate')}"
        measured = "; ".join(
            f"{in_words(each)} {show_difference(each, found['difference'])}{_would(found, each)}"
            for each, found in metrics.get("eval_funcs", {}).items()
        )
        shown.append([names, "greedy" if greedy else "sampled", f"{result['prompts']:,}", rate, kl, measured or "–"])
    header = ["", "answers", "n", "win rate", "KL, nats per answer", "paired differences"]
    lines += ["## One against another", "", *_rows(header, shown)] if shown else []
    for name, result in own["win_matrix_"].items():
        rates = result["win_rates"]
        lines += [f"## Every one against every other, greedy (`{name}`)", ""]
        lines += _rows(
            ["row against column", *rates],
            [[one, *(show_interval(rates[one][other]) if one != other else "–" for other in rates)] for one in rates],
        )
        largest = max((each["detectable"] or 0.0 for row in rates.values() for each in row.values()), default=0.0)
        pairs = len(rates) * (len(rates) - 1) // 2
        lines += [
            f"{result['prompts']:,} prompts would show {100 * largest:.1f} percentage points or less in each of them; of "
        ]
        lines[-1] += (
            f"{pairs} comparisons of equals one in 20 lies outside its interval all the same. The judge is {result['judge']}."
        )
        lines += ["", f"![]({name}.png)", ""]

    shown = []
    for result in own["reward_accuracy_"].values():
        metrics = result["metrics"]
        tau, error = metrics.get("kendall_tau"), metrics.get("calibration", {}).get("error")
        length = metrics["length_correlation"]
        row = [
            Path(result["model"]).name,
            ", ".join(Path(path).stem for path in result["data"]),
            f"{metrics['pairs']:,}",
        ]
        row += [show_interval(metrics["accuracy"]), _bits(tau) if tau else "–", _number(error)]
        row += ["–" if length is None else f"{length:+.2f}"]
        row.append(", ".join(f"{each['accuracy']['value']:.0%}" for each in metrics.get("by_margin", [])) or "–")
        shown.append(row)
    header = ["model", "rankings", "pairs", "right", "Kendall's tau", "calibration error", "correlation with length"]
    lines += (
        ["## Reward models", "", *_rows([*header, "right, by margin from small to large"], shown)] if shown else []
    )
    if store.stale:
        lines += ["## Stale", "", *(f"- `{name}`: {reason}" for name, reason in sorted(store.stale.items())), ""]
    return "\n".join(lines)


KINDS = ("perplexity_", "answers_", "win_rate_", "win_matrix_", "reward_accuracy_")


def _in_order(store: Store):
    """As they were asked for, not as they were measured."""
    return store.asked.index


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def _difference(than: str | None, interval: dict | None) -> str:
    if not interval:
        return "–"
    value, low, high = (format(interval[key], "+z.3f") for key in ("value", "low", "high"))
    would = "" if interval["detectable"] is None else f", would show {interval['detectable']:.3f}"
    return f"{value} [{low}, {high}] to {Path(than).name}{would}"


def _would(found: dict, name: str) -> str:
    if "detectable" not in found:  # of an earlier version
        return ""
    return f" ({show_detectable(name, found['detectable']).replace('so many prompts would', 'would')})"
