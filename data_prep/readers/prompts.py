"""The one reader of prompts, with the answer that each conversation gives to its own."""

import random

from data_prep.common.errors import InputError
from data_prep.readers.conversations import read_conversations


def split_last_answer(messages: list[dict]) -> tuple[list[dict], str]:
    """(the conversation up to the last assistant turn, that turn's text): the prompt and its reference answer."""
    last = max(index for index, message in enumerate(messages) if message["role"] == "assistant")
    return messages[:last], messages[last]["content"]


def read_questions(paths, limit: int | None, seed: int) -> list[dict]:
    """Rows {"id", "prompt": messages, "reference": str} of conversations; `limit` of them drawn at random by `seed`.

    The prompt is everything before the last answer, the reference is that answer. Raises what `read_conversations`
    raises.
    """
    rows, _ = read_conversations(paths)
    if limit is not None and limit < 1:
        raise InputError(f"--limit {limit}: expected at least 1")
    if limit and limit < len(rows):
        rows = random.Random(seed).sample(rows, limit)
    split = [split_last_answer(row["messages"]) for row in rows]
    return [{"id": row["id"], "prompt": prompt, "reference": answer}
            for row, (prompt, answer) in zip(rows, split, strict=True)]  # fmt: skip
