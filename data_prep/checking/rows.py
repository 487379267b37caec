"""The checks of data_prep.check on one row: what it is, what is wrong with it, how long it is."""

import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import numpy as np

from data_prep.common.errors import InputError
from data_prep.common.files import existing
from data_prep.common.json_values import json_value
from data_prep.common.text import counted, shorten
from data_prep.readers import conversation_formats, preferences
from data_prep.readers.conversation_formats import (
    ALL_ROLES,
    EXPECTED,
    TRAILING_HUMAN,
    text_problem,
    to_conversation,
    unknown_format,
)
from data_prep.readers.conversation_formats import REPAIRABLE as REPAIRABLE_CONVERSATIONS
from data_prep.readers.conversations import count_reasoning, drop_reasoning
from data_prep.readers.kinds import classify, kind_of_columns
from data_prep.readers.preference_formats import REPAIRABLE as REPAIRABLE_PREFERENCES
from data_prep.readers.preference_formats import preference_of
from data_prep.readers.ranks import pairs
from data_prep.readers.unread import media_problems
from data_prep.rows.problems import REPAIRED_BY_READING, Problem, Row
from data_prep.rows.read import identify, is_text, rows_of

# Kinds of problem that the readers have repaired in the record.
REPAIRABLE = (*REPAIRED_BY_READING, *REPAIRABLE_CONVERSATIONS, *sorted(REPAIRABLE_PREFERENCES))
ECHO = "answer equal to prompt"
CONTROL = "control or replacement characters"
SPECIAL = "special-token text inside a turn"
TIED = "all completions tied"
LONG = "over-long for the context"
DOCUMENT, EMPTY_DOCUMENT = "a document", "a document without text"
LONG_ANSWER = "an answer over-long for the context"
SAME_ID = "the same id on different rows"
OPPOSED = "opposite judgements of the same answers"
ONE_LABEL = "the only label of its prompt"
DUPLICATES = (
    "duplicate document",
    "near-duplicate document",
    "duplicate conversation",
    "near-duplicate conversation",
    "duplicate preference",
    "near-duplicate preference",
)
WARNINGS = (
    DOCUMENT,
    EMPTY_DOCUMENT,
    ECHO,
    CONTROL,
    SPECIAL,
    TIED,
    LONG,
    LONG_ANSWER,
    SAME_ID,
    OPPOSED,
    ONE_LABEL,
    *DUPLICATES,
)  # a row with no other problem is usable
KINDS_TO_TRAIN_ON = "conversations or preferences, to make an assistant"
CORPUS_COMMANDS = "data_prep.train_tokenizer, clean_corpus and mix_corpus"
PREFERENCES = (
    "or of preferences: 'chosen' and 'rejected', 'completions' and 'ranks' or 'scores', 'completion' and 'label'"
)
OTHER_NAMES = (
    "columns of other names: --columns prompt=COLUMN,completion=COLUMN; documents under another name than text: "
    "--text_column COLUMN"
)
# What rank_completions and people write beside a ranking, and later commands read: the gate (counts, drawn), best_of_n and
# judges (ranked_by), the report (the reasons for the ranks). ranked_at goes with ranked_by.
KEPT = ("counts", "drawn", "ranked_by", "ranked_at", "reasons", "reason", "notes", "note")
CONTROL_CHARACTERS = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ufeff\ufffd\ufffe\uffff]")
# Without a tokenizer: how common model families write their control tokens. <s> is left out: it is HTML too.
SPECIAL_TOKENS = re.compile(r"<\|\w{1,40}\|>|<(?:start|end)_of_turn>|\[/?INST\]")


class Checked(NamedTuple):
    """A row after the checks on the row by itself."""

    row: Row  # with all its problems
    kind: str  # "conversations", "preferences", "documents", or "" if it is none of them
    record: dict  # as it is to be written, repaired; not usable if a problem is not repairable
    unread: tuple[str, ...] = ()  # the fields that no reader uses
    reasoning: int = 0  # turns with reasoning
    changed: tuple[tuple[str, str], ...] = ()  # (how, field): values that JSON has no form for (see `json_value`)

    def with_found(self, problems: list[Problem]) -> "Checked":
        return self._replace(row=self.row.with_found(problems)) if problems else self


class Size(NamedTuple):
    """How large a usable record is. Without a tokenizer the counts of tokens are 0."""

    length: int  # in tokens, or in characters without a tokenizer
    total: int = 0  # tokens: the sum of the four below
    learned: int = 0  # tokens that enter the loss
    masked: int = 0  # tokens that do not
    truncated: int = 0  # tokens of a conversation beyond the context
    left_out: int = 0  # tokens of a preference with an answer beyond the context
    prompt: int = 0  # tokens before the last answer
    lost: int = 0  # turns whose reasoning the template leaves out


