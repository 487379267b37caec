"""A row of a file as it was read, and what can be wrong with it."""

from typing import NamedTuple

TRAILING_COMMA = "trailing comma"


class Problem(NamedTuple):
    """One thing wrong with a row: its kind, a short fixed phrase; what was found and where; and what was expected."""

    kind: str
    found: str
    expected: str


BYTE_ORDER_MARK = "byte order mark"
NOT_UTF8, NOT_UNICODE = "not UTF-8", "not Unicode"
NOT_FINITE, FINITE = "NaN or Infinity", "a number or null: JSON has no other"
ON_A_SCALE = "a label on a scale"  # no row is used beside one: their labels are numbers of the scale, too
REPAIRED_BY_READING = (TRAILING_COMMA, BYTE_ORDER_MARK)  # the row has the value of the repaired text


class Row(NamedTuple):
    """A row of a file as it was read."""

    path: str  # the file, or "owner/name/config/split" of the Hub
    number: int  # of the row in the file, from 1
    line: int | None  # where the row begins, from 1; None for Parquet and the Hub
    raw: str  # its text, unchanged (for Parquet and the Hub: as JSON); bytes that are not UTF-8 as surrogateescape; of a
    # row that is too long only the beginning
    value: object  # the parsed row; None if it cannot be parsed
    problems: list[Problem]  # found in reading, and added since

    def with_found(self, problems: list[Problem]) -> "Row":
        """The row with the problems of its content added. If reading found a byte that is not UTF-8, the half surrogate
        pair that stands for this byte is not another problem."""
        if not problems:
            return self
        named = any(problem.kind == NOT_UTF8 for problem in self.problems)
        added = [problem for problem in problems if not (named and problem.kind == NOT_UNICODE)]
        return self._replace(problems=[*self.problems, *added])


def not_utf8(text: str) -> int | None:
    """The index of the first half surrogate pair in `text`, which UTF-8 cannot encode; None if there is none."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        return error.start
    return None
