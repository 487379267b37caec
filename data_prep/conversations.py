"""The one reader for conversations, and the checks a stage makes on them before it trains.

The Baichuan format (Baichuan2, fine-tune/data): a JSON list of
`{"id": str, "conversations": [{"from": "human" | "gpt" | "system", "value": str}, ...]}`; "user" and "assistant" are
accepted for "human" and "gpt". One system turn may open a conversation; after it human and gpt take turns, and the
human begins. TRL keeps "human" and "gpt" as roles, which no chat template knows: hence the mapping to roles here.
"""

from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from data_prep.files import InputError, read_json

ROLES = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "system": "system"}
SAME_SPEAKER = "two turns of the same speaker in a row"


class Problem(NamedTuple):
    """One thing wrong with a row."""

    kind: str
    found: str
    expected: str


class Defects:
    """What is wrong with the rows of the user's files, collected so that one run shows all of it."""

    SHOWN = 5  # rows shown per file; the counts by kind cover the others

    def __init__(self) -> None:
        # {file: {(row number, id): its problems}}
        self.files: dict[Path, dict[tuple[int, str | None], list[Problem]]] = {}

    def add(self, path: Path, number: int, identifier: str | None, problems: list[Problem]) -> None:
        """Note the problems of row `number`, counted from 1; an empty list notes nothing."""
        if problems:
            self.files.setdefault(path, {})[number, identifier] = problems

    def raise_if_any(self) -> None:
        """Raise one `InputError`: per file the count of every kind and its first rows, then what to do."""
        if not self.files:
            return
        lines = []
        for path, rows in self.files.items():
            kinds = Counter(problem.kind for problems in rows.values() for problem in problems)
            listed = ", ".join(f"{count:,} × {kind}" for kind, count in kinds.most_common())
            lines.append(f"{path}: {counted(len(rows), 'row')} cannot be used: {listed}")
            for (number, identifier), problems in list(rows.items())[: self.SHOWN]:
                name = f"row {number}" + (f" (id {identifier!r})" if identifier is not None else "")
                lines += [f"  {name}: found {problem.found}; expected {problem.expected}" for problem in problems]
            if len(rows) > self.SHOWN:
                lines.append(f"  and {counted(len(rows) - self.SHOWN, 'row')} more")
        if any(
            problem.kind == SAME_SPEAKER for rows in self.files.values() for row in rows.values() for problem in row
        ):
            lines.append("Two turns of one speaker in a row are merged into one, and counted, with on_bad: repair.")
        lines.append("Mend these rows or take them out, then run the same command again.")
        raise InputError("\n".join(lines))


def counted(number: int, noun: str) -> str:
    """`number` with its noun: "1 row", "2,000 rows"."""
    return f"{number:,} {noun}" + ("" if number == 1 else "s")


def shorten(value) -> str:
    """A value as Python writes it, cut to 60 characters for a message."""
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def as_paths(paths: str | Path | Iterable[str | Path]) -> list[Path]:
    """One path or several as a list; `InputError` where there is none."""
    listed = [Path(paths)] if isinstance(paths, str | Path) else [Path(path) for path in paths]
    if not listed:
        raise InputError("no data file given: name at least one")
    return listed


def read_list(path: Path) -> list:
    """The rows of a JSON list; `InputError` where the file holds something else or nothing."""
    rows = read_json(path)
    if not isinstance(rows, list):
        raise InputError(f"{path}: found {type(rows).__name__} at the top; expected a list of rows: [ ... ]")
    if not rows:
        raise InputError(f"{path}: found an empty list; expected at least one row")
    return rows


def text_problem(text, kind: str, where: str) -> list[Problem]:
    """Nothing for a text that holds more than blanks; otherwise the problem, of `kind`, found at `where`."""
    if not isinstance(text, str) or not text.strip():
        return [Problem(kind, f"{shorten(text)} at {where}", "a string with more than blanks in it")]
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:  # JSON may hold half a surrogate pair, which no tokenizer takes
        found = f"{text[error.start]!r} (half a surrogate pair) at {where}, character {error.start + 1}"
        return [Problem("not Unicode", found, "whole characters")]
    return []


