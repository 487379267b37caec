"""Best of n as a picture."""

import math
import textwrap

from data_prep.common.plots import BLUE, GREEN, GREY, as_png, canvas
from data_prep.common.text import printable


def farthest(n: int) -> float:
    """The most nats that best of n can be away from the policy it samples: log n − (n−1)/n (Beirami 2024, arXiv:2401.01879)."""
    return math.log(n) - (n - 1) / n


def best_of_n_picture(rows: list[dict], worth: str) -> bytes:
    """The verdict on a random answer, the reward's pick and the verdict's own pick among n, with 95 % intervals; a PNG.

    Args:
        rows: of `data_prep.gate.measures.best_of_n`.
        worth: what is drawn, in words.
    """
    figure, (panel,) = canvas(7.2, 4.2, left=0.11, right=0.97, top=0.87, bottom=0.2)
    places = [row["n"] for row in rows]
    for name, color, label in (
        ("rater", GREEN, "the verdict's own pick: all there is to gain"),
        ("reward", BLUE, "the reward's pick"),
        ("random", GREY, "a random answer"),
    ):
        values = [row[name]["value"] for row in rows]
        low, high = ([row[name][end] for row in rows] for end in ("low", "high"))
        panel.fill_between(places, low, high, color=color, alpha=0.15, linewidth=0)
        panel.plot(places, values, color=color, label=label, marker="o", markersize=4)
    panel.set_xscale("log", base=2)
    panel.set_xticks(places, [f"{n}\n{farthest(n):.2f}" for n in places])
    panel.minorticks_off()
    panel.set_xlabel("n, and the most nats that best of n is away from the policy")
    title = textwrap.shorten(printable(worth), 180, placeholder=" …")
    panel.set_title(textwrap.fill(title, 90), fontsize=10, color=GREY, parse_math=False)
    panel.legend(frameon=False, fontsize=9, labelcolor=GREY)
    return as_png(figure, transparent=False)
