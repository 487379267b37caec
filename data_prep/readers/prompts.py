"""The one reader of prompts, with the answer that each conversation gives to its own."""

import random

from data_prep.common.errors import InputError
from data_prep.readers.conversations import close_and_report, conversation_rows
from data_prep.rows.bad_rows import BadRows
from data_prep.rows.read import data_files


def split_last_answer(messages: list[dict]) -> tuple[list[dict], str]:
    """(the conversation up to the last assistant turn, that turn's text): the prompt and its reference answer."""
    last = max(index for index, message in enumerate(messages) if message["role"] == "assistant")
    return messages[:last], messages[last]["content"]


def read_questions(
    paths,
    limit: int | None,
    seed: int,
    on_bad: str = "error",
    quarantine=None,
    columns: dict[str, str] | str | None = None,
) -> list[dict]:
    """Rows {"id", "prompt": messages, "reference": str} of conversations; `limit` of them sampled by `seed`.

    The prompt is everything before the last answer, the reference is that answer. Prints how many conversations were
    read, repaired and quarantined. `on_bad`, `quarantine`, `columns` and the errors are those of `read_conversations`.
    """
    bad_rows, files = BadRows(on_bad, quarantine), data_files(paths)
    rows = list(conversation_rows(files, bad_rows, columns))
    close_and_report(bad_rows, files)
    if limit is not None and limit < 1:
        raise InputError(f"--limit {limit}: expected at least 1")
    if limit and limit < len(rows):
        rows = random.Random(seed).sample(rows, limit)
    split = [split_last_answer(row["messages"]) for row in rows]
    return [
        {"id": row["id"], "prompt": prompt, "reference": answer}
        for row, (prompt, answer) in zip(rows, split, strict=True)
    ]
