"""The one reader for preferences: prompts with two or more completions, of which some are better than others.

Takes pairs, rankings, scored lists and single answers labelled good or bad, in the formats that preference_formats.py
lists, from any file that rows/read.py reads. A file may mix formats.
"""

import json
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path

from data_prep.common.errors import InputError
from data_prep.common.text import counted, shorten
from data_prep.readers import conversation_formats
from data_prep.readers.columns import parse_columns
from data_prep.readers.conversation_formats import REASONING_BESIDE, label_of, reads_input, unread_in_turns
from data_prep.readers.preference_formats import FIELDS, REPAIRABLE, SWIFT_FIELDS, preference_of, with_sides
from data_prep.readers.ranks import pairs
from data_prep.readers.unread import Tally, media_problems, unread_of
from data_prep.rows.bad_rows import BadRows
from data_prep.rows.problems import REPAIRED_BY_READING, Problem, Row
from data_prep.rows.read import data_files, names_of, rows_of

TIED = "with all completions tied"
ALONE = "labelled answers whose prompt has only one label"
BOTH = "labelled answers whose text has both labels"
ONE_LABEL = (
    "one label a prompt makes no ranking: give each prompt answers of both labels, or train on the labels themselves, "
    "by recipes/kto.py"
)


def read_rankings(
    paths: str | Path | Iterable[str | Path],
    on_bad: str = "error",
    quarantine: str | Path | None = None,
    columns: dict[str, str] | str | None = None,
    subset_column: str | None = None,
) -> tuple[list[dict], dict[str, int]]:
    """Rows `{"prompt": messages, "completions": [str, …], "ranks": [int, …]}`, and counts. Prints the fields not read.

    The lowest rank is the best; a chosen and a rejected completion get the ranks 0 and 1. If any row has scores, every
    ranking has "scores" too: [float, …] or None. Labelled answers to one prompt become one ranking, the good ones above the
    bad ones. What teaches nothing is left out and counted: rankings in which all completions are tied, labelled answers
    whose prompt has only one label, and labelled answers whose text has both labels.

    Args:
        on_bad: what to do with bad rows: error, repair or quarantine (see `data_prep.rows.bad_rows`). Repair merges
            consecutive turns of one speaker in a prompt, normalises the names of roles ("User "), and removes a byte order
            mark or a trailing comma.
        quarantine: the JSONL file that `on_bad="quarantine"` writes bad rows to.
        columns: {field: column}, or "prompt=question,chosen=good,rejected=bad"; None: the fields have their usual names.
        subset_column: a column that a ranking is to keep, as "subset", if its row has it.

    Raises one `InputError` for all bad rows of all files, and one if no ranking is left.
    """
    bad_rows, tally = BadRows(on_bad, quarantine), Tally()
    rankings, left_out = _rankings(data_files(paths), bad_rows, columns, tally, subset_column)
    for line in tally.lines():
        print(line)
    counts = {"rows": bad_rows.rows_in, "rankings": len(rankings), "pairs": _count_pairs(rankings), **left_out}
    counts |= {f"repaired: {kind}": count for kind, count in bad_rows.repaired.items()}
    return rankings, counts | {"quarantined": bad_rows.quarantined}


def _rankings(
    files: list[str],
    bad_rows: BadRows,
    columns: dict[str, str] | str | None,
    tally: Tally,
    subset_column: str | None = None,
    refused: Callable[[list[dict]], list[Problem]] | None = None,
) -> tuple[list[dict], dict[str, int]]:
    """The rankings in files, and {reason: rows left out}. Closes `bad_rows`."""
    columns = parse_columns(columns, FIELDS)
    rankings: list[dict] = []
    left_out: Counter = Counter()
    labelled: dict[str, dict] = {}  # {prompt: its ranking, filled by `_add_label`}
    for row in rows_of(files):
        preference, found = read_preference(row, columns, refused)
        if not bad_rows.accept(row.with_found(found), (*REPAIRED_BY_READING, *REPAIRABLE)):
            continue
        tally.fields.update(field for field in unread_fields(row.value, columns) if field != subset_column)
        if subset_column in row.value and "label" not in preference:
            preference["subset"] = row.value[subset_column]
        if "label" in preference:
            _add_label(preference, labelled, rankings)
        elif pairs(preference["ranks"]):
            rankings.append(preference)
        else:
            left_out[TIED] += 1
    bad_rows.close()
    for ranking in labelled.values():
        _settle_labels(ranking, left_out)
    rankings = [ranking for ranking in rankings if ranking["ranks"]]
    left_out = {reason: left_out[reason] for reason in (TIED, ALONE, BOTH) if left_out[reason]}
    if left_out and not rankings:
        found = ", ".join(f"{count:,} {reason}" for reason, count in left_out.items())
        quarantined = (
            f", {bad_rows.quarantined:,} quarantined (see {bad_rows.quarantine})" if bad_rows.quarantined else ""
        )
        advice = ONE_LABEL if left_out.get(ALONE) else "check the field that the ranks come from"
        raise InputError(
            f"{names_of(files)}: no ranking is left: found {found}{quarantined}; expected a row in which one completion is "
            f"better than another; {advice}"
        )
    if not rankings:
        raise bad_rows.nothing_left(names_of(files), "ranking")
    if all(ranking["scores"] is None for ranking in rankings):
        for ranking in rankings:
            del ranking["scores"]
    return rankings, left_out


