"""Conversations → tokens and loss labels, exactly as the tokenizer's chat template has them.

What a user typed stays text: "<|endoftext|>" inside a turn is encoded as ordinary characters, as transformers does with
`apply_chat_template(sanitize_control_tokens=True)`, and only the control tokens that the template itself writes are
control tokens. The loss is on what the template encloses in {% generation %}: an assistant's turn and its end of turn.
"""

import re
from collections import Counter, deque
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jinja2 import TemplateError
from tokenizers import Tokenizer
from tqdm.auto import tqdm
from transformers.utils.chat_template_utils import render_jinja_template

from data_prep.arrow_files import write_dataset
from data_prep.conversation_formats import PLAIN_ROLES
from data_prep.conversations import batched, close_books, conversation_fields, conversation_rows
from data_prep.files import InputError
from data_prep.rows import Intake, counted, data_files

LONG = ("drop", "truncate", "split")
BATCH = 256  # conversations rendered and encoded at once
IGNORED = -100  # the label of a token that does not enter the loss


class Encoded(NamedTuple):
    """A conversation as tokens: their ids, and which of them enter the loss; both of the same length."""

    ids: np.ndarray  # int32
    mask: np.ndarray  # bool


class Rendered(NamedTuple):
    """A conversation as the text that the template makes of it."""

    text: str
    spans: list[tuple[int, int]]  # (begin, end) of what enters the loss, in characters
    meant: dict[str, str]  # {character: the control token it stands in for, which a turn spells out}


class ChatEncoder:
    """A tokenizer and its chat template, made ready to encode many conversations."""

    def __init__(self, tokenizer, assistant_only: bool = True) -> None:
        """Without `assistant_only` every token enters the loss. Raises InputError for a template without marks."""
        self.template = tokenizer.get_chat_template()
        self.assistant_only = assistant_only
        if assistant_only and not re.search(r"\{%-?\s*generation\s*-?%\}", self.template):
            self.template = _marked_template(tokenizer)
        self._names = tokenizer.special_tokens_map
        # Copies: their settings are not those that another user of the tokenizer leaves behind.
        self._tokenizer, self._literal = (Tokenizer.from_str(tokenizer.backend_tokenizer.to_str()) for _ in range(2))
        for copy in (self._tokenizer, self._literal):
            copy.no_truncation()
            copy.no_padding()
        self._tokenizer.encode_special_tokens = False
        self._literal.encode_special_tokens = True  # control tokens are text to this one
        self._special = special_token_text(tokenizer)

    def render(self, conversations: list[list[dict]], add_generation_prompt: bool = False) -> list[Rendered]:
        """The conversations as texts, or with `add_generation_prompt` up to where the assistant's next turn begins.

        Raises what the template raises; not to be called from two threads at once.
        """
        hidden, meant = [], []
        for messages in conversations:
            names = list(dict.fromkeys(self.special_text(messages)))
            if names:  # a character stands in for each of them while the template is at work
                used = {char for message in messages for char in message["content"]}
                free = (chr(code) for code in range(0xF0000, 0xFFFFE) if chr(code) not in used)  # a private use area
                stand_ins = dict(zip(names, free, strict=False))
                messages = [{**message, "content": self._hide(message["content"], stand_ins)} for message in messages]
                names = {char: name for name, char in stand_ins.items()}
            hidden.append(messages)
            meant.append(names or {})
        texts, spans = render_jinja_template(
            conversations=hidden,
            chat_template=self.template,
            return_assistant_tokens_mask=self.assistant_only,
            add_generation_prompt=add_generation_prompt,
            **self._names,
        )
        if not self.assistant_only:
            spans = [[(0, len(text))] for text in texts]
        return [Rendered(*each) for each in zip(texts, spans, meant, strict=True)]

    def special_text(self, messages: list[dict]) -> list[str]:
        """The control tokens that are spelled out in the messages' texts."""
        return [found for message in messages for found in self._special.findall(message["content"])]

    def _hide(self, content: str, stand_ins: dict[str, str]) -> str:
        return self._special.sub(lambda match: stand_ins[match[0]], content)

    def encode(self, rendered: list[Rendered]) -> list[Encoded]:
        """The tokens of each conversation, and which enter the loss. The work is done outside of Python's lock."""
        plain = [each for each in rendered if not each.meant]
        encodings = iter(self._tokenizer.encode_batch([each.text for each in plain], add_special_tokens=False))
        return [
            self._encode_pieces(each) if each.meant else _encoded(next(encodings), each.spans) for each in rendered
        ]

    def _encode_pieces(self, rendered: Rendered) -> Encoded:
        """A conversation that spells out control tokens: the text between them, and they themselves as text."""
        text, spans, meant = rendered
        pieces, start = [], 0
        for piece in re.split(f"([{''.join(meant)}])", text):
            end = start + len(piece)
            inside = [(max(a, start) - start, min(b, end) - start) for a, b in spans if a < end and b > start]
            if piece in meant:
                spelled = meant[piece]
                pieces.append(_encode_piece(self._literal, spelled, [(0, len(spelled))] if inside else [], start > 0))
            elif piece:
                pieces.append(_encode_piece(self._tokenizer, piece, inside, start > 0))
            start = end
        return Encoded(*map(np.concatenate, zip(*pieces, strict=True)))


