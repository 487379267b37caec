"""The one reader of prompts, each with a reference answer: of conversations, and of preferences in all their formats."""

import hashlib
import random
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from tqdm.auto import tqdm

from data_prep.common.arrow_dataset import write_dataset
from data_prep.common.batches import batched
from data_prep.common.errors import InputError
from data_prep.common.text import counted
from data_prep.readers.conversation_formats import PLAIN_ROLES, speaker
from data_prep.readers.conversations import WRITTEN_AT_ONCE, accepted_conversation, close_and_report, message_type
from data_prep.readers.kinds import classify, kind_of_columns
from data_prep.readers.preference_formats import REPAIRABLE
from data_prep.readers.preferences import prompt_key, read_preference, unread_fields
from data_prep.readers.unread import Tally
from data_prep.rows.bad_rows import BadRows
from data_prep.rows.problems import REPAIRED_BY_READING, Problem, Row
from data_prep.rows.read import data_files, identify, rows_of


def last_question(messages: list[dict]) -> list[dict]:
    """The conversation up to the last user turn."""
    last = max(index for index, message in enumerate(messages) if message["role"] == "user")
    return messages[: last + 1]


def split_last_answer(messages: list[dict]) -> tuple[list[dict], str]:
    """(the conversation up to the last assistant turn, that turn's text): the prompt and its reference answer."""
    last = max(index for index, message in enumerate(messages) if message["role"] == "assistant")
    return messages[:last], messages[last]["content"]


def prompt_rows(
    files: Iterable[str],
    bad_rows: BadRows,
    columns: dict[str, str] | str | None = None,
    counts: Counter | None = None,
    tally: Tally | None = None,
    without_tools: bool = False,
    refused: Callable[[list[dict]], list[Problem]] | None = None,
) -> Iterator[dict]:
    """Rows {"id", "prompt": messages, "reference": str, "place": str} of `files` (see `data_files`); bad ones go to
    `bad_rows`. The place is file and row, for messages.

    The prompt of a conversation is everything before its last answer, and the reference is that answer. The reference
    of a preference is its best completion; of one prompt's preferences the first is used. A prompt that has only answers
    labelled bad comes last, with an empty reference.

    Args:
        counts: gets "preferences" (rows), "repeated" (those of them that are left out) and "tools".
        tally: gets the fields that are not read.
        without_tools: conversations with calls of tools are left out, and counted under "tools"; else they are bad rows.
        refused: what keeps a chat template from writing messages, here the prompt with its reference.
    """
    counts, tally = Counter() if counts is None else counts, tally or Tally()
    named_kind, columns = kind_of_columns(columns)
    roles = (*PLAIN_ROLES, "function_call", "tool") if without_tools else PLAIN_ROLES
    read: set[bytes] = set()
    without_good_answer: dict[bytes, dict] = {}
    for row in rows_of(files):
        if (named_kind or classify(row.value)) != "preferences":
            if conversation := accepted_conversation(row, bad_rows, columns, roles, tally, refused):
                if any(speaker(message) not in PLAIN_ROLES for message in conversation["messages"]):
                    counts["tools"] += 1
                    continue
                prompt, reference = split_last_answer(conversation["messages"])
                yield {"id": conversation["id"], "prompt": prompt, "reference": reference, "place": _place(row)}
            continue
        accepted = _accepted_preference(row, bad_rows, columns, refused)
        if accepted is None:
            continue
        counts["preferences"] += 1
        tally.fields.update(unread_fields(row.value, columns))
        key = hashlib.blake2b(prompt_key(accepted["prompt"]).encode(), digest_size=16).digest()
        if key in read:
            counts["repeated"] += 1
        elif accepted["reference"] is None:
            counts["repeated"] += key in without_good_answer
            without_good_answer.setdefault(key, {**accepted, "reference": ""})
        else:
            read.add(key)
            counts["repeated"] += without_good_answer.pop(key, None) is not None
            yield accepted
    yield from without_good_answer.values()


