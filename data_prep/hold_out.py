r"""Hold out part of a dataset for evaluation, split by prompt: no prompt is in both parts.

    python -m data_prep.hold_out data/rankings.jsonl --fraction 0.2 \
        --train runs/mine/train.jsonl --heldout runs/mine/heldout.jsonl
    python -m data_prep.hold_out hf://HuggingFaceTB/smoltalk:all --fraction 0.0005 --train_fraction 0.04 \
        --train runs/smoltalk/train.jsonl --heldout runs/smoltalk/heldout.jsonl
    python -m data_prep.hold_out data/books/ --fraction 0.01 --train runs/mine/corpus.jsonl --heldout runs/mine/held.jsonl
    python -m data_prep.hold_out data/alpaca.json --as_text --fraction 0.05 \
        --train runs/mine/corpus.jsonl --heldout runs/mine/heldout.jsonl

Takes conversations, preferences and documents in all their formats, and writes each row unchanged, as JSON Lines. What
JSON has no form for, in columns of Parquet or the Hub that no reader uses, is counted: dates, decimals and bytes become
text, NaN and infinite numbers null. Plain text (.txt) is split at its documents, which are those of the corpus readers:
the lines, if they are long, as in dumps of Wikipedia; otherwise pieces of 131,072 characters, cut at the end of a line.
They are written as {"text"}. With --as_text conversations of any format become documents too, for a corpus: the texts of
their turns, with a blank line between two.

The prompt of a conversation is what precedes its first answer; that of a preference is what its answers reply to; that of
a document is its text. The prompt and the seed alone decide where a row goes. So a held-out prompt stays held out when rows
are added, and rows with the same prompt stay together. The memory used does not grow with the files.

Where another file on the same prompts is split too, --without names its held-out part: rows that answer one of these
prompts in any of their turns are not trained on. They are counted. The prompts of --without are kept in memory.

Either part can be written alone: where one is lost, the same prompts, fraction and seed give it again, without the other.
"""

import argparse
import contextlib
import json
import os
from collections import Counter
from pathlib import Path

from tqdm.auto import tqdm

from data_prep.common.disjoint import split_position
from data_prep.common.errors import InputError, run_main
from data_prep.common.files import atomic_write, vacant
from data_prep.common.json_values import AS_NULL, AS_TEXT, json_value
from data_prep.common.text import counted, printable, shorten
from data_prep.readers import conversation_formats
from data_prep.readers.answered import REPAIRABLE, all_prompts, answered_prompts, prompt_of
from data_prep.readers.kinds import classify
from data_prep.readers.preferences import prompt_key
from data_prep.readers.unread import fields_line
from data_prep.rows.bad_rows import ON_BAD, BadRows
from data_prep.rows.problems import REPAIRED_BY_READING, Problem, not_utf8
from data_prep.rows.read import HUB, data_files, is_text, rows_of
from data_prep.rows.text_rows import LONGEST_LINE

SPLIT_TEXT = (
    'a .txt of short lines has a row for every 131,072 characters: JSON Lines, {"text"}, sets rows of your own'
)


def text_of(value) -> tuple[dict, list[Problem]]:
    """A conversation as {"text"}, the texts of its turns with a blank line between two; and what is or was wrong with it."""
    if classify(value) == "preferences":
        expected = "conversations or documents: a corpus is read as good text, and rankings hold bad answers"
        return {}, [Problem("a preference", f"keys {shorten(sorted(value))}", expected)]
    messages, problems = conversation_formats.to_conversation(value, roles=conversation_formats.PLAIN_ROLES)
    return {"text": "\n\n".join(str(message["content"]) for message in messages)}, problems


def check_outputs(outputs: dict[str, Path], quarantine: Path, files: list[str]) -> None:
    """Raise InputError if an output, {option: file}, is there already, is another one, or is one of the inputs."""
    seen: dict[str, str] = {os.path.realpath(file): "an input" for file in files if not file.startswith(HUB)}
    for name, path in {**outputs, f"the quarantine of {[*outputs][0]}": quarantine}.items():
        if other := seen.get(os.path.realpath(path)):
            raise InputError(f"{path}: is {name} and {other}, the same file; give another path")
        seen[os.path.realpath(path)] = name
    for path in outputs.values():
        vacant(path)


