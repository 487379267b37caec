"""Rows out of plain text of any size: one per line if lines are long, as in dumps of Wikipedia, otherwise long pieces.

Verse and code have short lines. They are running text: one row up to 131,072 characters, cut at the end of a line. Where
the file says by lines of <|endoftext|> alone where its documents end, as TinyStories does, each document is such a row.
"""

import re
from collections import Counter
from collections.abc import Iterator

from data_prep.rows.json_rows import Parsed
from data_prep.rows.text_window import Window

HEAD = 1 << 20  # characters that decide between running text, a row per line, and documents with a line between them
LONG_LINES = 500  # characters of an average line above which every line is a row
PIECE = 1 << 17  # characters of running text in a row: about 24,000 English words
LONGEST_LINE = 1 << 24  # characters; the rest of a longer line is another row
SEPARATOR = "<|endoftext|>"
SEPARATING_LINE = re.compile(rf"^{re.escape(SEPARATOR)}[ \t]*\r?$\n?", re.MULTILINE)


def text_rows(window: Window, counts: Counter) -> Iterator[Parsed]:
    """The rows of a text file, with their text as the value. A line between two documents is in no row.

    Args:
        counts: gets "cut", the pieces cut off overlong lines, and "separated", the rows that end at such a line.
    """
    while len(window.text) < HEAD and window.more():
        pass
    head = window.text[:HEAD]
    separated = SEPARATING_LINE.search(head) is not None
    by_line = not separated and len(head) / (head.count("\n") + 1) > LONG_LINES
    while window.position < len(window.text) or window.more():
        least = 0 if by_line else PIECE
        while (end := window.text.find("\n", window.position + least)) < 0:
            if len(window.text) - window.position > LONGEST_LINE or not window.more():
                break
        cut = end < 0
        end = min(len(window.text), window.position + LONGEST_LINE) if cut else end + 1
        between = SEPARATING_LINE.search(window.text, window.position, end) if separated else None
        if between:
            end = between.start()
        else:
            counts["cut"] += cut and end < len(window.text)
        line, raw = window.line, window.text[window.position : end]
        window.move(between.end() if between else end)
        text = raw.replace("\r\n", "\n").replace("\r", "\n")
        if not separated:
            yield Parsed(line, raw, text.rstrip("\n") if by_line else text, [])
        elif text.strip():
            counts["separated"] += bool(between)
            yield Parsed(line, raw, text.strip("\n"), [])
