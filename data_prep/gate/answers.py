"""Ranked answers for the gate: read from files, or made of samples and what a rater gives them."""

import math
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np

from data_prep.common.errors import InputError
from data_prep.common.text import counted
from data_prep.readers.columns import parse_columns
from data_prep.readers.kinds import classify, kind_of_columns
from data_prep.readers.preference_formats import FIELDS, REPAIRABLE
from data_prep.readers.preferences import prompt_key, read_preference
from data_prep.readers.ranks import ranks_of_scores
from data_prep.rows.bad_rows import BadRows
from data_prep.rows.problems import REPAIRED_BY_READING
from data_prep.rows.read import data_files, names_of, rows_of

PER_ANSWER = ("completions", "counts", "ranks", "scores", "stopped", "ids")
TRIES = 200  # other prompts looked at for one that leaves room for a row's answers


def read_answers(
    paths: str | Path | Iterable[str | Path],
    on_bad: str = "error",
    quarantine: str | Path | None = None,
    columns: dict[str, str] | str | None = None,
) -> list[dict]:
    """Rows {"prompt": messages, "completions", "counts", "ranks", "scores" or None, "columns": the row's other fields}.

    As `read_rankings`, with what that leaves out: how often an answer was sampled ("counts", 1 each where a row does not
    say), and rankings in which all answers tie, for which the best of n is as good as any. Answers that were never sampled
    (count 0: a reference, a neighbour's answer) are left out and counted: they are not the policy's. So are answers
    labelled one by one.

    Raises InputError for bad rows, and if no row is left.
    """
    bad_rows, files = BadRows(on_bad, quarantine), data_files(paths)
    fields = parse_columns(columns, FIELDS)
    rows, strange, alone, labelled = [], 0, 0, 0
    for row in rows_of(files):
        preference, found = read_preference(row, fields)
        if not bad_rows.accept(row.with_found(found), (*REPAIRED_BY_READING, *REPAIRABLE)):
            continue
        if "label" in preference:
            labelled += 1
            continue
        completions, counts = preference["completions"], row.value.get("counts")
        if counts is None:
            counts = [1] * len(completions)
        if not _are_counts(counts, len(completions)):
            where = f"{row.path}: row {row.number}"
            raise InputError(f"{where}: found {counts!r} under 'counts'; expected how often each answer was sampled")
        sampled = [index for index, count in enumerate(counts) if count]
        strange += len(completions) - len(sampled)
        if not sampled:
            alone += 1
            continue
        scores = preference["scores"]
        rows.append(
            {
                "prompt": preference["prompt"],
                "completions": [completions[index] for index in sampled],
                "counts": [counts[index] for index in sampled],
                "ranks": [preference["ranks"][index] for index in sampled],
                "scores": scores and [scores[index] for index in sampled],
                "columns": {key: value for key, value in row.value.items() if key not in FIELDS or key == "id"},
            }
        )
    bad_rows.close()
    if strange:
        print(f"left out: {counted(strange, 'answer')} that the policy did not sample (a count of 0)")
    if labelled or alone:
        print(f"left out: {counted(labelled + alone, 'row')} with no answers to compare")
    if not rows:
        raise InputError(
            f"{names_of(files)}: no ranking is left of {counted(bad_rows.rows_in, 'row')}; expected what "
            "data_prep.sample_completions and data_prep.rank_completions write"
        )
    return rows


def _are_counts(counts, number: int) -> bool:
    return (
        isinstance(counts, list)
        and len(counts) == number
        and all(isinstance(count, int) and not isinstance(count, bool) and count >= 0 for count in counts)
    )


def holds_rankings(paths: Iterable[str | Path], columns: dict[str, str] | str | None = None) -> bool:
    """Whether files hold preferences, by their first row."""
    kind, _ = kind_of_columns(columns)
    return (kind or next((classify(row.value) for row in rows_of(data_files(paths))), "")) == "preferences"


def rated_rows(
    prompts: list[list[dict]], samples: list[list[dict]], rater: Callable[[list, list], list[float]]
) -> list[dict]:
    """Rows of samples, ranked by what `rater` gives them.

    Args:
        samples: of each prompt, as `generate_answers` returns them; equal ones become one answer with a count.
        rater: f(texts, places in `prompts`) -> one score per text.

    Beside the fields of `read_answers` a row has "stopped" and "ids" of its answers, as they were sampled.
    """
    rows = []
    for prompt, own in zip(prompts, samples, strict=True):
        distinct: dict[tuple[str, bool], list] = {}
        for answer in own:
            distinct.setdefault((answer["text"], answer["stopped"]), [0, answer["ids"]])[0] += 1
        texts, stopped = zip(*distinct, strict=True)
        counts, ids = zip(*distinct.values(), strict=True)
        row = {"prompt": prompt, "completions": texts, "counts": counts, "stopped": stopped, "ids": ids}
        rows.append({key: value if key == "prompt" else list(value) for key, value in row.items()})
    places = [place for place, row in enumerate(rows) for _ in row["completions"]]
    scores = iter(rater([text for row in rows for text in row["completions"]], places))
    for row in rows:
        row["scores"] = [next(scores) for _ in row["completions"]]
        finite = [score if math.isfinite(score) else -math.inf for score in row["scores"]]
        row["ranks"] = ranks_of_scores(finite)
    return rows


def select(row: dict, kept: list[int]) -> dict:
    """The row with those of its answers."""
    own = {key: [row[key][index] for index in kept] for key in PER_ANSWER if row.get(key)}
    return {**row, **own}


def leave_out_long(rows: list[dict], lengths: list[list[int]], limit: float, whose: str) -> list[dict]:
    """The rows without answers of more than `limit` tokens, the prompt's included; how many are left out is printed.

    Args:
        lengths: tokens of each answer with its prompt.
    """
    kept = [
        select(row, [index for index, length in enumerate(own) if length <= limit])
        for row, own in zip(rows, lengths, strict=True)
    ]
    if long := sum(length > limit for own in lengths for length in own):
        total = sum(map(len, lengths))
        print(f"{long:,} of {counted(total, 'answer')} are beyond the {limit:,} tokens of {whose} and are left out")
    return [row for row in kept if row["completions"]]


def other_rows(
    rows: list[dict], starts: list[int], longest: list[int], limit: float, seed: int = 0
) -> list[int | None]:
    """For each row another one, at random, with another prompt that leaves room for the row's answers; None without one.

    Args:
        starts: tokens of each row's prompt.
        longest: tokens of each row's longest answer, without the prompt.
        limit: of both together.
    """
    keys = [prompt_key(row["prompt"]) for row in rows]
    order = np.random.default_rng(seed).permutation(len(rows)).tolist()
    found: list[int | None] = [None] * len(rows)
    for place, index in enumerate(order):
        following = (order[(place + step) % len(order)] for step in range(1, min(len(order), TRIES)))
        fits = (each for each in following if keys[each] != keys[index] and starts[each] + longest[index] <= limit)
        found[index] = next(fits, None)
    return found
