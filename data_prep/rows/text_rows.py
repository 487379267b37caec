"""Rows out of plain text of any size: one per line if lines are long, as in dumps of Wikipedia, otherwise long pieces.

Verse and code have short lines. They are running text: one row up to 131,072 characters, cut at the end of a line.
"""

from collections import Counter
from collections.abc import Iterator

from data_prep.rows.json_rows import Parsed
from data_prep.rows.text_window import Window

HEAD = 1 << 20  # characters that decide between running text and a row per line
LONG_LINES = 500  # characters of an average line above which every line is a row
PIECE = 1 << 17  # characters of running text in a row: about 24,000 English words
LONGEST_LINE = 1 << 24  # characters; the rest of a longer line is another row


def text_rows(window: Window, counts: Counter) -> Iterator[Parsed]:
    """The rows of a text file, with their text as the value; `counts["cut"]` counts the pieces cut off overlong lines."""
    while len(window.text) < HEAD and window.more():
        pass
    head = window.text[:HEAD]
    by_line = len(head) / (head.count("\n") + 1) > LONG_LINES
    while window.position < len(window.text) or window.more():
        least = 0 if by_line else PIECE
        while (end := window.text.find("\n", window.position + least)) < 0:
            if len(window.text) - window.position > LONGEST_LINE or not window.more():
                break
        if end < 0:
            end = min(len(window.text), window.position + LONGEST_LINE)
            counts["cut"] += end < len(window.text)
        else:
            end += 1
        line, raw = window.line, window.text[window.position : end]
        window.move(end)
        text = raw.replace("\r\n", "\n").replace("\r", "\n")
        yield Parsed(line, raw, text.rstrip("\n") if by_line else text, [])
