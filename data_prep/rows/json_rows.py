"""Rows from JSON of any size: a list, one object per line, or objects one after another.

A broken row does not break its neighbours: it ends where its brackets close, or else where another object begins with the
same key.
"""

import json
import math
import re
from collections import Counter
from collections.abc import Callable, Iterator
from typing import NamedTuple

from data_prep.common.text import shorten
from data_prep.rows.problems import FINITE, NOT_FINITE, TRAILING_COMMA, Problem
from data_prep.rows.text_window import Window

LIMIT = 1 << 25  # characters of a row; a longer one cannot be used, and only its beginning is kept
KEPT = 1000  # characters of such a row
PATIENCE = 1 << 20  # characters to search for the end of a broken row before it ends at what looks like another row
BROKEN = "broken JSON"
TOO_LONG = f"row longer than {LIMIT:,} characters"
# Strings end with their line: in JSON they have no raw line break, and an open one must not swallow the file.
STRING = r'"(?:[^"\\\n]|\\[^\n])*+(?:"|(?=\n)|\\?\Z)'
BRACKETS = re.compile(rf"{STRING}|[\[\]{{}}]")
COMMAS = re.compile(rf"({STRING})|,(?=\s*(?:[\]}}]|\Z))")
FIRST_KEY = re.compile(r'[\s{\[]*("(?:[^"\\\n]|\\.)*+")\s*:')
WRAPPED = re.compile(r'\{[ \t\r\n]*"(?:data|rows)"[ \t\r\n]*:[ \t\r\n]*\[')
# What synthetic-data-kit writes: a summary of the document, the pairs, then the same as conversations and how many they are.
SUMMARIZED = re.compile(
    r'\{\s*(?:"summary"\s*:\s*"(?:[^"\\\n]|\\.)*+"\s*,\s*)?"(?:qa_pairs|cot_examples|filtered_pairs)"\s*:\s*\['
)
REPEATED = {"conversations", "metrics"}
CLOSES = {"]": "[", "}": "{"}
OUTSIDE, INSIDE = re.compile(r'["\[\]{}]'), re.compile(r'"|\n|\\[^\n]')  # of a string: what begins or ends something


class Parsed(NamedTuple):
    """A row of text: the line where it begins, the text, its value (None if it cannot be parsed), its problems."""

    line: int
    raw: str
    value: object
    problems: list[Problem]


class Decoder:
    """JSON to Python values; `notes` has what `json` accepts silently: duplicate keys, NaN and infinite numbers."""

    def __init__(self) -> None:
        self.notes: list[Problem] = []
        hooks = {"object_pairs_hook": self._object, "parse_constant": self._constant, "parse_float": self._float}
        self._decoder = json.JSONDecoder(**hooks)

    def _object(self, pairs: list[tuple[str, object]]) -> dict:
        value = dict(pairs)
        if len(value) != len(pairs):
            key, count = Counter(key for key, _ in pairs).most_common(1)[0]
            self.notes.append(Problem("duplicate key", f"{shorten(key)} {count} times", "each key once in an object"))
        return value

    def _constant(self, name: str) -> float:
        self.notes.append(Problem(NOT_FINITE, name, FINITE))
        return float(name)

    def _float(self, digits: str) -> float:
        number = float(digits)
        if math.isinf(number):  # 1e999: written again it would be Infinity
            self.notes.append(Problem(NOT_FINITE, shorten(digits), "a number below 1.8e308"))
        return number

    def at(self, text: str, position: int) -> tuple[object, int]:
        """The value that begins at `position`, and where it ends. Raises ValueError or RecursionError."""
        self.notes = []
        return self._decoder.raw_decode(text, position)

    def whole(self, text: str) -> object:
        """The value of the whole text, which may have blanks around it. Raises ValueError or RecursionError."""
        value, end = self.at(text, len(text) - len(text.lstrip(" \t\r\n")))
        if rest := text[end:].lstrip(" \t\r\n"):
            raise json.JSONDecodeError("Extra data", text, len(text) - len(rest))
        return value


def json_rows(window: Window, lines: bool) -> Iterator[Parsed]:
    """The rows of a JSON file of any shape. `lines`: its name says that it has one object per line."""
    first = window.skip_blanks()
    if not first:
        return
    while len(window.text) - window.position < 1 << 16 and window.more():
        pass  # enough to recognise the shape
    wrapper = WRAPPED.match(window.text, window.position) or SUMMARIZED.match(window.text, window.position)
    if first == "[" and not (lines and _line_is_whole(window)):
        window.move(window.position + 1)
        yield from _list_rows(window, closing="]")
    elif wrapper and not lines and not _line_is_whole(window, and_more=True):
        window.move(wrapper.end())
        yield from _list_rows(window, closing="]}")
    elif _line_is_whole(window, and_more=True) or (lines and not _spans_lines(window)):
        yield from _line_rows(window)
    elif first == "{":
        yield from _list_rows(window, closing="")
    else:
        found = f"{shorten(window.text[window.position :])} at {window.place(window.position)}"
        yield from rest(window, Problem(BROKEN, found, "a list of rows: [ ... ], or one object per line: { ... }"))


