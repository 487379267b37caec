"""The chart of a whole run: base → SFT → PPO by the judge's win rate against SFT, and by right answers."""

from data_prep.common.intervals import show_interval
from data_prep.common.plots import BLUE, GREEN, GREY, INK, as_small_png, canvas, wrapped
from data_prep.common.text import printable
from eval.common.functions import WORDS, in_words
from eval.reporting.words import label, say, spoken

STAGES = {"base": "Base model", "sft": "SFT", "ppo": "PPO"}
FACTS = ("asked_fact", "all_facts")  # of data_prep/rewards.py
WIDTH = 0.42  # of a bar; stages are 1 apart
LINE, CAPTION_LINES = 18, 6  # pixels, and at most so many
COLORS = {
    "greedy answers": BLUE,
    "sampled answers": "#a9cdf4",
    WORDS["asked_fact"]: "#9fd3b5",
    WORDS["all_facts"]: GREEN,
}
SLATE = "#a9b0ba"  # SFT against itself, which is no measurement
# What the panels show, for the page: both, or the one that there is.
BOTH = (
    "Left: how often a judge prefers a model's answer to SFT's; above the dashed line the model is preferred. Right: how "
    "many answers are right."
)
WINS = "How often a judge prefers a model's answer to SFT's; above the dashed line the model is preferred."
RIGHT = "How many answers are right."


def is_greedy(result: dict) -> bool:
    """Whether a result of eval/win_rate.py is that of greedy answers."""
    return result.get("temperature") == 0


def against_sft(results: dict) -> tuple[str, dict[str, dict[str, dict]], list[str]]:
    """(the judge, {"greedy" or "sampled": {"base" or "ppo": its win rate against SFT}}, what is left out).

    A win rate of SFT against the base model is turned round: a tie counts half on both sides. What another judge than
    that of PPO's answers has judged is left out: it cannot be compared. ("", {}, []) without any win rate against SFT.
    """
    judge, rates, left_out = "", {}, []
    for stage, start, turned in (
        ("ppo", "win_rate_ppo_vs_sft", False),
        ("base", "win_rate_base_vs_sft", False),
        ("base", "win_rate_sft_vs_base", True),
    ):
        for name in (start, f"{start}_greedy"):
            result = results.get(name, {})
            if not (rate := result.get("metrics", {}).get("win_rate")):
                continue
            judge = judge or result.get("judge", "")
            if result.get("judge", "") != judge:
                left_out.append(name.removeprefix("win_rate_").replace("_", " "))
                continue
            if turned:
                rate = {**rate, "value": 1 - rate["value"], "low": 1 - rate["high"], "high": 1 - rate["low"]}
            rates.setdefault("greedy" if is_greedy(result) else "sampled", {}).setdefault(stage, rate)
    return judge, {name: rates[name] for name in ("greedy", "sampled") if name in rates}, left_out


def right_answers(results: dict) -> dict[str, dict[str, dict]]:
    """{function: {stage: the mean of its greedy answers to held-out questions}} for those of `FACTS` that were measured."""
    found = {}
    for function in FACTS:
        for stage in STAGES:
            metrics = results.get(f"answers_{stage}_heldout", {}).get("metrics", {})
            if interval := metrics.get("eval_funcs", {}).get(function):
                found.setdefault(function, {})[stage] = interval
    return found


def prompts_in_words(series: dict[str, dict[str, dict]]) -> str:
    """On how many prompts the intervals {series: {stage: interval}} are: "400 prompts" or "100 to 400 prompts"."""
    numbers = [interval["n"] for each in series.values() for interval in each.values()]
    few, many = min(numbers), max(numbers)
    if few == many:
        return say("{n} prompts", n=f"{few:,}")
    return say("{few} to {many} prompts", few=f"{few:,}", many=f"{many:,}")


def chart(results: dict) -> dict | None:
    """{"picture": PNG, "png": the same with its caption in it, "reading": what its panels show, "caption", "words": its
    figures}, or None.

    None if neither win rates against SFT nor right answers were measured; what is missing of them is left out.
    """
    judge, rates, left_out = against_sft(results)
    facts = right_answers(results)
    if not rates and not facts:
        return None
    panels, words, caption = [], [], []
    if rates:
        panels.append(("Win rate against SFT", {f"{kind} answers": each for kind, each in rates.items()}, 0.5))
        for stage in ("base", "ppo"):
            told = [f"{show_interval(each[stage])} ({kind})" for kind, each in rates.items() if stage in each]
            if told:
                words.append(
                    say("Win rate against SFT, {model}: {rates}.", model=STAGES[stage], rates=", ".join(told))
                )
        share = "Win rate: share of comparisons with SFT's answers that are won, on {prompts}; a tie counts half."
        caption += [say(share, prompts=prompts_in_words(rates)), say("The judge is {judge}.", judge=judge)]
        if left_out:
            caption.append(say("Left out, as another judged: {names}.", names=", ".join(left_out)))
    if facts:
        panels.append(("Right answers, greedy", {in_words(name): each for name, each in facts.items()}, None))
        for name, each in facts.items():
            told = ", ".join(f"{STAGES[stage]} {show_interval(interval)}" for stage, interval in each.items())
            words.append(say("{measure}, greedy: {rates}.", measure=say(in_words(name)).capitalize(), rates=told))
        caption.append(say("Right answers: share of greedy answers to {prompts}.", prompts=prompts_in_words(facts)))
    caption = " ".join([*caption, say("Black lines: 95 % intervals over prompts.")])
    return {
        "picture": as_small_png(_draw(panels, None)),
        "png": as_small_png(_draw(panels, caption)) if spoken() == "en" else None,  # what is published is English
        "reading": say(BOTH) if rates and facts else say(WINS if rates else RIGHT),
        "caption": caption,
        "words": " ".join(words),
    }


