"""Functions that score answers, in the form of data_prep/rewards.py: measured, and shown in words."""

import argparse
import math
from collections.abc import Callable

from data_prep.common.errors import InputError
from data_prep.common.intervals import show_interval, show_nats
from data_prep.models.reward_functions import call_reward_function, load_function

# Functions of data_prep/rewards.py in words; any other is shown by its name.
WORDS = {
    "exact_match": "exact match",
    "asked_fact": "asked fact right",
    "all_facts": "all facts right",
    "rubric": "rater's points",
}
SHARES = ("exact_match", "asked_fact", "all_facts")  # 0 or 1 an answer: their means are shown in percent


def add_eval_funcs(parser: argparse.ArgumentParser) -> None:
    """`--eval_funcs`."""
    parser.add_argument(
        "--eval_funcs",
        nargs="+",
        default=[],
        metavar="NAME",
        help="functions that measure an answer (path/to/file.py:name or package.module.name, in the form of "
        "data_prep/rewards.py); the results hold the mean of each with its interval",
    )


def load_functions(names: list[str]) -> dict[str, Callable]:
    """{the function's own name: the function}; `InputError` for one that is not there, or two of one name."""
    functions = {}
    for name in names:
        function = load_function(name)
        if function.__name__ in functions:
            raise InputError(f"--eval_funcs: found two functions named {function.__name__}; expected different names")
        functions[function.__name__] = function
    return functions


def measure(function: Callable, rows: list[dict], answers: list[list[str]]) -> list[list[float]]:
    """What `function` gives each of a prompt's answers, in the shape of `answers`: one list of texts per row.

    The function gets "id" and "reference" of the rows as columns. Raises `InputError` for what is not a finite number.
    """
    repeated = [row for row, texts in zip(rows, answers, strict=True) for _ in texts]
    columns = {key: [row[key] for row in repeated] for key in ("id", "reference")}
    texts = [text for group in answers for text in group]
    values = call_reward_function(function, [row["prompt"] for row in repeated], texts, columns)
    if bad := [value for value in values if not math.isfinite(value)]:
        raise InputError(f"{function.__name__}: found {bad[0]} for an answer; expected finite numbers")
    left = iter(values)
    return [[next(left) for _ in group] for group in answers]


def check_functions(functions: list[Callable], rows: list[dict]) -> None:
    """`InputError` if one of the functions cannot score the first row's reference: before answers are generated."""
    for function in functions:
        measure(function, rows[:1], [[rows[0]["reference"]]])


def in_words(name: str) -> str:
    """What the function `name` measures."""
    return WORDS.get(name, name.replace("_", " "))


def show_measure(name: str, interval: dict) -> str:
    """The mean of the function `name` with its interval: "72.1% [69.8%, 74.3%]", or "1.25 [0.98, 1.51]"."""
    return show_interval(interval) if name in SHARES else show_nats(interval)


def show_difference(name: str, interval: dict) -> str:
    """A difference of two means: "+2.7 [-0.3, +5.7] percentage points", or "+0.72 [+0.61, +0.83]"."""
    scale, form, unit = (100, "+z.1f", " percentage points") if name in SHARES else (1, "+z.2f", "")
    value, low, high = (format(scale * interval[key], form) for key in ("value", "low", "high"))
    return f"{value} [{low}, {high}]{unit}"


def show_detectable(name: str, value: float | None) -> str:
    """What `detectable_difference` says of the function `name`: "so many prompts would show 2.1 percentage points"."""
    if value is None:
        return "what so many prompts would show is not known: all are alike"
    shown = f"{100 * value:.1f} percentage points" if name in (*SHARES, "win_rate") else f"{value:.2f}"
    return f"so many prompts would show {shown}"