def checked_rows(
    files: Iterable[str],
    columns: str | None = None,
    roles: Iterable[str] = ALL_ROLES,
    reasoning: str = "keep",
    text_column: str = "text",
    refused: Callable[[list[dict]], list[Problem]] | None = None,
    counts: Counter | None = None,
) -> Iterator[Checked]:
    """All rows of `files`, each classified by its fields; with `columns` all are of the kind that these fields have.

    Args:
        roles: those that the chat template supports.
        reasoning: what to do with an assistant's reasoning; "drop" takes it out of the records.
        text_column: that of documents; their records have it as "text".
        refused: what keeps a chat template from writing messages; of a preference, the prompt with an answer.
        counts: that of `rows_of`.
    """
    named_kind, columns = kind_of_columns(columns)
    for row in rows_of(files, counts):
        if row.value is None and row.problems:
            yield Checked(row, "", {})
            continue
        if isinstance(row.value, str) and is_text(row.path):
            yield document(row, row.value, "plain text")
            continue
        if not isinstance(row.value, dict):
            problem = Problem("not an object", shorten(row.value), "an object, with the fields of a row: { ... }")
            yield Checked(row.with_found([problem]), "", {})
            continue
        kind, unread, turns, changed = named_kind or classify(row.value, text_column), [], 0, []
        if kind == "document" and isinstance(row.value[text_column], str):
            yield document(row, row.value[text_column], f"keys {shorten(sorted(row.value))}")
            continue
        if kind == "preferences":
            media = media_problems(row.value)
            said, problems = ({}, media) if media else preference_of(row.value, columns)
            unread = [] if problems else preferences.unread_fields(row.value, columns)
            if "ranks" in said:
                kept, changed = beside_ranks(row)
                said |= kept
                unread = [field for field in unread if field not in kept]
        elif kind == "conversations":
            messages, problems = to_conversation(row.value, columns, roles)
            if (turns := count_reasoning(messages, problems)) and reasoning == "drop":
                messages, emptied = drop_reasoning(messages)
                problems = problems + emptied
            said = {"messages": messages}
            unread = conversation_formats.unread_fields(row.value, columns, roles)
        else:
            kind, said, problems = "", {}, [unknown_format(row.value, f"{EXPECTED}; {PREFERENCES}; {OTHER_NAMES}")]
        if refused and kind and all(problem.kind in REPAIRABLE for problem in problems):
            problems = problems + refused(conversations_of(said)[0])
        identifier, row = identify(row.with_found(problems), (columns or {}).get("id", "id"))
        record = {"id": identifier, "source": row.path, "row": row.number, **said}
        yield Checked(row, kind, record, tuple(unread), turns, tuple(changed))


def beside_ranks(row: Row) -> tuple[dict, list[tuple[str, str]]]:
    """The fields in `KEPT` of a row with a ranking, and what was changed in them, as (how, field).

    Parquet and the Hub, which have no lines, have dates and NaN too.
    """
    kept = {field: row.value[field] for field in KEPT if field in row.value}
    if row.line is not None:
        return kept, []
    ways: dict[str, set[str]] = {field: set() for field in kept}
    kept = {field: json_value(value, ways[field]) for field, value in kept.items()}
    return kept, [(way, field) for field, own in ways.items() for way in sorted(own)]


def document(row: Row, text: str, found: str) -> Checked:
    """A row of text for pretraining. That it is one is a warning: no recipe that makes an assistant reads it."""
    problems = [Problem(DOCUMENT, found, f"{KINDS_TO_TRAIN_ON}; documents are read by {CORPUS_COMMANDS}")]
    if not text.strip():
        problems = [Problem(EMPTY_DOCUMENT, shorten(text), f"text: {CORPUS_COMMANDS} leave it out")]
    problems += text_problem(text, "", "text") if text.strip() else []
    identifier, row = identify(row.with_found(problems))
    return Checked(row, "documents", {"id": identifier, "source": row.path, "row": row.number, "text": text})