def _line_is_whole(window: Window, and_more: bool = False) -> bool:
    """Whether the line at `position` is valid JSON by itself and, with `and_more`, another line follows."""
    while (end := window.text.find("\n", window.position)) < 0 and len(window.text) < LIMIT and window.more():
        pass
    line = window.text[window.position : end if end >= 0 else None]
    if and_more and (end < 0 or not window.text[end:].strip()):
        return False
    try:
        Decoder().whole(line)
    except (ValueError, RecursionError):
        return False
    return True


def _spans_lines(window: Window) -> bool:
    """Whether the value at `position` is valid JSON that ends on a later line: objects that are indented."""
    while True:
        try:
            _, end = Decoder().at(window.text, window.position)
            return "\n" in window.text[window.position : end]
        except (ValueError, RecursionError):
            if len(window.text) - window.position > PATIENCE or not window.more():
                return False


def _line_rows(window: Window) -> Iterator[Parsed]:
    """One row per line; blank lines are skipped."""
    decoder = Decoder()
    while window.skip_blanks():
        while (end := window.text.find("\n", window.position)) < 0:
            if len(window.text) - window.position > LIMIT or not window.more():
                end = len(window.text)
                break
        if end - window.position > LIMIT:
            yield too_long(window, window.skip_line)
            continue
        line, raw = window.line, window.text[window.position : end].rstrip(" \t\r")
        try:
            value, problems = decoder.whole(raw), decoder.notes
        except (ValueError, RecursionError) as error:
            value, problems = _without_trailing_commas(decoder, raw, window) or (None, [_broken(window, error)])
        window.move(end)
        yield Parsed(line, raw, value, problems)


def _list_rows(window: Window, closing: str) -> Iterator[Parsed]:
    """The elements up to `closing`, "]" or "]}"; "": objects one after another up to the end of the file."""
    decoder, missing, broken_off, key = Decoder(), False, False, None
    while (char := window.skip_blanks()) and not (closing and char == "]"):
        if char == ",":
            problem = Problem(
                BROKEN, f"a comma without a row, {window.place(window.position)}", "a row before a comma"
            )
            parsed = Parsed(window.line, "", None, [problem])
        else:
            parsed = _element(window, decoder, key)
            if isinstance(parsed.value, dict) and not parsed.problems:
                found = FIRST_KEY.match(parsed.raw)
                key = found[1] if found else None
        problems = parsed.problems
        if missing:
            found = f"no comma before the row on line {parsed.line:,}"
            problems = [Problem(BROKEN, found, "a comma between two rows"), *problems]
        after = window.skip_blanks()
        missing = bool(closing) and after not in (",", "]", "")
        if after == ",":
            place = window.place(window.position)
            window.move(window.position + 1)
            if not closing or window.skip_blanks() in ("]", ""):
                problems = [*problems, _comma_problem(place)]
        broken_off = parsed.value is None and not after
        yield parsed._replace(problems=problems)
    if not closing or broken_off:
        return
    for bracket in closing:
        char = window.skip_blanks()
        if (bracket, char) == ("}", ","):
            char = _skip_repeated(window)
        if char != bracket:
            found = shorten(window.text[window.position :]) if char else "the end of the file"
            problem = Problem(
                BROKEN, f"{found} at {window.place(window.position)}", f"{bracket!r}, the end of the list"
            )
            yield from rest(window, problem, even_empty=True)
            return
        window.move(window.position + 1)
    if window.skip_blanks():
        found = f"{shorten(window.text[window.position :])} after the list, {window.place(window.position)}"
        yield from rest(window, Problem(BROKEN, found, "the end of the file: one list in a file"))


def _skip_repeated(window: Window) -> str:
    """Move over what stands after a list of pairs and only repeats it; returns the character that comes next."""
    while len(window.text) - window.position <= LIMIT:
        try:
            value, end = Decoder().at(f"{{{window.text[window.position + 1 :]}", 0)
        except (ValueError, RecursionError):
            if window.more():
                continue
            break
        if set(value) <= REPEATED:
            window.move(window.position + end - 1)
        break
    return window.text[window.position]


def _element(window: Window, decoder: Decoder, key: str | None) -> Parsed:
    """The element at `position`; moves to its end. `key`: the first key of the objects before it, if there are any."""
    while True:
        try:
            value, end = decoder.at(window.text, window.position)
            if end == len(window.text) and not isinstance(value, dict | list | str) and window.more():
                continue  # a number may continue in what is not read yet
            if (
                key
                and not isinstance(value, dict | list)
                and window.text[end:].lstrip(" \t\r\n")[:1] not in (",", "]", "")
            ):
                raise json.JSONDecodeError("Expecting an object", window.text, window.position)
            problems, error = decoder.notes, None
            break
        except (ValueError, RecursionError) as caught:
            error, end = caught, _end_of_broken(window.text, window.position, key)
            if end is None:
                if len(window.text) - window.position <= LIMIT and window.more():
                    continue
                end = _resume(window.text, window.position, key) or len(window.text)
            break
    if end - window.position > LIMIT:
        return too_long(window, lambda: _skip_value(window))
    line, raw = window.line, window.text[window.position : end]
    if error is not None:
        value, problems = _without_trailing_commas(decoder, raw, window) or (None, [_broken(window, error)])
    window.move(end)
    return Parsed(line, raw, value, problems)


