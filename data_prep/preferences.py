"""The one reader for rankings: prompts with two or more completions, of which some are better than others.

Two formats, as JSONL (.jsonl) or as a JSON list (.json); a file may mix them:

    {"prompt": str or messages, "completions": [str, ...], "ranks": [int, ...]}    the lowest number is the best
    {"prompt": str or messages, "chosen": str, "rejected": str}

Messages are `{"role", "content"}` or `{"from", "value"}` and end on the user. In the pair format the prompt may also
stand under "question" or "conversations", a completion may be a turn `{"from": "gpt", "value"}`, and the completions
may be called "response_chosen" and "response_rejected" (MedicalGPT, LLaMA-Factory). In both, a text prompt may come
with "system" (str) and "history" (a list of [question, answer]). Other fields are passed over.
"""

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path

from data_prep.conversations import (
    ROLES,
    Defects,
    Problem,
    as_paths,
    counted,
    read_list,
    shorten,
    text_problem,
    to_messages,
)
from data_prep.files import InputError, read_jsonl

PROMPT_FIELDS = ("prompt", "question", "conversations")
CHOSEN_FIELDS = ("chosen", "response_chosen")
REJECTED_FIELDS = ("rejected", "response_rejected")
TIED, IDENTICAL = "all completions tied", "identical completions ranked differently"


def read_rankings(paths: str | Path | Iterable[str | Path]) -> tuple[list[dict], dict[str, int]]:
    """Rows `{"prompt": messages, "completions": [str, ...], "ranks": [int, ...]}`, and counts.

    The lowest rank is the best; a chosen and a rejected completion get the ranks 0 and 1. Rows that teach nothing are
    left out and counted: those whose completions are all tied, and those that rank one text above itself.

    Raises one `InputError` that covers all defective rows of all files, and one where no row is left.
    """
    rows, defects = [], Defects()
    counts = {"rankings": 0, "pairs": 0, TIED: 0, IDENTICAL: 0}
    listed = as_paths(paths)
    for path in listed:
        for number, row in enumerate(_file_rows(path), start=1):
            if not isinstance(row, dict):
                problem = Problem("not an object", shorten(row), "{'prompt', 'completions', 'ranks'}")
                defects.add(path, number, None, [problem])
                continue
            ranking, problems = _ranking(row)
            defects.add(path, number, None if row.get("id") is None else str(row["id"]), problems)
            if problems:
                continue
            better_worse = pairs(ranking["ranks"])
            completions = ranking["completions"]
            if not better_worse:
                counts[TIED] += 1
            elif any(completions[better] == completions[worse] for better, worse in better_worse):
                counts[IDENTICAL] += 1
            else:
                counts["rankings"] += 1
                counts["pairs"] += len(better_worse)
                rows.append(ranking)
    defects.raise_if_any()
    if not rows:
        raise InputError(
            f"{', '.join(map(str, listed))}: no ranking is left: {counts[TIED]:,} with {TIED}, "
            f"{counts[IDENTICAL]:,} with {IDENTICAL}; expected a row in which one completion is better than another. "
            "Check the field that the ranks come from"
        )
    return rows, counts


def _file_rows(path: Path) -> list:
    """The rows of a .jsonl or .json file; `InputError` for another ending and for a file without rows."""
    if path.suffix == ".json":
        return read_list(path)
    if path.suffix != ".jsonl":
        raise InputError(f"{path}: found the ending {path.suffix!r}; expected .jsonl or .json")
    rows = list(read_jsonl(path))
    if not rows:
        raise InputError(f"{path}: found an empty file; expected at least one row")
    return rows


def _ranking(row: dict) -> tuple[dict, list[Problem]]:
    """A row of either format as `{"prompt", "completions", "ranks"}`, and what is wrong with it."""
    prompts, chosen, rejected = (
        [field for field in fields if field in row] for fields in (PROMPT_FIELDS, CHOSEN_FIELDS, REJECTED_FIELDS)
    )
    ranked = "completions" in row and "ranks" in row
    paired = len(chosen) == len(rejected) == 1
    if len(prompts) != 1 or ranked == paired:
        expected = "'prompt' and either 'completions' and 'ranks' or 'chosen' and 'rejected', each under one name"
        return {}, [Problem("unknown fields", f"keys {sorted(row)}", expected)]
    messages, problems = _prompt(row[prompts[0]], prompts[0], row.get("system"), row.get("history"))
    if ranked:
        completions, ranks = row["completions"], row["ranks"]
        shape = _ranks_problems(completions, ranks)
        problems += shape
        names = [] if shape else [f"completion {number}" for number in range(1, len(completions) + 1)]
    else:
        completions, ranks = [_unwrapped(row[chosen[0]]), _unwrapped(row[rejected[0]])], [0, 1]
        names = [repr(chosen[0]), repr(rejected[0])]
    for name, completion in zip(names, completions, strict=False):
        problems += text_problem(completion, "empty completion", name)
    return {"prompt": messages, "completions": completions, "ranks": ranks}, problems


