"""What the training files hold, in tokens: how many, and how long rows, prompts and answers are."""

from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import numpy as np

from data_prep.common.batches import batched
from data_prep.common.errors import InputError
from data_prep.common.files import read_jsonl
from data_prep.readers.documents import read_documents

ROWS = 5000  # measured of a kind; of more an even sample
SAMPLE = 1 << 23  # bytes of text, to count its tokens


class Text(NamedTuple):
    """Documents, or conversations as text."""

    documents: int
    bytes: int
    tokens: int
    lengths: np.ndarray  # tokens of a document, of a sample
    beginnings: list[str]  # of the first documents, to have a base model go on from them


class Turns(NamedTuple):
    """Conversations or rankings. The arrays are of a sample: a number for a row."""

    rows: int
    tokens: int  # all answers with their prompts
    lengths: np.ndarray  # the whole; of a ranking, its longest answer with the prompt
    prompts: np.ndarray  # what precedes the last answer, up to where it begins
    answers: np.ndarray  # the last answer, its end of turn included; of a ranking, each of its answers


def measure_text(files: list[str], tokenizer) -> Text:
    """The text of corpus files in tokens: the end of text behind each document included."""
    documents = size = seen = 0
    lengths: list[int] = []
    begins: list[str] = []
    for batch in batched(read_documents(files), 256):
        if len(begins) < 3:
            begins = list(dict.fromkeys([*begins, *(" ".join(text.split()[:3])[:16].strip() for text in batch)]))[:3]
        sizes = [len(text.encode("utf-8")) for text in batch]
        documents, size = documents + len(batch), size + sum(sizes)
        if seen < SAMPLE:
            seen += sum(sizes)
            lengths += [len(ids) + 1 for ids in tokenizer(batch, add_special_tokens=False)["input_ids"]]
    return Text(documents, size, round(sum(lengths) * size / seen), np.array(lengths), begins)


def conversations_of(row: dict) -> list[list[dict]]:
    """A row of the doctor's output as conversations: itself, or a prompt with each of its answers."""
    if "messages" in row:
        return [row["messages"]]
    answers = row["completions"] if "completions" in row else [row["completion"]]
    return [[*row["prompt"], {"role": "assistant", "content": answer}] for answer in answers]


def sampled(path: Path, rows: int) -> Iterator[dict]:
    """At most `ROWS` of so many rows, evenly over the file."""
    return islice(read_jsonl(path), 0, None, max(1, -(-rows // ROWS)))


def last_answer(mask: np.ndarray) -> tuple[int, int]:
    """Where the last run of True in a loss mask begins and ends."""
    learned = np.flatnonzero(mask)
    if not len(learned):
        return len(mask), len(mask)
    gaps = np.flatnonzero(np.diff(learned) > 1)
    return int(learned[gaps[-1] + 1] if len(gaps) else learned[0]), int(learned[-1]) + 1


def measure_turns(path: Path, tokenizer) -> Turns:
    """The conversations or rankings of a JSON Lines file by the tokenizer's chat template.

    Raises InputError where the template cannot write them.
    """
    from jinja2 import TemplateError

    from data_prep.tokens.chat_encoder import ChatEncoder  # slow to import

    encoder, rows = ChatEncoder(tokenizer), sum(1 for _ in read_jsonl(path))
    lengths, prompts, answers, tokens, measured = [], [], [], 0, 0
    for batch in batched(sampled(path, rows), 256):
        several = [conversations_of(row) for row in batch]
        try:
            encoded = iter(
                encoder.encode(encoder.render([each for conversations in several for each in conversations]))
            )
        except TemplateError as error:
            raise InputError(
                f"{path}: the chat template of the model cannot write these conversations: {error}"
            ) from None
        measured += len(batch)
        for conversations in several:
            masks = [next(encoded).mask for _ in conversations]
            places = [last_answer(mask) for mask in masks]
            tokens += sum(map(len, masks))
            lengths.append(max(map(len, masks)))
            prompts.append(places[0][0])
            answers += [end - begin for begin, end in places]
    return Turns(rows, round(tokens * rows / measured), *map(np.array, (lengths, prompts, answers)))