def _end_of_broken(text: str, start: int, key: str | None) -> int | None:
    """Where the broken element at `start` ends; None if it may continue after `text`."""
    if text[start] not in "{[" and key:
        return _resume(text, start, key)
    if text[start] not in "{[":
        found = re.compile(r"[,\]}\n]").search(text, start + 1)
        return found.start() if found else None
    open_brackets = []
    searched = False
    for token in BRACKETS.finditer(text, start):
        bracket = token[0]
        if bracket in "[{":
            open_brackets.append(bracket)
        elif bracket in "]}":
            if open_brackets.pop() != CLOSES[bracket]:
                return _resume(text, start, key)
            if not open_brackets:
                return token.end()
        elif token.start() - start > PATIENCE and not searched:
            searched = True
            if resume := _resume(text, start, key):
                return resume
    return None


def _resume(text: str, start: int, key: str | None) -> int | None:
    """Where an object after `start` begins with the first key of the element at `start`, or else with `key`; or None."""
    own = FIRST_KEY.match(text, start)
    key = own[1] if own else key
    if not key:
        return None
    next_object = re.compile(rf"(?:,|(?<=[}}\]]))\s*(?=\{{\s*{re.escape(key)}\s*:)")
    found = next_object.search(text, own.end() if own else start + 1)
    return found.start() if found else None


def _without_trailing_commas(decoder: Decoder, raw: str, window: Window) -> tuple[object, list[Problem]] | None:
    """The value and problems of `raw`, the row at `position`, without its trailing commas; None if it is still broken."""
    commas = [match.start() for match in COMMAS.finditer(raw) if match[1] is None]
    if not commas:
        return None
    try:
        value = decoder.whole(COMMAS.sub(lambda match: match[1] or "", raw))
    except (ValueError, RecursionError):
        return None
    return value, [_comma_problem(window.place(window.position + commas[0])), *decoder.notes]


def _comma_problem(place: str) -> Problem:
    return Problem(TRAILING_COMMA, f"a comma with nothing after it, {place}", "no comma after the last one")


def _broken(window: Window, error: Exception) -> Problem:
    """The problem of the row at `position`, which cannot be parsed, with its line and column."""
    start = window.position
    if isinstance(error, RecursionError):
        expected = "brackets nested less than a thousand deep"
        return Problem("nested too deeply", f"the row at {window.place(start)}", expected)
    if isinstance(error, json.JSONDecodeError):
        # The position of an error is in the whole window or in the row by itself.
        position = error.pos if error.doc is window.text else start + error.pos
        return Problem(BROKEN, f"{window.place(min(position, len(window.text)))}: {error.msg}", "JSON")
    found = f"a number with too many digits in the row at {window.place(start)}"
    return Problem(BROKEN, found, "numbers of at most 4,300 digits")


def too_long(window: Window, skip: Callable[[], int], problem: Problem | None = None) -> Parsed:
    """The row at `position`, of which only the beginning is kept. `skip` moves to its end and returns its length.

    Args:
        problem: what else is wrong with the row.
    """
    line, raw = window.line, window.text[window.position : window.position + KEPT]
    found = f"{skip():,} characters in the row on line {line:,}; only the first {len(raw):,} of them are kept here"
    long = Problem(TOO_LONG, found, "shorter rows, such as a row for each part")
    return Parsed(line, raw, None, [problem, long] if problem else [long])


def _skip_value(window: Window) -> int:
    """Move to where the brackets of the value at `position` close, however long it is; to the end of the line if it is a
    text or a number. Returns the number of characters passed over."""
    if window.text[window.position] not in "[{":
        return window.skip_line()
    passed, depth, inside = 0, 0, False  # inside of a string, which ends with its line at the latest
    while True:
        position = window.position
        while found := (INSIDE if inside else OUTSIDE).search(window.text, position):
            position = found.end()
            if found[0] in ('"', "\n"):
                inside = not inside
            elif not inside:
                depth += 1 if found[0] in "[{" else -1
                if not depth:
                    passed += position - window.position
                    window.move(position)
                    return passed
        # A backslash at the end of what is read belongs to the character after it.
        held_back = inside and position < len(window.text) and window.text.endswith("\\")
        end = len(window.text) - held_back
        passed += end - window.position
        window.move(end)
        if not window.more():
            return passed + window.skip_all()


def rest(window: Window, problem: Problem, even_empty: bool = False) -> Iterator[Parsed]:
    """The rest of the file as a row with `problem`."""
    if not window.skip_blanks() and not even_empty:
        return
    while len(window.text) - window.position <= LIMIT and window.more():
        pass
    if len(window.text) - window.position > LIMIT:
        yield too_long(window, window.skip_all, problem)
        return
    line, raw = window.line, window.text[window.position :]
    window.move(len(window.text))
    yield Parsed(line, raw, None, [problem])
