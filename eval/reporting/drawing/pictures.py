"""The report's pictures."""

from data_prep.common.plots import (
    BLUE,
    GREEN,
    GREY,
    INK,
    RED,
    SOFT,
    as_png,
    as_small_png,
    as_uri,
    canvas,
    set_height,
    sheet,
    uri_of,
    wrapped,
)
from data_prep.common.text import printable
from eval.common.functions import in_words
from eval.reporting.tables import SHARES, number
from eval.reporting.words import label as drawn
from eval.reporting.words import say

# What PPO evaluates besides score and KL; anything else it evaluates measures the quality of answers (eval_funcs).
AGREEMENT = ("exact_match", "chrf")  # with the reference; any other measure is called a rating
NO_QUALITY = ("rlhf_reward", "length", "eos_rate", "entropy", "repetition")

PATH_ALARMS = ("overoptimization", "kl_over_budget")  # those that a path of score against KL can show


def picture(points: list, label: str) -> str:
    """A curve by step."""
    figure, (panel,) = canvas(4.4, 2.6, left=0.14, right=0.98, top=0.96, bottom=0.2)
    marker = "o" if len(points) < 15 else None
    panel.plot(*zip(*points, strict=True), color=BLUE, linewidth=1.8, marker=marker, markersize=4)
    panel.set_xlabel(drawn("step"))
    if label.endswith(SHARES):
        panel.yaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
    return uri_of(as_png(figure, dpi=100))  # shown small, and there are many


def score_against_kl(curves: dict, alarms: list[dict] = ()) -> dict | None:
    """The held-out evaluations of a PPO run as a path away from the SFT model (as in Gao 2023, arXiv:2210.10760, fig. 1).

    A line marks where the first of the `alarms` overoptimization, or else kl_over_budget, was raised. Reads the curves "held-out score" and "held-out KL", and the first other curve that measures the quality of answers ("held-out <measure>", none of `NO_QUALITY`), [[update, value], …] each. Returns {"picture": data: URI, "words":
    what it shows, "curves": their names}; None without score or KL.
    """
    start = "held-out "
    found = {name.removeprefix(start): dict(row) for name, row in curves.items() if name.startswith(start) and row}
    score, kl = found.pop("score", {}), found.pop("KL", {})
    measure, measured = next(((name, points) for name, points in found.items() if name not in NO_QUALITY), ("", {}))
    steps = sorted(set(score) & set(kl) & set(measured or score))
    if not steps:
        return None
    first, last = steps[0], steps[-1]
    figure, (panel,) = canvas(6.6, 3.3, left=0.1, right=0.9, top=0.95, bottom=0.17)
    path = [kl[step] for step in steps]
    panel.plot(path, [score[step] for step in steps], color=BLUE, linewidth=1.8, marker="o", markersize=4)
    panel.set_xlabel(drawn("KL from the fine-tuned model, nats per answer"))
    panel.set_ylabel(drawn("reward model's score (dots)"), color=BLUE)
    panel.margins(y=0.15)
    for step, side, height in ((first, "left", -14), (last, "right", 7)):
        where = {"xytext": (0, height), "textcoords": "offset points", "ha": side}
        panel.annotate(drawn("update {n}", n=step), (kl[step], score[step]), color=GREY, **where)
    words = say(
        "From update {first} to {last} the KL went from {kl_first} to {kl_last} nats per answer and the reward model's "
        "score from {score_first} to {score_last}.",
        **{"first": first, "last": last, "kl_first": number(kl[first]), "kl_last": number(kl[last])},
        **{"score_first": number(score[first]), "score_last": number(score[last])},
    )
    if measure:
        right = panel.twinx()
        line = {"linewidth": 1.8, "linestyle": "--", "marker": "s", "markersize": 4}
        right.plot(path, [measured[step] for step in steps], color=GREEN, **line)
        right.spines[["top", "left", "bottom"]].set_visible(False)
        right.spines["right"].set_color(GREY)
        right.tick_params(colors=GREY, labelsize=9)
        right.set_ylabel(drawn("{measure} (squares)", measure=drawn(in_words(measure))), color=GREEN)
        right.margins(y=0.15)
        if measure.endswith(SHARES):
            right.yaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
        values = {step: number(measured[step], measure) for step in steps}
        best = max(steps, key=measured.get)
        what, whole = (
            ("agreement", "Agreement with the reference") if measure in AGREEMENT else ("rating", "The rating")
        )
        words += " " + say(
            "{whole} ({measure} of sampled answers, a proxy for a human judge) went from {first} to {last}; it was highest "
            "at update {best}, {most}.",
            **{"whole": say(whole), "measure": say(in_words(measure)), "first": values[first], "last": values[last]},
            **{"best": best, "most": values[best]},
        )
        if measured[last] < measured[best] and score[last] > score[best]:
            words += " " + say(
                "Since then the score has risen and the {what} has fallen, as in over-optimization. The alarms say whether "
                "this is more than chance.",
                what=say(what),
            )
    by_name = {alarm["alarm"]: alarm for alarm in reversed(alarms)}  # the first of each
    if hit := next((by_name[name] for name in PATH_ALARMS if name in by_name), None):
        place = between(hit["step"], kl)
        panel.axvline(place, color=RED, linewidth=1.4, linestyle=":")
        side = (
            "left" if place < (min(path) + max(path)) / 2 else "right"
        )  # so that the name, above, stays in the picture
        where = {"xytext": (0, 2), "textcoords": "offset points", "ha": side, "va": "bottom", "fontsize": 9}
        panel.annotate(f"alarm {hit['alarm']}", (place, 1), xycoords=panel.get_xaxis_transform(), color=RED, **where)
        said = "The alarm {alarm} was raised at update {step}, at {kl} nats per answer."
        words += " " + say(said, alarm=hit["alarm"], step=hit["step"], kl=number(place))
    shown = ["score", "KL", *([measure] if measure else [])]
    return {"picture": as_uri(figure), "words": words, "curves": [start + name for name in shown]}


