"""The user's files as documents, conversations and preferences; what is made of them where a kind is missing."""

from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

from data_prep.checking.rows import usual_special_text
from data_prep.common.disjoint import check_disjoint
from data_prep.common.errors import InputError
from data_prep.common.files import read_jsonl, write_jsonl
from data_prep.common.text import counted
from data_prep.readers.answered import all_prompts, answered_prompts, prompts_in
from data_prep.readers.documents import documents, read_documents, reading_counts
from data_prep.readers.kinds import classify
from data_prep.readers.labels import read_labels
from data_prep.readers.preferences import read_rankings
from data_prep.rows.bad_rows import BadRows
from data_prep.rows.read import is_text, read_rows

SHOWN = 5  # control tokens
PIECES = 200  # a corpus of fewer documents is cut into about so many
ENDS = ("\n", "。", ". ")


def is_corpus(file: str, text_column: str) -> bool:
    """Whether a file holds documents alone: plain text, or rows of which all that can be read are documents.

    It is read up to the first row that is none. As a corpus such a row would be text, or quarantined for having none.
    """
    if is_text(file):
        return True
    kinds = (classify(row.value, text_column) for row in read_rows(file) if row.value is not None)
    return next(kinds, "") == "document" and all(kind == "document" for kind in kinds)


def pieces(texts: Iterable[str], most: int) -> Iterator[str]:
    """The texts; one of more than 1.5 × `most` characters in parts of about `most`, cut after a line or a sentence."""
    for text in texts:
        start = 0
        while len(text) - start > 1.5 * most:
            found = [place + len(end) for end in ENDS if (place := text.find(end, start + most)) >= 0]
            if not found:
                break
            yield text[start : min(found)]
            start = min(found)
        if text[start:].strip():
            yield text[start:]


def write_documents(checked: Path | None, files: list[str], path: Path, on_bad: str, text_column: str) -> list[str]:
    """Write the documents of a corpus to `path` as {"text"}; returns what is to be said of them, a line each.

    Args:
        checked: those that stood among other rows, as data_prep.check writes them.
        files: those of documents alone, with their text under `text_column`.
    """
    policy = "quarantine" if on_bad == "repair" else on_bad  # as the doctor does: what cannot be repaired is set aside
    bad_rows, counts = BadRows(policy, path.with_name("documents_quarantine.jsonl")), Counter()
    parts = [([str(checked)], "text")] if checked else []
    parts += [(files, text_column)] if files else []
    typed: Counter = Counter()  # {control token: documents of `files`}; of the others the doctor says it

    def read() -> Iterator[dict]:
        for part, column in parts:
            for document in documents(part, column, bad_rows, counts):
                if part is files:
                    typed.update(dict.fromkeys(usual_special_text([{"content": document.text}]), 1))
                yield {"text": document.text}

    write_jsonl(path, read())
    lines, number = reading_counts(bad_rows, counts), counts["documents"]
    lines += [
        f"{counted(found, 'document')} with {token!r} in the text: it is encoded as its letters, not as the control token"
        for token, found in typed.most_common(SHOWN)
    ]
    lines.append(f"{counted(number, 'document')} in {counted(len(files) + bool(checked), 'file')}")
    if number < PIECES:
        texts = [row["text"] for row in read_jsonl(path)]
        most = max(500, sum(map(len, texts)) // PIECES)
        cut = write_jsonl(path, ({"text": text} for text in pieces(texts, most)))
        if cut > number:
            lines[-1] += (
                f", cut after lines or sentences into {cut:,} of about {most:,} characters, so that a part can be held out"
            )
    return lines


def write_sample(files: list[str], path: Path, size: int, most: int) -> list[str]:
    """`files`, if their text of `size` bytes is at most `most`; else one file with an even sample of its documents."""
    if size <= most:
        return files
    every = -(-size // most)
    rows = ({"text": text} for number, text in enumerate(read_documents(files)) if number % every == 0)
    write_jsonl(path, rows)
    return [str(path)]


def write_demonstrations(preferences: Path, path: Path, without: set[str]) -> int:
    """Write the best answer to each prompt of preferences as a conversation; see `write_answers`."""
    rankings, _ = read_rankings(preferences, on_bad="repair")
    best = ((row["prompt"], row["completions"][row["ranks"].index(min(row["ranks"]))]) for row in rankings)
    return write_answers(best, path, without)


def write_good_answers(preferences: Path, path: Path, without: set[str]) -> int:
    """Write each answer labelled good as a conversation; see `write_answers`."""
    answers, _ = read_labels(preferences)
    good = ((row["prompt"], row["completion"]) for row in answers if row["label"])
    return write_answers(good, path, without)


def write_answers(answers: Iterable[tuple[list[dict], str]], path: Path, without: set[str]) -> int:
    """Write answers as conversations, except those with a prompt of `without` in any turn; returns how many these are.

    A prompt of several turns holds answers to its beginnings, which fine-tuning learns too.
    """
    rows = [{"messages": [*prompt, {"role": "assistant", "content": text}]} for prompt, text in answers]
    kept = [row for row in rows if without.isdisjoint(answered_prompts(row))]
    return len(rows) - write_jsonl(path, kept)


def count_shared(trained: Path, heldout: Path) -> int:
    """How many rows of `trained` answer a prompt that a row of `heldout` answers."""
    asked = all_prompts(heldout)
    return sum(not asked.isdisjoint(prompts) for prompts in prompts_in(trained))


def check_apart(trained: Path, heldout: Path) -> None:
    """Raise InputError if a prompt that a row of `heldout` answers is answered in `trained`, which is of another kind."""
    keys = ((key for prompts in prompts_in(path) for key in prompts) for path in (trained, heldout))
    check_disjoint(*keys, [str(heldout)])


def are_ranked(preferences: Path, least: int) -> bool:
    """Whether preferences make `least` rankings, or hold no answer labelled good or bad that could take their place."""
    try:
        rankings = len(read_rankings(preferences, on_bad="repair")[0])
    except InputError:  # none
        rankings = 0
    return rankings >= least or not read_labels(preferences)[1]


def count_labels(preferences: Path) -> tuple[int, int]:
    """(good, bad) answers of preferences, as recipes/kto.py reads them."""
    answers, _ = read_labels(preferences)
    good = sum(row["label"] for row in answers)
    return good, len(answers) - good
