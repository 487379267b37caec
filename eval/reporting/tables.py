"""The report's tables and the sentences below them, made from a run's results."""

import math
from pathlib import Path

from data_prep.common.intervals import show_interval, show_nats
from eval.common.functions import WORDS, in_words, show_difference, show_measure
from eval.reporting.drawing.chart import is_greedy
from eval.reporting.stages import BEST_OF, BEST_OF_TITLE, METHODS, VARIANTS, method_of, trainings
from eval.reporting.words import say

MODELS = ["base", "sft", "ppo"]  # the folders of the chain
EQUAL_TIMES = 1.15  # training times count as equal if the longest is less than this many times the shortest
EXACT = "exact match, greedy"  # a column of the table of methods
SHARES = ("eos_rate", "accuracy", "fraction", "win_rate", "exact_match", "asked_fact", "all_facts")


class Known(dict):
    """For `str.format_map`: what a stage did not write is a dash."""

    def __missing__(self, key: str) -> str:
        return "–"


def number(value, key: str = "") -> str:
    """A value as the report shows it: an interval, a percentage, millions, thousands with commas, or three digits."""
    if isinstance(value, dict) and {"value", "low", "high"} <= set(value):
        return show_interval(value)
    if not isinstance(value, int | float) or isinstance(value, bool):
        return "–" if value is None else str(value)
    if key.removesuffix("_first").removesuffix("_last").endswith(SHARES) and 0 <= value <= 1:
        return f"{value:.0%}"
    if abs(value) >= 1e6:
        return f"{value / 1e6:.1f} M"
    return f"{value:,}" if isinstance(value, int) else f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def measures(results: dict) -> list[str]:
    """The functions that answers were measured by (--eval_funcs), those of data_prep/rewards.py first."""
    found = {}
    for name, result in results.items():
        if name.startswith(("answers_", "win_rate_")):
            found |= dict.fromkeys(result["metrics"].get("eval_funcs", {}))
    return [name for name in WORDS if name in found] + [name for name in found if name not in WORDS]


def answers_table(results: dict, models: list[str], measure: str = "") -> tuple[list[str], list[dict]]:
    """(models, rows of {"set", "group", "cells": one interval or None per model}) of all `answers_*` results.

    The intervals are those of the function `measure`, or of the exact match.
    """
    cells: dict[tuple[str, str], dict] = {}
    for name, result in results.items():
        if name.startswith("answers_"):
            data, model = ", ".join(Path(path).stem for path in result["data"]), Path(result["model"]).name
            data += f" ({name})" if model in cells.get((data, ""), {}) else ""
            for group, figures in {"": result["metrics"], **result.get("groups", {})}.items():
                if interval := figures.get("eval_funcs", {}).get(measure) if measure else figures["exact_match"]:
                    cells.setdefault((data, group), {})[model] = interval
    found = {model for row in cells.values() for model in row}
    columns = [model for model in models if model in found] + sorted(found - set(models))
    rows = [
        {"set": data, "group": group, "cells": [row.get(model) for model in columns]}
        for (data, group), row in sorted(cells.items())
    ]
    return columns, rows


def without_all_facts(results: dict) -> dict:
    """The results, less those of answers whose facts were all counted: their exact match is the same figure twice."""
    return {
        name: result
        for name, result in results.items()
        if not (name.startswith("answers_") and "all_facts" in result["metrics"].get("eval_funcs", {}))
    }