def treatment(problems: list[Problem], on_bad: str, warnings: Iterable[str] = WARNINGS) -> str:
    """What happens to a row: "" (kept as it is), "repaired", "quarantined" or "error".

    A human turn at the end is trimmed under every policy, as in the recipes; `warnings` are kinds that change nothing.
    """
    kinds = {problem.kind for problem in problems} - set(warnings)
    if kinds <= {TRAILING_HUMAN} or (on_bad == "repair" and kinds <= set(REPAIRABLE)):
        return "repaired" if kinds else ""
    return "error" if on_bad == "error" else "quarantined"


def is_kept(outcome: str) -> bool:
    return outcome in ("", "repaired")


def conversations_of(record: dict) -> list[list[dict]]:
    """The record as conversations: its messages, the prompt with each of its answers, or a document as the only turn."""
    if "text" in record:
        return [[{"role": "document", "content": record["text"]}]]
    if "messages" in record:
        return [record["messages"]]
    return [[*record["prompt"], {"role": "assistant", "content": answer}] for answer in record["completions"]]


def as_written(record: dict) -> dict:
    """The record in the schema that the readers take: a labelled answer under "completion", no empty "scores"."""
    written = {key: value for key, value in record.items() if value is not None}
    if tools := written.get("messages", [{}])[0].get("tools"):  # they belong to the row, as most files have it
        first, *others = written["messages"]
        written["messages"] = [{key: first[key] for key in first if key != "tools"}, *others]
        written["tools"] = tools
    if "label" in written:
        (written["completion"],) = written.pop("completions")
    return written


def content(record: dict) -> str:
    """The text of a record, to compare it and detect its language; without the system turn, which many may share."""
    if "text" in record:
        return record["text"]
    turns = record.get("messages", record.get("prompt", []))
    said = [
        "\n".join(filter(None, (message["content"], said_beside(message))))
        for message in turns
        if message["role"] != "system"
    ]
    return "\n".join([*said, *record.get("completions", [])])


def said_beside(message: dict) -> str:
    """An assistant's calls and reasoning, as text."""
    calls = message.get("tool_calls")
    said = [message.get("reasoning_content"), json.dumps(calls, ensure_ascii=False) if calls else None]
    return "\n".join(filter(None, said))


def warnings_of(record: dict, special_text: Callable[[list[dict]], list[str]]) -> list[Problem]:
    """What is strange in the texts of a usable record: the first place of each kind.

    `special_text` finds control tokens that are typed in messages (see `Lengths`).
    """
    found: dict[str, Problem] = {}
    conversations = conversations_of(record)
    for number, messages in enumerate(conversations, start=1):
        of = f" of completion {number}" if len(conversations) > 1 else ""
        for turn, message in enumerate(messages, start=1):
            text, where = message["content"], f"turn {turn}{of}"
            if (
                message["role"] == "assistant"
                and turn > 1
                and text
                and text.strip() == messages[turn - 2]["content"].strip()
            ):
                found.setdefault(ECHO, Problem(ECHO, f"{shorten(text)} at {where} and before it", "an answer"))
            if strange := CONTROL_CHARACTERS.search(text):
                place = f"U+{ord(strange[0]):04X} at {where}, character {strange.start() + 1:,}"
                found.setdefault(CONTROL, Problem(CONTROL, place, "letters: check the encoding of the original file"))
            if typed := special_text([message]):
                expected = "text: it is encoded as its letters, not as the control token"
                found.setdefault(SPECIAL, Problem(SPECIAL, f"{shorten(typed[0])} at {where}", expected))
    if "ranks" in record and not pairs(record["ranks"]):
        found[TIED] = Problem(TIED, f"the ranks {shorten(record['ranks'])}", "one completion better than another")
    return list(found.values())


def usual_special_text(messages: list[dict]) -> list[str]:
    """Control tokens of common model families that are typed in the messages."""
    return [token for message in messages for token in SPECIAL_TOKENS.findall(message["content"])]


