"""The page's pictures: what was forgotten and what was learned, and gain against forgetting over a sweep."""

from data_prep.common.plots import BLUE, GREEN, GREY, RED, as_png, canvas
from eval.before_after.verdict import DOMAIN

COLORS = [BLUE, GREEN, RED, GREY]


def _ends(intervals: list[dict], scale: float) -> list[list[float]]:
    """What `errorbar` takes: the lengths below and above."""
    return [[abs(scale * (each[end] - each["value"])) for each in intervals] for end in ("low", "high")]


def stages_picture(documents: dict, questions: dict, readers: list[str], asked: list[str]) -> bytes:
    """Bits per byte of each source relative to the first model, and exact match, by model; a PNG with 95 % intervals."""
    both = 2 if questions else 1
    figure, panels = canvas(
        4.9 * both, 3.4, columns=both, left=0.16 / both, right=0.98, top=0.88, bottom=0.12, wspace=0.25
    )
    bits = {source: [found["models"][name]["relative"] for name in readers] for source, found in documents.items()}
    figures = [(bits, readers, "bits per byte against before", "+.0%")]
    if questions:
        matches = {
            source: [found["models"][name]["exact_match"] for name in asked] for source, found in questions.items()
        }
        figures.append((matches, asked, "exact match", ".0%"))
    for panel, (lines, names, title, form) in zip(panels, figures, strict=True):
        for number, (source, intervals) in enumerate(lines.items()):
            values, color = [each["value"] for each in intervals], COLORS[number % len(COLORS)]
            style = {"color": color, "label": source, "marker": "o", "markersize": 4, "capsize": 3}
            panel.errorbar(range(len(names)), values, yerr=_ends(intervals, 1), **style)
        panel.set_xticks(range(len(names)), names)
        panel.set_title(title, fontsize=10, color=GREY)
        panel.yaxis.set_major_formatter(lambda value, _, form=form: format(value, form))
        panel.legend(frameon=False, fontsize=8, labelcolor=GREY)
    panels[0].axhline(0, color=GREY, linewidth=1, linestyle=":")
    return as_png(figure)


def sweep_picture(rows: list[dict], key: str, budget: float) -> bytes:
    """The fall of the domain's bits per byte against the rise of the general ones, a point for each value; a PNG.

    Args:
        rows: {"value": of the swept setting, "gain": interval, "forgetting": interval}, in shares.
    """
    figure, (panel,) = canvas(6.4, 4.0, left=0.12, right=0.96, top=0.96, bottom=0.14)
    gains, forgetting = ([row[name] for row in rows] for name in ("gain", "forgetting"))
    across, up = ([100 * each["value"] for each in side] for side in (forgetting, gains))
    panel.errorbar(
        across,
        up,
        xerr=_ends(forgetting, 100),
        yerr=_ends(gains, 100),
        color=BLUE,
        marker="o",
        markersize=5,
        capsize=3,
    )
    for row, x, y in zip(rows, across, up, strict=True):
        where = {"xytext": (6, 6), "textcoords": "offset points", "fontsize": 9}
        panel.annotate(f"{key} {row['value']}", (x, y), color=GREY, parse_math=False, **where)
    panel.axvline(100 * budget, color=RED, linewidth=1.2, linestyle=":")
    panel.axvline(0, color=GREY, linewidth=1, linestyle=":")
    panel.set_xlabel("forgetting: rise of the general bits per byte, % (dotted red: the budget)")
    panel.set_ylabel(f"gain: fall of the {DOMAIN}'s bits per byte, %")
    return as_png(figure)
