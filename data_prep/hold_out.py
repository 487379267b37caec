"""Hold out part of a dataset for evaluation, split by prompt: no prompt is in both parts.

    python -m data_prep.hold_out data/rankings.jsonl --fraction 0.2 \
        --train runs/mine/train.jsonl --heldout runs/mine/heldout.jsonl
    python -m data_prep.hold_out hf://HuggingFaceTB/smoltalk:all --fraction 0.0005 --train_fraction 0.04 \
        --train runs/smoltalk/train.jsonl --heldout runs/smoltalk/heldout.jsonl

Takes conversations, preferences and documents in all their formats, and writes each row unchanged, as JSON Lines. The
prompt of a conversation is what precedes its first answer; that of a preference is what its answers reply to; that of a
document is its text. The prompt and the seed alone decide where a row goes. So a held-out prompt stays held out when rows
are added, and rows with the same prompt stay together. The memory used does not grow with the files.
"""

import argparse
import hashlib
import itertools
import json
from collections import Counter
from pathlib import Path

from tqdm.auto import tqdm

from data_prep.common.errors import InputError, run_main
from data_prep.common.files import atomic_write, vacant
from data_prep.common.text import counted
from data_prep.readers import conversation_formats, preference_formats
from data_prep.readers.kinds import classify
from data_prep.readers.preferences import prompt_key
from data_prep.rows.bad_rows import ON_BAD, BadRows
from data_prep.rows.problems import REPAIRED_BY_READING, Problem
from data_prep.rows.read import data_files, rows_of

# Rows are written unchanged: whoever reads them next repairs these.
REPAIRABLE = {*conversation_formats.REPAIRABLE, *preference_formats.REPAIRABLE}


def prompt_of(value, text_column: str) -> tuple[list[dict], list[Problem]]:
    """The prompt of a row as messages, and the problems for which the row cannot be used."""
    kind = classify(value, text_column)
    if kind == "preferences":
        preference, problems = preference_formats.preference_of(value)
        prompt = preference.get("prompt", [])
    elif kind == "document":
        text = value[text_column]
        prompt, problems = (
            [{"role": "user", "content": text}],
            conversation_formats.text_problem(text, "text", text_column),
        )
    else:
        messages, problems = conversation_formats.to_conversation(value)
        prompt = list(itertools.takewhile(lambda message: message["role"] != "assistant", messages))
    return prompt, [problem for problem in problems if problem.kind not in REPAIRABLE]


def split_position(prompt: list[dict], seed: int) -> float:
    """A number in [0, 1), uniform over prompts, that depends on the prompt and the seed alone."""
    digest = hashlib.sha256(f"{seed} {prompt_key(prompt)}".encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+", help="files, folders, globs or hf://owner/name:config:split")
    parser.add_argument("--fraction", type=float, required=True, help="fraction of prompts to hold out")
    parser.add_argument(
        "--train_fraction", type=float, help="fraction of prompts to train on (default: all the others)"
    )
    parser.add_argument("--train", type=Path, required=True, help="JSON Lines file for the training rows")
    parser.add_argument("--heldout", type=Path, required=True, help="JSON Lines file for the held-out rows")
    parser.add_argument("--text_column", default="text", help="column with the text of documents (default: text)")
    parser.add_argument("--on_bad", choices=ON_BAD, default="error", help="what to do with bad rows (default: error)")
    parser.add_argument("--seed", type=int, default=0, help="another seed holds out other prompts (default: 0)")
    arguments = parser.parse_args()
    held, trained = arguments.fraction, arguments.train_fraction
    trained = 1 - held if trained is None else trained
    if not (held > 0 and trained > 0 and held + trained <= 1):
        raise InputError(
            f"found fractions of {held} to hold out and {trained} to train on; expected both above 0 and together at most 1"
        )
    for output in (arguments.train, arguments.heldout):
        vacant(output)
    bad_rows = BadRows(arguments.on_bad, f"{arguments.train}.quarantine.jsonl")
    counts: Counter = Counter()
    with atomic_write(arguments.train) as train, atomic_write(arguments.heldout) as heldout:
        for row in tqdm(rows_of(data_files(arguments.files)), desc="reading", unit=" rows"):
            unread = row.value is None and row.problems
            prompt, problems = ([], []) if unread else prompt_of(row.value, arguments.text_column)
            if not bad_rows.accept(row.with_found(problems), REPAIRED_BY_READING):
                continue
            position = split_position(prompt, arguments.seed)
            part = "held out" if position < held else "to train on" if position < held + trained else "unused"
            counts[part] += 1
            if part != "unused":
                (heldout if part == "held out" else train).write(json.dumps(row.value, ensure_ascii=False) + "\n")
        bad_rows.close()
        if not (counts["held out"] and counts["to train on"]):
            raise InputError(
                f"found {counted(counts['held out'], 'row')} to hold out and {counts['to train on']:,} to train on, of "
                f"{bad_rows.rows_out:,}; expected at least one of each. Use other fractions, another seed, or more rows"
            )
    for kind, count in bad_rows.repaired.items():
        print(f"{counted(count, 'row')} repaired: {kind}")
    if bad_rows.quarantined:
        print(bad_rows.counts_line())
    print(
        f"{counted(bad_rows.rows_out, 'row')}: {counts['to train on']:,} to train on in {arguments.train}, "
        f"{counts['held out']:,} held out in {arguments.heldout}, {counts['unused']:,} unused"
    )


if __name__ == "__main__":
    run_main(main)