def as_line(value: dict, changed: dict[str, Counter]) -> str:
    """A row as a line of JSON; in ASCII if a field that nobody reads has half a surrogate pair, which UTF-8 cannot encode.

    What JSON has no form for is changed (see `json_value`); `changed`, {how: {column: rows}}, counts it.
    """
    try:
        line = json.dumps(value, ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError):  # another type, or NaN
        # The readers refuse such values where they read them, but for dates among tools, which they take as this text.
        found: dict[str, set[str]] = {column: set() for column in value}
        value = {column: json_value(each, found[column]) for column, each in value.items()}
        for column, ways in found.items():
            for way in ways:
                changed[way][printable(column)] += 1
        line = json.dumps(value, ensure_ascii=False)
    return (line if not_utf8(line) is None else json.dumps(value)) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+", help="files, folders, globs or hf://owner/name:config:split")
    parser.add_argument("--fraction", type=float, required=True, help="fraction of prompts to hold out")
    parser.add_argument(
        "--train_fraction", type=float, help="fraction of prompts to train on (default: all the others)"
    )
    parser.add_argument("--train", type=Path, help="JSON Lines file for the training rows (default: not written)")
    parser.add_argument("--heldout", type=Path, help="JSON Lines file for the held-out rows (default: not written)")
    parser.add_argument(
        "--without",
        nargs="+",
        default=[],
        help="files whose prompts are not trained on, such as what is held out of another kind (default: none)",
    )
    parser.add_argument("--text_column", default="text", help="column with the text of documents (default: text)")
    parser.add_argument(
        "--as_text",
        action="store_true",
        help="write conversations as documents, for a corpus (default: as the rows that they are)",
    )
    parser.add_argument("--on_bad", choices=ON_BAD, default="error", help="what to do with bad rows (default: error)")
    parser.add_argument("--seed", type=int, default=0, help="another seed holds out other prompts (default: 0)")
    arguments = parser.parse_args()
    held, trained = arguments.fraction, arguments.train_fraction
    trained = 1 - held if trained is None else trained
    if not (held > 0 and trained > 0 and held + trained <= 1):
        raise InputError(
            f"found fractions of {held} to hold out and {trained} to train on; expected both above 0 and together at most 1"
        )
    outputs = {f"--{part}": path for part in ("train", "heldout") if (path := getattr(arguments, part))}
    if not outputs:
        raise InputError("found neither --train nor --heldout; expected both, or the one that is to be written")
    files = data_files(arguments.files, plain_text=True)
    quarantine = Path(f"{next(iter(outputs.values()))}.quarantine.jsonl")
    check_outputs(outputs, quarantine, files)
    without = all_prompts(arguments.without) if arguments.without else set()
    bad_rows = BadRows(arguments.on_bad, quarantine)
    counts: Counter = Counter()
    changed: dict[str, Counter] = {AS_TEXT: Counter(), AS_NULL: Counter()}
    with contextlib.ExitStack() as stack:
        written = {name: stack.enter_context(atomic_write(path)) for name, path in outputs.items()}
        for row in tqdm(rows_of(files, counts), desc="reading", unit=" rows", disable=None):
            value, prompt, problems = row.value, [], []
            if isinstance(value, str) and is_text(row.path):
                value = {arguments.text_column: value}
                if not row.problems and not row.value.strip():
                    counts["empty"] += 1
                    continue
            if not (value is None and row.problems):
                prompt, problems = prompt_of(value, arguments.text_column)
                if arguments.as_text and not problems and classify(value, arguments.text_column) != "document":
                    value, problems = text_of(value)
                    trimmed = [problem for problem in problems if problem.kind == conversation_formats.TRAILING_HUMAN]
                    problems = [problem for problem in problems if problem.kind not in REPAIRABLE]
                    counts["trimmed"] += len(trimmed) if not problems else 0
            if not bad_rows.accept(row.with_found(problems), REPAIRED_BY_READING):
                continue
            position = split_position(prompt_key(prompt), arguments.seed)
            part = "held out" if position < held else "to train on" if position < held + trained else "unused"
            if part == "to train on" and without and not without.isdisjoint(answered_prompts(row.value)):
                part = "left out"
            counts[part] += 1
            if file := written.get({"held out": "--heldout", "to train on": "--train"}.get(part)):
                file.write(as_line(value, changed))
        bad_rows.close()
        if not (counts["held out"] and counts["to train on"]):
            text = f"; {SPLIT_TEXT}" if any(map(is_text, files)) else ""
            raise InputError(
                f"found {counted(counts['held out'], 'row')} to hold out and {counts['to train on']:,} to train on, of "
                f"{bad_rows.rows_out:,}; expected at least one of each. Use other fractions, another seed, or more "
                f"rows{text}"
            )
    for kind, count in bad_rows.repaired.items():
        print(f"{counted(count, 'row')} repaired: {kind}")
    if bad_rows.quarantined:
        print(bad_rows.counts_line())
    if counts["trimmed"]:
        print(f"{counted(counts['trimmed'], 'trailing human turn')} trimmed")
    if counts["empty"]:
        print(f"{counted(counts['empty'], 'document')} without text left out")
    if counts["cut"]:
        print(f"{counted(counts['cut'], 'piece')} cut off lines longer than {LONGEST_LINE:,} characters")
    for way, columns in changed.items():
        if columns:
            print(f"{way}: {fields_line(columns)}")
    if counts["left out"]:
        print(f"{counted(counts['left out'], 'row')} not trained on, with a prompt of {', '.join(arguments.without)}")
    train, heldout = (f"in {path}" if path else "(not written)" for path in (arguments.train, arguments.heldout))
    print(
        f"{counted(bad_rows.rows_out, 'row')}: {counts['to train on']:,} to train on {train}, "
        f"{counts['held out']:,} held out {heldout}, {counts['unused']:,} unused"
    )


if __name__ == "__main__":
    run_main(main)