def special_token_text(tokenizer) -> re.Pattern:
    """What finds the tokenizer's control tokens where a text spells them out."""
    special = {token.content for token in tokenizer.added_tokens_decoder.values() if token.special}
    # The longest first: one may begin with another.
    return re.compile("|".join(map(re.escape, sorted(special, key=len, reverse=True))) or "(?!)")


def _encode_piece(tokenizer: Tokenizer, piece: str, spans: list[tuple[int, int]], inner: bool) -> Encoded:
    """A part of a text. Some tokenizers put a blank before a text: an inner part is encoded behind a line break, which
    is taken off again, where it stays a token of its own."""
    if inner:
        behind = tokenizer.encode("\n" + piece, add_special_tokens=False)
        length = sum(end <= 1 for _, end in behind.offsets)
        if length == len(behind.ids) or behind.offsets[length][0] == 1:
            ids, mask = _encoded(behind, [(begin + 1, end + 1) for begin, end in spans])
            return Encoded(ids[length:], mask[length:])
    return _encoded(tokenizer.encode(piece, add_special_tokens=False), spans)


def _encoded(encoding, spans: list[tuple[int, int]]) -> Encoded:
    return Encoded(np.array(encoding.ids, dtype=np.int32), _mask(encoding, spans))


def _marked_template(tokenizer) -> str:
    """The template that TRL has, with marks, in place of the one of a common model."""
    from trl.chat_template_utils import get_training_chat_template  # slow to import

    try:
        return get_training_chat_template(tokenizer)
    except ValueError:
        raise InputError("the chat template does not enclose the assistant's turns in {% generation %}, so that the loss "
                         "cannot be on them alone; expected these marks, or assistant_only_loss: false") from None  # fmt: skip


def _mask(encoding, spans: list[tuple[int, int]]) -> np.ndarray:
    """Which tokens lie in the character `spans`: as `apply_chat_template(return_assistant_tokens_mask=True)` has it.

    But of a last character that is several tokens all are in, where transformers takes the first alone.
    """
    mask = np.zeros(len(encoding.ids), dtype=bool)
    for begin, end in spans:
        if end > begin:
            first = encoding.char_to_token(begin)
            last = encoding.char_to_token(end - 1)
            if first is None:
                break
            last = len(mask) - 1 if last is None else last
            while last + 1 < len(mask) and encoding.token_to_chars(last + 1)[0] < end:
                last += 1
            mask[first : last + 1] = True
    return mask