def comparison(results: dict) -> list[dict]:
    """The rows of the table of methods, one per training, and best of n if it was measured: {"name", "title", "win_rate",
    "greedy", "kl", "seconds", "temperature", "learned_from", "greedy_rate", "eval_funcs", "points", "opponent", "best_of"};
    None if it was not run. Win rates and KL are against SFT, `opponent`; "eval_funcs" is {function: interval} of greedy answers, of
    every function that any method was measured by; "points" are the rater's of sampled answers, above SFT's.
    """
    rows = []
    named = trainings(results)
    if f"win_rate_{BEST_OF}_vs_sft" in results:
        named[BEST_OF] = BEST_OF_TITLE
    functions = measures(
        {f"answers_{name}": results.get(f"answers_{name}_heldout", {"metrics": {}}) for name in named}
    )
    for name, title in named.items():
        result, won = results.get(name, {}), results.get(f"win_rate_{name}_vs_sft", {})
        greedy = results.get(f"win_rate_{name}_vs_sft_greedy", {})
        metrics, right = result.get("metrics", {}), results.get(f"answers_{name}_heldout", {})
        learned = {
            "answers": metrics.get("episodes"),
            "pairs": result.get("pairs"),
            "labelled answers": result.get("answers"),
        }
        rows.append(
            {
                "name": name,
                "title": title,
                "seconds": result.get("seconds"),
                "temperature": won.get("temperature"),
                "opponent": won.get("opponent"),
                **{key: won.get("metrics", {}).get(key) for key in ("win_rate", "kl")},
                "points": won.get("metrics", {}).get("eval_funcs", {}).get("rubric", {}).get("difference"),
                "greedy_rate": greedy.get("metrics", {}).get("win_rate"),
                "greedy": right.get("metrics", {}).get("exact_match"),
                "eval_funcs": {each: right.get("metrics", {}).get("eval_funcs", {}).get(each) for each in functions},
                "learned_from": next((f"{number(value)} {what}" for what, value in learned.items() if value), None),
                "best_of": won.get("best_of") if won.get("model") == won.get("opponent") else None,
            }
        )
    return rows


def comparison_columns(rows: list[dict]) -> list[tuple[str, list[str | None]]]:
    """[(title, one cell per row, None if it was not run)] of the table of methods; what no row has is left out, if it is
    the greedy win rate or a function. So is the exact match where all facts were counted: that is the same twice."""
    shown = [("win rate", [row["win_rate"] and show_interval(row["win_rate"]) for row in rows])]
    if any(row["greedy_rate"] for row in rows):
        shown.append(("win rate, greedy", [row["greedy_rate"] and show_interval(row["greedy_rate"]) for row in rows]))
    answered = [row for row in rows if row["greedy"]]
    if not answered or not all(row["eval_funcs"].get("all_facts") for row in answered):
        shown.append((EXACT, [row["greedy"] and show_interval(row["greedy"]) for row in rows]))
    for name in rows[0]["eval_funcs"] if rows else ():
        cells = [row["eval_funcs"][name] for row in rows]
        shown.append((f"{in_words(name)}, greedy", [cell and show_measure(name, cell) for cell in cells]))
    shown.append(
        ("KL, nats per answer", [row["kl"] and show_nats(row["kl"]) or farthest(row["best_of"]) for row in rows])
    )
    return shown


def farthest(n: int | None) -> str | None:
    """The most that best of n can be away from what it samples, in nats (Beirami 2024, arXiv:2401.01879)."""
    return n and f"at most {math.log(n) - (n - 1) / n:.2f}"


def judges(rates: list[tuple[str, dict, dict]]) -> str:
    """Who judged: "The judge is …." for all win rates, or for each judge those that it judged."""
    found: dict[str, list[str]] = {}
    for name, _, result in rates:
        found.setdefault(result.get("judge", "not named"), []).append(name)
    if len(found) == 1:
        return say("The judge is {judge}.", judge=[*found][0])
    return " ".join(
        say("The judge of {names} is {judge}.", names=", ".join(names), judge=judge) for judge, names in found.items()
    )


def of_different_judges(rates: list[tuple[str, dict, dict]]) -> list[tuple[str, list[tuple[str, dict]]]]:
    """[(who against whom, [(the judge, its win rate)])] of the comparisons that more than one judge has made."""
    found: dict[tuple, dict[str, dict]] = {}
    for _, rate, result in rates:
        if result.get("model") and result.get("opponent"):
            models = tuple(Path(result[side]).name for side in ("model", "opponent"))
            judge = result.get("judge", say("not named"))
            found.setdefault((*models, is_greedy(result)), {}).setdefault(judge, rate)
    return [
        (
            say("{model} against {opponent}, {kind} answers", model=model, opponent=opponent,
                kind=say("greedy" if greedy else "sampled")),
            [(f"{judge} ({rate['n']:,})" if "n" in rate else judge, rate) for judge, rate in by_judge.items()],
        )
        for (model, opponent, greedy), by_judge in found.items()
        if len(by_judge) > 1
    ]  # fmt: skip


def both_sides(rates: list[tuple[str, dict, dict]]) -> list[tuple]:
    """[(comparison, "greedy" or "sampled", measure in words, the model's mean, its opponent's, their difference)]."""
    return [
        (
            name.removesuffix(" greedy"),
            "greedy" if is_greedy(result) else "sampled",
            in_words(function),
            *(show_measure(function, found[side]) for side in ("model", "opponent")),
            show_difference(function, found["difference"]),
        )
        for name, _, result in rates
        for function, found in result["metrics"].get("eval_funcs", {}).items()
    ]