def to_messages(turns: list) -> tuple[list[dict], list[Problem]]:
    """Turns `{"from", "value"}` as messages `{"role", "content"}`, and what is wrong with them.

    The order of the turns is judged only where every turn by itself is sound.
    """
    messages, problems = [], []
    for number, turn in enumerate(turns, start=1):
        where = f"turn {number}"
        if not isinstance(turn, dict):
            problems.append(Problem("turn is not an object", f"{shorten(turn)} at {where}", "{'from', 'value'}"))
            continue
        speaker, text = turn.get("from"), turn.get("value")
        if not isinstance(speaker, str) or speaker not in ROLES:
            expected = "human, gpt (or user, assistant) or system"
            problems.append(Problem("unknown role", f"{shorten(speaker)} under 'from' at {where}", expected))
        else:
            messages.append({"role": ROLES[speaker], "content": text})
        problems += text_problem(text, "empty turn", where)
    return messages, problems or order_problems(messages)


def order_problems(messages: list[dict]) -> list[Problem]:
    """What is wrong with the order of the speakers: system (once, if at all), user, assistant, user, ..."""
    roles = [message["role"] for message in messages]
    problems = []
    for index, role in enumerate(roles):
        where = f"turn {index + 1}"
        if role == "system" and index > 0:
            expected = "a system turn only at the start"
            problems.append(Problem("system turn not at the start", f"system at {where}", expected))
        elif role == "assistant" and (index == 0 or roles[:index] == ["system"]):
            problems.append(Problem("first turn not human", f"gpt at {where}", "human"))
        elif index > 0 and role == roles[index - 1]:
            found, expected = ("human", "gpt") if role == "user" else ("gpt", "human")
            problem = Problem(SAME_SPEAKER, f"{found} at {where} after {found}", expected)
            problems.append(problem)
    return problems


def merge_same_speaker(messages: list[dict]) -> tuple[list[dict], int]:
    """Consecutive turns of one speaker as one turn, a line break between them; and how many were merged away."""
    merged: list[dict] = []
    for message in messages:
        if merged and merged[-1]["role"] == message["role"] != "system":
            merged[-1] = {"role": message["role"], "content": merged[-1]["content"] + "\n" + message["content"]}
        else:
            merged.append(message)
    return merged, len(messages) - len(merged)


def read_conversations(
    paths: str | Path | Iterable[str | Path], on_bad: str = "error"
) -> tuple[list[dict], dict[str, int]]:
    """Rows `{"id", "messages": [{"role", "content"}, ...]}` of files in the Baichuan format, and counts.

    The texts are left as they are. A row without an id gets "<file name>:<row number>". A human turn at the end has no
    answer to learn from: it is trimmed, and counted under "trailing human turn trimmed". With `on_bad="repair"` two
    turns of the same speaker in a row become one, counted under "turns merged"; nothing else is repaired.

    Raises one `InputError` that covers all defective rows of all files: not an object, no list 'conversations', an
    unknown role, an empty turn, no assistant turn, two turns of the same speaker in a row, first turn not human.
    """
    if on_bad not in ("error", "repair"):
        raise InputError(f"on_bad is {on_bad!r}; expected error or repair")
    rows, defects, trimmed, merged = [], Defects(), 0, 0
    for path in as_paths(paths):
        for number, row in enumerate(read_list(path), start=1):
            if not isinstance(row, dict):
                problem = Problem("not an object", shorten(row), "{'id', 'conversations': [...]}")
                defects.add(path, number, None, [problem])
                continue
            identifier = None if row.get("id") is None else str(row["id"])
            turns = row.get("conversations")
            if not isinstance(turns, list):
                found = f"keys {sorted(row)}" if "conversations" not in row else f"{shorten(turns)} under it"
                problem = Problem("no 'conversations' list", found, "'conversations': [{'from', 'value'}, ...]")
                defects.add(path, number, identifier, [problem])
                continue
            messages, problems = to_messages(turns)
            if on_bad == "repair" and {problem.kind for problem in problems} == {SAME_SPEAKER}:
                messages, count = merge_same_speaker(messages)
                merged, problems = merged + count, order_problems(messages)
            if not problems and all(message["role"] != "assistant" for message in messages):
                found = f"{counted(len(turns), 'turn')}, none of them gpt"
                problems = [Problem("no assistant turn", found, "at least one gpt turn")]
            defects.add(path, number, identifier, problems)
            if problems:
                continue
            if messages[-1]["role"] == "user":
                messages.pop()
                trimmed += 1
            rows.append({"id": f"{path.name}:{number}" if identifier is None else identifier, "messages": messages})
    defects.raise_if_any()
    return rows, {"conversations": len(rows), "trailing human turn trimmed": trimmed, "turns merged": merged}


