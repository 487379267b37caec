"""Every stage against every other: win rates of greedy answers, paired by prompt, as figures and as a picture."""

from itertools import combinations

from data_prep.common.intervals import bootstrap_interval, detectable_difference
from data_prep.common.plots import GREY, INK, as_png, canvas
from data_prep.judging.judges import Judge
from eval.judging.outcomes import compare, means


def win_matrix(rows: list[dict], answers: dict[str, list[str]], judge: Judge) -> dict[str, dict]:
    """{model: {other: its win rate against it, with the interval over prompts and "detectable"}}, a tie counting half.

    "detectable" is the smallest distance from one half that so many prompts would show (see `detectable_difference`).

    Args:
        answers: {model: one text per row}.
    """
    texts = {name: [[text] for text in own] for name, own in answers.items()}
    found: dict[str, dict] = {name: {} for name in answers}
    for one, other in combinations(answers, 2):
        wins = means(compare(judge, rows, [texts[one], texts[other]])[0])
        rate, detectable = bootstrap_interval(wins), detectable_difference(wins)
        turned = {"value": 1 - rate["value"], "low": 1 - rate["high"], "high": 1 - rate["low"], "n": rate["n"]}
        found[one][other] = {**rate, "detectable": detectable}
        found[other][one] = {**turned, "detectable": detectable}
    return found


def picture(rates: dict[str, dict]) -> bytes:
    """The matrix as coloured cells: green where the row wins more than half, red where less; bold where the interval
    excludes one half. A PNG on white."""
    names, size = [*rates], 0.9 * len(rates)
    figure, (panel,) = canvas(2.2 + size, 1.5 + 0.55 * len(rates), left=0.24, right=0.98, top=0.88, bottom=0.2)
    values = [[rates[one][other]["value"] if one != other else 0.5 for other in names] for one in names]
    panel.imshow(values, cmap="RdYlGn", vmin=0, vmax=1, aspect="auto", alpha=0.7)
    for row, one in enumerate(names):
        for column, other in enumerate(names):
            if one == other:
                panel.text(column, row, "–", ha="center", va="center", color=GREY)
                continue
            cell = rates[one][other]
            sure = cell["low"] > 0.5 or cell["high"] < 0.5
            text = f"{cell['value']:.0%}"
            panel.text(
                column, row, text, ha="center", va="center", color=INK, fontsize=9, weight="bold" if sure else "normal"
            )
    panel.grid(visible=False)
    panel.set_xticks(range(len(names)), names, rotation=30, ha="right")
    panel.set_yticks(range(len(names)), names)
    panel.set_title("row against column: share won, a tie counts half", fontsize=10, color=GREY)
    return as_png(figure, transparent=False)