def verdict(rows: list[dict]) -> list[str]:
    """What the table of methods says, in sentences: equal training times or not, PPO's seeds, who wins more than PPO, and
    how much of what the rater itself as reward brings PPO gets from the reward model."""
    sentences = []
    # Best of n is not trained, and a run that is to leave its budget takes what that takes.
    timed = [row for row in rows if method_of(row["name"]) not in (BEST_OF, "ppo_over_budget")]
    if len(timed) > 1 and all(row["seconds"] for row in timed):
        first, *_, last = sorted(timed, key=lambda row: row["seconds"])
        if last["seconds"] < EQUAL_TIMES * first["seconds"]:
            said = "Trained at equal wall time: {least} to {most} s."
        else:
            said = "Not trained equally long: {first} for {least} s, {last} for {most} s."
        least, most = (f"{row['seconds']:,.0f}" for row in (first, last))
        sentences.append(say(said, least=least, most=most, first=first["title"], last=last["title"]))
    rates: dict[str, list[dict]] = {}
    for row in rows:
        if row["win_rate"] and method_of(row["name"]) not in VARIANTS:
            rates.setdefault(method_of(row["name"]), []).append(row["win_rate"])
    if "ppo" not in rates:
        return sentences
    means = {method: sum(rate["value"] for rate in found) / len(found) for method, found in rates.items()}
    seeds = {
        method: say(" (mean of {n} seeds)", n=len(found)) if len(found) > 1 else "" for method, found in rates.items()
    }
    above = sum(rate["low"] > 0.5 for rate in rates["ppo"])
    said = "PPO's win rate is above 50% with its whole interval in {above} of {runs} runs."
    sentences.append(say(said, above=above, runs=len(rates["ppo"])))
    better = [method for method in means if means[method] > means["ppo"]]
    for method in better:
        apart = all(rate["low"] > other["high"] for rate in rates[method] for other in rates["ppo"])
        title = "Best of 8" if method == BEST_OF else METHODS[method][0]
        said = "{method}'s win rate is higher than PPO's: {rate} against {ppo}; their intervals "
        said += "do not overlap." if apart else "overlap."
        rate, ppo = (f"{means[each]:.1%}{seeds[each]}" for each in (method, "ppo"))
        sentences.append(say(said, method=title, rate=rate, ppo=ppo))
    if len(means) > 1 and not better:
        said = "No other method's win rate is higher than PPO's, {ppo}."
        sentences.append(say(said, ppo=f"{means['ppo']:.1%}{seeds['ppo']}"))
    return sentences + share_of_rater(rows)


def share_of_rater(rows: list[dict]) -> list[str]:
    """The sentence on how much of the points that the rater itself as reward brings PPO gets; none if they are unknown."""
    most_points = next((row["points"]["value"] for row in rows if row["name"] == "ppo_rater" and row["points"]), 0)
    gains = [row["points"]["value"] for row in rows if method_of(row["name"]) == "ppo" and row["points"]]
    if most_points <= 0 or not gains:
        return []
    shares = [gain / most_points for gain in gains]
    several = ""
    if len(shares) > 1:
        least, most = f"{min(shares):.0%}", f"{max(shares):.0%}"
        several = say(" (mean of {n} seeds, {least} to {most})", n=len(shares), least=least, most=most)
    said = (
        "With the rater itself as reward PPO gains {points} of the rater's points an answer over SFT, sampled; with the "
        "reward model it gains {share} of that{several}."
    )
    share = f"{sum(shares) / len(shares):.0%}"
    return [say(said, points=f"{most_points:.2f}", share=share, several=several)]


