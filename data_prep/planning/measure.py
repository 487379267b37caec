"""What the training files hold, in tokens: how many, and how long rows, prompts and answers are."""

from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import numpy as np

from data_prep.common.batches import batched
from data_prep.common.errors import InputError
from data_prep.readers.conversations import conversation_rows
from data_prep.readers.documents import read_documents
from data_prep.readers.labels import read_labels
from data_prep.readers.preferences import prompt_key, read_rankings
from data_prep.rows.bad_rows import BadRows

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
    """Conversations, rankings or labelled answers. The arrays are of a sample: a number for a row."""

    rows: int
    asked: int  # different prompts
    tokens: int  # all answers with their prompts
    lengths: np.ndarray  # the whole; of a ranking, its longest answer with the prompt
    prompts: np.ndarray  # what precedes the last answer, up to where it begins
    answers: np.ndarray  # the last answer, its end of turn included; of a ranking, each of its answers
    totals: np.ndarray  # as lengths; of a ranking, all its answers, each with the prompt


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
            encoded = tokenizer(batch, add_special_tokens=False, split_special_tokens=True)  # as in a corpus
            lengths += [len(ids) + 1 for ids in encoded["input_ids"]]
    return Text(documents, size, round(sum(lengths) * size / seen), np.array(lengths), begins)


def conversations_in(path: Path, roles: Iterable[str]) -> Iterator[list[list[dict]]]:
    """The conversations of a file as recipes/sft.py reads them, each alone in a list.

    `roles` are those that the chat template supports (see `template_roles`). Raises InputError if no row is left.
    """
    bad_rows = BadRows("repair")
    for row in conversation_rows([str(path)], bad_rows, roles=roles):
        yield [row["messages"]]
    if not bad_rows.rows_out:
        raise bad_rows.nothing_left(str(path), "conversation")


def rankings_in(path: Path) -> Iterator[list[list[dict]]]:
    """The rankings of a file as the reward model's training reads them: each answer with its prompt."""
    rankings, _ = read_rankings(path, on_bad="repair")
    for row in rankings:
        yield [[*row["prompt"], {"role": "assistant", "content": answer}] for answer in row["completions"]]


def labels_in(path: Path) -> Iterator[list[list[dict]]]:
    """The labelled answers of a file with their prompts, each alone in a list."""
    for row in read_labels(path)[0]:
        yield [[*row["prompt"], {"role": "assistant", "content": row["completion"]}]]


def last_answer(mask: np.ndarray) -> tuple[int, int]:
    """Where the last run of True in a loss mask begins and ends."""
    learned = np.flatnonzero(mask)
    if not len(learned):
        return len(mask), len(mask)
    gaps = np.flatnonzero(np.diff(learned) > 1)
    return int(learned[gaps[-1] + 1] if len(gaps) else learned[0]), int(learned[-1]) + 1


def measure_turns(
    read: Callable[[Path], Iterator[list[list[dict]]]], path: Path, tokenizer, assistant_only: bool = True
) -> Turns:
    """What `read` finds in `path`, by the tokenizer's chat template; of more than `ROWS` rows an even sample.

    Where the loss is not on the assistant's turns alone, a template need not tell them apart: without `assistant_only`
    an answer is the whole.

    Raises InputError where there is no row, and where the template cannot write them.
    """
    from jinja2 import TemplateError

    from data_prep.tokens.chat_encoder import ChatEncoder  # slow to import

    encoder, rows = ChatEncoder(tokenizer, assistant_only), sum(1 for _ in read(path))
    if not rows:
        raise InputError(
            f"{path}: found no row to train on; expected at least one: see python -m data_prep.check {path}"
        )
    lengths, prompts, answers, totals, measured = [], [], [], [], 0
    asked: set[str] = set()
    for several in batched(islice(read(path), 0, None, -(-rows // ROWS)), 256):
        try:
            encoded = iter(
                encoder.encode(encoder.render([each for conversations in several for each in conversations]))
            )
        except TemplateError as error:
            raise InputError(
                f"{path}: the chat template of the model cannot write these conversations: {error}"
            ) from None
        measured += len(several)
        for conversations in several:
            masks = [next(encoded).mask for _ in conversations]
            places = [last_answer(mask) for mask in masks]
            totals.append(sum(map(len, masks)))
            lengths.append(max(map(len, masks)))
            prompts.append(places[0][0])
            asked.add(prompt_key(conversations[0][:-1]))
            answers += [end - begin for begin, end in places]
    share = rows / measured
    arrays = map(np.array, (lengths, prompts, answers, totals))
    return Turns(rows, round(len(asked) * share), round(sum(totals) * share), *arrays)
