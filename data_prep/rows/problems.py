"""A row of a file as it was found, and the things that can be wrong with it."""

from typing import NamedTuple

TRAILING_COMMA = "trailing comma"


class Problem(NamedTuple):
    """One thing wrong with a row: a short fixed phrase, what was found and where, and what was expected."""

    kind: str
    found: str
    expected: str


BYTE_ORDER_MARK = "byte order mark"
NOT_UTF8, NOT_UNICODE = "not UTF-8", "not Unicode"
REPAIRED_BY_READING = (TRAILING_COMMA, BYTE_ORDER_MARK)  # the value is what the repaired text says


class Row(NamedTuple):
    """A row of a file as it was found."""

    path: str  # the file, or "owner/name/config/split" of the Hub
    number: int  # the row in it, from 1
    line: int | None  # the line on which it begins, from 1; None for Parquet and the Hub
    raw: str  # its untouched text (of Parquet and the Hub: its JSON); bytes that are no UTF-8 as surrogateescape
    value: object  # what was parsed; None where it could not be
    problems: list[Problem]  # what reading it found, and what was added since

    def with_found(self, problems: list[Problem]) -> "Row":
        """The row with what its content has wrong. A byte that is no UTF-8, named by reading, is not named again as the
        half surrogate pair that stands for it."""
        if not problems:
            return self
        named = any(problem.kind == NOT_UTF8 for problem in self.problems)
        added = [problem for problem in problems if not (named and problem.kind == NOT_UNICODE)]
        return self._replace(problems=[*self.problems, *added])


def not_utf8(text: str) -> int | None:
    """Where `text` holds half a surrogate pair, which UTF-8 cannot write; None: nowhere."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        return error.start
    return None
