"""The one reader for conversations.

Any format that conversation_formats.py lists, in any file that rows/read.py reads, becomes rows
`{"id", "source", "row", "messages": [{"role", "content"}, ...]}`. A conversation may begin with one system turn. After it
user and assistant alternate, the user first; an assistant who calls tools goes on after their results.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from tqdm.auto import tqdm

from data_prep.common.arrow_dataset import write_dataset
from data_prep.common.batches import batched
from data_prep.common.reasoning import reasoning_of, without_reasoning
from data_prep.common.text import counted
from data_prep.readers.columns import parse_columns
from data_prep.readers.conversation_formats import (
    FIELDS,
    PLAIN_ROLES,
    REPAIRABLE,
    TRAILING_HUMAN,
    to_conversation,
    unread_fields,
)
from data_prep.readers.unread import Tally
from data_prep.rows.bad_rows import BadRows
from data_prep.rows.problems import REPAIRED_BY_READING, Problem, Row
from data_prep.rows.read import data_files, identify, names_of, rows_of

WRITTEN_AT_ONCE = 1000  # rows


def conversation_rows(
    files: Iterable[str],
    bad_rows: BadRows,
    columns: dict[str, str] | str | None = None,
    roles: Iterable[str] = PLAIN_ROLES,
    tally: Tally | None = None,
    refused: Callable[[list[dict]], list[Problem]] | None = None,
) -> Iterator[dict]:
    """The usable rows of `files` (see `data_files`), one at a time; the others go to `bad_rows`.

    Texts are not changed. A row without an id gets "<file name>:<row number>". A human turn at the end has no answer to
    learn from: it is trimmed under every policy, and counted in `bad_rows.repaired`.

    Args:
        columns: {field: column}, or "field=column,..."; None: recognise the format of each row.
        roles: what the chat template supports (see `to_conversation`); turns of other roles are problems.
        tally: says whether reasoning is dropped, and gets the counts of what the rows hold beside their texts.
        refused: what keeps a chat template from writing messages (see `data_prep.tokens.template_problems`).
    """
    columns, roles, tally = parse_columns(columns, FIELDS), tuple(roles), tally or Tally()
    for row in rows_of(files):
        if conversation := accepted_conversation(row, bad_rows, columns, roles, tally, refused):
            yield conversation


def accepted_conversation(
    row: Row,
    bad_rows: BadRows,
    columns: dict[str, str] | None,
    roles: tuple[str, ...],
    tally: Tally,
    refused: Callable[[list[dict]], list[Problem]] | None = None,
) -> dict | None:
    """The conversation in a row, or None if `bad_rows` does not accept it."""
    messages, turns = [], 0
    if row.value is not None or not row.problems:
        messages, found = to_conversation(row.value, columns, roles)
        turns = count_reasoning(messages, found)
        if turns and tally.reasoning == "drop":
            messages, emptied = drop_reasoning(messages)
            found = found + emptied
        if refused and all(problem.kind in REPAIRABLE for problem in found):
            found = found + refused(messages)
        row = row.with_found(found)
    identifier, row = identify(row, (columns or {}).get("id", "id"))
    problems = [problem for problem in row.problems if problem.kind != TRAILING_HUMAN]
    if not bad_rows.accept(row._replace(problems=problems), (*REPAIRED_BY_READING, *REPAIRABLE)):
        return None
    bad_rows.repaired[TRAILING_HUMAN] += len(row.problems) - len(problems)
    tally.turns += turns
    tally.fields.update(unread_fields(row.value, columns, roles))
    return {"id": identifier, "source": row.path, "row": row.number, "messages": messages}


def count_reasoning(messages: list[dict], problems: list[Problem]) -> int:
    """How many turns of a usable conversation hold reasoning; 0 if it is not usable."""
    if any(problem.kind not in REPAIRABLE for problem in problems):
        return 0
    return sum(bool(reasoning_of(message)) for message in messages)


def drop_reasoning(messages: list[dict]) -> tuple[list[dict], list[Problem]]:
    """The messages without reasoning, and the problems of turns that were nothing else."""
    left = [without_reasoning(message) for message in messages]
    problems = [
        Problem("turn of reasoning alone", f"no text after it at turn {number}", "an answer after the reasoning")
        for number, message in enumerate(left, start=1)
        if not message["content"].strip() and not message.get("tool_calls")
    ]
    return left, problems


def read_conversations(
    paths: str | Path | Iterable[str | Path],
    on_bad: str = "error",
    quarantine: str | Path | None = None,
    columns: dict[str, str] | str | None = None,
) -> tuple[list[dict], Counter]:
    """All conversations of files, folders, globs or datasets on the Hub, and {kind of problem: rows repaired}.

    Args:
        on_bad: what to do with bad rows: error, repair or quarantine (see `data_prep.rows.bad_rows`).
        quarantine: the JSONL file that `on_bad="quarantine"` writes bad rows to.
        columns: see `conversation_rows`.

    Raises one `InputError` for all bad rows of all files, and one if no row is left.
    """
    bad_rows, files = BadRows(on_bad, quarantine), data_files(paths)
    rows = list(conversation_rows(files, bad_rows, columns))
    bad_rows.close()
    if not rows:
        raise bad_rows.nothing_left(names_of(files), "conversation")
    return rows, +bad_rows.repaired


def load_conversations(
    paths: str | Path | Iterable[str | Path],
    on_bad: str = "error",
    quarantine: str | Path | None = None,
    columns: dict[str, str] | str | None = None,
):
    """The conversations as a `datasets.Dataset` with the columns id, source, row and messages; prints the counts.

    They are in a file on disk (see `write_dataset`), so the memory used does not grow with their number. Takes the
    arguments of `read_conversations`, and raises the same errors.
    """
    import pyarrow  # slow to import, and not needed by the readers

    bad_rows, files, tally = BadRows(on_bad, quarantine), data_files(paths), Tally()
    schema = pyarrow.schema(conversation_fields())
    read = conversation_rows(files, bad_rows, columns, tally=tally)
    rows = tqdm(read, desc="reading", unit=" conversations", mininterval=1, disable=None)
    batches = (pyarrow.RecordBatch.from_pylist(batch, schema) for batch in batched(rows, WRITTEN_AT_ONCE))
    dataset = write_dataset(schema, batches)
    close_and_report(bad_rows, files, tally)
    return dataset


def message_type():
    """The type of a message in a dataset on disk."""
    import pyarrow

    return pyarrow.struct([("role", pyarrow.string()), ("content", pyarrow.string())])


def conversation_fields() -> list:
    """The columns of a dataset of conversations, for `pyarrow.schema`."""
    import pyarrow

    text, integer = pyarrow.string(), pyarrow.int64()
    return [("id", text), ("source", text), ("row", integer), ("messages", pyarrow.list_(message_type()))]


def close_and_report(bad_rows: BadRows, files: list[str], tally: Tally, noun: str = "conversation") -> None:
    """Close `bad_rows` and print its counts and those of `tally`. Raises InputError for bad rows, and if no row is left."""
    bad_rows.close()
    names = names_of(files)
    line = f"{names}: {counted(bad_rows.rows_out, noun)}"
    repaired = Counter(bad_rows.repaired)
    if trimmed := repaired.pop(TRAILING_HUMAN, 0):
        line += f", {counted(trimmed, 'trailing human turn')} trimmed"
    if repaired := +repaired:
        line += ", repaired: " + ", ".join(f"{count:,} × {kind}" for kind, count in repaired.most_common())
    if bad_rows.on_bad == "quarantine":
        line += f"; {bad_rows.counts_line()}"
    print(line)
    for line in tally.lines():
        print(line)
    if not bad_rows.rows_out:
        raise bad_rows.nothing_left(names, noun)