def _count_pairs(rankings: list[dict]) -> int:
    return sum(len(pairs(ranking["ranks"])) for ranking in rankings)


def read_preference(
    row: Row,
    columns: dict[str, str] | None,
    refused: Callable[[list[dict]], list[Problem]] | None = None,
) -> tuple[dict, list[Problem]]:
    """The preference in a row, and what is wrong with it, without the problems that reading found.

    `refused`: what keeps a chat template from writing messages, here the prompt with an answer.
    """
    if row.value is None and row.problems:
        return {}, []
    if not isinstance(row.value, dict):
        return {}, [Problem("not an object", shorten(row.value), "{'prompt', 'completions', 'ranks'}")]
    if media := media_problems(row.value):
        return {}, media
    preference, found = preference_of(row.value, columns)
    if refused and all(problem.kind in REPAIRABLE for problem in found):
        answer = {"role": "assistant", "content": preference["completions"][0]}
        found = found + refused([*preference["prompt"], answer])
    return preference, found


def unread_fields(value: dict, columns: dict[str, str] | None) -> list[str]:
    """The fields of a row of preferences, and of the turns in it, that hold something and are not read."""
    kept = value if columns is None else {field: value[column] for field, column in columns.items()}
    read = {*FIELDS}
    if columns is None and label_of(value)[1] is not None:  # a conversation with a label
        read = {*read, *conversation_formats.FIELDS} - {"tools", *REASONING_BESIDE}
    if columns is None and with_sides(value) is not value:
        read = {*read, *SWIFT_FIELDS}
    if not reads_input(kept, "instruction"):
        read.remove("input")
    unread = unread_of(value, read if columns is None else [columns[field] for field in columns if field in read])
    lists = [field for field in kept.values() if isinstance(field, list)]
    turns = [turn for each in lists for turn in each if isinstance(turn, dict) and ("role" in turn or "from" in turn)]
    return unread + [f"{key} in turns" for key in unread_in_turns(turns, ())]


def _add_label(preference: dict, labelled: dict[str, dict], rankings: list[dict]) -> None:
    """Add a labelled answer to the ranking of its prompt, which stands where the prompt's first answer stood."""
    key = prompt_key(preference["prompt"])
    if key not in labelled:
        labelled[key] = {"prompt": preference["prompt"], "completions": [], "ranks": [], "scores": None}
        rankings.append(labelled[key])
    labelled[key]["completions"] += preference["completions"]
    labelled[key]["ranks"].append(0 if preference["label"] else 1)


def _settle_labels(ranking: dict, left_out: Counter) -> None:
    """Remove texts with both labels, then everything if only one label remains. Counts both in `left_out`."""
    answers = list(zip(ranking["completions"], ranking["ranks"], strict=True))
    ranks_of: dict[str, set[int]] = {}
    for text, rank in answers:
        ranks_of.setdefault(text, set()).add(rank)
    kept = [(text, rank) for text, rank in answers if len(ranks_of[text]) == 1]
    left_out[BOTH] += len(answers) - len(kept)
    if len({rank for _, rank in kept}) < 2:
        left_out[ALONE] += len(kept)
        kept = []
    ranking["completions"], ranking["ranks"] = [text for text, _ in kept], [rank for _, rank in kept]


def prompt_key(prompt: list[dict]) -> str:
    """A prompt as a string that is equal for equal prompts."""
    return json.dumps([[message["role"], message["content"]] for message in prompt])


def load_rankings(
    paths: str | Path | Iterable[str | Path],
    on_bad: str = "error",
    quarantine: str | Path | None = None,
    columns: dict[str, str] | str | None = None,
    refused: Callable[[list[dict]], list[Problem]] | None = None,
):
    """The rankings as a `datasets.Dataset` with the columns prompt, completions, ranks and, if any row has them, scores.

    Prints what was left out, repaired and quarantined. Takes the arguments of `read_rankings`, and raises the same errors.
    A row with `refused`, those of a chat template that cannot write it, is a bad row.
    """
    from datasets import Dataset  # slow to import, and not needed by the readers

    bad_rows, files, tally = BadRows(on_bad, quarantine), data_files(paths), Tally()
    rows, left_out = _rankings(files, bad_rows, columns, tally, refused=refused)
    line = f"{counted(len(rows), 'ranking')}, {counted(_count_pairs(rows), 'pair')}"
    if left_out:
        taken = {ALONE: " (recipes/kto.py takes these)"}
        line += "; left out: " + ", ".join(f"{n:,} {reason}{taken.get(reason, '')}" for reason, n in left_out.items())
    if bad_rows.repaired:
        line += "; repaired: " + ", ".join(f"{count:,} × {kind}" for kind, count in bad_rows.repaired.most_common())
    if on_bad == "quarantine":
        line += f"; {bad_rows.counts_line()}"
    print(f"{names_of(files)}: {line}")
    for line in tally.lines():
        print(line)
    return Dataset.from_list(rows)