def _draw(panels: list[tuple], caption: str | None):
    """The figure, 1,000 pixels wide: `panels` of (title, {series: {stage: interval}}, what SFT is by definition)."""
    figure, axes = canvas(10, 4.1, columns=len(panels))
    figure.set_dpi(100)
    lines = wrapped(figure, printable(caption), 940, CAPTION_LINES, size=10.5) if caption else []
    text = LINE * len(lines) + 16 if lines else 0
    height = 410 + text
    figure.set_size_inches(10, height / 100)
    figure.subplots_adjust(left=0.07, right=0.98, top=1 - 76 / height, bottom=(36 + text) / height, wspace=0.2)
    for panel, (title, series, of_sft) in zip(axes, panels, strict=True):
        drawn = {stage for each in series.values() for stage in each} | ({"sft"} if of_sft is not None else set())
        places = {stage: place for place, stage in enumerate(each for each in STAGES if each in drawn)}
        for number, (name, each) in enumerate(series.items()):
            offset = (number - (len(series) - 1) / 2) * WIDTH
            x, y = [places[stage] + offset for stage in each], [interval["value"] for interval in each.values()]
            panel.bar(
                x,
                y,
                WIDTH - 0.03,
                color=COLORS[name],
                label=label(name),
                zorder=2,
            )
            for place, interval in zip(x, each.values(), strict=True):
                _draw_interval(panel, place, interval)
        if of_sft is not None:
            panel.axhline(of_sft, color=GREY, linewidth=1.2, linestyle=(0, (4, 3)), zorder=1)
            panel.bar([places["sft"]], [of_sft], len(series) * WIDTH - 0.03, color=SLATE, zorder=2)
            where = {"ha": "center", "va": "bottom", "fontsize": 11, "color": GREY}
            panel.text(places["sft"], of_sft + 0.015, f"{of_sft:.0%}\n{label('by definition')}", **where)
        middle, room = (len(places) - 1) / 2, len(STAGES) / 2 * (3 - len(axes))  # bars of one width, however many
        panel.set_xlim(middle - room, middle + room)
        panel.set_ylim(0, 1.09)
        panel.set_yticks([0, 0.25, 0.5, 0.75, 1], ["0%", "25%", "50%", "75%", "100%"])
        panel.set_xticks([*places.values()], [label(STAGES[stage]) for stage in places], color=INK, fontsize=13)
        panel.tick_params(axis="x", length=0)
        panel.tick_params(axis="y", labelsize=11)
        panel.grid(axis="x", visible=False)
        panel.set_title(label(title), loc="left", color=INK, fontsize=14, weight="bold", pad=30)
        panel.legend(
            loc="lower left", bbox_to_anchor=(-0.015, 0.985), ncols=2, frameon=False, fontsize=12, labelcolor=INK,
            handlelength=1, handleheight=0.9, handletextpad=0.5, columnspacing=1.4, borderaxespad=0.2,
        )  # fmt: skip
    for number, each in enumerate(lines):
        y = (text - 6 - number * LINE) / height
        figure.text(0.03, y, each, color=GREY, fontsize=10.5, va="top", parse_math=False)
    return figure


def _draw_interval(panel, place: float, interval: dict) -> None:
    """An interval on its bar, and the value above it."""
    value, ends = interval["value"], (interval["low"], interval["high"])
    panel.plot([place, place], ends, color=INK, linewidth=1.6, zorder=3)
    for end in ends:
        panel.plot([place - 0.06, place + 0.06], [end, end], color=INK, linewidth=1.6, zorder=3)
    shown = f"{value:.1%}" if 0 < value < 0.095 else f"{value:.0%}"
    where = {"ha": "center", "va": "bottom", "fontsize": 12, "weight": "bold", "color": INK}
    panel.text(place, ends[1] + 0.015, shown, zorder=4, **where)
