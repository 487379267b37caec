"""How a reward model agrees with rankings: where it is right, how sure it is, and how well it orders several answers."""

import numpy as np

from data_prep.common.intervals import bootstrap_interval, by_prompt, show_interval
from data_prep.common.numbers import rounded
from data_prep.common.plots import BLUE, GREY, as_png, canvas
from data_prep.common.text import counted, printable
from data_prep.gate.measures import calibration, pair_weights, prompt_keys
from data_prep.models.scoring import agreement_with_rankings
from data_prep.ranking.agreement import kendall_tau
from data_prep.readers.ranks import pairs, ranks_of_scores

BINS = 4  # of equally many pairs


def _by_bins(compared: list[tuple[int, float, float, float]]) -> list[dict]:
    """Accuracy in bins of equally many pairs by a value: [{"from", "to", "pairs", "accuracy"}].

    Args:
        compared: (prompt, value, 1 or 0 for right or wrong, weight) of each pair. An interval is over prompts.
    """
    values = np.array([value for _, value, _, _ in compared])
    edges = np.unique(np.quantile(values, np.linspace(0, 1, BINS + 1), method="nearest"))
    if len(edges) == 1:
        edges = np.repeat(edges, 2)
    found = []
    for number, (low, high) in enumerate(zip(edges[:-1], edges[1:], strict=True)):
        last = number == len(edges) - 2
        inside = [each for each in compared if low <= each[1] and (each[1] < high or last and each[1] == high)]
        own: dict[str, list[tuple[float, float]]] = {}
        for prompt, _, right, weight in inside:
            own.setdefault(prompt, []).append((right, weight))
        weights = [sum(weight for _, weight in each) for each in own.values()]
        rates = [sum(right * weight for right, weight in each) for each in own.values()]
        rates = [rate / weight for rate, weight in zip(rates, weights, strict=True)]
        rate = bootstrap_interval(rates, weights)
        found.append({"from": float(low), "to": float(high), "pairs": len(inside), "accuracy": rate})
    return found


def measure_rankings(rows: list[dict], scores: list[list[float]]) -> dict:
    """Everything of `agreement_with_rankings` (equal rewards are wrong), and as plain JSON:

    by_margin       accuracy in bins by the distance of the two rewards: how sure the model is
    by_length_difference    in bins by the characters that the better answer is longer than the worse (negative: shorter)
    by_score_difference     in bins by the distance of the rater's scores, where the rankings have them
    calibration     see `data_prep.gate.measures.calibration`: does sigmoid(margin) come true?
    kendall_tau     of the reward's order with the ranks, tau-b averaged over prompts, with its interval; 0 where all rewards tie
    subsets         {subset: its accuracy}, and subsets_mean, each subset weighing 1, where rows have "subset" (as the files of
                    RewardBench have; Lambert 2024, arXiv:2403.13787)

    Args:
        rows, scores: of `data_prep.models.scoring.score_rankings`. In bins each prompt weighs 1, as in the accuracy.
    """
    binned: dict[str, list] = {"by_margin": [], "by_length_difference": [], "by_score_difference": []}
    keys, taus, subsets = prompt_keys(rows), [], {}
    for prompt, row, own, weight in zip(keys, rows, scores, pair_weights(rows), strict=True):
        compared = pairs(row["ranks"])
        for better, worse in compared:
            margin, rest = own[better] - own[worse], (float(own[better] > own[worse]), weight)
            longer = len(row["completions"][better]) - len(row["completions"][worse])
            binned["by_margin"].append((prompt, abs(margin), *rest))
            binned["by_length_difference"].append((prompt, float(longer), *rest))
            if row.get("scores"):
                distance = abs(row["scores"][better] - row["scores"][worse])
                binned["by_score_difference"].append((prompt, distance, *rest))
        taus.append(kendall_tau(ranks_of_scores(own), row["ranks"]) or 0.0 if compared else None)
        if compared:
            right = float(np.mean([own[better] > own[worse] for better, worse in compared]))
            if row.get("subset") is not None:
                subsets.setdefault(str(row["subset"]), []).append((prompt, right))
    found = agreement_with_rankings(rows, scores)
    found |= {name: _by_bins(each) for name, each in binned.items() if each}
    found |= {"calibration": calibration(rows, scores), "kendall_tau": bootstrap_interval(by_prompt(keys, taus))}
    if subsets:
        found["subsets"] = {
            name: bootstrap_interval(by_prompt(*zip(*values, strict=True))) for name, values in sorted(subsets.items())
        }
        found["subsets_mean"] = float(np.mean([each["value"] for each in found["subsets"].values()]))
    return rounded(found)


