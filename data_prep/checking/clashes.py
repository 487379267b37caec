"""Rows that contradict each other: an id on two different rows, a > b beside b > a, and labels without a counterpart.

All are found in one reading, by 8-byte hashes: 20 bytes for a row with an id, 13 for each pair of answers of unequal rank,
26 for a labelled answer; then 12 for each row. What is found is named at the later row, with the place of the earlier one.
"""

import hashlib
from collections.abc import Iterator

import numpy as np

from data_prep.checking.report import place_of
from data_prep.checking.rows import ONE_LABEL, OPPOSED, SAME_ID, Checked
from data_prep.common.text import shorten
from data_prep.readers.preferences import prompt_key
from data_prep.readers.ranks import pairs
from data_prep.rows.problems import Problem

ID = np.dtype([("key", "u8"), ("content", "u8"), ("position", "u4")])  # key: of file and id
NONE = np.uint32(2**32 - 1)
# key: of a prompt and two answers, of a prompt and one, or of a prompt
VOTE = np.dtype([("key", "u8"), ("way", "u1"), ("position", "u4")])


def _hash(*parts: str) -> int:
    text = "\0".join(parts).encode("utf-8", "surrogatepass")
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little")


class Clashes:
    """The hashes of all usable rows, in the order in which they are added."""

    def __init__(self, id_column: str = "id") -> None:
        self.id_column, self.rows = id_column, 0
        self._ids, self._votes, self._labels = bytearray(), bytearray(), bytearray()

    def add(self, checked: Checked) -> None:
        """Take note of a usable row; of a document nothing is compared."""
        record, position = checked.record, self.rows
        self.rows += 1
        if "text" in record:
            return
        # Answers to one prompt may share its id.
        said = prompt_key(record["messages"] if "messages" in record else record["prompt"])
        if checked.row.value.get(self.id_column) is not None:  # an id of its own
            key = _hash(checked.row.path, record["id"])
            self._ids += np.array([(key, _hash(said), position)], ID).tobytes()
        if "label" in record:
            (answer,) = record["completions"]
            for grown, parts in ((self._votes, (said, answer)), (self._labels, (said,))):
                grown += np.array([(_hash(*parts), record["label"], position)], VOTE).tobytes()
        elif "ranks" in record:
            texts = record["completions"]
            ordered = ((texts[better], texts[worse]) for better, worse in pairs(record["ranks"]))
            votes = [(_hash(said, *sorted(two)), two[0] < two[1], position) for two in ordered]
            self._votes += np.array(votes, VOTE).tobytes()

    def earlier(self) -> dict[str, np.ndarray]:
        """{kind of problem: for each row the position of the row it clashes with, or `NONE`}, (rows,) uint32.

        For a label without a counterpart that is the row itself.
        """
        found = {kind: np.full(self.rows, NONE, "u4") for kind in (SAME_ID, OPPOSED, ONE_LABEL)}
        ids = np.sort(np.frombuffer(self._ids, ID), order=["key", "position"])
        _, starts, sizes = np.unique(ids["key"], return_index=True, return_counts=True)
        first = ids[np.repeat(starts, sizes)]
        differs = ids["content"] != first["content"]
        found[SAME_ID][ids["position"][differs]] = first["position"][differs]

        votes = np.frombuffer(self._votes, VOTE)
        opposite = first_of_each_way(votes)[np.arange(len(votes)), 1 - votes["way"]]
        later = opposite < votes["position"]
        np.minimum.at(found[OPPOSED], votes["position"][later], opposite[later])

        # As the reader of rankings does: texts with both labels are out of it before labels are counted.
        labels = np.frombuffer(self._labels, VOTE)
        labels = labels[~np.isin(labels["position"], votes["position"][opposite != NONE])]
        alone = (first_of_each_way(labels) == NONE).any(axis=1)
        found[ONE_LABEL][labels["position"][alone]] = labels["position"][alone]
        return found


def first_of_each_way(votes: np.ndarray) -> np.ndarray:
    """For each vote the first positions of the votes with its key that go way 0 and way 1, or `NONE`: (votes, 2) uint32."""
    _, group = np.unique(votes["key"], return_inverse=True)
    first = np.full((len(votes), 2), NONE, "u4")  # a row for each group, of which there are no more than votes
    np.minimum.at(first, (group, votes["way"]), votes["position"])
    return first[group]


def problem_of(kind: str, record: dict, where: str) -> Problem:
    """The problem of a row; `where` is the place of the earlier row that it clashes with, "" if there is none."""
    if kind == SAME_ID:
        return Problem(kind, f"the id {shorten(record['id'])} of {where}, which is another row", "an id for each row")
    if kind == OPPOSED:
        said = f"the label {record['label']}" if "label" in record else "an order of two answers"
        return Problem(kind, f"{said}, and the opposite at {where}", "one judgement of the same answers to a prompt")
    expected = "answers of both labels to a prompt, or recipes/kto.py: reward.py and dpo.py leave this one out"
    return Problem(kind, f"{'good' if record['label'] else 'bad'} answers alone to this prompt", expected)


def with_clashes(rows: Iterator[tuple], earlier: dict[str, np.ndarray]) -> Iterator[tuple]:
    """The rows (see `data_prep.check.measured`); one that clashes gets a problem that says with which.

    Args:
        earlier: see `Clashes.earlier`; its positions are those among the usable rows.
    """
    places = {int(number): "" for kind in (SAME_ID, OPPOSED) for number in np.unique(earlier[kind]) if number != NONE}
    position = 0
    for checked, size in rows:
        if size:
            if position in places:
                places[position] = place_of(checked.row)
            found = [(kind, int(numbers[position])) for kind, numbers in earlier.items() if numbers[position] != NONE]
            checked = checked.with_found([problem_of(kind, checked.record, places.get(at, "")) for kind, at in found])
            position += 1
        yield checked, size
