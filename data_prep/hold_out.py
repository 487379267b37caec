"""Hold out a part of a data set for measuring, by prompt: no prompt is both trained on and measured on.

    python -m data_prep.hold_out ../shared/data/dpo_zh_500.jsonl --fraction 0.2 \
        --train runs/dpo_zh/train.jsonl --heldout runs/dpo_zh/heldout.jsonl
    python -m data_prep.hold_out hf://HuggingFaceTB/smoltalk:all --fraction 0.0005 --train_fraction 0.04 \
        --train runs/smoltalk/train.jsonl --heldout runs/smoltalk/heldout.jsonl

Takes conversations, preferences and documents in any of their formats, and writes each row as it is, as JSON Lines. The
prompt is what a conversation has before its first answer, what the answers of a preference answer, and the text of a
document. On which side a row goes depends on its prompt and the seed alone: a prompt that is held out stays held out when
rows are added, and equal rows stay together. The memory used does not grow with the files.
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
from data_prep.readers.preferences import _key
from data_prep.rows.bad_rows import ON_BAD, BadRows
from data_prep.rows.problems import REPAIRED_BY_READING, Problem
from data_prep.rows.read import data_files, rows_of

REPAIRABLE = {*conversation_formats.REPAIRABLE, *preference_formats.REPAIRABLE}  # who reads the row next repairs it


def prompt_of(value, text_column: str) -> tuple[list[dict], list[Problem]]:
    """The prompt of a row as messages, and what makes the row unfit for use."""
    if isinstance(value, dict) and preference_formats.formats_of(value):
        preference, problems = preference_formats.preference_of(value)
        messages = preference.get("prompt", [])
    elif isinstance(value, dict) and text_column in value and not conversation_formats.find_formats(value):
        text = value[text_column]
        messages, problems = (
            [{"role": "user", "content": text}],
            conversation_formats.text_problem(text, "text", text_column),
        )
    else:
        messages, problems = conversation_formats.to_conversation(value)
        messages = list(itertools.takewhile(lambda message: message["role"] != "assistant", messages))
    return messages, [problem for problem in problems if problem.kind not in REPAIRABLE]


def drawn(prompt: list[dict], seed: int) -> float:
    """A number in [0, 1) that depends on the prompt and the seed alone."""
    digest = hashlib.sha256(f"{seed} {_key(prompt)}".encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+", help="files, folders, globs or hf://owner/name:config:split")
    parser.add_argument("--fraction", type=float, required=True, help="of the prompts that is held out")
    parser.add_argument("--train_fraction", type=float, help="of the prompts that is trained on; the others without")
    parser.add_argument("--train", type=Path, required=True, help="the JSON Lines to write")
    parser.add_argument("--heldout", type=Path, required=True)
    parser.add_argument("--text_column", default="text", help="of documents")
    parser.add_argument("--on_bad", "--on-bad", choices=ON_BAD, default="error", help="bad rows")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    held, trained = arguments.fraction, arguments.train_fraction
    trained = 1 - held if trained is None else trained
    if not (held > 0 and trained > 0 and held + trained <= 1):
        raise InputError(f"found fractions of {held} held out and {trained} to train on; expected both above 0, "
                         "and no more than 1 together")  # fmt: skip
    for output in (arguments.train, arguments.heldout):
        vacant(output)
    bad_rows = BadRows(arguments.on_bad, f"{arguments.train}.quarantine.jsonl")
    counts: Counter = Counter()
    with atomic_write(arguments.train) as train, atomic_write(arguments.heldout) as heldout:
        for row in tqdm(rows_of(data_files(arguments.files)), desc="reading", unit=" rows"):
            prompt, problems = (
                ([], []) if row.value is None and row.problems else prompt_of(row.value, arguments.text_column)
            )
            if not bad_rows.accept(row.with_found(problems), REPAIRED_BY_READING):
                continue
            number = drawn(prompt, arguments.seed)
            side = "held out" if number < held else "to train on" if number < held + trained else "on neither side"
            counts[side] += 1
            if side != "on neither side":
                (heldout if side == "held out" else train).write(json.dumps(row.value, ensure_ascii=False) + "\n")
        bad_rows.close()
        if not (counts["held out"] and counts["to train on"]):
            raise InputError(f"found {counted(counts['held out'], 'row')} to hold out and {counts['to train on']:,} to "
                             f"train on, of {bad_rows.rows_out:,}; expected some on both sides. Use other fractions, "
                             "another seed, or more rows")  # fmt: skip
    for kind, count in bad_rows.repaired.items():
        print(f"{counted(count, 'row')} repaired: {kind}")
    if bad_rows.quarantined:
        print(f"{counted(bad_rows.rows_in, 'row')} in = {bad_rows.rows_out:,} out + {bad_rows.quarantined:,} quarantined, in "
              f"{bad_rows.quarantine}")  # fmt: skip
    print(
        f"{counted(bad_rows.rows_out, 'row')}: {counts['to train on']:,} to train on in {arguments.train}, "
        f"{counts['held out']:,} held out in {arguments.heldout}, {counts['on neither side']:,} on neither side"
    )


if __name__ == "__main__":
    run_main(main)