def tiles(
    results: dict, columns: list[str], table: list[dict], models: list[str], accuracies: list, rates: list
) -> list[tuple]:
    """The four metrics on top, as (title, value, note)."""
    bits = results.get("pretrain", {}).get("curves", {}).get("held-out bits per byte", [])
    title, right, questions = (
        "Asked fact right, greedy",
        *of_most_models(*answers_table(results, models, "asked_fact")),
    )
    if not any(model in MODELS for model, _ in right):  # not measured of the chain
        title, right, questions = "Exact match", *of_most_models(columns, table)
    right = [cell for cell in right if cell[0] in models] or right  # of the chain, where it was asked
    named = {name: (name.removesuffix(" greedy"), rate, is_greedy(result)) for name, rate, result in rates}
    ppo = [name for name in named if name.startswith("ppo vs ")]
    won = next((named[name] for name in ["ppo vs sft greedy", *ppo, *named] if name in named), None)
    chain = " → ".join(f"{model} {value:.0%}" for model, value in right)
    missing = ("–", "not run")
    return [
        ("Bits per byte, held-out text", *((f"{bits[-1][1]:.2f}", f"before: {bits[0][1]:.2f}") if bits else missing)),
        (title, *((f"{right[-1][1]:.0%}", f"{chain}; {questions}") if right else missing)),
        (
            "Reward model's accuracy",
            *((f"{accuracies[0][1]['value']:.0%}", "guessing: 50%") if accuracies else missing),
        ),
        (
            "Win rate, greedy" if won and won[2] else "Win rate",
            *((f"{won[1]['value']:.0%}", f"{won[0]}; a tie counts half") if won else missing),
        ),
    ]


def of_most_models(columns: list[str], table: list[dict]) -> tuple[list[tuple[str, float]], str]:
    """([(model, value)], the questions) of the row of an `answers_table` that most models have, no group."""
    best = max((row for row in table if not row["group"]), key=lambda row: sum(map(bool, row["cells"])), default=None)
    if not best:
        return [], ""
    return [(name, cell["value"]) for name, cell in zip(columns, best["cells"], strict=True) if cell], best["set"]


def evaluations(results: dict, prefix: str, figure: str) -> list[tuple[str, dict, dict]]:
    """[(the name without `prefix`, the interval of the metric `figure`, the whole result)] of all results of a kind."""
    return [
        (name.removeprefix(prefix).replace("_", " "), result["metrics"][figure], result)
        for name, result in results.items()
        if name.startswith(prefix)
    ]


def markdown(facts: dict) -> str:
    """A run's main metrics as Markdown, 95 % intervals in brackets; `facts` are those of its results.json."""
    results = facts["stages"]
    columns, table = answers_table(without_all_facts(results), MODELS)
    rows = [
        (
            "bits per byte on held-out documents",
            number(results.get("pretrain", {}).get("metrics", {}).get("bits_per_byte")),
        )
    ]
    for row in table:
        for model, cell in zip(columns, row["cells"], strict=True):
            if cell and not row["group"]:
                rows.append((f"exact match, greedy, {model}: `{row['set']}`", show_interval(cell)))
    for name in measures(results):
        models, measured = answers_table(results, MODELS, name)
        rows += [
            (f"{in_words(name)}, greedy, {model}: `{row['set']}`", show_measure(name, cell))
            for row in measured
            if not row["group"]
            for model, cell in zip(models, row["cells"], strict=True)
            if cell
        ]
    held_out = results.get("reward", {}).get("metrics", {}).get("accuracy")
    rows += [("reward model, accuracy on held-out wordings", show_interval(held_out))] if held_out else []
    rows += [
        (f"reward model, accuracy: {name}", show_interval(value))
        for name, value, _ in evaluations(results, "reward_accuracy_", "accuracy")
    ]
    rates = evaluations(results, "win_rate_", "win_rate")
    for name, value, result in rates:
        kind = "greedy" if is_greedy(result) else "sampled"
        rows.append((f"win rate, {kind} answers: {name.removesuffix(' greedy')}", show_interval(value)))
    rows += [
        (f"{what}, {kind} answers, difference: {name}", apart) for name, kind, what, *_, apart in both_sides(rates)
    ]
    about = facts["machine"]
    lines = ["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows), ""]
    if methods := comparison(results):
        shown = comparison_columns(methods)
        titles = ["against SFT", *(title for title, _ in shown), "training", "learned from"]
        lines += [f"| {' | '.join(titles)} |", "|---" * len(titles) + "|"]
        for number_of, row in enumerate(methods):
            cells = [row["title"], *(cells[number_of] or "–" for _, cells in shown)]
            cells += [f"{row['seconds']:,.0f} s" if row["seconds"] else "–", row["learned_from"] or "–"]
            lines.append(f"| {' | '.join(cells)} |")
        lines += ["", *verdict(methods), ""]
    lines.append(
        f"Measured at commit {facts.get('commit', '–')} on {about['cores']} cores of {about.get('gpu', about['cpu'])}."
    )
    return "\n".join(lines) + "\n"
