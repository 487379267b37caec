"""Conversation files → the dataset that SFT trains on: `load_tokenized` reads, encodes, fits to length, and reports.

Tokens and labels are those of chat_encoder.py. Conversations longer than the context are truncated, dropped, or split at
turns. Rows go to disk as they are made, so the memory used does not grow with their number.
"""

import json
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np
from tqdm.auto import tqdm

from data_prep.common.arrow_dataset import write_dataset
from data_prep.common.batches import batched
from data_prep.common.errors import InputError
from data_prep.common.parallel import submit_ahead
from data_prep.common.text import counted
from data_prep.readers.conversations import close_and_report, conversation_fields, conversation_rows
from data_prep.readers.unread import Tally
from data_prep.rows.bad_rows import BadRows
from data_prep.rows.read import data_files
from data_prep.tokens.chat_encoder import ChatEncoder, Encoded, Rendered, labels
from data_prep.tokens.template_problems import Renderer, template_roles

LONG = ("drop", "truncate", "split")
ENCODED_AT_ONCE = 256  # conversations


def split_at_turns(encoder: ChatEncoder, messages: list[dict], max_length: int) -> list[tuple[list[dict], Encoded]]:
    """Pieces of whole exchanges, each as long as `max_length` tokens allow, after the system turn if there is one.

    An exchange is a user's turn and all that follows it up to the user's next turn. One that is too long by itself is a
    piece of its own, and stays too long.
    """
    system = messages[:1] if messages[0]["role"] == "system" else []
    tools = {"tools": messages[0]["tools"]} if "tools" in messages[0] else {}
    starts = [index for index, message in enumerate(messages) if message["role"] == "user"]

    def opened(exchange: list[dict]) -> list[dict]:
        return [*system, *exchange] if system else [{**exchange[0], **tools}, *exchange[1:]]

    exchanges = [messages[a:b] for a, b in zip(starts, [*starts[1:], len(messages)], strict=True)]
    pieces: list[tuple[list[dict], Encoded]] = []
    current: list[dict] = []
    for exchange in exchanges:
        longer = [*current, *exchange] if current else opened(exchange)
        (encoded,) = encoder.encode(encoder.render([longer]))
        if current and len(encoded.ids) > max_length:
            longer = opened(exchange)
            (encoded,) = encoder.encode(encoder.render([longer]))
            pieces.append((longer, encoded))
        elif current:
            pieces[-1] = (longer, encoded)
        else:
            pieces.append((longer, encoded))
        current = longer
    return pieces


class LengthPolicy:
    """What to do with conversations of more than `max_length` tokens (None: no limit), and how many there were."""

    def __init__(self, encoder: ChatEncoder, max_length: int | None, long: str) -> None:
        if long not in LONG:
            raise InputError(f"long is {long!r}; expected {', '.join(LONG)}")
        self.encoder, self.max_length, self.long = encoder, max_length, long
        self.counts: Counter = Counter()

    def apply(self, messages: list[dict], encoded: Encoded) -> Iterator[tuple[list[dict], Encoded]]:
        """The conversation whole or truncated, or its pieces; nothing if it is dropped or no token is left to learn."""
        self.counts["tokens"] += len(encoded.ids)
        if self.max_length is None or len(encoded.ids) <= self.max_length:
            pieces = [(messages, encoded)]
        else:
            self.counts["long"] += 1
            self.counts["tokens in long"] += len(encoded.ids)
            pieces = [(messages, encoded)]
            if self.long == "drop":
                return
            if self.long == "split":
                pieces = split_at_turns(self.encoder, messages, self.max_length)
                self.counts["pieces"] += len(pieces)
        for piece, (ids, mask) in pieces:
            if self.max_length is not None and len(ids) > self.max_length:
                self.counts["truncated"] += 1
                self.counts["tokens truncated"] += len(ids) - self.max_length
                ids, mask = ids[: self.max_length], mask[: self.max_length]
            if mask.any():
                yield piece, Encoded(ids, mask)
            else:
                self.counts["without an answer"] += 1

    def report(self) -> str:
        """What was done, as a line to print."""
        counts, limit = self.counts, f"max_length={self.max_length:,} tokens" if self.max_length else ""
        lost = counts["without an answer"]
        if not limit or not counts["long"]:
            line = f"no conversation is longer than {limit}" if limit else "conversations may be of any length"
            return line + f"; without a token to learn, and dropped: {lost:,}" * bool(lost)
        are = "conversation is" if counts["long"] == 1 else "conversations are"
        line = f"{counts['long']:,} {are} longer than {limit}: "
        cut = f"training will not see the last {counted(counts['tokens truncated'], 'token')} of them"
        if self.long == "drop":
            line += f"dropped, with {counted(counts['tokens in long'], 'token')} (long: drop)"
        elif self.long == "split":
            line += f"split at turns into {counts['pieces']:,} (long: split)"
            if counts["truncated"]:
                line += f"; of them {counts['truncated']:,} are still longer, an exchange each: {cut}"
        else:
            line += cut
        if lost:
            line += f"; {lost:,} of those truncated {'has' if lost == 1 else 'have'} no answer left and {'is' if lost == 1 else 'are'} dropped"
        return line