def lines(name: str, metrics: dict) -> list[str]:
    """The figures in words."""
    correlation = metrics["length_correlation"]
    bins = metrics["by_length_difference"]
    tau, (value, low, high) = "", (metrics["kendall_tau"][key] for key in ("value", "low", "high"))
    tau = f"Kendall's tau {value:+.2f} [{low:+.2f}, {high:+.2f}]"
    margins = ", ".join(f"{each['accuracy']['value']:.0%}" for each in metrics["by_margin"])
    lengths = ", ".join(
        f"{each['from']:+.0f} to {each['to']:+.0f} characters {each['accuracy']['value']:.0%}" for each in bins
    )
    found = [
        f"{name}: {show_interval(metrics['accuracy'])} of {metrics['pairs']:,} pairs right (from {counted(metrics['accuracy']['n'], 'prompt')}), "
        f"margin {metrics['margin']:.2f}, correlation of reward with length "
        + ("undefined" if correlation is None else f"{correlation:+.2f}"),
        f"{name}: {tau}; calibration error {metrics['calibration']['error']:.3f}; right by margin, the smallest first: "
        f"{margins}; right where the better answer is longer by {lengths}",
    ]
    if "subsets" in metrics:
        each = ", ".join(f"{printable(subset)} {show_interval(own)}" for subset, own in metrics["subsets"].items())
        found.append(f"{name}: by subset: {each}; mean of the subsets {metrics['subsets_mean']:.1%}")
    return found


def picture(metrics: dict) -> bytes:
    """Calibration curve, accuracy by margin and by difference in length, with 95 % intervals; a PNG."""
    figure, (curve, *bars) = canvas(11.4, 3.4, columns=3, left=0.06, right=0.99, top=0.88, bottom=0.2, wspace=0.25)
    bins = metrics["calibration"]["bins"]
    curve.plot([0.5, 1], [0.5, 1], color=GREY, linestyle="--", linewidth=1)
    curve.plot([each["predicted"] for each in bins], [each["observed"] for each in bins], color=BLUE)
    sizes = [20 + 300 * each["share"] for each in bins]
    curve.scatter(
        [each["predicted"] for each in bins], [each["observed"] for each in bins], s=sizes, color=BLUE, alpha=0.6
    )
    curve.set_xlim(0.48, 1.02)
    curve.set_ylim(-0.02, 1.02)
    curve.set_xlabel("probability it gives its favourite")
    curve.set_title(
        f"calibration: right so often (error {metrics['calibration']['error']:.3f})", fontsize=10, color=GREY
    )
    shown = (
        ("by_margin", "right by distance of rewards", "{:.1f}"),
        ("by_length_difference", "right by characters that the better is longer", "{:+.0f}"),
    )
    for panel, (key, title, form) in zip(bars, shown, strict=True):
        own = metrics[key]
        values = [each["accuracy"]["value"] for each in own]
        errors = [[abs(each["accuracy"][end] - each["accuracy"]["value"]) for each in own] for end in ("low", "high")]
        names = [f"{form.format(each['from'])} to\n{form.format(each['to'])}" for each in own]
        panel.bar(range(len(own)), values, color=BLUE, alpha=0.5, yerr=errors, error_kw={"ecolor": GREY, "capsize": 3})
        panel.set_xticks(range(len(own)), names, fontsize=8)
        panel.axhline(0.5, color=GREY, linestyle="--", linewidth=1)
        panel.set_ylim(0, 1.02)
        panel.set_title(title, fontsize=10, color=GREY)
    for panel in (curve, *bars):
        panel.yaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
    return as_png(figure)