def load_conversations(paths: str | Path | Iterable[str | Path], on_bad: str = "error"):
    """The conversations as a `datasets.Dataset` with columns id and messages; prints how many and what was trimmed.

    Raises what `read_conversations` raises.
    """
    from datasets import Dataset  # slow to import, and the readers do without it

    listed = as_paths(paths)
    rows, counts = read_conversations(listed, on_bad)
    line = counted(counts["conversations"], "conversation")
    if trimmed := counts["trailing human turn trimmed"]:
        line += f", {counted(trimmed, 'trailing human turn')} trimmed"
    if merged := counts["turns merged"]:
        line += f", {counted(merged, 'turn')} merged into the one before by the same speaker"
    print(f"{', '.join(path.name for path in listed)}: {line}")
    return Dataset.from_list(rows)


def check_context(tokenizer, config, max_length: int) -> None:
    """Raise `InputError` where conversations of `max_length` tokens do not fit the tokenizer and checkpoint at hand.

    Left alone, these end in an IndexError inside the embedding, or in a template error after the data is loaded.
    """
    name = getattr(tokenizer, "name_or_path", "") or "the tokenizer"
    if tokenizer.chat_template is None:
        raise InputError(
            f"{name}: found no chat template; expected one, to write conversations as tokens. "
            "Use a tokenizer made by data_prep.train_tokenizer or put a chat_template.jinja into its folder"
        )
    if len(tokenizer) > config.vocab_size:
        raise InputError(
            f"{name}: the tokenizer does not fit the checkpoint: it has {len(tokenizer):,} entries, the model "
            f"{config.vocab_size:,}. Give the tokenizer that the model was pretrained with"
        )
    positions = getattr(config, "max_position_embeddings", None)  # GPT2Config maps it to n_positions
    if positions is not None and max_length is not None and max_length > positions:
        raise InputError(
            f"max_length is {max_length:,}, but the model has {positions:,} positions: "
            f"set max_length to {positions:,} or less, or pretrain with a longer context"
        )


def count_over_long(dataset: Iterable[dict], tokenizer, max_length: int) -> tuple[int, int]:
    """(conversations longer than `max_length` tokens after the chat template, tokens beyond it in all of them)."""
    over_long = cut = 0
    for row in dataset:
        length = len(tokenizer.apply_chat_template(row["messages"], tokenize=True, return_dict=True)["input_ids"])
        over_long += length > max_length
        cut += max(0, length - max_length)
    return over_long, cut


def report_over_long(dataset: Iterable[dict], tokenizer, max_length: int) -> None:
    """Print how much of the conversations training will not see: TRL 1.12 cuts on the right without a word."""
    if max_length is None:
        return
    over_long, cut = count_over_long(dataset, tokenizer, max_length)
    if over_long:
        are = "conversation is" if over_long == 1 else "conversations are"
        print(
            f"{over_long:,} {are} longer than max_length={max_length:,} tokens: "
            f"training will not see the last {counted(cut, 'token')} of them"
        )
    else:
        print(f"no conversation is longer than max_length={max_length:,} tokens")
