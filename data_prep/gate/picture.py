"""The gate in one picture: pairs put right beside the baselines, and best of n."""

from data_prep.common.plots import BLUE, GREEN, GREY, as_png, canvas

SHORT = {
    "chance": "chance",
    "longer": "longer",
    "shorter": "shorter",
    "answer_only": "answer alone",
    "ngrams": "n-grams",
    "policy": "policy's likelihood",
}


def gate_picture(metrics: dict) -> bytes:
    """Accuracy of the reward and of each baseline as bars, and the best of n by chance, reward and rater as curves, with
    95 % intervals; a PNG."""
    figure, (left, right) = canvas(9.6, 3.6, columns=2, left=0.15, right=0.98, top=0.9, bottom=0.15, wspace=0.22)
    accuracies = {"reward": metrics["accuracy"]}
    accuracies |= {SHORT[name]: other["accuracy"] for name, other in metrics["baselines"].items()}
    names = [*accuracies][::-1]
    values = [accuracies[name]["value"] for name in names]
    errors = [[abs(accuracies[name][end] - accuracies[name]["value"]) for name in names] for end in ("low", "high")]
    colors = [BLUE if name == "reward" else GREY for name in names]
    left.barh(names, values, color=colors, alpha=0.5, xerr=errors, error_kw={"ecolor": GREY, "capsize": 3})
    left.set_xlim(0, 1)
    left.xaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
    left.set_title("pairs put right", fontsize=10, color=GREY)
    rows = metrics["best_of_n"]
    for name, color, label in (
        ("rater", GREEN, "rater's pick"),
        ("reward", BLUE, "reward's pick"),
        ("random", GREY, "random"),
    ):
        places = [row["n"] for row in rows]
        line = [row[name]["value"] for row in rows]
        ends = [[abs(row[name][end] - row[name]["value"]) for row in rows] for end in ("low", "high")]
        right.errorbar(places, line, yerr=ends, color=color, label=label, marker="o", markersize=4, capsize=3)
    right.set_xscale("log", base=2)
    right.set_xticks([row["n"] for row in rows], [str(row["n"]) for row in rows])
    right.minorticks_off()
    right.set_xlabel("n")
    right.set_title(f"best of n: {metrics['worth']}", fontsize=10, color=GREY)
    right.legend(frameon=False, fontsize=8, labelcolor=GREY)
    return as_png(figure)