def template_roles(tokenizer) -> tuple[str, ...]:
    """The roles that the chat template writes: those whose content is in the text it makes."""
    template, found = tokenizer.get_chat_template(), []
    question, answer = {"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}
    for role in (*PLAIN_ROLES, "function_call", "tool"):
        probe = {"role": role, "content": "probe"}
        tried = {"system": [probe, question, answer], "user": [probe, answer], "assistant": [question, probe]}
        messages = tried.get(role, [question, answer, probe])
        try:
            (text,), _ = render_jinja_template(
                conversations=[messages], chat_template=template, **tokenizer.special_tokens_map
            )
        except TemplateError:
            continue
        if "probe" in text:
            found.append(role)
    return tuple(found)


def split_at_turns(encoder: ChatEncoder, messages: list[dict], max_length: int) -> list[tuple[list[dict], Encoded]]:
    """Pieces of whole exchanges, as long as `max_length` tokens allow, each with the system turn before it.

    An exchange is a user's turn and what follows it up to the next; one that is too long by itself is a piece by itself.
    """
    system = messages[:1] if messages[0]["role"] == "system" else []
    starts = [index for index, message in enumerate(messages) if message["role"] == "user"]
    exchanges = [messages[a:b] for a, b in zip(starts, [*starts[1:], len(messages)], strict=True)]
    pieces: list[tuple[list[dict], Encoded]] = []
    current: list[dict] = []
    for exchange in exchanges:
        longer = [*(current or system), *exchange]
        (encoded,) = encoder.encode(encoder.render([longer]))
        if current and len(encoded.ids) > max_length:
            longer = [*system, *exchange]
            (encoded,) = encoder.encode(encoder.render([longer]))
            pieces.append((longer, encoded))
        elif current:
            pieces[-1] = (longer, encoded)
        else:
            pieces.append((longer, encoded))
        current = longer
    return pieces


class LengthPolicy:
    """What is done with conversations of more than `max_length` tokens (None: any length), and its counts."""

    def __init__(self, encoder: ChatEncoder, max_length: int | None, long: str) -> None:
        if long not in LONG:
            raise InputError(f"long is {long!r}; expected {', '.join(LONG)}")
        self.encoder, self.max_length, self.long = encoder, max_length, long
        self.counts: Counter = Counter()

    def apply(self, messages: list[dict], encoded: Encoded) -> Iterator[tuple[list[dict], Encoded]]:
        """The conversation itself, what is kept of it, or its pieces."""
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
                self.counts["cut"] += 1
                self.counts["tokens cut"] += len(ids) - self.max_length
                ids, mask = ids[: self.max_length], mask[: self.max_length]
            if mask.any():
                yield piece, Encoded(ids, mask)
            else:
                self.counts["without an answer"] += 1

    def report(self) -> str:
        """What was done, in a line."""
        counts, limit = self.counts, f"max_length={self.max_length:,} tokens" if self.max_length else ""
        if not limit or not counts["long"]:
            return f"no conversation is longer than {limit}" if limit else "conversations may be of any length"
        are = "conversation is" if counts["long"] == 1 else "conversations are"
        line = f"{counts['long']:,} {are} longer than {limit}: "
        cut = f"training will not see the last {counted(counts['tokens cut'], 'token')} of them"
        if self.long == "drop":
            line += f"left out, with {counted(counts['tokens in long'], 'token')} (long: drop)"
        elif self.long == "split":
            line += f"split at turns into {counts['pieces']:,} (long: split)"
            if counts["cut"]:
                line += f"; of these {counts['cut']:,} are still longer, an exchange each: {cut}"
        else:
            line += cut
        if lost := counts["without an answer"]:
            line += f"; {lost:,} of what was cut {'has' if lost == 1 else 'have'} no answer left and is left out"
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
):
    """Conversations of any files, ready to train on; what was repaired, left out, cut and split is printed.

    Args:
        max_length: in tokens; None: no limit.
        on_bad, quarantine, columns: see `data_prep.conversations`.
        long: what is done with longer conversations: "truncate" cuts them on the right, "drop" leaves them out, "split"
            makes pieces of whole exchanges, the system turn before each.
        assistant_only: the loss is on the assistant's turns; otherwise on every token.

    Returns a `datasets.Dataset` with the columns id, source, row, messages, input_ids and labels, in the order of the
    files: labels are the ids, or -100 where a token does not enter the loss. The memory used does not grow with the
    number of conversations. Raises what `load_conversations` raises.
    """
    import pyarrow

    encoder = ChatEncoder(tokenizer, assistant_only)
    policy = LengthPolicy(encoder, max_length, long)
    intake, files = Intake(on_bad, quarantine), data_files(paths)
    rows = conversation_rows(files, intake, columns, template_roles(tokenizer))
    tokens = pyarrow.list_(pyarrow.int32())
    schema = pyarrow.schema([*conversation_fields(), ("input_ids", tokens), ("labels", tokens)])
    spelled: Counter = Counter()

    def batches():
        bar = tqdm(desc="tokenizing", unit=" conversations", mininterval=1)
        for batch, encoded in _encoded_batches(encoder, rows):
            kept = []
            for row, each in zip(batch, encoded, strict=True):
                spelled.update(encoder.special_text(row["messages"]))
                kept += [({**row, "messages": own}, part) for own, part in policy.apply(row["messages"], each)]
            yield _record_batch(schema, kept)
            bar.update(len(batch))
        bar.close()

    dataset = write_dataset(schema, batches())
    close_books(intake, files)
    if spelled:
        listed = ", ".join(f"{name} {count:,} times" for name, count in spelled.most_common())
        print(f"special tokens spelled out in turns are encoded as ordinary text: {listed}")
    print(policy.report())
    if not len(dataset):
        raise InputError(f"max_length={max_length}, long={long}: no conversation is left; expected at least one")
    return dataset


def _encoded_batches(encoder: ChatEncoder, rows: Iterable[dict]) -> Iterator[tuple[list[dict], list[Encoded]]]:
    """Batches of rows with their tokens. One batch is encoded, outside of Python's lock, while the next is read."""
    with ThreadPoolExecutor(1) as executor:
        waiting: deque = deque()
        for batch in batched(rows, BATCH):
            waiting.append(
                (batch, executor.submit(encoder.encode, encoder.render([row["messages"] for row in batch])))
            )
            if len(waiting) > 1:
                done, future = waiting.popleft()
                yield done, future.result()
        for done, future in waiting:
            yield done, future.result()


def _record_batch(schema, kept: list[tuple[dict, Encoded]]):
    """Rows and their tokens as a `pyarrow.RecordBatch`."""
    import pyarrow

    ids = [encoded.ids for _, encoded in kept]
    masks = [encoded.mask for _, encoded in kept]
    offsets = np.cumsum([0, *map(len, ids)], dtype=np.int32)
    flat = np.concatenate(ids) if ids else np.zeros(0, np.int32)
    labels = np.where(np.concatenate(masks), flat, np.int32(IGNORED)) if ids else flat
    rows = pyarrow.RecordBatch.from_pylist([row for row, _ in kept], pyarrow.schema(list(schema)[:-2]))
    columns = [pyarrow.ListArray.from_arrays(offsets, values) for values in (flat, labels)]
    return pyarrow.RecordBatch.from_arrays([*rows.columns, *columns], schema=schema)
