"""Answers labelled good or bad, one by one, of preferences in all their formats: what recipes/kto.py learns from."""

from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path

from data_prep.common.errors import InputError
from data_prep.common.text import counted
from data_prep.readers.columns import parse_columns
from data_prep.readers.preference_formats import FIELDS, REPAIRABLE
from data_prep.readers.preferences import BOTH, TIED, prompt_key, read_preference, unread_fields
from data_prep.readers.ranks import pairs
from data_prep.readers.unread import Tally
from data_prep.rows.bad_rows import BadRows
from data_prep.rows.problems import REPAIRED_BY_READING, Problem
from data_prep.rows.read import data_files, names_of, rows_of

BETWEEN = "answers ranked neither best nor last"
LABELLED, APART = "rows that are a labelled answer", "rankings taken apart"


def labels_of(preference: dict) -> list[tuple[str, bool]]:
    """(answer, whether it is good) of a preference as `preference_of` reads it.

    Of a ranking the best answers are good and the last ones bad; those between are neither. None if all are tied.
    """
    if "label" in preference:
        return [(preference["completions"][0], preference["label"])]
    ranks = preference["ranks"]
    best, last = min(ranks), max(ranks)
    answers = zip(preference["completions"], ranks, strict=True)
    return [(text, rank == best) for text, rank in answers if rank in (best, last)] if pairs(ranks) else []


def read_labels(path: str | Path) -> tuple[list[dict], int]:
    """The labelled answers of a file as `load_labels` has them, and how many of its rows are such: the others are rankings.

    Bad rows are repaired; raises InputError for those that cannot be.
    """
    bad_rows = BadRows("repair")
    kept, counts = _labels([str(path)], bad_rows, None, Tally())
    return kept, counts[LABELLED]


def _labels(
    files: list[str],
    bad_rows: BadRows,
    columns: dict[str, str] | str | None,
    tally: Tally,
    refused: Callable[[list[dict]], list[Problem]] | None = None,
) -> tuple[list[dict], Counter]:
    """The labelled answers in files, and the counts of `LABELLED`, `APART`, and of answers left out by reason.

    Closes `bad_rows`.
    """
    named = parse_columns(columns, FIELDS)
    counts: Counter = Counter()
    rows, keys = [], []
    labels: dict[tuple[str, str], set[bool]] = {}
    for row in rows_of(files):
        preference, found = read_preference(row, named, refused)
        if not bad_rows.accept(row.with_found(found), (*REPAIRED_BY_READING, *REPAIRABLE)):
            continue
        tally.fields.update(unread_fields(row.value, named))
        labelled, of_prompt = labels_of(preference), prompt_key(preference["prompt"])
        counts[TIED if not labelled else BETWEEN] += len(preference["completions"]) - len(labelled) if labelled else 1
        counts[LABELLED if "label" in preference else APART] += bool(labelled)
        for text, good in labelled:
            rows.append({"prompt": preference["prompt"], "completion": text, "label": good})
            keys.append((of_prompt, text))
            labels.setdefault(keys[-1], set()).add(good)
    bad_rows.close()
    kept = [row for row, key in zip(rows, keys, strict=True) if len(labels[key]) == 1]
    counts[BOTH] = len(rows) - len(kept)
    return kept, counts


def load_labels(
    paths: str | Path | Iterable[str | Path],
    on_bad: str = "error",
    quarantine: str | Path | None = None,
    columns: dict[str, str] | str | None = None,
    refused: Callable[[list[dict]], list[Problem]] | None = None,
):
    """The labelled answers as a `datasets.Dataset` with the columns prompt (messages), completion and label (bool).

    Pairs and rankings are taken apart (see `labels_of`). Prints what was left out, repaired and quarantined: besides what
    has no label, answers that are labelled good and bad beside the same prompt. Takes the arguments of
    `data_prep.readers.preferences.load_rankings`. Raises one `InputError` for all bad rows of all files, and one if no
    answer is left.
    """
    from datasets import Dataset  # slow to import

    bad_rows, files, tally = BadRows(on_bad, quarantine), data_files(paths), Tally()
    kept, counts = _labels(files, bad_rows, columns, tally, refused)
    left_out = {reason: counts[reason] for reason in (BETWEEN, TIED, BOTH) if counts[reason]}
    good = sum(row["label"] for row in kept)
    line = f"{counted(len(kept), 'labelled answer')}, {good:,} good and {len(kept) - good:,} bad"
    if counts[APART]:
        line += f", from {counted(counts[APART], 'ranking')} taken apart: the best is good, the last bad"
    if left_out:
        line += "; left out: " + ", ".join(f"{count:,} {reason}" for reason, count in left_out.items())
    if bad_rows.repaired:
        line += "; repaired: " + ", ".join(f"{count:,} × {kind}" for kind, count in bad_rows.repaired.most_common())
    if on_bad == "quarantine":
        line += f"; {bad_rows.counts_line()}"
    if not kept and left_out:
        raise InputError(f"{names_of(files)}: {line}; expected answers that are better or worse than others")
    if not kept:
        raise bad_rows.nothing_left(names_of(files), "labelled answer")
    print(f"{names_of(files)}: {line}")
    for line in tally.lines():
        print(line)
    return Dataset.from_list(kept)