def _ranks_problems(completions, ranks) -> list[Problem]:
    """What is wrong with the shape of completions and ranks."""
    if not isinstance(completions, list) or len(completions) < 2:
        return [
            Problem("too few completions", f"{shorten(completions)} under 'completions'", "a list of at least two")
        ]
    # bool is an int to Python, but true and false do not say which is the better one.
    if not isinstance(ranks, list) or any(not isinstance(rank, int) or isinstance(rank, bool) for rank in ranks):
        return [Problem("ranks are not integers", f"{shorten(ranks)} under 'ranks'", "a list of integers, 0 the best")]
    if len(completions) != len(ranks):
        found = f"{counted(len(completions), 'completion')} and {counted(len(ranks), 'rank')}"
        return [Problem("lengths differ", found, "one rank per completion")]
    return []


def _unwrapped(completion):
    """The text of a turn of the assistant; anything else as it is."""
    if isinstance(completion, dict) and ROLES.get(str(completion.get("from"))) == "assistant":
        return completion.get("value")
    return completion


def _prompt(prompt, field: str, system, history) -> tuple[list[dict], list[Problem]]:
    """System text, earlier turns and prompt as messages that end on the user, and what is wrong with them."""
    turns = [] if system in (None, "") else [{"from": "system", "value": system}]
    if not isinstance(history or [], list):
        found = f"{shorten(history)} under 'history'"
        return [], [Problem("history not in pairs", found, "a list of [question, answer]")]
    for pair in history or []:
        if not isinstance(pair, list) or len(pair) != 2:
            return [], [Problem("history not in pairs", f"{shorten(pair)} under 'history'", "[question, answer]")]
        turns += [{"from": "human", "value": pair[0]}, {"from": "gpt", "value": pair[1]}]
    if isinstance(prompt, str):
        turns.append({"from": "human", "value": prompt})
    elif isinstance(prompt, list):
        for turn in prompt:
            chat = isinstance(turn, dict) and "role" in turn
            turns.append({"from": turn["role"], "value": turn.get("content")} if chat else turn)
    else:
        return [], [Problem("prompt is no text", f"{shorten(prompt)} under {field!r}", "a string or a list of turns")]
    messages, problems = to_messages(turns)
    if not problems and (not messages or messages[-1]["role"] != "user"):
        found = f"{messages[-1]['role']} as its last turn" if messages else f"no turn under {field!r}"
        problems = [
            Problem("prompt does not end on a human turn", found, "a human turn for the completions to answer")
        ]
    return messages, problems


def pairs(ranks: list[int]) -> list[tuple[int, int]]:
    """Every (better, worse) pair of positions with unequal ranks; the lower rank is the better one."""
    return [(better, worse) for better, r in enumerate(ranks) for worse, s in enumerate(ranks) if r < s]


def load_rankings(paths: str | Path | Iterable[str | Path]):
    """The rankings as a `datasets.Dataset` with columns prompt, completions and ranks; prints what was left out.

    Raises what `read_rankings` raises.
    """
    from datasets import Dataset  # slow to import, and the readers do without it

    listed = as_paths(paths)
    rows, counts = read_rankings(listed)
    line = f"{counted(counts['rankings'], 'ranking')}, {counted(counts['pairs'], 'pair')}"
    left_out = [f"{counts[reason]:,} with {reason}" for reason in (TIED, IDENTICAL) if counts[reason]]
    if left_out:
        line += "; left out: " + ", ".join(left_out)
    print(f"{', '.join(path.name for path in listed)}: {line}")
    return Dataset.from_list(rows)


def split_by_prompt(rows: Iterable[dict], fraction: float, seed: int) -> tuple[list[dict], list[dict]]:
    """(rows to train on, rows held out) with no prompt on both sides; about `fraction` of the prompts are held out.

    The side of a row depends on its prompt and the seed alone: a prompt that was held out stays held out when it is
    ranked again or when rows are added. Raises `InputError` where the split leaves one side empty.
    """
    if not 0 < fraction < 1:
        raise InputError(f"fraction to hold out: found {fraction}; expected a number between 0 and 1, such as 0.1")
    sides: tuple[list, list] = ([], [])
    for row in rows:
        prompt = json.dumps([[message["role"], message["content"]] for message in row["prompt"]])
        digest = hashlib.sha256(f"{seed} {prompt}".encode()).digest()
        sides[int.from_bytes(digest[:8], "big") < fraction * 2**64].append(row)
    if not all(sides):
        found = "no row was held out" if sides[0] else "no row is left to train on"
        raise InputError(
            f"holding out {fraction:.0%} of the prompts: {found} of {counted(len(sides[0]) + len(sides[1]), 'row')}; "
            "expected rows on both sides. Use another fraction or seed, or more prompts"
        )
    return sides