class Lengths:
    """Measures records, in tokens if there is a tokenizer, otherwise in characters.

    `finds_answers`: whether the chat template tells the assistant's turns apart; if not, all tokens count as learned.
    """

    def __init__(self, tokenizer: str | None, max_length: int | None, reasoning: str = "keep") -> None:
        """Raises InputError if the folder `tokenizer` holds no tokenizer with a chat template."""
        self.max_length, self.encoder, self.roles = max_length, None, ALL_ROLES
        self.special_text, self.refused, self.finds_answers = usual_special_text, None, True
        if tokenizer is None:
            if max_length is not None:
                raise InputError("--max_length is in tokens: give the tokenizer too (--tokenizer)")
            return
        if max_length is not None and max_length < 1:
            raise InputError(f"--max_length {max_length}: expected 1 or more")
        existing(tokenizer, "python -m data_prep.train_tokenizer")
        from tokenizers import Tokenizer

        from data_prep.models.loading import load_tokenizer  # slow to import
        from data_prep.tokens.chat_encoder import ChatEncoder, Unmarked
        from data_prep.tokens.template_problems import Renderer, template_roles

        loaded = load_tokenizer(tokenizer)
        if loaded.chat_template is None:
            raise InputError(f"{tokenizer}: found no chat template; put a chat_template.jinja into the folder")
        self.roles = template_roles(loaded)
        try:
            self.encoder = ChatEncoder(loaded, reasoning=reasoning)
        except Unmarked as error:
            if reasoning == "mask":
                raise InputError(f"--reasoning mask: {str(error).partition(';')[0]}; expected these marks") from None
            self.encoder, self.finds_answers = ChatEncoder(loaded, assistant_only=False), False
        self.special_text, self.refused = self.encoder.special_text, Renderer(self.encoder, self.roles)
        self._corpus_tokenizer = Tokenizer.from_str(loaded.backend_tokenizer.to_str())
        self._corpus_tokenizer.no_truncation()
        self._corpus_tokenizer.encode_special_tokens = True  # as ordinary characters

    def measure_all(self, records: list[dict]) -> list[Size]:
        """The sizes of records. A document has as many tokens as in a corpus, with the end of text, and all are learned."""
        others = iter(self.measure([record for record in records if "text" not in record]))
        return [self._measure_text(each["text"]) if "text" in each else next(others) for each in records]

    def _measure_text(self, text: str) -> Size:
        if self.encoder is None:
            return Size(len(text))
        tokens = len(self._corpus_tokenizer.encode(text, add_special_tokens=False).ids) + 1
        return Size(tokens, tokens, tokens)

    def measure(self, records: list[dict]) -> list[Size]:
        """The sizes of records. A preference counts every answer with its prompt, and is as long as the longest.

        Beyond the context the recipes truncate a conversation, and leave out a preference.
        """
        conversations = [conversations_of(record) for record in records]
        if self.encoder is None:
            return [
                Size(max(sum(len(turn["content"]) + len(said_beside(turn)) for turn in each) for each in several))
                for several in conversations
            ]
        rendered = self.encoder.render([each for several in conversations for each in several])
        encoded, texts = iter(self.encoder.encode(rendered)), iter(rendered)
        prompts = [] if self.finds_answers else self._prompts([several[0] for several in conversations])
        sizes = []
        for index, (record, several) in enumerate(zip(records, conversations, strict=True)):
            masks = [next(encoded).mask for _ in several]
            lost = sum(next(texts).lost for _ in several)
            longest, prompt = max(map(len, masks)), prompts[index] if prompts else tokens_before_answer(masks[0])
            if "messages" not in record and over_long(record, longest, self.max_length):
                left_out = sum(map(len, masks))
                sizes.append(Size(longest, left_out, left_out=left_out, prompt=prompt, lost=lost))
                continue
            kept = [mask[: self.max_length] for mask in masks]
            total, seen, learned = sum(map(len, masks)), sum(map(len, kept)), sum(int(mask.sum()) for mask in kept)
            sizes.append(Size(longest, total, learned, seen - learned, total - seen, prompt=prompt, lost=lost))
        return sizes

    def _prompts(self, conversations: list[list[dict]]) -> list[int]:
        """The tokens of each conversation before its last turn, which is the assistant's."""
        rendered = self.encoder.render([each[:-1] for each in conversations], add_generation_prompt=True)
        return [len(each.ids) for each in self.encoder.encode(rendered)]


def tokens_before_answer(mask: np.ndarray) -> int:
    """How many tokens stand before the last run of those that enter the loss: (tokens,) bool."""
    learned = np.flatnonzero(mask)
    if not len(learned):
        return len(mask)
    gaps = np.flatnonzero(np.diff(learned) > 1)
    return int(learned[gaps[-1] + 1] if len(gaps) else learned[0])


def over_long(record: dict, length: int, max_length: int | None) -> list[Problem]:
    """The problem of a record of more than `max_length` tokens; none if there is no limit."""
    if max_length is None or length <= max_length:
        return []
    if "messages" in record:
        expected = f"at most {max_length:,}, or the rest is truncated"
        return [Problem(LONG, counted(length, "token"), expected)]
    expected = f"at most {max_length:,}, or it is left out (recipes/reward.py, dpo.py, kto.py)"
    return [Problem(LONG_ANSWER, f"{counted(length, 'token')} with the prompt", expected)]