def between(step: float, points: dict[int, float]) -> float:
    """The value at `step`, by a straight line between the nearest of `points`; at the ends, that of the end."""
    before = max((each for each in points if each <= step), default=min(points))
    after = min((each for each in points if each >= step), default=max(points))
    share = (step - before) / (after - before) if before < after else 0
    return points[before] + share * (points[after] - points[before])


WIDTH, MARGIN, LABEL, LINE = 1000, 32, 195, 25  # pixels of answers_picture; LABEL is the column of the models' names
LINES = 4  # of a question or an answer; longer ones are shortened
SIGNS = {"right": ("✓", GREEN), "partly": ("✓", BLUE), "wrong": ("✗", RED)}
TITLES = {"base": "Base", "sft": "SFT", "ppo": "PPO"}


def answers_picture(question: dict, answers: dict[str, str], marks: dict[str, tuple[str, str]], caption: str) -> bytes:
    """One question with each model's answer, and how right it is, as a PNG 1,000 pixels wide.

    Args:
        question: {"prompt": messages, "reference": str}.
        answers: {model: its answer}, from top to bottom.
        marks: {model: "right", "partly" or "wrong", and the same in words}.

    The texts are drawn as they are, line by line: "$" opens no formula, control characters show as their codes.
    """
    figure, panel = sheet(WIDTH)
    turns, inner = question["prompt"], WIDTH - 2 * MARGIN
    asked = turns[-1]["content"] if len(turns) == 1 else "\n".join(f"{row['role']}: {row['content']}" for row in turns)
    y = MARGIN

    def lines_of(text: str, width: float, most: int, **font) -> list[str]:
        left, lines = [line for line in text.splitlines() if line.strip()], []
        while left:
            room = most - len(lines)
            first, left = (left[0], left[1:]) if room > 1 else (" ".join(left), [])
            lines += wrapped(figure, first, width, room - bool(left), **font)  # a line is kept for what is left
        return lines

    def write(text: str, x: float, most: int, color: str, size: float = 13, leading: float = LINE, **font) -> None:
        nonlocal y
        for line in lines_of(printable(text), WIDTH - MARGIN - 14 - x, most, size=size, **font):
            panel.text(x, y, line, color=color, fontsize=size, va="top", parse_math=False, **font)
            y += leading

    write(asked, MARGIN, LINES, INK, size=15, leading=29, weight="bold")
    y += 14
    rows = [(TITLES.get(name, name), text, marks[name]) for name, text in answers.items()]
    for title, text, marked in [*rows, ("Reference", question["reference"], None)]:
        top = y
        y += 14
        x = MARGIN + LABEL
        write(text if text.strip() else "(nothing)", x, LINES, INK if text.strip() else GREY)
        if marked is not None:
            sign, color = SIGNS[marked[0]]
            write(f"{sign} {marked[1]}", x, 1, color, size=10.5, leading=20)
        y += 10
        panel.text(
            MARGIN + 16,
            top + 14,
            wrapped(figure, title, LABEL - 24, 1, size=13, weight="bold")[0],
            color=GREY if marked is None else INK,
            fontsize=13,
            weight="bold",
            va="top",
            parse_math=False,
        )
        if marked is not None:
            panel.add_patch(_box(MARGIN, top, inner, y - top))
        y += 8
    y += 6
    write(caption, MARGIN, 6, GREY, size=10, leading=18)
    set_height(figure, panel, y + MARGIN - 8)
    return as_small_png(figure)


def _box(x: float, y: float, width: float, height: float):
    """The background of an answer."""
    from matplotlib.patches import FancyBboxPatch  # slow to import

    return FancyBboxPatch((x, y), width, height, boxstyle="round,pad=0,rounding_size=8", color=SOFT, zorder=0)