def load_tokenized(
    paths: str | Path | Iterable[str | Path],
    tokenizer,
    max_length: int | None,
    on_bad: str = "error",
    long: str = "truncate",
    columns: dict[str, str] | str | None = None,
    quarantine: str | Path | None = None,
    assistant_only: bool = True,
    reasoning: str = "keep",
):
    """Conversations from files of any format, ready to train on. Prints what was repaired, dropped, truncated and split.

    Args:
        max_length: in tokens; None: no limit.
        on_bad, quarantine, columns: see `data_prep.readers.conversations.read_conversations`.
        long: what to do with longer conversations. "truncate" drops their end, "drop" leaves them out, "split" makes
            pieces of whole exchanges, each after the system turn.
        assistant_only: whether the loss is on the assistant's turns alone; otherwise it is on every token.
        reasoning: what to do with an assistant's reasoning: keep, drop or mask (see `data_prep.common.reasoning`).

    Returns a `datasets.Dataset` with the columns id, source, row, messages, input_ids, labels and more (see
    `messages_of`), in the order of the files. The memory used does not grow with the number of conversations. Raises what
    `read_conversations` raises, and InputError if no conversation is left.
    """
    import pyarrow

    encoder = ChatEncoder(tokenizer, assistant_only, reasoning)
    policy = LengthPolicy(encoder, max_length, long)
    bad_rows, files, tally = BadRows(on_bad, quarantine), data_files(paths), Tally(reasoning)
    renderer = Renderer(encoder, template_roles(tokenizer))
    read = conversation_rows(files, bad_rows, columns, renderer.roles, tally, renderer)
    rows = ((row, renderer.last) for row in read)
    tokens = pyarrow.list_(pyarrow.int32())
    own = [*conversation_fields(), ("more", pyarrow.string())]
    schema = pyarrow.schema([*own, ("input_ids", tokens), ("labels", tokens)])
    typed: Counter = Counter()

    def batches():
        with tqdm(desc="tokenizing", unit=" conversations", mininterval=1, disable=None) as bar:
            for batch, encoded in _encoded_batches(encoder, rows, tally, typed):
                kept = []
                for row, each in zip(batch, encoded, strict=True):
                    kept += [({**row, "messages": own}, part) for own, part in policy.apply(row["messages"], each)]
                yield _record_batch(schema, kept)
                bar.update(len(batch))

    dataset = write_dataset(schema, batches())
    close_and_report(bad_rows, files, tally)
    if typed:
        listed = ", ".join(f"{name} {count:,} times" for name, count in typed.most_common())
        print(f"special tokens typed in turns are encoded as ordinary text: {listed}")
    print(policy.report())
    if not len(dataset):
        raise InputError(f"max_length={max_length}, long={long}: no conversation is left; expected at least one")
    return dataset


def messages_of(row: dict) -> list[dict]:
    """The messages of a row of `load_tokenized`, with all that the template gets. The column messages holds roles and texts
    alone; where there is more, such as tool calls, the column more has the whole as JSON."""
    return json.loads(row["more"]) if row["more"] else row["messages"]


def _encoded_batches(
    encoder: ChatEncoder, rows: Iterable[tuple[dict, Rendered]], tally: Tally, typed: Counter
) -> Iterator[tuple[list[dict], list[Encoded]]]:
    """Batches of rows with their tokens. A thread encodes one batch, without the GIL, while the next one is rendered.

    Special tokens in the rows' texts are counted in `typed`.
    """
    with ThreadPoolExecutor(1) as executor:

        def submit(batch: list[tuple[dict, Rendered]]) -> Future:
            for row, each in batch:
                tally.lost += each.lost
                if each.stand_ins:
                    typed.update(encoder.special_text(row["messages"]))
            return executor.submit(encoder.encode, [each for _, each in batch])

        for batch, encoded in submit_ahead(submit, batched(rows, ENCODED_AT_ONCE), ahead=1):
            yield [row for row, _ in batch], encoded


def _record_batch(schema, kept: list[tuple[dict, Encoded]]):
    """Rows and their tokens as a `pyarrow.RecordBatch`."""
    import pyarrow

    ids = [encoded.ids for _, encoded in kept]
    masks = [encoded.mask for _, encoded in kept]
    offsets = np.cumsum([0, *map(len, ids)], dtype=np.int32)
    flat = np.concatenate(ids) if ids else np.zeros(0, np.int32)
    targets = labels(flat, np.concatenate(masks)) if ids else flat
    whole = [row["messages"] for row, _ in kept]
    more = [json.dumps(each) if any(len(message) > 2 for message in each) else None for each in whole]
    read = [{**row, "more": each} for (row, _), each in zip(kept, more, strict=True)]
    rows = pyarrow.RecordBatch.from_pylist(read, pyarrow.schema(list(schema)[:-2]))
    columns = [pyarrow.ListArray.from_arrays(offsets, values) for values in (flat, targets)]
    return pyarrow.RecordBatch.from_arrays([*rows.columns, *columns], schema=schema)