def _accepted_preference(
    row: Row,
    bad_rows: BadRows,
    columns: dict[str, str] | None,
    refused: Callable[[list[dict]], list[Problem]] | None,
) -> dict | None:
    """The prompt in a row and its best completion (None if that is labelled bad); None if `bad_rows` does not accept it."""
    preference, problems = read_preference(row, columns, refused)
    identifier, row = identify(row.with_found(problems), (columns or {}).get("id", "id"))
    if not bad_rows.accept(row, (*REPAIRED_BY_READING, *REPAIRABLE)):
        return None
    if "label" in preference:
        reference = preference["completions"][0] if preference["label"] else None
    else:
        reference = preference["completions"][preference["ranks"].index(min(preference["ranks"]))]
    return {"id": identifier, "prompt": preference["prompt"], "reference": reference, "place": _place(row)}


def _place(row: Row) -> str:
    return f"{row.path}, row {row.number:,}" + ("" if row.line is None else f", line {row.line:,}")


def _report(bad_rows: BadRows, files: list[str], counts: Counter, tally: Tally) -> None:
    close_and_report(bad_rows, files, tally, "row" if counts["preferences"] else "conversation")
    if counts["repeated"]:
        print(f"left out: {counted(counts['repeated'], 'preference')} on a prompt that was read before")
    if counts["tools"]:
        print(
            f"left out: {counted(counts['tools'], 'conversation')} with calls of tools: recipes/sft.py alone takes them"
        )
        if bad_rows.rows_out == counts["tools"]:
            raise InputError(f"{', '.join(files)}: found calls of tools in every row; expected one without")


def read_prompts(
    paths,
    limit: int | None,
    seed: int,
    on_bad: str = "error",
    quarantine=None,
    columns: dict[str, str] | str | None = None,
    can_choose: bool = True,
) -> list[dict]:
    """Rows {"id", "prompt": messages, "reference": str} of `prompt_rows`; `limit` of them sampled by `seed`.

    Prints how many rows were read, repaired and quarantined, and how many conversations with calls of tools are left out.
    `on_bad`, `quarantine`, `columns` and the errors are those of `read_conversations`; `can_choose` is that of `BadRows`.
    """
    if limit is not None and limit < 1:
        raise InputError(f"--limit {limit}: expected at least 1")
    bad_rows, files = BadRows(on_bad, quarantine, can_choose), data_files(paths)
    counts, tally = Counter(), Tally()
    rows = list(prompt_rows(files, bad_rows, columns, counts, tally, without_tools=True))
    for row in rows:
        del row["place"]
    _report(bad_rows, files, counts, tally)
    if not limit or limit >= len(rows):
        return rows
    print(f"{limit:,} of {len(rows):,} prompts are used (--limit)")
    return random.Random(seed).sample(rows, limit)


def load_prompts(
    paths: str | Path | Iterable[str | Path],
    on_bad: str = "error",
    quarantine: str | Path | None = None,
    columns: dict[str, str] | str | None = None,
    refused: Callable[[list[dict]], list[Problem]] | None = None,
):
    """The prompts as a `datasets.Dataset` with the columns prompt, reference and place (see `prompt_rows`); prints the counts.

    They are in a file on disk (see `write_dataset`), so the memory used hardly grows with their number. Takes the
    arguments of `read_conversations`, and raises the same errors; a row with `refused` is a bad row.
    """
    import pyarrow  # slow to import, and not needed by the readers

    bad_rows, files, counts, tally = BadRows(on_bad, quarantine), data_files(paths), Counter(), Tally()
    text = pyarrow.string()
    schema = pyarrow.schema([("prompt", pyarrow.list_(message_type())), ("reference", text), ("place", text)])
    read = prompt_rows(files, bad_rows, columns, counts, tally, refused=refused)
    rows = tqdm(read, desc="reading", unit=" prompts", mininterval=1, disable=None)
    batches = (
        pyarrow.RecordBatch.from_pylist([{key: row[key] for key in schema.names} for row in batch], schema)
        for batch in batched(rows, WRITTEN_AT_ONCE)
    )
    dataset = write_dataset(schema, batches)
    _report(bad_rows, files, counts, tally)
    return dataset
